//! The pool: a bounded number of threads for runs that are too dear for a serving thread.
//!
//! Each version has a bounded line; a full one refuses. A free worker takes at once what waits in
//! the line whose version has had the least of the pool (start-time fair queueing, Goyal 1996), as
//! many requests as make a batch that keeps the tightest deadline, and never waits for more. A
//! request that has expired, or whose caller has gone, leaves its line unrun. Within a line a higher
//! priority goes first, and nobody is overtaken for ever.
//!
//! A line is also refused ahead of time: where what waits would take longer than the deadline, or
//! has stood above a target for a while (CoDel's two numbers, Nichols and Jacobson 2012).

mod line;

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::{RunError, Tensor};
use tokio::sync::oneshot;

use crate::batcher;
use crate::features::Inputs;
use crate::metrics::Metrics;
use crate::table::{LoadedVersion, RunFailure, Seat};

pub(crate) use line::{Left, Priority};

use line::{Begun, Job, Lines};

/// Waits shorter than this are not a standing queue.
const TARGET: Duration = Duration::from_millis(5);
/// How long a queue may stand above its target before it is refused.
const INTERVAL: Duration = Duration::from_millis(100);

/// The tensors of a pooled run: the request's own, or made for this version.
#[derive(Clone)]
pub(crate) enum Tensors {
    Shared(Arc<Inputs>),
    Own(Arc<Vec<Tensor>>),
}

impl Tensors {
    pub(crate) fn get(&self) -> &[Tensor] {
        match self {
            Self::Shared(inputs) => &inputs.tensors,
            Self::Own(tensors) => tensors,
        }
    }
}

/// What waits for a version, as everybody may read it.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    /// Requests and their rows that wait or run.
    jobs: AtomicUsize,
    rows: AtomicUsize,
    /// Nanoseconds since the pool's start when the wait was last below the target.
    low_ns: AtomicU64,
    /// When a queue that stood was last refused; 0 for never.
    refused_ns: AtomicU64,
}

impl Backlog {
    /// Whether a queue in which one waits so long, at `now_ns`, has stood above `target` for an
    /// interval. It is then kept at the target until nobody had to be refused for an interval: else
    /// each time that it is down, the next interval would let it fill up to the deadline again.
    fn is_standing(&self, wait: Duration, target: Duration, now_ns: u64) -> bool {
        if wait <= target {
            self.low_ns.store(now_ns, Ordering::Relaxed);
            return false;
        }
        let within = |ns: u64| now_ns.saturating_sub(ns) <= INTERVAL.as_nanos() as u64;
        let refused_ns = self.refused_ns.load(Ordering::Relaxed);
        let stands =
            !within(self.low_ns.load(Ordering::Relaxed)) || (refused_ns > 0 && within(refused_ns));
        if stands {
            self.refused_ns.store(now_ns.max(1), Ordering::Relaxed);
        }
        stands
    }
}

/// Why the pool gave no outputs.
#[derive(Debug)]
pub(crate) enum PoolFailure {
    Run(RunFailure),
    /// The line is full, or what waits would take longer than the request may.
    Overloaded {
        wait: Duration,
    },
    /// The deadline passed, perhaps in a run that should have ended long before.
    Late {
        is_overdue: bool,
    },
    /// The gateway is stopping.
    Stopped,
}

/// What a run in the pool gave.
pub(crate) struct Pooled {
    pub outputs: Vec<Tensor>,
    /// How long it waited for a worker.
    pub waited: Duration,
}

/// What the pool is made from.
pub(crate) struct PoolOptions {
    /// One worker for each.
    pub seats: Vec<Seat>,
    /// Requests that may wait for one version.
    pub queue_max: usize,
    pub metrics: Arc<Metrics>,
}

/// The way to the workers.
#[derive(Clone)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

struct Shared {
    started: Instant,
    workers: usize,
    queue_max: usize,
    /// Versions with something that waits or runs.
    active: AtomicUsize,
    /// Held for a push or a take, never over a run. Owned by nobody, since a worker must be able to
    /// take without asking another thread for it.
    lines: Mutex<Lines>,
    pushed: Condvar,
    metrics: Arc<Metrics>,
}

