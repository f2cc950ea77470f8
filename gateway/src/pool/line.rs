//! The lines in which pooled requests wait, one for each version, and what a worker takes from them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use engine::Tensor;
use tokio::sync::oneshot;

use super::{PoolFailure, Tensors};
use crate::batcher::is_joinable;
use crate::table::LoadedVersion;

/// Of the time that is left to a batch, a quarter stays free: a run that takes a little longer than was
/// learnt would else be late for all that share it.
const BATCH_SHARE: f64 = 0.75;
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

/// A run that has begun, for all that share it.
#[derive(Debug)]
pub(super) struct Begun {
    pub at: Instant,
    expected: Duration,
    is_blamed: AtomicBool,
}

impl Begun {
    /// A run that did not end in time speaks against its version only if it had so many times what
    /// runs of its rows are expected to take.
    const FAIR_CHANCE: u32 = 4;

    pub(super) fn now(expected: Duration) -> Arc<Self> {
        Arc::new(Self {
            at: Instant::now(),
            expected,
            is_blamed: AtomicBool::new(false),
        })
    }

    /// Whether it has had far more time than it should have needed. Only the first who asks is told:
    /// it is one failure, however many share it.
    pub(super) fn is_overdue(&self) -> bool {
        self.at.elapsed() > Self::FAIR_CHANCE * self.expected
            && !self.is_blamed.swap(true, Ordering::Relaxed)
    }
}

/// Where in its line a request stands: each level below the first counts as having come a while
/// later. So a higher one goes first, and a lower one is overtaken only by what comes in that while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Priority(u32);

impl Priority {
    /// A level of the protocol: 0 the default, 1 the highest, then descending.
    pub(crate) fn of_level(level: u32) -> Self {
        match level {
            0 => Self(Self::DEFAULT),
            level => Self(level.min(Self::LOWEST)),
        }
    }

    const DEFAULT: u32 = 2;
    /// Those below it are as this one.
    const LOWEST: u32 = 8;
    /// How much later the next level counts as having come.
    const WHILE: Duration = Duration::from_millis(100);

    /// Whether it goes before those that do not ask for any.
    pub(super) fn is_raised(self) -> bool {
        self.0 < Self::DEFAULT
    }

    fn rank(self, pushed: Instant) -> Instant {
        pushed + Self::WHILE * self.0
    }
}

/// One request that waits.
pub(super) struct Job {
    pub tensors: Tensors,
    pub rows: usize,
    pub pushed: Instant,
    pub until: Instant,
    pub priority: Priority,
    /// Its run, once that has begun, to be read by whoever waits for it.
    pub run: Arc<OnceLock<Arc<Begun>>>,
    pub reply: oneshot::Sender<Result<Vec<Tensor>, PoolFailure>>,
}

impl Job {
    fn rank(&self) -> Instant {
        self.priority.rank(self.pushed)
    }

    pub(super) fn begin(&self, run: &Arc<Begun>) {
        self.run.get_or_init(|| Arc::clone(run));
    }

    /// [`Begun::is_overdue`] of its run.
    pub(super) fn is_overdue(&self) -> bool {
        self.run.get().is_some_and(|run| run.is_overdue())
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
    jobs: Waiting,
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
                if line.jobs.0.is_empty() {
                    // Idleness is not saved up.
                    line.turn = line.turn.max(self.turn);
                }
                line.jobs.push(job);
            }
            None => self.lines.push(Line {
                version: Arc::clone(version),
                jobs: Waiting([job].into()),
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
            .retain(|line| !line.jobs.0.is_empty() || line.turn > turn);
        let waiting = self.lines.iter_mut().filter(|line| !line.jobs.0.is_empty());
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
            .map_or(0, |line| line.jobs.0.len())
    }

    pub(super) fn waiting(&self) -> usize {
        self.lines.iter().map(|line| line.jobs.0.len()).sum()
    }

    /// Nothing is taken in any more; what waits is still run.
    pub(super) fn stop(&mut self) {
        self.stopped = true;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stopped
    }
}

/// The requests of one line, by rank.
struct Waiting(VecDeque<Job>);

impl Waiting {
    /// Behind all that rank before it or alike; the last place, unless priorities differ.
    fn push(&mut self, job: Job) {
        let rank = job.rank();
        let before = self.0.iter().rposition(|before| before.rank() <= rank);
        self.0.insert(before.map_or(0, |k| k + 1), job);
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
        while let Some(job) = self.jobs.0.get(k) {
            match reason(job) {
                None => k += 1,
                Some(why) => {
                    let job = self.jobs.0.remove(k).expect("its place was just looked at");
                    left.push((Arc::clone(&self.version), job, why));
                }
            }
        }
    }

