//! How long keys live that no write removes: compaction drops those that are past their life.
//!
//! A prediction goes by its time. A dedupe key goes when its event is older than the `lateness` of its source
//! and a day: a duplicate that comes then is too late to be folded, known or not. Only keys of events that
//! arrived live have that life; imported events arrive at their own time, whenever that is, so their keys
//! stay. And since an import, or a lateness that was made longer, may bring an event for which the key is
//! gone, the stretch of times of which keys may have gone is on disk before the first of them goes: an event
//! in it that has no key is not taken, and counted late.
//!
//! The functions that RocksDB's threads call take no lock and have no state of their own.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};

use rocksdb::compaction_filter::Decision;
use rocksdb::{Options, WriteBatch};

use super::ReadError;
use super::keys::{Column, Key};
use super::tables::{Puts, Tables};
use crate::definition::{Definitions, Source};
use crate::event::Event;
use crate::predictions::index::Scored;

/// What compaction may drop, and the time by which the store knows it.
pub(crate) struct Lives {
    /// Predictions before this time.
    predictions_ms: AtomicI64,
    /// Of each source that forgets keys, or has. Nothing before the store is open.
    sources: OnceLock<Vec<KeyLife>>,
    /// The newest event taken since the store was opened.
    newest_event_ms: AtomicI64,
}

/// The life of one source's dedupe keys.
pub(crate) struct KeyLife {
    source: Box<str>,
    prefix: Box<[u8]>,
    /// `None`: no more keys are forgotten.
    lateness_ms: Option<i64>,
    /// The oldest event whose key may be forgotten.
    from_ms: AtomicI64,
    /// Keys of events before this time may have gone.
    until_ms: AtomicI64,
}

/// Clocks may disagree by so much, that of a request with that of upkeep, and so may a replay's requests.
const MARGIN_MS: i64 = 86_400_000;

impl Default for Lives {
    fn default() -> Self {
        Self {
            predictions_ms: AtomicI64::new(i64::MIN),
            sources: OnceLock::new(),
            newest_event_ms: AtomicI64::new(i64::MIN),
        }
    }
}

impl Lives {
    /// Reads which keys have gone, for the sources of today.
    pub(crate) fn load(tables: &Tables, definitions: &Definitions) -> Result<(), ReadError> {
        let mut sources = Vec::new();
        for source in &definitions.sources {
            let time = |key| tables.get_number(key).map_err(ReadError::database);
            let from_ms = time(Key::Forgettable(&source.name))?;
            let until_ms = time(Key::Forgotten(&source.name))?;
            if source.lateness_ms.is_none() && until_ms.is_none() {
                continue;
            }
            let mut prefix = Vec::new();
            source.put_dedupe_prefix(&mut prefix);
            sources.push(KeyLife {
                source: source.name.clone(),
                prefix: prefix.into(),
                lateness_ms: source.lateness_ms,
                from_ms: AtomicI64::new(from_ms.map_or(i64::MAX, u64::cast_signed)),
                until_ms: AtomicI64::new(until_ms.map_or(i64::MIN, u64::cast_signed)),
            });
        }
        // Loaded once, when the store is opened.
        let _ = tables.lives().sources.set(sources);
        Ok(())
    }

    /// Has compaction of a column family drop what is past its life.
    pub(super) fn filter(self: &Arc<Self>, column: Column, options: &mut Options) {
        let lives = Arc::clone(self);
        let remove = |past: bool| match past {
            true => Decision::Remove,
            false => Decision::Keep,
        };
        match column {
            Column::PredictionIndex => options
                .set_compaction_filter("prediction_ttl", move |_, _, value| {
                    remove(lives.is_old_prediction(value))
                }),
            Column::Dedupe => options.set_compaction_filter("dedupe_life", move |_, key, value| {
                remove(lives.is_forgotten(key, value))
            }),
            _ => {}
        }
    }

    fn is_old_prediction(&self, value: &[u8]) -> bool {
        let before_ms = self.predictions_ms.load(Ordering::Relaxed);
        Scored::time_of(value).is_some_and(|at_ms| at_ms < before_ms)
    }

