//! Skew check: recomputes served rows from the event log and compares them bit for bit.
//!
//! Costs one read of the model's log, one pass over the event log, and memory for the sampled rows and
//! the service's open states.

use std::collections::BinaryHeap;
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use crate::join::PointInTime;
use crate::log::Scan;
use crate::offline::OfflineError;
use crate::online::shared::Shared;
use crate::predictions::PredictionRecord;
use crate::predictions::columns::Row;
use crate::predictions::scan::{Range, scan};
use crate::service::{FeatureRow, Service};

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Served rows that were recomputed.
    pub rows_checked: u64,
    /// Rows with at least one feature that differs in value, status or event time.
    pub mismatches: u64,
    /// The first few differences.
    pub examples: Vec<Mismatch>,
}

/// One feature that was served otherwise than it is recomputed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mismatch {
    /// The row, `uuid/row`.
    pub prediction: String,
    /// The caller's id of the request.
    pub request_id: Option<String>,
    /// Time of the prediction.
    pub at_ms: i64,
    /// Last event that the served row could have seen.
    pub as_of_seq: u64,
    /// The feature.
    pub feature: String,
    /// Value, status and event time as served.
    pub served: String,
    /// The same as recomputed.
    pub recomputed: String,
}

/// Why rows could not be verified.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// No such service is defined.
    #[error("service `{0}` is not defined in features.toml")]
    Undefined(String),
    /// The served rows could not be read.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The event log could not be read.
    #[error("event log: {0}")]
    Events(String),
}

/// How many rows to recompute, and the seed that chooses them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) rows: usize,
    pub(crate) seed: u64,
}

/// Differences that a report spells out.
const EXAMPLES_MAX: usize = 10;

/// Recomputes a sample of the answered rows of a model and service.
pub(crate) fn verify(
    shared: &Shared,
    model: &str,
    service: &str,
    sample: Sample,
) -> Result<VerifyReport, VerifyError> {
    let defined = shared.definitions.service(service);
    let service = defined.ok_or_else(|| VerifyError::Undefined(service.to_owned()))?;
    let records = choose(shared, model, service, sample)?;
    let mut report = VerifyReport::default();
    let mut history = PointInTime::new(service);
    let mut events = Scan::from(&shared.tables, &shared.schemas, 0).peekable();
    for record in &records {
        let Some(served) = record.features.as_deref() else {
            continue;
        };
        while let Some(logged) = events.next_if(|event| match event {
            Ok(logged) => logged.seq <= served.as_of_seq,
            Err(_) => true,
        }) {
            let logged = logged.map_err(|error| VerifyError::Events(error.to_string()))?;
            history.push_event(&logged.event, logged.seq, logged.arrived_ms);
        }
        let recomputed = history.row(&record.request, record.at_ms);
        report.rows_checked += 1;
        report.mismatches += u64::from(compare(
            (record, service),
            [served, &recomputed],
            &mut report.examples,
        ));
    }
    Ok(report)
}

/// A row with the priority that the seed gives it.
struct Chosen {
    priority: u64,
    record: PredictionRecord,
}

impl PartialEq for Chosen {
    fn eq(&self, other: &Self) -> bool {
        self.priority == other.priority
    }
}
impl Eq for Chosen {}
impl PartialOrd for Chosen {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Chosen {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.priority.cmp(&other.priority)
    }
}

/// The rows of smallest priority, in the order of the events that they saw. Priorities depend on the
/// caller's request ids, not on our random ones, so that a repeated replay checks the same rows.
fn choose(
    shared: &Shared,
    model: &str,
    service: &Service,
    sample: Sample,
) -> Result<Vec<PredictionRecord>, OfflineError> {
    let range = Range {
        model,
        from_ms: i64::MIN,
        to_ms: i64::MAX,
    };
    let limit = std::cell::Cell::new(if sample.rows == 0 { 0 } else { u64::MAX });
    let mut chosen: BinaryHeap<Chosen> = BinaryHeap::new();
    let mut wanted = |row: &Row<'_>| {
        row.role.answered()
            && row.has_features
            && row.service == Some(service.id())
            && priority(sample.seed, row.request_id, (row.at_ms, row.prediction)) < limit.get()
    };
    let mut found = |record: PredictionRecord| {
        let place = (record.at_ms, record.prediction);
        chosen.push(Chosen {
            priority: priority(sample.seed, record.request_id.as_deref(), place),
            record,
        });
        if chosen.len() > sample.rows {
            chosen.pop();
        }
        if chosen.len() == sample.rows {
            limit.set(chosen.peek().map_or(0, |worst| worst.priority));
        }
    };
    scan(shared, range, &mut wanted, &mut found)?;
    let mut records: Vec<_> = chosen.into_iter().map(|chosen| chosen.record).collect();
    let seen = |record: &PredictionRecord| record.features.as_ref().map_or(0, |row| row.as_of_seq);
    records.sort_by_key(|record| (seen(record), record.at_ms, record.prediction));
    Ok(records)
}

/// FNV-1a over what names the row, mixed as in SplitMix64.
fn priority(
    seed: u64,
    request_id: Option<&str>,
    (at_ms, prediction): (i64, crate::predictions::PredictionKey),
) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    match request_id {
        Some(id) => add(id.as_bytes()),
        None => add(prediction.id.as_bytes()),
    }
    add(&prediction.row.to_le_bytes());
    add(&at_ms.to_le_bytes());
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}

/// Whether any feature differs; NaN equals NaN.
fn compare(
    (record, service): (&PredictionRecord, &Arc<Service>),
    rows: [&FeatureRow; 2],
    examples: &mut Vec<Mismatch>,
) -> bool {
    let [served, recomputed] = rows;
    let mut differs = false;
    for (index, name) in service.feature_names().enumerate() {
        let (was, now) = (cell(served, index), cell(recomputed, index));
        if was == now {
            continue;
        }
        differs = true;
        if examples.len() < EXAMPLES_MAX {
            examples.push(Mismatch {
                prediction: record.prediction.to_string(),
                request_id: record.request_id.as_deref().map(str::to_owned),
                at_ms: record.at_ms,
                as_of_seq: served.as_of_seq,
                feature: name.to_owned(),
                served: was.to_string(),
                recomputed: now.to_string(),
            });
        }
    }
    differs || served.values.len() != recomputed.values.len()
}

/// One feature of a row, comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    /// `None` for NaN.
    bits: Option<u32>,
    status: Option<crate::window::Status>,
    event_ms: Option<i64>,
}

fn cell(row: &FeatureRow, index: usize) -> Cell {
    let value = row.values.get(index).filter(|value| !value.is_nan());
    Cell {
        bits: value.map(|value| value.to_bits()),
        status: row.statuses.get(index).copied(),
        event_ms: row.event_times_ms.get(index).copied(),
    }
}

impl std::fmt::Display for Cell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let value = self.bits.map_or(f32::NAN, f32::from_bits);
        let status = self.status.map_or("absent", crate::window::Status::as_str);
        write!(f, "{value} {status} at {}", self.event_ms.unwrap_or(0))
    }
}
