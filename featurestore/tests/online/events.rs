//! Events in, features out: what an acknowledged batch promises.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flights::{DEFINITIONS, MINUTE_MS, START_MS, Traffic, definitions, open};
use featurestore::{
    Definitions, Event, FeatureStore, OpenError, Overloaded, PointInTime, StoreOptions, Value,
};
use rand::Rng;
use rand::seq::SliceRandom;

#[test]
fn features_read_online_equal_a_recomputation_from_the_events() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let mut traffic = Traffic::new(11);
    let service = Arc::clone(traffic.definitions.service("delay").unwrap());
    let mut history = PointInTime::new(&service);
    let mut seq = 0;
    for minute in 0..600 {
        let now_ms = START_MS + minute * 7 * MINUTE_MS;
        let late_ms = traffic.random.random_range(0..30 * 60) * MINUTE_MS;
        let batch = vec![
            traffic.departure(now_ms),
            traffic.departure(now_ms - late_ms),
            traffic.weather(now_ms),
        ];
        for event in &batch {
            seq += 1;
            history.push_event(event, seq, now_ms);
        }
        let ingested = store.ingest_events_blocking(batch, now_ms).unwrap();
        assert_eq!((ingested.accepted, ingested.last_seq), (3, seq));
        let requests: Vec<Vec<Value>> = (0..3).map(|_| traffic.request()).collect();
        let rows = store.read_rows(&service, &requests, now_ms).unwrap();
        for (row, request) in rows.iter().zip(&requests) {
            assert_eq!(row, &history.row(request, now_ms));
        }
    }
    assert!(store.stats().late_events > 0);
}

/// With a lateness of two hours for departures, and so with other versions of views and service.
fn strict() -> Arc<Definitions> {
    let text = DEFINITIONS.replacen("time =", "lateness = \"2h\"\ntime =", 1);
    let text = text.replace("source =", "version = 2\nsource =");
    let text = text.replace("version = 1", "version = 2");
    Arc::new(Definitions::parse(&text, "features.toml").unwrap())
}

#[test]
fn an_event_later_than_its_source_allows_is_logged_and_enters_no_feature() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(12);
    traffic.definitions = strict();
    let open =
        |definitions| FeatureStore::open(folder.path(), definitions, &StoreOptions::default());
    let mut batches = Vec::new();
    let mut too_late = 0;
    for hour in 0..40 {
        let now_ms = START_MS + hour * 60 * MINUTE_MS;
        let late_ms = traffic.random.random_range(0..240) * MINUTE_MS;
        too_late += u64::from(late_ms > 120 * MINUTE_MS);
        let edge_ms = now_ms - 120 * MINUTE_MS;
        let batch = vec![
            traffic.departure(now_ms - late_ms),
            traffic.departure(edge_ms),
            traffic.weather(now_ms - 24 * 60 * MINUTE_MS),
        ];
        batches.push((now_ms, batch));
    }
    let store = open(strict()).unwrap();
    for (now_ms, batch) in &batches {
        store
            .ingest_events_blocking(batch.clone(), *now_ms)
            .unwrap();
    }
    let stats = store.stats();
    assert_eq!((stats.events, stats.late_events), (120, too_late));
    assert!(too_late > 0);
    let sent_again = store.ingest_events_blocking(batches[0].1.clone(), START_MS);
    assert_eq!(sent_again.unwrap().duplicates, 3);
    drop(store);
    let requests: Vec<Vec<Value>> = (0..20).map(|_| traffic.request()).collect();
    let at_ms = batches[39].0;
    let mut counts = Vec::new();
    // Another lateness is another version of a view: it is folded again from the log, each event by its arrival.
    for definitions in [strict(), definitions(), strict()] {
        let service = Arc::clone(definitions.service("delay").unwrap());
        let mut history = PointInTime::new(&service);
        let mut seq = 0;
        for (now_ms, event) in batches
            .iter()
            .flat_map(|(now_ms, batch)| batch.iter().map(move |event| (now_ms, event)))
        {
            seq += 1;
            let source = definitions.source(&event.source.name).unwrap();
            let event = source.event(0, event.values.to_vec(), *now_ms).unwrap();
            history.push_event(&event, seq, *now_ms);
        }
        let store = open(Arc::clone(&definitions)).unwrap();
        let rows = store.read_rows(&service, &requests, at_ms).unwrap();
        for (row, request) in rows.iter().zip(&requests) {
            assert_eq!(row, &history.row(request, at_ms));
        }
        let count = service
            .feature_names()
            .position(|name| name == "all:count_24h");
        counts.push(rows[0].values[count.unwrap()]);
    }
    assert_eq!(counts[0], counts[2]);
    assert!(counts[0] < counts[1], "{counts:?}");
}

