//! One verdict from one window: data fault before decay before drift.
//!
//! A fault of the data explains away everything after it, so it comes first;
//! labels are the authority on whether the model is wrong, so decay comes before
//! drift. Every test needs both a least effect and to be beyond noise: large
//! windows make everything significant, small ones make accidents look large.

mod skew;

use std::collections::BTreeMap;

use featurestore::Status;
use registry::Version;
use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, Normal};
use statrs::function::beta::checked_beta_reg;

use crate::baseline::{Baseline, FeatureBaseline, ReferenceQuality};
use crate::counters::Counters;
use crate::drift::{DriftTest, psi, rows_effective};
use crate::policy::{DecayPolicy, MonitorPolicy, Policy, Positive};
use crate::quality::{Quality, ScoredLabel};

pub use self::skew::Skew;

/// Bins that expect fewer rows are pooled: below it χ² is no longer a good law.
const EXPECTED_MIN: f64 = 5.0;

/// What one evaluation says about the champion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As good as its validation promised.
    Healthy,
    /// Too few rows or labels to say.
    Unknown,
    /// The traffic differs from the training rows; labels do not show harm.
    Drift,
    /// Worse on matured labels than its own validation.
    Decay,
    /// Values are missing, unseen or not found far more often than before.
    DataFault,
}

impl Verdict {
    /// Every verdict, for metrics.
    pub const ALL: [Verdict; 5] = [
        Verdict::Healthy,
        Verdict::Unknown,
        Verdict::Drift,
        Verdict::Decay,
        Verdict::DataFault,
    ];

    /// The name in metrics, decisions and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Healthy => "healthy",
            Verdict::Unknown => "unknown",
            Verdict::Drift => "drift",
            Verdict::Decay => "decay",
            Verdict::DataFault => "data_fault",
        }
    }

    /// The verdict of that name.
    pub fn from_name(name: &str) -> Option<Verdict> {
        Verdict::ALL
            .into_iter()
            .find(|verdict| verdict.as_str() == name)
    }
}

/// What is judged: one champion's window against its reference.
#[derive(Clone, Debug)]
pub struct Observed<'a> {
    /// End of the window.
    pub window_end_ms: i64,
    /// The version judged.
    pub champion: Version,
    /// Its reference bins, where known.
    pub baseline: Option<&'a Baseline>,
    /// What was served in the window, in those bins.
    pub window: Option<&'a Counters>,
    /// Its quality at validation, where known.
    pub reference: Option<ReferenceQuality>,
    /// Its scores and the labels that became known in the decay window.
    pub outcomes: Vec<ScoredLabel>,
    /// Labelled share of the predictions old enough to have a label, where known.
    pub coverage: Option<f64>,
    /// What differed in the last verification of served rows, if anything did.
    pub skew: Option<&'a Skew>,
}

/// A verdict and what it rests on.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
    /// The figures.
    pub evidence: Evidence,
}

/// The figures of one evaluation, as kept in the metadata store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// End of the window.
    pub window_end_ms: i64,
    /// The version judged.
    pub champion: Version,
    /// Rows of the window.
    pub rows: u64,
    /// Labelled share of the predictions old enough to have a label, where known.
    pub coverage: Option<f64>,
    /// Shares that jumped, worst first.
    pub faults: Vec<Fault>,
    /// Population stability index of each feature and of `score`, nats.
    pub psi: BTreeMap<String, f64>,
    /// Those beyond their threshold, highest index first.
    pub drifted: Vec<Drifted>,
    /// Quality on matured labels, where there were enough.
    pub quality: Option<Quality>,
    /// What it is compared with.
    pub reference: Option<ReferenceQuality>,
    /// One test for each measure with a tolerance.
    pub decay: Vec<DecayTest>,
}

impl Evidence {
    /// Evidence of nothing, about one champion at one time.
    pub(crate) fn empty(champion: Version, window_end_ms: i64) -> Evidence {
        Evidence {
            window_end_ms,
            champion,
            rows: 0,
            coverage: None,
            faults: Vec::new(),
            psi: BTreeMap::new(),
            drifted: Vec::new(),
            quality: None,
            reference: None,
            decay: Vec::new(),
        }
    }
}

