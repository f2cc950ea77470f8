//! How good answers are: log loss, AUC, calibration error, and whether one model is better than
//! another on the same rows.
//!
//! Must not know: learners, engines, gates.
//! Costs: scores sort the rows once; a bootstrap costs one pass plus resamples × blocks.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde::Serialize;

/// Scores are kept this far from 0 and 1 before a logarithm, so that one sure and wrong answer
/// costs 16 nats and not infinity.
const EDGE: f64 = 1e-7;
/// Equal-width bins of the calibration error.
const BINS: usize = 15;

/// Scores of one model on some rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Scores {
    /// Mean log loss, in nats.
    pub(crate) log_loss: f64,
    /// Chance that a row with label 1 scores above one with label 0; 0.5 when a label is absent.
    pub(crate) auc: f64,
    /// Expected calibration error over 15 equal bins (Naeini et al., AAAI 2015).
    pub(crate) ece: f64,
    /// Rows scored.
    pub(crate) rows: usize,
}

impl Scores {
    /// Scores probabilities against labels of 0 and 1, row by row.
    pub(crate) fn of(scores: &[f32], labels: &[f32]) -> Self {
        let losses = losses(scores, labels);
        Self {
            log_loss: losses.iter().sum::<f64>() / losses.len().max(1) as f64,
            auc: auc(scores, labels),
            ece: ece(scores, labels),
            rows: scores.len(),
        }
    }
}

/// The log loss of each row, in nats.
pub(crate) fn losses(scores: &[f32], labels: &[f32]) -> Vec<f64> {
    scores
        .iter()
        .zip(labels)
        .map(|(&score, &label)| {
            let score = f64::from(score).clamp(EDGE, 1.0 - EDGE);
            if label > 0.5 {
                -score.ln()
            } else {
                -(1.0 - score).ln()
            }
        })
        .collect()
}

/// The mean log loss of answering `share` for every row.
pub(crate) fn constant_log_loss(share: f64, labels: &[f32]) -> f64 {
    let positives = labels.iter().filter(|&&label| label > 0.5).count() as f64;
    let negatives = labels.len() as f64 - positives;
    let share = share.clamp(EDGE, 1.0 - EDGE);
    -(positives * share.ln() + negatives * (1.0 - share).ln()) / labels.len().max(1) as f64
}

/// Mann-Whitney's statistic by ranks, ties counted half.
fn auc(scores: &[f32], labels: &[f32]) -> f64 {
    let mut order: Vec<(f32, bool)> = scores
        .iter()
        .zip(labels)
        .map(|(&s, &l)| (s, l > 0.5))
        .collect();
    order.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut below, mut pairs, mut positives) = (0.0, 0.0, 0.0);
    for tied in order.chunk_by(|a, b| a.0 == b.0) {
        let ones = tied.iter().filter(|(_, one)| *one).count() as f64;
        let zeros = tied.len() as f64 - ones;
        pairs += ones * (below + zeros / 2.0);
        below += zeros;
        positives += ones;
    }
    if positives == 0.0 || below == 0.0 {
        return 0.5;
    }
    pairs / (positives * below)
}

fn ece(scores: &[f32], labels: &[f32]) -> f64 {
    let mut gaps = [0.0; BINS];
    for (&score, &label) in scores.iter().zip(labels) {
        let bin = ((f64::from(score) * BINS as f64) as usize).min(BINS - 1);
        gaps[bin] += f64::from(score) - f64::from(label);
    }
    gaps.iter().map(|gap| gap.abs()).sum::<f64>() / scores.len().max(1) as f64
}

/// How a bound on a mean is found by resampling.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bootstrap {
    /// Resamples drawn.
    pub(crate) resamples: usize,
    /// One-sided confidence of the bound.
    pub(crate) confidence: f64,
    /// Rows within the same stretch of time are drawn together; 0 draws single rows.
    pub(crate) block_ms: i64,
    /// Seed of the draws.
    pub(crate) seed: u64,
}

/// A mean and its lower confidence bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Bound {
    /// The mean over all rows.
    pub(crate) mean: f64,
    /// The mean is above this with the stated confidence.
    pub(crate) lower: f64,
    /// Independent units that were resampled.
    pub(crate) blocks: usize,
}

