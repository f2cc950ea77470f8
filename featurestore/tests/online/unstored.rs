//! States that were not stored before a crash are folded again: whatever was written since they last were, and
//! whatever definitions the folder was opened with in between, every row is the one recomputed from all events.
//!
//! A backup is what a crash at that moment leaves: it stores nothing before.

use std::path::Path;
use std::sync::Arc;

use featurestore::{
    Definitions, Event, FeatureStore, PointInTime, RetentionOptions, StoreOptions, TableOptions,
    Value,
};
use rand::Rng;

use crate::flights::{DEFINITIONS, MINUTE_MS, START_MS, Traffic, definitions};
use crate::import::{csv, import};
use crate::workload::scratch;

/// Events of a bulk group.
const GROUP: usize = 10;

fn open(folder: &Path, definitions: &Arc<Definitions>, unstored_events_max: u64) -> FeatureStore {
    let options = StoreOptions {
        unstored_events_max,
        import_group_events: GROUP,
        retention: RetentionOptions {
            event_log_ms: Some(0),
            ..RetentionOptions::default()
        },
        tables: TableOptions {
            write_buffers_bytes: 4 << 20,
            ..TableOptions::default()
        },
        ..StoreOptions::default()
    };
    FeatureStore::open(folder, Arc::clone(definitions), &options).unwrap()
}

/// The usual definitions without the view `origin`.
fn fewer_views() -> Arc<Definitions> {
    let (before, rest) = DEFINITIONS
        .split_once("[[view]]\nname = \"origin\"")
        .unwrap();
    let (_, after) = rest.split_once("\n\n").unwrap();
    let text = format!("{before}{after}")
        .replace("  { view = \"origin\" },\n", "")
        .replace("version = 1", "version = 2");
    Arc::new(Definitions::parse(&text, "features.toml").unwrap())
}

/// What was written, and what is asked about it.
struct History {
    traffic: Traffic,
    events: Vec<Event>,
    now_ms: i64,
}

impl History {
    /// Some departures, most of them lately.
    fn batch(&mut self, count: usize) -> Vec<Event> {
        self.now_ms += self.traffic.random.random_range(0..90) * MINUTE_MS;
        let event = |_| {
            let ago = self.traffic.random.random_range(0i64..40).pow(2) * MINUTE_MS;
            self.traffic.departure(self.now_ms - ago)
        };
        let batch: Vec<Event> = (0..count).map(event).collect();
        self.events.extend_from_slice(&batch);
        batch
    }

    fn ingest(&mut self, store: &FeatureStore) {
        let count = self.traffic.random.random_range(1..8);
        let batch = self.batch(count);
        let now_ms = self.now_ms;
        store.ingest_events_blocking(batch, now_ms).unwrap();
    }

    fn import(&mut self, store: &FeatureStore) {
        let mut batch = self.batch(2 * GROUP);
        batch.sort_by_key(|event| event.event_ms);
        self.events.truncate(self.events.len() - batch.len());
        self.events.extend_from_slice(&batch);
        let file = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
        csv(file.path(), &batch);
        import(store, file.path(), &mut |_| {}).unwrap();
    }

    fn check(&mut self, store: &FeatureStore) {
        let service = Arc::clone(self.traffic.definitions.service("delay").unwrap());
        let mut history = PointInTime::new(&service);
        for (event, seq) in self.events.iter().zip(1..) {
            history.push_event(event, seq, event.event_ms);
        }
        let requests: Vec<Vec<Value>> = (0..10).map(|_| self.traffic.request()).collect();
        let rows = store.read_rows(&service, &requests, self.now_ms).unwrap();
        for (row, request) in rows.iter().zip(&requests) {
            assert_eq!(row, &history.row(request, self.now_ms));
        }
    }
}

#[test]
fn a_crash_between_two_stores_of_states_changes_no_row() {
    for unstored_events_max in [1, 40, 1 << 20] {
        let (folder, copies) = (scratch(), scratch());
        let mut store = open(folder.path(), &definitions(), unstored_events_max);
        let mut history = History {
            traffic: Traffic::new(31 + unstored_events_max),
            events: Vec::new(),
            now_ms: START_MS,
        };
        for step in 0..60 {
            match history.traffic.random.random_range(0..12) {
                0 => history.import(&store),
                1 => drop(store.seal().unwrap()),
                2 => {
                    store.seal().unwrap();
                    store.upkeep(i64::MAX).unwrap();
                }
                3 | 4 => {
                    let copy = copies.path().join(step.to_string());
                    store.backup(&copy).unwrap();
                    if step % 2 == 0 {
                        // Of the views only those that are defined are caught up here.
                        drop(open(&copy, &fewer_views(), unstored_events_max));
                    }
                    store = open(&copy, &definitions(), unstored_events_max);
                }
                _ => history.ingest(&store),
            }
            history.check(&store);
        }
        assert!(history.events.len() > 150, "{}", history.events.len());
    }
}
