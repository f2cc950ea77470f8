//! Making the label log anew: what RocksDB lost of it may lie in sealed files.
//!
//! All labels are sealed first, then the log is written again from the files, under the same numbers: cursors
//! go on. Files do not tell which labels had to wait for their prediction: one that waits no more counts as
//! an outcome at its own number, and the numbers at which such labels became outcomes repeat the entry before.
//! Each step can be done again after a crash. Holds 48 bytes for each label in memory.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::UInt64Type;
use rocksdb::WriteBatch;

use super::{Filling, events};
use crate::labels::{EntryKind, LabelEntry, StoredLabel};
use crate::offline::label_rows;
use crate::offline::manifest::Retirement;
use crate::offline::reach::Reach;
use crate::offline::segments::{Wanted, corrupt};
use crate::offline::table::Table;
use crate::offline::{OfflineError, manifest::Manifest};
use crate::online::keys::{Column, Key};
use crate::online::open::{database, read, read_pending};
use crate::online::tables::Tables;
use crate::online::{OpenError, SealError};
use crate::predictions::PredictionKey;
use crate::predictions::columns::numbers;
use crate::predictions::seal::seal_labels;

/// Writes the log up to number `last` from sealed files where entries are lost; an error where one of them is
/// in no sealed file.
pub(super) fn make_log_anew(
    tables: &mut Tables,
    labels: &Arc<Table>,
    last: u64,
) -> Result<(), OpenError> {
    let Some(lost) = events::lost(tables, Column::LabelLog, 1..=last) else {
        return Ok(());
    };
    let sealed_seq = labels.manifest().map_err(SealError::from)?.sealed_seq;
    if *lost.end() > sealed_seq {
        let first = (sealed_seq + 1).max(*lost.start());
        return Err(OpenError::Damaged(format!(
            "labels {first} to {} cannot be read and are in no sealed file; restore a backup",
            lost.end()
        )));
    }
    let give_back = |labels: &Table| {
        let (first, last) = lost.clone().into_inner();
        sealed(labels).map_err(|error| {
            OpenError::Damaged(format!(
                "labels {first} to {last} are lost, and a sealed file cannot give them back: {error}"
            ))
        })
    };
    // Before anything is written anywhere.
    give_back(labels)?;
    labels.claim(Reach::up_to(last)).map_err(SealError::from)?;
    seal_labels(tables, labels)?;
    let sealed = give_back(labels)?;
    tables.renew(Column::LabelLog).map_err(database)?;
    fill(tables, sealed, last)?;
    tracing::warn!(
        first = lost.start(),
        last = lost.end(),
        "lost entries of the label log were made anew from sealed files"
    );
    Ok(())
}

/// A label of a file: its number in the log, whose it is, what it says.
type Numbered = (u64, PredictionKey, StoredLabel);

/// All that is sealed of the log, in its order.
fn sealed(labels: &Table) -> Result<Vec<Numbered>, OfflineError> {
    let manifest = labels.manifest()?;
    warn_of_expired(&manifest);
    let mut found: Vec<Numbered> = Vec::new();
    for file in &manifest.files {
        for rows in labels.segment(file, Wanted::All)? {
            let rows = rows?;
            let damaged = |problem| corrupt(&labels.shown(&file.path), problem);
            let mut seq = numbers::<UInt64Type>(&rows, "seq")
                .map_err(damaged)?
                .values()
                .iter();
            let mut take = |prediction, label| {
                // Backfilled ones have none.
                let seq = seq.next().filter(|seq| **seq > 0);
                found.extend(seq.map(|seq| (*seq, prediction, label)));
            };
            label_rows::read(&rows, &mut take).map_err(damaged)?;
        }
    }
    found.sort_unstable_by_key(|(seq, ..)| *seq);
    Ok(found)
}

fn warn_of_expired(manifest: &Manifest) {
    let expired = |file: &&crate::offline::manifest::RetiredFile| {
        file.retired == Retirement::Expired && file.file.last_seq > 0
    };
    for retired in manifest.retired.iter().filter(expired) {
        let (first, last) = (retired.file.first_seq, retired.file.last_seq);
        tracing::warn!(
            first,
            last,
            "labels are past their retention: the log that is made anew lacks them"
        );
    }
}

