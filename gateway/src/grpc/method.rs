//! The route table of gRPC: which methods there are, and what each asks of its caller.

use crate::access::Access;
use crate::keys::Scope;

/// What a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    ServerLive,
    ServerReady,
    ServerMetadata,
    ModelReady,
    ModelMetadata,
    ModelInfer,
    ModelStreamInfer,
    ModelConfig,
    ModelStatistics,
    RepositoryIndex,
    RepositoryModelLoad,
    RepositoryModelUnload,
    HealthCheck,
    HealthWatch,
    Reflection,
}

const OPEN: Access = Access::Open;
const PREDICT: Access = Access::Scoped(Scope::Predict);
const ADMIN: Access = Access::Scoped(Scope::Admin);

/// A method's path, what it asks of its caller, and what it is.
type Row = (&'static str, Access, Method);

/// Every method. The first is by far the most frequent.
#[rustfmt::skip]
pub(crate) const METHODS: &[Row] = &[
    ("/inference.GRPCInferenceService/ModelInfer", PREDICT, Method::ModelInfer),
    ("/inference.GRPCInferenceService/ModelStreamInfer", PREDICT, Method::ModelStreamInfer),
    ("/inference.GRPCInferenceService/ServerLive", OPEN, Method::ServerLive),
    ("/inference.GRPCInferenceService/ServerReady", OPEN, Method::ServerReady),
    ("/inference.GRPCInferenceService/ServerMetadata", PREDICT, Method::ServerMetadata),
    ("/inference.GRPCInferenceService/ModelReady", PREDICT, Method::ModelReady),
    ("/inference.GRPCInferenceService/ModelMetadata", PREDICT, Method::ModelMetadata),
    ("/inference.GRPCInferenceService/ModelConfig", PREDICT, Method::ModelConfig),
    ("/inference.GRPCInferenceService/ModelStatistics", PREDICT, Method::ModelStatistics),
    ("/inference.GRPCInferenceService/RepositoryIndex", PREDICT, Method::RepositoryIndex),
    ("/inference.GRPCInferenceService/RepositoryModelLoad", ADMIN, Method::RepositoryModelLoad),
    ("/inference.GRPCInferenceService/RepositoryModelUnload", ADMIN, Method::RepositoryModelUnload),
    ("/grpc.health.v1.Health/Check", OPEN, Method::HealthCheck),
    ("/grpc.health.v1.Health/Watch", OPEN, Method::HealthWatch),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", PREDICT, Method::Reflection),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", PREDICT, Method::Reflection),
];

/// The method at `path`, and what it asks. That there is none is told to callers with a key only.
pub(super) fn find(path: &str) -> (Option<Method>, Access) {
    let row = METHODS.iter().find(|(known, ..)| *known == path);
    row.map_or((None, PREDICT), |&(_, access, method)| {
        (Some(method), access)
    })
}
