//! A disk that is full: what is refused leaves the registry as it was and says why, reads go on, and writes
//! go on by themselves when there is space. A child works on a small file system of its own; where none may
//! be mounted the test says so and passes.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use registry::{
    AliasChange, AliasName, ArtifactError, Digest, Metric, NewVersion, Registry, RunId,
};
use serde_json::json;

use crate::fixture::{model, new_decision, new_run, open, options};

const FOLDER: &str = "REGISTRY_TEST_SMALL_DISK";
const ON_A_SMALL_DISK: &str = "on a small disk";

#[test]
fn a_write_that_a_full_disk_refuses_leaves_the_registry_as_it_was() {
    let disk = tempfile::tempdir().unwrap();
    let script =
        format!("mount -t tmpfs -o size=8m tmpfs \"${FOLDER}\" || exit 77; exec \"$0\" \"$@\"");
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "full::the_child_on_a_small_disk"])
        .args(["--ignored", "--nocapture"])
        .env(FOLDER, disk.path())
        .output();
    let Ok(output) = output else {
        return println!("SKIPPED: `unshare` cannot be had");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    if !said.contains(ON_A_SMALL_DISK) {
        return println!("SKIPPED: no file system may be mounted here");
    }
    assert!(output.status.success());
}

/// What a registry is asked to keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Change {
    Artifact,
    Version,
    Alias,
    Decision,
    StartedRun,
    Metrics,
}

const CHANGES: [Change; 6] = [
    Change::Artifact,
    Change::Version,
    Change::Alias,
    Change::Decision,
    Change::StartedRun,
    Change::Metrics,
];

struct Child {
    disk: PathBuf,
    registry: Registry,
    run: RunId,
    artifact: Digest,
    /// Counts the changes that were tried.
    tried: u32,
}

impl Child {
    async fn start(disk: PathBuf) -> Self {
        let registry = open(&disk).await;
        registry.ensure_model(&model(), 1).await.unwrap();
        let run = registry.start_run(new_run("train", None)).await.unwrap();
        let artifact = registry.put_artifact(b"model".to_vec()).await.unwrap();
        Self {
            disk,
            registry,
            run,
            artifact,
            tried: 0,
        }
    }

    /// Makes a change; what is said where it is refused.
    async fn try_to(&mut self, change: Change) -> Result<(), String> {
        self.tried += 1;
        let registry = &self.registry;
        let at_ms = i64::from(self.tried);
        match change {
            Change::Artifact => {
                let bytes = self.tried.to_le_bytes().repeat(50_000);
                registry.put_artifact(bytes).await.map(drop).map_err(said)
            }
            Change::Version => {
                let new = NewVersion {
                    model: model(),
                    // Which is there, so that the database is what refuses.
                    artifact: self.artifact,
                    golden: None,
                    signature: json!({}),
                    service: None,
                    run: None,
                    algorithm: "a".repeat(2000),
                    metrics: BTreeMap::new(),
                    datasets: Vec::new(),
                    description: format!("of try {at_ms}"),
                    at_ms,
                };
                registry.register_version(new).await.map(drop).map_err(said)
            }
            Change::Alias => {
                let release = registry.release(&model()).await.map_err(said)?;
                let change = AliasChange {
                    model: &model(),
                    alias: &AliasName::champion(),
                    expected: release.champion(),
                    to: Some(3 - release.champion().unwrap_or(2)),
                    reason: &"r".repeat(2000),
                    at_ms,
                };
                registry.set_alias(change).await.map(drop).map_err(said)
            }
            Change::Decision => {
                let evidence = json!("e".repeat(2000));
                let new = new_decision(&format!("kind {at_ms}"), evidence);
                registry.record_decision(new).await.map(drop).map_err(said)
            }
            Change::StartedRun => {
                let new = new_run(&"n".repeat(2000), Some(&self.run));
                registry.start_run(new).await.map(drop).map_err(said)
            }
            Change::Metrics => {
                let metric = |step| Metric {
                    key: "loss".to_owned(),
                    value: 0.5,
                    step,
                    at_ms,
                };
                let steps = at_ms * 50..(at_ms + 1) * 50;
                let metrics: Vec<_> = steps.map(metric).collect();
                let logged = registry.log_metrics(&self.run, &metrics).await;
                logged.map_err(said)
            }
        }
    }

