//! Import: large groups are the same events, each once, whatever else is written and whatever is killed.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use featurestore::{
    Event, FeatureStore, HistoryError, ImportRequest, Imported, Progress, StoreOptions, Value,
};
use rand::Rng;

use crate::crash;
use crate::flights::{MINUTE_MS, START_MS, Traffic, definitions, open};

const CHILD: &str = "LOOPGATE_IMPORT_CHILD";
const GROUP: usize = 500;

pub(crate) fn open_in_groups(folder: &Path, events: usize) -> FeatureStore {
    let options = StoreOptions {
        import_group_events: events,
        ..StoreOptions::default()
    };
    FeatureStore::open(folder, definitions(), &options).unwrap()
}

/// So many departures, a minute apart.
fn departures(count: usize, seed: u64) -> Vec<Event> {
    let mut traffic = Traffic::new(seed);
    let minutes = 0..i64::try_from(count).unwrap();
    minutes
        .map(|minute| traffic.departure(START_MS + minute * MINUTE_MS))
        .collect()
}

pub(crate) fn csv(path: &Path, events: &[Event]) {
    let fields = &events[0].source.fields;
    let names: Vec<_> = fields.iter().map(|field| &*field.name).collect();
    let mut text = names.join(",") + "\n";
    for event in events {
        let cell = |value: &Value| match value {
            Value::Null => String::new(),
            Value::String(text) => format!("\"{text}\""),
            value => value.to_json().to_string(),
        };
        let cells: Vec<_> = event.values.iter().map(cell).collect();
        writeln!(text, "{}", cells.join(",")).unwrap();
    }
    std::fs::write(path, text).unwrap();
}

