//! The prediction log: what is recorded is what is sealed, trained on and verified.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use featurestore::{
    FeatureStore, Label, PredictionKey, PredictionRecord, RecordError, Role, StoreOptions,
    TrainingQuery,
};
use rand::Rng;

use crate::flights::{
    MINUTE_MS, START_MS, Traffic, assert_same, definitions, open, shadow_of, training_rows,
};

const DAY_MS: i64 = 1440 * MINUTE_MS;

/// Serves and records a row every few hours of `days` days, between events, with a shadow each.
fn serve_days(store: &FeatureStore, traffic: &mut Traffic, days: i64) -> Vec<PredictionRecord> {
    let mut records = Vec::new();
    for step in 0..days * 12 {
        let now_ms = START_MS + step * 120 * MINUTE_MS;
        let mut events = vec![traffic.weather(now_ms)];
        events.extend((0..4).map(|ago| traffic.departure(now_ms - ago * 37 * MINUTE_MS)));
        store.ingest_events_blocking(events, now_ms).unwrap();
        let answer = traffic.serve(store, now_ms);
        let shadow = shadow_of(&answer);
        store.record(&[answer.clone(), shadow.clone()]).unwrap();
        records.extend([answer, shadow]);
    }
    records
}

fn assert_all_recorded(store: &FeatureStore, expected: &[PredictionRecord]) {
    let found = store.served_rows("delay", i64::MIN, i64::MAX).unwrap();
    let key = |record: &PredictionRecord| (record.prediction, record.role.as_str());
    let by_key = |records: &[PredictionRecord]| -> BTreeMap<_, _> {
        records.iter().map(|it| (key(it), it.clone())).collect()
    };
    assert_eq!(found.len(), expected.len());
    assert!(found.is_sorted_by_key(|record| record.at_ms));
    let (found, expected) = (by_key(&found), by_key(expected));
    assert_eq!(found.len(), expected.len());
    for (key, expected) in &expected {
        assert_same(&found[key], expected);
    }
}

fn query() -> TrainingQuery {
    TrainingQuery {
        model: "delay".to_owned(),
        service: "delay@1".to_owned(),
        from_ms: START_MS,
        to_ms: START_MS + 1000 * DAY_MS,
        known_by_ms: START_MS + 1000 * DAY_MS,
    }
}

fn label_all(store: &FeatureStore, records: &[PredictionRecord]) {
    for record in records.iter().filter(|record| record.role.answered()) {
        let label = Label {
            prediction: record.prediction,
            value: f32::from(u8::from(record.score > 0.5)),
            label_ms: record.at_ms + 60 * MINUTE_MS,
        };
        let arrived_ms = record.at_ms + 90 * MINUTE_MS;
        store
            .ingest_labels_blocking(vec![label], arrived_ms)
            .unwrap();
    }
}

#[test]
fn recorded_rows_are_read_back_from_spool_and_from_parquet() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(41);
    let mut records = serve_days(&store, &mut traffic, 3);
    assert_all_recorded(&store, &records);
    let sealed = store.seal().unwrap();
    assert_eq!(
        (sealed.predictions, sealed.events, sealed.files),
        (72, 180, 9)
    );
    assert_all_recorded(&store, &records);
    // Some rows sealed, some in the spool.
    let mut fallback = traffic.serve(&store, START_MS + 3 * DAY_MS);
    fallback.role = Role::Fallback;
    fallback.fallback_reason = Some("score is not finite".into());
    fallback.request_id = None;
    store.record(&[fallback.clone()]).unwrap();
    records.push(fallback);
    assert_all_recorded(&store, &records);
    assert_eq!(store.seal().unwrap().predictions, 1);
    assert_eq!(store.seal().unwrap().files, 0);
    drop(store);
    assert_all_recorded(&open(folder.path()), &records);
}

