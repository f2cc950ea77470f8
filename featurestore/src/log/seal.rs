//! Sealing the event log into the table `events`, and pruning what lies behind the seal.
//!
//! The manifest says up to which number the log is sealed, in the same write that names the files: a
//! crash at any point leaves the files orphans or the table whole. Pruning comes after, reads back what
//! it relies on, and never takes the last entry, by which an open log is known to end where it should.

use std::sync::Arc;

use rocksdb::WriteBatch;

use super::{Entry, Schemas};
use crate::offline::OfflineError;
use crate::offline::days::About;
use crate::offline::event_rows::EventFiles;
use crate::offline::manifest::SealedFile;
use crate::offline::table::Table;
use crate::online::SealError;
use crate::online::keys::{Column, Key};
use crate::online::tables::Tables;
use crate::predictions::Sealed;

/// Events between two changes of the manifest: bounds the work that a crash undoes.
const CHUNK_EVENTS: u64 = 1 << 20;

/// Brings the events beyond the seal into the table, up to number `until`: what is acknowledged. An
/// import may have put entries into the log that it has not acknowledged yet.
pub(crate) fn seal_events(
    (tables, schemas): (&Tables, &Schemas),
    events: &Arc<Table>,
    until: u64,
) -> Result<Sealed, SealError> {
    let mut sealed = Sealed::default();
    loop {
        let sealed_seq = events.manifest()?.sealed_seq;
        let mut chunk = Chunk {
            schemas,
            events,
            first: sealed_seq + 1,
            last: sealed_seq,
            files: Vec::new(),
        };
        chunk.take(tables, until)?;
        if chunk.last < chunk.first {
            return Ok(sealed);
        }
        let (count, last) = (chunk.last - chunk.first + 1, chunk.last);
        let files = chunk.finish()?;
        sealed.events += count;
        sealed.files += files.len() as u64;
        events.commit(|manifest| {
            manifest.sealed_seq = last;
            manifest.files.extend(files);
        })?;
        if count < CHUNK_EVENTS {
            return Ok(sealed);
        }
    }
}

/// Events that are sealed together.
struct Chunk<'a> {
    schemas: &'a Schemas,
    events: &'a Arc<Table>,
    first: u64,
    /// The last that was taken.
    last: u64,
    /// By the id of the schema.
    files: Vec<(u32, EventFiles)>,
}

impl Chunk<'_> {
    fn take(&mut self, tables: &Tables, until: u64) -> Result<(), SealError> {
        let entries = tables.scan(Column::Events, &Key::Event(self.first).to_bytes());
        for pair in entries {
            let (key, value) = pair.map_err(|error| SealError::Database(error.to_string()))?;
            let seq = Key::number(&key).unwrap_or_default();
            if seq > until {
                break;
            }
            if seq != self.last + 1 {
                let problem = format!("event {} is missing in the log", self.last + 1);
                return Err(SealError::Database(problem));
            }
            let entry = self.schemas.entry(seq, &value);
            self.push(
                seq,
                &entry.map_err(|error| SealError::Database(error.to_string()))?,
            )?;
            self.last = seq;
            if seq - self.first + 1 == CHUNK_EVENTS {
                break;
            }
        }
        Ok(())
    }

    fn push(&mut self, seq: u64, entry: &Entry) -> Result<(), SealError> {
        let schema = entry.schema;
        let place = match self.files.iter().position(|(id, _)| *id == schema) {
            Some(place) => place,
            None => {
                let written = self.schemas.written(schema);
                let written = written.expect("an entry was read by its schema");
                let about = About {
                    folder: format!("source={}", written.name()),
                    name: format!("{:012}-{schema}", self.first),
                    schema: serde_json::json!({"source": written.name(), "schema": schema}),
                    origin: format!("events from {}", self.first),
                };
                self.files
                    .push((schema, EventFiles::new(self.events, written, about)));
                self.files.len() - 1
            }
        };
        Ok(self.files[place].1.push(seq, entry)?)
    }

    fn finish(self) -> Result<Vec<SealedFile>, OfflineError> {
        let mut files = Vec::new();
        for (_, written) in self.files {
            files.extend(written.finish()?);
        }
        Ok(files)
    }
}

/// Drops entries of the log that are sealed, arrived before a time and are in the stored states; how many.
pub(crate) fn prune(tables: &Tables, events: &Table, before_ms: i64) -> Result<u64, SealError> {
    let database = |error: rocksdb::Error| SealError::Database(error.to_string());
    let manifest = events.manifest()?;
    let pruned = tables.get_number(Key::EventsPruned).map_err(database)?;
    let pruned = pruned.unwrap_or(0);
    let last = tables.last_key(Column::Events).map_err(database)?;
    let last = last.and_then(|key| Key::number(&key)).unwrap_or(0);
    let recent = manifest.files.iter().filter(|file| file.to_ms >= before_ms);
    let kept_from = recent.map(|file| file.first_seq).min().unwrap_or(u64::MAX);
    let stored = tables.get_number(Key::StatesSeq).map_err(database)?;
    let until = manifest.sealed_seq.min(last.saturating_sub(1));
    let until = until.min(stored.unwrap_or(0));
    let until = until.min(kept_from - 1);
    if until <= pruned {
        return Ok(0);
    }
    for file in &manifest.files {
        if file.last_seq > pruned && file.first_seq <= until {
            events.bytes(file)?;
        }
    }
    let mut batch = WriteBatch::default();
    let (from, to) = (Key::Event(0).to_bytes(), Key::Event(until + 1).to_bytes());
    tables.delete_range(&mut batch, Column::Events, [&from, &to]);
    tables.put(&mut batch, Key::EventsPruned, &until.to_le_bytes());
    tables.write_durably(batch).map_err(database)?;
    Ok(until - pruned)
}
