//! A model with a history, in a real registry and a real store, and traffic whose
//! quality the test decides. The trainer is a script that ends when told to: what
//! a trainer would write, the test writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use engine::proto::{
    self, GraphProto, Message as _, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use featurestore::{
    Definitions, FeatureRow, FeatureStore, Label, PredictionKey, PredictionRecord, Role, Status,
    StoreOptions, Value,
};
use monitor::policy::{Confirm, Span};
use monitor::{
    Counters, LoopStatus, ModelLoop, ModelLoopConfig, OperatorRequest, Policy, Skew, Tick,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use registry::{
    AliasChange, AliasName, Dataset, DatasetUse, Decision, Digest, ModelName, NewRun, NewVersion,
    Registry, RegistryOptions, RunId, RunStatus, Version,
};
use tempfile::TempDir;

pub(crate) const DAY_MS: i64 = 86_400_000;
/// 1 March 2013, the first day of traffic.
pub(crate) const START_MS: i64 = 1_362_096_000_000;
pub(crate) const ROWS: usize = 600;
const SEED: u64 = 20_130_301;

const FEATURES: &str = r#"
[[service]]
name = "delay"
version = 1
request = { x = "float", kind = "string" }
features = [
  { request = "x" },
  { request = "kind", dictionary = ["a", "b", "c"] },
]
"#;

/// How a day's traffic is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Traffic {
    /// Like the history.
    Good,
    /// The labels no longer follow the scores.
    Decayed,
    /// The strings are ones that nobody has seen.
    Unseen,
}

pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) store: FeatureStore,
    pub(crate) policy: Policy,
    pub(crate) model: ModelName,
    pub(crate) loaded: BTreeSet<Version>,
    pub(crate) refused: BTreeMap<Version, String>,
    pub(crate) now_ms: i64,
    /// What the last night found.
    pub(crate) skew: Option<Skew>,
    /// How the rows of the versions that are registered were made.
    pub(crate) rows: &'static str,
    dir: TempDir,
    random: StdRng,
}

pub(crate) fn policy() -> Policy {
    let mut policy = Policy::default();
    policy.trigger.confirm = Confirm::new(2, 3).unwrap();
    policy.trigger.cooldown = Span::days(5);
    policy.trigger.cooldown_max = Span::days(20);
    policy.monitor.decay.window = Span::days(2);
    policy.monitor.design_effect = monitor::policy::AtLeastOne::new(1.0).unwrap();
    policy.monitor.decay.alpha = monitor::policy::Probability::new(1e-3).unwrap();
    policy.rollout.soak = Span::days(2);
    policy
}

impl World {
    /// Two weeks of history, and version 1, trained on the first of them.
    pub(crate) async fn new() -> World {
        let dir = TempDir::new().unwrap();
        let data = dir.path().join("data");
        let definitions = Definitions::parse(FEATURES, "features.toml").unwrap();
        let store =
            FeatureStore::open(&data, Arc::new(definitions), &StoreOptions::default()).unwrap();
        let registry = Registry::open(&RegistryOptions {
            database: data.join("registry.db"),
            artifacts: data.join("artifacts"),
        })
        .await
        .unwrap();
        let model: ModelName = "delay".parse().unwrap();
        registry.ensure_model(&model, START_MS).await.unwrap();
        let go = dir.path().join("go");
        assert!(Command::new("mkfifo").arg(&go).status().unwrap().success());
        let script = format!("#!/bin/sh\necho at work\nexit $(cat {})\n", go.display());
        let trainer = dir.path().join("trainer.sh");
        fs::write(&trainer, script).unwrap();
        fs::set_permissions(&trainer, fs::Permissions::from_mode(0o755)).unwrap();
        let mut world = World {
            registry,
            store,
            policy: policy(),
            model,
            loaded: BTreeSet::new(),
            refused: BTreeMap::new(),
            now_ms: START_MS,
            skew: None,
            rows: "served_rows",
            dir,
            random: StdRng::seed_from_u64(SEED),
        };
        for day in -14..0 {
            world.serve(START_MS + day * DAY_MS, 0, Role::Backfill, Traffic::Good);
        }
        world.store.seal().unwrap();
        let first = world.register(None, START_MS).await;
        world.set("champion", None, Some(first)).await;
        world.loaded.insert(first);
        world
    }

    pub(crate) fn trainer(&self) -> PathBuf {
        self.dir.path().join("trainer.sh")
    }

    /// A loop as after a start of the gateway.
    pub(crate) async fn start_loop(&self) -> ModelLoop {
        let config = ModelLoopConfig {
            model: self.model.clone(),
            policy: self.policy.clone(),
            project_dir: self.dir.path().join("project"),
            data_dir: self.dir.path().join("data"),
            trainer: self.trainer(),
            seed: SEED,
            service_id: "delay@1".into(),
            definitions: Arc::clone(self.store.definitions()),
        };
        let mut model_loop = ModelLoop::new(config, self.registry.clone());
        model_loop.resume(self.now_ms).await.unwrap();
        model_loop
    }

