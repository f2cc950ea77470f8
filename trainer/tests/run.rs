//! Whole runs of the real program, on a real registry and real Parquet.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use featurestore::{BackfillRequest, Definitions, FeatureStore, StoreOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use registry::{AliasName, ModelName, Registry, RegistryOptions, Run, RunStatus};

const HOUR_MS: i64 = 3_600_000;
/// Hours of history, in which the law of the labels does not change.
const HISTORY_HOURS: i64 = 24 * 20;
/// A row each so many milliseconds.
const STEP_MS: i64 = 4 * 60_000;

const FEATURES: &str = r#"
[[service]]
name = "risk"
version = 1
request = { amount = "float", age = "float?", kind = "string" }
features = [
  { request = "amount" },
  { request = "age" },
  { request = "kind", dictionary = ["a", "b", "c"] },
]
"#;

const MODEL: &str = r#"
service = "risk"
fallback = ["fallback", "simple"]
[monitor]
[train]
window = "20d"
maturity = "2h"
holdout = "3d"
embargo = "2h"
[[train.boosted]]
trees = 40
leaves = 7
[gates]
rows_min = 1000
holdout_rows_min = 500
ece_max = 0.1
latency_max_us = 1e6
"#;

/// A project with its data, in a folder of its own.
struct Project {
    folder: tempfile::TempDir,
    model: ModelName,
}

impl Project {
    fn new() -> Self {
        Self::with_model(MODEL)
    }

    /// A project whose training takes much longer than it takes to stop it.
    fn slow() -> Self {
        Self::with_model(&MODEL.replace(
            "trees = 40\nleaves = 7",
            "trees = 10000\nleaves = 255\nlearning_rate = 0.001",
        ))
    }

    fn with_model(model: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::create_dir(path("models")).unwrap();
        std::fs::write(path("loopgate.toml"), "data = \"stored\"\n[http]\n").unwrap();
        std::fs::write(path("features.toml"), FEATURES).unwrap();
        std::fs::write(path("models/risk.toml"), model).unwrap();
        let project = Self {
            folder,
            model: "risk".parse().unwrap(),
        };
        project.backfill(0..HISTORY_HOURS, 1.0);
        project
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("stored")
    }

    /// Labelled rows of some hours; `sign` turns what the amount means.
    fn backfill(&self, hours: std::ops::Range<i64>, sign: f64) {
        self.backfill_for("risk", hours, sign);
    }

    /// The same as rows of one service.
    fn backfill_for(&self, service: &str, hours: std::ops::Range<i64>, sign: f64) {
        let mut random = StdRng::seed_from_u64(hours.start.unsigned_abs());
        let mut lines = String::new();
        let steps = hours.start * HOUR_MS / STEP_MS..hours.end * HOUR_MS / STEP_MS;
        for at_ms in steps.map(|step| step * STEP_MS) {
            let amount: f64 = random.random_range(-2.0..2.0);
            let age = random
                .random_bool(0.9)
                .then(|| random.random_range(0.0..1.0));
            let kind = ["a", "b", "c"][random.random_range(0..3)];
            let margin =
                sign * 2.0 * amount + age.unwrap_or(1.5) + if kind == "b" { 1.0 } else { -1.0 };
            let label = f64::from(random.random_bool(1.0 / (1.0 + (-margin).exp())));
            let row = serde_json::json!({
                "request_id": format!("r{at_ms}"), "at": at_ms, "amount": amount, "age": age,
                "kind": kind, "label": label, "label_known_at": at_ms + HOUR_MS,
            });
            writeln!(lines, "{row}").unwrap();
        }
        let file = self.folder.path().join("rows.jsonl");
        std::fs::write(&file, lines).unwrap();
        let definitions = Definitions::load(&self.folder.path().join("features.toml")).unwrap();
        let store = FeatureStore::open(
            &self.data(),
            Arc::new(definitions),
            &StoreOptions::default(),
        )
        .unwrap();
        let request = BackfillRequest {
            model: "risk".into(),
            service: service.to_owned(),
            file,
        };
        store.backfill(&request, &mut |_| {}).unwrap();
    }

