//! How good a policy's probabilities were: AUC, log loss and calibration error.
//!
//! The bench scores from outside, with its own few lines, what the gateway's monitor scores within.

use serde::Serialize;

/// Bins of equal width over which the calibration error is taken.
const CALIBRATION_BINS: usize = 15;

/// The quality of one policy on some rows.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Quality {
    /// Area under the ROC curve; ties count half. NaN-free: 0.5 where only one class is present.
    pub auc: f64,
    /// Mean negative log likelihood, in nats.
    pub log_loss: f64,
    /// Expected calibration error over 15 bins of equal width.
    pub ece: f64,
    pub rows: usize,
}

/// Scores `(probability, outcome)` pairs; `None` without rows.
pub(crate) fn quality(pairs: &[(f32, bool)]) -> Option<Quality> {
    if pairs.is_empty() {
        return None;
    }
    Some(Quality {
        auc: auc(pairs),
        log_loss: log_loss(pairs),
        ece: calibration_error(pairs),
        rows: pairs.len(),
    })
}

/// The Mann-Whitney statistic by mid-ranks (Hanley & McNeil 1982).
fn auc(pairs: &[(f32, bool)]) -> f64 {
    let mut sorted = pairs.to_vec();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let positives = sorted.iter().filter(|pair| pair.1).count() as f64;
    let negatives = sorted.len() as f64 - positives;
    if positives == 0.0 || negatives == 0.0 {
        return 0.5;
    }
    let mut rank_sum = 0.0;
    let mut start = 0;
    while start < sorted.len() {
        let ties = sorted[start..]
            .iter()
            .take_while(|pair| pair.0 == sorted[start].0)
            .count();
        let middle_rank = start as f64 + (ties as f64 + 1.0) / 2.0;
        let tied_positives = sorted[start..start + ties]
            .iter()
            .filter(|pair| pair.1)
            .count();
        rank_sum += middle_rank * tied_positives as f64;
        start += ties;
    }
    (rank_sum - positives * (positives + 1.0) / 2.0) / (positives * negatives)
}

fn log_loss(pairs: &[(f32, bool)]) -> f64 {
    let total: f64 = pairs
        .iter()
        .map(|&(probability, outcome)| {
            let p = f64::from(probability).clamp(1e-7, 1.0 - 1e-7);
            if outcome { -p.ln() } else { -(1.0 - p).ln() }
        })
        .sum();
    total / pairs.len() as f64
}

fn calibration_error(pairs: &[(f32, bool)]) -> f64 {
    let mut gap = [0.0f64; CALIBRATION_BINS];
    for &(probability, outcome) in pairs {
        let bin = (f64::from(probability) * CALIBRATION_BINS as f64) as usize;
        gap[bin.min(CALIBRATION_BINS - 1)] += f64::from(probability) - f64::from(u8::from(outcome));
    }
    gap.iter().map(|g| g.abs()).sum::<f64>() / pairs.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn naive_auc(pairs: &[(f32, bool)]) -> f64 {
        let mut won = 0.0;
        let mut compared = 0.0;
        for p in pairs.iter().filter(|pair| pair.1) {
            for n in pairs.iter().filter(|pair| !pair.1) {
                compared += 1.0;
                won += match p.0.total_cmp(&n.0) {
                    std::cmp::Ordering::Greater => 1.0,
                    std::cmp::Ordering::Equal => 0.5,
                    std::cmp::Ordering::Less => 0.0,
                };
            }
        }
        if compared == 0.0 { 0.5 } else { won / compared }
    }

    proptest! {
        #[test]
        fn auc_equals_the_share_of_pairs_in_order(
            pairs in prop::collection::vec(((0u8..20).prop_map(|p| f32::from(p) / 20.0), any::<bool>()), 1..80)
        ) {
            prop_assert!((auc(&pairs) - naive_auc(&pairs)).abs() < 1e-12);
        }
    }

    #[test]
    fn a_calibrated_policy_has_no_calibration_error() {
        let pairs = [(0.5, true), (0.5, false), (1.0, true), (0.0, false)];
        let scored = quality(&pairs).expect("rows");
        assert!(scored.ece.abs() < 1e-12);
        assert_eq!(scored.rows, 4);
        assert!((log_loss(&[(0.5, true)]) - std::f64::consts::LN_2).abs() < 1e-12);
    }
}
