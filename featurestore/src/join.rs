//! Point-in-time rows from a stream of events: what a service would have answered then.
//!
//! The caller feeds events in (arrival, sequence) order and asks for rows in between, so that a
//! row holds what had arrived and nothing else. The same `fold`, `read` and `assemble` as online
//! make the values equal to the bit. Memory grows with the keys seen, a few hundred bytes each.

use std::collections::HashMap;
use std::sync::Arc;

use crate::definition::ViewKey;
use crate::event::Event;
use crate::service::{FeatureRow, Service};
use crate::value::Value;
use crate::window::ViewState;

/// The open states of one service's views.
#[derive(Debug)]
pub struct PointInTime {
    service: Arc<Service>,
    states: HashMap<ViewKey, ViewState>,
    last_seq: u64,
}

impl PointInTime {
    /// No events yet.
    pub fn new(service: &Arc<Service>) -> Self {
        Self {
            service: Arc::clone(service),
            states: HashMap::new(),
            last_seq: 0,
        }
    }

    /// An event that has arrived, with its sequence number. Events of sources that the service
    /// does not use and events that came too late only move `as_of_seq`.
    pub fn push_event(&mut self, event: &Event, seq: u64, arrived_ms: i64) {
        self.last_seq = self.last_seq.max(seq);
        if event.is_too_late(arrived_ms) {
            return;
        }
        for view in self.service.needed_views() {
            if let Some(key) = view.key_of(event) {
                self.states.entry(key).or_default().fold(view, event, seq);
            }
        }
    }

    /// The row that the service would have answered now, for a request dated `at_ms`.
    pub fn row(&self, request: &[Value], at_ms: i64) -> FeatureRow {
        let states: Vec<_> = self
            .service
            .keys(request)
            .iter()
            .map(|key| self.states.get(key.as_ref()?))
            .collect();
        let state = |view: usize| states.get(view).copied().flatten();
        self.service
            .assemble_from(request, state, at_ms, self.last_seq)
    }
}
