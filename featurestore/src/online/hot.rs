//! States that were read lately, decoded and in memory: a warm read asks no table.
//!
//! A cut is a sequence number: every event up to it is folded, none after. Three rules keep a read at
//! one cut. An entry says since which cut it holds. The writer, once its group is on disk and before it
//! answers, replaces or drops the entries of the states that the group changed, marks their shards, and only
//! then moves the cut on. A reader loads the cut first; it takes an entry that holds at that cut, and
//! puts one only into a shard that was not marked after the cut that its state was read at. So an entry
//! that holds at a cut is the state at that cut, and an acknowledged event is in every later read.
//!
//! Two generations: when the young one is full it becomes the old one, and what the old one held is
//! dropped. A lookup costs a hash and a shared lock that only a put or the writer holds alone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use ahash::RandomState;

use crate::definition::ViewKey;
use crate::window::ViewState;

/// A power of two: enough that a writer is rarely where a reader is.
const SHARDS: usize = 64;
/// What an entry takes beside its key and state, in bytes (estimated).
const ENTRY_BYTES: usize = 96;

/// The states.
pub(crate) struct HotStates {
    /// By the bytes of the key. Locks, since every serving thread reads and puts.
    shards: Box<[RwLock<Shard>]>,
    /// The last group that is in every entry.
    cut: AtomicU64,
    /// Of one generation of one shard.
    bytes_max: usize,
}

#[derive(Default)]
struct Shard {
    young: Generation,
    old: Generation,
    young_bytes: usize,
    /// The last cut at which a state of this shard changed, kept here or not.
    changed: u64,
}

struct Entry {
    /// `None`: the tables have none.
    state: Option<Arc<ViewState>>,
    /// The cut from which on it holds.
    since: u64,
    /// Whether a reader has had it.
    read: AtomicBool,
}

/// What a lookup found.
pub(crate) enum Found {
    /// The state at the cut; `None` where there is none.
    State(Option<Arc<ViewState>>),
    /// Nothing is kept.
    Nothing,
    /// What is kept is newer than the cut: a group is being published.
    Newer,
}

impl HotStates {
    /// Empty, at the cut of the tables; holds about `bytes_max`.
    pub(crate) fn new(bytes_max: usize, cut: u64) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            cut: AtomicU64::new(cut),
            bytes_max: bytes_max / SHARDS / 2,
        }
    }

    /// The cut to read at.
    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Acquire)
    }

    /// The state under `key` at a cut that `cut` gave.
    pub(crate) fn get(&self, key: &[u8], cut: u64) -> Found {
        let shard = read(self.shard(key));
        if let Some(entry) = shard.young.get(key) {
            return entry.at(cut);
        }
        if !shard.old.contains_key(key) {
            return Found::Nothing;
        }
        drop(shard);
        let mut shard = write(self.shard(key));
        // Another reader may have been faster.
        let Some((key, entry)) = shard.old.remove_entry(key) else {
            return shard
                .young
                .get(key)
                .map_or(Found::Nothing, |entry| entry.at(cut));
        };
        let found = entry.at(cut);
        let dropped = shard.insert(key, entry, self.bytes_max);
        drop(shard);
        drop(dropped);
        found
    }

    /// Keeps what the tables held under `key` at `cut`, unless it may have changed since.
    pub(crate) fn put(&self, key: &[u8], state: Option<Arc<ViewState>>, cut: u64) {
        let entry = Entry {
            state,
            since: cut,
            read: AtomicBool::new(true),
        };
        if entry.bytes(key) > self.bytes_max {
            return;
        }
        let mut shard = write(self.shard(key));
        if shard.changed > cut || shard.young.contains_key(key) {
            return;
        }
        shard.old.remove(key);
        let dropped = shard.insert(key.into(), entry, self.bytes_max);
        drop(shard);
        drop(dropped);
    }

    /// For the writer: `state` is on disk under `key` as of the group that ends with `cut`. An entry that
    /// nobody has read since it was last replaced goes instead: a copy would cost, and be of no use.
    pub(crate) fn replace(&self, key: &ViewKey, state: &ViewState, cut: u64) {
        let key = key.as_bytes();
        let mut shard = write(self.shard(key));
        shard.changed = cut;
        let entry = || Entry {
            state: Some(Arc::new(state.clone())),
            since: cut,
            read: AtomicBool::new(false),
        };
        if let Some(held) = shard.young.get_mut(key) {
            let before = held.bytes(key);
            let mut after = 0;
            if *held.read.get_mut() {
                *held = entry();
                after = held.bytes(key);
            } else {
                shard.young.remove(key);
            }
            // What grew counts at the next put.
            shard.young_bytes = shard.young_bytes - before + after;
        } else if let Some(held) = shard.old.get_mut(key) {
            if *held.read.get_mut() {
                *held = entry();
            } else {
                shard.old.remove(key);
            }
        }
    }

    /// For the writer: the tables are at `cut`, and what they hold is to be read again.
    pub(crate) fn forget(&self, cut: u64) {
        for shard in &self.shards {
            // Under one lock: nobody may put back in between what was read before.
            let mut shard = write(shard);
            *shard = Shard {
                changed: cut,
                ..Shard::default()
            };
        }
        self.move_cut(cut);
    }

    /// For the writer: every state of the group that ends with `cut` has been replaced.
    pub(crate) fn move_cut(&self, cut: u64) {
        self.cut.store(cut, Ordering::Release);
    }

    fn shard(&self, key: &[u8]) -> &RwLock<Shard> {
        &self.shards[shard_of(key)]
    }
}

