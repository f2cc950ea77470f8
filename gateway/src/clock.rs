//! The one reader of the wall clock. In replay mode time is the traffic's own: the latest that any
//! request named, or that `POST /v1/clock` set; it never goes back.

use std::sync::atomic::{AtomicI64, Ordering};

use serde::Deserialize;

/// Where time comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClockMode {
    /// The machine's clock; times in requests are ignored.
    #[default]
    Live,
    /// The requests' header `loopgate-time-ms`.
    Replay,
}

/// Time in milliseconds since the Unix epoch. It is data only: durations and deadlines are measured
/// by [`std::time::Instant`].
#[derive(Debug)]
pub(crate) struct Clock {
    mode: ClockMode,
    replayed_ms: AtomicI64,
}

impl Clock {
    pub(crate) fn new(mode: ClockMode) -> Self {
        Self {
            mode,
            replayed_ms: AtomicI64::new(0),
        }
    }

    pub(crate) fn is_replay(&self) -> bool {
        self.mode == ClockMode::Replay
    }

    /// Now.
    pub(crate) fn now_ms(&self) -> i64 {
        match self.mode {
            ClockMode::Live => chrono::Utc::now().timestamp_millis(),
            ClockMode::Replay => self.replayed_ms.load(Ordering::Relaxed),
        }
    }

    /// The time of a request that names `named_ms`, which in replay mode also moves the clock on.
    pub(crate) fn request_ms(&self, named_ms: Option<i64>) -> i64 {
        match (self.mode, named_ms) {
            (ClockMode::Replay, Some(ms)) => {
                self.advance(ms);
                ms
            }
            _ => self.now_ms(),
        }
    }

    /// Moves a replayed clock to `ms`, never back; a live one stays as it is.
    pub(crate) fn advance(&self, ms: i64) {
        self.replayed_ms.fetch_max(ms, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replayed_time_follows_requests_and_never_goes_back() {
        let clock = Clock::new(ClockMode::Replay);
        assert_eq!(
            (clock.request_ms(Some(70)), clock.request_ms(Some(50))),
            (70, 50)
        );
        assert_eq!((clock.now_ms(), clock.request_ms(None)), (70, 70));
        clock.advance(90);
        assert_eq!(clock.now_ms(), 90);
    }

    #[test]
    fn live_time_ignores_what_requests_say() {
        let clock = Clock::new(ClockMode::Live);
        assert!(clock.request_ms(Some(70)) > 1_700_000_000_000);
    }
}
