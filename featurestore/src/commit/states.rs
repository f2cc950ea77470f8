//! View states under the writer: fetched once, folded in memory, written once per group.
//!
//! Decoded states stay for the next groups in two generations: when the young one is full it becomes
//! the old one, and what the old one held is dropped. Every state in memory equals the one on disk
//! between groups, so nothing is lost by dropping.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use rocksdb::WriteBatch;

use super::{Group, Writer};
use crate::definition::{View, ViewKey};
use crate::event::Event;
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
    /// Keys changed since the last [`States::settle`], all of them in `young`.
    changed: Vec<ViewKey>,
    encoded: Vec<u8>,
}

#[derive(Debug)]
struct Held {
    state: ViewState,
    view: usize,
    /// As counted in `young_bytes`.
    bytes: usize,
    changed: bool,
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
            if held.state.fold(&view, event, seq) == Folded::TooLate {
                folded = Folded::TooLate;
            } else if !held.changed {
                held.changed = true;
                self.changed.push(key);
            }
        }
        Ok(folded)
    }

    /// Adds every changed state to a batch, in the order of their keys: a memtable takes neighbours one
    /// after the other for less.
    pub(crate) fn write(&mut self, tables: &Tables, batch: &mut WriteBatch) {
        self.changed.sort_unstable();
        let mut puts = tables.puts(Column::State);
        for key in &self.changed {
            let held = self.young.get(key).expect("a changed state is young");
            self.encoded.clear();
            held.state.encode(&self.views[held.view], &mut self.encoded);
            puts.add(batch, Key::State(key.as_bytes()), &self.encoded);
        }
    }

    /// Shows every state changed since the last call, then lets go of states not used for long; call
    /// it when the batch is on disk.
    pub(crate) fn settle(&mut self, mut show: impl FnMut(&ViewKey, &ViewState)) {
        for key in self.changed.drain(..) {
            let held = self.young.get_mut(&key).expect("a changed state is young");
            held.changed = false;
            self.young_bytes -= held.bytes;
            held.bytes = held.state.bytes();
            self.young_bytes += held.bytes;
            show(&key, &held.state);
        }
        let bytes_max = self.generation_max * STATE_BYTES;
        if self.young.len() > self.generation_max || self.young_bytes > bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
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
                        state,
                        view,
                        changed: false,
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
    /// Adds what is left of states to the group. A state that the group changes too is put whole, behind
    /// that.
    pub(super) fn expire_states(
        &mut self,
        group: &mut Group,
        expired: &Expired,
    ) -> Result<(), ReadError> {
        let shared = &self.shared;
        let view = &shared.definitions.views[expired.view];
        let mut count = 0;
        if let Some(expiry) = expiry(view, &shared.options) {
            for key in &expired.keys {
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
