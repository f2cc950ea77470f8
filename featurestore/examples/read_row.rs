//! What one feature row costs, read from a warm store: its states in memory against its states in their
//! tables. Made-up events fill the views of any service; by default one of four views and 68 features of
//! one entity, as in the bench's scenario `steady`.
//!
//! `cargo run --release --example read_row -p featurestore [ENTITIES [FEATURES.toml SERVICE]]`, pinned
//! with `taskset` where figures are compared. Prints p50 and p99 of single reads, in interleaved rounds.

use std::sync::Arc;
use std::time::Instant;

use featurestore::{
    Definitions, Event, FeatureStore, Field, FieldType, Service, StoreOptions, Value,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// As the gateway has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS_PER_ENTITY: usize = 20;
const ROUNDS: usize = 5;
const READS_PER_ROUND: usize = 20_000;
const HOUR_MS: i64 = 3_600_000;
/// 2026-01-01T00:00:00Z
const NOW_MS: i64 = 1_767_225_600_000;

/// The accounts of the bench's scenario `steady`.
fn accounts() -> String {
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

/// What is read, and of how many entities.
struct Subject {
    definitions: Arc<Definitions>,
    service: Arc<Service>,
    entities: usize,
}

impl Subject {
    fn of_arguments() -> Self {
        let mut arguments = std::env::args().skip(1);
        let entities = arguments.next().map_or(1000, |text| {
            text.parse().expect("the first argument is a number")
        });
        let definitions = match arguments.next() {
            Some(path) => Definitions::load(path.as_ref()),
            None => Definitions::parse(&accounts(), "features.toml"),
        };
        let definitions = Arc::new(definitions.expect("the definitions are right"));
        let name = arguments.next().unwrap_or_else(|| "payment".to_owned());
        let service = definitions.service(&name).expect("the service is defined");
        Self {
            service: Arc::clone(service),
            entities,
            definitions,
        }
    }

    /// Strings name entities, integers are the event's number.
    fn value(&self, field: &Field, (number, at_ms): (usize, i64), random: &mut StdRng) -> Value {
        match field.ty {
            FieldType::Bool => Value::Bool(random.random_bool(0.25)),
            FieldType::Int => Value::Int(number as i64),
            FieldType::Float => Value::Float(f64::from(random.random_range(1i32..100_000)) / 100.0),
            FieldType::String => {
                let entity = random.random_range(0..self.entities);
                Value::String(format!("entity-{entity:05}").into())
            }
            FieldType::Time => Value::Int(at_ms),
        }
    }

    fn events(&self, random: &mut StdRng) -> Vec<Event> {
        let mut events = Vec::new();
        for number in 0..self.entities * EVENTS_PER_ENTITY {
            for source in &self.definitions.sources {
                let at = (number, NOW_MS - random.random_range(0..48 * HOUR_MS));
                let values = source.fields.iter();
                let values = values.map(|field| self.value(field, at, random)).collect();
                events.push(source.event(0, values, NOW_MS).expect("it fits its source"));
            }
        }
        events
    }

    fn request(&self, random: &mut StdRng) -> Vec<Value> {
        let fields = self.service.request.iter();
        fields
            .map(|field| self.value(field, (0, NOW_MS), random))
            .collect()
    }
}

/// A store and what its reads took, in nanoseconds.
struct Measured {
    name: &'static str,
    store: FeatureStore,
    took: Vec<u64>,
    _folder: tempfile::TempDir,
}

impl Measured {
    fn new(name: &'static str, hot_states_bytes: usize, subject: &Subject) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let options = StoreOptions {
            hot_states_bytes,
            ..StoreOptions::default()
        };
        let open = || FeatureStore::open(folder.path(), Arc::clone(&subject.definitions), &options);
        let store = open().expect("the folder is new");
        for batch in subject.events(&mut StdRng::seed_from_u64(7)).chunks(500) {
            let ingested = store.ingest_events_blocking(batch.to_vec(), NOW_MS);
            ingested.expect("the disk takes it");
        }
        // From the write buffers into tables.
        drop(store);
        Self {
            name,
            store: open().expect("the folder is whole"),
            took: Vec::new(),
            _folder: folder,
        }
    }

    fn round(&mut self, service: &Service, requests: &[[Vec<Value>; 1]]) {
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
    let subject = Subject::of_arguments();
    let mut measured = [
        Measured::new("in memory", 64 << 20, &subject),
        Measured::new("in tables", 0, &subject),
    ];
    let mut random = StdRng::seed_from_u64(11);
    let requests: Vec<_> = (0..4096).map(|_| [subject.request(&mut random)]).collect();
    for round in 0..=ROUNDS {
        for measured in &mut measured {
            measured.round(&subject.service, &requests);
            if round == 0 {
                measured.took.clear();
            }
        }
    }
    println!(
        "one row of `{}`: {} features of {} views, {} entities, one thread:",
        subject.service.id(),
        subject.service.features.len(),
        subject.service.needed_views().len(),
        subject.entities
    );
    measured.iter_mut().for_each(Measured::report);
}
