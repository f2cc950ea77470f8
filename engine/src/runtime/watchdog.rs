//! Ends runs of ONNX Runtime that outlive their deadline.
//!
//! Owns: one thread for the process, started with the first run that has a deadline. It looks at
//! every armed run each [`TICK`], and parks when it has seen none for [`IDLE_TICKS`].
//! Costs: a run with a deadline takes two uncontended locks and wakes the thread only
//! where it is parked.
//! Trap: the library looks at the flag between two kernels; one long kernel is not interrupted.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use ort::session::RunOptions;

/// A run is stopped at most this long after its deadline, and the kernel that is under way.
const TICK: Duration = Duration::from_millis(5);
const IDLE_TICKS: u32 = 200;

/// The way to stop one session's runs.
pub(super) struct Watch {
    options: RunOptions,
    /// Shared by the session's thread, which arms, and the watchdog, which stops: between the look
    /// at the deadline and the stop no other run may begin.
    run: Mutex<Armed>,
}

#[derive(Debug, Default)]
struct Armed {
    deadline: Option<Instant>,
    is_stopped: bool,
}

impl Watch {
    pub(super) fn new() -> ort::Result<Arc<Self>> {
        let watch = Arc::new(Self {
            options: RunOptions::new()?,
            run: Mutex::default(),
        });
        let mut watches = lock(&WATCHDOG.watches);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        Ok(watch)
    }

    /// What the runs of the session must be given.
    pub(super) fn options(&self) -> &RunOptions {
        &self.options
    }

    /// From here on the session's run ends at `deadline`.
    pub(super) fn arm(&self, deadline: Instant) -> Result<(), String> {
        lock(&self.run).deadline = Some(deadline);
        WATCHDOG.wake()
    }

    /// The run is over. True when it was stopped; the session can be used again.
    pub(super) fn disarm(&self) -> ort::Result<bool> {
        let mut run = lock(&self.run);
        run.deadline = None;
        if std::mem::take(&mut run.is_stopped) {
            self.options.unterminate()?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Stops the run when its time is over; true while one is armed.
    fn check(&self, now: Instant) -> bool {
        let mut run = lock(&self.run);
        if run.deadline.is_some_and(|deadline| deadline <= now) && !run.is_stopped {
            run.is_stopped = self.options.terminate().is_ok();
        }
        run.deadline.is_some()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("run", &self.run)
            .finish_non_exhaustive()
    }
}

static WATCHDOG: Watchdog = Watchdog {
    watches: Mutex::new(Vec::new()),
    thread: OnceLock::new(),
    is_parked: AtomicBool::new(false),
};

struct Watchdog {
    watches: Mutex<Vec<Weak<Watch>>>,
    thread: OnceLock<Result<Thread, String>>,
    is_parked: AtomicBool,
}

impl Watchdog {
    fn wake(&'static self) -> Result<(), String> {
        let thread = self.thread.get_or_init(|| {
            let spawned = thread::Builder::new()
                .name("run-watchdog".to_owned())
                .spawn(|| self.watch());
            match spawned {
                Ok(handle) => Ok(handle.thread().clone()),
                Err(error) => Err(format!("no thread to watch runs: {error}")),
            }
        });
        let thread = thread.as_ref().map_err(String::clone)?;
        // The watchdog says that it parks before its last look at the locks, so a run that this
        // look missed sees it here.
        if self.is_parked.load(Ordering::SeqCst) {
            thread.unpark();
        }
        Ok(())
    }

    fn watch(&self) {
        let mut idle = 0;
        loop {
            idle = if self.is_armed() { 0 } else { idle + 1 };
            if idle < IDLE_TICKS {
                thread::sleep(TICK);
                continue;
            }
            self.is_parked.store(true, Ordering::SeqCst);
            if !self.is_armed() {
                thread::park();
            }
            self.is_parked.store(false, Ordering::SeqCst);
            idle = 0;
        }
    }

    fn is_armed(&self) -> bool {
        let now = Instant::now();
        let watches = lock(&self.watches);
        let armed = watches.iter().filter_map(Weak::upgrade);
        armed.filter(|watch| watch.check(now)).count() > 0
    }
}

/// Nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