impl Bootstrap {
    /// The percentile bound (Efron & Tibshirani 1993, ch. 13) of the mean of paired differences.
    /// Whole blocks are drawn, because rows of one hour share weather and congestion: single
    /// rows would promise a narrower bound than they can keep. `times_ms` must not fall.
    pub(crate) fn lower_bound(&self, differences: &[f64], times_ms: &[i64]) -> Bound {
        let blocks = self.blocks(differences, times_ms);
        let total: f64 = blocks.iter().map(|block| block.0).sum();
        let mean = total / differences.len().max(1) as f64;
        if blocks.len() < 2 {
            return Bound {
                mean,
                lower: f64::NEG_INFINITY,
                blocks: blocks.len(),
            };
        }
        let mut random = StdRng::seed_from_u64(self.seed);
        let mut means: Vec<f64> = (0..self.resamples)
            .map(|_| {
                let (mut sum, mut rows) = (0.0, 0.0);
                for _ in 0..blocks.len() {
                    let (block_sum, block_rows) = blocks[random.random_range(0..blocks.len())];
                    sum += block_sum;
                    rows += block_rows;
                }
                sum / rows
            })
            .collect();
        means.sort_unstable_by(f64::total_cmp);
        let rank = ((1.0 - self.confidence) * self.resamples as f64).floor() as usize;
        Bound {
            mean,
            lower: means[rank.min(means.len() - 1)],
            blocks: blocks.len(),
        }
    }

    /// Sum and rows of each block, in time order.
    fn blocks(&self, differences: &[f64], times_ms: &[i64]) -> Vec<(f64, f64)> {
        if self.block_ms <= 0 {
            return differences
                .iter()
                .map(|&difference| (difference, 1.0))
                .collect();
        }
        let mut blocks = Vec::new();
        let mut current = None;
        for (&difference, &at_ms) in differences.iter().zip(times_ms) {
            let block = at_ms.div_euclid(self.block_ms);
            if current != Some(block) {
                current = Some(block);
                blocks.push((0.0, 0.0));
            }
            if let Some((sum, rows)) = blocks.last_mut() {
                *sum += difference;
                *rows += 1.0;
            }
        }
        blocks
    }
}

#[cfg(test)]
mod tests {
    use std::cmp::Ordering;

    use proptest::collection::vec;
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    const ROWS: Bootstrap = Bootstrap {
        resamples: 1_000,
        confidence: 0.95,
        block_ms: 0,
        seed: 7,
    };

    #[test]
    fn scores_match_a_hand_calculation() {
        let scores = Scores::of(&[0.1, 0.4, 0.35, 0.8], &[0.0, 0.0, 1.0, 1.0]);
        assert!((scores.auc - 0.75).abs() < 1e-12);
        let log_loss = -(0.9f64.ln() + 0.6f64.ln() + 0.35f64.ln() + 0.8f64.ln()) / 4.0;
        assert!((scores.log_loss - log_loss).abs() < 1e-6);
        // Bins of 1/15: 0.1 -> 1, 0.4 -> 6, 0.35 -> 5, 0.8 -> 12; each row is alone.
        assert!((scores.ece - (0.1 + 0.4 + 0.65 + 0.2) / 4.0).abs() < 1e-6);
    }

    #[test]
    fn ties_and_a_single_label_count_as_chance() {
        assert_eq!(Scores::of(&[0.5; 4], &[0.0, 1.0, 0.0, 1.0]).auc, 0.5);
        assert_eq!(Scores::of(&[0.1, 0.9], &[1.0, 1.0]).auc, 0.5);
    }

    #[test]
    fn a_sure_and_wrong_answer_costs_a_finite_loss() {
        assert!(Scores::of(&[0.0, 1.0], &[1.0, 0.0]).log_loss.is_finite());
    }

    #[test]
    fn the_constant_answer_is_the_entropy_at_the_true_share() {
        let entropy = -(0.25f64 * 0.25f64.ln() + 0.75 * 0.75f64.ln());
        assert!((constant_log_loss(0.25, &[1.0, 0.0, 0.0, 0.0]) - entropy).abs() < 1e-12);
    }

