use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use featurestore::TrainingSet;

use super::*;
use crate::learner::{Boosted, Fit, Fitted, Learner, Logistic};
use crate::recipe::{BoostedParameters, LogisticParameters};
use crate::synthetic;

fn gates() -> Gates {
    Gates {
        rows_min: 1_000,
        ece_max: 0.1,
        latency_max_us: 1e9,
        ..Gates::default()
    }
}

fn names() -> Vec<String> {
    (0..synthetic::COLUMNS)
        .map(|column| format!("x{column}"))
        .collect()
}

fn rows() -> SoundRows {
    let split = synthetic::split(synthetic::set(9_000, 9));
    SoundRows::check(split, &names(), &gates()).unwrap()
}

fn fitted(learner: &dyn Learner, rows: &SoundRows) -> Box<dyn Fitted> {
    let fit = Fit {
        rows: &rows.training(),
        weights: None,
        seed: 7,
        threads: NonZeroUsize::MIN,
        step: &|| ControlFlow::Continue(()),
    };
    learner.fit(&fit).unwrap()
}

fn good(rows: &SoundRows) -> Box<dyn Fitted> {
    let parameters = BoostedParameters {
        trees: 50,
        ..BoostedParameters::default()
    };
    fitted(&Boosted::new(parameters), rows)
}

fn plain(rows: &SoundRows) -> Box<dyn Fitted> {
    fitted(&Logistic::new(LogisticParameters::default()), rows)
}

fn judged(
    gates: &Gates,
    rows: &SoundRows,
    challenger: &dyn Fitted,
    champion: Champion,
) -> Judgement {
    let holdout = rows.holdout();
    let case = Case {
        rows,
        challenger: Candidate::prepare(challenger, &holdout, 1),
        simple: Candidate::prepare(plain(rows).as_ref(), &holdout, 1),
        simple_needed: true,
        champion,
        seed: 1,
    };
    judge(gates, case)
}

fn champion(rows: &SoundRows, fitted: &dyn Fitted) -> Champion {
    let scores = fitted.predict(rows.holdout().values()).unwrap();
    Champion::Scored {
        version: 4,
        rows: (0..scores.len()).collect(),
        scores,
    }
}

fn refusal(judgement: &Judgement) -> (&'static str, &str) {
    let verdict = judgement.result.as_ref().err().expect("a gate refuses");
    (verdict.gate, &verdict.reason)
}

#[test]
fn a_better_challenger_passes_and_a_worse_or_equal_one_does_not() {
    let rows = rows();
    let (good, plain) = (good(&rows), plain(&rows));
    let better = judged(
        &gates(),
        &rows,
        good.as_ref(),
        champion(&rows, plain.as_ref()),
    );
    assert_eq!(better.result.as_ref().ok().unwrap().against, Some(4));
    assert!(better.metrics["champion_log_loss"] > better.metrics["holdout_log_loss"]);
    let worse = judged(
        &gates(),
        &rows,
        plain.as_ref(),
        champion(&rows, good.as_ref()),
    );
    assert_eq!(refusal(&worse).0, "improvement");
    assert!(refusal(&worse).1.contains("champion v4"));
    let equal = judged(
        &gates(),
        &rows,
        good.as_ref(),
        champion(&rows, good.as_ref()),
    );
    assert_eq!(refusal(&equal).0, "improvement");
}

#[test]
fn a_margin_asks_for_more_than_being_better() {
    let rows = rows();
    let (good, plain) = (good(&rows), plain(&rows));
    let asking = Gates {
        improvement_margin: 1.0,
        ..gates()
    };
    let judgement = judged(
        &asking,
        &rows,
        good.as_ref(),
        champion(&rows, plain.as_ref()),
    );
    assert_eq!(refusal(&judgement).0, "improvement");
}

#[test]
fn the_first_challenger_has_no_champion_to_beat() {
    let rows = rows();
    let judgement = judged(&gates(), &rows, good(&rows).as_ref(), Champion::None);
    let improvement = judgement
        .verdicts
        .iter()
        .find(|v| v.gate == "improvement")
        .unwrap();
    assert!(improvement.passed && improvement.reason == "no champion to beat");
    assert!(judgement.result.is_ok());
    let named: Vec<_> = judgement.verdicts.iter().map(|v| v.gate).collect();
    let all = [
        "data",
        "parity",
        "sanity",
        "calibration",
        "improvement",
        "latency",
    ];
    assert_eq!(named[..6], all);
}

#[test]
fn each_limit_refuses_under_its_own_name() {
    let rows = rows();
    let good = good(&rows);
    let cases = [
        (
            "sanity",
            Gates {
                sanity_margin: 1.0,
                ..gates()
            },
        ),
        (
            "calibration",
            Gates {
                ece_max: 0.0,
                ..gates()
            },
        ),
        (
            "latency",
            Gates {
                latency_max_us: 1e-9,
                ..gates()
            },
        ),
        (
            "parity",
            Gates {
                parity_max: 1e-30,
                ..gates()
            },
        ),
    ];
    for (gate, gates) in cases {
        let judgement = judged(&gates, &rows, good.as_ref(), Champion::None);
        assert_eq!(refusal(&judgement).0, gate);
    }
}

#[test]
fn a_champion_that_cannot_answer_is_not_beaten_by_default() {
    let rows = rows();
    let silent = Champion::Unscorable {
        version: 2,
        reason: "takes 3 features".to_owned(),
    };
    let judgement = judged(&gates(), &rows, good(&rows).as_ref(), silent);
    assert_eq!(refusal(&judgement).0, "improvement");
    assert!(refusal(&judgement).1.contains("takes 3 features"));
}

#[test]
fn rows_that_cannot_be_trusted_are_refused_with_the_reason() {
    let spoil = |change: &dyn Fn(&mut TrainingSet)| {
        let mut set = synthetic::set(9_000, 9);
        change(&mut set);
        SoundRows::check(synthetic::split(set), &names(), &gates())
            .unwrap_err()
            .reason
    };
    assert!(spoil(&|set| set.values[42] = f32::INFINITY).contains("`x2` is infinite"));
    assert!(spoil(&|set| set.labels[8_999] = 0.5).contains("label 0.5"));
    assert!(spoil(&|set| set.labels.fill(1.0)).contains("rarer label"));
    assert!(spoil(&|set| set.names[0] = "other".to_owned()).contains("other features"));
    let few = synthetic::split(synthetic::set(1_200, 9));
    let reason = SoundRows::check(few, &names(), &gates())
        .unwrap_err()
        .reason;
    assert!(reason.contains("800 training rows"), "{reason}");
}