fn fill(tables: &Tables, sealed: Vec<Numbered>, last: u64) -> Result<(), OpenError> {
    let waiting = read_pending(tables).map_err(read)?;
    let mut labelled = HashSet::new();
    let mut filling = Filling::of(tables);
    let mut sealed = sealed.into_iter().peekable();
    let Some(&(_, prediction, label)) = sealed.peek() else {
        return Err(OpenError::Damaged(format!(
            "{last} labels were logged, and no sealed file has one"
        )));
    };
    let mut entry = LabelEntry {
        kind: EntryKind::Correction,
        prediction,
        label,
    };
    for number in 1..=last {
        entry.kind = EntryKind::Correction;
        if let Some((_, prediction, label)) = sealed.next_if(|(seq, ..)| *seq == number) {
            let kind = match labelled.insert(prediction) {
                true if waiting.contains_key(&prediction) => EntryKind::Pending,
                true => EntryKind::Known,
                false => EntryKind::Correction,
            };
            entry = LabelEntry {
                kind,
                prediction,
                label,
            };
        }
        let put = |batch: &mut WriteBatch| {
            tables.put(batch, Key::LabelEntry(number), &entry.encode());
        };
        filling.add(put).map_err(read)?;
    }
    filling.end().map_err(read)
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;
    use std::path::Path;

    use super::super::note;
    use super::*;
    use crate::labels::entries;
    use crate::predictions::Role;
    use crate::{
        Definitions, FeatureStore, Label, OutcomeCursor, PredictionRecord, StoreOptions,
        TableOptions,
    };

    fn open(folder: &Path) -> Result<FeatureStore, OpenError> {
        let definitions = Definitions::parse("", "features.toml").unwrap();
        FeatureStore::open(folder, Arc::new(definitions), &StoreOptions::default())
    }

    fn label(id: u128, value: f32, label_ms: i64) -> Label {
        Label {
            prediction: prediction(id),
            value,
            label_ms,
        }
    }

    fn prediction(id: u128) -> PredictionKey {
        PredictionKey {
            id: uuid::Uuid::from_u128(id),
            row: 0,
        }
    }

    fn record(id: u128) -> PredictionRecord {
        PredictionRecord {
            prediction: prediction(id),
            request_id: None,
            model: "delay".into(),
            version: 1,
            role: Role::Champion,
            at_ms: 5,
            service: None,
            request: [].into(),
            features: None,
            score: 0.5,
            fallback_reason: None,
        }
    }

    /// Sorted predictions and labels of all outcomes.
    fn outcomes(store: &FeatureStore) -> Vec<(i64, u32)> {
        let (found, _) = store.outcomes(OutcomeCursor::default(), 1000).unwrap();
        let mut found: Vec<_> = found
            .iter()
            .map(|it| (it.label_ms, it.label.to_bits()))
            .collect();
        found.sort_unstable();
        found
    }

    fn all_labels() -> Vec<Label> {
        let mut labels: Vec<_> = (0..6).map(|id| label(id, 1.0, id as i64)).collect();
        labels.push(label(2, 0.5, 20));
        labels.extend((6..9).map(|id| label(id, 0.25, id as i64)));
        labels
    }

    /// Labels of six predictions and a correction, of which one waited and one waits, sealed; then three
    /// that are not. Entries of some numbers of eleven are lost.
    fn with_gap(gap: RangeInclusive<u64>) -> (tempfile::TempDir, Vec<(i64, u32)>) {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        let labels = all_labels();
        let known: Vec<_> = [0, 1, 2, 3, 6, 7, 8].map(record).into();
        store.record(&known).unwrap();
        store
            .ingest_labels_blocking(labels[..6].to_vec(), 7)
            .unwrap();
        // 4 came before its prediction, 5 has none.
        store.record(&[record(4)]).unwrap();
        store
            .ingest_labels_blocking(labels[6..7].to_vec(), 8)
            .unwrap();
        store.seal().unwrap();
        store
            .ingest_labels_blocking(labels[7..].to_vec(), 9)
            .unwrap();
        let outcomes = outcomes(&store);
        assert_eq!((outcomes.len(), store.stats().pending_labels), (8, 1));
        drop(store);
        let tables = Tables::open(&folder.path().join("online"), TableOptions::default()).unwrap();
        let mut batch = WriteBatch::default();
        gap.for_each(|number| tables.delete(&mut batch, Key::LabelEntry(number)));
        tables.write_durably(batch).unwrap();
        note(folder.path(), "a test", &[]).unwrap();
        (folder, outcomes)
    }

    #[test]
    fn lost_labels_that_are_sealed_are_made_anew_from_there() {
        for gap in [1..=1, 2..=5, 1..=8, 7..=8] {
            println!("{gap:?}");
            let (folder, before) = with_gap(gap);
            // Once to mend, once as any other day.
            for _ in 0..2 {
                let store = open(folder.path()).unwrap();
                assert_eq!(outcomes(&store), before);
                assert_eq!(store.stats().pending_labels, 1);
                let again = store.ingest_labels_blocking(all_labels(), 10).unwrap();
                assert_eq!((again.accepted, again.duplicates), (0, 10));
                let numbers = entries(&store.shared().tables, 1).map(|entry| entry.unwrap().0);
                assert!(numbers.eq(1..=11));
            }
            // What waited goes on waiting, and new numbers follow.
            let store = open(folder.path()).unwrap();
            store.record(&[record(5)]).unwrap();
            let next = vec![label(3, 0.75, 30)];
            store.ingest_labels_blocking(next, 11).unwrap();
            assert_eq!(outcomes(&store).len(), before.len() + 1);
            let sealed = store.seal().unwrap();
            assert_eq!(sealed.labels, 1);
        }
    }

    #[test]
    fn lost_labels_that_nobody_has_are_named() {
        for (gap, named) in [(4..=9, "labels 9 to 9"), (11..=11, "labels 11 to 11")] {
            let (folder, _) = with_gap(gap);
            let refused = open(folder.path()).err().unwrap().to_string();
            assert!(refused.contains(named), "{refused}");
        }
    }

    #[test]
    fn a_damaged_sealed_file_gives_no_labels_back_and_is_named() {
        let (folder, _) = with_gap(2..=3);
        let sealed = folder.path().join("offline/labels/date=1970-01-01");
        let mut files = std::fs::read_dir(sealed).unwrap();
        let file = files.next().unwrap().unwrap().path();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let refused = open(folder.path()).err().unwrap().to_string();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(
            refused.contains("labels 2 to 3 are lost") && refused.contains(name),
            "{refused}"
        );
    }
}
