//! The data plane over HTTP: from a request's head to its response.
//!
//! Owns the route table, the reading of bodies and the mapping of causes to statuses; what an
//! answer is, others know. A request is refused by its head where it can be, before its body is read.

mod body;
mod describe;
mod encoding;
mod feast;
mod infer;
mod repository;
mod routes;
mod status;

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::header::{CONNECTION, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderValue, VARY};
use hyper::{Request, Response, StatusCode};
use serde::Serialize;
use serde_json::json;

use crate::access::Denied;
use crate::ingest;
use crate::metrics::Outcome;
use crate::oip;
use crate::predict::Desk;
use crate::route::Named;
use crate::serve::Core;

pub(crate) use routes::ROUTES;
pub(crate) use status::{of_denied, of_unrouted};

use encoding::Coding;
use routes::{Endpoint, Matched, enter};
use status::Refusal;

/// In replay mode the request's time, milliseconds since the Unix epoch.
const TIME_HEADER: &str = "loopgate-time-ms";

type Answer = Response<Full<Bytes>>;

/// A request whose body is still to be read.
struct Received<'r> {
    headers: &'r HeaderMap,
    query: Option<&'r str>,
    body: Incoming,
    arrived: Instant,
}

/// Answers one request, whatever happens.
pub(crate) async fn respond(desk: Arc<Desk>, request: Request<Incoming>) -> Answer {
    let arrived = Instant::now();
    let (head, body) = request.into_parts();
    let (operation, matched) = enter(&desk.core.gate, &head);
    let answered = unwinding(async {
        let received = Received {
            headers: &head.headers,
            query: head.uri.query(),
            body,
            arrived,
        };
        answer(&desk, &matched?, received).await
    });
    let (mut response, outcome) = match answered.await {
        Some(Ok(response)) => (compressed(response, &head.headers), Outcome::Ok),
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

/// What a caller is told that the gate does not let in.
pub(crate) fn denied(denied: Denied) -> Answer {
    Refusal::from(denied).into_response().0
}

async fn answer(
    desk: &Desk,
    matched: &Matched<'_>,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    let core = &*desk.core;
    Ok(match matched.endpoint() {
        Endpoint::Infer => match matched.asked()? {
            Named::Model(target) => infer::infer(desk, target, received).await?,
            Named::Service(asked) => infer::rows(desk, &asked, received).await?,
        },
        Endpoint::Server => json(&oip::server_metadata(core.extensions())),
        Endpoint::Live => json(&json!({"live": true})),
        Endpoint::Ready => {
            let ready = core.is_ready();
            ready_or_not(ready, &json!({"ready": ready, "live": true}))
        }
        Endpoint::Models => json(&describe::model_names(core)),
        Endpoint::Model => json(&describe::model_metadata(core, &matched.asked()?)?),
        Endpoint::ModelReady => {
            let (name, ready) = describe::model_ready(core, &matched.asked()?)?;
            ready_or_not(ready, &json!({"name": name, "ready": ready}))
        }
        Endpoint::ModelConfig => json(&describe::model_config(core, &matched.asked()?)?),
        Endpoint::Statistics => json(&describe::statistics(core, matched.named()?.as_ref())?),
        Endpoint::RepositoryIndex => {
            let body = body::read(received.headers, received.body, &core.limits).await?;
            json(&describe::repository_index(core, &body)?)
        }
        Endpoint::RepositoryLoad => {
            repository::load(core, &matched.target()?.model, received).await?
        }
        Endpoint::RepositoryUnload => {
            repository::unload(core, &matched.target()?.model, received).await?
        }
        Endpoint::TraceSettings | Endpoint::TraceUpdate => {
            trace_settings(core, matched, received).await?
        }
        Endpoint::LogSettings => json(&describe::log_settings()),
        Endpoint::LogUpdate => {
            const FIXED: &str = "the log is set by LOOPGATE_LOG when the process starts";
            let body = body::read(received.headers, received.body, &core.limits).await?;
            json(&describe::update(describe::log_settings(), &body, FIXED)?)
        }
        Endpoint::Events => events(core, matched.name(), received).await?,
        Endpoint::Labels => labels(core, received).await?,
        Endpoint::Feast(route) => {
            let answered = feast::answer(desk, route, received).await;
            answered.map_err(Refusal::for_feast)?
        }
    })
}

async fn trace_settings(
    core: &Core,
    matched: &Matched<'_>,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    const FIXED: &str = "traces are not offered";
    if let Some(target) = matched.named()? {
        // Those of an unknown model are not found.
        describe::model_metadata(core, &Named::Model(target))?;
    }
    let settings = describe::trace_settings();
    if matched.endpoint() == Endpoint::TraceSettings {
        return Ok(json(&settings));
    }
    let body = body::read(received.headers, received.body, &core.limits).await?;
    Ok(json(&describe::update(settings, &body, FIXED)?))
}

async fn events(core: &Core, source: &str, received: Received<'_>) -> Result<Answer, Refusal> {
    let _place = core.ingest_admission.enter()?;
    let (now_ms, body) = ingest_body(core, received).await?;
    let ingested = ingest::events(core, source, &body, now_ms).await?;
    Ok(json(&json!({
        "accepted": ingested.accepted,
        "duplicates": ingested.duplicates,
        "late": ingested.late,
    })))
}

async fn labels(core: &Core, received: Received<'_>) -> Result<Answer, Refusal> {
    let _place = core.ingest_admission.enter()?;
    let (now_ms, body) = ingest_body(core, received).await?;
    let ingested = ingest::labels(core, &body, now_ms).await?;
    Ok(json(&json!({
        "accepted": ingested.accepted,
        "duplicates": ingested.duplicates,
        "unknown": ingested.unknown,
    })))
}

async fn ingest_body(core: &Core, received: Received<'_>) -> Result<(i64, Bytes), Refusal> {
    let now_ms = request_ms(core, received.headers)?;
    let body = body::read(received.headers, received.body, &core.limits).await?;
    Ok((now_ms, body))
}

fn request_ms(core: &Core, headers: &HeaderMap) -> Result<i64, Refusal> {
    let named = match headers.get(TIME_HEADER) {
        Some(value) if core.clock.is_replay() => {
            let ms = value.to_str().ok().and_then(|text| text.parse().ok());
            Some(ms.ok_or_else(|| Refusal::header(TIME_HEADER, "milliseconds"))?)
        }
        _ => None,
    };
    Ok(core.clock.request_ms(named))
}

/// 503 where it is not ready; clients look at the status, or at one of the body's keys.
fn ready_or_not(ready: bool, body: &serde_json::Value) -> Answer {
    let mut response = json(body);
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

/// Compresses an answer that is worth it, for a caller that asks.
fn compressed(answer: Answer, asked: &HeaderMap) -> Answer {
    let size = answer.body().size_hint().exact().unwrap_or(0);
    if size < encoding::WORTH_BYTES as u64 {
        return answer;
    }
    let Some(coding) = Coding::of_answer(asked) else {
        return answer;
    };
    let (mut head, body) = answer.into_parts();
    let body = body.into_inner().unwrap_or_default();
    head.headers.insert(CONTENT_ENCODING, coding.header());
    head.headers
        .insert(VARY, HeaderValue::from_static("accept-encoding"));
    Response::from_parts(head, Full::new(coding.encode(&body).into()))
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
