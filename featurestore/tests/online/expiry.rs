//! What upkeep lets go of, nobody misses: a store that expires states and forgets keys answers as one that
//! keeps everything.

use std::path::Path;
use std::sync::Arc;

use featurestore::{
    Definitions, Event, FeatureStore, Moment, PredictionKey, PredictionRecord, Role, StoreOptions,
    Value, ViewKeys,
};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DEFINITIONS: &str = r#"
[[source]]
name = "visits"
time = "at"
id = ["visit"]
lateness = "20d"
fields = { visit = "int", user = "int", page = "string", spent = "float?", at = "time", bought = "bool" }

[[view]]
name = "young"
source = "visits"
keys = ["user"]
ttl = "2d"
features = [{ last = "page" }, { last = "spent" }, { age_of_last = true }]

[[view]]
name = "windows"
source = "visits"
keys = ["user"]
ttl = "6d"
windows = ["2h", "3d", "1d tumbling"]
features = [{ count = true }, { mean = "spent" }, { rate = "bought" }, { last = "page", name = "page" }, { min = "spent" }, { first = "page" }, { distinct = "page" }, { quantile = { field = "spent", q = [0.5] } }]

[[view]]
name = "endless"
source = "visits"
keys = ["user"]
windows = ["1d"]
features = [{ count = true }, { std = "spent" }, { last = "spent" }, { decayed_mean = { field = "spent", half_life = "3h" } }]

[[view]]
name = "newest"
source = "visits"
keys = ["user"]
features = [{ last = "page" }]

[[service]]
name = "user"
version = 1
request = { user = "int" }
features = [
  { view = "young", features = ["last_spent", "age_of_last"] },
  { view = "windows", features = ["count_2h", "mean_spent_3d", "rate_bought_1d_tumbling", "min_spent_3d", "distinct_page_3d", "p50_spent_3d"] },
  { view = "endless" },
]
"#;

const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 1440 * MINUTE_MS;
const START_MS: i64 = 1_362_096_000_000;
const USERS: i64 = 12;

/// Nothing in memory between a group and a read: states come from the tables.
fn open(folder: &Path) -> FeatureStore {
    let definitions = Arc::new(Definitions::parse(DEFINITIONS, "features.toml").unwrap());
    let options = StoreOptions {
        hot_states_bytes: 0,
        cached_states_max: 2,
        ..StoreOptions::default()
    };
    FeatureStore::open(folder, definitions, &options).unwrap()
}

struct Visits {
    random: StdRng,
    made: i64,
}

impl Visits {
    fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self {
            random: StdRng::seed_from_u64(seed),
            made: 0,
        }
    }

    fn visit(&mut self, store: &FeatureStore, user: i64, at_ms: i64) -> Event {
        self.made += 1;
        let spent = match self.random.random_range(0..5) {
            0 => Value::Null,
            _ => Value::Float(f64::from(self.random.random_range(1..5000)) / 100.0),
        };
        let page = format!("p{}", self.random.random_range(0..4));
        let values = vec![
            Value::Int(self.made),
            Value::Int(user),
            Value::String(page.into()),
            spent,
            Value::Int(at_ms),
            Value::Bool(self.random.random_bool(0.4)),
        ];
        let source = store.definitions().source("visits").unwrap();
        source.event(0, values, at_ms).unwrap()
    }

    /// A few visits now and some that come late; the user of most of them is one of a few, so that the
    /// others grow old.
    fn batch(&mut self, store: &FeatureStore, now_ms: i64) -> Vec<Event> {
        let mut batch = vec![self.visit(store, 0, now_ms)];
        for _ in 0..self.random.random_range(0..4) {
            let user = self.random.random_range(0..USERS);
            let user = self.random.random_range(0..=user);
            let behind_ms = match self.random.random_range(0..3) {
                0 => self.random.random_range(0..25 * 1440) * MINUTE_MS,
                _ => self.random.random_range(0..90) * MINUTE_MS,
            };
            batch.push(self.visit(store, user, now_ms - behind_ms));
        }
        batch
    }
}

