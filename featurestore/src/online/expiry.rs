//! Expiry of states on disk: once a day they are looked through, and the writer lets go of what no read can
//! see any more (`window::expiry`).
//!
//! Not a compaction filter: RocksDB's hands a changed value on as a constant, and takes no part in the
//! writer's order. The look costs one read of the states, past the cache, and its findings go to the writer a
//! few hundred at a time, each group when the one before is done. The writer looks again: a state may have
//! changed. States in memory need not follow, since they read the same.

use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam::channel::{RecvTimeoutError, Sender, bounded};

use super::keys::Column;
use super::shared::Shared;
use super::{SealError, StoreOptions};
use crate::commit::{Job, Queue};
use crate::definition::View;
use crate::window::Expiry;

/// From one look to the next.
const LOOK_MS: i64 = 86_400_000;
/// States of one group.
const GROUP_STATES: usize = 512;
/// How often a full queue is asked again before the next look must do.
const TRIES_MAX: u32 = 100;
/// A group waits behind what is queued, and that for RocksDB.
const ANSWER_MAX: Duration = Duration::from_secs(120);

/// States of a view that may be let go of in part, for the writer.
pub(crate) struct Expired {
    /// Index among the store's views.
    pub(crate) view: usize,
    pub(crate) keys: Vec<Box<[u8]>>,
    /// No read is earlier.
    pub(crate) from_ms: i64,
    /// Told how many were let go of; nobody waits for that to be on disk.
    pub(crate) done: Sender<u64>,
}

/// Looks through all states where that is due; how many were let go of.
pub(super) fn look(shared: &Shared, queue: &Queue, now_ms: i64) -> Result<u64, SealError> {
    let looked_ms = shared.looked_ms.load(Ordering::Relaxed);
    let from_ms = shared.tables.lives().past_ms(now_ms);
    let due = now_ms.saturating_sub(looked_ms) >= LOOK_MS && from_ms > i64::MIN;
    if !due {
        return Ok(0);
    }
    // One look at a time; one that failed is due again.
    shared.looked_ms.store(now_ms, Ordering::Relaxed);
    let expired = look_at_all(shared, queue, from_ms)
        .inspect_err(|_| shared.looked_ms.store(looked_ms, Ordering::Relaxed))?;
    shared.metrics.states_expired.increment(expired);
    Ok(expired)
}

fn look_at_all(shared: &Shared, queue: &Queue, from_ms: i64) -> Result<u64, SealError> {
    let mut expired = 0;
    for (index, view) in shared.definitions.views.iter().enumerate() {
        if let Some(expiry) = expiry(view, &shared.options) {
            let look = Look {
                shared,
                queue,
                view: index,
                from_ms,
            };
            expired += look.through(view, expiry)?;
        }
    }
    Ok(expired)
}

/// When states of a view expire under these options.
pub(crate) fn expiry(view: &View, options: &StoreOptions) -> Option<Expiry> {
    Expiry::of(view, options.keep_expired_values)
}

struct Look<'a> {
    shared: &'a Shared,
    queue: &'a Queue,
    view: usize,
    from_ms: i64,
}

impl Look<'_> {
    fn through(&self, view: &View, expiry: Expiry) -> Result<u64, SealError> {
        let prefix = view.id.to_be_bytes();
        let mut expired = 0;
        let mut keys = Vec::new();
        for pair in self.shared.tables.scan_past_cache(Column::State, &prefix) {
            let (key, value) = pair.map_err(|error| SealError::Database(error.to_string()))?;
            if !key.starts_with(&prefix) {
                break;
            }
            if expiry.rest(view, &value, self.from_ms).is_some() {
                keys.push(key);
            }
            if keys.len() == GROUP_STATES {
                expired += self.hand_over(&keys)?;
                keys.clear();
            }
        }
        match keys.is_empty() {
            true => Ok(expired),
            false => Ok(expired + self.hand_over(&keys)?),
        }
    }

    /// Has the writer let go of these, and waits for it.
    fn hand_over(&self, keys: &[Box<[u8]>]) -> Result<u64, SealError> {
        ask(self.queue, |done| {
            Job::Expire(Expired {
                view: self.view,
                keys: keys.to_owned(),
                from_ms: self.from_ms,
                done,
            })
        })
    }
}

/// Hands the writer a job and waits for its answer.
pub(super) fn ask<T>(queue: &Queue, job: impl Fn(Sender<T>) -> Job) -> Result<T, SealError> {
    for _ in 0..TRIES_MAX {
        let (done, answer) = bounded(1);
        match queue.submit(job(done)) {
            Ok(()) => return answer.recv_timeout(ANSWER_MAX).map_err(unanswered),
            Err(full) => std::thread::sleep(Duration::from_millis(full.retry_after_ms)),
        }
    }
    Err(SealError::Database("the queue is full".to_owned()))
}

fn unanswered(error: RecvTimeoutError) -> SealError {
    SealError::Database(match error {
        RecvTimeoutError::Disconnected => "it has stopped writing".to_owned(),
        RecvTimeoutError::Timeout => format!("no answer in {} s", ANSWER_MAX.as_secs()),
    })
}