pub(crate) fn import(
    store: &FeatureStore,
    file: &Path,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Imported, HistoryError> {
    let request = ImportRequest {
        source: "departures".to_owned(),
        files: vec![PathBuf::from(file)],
        now_ms: START_MS + 1_000_000 * MINUTE_MS,
    };
    store.import_events(&request, on_progress)
}

/// Rows of many requests at many times hold the same values.
fn assert_same_rows(stores: [&FeatureStore; 2], minutes: i64) {
    let mut traffic = Traffic::new(77);
    let service = traffic.definitions.service("delay").unwrap().clone();
    for _ in 0..200 {
        let minute = traffic.random.random_range(minutes / 2..minutes + 3000);
        let text = |text: &str| Value::String(text.into());
        let carrier = ["AA", "UA", "B6"][traffic.random.random_range(0..3)];
        let origin = ["EWR", "JFK", "LGA"][traffic.random.random_range(0..3)];
        let tail = format!("N{}", traffic.random.random_range(1..9));
        let request = vec![text(carrier), text(origin), text(&tail), Value::Float(9.0)];
        let at_ms = START_MS + minute * MINUTE_MS;
        let rows = stores.map(|store| {
            let rows = store.read_rows(&service, std::slice::from_ref(&request), at_ms);
            rows.unwrap().remove(0)
        });
        assert_eq!(rows[0], rows[1]);
    }
}

#[test]
fn a_large_import_is_the_same_as_its_events_one_after_the_other() {
    let events = departures(2230, 1);
    let (bulk, single) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let file = bulk.path().join("departures.csv");
    csv(&file, &events);
    let store = open_in_groups(bulk.path(), GROUP);
    let mut seen = Vec::new();
    let imported = import(&store, &file, &mut |progress| seen.push(progress)).unwrap();
    let counts = (imported.rows, imported.accepted, imported.duplicates);
    assert_eq!(counts, (2230, 2230, 0));
    let rows: Vec<_> = seen.iter().map(|progress| progress.rows).collect();
    assert_eq!(rows, [500, 1000, 1500, 2000, 2230]);
    let last = seen.last().unwrap();
    assert_eq!(last.bytes, last.bytes_total);
    assert_eq!(last.bytes, std::fs::metadata(&file).unwrap().len());

    let other = open(single.path());
    for events in events.chunks(7) {
        let arrived_ms = events[0].event_ms;
        other
            .ingest_events_blocking(events.to_vec(), arrived_ms)
            .unwrap();
    }
    assert_eq!(store.stats().events, other.stats().events);
    assert_eq!(store.stats().late_events, other.stats().late_events);
    assert_same_rows([&store, &other], 2230);
    drop(store);
    let reopened = open(bulk.path());
    assert_eq!(reopened.stats().last_seq, 2230);
    assert_same_rows([&reopened, &other], 2230);
}

#[test]
fn an_event_counts_once_in_a_file_across_groups_and_beside_live_ones() {
    let events = departures(3000, 2);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("departures.csv");
    // Repeated next to each other, and three groups later.
    let mut rows: Vec<Event> = events.iter().flat_map(|e| [e.clone(), e.clone()]).collect();
    let newest_ms = rows.last().unwrap().event_ms;
    rows.extend(events[100..140].iter().map(|event| {
        let mut again = event.clone();
        again.event_ms = newest_ms;
        again.values[4] = Value::Int(newest_ms);
        again
    }));
    csv(&file, &rows);
    let store = open_in_groups(folder.path(), GROUP);
    let live = &events[2000..2010];
    store
        .ingest_events_blocking(live.to_vec(), START_MS)
        .unwrap();
    let imported = import(&store, &file, &mut |_| {}).unwrap();
    let counts = (imported.rows, imported.accepted, imported.duplicates);
    assert_eq!(counts, (6040, 2990, 3050));
    assert_eq!(store.stats().events, 3000);

    // Live events between two imports are known to the second.
    let more = departures(4000, 2);
    let live = &more[3500..3510];
    store
        .ingest_events_blocking(live.to_vec(), START_MS)
        .unwrap();
    csv(&file, &more);
    let imported = import(&store, &file, &mut |_| {}).unwrap();
    assert_eq!((imported.accepted, imported.duplicates), (990, 3010));
    let again = import(&store, &file, &mut |_| {}).unwrap();
    assert_eq!((again.accepted, again.duplicates), (0, 4000));
    assert_eq!(store.stats().events, 4000);
    assert_eq!(store.stats().last_seq, 4000);
}

#[test]
fn an_import_that_meets_a_bad_row_keeps_what_lies_before_it_and_says_so() {
    let events = departures(1700, 3);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("departures.csv");
    csv(&file, &events);
    let good = std::fs::read_to_string(&file).unwrap();
    let mut lines: Vec<_> = good.lines().map(str::to_owned).collect();
    lines[1201] = lines[1201]
        .replace(",true", ",perhaps")
        .replace(",false", ",perhaps");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let store = open_in_groups(folder.path(), GROUP);
    let error = import(&store, &file, &mut |_| {}).unwrap_err();
    let text = error.to_string();
    for part in [
        "departures.csv",
        "row 1200",
        "`late`",
        "`perhaps`",
        "the 1200 rows before it",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    let HistoryError::Partial { imported, .. } = error else {
        panic!("{text}");
    };
    assert_eq!((imported.rows, store.stats().events), (1200, 1200));
    std::fs::write(&file, good).unwrap();
    let imported = import(&store, &file, &mut |_| {}).unwrap();
    assert_eq!((imported.accepted, imported.duplicates), (500, 1200));
}

#[test]
fn an_import_killed_at_any_moment_leaves_whole_groups_and_can_be_repeated() {
    if let Ok(folder) = std::env::var(CHILD) {
        let store = open_in_groups(Path::new(&folder), GROUP);
        let file = Path::new(&folder).join("departures.csv");
        let told = &mut |progress: Progress| println!("\nrows {}", progress.rows);
        import(&store, &file, told).unwrap();
        return;
    }
    const ROWS: usize = 30_000;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("departures.csv");
    let events = departures(ROWS, 4);
    csv(&file, &events);
    let mut random = Traffic::new(5).random;
    let mut held = 0;
    for cycle in 0..6 {
        let mut child = crash::child(
            "import::an_import_killed_at_any_moment_leaves_whole_groups_and_can_be_repeated",
            (CHILD, folder.path()),
        );
        // What was imported before counts as rows too.
        let groups = held / GROUP + random.random_range(1..7);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix("rows ")?.parse::<usize>().ok());
        let acked = told.take(groups).last().unwrap_or(0);
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open_in_groups(folder.path(), GROUP);
        let found = usize::try_from(store.stats().events).unwrap();
        assert!(
            found >= acked.max(held),
            "cycle {cycle}: {found} of {acked}"
        );
        assert!(found.is_multiple_of(GROUP), "cycle {cycle}: {found}");
        assert_eq!(store.stats().last_seq, found as u64);
        held = found;
    }
    assert!(held > 0, "no group was ever whole");
    let store = open_in_groups(folder.path(), GROUP);
    let imported = import(&store, &file, &mut |_| {}).unwrap();
    assert_eq!(imported.accepted + held as u64, ROWS as u64);
    let other = tempfile::tempdir().unwrap();
    let clean = open(other.path());
    import(&clean, &file, &mut |_| {}).unwrap();
    assert_eq!(store.stats().events, clean.stats().events);
    assert_same_rows([&store, &clean], 30_000);
}

#[test]
fn an_import_of_many_new_keys_finds_those_that_come_again() {
    const KEYS: usize = 11_000;
    let folder = tempfile::tempdir().unwrap();
    let store = open_in_groups(folder.path(), 10_000);
    let mut traffic = Traffic::new(6);
    let mut times = std::collections::HashMap::<usize, i64>::new();
    // Of an aircraft's departures the first one alone is late: the rate says how many it has.
    let mut departure = |number: usize, key: usize| {
        let mut event = traffic.departure(START_MS + number as i64 * 100);
        let seen = times.entry(key).or_default();
        *seen += 1;
        event.values[3] = Value::String(format!("T{key}").into());
        event.values[6] = Value::Bool(*seen == 1);
        event
    };
    let key = |number: usize| number * 7919 % KEYS;
    let first: Vec<_> = (0..20_000).map(|at| departure(at, key(at))).collect();
    let live = departure(20_000, KEYS);
    let second: Vec<_> = (20_001..34_000)
        .map(|at| departure(at, if at % 100 == 0 { KEYS } else { key(at) }))
        .collect();
    let file = folder.path().join("departures.csv");
    csv(&file, &first);
    import(&store, &file, &mut |_| {}).unwrap();
    let arrived_ms = live.event_ms;
    store
        .ingest_events_blocking(vec![live], arrived_ms)
        .unwrap();
    csv(&file, &second);
    let imported = import(&store, &file, &mut |_| {}).unwrap();
    assert_eq!(imported.accepted, 13_999);
    let view = store.definitions().view("aircraft").unwrap();
    let tail = |key| Value::String(format!("T{key}").into());
    let tails: Vec<Value> = (0..=KEYS).map(tail).collect();
    let asked = [featurestore::ViewKeys {
        view,
        columns: vec![&tails],
    }];
    let found = store.read_views(&asked, tails.len()).unwrap();
    let readings = found[0].readings(START_MS + 60 * MINUTE_MS);
    let rate = view.feature("rate_late_24h").unwrap();
    for (key, &slot) in found[0].slots().iter().enumerate() {
        let (value, ..) = readings.value(slot, rate);
        let expected = 1.0 / times[&key] as f64;
        assert_eq!(value, Value::Float(expected), "key {key}");
    }
}
