//! The store that one process opens: online state, event and label logs, prediction log.
//!
//! [`FeatureStore`] is the only door to RocksDB. Writes go through one thread (`commit`) that groups
//! whatever is queued into one fsynced batch; reads find their states in memory (`hot`) or by one batched
//! get over one column family. Every call may block on disk: callers on an event loop use the callbacks
//! or their own threads.

mod backup;
pub(crate) mod bulk;
mod error;
pub(crate) mod expiry;
pub(crate) mod hot;
pub(crate) mod keys;
pub(crate) mod lives;
mod lock;
mod manifest;
pub(crate) mod mark;
mod mend;
pub(crate) mod open;
mod options;
pub(crate) mod quarantine;
mod read;
pub(crate) mod reserve;
mod seal;
pub(crate) mod shared;
pub(crate) mod tables;

use std::path::Path;
use std::sync::{Arc, Mutex};

use serde::Serialize;

pub use self::backup::{BackedUp, BackupError};
pub use self::error::{IngestError, OpenError, Overloaded, ReadError, RecordError, SealError};
pub use self::options::{StoreOptions, TableOptions};
use self::read::Reach;
use self::shared::{Shared, locked};
use crate::applied::{self, Application, Applied, ApplyError, VersionName};
use crate::backfill::{
    BackfillRequest, Backfilled, HistoryError, ImportRequest, Imported, Progress,
};
use crate::commit::bulk::{BulkDone, Prepared};
use crate::commit::{Arrival, Job, Queue};
use crate::definition::Definitions;
use crate::event::Event;
use crate::labels::{Label, LabelsIngested, Outcome, OutcomeCursor};
use crate::offline::{Dataset, OfflineError, RowsFrom, TrainingQuery, TrainingSet};
use crate::predictions::{PredictionKey, PredictionRecord, record};
use crate::recomputed::RecomputeError;
use crate::service::{FeatureRow, Service};
use crate::value::Value;
use crate::verify::{VerifyError, VerifyReport};
use crate::view_rows::{ViewKeys, ViewRows};

/// What became of one submitted batch of events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ingested {
    /// Events that were new.
    pub accepted: u64,
    /// Events that had been taken before, or occur twice in the batch.
    pub duplicates: u64,
    /// New events that came too late for their source or at least one window, logged all the same; and
    /// events that were not taken, since their dedupe keys may be gone (docs/durability.md).
    pub late: u64,
    /// Last sequence number after the group that the batch was part of.
    pub last_seq: u64,
}

/// Counters of a store, since its folder was made unless said otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct StoreStats {
    /// Events taken.
    pub events: u64,
    /// Events that were duplicates.
    pub duplicate_events: u64,
    /// Events that came too late for their source or at least one window.
    pub late_events: u64,
    /// Sequence number of the last event.
    pub last_seq: u64,
    /// Labels taken, replacements included.
    pub labels: u64,
    /// Labels without effect.
    pub duplicate_labels: u64,
    /// Labels that replaced an older one.
    pub replaced_labels: u64,
    /// Labels that wait for their prediction now.
    pub pending_labels: u64,
    /// Labels that expired before their prediction came.
    pub expired_labels: u64,
    /// Prediction rows recorded since the store was opened.
    pub predictions: u64,
    /// Batches that wait for the writer now.
    pub queued_batches: u64,
    /// Bytes that wait for the writer now (estimated).
    pub queued_bytes: u64,
    /// What was found damaged in the database, if something was; a restart mends it.
    pub damaged: Option<String>,
    /// Whether no space is left: nothing is written until there is some.
    pub full: bool,
    /// Why the writer has stopped, if it has.
    pub stopped: Option<String>,
    /// What a seal, or a read or write of sealed files, failed of since the last seal that did not: what is to
    /// be sealed waits.
    pub offline: Option<String>,
}

/// Called on the writer thread when a batch is on disk or has failed (on the caller's, once the writer
/// has stopped); must not block.
pub type Done<T> = Box<dyn FnOnce(Result<T, IngestError>) + Send>;

