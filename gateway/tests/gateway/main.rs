//! The real binary, over its real sockets.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod admin;
mod backup;
mod conformance;
mod dear;
mod docs_of_faults;
mod drain;
mod feast;
mod feature;
mod files;
mod frames;
mod golden;
mod grpc;
mod grpc_client;
mod grpc_stream;
mod grpc_surface;
mod h2;
mod hostile;
mod http;
mod keys;
mod kill;
mod last_good;
mod line;
mod names;
mod onnx;
mod operator;
mod overload;
mod patience;
mod process;
mod protocol;
mod repository;
mod serve;
mod swap;
mod tls;
mod trial;
mod wire;
