//! Rate limits: the generic cell rate algorithm (ITU-T I.371, annex A: virtual scheduling).
//!
//! One atomic holds the time at which the next call is due; a call may be early by the tolerance.
//! Time comes in as a value. Costs one compare-and-set; keeps nothing per caller but that.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Calls in a span of time, as `100/s`, `5/m` or `1/h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Rate {
    calls: NonZeroU32,
    span: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Span {
    Second,
    Minute,
    Hour,
}

/// Not a rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a rate: expected `N/s`, `N/m` or `N/h`, N from 1 to 1000000")]
pub(crate) struct RateError(String);

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        /// Keeps the interval between calls far above a nanosecond.
        const CALLS_MAX: u32 = 1_000_000;
        let wrong = || RateError(text.to_owned());
        let (calls, span) = text.split_once('/').ok_or_else(wrong)?;
        let calls: NonZeroU32 = calls.parse().map_err(|_| wrong())?;
        let span = match span {
            "s" => Span::Second,
            "m" => Span::Minute,
            "h" => Span::Hour,
            _ => return Err(wrong()),
        };
        match calls.get() <= CALLS_MAX {
            true => Ok(Self { calls, span }),
            false => Err(wrong()),
        }
    }
}

impl TryFrom<String> for Rate {
    type Error = RateError;

    fn try_from(text: String) -> Result<Self, RateError> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = match self.span {
            Span::Second => "s",
            Span::Minute => "m",
            Span::Hour => "h",
        };
        write!(f, "{}/{span}", self.calls)
    }
}

impl Rate {
    /// The time between two calls.
    fn interval_ns(self) -> u64 {
        let span_s = match self.span {
            Span::Second => 1,
            Span::Minute => 60,
            Span::Hour => 3600,
        };
        span_s * 1_000_000_000 / u64::from(self.calls.get())
    }
}

/// A rate, and how many calls may come at once after a pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub rate: Rate,
    pub burst: NonZeroU32,
}

/// How far a quota is used.
#[derive(Debug)]
pub(crate) struct Pace {
    quota: Quota,
    /// When the next call is due, nanoseconds since the caller's epoch.
    due_ns: AtomicU64,
}

impl Pace {
    pub(crate) fn new(quota: Quota) -> Self {
        Self {
            quota,
            due_ns: AtomicU64::new(0),
        }
    }

    pub(crate) fn quota(&self) -> Quota {
        self.quota
    }

    /// Takes one call out of the quota, or says how long until there is one.
    ///
    /// # Errors
    /// With the wait, when the quota is used up. A refused call uses nothing.
    pub(crate) fn admit(&self, now_ns: u64) -> Result<(), Duration> {
        let interval_ns = self.quota.rate.interval_ns();
        let early_max_ns = interval_ns.saturating_mul(u64::from(self.quota.burst.get() - 1));
        let mut due_ns = self.due_ns.load(Ordering::Relaxed);
        loop {
            let at_ns = due_ns.max(now_ns);
            let early_ns = at_ns - now_ns;
            if early_ns > early_max_ns {
                return Err(Duration::from_nanos(early_ns - early_max_ns));
            }
            match self.due_ns.compare_exchange_weak(
                due_ns,
                at_ns.saturating_add(interval_ns),
                Ordering::Relaxed,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(()),
                Err(changed) => due_ns = changed,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND_NS: u64 = 1_000_000_000;

    fn pace(rate: &str, burst: u32) -> Pace {
        Pace::new(Quota {
            rate: rate.parse().unwrap(),
            burst: NonZeroU32::new(burst).unwrap(),
        })
    }

    fn admitted(pace: &Pace, times_ns: impl Iterator<Item = u64>) -> usize {
        times_ns.filter(|&at| pace.admit(at).is_ok()).count()
    }

    #[test]
    fn rates_are_read_as_they_are_written() {
        for text in ["1/s", "100/m", "1000000/h"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for wrong in [
            "",
            "1",
            "/s",
            "0/s",
            "-1/s",
            "1/d",
            "1.5/s",
            "1000001/s",
            "1/s ",
        ] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_burst_is_taken_at_once_and_then_the_rate_holds() {
        let pace = pace("10/s", 5);
        assert_eq!(admitted(&pace, std::iter::repeat_n(7, 100)), 5);
        assert_eq!(pace.admit(7), Err(Duration::from_millis(100)));
        assert_eq!(pace.admit(7 + SECOND_NS / 10), Ok(()));
        assert!(pace.admit(7 + SECOND_NS / 10).is_err());
        // After a long pause no more than the burst is saved up.
        assert_eq!(
            admitted(&pace, std::iter::repeat_n(900 * SECOND_NS, 100)),
            5
        );
    }

    #[test]
    fn a_key_over_its_quota_gets_its_quota_and_another_is_untouched() {
        let (greedy, modest) = (pace("100/s", 10), pace("100/s", 10));
        // One asks ten times its rate for ten seconds, the other half of its own.
        let greedy_calls = admitted(&greedy, (0..10_000).map(|k| k * SECOND_NS / 1000));
        let modest_calls = admitted(&modest, (0..500).map(|k| k * SECOND_NS / 50));
        assert!((1000..=1010).contains(&greedy_calls), "{greedy_calls}");
        assert_eq!(modest_calls, 500);
    }

    #[test]
    fn threads_share_one_quota() {
        let pace = pace("1/h", 1000);
        let counted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| admitted(&pace, std::iter::repeat_n(5, 1000))))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .sum()
        });
        assert_eq!(counted, 1000);
    }

    proptest! {
        /// In no window are there more calls than the burst and the rate allow, and the wait that a
        /// refusal names is just long enough.
        #[test]
        fn no_window_holds_more_than_its_share(
            gaps_ms in prop::collection::vec(0_u64..400, 1..200),
            burst in 1_u32..8,
        ) {
            let pace = pace("10/s", burst);
            let mut now_ns = 0;
            let mut taken = Vec::new();
            for gap in gaps_ms {
                now_ns += gap * 1_000_000;
                match pace.admit(now_ns) {
                    Ok(()) => taken.push(now_ns),
                    Err(wait) => {
                        let wait_ns = u64::try_from(wait.as_nanos()).unwrap();
                        prop_assert!(pace.admit(now_ns + wait_ns - 1).is_err());
                    }
                }
            }
            for (k, first) in taken.iter().enumerate() {
                for (n, last) in taken[k..].iter().enumerate() {
                    let allowed = u64::from(burst) + (last - first) / (SECOND_NS / 10);
                    prop_assert!(allowed > n as u64);
                }
            }
        }
    }
}
