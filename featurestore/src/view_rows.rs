//! Views read by themselves, without a service: what is asked of each, and its states by row.
//!
//! Rows that agree in a view's key share one state, and one reading of it: its windows are found once
//! for all of its features. Nothing is copied out of a state until a feature is asked for.

use std::borrow::Cow;
use std::sync::Arc;

use crate::definition::{View, ViewKey};
use crate::value::Value;
use crate::window::{Reading, Status, ViewState};

/// The rows that are asked of one view.
#[derive(Clone, Debug)]
pub struct ViewKeys<'a> {
    /// The view
    pub view: &'a Arc<View>,
    /// A column of values for each of its keys, in their order
    pub columns: Vec<&'a [Value]>,
}

impl ViewKeys<'_> {
    /// Appends the bytes of a row's key; nothing where a value is null or not there.
    pub(crate) fn encode(&self, row: usize, out: &mut Vec<u8>) -> Option<()> {
        if self.columns.len() != self.view.keys.len() {
            return None;
        }
        let values = self.columns.iter().map(|column| column.get(row));
        self.view.encode_key(values, out)
    }

    /// A row's key; `None` where a value is null or not there.
    pub(crate) fn key(&self, row: usize) -> Option<ViewKey> {
        if self.columns.len() != self.view.keys.len() {
            return None;
        }
        self.view
            .key_from(self.columns.iter().map(|column| column.get(row)))
    }
}

/// The states of a view's rows.
#[derive(Debug)]
pub struct ViewRows {
    view: Arc<View>,
    states: Vec<Option<Arc<ViewState>>>,
    /// Which state each row has
    slots: Vec<usize>,
    /// Every event up to this sequence number had been folded, and none after
    pub as_of_seq: u64,
}

impl ViewRows {
    pub(crate) fn new(view: &Arc<View>, rows: usize) -> Self {
        Self {
            view: Arc::clone(view),
            states: Vec::new(),
            slots: Vec::with_capacity(rows),
            as_of_seq: 0,
        }
    }

    /// Takes a state and gives its slot.
    pub(crate) fn add(&mut self, state: Option<Arc<ViewState>>) -> usize {
        self.states.push(state);
        self.states.len() - 1
    }

    /// Says which state the next row has.
    pub(crate) fn push(&mut self, slot: usize) {
        self.slots.push(slot);
    }

    /// For each row the slot of its state.
    pub fn slots(&self) -> &[usize] {
        &self.slots
    }

    /// The states at a time.
    pub fn readings(&self, at_ms: i64) -> Readings<'_> {
        self.read(|state| state.reading(&self.view, at_ms))
    }

    /// The same, however old they are: nothing is `OutsideMaxAge`.
    pub fn readings_of_any_age(&self, at_ms: i64) -> Readings<'_> {
        self.read(|state| state.reading(&self.view, at_ms).of_any_age())
    }

    fn read<'a>(&'a self, read: impl Fn(&'a ViewState) -> Reading<'a>) -> Readings<'a> {
        let states = self.states.iter();
        Readings {
            states: states.map(|state| state.as_deref().map(&read)).collect(),
        }
    }
}

/// The states of a view's rows at one time.
pub struct Readings<'a> {
    states: Vec<Option<Reading<'a>>>,
}

impl<'a> Readings<'a> {
    /// One feature, by its index in the view, of every slot in its own type, as `ViewState::value` has
    /// it but borrowed.
    pub fn values(
        &self,
        index: usize,
    ) -> impl ExactSizeIterator<Item = (Cow<'a, Value>, Status, i64)> {
        self.states
            .iter()
            .map(move |state| value(state.as_ref(), index))
    }

    /// One feature of one slot in its own type, as `ViewState::value` gives it.
    pub fn value(&self, slot: usize, index: usize) -> (Value, Status, i64) {
        let state = self.states.get(slot).and_then(Option::as_ref);
        let (value, status, event_ms) = value(state, index);
        (value.into_owned(), status, event_ms)
    }
}

fn value<'a>(state: Option<&Reading<'a>>, index: usize) -> (Cow<'a, Value>, Status, i64) {
    match state {
        Some(reading) => reading.value(index),
        None => (Cow::Owned(Value::Null), Status::NotFound, 0),
    }
}
