//! Events and labels on their way to the feature store: parsed here, acknowledged once they are on
//! disk. A batch is written whole or not at all.

mod rows;

use std::time::Duration;

use featurestore::{
    Event, EventError, FeatureStore, IngestError, Ingested, Label, LabelsIngested, PredictionKey,
    time_ms,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::oneshot;

use self::rows::parse_events;
use crate::serve::Core;

/// Why a batch was not acknowledged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestRefusal {
    #[error("{0}")]
    Body(String),
    #[error("{rows} rows, at most {rows_max} allowed")]
    TooManyRows { rows: usize, rows_max: usize },
    #[error(transparent)]
    Event(#[from] EventError),
    #[error("row {row}: {problem}")]
    Label { row: usize, problem: String },
    #[error("unknown source `{0}`")]
    UnknownSource(String),
    #[error("this gateway keeps no data: start it with a data folder")]
    NoStore,
    #[error("the feature store is overloaded")]
    Overloaded { retry_after_ms: u64 },
    #[error(
        "not on disk within {} ms; it may yet be: send it again, rows count once",
        deadline.as_millis()
    )]
    Late { deadline: Duration },
    #[error("no space is left on the disk: nothing of the batch counts unless it is sent again")]
    Full,
    #[error("the feature store has stopped writing")]
    Stopped,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelsBody {
    labels: Vec<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LabelRow {
    prediction_id: String,
    value: f64,
    label_time: Option<Value>,
}

/// Takes a batch of events that arrived at `now_ms`.
pub(crate) async fn events(
    core: &Core,
    source: &str,
    body: &[u8],
    now_ms: i64,
) -> Result<Ingested, IngestRefusal> {
    let store = core.store.as_ref().ok_or(IngestRefusal::NoStore)?;
    let source = store
        .definitions()
        .source(source)
        .ok_or_else(|| IngestRefusal::UnknownSource(source.chars().take(64).collect()))?;
    let events = parse_events(source, body, core.limits.rows_max, now_ms)?;
    write(core, store, events, now_ms).await
}

/// Writes events that arrived at `now_ms`; returns once they are on disk.
pub(crate) async fn write(
    core: &Core,
    store: &FeatureStore,
    events: Vec<Event>,
    now_ms: i64,
) -> Result<Ingested, IngestRefusal> {
    if events.is_empty() {
        return Ok(Ingested::default());
    }
    let (done, acked) = oneshot::channel();
    // The receiver is gone when the caller's deadline passed; the rows are on disk all the same.
    let done = Box::new(|result| drop(done.send(result)));
    store
        .submit_events(events, now_ms, done)
        .map_err(overloaded)?;
    let ingested: Ingested = await_ack(acked, core.limits.ingest_deadline).await?;
    core.metrics.events.increment(ingested.accepted);
    core.metrics.event_duplicates.increment(ingested.duplicates);
    core.metrics.events_late.increment(ingested.late);
    Ok(ingested)
}

/// Takes a batch of labels that arrived at `now_ms`.
pub(crate) async fn labels(
    core: &Core,
    body: &[u8],
    now_ms: i64,
) -> Result<LabelsIngested, IngestRefusal> {
    let store = core.store.as_ref().ok_or(IngestRefusal::NoStore)?;
    let labels = parse_labels(body, core.limits.rows_max, now_ms)?;
    if labels.is_empty() {
        return Ok(LabelsIngested::default());
    }
    let (done, acked) = oneshot::channel();
    let done = Box::new(|result| drop(done.send(result)));
    store
        .submit_labels(labels, now_ms, done)
        .map_err(overloaded)?;
    let ingested: LabelsIngested = await_ack(acked, core.limits.ingest_deadline).await?;
    core.metrics.labels.increment(ingested.accepted);
    core.metrics.label_duplicates.increment(ingested.duplicates);
    core.metrics.labels_unknown.increment(ingested.unknown);
    Ok(ingested)
}

fn overloaded(error: featurestore::Overloaded) -> IngestRefusal {
    IngestRefusal::Overloaded {
        retry_after_ms: error.retry_after_ms,
    }
}

async fn await_ack<T>(
    acked: oneshot::Receiver<Result<T, IngestError>>,
    deadline: Duration,
) -> Result<T, IngestRefusal> {
    match tokio::time::timeout(deadline, acked).await {
        Err(_) => Err(IngestRefusal::Late { deadline }),
        Ok(Ok(Ok(ingested))) => Ok(ingested),
        Ok(Ok(Err(IngestError::Overloaded(error)))) => Err(overloaded(error)),
        // The store itself logs when that begins and when it ends.
        Ok(Ok(Err(IngestError::Full))) => Err(IngestRefusal::Full),
        Ok(Ok(Err(error @ IngestError::Stopped { .. }))) => {
            tracing::error!(%error, "batch not written");
            Err(IngestRefusal::Stopped)
        }
        Ok(Err(_)) => Err(IngestRefusal::Stopped),
    }
}

fn body_error(error: &serde_json::Error) -> IngestRefusal {
    IngestRefusal::Body(format!("malformed request: {error}"))
}

fn check_rows(rows: usize, rows_max: usize) -> Result<(), IngestRefusal> {
    if rows <= rows_max {
        return Ok(());
    }
    Err(IngestRefusal::TooManyRows { rows, rows_max })
}

fn parse_labels(body: &[u8], rows_max: usize, now_ms: i64) -> Result<Vec<Label>, IngestRefusal> {
    let body: LabelsBody = serde_json::from_slice(body).map_err(|error| body_error(&error))?;
    check_rows(body.labels.len(), rows_max)?;
    let label = |(row, json)| {
        parse_label(json, now_ms).map_err(|problem| IngestRefusal::Label { row, problem })
    };
    body.labels.into_iter().enumerate().map(label).collect()
}

fn parse_label(json: Value, now_ms: i64) -> Result<Label, String> {
    let row: LabelRow = serde_json::from_value(json).map_err(|error| error.to_string())?;
    let prediction: PredictionKey = row
        .prediction_id
        .parse()
        .map_err(|error| format!("{error}"))?;
    let value = row.value as f32;
    if !value.is_finite() {
        return Err(format!("value {} does not fit a float", row.value));
    }
    let label_ms = match &row.label_time {
        Some(time) => time_ms(time).map_err(|problem| format!("label_time {problem}"))?,
        None => now_ms,
    };
    Ok(Label {
        prediction,
        value,
        label_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "018f3f2e-7d3c-7cc0-8000-0123456789ab";

    fn labels(rows: &str) -> Result<Vec<Label>, String> {
        let body = format!(r#"{{"labels":[{rows}]}}"#);
        parse_labels(body.as_bytes(), 3, 77).map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn labels_name_a_row_and_a_time() {
        let rows = format!(
            r#"{{"prediction_id":"{ID}","value":1}},
               {{"prediction_id":"{ID}/3","value":0.5,"label_time":5}},
               {{"prediction_id":"{ID}","value":0,"label_time":"1970-01-01T00:00:01Z"}}"#
        );
        let read: Vec<_> = labels(&rows)
            .unwrap()
            .into_iter()
            .map(|label| (label.prediction.row, label.value, label.label_ms))
            .collect();
        assert_eq!(read, [(0, 1.0, 77), (3, 0.5, 5), (0, 0.0, 1000)]);
    }

    #[test]
    fn a_wrong_label_is_named_by_its_row() {
        let good = format!(r#"{{"prediction_id":"{ID}","value":1}}"#);
        for wrong in [
            r#"{"prediction_id":"x","value":1}"#.to_owned(),
            format!(r#"{{"prediction_id":"{ID}/-1","value":1}}"#),
            format!(r#"{{"prediction_id":"{ID}"}}"#),
            format!(r#"{{"prediction_id":"{ID}","value":"1"}}"#),
            format!(r#"{{"prediction_id":"{ID}","value":1e39}}"#),
            format!(r#"{{"prediction_id":"{ID}","value":1,"label_time":"yesterday"}}"#),
            format!(r#"{{"prediction_id":"{ID}","value":1,"more":1}}"#),
            "7".to_owned(),
        ] {
            let refused = labels(&format!("{good},{wrong}")).unwrap_err();
            assert!(refused.starts_with("row 1: "), "{wrong}: {refused}");
        }
        assert!(
            labels(&[good.as_str(); 4].join(","))
                .unwrap_err()
                .contains("at most 3")
        );
        assert!(parse_labels(b"{}", 3, 0).is_err());
    }
}