/// A share that rose too far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The feature.
    pub feature: String,
    /// `missing`, `not_found`, `outside_max_age` or `unknown_category`; `skew` where rows were served
    /// otherwise than they are recomputed.
    pub kind: String,
    /// Share in the reference.
    pub reference: f64,
    /// Share in the window.
    pub current: f64,
    /// Probability of so many under the reference share (binomial).
    pub p_value: f64,
}

/// A feature whose distribution moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drifted {
    /// The feature, or `score`.
    pub feature: String,
    /// Population stability index, nats.
    pub psi: f64,
    /// The index that chance and the least effect together explain.
    pub threshold: f64,
}

/// One measure of quality against the reference.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecayTest {
    /// `log_loss`, `normalized_log_loss`, `auc` or `ece`.
    pub measure: String,
    /// At validation.
    pub reference: f64,
    /// In the decay window.
    pub current: f64,
    /// The worst value within the tolerance.
    pub limit: f64,
    /// How many standard errors worse than the reference.
    pub z: f64,
    /// How many it takes.
    pub z_limit: f64,
    /// Beyond both.
    pub failed: bool,
}

/// Judges one window of one champion.
pub fn judge(policy: &Policy, observed: Observed<'_>) -> Judgement {
    let monitor = &policy.monitor;
    let quality = Quality::of(observed.outcomes)
        .filter(|quality| quality.rows >= monitor.decay.rows_min.get())
        .filter(|_| {
            observed
                .coverage
                .is_none_or(|share| share >= policy.label.coverage_min.get())
        });
    let mut evidence = Evidence {
        rows: observed.window.map_or(0, Counters::rows),
        coverage: observed.coverage,
        quality,
        reference: observed.reference,
        ..Evidence::empty(observed.champion, observed.window_end_ms)
    };
    let compared = observed
        .baseline
        .zip(observed.window)
        .filter(|(baseline, window)| {
            baseline.version == window.version() && window.rows() >= monitor.rows_min.get()
        });
    if let Some((baseline, window)) = compared {
        evidence.faults = faults(monitor, baseline, window);
        (evidence.psi, evidence.drifted) = drifted(monitor, baseline, window);
    }
    if let Some(skew) = observed.skew {
        evidence.faults.splice(0..0, skew.faults());
    }
    if let (Some(quality), Some(reference)) = (&evidence.quality, &evidence.reference) {
        evidence.decay = decay(&monitor.decay, quality, reference);
    }
    let (verdict, reason) = conclude(&monitor.decay, &evidence, compared.is_some());
    Judgement {
        verdict,
        reason,
        evidence,
    }
}

fn conclude(policy: &DecayPolicy, evidence: &Evidence, compared: bool) -> (Verdict, String) {
    if let Some(reason) = evidence.faults.first().and_then(skew::reason) {
        return (Verdict::DataFault, reason);
    }
    if let Some(fault) = evidence.faults.first() {
        let reason = format!(
            "`{}` is {} in {:.1} % of rows, before {:.1} % ({} such shares)",
            fault.feature,
            fault.kind,
            100.0 * fault.current,
            100.0 * fault.reference,
            evidence.faults.len()
        );
        return (Verdict::DataFault, reason);
    }
    if let Some(test) = evidence.decay.iter().find(|test| test.failed) {
        let reason = format!(
            "{} {:.4} on matured labels, {:.4} at validation ({:.1} standard errors)",
            test.measure, test.current, test.reference, test.z
        );
        return (Verdict::Decay, reason);
    }
    if let Some(worst) = evidence.drifted.first() {
        let reason = format!(
            "`{}` has a stability index of {:.3}, above {:.3} ({} such features)",
            worst.feature,
            worst.psi,
            worst.threshold,
            evidence.drifted.len()
        );
        return (Verdict::Drift, reason);
    }
    if policy.tests_anything() && evidence.decay.is_empty() {
        let reason = match (&evidence.quality, &evidence.reference) {
            (None, _) => "too few matured labels of this champion to say",
            (Some(_), None) => "the champion's validation quality is not known",
            (Some(_), Some(_)) => "no measure with a tolerance could be computed",
        };
        return (Verdict::Unknown, reason.into());
    }
    if evidence.decay.is_empty() && !compared {
        return (Verdict::Unknown, "too few rows in the window to say".into());
    }
    (Verdict::Healthy, "within every tolerance".into())
}