    pub(crate) async fn tick(&self, model_loop: &mut ModelLoop) -> LoopStatus {
        self.tick_with(model_loop, None, None).await
    }

    pub(crate) async fn ask(
        &self,
        model_loop: &mut ModelLoop,
        request: OperatorRequest,
    ) -> LoopStatus {
        self.tick_with(model_loop, None, Some(request)).await
    }

    async fn tick_with(
        &self,
        model_loop: &mut ModelLoop,
        window: Option<Counters>,
        requested: Option<OperatorRequest>,
    ) -> LoopStatus {
        let tick = Tick {
            now_ms: self.now_ms,
            window,
            store: &self.store,
            loaded: &self.loaded,
            refused: &self.refused,
            skew: self.skew.as_ref(),
            requested,
        };
        model_loop.tick(tick).await.unwrap()
    }

    /// One day of traffic answered by `version`, its labels, and the tick at its end.
    pub(crate) async fn day(
        &mut self,
        model_loop: &mut ModelLoop,
        version: Version,
        traffic: Traffic,
    ) -> LoopStatus {
        let rows = self.serve(self.now_ms, version, Role::Champion, traffic);
        let window = model_loop.baseline().map(|baseline| {
            let mut counters = Counters::new(&baseline);
            for (row, score) in rows {
                counters.observe(&row.values, &row.statuses, score);
            }
            counters
        });
        self.now_ms += DAY_MS;
        self.tick_with(model_loop, window, None).await
    }

    /// Rows spread over the day from `from_ms`, each with its label an hour later.
    fn serve(
        &mut self,
        from_ms: i64,
        version: Version,
        role: Role,
        traffic: Traffic,
    ) -> Vec<(Arc<FeatureRow>, f32)> {
        let mut records = Vec::with_capacity(ROWS);
        let mut labels = Vec::with_capacity(ROWS);
        for index in 0..ROWS {
            let at_ms = from_ms + index as i64 * (DAY_MS - 7_200_000) / ROWS as i64;
            let x = self.random.random_range(-3.0f32..3.0);
            let kind = self.random.random_range(0u8..3);
            let score = 1.0 / (1.0 + (-x).exp());
            let late = self.random.random::<f32>() < score;
            let late = late ^ (traffic == Traffic::Decayed && self.random.random_bool(0.4));
            let unseen = traffic == Traffic::Unseen;
            let row = FeatureRow {
                values: vec![x, if unseen { f32::NAN } else { f32::from(kind) }],
                statuses: vec![
                    Status::Present,
                    if unseen {
                        Status::UnknownCategory
                    } else {
                        Status::Present
                    },
                ],
                event_times_ms: vec![at_ms; 2],
                as_of_seq: 0,
            };
            let prediction = PredictionKey {
                id: uuid::Uuid::from_u128(self.random.random()),
                row: 0,
            };
            let word = if unseen {
                "?".into()
            } else {
                ["a", "b", "c"][usize::from(kind)].into()
            };
            records.push(PredictionRecord {
                prediction,
                request_id: Some(format!("{at_ms}-{version}").into()),
                model: "delay".into(),
                version,
                role,
                at_ms,
                service: Some("delay@1".into()),
                request: Arc::from([Value::Float(x.into()), Value::String(word)]),
                features: Some(Arc::new(row)),
                score,
                fallback_reason: None,
            });
            labels.push(Label {
                prediction,
                value: f32::from(u8::from(late)),
                label_ms: at_ms + 3_600_000,
            });
        }
        self.store.record(&records).unwrap();
        self.store.flush().unwrap();
        // Batches arrive an hour after their last row.
        for batch in labels.chunks(100) {
            let known_ms = batch.iter().map(|label| label.label_ms).max().unwrap();
            let done = self
                .store
                .ingest_labels_blocking(batch.to_vec(), known_ms)
                .unwrap();
            assert_eq!(done.accepted, batch.len() as u64);
        }
        records
            .into_iter()
            .map(|record| (record.features.unwrap(), record.score))
            .collect()
    }

    /// What a trainer writes that made a version: the run, its rows, the version.
    pub(crate) async fn register(&self, trigger: Option<i64>, as_of_ms: i64) -> Version {
        let run = self.start_run(trigger, std::process::id(), as_of_ms).await;
        let mut datasets = Vec::new();
        for (role, from, to) in [("training", -14, -7), ("holdout", -7, 0)] {
            let dataset = Dataset {
                name: format!("delay {role} rows"),
                digest: Digest::of(role.as_bytes()),
                rows: 7 * ROWS as u64,
                from_ms: START_MS + from * DAY_MS,
                to_ms: START_MS + to * DAY_MS,
                role: role.into(),
                source: serde_json::json!({ "known_by_ms": START_MS, "kind": self.rows }),
            };
            let dataset = self.registry.log_dataset(&run, &dataset).await.unwrap();
            datasets.push(DatasetUse {
                dataset,
                role: role.into(),
            });
        }
        let artifact = self.registry.put_artifact(sigmoid_of_x()).await.unwrap();
        // What such traffic must score: an integral, and 10⁶ drawn rows.
        let metrics = [
            ("log_loss", 0.4669),
            ("auc", 0.861),
            ("ece", 0.01),
            ("rows", 4200.0),
        ];
        let version = self.registry.register_version(NewVersion {
            model: self.model.clone(),
            artifact,
            golden: None,
            signature: serde_json::json!({}),
            service: Some("delay@1".into()),
            run: Some(run.clone()),
            algorithm: "logistic".into(),
            metrics: metrics.map(|(key, value)| (key.to_string(), value)).into(),
            datasets,
            description: String::new(),
            at_ms: as_of_ms,
        });
        let version = version.await.unwrap().version;
        self.finish(&run, RunStatus::Finished, &format!("registered v{version}"))
            .await;
        version
    }

