//! A large group of events as table files: written beside the database, then taken in as a whole.
//!
//! Four steps, so that a crash between any two leaves all of the group or nothing:
//!
//! 1. three files (events, dedupe keys, states) are written and synced in `bulk/`;
//! 2. a redo record (last sequence number, counters) is written durably: from here on the group counts;
//! 3. each file is taken in by a copy, states and the last sequence number at last and at once;
//! 4. one durable write takes over the counters and removes the record.
//!
//! Opening does steps 3 and 4 again where it finds a record. Taking the same file in twice changes
//! nothing: it holds the same keys and values, and nothing else is written in between. Files without a
//! record are left behind by a crash in step 1 and are removed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::{SstFileWriter, WriteBatch};

use super::ReadError;
use super::keys::{Column, Key};
use super::tables::Tables;
use crate::commit::Counters;
use crate::offline::segments::{make_folder, sync_folder};

/// The columns with files, in the order in which they are taken in.
const COLUMNS: [Column; 3] = [Column::Events, Column::Dedupe, Column::State];

/// The files of one group.
pub(crate) struct BulkFiles {
    folder: PathBuf,
}

impl BulkFiles {
    /// An empty folder for the next group.
    pub(crate) fn start(data_dir: &Path) -> Result<Self, ReadError> {
        let folder = data_dir.join("bulk");
        remove(&folder)
            .and_then(|()| make_folder(&folder))
            .map_err(|error| failed(&folder, &error))?;
        Ok(Self { folder })
    }

    /// Writes the file of one of the columns: `fill` puts its pairs in the order of their keys.
    pub(crate) fn write(
        &self,
        column: Column,
        fill: impl FnOnce(&mut Pairs<'_>) -> Result<(), ReadError>,
    ) -> Result<(), ReadError> {
        let options = Tables::file_options(column);
        let mut pairs = Pairs {
            writer: SstFileWriter::create(&options),
        };
        let path = file(&self.folder, column);
        pairs.writer.open(&path).map_err(ReadError::database)?;
        fill(&mut pairs)?;
        // Syncs the file. One without pairs is an error.
        pairs.writer.finish().map_err(ReadError::database)
    }

    /// Steps 2 to 4, once every file is written.
    pub(crate) fn commit(
        self,
        tables: &Tables,
        last_seq: u64,
        counters: &Counters,
    ) -> Result<(), ReadError> {
        sync_folder(&self.folder).map_err(|error| failed(&self.folder, &error))?;
        let record = Record {
            last_seq,
            counters: *counters,
        };
        let mut batch = WriteBatch::default();
        tables.put(&mut batch, Key::Bulk, &record.encode());
        tables.write_durably(batch).map_err(ReadError::database)?;
        take_in(tables, &self.folder, &record)
    }
}

/// Key and value pairs on their way to a file.
pub(crate) struct Pairs<'a> {
    writer: SstFileWriter<'a>,
}

impl Pairs<'_> {
    /// Adds a pair; its key is greater than the one before.
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), ReadError> {
        self.writer.put(key, value).map_err(ReadError::database)
    }
}

/// Finishes the group that a crash has cut off after step 2, and removes what one before it left.
pub(crate) fn redo(tables: &Tables, data_dir: &Path) -> Result<(), ReadError> {
    let folder = data_dir.join("bulk");
    match tables.get(Key::Bulk).map_err(ReadError::database)? {
        Some(bytes) => {
            let record = Record::decode(&bytes);
            let record =
                record.ok_or_else(|| ReadError::Damaged("the record of an import".to_owned()))?;
            tracing::info!(last_seq = record.last_seq, "finishing an import of events");
            take_in(tables, &folder, &record)
        }
        None => remove(&folder).map_err(|error| failed(&folder, &error)),
    }
}

/// Steps 3 and 4.
fn take_in(tables: &Tables, folder: &Path, record: &Record) -> Result<(), ReadError> {
    for column in COLUMNS {
        let path = file(folder, column);
        tables.ingest(column, &path).map_err(ReadError::database)?;
    }
    let mut batch = WriteBatch::default();
    tables.put(&mut batch, Key::Counters, &record.counters.encode());
    tables.delete(&mut batch, Key::Bulk);
    tables.write_durably(batch).map_err(ReadError::database)?;
    if let Err(error) = remove(folder) {
        // The next group or the next start does it.
        tracing::warn!(%error, folder = %folder.display(), "files of an import are left behind");
    }
    Ok(())
}

