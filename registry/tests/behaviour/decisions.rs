//! Decisions: recorded once, kept for ever.

use registry::DecisionError;
use serde_json::json;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, model, new_decision};

#[tokio::test]
async fn the_same_decision_on_the_same_evidence_is_recorded_once() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let first = new_decision(
        "trigger",
        json!({"window": [1, 2], "psi": {"a": 0.31, "b": 0.2}}),
    );
    let (id, new) = registry.record_decision(first.clone()).await.unwrap();
    assert!(new);
    // Derived again after a restart: other words, another time, keys in another order.
    let mut again = first.clone();
    again.evidence =
        serde_json::from_str(r#"{"psi": {"b": 0.2, "a": 0.31}, "window": [1, 2]}"#).unwrap();
    again.reason = "said otherwise".to_owned();
    again.at_ms = 99;
    assert_eq!(again.evidence_hash(), first.evidence_hash());
    assert_eq!(registry.record_decision(again).await.unwrap(), (id, false));

    let mut other_kind = first.clone();
    other_kind.kind = "verdict".to_owned();
    assert!(registry.record_decision(other_kind).await.unwrap().1);
    let mut other_outcome = first.clone();
    other_outcome.outcome = "decay".to_owned();
    assert!(registry.record_decision(other_outcome).await.unwrap().1);
    let mut other_evidence = first.clone();
    other_evidence.evidence = json!({"window": [2, 1], "psi": {"a": 0.31, "b": 0.2}});
    assert!(registry.record_decision(other_evidence).await.unwrap().1);

    let all = registry.decisions(&model(), None, 100).await.unwrap();
    assert_eq!(all.len(), 4);
    let triggers = registry
        .decisions(&model(), Some("trigger"), 100)
        .await
        .unwrap();
    assert_eq!(triggers.len(), 3);
    let oldest = triggers.last().unwrap();
    assert_eq!((oldest.id, oldest.at_ms), (id, 50));
    assert_eq!(oldest.evidence, first.evidence);
    assert_eq!(oldest.evidence_hash, first.evidence_hash());
    assert_eq!(
        registry.decisions(&model(), None, 1).await.unwrap(),
        all[..1]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_processes_that_decide_alike_one_is_first() {
    let fixture = Fixture::new().await;
    let other = fixture.another().await;
    for round in 0..20 {
        let mut race = JoinSet::new();
        for registry in [fixture.registry.clone(), other.clone()] {
            let decision = new_decision("trigger", json!({"round": round}));
            race.spawn(async move { registry.record_decision(decision).await.unwrap() });
        }
        let results = race.join_all().await;
        assert_eq!(results[0].0, results[1].0);
        assert_ne!(results[0].1, results[1].1, "one of them is new");
    }
}

#[tokio::test]
async fn a_decision_is_about_things_that_exist_and_cannot_be_changed() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let mut about_version = new_decision("promotion", json!({}));
    about_version.version = Some(3);
    let error = registry.record_decision(about_version).await.unwrap_err();
    assert!(matches!(error, DecisionError::UnknownVersion(_)), "{error}");
    let mut about_model = new_decision("promotion", json!({}));
    about_model.model = "other".parse().unwrap();
    let error = registry.record_decision(about_model).await.unwrap_err();
    assert!(matches!(error, DecisionError::UnknownModel(_)), "{error}");

    registry
        .record_decision(new_decision("gate", json!({"auc": 0.8})))
        .await
        .unwrap();
    let before = registry.decisions(&model(), None, 9).await.unwrap();
    let mut raw = fixture.raw().await;
    for statement in [
        "UPDATE decisions SET outcome = 'passed'",
        "DELETE FROM decisions",
        "INSERT OR REPLACE INTO decisions SELECT * FROM decisions",
        "INSERT OR REPLACE INTO decisions (model, kind, outcome, reason, evidence, evidence_hash, at_ms)
         SELECT model, kind, 'passed', reason, evidence, evidence_hash, at_ms FROM decisions",
    ] {
        let result = sqlx::query(statement).execute(&mut raw).await;
        assert!(result.is_err(), "accepted: {statement}");
    }
    assert_eq!(registry.decisions(&model(), None, 9).await.unwrap(), before);
}
