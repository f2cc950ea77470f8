//! What a run costs: `base + row · n` for n rows, learnt from the runs themselves.
//!
//! Least squares with forgetting over relative errors, so that one row and a full batch count
//! alike. A sample far from what was expected is pulled in to a few deviations (Huber 1964): one
//! preempted run moves nothing, a lasting change is followed within some tens of runs. Reading is
//! one relaxed load; feeding takes an uncontended lock and some fifty nanoseconds.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// How far a cost may leave the budget of a run in place before the choice is made anew: noise of
/// less than this never moves a model to and fro.
const HYSTERESIS: f64 = 0.25;
/// What a full batch may lose to an endless one: the share of its time that goes into what each run
/// costs once.
const LOST_SHARE: f64 = 0.05;
/// Rows that are always worth one run, since what is learnt is never exact.
const PAYING_ROWS_MIN: usize = 2;
/// Runs after which not every cheap run is timed any more.
const YOUNG: u64 = 64;
/// Rows beyond which nothing is said: a cost that does not depend on rows would allow any number.
const ROWS_MAX: usize = 1 << 20;

/// Nanoseconds of a run: once, and for each row.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Cost {
    pub base_ns: f32,
    pub row_ns: f32,
}

impl Cost {
    /// The expected time of `runs` runs over `rows` rows in all.
    pub(crate) fn of(self, runs: usize, rows: usize) -> Duration {
        let ns = f64::from(self.base_ns) * runs as f64 + f64::from(self.row_ns) * rows as f64;
        Duration::from_nanos(ns as u64)
    }

    /// The rows, at most `most`, beyond which a larger batch makes its requests wait and saves next to
    /// nothing.
    pub(crate) fn rows_that_pay(self, most: usize) -> usize {
        let rows = f64::from(self.base_ns) / (LOST_SHARE * f64::from(self.row_ns));
        // Nothing is known of a row's cost: it may be nothing.
        let rows = if self.row_ns > 0.0 {
            rows.ceil()
        } else {
            f64::INFINITY
        };
        (rows as usize).clamp(PAYING_ROWS_MIN.min(most), most)
    }

    /// The most rows that one run within `budget` holds; 0 where not even one fits.
    pub(crate) fn rows_within(self, budget: Duration) -> usize {
        let left = budget.as_nanos() as f64 - f64::from(self.base_ns);
        let row = f64::from(self.row_ns);
        if left < row {
            return 0;
        }
        if row * ROWS_MAX as f64 <= left {
            return ROWS_MAX;
        }
        // Rounding must not promise a row more than fits.
        let rows = (left / row) as usize;
        rows - usize::from(self.of(1, rows) > budget && rows > 0)
    }
}

/// The learnt cost of one version, shared by the threads that run it.
#[derive(Debug)]
pub(crate) struct CostModel {
    /// Two `f32` in one word: base above, row below.
    learnt: AtomicU64,
    samples: AtomicU64,
    /// What a serving thread may spend on one run.
    budget: Duration,
    in_place_rows: AtomicUsize,
    /// Fed by whoever finds it free; a sample that finds it taken is not missed.
    fit: Mutex<Fit>,
}

impl CostModel {
    /// Knows nothing yet; until it does, runs are taken for cheap.
    pub(crate) fn new(budget: Duration) -> Self {
        Self {
            learnt: AtomicU64::new(0),
            samples: AtomicU64::new(0),
            budget,
            in_place_rows: AtomicUsize::new(if budget.is_zero() { 0 } else { ROWS_MAX }),
            fit: Mutex::new(Fit::default()),
        }
    }

    pub(crate) fn cost(&self) -> Cost {
        let packed = self.learnt.load(Ordering::Relaxed);
        Cost {
            base_ns: f32::from_bits((packed >> 32) as u32),
            row_ns: f32::from_bits(packed as u32),
        }
    }

    /// Whether a run of so many rows is cheap enough for a serving thread.
    pub(crate) fn is_in_place(&self, rows: usize) -> bool {
        rows <= self.in_place_rows()
    }

    /// The most rows that run in place; 0 where every run goes to the pool.
    pub(crate) fn in_place_rows(&self) -> usize {
        self.in_place_rows.load(Ordering::Relaxed)
    }

    /// Whether there are too few samples to skip any.
    pub(crate) fn is_young(&self) -> bool {
        self.samples.load(Ordering::Relaxed) < YOUNG
    }

