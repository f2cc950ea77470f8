//! Quality of a binary classifier's scores on matured labels, with the noise of
//! each measure: log loss, area under the ROC curve, calibration error.
//!
//! Pairs are sorted by score first, so that the result is the same to the bit
//! for any order of arrival. Costs one sort.

use serde::{Deserialize, Serialize};

/// Bins of the calibration error, equal width over 0 to 1.
const CALIBRATION_BINS: usize = 15;

/// Scores are kept this far from 0 and 1 in the log loss: about what separates
/// an `f32` from 1, so that one wrong certainty does not make it infinite.
const CLIP: f64 = 1e-7;

/// A score and what came true.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoredLabel {
    /// Probability of the positive class.
    pub score: f32,
    /// 0 or 1; between them a share. Above one half is positive for the AUC.
    pub label: f32,
}

/// Quality over a set of scored labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Pairs measured; those with a value that is not finite are left out.
    pub rows: u64,
    /// Mean label.
    pub base_rate: f64,
    /// Mean negative log likelihood, nats.
    pub log_loss: f64,
    /// Standard error of the log loss.
    pub log_loss_se: f64,
    /// Log loss over the entropy of the base rate: 1 for a model that knows only
    /// the base rate. Unknown where all labels are the same.
    pub normalized_log_loss: Option<f64>,
    /// Area under the ROC curve, ties by midranks. Unknown with one class.
    pub auc: Option<f64>,
    /// Its standard error (DeLong, DeLong & Clarke-Pearson 1988).
    pub auc_se: Option<f64>,
    /// Expected calibration error: 15 equal-width bins, weighted by rows.
    pub ece: f64,
    /// What the calibration error would be, on average, if the scores were
    /// perfectly calibrated: it is never 0 with finite rows.
    pub ece_calibrated: f64,
    /// Standard deviation of that.
    pub ece_calibrated_sd: f64,
}

impl Quality {
    /// Measures the pairs; nothing without a finite one.
    pub fn of(mut pairs: Vec<ScoredLabel>) -> Option<Quality> {
        pairs.retain(|pair| pair.score.is_finite() && pair.label.is_finite());
        if pairs.is_empty() {
            return None;
        }
        pairs.sort_unstable_by(|a, b| {
            a.score
                .total_cmp(&b.score)
                .then_with(|| a.label.total_cmp(&b.label))
        });
        let rows = pairs.len() as f64;
        let base_rate = pairs.iter().map(|pair| f64::from(pair.label)).sum::<f64>() / rows;
        let loss = Moments::of(pairs.iter().map(log_loss_of));
        let (auc, auc_se) = auc(&pairs).unzip();
        let calibration = Calibration::of(&pairs);
        Some(Quality {
            rows: pairs.len() as u64,
            base_rate,
            log_loss: loss.mean,
            log_loss_se: loss.standard_error(),
            normalized_log_loss: normalized(loss.mean, base_rate),
            auc,
            auc_se,
            ece: calibration.error,
            ece_calibrated: calibration.expected,
            ece_calibrated_sd: calibration.deviation,
        })
    }
}

/// Mean difference of log loss between two versions on the same rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PairedDifference {
    /// Rows compared.
    pub rows: u64,
    /// Mean of the first's loss minus the second's; negative when the first is better.
    pub mean: f64,
    /// Standard error of the mean. Smaller than from two separate samples, since
    /// the luck of the rows cancels.
    pub se: f64,
}

impl PairedDifference {
    /// Compares rows of (first version's score, second version's score, label).
    pub fn of(rows: &[(f32, f32, f32)]) -> Option<PairedDifference> {
        let differences = rows
            .iter()
            .filter(|(first, second, label)| {
                first.is_finite() && second.is_finite() && label.is_finite()
            })
            .map(|&(first, second, label)| {
                let loss = |score| log_loss_of(&ScoredLabel { score, label });
                loss(first) - loss(second)
            });
        let moments = Moments::of(differences);
        (moments.count > 0.0).then(|| PairedDifference {
            rows: moments.count as u64,
            mean: moments.mean,
            se: moments.standard_error(),
        })
    }
}

/// Log loss over the entropy of a base rate; unknown at 0 and 1.
pub fn normalized(log_loss: f64, base_rate: f64) -> Option<f64> {
    let p = base_rate;
    (p > 0.0 && p < 1.0).then(|| log_loss / -(p * p.ln() + (1.0 - p) * (1.0 - p).ln()))
}

fn log_loss_of(pair: &ScoredLabel) -> f64 {
    let p = f64::from(pair.score).clamp(CLIP, 1.0 - CLIP);
    let y = f64::from(pair.label);
    -(y * p.ln() + (1.0 - y) * (1.0 - p).ln())
}

/// Running mean and variance (Welford 1962).
#[derive(Default)]
struct Moments {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Moments {
    fn of(values: impl Iterator<Item = f64>) -> Moments {
        let mut moments = Moments::default();
        for value in values {
            moments.count += 1.0;
            let before = value - moments.mean;
            moments.mean += before / moments.count;
            moments.squares += before * (value - moments.mean);
        }
        moments
    }

