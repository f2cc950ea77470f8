//! The prediction log: what was answered, with which features, by which version.
//!
//! [`crate::FeatureStore::record`] writes two things, neither with fsync: an index entry per row in
//! RocksDB (for labels to find) and the row itself in an Arrow IPC spool file per model. Sealing turns
//! spool files into Parquet. A crash of the process loses the rows not yet flushed, at most
//! [`crate::StoreOptions::spool_rows_max`] per model; a crash of the machine also what the kernel held.

pub(crate) mod columns;
mod frames;
pub(crate) mod index;
pub(crate) mod record;
pub(crate) mod scan;
pub(crate) mod seal;
pub(crate) mod spool;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use uuid::Uuid;

use crate::service::FeatureRow;
use crate::value::Value;

/// Names one predicted row: the answer's `prediction_id` and the row's number in the request.
/// As text `uuid` (row 0) or `uuid/row`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PredictionKey {
    /// The answer's `prediction_id`.
    pub id: Uuid,
    /// Row of the request, from 0.
    pub row: u32,
}

/// A text that is no prediction key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("prediction id `{text}` is neither a UUID nor UUID/row")]
pub struct PredictionKeyError {
    text: String,
}

impl FromStr for PredictionKey {
    type Err = PredictionKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || PredictionKeyError {
            text: text.chars().take(64).collect(),
        };
        let (id, row) = match text.split_once('/') {
            Some((id, row)) if row.bytes().all(|digit| digit.is_ascii_digit()) => {
                (id, row.parse().map_err(|_| refused())?)
            }
            Some(_) => return Err(refused()),
            None => (text, 0),
        };
        let id = Uuid::try_parse(id).map_err(|_| refused())?;
        Ok(Self { id, row })
    }
}

impl PredictionKey {
    /// As keys of the database hold it: the id, then the row with its highest byte first.
    pub(crate) fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..16].copy_from_slice(self.id.as_bytes());
        bytes[16..].copy_from_slice(&self.row.to_be_bytes());
        bytes
    }
}

impl fmt::Display for PredictionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            0 => write!(f, "{}", self.id),
            row => write!(f, "{}/{row}", self.id),
        }
    }
}

/// What a version was to the request that it scored. The discriminants are stored: never change them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Answered as the champion.
    Champion = 0,
    /// Answered as the challenger of a split.
    Challenger = 1,
    /// Answered because the one before it in the chain could not.
    Fallback = 2,
    /// Answered because the request named the version.
    Pinned = 3,
    /// Scored a copy; its answer was not sent.
    Shadow = 4,
    /// Never served: features recomputed from the event log.
    Backfill = 5,
}

impl Role {
    /// Every role, in the order of the stored discriminants.
    pub const ALL: [Self; 6] = [
        Self::Champion,
        Self::Challenger,
        Self::Fallback,
        Self::Pinned,
        Self::Shadow,
        Self::Backfill,
    ];

    /// The name in files and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Champion => "champion",
            Self::Challenger => "challenger",
            Self::Fallback => "fallback",
            Self::Pinned => "pinned",
            Self::Shadow => "shadow",
            Self::Backfill => "backfill",
        }
    }

    /// Whether the score was the answer to a request.
    pub fn answered(self) -> bool {
        !matches!(self, Self::Shadow | Self::Backfill)
    }

    /// The role with this stored discriminant.
    pub(crate) fn from_stored(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }

    /// The role with this name.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|role| role.as_str() == name)
    }
}

/// One row as one version scored it.
#[derive(Debug, Clone)]
pub struct PredictionRecord {
    /// The predicted row.
    pub prediction: PredictionKey,
    /// The caller's own id of the request.
    pub request_id: Option<Box<str>>,
    /// Model that scored.
    pub model: Arc<str>,
    /// Its version.
    pub version: u32,
    /// What the version was to the request.
    pub role: Role,
    /// Time of the prediction.
    pub at_ms: i64,
    /// Feature service, `name@version`; `None` for a model that takes its tensors as they come.
    pub service: Option<Arc<str>>,
    /// The request's values in the order of the service's request fields.
    pub request: Arc<[Value]>,
    /// The features as served; `None` for a shadow that shares the answer's row.
    pub features: Option<Arc<FeatureRow>>,
    /// The score as answered.
    pub score: f32,
    /// Why a fallback answered.
    pub fallback_reason: Option<Box<str>>,
}

/// What one seal brought from the spool and the logs of labels and events into Parquet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Sealed {
    /// Prediction rows.
    pub predictions: u64,
    /// Label rows.
    pub labels: u64,
    /// Events.
    pub events: u64,
    /// Parquet files.
    pub files: u64,
}

impl std::ops::AddAssign for Sealed {
    fn add_assign(&mut self, other: Self) {
        self.predictions += other.predictions;
        self.labels += other.labels;
        self.events += other.events;
        self.files += other.files;
    }
}
