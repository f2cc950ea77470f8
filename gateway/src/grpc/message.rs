//! The messages of `inference.GRPCInferenceService` and `grpc.health.v1`, as `deploy/setup/protos.sh`
//! generates them from `gateway/proto`. Raw contents are slices of the bytes that were received.

use std::collections::HashMap;

pub(super) use health::health_check_response::ServingStatus;
pub(super) use health::{HealthCheckRequest, HealthCheckResponse};
pub(super) use inference::infer_parameter::ParameterChoice as Choice;
pub(super) use inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
pub(super) use inference::model_infer_response::InferOutputTensor;
pub(super) use inference::model_metadata_response::TensorMetadata;
pub(super) use inference::*;

/// What reflection tells of: every message and service.
pub(super) const DESCRIPTORS: &[u8] = include_bytes!("../../proto/generated/descriptor.bin");

/// Parameters of a request, a response or a tensor.
pub(super) type Parameters = HashMap<String, InferParameter>;

#[expect(unreachable_pub, clippy::all, reason = "generated")]
mod inference {
    include!("../../proto/generated/inference.rs");
}

#[expect(unreachable_pub, clippy::all, reason = "generated")]
mod health {
    include!("../../proto/generated/grpc.health.v1.rs");
}
