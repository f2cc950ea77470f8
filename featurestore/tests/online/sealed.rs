//! Sealing, pruning and upkeep: a store that moved everything into files answers as one that kept all
//! of it in its log, whenever it was killed, and what lies in the files is what was put there.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use featurestore::{
    Definitions, Event, FeatureRow, FeatureStore, RetentionOptions, StoreOptions, TrainingQuery,
    Upkept, Value,
};
use rand::Rng;

use crate::crash;
use crate::flights::{DEFINITIONS, MINUTE_MS, START_MS, Traffic, definitions, open, training_rows};

const DAY_MS: i64 = 1440 * MINUTE_MS;
/// After everything that happens here.
const LATER_MS: i64 = START_MS + 10_000 * DAY_MS;

/// Prunes whatever is sealed, and removes files as soon as their table has forgotten them.
fn pruning() -> StoreOptions {
    let retention = RetentionOptions {
        event_log_ms: Some(0),
        grace_ms: 0,
        small_files_max: 3,
        ..RetentionOptions::default()
    };
    StoreOptions {
        retention,
        ..StoreOptions::default()
    }
}

/// The usual definitions and one view more, which a store that has not had it folds from its events.
fn with_recount(hours: u64) -> Arc<Definitions> {
    let text = format!(
        r#"{DEFINITIONS}
[[view]]
name = "recount"
source = "departures"
keys = []
windows = ["{hours}h"]
features = [{{ count = true }}, {{ sum = "delay" }}]

[[service]]
name = "recount"
version = {hours}
request = {{}}
features = [{{ view = "recount" }}]
"#
    );
    Arc::new(Definitions::parse(&text, "features.toml").unwrap())
}

fn open_with(folder: &Path, definitions: Arc<Definitions>) -> FeatureStore {
    FeatureStore::open(folder, definitions, &pruning()).unwrap()
}

fn recount(store: &FeatureStore, at_ms: i64) -> FeatureRow {
    let service = store.definitions().service("recount").unwrap();
    let rows = store.read_rows(service, &[vec![]], at_ms).unwrap();
    rows.into_iter().next().unwrap()
}

/// Seals and prunes until nothing is left to do.
fn seal_and_prune(store: &FeatureStore) -> Upkept {
    store.seal().unwrap();
    store.upkeep(LATER_MS).unwrap()
}

#[test]
fn a_store_that_sealed_and_pruned_answers_as_one_that_never_did() {
    for seed in [61, 62] {
        let (kept, moved) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut traffic = Traffic::new(seed);
        let never = open(kept.path());
        let mut store = open_with(moved.path(), definitions());
        let mut pruned = 0;
        for step in 0..120 {
            let now_ms = START_MS + step * 97 * MINUTE_MS;
            let events = batch(&mut traffic, now_ms);
            // Arrivals do not follow the numbers.
            let arrived_ms = now_ms + traffic.random.random_range(0..300) * MINUTE_MS;
            for store in [&never, &store] {
                let taken = store.ingest_events_blocking(events.clone(), arrived_ms);
                taken.unwrap();
            }
            let record = traffic.serve(&store, now_ms);
            for store in [&never, &store] {
                store.record(std::slice::from_ref(&record)).unwrap();
            }
            match traffic.random.random_range(0..12) {
                0 => drop(store.seal().unwrap()),
                1 => pruned += seal_and_prune(&store).pruned_events,
                2 => {
                    drop(store);
                    store = open_with(moved.path(), definitions());
                }
                _ => {}
            }
        }
        pruned += seal_and_prune(&store).pruned_events;
        assert_eq!(pruned, store.stats().last_seq - 1, "all but the last event");
        compare(&mut traffic, [&never, &store]);
        drop((never, store));
        // A view that neither has had is folded from the log here, from files there.
        let never = open_with(kept.path(), with_recount(300));
        let store = open_with(moved.path(), with_recount(300));
        for step in 0..30 {
            let at_ms = START_MS + step * 390 * MINUTE_MS;
            assert_eq!(recount(&never, at_ms), recount(&store, at_ms));
        }
        compare(&mut traffic, [&never, &store]);
    }
}

fn batch(traffic: &mut Traffic, now_ms: i64) -> Vec<Event> {
    let count = traffic.random.random_range(1..6);
    (0..count)
        .map(|ago| match traffic.random.random_bool(0.3) {
            true => traffic.weather(now_ms - ago * 41 * MINUTE_MS),
            false => traffic.departure(now_ms - ago * 41 * MINUTE_MS),
        })
        .collect()
}

