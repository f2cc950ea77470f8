//! Time travel: the past as the log tells it is the past as it was served, or would have been.

use std::ops::ControlFlow;

use featurestore::{
    Event, FeatureStore, Moment, PointInTime, Status, StoreOptions, TravelError, Value, ViewKeys,
};
use proptest::prelude::*;
use rand::Rng;
use rand::seq::SliceRandom;

use crate::flights::{MINUTE_MS, START_MS, Traffic, definitions, open};

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// An event with its arrival.
type Arrived = (i64, Event);

/// Events that arrive up to two days late, some dated ahead, one a group, in order of arrival.
fn history(traffic: &mut Traffic, steps: i64) -> Vec<Arrived> {
    let mut arrived = Vec::new();
    for step in 0..steps {
        let now_ms = START_MS + step * 41 * MINUTE_MS;
        let shift = match traffic.random.random_range(0..4) {
            0 => traffic.random.random_range(0..2880),
            1 => -traffic.random.random_range(0..5),
            _ => 0,
        };
        arrived.push((now_ms, traffic.departure(now_ms - shift * MINUTE_MS)));
        if step % 5 == 0 {
            arrived.push((now_ms + 1, traffic.weather(now_ms)));
        }
    }
    arrived
}

fn take_in(store: &FeatureStore, arrived: &[Arrived]) {
    for (arrived_ms, event) in arrived {
        let taken = store.ingest_events_blocking(vec![event.clone()], *arrived_ms);
        assert_eq!(taken.unwrap().accepted, 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    /// Whatever the order in which events were written, and for any pair of times: the row is that of a
    /// store to which, of all events, only those that count had come.
    #[test]
    fn a_row_of_the_past_holds_what_had_arrived_and_nothing_else(
        seed in 0u64..1000,
        moments in proptest::collection::vec((0i64..200, -40i64..200), 6),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let mut traffic = Traffic::new(seed);
        let mut arrived = history(&mut traffic, 150);
        let requests: Vec<_> = (0..3).map(|_| traffic.request()).collect();
        arrived.shuffle(&mut traffic.random);
        take_in(&store, &arrived);
        let service = store.definitions().service("delay").unwrap();
        for (at, known_later) in moments {
            let at_ms = START_MS + at * 33 * MINUTE_MS;
            let known_ms = at_ms + known_later * 20 * MINUTE_MS;
            let moment = Moment { at_ms, known_ms };
            let found = store.rows_then(service, &requests, moment, &mut go_on).unwrap();
            let mut expected = PointInTime::new(service);
            for (seq, (arrived_ms, event)) in (1..).zip(&arrived) {
                let known = *arrived_ms <= known_ms;
                if known && (*arrived_ms <= at_ms || event.event_ms <= at_ms) {
                    expected.push_event(event, seq, *arrived_ms);
                }
            }
            for (request, found) in requests.iter().zip(&found) {
                let expected = expected.row(request, at_ms);
                prop_assert!(found.same_features(&expected), "{moment:?}: {found:?}, {expected:?}");
            }
        }
    }
}

#[test]
fn a_served_row_is_told_again_for_the_moment_that_it_was_served_at() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(71);
    let mut store = open(folder.path());
    let mut served = Vec::new();
    for (count, (arrived_ms, event)) in history(&mut traffic, 120).into_iter().enumerate() {
        take_in(&store, &[(arrived_ms, event)]);
        served.push(traffic.serve(&store, arrived_ms));
        if count == 70 {
            // What is told does not depend on what is held in memory.
            drop(store);
            store = open(folder.path());
        }
    }
    let service = store.definitions().service("delay").unwrap();
    for record in served {
        let request = [record.request.to_vec()];
        let moment = Moment::at(record.at_ms);
        let told = store
            .rows_then(service, &request, moment, &mut go_on)
            .unwrap();
        assert_eq!(&told[0], &**record.features.as_ref().unwrap(), "{moment:?}");
    }
}

#[test]
fn an_event_that_came_late_counts_only_once_it_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(72);
    let at_ms = START_MS + 600 * MINUTE_MS;
    let hour_ms = 60 * MINUTE_MS;
    let late = traffic.departure(at_ms - hour_ms / 2);
    let after = traffic.departure(at_ms + hour_ms);
    take_in(
        &store,
        &[(at_ms + 2 * hour_ms, late), (at_ms + 2 * hour_ms, after)],
    );
    let view = store.definitions().view("all").unwrap();
    let asked = [ViewKeys {
        view,
        columns: Vec::new(),
    }];
    let count = |known_ms| {
        let moment = Moment { at_ms, known_ms };
        let rows = store.views_then(&asked, 1, moment, &mut go_on).unwrap();
        rows[0].readings(at_ms).value(0, 0)
    };
    assert_eq!(count(at_ms), (Value::Null, Status::NotFound, 0));
    let (value, status, event_ms) = count(at_ms + 2 * hour_ms);
    assert_eq!((status, event_ms), (Status::Present, at_ms - hour_ms / 2));
    // Of the two that are known by then, one is about a time after the row's.
    assert_eq!(value.as_f64(), Some(1.0));
}

#[test]
fn a_pass_over_the_log_ends_when_its_watcher_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions::default();
    let store = FeatureStore::open(folder.path(), definitions(), &options).unwrap();
    let mut traffic = Traffic::new(73);
    let events = (0..5000).map(|step| traffic.departure(START_MS + step * MINUTE_MS));
    store
        .ingest_events_blocking(events.collect(), START_MS + 5000 * MINUTE_MS)
        .unwrap();
    let service = store.definitions().service("delay").unwrap();
    let mut seen = 0;
    let ended = store.rows_then(service, &[], Moment::at(START_MS), &mut |events| {
        seen = events;
        ControlFlow::Break(())
    });
    assert!(matches!(ended, Err(TravelError::Ended)), "{ended:?}");
    assert_eq!(seen, 4096);
}
