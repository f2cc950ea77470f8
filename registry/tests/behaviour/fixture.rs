//! A registry in a temporary folder, and what is needed to fill it.

use std::collections::BTreeMap;
use std::path::Path;

use registry::{
    AliasChange, AliasName, ModelName, NewDecision, NewRun, NewVersion, Registry, RegistryOptions,
    RunId, Version,
};
use serde_json::json;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

pub(crate) struct Fixture {
    pub(crate) registry: Registry,
    pub(crate) folder: TempDir,
}

impl Fixture {
    /// A new registry with the model `delay`.
    pub(crate) async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = open(folder.path()).await;
        registry.ensure_model(&model(), 1).await.unwrap();
        Self { registry, folder }
    }

    /// A second handle with connections of its own, as another process would have.
    pub(crate) async fn another(&self) -> Registry {
        open(self.folder.path()).await
    }

    /// A connection that goes around our code.
    pub(crate) async fn raw(&self) -> SqliteConnection {
        let file = self.folder.path().join("registry.db");
        let raw = SqliteConnection::connect(&format!("sqlite://{}", file.display())).await;
        raw.unwrap()
    }

    pub(crate) async fn versions(&self, count: u32) {
        for number in 1..=count {
            let new = self.new_version(number, None).await;
            let version = self.registry.register_version(new).await.unwrap();
            assert_eq!(version.version, number);
        }
    }

    pub(crate) async fn new_version(&self, content: u32, run: Option<RunId>) -> NewVersion {
        let bytes = format!("model {content}").into_bytes();
        NewVersion {
            model: model(),
            artifact: self.registry.put_artifact(bytes).await.unwrap(),
            golden: None,
            signature: json!({"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}),
            service: Some("delay@1".to_owned()),
            run,
            algorithm: "gradient_boosting".to_owned(),
            metrics: BTreeMap::from([("auc".to_owned(), 0.806), ("rows".to_owned(), 1e5)]),
            datasets: Vec::new(),
            description: format!("version of content {content}"),
            at_ms: 1000 + i64::from(content),
        }
    }

    pub(crate) async fn start(&self, name: &str, parent: Option<&RunId>) -> RunId {
        self.registry
            .start_run(new_run(name, parent))
            .await
            .unwrap()
    }

    pub(crate) async fn set(&self, alias: &AliasName, from: Option<Version>, to: Option<Version>) {
        let change = AliasChange {
            model: &model(),
            alias,
            expected: from,
            to,
            reason: "test",
            at_ms: 5,
        };
        self.registry.set_alias(change).await.unwrap();
    }
}

pub(crate) async fn open(folder: &Path) -> Registry {
    Registry::open(&options(folder)).await.unwrap()
}

pub(crate) fn options(folder: &Path) -> RegistryOptions {
    RegistryOptions {
        database: folder.join("registry.db"),
        artifacts: folder.join("artifacts"),
    }
}

pub(crate) fn model() -> ModelName {
    "delay".parse().unwrap()
}

pub(crate) fn new_run(name: &str, parent: Option<&RunId>) -> NewRun {
    NewRun {
        experiment: "delay/loop".to_owned(),
        model: model(),
        trigger: None,
        name: name.to_owned(),
        seed: u64::MAX - 7,
        owner_pid: 4_000_000_000,
        as_of_ms: 100,
        started_ms: 200,
        parent: parent.cloned(),
    }
}

pub(crate) fn new_decision(kind: &str, evidence: serde_json::Value) -> NewDecision {
    NewDecision {
        model: model(),
        kind: kind.to_owned(),
        outcome: "drift".to_owned(),
        reason: "psi above its threshold".to_owned(),
        run: None,
        version: None,
        evidence,
        at_ms: 50,
    }
}
