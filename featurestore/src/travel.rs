//! Time travel: what a feature was, or would have been, at any past moment.
//!
//! A row *at* one time *known at* another is what the service would have answered then, had it known
//! all that had arrived by the other. One pass over the event log folds the keys asked for and no
//! other, so memory is that of their states; its order does not matter, since a state is a function
//! of the set of events.

use std::ops::ControlFlow;
use std::sync::Arc;

use thiserror::Error;

use crate::definition::ViewKey;
use crate::log::Logged;
use crate::online::{FeatureStore, ReadError};
use crate::refold::Refold;
use crate::service::{FeatureRow, Service};
use crate::value::Value;
use crate::view_rows::{ViewKeys, ViewRows};

/// When a row is asked for, and what is known of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The time of the request
    pub at_ms: i64,
    /// Events that arrived up to here count. Later than `at_ms` it corrects the past by what came
    /// late; earlier it shows what a store that lagged behind would have said.
    pub known_ms: i64,
}

impl Moment {
    /// What was known then of then: what serving saw.
    pub fn at(at_ms: i64) -> Self {
        Self {
            at_ms,
            known_ms: at_ms,
        }
    }

    /// Whether an event counts. One dated ahead of `at_ms` does only if it had arrived by then, as
    /// serving would have seen it: what is known later of later times is not a fact about `at_ms`.
    fn counts(self, logged: &Logged) -> bool {
        let arrived_ms = logged.arrived_ms;
        arrived_ms <= self.known_ms
            && (arrived_ms <= self.at_ms || logged.event.event_ms <= self.at_ms)
    }
}

/// Called with the events read so far, every few thousand; may end the pass.
pub type Watch<'a> = &'a mut dyn FnMut(u64) -> ControlFlow<()>;

/// Why the past could not be told.
#[derive(Debug, Error)]
pub enum TravelError {
    /// The event log could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The watcher ended the pass.
    #[error("ended before the event log was read")]
    Ended,
}

/// Events between two calls of a watcher.
pub(crate) const WATCH_EVENTS: u64 = 4096;

impl FeatureStore {
    /// The rows of some requests (values in the order of `service.request`) at a moment. Their
    /// `as_of_seq` is that of the last event that had arrived.
    pub fn rows_then(
        &self,
        service: &Service,
        requests: &[Vec<Value>],
        moment: Moment,
        watch: Watch<'_>,
    ) -> Result<Vec<FeatureRow>, TravelError> {
        let keys = requests.iter().flat_map(|request| service.keys(request));
        let mut refold = Refold::of_keys(service.needed_views(), keys.flatten());
        let last_seq = self.fold_then(&mut refold, moment, watch)?;
        let rows = requests
            .iter()
            .map(|request| refold.row(service, request, moment.at_ms, last_seq));
        Ok(rows.collect())
    }

    /// The states of so many rows of some views at a moment, as [`FeatureStore::read_views`] gives the
    /// present ones.
    pub fn views_then(
        &self,
        asked: &[ViewKeys<'_>],
        rows: usize,
        moment: Moment,
        watch: Watch<'_>,
    ) -> Result<Vec<ViewRows>, TravelError> {
        let keys = asked
            .iter()
            .flat_map(|keys| (0..rows).map(move |row| keys.key(row)));
        let keys: Vec<Option<ViewKey>> = keys.collect();
        let views = asked.iter().map(|keys| keys.view);
        let mut refold = Refold::of_keys(views, keys.iter().flatten().cloned());
        let last_seq = self.fold_then(&mut refold, moment, watch)?;
        let mut keys = keys.iter();
        let found = asked.iter().map(|asked| {
            let mut of_view = ViewRows::new(asked.view, rows);
            of_view.as_of_seq = last_seq;
            for key in keys.by_ref().take(rows) {
                let state = key.as_ref().and_then(|key| refold.state(key));
                let slot = of_view.add(state.cloned().map(Arc::new));
                of_view.push(slot);
            }
            of_view
        });
        Ok(found.collect())
    }

    /// One pass over the log; the answer is the highest sequence number that had arrived.
    fn fold_then(
        &self,
        refold: &mut Refold,
        moment: Moment,
        watch: Watch<'_>,
    ) -> Result<u64, TravelError> {
        let shared = self.shared();
        let mut last_seq = 0;
        for (events, logged) in (1..).zip(shared.events().from(0)?) {
            let logged = logged?;
            if logged.arrived_ms <= moment.known_ms {
                last_seq = last_seq.max(logged.seq);
            }
            if moment.counts(&logged) {
                refold.push(&logged);
            }
            if events % WATCH_EVENTS == 0 && watch(events).is_break() {
                return Err(TravelError::Ended);
            }
        }
        Ok(last_seq)
    }
}
