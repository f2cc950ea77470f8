//! Recording: index entries for labels to find, rows for the spool, and word to the writer where a label
//! already waits.

use std::collections::HashMap;

use rocksdb::WriteBatch;

use super::index::{Names, Scored};
use super::{PredictionKey, PredictionRecord};
use crate::online::RecordError;
use crate::online::keys::{Column, Key};
use crate::online::shared::{Shared, locked};

/// Writes the records; returns the predictions among them that pending labels wait for.
pub(crate) fn record(
    shared: &Shared,
    records: &[PredictionRecord],
) -> Result<Vec<PredictionKey>, RecordError> {
    // Held throughout: two recorders of one row would lose an index entry.
    let mut spool = locked(&shared.spool);
    write_index(shared, records)?;
    // After the index: see `Writer::recorded_since`.
    let awaited = {
        let pending = locked(&shared.pending);
        let awaited = records.iter().map(|record| record.prediction);
        match pending.is_empty() {
            true => Vec::new(),
            false => awaited.filter(|key| pending.contains_key(key)).collect(),
        }
    };
    let mut spooled = Ok(());
    for record in records {
        spooled = spooled.and(spool.push(&shared.tables, record));
    }
    shared.count_predictions(records.len() as u64);
    spooled.map(|()| awaited)
}

fn write_index(shared: &Shared, records: &[PredictionRecord]) -> Result<(), RecordError> {
    let failed = |error: rocksdb::Error| RecordError::Database(error.to_string());
    let mut rows: HashMap<PredictionKey, Scored> = HashMap::with_capacity(records.len());
    let mut order: Vec<PredictionKey> = Vec::with_capacity(records.len());
    for record in records {
        let scored = rows.entry(record.prediction).or_insert_with(|| {
            order.push(record.prediction);
            Scored::at(record.at_ms)
        });
        scored.add(record);
    }
    let keys: Vec<_> = order
        .iter()
        .map(|&key| Key::Prediction(key).to_bytes())
        .collect();
    let held = shared
        .tables
        .get_many(Column::PredictionIndex, keys.iter().map(Vec::as_slice))
        .map_err(failed)?;
    let mut names = Names::default();
    let mut batch = WriteBatch::default();
    for (key, held) in order.iter().zip(held) {
        let Some(scored) = rows.get(key) else {
            continue;
        };
        // A damaged entry is written anew.
        let merged = held
            .and_then(|bytes| Scored::decode(&bytes, &mut |name| names.intern(name)))
            .map(|held| held.merge(scored));
        let stored = merged.as_ref().unwrap_or(scored).encode();
        shared
            .tables
            .put(&mut batch, Key::Prediction(*key), &stored);
    }
    shared.tables.write_lazily(batch).map_err(failed)?;
    if let Some(newest_ms) = records.iter().map(|record| record.at_ms).max() {
        let oldest_ms = newest_ms.saturating_sub(shared.options.prediction_ttl_ms);
        shared.tables.drop_predictions_before(oldest_ms);
    }
    Ok(())
}
