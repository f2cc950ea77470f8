//! Point-in-time rows from a stream of events: what a service would have answered then.
//!
//! The caller feeds events in the order in which they became known and asks for rows in between, so
//! that a row holds what had arrived and nothing else. The same `fold`, `read` and `assemble` as online
//! make the values equal to the bit. Views whose keys are the same request fields share one table of
//! keys: an event or a request is looked up once for all of them. Memory grows with the keys seen
//! (about 130 bytes each and view: the newest event's time and kept values are part of every later
//! row, so they stay) and with the tiles that are still read: the caller's [`PointInTime::release`]
//! frees the others.

use std::sync::Arc;

use crate::definition::{Source, View};
use crate::event::Event;
use crate::key_table::{KeyTable, encode_key};
use crate::service::{FeatureRow, Service};
use crate::value::Value;
use crate::window::ViewState;

/// The open states of one service's views.
#[derive(Debug)]
pub struct PointInTime {
    service: Arc<Service>,
    tables: Vec<Table>,
    /// Where the state of each needed view lies.
    places: Vec<Place>,
    routes: Vec<Route>,
    last_seq: u64,
    /// The key that is being looked up.
    key: Vec<u8>,
    /// The rows of `tables` that a request is about.
    rows: Vec<Option<usize>>,
    until_release: usize,
}

/// The states of all views whose key is made of the same fields of the request.
#[derive(Debug)]
struct Table {
    request_fields: Vec<usize>,
    states: KeyTable,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    table: usize,
    column: usize,
}

/// Views of one source in one table that take their key from the same fields of the event.
#[derive(Debug)]
struct Route {
    source: Arc<Source>,
    table: usize,
    key_fields: Vec<usize>,
    columns: Vec<usize>,
}

/// Events between two walks over the states at least; a walk costs a look at each.
const RELEASE_EVENTS_MIN: usize = 1 << 16;

impl PointInTime {
    /// No events yet.
    pub fn new(service: &Arc<Service>) -> Self {
        let mut joined = Self {
            service: Arc::clone(service),
            tables: Vec::new(),
            places: Vec::new(),
            routes: Vec::new(),
            last_seq: 0,
            key: Vec::new(),
            rows: Vec::new(),
            until_release: RELEASE_EVENTS_MIN,
        };
        for (view, fields) in service.views.iter().zip(&service.view_keys) {
            joined.add_view(view, fields);
        }
        joined
    }

    fn add_view(&mut self, view: &Arc<View>, request_fields: &[usize]) {
        let same = |table: &Table| table.request_fields == request_fields;
        let table = self.tables.iter().position(same).unwrap_or_else(|| {
            self.tables.push(Table {
                request_fields: request_fields.to_vec(),
                states: KeyTable::default(),
            });
            self.tables.len() - 1
        });
        let column = self.tables[table].states.add_view(view);
        self.places.push(Place { table, column });
        let same = |route: &&mut Route| {
            route.table == table
                && route.source.name == view.source.name
                && route.key_fields == view.key_fields
        };
        match self.routes.iter_mut().find(same) {
            Some(route) => route.columns.push(column),
            None => self.routes.push(Route {
                source: Arc::clone(&view.source),
                table,
                key_fields: view.key_fields.clone(),
                columns: vec![column],
            }),
        }
    }

    /// An event that has arrived, with its sequence number. Events of sources that the service
    /// does not use and events that came too late only move `as_of_seq`.
    pub fn push_event(&mut self, event: &Event, seq: u64, arrived_ms: i64) {
        self.last_seq = self.last_seq.max(seq);
        self.until_release = self.until_release.saturating_sub(1);
        if event.is_too_late(arrived_ms) {
            return;
        }
        for route in &self.routes {
            if !route.takes(event) {
                continue;
            }
            let values = route.key_fields.iter().map(|&at| event.values.get(at));
            if encode_key(values, &mut self.key).is_none() {
                continue;
            }
            let states = &mut self.tables[route.table].states;
            // Made by the first event that a view folds, not by one that every filter leaves out.
            let mut row = states.row_of(&self.key);
            for &column in &route.columns {
                if states.views()[column].passes(event) {
                    let row = *row.get_or_insert_with(|| {
                        let empty = states.views().iter().map(|_| ViewState::default());
                        let empty: Vec<_> = empty.collect();
                        states.add_row(&self.key, empty.into_iter())
                    });
                    let (state, view) = states.state_mut(row, column);
                    state.fold(view, event, seq);
                }
            }
        }
    }

    /// The row that the service would have answered now, for a request dated `at_ms`.
    pub fn row(&mut self, request: &[Value], at_ms: i64) -> FeatureRow {
        self.rows.clear();
        for table in &self.tables {
            let values = table.request_fields.iter().map(|&at| request.get(at));
            let key = encode_key(values, &mut self.key);
            self.rows
                .push(key.and_then(|()| table.states.row_of(&self.key)));
        }
        let state = |view: usize| {
            let Place { table, column } = *self.places.get(view)?;
            Some(self.tables[table].states.state(self.rows[table]?, column))
        };
        self.service
            .assemble_from(request, state, at_ms, self.last_seq)
    }

    /// [`PointInTime::release`] once in a while: cheap to call for every row.
    pub fn release_in_time(&mut self, at_ms: i64) {
        if self.until_release == 0 {
            self.release(at_ms);
        }
    }

    /// Says that no row before `at_ms` will be asked for, which lets go of the tiles that no later row
    /// reads. Walks over all states.
    pub fn release(&mut self, at_ms: i64) {
        let mut states = 0;
        for table in &mut self.tables {
            let held = table.states.states_mut();
            states += held.len();
            held.for_each(|(state, view)| state.release(view, at_ms));
        }
        self.until_release = RELEASE_EVENTS_MIN.max(states);
    }
}

impl Route {
    fn takes(&self, event: &Event) -> bool {
        Arc::ptr_eq(&self.source, &event.source) || self.source.name == event.source.name
    }
}
