//! Sealing, and the upkeep of what is sealed and stored: what a gateway does every hour beside serving.

use std::time::Instant;

use super::lives::Lives;
use super::shared::locked;
use super::{FeatureStore, RecordError, SealError, expiry};
use crate::commit::Job;
use crate::log::seal::{prune, seal_events};
use crate::offline::Upkept;
use crate::offline::upkeep::keep_up;
use crate::predictions::Sealed;
use crate::predictions::seal::{closed_files, seal_file, seal_labels};

impl FeatureStore {
    /// Brings the spool, and the labels and events since the last seal, into Parquet. Safe to repeat after a
    /// crash at any point: no row is lost or doubled.
    pub fn seal(&self) -> Result<Sealed, SealError> {
        let sealed = self.seal_all();
        let place = self.inner.shared.offline.events.place();
        place.note_seal(sealed.as_ref().err());
        sealed
    }

    /// Upkeep stops where it is from now on, and no bucket is waited for past that moment: what is not sealed
    /// by then waits for the next start.
    pub fn end_by(&self, moment: Instant) {
        self.inner.shared.offline.events.place().end_by(moment);
    }

    fn seal_all(&self) -> Result<Sealed, SealError> {
        let shared = &self.inner.shared;
        let _one = locked(&shared.sealing);
        let files = {
            let mut spool = locked(&shared.spool);
            spool.close().map_err(|error| match error {
                RecordError::Spool { path, problem } => SealError::File { path, problem },
                other => SealError::Database(other.to_string()),
            })?;
            closed_files(&shared.data_dir.join("spool"))?
        };
        // Events first: whoever reads sealed files meanwhile finds all that a sealed prediction saw.
        let (last_seq, _) = *locked(&shared.counters);
        let log = (&shared.tables, &shared.schemas);
        let mut sealed = seal_events(log, &shared.offline.events, last_seq)?;
        for file in files {
            sealed += seal_file(&shared.offline.predictions, &file, &shared.metrics)?;
        }
        sealed += seal_labels(&shared.tables, &shared.offline.labels)?;
        Ok(sealed)
    }

    /// Merges small sealed files, lets go of what is past its retention, drops from the event log what is
    /// sealed and old enough, and lets go of dedupe keys and parts of states that are past their life. Safe
    /// to repeat after a crash at any point. Takes as long as reading and writing the files that it merges:
    /// not for a thread that serves.
    pub fn upkeep(&self, now_ms: i64) -> Result<Upkept, SealError> {
        let shared = &self.inner.shared;
        let mut done = Upkept::default();
        // The log is pruned, and states are looked through, as far as they are stored.
        if let Err(error) = expiry::ask(&self.inner.queue, Job::Store) {
            tracing::warn!(%error, "upkeep goes on with states as they were stored last");
        }
        // What frees space first: the rest needs some.
        self.keep_sealed(now_ms, &mut done)?;
        let past_ms = shared.tables.lives().past_ms(now_ms);
        let forgotten = Lives::forget(&shared.tables, past_ms);
        forgotten.map_err(|error| SealError::Database(error.to_string()))?;
        done.expired_states = expiry::look(shared, &self.inner.queue, now_ms)?;
        Ok(done)
    }

    fn keep_sealed(&self, now_ms: i64, done: &mut Upkept) -> Result<(), SealError> {
        let shared = &self.inner.shared;
        let _one = locked(&shared.sealing);
        let options = &shared.options.retention;
        for table in shared.offline.all() {
            keep_up(table, options, now_ms, done)?;
        }
        if let Some(keep_ms) = options.event_log_ms {
            let before_ms = now_ms.saturating_sub(keep_ms);
            done.pruned_events = prune(&shared.tables, &shared.offline.events, before_ms)?;
        }
        Ok(())
    }
}
