//! Versions: numbered without gaps, immutable, with their lineage.

use std::collections::BTreeMap;

use registry::{
    AliasError, AliasName, Dataset, DatasetUse, Digest, LookupError, Metric, NewVersion, Promotion,
    RegisterError, Registration, RunStatus,
};
use serde_json::json;
use tokio::task::JoinSet;

use crate::fixture::{Fixture, model, new_decision, new_run};

#[tokio::test]
async fn a_version_reads_back_as_it_was_registered() {
    let fixture = Fixture::new().await;
    let mut new = fixture.new_version(1, None).await;
    let golden = fixture.registry.put_artifact(b"rows".to_vec()).await;
    new.golden = Some(golden.unwrap());
    let registered = fixture
        .registry
        .register_version(new.clone())
        .await
        .unwrap();
    let read = fixture.registry.version(&model(), 1).await.unwrap();
    assert_eq!(read, registered);
    assert_eq!((read.artifact, read.golden), (new.artifact, new.golden));
    assert_eq!(read.signature, new.signature);
    assert_eq!(read.metrics, new.metrics);
    assert_eq!(read.service.as_deref(), Some("delay@1"));
    assert_eq!(read.created_ms, new.at_ms);
    let error = fixture.registry.version(&model(), 2).await.unwrap_err();
    assert!(matches!(error, LookupError::UnknownVersion(_)), "{error}");
    let models = fixture.registry.models().await.unwrap();
    assert_eq!((models.len(), models[0].latest), (1, 1));
}

