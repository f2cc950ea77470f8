//! States of the views that share one list of keys: looked up once, folded side by side.
//!
//! For passes over many events, which fold every view of a source: the views that take their key from
//! the same fields share a lookup. Memory only; the writer's cached states are in `commit::states`.

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;

use crate::definition::View;
use crate::value::Value;
use crate::window::ViewState;

/// A row for each key, a column for each view.
#[derive(Debug, Default)]
pub(crate) struct KeyTable {
    views: Vec<Arc<View>>,
    rows: HashMap<Box<[u8]>, usize, RandomState>,
    /// Row after row.
    states: Vec<ViewState>,
}

impl KeyTable {
    /// Adds a view, before there is any row; its column.
    pub(crate) fn add_view(&mut self, view: &Arc<View>) -> usize {
        self.views.push(Arc::clone(view));
        self.views.len() - 1
    }

    /// The views, by column.
    pub(crate) fn views(&self) -> &[Arc<View>] {
        &self.views
    }

    /// The number of a key's row.
    pub(crate) fn row_of(&self, key: &[u8]) -> Option<usize> {
        self.rows.get(key).copied()
    }

    /// Adds a row with one state for each view; its number.
    pub(crate) fn add_row(&mut self, key: &[u8], states: impl Iterator<Item = ViewState>) -> usize {
        let row = self.rows.len();
        self.rows.insert(key.into(), row);
        self.states.extend(states);
        row
    }

    /// The state of a row and column.
    pub(crate) fn state(&self, row: usize, column: usize) -> &ViewState {
        &self.states[row * self.views.len() + column]
    }

    /// The same, to fold into, and its view.
    pub(crate) fn state_mut(&mut self, row: usize, column: usize) -> (&mut ViewState, &View) {
        let at = row * self.views.len() + column;
        (&mut self.states[at], &self.views[column])
    }

    /// Every state with its view.
    pub(crate) fn states_mut(&mut self) -> impl ExactSizeIterator<Item = (&mut ViewState, &View)> {
        let views = &self.views;
        let column = move |at: usize| &*views[at % views.len()];
        let states = self.states.iter_mut().enumerate();
        states.map(move |(at, state)| (state, column(at)))
    }

    /// The keys with their rows, in no order.
    pub(crate) fn keys(&self) -> impl ExactSizeIterator<Item = (&[u8], usize)> {
        self.rows.iter().map(|(key, &row)| (&**key, row))
    }
}

/// The values' binary forms one after another, in place of what `out` held; `None` where one is null or
/// absent.
pub(crate) fn encode_key<'a>(
    values: impl Iterator<Item = Option<&'a Value>>,
    out: &mut Vec<u8>,
) -> Option<()> {
    out.clear();
    for value in values {
        value.filter(|value| !value.is_null())?.encode(out);
    }
    Some(())
}