/// A row and what it was read for.
type Read = (u64, Vec<Value>, i64, featurestore::FeatureRow);

/// Reads rows until the writer is done; none may be older than what was acknowledged before. Of each cut
/// the first rows are given back, of the others some: their number is not bounded.
fn read_beside(
    store: &FeatureStore,
    traffic: &mut Traffic,
    (acked, last_seq): (&AtomicU64, u64),
) -> Vec<Read> {
    let service = Arc::clone(traffic.definitions.service("delay").unwrap());
    let mut reads: Vec<Read> = Vec::new();
    let mut of_cut = 0;
    loop {
        let before = acked.load(Ordering::Acquire);
        let requests: Vec<Vec<Value>> = (0..2).map(|_| traffic.request()).collect();
        let at_ms = START_MS + traffic.random.random_range(0..1000) * MINUTE_MS;
        let rows = store.read_rows(&service, &requests, at_ms).unwrap();
        for (request, row) in requests.into_iter().zip(rows) {
            assert!(row.as_of_seq >= before, "{} < {before}", row.as_of_seq);
            let same_cut = reads.last().is_some_and(|last| last.0 == row.as_of_seq);
            of_cut = if same_cut { of_cut + 1 } else { 1 };
            if of_cut <= 40 || traffic.random.random_bool(0.01) {
                reads.push((row.as_of_seq, request, at_ms, row));
            }
        }
        if before == last_seq {
            return reads;
        }
    }
}

#[test]
fn rows_read_beside_a_writer_are_those_of_one_cut_and_not_older_than_what_was_acked() {
    const BATCHES: i64 = 120;
    // Nothing in memory, too little for the states that are read, and enough.
    for hot_states_bytes in [0, 128 << 10, 64 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            hot_states_bytes,
            ..StoreOptions::default()
        };
        let store = FeatureStore::open(folder.path(), definitions(), &options).unwrap();
        let mut traffic = Traffic::new(17);
        let batches: Vec<Vec<Event>> = (0..BATCHES)
            .map(|batch| {
                let at_ms = START_MS + batch * 7 * MINUTE_MS;
                let departures = (0..4).map(|_| traffic.departure(at_ms));
                departures.collect()
            })
            .collect();
        let last_seq = batches.len() as u64 * 4;
        let acked = AtomicU64::new(0);
        let mut reads: Vec<Read> = std::thread::scope(|scope| {
            let readers: Vec<_> = (0..3)
                .map(|reader| {
                    let (store, acked) = (&store, &acked);
                    let read = move || {
                        read_beside(store, &mut Traffic::new(100 + reader), (acked, last_seq))
                    };
                    scope.spawn(read)
                })
                .collect();
            for batch in &batches {
                let ingested = store.ingest_events_blocking(batch.clone(), START_MS);
                acked.store(ingested.unwrap().last_seq, Ordering::Release);
            }
            let reads = readers.into_iter().map(|reader| reader.join().unwrap());
            reads.flatten().collect()
        });
        reads.sort_by_key(|read| read.0);
        let mut history = PointInTime::new(traffic.definitions.service("delay").unwrap());
        let mut events = batches.iter().flatten().zip(1..).peekable();
        for (as_of_seq, request, at_ms, row) in &reads {
            while let Some((event, seq)) = events.next_if(|(_, seq)| seq <= as_of_seq) {
                history.push_event(event, seq, START_MS);
            }
            assert_eq!(row, &history.row(request, *at_ms));
        }
        assert_eq!(reads.last().unwrap().0, last_seq);
    }
}

#[test]
fn features_are_the_same_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(12);
    let service = Arc::clone(traffic.definitions.service("delay").unwrap());
    let events: Vec<Event> = (0..200)
        .map(|index| traffic.departure(START_MS + index * MINUTE_MS))
        .collect();
    let now_ms = START_MS + 200 * MINUTE_MS;
    let requests: Vec<Vec<Value>> = (0..20).map(|_| traffic.request()).collect();
    let before = {
        let store = open(folder.path());
        store.ingest_events_blocking(events, now_ms).unwrap();
        store.read_rows(&service, &requests, now_ms).unwrap()
    };
    let store = open(folder.path());
    let after = store.read_rows(&service, &requests, now_ms).unwrap();
    assert_eq!(before, after);
    assert_eq!(after[0].as_of_seq, 200);
}

