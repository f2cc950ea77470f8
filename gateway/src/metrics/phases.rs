//! Seconds of predictions by phase: a histogram that each seat counts for itself.
//!
//! The histograms of `metrics` keep every sample until the page is read: about 100 ns each (perf), and
//! a prediction has five. Here a sample is two additions to memory that no other thread writes, and
//! whoever reads the page sums the seats.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::table::Seat;

const NAME: &str = "loopgate_phase_seconds";
/// Upper ends of the buckets, in microseconds; one more has no end.
pub(super) const BUCKETS_US: [u32; 16] = [
    50, 100, 200, 350, 500, 750, 1_000, 2_000, 3_500, 5_000, 10_000, 25_000, 50_000, 100_000,
    250_000, 1_000_000,
];

/// A part of a prediction's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Decode,
    Features,
    Run,
    Encode,
    /// From the request's head to its encoded answer.
    Total,
}

impl Phase {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Decode, "decode"),
        (Self::Features, "features"),
        (Self::Run, "run"),
        (Self::Encode, "encode"),
        (Self::Total, "total"),
    ];
}

/// The histogram of every phase.
pub(crate) struct Phases(Box<[Shard]>);

/// What one seat has counted; as wide as two cache lines, which are fetched in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Shard([Times; Phase::ALL.len()]);

#[derive(Default)]
struct Times {
    ns: AtomicU64,
    /// Samples in each bucket alone, the last for those above all ends.
    counts: [AtomicU64; BUCKETS_US.len() + 1],
}

impl Phases {
    pub(super) fn new(seats: usize) -> Self {
        Self((0..seats).map(|_| Shard::default()).collect())
    }

    /// Counts one sample of a prediction on `seat`.
    pub(crate) fn took(&self, seat: Seat, phase: Phase, elapsed: Duration) {
        let Some(Shard(times)) = self.0.get(seat.index()) else {
            return;
        };
        let times = &times[phase as usize];
        let ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_US
            .iter()
            .position(|&end| ns <= u64::from(end) * 1000)
            .unwrap_or(BUCKETS_US.len());
        times.ns.fetch_add(ns, Ordering::Relaxed);
        times.counts[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds the histogram to a page of Prometheus' text format.
    pub(super) fn render(&self, page: &mut String) {
        let sum = |phase: usize, of: &dyn Fn(&Times) -> &AtomicU64| -> u64 {
            let seats = self.0.iter();
            seats
                .map(|Shard(times)| of(&times[phase]).load(Ordering::Relaxed))
                .sum()
        };
        let mut line = |line: std::fmt::Arguments<'_>| {
            writeln!(page, "{line}").expect("a String takes all");
        };
        line(format_args!(
            "# HELP {NAME} Seconds of a prediction by phase"
        ));
        line(format_args!("# TYPE {NAME} histogram"));
        for (k, (_, phase)) in Phase::ALL.iter().enumerate() {
            let mut count = 0;
            for (bucket, &end) in BUCKETS_US.iter().enumerate() {
                count += sum(k, &|times| &times.counts[bucket]);
                let end = f64::from(end) / 1e6;
                line(format_args!(
                    r#"{NAME}_bucket{{phase="{phase}",le="{end}"}} {count}"#
                ));
            }
            count += sum(k, &|times| &times.counts[BUCKETS_US.len()]);
            let seconds = sum(k, &|times| &times.ns) as f64 / 1e9;
            line(format_args!(
                r#"{NAME}_bucket{{phase="{phase}",le="+Inf"}} {count}"#
            ));
            line(format_args!(r#"{NAME}_sum{{phase="{phase}"}} {seconds}"#));
            line(format_args!(r#"{NAME}_count{{phase="{phase}"}} {count}"#));
        }
    }
}

/// A stopwatch over the phases of one prediction.
pub(crate) struct Laps<'m> {
    phases: &'m Phases,
    seat: Seat,
    arrived: Instant,
    lap: Instant,
}

impl<'m> Laps<'m> {
    pub(crate) fn start(phases: &'m Phases, seat: Seat, arrived: Instant) -> Self {
        Self {
            phases,
            seat,
            arrived,
            lap: Instant::now(),
        }
    }

    /// Ends a phase, which took so long; the next begins.
    pub(crate) fn end(&mut self, phase: Phase) -> Duration {
        let now = Instant::now();
        let took = now - self.lap;
        self.phases.took(self.seat, phase, took);
        self.lap = now;
        took
    }

    /// Ends the whole, with its last phase, which took so long.
    pub(crate) fn finish(self) -> Duration {
        let took = self.lap - self.arrived;
        self.phases.took(self.seat, Phase::Total, took);
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Seats;

    #[test]
    fn enums_index_their_times() {
        for (k, (phase, _)) in Phase::ALL.into_iter().enumerate() {
            assert_eq!(phase as usize, k);
        }
    }

    #[test]
    fn the_page_sums_what_every_seat_counted() {
        let seats = Seats::new(2);
        let phases = Phases::new(seats.count());
        for (us, seat) in [(50, 0), (51, 1), (2_000_000, 1)] {
            phases.took(seats.serving(seat), Phase::Run, Duration::from_micros(us));
        }
        let mut page = String::new();
        phases.render(&mut page);
        let value = |line: &str| {
            let found = page.lines().find_map(|have| have.strip_prefix(line));
            found
                .unwrap_or_else(|| panic!("{line} in {page}"))
                .trim()
                .to_owned()
        };
        let bucket = |end: &str| {
            value(&format!(
                r#"loopgate_phase_seconds_bucket{{phase="run",le="{end}"}}"#
            ))
        };
        assert_eq!(bucket("0.00005"), "1");
        assert_eq!(bucket("0.0001"), "2");
        assert_eq!(bucket("1"), "2");
        assert_eq!(bucket("+Inf"), "3");
        assert_eq!(
            value(r#"loopgate_phase_seconds_sum{phase="run"}"#),
            "2.000101"
        );
        assert_eq!(
            value(r#"loopgate_phase_seconds_count{phase="decode"}"#),
            "0"
        );
    }
}
