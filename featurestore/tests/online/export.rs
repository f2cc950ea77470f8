//! Export: what comes out is what is in, in every format, as a whole file or none.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Float32Type, Int64Type};
use featurestore::{
    ExportError, ExportRequest, ExportWhat, FeatureStore, ImportRequest, PredictionRecord,
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::flights::{MINUTE_MS, START_MS, Traffic, open};

const HOURS: i64 = 20;

/// An event of each source and a recorded row an hour.
fn filled(folder: &Path) -> (FeatureStore, Vec<PredictionRecord>) {
    let mut traffic = Traffic::new(91);
    let store = open(folder);
    let mut records = Vec::new();
    for hour in 0..HOURS {
        let now_ms = START_MS + hour * 60 * MINUTE_MS;
        let events = vec![traffic.departure(now_ms), traffic.weather(now_ms)];
        store.ingest_events_blocking(events, now_ms).unwrap();
        let record = traffic.serve(&store, now_ms + 1);
        store.record(std::slice::from_ref(&record)).unwrap();
        records.push(record);
    }
    (store, records)
}

fn export(store: &FeatureStore, what: ExportWhat, file: &Path) -> Result<u64, ExportError> {
    let request = ExportRequest {
        what,
        from_ms: START_MS + 60 * MINUTE_MS,
        to_ms: START_MS + (HOURS - 1) * 60 * MINUTE_MS,
        file: file.to_owned(),
    };
    store.export(&request, &mut |_| ControlFlow::Continue(()))
}

fn departures() -> ExportWhat {
    ExportWhat::Events {
        source: "departures".to_owned(),
    }
}

fn rows() -> ExportWhat {
    ExportWhat::Rows {
        model: "delay".to_owned(),
        service: "delay".to_owned(),
    }
}

fn read(file: &Path) -> RecordBatch {
    let reader = ParquetRecordBatchReaderBuilder::try_new(fs::File::open(file).unwrap()).unwrap();
    let batches: Vec<_> = reader.build().unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.len(), 1);
    batches.into_iter().next().unwrap()
}

#[test]
fn exported_events_are_imported_as_the_events_that_they_were() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = filled(data.path());
    for name in ["events.parquet", "events.csv", "events.jsonl"] {
        let file = out.path().join(name);
        assert_eq!(export(&store, departures(), &file).unwrap(), 18, "{name}");
        // All of them are known where they came from, so not a value has changed in its identity.
        let request = ImportRequest {
            source: "departures".to_owned(),
            files: vec![file.clone()],
            now_ms: START_MS + 10_000 * MINUTE_MS,
        };
        let again = store.import_events(&request, &mut |_| {}).unwrap();
        assert_eq!((again.rows, again.duplicates), (18, 18), "{name}");
        // Elsewhere they are new, and make the same file again.
        let elsewhere = tempfile::tempdir().unwrap();
        let other = open(elsewhere.path());
        other.import_events(&request, &mut |_| {}).unwrap();
        let copy = out.path().join(format!("copy-{name}"));
        assert_eq!(export(&other, departures(), &copy).unwrap(), 18);
        assert_eq!(fs::read(&copy).unwrap(), fs::read(&file).unwrap(), "{name}");
    }
}

#[test]
fn exported_rows_are_the_rows_as_served() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, records) = filled(data.path());
    store.seal().unwrap();
    let file = out.path().join("rows.parquet");
    assert_eq!(export(&store, rows(), &file).unwrap(), 18);
    let batch = read(&file);
    let ids = batch
        .column_by_name("prediction_id")
        .unwrap()
        .as_string::<i32>();
    let seqs = batch
        .column_by_name("as_of_seq")
        .unwrap()
        .as_primitive::<Int64Type>();
    let service = store.definitions().service("delay").unwrap();
    for index in 0..batch.num_rows() {
        let is_it = |record: &&PredictionRecord| record.prediction.to_string() == ids.value(index);
        let record = records.iter().find(is_it).unwrap();
        let features = record.features.as_ref().unwrap();
        assert_eq!(
            seqs.value(index),
            i64::try_from(features.as_of_seq).unwrap()
        );
        for (name, expected) in service.feature_names().zip(&features.values) {
            let column = batch
                .column_by_name(name)
                .unwrap()
                .as_primitive::<Float32Type>();
            let found = column
                .is_valid(index)
                .then(|| column.value(index).to_bits());
            let expected = (!expected.is_nan()).then(|| expected.to_bits());
            assert_eq!(found, expected, "{name}");
        }
    }
    let lines = out.path().join("rows.jsonl");
    assert_eq!(export(&store, rows(), &lines).unwrap(), 18);
    let text = fs::read_to_string(&lines).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert!(
        first["request.carrier"].is_string() && first["miles"].is_number(),
        "{first}"
    );
}

#[test]
fn a_file_comes_whole_or_not_at_all_and_replaces_none() {
    let (data, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (store, _) = filled(data.path());
    let file = out.path().join("events.csv");
    fs::write(&file, "mine").unwrap();
    let refused = export(&store, departures(), &file).unwrap_err().to_string();
    assert!(
        refused.contains("events.csv: is there already"),
        "{refused}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    fs::remove_file(&file).unwrap();

    let mut traffic = Traffic::new(92);
    let more = (0..5000).map(|step| traffic.weather(START_MS + step * MINUTE_MS));
    store
        .ingest_events_blocking(more.collect(), START_MS)
        .unwrap();
    let request = ExportRequest {
        what: departures(),
        from_ms: i64::MIN,
        to_ms: i64::MAX,
        file: file.clone(),
    };
    let ended = store.export(&request, &mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(ExportError::Ended)), "{ended:?}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);

    let unknown = ExportWhat::Events {
        source: "departure".to_owned(),
    };
    let refused = export(&store, unknown, &file).unwrap_err().to_string();
    assert!(refused.contains("did you mean `departures`?"), "{refused}");
}
