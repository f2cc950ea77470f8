//! Views read by themselves: the same values as in a service's row, each state once.

use std::sync::Arc;

use crate::flights::{DEFINITIONS, MINUTE_MS, START_MS, Traffic, open};
use featurestore::{
    Definitions, FeatureOrigin, FeatureStore, Readings, Service, Status, StoreOptions, Value,
    ViewKeys, ViewRows,
};
use rand::Rng;

/// The columns of the requests, as `Service::request` orders them.
fn columns(service: &Service, requests: &[Vec<Value>]) -> Vec<Vec<Value>> {
    let column = |field: usize| requests.iter().map(|row| row[field].clone()).collect();
    (0..service.request.len()).map(column).collect()
}

/// Every view of the service at once.
fn read(store: &FeatureStore, service: &Service, requests: &[Vec<Value>]) -> Vec<ViewRows> {
    let columns = columns(service, requests);
    let of_view = |view| ViewKeys {
        view,
        columns: view
            .keys
            .iter()
            .map(|key| &columns[service.request_field(&key.name).unwrap()][..])
            .collect(),
    };
    let asked: Vec<_> = service.needed_views().iter().map(of_view).collect();
    store.read_views(&asked, requests.len()).unwrap()
}

#[test]
fn views_read_by_themselves_equal_the_rows_of_a_service() {
    for hot_states_bytes in [0, 64 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            hot_states_bytes,
            ..StoreOptions::default()
        };
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let store = FeatureStore::open(folder.path(), Arc::new(definitions), &options).unwrap();
        let mut traffic = Traffic::new(29);
        let service = Arc::clone(store.definitions().service("delay").unwrap());
        for minute in 0..200 {
            let now_ms = START_MS + minute * 7 * MINUTE_MS;
            let batch = vec![traffic.departure(now_ms), traffic.weather(now_ms)];
            store.ingest_events_blocking(batch, now_ms).unwrap();
            let mut requests: Vec<Vec<Value>> = Vec::new();
            for _ in 0..traffic.random.random_range(0..9) {
                let again = requests.last().filter(|_| traffic.random.random_bool(0.5));
                let request = again.cloned().unwrap_or_else(|| traffic.request());
                requests.push(request);
            }
            let rows = store.read_rows(&service, &requests, now_ms).unwrap();
            let views = read(&store, &service, &requests);
            for (column, feature) in service.features.iter().enumerate() {
                let FeatureOrigin::View(at) = &feature.origin else {
                    continue;
                };
                let view = &views[at.view];
                let readings = view.readings(now_ms);
                let of_slots: Vec<_> = readings.values(at.feature).collect();
                assert_eq!(view.slots().len(), rows.len());
                for (row, &slot) in rows.iter().zip(view.slots()) {
                    let (value, status, event_ms) = &of_slots[slot];
                    assert_eq!(view.as_of_seq, row.as_of_seq);
                    assert_eq!(*status, row.statuses[column], "{}", feature.name);
                    assert_eq!(*event_ms, row.event_times_ms[column]);
                    assert_eq!(value.is_null(), *status != Status::Present);
                    if feature.clip.is_none() {
                        let value = value.as_f64().map_or(f32::NAN, |value| value as f32);
                        assert_eq!(value.to_bits(), row.values[column].to_bits());
                    }
                }
            }
        }
    }
}

#[test]
fn rows_that_follow_one_another_share_a_state() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(31);
    let event = traffic.departure(START_MS);
    store.ingest_events_blocking(vec![event], START_MS).unwrap();
    let view = store.definitions().view("aircraft").unwrap();
    let tail = |name: &str| Value::String(name.into());
    let tails = [tail("N1"), tail("N1"), Value::Null, Value::Null, tail("N2")];
    let asked = [ViewKeys {
        view,
        columns: vec![&tails],
    }];
    let found = store.read_views(&asked, tails.len()).unwrap();
    assert_eq!(found[0].slots(), [0, 0, 1, 1, 2]);
    let status = |index: usize| {
        let readings = found[0].readings(START_MS);
        readings.values(0).nth(index).unwrap().1
    };
    assert_eq!(status(1), Status::NotFound);
    // A column too few, and rows that no column has: nothing is known of them.
    let none = ViewKeys {
        view,
        columns: Vec::new(),
    };
    let found = store.read_views(&[none], 2).unwrap();
    let readings = found[0].readings(START_MS);
    let known: Vec<_> = readings.values(0).map(|one| one.1).collect();
    assert_eq!(known, [Status::NotFound]);
    assert!(store.read_views(&[], 3).unwrap().is_empty());
}

#[test]
fn a_value_older_than_the_ttl_is_read_where_its_age_does_not_matter() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(37);
    let events = (0..20).map(|_| traffic.departure(START_MS)).collect();
    store.ingest_events_blocking(events, START_MS).unwrap();
    let view = store.definitions().view("aircraft").unwrap();
    let tails: Vec<_> = (1..8)
        .map(|k| Value::String(format!("N{k}").into()))
        .collect();
    let asked = [ViewKeys {
        view,
        columns: vec![&tails],
    }];
    let found = &store.read_views(&asked, tails.len()).unwrap()[0];
    let read = |readings: Readings<'_>| -> Vec<_> {
        let slots = 0..tails.len();
        slots.map(|slot| readings.value(slot, 0)).collect()
    };
    let at_ms = START_MS + 2 * 24 * 60 * MINUTE_MS;
    let (young, old) = (read(found.readings(START_MS)), read(found.readings(at_ms)));
    assert!(young.iter().any(|one| one.1 == Status::Present));
    assert!(
        old.iter()
            .all(|one| matches!(one.1, Status::OutsideMaxAge | Status::NotFound))
    );
    assert_eq!(read(found.readings_of_any_age(at_ms)), young);
}
