use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use featurestore::{Definitions, PredictionKey, PredictionRecord, Role, StoreOptions, Value};

use super::*;
use crate::config::ModelConfig;

const DEFINITIONS: &str = r#"
[[source]]
name = "clicks"
time = "at"
id = ["id"]
fields = { id = "int", user = "string", at = "time" }

[[view]]
name = "user"
source = "clicks"
keys = ["user"]
windows = ["7d"]
features = [{ count = true }]

[[service]]
name = "score"
version = 1
request = { user = "string" }
features = [{ view = "user" }]

[[service]]
name = "score"
version = 2
request = { user = "string" }
features = [{ view = "user", default = 0 }]
"#;

/// 1 January 2013, at noon.
const NOON_MS: i64 = 15_706 * DAY_MS + DAY_MS / 2;
/// The night after it.
const NIGHT_AFTER_MS: i64 = 15_707 * DAY_MS + NIGHT_MS;
/// The longest wait for a night. None takes so long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(120);

struct World {
    store: FeatureStore,
    nightly: Nightly,
    model: ModelName,
    _folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let options = StoreOptions::default();
        let store = FeatureStore::open(folder.path(), Arc::new(definitions), &options).unwrap();
        let model: ModelName = "m".parse().unwrap();
        let config = ModelConfig {
            service: Some("score@2".to_owned()),
            verify: Some(VerifyRules {
                rows: NonZeroUsize::MAX,
                memory_bytes_max: usize::MAX,
            }),
            ..ModelConfig::default()
        };
        let project = ProjectConfig {
            folder: PathBuf::new(),
            features: PathBuf::new(),
            models: [(model.clone(), config)].into(),
            trainer: PathBuf::new(),
            seed: 1,
        };
        let nightly = Nightly::start(&project, &store).unwrap();
        Self {
            store,
            nightly,
            model,
            _folder: folder,
        }
    }

    /// A click, then a row of each version of the service, spoilt by so much.
    fn serve(&self, at_ms: i64, spoilt: f32) {
        let source = self.store.definitions().source("clicks").unwrap();
        let values = vec![
            Value::Int(at_ms),
            Value::String("u".into()),
            Value::Int(at_ms),
        ];
        let click = source.event(0, values, at_ms).unwrap();
        self.store
            .ingest_events_blocking(vec![click], at_ms)
            .unwrap();
        let records = ["score@1", "score@2"].map(|id| {
            let service = self.store.definitions().service(id).unwrap();
            let request = vec![Value::String("u".into())];
            let rows = self
                .store
                .read_rows(service, std::slice::from_ref(&request), at_ms);
            let mut row = rows.unwrap().remove(0);
            row.values[0] += spoilt;
            PredictionRecord {
                prediction: PredictionKey {
                    id: uuid::Uuid::now_v7(),
                    row: 0,
                },
                request_id: None,
                model: "m".into(),
                version: 1,
                role: Role::Champion,
                at_ms,
                service: Some(id.into()),
                request: request.into(),
                features: Some(Arc::new(row)),
                score: 0.5,
                fallback_reason: None,
            }
        });
        self.store.record(&records).unwrap();
        self.store.flush().unwrap();
    }

    /// Looks when the night is due, before its rows have settled, and when they have; waits for it.
    fn night(&mut self, at_ms: i64) -> Verified {
        let before = self.nightly.verified()[&self.model].nights;
        for now_ms in [at_ms, at_ms + SETTLE_MS - 1] {
            self.nightly.look(&self.store, now_ms);
            assert!(!self.nightly.is_busy(), "its rows may not be recorded yet");
        }
        self.nightly.look(&self.store, at_ms + SETTLE_MS);
        let began = Instant::now();
        while self.nightly.is_busy() {
            assert!(began.elapsed() < PATIENCE, "the night never ends");
            std::thread::sleep(LOOK);
        }
        self.nightly.look(&self.store, at_ms + SETTLE_MS);
        let verified = self.nightly.verified()[&self.model].clone();
        assert_eq!(verified.nights, before + 1);
        assert_eq!(verified.until_ms, Some(at_ms));
        verified
    }
}

#[test]
fn a_night_comes_once_a_day() {
    assert_eq!(next_night(0), NIGHT_MS);
    assert_eq!(next_night(NIGHT_MS - 1), NIGHT_MS);
    assert_eq!(next_night(NIGHT_MS), NIGHT_MS + DAY_MS);
    assert_eq!(next_night(5 * DAY_MS), 5 * DAY_MS + NIGHT_MS);
}

#[test]
fn a_live_gateway_verifies_each_night_and_tells_the_loop_of_what_differs() {
    let mut world = World::new();
    world.nightly.look(&world.store, NOON_MS);
    world.serve(NOON_MS, 0.0);
    world.serve(NIGHT_AFTER_MS - 1, 0.0);
    world.nightly.look(&world.store, NIGHT_AFTER_MS - 1);
    let found = world.night(NIGHT_AFTER_MS);
    // Of both versions, though the model's file names the second.
    assert_eq!((found.rows_checked, found.mismatches), (4, 0));
    assert_eq!(world.nightly.skew(&world.model), None);

    // Asked for after the mark: the next night's.
    world.serve(NIGHT_AFTER_MS + 1, 1.0);
    let found = world.night(NIGHT_AFTER_MS + DAY_MS);
    assert_eq!((found.rows_checked, found.mismatches), (6, 2));
    let skew = world.nightly.skew(&world.model).unwrap();
    let features = [("user:count_7d".to_owned(), 2)];
    assert_eq!((skew.rows, skew.features), (2, features.into()));

    world.serve(NIGHT_AFTER_MS + DAY_MS + 1, 0.0);
    let found = world.night(NIGHT_AFTER_MS + 2 * DAY_MS);
    assert_eq!((found.rows_checked, found.mismatches), (8, 2));
    assert_eq!(world.nightly.skew(&world.model), None);
}