    fn is_forgotten(&self, key: &[u8], value: &[u8]) -> bool {
        let Some(event_ms) = forgettable_ms(value) else {
            return false;
        };
        let mut sources = self.sources.get().into_iter().flatten();
        let life = sources.find(|life| key.starts_with(&life.prefix));
        life.is_some_and(|life| event_ms < life.until_ms.load(Ordering::Relaxed))
    }

    /// Lets compaction drop predictions before this time; the limit only rises.
    pub(crate) fn drop_predictions_before(&self, at_ms: i64) {
        self.predictions_ms.fetch_max(at_ms, Ordering::Relaxed);
    }

    /// For the writer: an event of that time was taken.
    pub(crate) fn saw_event(&self, event_ms: i64) {
        self.newest_event_ms.fetch_max(event_ms, Ordering::Relaxed);
    }

    /// Notes the oldest event of each source whose keys have a life, before a batch that arrives at
    /// `arrived_ms` is taken: a write for the batch, where its events would be one each.
    pub(crate) fn note_oldest(
        tables: &Tables,
        events: &[Event],
        arrived_ms: i64,
    ) -> Result<(), rocksdb::Error> {
        for life in tables.lives().sources.get().into_iter().flatten() {
            let in_time = events
                .iter()
                .filter(|event| event.source.name == life.source && !event.is_too_late(arrived_ms));
            let oldest_ms = in_time.map(|event| event.event_ms).min();
            if let (Some(oldest_ms), Some(_)) = (oldest_ms, life.lateness_ms) {
                life.note(tables, oldest_ms)?;
            }
        }
        Ok(())
    }

    /// A time before which nothing is read or arrives any more: a day before now, and before the newest
    /// event, so that a clock that is wrong ends no life. Before there was an event, the beginning of time.
    pub(crate) fn past_ms(&self, now_ms: i64) -> i64 {
        let newest_ms = self.newest_event_ms.load(Ordering::Relaxed);
        now_ms.min(newest_ms).saturating_sub(MARGIN_MS)
    }

    /// The life of a source's keys; `None` where all are kept.
    pub(crate) fn of(&self, source: &Source) -> Option<&KeyLife> {
        let mut sources = self.sources.get().into_iter().flatten();
        sources.find(|life| life.source == source.name)
    }

    /// Lets go of the keys of events that no live duplicate can follow from `past_ms` on.
    pub(crate) fn forget(tables: &Tables, past_ms: i64) -> Result<(), rocksdb::Error> {
        for life in tables.lives().sources.get().into_iter().flatten() {
            let Some(lateness_ms) = life.lateness_ms else {
                continue;
            };
            let until_ms = past_ms.saturating_sub(lateness_ms);
            let before_ms = life.until_ms.load(Ordering::Relaxed);
            if until_ms <= before_ms || until_ms <= life.from_ms.load(Ordering::Relaxed) {
                continue;
            }
            let mut batch = WriteBatch::default();
            let key = Key::Forgotten(&life.source);
            tables.put(&mut batch, key, &until_ms.to_le_bytes());
            tables.write_durably(batch)?;
            // After that write, and before any key goes.
            life.until_ms.store(until_ms, Ordering::Release);
        }
        Ok(())
    }
}

impl KeyLife {
    /// Whether an event of that time may have been taken though its key, looked up before, is not there.
    pub(crate) fn may_have_forgotten(&self, event_ms: i64) -> bool {
        let until_ms = self.until_ms.load(Ordering::Acquire);
        (self.from_ms.load(Ordering::Relaxed)..until_ms).contains(&event_ms)
    }

