//! History: import of events from files, and backfill of training rows from the event log.
//!
//! Both run on an open store, so never beside a gateway on the same folder. Costs one pass over the
//! files, and for a backfill one over the event log.

mod csv;
pub(crate) mod import;
mod json;
pub(crate) mod recompute;
mod table;

use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

/// Files of one source to import. Arrival is taken to be the event's own time.
#[derive(Debug, Clone)]
pub struct ImportRequest {
    /// The source's name.
    pub source: String,
    /// `.parquet`, `.csv`, or JSON lines of any other ending; in order of time within and across files.
    pub files: Vec<PathBuf>,
    /// The present, against which the source's limit on future times is held.
    pub now_ms: i64,
}

/// What an import did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// Rows read.
    pub rows: u64,
    /// Rows that were new.
    pub accepted: u64,
    /// Rows that had been there.
    pub duplicates: u64,
    /// New rows that came too late for at least one window.
    pub late: u64,
}

/// How far an import or a backfill is. What an import has counted is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Rows, of all files.
    pub rows: u64,
    /// Bytes of the files that hold them.
    pub bytes: u64,
    /// Bytes of all files.
    pub bytes_total: u64,
}

/// Rows to recompute as if they had been served.
#[derive(Debug, Clone)]
pub struct BackfillRequest {
    /// Model whose offline log receives them.
    pub model: Arc<str>,
    /// Feature service, `name` or `name@version`.
    pub service: String,
    /// `.parquet`, `.csv`, or JSON lines of any other ending: the service's request fields and `request_id`
    /// (string, optional), `at` (time), `label` (number, null where unknown), `label_known_at` (time);
    /// in order of `at`.
    pub file: PathBuf,
}

/// What a backfill wrote.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Backfilled {
    /// Rows recomputed.
    pub rows: u64,
    /// Of them with a label.
    pub labels: u64,
    /// Parquet files written.
    pub files: u64,
}

/// Why history could not be taken in.
#[derive(Debug, Error)]
pub enum HistoryError {
    /// No such source or service is defined.
    #[error("{kind} `{name}` is not defined in features.toml")]
    Undefined {
        /// `source` or `service`.
        kind: &'static str,
        /// The name asked for.
        name: String,
    },
    /// A file could not be read or written.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A row does not fit.
    #[error("{}: row {row}: {problem}", path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// The row, from 0.
        row: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// An import ended at a row. Every row before it is in, none after.
    #[error(
        "{cause}; the {} rows before it are imported, and importing the same files again skips them",
        imported.rows
    )]
    Partial {
        /// Why it ended.
        cause: Box<HistoryError>,
        /// What was imported.
        imported: Imported,
    },
    /// The event store refused.
    #[error("event store: {0}")]
    Store(String),
}
