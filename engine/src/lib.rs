//! Tensors, ONNX files and the three engines that run them.
//!
//! Owns: reading and checking an ONNX file's bytes ([`OnnxFile`]), its [`Signature`], loading it
//! with our own evaluator of tree ensembles, with tract or with ONNX Runtime ([`Model`]), running
//! it ([`Session`]), and the comparison of engines ([`ParityReport`]).
//! Must not know: model names, versions, HTTP, features.
//! Costs: a check reads the file once and allocates less than it; a session belongs to one thread;
//! a run of 200 trees of 31 leaves takes a few microseconds a row.

mod model;
mod onnx;
mod parity;
mod runtime;
mod signature;
mod tensor;
mod tract;
mod trees;

pub mod proto;

pub use model::{EngineKind, LoadError, Model, RunError, Session, UnknownEngine};
pub use onnx::{CheckError, OnnxFile, OnnxLimits, OperatorUse};
pub use parity::{EngineTrial, Mismatch, ParityReport, TOLERANCE, first_mismatch, sample_inputs};
pub use runtime::onnx_runtime_available;
pub use signature::{Signature, TensorSpec};
pub use tensor::{DataType, Tensor, TensorData, TensorError, UnknownDataType};
