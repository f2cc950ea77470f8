//! What a child does to a data folder while faults come, and what must hold afterwards.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use featurestore::{FeatureStore, PredictionRecord, Role, Value};

use crate::crash::{BATCH, batch, label};
use crate::flights::{MINUTE_MS, START_MS, open};
use crate::strace::folder_of_child;

/// The child's name among the tests.
pub(crate) const CHILD: &str = "workload::the_child_of_other_tests";
/// Every so many steps what was recorded is sealed.
const STEPS_PER_SEAL: u64 = 4;

/// What the child said: what it was told by the store is to be held against the store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// Batches of events and labels that were acknowledged.
    pub(crate) acked: Vec<u64>,
    /// Predictions up to this one were sealed.
    pub(crate) sealed: Option<u64>,
    /// No step before this one recorded a prediction.
    pub(crate) first_recorded: u64,
    /// A backup was made when so many batches had been told.
    pub(crate) copied: Option<usize>,
    /// The store said that it writes no more.
    pub(crate) refused: bool,
    /// The child came to its end.
    pub(crate) ended: bool,
    /// The store said that the disk was full.
    pub(crate) full: u64,
    /// Steps that were begun more than once: they may have been recorded as often.
    pub(crate) repeated: BTreeSet<u64>,
}

impl Told {
    /// Takes one line of the child's output.
    pub(crate) fn hear(&mut self, line: &str) {
        match line.split_once(' ') {
            Some(("acked", number)) => self.acked.push(number.parse().unwrap()),
            Some(("recorded", from)) => {
                self.first_recorded = from.strip_prefix("from ").unwrap().parse().unwrap();
            }
            Some(("sealed", number)) => self.sealed = Some(number.parse().unwrap()),
            Some(("repeated", number)) => {
                self.repeated.insert(number.parse().unwrap());
            }
            _ if line == "copied" => self.copied = Some(self.acked.len()),
            _ if line == "full" => self.full += 1,
            _ if line == "refused" => self.refused = true,
            _ if line == "ended" => self.ended = true,
            _ => {}
        }
    }

    /// The number of the first step that was not told to be done.
    pub(crate) fn next(&self) -> u64 {
        self.acked.last().map_or(0, |last| last + 1)
    }
}

/// How much a child is to do, in the variable `LOOPGATE_STEPS`: `first last`.
pub(crate) const STEPS: &str = "LOOPGATE_STEPS";

#[test]
#[ignore = "the child of other tests"]
fn the_child_of_other_tests() {
    let steps = std::env::var(STEPS).unwrap();
    let (first, last) = steps.split_once(' ').unwrap();
    let (first, last) = (first.parse().unwrap(), last.parse::<u64>().unwrap());
    let store = open(&folder_of_child());
    for number in first..last {
        if let Err(error) = ingest_and_record(&store, number) {
            // A store that has stopped says so to everyone, and answers reads.
            assert!(error.contains("stopped writing"), "{error}");
            assert!(
                ingest_and_record(&store, number)
                    .unwrap_err()
                    .contains("stopped writing")
            );
            assert_eq!(serve(&store, number).features.unwrap().statuses.len(), 18);
            println!("\nrefused");
            return;
        }
        println!("\nacked {number}");
        if number % STEPS_PER_SEAL == STEPS_PER_SEAL - 1 && store.seal().is_ok() {
            println!("\nsealed {number}");
        }
    }
    drop(store);
    println!("\nended");
}

/// A batch of events, an answered and recorded request, its label: before it or after it.
pub(crate) fn ingest_and_record(store: &FeatureStore, number: u64) -> Result<(), String> {
    let say = |error: featurestore::IngestError| error.to_string();
    let labels = || vec![label(number)];
    let now_ms = START_MS + i64::try_from(number).unwrap() * MINUTE_MS;
    let events = batch(store, number);
    store.ingest_events_blocking(events, now_ms).map_err(say)?;
    if number.is_multiple_of(2) {
        store
            .ingest_labels_blocking(labels(), now_ms)
            .map_err(say)?;
    }
    let recorded = store.record(&[serve(store, number)]);
    recorded
        .and_then(|()| store.flush())
        .map_err(|it| format!("stopped writing: {it}"))?;
    if !number.is_multiple_of(2) {
        store
            .ingest_labels_blocking(labels(), now_ms)
            .map_err(say)?;
    }
    Ok(())
}

