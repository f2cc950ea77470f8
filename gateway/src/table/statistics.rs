//! What a version has answered so far: counts and nanoseconds, cumulative while it is loaded.
//!
//! A seat counts into a shard of its own, with additions that no other thread contends for, about ten
//! for a prediction; whoever asks sums the shards. Each sum only grows.

use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::version::Seat;

/// Batch sizes that are told apart, the first so many that come.
const BATCH_SIZES_MAX: usize = 16;

/// How long the parts of one answered request took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Timed {
    /// The request's time.
    pub at_ms: i64,
    pub rows: usize,
    /// Waiting for a thread that runs the model.
    pub queue: Duration,
    /// Decoding, and reading features.
    pub input: Duration,
    pub run: Duration,
    /// Encoding.
    pub output: Duration,
    pub total: Duration,
}

/// The counters of one version.
#[derive(Debug)]
pub(crate) struct Statistics(Box<[Shard]>);

/// What one seat has counted; as wide as two cache lines, which are fetched in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    last_ms: AtomicI64,
    rows: AtomicU64,
    success: AtomicLeaf,
    fail: AtomicLeaf,
    queue_ns: AtomicU64,
    input_ns: AtomicU64,
    run_ns: AtomicU64,
    output_ns: AtomicU64,
    batches: [Batch; BATCH_SIZES_MAX],
}

#[derive(Debug, Default)]
struct AtomicLeaf {
    count: AtomicU64,
    ns: AtomicU64,
}

#[derive(Debug, Default)]
struct Batch {
    /// 0 while the place is free.
    rows: AtomicU32,
    count: AtomicU64,
    input_ns: AtomicU64,
    run_ns: AtomicU64,
    output_ns: AtomicU64,
}

impl Statistics {
    pub(super) fn new(seats: usize) -> Self {
        Self((0..seats).map(|_| Shard::default()).collect())
    }

    /// Counts a request that this version answered.
    pub(crate) fn succeeded(&self, seat: Seat, timed: &Timed) {
        let Some(shard) = self.0.get(seat.index()) else {
            return;
        };
        shard.last_ms.store(timed.at_ms, Ordering::Relaxed);
        shard.success.add(timed.total);
        add(&shard.rows, timed.rows as u64);
        add(&shard.queue_ns, ns(timed.queue));
        add(&shard.input_ns, ns(timed.input));
        add(&shard.run_ns, ns(timed.run));
        add(&shard.output_ns, ns(timed.output));
        if let Some(batch) = shard.batch(timed.rows) {
            add(&batch.count, 1);
            add(&batch.input_ns, ns(timed.input));
            add(&batch.run_ns, ns(timed.run));
            add(&batch.output_ns, ns(timed.output));
        }
    }

    /// Counts a request that this version was asked for and could not answer.
    pub(crate) fn failed(&self, seat: Seat, total: Duration) {
        if let Some(shard) = self.0.get(seat.index()) {
            shard.fail.add(total);
        }
    }

    /// The sums over all seats.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for shard in &self.0 {
            shard.add_to(&mut totals);
        }
        totals.batch_stats.sort_by_key(|batch| batch.batch_size);
        totals
    }
}

impl Shard {
    /// The place of a batch size, taken where it is new; `None` for an empty batch, and once every
    /// place is taken.
    fn batch(&self, rows: usize) -> Option<&Batch> {
        let rows = u32::try_from(rows).ok().filter(|&rows| rows > 0)?;
        self.batches
            .iter()
            .find(|batch| match batch.rows.load(Ordering::Relaxed) {
                0 => {
                    let taken =
                        batch
                            .rows
                            .compare_exchange(0, rows, Ordering::Relaxed, Ordering::Relaxed);
                    taken.is_ok() || taken == Err(rows)
                }
                taken => taken == rows,
            })
    }

