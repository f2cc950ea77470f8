//! Sealing: closed spool files become Parquet by day, the label log becomes Parquet by day.
//!
//! Order of steps: put the files of a spool file, name them in the manifest, remove the spool file; put
//! label files, name them and the number that they reach. A crash before the manifest leaves orphans,
//! one after it a spool file that the manifest knows to be sealed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, RecordBatch};

use super::Sealed;
use super::columns::{optional, texts};
use super::frames::Flaw;
use super::spool::SpoolReader;
use crate::labels::{EntryKind, entries};
use crate::metrics::StoreMetrics;
use crate::offline::OfflineTables;
use crate::offline::days::{About, DayFiles};
use crate::offline::label_rows::LabelFiles;
use crate::offline::legacy::Legacy;
use crate::offline::location::Settled;
use crate::offline::manifest::SPOOL_FILE;
use crate::offline::segments::{list, model_folder, sync_folder};
use crate::offline::table::{Table, TableKind};
use crate::online::SealError;
use crate::online::keys::Key;
use crate::online::quarantine;
use crate::online::tables::Tables;

/// Closed spool files, oldest first. Call it while no file is being written.
pub(crate) fn closed_files(spool: &Path) -> Result<Vec<PathBuf>, SealError> {
    let mut files = list(spool).map_err(|error| failed(spool, &error))?;
    files.retain(|path| path.extension().is_some_and(|ending| ending == "arrow"));
    Ok(files)
}

/// What the manifest says of files that come from the spool file of that number.
pub(crate) fn origin_of(number: &str) -> String {
    format!("{SPOOL_FILE}{number}")
}

/// Turns one closed spool file into Parquet and removes it.
pub(crate) fn seal_file(
    predictions: &Arc<Table>,
    path: &Path,
    metrics: &StoreMetrics,
) -> Result<Sealed, SealError> {
    let mut reader = SpoolReader::open(path).map_err(|error| failed(path, &error))?;
    let mut sealed = Sealed::default();
    let name = path.file_stem().and_then(|name| name.to_str());
    let (number, model) = name
        .and_then(|name| name.split_once('-'))
        .ok_or_else(|| failed(path, &"not a spool file"))?;
    let origin = origin_of(number);
    let done = predictions.manifest()?.has_origin(&origin);
    if let Some(schema) = reader.schema().filter(|_| !done) {
        let mut files: Option<DayFiles> = None;
        for batch in reader.by_ref() {
            let files = files.get_or_insert_with(|| {
                let about = About {
                    folder: model_folder(model),
                    name: number.to_owned(),
                    schema: service_of(&batch),
                    origin: origin.clone(),
                };
                DayFiles::new(predictions, about, Arc::clone(&schema))
            });
            files.write(&batch)?;
            sealed.predictions += batch.num_rows() as u64;
        }
        let files = files.map_or(Ok(Vec::new()), DayFiles::finish)?;
        sealed.files = files.len() as u64;
        predictions.commit(|manifest| manifest.files.extend(files))?;
    }
    match reader.flaw() {
        Some(Flaw::Damaged(at)) => {
            let why = format!("damaged-at-byte-{at}");
            let aside = quarantine::set_aside(path, &why);
            let aside = aside.map_err(|error| failed(path, &error))?;
            metrics.quarantined.increment(1);
            let rows = sealed.predictions;
            tracing::error!(file = %aside.display(), rows, "spool file is damaged after these rows");
            return Ok(sealed);
        }
        Some(Flaw::Torn) => {
            metrics.spool_torn.increment(1);
            tracing::warn!(path = %path.display(), rows = sealed.predictions, "spool file was torn");
        }
        None => {}
    }
    fs::remove_file(path).map_err(|error| failed(path, &error))?;
    if let Some(folder) = path.parent() {
        sync_folder(folder).map_err(|error| failed(folder, &error))?;
    }
    Ok(sealed)
}

/// Writes the label log from where the table ends into Parquet.
pub(crate) fn seal_labels(tables: &Tables, labels: &Arc<Table>) -> Result<Sealed, SealError> {
    let first = labels.manifest()?.sealed_seq + 1;
    let origin = format!("labels from {first}");
    let mut files = LabelFiles::new(labels, format!("{first:012}"), origin);
    let mut sealed = Sealed::default();
    let mut last = first - 1;
    for entry in entries(tables, first) {
        let (number, entry) = entry.map_err(|error| SealError::Database(error.to_string()))?;
        last = number;
        if entry.kind != EntryKind::Resolved {
            files.push(entry.prediction, entry.label, number)?;
            sealed.labels += 1;
        }
    }
    let files = files.finish()?;
    sealed.files = files.len() as u64;
    labels.commit(|manifest| {
        manifest.sealed_seq = last;
        manifest.files.extend(files);
    })?;
    Ok(sealed)
}

/// Opens the three tables. What a folder of before there were manifests holds of a seal that did not
/// end is written again by the next: the files of a spool file that is still there, and the labels from
/// the cursor on.
pub(crate) fn open_tables(
    settled: &Settled,
    tables: &Tables,
    spool: &Path,
) -> Result<OfflineTables, SealError> {
    let open = |kind, sealed_seq, unfinished: &dyn Fn(&str) -> bool| {
        let legacy = Legacy {
            sealed_seq,
            unfinished,
        };
        Table::open(kind, settled, &legacy).map(Arc::new)
    };
    let spooled: Vec<(String, String)> = closed_files(spool)?
        .iter()
        .filter_map(|path| {
            let (number, model) = path.file_stem()?.to_str()?.split_once('-')?;
            Some((format!("{}/", model_folder(model)), format!("/{number}-")))
        })
        .collect();
    let in_spool = |path: &str| {
        let mut spooled = spooled.iter();
        spooled.any(|(folder, name)| path.starts_with(folder) && path.contains(name))
    };
    let next_label = tables.get_number(Key::LabelsSealed);
    let next_label = next_label.map_err(|error| SealError::Database(error.to_string()))?;
    let next_label = next_label.unwrap_or(1);
    let unsealed = format!("/{next_label:012}-");
    Ok(OfflineTables {
        events: open(TableKind::Events, 0, &|_| false)?,
        predictions: open(TableKind::Predictions, 0, &in_spool)?,
        labels: open(TableKind::Labels, next_label.saturating_sub(1), &|path| {
            path.contains(&unsealed)
        })?,
    })
}

/// The service of some rows, as a manifest names it.
fn service_of(rows: &RecordBatch) -> serde_json::Value {
    let service = texts(rows, "service")
        .ok()
        .filter(|column| column.len() > 0);
    let service = service.and_then(|column| optional(column, 0));
    serde_json::json!({ "service": service })
}

fn failed(path: &Path, problem: &dyn std::fmt::Display) -> SealError {
    SealError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}
