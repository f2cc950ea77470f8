//! Training rows two ways with one result, and datasets that are named by their content.

use std::path::Path;
use std::sync::Arc;

use featurestore::{
    Definitions, FeatureStore, Label, RowsFrom, StoreOptions, TrainingQuery, TrainingSet,
    recomputed_rows,
};
use rand::Rng;

use crate::flights::{DEFINITIONS, MINUTE_MS, START_MS, Traffic, open, shadow_of, training_rows};

const STEPS: i64 = 300;
const END_MS: i64 = START_MS + STEPS * 17 * MINUTE_MS;

fn query(service: &str) -> TrainingQuery {
    TrainingQuery {
        model: "delay".to_owned(),
        service: service.to_owned(),
        from_ms: START_MS + 20 * 17 * MINUTE_MS,
        to_ms: END_MS,
        known_by_ms: END_MS,
    }
}

/// Traffic as it comes: events late and out of order, rows served now and for moments before, shadows,
/// and labels for most.
fn serve(store: &FeatureStore, seed: u64) {
    let mut traffic = Traffic::new(seed);
    traffic.definitions = Arc::clone(store.definitions());
    for step in 0..STEPS {
        let now_ms = START_MS + step * 17 * MINUTE_MS;
        let behind_ms = traffic.random.random_range(0..3000) * MINUTE_MS / 60;
        let mut events = vec![traffic.departure(now_ms - behind_ms)];
        if step % 5 == 0 {
            events.push(traffic.weather(now_ms));
        }
        store.ingest_events_blocking(events, now_ms).unwrap();
        let asked_ms = now_ms - traffic.random.random_range(0..2) * MINUTE_MS;
        let record = traffic.serve(store, asked_ms);
        let shadow = shadow_of(&record);
        let label = Label {
            prediction: record.prediction,
            value: f32::from(u8::from(record.score > 0.5)),
            label_ms: now_ms + MINUTE_MS,
        };
        store.record(&[record, shadow]).unwrap();
        if step % 7 != 0 {
            store
                .ingest_labels_blocking(vec![label], now_ms + 2 * MINUTE_MS)
                .unwrap();
        }
    }
}

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let name = |entry: &std::fs::DirEntry| entry.file_name().into_string().unwrap();
    let parquet = entries.filter(|entry| name(entry).ends_with(".parquet"));
    let mut files: Vec<_> = parquet
        .map(|entry| (name(&entry), std::fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

/// Asserts that two sets are the same rows; digests are of values to the bit.
fn assert_one(found: &TrainingSet, expected: &TrainingSet) {
    assert_eq!(found.predictions, expected.predictions);
    let told = |set: &TrainingSet| (set.rows(), set.refused, set.digest);
    assert_eq!(told(found), told(expected));
}

#[test]
fn rows_as_served_and_rows_computed_anew_have_one_digest() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    serve(&store, 61);
    store.seal().unwrap();
    let query = query("delay@1");
    let served = training_rows(folder.path(), &query).unwrap();
    assert!(served.rows() > 200, "{} rows", served.rows());
    let recomputed = store.recomputed_rows(&query).unwrap();
    assert_eq!(recomputed.digest, served.digest);
    // As a trainer beside the store does it: by sealed files alone, whatever came in meanwhile.
    let event = Traffic::new(65).departure(END_MS);
    store.ingest_events_blocking(vec![event], END_MS).unwrap();
    let beside = recomputed_rows(folder.path(), store.definitions(), &query).unwrap();
    assert_one(&beside, &served);
    // And again from sealed events and another process.
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.recomputed_rows(&query).unwrap().digest, served.digest);
    // The digest is of what the rows hold.
    let other = tempfile::tempdir().unwrap();
    let store = open(other.path());
    serve(&store, 62);
    assert_ne!(store.recomputed_rows(&query).unwrap().digest, served.digest);
}

