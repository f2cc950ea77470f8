//! Sealing: closed spool files become Parquet by day, the label log becomes Parquet by day.
//!
//! Order of steps: write and publish the Parquet files of a spool file, remove the spool file; write and
//! publish label files, move the cursor. A crash between any two leaves what makes the next seal write
//! the same files again.

use std::fs;
use std::path::{Path, PathBuf};

use rocksdb::WriteBatch;

use super::Sealed;
use super::columns::numbers;
use super::spool::SpoolReader;
use crate::labels::{EntryKind, entries};
use crate::metrics::StoreMetrics;
use crate::offline::days::DayFiles;
use crate::offline::label_rows::LabelFiles;
use crate::offline::segments::{labels_folder, list, predictions_folder, sync_folder};
use crate::online::SealError;
use crate::online::keys::Key;
use crate::online::tables::Tables;

/// Closed spool files, oldest first. Call it while no file is being written.
pub(crate) fn closed_files(spool: &Path) -> Result<Vec<PathBuf>, SealError> {
    let mut files = list(spool).map_err(|error| failed(spool, &error))?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "arrow"));
    Ok(files)
}

/// Turns one closed spool file into Parquet and removes it.
pub(crate) fn seal_file(
    data_dir: &Path,
    path: &Path,
    metrics: &StoreMetrics,
) -> Result<Sealed, SealError> {
    let mut reader = SpoolReader::open(path).map_err(|error| failed(path, &error))?;
    let mut sealed = Sealed::default();
    let name = path.file_stem().and_then(|name| name.to_str());
    let (number, model) = name
        .and_then(|name| name.split_once('-'))
        .ok_or_else(|| failed(path, &"not a spool file"))?;
    if let Some(schema) = reader.schema() {
        let folder = predictions_folder(data_dir, model);
        let mut files = DayFiles::new(folder, number.to_owned(), schema);
        for batch in reader.by_ref() {
            let times = numbers(&batch, "at");
            let times = times.map_err(|error| failed(path, &error))?;
            let written = files.write(&batch, times);
            written.map_err(|error| failed(path, &error))?;
            sealed.predictions += batch.num_rows() as u64;
        }
        sealed.files = files.finish().map_err(|error| failed(path, &error))?;
    }
    if reader.torn() {
        metrics.spool_torn.increment(1);
        tracing::warn!(path = %path.display(), rows = sealed.predictions, "spool file was torn");
    }
    fs::remove_file(path).map_err(|error| failed(path, &error))?;
    if let Some(folder) = path.parent() {
        sync_folder(folder).map_err(|error| failed(folder, &error))?;
    }
    Ok(sealed)
}

/// Writes the label log from the cursor on into Parquet and moves the cursor.
pub(crate) fn seal_labels(data_dir: &Path, tables: &Tables) -> Result<Sealed, SealError> {
    let database = |error: rocksdb::Error| SealError::Database(error.to_string());
    let first = tables.get_number(Key::LabelsSealed).map_err(database)?;
    let first = first.unwrap_or(1);
    let folder = labels_folder(data_dir);
    let mut files = LabelFiles::new(folder.clone(), format!("{first:012}"));
    let mut sealed = Sealed::default();
    let mut next = first;
    for entry in entries(tables, first) {
        let (number, entry) = entry.map_err(|error| SealError::Database(error.to_string()))?;
        next = number + 1;
        if entry.kind != EntryKind::Resolved {
            let pushed = files.push(entry.prediction, entry.label, number);
            pushed.map_err(|error| failed(&folder, &error))?;
            sealed.labels += 1;
        }
    }
    sealed.files = files.finish().map_err(|error| failed(&folder, &error))?;
    if next > first {
        let mut batch = WriteBatch::default();
        tables.put(&mut batch, Key::LabelsSealed, &next.to_le_bytes());
        tables.write_durably(batch).map_err(database)?;
    }
    Ok(sealed)
}

fn failed(path: &Path, problem: &dyn std::fmt::Display) -> SealError {
    SealError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}