impl Shard {
    /// Adds to the young generation; returns the generation that had to go, to be dropped without the
    /// lock.
    fn insert(&mut self, key: Box<[u8]>, entry: Entry, bytes_max: usize) -> Option<Generation> {
        let bytes = entry.bytes(&key);
        let full = self.young_bytes + bytes > bytes_max;
        let dropped = full.then(|| {
            self.young_bytes = 0;
            std::mem::replace(&mut self.old, std::mem::take(&mut self.young))
        });
        self.young_bytes += bytes;
        self.young.insert(key, entry);
        dropped
    }
}

type Generation = HashMap<Box<[u8]>, Entry, RandomState>;

impl Entry {
    /// For a reader.
    fn at(&self, cut: u64) -> Found {
        // Most are set: a line that is not written stays with every reader.
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
        match self.since <= cut {
            true => Found::State(self.state.clone()),
            false => Found::Newer,
        }
    }

    fn bytes(&self, key: &[u8]) -> usize {
        ENTRY_BYTES + key.len() + self.state.as_ref().map_or(0, |state| state.bytes())
    }
}

/// By the ends of the key: the view's id is random bits, the last key value tells entities apart. Keys
/// that are made to meet share a lock and its part of the memory, no more.
fn shard_of(key: &[u8]) -> usize {
    let mut mixed = 0;
    for end in [key.first_chunk::<8>(), key.last_chunk::<8>()] {
        // The last byte is the lowest, so that the product carries it into the bits that are taken.
        mixed ^= end.map_or(0, |end| u64::from_be_bytes(*end));
        mixed = mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    (mixed >> 32) as usize % SHARDS
}

/// A panicking thread leaves a shard whole: every change is one insert or assignment.
fn read(shard: &RwLock<Shard>) -> RwLockReadGuard<'_, Shard> {
    shard.read().unwrap_or_else(PoisonError::into_inner)
}

