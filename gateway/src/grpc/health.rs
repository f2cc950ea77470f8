//! `grpc.health.v1`: of the whole server, of the inference service, and of each model by its name.

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, Stream};
use registry::ModelName;
use tonic::Status;

use super::call::Server;
use super::message::{HealthCheckRequest, HealthCheckResponse, ServingStatus};
use crate::serve::Core;

/// How often a watched status is looked at: it is derived from the table, which tells nobody.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// The status now.
pub(super) fn check(
    core: &Core,
    asked: &HealthCheckRequest,
) -> Result<HealthCheckResponse, Status> {
    match status(core, &asked.service) {
        ServingStatus::ServiceUnknown => Err(Status::not_found("unknown service")),
        known => Ok(response(known)),
    }
}

/// The status now, and again whenever it changes; ends when the server does.
pub(super) fn watch(
    server: Arc<Server>,
    asked: HealthCheckRequest,
) -> impl Stream<Item = Result<HealthCheckResponse, Status>> + Send + 'static {
    stream::unfold((server, None), move |(server, told)| {
        let service = asked.service.clone();
        async move {
            loop {
                let now = status(&server.desk.core, &service);
                if told != Some(now) {
                    return Some((Ok(response(now)), (server, Some(now))));
                }
                if server.stop.is_cancelled() {
                    return None;
                }
                tokio::select! {
                    biased;
                    () = server.stop.cancelled() => {}
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                }
            }
        }
    })
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}

fn status(core: &Core, service: &str) -> ServingStatus {
    let serves = match service {
        "" | "inference.GRPCInferenceService" => Some(core.is_ready()),
        model => model_serves(core, model),
    };
    match serves {
        Some(true) => ServingStatus::Serving,
        Some(false) => ServingStatus::NotServing,
        None => ServingStatus::ServiceUnknown,
    }
}

/// `None` for an unknown model.
fn model_serves(core: &Core, name: &str) -> Option<bool> {
    let name: ModelName = name.parse().ok()?;
    let table = core.table.snapshot();
    let model = table.as_deref()?.model(name.as_str())?;
    Some(model.champion.is_some() && !core.is_draining())
}
