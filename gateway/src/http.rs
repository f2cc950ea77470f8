//! The data plane over HTTP: from a request's head to its response.
//!
//! Owns the route table, the reading of bodies and the mapping of causes to statuses; what an
//! answer is, others know. A request is refused by its head where it can be, before its body is read.

mod body;
mod path;
mod status;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use crate::ingest;
use crate::metrics::{Operation, Outcome};
use crate::oip;
use crate::predict::{Call, Desk, Wire, predict};
use crate::route::{self, Target};
use crate::serve::Core;

pub(crate) use path::percent_decode;

use path::{Resource, resolve};
use status::Refusal;

/// In replay mode the request's time, milliseconds since the Unix epoch.
const TIME_HEADER: &str = "loopgate-time-ms";
/// `false` makes a prediction a probe: answered, not recorded.
const RECORD_HEADER: &str = "loopgate-record";
/// Says that binary tensors follow the JSON, which is not offered.
const BINARY_HEADER: &str = "inference-header-content-length";

type Answer = Response<Full<Bytes>>;

/// Answers one request, whatever happens.
pub(crate) async fn respond(desk: Arc<Desk>, request: Request<Incoming>) -> Answer {
    let arrived = Instant::now();
    let resource = resolve(request.uri().path());
    let operation = resource
        .as_ref()
        .map_or(Operation::Other, Resource::operation);
    let answered = unwinding(async {
        let resource = resource?;
        if request.method() != resource.method() {
            return Err(Refusal::method(&resource.method()));
        }
        answer(&desk, resource, request, arrived).await
    });
    let (mut response, outcome) = match answered.await {
        Some(Ok(response)) => (response, Outcome::Ok),
        Some(Err(refusal)) => refusal.into_response(),
        None => Refusal::panicked().into_response(),
    };
    desk.core.metrics.request(operation, outcome);
    if desk.core.is_draining() {
        response
            .headers_mut()
            .insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn answer(
    desk: &Desk,
    resource: Resource,
    request: Request<Incoming>,
    arrived: Instant,
) -> Result<Answer, Refusal> {
    let core = &*desk.core;
    match resource {
        Resource::Server => Ok(json(&oip::server_metadata(core.extensions()))),
        Resource::Live => Ok(json(&json!({"live": true}))),
        Resource::Ready => Ok(readiness(core)),
        Resource::Models => Ok(json(&json!({"models": model_names(core)}))),
        Resource::Model(target) => model_metadata(core, &target),
        Resource::ModelReady(target) => model_ready(core, &target),
        Resource::Infer(target) => infer(desk, target, request, arrived).await,
        Resource::Events(source) => {
            let _place = core.ingest_admission.enter()?;
            let (now_ms, body) = ingest_body(core, request).await?;
            let ingested = ingest::events(core, &source, &body, now_ms).await?;
            Ok(json(&json!({
                "accepted": ingested.accepted,
                "duplicates": ingested.duplicates,
                "late": ingested.late,
            })))
        }
        Resource::Labels => {
            let _place = core.ingest_admission.enter()?;
            let (now_ms, body) = ingest_body(core, request).await?;
            let ingested = ingest::labels(core, &body, now_ms).await?;
            Ok(json(&json!({
                "accepted": ingested.accepted,
                "duplicates": ingested.duplicates,
                "unknown": ingested.unknown,
            })))
        }
    }
}

async fn infer(
    desk: &Desk,
    target: Target,
    request: Request<Incoming>,
    arrived: Instant,
) -> Result<Answer, Refusal> {
    let core = &*desk.core;
    let place = core.admission.enter()?;
    let (head, body) = request.into_parts();
    if head.headers.contains_key(BINARY_HEADER) {
        return Err(Refusal::binary());
    }
    let at_ms = request_ms(core, &head.headers)?;
    let probe = head
        .headers
        .get(RECORD_HEADER)
        .is_some_and(|value| value == "false");
    let body = body::read(&head.headers, body, &core.limits).await?;
    let call = Call {
        target,
        place,
        arrived,
        at_ms,
        probe,
    };
    let encoded = predict(desk, call, Json(&body)).await?;
    Ok(ok(encoded.into()))
}

/// The protocol's JSON.
struct Json<'b>(&'b [u8]);

impl Wire for Json<'_> {
    type Reply = Vec<u8>;

    fn decode(&mut self) -> Result<oip::InferRequest, oip::DecodeError> {
        oip::decode(self.0)
    }

    fn encode(&self, response: &oip::Response<'_>) -> Result<Vec<u8>, oip::EncodeError> {
        oip::encode(response)
    }
}

async fn ingest_body(core: &Core, request: Request<Incoming>) -> Result<(i64, Bytes), Refusal> {
    let (head, body) = request.into_parts();
    let now_ms = request_ms(core, &head.headers)?;
    Ok((now_ms, body::read(&head.headers, body, &core.limits).await?))
}

fn request_ms(core: &Core, headers: &HeaderMap) -> Result<i64, Refusal> {
    let named = match headers.get(TIME_HEADER) {
        Some(value) if core.clock.is_replay() => {
            let ms = value.to_str().ok().and_then(|text| text.parse().ok());
            Some(ms.ok_or_else(|| Refusal::header(TIME_HEADER))?)
        }
        _ => None,
    };
    Ok(core.clock.request_ms(named))
}

fn readiness(core: &Core) -> Answer {
    let ready = core.is_ready();
    let mut response = json(&json!({"ready": ready, "live": true}));
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

fn model_names(core: &Core) -> Vec<String> {
    let table = core.table.snapshot();
    let models = table.iter().flat_map(|table| table.models());
    models.map(|model| model.name.to_string()).collect()
}

fn model_metadata(core: &Core, target: &Target) -> Result<Answer, Refusal> {
    let table = core.table.snapshot();
    let model = route::model(table.as_deref(), target)?;
    let version = route::named_or_champion(model, target)?;
    let versions: Vec<String> = model.versions.keys().map(u32::to_string).collect();
    Ok(json(&oip::model_metadata(
        &model.name,
        &versions,
        &version.public,
    )))
}

fn model_ready(core: &Core, target: &Target) -> Result<Answer, Refusal> {
    model_metadata(core, target)?;
    Ok(json(
        &json!({"name": target.model.as_str(), "ready": !core.is_draining()}),
    ))
}

fn json(body: &impl Serialize) -> Answer {
    let body = serde_json::to_vec(body).expect("an answer can be written to memory");
    ok(body.into())
}

fn ok(body: Bytes) -> Answer {
    let mut response = Response::new(Full::new(body));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Runs a future to its end; `None` when it panicked. What a panic may leave half done is its own
/// request's alone: shared state is changed by atomic steps only.
async fn unwinding<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Some),
            Err(_) => std::task::Poll::Ready(None),
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_ends_its_own_request_only() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let panicked = runtime.block_on(unwinding(async { panic!("on purpose") }));
        assert!(panicked.is_none());
        assert_eq!(runtime.block_on(unwinding(async { 7 })), Some(7));
        let (response, outcome) = Refusal::panicked().into_response();
        assert_eq!(
            (response.status().as_u16(), outcome),
            (500, Outcome::Failed)
        );
    }
}
