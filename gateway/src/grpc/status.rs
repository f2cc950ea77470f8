//! The one place that knows gRPC's status codes: every cause and its code.

use tonic::Status;

use crate::execute::ExecuteError;
use crate::oip::DecodeError;
use crate::predict::PredictError;
use crate::route::RouteError;

pub(super) fn of_predict(error: &PredictError) -> Status {
    let message = error.to_string();
    match error {
        PredictError::Route(error) => of_route(error),
        PredictError::Overloaded(_) => Status::resource_exhausted(message),
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
        PredictError::Execute(ExecuteError::Features) => Status::unavailable(message),
        PredictError::Execute(ExecuteError::Failed { .. }) => Status::internal(message),
    }
}

pub(super) fn of_route(error: &RouteError) -> Status {
    let message = error.to_string();
    match error {
        RouteError::UnknownModel { .. } | RouteError::UnknownVersion { .. } => {
            Status::not_found(message)
        }
        RouteError::NotReady { .. } => Status::unavailable(message),
    }
}

pub(super) fn of_name(error: &registry::NameError) -> Status {
    Status::invalid_argument(error.to_string())
}
