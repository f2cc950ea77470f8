//! Data folders written by earlier versions: what they hold is read as it was written.
//!
//! `tests/formats/N/` holds a whole data folder of format N (`data`), the definitions that it was written
//! with and `told`: all that the version which wrote it could read from it. Never written anew: a new
//! format gets a folder of its own, by `LOOPGATE_WRITE_FORMAT=folder cargo test … -- --ignored formats`.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use featurestore::{
    Definitions, Event, FeatureStore, Label, OpenError, OutcomeCursor, PredictionKey,
    PredictionRecord, Role, StoreOptions, TrainingQuery, Value, training_rows,
};
use uuid::Uuid;

const START_MS: i64 = 1_362_096_000_000;
const MINUTE_MS: i64 = 60_000;
const CARRIERS: [&str; 3] = ["AA", "UA", "B6"];
const ORIGINS: [&str; 2] = ["EWR", "JFK"];
const TAILS: [&str; 3] = ["N1", "N2", "N3"];

fn formats() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats")
}

fn open(folder: &Path, definitions: &str) -> Result<FeatureStore, OpenError> {
    let definitions = Definitions::parse(definitions, "features.toml").unwrap();
    FeatureStore::open(folder, Arc::new(definitions), &StoreOptions::default())
}

/// Copies a folder and what is in it.
pub(crate) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_name() == "reserve" {
            continue;
        }
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), &target).unwrap();
        }
    }
}

fn requests() -> Vec<Vec<Value>> {
    let mut requests = Vec::new();
    for carrier in CARRIERS {
        for origin in ORIGINS {
            let tail = match requests.len() % 4 {
                3 => Value::Null,
                number => Value::String(TAILS[number].into()),
            };
            let text = |text: &str| Value::String(text.into());
            requests.push(vec![text(carrier), text(origin), tail, Value::Float(750.0)]);
        }
    }
    requests
}

/// All that can be read from a store: counters, features, outcomes, records, verification, training.
fn told(store: &FeatureStore) -> String {
    let mut out = String::new();
    let stats = store.stats();
    let events = (stats.events, stats.duplicate_events, stats.last_seq);
    let labels = (stats.labels, stats.duplicate_labels, stats.replaced_labels);
    writeln!(out, "events {events:?} labels {labels:?}").unwrap();
    writeln!(out, "pending labels {}", stats.pending_labels).unwrap();
    let service = store.definitions().service("delay@1").unwrap();
    for at_ms in [181, 240, 600, 3000].map(|minutes| START_MS + minutes * MINUTE_MS) {
        let rows = store.read_rows(service, &requests(), at_ms).unwrap();
        for (number, row) in rows.iter().enumerate() {
            writeln!(out, "row {number} at {at_ms}").unwrap();
            let names = service.feature_names().zip(&row.values);
            for ((name, value), status) in names.zip(&row.statuses) {
                writeln!(out, "  {name} {value} {}", status.as_str()).unwrap();
            }
        }
    }
    let (outcomes, _) = store.outcomes(OutcomeCursor::default(), 1000).unwrap();
    for it in outcomes {
        let times = (it.predicted_ms, it.label_ms, it.arrived_ms);
        let (role, version) = (it.role.as_str(), it.version);
        writeln!(
            out,
            "outcome {} {version} {role} {times:?} {} {}",
            it.model, it.score, it.label
        )
        .unwrap();
    }
    for record in store.served_rows("delay", i64::MIN, i64::MAX).unwrap() {
        let features = record.features.as_ref().map(|row| &row.values);
        let at = (record.at_ms, record.role.as_str(), record.score);
        writeln!(out, "served {} {at:?} {features:?}", record.prediction).unwrap();
    }
    let verified = store.verify("delay", "delay@1", 1000, 1).unwrap();
    let verified = (verified.rows_checked, verified.mismatches);
    writeln!(out, "verified {verified:?}").unwrap();
    out
}