    fn command(&self, model: &str, as_of_hour: i64) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate-trainer"));
        command
            .args(["run", "--model", model, "--seed", "3", "--threads", "2"])
            .args(["--as-of-ms", &(as_of_hour * HOUR_MS).to_string()])
            .arg("--project")
            .arg(self.folder.path());
        command
    }

    fn train(&self, as_of_hour: i64) -> Output {
        let output = self.command("risk", as_of_hour).output().unwrap();
        println!("{}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// Starts a run and returns when it has read its rows and is about to train.
    fn start_training(&self) -> Child {
        let mut child = self
            .command("risk", HISTORY_HOURS)
            .arg("--exit-with-stdin")
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        assert!(
            lines.any(|line| line.unwrap().contains("training and")),
            "it ended before training"
        );
        // Keep reading, so that the child is not held up by a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        child
    }

    async fn registry(&self) -> Registry {
        let options = RegistryOptions {
            database: self.data().join("registry.db"),
            artifacts: self.data().join("artifacts"),
        };
        Registry::open(&options).await.unwrap()
    }

    /// The newest run with all that it logged.
    async fn latest_run(&self, registry: &Registry) -> Run {
        let runs = registry.runs(&self.model, 1).await.unwrap();
        registry.run(&runs[0].id).await.unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn log_loss(metrics: &std::collections::BTreeMap<String, f64>) -> f64 {
    metrics["log_loss"]
}

#[tokio::test]
async fn a_first_run_registers_champion_and_fallback_with_lineage() {
    let project = Project::new();
    let output = project.train(HISTORY_HOURS);
    assert!(
        output.status.success() && said(&output).contains("champion v1, simple v2"),
        "{}",
        said(&output)
    );
    let registry = project.registry().await;
    let release = registry.release(&project.model).await.unwrap();
    assert_eq!(
        (
            release.champion(),
            release.fallback(),
            release.get(&AliasName::simple())
        ),
        (Some(1), Some(2), Some(2))
    );
    assert_eq!(release.challenger(), None);

    let lineage = registry.lineage(&project.model, 1).await.unwrap();
    let run = lineage.run.unwrap();
    assert_eq!(run.summary.status, RunStatus::Finished);
    assert_eq!(run.summary.outcome.as_deref(), Some("registered v1, v2"));
    assert_eq!(run.children.len(), 2, "a boosted and a logistic trial");
    for key in [
        "as_of_ms", "cut_offs", "program", "recipe", "seed", "service",
    ] {
        assert!(run.params.contains_key(key), "{key} is not logged");
    }
    let roles: Vec<_> = lineage
        .datasets
        .iter()
        .map(|logged| logged.dataset.role.as_str())
        .collect();
    assert_eq!(roles, ["training", "holdout"]);
    let [training, holdout] = &lineage.datasets[..] else {
        panic!("{roles:?}")
    };
    assert!(training.dataset.to_ms + HOUR_MS <= holdout.dataset.from_ms);
    assert_eq!(lineage.version.metrics["rows"], holdout.dataset.rows as f64);
    let gate = lineage
        .decisions
        .iter()
        .find(|decision| decision.kind == "gate")
        .unwrap();
    assert_eq!(gate.outcome, "passed");
    assert_eq!(lineage.version.service.as_deref(), Some("risk@1"));
    for version in [1, 2] {
        let version = registry.version(&project.model, version).await.unwrap();
        let golden = registry.get_artifact(&version.golden.unwrap()).await;
        let golden = String::from_utf8(golden.unwrap().to_vec()).unwrap();
        assert!(golden.contains(r#""shape":[32,3]"#), "{golden}");
    }
    let simple = registry.version(&project.model, 2).await.unwrap();
    assert_eq!(
        (
            lineage.version.algorithm.as_str(),
            simple.algorithm.as_str()
        ),
        ("boosted", "logistic")
    );
    assert!(log_loss(&lineage.version.metrics) < 0.6 && log_loss(&simple.metrics) < 0.6);
}

#[tokio::test]
async fn a_challenger_that_is_no_better_is_rejected_and_the_reason_kept() {
    let project = Project::new();
    assert!(project.train(HISTORY_HOURS).status.success());
    let output = project.train(HISTORY_HOURS);
    assert!(output.status.success(), "a rejection is no failure");
    assert!(
        said(&output).contains("rejected by gate improvement"),
        "{}",
        said(&output)
    );
    let registry = project.registry().await;
    assert_eq!(registry.versions(&project.model).await.unwrap().len(), 2);
    let decisions = registry
        .decisions(&project.model, Some("gate"), 10)
        .await
        .unwrap();
    assert_eq!(decisions[0].outcome, "rejected");
    assert_eq!(decisions[0].evidence["gate"], "improvement");
    assert_eq!(
        decisions[0].evidence["numbers"]["mean"], 0.0,
        "same rows, same seed, same model"
    );
    let run = registry
        .run(decisions[0].run.as_ref().unwrap())
        .await
        .unwrap();
    assert!(
        run.summary
            .outcome
            .unwrap()
            .starts_with("rejected: improvement: log loss")
    );
    assert_eq!(
        registry.release(&project.model).await.unwrap().champion(),
        Some(1)
    );
}

/// The second version of the service: the amount in other units, and a column more.
fn second_version() -> String {
    let first = "{ request = \"amount\" }";
    let second = "{ name = \"tenfold\", expression = \"amount * 10\" },\n  \
        { name = \"known\", expression = \"present(age)\" }";
    FEATURES
        .replace("version = 1", "version = 2")
        .replace(first, second)
}

#[tokio::test]
async fn a_new_version_of_the_service_is_trained_on_what_was_asked_of_the_old_one() {
    let project = Project::new();
    assert!(project.train(HISTORY_HOURS).status.success());
    let later = HISTORY_HOURS + 24 * 30;
    project.backfill(HISTORY_HOURS..later, -1.0);
    let path = |name: &str| project.folder.path().join(name);
    std::fs::write(
        path("features.toml"),
        format!("{FEATURES}{}", second_version()),
    )
    .unwrap();
    // Nothing was ever served with it.
    let output = project.train(later);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        told.contains("no matured rows of service `risk@2`") && told.contains("\"recomputed\""),
        "{told}"
    );
    let anew = MODEL.replace("[train]", "[train]\nrows = \"recomputed\"");
    std::fs::write(path("models/risk.toml"), anew).unwrap();
    let output = project.train(later);
    assert!(
        said(&output).contains("challenger v3, simple v4"),
        "{}",
        said(&output)
    );
    let registry = project.registry().await;
    let lineage = registry.lineage(&project.model, 3).await.unwrap();
    assert_eq!(lineage.version.service.as_deref(), Some("risk@2"));
    let source = &lineage.datasets[0].dataset.source;
    assert_eq!(source["kind"], "recomputed_rows");
    // The champion was asked the same, by rows of its own service.
    let run = project.latest_run(&registry).await;
    let champion = run.metric("champion_log_loss").unwrap();
    assert!(champion > run.metric("holdout_log_loss").unwrap() + 0.1);
    let first = registry.version(&project.model, 1).await.unwrap();
    assert_eq!(first.service.as_deref(), Some("risk@1"));
}

#[tokio::test]
async fn a_champion_is_scored_as_on_rows_of_its_own_service() {
    let project = Project::new();
    assert!(project.train(HISTORY_HOURS).status.success());
    let registry = project.registry().await;
    let before = registry.version(&project.model, 1).await.unwrap();
    let path = |name: &str| project.folder.path().join(name);
    std::fs::write(
        path("features.toml"),
        format!("{FEATURES}{}", second_version()),
    )
    .unwrap();
    let anew = MODEL.replace("[train]", "[train]\nrows = \"recomputed\"");
    std::fs::write(path("models/risk.toml"), anew).unwrap();
    let output = project.train(HISTORY_HOURS);
    assert!(output.status.success(), "passed or refused, but not broken");
    let run = project.latest_run(&registry).await;
    let champion = run.metric("champion_log_loss").unwrap();
    assert_eq!(champion, log_loss(&before.metrics), "on the same holdout");
}

#[tokio::test]
async fn both_ways_to_rows_give_one_training_set() {
    let project = Project::new();
    assert!(project.train(HISTORY_HOURS).status.success());
    let registry = project.registry().await;
    let set = |of: &registry::Lineage| of.datasets[0].dataset.source["set_digest"].clone();
    let served = registry.lineage(&project.model, 1).await.unwrap();
    let anew = MODEL.replace("[train]", "[train]\nrows = \"recomputed\"");
    std::fs::write(project.folder.path().join("models/risk.toml"), anew).unwrap();
    assert!(project.train(HISTORY_HOURS).status.success());
    let run = project.latest_run(&registry).await;
    let recomputed = &run.datasets[0].dataset.source;
    assert_eq!(recomputed["kind"], "recomputed_rows");
    assert_eq!(recomputed["set_digest"], set(&served));
}

#[tokio::test]
async fn rows_that_the_service_refuses_are_left_out_and_counted() {
    let project = Project::new();
    let refusing = FEATURES.replace(
        "{ request = \"age\" }",
        "{ request = \"age\", missing = \"refuse\" }",
    );
    let path = |name: &str| project.folder.path().join(name);
    std::fs::write(path("features.toml"), refusing).unwrap();
    let train = |model: &str| {
        std::fs::write(path("models/risk.toml"), model).unwrap();
        project.train(HISTORY_HOURS)
    };
    let served = train(MODEL);
    assert!(served.status.success());
    let told = String::from_utf8_lossy(&served.stderr).into_owned();
    assert!(
        told.contains("rows left out that the service refuses"),
        "{told}"
    );
    let registry = project.registry().await;
    let refused = |run: &Run| run.metric("refused_rows").unwrap();
    let first = project.latest_run(&registry).await;
    assert!(refused(&first) > 100.0, "a tenth has no age");
    train(&MODEL.replace("[train]", "[train]\nrows = \"recomputed\""));
    let second = project.latest_run(&registry).await;
    assert_ne!(second.summary.id, first.summary.id);
    assert_eq!(refused(&second), refused(&first));
    assert_eq!(second.metric("train_rows"), first.metric("train_rows"));
}

#[tokio::test]
async fn when_the_world_has_changed_the_better_model_becomes_challenger() {
    let project = Project::new();
    assert!(project.train(HISTORY_HOURS).status.success());
    let later = HISTORY_HOURS + 24 * 30;
    project.backfill(HISTORY_HOURS..later, -1.0);
    let output = project.train(later);
    assert!(
        said(&output).contains("challenger v3, simple v4"),
        "{}",
        said(&output)
    );
    let registry = project.registry().await;
    let release = registry.release(&project.model).await.unwrap();
    assert_eq!(
        (release.champion(), release.challenger()),
        (Some(1), Some(3)),
        "not yet promoted"
    );
    assert_eq!(
        (release.fallback(), release.get(&AliasName::simple())),
        (Some(2), Some(4))
    );
    let run = project.latest_run(&registry).await;
    assert!(
        run.metric("champion_log_loss").unwrap() > run.metric("holdout_log_loss").unwrap() + 0.1
    );
}

#[tokio::test]
async fn a_run_without_enough_rows_fails_and_says_so() {
    let project = Project::new();
    for (hour, reason) in [
        (24 * 2, "0 training rows"),
        (HISTORY_HOURS * 10, "no matured rows"),
    ] {
        let output = project.train(hour);
        assert_eq!(output.status.code(), Some(1));
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(reason), "{told}");
        let registry = project.registry().await;
        let runs = registry.runs(&project.model, 10).await.unwrap();
        let run = runs
            .iter()
            .find(|run| run.as_of_ms == hour * HOUR_MS)
            .unwrap();
        assert_eq!(run.status, RunStatus::Failed);
        assert!(run.outcome.as_ref().unwrap().contains(reason));
        assert!(registry.versions(&project.model).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn a_misspelt_model_fails_before_anything_is_written() {
    let project = Project::new();
    let output = project.command("rsik", HISTORY_HOURS).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("rsik.toml"));
    assert!(!project.data().join("registry.db").exists());
}

#[tokio::test]
async fn a_killed_run_leaves_nothing_half_registered_and_the_next_one_works() {
    let project = Project::slow();
    let mut child = project.start_training();
    child.kill().unwrap();
    child.wait().unwrap();
    let registry = project.registry().await;
    let running = registry.running(&project.model).await.unwrap();
    assert_eq!(running[0].owner_pid, child.id(), "who died is on record");
    assert!(registry.versions(&project.model).await.unwrap().is_empty());
    assert!(
        registry
            .release(&project.model)
            .await
            .unwrap()
            .aliases
            .is_empty()
    );
    let file = project.folder.path().join("models/risk.toml");
    std::fs::write(file, MODEL).unwrap();
    assert!(project.train(HISTORY_HOURS).status.success());
    assert_eq!(
        registry.release(&project.model).await.unwrap().champion(),
        Some(1)
    );
}

#[tokio::test]
async fn a_run_whose_gateway_dies_stops_by_itself_and_is_marked_killed() {
    let project = Project::slow();
    let mut child = project.start_training();
    drop(child.stdin.take());
    assert_eq!(child.wait().unwrap().code(), Some(3));
    let registry = project.registry().await;
    let run = project.latest_run(&registry).await;
    assert_eq!(run.summary.status, RunStatus::Killed);
    assert!(registry.versions(&project.model).await.unwrap().is_empty());
}

#[test]
fn check_reads_the_project_and_names_what_is_wrong() {
    let project = Project::new();
    let check = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate-trainer"));
        command
            .arg("check")
            .arg("--project")
            .arg(project.folder.path())
            .output()
            .unwrap()
    };
    let output = check();
    assert!(
        output.status.success() && said(&output).contains("risk: 3 features of risk@1"),
        "{}",
        said(&output)
    );
    let file = project.folder.path().join("models/risk.toml");
    std::fs::write(file, MODEL.replace("holdout =", "holdot =")).unwrap();
    let output = check();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && told.contains("did you mean `holdout`"),
        "{told}"
    );
}
