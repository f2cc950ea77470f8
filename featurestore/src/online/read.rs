//! Feature reads: the states of all rows at one cut, from memory where they are hot, else by one batched
//! get that also reads the sequence number that the tables are at.

use std::collections::HashMap;
use std::sync::Arc;

use super::ReadError;
use super::hot::Found;
use super::keys::{Column, Key};
use super::shared::Shared;
use crate::service::{FeatureRow, Service};
use crate::value::Value;
use crate::window::ViewState;

/// Assembles a row for each request, all of them as of one sequence number.
pub(crate) fn rows(
    shared: &Shared,
    service: &Service,
    requests: &[Vec<Value>],
    at_ms: i64,
) -> Result<Vec<FeatureRow>, ReadError> {
    let keys = Keys::of(service, requests);
    let read = Read {
        shared,
        service,
        keys: &keys,
    };
    let (states, as_of_seq) = read.states()?;
    let rows = requests.iter().enumerate().map(|(row, request)| {
        let first = row * keys.views;
        let state = |view: usize| states.get(first + view)?.as_deref();
        service.assemble_from(request, state, at_ms, as_of_seq)
    });
    Ok(rows.collect())
}

/// The keys of the states of each row, one for each needed view, in one buffer.
struct Keys {
    bytes: Vec<u8>,
    /// Where each ends; one of no bytes is that of a null key value, which has no state.
    ends: Vec<usize>,
    views: usize,
}

impl Keys {
    fn of(service: &Service, requests: &[Vec<Value>]) -> Self {
        let views = service.needed_views().len();
        let count = requests.len() * views;
        let mut keys = Self {
            bytes: Vec::with_capacity(count * 32),
            ends: Vec::with_capacity(count),
            views,
        };
        for request in requests {
            for view in 0..views {
                // Where a value is null nothing is appended.
                let _ = service.encode_key(view, request, &mut keys.bytes);
                keys.ends.push(keys.bytes.len());
            }
        }
        keys
    }

    fn get(&self, index: usize) -> Option<&[u8]> {
        let end = *self.ends.get(index)?;
        let start = match index.checked_sub(1) {
            Some(before) => *self.ends.get(before)?,
            None => 0,
        };
        self.bytes.get(start..end).filter(|key| !key.is_empty())
    }
}

/// One for each key.
type States = Vec<Option<Arc<ViewState>>>;

struct Read<'a> {
    shared: &'a Shared,
    service: &'a Service,
    keys: &'a Keys,
}

impl Read<'_> {
    /// The states and the cut at which they all are.
    fn states(&self) -> Result<(States, u64), ReadError> {
        let count = self.keys.ends.len();
        let cut = self.shared.hot.cut();
        let mut states = Vec::with_capacity(count);
        let mut absent = Vec::new();
        let mut hot = 0;
        for index in 0..count {
            let state = match self.keys.get(index) {
                None => None,
                Some(key) => match self.shared.hot.get(key, cut) {
                    Found::State(state) => {
                        hot += 1;
                        state
                    }
                    Found::Nothing => {
                        absent.push(index);
                        None
                    }
                    Found::Newer => return self.fetch_all(),
                },
            };
            states.push(state);
        }
        self.shared.metrics.states_from_memory.increment(hot);
        if absent.is_empty() || self.fetch(absent.into_iter(), &mut states)? == cut {
            return Ok((states, cut));
        }
        // A group came in between: what was in memory is older than what the tables said.
        self.fetch_all()
    }

    fn fetch_all(&self) -> Result<(States, u64), ReadError> {
        let mut states = vec![None; self.keys.ends.len()];
        let cut = self.fetch(0..states.len(), &mut states)?;
        Ok((states, cut))
    }

    /// Reads some states from the tables, each once however many rows share it, and keeps them in
    /// memory; the answer is the cut at which they are.
    fn fetch(
        &self,
        indices: impl Iterator<Item = usize>,
        states: &mut States,
    ) -> Result<u64, ReadError> {
        let mut wanted: Vec<(usize, &[u8])> = Vec::new();
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut known: HashMap<&[u8], usize> = HashMap::new();
        for index in indices {
            let Some(key) = self.keys.get(index) else {
                continue;
            };
            let place = *known.entry(key).or_insert_with(|| {
                wanted.push((index % self.keys.views, key));
                wanted.len() - 1
            });
            places.push((index, place));
        }
        let last_seq = Key::LastSeq.to_bytes();
        let asked = std::iter::once(&*last_seq).chain(wanted.iter().map(|(_, key)| *key));
        let stored = self.shared.tables.get_many(Column::State, asked);
        let mut stored = stored.map_err(ReadError::database)?.into_iter();
        let cut = match stored.next().flatten() {
            Some(bytes) => bytes.as_ref().try_into().map(u64::from_le_bytes),
            None => Ok(0),
        }
        .map_err(|_| ReadError::Damaged("last sequence number".to_owned()))?;
        let mut fetched = States::with_capacity(wanted.len());
        for ((view, key), bytes) in wanted.iter().zip(stored) {
            let view = &self.service.needed_views()[*view];
            let state = bytes.map(|bytes| ViewState::decode(view, &bytes));
            let state = state.transpose().map_err(|error| {
                ReadError::Damaged(format!("a state of view `{}`: {error}", view.name))
            })?;
            let state = state.map(Arc::new);
            self.shared.hot.put(key, state.clone(), cut);
            fetched.push(state);
        }
        for (index, place) in places {
            states[index].clone_from(&fetched[place]);
        }
        let metrics = &self.shared.metrics;
        metrics.states_from_table.increment(wanted.len() as u64);
        Ok(cut)
    }
}
