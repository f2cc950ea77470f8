//! The Open Inference Protocol V2, JSON over HTTP: requests in, responses and metadata out.
//!
//! Owns the wire format and nothing else: no model is looked up here and no status code chosen.
//! Decoding goes from bytes straight into typed vectors; a body of n bytes costs one pass and at
//! most eight times n in memory (`""` as an element of BYTES is the worst).

mod element;
mod json;
mod metadata;
mod request;
mod response;

use std::time::Duration;

use engine::Tensor;

pub(crate) use metadata::{model_metadata, server_metadata};
pub(crate) use request::{DecodeError, decode};
pub(crate) use response::{EncodeError, Response, encode};

/// A tensor by its name in the request.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NamedTensor {
    pub name: Box<str>,
    pub tensor: Tensor,
}

/// An inference request, whichever wire it came by.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct InferRequest {
    /// The caller's own id, to be echoed.
    pub id: Option<Box<str>>,
    pub inputs: Vec<NamedTensor>,
    /// Names of the wanted outputs; empty means all of them.
    pub outputs: Vec<Box<str>>,
    /// Parameter `timeout`, microseconds on the wire; `None` where absent or zero.
    pub timeout: Option<Duration>,
    /// Parameter `loopgate_record = false`: a probe, answered but not recorded.
    pub probe: bool,
}
