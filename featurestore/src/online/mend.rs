//! Mending a damaged database at open: what is derived is made anew from the logs, and the logs from sealed
//! files. Events and labels that no file has are refused.
//!
//! RocksDB's checksums find damage when a block is read. A read that finds some leaves a note in the data
//! folder; the next open reads every block, drops the column families that are damaged and fills them from
//! the logs. Where RocksDB does not open at all, its files are first linked aside and repaired, and all that
//! is derived is made anew: a repair may bring back what had been removed. Costs a read of the database.
//! The note is removed when all is done, so that a crash in between starts it again.

mod events;
mod labels;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use rocksdb::WriteBatch;

use super::keys::{Column, Key};
use super::manifest;
use super::open::database;
use super::options::TableOptions;
use super::quarantine;
use super::tables::Tables;
use super::{OpenError, ReadError};
use crate::commit::Counters;
use crate::definition::Definitions;
use crate::labels::{EntryKind, entries};
use crate::log::EventLog;
use crate::offline::OfflineTables;
use crate::offline::segments::sync_folder;

/// The note within the data folder: the reason, then the names of column families to be made anew, and
/// [`REPAIR`].
const NOTE: &str = "damaged";
/// The files are being repaired; until that has ended they may open as a database that holds nothing.
const REPAIR: &str = "repair";
/// What can be made anew, and from what: the event log (states, dedupe keys), the label log (labels, those
/// that wait), or from nothing (the prediction index: labels of earlier predictions then find none).
const DERIVED: [Column; 5] = [
    Column::State,
    Column::Dedupe,
    Column::Labels,
    Column::PendingLabels,
    Column::PredictionIndex,
];
/// Entries between two writes of a rebuild.
const REBUILD_ENTRIES: usize = 16_384;

/// Numbers of spool files that a lost table may have given out, with this opening or one that was cut off:
/// none is given out twice.
pub(crate) const SEGMENTS_SKIPPED: u64 = 1_000_000;

/// A database that was examined, and what of it must be filled again.
pub(crate) struct Mending {
    emptied: Vec<Column>,
    started: Instant,
}

/// Leaves a note that the next open is to examine the database; `columns` are to be made anew in any case.
pub(crate) fn note(data_dir: &Path, reason: &str, columns: &[Column]) -> std::io::Result<()> {
    let names: Vec<_> = columns.iter().map(|column| column.name()).collect();
    write_note(data_dir, reason, &names)
}

/// [`note`] where there is none yet: one that tells how far a mending came stays.
pub(crate) fn note_first(data_dir: &Path, reason: &str) -> std::io::Result<()> {
    match data_dir.join(NOTE).try_exists()? {
        true => Ok(()),
        false => note(data_dir, reason, &[]),
    }
}

fn write_note(data_dir: &Path, reason: &str, names: &[&str]) -> std::io::Result<()> {
    let temporary = data_dir.join(".damaged.tmp");
    let mut file = File::create(&temporary)?;
    writeln!(file, "{}", reason.replace('\n', " "))?;
    for name in names {
        writeln!(file, "{name}")?;
    }
    file.sync_all()?;
    fs::rename(temporary, data_dir.join(NOTE))?;
    sync_folder(data_dir)
}

/// Opens the database; where it is damaged, or was found damaged before, what is derived in it is empty
/// afterwards, and [`Mending::fill`] must be called.
pub(crate) fn open(
    data_dir: &Path,
    sizes: TableOptions,
) -> Result<(Tables, Option<Mending>), OpenError> {
    let online = data_dir.join("online");
    let started = Instant::now();
    let mut tables = match try_to_open(data_dir, &online, sizes)? {
        Ok(tables) => tables,
        Err(reason) => repair(data_dir, (&online, sizes), &reason)?,
    };
    let Some(noted) = read_note(data_dir)? else {
        return Ok((tables, None));
    };
    let emptied = examine(&tables, &noted)?;
    let reason = noted.lines().next().unwrap_or_default();
    note(data_dir, reason, &emptied).map_err(io(data_dir))?;
    empty(&mut tables, &emptied).map_err(database)?;
    let mending = Mending { emptied, started };
    Ok((tables, Some(mending)))
}

fn read_note(data_dir: &Path) -> Result<Option<String>, OpenError> {
    let path = data_dir.join(NOTE);
    match fs::read_to_string(&path) {
        Ok(noted) => Ok(Some(noted)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(&path)(error)),
    }
}