pub(crate) fn request() -> Vec<Value> {
    let text = |text: &str| Value::String(text.into());
    vec![text("AA"), text("EWR"), Value::Null, Value::Float(1.0)]
}

fn serve(store: &FeatureStore, number: u64) -> PredictionRecord {
    let service = store.definitions().service("delay").unwrap();
    let at_ms = START_MS + i64::try_from(number).unwrap() * MINUTE_MS;
    let row = store
        .read_rows(service, &[request()], at_ms)
        .unwrap()
        .remove(0);
    PredictionRecord {
        prediction: label(number).prediction,
        request_id: None,
        model: "delay".into(),
        version: 1,
        role: Role::Champion,
        at_ms,
        service: Some(service.id().into()),
        request: request().into(),
        features: Some(Arc::new(row)),
        score: 0.5,
        fallback_reason: None,
    }
}

/// An empty folder, in memory where there is such a place: for stores whose files have no crash to outlive.
pub(crate) fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

/// All that was told holds, nothing is there twice or in part, and what was served is what is recomputed.
pub(crate) fn check(folder: &Path, told: &Told) {
    let store = open(folder);
    check_ledger(&store, &told.acked);
    check_state(&store);
    let mut served: BTreeMap<u64, u64> = BTreeMap::new();
    for record in store.served_rows("delay", i64::MIN, i64::MAX).unwrap() {
        let number = record.prediction.id.as_u128().try_into().unwrap();
        *served.entry(number).or_default() += 1;
    }
    for number in told
        .sealed
        .map_or(0..0, |sealed| told.first_recorded..sealed + 1)
    {
        assert!(served.contains_key(&number), "{number} of {served:?}");
    }
    let verified = store.verify("delay", "delay", 10_000, 1).unwrap();
    assert_eq!(verified.rows_checked, served.values().sum::<u64>());
    assert_eq!(verified.mismatches, 0, "{verified:?}");
    served.retain(|number, times| *times > 1 && !told.repeated.contains(number));
    assert!(served.is_empty(), "found more than once: {served:?}");
}

/// These batches of events are there, and all that is there is folded.
pub(crate) fn check_events(folder: &Path, acked: &[u64]) {
    let store = open(folder);
    check_state(&store);
    for &number in acked {
        let again = store.ingest_events_blocking(batch(&store, number), START_MS);
        assert_eq!(again.unwrap().duplicates, BATCH, "batch {number}");
    }
}

/// All that is there is folded, and each acknowledged batch is there with its label: sent again, all of it
/// is a duplicate.
pub(crate) fn check_ledger(store: &FeatureStore, acked: &[u64]) {
    check_state(store);
    for numbers in acked.chunks(50) {
        let events = numbers.iter().flat_map(|number| batch(store, *number));
        let again = store.ingest_events_blocking(events.collect(), START_MS);
        let sent = numbers.len() as u64;
        assert_eq!(
            again.unwrap().duplicates,
            sent * BATCH,
            "batches {numbers:?}"
        );
        let labels = numbers.iter().map(|number| label(*number)).collect();
        let again = store.ingest_labels_blocking(labels, START_MS);
        assert_eq!(again.unwrap().duplicates, sent, "labels {numbers:?}");
    }
}

/// The folded state holds each logged event once, and whole batches only.
fn check_state(store: &FeatureStore) {
    let service = store.definitions().service("delay").unwrap();
    let stats = store.stats();
    let now_ms = START_MS + 10 * MINUTE_MS;
    let rows = store.read_rows(service, &[request()], now_ms).unwrap();
    let names = service.feature_names();
    let row: HashMap<&str, f32> = names.zip(rows[0].values.iter().copied()).collect();
    if stats.events == 0 {
        return assert!(row["all:count_24h"].is_nan(), "{row:?}");
    }
    assert_eq!(
        f64::from(row["all:count_24h"]),
        stats.events as f64,
        "{row:?}"
    );
    let sum = f64::from(row["origin:sum_delay_24h"]);
    assert_eq!(sum, stats.events as f64, "{row:?}");
    assert_eq!(stats.events % BATCH, 0);
    assert_eq!(rows[0].as_of_seq, stats.events);
}