    /// Notes that the key of an event of that time may be forgotten; on disk at once.
    fn note(&self, tables: &Tables, event_ms: i64) -> Result<(), rocksdb::Error> {
        if event_ms < self.from_ms.load(Ordering::Relaxed) {
            let mut batch = WriteBatch::default();
            let key = Key::Forgettable(&self.source);
            tables.put(&mut batch, key, &event_ms.to_le_bytes());
            tables.write_durably(batch)?;
            self.from_ms.store(event_ms, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What the dedupe key of an event is stored with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct KnownEvent {
    seq: u64,
    /// `None` where the key stays.
    event_ms: Option<i64>,
}

impl KnownEvent {
    /// For the writer, when it takes an event. The key may be forgotten by the `life` given, which has
    /// noted the event's time ([`Lives::note_oldest`]).
    pub(crate) fn take(lives: &Lives, (seq, event_ms): (u64, i64), life: Option<&KeyLife>) -> Self {
        lives.saw_event(event_ms);
        let life = life.filter(|life| life.lateness_ms.is_some());
        let event_ms = life.map(|_| event_ms);
        Self { seq, event_ms }
    }

    /// Adds its key to a batch.
    pub(crate) fn put(self, key: &[u8], puts: &mut Puts<'_>, batch: &mut WriteBatch) {
        let seq = self.seq.to_le_bytes();
        match self.event_ms {
            None => puts.add(batch, Key::Dedupe(key), &seq),
            Some(event_ms) => {
                let value = [seq, event_ms.to_le_bytes()].concat();
                puts.add(batch, Key::Dedupe(key), &value);
            }
        }
    }
}

/// The time of the event in a dedupe key's value; `None` where the key stays.
fn forgettable_ms(value: &[u8]) -> Option<i64> {
    let (_, event_ms) = value.split_first_chunk::<8>()?;
    Some(i64::from_le_bytes(event_ms.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::online::{FeatureStore, Ingested, StoreOptions};
    use crate::value::Value;

    const DEFINITIONS: &str = "[[source]]\nname = \"s\"\nlateness = \"2d\"\ntime = \"at\"\nid = [\"id\"]\n\
        fields = { id = \"int\", key = \"int\", at = \"time\" }\n\n\
        [[view]]\nname = \"v\"\nsource = \"s\"\nkeys = [\"key\"]\nwindows = [\"90d\"]\n\
        features = [{ count = true }]\n\n\
        [[service]]\nname = \"f\"\nversion = 1\nrequest = { key = \"int\" }\nfeatures = [{ view = \"v\" }]\n";
    const HOUR_MS: i64 = 3_600_000;
    const DAY_MS: i64 = 24 * HOUR_MS;
    const START_MS: i64 = 1_362_096_000_000;

    fn open(folder: &Path) -> FeatureStore {
        let definitions = Arc::new(Definitions::parse(DEFINITIONS, "features.toml").unwrap());
        FeatureStore::open(folder, definitions, &StoreOptions::default()).unwrap()
    }

    fn event(store: &FeatureStore, id: i64, at_ms: i64) -> Event {
        let source = store.definitions().source("s").unwrap();
        let values = vec![Value::Int(id), Value::Int(id % 3), Value::Int(at_ms)];
        source.event(0, values, at_ms).unwrap()
    }

    fn take(store: &FeatureStore, event: &Event, arrived_ms: i64) -> Ingested {
        let taken = store.ingest_events_blocking(vec![event.clone()], arrived_ms);
        taken.unwrap()
    }

    /// Accepted, known, late.
    fn told(taken: Ingested) -> (u64, u64, u64) {
        (taken.accepted, taken.duplicates, taken.late)
    }

    /// As an import does it: every event arrived at its own time.
    fn import(store: &FeatureStore, events: &[Event]) -> (u64, u64, u64) {
        let (sender, receiver) = crossbeam::channel::bounded(1);
        let done = Box::new(move |taken| sender.send(taken).unwrap());
        store.submit_history(events.to_vec(), done).unwrap();
        told(receiver.recv().unwrap().unwrap())
    }

    fn tend(store: &FeatureStore, now_ms: i64) {
        store.upkeep(now_ms).unwrap();
        store.shared().tables.compact(Column::Dedupe);
    }

    fn is_known(store: &FeatureStore, event: &Event) -> bool {
        let tables = &store.shared().tables;
        tables
            .get(Key::Dedupe(&event.dedupe_key()))
            .unwrap()
            .is_some()
    }

    /// How many events of each key features count.
    fn counts(store: &FeatureStore, at_ms: i64) -> Vec<f32> {
        let service = store.definitions().service("f").unwrap();
        let requests: Vec<_> = (0..3).map(|key| vec![Value::Int(key)]).collect();
        let rows = store.read_rows(service, &requests, at_ms).unwrap();
        let count = |row: &crate::FeatureRow| row.values[0].max(0.0);
        rows.iter().map(count).collect()
    }

    #[test]
    fn a_duplicate_of_an_event_whose_key_is_gone_has_no_effect() {
        let folder = tempfile::tempdir().unwrap();
        let store = open(folder.path());
        let old = event(&store, 3, START_MS);
        assert_eq!(told(take(&store, &old, START_MS + HOUR_MS)), (1, 0, 0));
        let now_ms = START_MS + 10 * DAY_MS;
        let new = event(&store, 4, now_ms);
        assert_eq!(told(take(&store, &new, now_ms + 1)), (1, 0, 0));
        tend(&store, now_ms);
        assert!(!is_known(&store, &old) && is_known(&store, &new));
        assert_eq!(counts(&store, now_ms), [1.0, 1.0, 0.0]);
        // Nor is it logged again: a lateness that is made longer must not find it twice.
        let logged = store.stats().last_seq;
        assert_eq!(told(take(&store, &old, now_ms)), (0, 0, 1));
        assert_eq!(store.stats().last_seq, logged);
        assert_eq!(counts(&store, now_ms), [1.0, 1.0, 0.0]);
    }

    #[test]
    fn an_import_does_not_take_what_may_have_been_taken_live() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(folder.path());
        let live = event(&store, 3, START_MS);
        take(&store, &live, START_MS + HOUR_MS);
        let now_ms = START_MS + 10 * DAY_MS;
        take(&store, &event(&store, 4, now_ms), now_ms + 1);
        tend(&store, now_ms);
        let before = [event(&store, 6, START_MS - DAY_MS)];
        let between = [live, event(&store, 9, START_MS + DAY_MS)];
        for _ in 0..2 {
            assert_eq!(import(&store, &between), (0, 0, 2));
            drop(store);
            store = open(folder.path());
        }
        assert_eq!(import(&store, &before), (1, 0, 0));
        tend(&store, now_ms + 30 * DAY_MS);
        assert_eq!(import(&store, &before), (0, 1, 0));
        assert_eq!(counts(&store, now_ms), [2.0, 1.0, 0.0]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(8))]

        /// Whatever is sent how often, and when.
        #[test]
        fn an_event_counts_once_or_never(
            sent in proptest::collection::vec((0i64..40, 0i64..20 * 24, proptest::bool::ANY), 60..90),
        ) {
            let folder = tempfile::tempdir().unwrap();
            let mut store = open(folder.path());
            // An event's time follows from its id; it is sent so many hours later.
            let mut deliveries: Vec<_> = sent
                .iter()
                .map(|&(id, hours, tended)| {
                    let at_ms = START_MS + id * 11 * HOUR_MS;
                    (at_ms + hours * HOUR_MS, event(&store, id, at_ms), tended)
                })
                .collect();
            deliveries.sort_by_key(|(arrived_ms, ..)| *arrived_ms);
            let mut first: BTreeMap<i64, bool> = BTreeMap::new();
            for (arrived_ms, event, tended) in &deliveries {
                take(&store, event, *arrived_ms);
                let Value::Int(id) = event.values[0] else { unreachable!() };
                first.entry(id).or_insert(!event.is_too_late(*arrived_ms));
                if *tended {
                    tend(&store, *arrived_ms);
                }
            }
            let mut expected = vec![0.0; 3];
            for (id, _) in first.iter().filter(|(_, in_time)| **in_time) {
                expected[(id % 3) as usize] += 1.0;
            }
            let end_ms = START_MS + 60 * DAY_MS;
            prop_assert_eq!(&counts(&store, end_ms), &expected);
            // And so it is when all is folded anew from the log.
            let mut batch = WriteBatch::default();
            let view = store.definitions().view("v").unwrap().id;
            store.shared().tables.delete(&mut batch, Key::View(view));
            store.shared().tables.write_durably(batch).unwrap();
            drop(store);
            store = open(folder.path());
            prop_assert_eq!(&counts(&store, end_ms), &expected);
        }
    }
}