    /// Learns from a run that gave outputs.
    pub(crate) fn observe(&self, rows: usize, took: Duration) {
        let mut fit = match self.fit.try_lock() {
            Ok(fit) => fit,
            Err(std::sync::TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return,
        };
        fit.observe(rows.max(1) as f64, took.as_nanos().max(1) as f64);
        let cost = fit.cost();
        let packed = u64::from(cost.base_ns.to_bits()) << 32 | u64::from(cost.row_ns.to_bits());
        self.learnt.store(packed, Ordering::Relaxed);
        self.samples.fetch_add(1, Ordering::Relaxed);
        let rows = in_place_rows(cost, self.budget, self.in_place_rows());
        self.in_place_rows.store(rows, Ordering::Relaxed);
    }
}

/// The rows to run in place from now on, given those until now: they change only where the cost of
/// the present number has clearly left the budget.
fn in_place_rows(cost: Cost, budget: Duration, now: usize) -> usize {
    let too_dear = now > 0 && cost.of(1, now) > budget.mul_f64(1.0 + HYSTERESIS);
    let cheap = now < ROWS_MAX && cost.of(1, now + 1) < budget.mul_f64(1.0 - HYSTERESIS);
    if too_dear || cheap {
        cost.rows_within(budget)
    } else {
        now
    }
}

/// The regression behind a [`CostModel`].
#[derive(Debug, Default)]
struct Fit {
    samples: u64,
    /// Decayed sums of weights, rows, squared rows, times, and rows · times.
    sums: [f64; 5],
    base: f64,
    row: f64,
    /// Mean absolute relative error.
    deviation: f64,
}

impl Fit {
    /// Share of the past that each sample forgets.
    const FORGETTING: f64 = 0.02;
    /// Relative errors beyond so many deviations are pulled in.
    const CLIP: f64 = 3.0;
    /// Relative errors beyond so many are left out; so many in a row widen the deviation until they
    /// count.
    const STRAY: f64 = 10.0;
    /// The deviation never falls below this: clocks and caches are not more exact.
    const DEVIATION_MIN: f64 = 0.02;
    /// Spread of the rows, relative to their mean, below which a slope cannot be told.
    const SPREAD_MIN: f64 = 0.1;

    fn cost(&self) -> Cost {
        Cost {
            base_ns: self.base as f32,
            row_ns: self.row as f32,
        }
    }

    fn observe(&mut self, rows: f64, took: f64) {
        self.samples += 1;
        if self.samples == 1 {
            // One sample cannot tell base from rows: half each.
            (self.base, self.row, self.deviation) = (took / 2.0, took / 2.0 / rows, 1.0);
        }
        let expected = self.base + self.row * rows;
        let error = (took - expected) / expected;
        let limit = Self::CLIP * self.deviation;
        let took = expected * (1.0 + error.clamp(-limit, limit));
        let is_stray = error.abs() > Self::STRAY * self.deviation;
        let rate = (1.0 / self.samples as f64).max(0.05);
        // Bounded growth: a lasting change widens the limit step by step, an outlier hardly does.
        let seen = error.abs().min(limit + self.deviation);
        self.deviation += rate * (seen - self.deviation);
        self.deviation = self.deviation.max(Self::DEVIATION_MIN);
        // Relative to a single row, not to the clock: else what was quick would outweigh what has
        // become slow.
        let weight = ((self.base + self.row) / expected).powi(2);
        if !is_stray || self.samples == 1 {
            self.take(rows, took, weight);
            self.solve();
        }
    }

    fn take(&mut self, rows: f64, took: f64, weight: f64) {
        let sample = [1.0, rows, rows * rows, took, rows * took];
        for (sum, term) in self.sums.iter_mut().zip(sample) {
            *sum = *sum * (1.0 - Self::FORGETTING) + weight * term;
        }
    }