fn write(shard: &RwLock<Shard>) -> RwLockWriteGuard<'_, Shard> {
    shard.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::Definitions;
    use crate::value::Value;

    const DEFINITIONS: &str = "[[source]]\nname = \"s\"\ntime = \"at\"\nid = [\"key\"]\n\
        fields = { key = \"int\", at = \"time\" }\n\n\
        [[view]]\nname = \"v\"\nsource = \"s\"\nkeys = [\"key\"]\nfeatures = [{ age_of_last = true }]\n";

    /// The key of an entity and its state after an event at `at_ms`.
    fn entity(number: i64, at_ms: i64) -> (ViewKey, ViewState) {
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let view = definitions.view("v").unwrap();
        let values = vec![Value::Int(number), Value::Int(at_ms)];
        let event = view.source.event(0, values, at_ms).unwrap();
        let mut state = ViewState::default();
        state.fold(view, &event, 1);
        (view.key_of(&event).unwrap(), state)
    }

    /// The time of the state found: `None` where nothing is kept or it is too new.
    fn time(hot: &HotStates, key: &ViewKey, cut: u64) -> Option<i64> {
        match hot.get(key.as_bytes(), cut) {
            Found::State(state) => state?.newest_ms(),
            Found::Nothing | Found::Newer => None,
        }
    }

    fn put(hot: &HotStates, (key, state): &(ViewKey, ViewState), cut: u64) {
        hot.put(key.as_bytes(), Some(Arc::new(state.clone())), cut);
    }

    #[test]
    fn a_state_is_found_at_the_cut_that_it_was_read_at_and_after() {
        let hot = HotStates::new(1 << 20, 7);
        let one = entity(1, 10);
        put(&hot, &one, 7);
        assert_eq!(hot.cut(), 7);
        assert_eq!(time(&hot, &one.0, 7), Some(10));
        assert!(matches!(hot.get(one.0.as_bytes(), 6), Found::Newer));
        let (other, _) = entity(2, 10);
        assert!(matches!(hot.get(other.as_bytes(), 7), Found::Nothing));
        hot.put(other.as_bytes(), None, 7);
        assert!(matches!(hot.get(other.as_bytes(), 7), Found::State(None)));
    }

    #[test]
    fn a_replaced_state_is_new_to_those_who_read_at_the_cut_before() {
        let hot = HotStates::new(1 << 20, 7);
        let (key, later) = entity(1, 20);
        put(&hot, &entity(1, 10), 7);
        hot.replace(&key, &later, 9);
        assert!(matches!(hot.get(key.as_bytes(), hot.cut()), Found::Newer));
        hot.move_cut(9);
        assert_eq!(time(&hot, &key, hot.cut()), Some(20));
    }

    #[test]
    fn a_state_that_nobody_reads_is_not_copied_again() {
        let hot = HotStates::new(1 << 20, 7);
        let (key, later) = entity(1, 20);
        put(&hot, &entity(1, 10), 7);
        for (cut, read) in [(8, true), (9, true), (10, false)] {
            hot.replace(&key, &later, cut);
            hot.move_cut(cut);
            if read {
                assert_eq!(time(&hot, &key, cut), Some(20), "cut {cut}");
            }
        }
        hot.replace(&key, &later, 11);
        hot.move_cut(11);
        assert!(matches!(hot.get(key.as_bytes(), 11), Found::Nothing));
        put(&hot, &(key.clone(), later), 11);
        assert_eq!(time(&hot, &key, 11), Some(20));
    }

    #[test]
    fn a_state_that_was_read_before_a_group_is_not_kept_after_it() {
        let hot = HotStates::new(1 << 20, 7);
        let (key, later) = entity(1, 20);
        // Nothing is kept under the key: the group leaves its mark all the same.
        hot.replace(&key, &later, 9);
        put(&hot, &entity(1, 10), 7);
        hot.move_cut(9);
        assert!(matches!(hot.get(key.as_bytes(), 9), Found::Nothing));
        put(&hot, &(key.clone(), later), 9);
        assert_eq!(time(&hot, &key, 9), Some(20));
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_read() {
        let bytes_max = 1 << 20;
        let hot = HotStates::new(bytes_max, 1);
        let read = entity(0, 5);
        put(&hot, &read, 1);
        for number in 1..20_000 {
            put(&hot, &entity(number, 5), 1);
            assert_eq!(time(&hot, &read.0, 1), Some(5), "after {number} others");
        }
        let held = |generation: &Generation| -> usize {
            let bytes = generation.iter().map(|(key, entry)| entry.bytes(key));
            bytes.sum()
        };
        let shards = hot.shards.iter().map(|shard| {
            let shard = super::read(shard);
            assert_eq!(held(&shard.young), shard.young_bytes);
            held(&shard.young) + held(&shard.old)
        });
        let bytes: usize = shards.sum();
        assert!((bytes_max / 4..=bytes_max).contains(&bytes), "{bytes}");
    }

    #[test]
    fn without_memory_nothing_is_kept() {
        let hot = HotStates::new(0, 1);
        let one = entity(1, 5);
        put(&hot, &one, 1);
        assert!(matches!(hot.get(one.0.as_bytes(), 1), Found::Nothing));
    }
}