/// Every feature of every user in its own type, whatever its age too, and the rows of the service.
fn answers(store: &FeatureStore, at_ms: i64) -> String {
    let users: Vec<Value> = (0..USERS).map(Value::Int).collect();
    let requests: Vec<Vec<Value>> = users.iter().map(|user| vec![user.clone()]).collect();
    let service = store.definitions().service("user").unwrap();
    let rows = store.read_rows(service, &requests, at_ms).unwrap();
    let bits = |row: &featurestore::FeatureRow| {
        let values: Vec<u32> = row.values.iter().map(|value| value.to_bits()).collect();
        format!("{values:?} {:?} {:?}", row.statuses, row.event_times_ms)
    };
    let rows: Vec<String> = rows.iter().map(bits).collect();
    let views = &store.definitions().views;
    let of_all = |view| ViewKeys {
        view,
        columns: vec![&users[..]],
    };
    let asked: Vec<_> = views.iter().map(of_all).collect();
    let found = store.read_views(&asked, users.len()).unwrap();
    let mut values = Vec::new();
    for (view, found) in views.iter().zip(&found) {
        let readings = found.readings(at_ms);
        for index in 0..view.features.len() {
            values.push(format!("{:?}", readings.values(index).collect::<Vec<_>>()));
        }
    }
    format!("{rows:#?} {values:#?}")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn a_store_that_is_looked_after_answers_as_one_that_keeps_everything(
        seed in 0u64..1_000_000,
        pauses in proptest::collection::vec(0i64..12 * 1440, 20..30),
    ) {
        let (tended, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (mut store, other) = (open(tended.path()), open(kept.path()));
        let mut visits = Visits::new(seed);
        let mut now_ms = START_MS;
        let mut expired = 0;
        for (step, pause) in pauses.iter().enumerate() {
            now_ms += pause * MINUTE_MS;
            let batch = visits.batch(&store, now_ms);
            let taken = store.ingest_events_blocking(batch.clone(), now_ms).unwrap();
            let beside = other.ingest_events_blocking(batch, now_ms).unwrap();
            // What is too late is logged only where its key cannot have been forgotten.
            prop_assert_eq!((taken.duplicates, taken.late), (beside.duplicates, beside.late));
            expired += store.upkeep(now_ms).unwrap().expired_states;
            for later in [0, 1, 700, 5000] {
                let at_ms = now_ms + later * MINUTE_MS;
                prop_assert_eq!(answers(&store, at_ms), answers(&other, at_ms), "step {}", step);
            }
            if step % 7 == 6 {
                drop(store);
                store = open(tended.path());
            }
        }
        prop_assert!(expired > 0);
    }
}

#[test]
fn what_expired_is_verified_and_told_of_the_past_as_it_was_served() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let service = Arc::clone(store.definitions().service("user").unwrap());
    let mut visits = Visits::new(4);
    let mut served = Vec::new();
    let mut expired = 0;
    for step in 0..60 {
        let now_ms = START_MS + step * 1111 * MINUTE_MS;
        let batch = visits.batch(&store, now_ms);
        store.ingest_events_blocking(batch, now_ms).unwrap();
        expired += store.upkeep(now_ms).unwrap().expired_states;
        let request = vec![Value::Int(step % USERS)];
        let row = store
            .read_rows(&service, std::slice::from_ref(&request), now_ms)
            .unwrap()
            .remove(0);
        let record = PredictionRecord {
            prediction: PredictionKey {
                id: uuid::Uuid::from_u128(visits.random.random()),
                row: 0,
            },
            request_id: None,
            model: "m".into(),
            version: 1,
            role: Role::Champion,
            at_ms: now_ms,
            service: Some("user@1".into()),
            request: request.into(),
            features: Some(Arc::new(row)),
            score: 0.5,
            fallback_reason: None,
        };
        store.record(std::slice::from_ref(&record)).unwrap();
        served.push(record);
    }
    assert!(expired > 10, "{expired}");
    let report = store.verify("m", "user", 1000, 1).unwrap();
    assert_eq!((report.rows_checked, report.mismatches), (60, 0));
    for record in served.iter().step_by(9) {
        let moment = Moment {
            at_ms: record.at_ms,
            known_ms: record.at_ms,
        };
        let requests = [record.request.to_vec()];
        let mut go_on = |_| std::ops::ControlFlow::Continue(());
        let row = store.rows_then(&service, &requests, moment, &mut go_on);
        let row = row.unwrap().remove(0);
        assert!(row.same_features(record.features.as_ref().unwrap()));
    }
}

#[test]
fn a_clock_that_is_wrong_expires_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut visits = Visits::new(5);
    let batch = visits.batch(&store, START_MS);
    store.ingest_events_blocking(batch, START_MS).unwrap();
    let before = answers(&store, START_MS + MINUTE_MS);
    let upkept = store.upkeep(START_MS + 4000 * DAY_MS).unwrap();
    assert_eq!(upkept.expired_states, 0);
    assert_eq!(answers(&store, START_MS + MINUTE_MS), before);
}

#[test]
fn values_that_are_read_at_any_age_stay() {
    let folder = tempfile::tempdir().unwrap();
    let definitions = Arc::new(Definitions::parse(DEFINITIONS, "features.toml").unwrap());
    let options = StoreOptions {
        hot_states_bytes: 0,
        keep_expired_values: true,
        ..StoreOptions::default()
    };
    let store = FeatureStore::open(folder.path(), definitions, &options).unwrap();
    let mut visits = Visits::new(6);
    let old = visits.visit(&store, 7, START_MS);
    let page = old.values[2].clone();
    store.ingest_events_blocking(vec![old], START_MS).unwrap();
    let now_ms = START_MS + 30 * DAY_MS;
    let new = visits.visit(&store, 0, now_ms);
    store.ingest_events_blocking(vec![new], now_ms).unwrap();
    assert!(store.upkeep(now_ms).unwrap().expired_states > 0);
    let view = store.definitions().view("windows").unwrap();
    let user = [Value::Int(7)];
    let asked = [ViewKeys {
        view,
        columns: vec![&user],
    }];
    let found = store.read_views(&asked, 1).unwrap();
    let last = view.feature("page").unwrap();
    let (value, _, event_ms) = found[0].readings_of_any_age(now_ms).value(0, last);
    assert_eq!((value, event_ms), (page, START_MS));
}