impl Pool {
    /// Starts the workers.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub(crate) fn start(options: PoolOptions) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let shared = Arc::new(Shared {
            started: Instant::now(),
            workers: options.seats.len().max(1),
            queue_max: options.queue_max,
            active: AtomicUsize::new(0),
            lines: Mutex::default(),
            pushed: Condvar::new(),
            metrics: options.metrics,
        });
        let worker = |(k, &seat): (usize, &Seat)| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name(format!("loopgate-run-{k}"))
                .spawn(move || shared.work(seat))
        };
        let workers = options.seats.iter().enumerate().map(worker);
        let workers = workers.collect::<std::io::Result<_>>()?;
        Ok((Self { shared }, workers))
    }

    /// Lets the workers end once nothing waits any more.
    pub(crate) fn stop(&self) {
        self.shared.lock().stop();
        self.shared.pushed.notify_all();
    }

    /// Runs `version` on a worker, within the time `until`.
    pub(crate) async fn run(
        &self,
        version: &Arc<LoadedVersion>,
        tensors: Tensors,
        until: Instant,
        priority: Priority,
    ) -> Result<Pooled, PoolFailure> {
        let rows = version.rows(tensors.get());
        let (pushed, wait) = (Instant::now(), self.wait(version));
        let would_end = pushed + wait + version.cost.cost().of(1, rows);
        // What waits is not what a raised one waits for.
        if !wait.is_zero() && would_end > until && !priority.is_raised() {
            return Err(PoolFailure::Overloaded { wait });
        }
        let (reply, answer) = oneshot::channel();
        let run: Arc<OnceLock<Arc<Begun>>> = Arc::default();
        let job = Job {
            tensors,
            rows,
            pushed,
            until,
            priority,
            run: Arc::clone(&run),
            reply,
        };
        self.push(version, job)?;
        match tokio::time::timeout_at(until.into(), answer).await {
            Ok(Ok(answer)) => answer.map(|outputs| Pooled {
                outputs,
                waited: run.get().map_or(Duration::ZERO, |run| run.at - pushed),
            }),
            Ok(Err(_)) => Err(PoolFailure::Stopped),
            Err(_) => Err(PoolFailure::Late {
                is_overdue: run.get().is_some_and(|run| run.is_overdue()),
            }),
        }
    }

    /// How long a request of now would wait until its run begins.
    pub(crate) fn wait(&self, version: &LoadedVersion) -> Duration {
        let backlog = &version.backlog;
        let jobs = backlog.jobs.load(Ordering::Relaxed);
        if jobs == 0 {
            return Duration::ZERO;
        }
        let rows = backlog.rows.load(Ordering::Relaxed);
        let runs = match version.batch_rows() {
            1 => jobs,
            most => rows.div_ceil(most).min(jobs),
        };
        let work = version.cost.cost().of(runs, rows);
        // The versions that have something to run take turns.
        let active = self.shared.active.load(Ordering::Relaxed).max(1);
        work * u32::try_from(active).unwrap_or(u32::MAX) / self.shared.workers as u32
    }

    /// Refuses ahead of time, before a request's body is read: the wait is longer than `deadline`
    /// leaves, or the queue has been standing.
    pub(crate) fn refuses(
        &self,
        version: &LoadedVersion,
        deadline: Duration,
        now: Instant,
    ) -> Option<Duration> {
        let (wait, cost) = (self.wait(version), version.cost.cost());
        let full = cost.of(1, version.batch_rows());
        let target = TARGET.max(2 * full).min(deadline / 2);
        let now_ns = (now - self.shared.started).as_nanos() as u64;
        let is_standing = version.backlog.is_standing(wait, target, now_ns);
        let is_hopeless = wait > target && wait + cost.of(1, 1) > deadline;
        (is_standing || is_hopeless).then_some(wait)
    }

    /// Requests that wait or run.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.lock().waiting()
    }

    fn push(&self, version: &Arc<LoadedVersion>, job: Job) -> Result<(), PoolFailure> {
        let (shared, rows) = (&self.shared, job.rows);
        let mut lines = shared.lock();
        if lines.is_stopped() {
            return Err(PoolFailure::Stopped);
        }
        if lines.waiting_for(version) >= shared.queue_max {
            let wait = self.wait(version);
            return Err(PoolFailure::Overloaded { wait });
        }
        lines.push(version, job);
        shared.enter(version, rows);
        drop(lines);
        shared.pushed.notify_one();
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Lines> {
        // A push and a take leave the lines whole, whatever panics.
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self, version: &LoadedVersion, rows: usize) {
        version.backlog.rows.fetch_add(rows, Ordering::Relaxed);
        if version.backlog.jobs.fetch_add(1, Ordering::Relaxed) == 0 {
            self.active.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn leave(&self, version: &LoadedVersion, rows: usize) {
        version.backlog.rows.fetch_sub(rows, Ordering::Relaxed);
        if version.backlog.jobs.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.active.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// A worker's life.
    fn work(&self, seat: Seat) {
        while let Some((version, jobs)) = self.next() {
            self.run(&version, seat, jobs);
        }
    }

    /// Waits for the next batch; `None` when the pool stops.
    fn next(&self) -> Option<(Arc<LoadedVersion>, Vec<Job>)> {
        let mut lines = self.lock();
        loop {
            let taken = lines.take(Instant::now());
            for (version, job, left) in lines.left() {
                self.let_go(&version, job, left);
            }
            match taken {
                Some(taken) => return Some(taken),
                None if lines.is_stopped() => return None,
                None => {
                    let waited = self.pushed.wait(lines);
                    lines = waited.unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Runs the jobs as one batch, or each alone where that fails, and answers each.
    fn run(&self, version: &LoadedVersion, seat: Seat, jobs: Vec<Job>) {
        let rows = jobs.iter().map(|job| job.rows).sum();
        let run = Begun::now(version.cost.cost().of(1, rows));
        for job in &jobs {
            job.begin(&run);
            self.metrics.pool_wait(run.at - job.pushed);
        }
        self.metrics.pool_run(jobs.len());
        let together = match &jobs[..] {
            [_] => None,
            jobs => self.together(version, seat, jobs),
        };
        match together {
            Some(answers) => {
                for (job, outputs) in jobs.into_iter().zip(answers) {
                    self.leave(version, job.rows);
                    job.answer(Ok(outputs));
                }
            }
            None => jobs
                .into_iter()
                .for_each(|job| self.alone(version, seat, job)),
        }
    }

    /// Runs one job. Whoever waited for a batch that failed may be late by now.
    fn alone(&self, version: &LoadedVersion, seat: Seat, job: Job) {
        if let Some(left) = job.left(Instant::now()) {
            return self.let_go(version, job, left);
        }
        let outputs = version.run_until(seat, job.tensors.get(), Some(job.until));
        self.leave(version, job.rows);
        let answer = outputs.map_err(|failure| match failure {
            // Stopped on its worker a moment before its caller would have stopped waiting.
            RunFailure::Engine(RunError::Stopped { .. }) => PoolFailure::Late {
                is_overdue: job.is_overdue(),
            },
            failure => PoolFailure::Run(failure),
        });
        job.answer(answer);
    }

    fn let_go(&self, version: &LoadedVersion, job: Job, left: Left) {
        self.leave(version, job.rows);
        self.metrics.left_pool(left);
        job.answer(Err(PoolFailure::Late { is_overdue: false }));
    }

    fn together(
        &self,
        version: &LoadedVersion,
        seat: Seat,
        jobs: &[Job],
    ) -> Option<Vec<Vec<Tensor>>> {
        let parts: Vec<&[Tensor]> = jobs.iter().map(|job| job.tensors.get()).collect();
        let rows: Vec<usize> = jobs.iter().map(|job| job.rows).collect();
        // As long as any of them waits.
        let until = jobs.iter().map(|job| job.until).max();
        let joined = batcher::join(&parts)?;
        let outputs = version.run_until(seat, &joined, until).ok()?;
        batcher::split(outputs, &rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_that_stood_is_kept_at_its_target_until_nobody_is_refused_any_more() {
        let backlog = Backlog::default();
        let refused = |wait_ms, at_ms: u64| {
            let wait = Duration::from_millis(wait_ms);
            backlog.is_standing(wait, TARGET, at_ms * 1_000_000)
        };
        // A burst is let in, a queue that is still there after an interval is not.
        assert!(!refused(1, 0) && !refused(40, 50) && !refused(40, 100));
        assert!(refused(40, 101) && refused(20, 150));
        // Down to the target, and filling again.
        assert!(!refused(5, 160) && refused(6, 161) && refused(6, 260));
        // After an interval without refusals it is a burst again.
        assert!(!refused(5, 300) && !refused(5, 361) && !refused(40, 362));
    }
}