    fn solve(&mut self) {
        let [weight, rows, squares, took, products] = self.sums;
        let (rows, took) = (rows / weight, took / weight);
        let variance = squares / weight - rows * rows;
        // While every run has about the same number of rows the slope stays what it was.
        if variance > (Self::SPREAD_MIN * rows).powi(2) {
            self.row = (products / weight - rows * took) / variance;
        }
        self.row = self.row.clamp(0.0, took / rows);
        self.base = took - self.row * rows;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Times of a run of `cost`, 5 % noise, with a share of them preempted for 100 times as long.
    fn samples(random: &mut StdRng, cost: Cost, outliers: f64, count: usize) -> Vec<(usize, f64)> {
        let mut sample = || {
            let rows = [1, 1, 1, 2, 8, 30][random.random_range(0..6)];
            let took = cost.of(1, rows).as_nanos() as f64 * random.random_range(0.95..1.05);
            let preempted = random.random_bool(outliers);
            (rows, if preempted { took * 100.0 } else { took })
        };
        (0..count).map(|_| sample()).collect()
    }

    fn close(found: Cost, expected: Cost, rows: usize, tolerance: f64) -> bool {
        let (found, expected) = (found.of(1, rows), expected.of(1, rows));
        (found.as_secs_f64() / expected.as_secs_f64() - 1.0).abs() < tolerance
    }

    #[test]
    fn a_batch_holds_the_rows_that_pay() {
        let rows = |base_ns, row_ns, most| Cost { base_ns, row_ns }.rows_that_pay(most);
        // 290 µs once, 2.2 ms a row: three rows lose less than a twentieth.
        assert_eq!(rows(290e3, 2.2e6, 64), 3);
        // Next to nothing a row: as many as are allowed.
        assert_eq!(rows(1e6, 10e3, 64), 64);
        assert_eq!(rows(0.0, 0.0, 64), 64);
        // Nothing once, or less, as a fit may say.
        assert_eq!((rows(0.0, 1e6, 64), rows(-5.0, 1e6, 64)), (2, 2));
        assert_eq!(rows(1e6, 10e3, 1), 1);
    }

    proptest! {
        #[test]
        fn a_linear_cost_is_learnt_through_noise_and_outliers_and_followed_when_it_changes(
            base in 500.0..5e6_f32,
            row in 50.0..5e5_f32,
            change in prop_oneof![Just(0.02_f32), Just(0.3), Just(5.0), Just(80.0)],
            seed: u64,
        ) {
            let mut random = StdRng::seed_from_u64(seed);
            let before = Cost { base_ns: base, row_ns: row };
            let after = Cost { base_ns: base * change, row_ns: row * change };
            let mut fit = Fit::default();
            for cost in [before, after] {
                let mut close_to = [0; 3];
                for (k, (rows, took)) in samples(&mut random, cost, 0.02, 600).into_iter().enumerate() {
                    fit.observe(rows as f64, took);
                    for (count, rows) in close_to.iter_mut().zip([1, 8, 30]) {
                        *count += u32::from(k >= 400 && close(fit.cost(), cost, rows, 0.25));
                    }
                }
                // Outliers that come in a row may throw it off for a while.
                prop_assert!(close_to.iter().all(|&count| count > 100), "{close_to:?} {fit:?} {cost:?}");
            }
        }

        #[test]
        fn rows_within_a_budget_are_the_most_that_fit(
            base in 0.0..1e6_f32,
            row in 1.0..1e6_f32,
            budget_ns in 0_u64..10_000_000,
        ) {
            let cost = Cost { base_ns: base, row_ns: row };
            let budget = Duration::from_nanos(budget_ns);
            let rows = cost.rows_within(budget);
            prop_assert!(rows == 0 || cost.of(1, rows) <= budget);
            let more = cost.of(1, rows + 2);
            prop_assert!(rows == ROWS_MAX || more > budget, "{rows}");
        }

        #[test]
        fn noise_around_the_budget_changes_nothing(seed: u64, near in 0.85..1.15_f32) {
            let mut random = StdRng::seed_from_u64(seed);
            let model = CostModel::new(Duration::from_micros(100));
            let cost = Cost { base_ns: 80_000.0 * near, row_ns: 20_000.0 * near };
            let feed = |random: &mut StdRng, changes: &mut u32| {
                for (_, took) in samples(random, cost, 0.03, 300) {
                    let before = model.is_in_place(1);
                    model.observe(1, Duration::from_nanos(took as u64 % 1_000_000_000));
                    *changes += u32::from(before != model.is_in_place(1));
                }
            };
            feed(&mut random, &mut 0);
            let mut changes = 0;
            feed(&mut random, &mut changes);
            prop_assert_eq!(changes, 0);
        }
    }

    #[test]
    fn a_dear_model_leaves_the_serving_thread_and_a_cheap_one_comes_back() {
        let model = CostModel::new(Duration::from_micros(100));
        assert!(model.is_in_place(1) && model.is_young());
        let feed = |us: u64| (0..200).for_each(|_| model.observe(1, Duration::from_micros(us)));
        feed(10);
        assert!(model.is_in_place(1) && !model.is_in_place(1000) && !model.is_young());
        feed(2000);
        assert!(!model.is_in_place(1));
        feed(90);
        assert!(!model.is_in_place(1), "within the hysteresis");
        feed(20);
        assert!(model.is_in_place(1));
        assert!(!CostModel::new(Duration::ZERO).is_in_place(1));
    }

    #[test]
    fn no_variation_of_rows_keeps_the_slope() {
        let mut fit = Fit::default();
        for k in 0..400 {
            let rows = [1.0, 16.0][k % 2];
            fit.observe(rows, 1000.0 + 100.0 * rows);
        }
        for _ in 0..2000 {
            fit.observe(1.0, 1100.0);
        }
        let cost = fit.cost();
        assert!(
            (cost.row_ns - 100.0).abs() < 1.0 && (cost.base_ns - 1000.0).abs() < 5.0,
            "{cost:?}"
        );
    }
}
