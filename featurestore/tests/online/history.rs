//! Import and backfill: history gives the rows that serving would have given.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Float32Array, Int32Array, LargeStringArray, RecordBatch, StringArray,
    TimestampMicrosecondArray,
};
use featurestore::{
    BackfillRequest, Event, HistoryError, ImportRequest, Source, TrainingQuery, Value,
};
use parquet::arrow::ArrowWriter;

use crate::flights::{MINUTE_MS, START_MS, Traffic, open, training_rows};

fn lines(path: &Path, rows: impl Iterator<Item = serde_json::Value>) {
    let mut file = File::create(path).unwrap();
    for row in rows {
        writeln!(file, "{row}").unwrap();
    }
}

fn json_of(event: &Event) -> serde_json::Value {
    let fields = event.source.fields.iter().zip(&event.values);
    fields
        .map(|(field, value)| (field.name.to_string(), value.to_json()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn import(files: &[PathBuf], source: &str) -> ImportRequest {
    ImportRequest {
        source: source.to_owned(),
        files: files.to_vec(),
        now_ms: START_MS + 1_000_000 * MINUTE_MS,
    }
}

fn backfill_request(file: &Path) -> BackfillRequest {
    BackfillRequest {
        model: "delay".into(),
        service: "delay".to_owned(),
        file: file.to_owned(),
    }
}

#[test]
fn backfilled_rows_equal_the_rows_that_were_served() {
    let mut traffic = Traffic::new(51);
    let folder = tempfile::tempdir().unwrap();
    let (served, history) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(served.path());
    let (mut departures, mut weather, mut requests) = (Vec::new(), Vec::new(), Vec::new());
    let mut rows = HashMap::new();
    for step in 0..400 {
        let now_ms = START_MS + step * 17 * MINUTE_MS;
        let departure = traffic.departure(now_ms);
        departures.push(json_of(&departure));
        let mut events = vec![departure];
        if step % 3 == 0 {
            events.push(traffic.weather(now_ms));
            weather.push(json_of(&events[1]));
        }
        store.ingest_events_blocking(events, now_ms).unwrap();
        let record = traffic.serve(&store, now_ms + MINUTE_MS);
        let service = traffic.definitions.service("delay").unwrap();
        let mut request: serde_json::Map<_, _> = service
            .request
            .iter()
            .zip(record.request.iter())
            .map(|(field, value)| (field.name.to_string(), value.to_json()))
            .collect();
        let id = format!("request {step}");
        request.insert("request_id".to_owned(), id.clone().into());
        request.insert("at".to_owned(), record.at_ms.into());
        if step % 5 != 0 {
            request.insert("label".to_owned(), serde_json::json!(step % 2));
            request.insert("label_known_at".to_owned(), (record.at_ms + 1).into());
        }
        requests.push(serde_json::Value::from(request));
        rows.insert(id, record);
    }
    let path = |name: &str| folder.path().join(name);
    lines(&path("departures.jsonl"), departures.into_iter());
    lines(&path("weather.jsonl"), weather.into_iter());
    lines(&path("requests.jsonl"), requests.into_iter());

    // One source after the other: sequence numbers do not follow arrival.
    let store = open(history.path());
    let mut progress = 0;
    let imported = store
        .import_events(
            &import(&[path("departures.jsonl")], "departures"),
            &mut |told| {
                progress = told.rows;
            },
        )
        .unwrap();
    assert_eq!(
        (imported.rows, imported.accepted, progress),
        (400, 400, 400)
    );
    let weather = import(&[path("weather.jsonl")], "weather");
    store.import_events(&weather, &mut |_| {}).unwrap();
    let again = store.import_events(&weather, &mut |_| {}).unwrap();
    assert_eq!((again.accepted, again.duplicates), (0, again.rows));
    let request = backfill_request(&path("requests.jsonl"));
    let done = store.backfill(&request, &mut |_| {}).unwrap();
    assert_eq!((done.rows, done.labels), (400, 320));

    let query = TrainingQuery {
        model: "delay".to_owned(),
        service: "delay@1".to_owned(),
        from_ms: START_MS,
        to_ms: START_MS + 1_000_000 * MINUTE_MS,
        known_by_ms: START_MS + 1_000_000 * MINUTE_MS,
    };
    let found = training_rows(history.path(), &query).unwrap();
    assert_eq!(found.rows(), 320);
    for (index, id) in found.request_ids.iter().enumerate() {
        let expected = rows[id].features.as_ref().unwrap();
        let values = &found.values[index * found.columns()..(index + 1) * found.columns()];
        let bits = |values: &[f32]| values.iter().map(|it| it.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(values), bits(&expected.values), "{id}");
        assert_eq!(found.predicted_ms[index], rows[id].at_ms);
    }
    // Again, and from a file with more rows: nothing is doubled.
    store.backfill(&request, &mut |_| {}).unwrap();
    let text = std::fs::read_to_string(path("requests.jsonl")).unwrap();
    let last = text
        .lines()
        .last()
        .unwrap()
        .replace("request 399", "request 400");
    std::fs::write(path("more.jsonl"), format!("{text}{last}\n")).unwrap();
    store
        .backfill(&backfill_request(&path("more.jsonl")), &mut |_| {})
        .unwrap();
    assert_eq!(training_rows(history.path(), &query).unwrap().rows(), 321);
}

fn parquet(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )
    .unwrap();
    let mut writer =
        ArrowWriter::try_new(File::create(path).unwrap(), batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

fn departure_columns() -> Vec<(&'static str, ArrayRef)> {
    let times = [START_MS * 1000, (START_MS + MINUTE_MS) * 1000];
    vec![
        ("flight_id", Arc::new(Int32Array::from(vec![1, 2]))),
        (
            "carrier",
            Arc::new(LargeStringArray::from(vec!["AA", "UA"])),
        ),
        ("origin", Arc::new(StringArray::from(vec!["EWR", "JFK"]))),
        (
            "tailnum",
            Arc::new(StringArray::from(vec![Some("N1"), None])),
        ),
        (
            "departed_at",
            Arc::new(TimestampMicrosecondArray::from(times.to_vec()).with_timezone("UTC")),
        ),
        ("delay", Arc::new(Float32Array::from(vec![3.5, f32::NAN]))),
        ("late", Arc::new(BooleanArray::from(vec![true, false]))),
        ("ignored", Arc::new(Int32Array::from(vec![7, 7]))),
    ]
}

#[test]
fn parquet_columns_of_many_types_become_events() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("departures.parquet");
    parquet(&file, departure_columns());
    let data = tempfile::tempdir().unwrap();
    let store = open(data.path());
    let imported = store.import_events(&import(&[file], "departures"), &mut |_| {});
    assert_eq!(imported.unwrap().accepted, 2);
    // The same two events, made by hand, are known.
    let source: &Arc<Source> = store.definitions().source("departures").unwrap();
    let text = |text: &str| Value::String(text.into());
    let by_hand = |values| source.event(0, values, START_MS + MINUTE_MS).unwrap();
    let events = vec![
        by_hand(vec![
            Value::Int(1),
            text("AA"),
            text("EWR"),
            text("N1"),
            Value::Int(START_MS),
            Value::Float(3.5),
            Value::Bool(true),
        ]),
        by_hand(vec![
            Value::Int(2),
            text("UA"),
            text("JFK"),
            Value::Null,
            Value::Int(START_MS + MINUTE_MS),
            Value::Null,
            Value::Bool(false),
        ]),
    ];
    let service = store.definitions().service("delay").unwrap();
    let request = [vec![text("UA"), text("JFK"), text("N1"), Value::Float(9.0)]];
    let imported = store
        .read_rows(service, &request, START_MS + MINUTE_MS)
        .unwrap();
    let again = tempfile::tempdir().unwrap();
    let again = open(again.path());
    again
        .ingest_events_blocking(events.clone(), START_MS)
        .unwrap();
    assert_eq!(
        again
            .read_rows(service, &request, START_MS + MINUTE_MS)
            .unwrap(),
        imported
    );
    assert_eq!(
        store
            .ingest_events_blocking(events, START_MS)
            .unwrap()
            .duplicates,
        2
    );
}

#[test]
fn files_that_do_not_fit_are_refused_by_name_and_row() {
    let folder = tempfile::tempdir().unwrap();
    let data = tempfile::tempdir().unwrap();
    let store = open(data.path());
    let path = |name: &str| folder.path().join(name);
    let refused = |files: &[PathBuf]| -> HistoryError {
        let request = import(files, "departures");
        store.import_events(&request, &mut |_| {}).unwrap_err()
    };
    let mut columns = departure_columns();
    columns.remove(2);
    parquet(&path("missing.parquet"), columns);
    let error = refused(&[path("missing.parquet")]).to_string();
    assert!(error.contains("no column `origin` (string)"), "{error}");

    let mut columns = departure_columns();
    columns[0].1 = Arc::new(StringArray::from(vec!["1", "2"]));
    parquet(&path("typed.parquet"), columns);
    let error = refused(&[path("typed.parquet")]).to_string();
    assert!(
        error.contains("column `flight_id` is Utf8, expected int"),
        "{error}"
    );

    parquet(&path("good.parquet"), departure_columns());
    let mut columns = departure_columns();
    columns[6].1 = Arc::new(BooleanArray::from(vec![Some(true), None]));
    parquet(&path("null.parquet"), columns);
    let error = refused(&[path("null.parquet")]);
    assert!(matches!(error, HistoryError::Partial { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("row 1: field `late`: may not be null; the 1 rows before it"),
        "{text}"
    );

    let text = refused(&[path("good.parquet"), path("good.parquet")]).to_string();
    assert!(
        text.contains("good.parquet: row 0: field `departed_at`"),
        "{text}"
    );
    assert!(text.contains("sort the files by time"), "{text}");

    std::fs::write(path("bad.jsonl"), "{\"flight_id\": 1}\n").unwrap();
    let error = refused(&[path("bad.jsonl")]).to_string();
    assert!(error.contains("row 0: field `carrier`: missing"), "{error}");
    let error = refused(&[path("nowhere.jsonl")]).to_string();
    assert!(error.contains("nowhere.jsonl"), "{error}");
    let unknown = store.import_events(&import(&[], "landings"), &mut |_| {});
    assert!(
        unknown
            .unwrap_err()
            .to_string()
            .contains("source `landings` is not defined")
    );
}
