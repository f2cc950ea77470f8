//! Training rows two ways with one result, and datasets that are named by their content.

use std::path::Path;
use std::sync::Arc;

use featurestore::{
    Definitions, FeatureStore, Label, RowsFrom, StoreOptions, TrainingQuery, training_rows,
};
use rand::Rng;

use crate::flights::{DEFINITIONS, MINUTE_MS, START_MS, Traffic, open, shadow_of};

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
