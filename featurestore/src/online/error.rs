//! What can go wrong in a store, one type per operation.

use std::path::PathBuf;
use std::sync::Arc;

use thiserror::Error;

use super::tables::Tables;

use crate::applied::ApplyError;
use crate::offline::OfflineError;

/// Why a store could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("data folder {} is in use by {holder}", path.display())]
    Held {
        /// The data folder.
        path: PathBuf,
        /// Who holds it, `pid N`.
        holder: String,
    },
    /// A file or folder failed.
    #[error("could not open {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// RocksDB failed.
    #[error("online store: {0}")]
    Database(String),
    /// The database ends before what had been acknowledged.
    #[error(
        "online store ends at event {found} and label {found_labels}, but {acked} and {acked_labels} were acknowledged: its log was cut"
    )]
    Cut {
        /// Last event found.
        found: u64,
        /// Last event acknowledged.
        acked: u64,
        /// Last label log entry found.
        found_labels: u64,
        /// Last label log entry acknowledged.
        acked_labels: u64,
    },
    /// The data were written in a newer format.
    #[error("data folder has format {found}; this program knows up to {known}")]
    Newer {
        /// Format of the folder.
        found: u32,
        /// Newest known format.
        known: u32,
    },
    /// Definitions have another meaning than when they were first applied.
    #[error("features.toml does not fit the data folder:\n{0}")]
    Changed(ApplyError),
    /// Something in the database does not decode.
    #[error("online store is damaged: {0}")]
    Damaged(String),
    /// Spool files left by the last process could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Why a queued batch was not written.
#[derive(Debug, Clone, Error)]
pub enum IngestError {
    /// The writer has stopped after a failed write; only a restart helps, and nothing of this batch
    /// was acknowledged.
    #[error("event store has stopped writing: {reason}")]
    Stopped {
        /// The failure that stopped it.
        reason: Arc<str>,
    },
    /// No space is left on the disk; the batch was not acknowledged, and writes are taken again by
    /// themselves when there is space.
    #[error("no space is left on the disk")]
    Full,
    /// The queue was full throughout a blocking call.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
}

/// The queue of the writer is full; nothing of the batch was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("event store is overloaded, retry after {retry_after_ms} ms")]
pub struct Overloaded {
    /// When a retry is worth while.
    pub retry_after_ms: u64,
}

/// Why features could not be read.
#[derive(Debug, Clone, Error)]
pub enum ReadError {
    /// RocksDB failed.
    #[error("online store: {0}")]
    Database(String),
    /// No space was left for something that had to be written.
    #[error("no space is left: {0}")]
    NoSpace(String),
    /// A stored value does not decode.
    #[error("online store is damaged: {0}")]
    Damaged(String),
    /// Sealed events cannot be read.
    #[error("sealed events: {0}")]
    Sealed(String),
}

impl ReadError {
    pub(crate) fn sealed(error: OfflineError) -> Self {
        match error {
            OfflineError::Away { .. } => Self::Database(error.to_string()),
            error => Self::Sealed(error.to_string()),
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    pub(crate) fn database(error: rocksdb::Error) -> Self {
        match Tables::is_damage(&error) {
            true => Self::Damaged(error.to_string()),
            false if Tables::is_want_of_space(&error) => Self::NoSpace(error.to_string()),
            false => Self::Database(error.to_string()),
        }
    }

    /// A failure of a file of our own.
    pub(crate) fn io(what: &str, error: &std::io::Error) -> Self {
        let problem = format!("{what}: {error}");
        match error.kind() {
            std::io::ErrorKind::StorageFull => Self::NoSpace(problem),
            _ => Self::Database(problem),
        }
    }
}

/// Why predictions could not be recorded.
#[derive(Debug, Error)]
pub enum RecordError {
    /// No space is left on the disk; nothing is recorded until there is.
    #[error("no space is left on the disk")]
    Full,
    /// A model's name cannot be a folder.
    #[error("model name `{0}` cannot be a folder name")]
    ModelName(String),
    /// The prediction index failed.
    #[error("prediction index: {0}")]
    Database(String),
    /// The spool failed.
    #[error("prediction spool {}: {problem}", path.display())]
    Spool {
        /// The spool file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Why the spool could not be sealed; sealing again is safe.
#[derive(Debug, Error)]
pub enum SealError {
    /// A file could not be read or written.
    #[error("could not seal {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// RocksDB failed.
    #[error("online store: {0}")]
    Database(String),
    /// A table of the offline store could not be read or changed.
    #[error(transparent)]
    Offline(#[from] OfflineError),
}