    /// Sample variance; 0 below two values.
    fn variance(&self) -> f64 {
        if self.count < 2.0 {
            return 0.0;
        }
        self.squares / (self.count - 1.0)
    }

    fn standard_error(&self) -> f64 {
        if self.count < 1.0 {
            return 0.0;
        }
        (self.variance() / self.count).sqrt()
    }
}

/// Area and standard error from pairs sorted by score. A positive's placement is
/// the share of negatives below it (ties count half) and the other way round;
/// the area is the mean placement, its variance the sum of theirs over counts.
fn auc(sorted: &[ScoredLabel]) -> Option<(f64, f64)> {
    let positives = sorted.iter().filter(|pair| pair.label > 0.5).count() as f64;
    let negatives = sorted.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return None;
    }
    let (mut of_positives, mut of_negatives) = (Vec::new(), Vec::new());
    let (mut positives_below, mut negatives_below) = (0.0, 0.0);
    for tied in sorted.chunk_by(|a, b| a.score == b.score) {
        let tied_positives = tied.iter().filter(|pair| pair.label > 0.5).count();
        let tied_negatives = tied.len() - tied_positives;
        let (tied_p, tied_n) = (tied_positives as f64, tied_negatives as f64);
        let placement = (negatives_below + 0.5 * tied_n) / negatives;
        of_positives.extend(std::iter::repeat_n(placement, tied_positives));
        let placement = (positives - positives_below - 0.5 * tied_p) / positives;
        of_negatives.extend(std::iter::repeat_n(placement, tied_negatives));
        positives_below += tied_p;
        negatives_below += tied_n;
    }
    let of_positives = Moments::of(of_positives.into_iter());
    let of_negatives = Moments::of(of_negatives.into_iter());
    let variance = of_positives.variance() / positives + of_negatives.variance() / negatives;
    Some((of_positives.mean, variance.sqrt()))
}

struct Calibration {
    error: f64,
    expected: f64,
    deviation: f64,
}