/// Shares that rose by the least effect and beyond chance. Only rises: a value
/// that is missing less often than it was is no fault.
fn faults(policy: &MonitorPolicy, baseline: &Baseline, window: &Counters) -> Vec<Fault> {
    const KINDS: [(Status, &str); 3] = [
        (Status::NotFound, "not_found"),
        (Status::OutsideMaxAge, "outside_max_age"),
        (Status::UnknownCategory, "unknown_category"),
    ];
    let tests = (baseline.features.len() * (1 + KINDS.len())).max(1) as f64;
    let alpha = policy.fault_alpha.get() / tests;
    let mut faults = Vec::new();
    for (column, feature) in baseline.features.iter().enumerate() {
        let mut test = |kind: &str, before: u64, of: u64, now: u64| {
            if of == 0 {
                return;
            }
            let reference = before as f64 / of as f64;
            let current = now as f64 / window.rows() as f64;
            // One row more on both sides: "never seen in 100 rows" is not "impossible".
            let expected = (before as f64 + 1.0) / (of as f64 + 2.0);
            let rows = window.rows() as f64 / policy.design_effect.get();
            let p_value = binomial_tail(rows, current * rows, expected);
            if current - reference >= policy.fault_rise.get() && p_value < alpha {
                faults.push(Fault {
                    feature: feature.name.clone(),
                    kind: kind.into(),
                    reference,
                    current,
                    p_value,
                });
            }
        };
        test(
            "missing",
            feature.missing,
            feature.rows(),
            window.missing(column),
        );
        if let Some(statuses) = &baseline.statuses {
            for (status, kind) in KINDS {
                let now = window.with_status(column, status);
                test(kind, statuses.with(column, status), statuses.rows, now);
            }
        }
    }
    let rise = |fault: &Fault| fault.current - fault.reference;
    faults.sort_by(|a, b| rise(b).total_cmp(&rise(a)));
    faults
}

/// `P(X ≥ successes)` for `X ~ Binomial(trials, share)`, by the incomplete beta,
/// which also takes counts that are not whole.
fn binomial_tail(trials: f64, successes: f64, share: f64) -> f64 {
    if successes <= 0.0 {
        return 1.0;
    }
    // Out of the beta's domain only for shares of 0 and 1, which smoothing excludes.
    checked_beta_reg(successes, trials - successes + 1.0, share).unwrap_or(1.0)
}

fn drifted(
    policy: &MonitorPolicy,
    baseline: &Baseline,
    window: &Counters,
) -> (BTreeMap<String, f64>, Vec<Drifted>) {
    let columns = baseline
        .columns()
        .filter(|column| column.rows() > 0)
        .count();
    let test = DriftTest {
        alpha: policy.alpha.get() / columns.max(1) as f64,
        psi_min: policy.psi_min.get(),
    };
    let mut indices = BTreeMap::new();
    let mut drifted = Vec::new();
    // Thresholds depend on rows and bins only, and most features share both.
    let mut thresholds: BTreeMap<(u64, usize), f64> = BTreeMap::new();
    for (index, column) in baseline.columns().enumerate() {
        let rows = window.values(index).iter().sum::<u64>() + window.missing(index);
        let independent = rows as f64 / policy.design_effect.get();
        let Some((reference, current)) = pooled(column, window, index, independent) else {
            continue;
        };
        let psi = psi(&reference, &current);
        let threshold = *thresholds
            .entry((column.rows(), reference.len()))
            .or_insert_with(|| {
                let effective = rows_effective(independent, column.rows() as f64);
                test.threshold(effective, reference.len())
            });
        if psi > threshold {
            drifted.push(Drifted {
                feature: column.name.clone(),
                psi,
                threshold,
            });
        }
        indices.insert(column.name.clone(), psi);
    }
    drifted.sort_by(|a, b| b.psi.total_cmp(&a.psi));
    (indices, drifted)
}

