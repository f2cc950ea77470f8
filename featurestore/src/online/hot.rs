//! Decoded states in memory: those that the writer has not stored yet, and those that were read lately.
//!
//! A cut is a sequence number: every event up to it is folded, none after. Three rules keep a read at
//! one cut. An entry says since which cut it holds. The writer shows the states that a group changed
//! beside those of before, writes the group, then moves the cut on, and answers last. A reader loads the cut
//! first; it takes what holds at it, and where nothing is kept, what the tables hold, if they were stored at
//! no later cut: a state that changed since then is kept here. It puts what it read unless its shard was
//! stored after that. So every state of a read is the one at its cut, and an acknowledged event is in every
//! later read.
//!
//! What is read lately lies in two generations: when the young one is full it becomes the old one, and what
//! the old one held is dropped. A lookup costs a hash and a shared lock that only a put or the writer holds
//! alone.

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
    /// What the tables lack. As many as the writer leaves unstored.
    unstored: HashMap<Box<[u8]>, Unstored, RandomState>,
    young: Generation,
    old: Generation,
    young_bytes: usize,
    /// The last cut at which a state of this shard was stored.
    stored: u64,
}

struct Entry {
    /// `None`: the tables have none.
    state: Option<Arc<ViewState>>,
    /// The cut from which on it holds.
    since: u64,
}

/// A state that the tables do not have yet.
struct Unstored {
    now: Entry,
    /// What holds until `now` does; `None`: what the tables have.
    before: Option<Entry>,
    /// Whether a reader has had it.
    read: AtomicBool,
}

/// What a lookup found.
pub(crate) enum Found {
    /// The state at the cut; `None` where there is none.
    State(Option<Arc<ViewState>>),
    /// Nothing is kept: the tables know.
    Nothing,
    /// What is kept is newer than the cut, which has moved or soon will.
    Newer,
}

impl HotStates {
    /// Empty, at the cut of the tables; holds about `bytes_max` of what is read.
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
        if let Some(unstored) = shard.unstored.get(key) {
            return unstored.at(cut);
        }
        if let Some(entry) = shard.young.get(key) {
            return entry.at(cut);
        }
        if !shard.old.contains_key(key) {
            return Found::Nothing;
        }
        drop(shard);
        let mut shard = write(self.shard(key));
        // Another reader, or the writer, may have been faster.
        let Some((key, entry)) = shard.old.remove_entry(key) else {
            drop(shard);
            return self.get(key, cut);
        };
        let found = entry.at(cut);
        let dropped = shard.insert(key, entry, self.bytes_max);
        drop(shard);
        drop(dropped);
        found
    }

    /// Keeps what the tables held under `key` when they were stored last, at `stored`, unless they may have
    /// been stored again since.
    pub(crate) fn put(&self, key: &[u8], state: Option<Arc<ViewState>>, stored: u64) {
        let entry = Entry {
            state,
            since: stored,
        };
        if entry.bytes(key) > self.bytes_max {
            return;
        }
        let mut shard = write(self.shard(key));
        let known = shard.unstored.contains_key(key) || shard.young.contains_key(key);
        if shard.stored > stored || known {
            return;
        }
        shard.old.remove(key);
        let dropped = shard.insert(key.into(), entry, self.bytes_max);
        drop(shard);
        drop(dropped);
    }

    /// For the writer: `state` holds under `key` from `cut` on, once that group is on disk.
    pub(crate) fn show(&self, key: &ViewKey, state: Arc<ViewState>, cut: u64) {
        let key = key.as_bytes();
        let now = Entry {
            state: Some(state),
            since: cut,
        };
        let mut shard = write(self.shard(key));
        let dropped = match shard.unstored.get_mut(key) {
            Some(held) => {
                let before = std::mem::replace(&mut held.now, now);
                held.before.replace(before)
            }
            None => {
                let unstored = Unstored {
                    now,
                    before: shard.take(key),
                    read: AtomicBool::new(false),
                };
                shard.unstored.insert(key.into(), unstored);
                None
            }
        };
        drop(shard);
        drop(dropped);
    }

    /// For the writer: the tables hold every state that was shown, and the cut has moved there. Those that
    /// were read stay.
    pub(crate) fn stored(&self, cut: u64) {
        for shard in &self.shards {
            let mut shard = write(shard);
            let unstored = std::mem::take(&mut shard.unstored);
            if !unstored.is_empty() {
                shard.stored = cut;
            }
            for (key, mut held) in unstored {
                if *held.read.get_mut() && held.now.bytes(&key) <= self.bytes_max {
                    shard.insert(key, held.now, self.bytes_max);
                }
            }
        }
    }

    /// For the writer: a state that the tables had was stored anew under `key`, at a cut that it has yet to
    /// move to.
    pub(crate) fn replaced(&self, key: &ViewKey, cut: u64) {
        let key = key.as_bytes();
        let mut shard = write(self.shard(key));
        shard.stored = cut;
        shard.take(key);
    }

    /// For the writer: the tables are at `cut`, and what they hold is to be read again.
    pub(crate) fn forget(&self, cut: u64) {
        for shard in &self.shards {
            // Under one lock: nobody may put back in between what was read before.
            let mut shard = write(shard);
            *shard = Shard {
                stored: cut,
                ..Shard::default()
            };
        }
        self.move_cut(cut);
    }

    /// For the writer: every state of the group that ends with `cut` is shown or replaced, and on disk.
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

    /// Takes out what was kept of the tables.
    fn take(&mut self, key: &[u8]) -> Option<Entry> {
        if let Some(entry) = self.young.remove(key) {
            self.young_bytes -= entry.bytes(key);
            return Some(entry);
        }
        self.old.remove(key)
    }
}