    fn add_to(&self, totals: &mut Totals) {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        totals.last_inference = totals
            .last_inference
            .max(self.last_ms.load(Ordering::Relaxed));
        totals.inference_count += read(&self.rows);
        let stats = &mut totals.inference_stats;
        let answered = read(&self.success.count);
        totals.execution_count += answered;
        stats.success.add(answered, read(&self.success.ns));
        stats.fail.add(read(&self.fail.count), read(&self.fail.ns));
        stats.queue.add(answered, read(&self.queue_ns));
        stats.compute_input.add(answered, read(&self.input_ns));
        stats.compute_infer.add(answered, read(&self.run_ns));
        stats.compute_output.add(answered, read(&self.output_ns));
        for batch in &self.batches {
            let rows = batch.rows.load(Ordering::Relaxed);
            if rows == 0 {
                continue;
            }
            let known = totals
                .batch_stats
                .iter()
                .position(|known| known.batch_size == rows);
            let place = known.unwrap_or_else(|| {
                totals.batch_stats.push(BatchTotals {
                    batch_size: rows,
                    ..BatchTotals::default()
                });
                totals.batch_stats.len() - 1
            });
            let sums = &mut totals.batch_stats[place];
            let count = read(&batch.count);
            sums.compute_input.add(count, read(&batch.input_ns));
            sums.compute_infer.add(count, read(&batch.run_ns));
            sums.compute_output.add(count, read(&batch.output_ns));
        }
    }
}

impl AtomicLeaf {
    fn add(&self, took: Duration) {
        add(&self.count, 1);
        add(&self.ns, ns(took));
    }
}

fn add(counter: &AtomicU64, more: u64) {
    counter.fetch_add(more, Ordering::Relaxed);
}

/// Nanoseconds; 2^64 of them are five centuries.
fn ns(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}

/// The statistics of one version, under the names of the protocol's extension.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Totals {
    /// Milliseconds since the Unix epoch; 0 before the first.
    pub last_inference: i64,
    /// Rows.
    pub inference_count: u64,
    /// Runs of the model.
    pub execution_count: u64,
    pub inference_stats: InferenceTotals,
    /// For decoupled models, of which there are none.
    pub response_stats: NoTotals,
    pub batch_stats: Vec<BatchTotals>,
    /// Not measured.
    pub memory_usage: [(); 0],
}

/// A JSON object without keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct NoTotals {}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct InferenceTotals {
    pub success: Leaf,
    pub fail: Leaf,
    pub queue: Leaf,
    pub compute_input: Leaf,
    pub compute_infer: Leaf,
    pub compute_output: Leaf,
    /// Answers are not cached.
    pub cache_hit: Leaf,
    pub cache_miss: Leaf,
}

/// Requests of one number of rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct BatchTotals {
    pub batch_size: u32,
    pub compute_input: Leaf,
    pub compute_infer: Leaf,
    pub compute_output: Leaf,
}

/// How often, and how long in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Leaf {
    pub count: u64,
    pub ns: u64,
}

impl Leaf {
    fn add(&mut self, count: u64, ns: u64) {
        self.count += count;
        self.ns = self.ns.saturating_add(ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Seats;

    fn served(rows: usize, run_ns: u64) -> Timed {
        Timed {
            at_ms: rows as i64,
            rows,
            run: Duration::from_nanos(run_ns),
            total: Duration::from_nanos(run_ns + 1),
            ..Timed::default()
        }
    }

    #[test]
    fn seats_add_up() {
        let seats = Seats::new(2);
        let statistics = Statistics::new(4);
        statistics.succeeded(seats.serving(0), &served(1, 10));
        statistics.succeeded(seats.serving(1), &served(1, 20));
        statistics.succeeded(seats.grpc(), &served(0, 1));
        statistics.succeeded(seats.grpc(), &served(8, 30));
        statistics.failed(seats.serving(1), Duration::from_nanos(5));
        let totals = statistics.totals();
        assert_eq!((totals.inference_count, totals.execution_count), (10, 4));
        assert_eq!(totals.last_inference, 8);
        assert_eq!(totals.inference_stats.success, Leaf { count: 4, ns: 65 });
        assert_eq!(totals.inference_stats.fail, Leaf { count: 1, ns: 5 });
        assert_eq!(
            totals.inference_stats.compute_infer,
            Leaf { count: 4, ns: 61 }
        );
        let sizes: Vec<_> = totals
            .batch_stats
            .iter()
            .map(|b| (b.batch_size, b.compute_infer.ns))
            .collect();
        assert_eq!(sizes, [(1, 30), (8, 30)]);
    }

    #[test]
    fn batch_sizes_beyond_the_places_are_counted_in_the_sums_only() {
        let statistics = Statistics::new(1);
        let seat = Seats::new(1).serving(0);
        for rows in 1..=100 {
            statistics.succeeded(seat, &served(rows, 1));
        }
        let totals = statistics.totals();
        assert_eq!(totals.batch_stats.len(), BATCH_SIZES_MAX);
        assert_eq!(
            (totals.inference_count, totals.execution_count),
            (5050, 100)
        );
    }
}
