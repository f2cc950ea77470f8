//! View states under the writer: fetched once, folded in memory, stored once in a while.
//!
//! A group's changed states are shown to readers (`online::hot`); their tables get all that have changed at
//! once, when they are many or old ([`States::are_many`], `StoreOptions::unstored_events_max`) and at close,
//! with the number of the last event in them. A start folds the log from there ([`States::catch_up`]), so
//! a crash loses no more than that work.
//!
//! Decoded states stay in two generations. What is not stored is in the young one; when that is full, all
//! of it is stored and becomes the old one, and what the old one held is dropped.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use rocksdb::WriteBatch;

use super::{Group, Writer};
use crate::definition::{View, ViewKey};
use crate::event::Event;
use crate::log::EventLog;
use crate::online::ReadError;
use crate::online::expiry::{Expired, expiry};
use crate::online::keys::{Column, Key};
use crate::online::tables::Tables;
use crate::window::{Folded, ViewState};

/// The states that the writer works on.
#[derive(Debug)]
pub(crate) struct States {
    views: Vec<Arc<View>>,
    young: HashMap<ViewKey, Held, RandomState>,
    old: HashMap<ViewKey, Held, RandomState>,
    /// What the states of `young` take; exact when nothing is changed.
    young_bytes: usize,
    generation_max: usize,
    /// Keys changed since the last [`States::show`], all of them in `young`.
    changed: Vec<ViewKey>,
    encoded: Vec<u8>,
}

#[derive(Debug)]
struct Held {
    /// Shared with readers once it is shown: folding makes a copy then.
    state: Arc<ViewState>,
    view: usize,
    /// As counted in `young_bytes`.
    bytes: usize,
    /// Since it was last shown.
    changed: bool,
    /// As the table has it.
    stored: bool,
}

/// States are larger than this with many windows and measures or sketches; fewer of them are kept then.
const STATE_BYTES: usize = 8 << 10;

impl States {
    /// For these views; keeps about `states_max` decoded states between groups, fewer where they take
    /// more than 8 KiB each.
    pub(crate) fn new(views: Vec<Arc<View>>, states_max: usize) -> Self {
        Self {
            views,
            young: HashMap::default(),
            old: HashMap::default(),
            young_bytes: 0,
            generation_max: states_max / 2,
            changed: Vec::new(),
            encoded: Vec::new(),
        }
    }

    /// Folds an event into every view that takes it. `TooLate` where it came too late for one of them or
    /// for its source.
    pub(crate) fn fold(
        &mut self,
        tables: &Tables,
        event: &Event,
        seq: u64,
        arrived_ms: i64,
    ) -> Result<Folded, ReadError> {
        if event.is_too_late(arrived_ms) {
            return Ok(Folded::TooLate);
        }
        let mut folded = Folded::Applied;
        for index in 0..self.views.len() {
            let view = Arc::clone(&self.views[index]);
            let Some(key) = view.key_of(event) else {
                continue;
            };
            let held = self.held(tables, index, &key)?;
            let state = Arc::make_mut(&mut held.state);
            if state.fold(&view, event, seq) == Folded::TooLate {
                folded = Folded::TooLate;
            } else if !held.changed {
                (held.changed, held.stored) = (true, false);
                self.changed.push(key);
            }
        }
        Ok(folded)
    }

    /// Folds the events that the stored states lack, up to the end of the log at `last_seq`, and stores them.
    pub(crate) fn catch_up(
        &mut self,
        tables: &Tables,
        log: EventLog<'_>,
        last_seq: u64,
    ) -> Result<(), ReadError> {
        let stored_seq = tables.get_number(Key::StatesSeq);
        let stored_seq = stored_seq.map_err(ReadError::database)?.unwrap_or(0);
        if stored_seq == last_seq {
            return Ok(());
        }
        for logged in log.kept_from(stored_seq + 1)? {
            let logged = logged?;
            self.fold(tables, &logged.event, logged.seq, logged.arrived_ms)?;
        }
        tracing::info!(
            events = last_seq - stored_seq,
            "states caught up with the event log"
        );
        let mut batch = WriteBatch::default();
        self.store(tables, &mut batch, last_seq);
        tables.write_durably(batch).map_err(ReadError::database)?;
        self.show(|_, _| {});
        self.stored();
        Ok(())
    }

