//! Runs: written to while they run, ended once.

use std::collections::BTreeMap;

use registry::{LogError, Metric, RunError, RunId, RunStatus};
use serde_json::json;

use crate::fixture::{Fixture, model, new_decision, new_run};

fn texts(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn metric(key: &str, step: i64, value: f64) -> Metric {
    Metric {
        key: key.to_owned(),
        value,
        step,
        at_ms: 7,
    }
}

#[tokio::test]
async fn a_run_reads_back_with_all_that_it_logged() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let run = fixture.start("train", None).await;
    let params = texts(&[("leaves", "31"), ("trees", "200")]);
    registry.log_params(&run, &params).await.unwrap();
    let logged = [
        metric("loss", 10, 0.44),
        metric("loss", 2, 0.5),
        metric("loss", 1, f64::NAN),
        metric("lift", 0, f64::INFINITY),
        metric("loss", 2, 0.49),
    ];
    registry.log_metrics(&run, &logged).await.unwrap();
    registry
        .set_tags(&run, &texts(&[("who", "loop")]))
        .await
        .unwrap();
    registry
        .set_tags(&run, &texts(&[("who", "operator")]))
        .await
        .unwrap();
    let trial = fixture.start("trial", Some(&run)).await;

    let read = registry.run(&run).await.unwrap();
    assert_eq!(read.summary.experiment, "delay/loop");
    assert_eq!(read.summary.seed, u64::MAX - 7);
    assert_eq!(read.summary.owner_pid, 4_000_000_000);
    assert_eq!(read.summary.status, RunStatus::Running);
    assert_eq!(read.params, params);
    assert_eq!(read.tags, texts(&[("who", "operator")]));
    let steps: Vec<(&str, i64)> = read
        .metrics
        .iter()
        .map(|m| (m.key.as_str(), m.step))
        .collect();
    assert_eq!(steps, [("lift", 0), ("loss", 1), ("loss", 2), ("loss", 10)]);
    assert!(read.metrics[1].value.is_nan());
    assert_eq!(read.metrics[0].value, f64::INFINITY);
    assert_eq!(read.metrics[2].value, 0.49, "the last write counts");
    assert_eq!(read.metric("loss"), Some(0.44));
    assert_eq!(read.metric("absent"), None);
    assert_eq!(read.children[0].id, trial);
    let runs = registry.runs(&model(), 10).await.unwrap();
    assert_eq!(runs, [read.summary], "trials are found in their run");
}

#[tokio::test]
async fn a_parameter_is_written_once_and_a_bad_batch_leaves_nothing() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let run = fixture.start("train", None).await;
    registry
        .log_params(&run, &texts(&[("b", "1")]))
        .await
        .unwrap();
    registry
        .log_params(&run, &texts(&[("b", "1")]))
        .await
        .unwrap();
    let error = registry
        .log_params(&run, &texts(&[("a", "1"), ("b", "2")]))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `b` is `1` already and cannot become `2`"
    );
    assert_eq!(
        registry.run(&run).await.unwrap().params,
        texts(&[("b", "1")])
    );
    for bad in ["", "a\0", "a\nb", "x".repeat(251).as_str()] {
        let error = registry
            .log_metrics(&run, &[metric("fine", 1, 1.0), metric(bad, 1, 1.0)])
            .await;
        assert!(matches!(error, Err(LogError::Key(_))), "{bad:?}");
    }
    assert_eq!(registry.run(&run).await.unwrap().metrics, []);
}