type Generation = HashMap<Box<[u8]>, Entry, RandomState>;

impl Entry {
    /// For a reader.
    fn at(&self, cut: u64) -> Found {
        match self.since <= cut {
            true => Found::State(self.state.clone()),
            false => Found::Newer,
        }
    }

    fn bytes(&self, key: &[u8]) -> usize {
        ENTRY_BYTES + key.len() + self.state.as_ref().map_or(0, |state| state.bytes())
    }
}

impl Unstored {
    /// For a reader.
    fn at(&self, cut: u64) -> Found {
        // Most are set: a line that is not written stays with every reader.
        if !self.read.load(Ordering::Relaxed) {
            self.read.store(true, Ordering::Relaxed);
        }
        match (&self.now, &self.before) {
            (now, _) if now.since <= cut => now.at(cut),
            (_, Some(before)) => before.at(cut),
            (_, None) => Found::Nothing,
        }
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

    fn show(hot: &HotStates, (key, state): &(ViewKey, ViewState), cut: u64) {
        hot.show(key, Arc::new(state.clone()), cut);
    }

    #[test]
    fn a_state_is_found_at_the_cut_that_it_was_stored_at_and_after() {
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
    fn a_shown_state_leaves_the_one_before_to_those_who_read_at_the_cut_before() {
        let hot = HotStates::new(1 << 20, 7);
        let (key, _) = entity(1, 10);
        put(&hot, &entity(1, 10), 7);
        show(&hot, &entity(1, 20), 9);
        assert_eq!(time(&hot, &key, hot.cut()), Some(10));
        hot.move_cut(9);
        assert_eq!(time(&hot, &key, hot.cut()), Some(20));
        show(&hot, &entity(1, 30), 11);
        hot.move_cut(11);
        assert_eq!(time(&hot, &key, 9), Some(20));
        assert!(matches!(hot.get(key.as_bytes(), 7), Found::Newer));
    }

    #[test]
    fn a_state_that_is_first_shown_is_that_of_the_tables_at_the_cut_before() {
        let hot = HotStates::new(1 << 20, 7);
        let (key, _) = entity(1, 10);
        show(&hot, &entity(1, 20), 9);
        assert!(matches!(hot.get(key.as_bytes(), 7), Found::Nothing));
        // What is read there is not kept: it holds no longer than until the next cut.
        put(&hot, &entity(1, 10), 7);
        hot.move_cut(9);
        assert_eq!(time(&hot, &key, 9), Some(20));
    }

    #[test]
    fn what_was_stored_stays_where_it_is_read() {
        let hot = HotStates::new(1 << 20, 7);
        let (read, unread) = (entity(1, 20), entity(2, 20));
        for cut in [8, 9] {
            show(&hot, &read, cut);
            show(&hot, &unread, cut);
            hot.move_cut(cut);
            assert_eq!(time(&hot, &read.0, cut), Some(20));
            hot.stored(cut);
            assert_eq!(time(&hot, &read.0, cut), Some(20));
            assert!(matches!(hot.get(unread.0.as_bytes(), cut), Found::Nothing));
        }
    }

    #[test]
    fn a_state_that_was_read_before_others_were_stored_is_not_kept() {
        let hot = HotStates::new(1 << 20, 7);
        let one = entity(1, 20);
        show(&hot, &one, 9);
        hot.move_cut(9);
        hot.stored(9);
        put(&hot, &entity(1, 10), 7);
        assert!(matches!(hot.get(one.0.as_bytes(), 9), Found::Nothing));
        put(&hot, &one, 9);
        assert_eq!(time(&hot, &one.0, 9), Some(20));
        hot.replaced(&one.0, 12);
        hot.move_cut(12);
        put(&hot, &one, 9);
        assert!(matches!(hot.get(one.0.as_bytes(), 12), Found::Nothing));
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