#[test]
fn the_same_request_gives_the_same_file_whatever_was_sealed_when() {
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = |folder: &tempfile::TempDir| folder.path().join("datasets");
    let stores = [&first, &second].map(|folder| open(folder.path()));
    for store in &stores {
        serve(store, 63);
    }
    // The second is sealed in two parts.
    stores[1].seal().unwrap();
    let mut written = Vec::new();
    for (store, folder) in stores.iter().zip([&first, &second]) {
        for features in [RowsFrom::Served, RowsFrom::Recomputed] {
            let dataset = store
                .dataset(&query("delay"), features, &out(folder))
                .unwrap();
            let again = store
                .dataset(&query("delay@1"), features, &out(folder))
                .unwrap();
            assert_eq!(dataset, again);
            assert!(dataset.read.iter().any(|file| file.table == "predictions"));
            let events = dataset.read.iter().any(|file| file.table == "events");
            assert_eq!(events, features == RowsFrom::Recomputed);
            written.push(dataset);
        }
    }
    assert_eq!(files(&out(&first)), files(&out(&second)));
    assert_eq!(files(&out(&first)).len(), 2);
    assert_eq!(written[0].about.digest, written[1].about.digest);
    assert_eq!(written[0].name, written[2].name);
    let shorter = TrainingQuery {
        known_by_ms: END_MS - 60 * 17 * MINUTE_MS,
        ..query("delay")
    };
    let shorter = stores[0].dataset(&shorter, RowsFrom::Served, &out(&first));
    assert_ne!(shorter.unwrap().name, written[0].name);
}

#[test]
fn a_new_service_has_rows_over_the_traffic_of_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    serve(&open(folder.path()), 64);
    let text = format!(
        "{DEFINITIONS}\n[[service]]\nname = \"short\"\nversion = 1\n\
         request = {{ tailnum = \"string?\", carrier = \"string\", origin = \"string\" }}\n\
         features = [{{ view = \"aircraft\" }}, {{ view = \"origin\" }}]\n\n\
         [[service]]\nname = \"other\"\nversion = 1\nrequest = {{ gate = \"string\" }}\n\
         features = [{{ view = \"all\" }}]\n"
    );
    let definitions = Arc::new(Definitions::parse(&text, "features.toml").unwrap());
    let store = FeatureStore::open(folder.path(), definitions, &StoreOptions::default()).unwrap();
    let old = store.recomputed_rows(&query("delay")).unwrap();
    let new = store.recomputed_rows(&query("short")).unwrap();
    assert_eq!((new.rows(), &new.labels), (old.rows(), &old.labels));
    for (column, name) in new.names.iter().enumerate() {
        let before = old.names.iter().position(|known| known == name).unwrap();
        for row in 0..new.rows() {
            let was = old.values[row * old.columns() + before];
            let is = new.values[row * new.columns() + column];
            assert_eq!(is.to_bits(), was.to_bits(), "{name} of row {row}");
        }
    }
    let error = store
        .recomputed_rows(&query("other"))
        .unwrap_err()
        .to_string();
    assert!(error.contains("no request field `gate`"), "{error}");
}

#[test]
fn rows_that_the_service_refuses_train_nothing_in_either_way() {
    let text = DEFINITIONS.replace(
        "{ view = \"aircraft\" }",
        "{ view = \"aircraft\", missing = \"refuse\" }",
    );
    let refusing = Arc::new(Definitions::parse(&text, "features.toml").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let store = FeatureStore::open(folder.path(), Arc::clone(&refusing), &options).unwrap();
    serve(&store, 66);
    store.seal().unwrap();
    let query = query("delay@1");
    let served = featurestore::training_rows(folder.path(), &refusing, &query).unwrap();
    let recomputed = recomputed_rows(folder.path(), &refusing, &query).unwrap();
    assert_one(&recomputed, &served);
    // By definitions that refuse nothing it is every labelled row.
    let all = training_rows(folder.path(), &query).unwrap();
    assert_eq!(all.rows() as u64, served.rows() as u64 + served.refused);
    assert!(served.rows() > 0 && served.refused > 0 && all.refused == 0);
    let last = served
        .names
        .iter()
        .position(|it| it == "aircraft:last_delay");
    let last = last.expect("the view's newest delay");
    let of = |set: &TrainingSet| {
        let rows = set.values.chunks(set.columns());
        rows.filter(|row| row[last].is_nan()).count()
    };
    assert_eq!(of(&served), 0);
    assert!(of(&all) > 0);
    let dataset = store.dataset(&query, RowsFrom::Served, &folder.path().join("out"));
    assert_eq!(dataset.unwrap().refused, served.refused);
}

#[test]
fn rows_whose_events_are_not_sealed_are_not_computed_from_fewer() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    serve(&store, 67);
    store.seal().unwrap();
    // Another state of the table: the seal of the events that the rows saw is undone.
    let events = folder.path().join("offline/events");
    std::fs::remove_dir_all(&events).unwrap();
    let refused = recomputed_rows(folder.path(), store.definitions(), &query("delay@1"));
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("which are sealed up to 0"), "{refused}");
}