fn file(folder: &Path, column: Column) -> PathBuf {
    folder.join(format!("{}.sst", column.name()))
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn failed(folder: &Path, error: &io::Error) -> ReadError {
    ReadError::io(&folder.display().to_string(), error)
}

/// What the database says once the group is in it.
#[derive(Debug, PartialEq)]
struct Record {
    last_seq: u64,
    counters: Counters,
}

const RECORD_VERSION: u8 = 1;

impl Record {
    fn encode(&self) -> Vec<u8> {
        let mut out = vec![RECORD_VERSION];
        out.extend_from_slice(&self.last_seq.to_le_bytes());
        out.extend_from_slice(&self.counters.encode());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&[RECORD_VERSION])?;
        let (last_seq, counters) = rest.split_first_chunk::<8>()?;
        Some(Self {
            last_seq: u64::from_le_bytes(*last_seq),
            counters: Counters::decode(counters)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::online::TableOptions;

    const PAIRS: [(Column, &[u8]); 3] = [
        (Column::Events, b"event"),
        (Column::Dedupe, b"dedupe"),
        (Column::State, b"state"),
    ];

    fn record() -> Record {
        let counters = Counters {
            events: 7,
            ..Counters::default()
        };
        Record {
            last_seq: 7,
            counters,
        }
    }

    /// A group that was cut off after so many files were taken in, with its record or before it.
    fn cut_off(data: &Path, tables: &Tables, taken: usize, recorded: bool) {
        let files = BulkFiles::start(data).unwrap();
        for (column, key) in PAIRS {
            files.write(column, |pairs| pairs.put(key, b"new")).unwrap();
        }
        if recorded {
            let mut batch = WriteBatch::default();
            tables.put(&mut batch, Key::Bulk, &record().encode());
            tables.write_durably(batch).unwrap();
        }
        for (column, _) in PAIRS.iter().take(taken) {
            tables
                .ingest(*column, &file(&files.folder, *column))
                .unwrap();
        }
    }

    fn held(tables: &Tables, column: Column, key: &[u8]) -> Option<Vec<u8>> {
        let found = tables.get_many(column, [key]).unwrap().remove(0);
        found.map(|bytes| bytes.to_vec())
    }

    #[test]
    fn a_group_with_a_record_is_finished_wherever_it_was_cut_off() {
        for taken in 0..=3 {
            let data = tempfile::tempdir().unwrap();
            let folder = data.path().join("online");
            let tables = Tables::open(&folder, TableOptions::default()).unwrap();
            cut_off(data.path(), &tables, taken, true);
            drop(tables);
            let tables = Tables::open(&folder, TableOptions::default()).unwrap();
            redo(&tables, data.path()).unwrap();
            for (column, key) in PAIRS {
                assert_eq!(held(&tables, column, key).unwrap(), b"new", "after {taken}");
            }
            assert!(tables.get(Key::Bulk).unwrap().is_none());
            let counters = tables.get(Key::Counters).unwrap().unwrap();
            assert_eq!(Counters::decode(&counters), Some(record().counters));
            assert!(!data.path().join("bulk").exists());
        }
    }

    #[test]
    fn a_group_without_a_record_leaves_nothing() {
        let data = tempfile::tempdir().unwrap();
        let tables = Tables::open(&data.path().join("online"), TableOptions::default()).unwrap();
        cut_off(data.path(), &tables, 0, false);
        redo(&tables, data.path()).unwrap();
        for (column, key) in PAIRS {
            assert_eq!(held(&tables, column, key), None);
        }
        assert!(!data.path().join("bulk").exists());
    }

    #[test]
    fn a_record_without_its_files_is_told_and_not_passed_over() {
        let data = tempfile::tempdir().unwrap();
        let tables = Tables::open(&data.path().join("online"), TableOptions::default()).unwrap();
        cut_off(data.path(), &tables, 1, true);
        fs::remove_dir_all(data.path().join("bulk")).unwrap();
        assert!(redo(&tables, data.path()).is_err());
        assert!(tables.get(Key::Bulk).unwrap().is_some());
    }
}
