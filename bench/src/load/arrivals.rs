//! When requests are meant to start.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// What makes the next request start.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Arrivals {
    /// The answer to the last one.
    Closed,
    /// A Poisson process, whatever the server does.
    Poisson { per_second: f64, seed: u64 },
}

/// The intended starts of a Poisson process, as times since the run's start.
pub(super) struct Schedule {
    random: StdRng,
    mean_gap_s: f64,
    next: Duration,
}

impl Schedule {
    pub(super) fn new(per_second: f64, seed: u64) -> Self {
        let mut schedule = Self {
            random: StdRng::seed_from_u64(seed),
            mean_gap_s: 1.0 / per_second.max(1e-3),
            next: Duration::ZERO,
        };
        schedule.advance();
        schedule
    }

    /// When the next request is meant to start.
    pub(super) fn next(&self) -> Duration {
        self.next
    }

    /// Draws the gap to the one after: exponential, by inversion.
    pub(super) fn advance(&mut self) {
        let uniform: f64 = self.random.random();
        let gap_s = -(1.0 - uniform).ln() * self.mean_gap_s;
        self.next += Duration::from_secs_f64(gap_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(per_second: f64, seed: u64, count: usize) -> Vec<f64> {
        let mut schedule = Schedule::new(per_second, seed);
        (0..count)
            .map(|_| {
                let start = schedule.next().as_secs_f64();
                schedule.advance();
                start
            })
            .collect()
    }

    #[test]
    fn a_seed_gives_one_schedule_and_another_seed_another() {
        assert_eq!(starts(1000.0, 7, 100), starts(1000.0, 7, 100));
        assert_ne!(starts(1000.0, 7, 100), starts(1000.0, 8, 100));
    }

    #[test]
    fn gaps_have_the_mean_and_the_spread_of_a_poisson_process() {
        let starts = starts(500.0, 42, 50_000);
        let gaps: Vec<f64> = starts.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let squares = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>();
        let deviation = (squares / gaps.len() as f64).sqrt();
        // An exponential's deviation is its mean; 50,000 draws are within 3 % of both.
        assert!((mean * 500.0 - 1.0).abs() < 0.03, "mean {mean}");
        assert!(
            (deviation * 500.0 - 1.0).abs() < 0.03,
            "deviation {deviation}"
        );
    }
}
