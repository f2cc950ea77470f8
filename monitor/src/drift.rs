//! Has a distribution moved by more than is allowed, and by more than chance?
//!
//! The population stability index (PSI) of current against reference counts in
//! the same bins. Under "no change" `n_e · PSI` follows χ² with `bins − 1`
//! degrees of freedom (Yurdakul, 2018), with `n_e = n·m / (n + m)`; under "the
//! true index is δ" it follows the noncentral χ² with λ = `n_e · δ`. Testing
//! against δ keeps large windows from calling everything significant, and small
//! ones from alarming at every accident.

use statrs::distribution::{ContinuousCDF, Normal};
use statrs::function::gamma::{gamma_lr, ln_gamma};

/// Above this noncentrality the quantile comes from a normal with a term for
/// skewness; the two agree there to 1 part in 10⁵.
const LAMBDA_MAX: f64 = 1e6;

/// A drift test's false-alarm rate and the smallest index that matters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DriftTest {
    /// Probability of an alarm while the true index is `psi_min`.
    pub alpha: f64,
    /// δ: the largest index that is still no drift; 0 tests any change.
    pub psi_min: f64,
}

/// Population stability index of `current` against `reference`, nats, from the
/// counts in the same bins. Half a row is added to each bin of both, without
/// which one bin that is empty on one side would make it infinite.
pub fn psi(reference: &[u64], current: &[u64]) -> f64 {
    let shares = |counts: &[u64]| -> Vec<f64> {
        let total = counts.iter().sum::<u64>() as f64 + 0.5 * counts.len() as f64;
        counts
            .iter()
            .map(|count| (*count as f64 + 0.5) / total)
            .collect()
    };
    let (reference, current) = (shares(reference), shares(current));
    let terms = reference.iter().zip(&current);
    terms.map(|(p, q)| (q - p) * (q / p).ln()).sum()
}

/// `n·m / (n + m)`: the sample size of a comparison of two samples.
pub fn rows_effective(current: f64, reference: f64) -> f64 {
    if current + reference > 0.0 {
        current * reference / (current + reference)
    } else {
        0.0
    }
}

impl DriftTest {
    /// The index above which `rows_effective` rows in `bins` bins show drift.
    /// Infinite where there is nothing to test: no rows, or a single bin.
    pub fn threshold(&self, rows_effective: f64, bins: usize) -> f64 {
        if bins < 2 || rows_effective <= 0.0 {
            return f64::INFINITY;
        }
        let freedom = (bins - 1) as f64;
        let lambda = rows_effective * self.psi_min;
        noncentral_chi_squared_quantile(freedom, lambda, self.alpha) / rows_effective
    }
}

