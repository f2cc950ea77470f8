//! The Open Inference Protocol V2 over HTTP: requests in, responses and metadata out, tensors as JSON
//! or as bytes beside it.
//!
//! Owns the wire format and nothing else: no model is looked up here and no status code chosen.
//! Decoding goes from bytes straight into typed vectors; a body of n bytes costs one pass and at
//! most eight times n in memory (`""` as an element of BYTES is the worst).

mod binary;
mod classify;
mod decimal;
mod element;
mod half;
mod json;
mod metadata;
mod number;
mod pairs;
mod parameters;
mod raw;
mod request;
mod response;
mod scalar;

use std::num::NonZeroUsize;
use std::time::Duration;

use engine::Tensor;

pub(crate) use binary::decode_raw;
pub(crate) use classify::{ClassifyError, classify};
pub(crate) use json::{Cursor, JsonError};
pub(crate) use metadata::{PLATFORM, model_config, model_metadata, server_metadata, takes_batches};
pub(crate) use number::Number;
pub(crate) use pairs::{Pair, Pairs, decode_pairs};
pub(crate) use parameters::{Parameter, ParameterError};
pub(crate) use raw::{raw_size, read_raw, write_raw};
pub(crate) use request::{DecodeError, decode, decode_binary};
pub(crate) use response::{EncodeError, Encoded, Response, ResponseOutput, encode};
pub(crate) use scalar::{write_float, write_integer, write_string};

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
    /// The wanted outputs; empty means all of them.
    pub outputs: Vec<WantedOutput>,
    /// Parameter `binary_data_output`: outputs come as binary where they do not say otherwise.
    pub binary_outputs: bool,
    /// Parameter `priority`: 0 the default, 1 the highest, then descending.
    pub priority: u32,
    /// Parameter `timeout`, microseconds on the wire; `None` where absent or zero.
    pub timeout: Option<Duration>,
    /// Parameter `loopgate_record = false`: a probe, answered but not recorded.
    pub probe: bool,
}

/// An output that the caller asks for, and how it is to come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WantedOutput {
    pub name: Box<str>,
    /// Parameter `classification`: the best so many classes of each row, as `BYTES`.
    pub classification: Option<NonZeroUsize>,
    /// Parameter `binary_data`, over the request's `binary_data_output`.
    pub binary: Option<bool>,
}