#[test]
fn a_view_that_is_new_is_filled_from_the_event_log() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(13);
    let events: Vec<Event> = (0..300)
        .map(|index| traffic.departure(START_MS + index * MINUTE_MS))
        .collect();
    let now_ms = START_MS + 300 * MINUTE_MS;
    let changed = DEFINITIONS
        .replacen("windows = [\"1h\", \"24h\"]", "version = 2\nwindows = [\"3h\"]", 1)
        .replacen("version = 1", "version = 2", 1)
        .replacen("carrier = \"string\", origin = \"string\", tailnum = \"string?\", departed_at", "gate = \"int?\", carrier = \"string\", origin = \"string\", tailnum = \"string?\", departed_at", 1);
    let changed = Arc::new(Definitions::parse(&changed, "features.toml").unwrap());
    open(folder.path())
        .ingest_events_blocking(events.clone(), now_ms)
        .unwrap();
    let reopened = FeatureStore::open(
        folder.path(),
        Arc::clone(&changed),
        &StoreOptions::default(),
    )
    .unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let fresh =
        FeatureStore::open(fresh.path(), Arc::clone(&changed), &StoreOptions::default()).unwrap();
    let source = changed.source("departures").unwrap();
    let events = events.into_iter().map(|event| {
        let mut values = event.values.into_vec();
        values.insert(1, Value::Null);
        source.event(0, values, now_ms).unwrap()
    });
    fresh
        .ingest_events_blocking(events.collect(), now_ms)
        .unwrap();
    let service = changed.service("delay").unwrap();
    let requests: Vec<Vec<Value>> = (0..20).map(|_| traffic.request()).collect();
    assert_eq!(
        reopened.read_rows(service, &requests, now_ms).unwrap(),
        fresh.read_rows(service, &requests, now_ms).unwrap()
    );
}

#[test]
fn an_event_counts_once_however_often_it_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(14);
    let events: Vec<Event> = (0..100)
        .map(|index| traffic.departure(START_MS + index * MINUTE_MS))
        .collect();
    let now_ms = START_MS + 100 * MINUTE_MS;
    let service = Arc::clone(traffic.definitions.service("delay").unwrap());
    let requests: Vec<Vec<Value>> = (0..20).map(|_| traffic.request()).collect();
    let store = open(folder.path());
    let first = store
        .ingest_events_blocking(events.clone(), now_ms)
        .unwrap();
    assert_eq!((first.accepted, first.duplicates), (100, 0));
    let once = store.read_rows(&service, &requests, now_ms).unwrap();
    // Twice within a batch, and in batches of one group.
    let mut twice = [events.clone(), events.clone()].concat();
    twice.shuffle(&mut traffic.random);
    let duplicates = Arc::new(AtomicU64::new(0));
    for batch in twice.chunks(30) {
        let duplicates = Arc::clone(&duplicates);
        let done = Box::new(move |answer: Result<featurestore::Ingested, _>| {
            duplicates.fetch_add(answer.unwrap().duplicates, Ordering::SeqCst);
        });
        store.submit_events(batch.to_vec(), now_ms, done).unwrap();
    }
    drop(store);
    assert_eq!(duplicates.load(Ordering::SeqCst), 200);
    let store = open(folder.path());
    let last = store.ingest_events_blocking(events, now_ms).unwrap();
    assert_eq!(
        (last.accepted, last.duplicates, last.last_seq),
        (0, 100, 100)
    );
    assert_eq!(store.read_rows(&service, &requests, now_ms).unwrap(), once);
    assert_eq!(store.stats().events, 100);
    assert_eq!(store.stats().duplicate_events, 300);
}

#[test]
fn new_events_that_repeat_in_one_batch_count_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(15);
    let event = traffic.departure(START_MS);
    let store = open(folder.path());
    let ingested = store
        .ingest_events_blocking(vec![event.clone(), event], START_MS)
        .unwrap();
    assert_eq!((ingested.accepted, ingested.duplicates), (1, 1));
}

#[test]
fn a_second_opener_is_refused_and_told_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    let second = FeatureStore::open(folder.path(), definitions(), &StoreOptions::default());
    let Err(error) = second else {
        panic!("opened twice");
    };
    let pid = format!("pid {}", std::process::id());
    assert!(matches!(&error, OpenError::Held { holder, .. } if *holder == pid));
    assert!(error.to_string().contains(&pid), "{error}");
    // The first is unharmed, and the folder is free when it goes.
    let mut traffic = Traffic::new(16);
    store
        .ingest_events_blocking(vec![traffic.departure(START_MS)], START_MS)
        .unwrap();
    drop(store);
    assert_eq!(open(folder.path()).stats().events, 1);
}