/// The value that a noncentral χ² exceeds with probability `alpha`.
pub fn noncentral_chi_squared_quantile(freedom: f64, lambda: f64, alpha: f64) -> f64 {
    let mean = freedom + lambda;
    let deviation = (2.0 * (freedom + 2.0 * lambda)).sqrt();
    if lambda > LAMBDA_MAX {
        let z = Normal::standard().inverse_cdf(1.0 - alpha);
        let skewness = 8.0 * (freedom + 3.0 * lambda) / deviation.powi(3);
        return mean + deviation * (z + skewness * (z * z - 1.0) / 6.0);
    }
    // By Chebyshev-like slack for every alpha down to 1e-12; bisected to the bit.
    let (mut low, mut high) = (0.0, mean + 60.0 * deviation);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if middle <= low || middle >= high {
            break;
        }
        if 1.0 - noncentral_chi_squared_cdf(freedom, lambda, middle) > alpha {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

/// Poisson mixture of central χ²: `Σ_j Pois(j; λ/2) · P(freedom/2 + j, x/2)`,
/// summed outwards from the largest weight. Each next `P(a, x)` comes from its
/// neighbour by `P(a+1, x) = P(a, x) − xᵃ e⁻ˣ / Γ(a+1)`, so the cost is one
/// incomplete gamma and about `12·√λ` products.
fn noncentral_chi_squared_cdf(freedom: f64, lambda: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    let (half_lambda, half_x) = (0.5 * lambda, 0.5 * x);
    let mode = half_lambda.floor();
    let shape = 0.5 * freedom + mode;
    let weight = if lambda > 0.0 {
        (mode * half_lambda.ln() - half_lambda - ln_gamma(mode + 1.0)).exp()
    } else {
        1.0
    };
    let share = gamma_lr(shape, half_x);
    let step = (shape * half_x.ln() - half_x - ln_gamma(shape + 1.0)).exp();
    let mut sum = weight * share;

    let (mut j, mut w, mut p, mut t, mut a) = (mode, weight, share, step, shape);
    while w > 1e-17 && half_lambda > 0.0 {
        j += 1.0;
        w *= half_lambda / j;
        p = (p - t).max(0.0);
        a += 1.0;
        t *= half_x / a;
        sum += w * p;
    }
    let (mut j, mut w, mut p, mut t, mut a) = (mode, weight, share, step, shape);
    while j >= 1.0 && w > 1e-17 {
        w *= j / half_lambda;
        j -= 1.0;
        t *= a / half_x;
        a -= 1.0;
        p = (p + t).min(1.0);
        sum += w * p;
    }
    sum.min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};
    use statrs::distribution::ChiSquared;

    fn threshold(rows: f64, alpha: f64, psi_min: f64) -> f64 {
        DriftTest { alpha, psi_min }.threshold(rows, 10)
    }

    #[test]
    fn thresholds_against_a_large_reference_are_those_of_the_central_law() {
        // SciPy 1.x: chi2.ppf(1 - alpha, 9) / rows.
        for (rows, alpha, expected) in [
            (1e3, 1e-3, 0.027_877_165),
            (1e3, 1e-5, 0.039_340_654),
            (1e4, 1e-3, 0.002_787_717),
            (1e4, 1e-5, 0.003_934_065),
            (1e5, 1e-3, 0.000_278_771_65),
        ] {
            let found = threshold(rows, alpha, 0.0);
            assert!(
                (found / expected - 1.0).abs() < 1e-6,
                "{rows} {alpha}: {found}"
            );
        }
        for freedom in [1.0, 3.0, 9.0, 15.0, 63.0] {
            let central = ChiSquared::new(freedom).unwrap().inverse_cdf(0.999);
            let found = noncentral_chi_squared_quantile(freedom, 0.0, 1e-3);
            assert!(
                (found / central - 1.0).abs() < 1e-6,
                "{freedom}: {found} {central}"
            );
        }
    }

    #[test]
    fn thresholds_of_a_minimum_effect_tend_to_it() {
        // SciPy 1.x: ncx2.ppf(1 - alpha, 9, 0.1 * rows) / rows.
        for (rows, expected) in [
            (500.0, 0.225_580_175),
            (2000.0, 0.152_886_836),
            (10_000.0, 0.121_337_265),
        ] {
            let found = threshold(rows, 1e-3, 0.1);
            assert!((found / expected - 1.0).abs() < 1e-6, "{rows}: {found}");
        }
        assert!((threshold(1e9, 1e-3, 0.1) - 0.1).abs() < 1e-4);
    }

    #[test]
    fn calibrated_thresholds_of_two_equal_samples_are_those_simulated() {
        // 1 % level, ten bins, n = m, so that n_e = n / 2.
        for (rows, expected) in [
            (50.0, 0.87),
            (100.0, 0.43),
            (200.0, 0.22),
            (500.0, 0.087),
            (5000.0, 0.0087),
        ] {
            let found = threshold(rows_effective(rows, rows), 0.01, 0.0);
            assert!((found / expected - 1.0).abs() < 0.02, "{rows}: {found}");
        }
    }

    #[test]
    fn the_two_ways_to_a_quantile_meet() {
        let mixture = noncentral_chi_squared_quantile(15.0, LAMBDA_MAX, 1e-5);
        let normal = noncentral_chi_squared_quantile(15.0, LAMBDA_MAX * (1.0 + 1e-9), 1e-5);
        assert!((mixture / normal - 1.0).abs() < 1e-5, "{mixture} {normal}");
    }

    #[test]
    fn a_stable_feature_alarms_as_rarely_as_asked() {
        let seed = 20_130_301;
        let mut random = StdRng::seed_from_u64(seed);
        let reference = vec![5_000u64; 16];
        let limit = DriftTest {
            alpha: 0.05,
            psi_min: 0.0,
        }
        .threshold(rows_effective(1000.0, 80_000.0), 16);
        let alarms = (0..2000)
            .filter(|_| {
                let mut current = vec![0u64; 16];
                for _ in 0..1000 {
                    current[random.random_range(0..16)] += 1;
                }
                psi(&reference, &current) > limit
            })
            .count();
        assert!(
            (60..=140).contains(&alarms),
            "{alarms} of 2000 at 5 %, seed {seed}"
        );
    }

    proptest! {
        #[test]
        fn the_mixture_equals_the_plain_sum(
            freedom in 1u8..30, lambda in 0.0f64..200.0, x in 0.1f64..400.0,
        ) {
            let freedom = f64::from(freedom);
            let mut weight = (-0.5 * lambda).exp();
            let mut plain = 0.0;
            for j in 0..600 {
                let j = f64::from(j);
                plain += weight * gamma_lr(0.5 * freedom + j, 0.5 * x);
                weight *= 0.5 * lambda / (j + 1.0);
            }
            let found = noncentral_chi_squared_cdf(freedom, lambda, x);
            prop_assert!((found - plain).abs() < 1e-10, "{} {}", found, plain);
        }

        #[test]
        fn psi_is_never_negative_and_zero_for_equal_counts(
            counts in prop::collection::vec((0u64..1000, 0u64..1000), 1..20),
        ) {
            let (a, b): (Vec<u64>, Vec<u64>) = counts.into_iter().unzip();
            prop_assert!(psi(&a, &b) >= 0.0);
            prop_assert_eq!(psi(&a, &a), 0.0);
        }
    }
}
