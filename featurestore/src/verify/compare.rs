//! A served row against the same row recomputed.

use super::sample::Served;
use super::{Mismatch, VerifyReport};
use crate::service::FeatureRow;
use crate::window::Status;

/// Differences that a report spells out.
const EXAMPLES_MAX: usize = 10;

impl VerifyReport {
    /// Counts a row and what differs in it; NaN equals NaN.
    pub(super) fn compare(&mut self, served: &Served, recomputed: &FeatureRow) {
        self.rows_checked += 1;
        let mut differs = served.row.values.len() != recomputed.values.len();
        for (index, name) in served.service.feature_names().enumerate() {
            let (was, now) = (cell(&served.row, index), cell(recomputed, index));
            if was == now {
                continue;
            }
            differs = true;
            *self.features.entry(name.to_owned()).or_default() += 1;
            if self.examples.len() < EXAMPLES_MAX {
                let record = &served.record;
                self.examples.push(Mismatch {
                    prediction: record.prediction.to_string(),
                    request_id: record.request_id.as_deref().map(str::to_owned),
                    at_ms: record.at_ms,
                    as_of_seq: served.row.as_of_seq,
                    feature: name.to_owned(),
                    served: was.to_string(),
                    recomputed: now.to_string(),
                });
            }
        }
        self.mismatches += u64::from(differs);
    }
}

/// One feature of a row, comparable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    /// `None` for NaN.
    bits: Option<u32>,
    status: Option<Status>,
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
        let status = self.status.map_or("absent", Status::as_str);
        write!(f, "{value} {status} at {}", self.event_ms.unwrap_or(0))
    }
}
