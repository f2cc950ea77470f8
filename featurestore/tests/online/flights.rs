//! Definitions and made-up traffic that the store's tests share.

use std::path::Path;
use std::sync::Arc;

use featurestore::{
    Definitions, Event, FeatureStore, OfflineError, PredictionKey, PredictionRecord, Role,
    StoreOptions, TrainingQuery, TrainingSet, Value,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

pub(crate) const DEFINITIONS: &str = r#"
[[source]]
name = "departures"
time = "departed_at"
id = ["flight_id"]
fields = { flight_id = "int", carrier = "string", origin = "string", tailnum = "string?", departed_at = "time", delay = "float?", late = "bool" }

[[source]]
name = "weather"
time = "observed_at"
id = ["origin", "observed_at"]
fields = { origin = "string", observed_at = "time", wind = "float?" }

[[view]]
name = "all"
source = "departures"
keys = []
windows = ["1h", "24h"]
features = [{ count = true }, { mean = "delay" }, { rate = "late" }]

[[view]]
name = "origin"
source = "departures"
keys = ["origin", "carrier"]
windows = ["1h", "24h"]
features = [{ count = true }, { mean = "delay" }, { sum = "delay" }]

[[view]]
name = "aircraft"
source = "departures"
keys = ["tailnum"]
windows = ["24h"]
ttl = "24h"
features = [{ last = "delay" }, { age_of_last = true }, { rate = "late" }]

[[view]]
name = "wind"
source = "weather"
keys = ["origin"]
windows = []
features = [{ last = "wind" }]

[[service]]
name = "delay"
version = 1
request = { carrier = "string", origin = "string", tailnum = "string?", miles = "float" }
features = [
  { request = "miles" },
  { request = "carrier", dictionary = ["AA", "UA"] },
  { view = "all" },
  { view = "origin" },
  { view = "aircraft" },
  { view = "wind", default = 0.0, clip = [0, 60] },
]
"#;

/// 2013-03-01T00:00:00Z
pub(crate) const START_MS: i64 = 1_362_096_000_000;
pub(crate) const MINUTE_MS: i64 = 60_000;

pub(crate) fn definitions() -> Arc<Definitions> {
    Arc::new(Definitions::parse(DEFINITIONS, "features.toml").unwrap())
}

/// Training rows as served, by these definitions.
pub(crate) fn training_rows(
    folder: &Path,
    query: &TrainingQuery,
) -> Result<TrainingSet, OfflineError> {
    featurestore::training_rows(folder, &definitions(), query)
}

/// States are stored with about every third batch, so that a crash finds them old as well as new.
pub(crate) fn open(folder: &Path) -> FeatureStore {
    let options = StoreOptions {
        unstored_events_max: 12,
        ..StoreOptions::default()
    };
    FeatureStore::open(folder, definitions(), &options).unwrap()
}

/// Seeded traffic; the seed is printed, so that a failure can be repeated.
pub(crate) struct Traffic {
    pub(crate) random: StdRng,
    pub(crate) definitions: Arc<Definitions>,
    next_flight: i64,
}

impl Traffic {
    pub(crate) fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self {
            random: StdRng::seed_from_u64(seed),
            definitions: definitions(),
            next_flight: 0,
        }
    }

    fn pick(&mut self, from: &[&str]) -> Value {
        Value::String(from[self.random.random_range(0..from.len())].into())
    }

    fn tail(&mut self) -> Value {
        match self.random.random_range(0..8) {
            0 => Value::Null,
            number => Value::String(format!("N{number}").into()),
        }
    }

    /// A departure at about `at_ms`, with the next flight id.
    pub(crate) fn departure(&mut self, at_ms: i64) -> Event {
        self.next_flight += 1;
        let delay = match self.random.random_range(0..10) {
            0 => Value::Null,
            _ => Value::Float(self.random.random_range(-20.0..90.0)),
        };
        let values = vec![
            Value::Int(self.next_flight),
            self.pick(&["AA", "UA", "B6"]),
            self.pick(&["EWR", "JFK", "LGA"]),
            self.tail(),
            Value::Int(at_ms),
            delay,
            Value::Bool(self.random.random_bool(0.3)),
        ];
        let source = self.definitions.source("departures").unwrap();
        source.event(0, values, at_ms).unwrap()
    }

    pub(crate) fn weather(&mut self, at_ms: i64) -> Event {
        let values = vec![
            self.pick(&["EWR", "JFK", "LGA"]),
            Value::Int(at_ms),
            Value::Float(self.random.random_range(0.0..80.0)),
        ];
        let source = self.definitions.source("weather").unwrap();
        source.event(0, values, at_ms).unwrap()
    }

    /// Values of a request of the service.
    pub(crate) fn request(&mut self) -> Vec<Value> {
        vec![
            self.pick(&["AA", "UA", "B6"]),
            self.pick(&["EWR", "JFK", "LGA"]),
            self.tail(),
            Value::Float(self.random.random_range(100.0..2500.0)),
        ]
    }

    pub(crate) fn uuid(&mut self) -> Uuid {
        Uuid::from_u128(self.random.random())
    }

    /// A row served by the store, as the gateway would record it.
    pub(crate) fn serve(&mut self, store: &FeatureStore, at_ms: i64) -> PredictionRecord {
        let service = Arc::clone(self.definitions.service("delay").unwrap());
        let request = self.request();
        let requests = [request.clone()];
        let row = store.read_rows(&service, &requests, at_ms).unwrap();
        PredictionRecord {
            prediction: PredictionKey {
                id: self.uuid(),
                row: self.random.random_range(0..3),
            },
            request_id: Some(format!("flight-{}", self.next_flight).into()),
            model: "delay".into(),
            version: 1,
            role: Role::Champion,
            at_ms,
            service: Some(service.id().into()),
            request: request.into(),
            features: Some(Arc::new(row.into_iter().next().unwrap())),
            score: self.random.random(),
            fallback_reason: None,
        }
    }
}

/// The shadow of an answered row.
pub(crate) fn shadow_of(record: &PredictionRecord) -> PredictionRecord {
    PredictionRecord {
        version: 7,
        role: Role::Shadow,
        features: None,
        score: record.score / 2.0,
        ..record.clone()
    }
}

/// Asserts that two records are equal, values to the bit.
pub(crate) fn assert_same(found: &PredictionRecord, expected: &PredictionRecord) {
    assert_eq!(found.prediction, expected.prediction);
    assert_eq!(found.request_id, expected.request_id);
    assert_eq!(found.model, expected.model);
    assert_eq!(found.version, expected.version);
    assert_eq!(found.role, expected.role);
    assert_eq!(found.at_ms, expected.at_ms);
    assert_eq!(found.service, expected.service);
    assert_eq!(found.request, expected.request);
    assert_eq!(found.features, expected.features);
    assert_eq!(found.score.to_bits(), expected.score.to_bits());
    assert_eq!(found.fallback_reason, expected.fallback_reason);
}
