//! What the writer does when something fails: it stops for good, or, where the disk is full, until there is
//! space again.
//!
//! After any other failure what the disk holds is unknown, and only reopening tells. After one for want of
//! space it is known: RocksDB flushes what had been acknowledged into new files and leaves the log whose end
//! may be torn, as soon as there is room for that; it looks every five seconds. So the writer forgets what
//! it had in memory, reads the tables again as a start does, and goes on. What was not acknowledged may be
//! there or not, as after a crash.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rocksdb::WriteBatch;

use super::states::States;
use super::{Group, Writer};
use crate::online::keys::Key;
use crate::online::reserve::Reserve;
use crate::online::shared::locked;
use crate::online::{IngestError, ReadError, bulk, open};

/// How often the writer looks whether there is space and whether RocksDB has failed in the background.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(200);

/// What the writer knows of the disk.
pub(super) struct Space {
    reserve: Reserve,
    looked: Instant,
    /// Failures of flushes and compactions that were seen.
    failures: u64,
}

impl Space {
    pub(super) fn new(reserve: Reserve) -> Self {
        Self {
            reserve,
            looked: Instant::now(),
            failures: 0,
        }
    }
}

impl IngestError {
    /// What the callers are told of a failure.
    pub(super) fn of(error: &ReadError) -> Self {
        match error {
            ReadError::NoSpace(_) => Self::Full,
            error => Self::Stopped {
                reason: error.to_string().into(),
            },
        }
    }
}

impl Writer {
    /// Why no batch is taken now.
    pub(super) fn refusal(&mut self) -> Option<IngestError> {
        if let Some(refusal) = self.shared.refusal() {
            return Some(refusal);
        }
        if self.space.reserve.is_low() {
            self.fill("little is left");
            return Some(IngestError::Full);
        }
        None
    }

    /// Stops for good, or until there is space again.
    pub(super) fn fail(&mut self, error: &ReadError) {
        // States that were stored all the same are what reads find.
        if let Ok(Some(stored)) = self.shared.tables.get_number(Key::StatesSeq)
            && stored > self.shared.hot.cut()
        {
            self.shared.hot.move_cut(stored);
        }
        if let ReadError::NoSpace(reason) = error {
            self.space.reserve.release();
            return self.fill(reason);
        }
        self.shared.note_damage(error);
        let reason: Arc<str> = error.to_string().into();
        tracing::error!(%reason, "event store stops writing");
        self.shared.metrics.stopped.set(1.0);
        // The first reason stays; there is only this writer.
        let _ = self.shared.stopped.set(reason);
    }

    fn fill(&self, reason: &str) {
        tracing::error!(%reason, "disk is full: writes are refused until there is space");
        self.shared.full.store(true, Ordering::Release);
        self.shared.metrics.full.set(1.0);
    }

    /// Looks at the disk and at RocksDB, at most every [`LOOK_EVERY`].
    pub(super) fn watch(&mut self) {
        if self.space.looked.elapsed() < LOOK_EVERY || self.shared.stopped.get().is_some() {
            return;
        }
        self.space.looked = Instant::now();
        if self.shared.is_full() {
            return self.try_to_go_on();
        }
        let failures = self.shared.tables.background_failures();
        if failures > self.space.failures {
            self.space.failures = failures;
            tracing::warn!(failures, "a flush or compaction failed");
            // RocksDB refuses writes after a failure that it does not get over by itself.
            if let Err(error) = self.shared.tables.write_durably(WriteBatch::default()) {
                self.fail(&ReadError::database(error));
            }
        }
        let _ = self.refusal();
    }

    fn try_to_go_on(&mut self) {
        if self.space.reserve.is_low() {
            // Whoever fills the disk has not stopped: what is kept back is needed now.
            self.space.reserve.release();
        }
        if !self.space.reserve.is_ample() {
            return;
        }
        match self.reload() {
            Ok(()) => {
                self.space.reserve.hold();
                self.shared.full.store(false, Ordering::Release);
                self.shared.metrics.full.set(0.0);
                tracing::info!("there is space again: writes are taken");
            }
            // RocksDB has not looked yet.
            Err(ReadError::NoSpace(_)) => {}
            Err(error) => self.fail(&error),
        }
    }

    /// Takes what the tables hold for what is true, as a start does.
    fn reload(&mut self) -> Result<(), ReadError> {
        let shared = Arc::clone(&self.shared);
        let tables = &shared.tables;
        let probed = tables.write_durably(WriteBatch::default());
        probed.map_err(ReadError::database)?;
        bulk::redo(tables, &shared.data_dir)?;
        (self.last_seq, self.counters) = open::read_counters(tables)?;
        let views = shared.definitions.views.clone();
        self.states = States::new(views, shared.options.cached_states_max);
        self.states
            .catch_up(tables, shared.events(), self.last_seq)?;
        self.stored_seq = self.last_seq;
        self.seen.forget();
        let pending = open::read_pending(tables)?;
        self.pending_order = pending.iter().map(|(key, at)| (*at, *key)).collect();
        // The list comes first and the index is read after it, as in `Writer::recorded_since`.
        let waiting: Vec<_> = pending.keys().copied().collect();
        *locked(&shared.pending) = pending;
        let recorded = open::recorded(tables, &waiting)?;
        shared.hot.forget(self.last_seq);
        let mut group = Group::default();
        self.resolve(&mut group, &recorded)?;
        self.write(&mut group)?;
        self.answer(group);
        Ok(())
    }
}
