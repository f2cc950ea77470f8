//! The lines in which pooled requests wait, one for each version, and what a worker takes from them.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use engine::Tensor;
use tokio::sync::oneshot;

use super::{PoolFailure, Tensors};
use crate::batcher::is_joinable;
use crate::table::LoadedVersion;

/// How long an estimate that says that a deadline cannot be kept is believed without a run that
/// confirms it: a cost that was learnt wrong must not keep a version from ever running again.
const DOUBT: Duration = Duration::from_secs(1);

/// Why a request left its line unrun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    /// Its deadline passed, or would have before the end of its run.
    Expired,
    /// Its caller has gone.
    Abandoned,
}

impl Left {
    pub(crate) const ALL: [Self; 2] = [Self::Expired, Self::Abandoned];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Abandoned => "abandoned",
        }
    }
}

/// One request that waits.
pub(super) struct Job {
    pub tensors: Tensors,
    pub rows: usize,
    pub pushed: Instant,
    pub until: Instant,
    began: Arc<OnceLock<Instant>>,
    reply: oneshot::Sender<Result<Vec<Tensor>, PoolFailure>>,
}

impl Job {
    pub(super) fn new(
        tensors: Tensors,
        rows: usize,
        until: Instant,
        reply: oneshot::Sender<Result<Vec<Tensor>, PoolFailure>>,
    ) -> Self {
        Self {
            tensors,
            rows,
            pushed: Instant::now(),
            until,
            began: Arc::default(),
            reply,
        }
    }

    /// When its run has begun, to be read by whoever waits for it.
    pub(super) fn began(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.began)
    }

    pub(super) fn begin(&self, now: Instant) {
        self.began.get_or_init(|| now);
    }

    /// Nobody may be waiting any more; then the answer is dropped.
    pub(super) fn answer(self, answer: Result<Vec<Tensor>, PoolFailure>) {
        drop(self.reply.send(answer));
    }

    /// Why it need not run.
    pub(super) fn left(&self, now: Instant) -> Option<Left> {
        if self.reply.is_closed() {
            return Some(Left::Abandoned);
        }
        (now >= self.until).then_some(Left::Expired)
    }
}

struct Line {
    version: Arc<LoadedVersion>,
    jobs: VecDeque<Job>,
    /// When its turn is, in nanoseconds of the pool's work.
    turn: u64,
    /// When something of it was last taken.
    taken: Option<Instant>,
}

/// Every line that is not empty, and some that were lately.
#[derive(Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
    /// The turn of what was taken last.
    turn: u64,
    left: Vec<(Arc<LoadedVersion>, Job, Left)>,
    stopped: bool,
}

impl Lines {
    pub(super) fn push(&mut self, version: &Arc<LoadedVersion>, job: Job) {
        let same = |line: &&mut Line| Arc::ptr_eq(&line.version, version);
        match self.lines.iter_mut().find(same) {
            Some(line) => {
                if line.jobs.is_empty() {
                    // Idleness is not saved up.
                    line.turn = line.turn.max(self.turn);
                }
                line.jobs.push_back(job);
            }
            None => self.lines.push(Line {
                version: Arc::clone(version),
                jobs: [job].into(),
                turn: self.turn,
                taken: None,
            }),
        }
    }

    /// The next batch. What leaves its line unrun is to be had from [`Lines::left`].
    pub(super) fn take(&mut self, now: Instant) -> Option<(Arc<LoadedVersion>, Vec<Job>)> {
        for line in &mut self.lines {
            line.sweep(now, &mut self.left);
        }
        // An idle line is kept while its turn is still ahead of the pool's.
        let turn = self.turn;
        self.lines
            .retain(|line| !line.jobs.is_empty() || line.turn > turn);
        let waiting = self.lines.iter_mut().filter(|line| !line.jobs.is_empty());
        let Some(line) = waiting.min_by_key(|line| line.turn) else {
            // Nobody waits: nobody is owed a turn, and no version is kept from being dropped.
            self.lines.clear();
            return None;
        };
        self.turn = line.turn;
        let jobs = line.batch(now);
        let rows = jobs.iter().map(|job| job.rows).sum();
        let cost = line.version.cost.cost().of(1, rows);
        line.turn += u64::try_from(cost.as_nanos())
            .unwrap_or(u64::MAX / 2)
            .max(1);
        Some((Arc::clone(&line.version), jobs))
    }

    /// The requests that left their lines unrun since this was last asked.
    pub(super) fn left(&mut self) -> Vec<(Arc<LoadedVersion>, Job, Left)> {
        std::mem::take(&mut self.left)
    }

    pub(super) fn waiting_for(&self, version: &Arc<LoadedVersion>) -> usize {
        let same = |line: &&Line| Arc::ptr_eq(&line.version, version);
        self.lines
            .iter()
            .find(same)
            .map_or(0, |line| line.jobs.len())
    }

    pub(super) fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.jobs.len()).sum()
    }

    /// Nothing is taken in any more; what waits is still run.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }
}

impl Line {
    /// Lets go of what need not or cannot be answered in time.
    fn sweep(&mut self, now: Instant, left: &mut Vec<(Arc<LoadedVersion>, Job, Left)>) {
        let is_believed = self.taken.is_some_and(|taken| now - taken < DOUBT);
        let cost = self.version.cost.cost();
        let reason = |job: &Job| {
            let too_late = || is_believed && now + cost.of(1, job.rows) > job.until;
            let expired = || too_late().then_some(Left::Expired);
            job.left(now).or_else(expired)
        };
        let mut k = 0;
        while let Some(job) = self.jobs.get(k) {
            match reason(job) {
                None => k += 1,
                Some(why) => {
                    let job = self.jobs.remove(k).expect("its place was just looked at");
                    left.push((Arc::clone(&self.version), job, why));
                }
            }
        }
    }

    /// The oldest request and those that follow it, as long as they fit one run that keeps the
    /// deadline of each.
    fn batch(&mut self, now: Instant) -> Vec<Job> {
        self.taken = Some(now);
        let (most, cost) = (self.version.batch_rows(), self.version.cost.cost());
        let mut jobs: Vec<Job> = self.jobs.pop_front().into_iter().collect();
        let Some(first) = jobs.first() else {
            return jobs;
        };
        let (mut rows, mut until) = (first.rows, first.until);
        while let Some(next) = self.jobs.front() {
            rows += next.rows;
            until = until.min(next.until);
            let fits = rows <= most
                && now + cost.of(1, rows) <= until
                && is_joinable(jobs[0].tensors.get(), next.tensors.get());
            if !fits {
                break;
            }
            jobs.extend(self.jobs.pop_front());
        }
        jobs
    }
}