    /// Shows every state changed since the last call.
    pub(crate) fn show(&mut self, mut show: impl FnMut(&ViewKey, Arc<ViewState>)) {
        for key in self.changed.drain(..) {
            let held = self.young.get_mut(&key).expect("a changed state is young");
            held.changed = false;
            self.young_bytes -= held.bytes;
            held.bytes = held.state.bytes();
            self.young_bytes += held.bytes;
            show(&key, Arc::clone(&held.state));
        }
    }

    /// Whether more are held than are kept between groups.
    pub(crate) fn are_many(&self) -> bool {
        let bytes_max = self.generation_max * STATE_BYTES;
        self.young.len() > self.generation_max || self.young_bytes > bytes_max
    }

    /// Adds every state that is not stored to a batch, in the order of their keys: a memtable takes
    /// neighbours one after the other for less. `last_seq` is the last event that was folded.
    pub(crate) fn store(&mut self, tables: &Tables, batch: &mut WriteBatch, last_seq: u64) {
        let unstored = self.young.iter().filter(|(_, held)| !held.stored);
        let mut unstored: Vec<_> = unstored.collect();
        unstored.sort_unstable_by_key(|(key, _)| *key);
        let mut puts = tables.puts(Column::State);
        for (key, held) in unstored {
            self.encoded.clear();
            held.state.encode(&self.views[held.view], &mut self.encoded);
            puts.add(batch, Key::State(key.as_bytes()), &self.encoded);
        }
        puts.add(batch, Key::StatesSeq, &last_seq.to_le_bytes());
    }

    /// Lets go of states not used for long; call it when the batch of [`States::store`] is on disk.
    pub(crate) fn stored(&mut self) {
        self.young.values_mut().for_each(|held| held.stored = true);
        if self.are_many() {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
    }

    /// Whether the table has the state under this key as it is.
    fn is_stored(&self, key: &[u8]) -> bool {
        self.young.get(key).is_none_or(|held| held.stored)
    }

    /// States were written past these.
    pub(super) fn forget(&mut self) {
        self.young.clear();
        self.young_bytes = 0;
        self.old.clear();
    }

    fn held(
        &mut self,
        tables: &Tables,
        view: usize,
        key: &ViewKey,
    ) -> Result<&mut Held, ReadError> {
        if !self.young.contains_key(key) {
            let held = match self.old.remove(key) {
                Some(held) => held,
                None => {
                    let state = stored(tables, &self.views[view], key)?;
                    Held {
                        bytes: state.bytes(),
                        state: Arc::new(state),
                        view,
                        changed: false,
                        stored: true,
                    }
                }
            };
            self.young_bytes += held.bytes;
            self.young.insert(key.clone(), held);
        }
        Ok(self.young.get_mut(key).expect("just put there"))
    }
}

impl Writer {
    /// What fails here is done by the next start, or does without.
    pub(super) fn close(&mut self) {
        if self.stored_seq < self.last_seq
            && let Err(error) = self.write(&mut Group::storing())
        {
            tracing::warn!(%error, "states not stored at close");
        }
        if let Err(error) = self.mark.write(self.acked()) {
            tracing::warn!(%error, "high-water mark not written at close");
        }
    }

    /// Adds what is left of states to the group, but for those that were changed and will be stored whole.
    pub(super) fn expire_states(
        &mut self,
        group: &mut Group,
        expired: &Expired,
    ) -> Result<(), ReadError> {
        let shared = &self.shared;
        let view = &shared.definitions.views[expired.view];
        let mut count = 0;
        if let Some(expiry) = expiry(view, &shared.options) {
            for key in expired.keys.iter().filter(|key| self.states.is_stored(key)) {
                let stored = shared.tables.get(Key::State(key));
                let stored = stored.map_err(ReadError::database)?;
                let rest = stored.and_then(|bytes| expiry.rest(view, &bytes, expired.from_ms));
                if let Some(rest) = rest {
                    shared.tables.put(&mut group.batch, Key::State(key), &rest);
                    count += 1;
                }
            }
        }
        // Who asked may have given up.
        let _ = expired.done.try_send(count);
        Ok(())
    }
}

pub(super) fn stored(tables: &Tables, view: &View, key: &ViewKey) -> Result<ViewState, ReadError> {
    let bytes = tables
        .get(Key::State(key.as_bytes()))
        .map_err(ReadError::database)?;
    match bytes {
        Some(bytes) => ViewState::decode(view, &bytes).map_err(|error| {
            ReadError::Damaged(format!("a state of view `{}`: {error}", view.name))
        }),
        None => Ok(ViewState::default()),
    }
}
