//! States folded anew from the event log, beside those that serve: for time travel and verification.
//!
//! Shares `fold` and `assemble` with serving and nothing else: no table, no cache. Costs a map entry for
//! each state, of every key or of those listed.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::definition::{View, ViewKey};
use crate::log::Logged;
use crate::service::{FeatureRow, Service};
use crate::value::Value;
use crate::window::ViewState;

/// What a map entry takes beside key and state, about.
const ENTRY_BYTES: usize = 16;

/// States of some views.
#[derive(Debug)]
pub(crate) struct Refold {
    views: Vec<Arc<View>>,
    /// The keys to fold; `None` is all of them.
    listed: Option<HashSet<ViewKey>>,
    states: HashMap<ViewKey, ViewState>,
    bytes: usize,
}

impl Refold {
    /// Folds every key.
    pub(crate) fn of_all<'a>(views: impl IntoIterator<Item = &'a Arc<View>>) -> Self {
        let mut distinct: Vec<Arc<View>> = Vec::new();
        for view in views {
            if !distinct.iter().any(|known| known.id == view.id) {
                distinct.push(Arc::clone(view));
            }
        }
        Self {
            views: distinct,
            listed: None,
            states: HashMap::new(),
            bytes: 0,
        }
    }

    /// Folds these keys and no other.
    pub(crate) fn of_keys<'a>(
        views: impl IntoIterator<Item = &'a Arc<View>>,
        keys: impl IntoIterator<Item = ViewKey>,
    ) -> Self {
        Self {
            listed: Some(keys.into_iter().collect()),
            ..Self::of_all(views)
        }
    }

    /// An event of the log. The states depend on the set of events pushed, not on their order.
    pub(crate) fn push(&mut self, logged: &Logged) {
        if logged.event.is_too_late(logged.arrived_ms) {
            return;
        }
        for view in &self.views {
            let Some(key) = view.key_of(&logged.event) else {
                continue;
            };
            if self.listed.as_ref().is_some_and(|it| !it.contains(&key)) {
                continue;
            }
            let (key_bytes, held) = (key.as_bytes().len(), self.states.len());
            let state = self.states.entry(key).or_default();
            let before = state.bytes();
            state.fold(view, &logged.event, logged.seq);
            self.bytes = (self.bytes + state.bytes()).saturating_sub(before);
            if self.states.len() > held {
                self.bytes += before + key_bytes + ENTRY_BYTES;
            }
        }
    }

    /// The state of a key, if an event of it was pushed.
    pub(crate) fn state(&self, key: &ViewKey) -> Option<&ViewState> {
        self.states.get(key)
    }

    /// The row of a service, all of whose views and keys are folded.
    pub(crate) fn row(
        &self,
        service: &Service,
        request: &[Value],
        at_ms: i64,
        as_of_seq: u64,
    ) -> FeatureRow {
        let keys = service.keys(request);
        let state = |view: usize| self.state(keys.get(view)?.as_ref()?);
        service.assemble_from(request, state, at_ms, as_of_seq)
    }

    /// What the states take in memory, estimated.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
