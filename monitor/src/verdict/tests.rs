use super::*;
use crate::baseline::{BaselineRows, StatusCounts};
use crate::policy::{AtLeastOne, Bins};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SEED: u64 = 20_131_105;

fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.monitor.design_effect = AtLeastOne::new(1.0).unwrap();
    policy
}

/// 20,000 reference rows: `wide` uniform, `rare` mostly 0, `holes` missing in 5 %.
fn baseline() -> Baseline {
    let mut random = StdRng::seed_from_u64(SEED);
    let names = ["wide".to_string(), "rare".into(), "holes".into()];
    let values: Vec<f32> = (0..20_000).flat_map(|_| row(&mut random, 0.0)).collect();
    let scores: Vec<f32> = (0..5_000).map(|_| random.random()).collect();
    let rows = BaselineRows {
        names: &names,
        values: &values,
        scores: &scores,
    };
    Baseline::from_rows(7, rows, Bins::new(16).unwrap())
}

fn row(random: &mut StdRng, shift: f32) -> [f32; 3] {
    let holes = if random.random_bool(0.05) {
        f32::NAN
    } else {
        1.0
    };
    let rare = f32::from(u8::from(random.random_bool(0.002)));
    [random.random::<f32>() + shift, rare, holes]
}

fn window(baseline: &Baseline, rows: usize, shift: f32, status: Status) -> Counters {
    let mut random = StdRng::seed_from_u64(SEED + 1);
    let mut counters = Counters::new(baseline);
    for _ in 0..rows {
        let values = row(&mut random, shift);
        counters.observe(
            &values,
            &[Status::Present, status, Status::Present],
            random.random(),
        );
    }
    counters
}

/// Calibrated pairs, or ones whose scores are pushed `off` towards 1.
fn outcomes(rows: usize, off: f32) -> Vec<ScoredLabel> {
    let mut random = StdRng::seed_from_u64(SEED + 2);
    let draw = || {
        let p = random.random_range(0.05f32..0.95).powi(2);
        let label = f32::from(u8::from(random.random::<f32>() < p));
        ScoredLabel {
            score: p + off * (1.0 - p),
            label,
        }
    };
    std::iter::repeat_with(draw).take(rows).collect()
}

fn reference() -> ReferenceQuality {
    let quality = Quality::of(outcomes(20_000, 0.0)).unwrap();
    ReferenceQuality {
        log_loss: quality.log_loss,
        auc: quality.auc.unwrap(),
        ece: quality.ece,
        rows: quality.rows,
        base_rate: Some(quality.base_rate),
    }
}

fn observed<'a>(
    baseline: &'a Baseline,
    window: &'a Counters,
    outcomes: Vec<ScoredLabel>,
) -> Observed<'a> {
    Observed {
        window_end_ms: 1,
        champion: 7,
        baseline: Some(baseline),
        window: Some(window),
        reference: Some(reference()),
        outcomes,
        coverage: Some(0.9),
        skew: None,
    }
}

fn verdict(policy: &Policy, observed: Observed<'_>) -> Verdict {
    let judgement = judge(policy, observed);
    let text = serde_json::to_string(&judgement.evidence).unwrap();
    let back: Evidence = serde_json::from_str(&text).unwrap();
    assert_eq!(back, judgement.evidence, "evidence is kept as it was");
    judgement.verdict
}

#[test]
fn traffic_like_the_training_rows_is_healthy() {
    let baseline = baseline();
    let window = window(&baseline, 3000, 0.0, Status::Present);
    let observed = observed(&baseline, &window, outcomes(3000, 0.0));
    assert_eq!(verdict(&policy(), observed), Verdict::Healthy);
}