/// The tables, or why they must be repaired.
fn try_to_open(
    data_dir: &Path,
    online: &Path,
    sizes: TableOptions,
) -> Result<Result<Tables, String>, OpenError> {
    let noted = read_note(data_dir)?.unwrap_or_default();
    if is_named(&noted, REPAIR) {
        return Ok(Err("a repair was cut off".to_owned()));
    }
    // RocksDB would make a new database and remove the files of the old one.
    if !online.join("CURRENT").exists() && holds_tables(online).map_err(io(online))? {
        return Ok(Err("`CURRENT` is missing".to_owned()));
    }
    if manifest::hides_records(online).map_err(io(online))? {
        return Ok(Err(
            "`MANIFEST` is damaged: records follow one that has no end".to_owned(),
        ));
    }
    let opened = match noted.is_empty() {
        true => Tables::open(online, sizes),
        false => Tables::open_to_mend(online, sizes),
    };
    match opened {
        Ok(tables) => Ok(Ok(tables)),
        Err(error) if Tables::is_damage(&error) => Ok(Err(error.to_string())),
        Err(error) => Err(database(error)),
    }
}

/// Makes a database that opens of files that do not; its derived columns are to be made anew.
fn repair(
    data_dir: &Path,
    (online, sizes): (&Path, TableOptions),
    reason: &str,
) -> Result<Tables, OpenError> {
    let aside = quarantine::link_aside(data_dir, online, "unopened").map_err(io(online))?;
    tracing::error!(%reason, files = %aside.display(), "online store is damaged: repairing");
    if let Some(tables) = open_by_newest_manifest(data_dir, (online, sizes), reason)? {
        return Ok(tables);
    }
    write_note(data_dir, reason, &[REPAIR]).map_err(io(data_dir))?;
    let beyond_repair = |error: rocksdb::Error| OpenError::Damaged(error.to_string());
    Tables::repair(online).map_err(beyond_repair)?;
    let tables = Tables::open_to_mend(online, sizes).map_err(beyond_repair)?;
    note(data_dir, reason, &DERIVED[..4]).map_err(io(data_dir))?;
    Ok(tables)
}

/// Where `CURRENT` alone is lost: it only names the newest MANIFEST. A repair would leave out what a column
/// family has in the log alone, before its first table. What is derived is made anew all the same: the file
/// may be one that was never whole.
fn open_by_newest_manifest(
    data_dir: &Path,
    (online, sizes): (&Path, TableOptions),
    reason: &str,
) -> Result<Option<Tables>, OpenError> {
    if online.join("CURRENT").exists() {
        return Ok(None);
    }
    let Some(newest) = manifest::newest(online).map_err(io(online))? else {
        return Ok(None);
    };
    note(data_dir, reason, &DERIVED[..4]).map_err(io(data_dir))?;
    let name = || -> std::io::Result<()> {
        let temporary = online.join("CURRENT.lost");
        let mut file = File::create(&temporary)?;
        writeln!(file, "{newest}")?;
        file.sync_all()?;
        fs::rename(temporary, online.join("CURRENT"))?;
        sync_folder(online)
    };
    name().map_err(io(online))?;
    if manifest::hides_records(online).map_err(io(online))? {
        return Ok(None);
    }
    match Tables::open_to_mend(online, sizes) {
        Ok(tables) => Ok(Some(tables)),
        Err(error) if Tables::is_damage(&error) => Ok(None),
        Err(error) => Err(database(error)),
    }
}

fn is_named(noted: &str, name: &str) -> bool {
    noted.lines().skip(1).any(|line| line == name)
}