#[test]
fn training_rows_equal_the_logged_rows_value_for_value() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(42);
    let records = serve_days(&store, &mut traffic, 4);
    label_all(&store, &records);
    store.seal().unwrap();
    let rows = training_rows(folder.path(), &query()).unwrap();
    let answers: Vec<_> = records.iter().filter(|it| it.role.answered()).collect();
    assert_eq!(rows.rows(), answers.len());
    let service = traffic.definitions.service("delay").unwrap();
    assert!(
        rows.names
            .iter()
            .map(String::as_str)
            .eq(service.feature_names())
    );
    for (index, record) in answers.iter().enumerate() {
        let row = record.features.as_ref().unwrap();
        let found = &rows.values[index * rows.columns()..(index + 1) * rows.columns()];
        let bits = |values: &[f32]| values.iter().map(|it| it.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(found), bits(&row.values));
        assert_eq!(rows.predicted_ms[index], record.at_ms);
        assert_eq!(rows.known_ms[index], record.at_ms + 90 * MINUTE_MS);
        assert_eq!(
            rows.request_ids[index].as_str(),
            record.request_id.as_deref().unwrap()
        );
        assert_eq!(rows.labels[index], f32::from(u8::from(record.score > 0.5)));
    }
    // Only what was known by then, and only of the asked days.
    let cut_ms = START_MS + 2 * DAY_MS;
    let known = training_rows(
        folder.path(),
        &TrainingQuery {
            known_by_ms: cut_ms,
            ..query()
        },
    );
    let known = known.unwrap();
    assert!(known.known_ms.iter().all(|&ms| ms <= cut_ms));
    let by_then = answers
        .iter()
        .filter(|it| it.at_ms + 90 * MINUTE_MS <= cut_ms);
    assert_eq!(known.rows(), by_then.count());
    let day = TrainingQuery {
        from_ms: START_MS + DAY_MS,
        to_ms: cut_ms,
        ..query()
    };
    assert_eq!(training_rows(folder.path(), &day).unwrap().rows(), 12);
    let other = TrainingQuery {
        service: "delay@2".to_owned(),
        ..query()
    };
    assert_eq!(training_rows(folder.path(), &other).unwrap().rows(), 0);
}

#[test]
fn the_digest_of_training_rows_does_not_depend_on_random_ids_or_seals() {
    let digest = |ids: u64, seal_often: bool| {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let mut traffic = Traffic::new(43);
        let mut ids = Traffic::new(ids);
        for step in 0..30 {
            let now_ms = START_MS + step * 300 * MINUTE_MS;
            let event = traffic.departure(now_ms);
            store.ingest_events_blocking(vec![event], now_ms).unwrap();
            let mut record = traffic.serve(&store, now_ms);
            record.prediction.id = ids.uuid();
            store.record(std::slice::from_ref(&record)).unwrap();
            label_all(&store, &[record]);
            if seal_often && step % 7 == 0 {
                store.seal().unwrap();
            }
        }
        store.seal().unwrap();
        let rows = training_rows(folder.path(), &query()).unwrap();
        assert_eq!(rows.rows(), 30);
        rows.digest
    };
    assert_eq!(digest(1, false), digest(2, true));
}

#[test]
fn a_spool_file_cut_at_any_byte_keeps_its_whole_batches() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        spool_rows_max: 6,
        ..StoreOptions::default()
    };
    let mut traffic = Traffic::new(44);
    let store = FeatureStore::open(folder.path(), definitions(), &options).unwrap();
    let records = serve_days(&store, &mut traffic, 1);
    drop(store);
    let path = only_file(&folder.path().join("spool"));
    let whole = fs::read(&path).unwrap();
    let mut counts = Vec::new();
    for _ in 0..25 {
        let cut = traffic.random.random_range(0..=whole.len());
        let copy = tempfile::tempdir().unwrap();
        let spool = copy.path().join("spool");
        fs::create_dir(&spool).unwrap();
        fs::write(spool.join(path.file_name().unwrap()), &whole[..cut]).unwrap();
        let store = open(copy.path());
        let found = store.served_rows("delay", i64::MIN, i64::MAX).unwrap();
        assert_eq!(found.len() % 6, 0, "cut at {cut}");
        for (found, expected) in found.iter().zip(&records) {
            assert_eq!(found.at_ms, expected.at_ms);
        }
        assert_eq!(fs::read_dir(&spool).unwrap().count(), 0, "sealed at open");
        counts.push((cut, found.len()));
    }
    counts.sort_unstable();
    assert!(counts.is_sorted_by_key(|(_, rows)| *rows));
}