#[test]
fn a_shifted_feature_is_drift_and_names_it() {
    let baseline = baseline();
    let window = window(&baseline, 3000, 0.3, Status::Present);
    let judgement = judge(&policy(), observed(&baseline, &window, outcomes(3000, 0.0)));
    assert_eq!(judgement.verdict, Verdict::Drift);
    let drifted: Vec<_> = judgement
        .evidence
        .drifted
        .iter()
        .map(|d| &*d.feature)
        .collect();
    assert_eq!(drifted, ["wide"]);
    assert!(judgement.evidence.psi["rare"] < 0.01);
}

#[test]
fn decay_beats_drift_and_a_data_fault_beats_both() {
    let mut baseline = baseline();
    let healthy = window(&baseline, 3000, 0.0, Status::Present);
    let shifted = window(&baseline, 3000, 0.3, Status::Present);
    let decayed = outcomes(3000, 0.4);
    let found = verdict(&policy(), observed(&baseline, &shifted, decayed.clone()));
    assert_eq!(found, Verdict::Decay);
    baseline.statuses = Some(StatusCounts::of(&healthy));
    let unseen = window(&baseline, 3000, 0.3, Status::UnknownCategory);
    let judgement = judge(&policy(), observed(&baseline, &unseen, decayed));
    assert_eq!(judgement.verdict, Verdict::DataFault);
    let fault = &judgement.evidence.faults[0];
    assert_eq!(
        (&*fault.feature, &*fault.kind),
        ("rare", "unknown_category")
    );
    assert!(
        judgement.evidence.decay.iter().any(|test| test.failed),
        "the decay is told too"
    );
}

#[test]
fn one_row_served_otherwise_than_recomputed_is_a_fault_whatever_the_window() {
    let baseline = baseline();
    let window = window(&baseline, 10, 0.0, Status::Present);
    let skew = Skew {
        rows: 1000,
        features: BTreeMap::from([("rare".to_string(), 1), ("wide".into(), 3)]),
    };
    let observed = Observed {
        skew: Some(&skew),
        ..observed(&baseline, &window, Vec::new())
    };
    let judgement = judge(&policy(), observed);
    assert_eq!(judgement.verdict, Verdict::DataFault);
    assert!(
        judgement.reason.starts_with("`wide` was served otherwise")
            && judgement.reason.contains("0.30 %"),
        "{}",
        judgement.reason
    );
    assert_eq!(judgement.evidence.faults.len(), 2);
}

#[test]
fn missing_values_are_a_fault_only_beyond_the_least_rise() {
    let baseline = baseline();
    for (share, faulty) in [(0.05, false), (0.12, false), (0.3, true)] {
        let mut random = StdRng::seed_from_u64(SEED + 3);
        let mut window = Counters::new(&baseline);
        for _ in 0..3000 {
            let mut values = row(&mut random, 0.0);
            values[2] = if random.random_bool(share) {
                f32::NAN
            } else {
                1.0
            };
            window.observe(&values, &[Status::Present; 3], random.random());
        }
        let found = verdict(&policy(), observed(&baseline, &window, outcomes(3000, 0.0)));
        assert_eq!(found == Verdict::DataFault, faulty, "{share}: {found:?}");
    }
}

#[test]
fn too_few_labels_or_too_little_coverage_is_unknown_never_good() {
    let baseline = baseline();
    let window = window(&baseline, 3000, 0.0, Status::Present);
    let few = observed(&baseline, &window, outcomes(999, 0.4));
    assert_eq!(verdict(&policy(), few), Verdict::Unknown);
    let uncovered = Observed {
        coverage: Some(0.4),
        ..observed(&baseline, &window, outcomes(3000, 0.4))
    };
    assert_eq!(verdict(&policy(), uncovered), Verdict::Unknown);
    let unmeasured = Observed {
        reference: None,
        ..observed(&baseline, &window, outcomes(3000, 0.4))
    };
    assert_eq!(verdict(&policy(), unmeasured), Verdict::Unknown);
}

