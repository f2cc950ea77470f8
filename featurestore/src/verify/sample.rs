//! Which served rows are recomputed: a sample that a seed chooses, and a repeated replay chooses again.

use std::collections::BinaryHeap;
use std::sync::Arc;

use crate::offline::OfflineError;
use crate::online::shared::Shared;
use crate::predictions::columns::Row;
use crate::predictions::scan::{Range, scan};
use crate::predictions::{PredictionKey, PredictionRecord};
use crate::service::{FeatureRow, Service};

/// How many rows to recompute, and the seed that chooses them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) rows: usize,
    pub(crate) seed: u64,
}

/// A served row that was chosen.
pub(super) struct Served {
    pub(super) record: PredictionRecord,
    pub(super) service: Arc<Service>,
    /// The features as served.
    pub(super) row: Arc<FeatureRow>,
}

impl Sample {
    /// The rows of smallest priority among the answered ones of these services that `covers` takes (by
    /// time and `as_of_seq`), in the order of the events that they saw. Priorities depend on the caller's
    /// request ids, not on our random ones, so that a repeated replay checks the same rows.
    pub(super) fn choose(
        self,
        shared: &Shared,
        range: Range<'_>,
        services: &[Arc<Service>],
        covers: &dyn Fn(i64, u64) -> bool,
    ) -> Result<Vec<Served>, OfflineError> {
        let service_of = |id: &str| services.iter().find(|service| service.id() == id);
        let limit = std::cell::Cell::new(if self.rows == 0 { 0 } else { u64::MAX });
        let mut chosen: BinaryHeap<Chosen> = BinaryHeap::new();
        let mut wanted = |row: &Row<'_>| {
            row.role.answered()
                && row.has_features
                && row.service.is_some_and(|id| service_of(id).is_some())
                && priority(self.seed, row.request_id, (row.at_ms, row.prediction)) < limit.get()
        };
        let mut found = |record: PredictionRecord| {
            let place = (record.at_ms, record.prediction);
            let service = record.service.as_deref().and_then(service_of);
            let (Some(service), Some(row)) = (service.cloned(), record.features.clone()) else {
                return;
            };
            if !covers(record.at_ms, row.as_of_seq) {
                return;
            }
            chosen.push(Chosen {
                priority: priority(self.seed, record.request_id.as_deref(), place),
                served: Served {
                    record,
                    service,
                    row,
                },
            });
            if chosen.len() > self.rows {
                chosen.pop();
            }
            if chosen.len() == self.rows {
                limit.set(chosen.peek().map_or(0, |worst| worst.priority));
            }
        };
        scan(shared, range, &mut wanted, &mut found)?;
        let mut rows: Vec<_> = chosen.into_iter().map(|chosen| chosen.served).collect();
        rows.sort_by_key(|served| {
            let record = &served.record;
            (served.row.as_of_seq, record.at_ms, record.prediction)
        });
        Ok(rows)
    }
}

/// A row with the priority that the seed gives it.
struct Chosen {
    priority: u64,
    served: Served,
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

/// FNV-1a over what names the row, mixed as in SplitMix64.
fn priority(seed: u64, request_id: Option<&str>, (at_ms, prediction): (i64, PredictionKey)) -> u64 {
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