/// Counts of reference and window with the bins pooled that expect too few rows;
/// nothing where fewer than two bins remain.
fn pooled(
    column: &FeatureBaseline,
    window: &Counters,
    index: usize,
    rows: f64,
) -> Option<(Vec<u64>, Vec<u64>)> {
    let total = column.rows() as f64;
    if total == 0.0 || rows <= 0.0 {
        return None;
    }
    let reference = column.counts.iter().copied().chain([column.missing]);
    let current = window
        .values(index)
        .iter()
        .copied()
        .chain([window.missing(index)]);
    let expected = |count: u64| count as f64 / total * rows;
    let (mut kept, mut rare) = (Vec::new(), (0, 0));
    for (reference, current) in reference.zip(current) {
        if expected(reference) < EXPECTED_MIN {
            rare = (rare.0 + reference, rare.1 + current);
        } else {
            kept.push((reference, current));
        }
    }
    if expected(rare.0) >= EXPECTED_MIN {
        kept.push(rare);
    } else if let Some(smallest) = kept.iter_mut().min_by_key(|(reference, _)| *reference) {
        *smallest = (smallest.0 + rare.0, smallest.1 + rare.1);
    }
    (kept.len() >= 2).then(|| kept.into_iter().unzip())
}

fn decay(policy: &DecayPolicy, now: &Quality, then: &ReferenceQuality) -> Vec<DecayTest> {
    let z_limit = Normal::standard().inverse_cdf(1.0 - policy.alpha.get());
    // The reference was measured on rows too; its noise is taken as that of as
    // many rows of now.
    let noise =
        (policy.design_effect.get() * (1.0 + now.rows as f64 / then.rows.max(1) as f64)).sqrt();
    let mut tests = Vec::new();
    let mut test = |measure: &str, reference: f64, current: f64, limit: f64, z: f64| {
        let worse = if limit >= reference {
            current > limit
        } else {
            current < limit
        };
        tests.push(DecayTest {
            measure: measure.into(),
            reference,
            current,
            limit,
            z,
            z_limit,
            failed: worse && z > z_limit,
        });
    };
    let relative = |reference: f64, tolerance: Positive| reference * (1.0 + tolerance.get());
    let z_of_loss = |then: f64, now: f64, se: f64| standard_errors(now - then, se * noise);
    if let Some(tolerance) = policy.log_loss {
        let z = z_of_loss(then.log_loss, now.log_loss, now.log_loss_se);
        test(
            "log_loss",
            then.log_loss,
            now.log_loss,
            relative(then.log_loss, tolerance),
            z,
        );
    }
    let normalized = then.normalized_log_loss().zip(now.normalized_log_loss);
    if let (Some(tolerance), Some((reference, current))) = (policy.normalized_log_loss, normalized)
    {
        let se = now.log_loss_se * current / now.log_loss;
        let z = z_of_loss(reference, current, se);
        test(
            "normalized_log_loss",
            reference,
            current,
            relative(reference, tolerance),
            z,
        );
    }
    if let (Some(tolerance), Some((auc, se))) = (policy.auc, now.auc.zip(now.auc_se)) {
        let z = standard_errors(then.auc - auc, se * noise);
        test("auc", then.auc, auc, then.auc - tolerance.get(), z);
    }
    if let Some(tolerance) = policy.ece {
        // Never 0 with finite rows, so what counts is the excess over calibrated scores.
        let excess = now.ece - now.ece_calibrated;
        let z = standard_errors(
            excess,
            now.ece_calibrated_sd * policy.design_effect.get().sqrt(),
        );
        test("ece", then.ece, now.ece, then.ece + tolerance.get(), z);
    }
    tests
}

/// A difference in standard errors; without noise any difference is beyond it.
/// Capped, since JSON knows no infinity.
fn standard_errors(difference: f64, se: f64) -> f64 {
    const MAX: f64 = 1e6;
    if difference == 0.0 {
        return 0.0;
    }
    (difference / se).clamp(-MAX, MAX)
}

#[cfg(test)]
mod tests;