#[tokio::test]
async fn sql_itself_refuses_to_change_or_delete_a_version() {
    let fixture = Fixture::new().await;
    let run = fixture.start("first", None).await;
    let dataset = log_dataset(&fixture, &run).await;
    let mut new = fixture.new_version(1, None).await;
    new.datasets = vec![DatasetUse {
        dataset,
        role: "baseline".to_owned(),
    }];
    fixture.registry.register_version(new).await.unwrap();
    let before = fixture.registry.lineage(&model(), 1).await.unwrap();
    assert_eq!(before.datasets.len(), 1);
    let mut raw = fixture.raw().await;
    // As the `sqlite3` shell has it: the refusal must not hang on our connections' settings.
    let off = sqlx::query("PRAGMA foreign_keys = OFF");
    off.execute(&mut raw).await.unwrap();
    for statement in [
        "UPDATE versions SET artifact = '0000000000000000000000000000000000000000000000000000000000000000'",
        "UPDATE versions SET version = 2",
        "UPDATE OR REPLACE versions SET description = 'x'",
        "DELETE FROM versions",
        "INSERT OR REPLACE INTO versions SELECT * FROM versions",
        "REPLACE INTO versions SELECT * FROM versions",
        "INSERT INTO versions SELECT * FROM versions WHERE true ON CONFLICT DO UPDATE SET description = 'x'",
        "INSERT INTO versions SELECT model, 5, artifact, signature, service, run, algorithm, metrics, description, created_ms, golden FROM versions",
        "UPDATE version_datasets SET role = 'x'",
        "DELETE FROM version_datasets",
        "INSERT INTO version_datasets SELECT model, version, dataset, 'x' FROM version_datasets",
        "INSERT OR REPLACE INTO version_datasets SELECT * FROM version_datasets",
    ] {
        let result = sqlx::query(statement).execute(&mut raw).await;
        assert!(result.is_err(), "accepted: {statement}");
    }
    assert_eq!(fixture.registry.lineage(&model(), 1).await.unwrap(), before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn two_writers_get_numbers_without_gaps() {
    let fixture = Fixture::new().await;
    let mut writers = JoinSet::new();
    for registry in [fixture.registry.clone(), fixture.another().await] {
        let new = fixture.new_version(1, None).await;
        writers.spawn(async move {
            for _ in 0..10 {
                registry.register_version(new.clone()).await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let versions = fixture.registry.versions(&model()).await.unwrap();
    let numbers: Vec<u32> = versions.iter().map(|version| version.version).collect();
    assert_eq!(numbers, (1..=20).collect::<Vec<u32>>());
}

#[tokio::test]
async fn what_a_version_refers_to_must_exist() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let new = fixture.new_version(1, None).await;

    let mut absent = new.clone();
    absent.artifact = Digest::of(b"absent");
    let error = registry.register_version(absent).await.unwrap_err();
    assert!(matches!(error, RegisterError::Artifact(_)), "{error}");
    let mut not_golden = new.clone();
    not_golden.golden = Some(Digest::of(b"absent"));
    let error = registry.register_version(not_golden).await.unwrap_err();
    assert!(matches!(error, RegisterError::Artifact(_)), "{error}");
    let mut unknown = new.clone();
    unknown.model = "other".parse().unwrap();
    let error = registry.register_version(unknown).await.unwrap_err();
    assert!(matches!(error, RegisterError::UnknownModel(_)), "{error}");
    let mut without = new.clone();
    without.datasets = vec![DatasetUse {
        dataset: 5,
        role: "training".to_owned(),
    }];
    let error = registry.register_version(without).await.unwrap_err();
    assert_eq!(error.to_string(), "dataset 5 is not in the registry");
    let mut not_a_number = new.clone();
    not_a_number.metrics.insert("auc".to_owned(), f64::NAN);
    let error = registry.register_version(not_a_number).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "metric `auc` is NaN, not a finite number"
    );

    let ended = fixture.start("ended", None).await;
    let killed = RunStatus::Killed;
    registry
        .finish_run(&ended, killed, "gone", 1)
        .await
        .unwrap();
    let mut late = new.clone();
    late.run = Some(ended.clone());
    let error = registry.register_version(late).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("run {ended} has ended as killed")
    );
    let other = "other".parse().unwrap();
    registry.ensure_model(&other, 1).await.unwrap();
    let mut foreign = new_run("foreign", None);
    foreign.model = other;
    let mut crossed = new;
    crossed.run = Some(registry.start_run(foreign).await.unwrap());
    let error = registry.register_version(crossed).await.unwrap_err();
    assert!(
        matches!(error, RegisterError::RunOfOtherModel { .. }),
        "{error}"
    );
    assert_eq!(registry.versions(&model()).await.unwrap(), []);
}

fn registration<'a>(
    run: &'a registry::RunId,
    model: &'a registry::ModelName,
    versions: Vec<NewVersion>,
) -> Registration<'a> {
    Registration {
        run,
        model,
        versions,
        aliases: vec![],
        expected_champion: None,
        reason: "passed its gates",
        at_ms: 8,
        ended_ms: 9,
    }
}

#[tokio::test]
async fn a_run_registers_all_its_versions_and_ends_or_does_neither() {
    let fixture = Fixture::new().await;
    let (registry, model) = (&fixture.registry, model());
    let run = fixture.start("train", None).await;
    let good = fixture.new_version(1, Some(run.clone())).await;
    let mut bad = fixture.new_version(2, Some(run.clone())).await;
    bad.metrics.insert("auc".to_owned(), f64::INFINITY);

    let both = registration(&run, &model, vec![good.clone(), bad]);
    registry.register_and_finish(both).await.unwrap_err();
    assert_eq!(registry.versions(&model).await.unwrap(), []);
    assert_eq!(registry.running(&model).await.unwrap().len(), 1);

    let second = fixture.new_version(2, Some(run.clone())).await;
    let both = registration(&run, &model, vec![good.clone(), second]);
    let registered = registry.register_and_finish(both).await.unwrap();
    assert_eq!(registered.len(), 2);
    let summary = registry.run(&run).await.unwrap().summary;
    assert_eq!(summary.status, RunStatus::Finished);
    assert_eq!(summary.outcome.as_deref(), Some("registered v1, v2"));
    let again = registration(&run, &model, vec![good]);
    let again = registry.register_and_finish(again).await;
    assert!(matches!(again, Err(RegisterError::RunEnded(_))));
    assert_eq!(registry.versions(&model).await.unwrap().len(), 2);
}

#[tokio::test]
async fn versions_take_their_aliases_as_they_are_registered_or_are_not_registered() {
    let fixture = Fixture::new().await;
    let (registry, model) = (&fixture.registry, model());
    let run = fixture.start("first", None).await;
    let first = fixture.new_version(1, Some(run.clone())).await;
    let simple = fixture.new_version(2, Some(run.clone())).await;
    let mut both = registration(&run, &model, vec![first, simple]);
    both.aliases = vec![(AliasName::champion(), 0), (AliasName::fallback(), 1)];
    registry.register_and_finish(both).await.unwrap();
    let release = registry.release(&model).await.unwrap();
    assert_eq!(
        (release.champion(), release.fallback(), release.generation),
        (Some(1), Some(2), 1)
    );

    let run = fixture.start("second", None).await;
    let next = fixture.new_version(3, Some(run.clone())).await;
    let mut challenger = registration(&run, &model, vec![next]);
    challenger.aliases = vec![(AliasName::challenger(), 0)];
    let against_another = Registration {
        expected_champion: Some(2),
        ..challenger.clone()
    };
    let refused = registry.register_and_finish(against_another).await;
    assert!(
        matches!(
            refused,
            Err(RegisterError::Alias(AliasError::Conflict { .. }))
        ),
        "{refused:?}"
    );
    assert_eq!(registry.versions(&model).await.unwrap().len(), 2);
    assert_eq!(registry.running(&model).await.unwrap().len(), 1);
    challenger.expected_champion = Some(1);
    registry.register_and_finish(challenger).await.unwrap();
    let release = registry.release(&model).await.unwrap();
    assert_eq!(
        (release.champion(), release.challenger()),
        (Some(1), Some(3))
    );
}

#[tokio::test]
async fn lineage_tells_rows_trigger_decisions_and_service_of_a_version() {
    let fixture = Fixture::new().await;
    let registry = &fixture.registry;
    let trigger = new_decision("trigger", json!({"windows": [3, 4, 5]}));
    let (trigger, _) = registry.record_decision(trigger).await.unwrap();
    let mut new = new_run("loop", None);
    new.trigger = Some(trigger);
    let parent = registry.start_run(new).await.unwrap();
    let dataset = log_dataset(&fixture, &parent).await;
    let trial = fixture.start("trial 1", Some(&parent)).await;
    let metric = Metric {
        key: "auc".to_owned(),
        value: 0.8,
        step: 1,
        at_ms: 5,
    };
    registry.log_metrics(&trial, &[metric]).await.unwrap();
    let mut gate = new_decision("gate", json!({"difference": 0.01}));
    gate.run = Some(parent.clone());
    registry.record_decision(gate).await.unwrap();
    let mut version = fixture.new_version(1, Some(trial.clone())).await;
    version.datasets = vec![DatasetUse {
        dataset,
        role: "training".to_owned(),
    }];
    registry
        .register_and_finish(registration(&trial, &model(), vec![version]))
        .await
        .unwrap();
    let mut promoted = new_decision("promotion", json!({"soak": "passed"}));
    promoted.version = Some(1);
    registry.record_decision(promoted).await.unwrap();
    let other = new_decision("verdict", json!({"of": "somebody else"}));
    registry.record_decision(other).await.unwrap();
    let promotion = Promotion {
        model: &model(),
        challenger: 1,
        expected_champion: None,
        reason: "first",
        at_ms: 9,
    };
    registry.promote(promotion).await.unwrap();

    let lineage = registry.lineage(&model(), 1).await.unwrap();
    assert_eq!(lineage.run.unwrap().summary.id, trial);
    assert_eq!(lineage.ancestors[0].summary.id, parent);
    assert_eq!(lineage.trigger.unwrap().id, trigger);
    assert_eq!(lineage.datasets.len(), 1, "the same use is told once");
    assert_eq!(lineage.datasets[0].id, dataset);
    let kinds: Vec<&str> = lineage.decisions.iter().map(|d| d.kind.as_str()).collect();
    assert_eq!(kinds, ["gate", "promotion"]);
    assert_eq!(lineage.served[0].alias, AliasName::champion());
}

async fn log_dataset(fixture: &Fixture, run: &registry::RunId) -> i64 {
    let dataset = Dataset {
        name: "delay/training".to_owned(),
        digest: Digest::of(b"rows"),
        rows: 166_000,
        from_ms: 10,
        to_ms: 20,
        role: "training".to_owned(),
        source: json!({"log": "served", "columns": BTreeMap::from([("x", 1)])}),
    };
    let id = fixture.registry.log_dataset(run, &dataset).await.unwrap();
    let again = fixture.registry.log_dataset(run, &dataset).await.unwrap();
    assert_eq!(id, again);
    id
}
