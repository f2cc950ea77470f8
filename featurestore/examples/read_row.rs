//! What one feature row costs: four views of one entity, 68 features, read from a warm store, its states
//! in memory against its states in their tables.
//!
//! `cargo run --release --example read_row -p featurestore [ROUNDS [ACCOUNTS]]`, pinned with `taskset`
//! where figures are compared. Prints p50 and p99 of single reads, in interleaved rounds.

use std::sync::Arc;
use std::time::Instant;

use featurestore::{Definitions, Event, FeatureStore, Service, StoreOptions, Value};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const PAYMENTS_PER_ACCOUNT: usize = 20;
const READS_PER_ROUND: usize = 20_000;
const HOUR_MS: i64 = 3_600_000;
/// 2026-01-01T00:00:00Z
const NOW_MS: i64 = 1_767_225_600_000;

/// The accounts of the bench's scenario `steady`.
fn definitions() -> String {
    let all = "{ mean = \"amount\" }, { sum = \"amount\" }, { mean = \"fee\" }, { count = true }";
    let risk = "{ rate = \"declined\" }, { rate = \"abroad\" }, { sum = \"fee\" }, { count = true }, { last = \"fee\" }";
    let mut text = "[[source]]\nname = \"payments\"\ntime = \"paid_at\"\nid = [\"payment\"]\n\
         fields = { payment = \"int\", account = \"string\", paid_at = \"time\", amount = \"float\", fee = \"float\", declined = \"bool\", abroad = \"bool\" }\n\n"
        .to_owned();
    for (name, filter, features) in [
        ("all", None, format!("{all}, {{ age_of_last = true }}")),
        ("risk", None, risk.to_owned()),
        (
            "declines",
            Some("declined"),
            format!("{all}, {{ last = \"amount\" }}"),
        ),
        (
            "abroad",
            Some("abroad"),
            format!("{all}, {{ last = \"amount\" }}"),
        ),
    ] {
        let filter = filter.map_or(String::new(), |field| {
            format!("where = {{ field = \"{field}\", equals = true }}\n")
        });
        text += &format!(
            "[[view]]\nname = \"{name}\"\nsource = \"payments\"\nkeys = [\"account\"]\n\
             windows = [\"1h\", \"6h\", \"24h\", \"7d\"]\n{filter}features = [{features}]\n\n"
        );
    }
    text += "[[service]]\nname = \"payment\"\nversion = 1\nrequest = { account = \"string\", amount = \"float\" }\n\
         features = [{ request = \"amount\" }, { view = \"all\" }, { view = \"risk\" }, { view = \"declines\" }, { view = \"abroad\" }]\n";
    text
}

fn account(number: usize) -> Value {
    Value::String(format!("account-{number:05}").into())
}

fn events(definitions: &Definitions, accounts: usize) -> Vec<Event> {
    let mut random = StdRng::seed_from_u64(7);
    let source = definitions.source("payments").expect("it is defined");
    let payment = |number: usize| {
        let values = vec![
            Value::Int(number as i64),
            account(number % accounts),
            Value::Int(NOW_MS - random.random_range(0..48 * HOUR_MS)),
            Value::Float(f64::from(random.random_range(1i32..100_000)) / 100.0),
            Value::Float(f64::from(random.random_range(1i32..1000)) / 100.0),
            Value::Bool(random.random_bool(0.2)),
            Value::Bool(random.random_bool(0.3)),
        ];
        source.event(0, values, NOW_MS).expect("it fits its source")
    };
    (0..accounts * PAYMENTS_PER_ACCOUNT).map(payment).collect()
}

/// A store and what its reads took, in nanoseconds.
struct Subject {
    name: &'static str,
    store: FeatureStore,
    took: Vec<u64>,
    _folder: tempfile::TempDir,
}

impl Subject {
    fn new(name: &'static str, hot_states_bytes: usize, accounts: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let definitions = Definitions::parse(&definitions(), "features.toml");
        let definitions = Arc::new(definitions.expect("they are right"));
        let options = StoreOptions {
            hot_states_bytes,
            ..StoreOptions::default()
        };
        let store = FeatureStore::open(folder.path(), Arc::clone(&definitions), &options);
        let store = store.expect("the folder is new");
        for batch in events(&definitions, accounts).chunks(500) {
            let ingested = store.ingest_events_blocking(batch.to_vec(), NOW_MS);
            ingested.expect("the disk takes it");
        }
        Self {
            name,
            store,
            took: Vec::new(),
            _folder: folder,
        }
    }

    fn round(&mut self, requests: &[Vec<Vec<Value>>]) {
        let definitions = Arc::clone(self.store.definitions());
        let service: &Service = definitions.service("payment").expect("it is defined");
        for request in requests.iter().cycle().take(READS_PER_ROUND) {
            let began = Instant::now();
            let rows = self.store.read_rows(service, request, NOW_MS);
            self.took.push(began.elapsed().as_nanos() as u64);
            std::hint::black_box(rows).expect("the states are whole");
        }
    }

    fn report(&mut self) {
        self.took.sort_unstable();
        let quantile = |share: f64| {
            let place = (self.took.len() - 1) as f64 * share;
            self.took[place as usize] as f64 / 1000.0
        };
        println!(
            "{:<10} p50 {:6.2} µs  p99 {:6.2} µs  p99.9 {:6.2} µs  N {}",
            self.name,
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            self.took.len()
        );
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| match arguments.next() {
        Some(text) => text.parse().expect("arguments are numbers"),
        None => default,
    };
    let (rounds, accounts) = (number(5), number(1000));
    let mut subjects = [
        Subject::new("in memory", 64 << 20, accounts),
        Subject::new("in tables", 0, accounts),
    ];
    let mut random = StdRng::seed_from_u64(11);
    let requests: Vec<_> = (0..4096)
        .map(|_| {
            vec![vec![
                account(random.random_range(0..accounts)),
                Value::Float(1.0),
            ]]
        })
        .collect();
    for round in 0..=rounds {
        for subject in &mut subjects {
            subject.round(&requests);
            if round == 0 {
                subject.took.clear();
            }
        }
    }
    println!("one row of 4 views, {accounts} accounts, one thread:");
    subjects.iter_mut().for_each(Subject::report);
}