/// Rows, verification and backfill of two stores with the same history.
fn compare(traffic: &mut Traffic, stores: [&FeatureStore; 2]) {
    for _ in 0..50 {
        let request = [traffic.request()];
        let at_ms = START_MS + traffic.random.random_range(0..12_000) * MINUTE_MS;
        let rows = stores.map(|store| {
            let service = store.definitions().service("delay").unwrap();
            store.read_rows(service, &request, at_ms).unwrap()
        });
        assert_eq!(rows[0], rows[1]);
    }
    let reports = stores.map(|store| store.verify("delay", "delay", 1000, 3).unwrap());
    assert_eq!((reports[0].rows_checked, reports[0].mismatches), (120, 0));
    assert_eq!(reports[0], reports[1]);
    let questions = tempfile::NamedTempFile::new().unwrap();
    let lines: Vec<String> = (0..40).map(question).collect();
    fs::write(questions.path(), lines.join("\n")).unwrap();
    let sets = stores.map(|store| {
        let request = featurestore::BackfillRequest {
            model: "past".into(),
            service: "delay".to_owned(),
            file: questions.path().to_owned(),
        };
        assert_eq!(store.backfill(&request, &mut |_| {}).unwrap().rows, 40);
        training_rows(store.data_dir(), &query("past")).unwrap()
    });
    assert_eq!(sets[0].rows(), 40);
    assert_eq!(sets[0].digest, sets[1].digest);
}

fn question(number: i64) -> String {
    let at_ms = START_MS + number * 290 * MINUTE_MS;
    serde_json::json!({
        "carrier": "AA", "origin": "EWR", "tailnum": "N3", "miles": 200.5,
        "request_id": format!("past {number}"), "at": at_ms, "label": 1.0, "label_known_at": at_ms + 1,
    })
    .to_string()
}

fn query(model: &str) -> TrainingQuery {
    TrainingQuery {
        model: model.to_owned(),
        service: "delay@1".to_owned(),
        from_ms: START_MS,
        to_ms: LATER_MS,
        known_by_ms: LATER_MS,
    }
}

const CHILD: &str = "LOOPGATE_SEAL_CHILD";
const CYCLES: &str = "LOOPGATE_SEAL_CYCLES";

#[test]
fn a_kill_between_any_two_steps_of_seal_and_prune_loses_and_doubles_nothing() {
    if let Ok(folder) = std::env::var(CHILD) {
        return seal_for_ever(Path::new(&folder));
    }
    let cycles = std::env::var(CYCLES).map_or(12, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(64);
    for cycle in 0..cycles {
        let mut child = crash::child(
            "sealed::a_kill_between_any_two_steps_of_seal_and_prune_loses_and_doubles_nothing",
            (CHILD, folder.path()),
        );
        // The last number that the child says is acknowledged; then it is sealing or pruning.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = traffic.random.random_range(2..14);
        let acked = lines
            .by_ref()
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("acked ")?.parse::<u64>().ok())
            .take(wanted)
            .last()
            .expect("the child ended by itself");
        // Not a wait for anything: the moment of the kill.
        let pause = traffic.random.random_range(0..20_000);
        std::thread::sleep(std::time::Duration::from_micros(pause));
        child.kill().unwrap();
        child.wait().unwrap();
        // Another view every time: it is folded from whatever lies in files and log.
        let store = open_with(folder.path(), with_recount(24 + cycle));
        let stats = store.stats();
        assert!(stats.last_seq >= acked, "cycle {cycle}");
        let row = recount(&store, START_MS + 2 * MINUTE_MS);
        assert_eq!(f64::from(row.values[0]), stats.events as f64, "{row:?}");
        assert_eq!(f64::from(row.values[1]), stats.events as f64, "{row:?}");
        let (files, listed) = (
            in_files(folder.path(), "events"),
            listed(folder.path(), "events"),
        );
        assert!(
            files
                .iter()
                .all(|(path, bytes)| listed.get(path) == Some(bytes)),
            "no orphans"
        );
    }
}

/// Ingests, seals, merges and prunes without end.
fn seal_for_ever(folder: &Path) {
    let store = open_with(folder, definitions());
    let source = Arc::clone(store.definitions().source("departures").unwrap());
    for number in store.stats().last_seq.. {
        let event = |id: u64| {
            let id = i64::try_from(id).unwrap();
            let values = vec![
                Value::Int(id),
                Value::String("AA".into()),
                Value::String("EWR".into()),
                Value::Null,
                Value::Int(START_MS),
                Value::Float(1.0),
                Value::Bool(true),
            ];
            source.event(0, values, START_MS).unwrap()
        };
        let first = number * 10;
        let events = (first..first + 7).map(event).collect();
        let done = store.ingest_events_blocking(events, START_MS).unwrap();
        println!("\nacked {}", done.last_seq);
        store.seal().unwrap();
        store.upkeep(LATER_MS).unwrap();
    }
}