    #[test]
    fn the_bound_agrees_with_the_normal_law() {
        let mut random = StdRng::seed_from_u64(3);
        let differences: Vec<f64> = (0..20_000)
            .map(|_| random.random_range(-1.0..1.2))
            .collect();
        let times = vec![0; differences.len()];
        let bound = ROWS.lower_bound(&differences, &times);
        let deviation = (2.2f64.powi(2) / 12.0 / 20_000.0).sqrt();
        let expected = bound.mean - 1.645 * deviation;
        assert!(
            (bound.lower - expected).abs() < 0.25 * deviation,
            "{bound:?} {expected}"
        );
        assert_eq!(
            bound,
            ROWS.lower_bound(&differences, &times),
            "same seed, same bound"
        );
    }

    #[test]
    fn the_bound_covers_as_often_as_promised() {
        let mut random = StdRng::seed_from_u64(11);
        let bootstrap = Bootstrap {
            resamples: 400,
            ..ROWS
        };
        let above = (0..400)
            .filter(|_| {
                let differences: Vec<f64> =
                    (0..200).map(|_| random.random_range(-1.0..1.0)).collect();
                bootstrap.lower_bound(&differences, &[0; 200]).lower > 0.0
            })
            .count();
        // 5 % of 400 is 20 with a standard deviation of 4.4.
        assert!(
            (5..=38).contains(&above),
            "{above} of 400 bounds lie above the true mean"
        );
    }

    #[test]
    fn rows_that_repeat_each_other_do_not_narrow_a_blocked_bound() {
        let mut random = StdRng::seed_from_u64(5);
        let hours: Vec<f64> = (0..100).map(|_| random.random_range(-1.0..1.2)).collect();
        let differences: Vec<f64> = hours.iter().flat_map(|&d| [d; 50]).collect();
        let times: Vec<i64> = (0..100).flat_map(|h| [h * 3_600_000; 50]).collect();
        let hourly = Bootstrap {
            block_ms: 3_600_000,
            ..ROWS
        };
        let blocked = hourly.lower_bound(&differences, &times);
        assert_eq!(blocked.blocks, 100);
        assert!(blocked.lower < ROWS.lower_bound(&differences, &times).lower);
    }

    proptest! {
        #[test]
        fn auc_equals_counting_every_pair(rows in vec((0u8..6, any::<bool>()), 2..60)) {
            let scores: Vec<f32> = rows.iter().map(|(score, _)| f32::from(*score) / 5.0).collect();
            let labels: Vec<f32> = rows.iter().map(|(_, one)| f32::from(u8::from(*one))).collect();
            let (mut won, mut pairs) = (0.0, 0.0);
            for (one, _) in rows.iter().filter(|(_, one)| *one) {
                for (zero, _) in rows.iter().filter(|(_, one)| !*one) {
                    pairs += 1.0;
                    won += match one.cmp(zero) {
                        Ordering::Greater => 1.0,
                        Ordering::Equal => 0.5,
                        Ordering::Less => 0.0,
                    };
                }
            }
            let expected = if pairs == 0.0 { 0.5 } else { won / pairs };
            prop_assert!((auc(&scores, &labels) - expected).abs() < 1e-12);
        }

        #[test]
        fn a_bound_lies_between_the_worst_block_and_the_mean(
            differences in vec(-1.0f64..1.0, 40..120),
            block_ms in 1i64..5,
        ) {
            let times: Vec<i64> = (0..differences.len() as i64).collect();
            let bootstrap = Bootstrap { resamples: 200, confidence: 0.9, block_ms, seed: 1 };
            let bound = bootstrap.lower_bound(&differences, &times);
            let mean = differences.iter().sum::<f64>() / differences.len() as f64;
            let worst = differences.iter().copied().fold(f64::INFINITY, f64::min);
            prop_assert!((bound.mean - mean).abs() < 1e-12);
            prop_assert!(bound.lower >= worst && bound.lower <= bound.mean + 0.1);
        }
    }
}