#[tokio::test]
async fn a_run_ends_once_and_takes_its_trials_along() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let run = fixture.start("train", None).await;
    let trial = fixture.start("trial", Some(&run)).await;
    let nested = fixture.start("fold", Some(&trial)).await;
    let done = fixture.start("done", Some(&run)).await;
    registry
        .finish_run(&done, RunStatus::Finished, "auc 0.8", 10)
        .await
        .unwrap();
    let running = registry.running(&model()).await.unwrap();
    assert_eq!(
        running.iter().map(|r| &r.id).collect::<Vec<&RunId>>(),
        [&run]
    );

    let failed = RunStatus::Failed;
    registry
        .finish_run(&run, failed, "its process is gone", 20)
        .await
        .unwrap();
    registry
        .finish_run(&run, failed, "its process is gone", 30)
        .await
        .unwrap();
    assert_eq!(registry.running(&model()).await.unwrap(), []);
    let read = registry.run(&run).await.unwrap();
    assert_eq!(read.summary.finished_ms, Some(20));
    assert_eq!(
        registry.run(&trial).await.unwrap().summary.status,
        RunStatus::Killed
    );
    assert_eq!(
        registry.run(&nested).await.unwrap().summary.status,
        RunStatus::Killed
    );
    assert_eq!(
        registry.run(&done).await.unwrap().summary.status,
        RunStatus::Finished
    );

    // The trainer was slow and not dead: what it says now comes too late.
    let error = registry
        .finish_run(&run, RunStatus::Finished, "registered v1", 40)
        .await;
    assert!(matches!(error, Err(RunError::RunEnded(_))));
    let late = registry.log_metrics(&run, &[metric("loss", 1, 0.1)]).await;
    assert!(matches!(late, Err(LogError::RunEnded(_))));
    let late = registry.log_params(&trial, &texts(&[("a", "1")])).await;
    assert!(matches!(late, Err(LogError::RunEnded(_))));
    let late = registry.start_run(new_run("late", Some(&run))).await;
    assert!(matches!(late, Err(RunError::RunEnded(_))));
    registry
        .set_tags(&run, &texts(&[("seen", "yes")]))
        .await
        .unwrap();

    let mut raw = fixture.raw().await;
    for statement in [
        "UPDATE runs SET status = 'finished' WHERE status = 'failed'",
        "DELETE FROM runs",
        "INSERT OR REPLACE INTO runs SELECT * FROM runs",
    ] {
        let result = sqlx::query(statement).execute(&mut raw).await;
        assert!(result.is_err(), "accepted: {statement}");
    }
}

#[tokio::test]
async fn a_run_starts_from_things_that_exist() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let unknown: RunId = "0".repeat(32).parse().unwrap();
    let error = registry
        .start_run(new_run("x", Some(&unknown)))
        .await
        .unwrap_err();
    assert!(matches!(error, RunError::UnknownRun(_)), "{error}");
    let mut triggered = new_run("x", None);
    triggered.trigger = Some(9);
    let error = registry.start_run(triggered.clone()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "decision 9 is not one about model `delay`"
    );
    let other = "other".parse().unwrap();
    registry.ensure_model(&other, 1).await.unwrap();
    let mut decision = new_decision("trigger", json!({}));
    decision.model = other;
    triggered.trigger = Some(registry.record_decision(decision).await.unwrap().0);
    let error = registry.start_run(triggered).await.unwrap_err();
    assert!(matches!(error, RunError::UnknownTrigger { .. }), "{error}");
    let mut nameless = new_run("x", None);
    nameless.experiment = String::new();
    let error = registry.start_run(nameless).await.unwrap_err();
    assert!(matches!(error, RunError::Experiment(_)), "{error}");
    let run = fixture.start("x", None).await;
    let error = registry
        .finish_run(&run, RunStatus::Running, "", 1)
        .await
        .unwrap_err();
    assert!(matches!(error, RunError::NotAnEnd { .. }), "{error}");
    let first = registry.ensure_experiment("e").await.unwrap();
    assert_eq!(registry.ensure_experiment("e").await.unwrap(), first);
}

#[tokio::test]
async fn the_same_runs_have_the_same_names_in_every_registry() {
    let (one, two) = (Fixture::new().await, Fixture::new().await);
    let mut names = Vec::new();
    for fixture in [&one, &two] {
        let first = fixture.start("train", None).await;
        let second = fixture.start("train", None).await;
        let mut later = new_run("train", None);
        later.owner_pid += 1;
        later.started_ms += 1000;
        let third = fixture.registry.start_run(later).await.unwrap();
        assert!(first != second && second != third && first != third);
        names.push([first, second, third]);
    }
    assert_eq!(names[0], names[1]);
}