/// Path and length of the Parquet files in a table's folder.
fn in_files(folder: &Path, table: &str) -> BTreeMap<String, u64> {
    let root = folder.join("offline").join(table);
    let mut found = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap() {
            let path = path.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if !path.ends_with("manifest.jsonl") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                found.insert(name.to_owned(), path.metadata().unwrap().len());
            }
        }
    }
    found
}

/// Path and length of the files that a manifest names, retired ones that are still there included.
fn listed(folder: &Path, table: &str) -> BTreeMap<String, u64> {
    let files = manifest(folder, table).into_iter().filter(|line| {
        line.get("path").is_some() && line.get("removed") != Some(&serde_json::json!(true))
    });
    files
        .map(|line| {
            let path = line["path"].as_str().unwrap().to_owned();
            (path, line["bytes"].as_u64().unwrap())
        })
        .collect()
}

fn manifest(folder: &Path, table: &str) -> Vec<serde_json::Value> {
    let path = folder.join("offline").join(table).join("manifest.jsonl");
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(serde_json::from_str);
    lines.collect::<Result<_, _>>().unwrap()
}

/// A store whose rows of one day are sealed in many small files.
fn many_small_files(folder: &Path, seed: u64) -> FeatureStore {
    let mut traffic = Traffic::new(seed);
    let store = open_with(folder, definitions());
    for step in 0..60 {
        let now_ms = START_MS + step * 40 * MINUTE_MS;
        let events = batch(&mut traffic, now_ms);
        store.ingest_events_blocking(events, now_ms).unwrap();
        let record = traffic.serve(&store, now_ms);
        store.record(std::slice::from_ref(&record)).unwrap();
        let label = featurestore::Label {
            prediction: record.prediction,
            value: 1.0,
            label_ms: now_ms,
        };
        store.ingest_labels_blocking(vec![label], now_ms).unwrap();
        if step % 5 == 4 {
            store.seal().unwrap();
        }
    }
    store
}

#[test]
fn merged_files_hold_the_same_rows_and_the_old_ones_go_after_the_grace() {
    let folder = tempfile::tempdir().unwrap();
    let store = many_small_files(folder.path(), 65);
    let before = training_rows(folder.path(), &query("delay")).unwrap();
    assert_eq!(before.rows(), 60);
    let served = store.served_rows("delay", i64::MIN, i64::MAX).unwrap();
    let files_before = in_files(folder.path(), "predictions");
    assert!(files_before.len() >= 12, "{files_before:?}");
    let done = store.upkeep(START_MS).unwrap();
    assert!(done.merged_files > done.merged_into, "{done:?}");
    assert_eq!(done.removed_files, 0, "first seen retired now");
    let files = in_files(folder.path(), "predictions");
    assert!(files_before.keys().all(|path| files.contains_key(path)));
    assert_eq!(
        training_rows(folder.path(), &query("delay"))
            .unwrap()
            .digest,
        before.digest
    );
    let done = store.upkeep(START_MS).unwrap();
    assert!(done.removed_files >= 24, "{done:?}");
    assert_eq!(in_files(folder.path(), "predictions").len(), 2);
    for table in ["events", "predictions", "labels"] {
        assert_eq!(in_files(folder.path(), table), listed(folder.path(), table));
    }
    assert_eq!(
        training_rows(folder.path(), &query("delay"))
            .unwrap()
            .digest,
        before.digest
    );
    let again = store.served_rows("delay", i64::MIN, i64::MAX).unwrap();
    assert_eq!(again.len(), served.len());
    for (found, expected) in again.iter().zip(&served) {
        crate::flights::assert_same(found, expected);
    }
    let report = store.verify("delay", "delay", 1000, 3).unwrap();
    assert_eq!((report.rows_checked, report.mismatches), (60, 0));
    // What the files were is still told.
    let retired = manifest(folder.path(), "predictions");
    let retired = retired.iter().filter(|line| line["retired"] == "compacted");
    let rows: u64 = retired.map(|line| line["rows"].as_u64().unwrap()).sum();
    assert_eq!(rows, 60);
}

#[test]
fn a_reader_beside_seals_and_upkeep_always_gets_whole_rows() {
    let folder = tempfile::tempdir().unwrap();
    let store = many_small_files(folder.path(), 66);
    let (ask, asked) = crossbeam::channel::bounded::<()>(0);
    let path = folder.path().to_owned();
    let reader = std::thread::spawn(move || {
        let read = |()| training_rows(&path, &query("delay")).unwrap();
        asked.iter().map(read).collect::<Vec<_>>()
    });
    let mut traffic = Traffic::new(67);
    for step in 0..8 {
        // Each read meets one round of changes.
        ask.send(()).unwrap();
        let record = traffic.serve(&store, START_MS + step);
        store.record(&[record]).unwrap();
        store.seal().unwrap();
        store.upkeep(START_MS + step).unwrap();
    }
    drop(ask);
    let sets = reader.join().unwrap();
    assert_eq!(sets.len(), 8);
    // The new rows have no labels.
    assert!(sets.iter().all(|set| set.digest == sets[0].digest));
}