    /// Another file takes all of the disk.
    fn fill(&self) {
        let mut filler = File::options()
            .create(true)
            .append(true)
            .open(self.filler())
            .unwrap();
        while filler.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    }

    fn filler(&self) -> PathBuf {
        self.disk.join("filler")
    }
}

/// All that a registry says.
async fn read(registry: &Registry, run: &RunId) -> String {
    format!(
        "{:?} {:?} {:?} {:?} {:?}",
        registry.history(&model()).await.unwrap(),
        registry.versions(&model()).await.unwrap(),
        registry.decisions(&model(), None, 10_000).await.unwrap(),
        registry.runs(&model(), 10_000).await.unwrap(),
        registry.run(run).await.unwrap(),
    )
}

/// An error with its causes.
fn said(error: impl Error) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said += &format!(": {error}");
        cause = error.source();
    }
    said
}

fn artifacts(disk: &Path) -> Vec<PathBuf> {
    let shards = fs::read_dir(disk.join("artifacts/sha256")).unwrap();
    let files = shards.flat_map(|shard| fs::read_dir(shard.unwrap().path()).unwrap());
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| !file.to_string_lossy().contains('#'));
    files.sort();
    files
}

#[tokio::test]
#[ignore = "the child of another test"]
async fn the_child_on_a_small_disk() {
    println!("\n{ON_A_SMALL_DISK}");
    let disk = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let mut child = Child::start(disk.clone()).await;
    let run = child.run.clone();
    for change in CHANGES
        .into_iter()
        .chain([Change::Version, Change::StartedRun])
    {
        child.try_to(change).await.unwrap();
    }
    for round in 0..3 {
        // Frees no page: SQLite goes on in the space that its log has already, and then is refused.
        let mut refused: BTreeMap<Change, String> = BTreeMap::new();
        for _ in 0..500 {
            child.fill();
            for change in CHANGES {
                let before = (read(&child.registry, &run).await, artifacts(&disk));
                if let Err(problem) = child.try_to(change).await {
                    let after = (read(&child.registry, &run).await, artifacts(&disk));
                    assert!(before == after, "{change:?} was refused, and is there");
                    refused.entry(change).or_insert(problem);
                }
            }
            if refused.len() == CHANGES.len() {
                break;
            }
        }
        println!("round {round}: {refused:#?}");
        assert_eq!(refused.len(), CHANGES.len());
        for problem in refused.values() {
            let clear = ["disk is full", "No space left on device"];
            assert!(
                clear.iter().any(|clear| problem.contains(clear)),
                "{problem}"
            );
        }
        // Whoever opens it now finds what was acknowledged.
        let before = read(&child.registry, &run).await;
        if round == 1 {
            child.registry.close().await;
            fs::remove_file(child.filler()).unwrap();
            child.registry = open(&disk).await;
        } else {
            fs::remove_file(child.filler()).unwrap();
        }
        assert!(read(&child.registry, &run).await == before);
        for change in CHANGES {
            child.try_to(change).await.unwrap();
        }
    }
    child
        .registry
        .sweep_unfinished_artifacts(i64::MAX / 2)
        .await
        .unwrap();
    for file in artifacts(&disk) {
        let digest = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let read = child.registry.get_artifact(&digest).await;
        assert!(
            !matches!(read, Err(ArtifactError::Corrupt { .. })),
            "{read:?}"
        );
    }
    let before = read(&child.registry, &run).await;
    child.registry.close().await;
    let registry = Registry::open(&options(&disk)).await.unwrap();
    assert!(read(&registry, &run).await == before);
}
