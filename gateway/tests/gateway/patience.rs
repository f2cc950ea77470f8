//! Waiting for what happens by and by, on a machine that has other things to do.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The longest wait. Nothing waits so long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks: leaves the core to what is waited for.
pub(crate) const PAUSE: Duration = Duration::from_millis(1);

/// Waits until something is so.
#[track_caller]
pub(crate) fn eventually(mut is_so: impl FnMut() -> bool) {
    eventually_some(|| is_so().then_some(()));
}

/// Asks until there is an answer. A client that was too slow for a short timeout asks again.
#[track_caller]
pub(crate) fn eventually_some<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "it never was");
        std::thread::sleep(PAUSE);
    }
}

/// Set when dropped, so that threads that work until it is set end where a test fails, too.
pub(crate) struct StopWhenDropped<'s>(pub &'s AtomicBool);

impl Drop for StopWhenDropped<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