#[test]
fn an_altered_cut_or_missing_file_is_named_and_never_read() {
    let folder = tempfile::tempdir().unwrap();
    drop(many_small_files(folder.path(), 68));
    let mut traffic = Traffic::new(69);
    let store = open(folder.path());
    store.seal().unwrap();
    for (table, read) in [
        ("predictions", training as fn(&FeatureStore) -> String),
        ("labels", training),
        ("events", verification),
    ] {
        let root = folder.path().join("offline").join(table);
        let name = in_files(folder.path(), table).into_keys().next().unwrap();
        let path = root.join(&name);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        let place = traffic.random.random_range(0..whole.len());
        flipped[place] ^= 1 << traffic.random.random_range(0..8);
        fs::write(&path, &flipped).unwrap();
        let said = read(&store);
        assert!(said.contains(&name) && said.contains("digest"), "{said}");
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(read(&store).contains(&name));
        fs::remove_file(&path).unwrap();
        let said = read(&store);
        assert!(said.contains(&name) && said.contains("not there"), "{said}");
        fs::write(&path, &whole).unwrap();
        assert_eq!(read(&store), "");
    }
}

/// What is wrong with the training rows.
fn training(store: &FeatureStore) -> String {
    let read = training_rows(store.data_dir(), &query("delay"));
    read.map_or_else(|error| error.to_string(), |_| String::new())
}

/// What is wrong with the events.
fn verification(store: &FeatureStore) -> String {
    let read = store.verify("delay", "delay", 1000, 3);
    read.map_or_else(|error| error.to_string(), |_| String::new())
}

#[test]
fn a_manifest_that_is_lost_damaged_or_of_another_state_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(many_small_files(folder.path(), 70));
    let opened = || FeatureStore::open(folder.path(), definitions(), &pruning());
    let path: PathBuf = folder.path().join("offline/predictions/manifest.jsonl");
    let whole = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let said = opened().err().unwrap().to_string();
    assert!(said.contains("manifest.jsonl: it is not there"), "{said}");
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let said = opened().err().unwrap().to_string();
    assert!(said.contains("cut short"), "{said}");
    fs::write(&path, &whole).unwrap();
    // A manifest of before the last two seals, beside their files.
    let store = opened().unwrap();
    let mut traffic = Traffic::new(71);
    for step in 0..3 {
        let record = traffic.serve(&store, START_MS + step);
        store.record(&[record]).unwrap();
        store.seal().unwrap();
    }
    drop(store);
    let newest = fs::read(&path).unwrap();
    fs::write(&path, &whole).unwrap();
    let said = opened().err().unwrap().to_string();
    assert!(said.contains("was made for revision"), "{said}");
    fs::write(&path, &newest).unwrap();
    // Events that were pruned must be in the table.
    let events = folder.path().join("offline/events/manifest.jsonl");
    let before = fs::read(&events).unwrap();
    let store = opened().unwrap();
    let taken = batch(&mut traffic, START_MS + 9 * DAY_MS);
    store.ingest_events_blocking(taken, START_MS).unwrap();
    assert!(seal_and_prune(&store).pruned_events > 0);
    drop(store);
    fs::write(&events, &before).unwrap();
    assert!(opened().is_err());
}

#[test]
fn what_is_past_its_retention_leaves_the_tables_and_stays_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = many_small_files(folder.path(), 72);
    let rows = training_rows(folder.path(), &query("delay")).unwrap();
    let second_day = START_MS + DAY_MS;
    let young = rows
        .predicted_ms
        .iter()
        .filter(|at_ms| **at_ms >= second_day);
    let young = young.count();
    assert!(young > 0 && young < rows.rows());
    drop(store);
    let mut options = pruning();
    options.retention.predictions_ms = Some(DAY_MS);
    let store = FeatureStore::open(folder.path(), definitions(), &options).unwrap();
    let done = store.upkeep(second_day + DAY_MS).unwrap();
    assert_eq!(done.expired_rows, (rows.rows() - young) as u64);
    let left = training_rows(folder.path(), &query("delay")).unwrap();
    assert_eq!(left.rows(), young);
    let told = manifest(folder.path(), "predictions");
    let told = told.iter().filter(|line| line["retired"] == "expired");
    let told: u64 = told.map(|line| line["rows"].as_u64().unwrap()).sum();
    assert_eq!(told, done.expired_rows);
    // Labels and events were not to go.
    let labels = manifest(folder.path(), "labels");
    assert!(labels.iter().all(|line| line["retired"] != "expired"));
}