impl Calibration {
    /// If scores are calibrated, a bin's gap is about normal with mean 0 and
    /// variance Σ p(1−p) / n², so its absolute value is half-normal: mean σ√(2/π),
    /// variance σ²(1 − 2/π).
    fn of(pairs: &[ScoredLabel]) -> Calibration {
        #[derive(Clone, Copy, Default)]
        struct Bin {
            scores: f64,
            labels: f64,
            variance: f64,
        }
        let mut bins = [Bin::default(); CALIBRATION_BINS];
        for pair in pairs {
            let score = f64::from(pair.score).clamp(0.0, 1.0);
            let index = (score * CALIBRATION_BINS as f64) as usize;
            let bin = &mut bins[index.min(CALIBRATION_BINS - 1)];
            bin.scores += score;
            bin.labels += f64::from(pair.label);
            bin.variance += score * (1.0 - score);
        }
        let rows = pairs.len() as f64;
        let half_normal = 2.0 / std::f64::consts::PI;
        let sum = |of: fn(&Bin) -> f64| bins.iter().map(of).sum::<f64>();
        Calibration {
            error: sum(|bin| (bin.scores - bin.labels).abs()) / rows,
            expected: half_normal.sqrt() * sum(|bin| bin.variance.sqrt()) / rows,
            deviation: ((1.0 - half_normal) * sum(|bin| bin.variance)).sqrt() / rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    fn pairs() -> impl Strategy<Value = Vec<ScoredLabel>> {
        let pair = (0u8..=20, any::<bool>()).prop_map(|(score, label)| ScoredLabel {
            score: f32::from(score) / 20.0,
            label: f32::from(u8::from(label)),
        });
        prop::collection::vec(pair, 1..80)
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    /// DeLong's structural components by comparing every pair.
    fn naive_auc(pairs: &[ScoredLabel]) -> Option<(f64, f64)> {
        let beats = |p: &ScoredLabel, n: &ScoredLabel| {
            f64::from(u8::from(p.score > n.score)) + 0.5 * f64::from(u8::from(p.score == n.score))
        };
        let (positives, negatives): (Vec<_>, Vec<_>) = pairs.iter().partition(|p| p.label > 0.5);
        if positives.is_empty() || negatives.is_empty() {
            return None;
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let variance = |values: &[f64]| {
            let center = mean(values);
            let squares: f64 = values.iter().map(|v| (v - center).powi(2)).sum();
            if values.len() < 2 {
                0.0
            } else {
                squares / (values.len() - 1) as f64
            }
        };
        let of_p: Vec<f64> = positives
            .iter()
            .map(|p| mean(&negatives.iter().map(|n| beats(p, n)).collect::<Vec<_>>()))
            .collect();
        let of_n: Vec<f64> = negatives
            .iter()
            .map(|n| mean(&positives.iter().map(|p| beats(p, n)).collect::<Vec<_>>()))
            .collect();
        let se = (variance(&of_p) / of_p.len() as f64 + variance(&of_n) / of_n.len() as f64).sqrt();
        Some((mean(&of_p), se))
    }

    fn naive_ece(pairs: &[ScoredLabel]) -> f64 {
        let mut sum = 0.0;
        for bin in 0..CALIBRATION_BINS {
            let inside: Vec<_> = pairs
                .iter()
                .filter(|p| {
                    let index = (f64::from(p.score) * 15.0).floor() as usize;
                    index.min(14) == bin
                })
                .collect();
            if inside.is_empty() {
                continue;
            }
            let n = inside.len() as f64;
            let scores: f64 = inside.iter().map(|p| f64::from(p.score)).sum();
            let labels: f64 = inside.iter().map(|p| f64::from(p.label)).sum();
            sum += n / pairs.len() as f64 * (scores / n - labels / n).abs();
        }
        sum
    }

    proptest! {
        #[test]
        fn measures_equal_the_naive_ones(pairs in pairs()) {
            let quality = Quality::of(pairs.clone()).unwrap();
            let naive = naive_auc(&pairs);
            prop_assert_eq!(quality.auc.is_some(), naive.is_some());
            if let (Some(auc), Some(se), Some(naive)) = (quality.auc, quality.auc_se, naive) {
                prop_assert!(close(auc, naive.0) && close(se, naive.1), "{} {} {:?}", auc, se, naive);
            }
            prop_assert!(close(quality.ece, naive_ece(&pairs)));
            let loss: f64 = pairs.iter().map(log_loss_of).sum();
            prop_assert!(close(quality.log_loss, loss / pairs.len() as f64));
        }

        #[test]
        fn the_order_of_arrival_changes_no_bit(pairs in pairs(), turn in 0usize..80) {
            let mut other = pairs.clone();
            other.rotate_left(turn % pairs.len());
            other.reverse();
            prop_assert_eq!(Quality::of(pairs), Quality::of(other));
        }

        #[test]
        fn a_paired_difference_is_the_difference_of_the_losses(
            rows in prop::collection::vec((0.01f32..0.99, 0.01f32..0.99, 0u8..2), 2..60),
        ) {
            let rows: Vec<_> = rows.into_iter().map(|(a, b, y)| (a, b, f32::from(y))).collect();
            let of = |pick: fn(&(f32, f32, f32)) -> f32| {
                Quality::of(rows.iter().map(|row| ScoredLabel { score: pick(row), label: row.2 }).collect()).unwrap()
            };
            let paired = PairedDifference::of(&rows).unwrap();
            prop_assert!(close(paired.mean, of(|r| r.0).log_loss - of(|r| r.1).log_loss));
            let same: Vec<_> = rows.iter().map(|r| (r.0, r.0, r.2)).collect();
            let none = PairedDifference::of(&same).unwrap();
            prop_assert_eq!((none.mean, none.se), (0.0, 0.0));
        }
    }

    #[test]
    fn knowing_only_the_base_rate_is_a_normalized_loss_of_one() {
        let pairs = (0..1000).map(|i| ScoredLabel {
            score: 0.25,
            label: if i % 4 == 0 { 1.0 } else { 0.0 },
        });
        let quality = Quality::of(pairs.collect()).unwrap();
        assert!((quality.normalized_log_loss.unwrap() - 1.0).abs() < 1e-6);
        assert_eq!((quality.auc, quality.auc_se), (Some(0.5), Some(0.0)));
        assert!(quality.ece < 1e-9);
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let bad = ScoredLabel {
            score: f32::NAN,
            label: 1.0,
        };
        assert_eq!(Quality::of(vec![bad]), None);
        let good = ScoredLabel {
            score: 1.0,
            label: 0.0,
        };
        let quality = Quality::of(vec![bad, good]).unwrap();
        assert_eq!((quality.rows, quality.normalized_log_loss), (1, None));
        assert!(quality.log_loss.is_finite());
    }

    #[test]
    fn errors_of_calibrated_scores_spread_as_predicted() {
        let seed = 20_130_702;
        let mut random = StdRng::seed_from_u64(seed);
        let (mut ece, mut loss, mut auc) = (Vec::new(), Vec::new(), Vec::new());
        let mut last = None;
        for _ in 0..400 {
            let draw = (0..1500).map(|_| {
                let score = random.random_range(0.02f32..0.98).powi(2);
                ScoredLabel {
                    score,
                    label: f32::from(u8::from(random.random::<f32>() < score)),
                }
            });
            let quality = Quality::of(draw.collect()).unwrap();
            ece.push(quality.ece);
            loss.push(quality.log_loss);
            auc.push(quality.auc.unwrap());
            last = Some(quality);
        }
        let last = last.unwrap();
        let spread = |values: Vec<f64>| Moments::of(values.into_iter());
        let (ece, loss, auc) = (spread(ece), spread(loss), spread(auc));
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 0.15;
        assert!(near(last.ece_calibrated, ece.mean), "seed {seed}");
        assert!(
            near(last.ece_calibrated_sd, ece.variance().sqrt()),
            "seed {seed}"
        );
        assert!(
            near(last.log_loss_se, loss.variance().sqrt()),
            "seed {seed}"
        );
        assert!(
            near(last.auc_se.unwrap(), auc.variance().sqrt()),
            "seed {seed}"
        );
    }
}
