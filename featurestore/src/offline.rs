//! The offline store: sealed Parquet, and the training rows that are joined from it.
//!
//! Knows only files: neither RocksDB nor a lock, so the trainer reads beside a running gateway. Files
//! appear whole or not at all, so a reader sees whole segments. The layout and the columns are a public
//! format, version 1:
//!
//! - `offline/predictions/model=M/date=YYYY-MM-DD/*.parquet`, by the time of the prediction in UTC;
//! - `offline/labels/date=YYYY-MM-DD/*.parquet`, by the arrival of the label in UTC.

pub(crate) mod days;
pub(crate) mod label_rows;
pub(crate) mod segments;
mod training;

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Which rows to train on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainingQuery {
    /// Model whose log is read.
    pub model: String,
    /// Feature service, `name@version`; rows of another one are left out.
    pub service: String,
    /// Predicted at or after this time.
    pub from_ms: i64,
    /// Predicted before this time.
    pub to_ms: i64,
    /// Labels that had arrived by this time, inclusive.
    pub known_by_ms: i64,
}

/// Labelled feature rows, sorted by (time, request id); all columns have [`TrainingSet::rows`] entries.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingSet {
    /// Feature names, in the order of the columns of `values`.
    pub names: Vec<String>,
    /// Feature values, row after row; NaN where missing.
    pub values: Vec<f32>,
    /// Label of each row.
    pub labels: Vec<f32>,
    /// Time of each prediction.
    pub predicted_ms: Vec<i64>,
    /// Arrival of each label.
    pub known_ms: Vec<i64>,
    /// The caller's id of each request; empty where it gave none.
    pub request_ids: Vec<String>,
    /// SHA-256 of the content, equal for equal rows whatever their random prediction ids were.
    pub digest: [u8; 32],
}

impl TrainingSet {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.labels.len()
    }

    /// Number of features.
    pub fn columns(&self) -> usize {
        self.names.len()
    }
}

/// Why sealed rows could not be read.
#[derive(Debug, Error)]
pub enum OfflineError {
    /// A folder or file could not be read.
    #[error("could not read {}: {source}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A Parquet file is damaged or not ours.
    #[error("{} is not a readable segment: {problem}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Two segments of one service disagree about its features.
    #[error("{} has other features than the segments before it", path.display())]
    FeaturesDiffer {
        /// The file that differs.
        path: PathBuf,
    },
}

/// Reads the rows that were answered (or backfilled) for `query.model` and joins each with the label
/// that stood at `query.known_by_ms`; rows without one are left out. Rows answered by a fallback are
/// kept: their features are as served. `data_dir` is the data folder, not its `offline/`.
pub fn training_rows(data_dir: &Path, query: &TrainingQuery) -> Result<TrainingSet, OfflineError> {
    training::training_rows(data_dir, query)
}
