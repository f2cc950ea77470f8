//! The skew test that goes on: night after night, each row once, the log read once.

use std::ops::ControlFlow;
use std::sync::Arc;

use featurestore::{
    FeatureStore, Mark, PredictionRecord, Verifier, VerifierOptions, VerifyError, VerifyReport,
};

use crate::flights::{MINUTE_MS, START_MS, Traffic, open};

const OPTIONS: VerifierOptions = VerifierOptions {
    rows: 1000,
    seed: 3,
    states_bytes_max: usize::MAX,
};

fn verifier(store: &FeatureStore, options: VerifierOptions) -> Verifier {
    let from = Mark { at_ms: 0, seq: 0 };
    Verifier::new(store, ("delay", "delay"), options, from).unwrap()
}

fn mark(store: &FeatureStore, at_ms: i64) -> Mark {
    let seq = store.stats().last_seq;
    Mark { at_ms, seq }
}

/// Serves a row after every event of a day, and records it.
fn serve_day(store: &FeatureStore, traffic: &mut Traffic, day: i64) -> Vec<PredictionRecord> {
    let mut records = Vec::new();
    for step in 0..24 {
        let now_ms = START_MS + (day * 1440 + step * 60) * MINUTE_MS;
        let events = vec![traffic.departure(now_ms), traffic.weather(now_ms)];
        store.ingest_events_blocking(events, now_ms).unwrap();
        let record = traffic.serve(store, now_ms + 1);
        store.record(std::slice::from_ref(&record)).unwrap();
        records.push(record);
    }
    records
}

fn end_of(day: i64) -> i64 {
    START_MS + (day + 1) * 1440 * MINUTE_MS
}

fn run(verifier: &mut Verifier, store: &FeatureStore, until: Mark) -> VerifyReport {
    let report = verifier.run(store, until, &mut |_| ControlFlow::Continue(()));
    report.unwrap()
}

#[test]
fn every_served_row_is_verified_once_over_many_nights() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(81);
    let mut kept = verifier(&store, OPTIONS);
    // No state fits: every run reads the whole log.
    let options = VerifierOptions {
        states_bytes_max: 0,
        ..OPTIONS
    };
    let mut bounded = verifier(&store, options);
    for day in 0..6 {
        serve_day(&store, &mut traffic, day);
        if day == 3 {
            store.seal().unwrap();
        }
        let until = mark(&store, end_of(day));
        let report = run(&mut kept, &store, until);
        assert_eq!(
            (report.rows_checked, report.mismatches),
            (24, 0),
            "{report:?}"
        );
        assert_eq!(report, run(&mut bounded, &store, until));
    }
    let again = run(&mut kept, &store, mark(&store, end_of(5)));
    assert_eq!(again, VerifyReport::default());
}

#[test]
fn a_row_that_lingered_over_the_mark_is_left_to_the_next_night() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(82);
    serve_day(&store, &mut traffic, 0);
    let until = mark(&store, end_of(0));
    // Asked for before the mark, read after it.
    let event = traffic.departure(end_of(0));
    store
        .ingest_events_blocking(vec![event], end_of(0))
        .unwrap();
    let lingering = traffic.serve(&store, end_of(0) - 1);
    let mut verifier = verifier(&store, OPTIONS);
    store.record(&[lingering]).unwrap();
    assert_eq!(run(&mut verifier, &store, until).rows_checked, 24);
    let next = mark(&store, end_of(1));
    assert_eq!(run(&mut verifier, &store, next).rows_checked, 1);
}

#[test]
fn a_false_row_is_counted_by_feature_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(83);
    let mut records = serve_day(&store, &mut traffic, 0);
    for (count, record) in records.iter_mut().enumerate().take(3) {
        let mut row = (**record.features.as_ref().unwrap()).clone();
        row.values[0] += 1.0;
        if count == 0 {
            row.event_times_ms[2] += 1;
        }
        record.features = Some(Arc::new(row));
        record.prediction.id = traffic.uuid();
        record.request_id = Some(format!("false {count}").into());
    }
    store.record(&records[..3]).unwrap();
    let report = run(
        &mut verifier(&store, OPTIONS),
        &store,
        mark(&store, end_of(0)),
    );
    assert_eq!((report.rows_checked, report.mismatches), (27, 3));
    let features: Vec<_> = report
        .features
        .iter()
        .map(|(name, rows)| (name.as_str(), *rows))
        .collect();
    assert_eq!(features, [("all:count_1h", 1), ("miles", 3)]);
    let named = report
        .examples
        .iter()
        .filter(|it| it.request_id.as_deref() == Some("false 0"));
    assert_eq!(named.count(), 2);
}

#[test]
fn a_run_that_was_ended_is_done_again_in_full() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(84);
    serve_day(&store, &mut traffic, 0);
    let events = (0..5000).map(|_| traffic.departure(end_of(0)));
    store
        .ingest_events_blocking(events.collect(), end_of(0))
        .unwrap();
    serve_day(&store, &mut traffic, 1);
    let mut verifier = verifier(&store, OPTIONS);
    let until = mark(&store, end_of(1));
    let ended = verifier.run(&store, until, &mut |_| ControlFlow::Break(()));
    assert!(matches!(ended, Err(VerifyError::Ended)), "{ended:?}");
    let report = run(&mut verifier, &store, until);
    assert_eq!((report.rows_checked, report.mismatches), (48, 0));
}

#[test]
fn a_later_run_reads_only_the_events_since() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(85);
    let events = (0..5000).map(|_| traffic.departure(START_MS));
    store
        .ingest_events_blocking(events.collect(), START_MS)
        .unwrap();
    let mut verifier = verifier(&store, OPTIONS);
    for (day, calls) in [(0, 1), (1, 0)] {
        serve_day(&store, &mut traffic, day);
        let mut watched = 0;
        let report = verifier.run(&store, mark(&store, end_of(day)), &mut |_| {
            watched += 1;
            ControlFlow::Continue(())
        });
        let report = report.unwrap();
        assert_eq!((report.rows_checked, report.mismatches), (24, 0));
        // A watcher is called every 4096 events.
        assert_eq!(watched, calls, "day {day}");
    }
}

#[test]
fn a_row_that_the_fold_has_passed_is_not_called_false() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(86);
    let early = traffic.serve(&store, end_of(0) + 1);
    serve_day(&store, &mut traffic, 0);
    let mut verifier = verifier(&store, OPTIONS);
    run(&mut verifier, &store, mark(&store, end_of(0)));
    // A clock that was set back: dated after the mark, but it saw less.
    store.record(&[early]).unwrap();
    let report = run(&mut verifier, &store, mark(&store, end_of(1)));
    assert_eq!((report.rows_checked, report.rows_passed_over), (0, 1));
}

#[test]
fn a_service_that_is_not_defined_is_refused_with_the_nearest_name() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let from = Mark { at_ms: 0, seq: 0 };
    let refused = Verifier::new(&store, ("delay", "delya@1"), OPTIONS, from).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "service `delya@1` is not defined in features.toml, did you mean `delay@1`?"
    );
}