#[test]
fn a_full_queue_refuses_and_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        queue_batches_max: 2,
        ..StoreOptions::default()
    };
    let store = FeatureStore::open(folder.path(), definitions(), &options).unwrap();
    let mut traffic = Traffic::new(17);
    // The writer is held inside the first answer until the queue is full.
    let (release, held) = crossbeam::channel::bounded::<()>(1);
    let (inside, entered) = crossbeam::channel::bounded::<()>(1);
    let hold = Box::new(move |_| {
        inside.send(()).unwrap();
        held.recv().unwrap();
    });
    store
        .submit_events(vec![traffic.departure(START_MS)], START_MS, hold)
        .unwrap();
    entered.recv().unwrap();
    let mut accepted = HashSet::new();
    let refused = (0..5).find_map(|index| {
        let event = traffic.departure(START_MS + index * MINUTE_MS);
        let done = Box::new(|answer: Result<featurestore::Ingested, _>| {
            answer.unwrap();
        });
        match store.submit_events(vec![event], START_MS, done) {
            Ok(()) => {
                accepted.insert(index);
                None
            }
            Err(Overloaded { retry_after_ms }) => Some(retry_after_ms),
        }
    });
    assert!(refused.unwrap() > 0);
    assert_eq!(accepted.len(), 2);
    release.send(()).unwrap();
    drop(store);
    assert_eq!(open(folder.path()).stats().events, 3);
}

#[test]
fn a_log_cut_behind_the_high_water_mark_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(18);
    drop(open(folder.path()));
    let online = folder.path().join("online");
    let copy = folder.path().join("copy");
    copy_folder(&online, &copy);
    let store = open(folder.path());
    store
        .ingest_events_blocking(vec![traffic.departure(START_MS)], START_MS)
        .unwrap();
    drop(store);
    std::fs::remove_dir_all(&online).unwrap();
    std::fs::rename(&copy, &online).unwrap();
    let cut = FeatureStore::open(folder.path(), definitions(), &StoreOptions::default());
    let Err(error) = cut else {
        panic!("opened a cut log");
    };
    assert!(
        matches!(
            error,
            OpenError::Cut {
                acked: 1,
                found: 0,
                ..
            }
        ),
        "{error}"
    );
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn sketches_read_online_equal_a_recomputation_with_few_states_in_memory() {
    let text = format!(
        "{DEFINITIONS}\n
[[view]]
name = \"spread\"
source = \"departures\"
keys = [\"origin\"]
windows = [\"1h\", \"1d\", \"2h tumbling\"]
where = {{ field = \"carrier\", in = [\"AA\", \"UA\"] }}
features = [
  {{ min = \"delay\" }}, {{ max = \"delay\" }}, {{ std = \"delay\" }}, {{ first = \"delay\" }},
  {{ distinct = \"tailnum\" }}, {{ quantile = {{ field = \"delay\", q = [0.5, 0.9] }} }},
  {{ decayed_count = {{ half_life = \"10m\" }} }}, {{ decayed_mean = {{ field = \"delay\", half_life = \"1h\" }} }},
]

[[service]]
name = \"spread\"
version = 1
request = {{ origin = \"string\" }}
features = [{{ view = \"spread\" }}]
"
    );
    let definitions = Arc::new(Definitions::parse(&text, "features.toml").unwrap());
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        cached_states_max: 2,
        hot_states_bytes: 16 << 10,
        ..StoreOptions::default()
    };
    let open = || FeatureStore::open(folder.path(), Arc::clone(&definitions), &options).unwrap();
    let mut traffic = Traffic::new(13);
    traffic.definitions = Arc::clone(&definitions);
    let service = Arc::clone(definitions.service("spread").unwrap());
    let mut history = PointInTime::new(&service);
    let mut store = open();
    let mut seq = 0;
    let mut present = 0;
    for round in 0..60 {
        let now_ms = START_MS + round * 40 * MINUTE_MS;
        let mut batch = Vec::new();
        for _ in 0..20 {
            let late_ms = traffic.random.random_range(0..600) * MINUTE_MS;
            batch.push(traffic.departure(now_ms - late_ms));
        }
        for event in &batch {
            seq += 1;
            history.push_event(event, seq, now_ms);
        }
        store.ingest_events_blocking(batch.clone(), now_ms).unwrap();
        if round == 30 {
            drop(store);
            store = open();
        }
        let origins = batch.iter().map(|event| event.values[2].clone());
        let requests: Vec<Vec<Value>> = origins.map(|origin| vec![origin]).collect();
        let rows = store.read_rows(&service, &requests, now_ms).unwrap();
        for (row, request) in rows.iter().zip(&requests) {
            assert_eq!(row, &history.row(request, now_ms));
            present += row.values.iter().filter(|value| !value.is_nan()).count();
        }
    }
    assert!(present > 10_000, "{present}");
}