    /// The first request and those that follow it, as long as they fit one run that keeps the
    /// deadline of each.
    fn batch(&mut self, now: Instant) -> Vec<Job> {
        self.taken = Some(now);
        let (most, cost) = (self.version.batch_rows(), self.version.cost.cost());
        let mut jobs: Vec<Job> = self.jobs.0.pop_front().into_iter().collect();
        let Some(first) = jobs.first() else {
            return jobs;
        };
        let (mut rows, mut until) = (first.rows, first.until);
        while let Some(next) = self.jobs.0.front() {
            rows += next.rows;
            until = until.min(next.until);
            let fits = rows <= most
                && cost.of(1, rows) <= until.saturating_duration_since(now).mul_f64(BATCH_SHARE)
                && is_joinable(jobs[0].tensors.get(), next.tensors.get());
            if !fits {
                break;
            }
            jobs.extend(self.jobs.0.pop_front());
        }
        jobs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_late_run_speaks_once_for_all_that_share_it_and_not_before_its_fair_chance() {
        let (hopeless, fair) = (Begun::now(Duration::ZERO), Begun::now(Duration::MAX / 8));
        while hopeless.at.elapsed().is_zero() {
            std::hint::spin_loop();
        }
        let told: Vec<bool> = (0..3).map(|_| hopeless.is_overdue()).collect();
        assert_eq!(told, [true, false, false]);
        assert!(!fair.is_overdue());
    }

    fn job(pushed: Instant, level: u32) -> Job {
        Job {
            tensors: Tensors::Own(Arc::default()),
            rows: 1,
            pushed,
            until: pushed + Duration::from_secs(60),
            priority: Priority::of_level(level),
            run: Arc::default(),
            reply: oneshot::channel().0,
        }
    }

    /// The order in which requests leave that came at these milliseconds with these levels.
    fn order(came: &[(u64, u32)]) -> Vec<(u64, u32)> {
        let start = Instant::now();
        let mut waiting = Waiting(VecDeque::new());
        for &(ms, level) in came {
            waiting.push(job(start + Duration::from_millis(ms), level));
        }
        let left = waiting.0.iter().map(|job| {
            let ms = (job.pushed - start).as_millis() as u64;
            (ms, job.priority.0)
        });
        left.collect()
    }

    #[test]
    fn a_higher_priority_goes_first_and_a_lower_one_is_not_starved() {
        assert_eq!(
            order(&[(0, 0), (10, 0), (20, 1)]),
            [(20, 1), (0, 2), (10, 2)]
        );
        assert_eq!(order(&[(0, 3), (10, 0)]), [(10, 2), (0, 3)]);
        assert_eq!(order(&[(0, 3), (101, 0)]), [(0, 3), (101, 2)]);
        assert_eq!(order(&[(0, u32::MAX), (601, 0)]), [(0, 8), (601, 2)]);
    }

    proptest! {
        #[test]
        fn it_is_first_in_first_out_within_a_level_and_overtaking_is_bounded(
            steps in prop::collection::vec((0_u64..200, 0_u32..12), 1..60),
        ) {
            let mut now = 0;
            let came: Vec<(u64, u32)> = steps
                .into_iter()
                .map(|(step, level)| {
                    now += step;
                    (now, level)
                })
                .collect();
            let left = order(&came);
            for (k, &(ms, level)) in left.iter().enumerate() {
                for &(later_ms, later_level) in &left[k + 1..] {
                    // Whoever is overtaken is of a lower level, and came less than its while before.
                    prop_assert!(later_ms >= ms || later_level > level);
                    prop_assert!(later_ms + 100 * u64::from(later_level) >= ms + 100 * u64::from(level));
                }
            }
        }
    }
}