    pub(crate) async fn start_run(
        &self,
        trigger: Option<i64>,
        owner_pid: u32,
        as_of_ms: i64,
    ) -> RunId {
        let new = NewRun {
            experiment: "delay".into(),
            model: self.model.clone(),
            trigger,
            name: "run".into(),
            seed: 1,
            owner_pid,
            as_of_ms,
            started_ms: as_of_ms,
            parent: None,
        };
        self.registry.start_run(new).await.unwrap()
    }

    pub(crate) async fn finish(&self, run: &RunId, status: RunStatus, outcome: &str) {
        let at_ms = self.now_ms;
        self.registry
            .finish_run(run, status, outcome, at_ms)
            .await
            .unwrap();
    }

    pub(crate) async fn set(&self, alias: &str, expected: Option<Version>, to: Option<Version>) {
        let change = AliasChange {
            model: &self.model,
            alias: &alias.parse().unwrap(),
            expected,
            to,
            reason: "the test says so",
            at_ms: self.now_ms,
        };
        self.registry.set_alias(change).await.unwrap();
    }

    pub(crate) async fn alias(&self, alias: &str) -> Option<Version> {
        let alias: AliasName = alias.parse().unwrap();
        self.registry
            .release(&self.model)
            .await
            .unwrap()
            .get(&alias)
    }

    /// Lets the trainer under way end with this code, and waits until it has.
    pub(crate) async fn let_trainer_end(&self, model_loop: &mut ModelLoop, code: u8) {
        // Opening the pipe waits for its reader.
        let go = self.dir.path().join("go");
        let told = tokio::task::spawn_blocking(move || fs::write(go, code.to_string()));
        told.await.unwrap().unwrap();
        model_loop.training_ended().await;
    }

    /// The trainer under way registers a challenger and ends.
    pub(crate) async fn challenger(&self, model_loop: &mut ModelLoop) -> Version {
        let trigger = self.newest("trigger").await.id;
        let version = self.register(Some(trigger), self.now_ms).await;
        self.set("challenger", None, Some(version)).await;
        self.let_trainer_end(model_loop, 0).await;
        version
    }

    pub(crate) async fn decisions(&self, kind: &str) -> Vec<Decision> {
        self.registry
            .decisions(&self.model, Some(kind), 1000)
            .await
            .unwrap()
    }

    pub(crate) async fn newest(&self, kind: &str) -> Decision {
        self.decisions(kind).await.into_iter().next().unwrap()
    }
}

/// A process that has ended and was reaped.
pub(crate) fn dead_pid() -> u32 {
    let mut child = Command::new("true").spawn().unwrap();
    child.wait().unwrap();
    child.id()
}

/// `sigmoid(1 · x + 0 · kind)` as an ONNX file.
fn sigmoid_of_x() -> Vec<u8> {
    let node = |operator: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: operator.into(),
        name: output.into(),
        input: inputs.iter().map(ToString::to_string).collect(),
        output: vec![output.into()],
        ..NodeProto::default()
    };
    let weights = TensorProto {
        name: "weights".into(),
        dims: vec![2, 1],
        data_type: proto::tensor_proto::DataType::Float.into(),
        raw_data: [1.0f32, 0.0]
            .iter()
            .flat_map(|weight| weight.to_le_bytes())
            .collect(),
        ..TensorProto::default()
    };
    let graph = GraphProto {
        name: "model".into(),
        node: vec![
            node("MatMul", &["features", "weights"], "margin"),
            node("Sigmoid", &["margin"], "probability"),
        ],
        initializer: vec![weights],
        input: vec![matrix("features", 2)],
        output: vec![matrix("probability", 1)],
        ..GraphProto::default()
    };
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: 17,
        }],
        graph: Some(graph),
        ..ModelProto::default()
    };
    model.encode_to_vec()
}

fn matrix(name: &str, columns: i64) -> ValueInfoProto {
    use proto::tensor_shape_proto::{Dimension, dimension};
    let dimension = |value| Dimension {
        value: Some(value),
        ..Dimension::default()
    };
    let tensor = proto::type_proto::Tensor {
        elem_type: proto::tensor_proto::DataType::Float.into(),
        shape: Some(TensorShapeProto {
            dim: vec![
                dimension(dimension::Value::DimParam("rows".into())),
                dimension(dimension::Value::DimValue(columns)),
            ],
        }),
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(proto::type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