/// The open store. Cheap to clone; the last clone to go finishes what is queued and closes it.
#[derive(Clone)]
pub struct FeatureStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// Before `shared`: the writer must end before the database closes.
    queue: Queue,
    shared: Arc<Shared>,
    /// Recorded predictions that the full queue has not taken yet; a lock, since any handle may record.
    unsent: Mutex<Vec<PredictionKey>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Err(error) = locked(&self.shared.spool).close() {
            tracing::warn!(%error, "prediction spool not closed");
        }
    }
}

impl FeatureStore {
    /// Opens (or makes) the data folder for this process alone, brings unsealed spool files of an
    /// earlier process into the offline store and rebuilds the state of views that are new or changed.
    pub fn open(
        data_dir: &Path,
        definitions: Arc<Definitions>,
        options: &StoreOptions,
    ) -> Result<Self, OpenError> {
        let (opened, start, resolved) = open::open(data_dir, definitions, options)?;
        let shared = Arc::new(Shared::new(opened));
        let queue = Queue::start(Arc::clone(&shared), start).map_err(|source| OpenError::Io {
            path: data_dir.to_owned(),
            source,
        })?;
        let inner = Inner {
            queue,
            shared,
            unsent: Mutex::new(resolved),
        };
        inner.send_resolved(Vec::new());
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// The definitions that the store was opened with.
    pub fn definitions(&self) -> &Arc<Definitions> {
        &self.inner.shared.definitions
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.inner.shared
    }

    /// The versions of views and services that the folder knows, those that are no longer defined
    /// included.
    pub fn applied(&self) -> Result<Vec<Applied>, ReadError> {
        applied::known(&self.inner.shared.tables)
    }

    /// Checks whether `definitions` could take the place of those that the store was opened with, and
    /// remembers what is new in them. They take effect when the folder is opened with them.
    pub fn apply(
        &self,
        definitions: &Definitions,
    ) -> Result<Vec<(VersionName, Application)>, ApplyError> {
        applied::apply(&self.inner.shared.tables, definitions)
    }

    /// The data folder.
    pub fn data_dir(&self) -> &Path {
        &self.inner.shared.data_dir
    }

    /// Queues a batch of events; all of them are written or none. `done` is called on the writer
    /// thread after fsync; where the queue is full it is dropped uncalled.
    pub fn submit_events(
        &self,
        events: Vec<Event>,
        arrived_ms: i64,
        done: Done<Ingested>,
    ) -> Result<(), Overloaded> {
        let arrival = Arrival::At(arrived_ms);
        self.inner.queue.submit(Job::Events {
            events,
            arrival,
            done,
        })
    }

    /// Queues events that each arrived at their own time.
    pub(crate) fn submit_history(
        &self,
        events: Vec<Event>,
        done: Done<Ingested>,
    ) -> Result<(), Overloaded> {
        let arrival = Arrival::EventTime;
        self.inner.queue.submit(Job::Events {
            events,
            arrival,
            done,
        })
    }

    /// Queues a large group of the past, sorted; as [`FeatureStore::submit_events`].
    pub(crate) fn submit_bulk(&self, bulk: Prepared, done: BulkDone) -> Result<(), Overloaded> {
        self.inner.queue.submit(Job::Bulk { bulk, done })
    }

    /// Queues a batch of labels; all of them are written or none. `done` as in
    /// [`FeatureStore::submit_events`].
    pub fn submit_labels(
        &self,
        labels: Vec<Label>,
        arrived_ms: i64,
        done: Done<LabelsIngested>,
    ) -> Result<(), Overloaded> {
        self.inner.queue.submit(Job::Labels {
            labels,
            arrived_ms,
            done,
        })
    }

    /// Writes a batch of events and waits until it is on disk. For tools and tests: a full queue is an
    /// error, not a wait.
    pub fn ingest_events_blocking(
        &self,
        events: Vec<Event>,
        arrived_ms: i64,
    ) -> Result<Ingested, IngestError> {
        wait(|done| self.submit_events(events, arrived_ms, done))
    }

    /// Writes a batch of labels and waits until it is on disk, as
    /// [`FeatureStore::ingest_events_blocking`].
    pub fn ingest_labels_blocking(
        &self,
        labels: Vec<Label>,
        arrived_ms: i64,
    ) -> Result<LabelsIngested, IngestError> {
        wait(|done| self.submit_labels(labels, arrived_ms, done))
    }

    /// The feature rows of some requests (values in the order of `service.request`) at one time, from
    /// one consistent cut of the state: `as_of_seq` of the rows says which events are in it.
    pub fn read_rows(
        &self,
        service: &Service,
        requests: &[Vec<Value>],
        at_ms: i64,
    ) -> Result<Vec<FeatureRow>, ReadError> {
        let disk = (&*self.inner.shared, Reach::Disk);
        read::rows(disk, service, requests, at_ms).map(within_reach)
    }

    /// [`FeatureStore::read_rows`] without waiting for the disk: `None` where a state is not in memory.
    pub fn rows_in_memory(
        &self,
        service: &Service,
        requests: &[Vec<Value>],
        at_ms: i64,
    ) -> Result<Option<Vec<FeatureRow>>, ReadError> {
        let memory = (&*self.inner.shared, Reach::Memory);
        read::rows(memory, service, requests, at_ms)
    }

    /// The states of so many rows of some views, from one consistent cut: features that no service
    /// lists together. Each column of `asked` has that many values.
    pub fn read_views(
        &self,
        asked: &[ViewKeys<'_>],
        rows: usize,
    ) -> Result<Vec<ViewRows>, ReadError> {
        let disk = (&*self.inner.shared, Reach::Disk);
        read::views(disk, asked, rows).map(within_reach)
    }

    /// [`FeatureStore::read_views`] without waiting for the disk: `None` where a state is not in memory.
    pub fn views_in_memory(
        &self,
        asked: &[ViewKeys<'_>],
        rows: usize,
    ) -> Result<Option<Vec<ViewRows>>, ReadError> {
        read::views((&self.inner.shared, Reach::Memory), asked, rows)
    }

    /// Adds to the prediction log, for one recorder thread. Not fsynced; see [`crate::predictions`].
    ///
    /// A row that was answered is recorded once in that role, before the shadows that scored it too.
    pub fn record(&self, records: &[PredictionRecord]) -> Result<(), RecordError> {
        let awaited = record::record(&self.inner.shared, records)?;
        self.inner.send_resolved(awaited);
        Ok(())
    }

    /// Hands the rows that [`FeatureStore::record`] still holds in memory to the kernel.
    pub fn flush(&self) -> Result<(), RecordError> {
        self.inner.send_resolved(Vec::new());
        locked(&self.inner.shared.spool).flush()
    }

    /// Outcomes after `cursor`, in order of arrival, from steps of `max` entries of the label log, and
    /// the cursor to go on from. An empty answer means that the end was reached.
    pub fn outcomes(
        &self,
        cursor: OutcomeCursor,
        max: usize,
    ) -> Result<(Vec<Outcome>, OutcomeCursor), ReadError> {
        crate::labels::outcomes(&self.inner.shared.tables, cursor, max)
    }

    /// Recorded rows of a model with `from_ms <= at_ms < to_ms` in order of time, shadows and backfill
    /// included, from spool and offline store. All of them are in memory at once.
    pub fn served_rows(
        &self,
        model: &str,
        from_ms: i64,
        to_ms: i64,
    ) -> Result<Vec<PredictionRecord>, OfflineError> {
        let mut found = Vec::new();
        let mut wanted =
            |row: &crate::predictions::columns::Row<'_>| (from_ms..to_ms).contains(&row.at_ms);
        let range = crate::predictions::scan::Range {
            model,
            from_ms,
            to_ms,
        };
        crate::predictions::scan::scan(&self.inner.shared, range, &mut wanted, &mut |record| {
            found.push(record);
        })?;
        found.sort_by_key(|record| (record.at_ms, record.prediction));
        Ok(found)
    }

    /// Brings the metrics of what RocksDB holds and does up to date; takes about a tenth of a millisecond.
    pub fn sample_metrics(&self) {
        let shared = &self.inner.shared;
        shared.metrics.database.sample(&shared.tables);
    }

    /// Counters.
    pub fn stats(&self) -> StoreStats {
        let shared = &self.inner.shared;
        let (last_seq, counters) = *locked(&shared.counters);
        let (queued_batches, queued_bytes) = self.inner.queue.depth();
        StoreStats {
            events: counters.events,
            duplicate_events: counters.duplicate_events,
            late_events: counters.late_events,
            last_seq,
            labels: counters.labels,
            duplicate_labels: counters.duplicate_labels,
            replaced_labels: counters.replaced_labels,
            pending_labels: locked(&shared.pending).len() as u64,
            expired_labels: counters.expired_labels,
            predictions: shared.predictions(),
            queued_batches: queued_batches as u64,
            queued_bytes: queued_bytes as u64,
            damaged: shared.damaged.get().map(|problem| problem.to_string()),
            full: shared.is_full(),
            stopped: shared.stopped.get().map(|reason| reason.to_string()),
            offline: shared.offline.problem().map(|problem| problem.to_string()),
        }
    }

    /// Imports events from files; `on_progress` is called whenever rows are on disk.
    pub fn import_events(
        &self,
        request: &ImportRequest,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Imported, HistoryError> {
        crate::backfill::import::import(self, request, on_progress)
    }

    /// Recomputes historical rows point in time and writes them, with their labels, into the offline
    /// store. Running it again on the same file replaces its rows. `on_progress` is called now and then.
    pub fn backfill(
        &self,
        request: &BackfillRequest,
        on_progress: &mut dyn FnMut(Progress),
    ) -> Result<Backfilled, HistoryError> {
        crate::backfill::recompute::backfill(&self.inner.shared, request, on_progress)
    }

    /// Training rows with features as served or computed anew, written into `folder` under a name made of
    /// their content. What the store holds of rows and labels is sealed first.
    pub fn dataset(
        &self,
        query: &TrainingQuery,
        features: RowsFrom,
        folder: &Path,
    ) -> Result<Dataset, RecomputeError> {
        self.seal()?;
        let shared = &self.inner.shared;
        let (data_dir, definitions) = (&shared.data_dir, &shared.definitions);
        crate::recomputed::sealed_dataset(data_dir, definitions, (query, features), folder)
    }

    /// Training rows of the requests that were served or backfilled, with the features of `query.service`
    /// computed anew from the events: see [`crate::recomputed`]. What the store holds of them is sealed
    /// first.
    pub fn recomputed_rows(&self, query: &TrainingQuery) -> Result<TrainingSet, RecomputeError> {
        self.seal()?;
        let shared = &self.inner.shared;
        crate::recomputed::recomputed_rows(&shared.data_dir, &shared.definitions, query)
    }

    /// Recomputes a seeded sample of the rows that were answered for `model` with `service` (`name`, in
    /// every version, or `name@version`).
    pub fn verify(
        &self,
        model: &str,
        service: &str,
        sample: usize,
        seed: u64,
    ) -> Result<VerifyReport, VerifyError> {
        let sample = crate::verify::Sample { rows: sample, seed };
        let mut watch = |_| std::ops::ControlFlow::Continue(());
        crate::verify::verify(self, (model, service), sample, &mut watch)
    }
}

impl Inner {
    /// Sends predictions that labels wait for to the writer; what a full queue refuses, or a full disk, goes
    /// with the next call.
    fn send_resolved(&self, awaited: Vec<PredictionKey>) {
        let mut unsent = locked(&self.unsent);
        unsent.extend(awaited);
        // A disk that is full from here on is no loss: before the writer goes on it looks for such predictions.
        if unsent.is_empty() || self.shared.is_full() {
            return;
        }
        if self.queue.submit(Job::Resolve(unsent.clone())).is_ok() {
            unsent.clear();
        }
    }
}

fn within_reach<T>(found: Option<T>) -> T {
    found.expect("a read that may go to the disk ends there")
}

/// Runs a submission and waits for its answer.
fn wait<T: Send + 'static>(
    submit: impl FnOnce(Done<T>) -> Result<(), Overloaded>,
) -> Result<T, IngestError> {
    let (sender, receiver) = crossbeam::channel::bounded(1);
    submit(Box::new(move |answer| {
        // The receiver waits below.
        let _ = sender.send(answer);
    }))?;
    receiver.recv().unwrap_or_else(|_| {
        Err(IngestError::Stopped {
            reason: "the writer thread has ended".into(),
        })
    })
}