/// What a trainer reads from the folder, of a store that has sealed.
fn trained(folder: &Path) -> String {
    let query = TrainingQuery {
        model: "delay".to_owned(),
        service: "delay@1".to_owned(),
        from_ms: START_MS,
        to_ms: START_MS + 100_000 * MINUTE_MS,
        known_by_ms: START_MS + 100_000 * MINUTE_MS,
    };
    let rows = training_rows(folder, &crate::flights::definitions(), &query).unwrap();
    format!(
        "training {:?} {:?} {:?}\n",
        rows.predicted_ms, rows.labels, rows.values
    )
}

#[test]
fn data_folders_of_every_format_are_read_as_they_were_written() {
    let formats = fs::read_dir(formats()).unwrap();
    let formats: Vec<_> = formats.map(|entry| entry.unwrap().path()).collect();
    assert!(!formats.is_empty());
    for format in formats {
        let written = |name: &str| fs::read_to_string(format.join(name)).unwrap();
        let folder = tempfile::tempdir().unwrap();
        copy(&format.join("data"), folder.path());
        let store = open(folder.path(), &written("features.toml")).unwrap();
        assert_eq!(told(&store), written("told"), "{}", format.display());
        store.seal().unwrap();
        let trained = trained(folder.path());
        assert_eq!(trained, written("trained"), "{}", format.display());
        // What this version made of the folder, it reads too.
        drop(store);
        let store = open(folder.path(), &written("features.toml")).unwrap();
        assert_eq!(told(&store), written("told"), "{}", format.display());
    }
}

/// Times that are whole minutes, delays that are whole numbers: sums are exact however they are made.
fn departure(store: &FeatureStore, id: i64) -> Event {
    let at_ms = START_MS + id * 3 * MINUTE_MS;
    let pick = |from: &[&str], step: i64| {
        let index = usize::try_from(id * step).unwrap() % from.len();
        Value::String(from[index].into())
    };
    let values = vec![
        Value::Int(id),
        pick(&CARRIERS, 1),
        pick(&ORIGINS, 5),
        if id % 5 == 4 {
            Value::Null
        } else {
            pick(&TAILS, 2)
        },
        Value::Int(at_ms),
        if id % 7 == 3 {
            Value::Null
        } else {
            Value::Float((id * 11 % 60 - 9) as f64)
        },
        Value::Bool(id % 3 == 0),
    ];
    let source = store.definitions().source("departures").unwrap();
    source.event(0, values, at_ms).unwrap()
}

fn wind(store: &FeatureStore, id: i64) -> Event {
    let at_ms = START_MS + id * 4 * MINUTE_MS;
    let origin = ORIGINS[usize::try_from(id).unwrap() % 2];
    let values = vec![
        Value::String(origin.into()),
        Value::Int(at_ms),
        Value::Float(id as f64),
    ];
    store
        .definitions()
        .source("weather")
        .unwrap()
        .event(0, values, at_ms)
        .unwrap()
}

/// Serves every request at `at_ms` and records the answers, each with a shadow.
fn serve(store: &FeatureStore, first: u128, at_ms: i64) -> Vec<PredictionRecord> {
    let service = store.definitions().service("delay@1").unwrap();
    let requests = requests();
    let rows = store.read_rows(service, &requests, at_ms).unwrap();
    let mut records = Vec::new();
    for ((row, request), number) in rows.into_iter().zip(requests).zip(0..) {
        let answer = PredictionRecord {
            prediction: PredictionKey {
                id: Uuid::from_u128(first),
                row: number,
            },
            request_id: Some(format!("request-{first}").into()),
            model: "delay".into(),
            version: 1,
            role: if number == 5 {
                Role::Fallback
            } else {
                Role::Champion
            },
            at_ms,
            service: Some(service.id().into()),
            request: request.into(),
            features: Some(Arc::new(row)),
            score: 0.125 * number as f32,
            fallback_reason: (number == 5).then(|| "score is not finite".into()),
        };
        let shadow = PredictionRecord {
            version: 2,
            role: Role::Shadow,
            features: None,
            score: 0.5,
            ..answer.clone()
        };
        records.extend([answer, shadow]);
    }
    store.record(&records).unwrap();
    records
}

