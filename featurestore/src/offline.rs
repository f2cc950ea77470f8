//! The offline store: sealed Parquet, and the training rows that are joined from it.
//!
//! Three tables, each a folder of files by UTC day and a manifest that says which files it consists
//! of: `events/source=S/date=D/`, by arrival; `predictions/model=M/date=D/`, by the time of the
//! prediction; `labels/date=D/`, by arrival. Layout, columns and manifest are a public format, version
//! 1 (docs/offline.md). Reading knows neither RocksDB nor a lock, so the trainer reads beside a running
//! gateway: a manifest is replaced as a whole, and a file that it names lies there whole, for at least
//! the grace period longer than it is named.

mod bond;
mod bucket;
mod check;
pub(crate) mod dataset;
pub(crate) mod days;
pub(crate) mod event_rows;
mod https;
pub(crate) mod label_rows;
pub(crate) mod legacy;
pub(crate) mod location;
pub(crate) mod manifest;
pub(crate) mod place;
pub(crate) mod reach;
pub(crate) mod segments;
pub(crate) mod table;
pub(crate) mod training;
pub(crate) mod training_set;
pub(crate) mod upkeep;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

pub use self::bucket::{Bucket, BucketError, BucketFields};
pub use self::check::{TableReport, check_files};
pub use self::dataset::{Dataset, DatasetAbout, ReadFile, RowsFrom};
use self::place::Place;
use self::reach::Reaches;
use self::table::{Table, TableKind};
pub use self::upkeep::{RetentionOptions, Upkept};
use crate::definition::Definitions;
use crate::predictions::PredictionKey;

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
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Which prediction each row is. Ids are random: no part of the digest.
    pub predictions: Vec<PredictionKey>,
    /// Labelled rows that were left out, since no model may answer from them (`missing = "refuse"`).
    pub refused: u64,
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
    /// The bucket did not do what it was asked. What was to be sealed waits.
    #[error("{}: {problem}", path.display())]
    Away {
        /// The bucket or object.
        path: PathBuf,
        /// What it or the network said.
        problem: String,
    },
    /// Another process writes this table too.
    #[error("{} is written by another process: one gateway may have a prefix", path.display())]
    Taken {
        /// The manifest.
        path: PathBuf,
    },
    /// The bucket is not the one that the data folder knows, or not as the folder left it.
    #[error("{}: {problem}", path.display())]
    NotOurs {
        /// The manifest.
        path: PathBuf,
        /// What was found, and what was left there.
        problem: String,
    },
    /// A Parquet file is damaged or not ours.
    #[error("{} is not a readable segment: {problem}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A file that the manifest names is not there.
    #[error("{} is named by its manifest and not there", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file is not the one that was sealed.
    #[error("{} has another length or digest than its manifest says", path.display())]
    Altered {
        /// The file.
        path: PathBuf,
    },
    /// A table's manifest cannot be used.
    #[error("manifest {}: {problem}", path.display())]
    Manifest {
        /// The manifest.
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

/// The three tables of one store.
pub(crate) struct OfflineTables {
    pub(crate) events: Arc<Table>,
    pub(crate) predictions: Arc<Table>,
    pub(crate) labels: Arc<Table>,
}

impl OfflineTables {
    /// For who reads beside the process that has the store open. Events come last: what the predictions
    /// saw was sealed before them or with them.
    pub(crate) fn read_only(place: &Place) -> Result<Self, OfflineError> {
        let table = |kind| Table::read_only(kind, place.clone()).map(Arc::new);
        let (labels, predictions) = (table(TableKind::Labels)?, table(TableKind::Predictions)?);
        Ok(Self {
            events: table(TableKind::Events)?,
            predictions,
            labels,
        })
    }

    /// Every table.
    pub(crate) fn all(&self) -> [&Arc<Table>; 3] {
        [&self.events, &self.predictions, &self.labels]
    }

    /// Makes them this process's, held against what they are sealed from: all of them, or none where one of
    /// them does not fit.
    pub(crate) fn claim(&self, reaches: &Reaches) -> Result<(), OfflineError> {
        let claims = [
            (&self.events, reaches.events),
            (&self.predictions, reaches.predictions),
            (&self.labels, reaches.labels),
        ];
        for (table, reach) in claims {
            table.hold_against(reach)?;
        }
        let mut claims = claims.into_iter();
        claims.try_for_each(|(table, reach)| table.claim(reach))
    }

    /// What their place failed of last, if it did; the three share it.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        self.events.place().problem()
    }

    /// Copies what a bucket holds into a folder, from which the tables can be opened as they are now;
    /// `false` where it is a folder that holds them.
    pub(crate) fn download(&self, folder: &Path) -> Result<bool, OfflineError> {
        if self.events.place().writer().is_none() {
            return Ok(false);
        }
        let place = Place::folder(folder.to_owned())?;
        for table in self.all() {
            table.copy_to(&place)?;
        }
        Ok(true)
    }
}

/// Reads the rows that were answered (or backfilled) for `query.model` and joins each with the label
/// that stood at `query.known_by_ms`; rows without one are left out, and those that the service refuses,
/// where `definitions` know it. Rows answered by a fallback are kept: their features are as served.
/// `data_dir` is the data folder, not its `offline/`.
pub fn training_rows(
    data_dir: &Path,
    definitions: &Definitions,
    query: &TrainingQuery,
) -> Result<TrainingSet, OfflineError> {
    training::training_rows(data_dir, definitions, query)
}
