//! Holds every sealed file against its table's manifest: there, whole, and the bytes that were sealed.
//!
//! Reads all of them, beside a running gateway if need be.

use std::path::Path;

use serde::Serialize;

use super::manifest::SealedFile;
use super::place::Place;
use super::table::{Table, TableKind};
use super::{OfflineError, location};

/// What a check of one table found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableReport {
    /// `events`, `predictions` or `labels`.
    pub table: &'static str,
    /// Files that the manifest names.
    pub files: u64,
    /// Rows in them, as the manifest says.
    pub rows: u64,
    /// Their bytes, as the manifest says.
    pub bytes: u64,
    /// Files that the table no longer reads.
    pub retired_files: u64,
    /// What is wrong, a sentence for each file.
    pub problems: Vec<String>,
}

/// Checks the tables of a data folder.
pub fn check_files(data_dir: &Path) -> Result<Vec<TableReport>, OfflineError> {
    let Some(place) = location::existing(data_dir)? else {
        return Ok(Vec::new());
    };
    TableKind::ALL
        .into_iter()
        .map(|kind| check_table(kind, &place))
        .collect()
}

fn check_table(kind: TableKind, place: &Place) -> Result<TableReport, OfflineError> {
    let table = Table::read_only(kind, place.clone())?;
    let manifest = table.manifest()?;
    let mut report = TableReport {
        table: kind.name(),
        files: manifest.files.len() as u64,
        rows: manifest.files.iter().map(|file| file.rows).sum(),
        bytes: manifest.files.iter().map(|file| file.bytes).sum(),
        retired_files: manifest.retired.len() as u64,
        problems: Vec::new(),
    };
    for file in &manifest.files {
        match table.bytes(file) {
            Ok(_) => {}
            Err(OfflineError::Missing { .. }) if !is_named(kind, place, file)? => {}
            Err(error) => report.problems.push(error.to_string()),
        }
    }
    Ok(report)
}

/// Whether the table has the file still: a gateway may have merged it away meanwhile.
fn is_named(kind: TableKind, place: &Place, file: &SealedFile) -> Result<bool, OfflineError> {
    let now = Table::read_only(kind, place.clone())?.manifest()?;
    Ok(now.files.iter().any(|named| named.path == file.path))
}
