//! What came of a run's requests.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// A generator that sent later than this (99th percentile) measured itself.
const LATENESS_MAX: Duration = Duration::from_millis(1);

/// Why a request had no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Failure {
    /// No connection: refused, or none to be had.
    Connect,
    /// The connection ended before the whole answer was there.
    Reset,
    /// No answer in time; the connection was closed.
    Timeout,
    /// No connection came free in time; never sent.
    Unsent,
    /// 429, or gRPC's RESOURCE_EXHAUSTED.
    Shed,
    /// 5xx, or gRPC's UNAVAILABLE, INTERNAL, DEADLINE_EXCEEDED.
    Server,
    /// Any other status than 200.
    Refused,
    /// Status 200 and not the answer to the question.
    Wrong,
}

impl Failure {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Reset => "reset",
            Self::Timeout => "timeout",
            Self::Unsent => "unsent",
            Self::Shed => "429",
            Self::Server => "5xx",
            Self::Refused => "other_status",
            Self::Wrong => "wrong_answer",
        }
    }

    /// What an HTTP status says.
    pub(super) fn of_status(status: u16) -> Option<Self> {
        match status {
            200 => None,
            429 => Some(Self::Shed),
            500..=599 => Some(Self::Server),
            _ => Some(Self::Refused),
        }
    }
}

/// The figures of one run, or of several runs added up.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    /// Nanoseconds to a good answer, from the intended start.
    pub latency: Histogram<u64>,
    /// Nanoseconds from an intended start until the generator saw to it, connection free or not.
    pub lateness: Histogram<u64>,
    pub failures: BTreeMap<Failure, u64>,
    /// Answers by status, gRPC's as 1000 + code.
    pub statuses: BTreeMap<u16, u64>,
    /// The time in which requests were started.
    pub elapsed: Duration,
    /// Time in which the generator had something to do, warm-up included, and what it sent in it;
    /// zero where it is not measured.
    pub busy: Duration,
    pub sent: u64,
}

impl Tally {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            latency: Histogram::new_with_bounds(1, 120_000_000_000, 3)?,
            lateness: Histogram::new_with_bounds(1, 120_000_000_000, 3)?,
            failures: BTreeMap::new(),
            statuses: BTreeMap::new(),
            elapsed: Duration::ZERO,
            busy: Duration::ZERO,
            sent: 0,
        })
    }

    pub(super) fn good(&mut self, latency: Duration) {
        self.latency.saturating_record(nanoseconds(latency));
    }

    pub(super) fn failed(&mut self, failure: Failure) {
        *self.failures.entry(failure).or_default() += 1;
    }

    pub(super) fn status(&mut self, status: u16) {
        *self.statuses.entry(status).or_default() += 1;
    }

    pub(super) fn late(&mut self, lateness: Duration) {
        self.lateness.saturating_record(nanoseconds(lateness));
    }

    /// Good answers.
    pub(crate) fn answered(&self) -> u64 {
        self.latency.len()
    }

    pub(crate) fn failures(&self, failure: Failure) -> u64 {
        self.failures.get(&failure).copied().unwrap_or(0)
    }

    pub(crate) fn failed_in_all(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Good answers per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.answered() as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// Good answers per second that came within `deadline` of their intended start.
    pub(crate) fn goodput(&self, deadline: Duration) -> f64 {
        let within = self.latency.count_between(0, nanoseconds(deadline));
        within as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        self.latency.value_at_quantile(quantile) as f64 / 1e3
    }

    /// 99th percentile of the generator's own lateness, in microseconds.
    pub(crate) fn lateness_us(&self) -> f64 {
        self.lateness.value_at_quantile(0.99) as f64 / 1e3
    }

    /// Whether the generator kept its schedule; if not, the run says nothing about the server.
    pub(crate) fn on_time(&self) -> bool {
        self.lateness.value_at_quantile(0.99) <= nanoseconds(LATENESS_MAX)
    }

    /// What one request cost the generator, in microseconds; zero where it is not measured.
    pub(crate) fn busy_us(&self) -> f64 {
        self.busy.as_secs_f64() * 1e6 / (self.sent.max(1)) as f64
    }

    /// Adds another run's figures.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.latency.add(&other.latency)?;
        self.lateness.add(&other.lateness)?;
        for (failure, count) in &other.failures {
            *self.failures.entry(*failure).or_default() += count;
        }
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.elapsed += other.elapsed;
        self.busy += other.busy;
        self.sent += other.sent;
        Ok(())
    }

    pub(crate) fn json(&self) -> Value {
        let failures: BTreeMap<&str, u64> = self
            .failures
            .iter()
            .map(|(failure, count)| (failure.name(), *count))
            .collect();
        json!({
            "answered": self.answered(),
            "per_second": self.per_second().round(),
            "p50_us": self.quantile_us(0.5),
            "p90_us": self.quantile_us(0.9),
            "p99_us": self.quantile_us(0.99),
            "p999_us": self.quantile_us(0.999),
            "max_us": self.latency.max() as f64 / 1e3,
            "failures": failures,
            "statuses": self.statuses,
            "lateness_p99_us": self.lateness_us(),
            "on_time": self.on_time(),
            "generator_us": self.busy_us(),
            "seconds": self.elapsed.as_secs_f64(),
        })
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_whose_sends_were_late_is_discarded() {
        let mut tally = Tally::new().unwrap();
        for _ in 0..990 {
            tally.late(Duration::from_micros(20));
        }
        assert!(tally.on_time());
        for _ in 0..20 {
            tally.late(Duration::from_millis(3));
        }
        assert!(!tally.on_time());
        assert_eq!(tally.json()["on_time"], false);
    }

    #[test]
    fn goodput_counts_what_came_within_the_deadline_only() {
        let mut tally = Tally::new().unwrap();
        tally.elapsed = Duration::from_secs(2);
        for _ in 0..10 {
            tally.good(Duration::from_millis(10));
            tally.good(Duration::from_millis(90));
        }
        tally.failed(Failure::Shed);
        assert_eq!(tally.goodput(Duration::from_millis(50)), 5.0);
        assert_eq!(tally.per_second(), 10.0);
        assert_eq!(tally.failed_in_all(), 1);
    }

    #[test]
    fn runs_add_up() {
        let mut sum = Tally::new().unwrap();
        let mut one = Tally::new().unwrap();
        one.good(Duration::from_millis(1));
        one.failed(Failure::Reset);
        one.status(200);
        one.elapsed = Duration::from_secs(1);
        sum.add(&one).unwrap();
        sum.add(&one).unwrap();
        assert_eq!(sum.answered(), 2);
        assert_eq!(sum.failures(Failure::Reset), 2);
        assert_eq!(sum.statuses[&200], 2);
        assert_eq!(sum.elapsed, Duration::from_secs(2));
    }
}
