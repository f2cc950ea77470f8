//! Feast's routes over HTTP: places, bodies, and the statuses that its clients expect.

use bytes::Bytes;
use featurestore::Ingested;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};

use super::infer::bytes_said;
use super::status::Refusal;
use super::{Answer, Received, body, ingest_body, json, ok, request_ms};
use crate::feast::{self, Materialize};
use crate::metrics::Operation;
use crate::predict::Desk;
use crate::serve::Core;

/// One of Feast's routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FeastRoute {
    OnlineFeatures,
    Push,
    Write,
    Materialize(Materialize),
    Health,
}

impl FeastRoute {
    /// The route as metrics see it.
    pub(super) fn operation(self) -> Operation {
        match self {
            Self::OnlineFeatures => Operation::Features,
            Self::Push | Self::Write => Operation::Events,
            Self::Materialize(_) | Self::Health => Operation::Other,
        }
    }
}

/// What became of a frame's rows; its routes' bodies are Feast's and do not say.
const COUNTS: [HeaderName; 3] = [
    HeaderName::from_static("loopgate-accepted"),
    HeaderName::from_static("loopgate-duplicates"),
    HeaderName::from_static("loopgate-late"),
];

pub(super) async fn answer(
    desk: &Desk,
    route: FeastRoute,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    let core = &*desk.core;
    match route {
        FeastRoute::OnlineFeatures => online_features(core, received).await,
        FeastRoute::Push => {
            let _place = core.ingest_admission.enter()?;
            let (now_ms, body) = ingest_body(core, received).await?;
            let ingested = feast::push(core, &body, now_ms).await?;
            Ok(counted(ok(Bytes::new()), &ingested))
        }
        FeastRoute::Write => {
            let _place = core.ingest_admission.enter()?;
            let (now_ms, body) = ingest_body(core, received).await?;
            let ingested = feast::write(core, &body, now_ms).await?;
            Ok(counted(json(&()), &ingested))
        }
        FeastRoute::Materialize(kind) => materialize(core, kind, received).await,
        FeastRoute::Health => {
            let mut answer = ok(Bytes::new());
            if core.is_draining() || core.store.is_none() {
                *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            }
            Ok(answer)
        }
    }
}

async fn online_features(core: &Core, received: Received<'_>) -> Result<Answer, Refusal> {
    let mut place = core.admission.enter_with(bytes_said(&received.body))?;
    let at_ms = request_ms(core, received.headers)?;
    let body = body::read(received.headers, received.body, &core.limits).await?;
    place.hold(body.len())?;
    let until = received.arrived + core.limits.deadline;
    let answer = feast::online_features(core, &body, at_ms, until).await?;
    Ok(ok(answer.into()))
}

async fn materialize(
    core: &Core,
    kind: Materialize,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    let is_async = received.query.is_some_and(asks_async);
    let body = body::read(received.headers, received.body, &core.limits).await?;
    let views = feast::materialize(core, kind, &body)?;
    if !is_async {
        return Ok(json(&()));
    }
    let mut accepted = json(&json!({"status": "accepted", "feature_views": views}));
    *accepted.status_mut() = StatusCode::ACCEPTED;
    Ok(accepted)
}

/// Whether a query asks not to be waited for; of several `async` the last counts.
fn asks_async(query: &str) -> bool {
    let pairs = query.rsplit('&');
    let value = pairs.filter_map(|pair| pair.strip_prefix("async=")).next();
    value.is_some_and(|value| {
        let yes = ["true", "1", "yes", "on", "t", "y"];
        yes.iter().any(|yes| value.eq_ignore_ascii_case(yes))
    })
}

fn counted(mut answer: Answer, ingested: &Ingested) -> Answer {
    let counts = [ingested.accepted, ingested.duplicates, ingested.late];
    for (name, count) in COUNTS.into_iter().zip(counts) {
        answer.headers_mut().insert(name, HeaderValue::from(count));
    }
    answer
}
