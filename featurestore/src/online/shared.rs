//! What the threads of one store share.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::hot::HotStates;
use super::lock::FolderLock;
use super::tables::Tables;
use super::{IngestError, ReadError, StoreOptions, mend};
use crate::commit::Counters;
use crate::definition::Definitions;
use crate::log::{EventLog, Schemas};
use crate::metrics::StoreMetrics;
use crate::offline::OfflineTables;
use crate::predictions::PredictionKey;
use crate::predictions::spool::Spool;

/// Shared by the writer thread and all handles. The locks are held for memory work, but `spool` (one
/// recorder, and a seal for a moment) and `sealing` (one seal or read of the whole log at a time).
pub(crate) struct Shared {
    pub(crate) tables: Tables,
    pub(crate) offline: OfflineTables,
    /// States that were read lately; the writer keeps them at its cut.
    pub(crate) hot: HotStates,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) schemas: Schemas,
    pub(crate) options: StoreOptions,
    pub(crate) data_dir: PathBuf,
    pub(crate) metrics: StoreMetrics,
    /// Labels that wait for their prediction, with their arrival. The writer adds and removes; the
    /// recorder looks.
    pub(crate) pending: Mutex<HashMap<PredictionKey, i64>>,
    /// Last sequence number and counters as of the last group on disk.
    pub(crate) counters: Mutex<(u64, Counters)>,
    /// What a read found damaged first; the next open mends it.
    pub(crate) damaged: OnceLock<Arc<str>>,
    /// Why the writer has stopped.
    pub(crate) stopped: OnceLock<Arc<str>>,
    /// No space is left: the writer sets it, and takes it back.
    pub(crate) full: AtomicBool,
    pub(crate) spool: Mutex<Spool>,
    pub(crate) sealing: Mutex<()>,
    /// When states were last looked through for what has expired.
    pub(crate) looked_ms: AtomicI64,
    predictions: AtomicU64,
    /// Released last, when the database is closed.
    _lock: FolderLock,
}

impl Shared {
    /// Everything at rest.
    pub(crate) fn new(opened: Opened) -> Self {
        let folder = opened.data_dir.join("spool");
        let definitions = Arc::clone(&opened.definitions);
        let spool = Spool::new(folder, definitions, opened.options.spool_rows_max);
        Self {
            tables: opened.tables,
            offline: opened.offline,
            hot: HotStates::new(opened.options.hot_states_bytes, opened.last_seq),
            definitions: opened.definitions,
            schemas: opened.schemas,
            options: opened.options,
            data_dir: opened.data_dir,
            metrics: opened.metrics,
            pending: Mutex::new(opened.pending),
            counters: Mutex::new((opened.last_seq, opened.counters)),
            damaged: OnceLock::new(),
            stopped: OnceLock::new(),
            full: AtomicBool::new(false),
            spool: Mutex::new(spool),
            sealing: Mutex::new(()),
            looked_ms: AtomicI64::new(i64::MIN),
            predictions: AtomicU64::new(0),
            _lock: opened.lock,
        }
    }

    /// All events, wherever they lie.
    pub(crate) fn events(&self) -> EventLog<'_> {
        EventLog {
            tables: Some(&self.tables),
            schemas: &self.schemas,
            sealed: &self.offline.events,
        }
    }

    /// Whether nothing may be written for want of space.
    pub(crate) fn is_full(&self) -> bool {
        self.full.load(Ordering::Acquire)
    }

    /// Why the writer takes no batch, if it takes none.
    pub(crate) fn refusal(&self) -> Option<IngestError> {
        if let Some(reason) = self.stopped.get() {
            let reason = Arc::clone(reason);
            return Some(IngestError::Stopped { reason });
        }
        self.is_full().then_some(IngestError::Full)
    }

    /// Says that the database is damaged, if `error` says so: in the statistics, and to the next open.
    pub(crate) fn note_damage(&self, error: &ReadError) {
        let ReadError::Damaged(problem) = error else {
            return;
        };
        if self.damaged.set(problem.as_str().into()).is_ok() {
            self.metrics.damaged.set(1.0);
            tracing::error!(%problem, "online store is damaged: a restart will examine and mend it");
            if let Err(error) = mend::note(&self.data_dir, problem, &[]) {
                tracing::error!(%error, "no note of the damage could be left for the restart");
            }
        }
    }

    /// Counts recorded rows.
    pub(crate) fn count_predictions(&self, rows: u64) {
        self.predictions.fetch_add(rows, Ordering::Relaxed);
        self.metrics.predictions.increment(rows);
    }

    /// Rows recorded since the store was opened.
    pub(crate) fn predictions(&self) -> u64 {
        self.predictions.load(Ordering::Relaxed)
    }
}

/// What opening found.
pub(crate) struct Opened {
    pub(crate) data_dir: PathBuf,
    pub(crate) lock: FolderLock,
    pub(crate) tables: Tables,
    pub(crate) offline: OfflineTables,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) schemas: Schemas,
    pub(crate) options: StoreOptions,
    pub(crate) metrics: StoreMetrics,
    pub(crate) pending: HashMap<PredictionKey, i64>,
    pub(crate) last_seq: u64,
    pub(crate) counters: Counters,
}

/// Takes a lock; one that a panicking thread left is taken all the same, since every holder leaves the
/// value whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
