//! The one place that knows gRPC's status codes: every cause and its code.

use std::time::Duration;

use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::access::Denied;
use crate::admission::{Overloaded, RETRY_AFTER_S};
use crate::execute::ExecuteError;
use crate::oip::DecodeError;
use crate::predict::PredictError;
use crate::repository::RepositoryError;
use crate::route::RouteError;

pub(super) fn of_predict(error: &PredictError) -> Status {
    let message = error.to_string();
    match error {
        PredictError::Route(error) => of_route(error),
        PredictError::Overloaded(error)
        | PredictError::Execute(ExecuteError::Overloaded(error)) => shed(error),
        PredictError::Decode(DecodeError::Parameter(error)) if error.unimplemented => {
            Status::unimplemented(message)
        }
        PredictError::Decode(_)
        | PredictError::Inputs(_)
        | PredictError::UnknownOutput(_)
        | PredictError::DoubledOutput(_)
        | PredictError::Classify(_)
        | PredictError::Encode(_)
        | PredictError::Execute(ExecuteError::Inputs(_)) => Status::invalid_argument(message),
        PredictError::Deadline(_) | PredictError::Execute(ExecuteError::Deadline(_)) => {
            Status::deadline_exceeded(message)
        }
        PredictError::Execute(ExecuteError::Features | ExecuteError::Broken { .. }) => {
            Status::unavailable(message)
        }
        PredictError::Execute(ExecuteError::Missing(_)) => Status::failed_precondition(message),
        PredictError::Execute(ExecuteError::Failed { .. }) => Status::internal(message),
    }
}

pub(super) fn of_route(error: &RouteError) -> Status {
    let message = error.to_string();
    match error {
        RouteError::UnknownModel { .. }
        | RouteError::UnknownVersion { .. }
        | RouteError::UnknownService { .. } => Status::not_found(message),
        RouteError::NotReady { .. } => Status::unavailable(message),
    }
}

pub(super) fn of_repository(error: &RepositoryError) -> Status {
    use RepositoryError as Error;
    let message = error.to_string();
    match error {
        Error::Forbidden => Status::permission_denied(message),
        Error::Busy => come_again(message, Duration::from_secs(RETRY_AFTER_S)),
        Error::RegistryAway | Error::Stopping => Status::unavailable(message),
        Error::Body(_)
        | Error::NoFile(_)
        | Error::NotLoaded(_)
        | Error::File(_)
        | Error::Prepare(_)
        | Error::NotServed { .. } => Status::invalid_argument(message),
        Error::Alias(_) => Status::aborted(message),
        Error::Artifact(_) | Error::Register(_) | Error::Lookup(_) | Error::Database(_) => {
            tracing::error!(error = message, "registry failed");
            Status::internal("the registry failed")
        }
    }
}

pub(super) fn of_name(error: &registry::NameError) -> Status {
    Status::invalid_argument(error.to_string())
}

/// What a caller is told that the gate does not let in.
pub(super) fn denied(denied: Denied) -> Status {
    let message = denied.to_string();
    match denied {
        Denied::NoKey | Denied::Unknown => Status::unauthenticated(message),
        Denied::Scope(_) => Status::permission_denied(message),
        Denied::Rate { retry_after_s } => come_again(message, Duration::from_secs(retry_after_s)),
    }
}

/// Refused for want of a place. It is not `UNAVAILABLE`, which clients retry by themselves at once;
/// the trailers say when to come again, the second in the words of gRPC's own retry policy.
pub(super) fn shed(error: &Overloaded) -> Status {
    come_again(error.to_string(), error.retry_after)
}

fn come_again(message: String, after: Duration) -> Status {
    let mut trailers = MetadataMap::new();
    let number = |number: u64| MetadataValue::<Ascii>::from(number);
    let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
    let seconds = ms.div_ceil(1000).max(RETRY_AFTER_S);
    trailers.insert("retry-after", number(seconds));
    trailers.insert("grpc-retry-pushback-ms", number(ms.max(1)));
    Status::with_metadata(Code::ResourceExhausted, message, trailers)
}

/// The codec calls a message over the limit `OUT_OF_RANGE`, which nothing else here is.
pub(super) fn too_large(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message()),
        _ => status,
    }
}

pub(super) fn draining() -> Status {
    Status::unavailable("the server is about to end")
}

pub(super) fn unknown_method(path: &str) -> Status {
    if path.contains("SharedMemory") {
        return Status::unimplemented("shared memory is not offered: send the tensors' contents");
    }
    Status::unimplemented("unknown method")
}