/// Whether RocksDB has been here.
fn holds_tables(online: &Path) -> std::io::Result<bool> {
    for entry in fs::read_dir(online)? {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if name.ends_with(".sst") || name.ends_with(".log") || name.starts_with("MANIFEST") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Reads everything but the logs; which derived column families must be made anew.
fn examine(tables: &Tables, noted: &str) -> Result<Vec<Column>, OpenError> {
    let mut damaged = Vec::new();
    for column in Column::ALL {
        if matches!(column, Column::Events | Column::LabelLog) {
            continue;
        }
        let mut pairs = tables.scan_once(column);
        match pairs.try_for_each(|pair| pair.map(drop)) {
            Ok(()) if !is_named(noted, column.name()) => {}
            Ok(()) => damaged.push(column),
            Err(problem) if DERIVED.contains(&column) => {
                tracing::error!(column = column.name(), %problem, "damaged: will be made anew");
                damaged.push(column);
            }
            Err(problem) => {
                let column = column.name();
                return Err(OpenError::Damaged(format!(
                    "`{column}` cannot be read and is not derived from anything: {problem}; restore a backup"
                )));
            }
        }
    }
    Ok(damaged)
}

/// Drops the column families with their files, and keeps what must not be lost with them.
fn empty(tables: &mut Tables, columns: &[Column]) -> Result<(), rocksdb::Error> {
    for &column in columns {
        tables.renew(column)?;
    }
    if columns.contains(&Column::State) {
        let last = counted(tables)?.events;
        let mut batch = WriteBatch::default();
        tables.put(&mut batch, Key::StatesSeq, &last.to_le_bytes());
        for pair in tables.scan(Column::Meta, &Key::View(0).to_bytes()) {
            let (key, _) = pair?;
            match Key::view_id(&key) {
                Some(id) => tables.delete(&mut batch, Key::View(id)),
                None => break,
            }
        }
        tables.write_durably(batch)?;
    }
    Ok(())
}

/// Events that were taken and entries of the label log, which are the numbers of the last: the logs themselves
/// may be damaged.
fn counted(tables: &Tables) -> Result<Counters, rocksdb::Error> {
    let counters = tables.get(Key::Counters)?;
    let counters = counters.and_then(|bytes| Counters::decode(&bytes));
    Ok(counters.unwrap_or_default())
}

impl Mending {
    /// Has lost entries of the event log read from sealed files from now on, and writes those of the label log
    /// from there; those that are in none are named in the error.
    pub(crate) fn make_logs_anew(
        &self,
        tables: &mut Tables,
        sealed: &OfflineTables,
        definitions: &Definitions,
    ) -> Result<(), OpenError> {
        let last = counted(tables).map_err(database)?;
        events::make_log_anew(tables, &sealed.events, definitions, last.events)?;
        labels::make_log_anew(tables, &sealed.labels, last.label_seq)
    }

    /// Fills what was emptied, but for the states: they are those of views that are not known.
    pub(crate) fn fill(&self, tables: &Tables, events: EventLog<'_>) -> Result<(), ReadError> {
        if self.emptied.contains(&Column::Dedupe) {
            fill_dedupe(tables, events)?;
        }
        let labels = [Column::Labels, Column::PendingLabels];
        if labels.iter().any(|column| self.emptied.contains(column)) {
            fill_labels(tables)?;
        }
        let next = tables.get_number(Key::NextSegment);
        let next = next.map_err(ReadError::database)?.unwrap_or(0) + SEGMENTS_SKIPPED;
        let mut batch = WriteBatch::default();
        tables.put(&mut batch, Key::NextSegment, &next.to_le_bytes());
        tables.write_durably(batch).map_err(ReadError::database)
    }

    /// Removes the note: everything is filled and on disk.
    pub(crate) fn end(&self, tables: &Tables, data_dir: &Path) -> Result<(), OpenError> {
        tables.compact_again().map_err(database)?;
        fs::remove_file(data_dir.join(NOTE)).map_err(io(data_dir))?;
        sync_folder(data_dir).map_err(io(data_dir))?;
        let names: Vec<_> = self.emptied.iter().map(|column| column.name()).collect();
        let ms = self.started.elapsed().as_millis() as u64;
        tracing::warn!(made_anew = ?names, ms, "online store was examined and mended");
        Ok(())
    }
}

fn fill_dedupe(tables: &Tables, events: EventLog<'_>) -> Result<(), ReadError> {
    let mut filling = Filling::of(tables);
    for logged in events.from(0)? {
        let logged = logged?;
        let key = logged.event.dedupe_key();
        let seq = logged.seq.to_le_bytes();
        filling.add(|batch| tables.put(batch, Key::Dedupe(&key), &seq))?;
    }
    filling.end()
}

/// Plays the label log: its entries are what the writer did, but for labels that expired, which wait again.
fn fill_labels(tables: &Tables) -> Result<(), ReadError> {
    let mut filling = Filling::of(tables);
    for entry in entries(tables, 1) {
        let (_, entry) = entry?;
        let mut label = Vec::with_capacity(24);
        entry.label.encode(&mut label);
        let arrived = entry.label.arrived_ms.to_le_bytes();
        let prediction = entry.prediction;
        filling.add(|batch| {
            match entry.kind {
                EntryKind::Pending => tables.put(batch, Key::PendingLabel(prediction), &arrived),
                EntryKind::Resolved => tables.delete(batch, Key::PendingLabel(prediction)),
                EntryKind::Known | EntryKind::Correction => {}
            }
            tables.put(batch, Key::Label(prediction), &label);
        })?;
    }
    filling.end()
}

/// Writes entries in batches, the last of them durably and with it those before.
struct Filling<'t> {
    tables: &'t Tables,
    batch: WriteBatch,
    entries: usize,
}

impl<'t> Filling<'t> {
    fn of(tables: &'t Tables) -> Self {
        Self {
            tables,
            batch: WriteBatch::default(),
            entries: 0,
        }
    }

    fn add(&mut self, put: impl FnOnce(&mut WriteBatch)) -> Result<(), ReadError> {
        put(&mut self.batch);
        self.entries += 1;
        if self.entries.is_multiple_of(REBUILD_ENTRIES) {
            let batch = std::mem::take(&mut self.batch);
            let written = self.tables.write_lazily(batch);
            written.map_err(ReadError::database)?;
        }
        Ok(())
    }

    fn end(self) -> Result<(), ReadError> {
        let written = self.tables.write_durably(self.batch);
        written.map_err(ReadError::database)
    }
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io { path, source }
}