#[test]
fn a_seal_that_was_cut_off_is_repeated_without_loss_or_doubling() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(45);
    let store = open(folder.path());
    let records = serve_days(&store, &mut traffic, 3);
    store.flush().unwrap();
    let path = only_file(&folder.path().join("spool"));
    let spooled = fs::read(&path).unwrap();
    let manifest = folder.path().join("offline/predictions/manifest.jsonl");
    let manifest_before = fs::read(&manifest).unwrap();
    store.seal().unwrap();
    drop(store);
    let files = || parquet_files(&folder.path().join("offline/predictions/model=delay"));
    let sealed = files();
    assert_eq!(sealed.len(), 3);
    // Cut off between the manifest and the removal of the spool file.
    fs::write(&path, &spooled).unwrap();
    let store = open(folder.path());
    assert_all_recorded(&store, &records);
    assert_eq!(files(), sealed);
    drop(store);
    // Cut off before the manifest, with one file whole, one half put and one not begun.
    fs::write(&path, &spooled).unwrap();
    fs::write(&manifest, &manifest_before).unwrap();
    fs::remove_file(&sealed[1]).unwrap();
    let torn = sealed[2].with_extension("parquet#1");
    fs::rename(&sealed[2], &torn).unwrap();
    let store = open(folder.path());
    assert_all_recorded(&store, &records);
    assert_eq!(files(), sealed, "put again, and nothing left over");
    assert_eq!(store.seal().unwrap().predictions, 0);
    assert_all_recorded(&store, &records);
}

#[test]
fn labels_sealed_twice_are_not_doubled() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(46);
    let store = open(folder.path());
    let records = serve_days(&store, &mut traffic, 2);
    let (first, second) = records.split_at(records.len() / 2);
    label_all(&store, first);
    drop(store);
    // The database as it was before the first seal: its cursor has not moved.
    let before = tempfile::tempdir().unwrap();
    copy_folder(&folder.path().join("online"), &before.path().join("online"));
    let store = open(folder.path());
    store.seal().unwrap();
    drop(store);
    fs::remove_dir_all(folder.path().join("online")).unwrap();
    copy_folder(&before.path().join("online"), &folder.path().join("online"));
    let store = open(folder.path());
    label_all(&store, second);
    store.seal().unwrap();
    let rows = training_rows(folder.path(), &query()).unwrap();
    assert_eq!(rows.rows(), records.len() / 2);
    let labels = parquet_files(&folder.path().join("offline/labels"));
    let counted: usize = labels.iter().map(|path| rows_of(path)).sum();
    assert_eq!(counted, records.len() / 2);
}

#[test]
fn served_rows_are_recomputed_without_a_difference_and_a_false_one_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(47);
    let store = open(folder.path());
    serve_days(&store, &mut traffic, 4);
    store.seal().unwrap();
    let report = store.verify("delay", "delay", 1000, 5).unwrap();
    assert_eq!(
        (report.rows_checked, report.mismatches),
        (48, 0),
        "{report:?}"
    );
    let sample = store.verify("delay", "delay@1", 10, 5).unwrap();
    assert_eq!((sample.rows_checked, sample.mismatches), (10, 0));
    let mut record = traffic.serve(&store, START_MS + 4 * DAY_MS);
    let mut row = (**record.features.as_ref().unwrap()).clone();
    row.values[0] += 1.0;
    record.features = Some(Arc::new(row));
    store.record(&[record.clone()]).unwrap();
    let report = store.verify("delay", "delay", 1000, 5).unwrap();
    assert_eq!((report.rows_checked, report.mismatches), (49, 1));
    assert_eq!(report.examples[0].feature, "miles");
    assert_eq!(report.examples[0].prediction, record.prediction.to_string());
}

#[test]
fn a_model_name_that_is_no_folder_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut record = Traffic::new(48).serve(&store, START_MS);
    record.model = "../elsewhere".into();
    let refused = store.record(&[record]).unwrap_err();
    assert!(matches!(refused, RecordError::ModelName(_)), "{refused}");
}

#[test]
fn prediction_keys_are_read_as_they_are_written() {
    let id = uuid::Uuid::from_u128(7);
    for row in [0, 1, 4_000_000_000] {
        let key = PredictionKey { id, row };
        assert_eq!(key.to_string().parse::<PredictionKey>().unwrap(), key);
    }
    for text in ["", "7", "00000000-0000-0000-0000-000000000007/", "x/1"] {
        assert!(text.parse::<PredictionKey>().is_err(), "{text}");
    }
    let signed = format!("{id}/+1");
    assert!(signed.parse::<PredictionKey>().is_err());
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files = fs::read_dir(folder).unwrap();
    let path = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    path
}

fn parquet_files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for day in fs::read_dir(folder).unwrap() {
        let day = day.unwrap().path();
        if !day.is_dir() {
            continue;
        }
        found.extend(fs::read_dir(day).unwrap().map(|file| file.unwrap().path()));
    }
    found.sort();
    found
}

fn rows_of(path: &Path) -> usize {
    use parquet::file::reader::{FileReader, SerializedFileReader};
    let file = SerializedFileReader::new(fs::File::open(path).unwrap()).unwrap();
    usize::try_from(file.metadata().file_metadata().num_rows()).unwrap()
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