fn label(id: u128, row: u32, value: f32) -> Label {
    Label {
        prediction: PredictionKey {
            id: Uuid::from_u128(id),
            row,
        },
        value,
        label_ms: START_MS + 600 * MINUTE_MS,
    }
}

/// One life of a store: events that come late, out of order and twice; answers; labels early and late.
fn live(store: &FeatureStore, first: i64) {
    let arrived_ms = START_MS + (first + 20) * 3 * MINUTE_MS;
    let ids = (first..first + 20).chain(first..first + 3).rev();
    let mut events: Vec<_> = ids.map(|id| departure(store, id)).collect();
    events.extend((first..first + 4).map(|id| wind(store, id)));
    store.ingest_events_blocking(events, arrived_ms).unwrap();
    let id = u128::try_from(first).unwrap() + 1;
    serve(store, id, arrived_ms);
    let ahead = label(id + 1000, 0, 1.0);
    let labels = vec![
        label(id, 0, 1.0),
        label(id, 1, 0.0),
        label(id, 5, 1.0),
        ahead,
    ];
    store
        .ingest_labels_blocking(labels, arrived_ms + MINUTE_MS)
        .unwrap();
    let mut replaced = label(id, 1, 1.0);
    replaced.label_ms += MINUTE_MS;
    let labels = vec![replaced, label(id, 0, 1.0)];
    store
        .ingest_labels_blocking(labels, arrived_ms + 2 * MINUTE_MS)
        .unwrap();
}

#[test]
#[ignore = "writes a data folder of today's format into the folder that LOOPGATE_WRITE_FORMAT names"]
fn write_a_data_folder_of_this_format() {
    let target = PathBuf::from(std::env::var_os("LOOPGATE_WRITE_FORMAT").unwrap());
    let (data, definitions) = (target.join("data"), crate::flights::DEFINITIONS);
    fs::create_dir_all(&data).unwrap();
    fs::write(target.join("features.toml"), definitions).unwrap();
    let store = open(&data, definitions).unwrap();
    live(&store, 0);
    store.seal().unwrap();
    drop(store);
    // The first life is now in table files, the second stays in the write-ahead log and in the spool.
    let store = open(&data, definitions).unwrap();
    live(&store, 40);
    fs::write(target.join("told"), told(&store)).unwrap();
    drop(store);
    let needless =
        |name: &str| name.starts_with("LOG") || name.starts_with("OPTIONS") || name == "LOCK";
    for folder in [&data, &data.join("online")] {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if needless(entry.file_name().to_str().unwrap()) {
                fs::remove_file(entry.path()).unwrap();
            }
        }
    }
    let sealed = tempfile::tempdir().unwrap();
    copy(&data, sealed.path());
    open(sealed.path(), definitions).unwrap().seal().unwrap();
    fs::write(target.join("trained"), trained(sealed.path())).unwrap();
}

#[test]
fn a_newer_format_is_refused_and_left_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    copy(&formats().join("1/data"), folder.path());
    let definitions = fs::read_to_string(formats().join("1/features.toml")).unwrap();
    set_format(folder.path(), 99);
    let spool = folder.path().join("spool/0000000001-delay.arrow");
    match open(folder.path(), &definitions).err() {
        Some(OpenError::Newer { found, known }) => assert!(found == 99 && known < found),
        other => panic!("{other:?}"),
    }
    assert!(spool.exists());
    set_format(folder.path(), 1);
    let store = open(folder.path(), &definitions).unwrap();
    let expected = fs::read_to_string(formats().join("1/told")).unwrap();
    assert_eq!(told(&store), expected);
}

/// Makes the folder say that a version with this format wrote it.
fn set_format(folder: &Path, number: u32) {
    let online = folder.join("online");
    let options = rocksdb::Options::default();
    let names = rocksdb::DB::list_cf(&options, &online).unwrap();
    let database = rocksdb::DB::open_cf(&options, &online, names).unwrap();
    let meta = database.cf_handle("meta").unwrap();
    database.put_cf(meta, [0], number.to_le_bytes()).unwrap();
}
