//! Labels: last write wins, once each, before or after their prediction.

use featurestore::{
    FeatureStore, Label, LabelsIngested, Outcome, OutcomeCursor, PredictionRecord, Role,
    StoreOptions, TrainingQuery,
};
use rand::Rng;
use rand::seq::SliceRandom;

use crate::flights::{MINUTE_MS, START_MS, Traffic, definitions, open, shadow_of, training_rows};

fn label(record: &PredictionRecord, value: f32, label_ms: i64) -> Label {
    Label {
        prediction: record.prediction,
        value,
        label_ms,
    }
}

fn outcomes(store: &FeatureStore) -> Vec<Outcome> {
    let mut all = Vec::new();
    let mut cursor = OutcomeCursor::default();
    loop {
        let (found, next) = store.outcomes(cursor, 3).unwrap();
        if found.is_empty() {
            assert_eq!(store.outcomes(next, 3).unwrap(), (Vec::new(), next));
            return all;
        }
        all.extend(found);
        cursor = next;
    }
}

#[test]
fn the_latest_label_stands_in_whatever_order_they_come() {
    let mut traffic = Traffic::new(31);
    for _ in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let records: Vec<_> = (0..5).map(|_| traffic.serve(&store, START_MS)).collect();
        store.record(&records).unwrap();
        // Each prediction gets labels of three times, two of them at the last time, all twice.
        let mut labels: Vec<Label> = records
            .iter()
            .flat_map(|record| {
                [(0.0, 1), (0.25, 2), (0.5, 3), (0.75, 3)]
                    .map(|(value, minute)| label(record, value, START_MS + minute * MINUTE_MS))
            })
            .collect();
        labels.extend(labels.clone());
        labels.shuffle(&mut traffic.random);
        let mut sum = LabelsIngested::default();
        for batch in labels.chunks(7) {
            let ingested = store
                .ingest_labels_blocking(batch.to_vec(), START_MS)
                .unwrap();
            sum.accepted += ingested.accepted;
            sum.duplicates += ingested.duplicates;
            sum.replaced += ingested.replaced;
            assert_eq!(ingested.unknown, 0);
        }
        assert_eq!(sum.accepted + sum.duplicates, 40);
        assert_eq!(sum.accepted - sum.replaced, 5);
        let found = outcomes(&store);
        assert_eq!(found.len(), 5, "one outcome for each prediction");
        assert!(found.iter().all(|outcome| outcome.label == 0.75));
        store.seal().unwrap();
        let query = TrainingQuery {
            model: "delay".to_owned(),
            service: "delay@1".to_owned(),
            from_ms: START_MS,
            to_ms: START_MS + 1,
            known_by_ms: START_MS,
        };
        let rows = training_rows(folder.path(), &query).unwrap();
        assert_eq!(rows.labels, [0.75; 5]);
    }
}

#[test]
fn an_outcome_comes_for_the_answer_and_for_its_shadows() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(32);
    let record = traffic.serve(&store, START_MS);
    // The shadow is recorded on its own, after the answer.
    store.record(std::slice::from_ref(&record)).unwrap();
    store.record(&[shadow_of(&record)]).unwrap();
    let arrived_ms = START_MS + 9 * MINUTE_MS;
    let one = label(&record, 1.0, START_MS + MINUTE_MS);
    store.ingest_labels_blocking(vec![one], arrived_ms).unwrap();
    let expected = |version, role, score| Outcome {
        model: "delay".into(),
        version,
        role,
        predicted_ms: START_MS,
        label_ms: START_MS + MINUTE_MS,
        arrived_ms,
        score,
        label: 1.0,
    };
    assert_eq!(
        outcomes(&store),
        [
            expected(1, Role::Champion, record.score),
            expected(7, Role::Shadow, record.score / 2.0),
        ]
    );
}

#[test]
fn a_label_before_its_prediction_waits_and_then_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(33);
    let records: Vec<_> = (0..50).map(|_| traffic.serve(&store, START_MS)).collect();
    let labels: Vec<_> = records
        .iter()
        .map(|record| label(record, 1.0, START_MS))
        .collect();
    let ingested = store
        .ingest_labels_blocking(labels.clone(), START_MS)
        .unwrap();
    assert_eq!((ingested.accepted, ingested.unknown), (50, 50));
    assert_eq!(store.stats().pending_labels, 50);
    assert!(outcomes(&store).is_empty());
    let (early, late) = records.split_at(20);
    store.record(early).unwrap();
    // The writer takes jobs in order: this answer comes after the pending labels were resolved.
    let again = store
        .ingest_labels_blocking(labels.clone(), START_MS)
        .unwrap();
    assert_eq!(again.duplicates, 50);
    assert_eq!(outcomes(&store).len(), 20);
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.stats().pending_labels, 30);
    store.record(late).unwrap();
    store.ingest_labels_blocking(labels, START_MS).unwrap();
    assert_eq!(store.stats().pending_labels, 0);
    assert_eq!(outcomes(&store).len(), 50);
}

#[test]
fn a_label_whose_prediction_never_comes_expires() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        pending_label_ttl_ms: 10 * MINUTE_MS,
        ..StoreOptions::default()
    };
    let store = FeatureStore::open(folder.path(), definitions(), &options).unwrap();
    let mut traffic = Traffic::new(34);
    let record = traffic.serve(&store, START_MS);
    let other = traffic.serve(&store, START_MS);
    let ingest = |record, at_ms| {
        let labels = vec![label(record, 1.0, START_MS)];
        store.ingest_labels_blocking(labels, at_ms).unwrap()
    };
    ingest(&record, START_MS);
    ingest(&other, START_MS + 10 * MINUTE_MS);
    assert_eq!(store.stats().expired_labels, 0);
    ingest(&other, START_MS + 11 * MINUTE_MS);
    let stats = store.stats();
    assert_eq!((stats.expired_labels, stats.pending_labels), (1, 1));
    // What expired does not come back when the prediction does.
    store.record(std::slice::from_ref(&record)).unwrap();
    assert_eq!(ingest(&other, START_MS + 11 * MINUTE_MS).duplicates, 1);
    assert!(outcomes(&store).is_empty());
    let ingested = ingest(&record, START_MS + 12 * MINUTE_MS);
    assert_eq!((ingested.accepted, ingested.unknown), (1, 0));
    assert_eq!(outcomes(&store).len(), 1);
}

#[test]
fn more_waiting_labels_than_allowed_expire_the_oldest() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        pending_labels_max: 10,
        ..StoreOptions::default()
    };
    let store = FeatureStore::open(folder.path(), definitions(), &options).unwrap();
    let mut traffic = Traffic::new(35);
    for minute in 0..25 {
        let mut record = traffic.serve(&store, START_MS);
        record.score = traffic.random.random();
        let labels = vec![label(&record, 1.0, START_MS)];
        store
            .ingest_labels_blocking(labels, START_MS + minute * MINUTE_MS)
            .unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.pending_labels, stats.expired_labels), (10, 15));
}
