//! Recording: index entries for labels to find, rows for the spool, and word to the writer where a label
//! already waits.

use std::collections::HashMap;

use rocksdb::WriteBatch;

use super::index::{Names, Scored};
use super::{PredictionKey, PredictionRecord};
use crate::online::RecordError;
use crate::online::keys::Column;
use crate::online::shared::{Shared, locked};

/// Writes the records; returns the predictions among them that pending labels wait for.
pub(crate) fn record(
    shared: &Shared,
    records: &[PredictionRecord],
) -> Result<Vec<PredictionKey>, RecordError> {
    if shared.is_full() {
        return Err(RecordError::Full);
    }
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

/// Gives every row its entry, or adds to the one that it has. Only a shadow's row has one already: an
/// answer is recorded first, under an id that is new, so that nothing need be looked up for it.
fn write_index(shared: &Shared, records: &[PredictionRecord]) -> Result<(), RecordError> {
    let failed = |error: rocksdb::Error| RecordError::Database(error.to_string());
    let mut batch = WriteBatch::default();
    let column = shared.tables.column(Column::PredictionIndex);
    if records.iter().all(|record| record.role.answered()) {
        let mut stored = Vec::new();
        for record in records {
            stored.clear();
            Scored::encode_answer(record, &mut stored);
            batch.put_cf(column, record.prediction.to_bytes(), &stored);
        }
    } else {
        for (key, scored) in merged(shared, records).map_err(failed)? {
            batch.put_cf(column, key.to_bytes(), scored.encode());
        }
    }
    shared.tables.write_lazily(batch).map_err(failed)?;
    if let Some(newest_ms) = records.iter().map(|record| record.at_ms).max() {
        let oldest_ms = newest_ms.saturating_sub(shared.options.prediction_ttl_ms);
        shared.tables.lives().drop_predictions_before(oldest_ms);
    }
    Ok(())
}

/// Each row of the records with all that is known of it, from the index and from the records.
fn merged(
    shared: &Shared,
    records: &[PredictionRecord],
) -> Result<HashMap<PredictionKey, Scored>, rocksdb::Error> {
    let mut rows: HashMap<PredictionKey, Scored> = HashMap::with_capacity(records.len());
    for record in records {
        let scored = rows
            .entry(record.prediction)
            .or_insert_with(|| Scored::at(record.at_ms));
        scored.add(record);
    }
    let keys: Vec<_> = rows.keys().map(|key| key.to_bytes()).collect();
    let held = shared.tables.get_many(
        Column::PredictionIndex,
        keys.iter().map(<[u8; 20]>::as_slice),
    )?;
    let mut names = Names::default();
    for (scored, held) in rows.values_mut().zip(held) {
        // A damaged entry is written anew.
        let held = held.and_then(|bytes| Scored::decode(&bytes, &mut |name| names.intern(name)));
        if let Some(held) = held {
            *scored = held.merge(scored);
        }
    }
    Ok(rows)
}
