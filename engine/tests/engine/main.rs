//! Behaviour of the engine on real ONNX bytes, written with the re-exported messages.
//!
//! ONNX Runtime takes part where its library is found (`LOOPGATE_ORT_LIB` names it); where it is
//! not, each test that would use it says so.
#![expect(clippy::unwrap_used, reason = "tests")]

mod agreement;
mod case;
mod choice;
mod ensembles;
mod fixture;
mod forests;
mod labels;
mod node_models;
mod pipelines;
mod stop;
mod stored_models;
mod structure;