#[test]
fn a_small_window_is_not_compared_and_one_of_another_version_neither() {
    let baseline = baseline();
    let small = window(&baseline, 499, 0.9, Status::Present);
    let judgement = judge(&policy(), observed(&baseline, &small, outcomes(3000, 0.0)));
    assert_eq!(
        judgement.verdict,
        Verdict::Healthy,
        "labels are the authority"
    );
    assert!(judgement.evidence.psi.is_empty());
    let other = Baseline {
        version: 8,
        ..baseline.clone()
    };
    let window = window(&other, 3000, 0.9, Status::Present);
    let judgement = judge(&policy(), observed(&baseline, &window, outcomes(3000, 0.0)));
    assert!(judgement.evidence.psi.is_empty());
}

#[test]
fn a_higher_base_rate_alone_is_no_decay_of_the_normalized_loss() {
    // Twice as many positives: a calibrated model's log loss rises, its
    // normalised one does not.
    let mut random = StdRng::seed_from_u64(SEED + 4);
    let draw = |random: &mut StdRng, center: f32| {
        let p = (center + random.random_range(-0.1f32..0.1)).clamp(0.01, 0.99);
        ScoredLabel {
            score: p,
            label: f32::from(u8::from(random.random::<f32>() < p)),
        }
    };
    let then: Vec<_> = (0..20_000).map(|_| draw(&mut random, 0.15)).collect();
    let now: Vec<_> = (0..5_000).map(|_| draw(&mut random, 0.30)).collect();
    let then = Quality::of(then).unwrap();
    let reference = ReferenceQuality {
        log_loss: then.log_loss,
        auc: then.auc.unwrap(),
        ece: then.ece,
        rows: then.rows,
        base_rate: Some(then.base_rate),
    };
    let now = Quality::of(now).unwrap();
    let mut policy = DecayPolicy {
        normalized_log_loss: Positive::new(0.03),
        ..DecayPolicy::default()
    };
    let failed = |policy: &DecayPolicy| -> Vec<String> {
        let tests = decay(policy, &now, &reference);
        tests
            .into_iter()
            .filter(|test| test.failed)
            .map(|test| test.measure)
            .collect()
    };
    assert_eq!(failed(&policy), ["log_loss"]);
    policy.log_loss = None;
    assert!(failed(&policy).is_empty());
}

#[test]
fn calibration_and_ranking_are_tested_where_they_have_a_tolerance() {
    let policy = DecayPolicy {
        log_loss: None,
        ece: Positive::new(0.05),
        auc: Positive::new(0.03),
        ..DecayPolicy::default()
    };
    let failed = |pairs: Vec<ScoredLabel>| -> Vec<String> {
        let tests = decay(&policy, &Quality::of(pairs).unwrap(), &reference());
        assert_eq!(tests.len(), 2);
        tests
            .into_iter()
            .filter(|test| test.failed)
            .map(|test| test.measure)
            .collect()
    };
    assert!(failed(outcomes(3000, 0.0)).is_empty());
    // Monotone: the order of the scores stays, their meaning does not.
    assert_eq!(failed(outcomes(3000, 0.3)), ["ece"]);
    let shuffled = outcomes(3000, 0.0)
        .into_iter()
        .enumerate()
        .map(|(i, pair)| ScoredLabel {
            score: if i % 2 == 0 { 0.3 } else { pair.score },
            ..pair
        });
    assert!(failed(shuffled.collect()).contains(&"auc".to_string()));
}

#[test]
fn the_binomial_tail_is_the_sum_of_its_terms() {
    let (n, p) = (40u32, 0.1f64);
    let choose = |k: u32| (0..k).fold(1.0, |c, i| c * f64::from(n - i) / f64::from(i + 1));
    for k in [1, 3, 8, 20] {
        let sum: f64 = (k..=n)
            .map(|x| choose(x) * p.powi(x as i32) * (1.0 - p).powi((n - x) as i32))
            .sum();
        let found = binomial_tail(f64::from(n), f64::from(k), p);
        assert!((found / sum - 1.0).abs() < 1e-9, "{k}: {found} {sum}");
    }
    assert_eq!(binomial_tail(10.0, 0.0, 0.1), 1.0);
}
