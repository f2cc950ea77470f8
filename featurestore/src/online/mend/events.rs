//! Making the event log anew: what RocksDB lost of it may lie in sealed files.
//!
//! All events that are sealed need no log. So where the lost ones are, the others are sealed too, and the
//! column family begins empty behind them. Each step can be done again after a crash: the note of the
//! damage stays until the end.

use std::ops::RangeInclusive;
use std::sync::Arc;

use rocksdb::WriteBatch;

use crate::definition::Definitions;
use crate::log::Schemas;
use crate::log::seal::seal_events;
use crate::offline::manifest::SealedFile;
use crate::offline::reach::Reach;
use crate::offline::table::Table;
use crate::online::keys::{Column, Key};
use crate::online::open::database;
use crate::online::tables::Tables;
use crate::online::{OpenError, SealError};

/// Rests the log on sealed files where entries up to number `last` are lost; an error where one of them is
/// in no sealed file.
pub(super) fn make_log_anew(
    tables: &mut Tables,
    events: &Arc<Table>,
    definitions: &Definitions,
    last: u64,
) -> Result<(), OpenError> {
    let pruned = tables.get_number(Key::EventsPruned).map_err(database)?;
    let numbers = pruned.unwrap_or(0) + 1..=last;
    let Some(lost) = lost(tables, Column::Events, numbers) else {
        return Ok(());
    };
    let manifest = events.manifest().map_err(SealError::from)?;
    if *lost.end() > manifest.sealed_seq {
        let first = (manifest.sealed_seq + 1).max(*lost.start());
        return Err(OpenError::Damaged(format!(
            "events {first} to {} cannot be read and are in no sealed file; restore a backup",
            lost.end()
        )));
    }
    read_back(events, pruned.unwrap_or(0), &lost)?;
    let schemas = Schemas::load(tables, definitions)
        .map_err(|error| OpenError::Damaged(error.to_string()))?;
    let pruned = pruned.unwrap_or(0);
    events
        .claim(Reach { pruned, last })
        .map_err(SealError::from)?;
    seal_events((tables, &schemas), events, last)?;
    read_back(events, pruned, &lost)?;
    tables.renew(Column::Events).map_err(database)?;
    let mut batch = WriteBatch::default();
    tables.put(&mut batch, Key::EventsPruned, &last.to_le_bytes());
    tables.write_durably(batch).map_err(database)?;
    tracing::warn!(
        first = lost.start(),
        last = lost.end(),
        "lost events of the log are read from sealed files"
    );
    Ok(())
}

/// Reads the sealed files of all that the log is about to let go of.
fn read_back(events: &Table, pruned: u64, lost: &RangeInclusive<u64>) -> Result<(), OpenError> {
    let manifest = events.manifest().map_err(SealError::from)?;
    let replaces = |file: &&SealedFile| file.last_seq > pruned;
    for file in manifest.files.iter().filter(replaces) {
        events.bytes(file).map_err(|error| {
            let (first, last) = lost.clone().into_inner();
            OpenError::Damaged(format!(
                "events {first} to {last} are lost, and a sealed file cannot give them back: {error}"
            ))
        })?;
    }
    Ok(())
}

/// From the first to the last of the numbers of a log that cannot be read.
pub(super) fn lost(
    tables: &Tables,
    log: Column,
    numbers: RangeInclusive<u64>,
) -> Option<RangeInclusive<u64>> {
    let (mut first, mut last) = numbers.into_inner();
    // A repair may have brought back what was pruned.
    for pair in tables.scan_past_cache(log, &first.to_be_bytes()) {
        match pair {
            Ok((key, _)) if Key::number(&key) == Some(first) => first += 1,
            _ => break,
        }
    }
    if first > last {
        return None;
    }
    for pair in tables.scan_back(log) {
        match pair {
            Ok((key, _)) if Key::number(&key) == Some(last) && last > first => last -= 1,
            _ => break,
        }
    }
    Some(first..=last)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::note;
    use super::*;
    use crate::value::Value;
    use crate::{Event, FeatureStore, StoreOptions, TableOptions};

    const DEFINITIONS: &str = "[[source]]\nname = \"s\"\ntime = \"at\"\nid = [\"key\"]\n\
        fields = { key = \"int\", at = \"time\" }\n\n\
        [[view]]\nname = \"v\"\nsource = \"s\"\nkeys = [\"key\"]\nfeatures = [{ age_of_last = true }]\n";

    fn open(folder: &Path) -> Result<FeatureStore, OpenError> {
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        FeatureStore::open(folder, Arc::new(definitions), &StoreOptions::default())
    }

    fn events(store: &FeatureStore, keys: std::ops::Range<i64>) -> Vec<Event> {
        let source = store.definitions().source("s").unwrap();
        let event = |key| {
            source
                .event(0, vec![Value::Int(key), Value::Int(key)], key)
                .unwrap()
        };
        keys.map(event).collect()
    }

    /// Ten events, of which six are sealed, and then no entries of some numbers.
    fn with_gap(gap: RangeInclusive<u64>) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path()).unwrap();
        store
            .ingest_events_blocking(events(&store, 0..6), 7)
            .unwrap();
        store.seal().unwrap();
        store
            .ingest_events_blocking(events(&store, 6..10), 8)
            .unwrap();
        drop(store);
        let tables = Tables::open(&folder.path().join("online"), TableOptions::default()).unwrap();
        let mut batch = WriteBatch::default();
        gap.for_each(|number| tables.delete(&mut batch, Key::Event(number)));
        tables.write_durably(batch).unwrap();
        note(folder.path(), "a test", &[]).unwrap();
        folder
    }

    #[test]
    fn lost_events_that_are_sealed_are_read_from_there() {
        for gap in [1..=1, 2..=5, 1..=6] {
            let folder = with_gap(gap);
            // Once to mend, once as any other day.
            for _ in 0..2 {
                let store = open(folder.path()).unwrap();
                let logged = store.shared().events().from(0).unwrap();
                let values = |event: Event| event.values;
                let logged: Vec<_> = logged.map(|event| values(event.unwrap().event)).collect();
                let written = events(&store, 0..10).into_iter().map(values);
                assert_eq!(logged, written.collect::<Vec<_>>());
                let again = store.ingest_events_blocking(events(&store, 0..10), 9);
                assert_eq!(again.unwrap().duplicates, 10);
            }
            let store = open(folder.path()).unwrap();
            let next = store.ingest_events_blocking(events(&store, 10..12), 9);
            assert_eq!(next.unwrap().last_seq, 12);
            assert_eq!(store.seal().unwrap().events, 2);
        }
    }

    #[test]
    fn lost_events_that_nobody_has_are_named() {
        for (gap, named) in [
            (4..=8, "events 7 to 8"),
            (9..=9, "events 9 to 9"),
            (10..=10, "events 10 to 10"),
        ] {
            let folder = with_gap(gap);
            let refused = open(folder.path()).err().unwrap().to_string();
            assert!(refused.contains(named), "{refused}");
        }
    }

    #[test]
    fn a_damaged_sealed_file_gives_nothing_back_and_is_named() {
        let folder = with_gap(2..=3);
        let sealed = folder
            .path()
            .join("offline/events/source=s/date=1970-01-01");
        let file = std::fs::read_dir(sealed)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[40] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        let refused = open(folder.path()).err().unwrap().to_string();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(
            refused.contains("events 2 to 3 are lost") && refused.contains(name),
            "{refused}"
        );
    }
}
