//! Feature reads: the states of all rows at one cut, from memory where they are hot, else by one batched
//! get that also reads up to which event the tables' states go. A read that may not wait for the disk
//! ends where a block is not in memory.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use super::ReadError;
use super::hot::Found;
use super::keys::{Column, Key};
use super::shared::Shared;
use crate::definition::View;
use crate::service::{FeatureRow, Rows, Service};
use crate::value::Value;
use crate::view_rows::{ViewKeys, ViewRows};
use crate::window::ViewState;

/// How far a read may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Where a state is not in memory, there is no answer.
    Memory,
    /// What is not in memory is read from disk.
    Disk,
}

/// Assembles a row for each request, all of them as of one sequence number; `None` where that is out of
/// reach.
pub(crate) fn rows(
    (shared, reach): (&Shared, Reach),
    service: &Service,
    requests: &[Vec<Value>],
    at_ms: i64,
) -> Result<Option<Vec<FeatureRow>>, ReadError> {
    let views = service.needed_views();
    let mut keys = Keys::new(views, requests.len());
    for request in requests {
        for view in 0..views.len() {
            keys.push(view, |out| service.encode_key(view, request, out));
        }
    }
    let Some((states, as_of_seq)) = Read::new(shared, reach, &keys).states()? else {
        return Ok(None);
    };
    let mut rows = Rows::new(service, requests.len(), at_ms, as_of_seq);
    for (row, request) in requests.iter().enumerate() {
        let places = &keys.places[row * views.len()..];
        rows.push(request, |view| states.get(*places.get(view)?)?.as_deref());
    }
    Ok(Some(rows.finish()))
}

/// The states of some views' rows, all of them as of one sequence number; `None` where that is out of
/// reach.
pub(crate) fn views(
    (shared, reach): (&Shared, Reach),
    asked: &[ViewKeys<'_>],
    rows: usize,
) -> Result<Option<Vec<ViewRows>>, ReadError> {
    let views: Vec<_> = asked.iter().map(|keys| Arc::clone(keys.view)).collect();
    let mut keys = Keys::new(&views, rows);
    for row in 0..rows {
        for (view, asked) in asked.iter().enumerate() {
            keys.push(view, |out| asked.encode(row, out));
        }
    }
    let Some((states, as_of_seq)) = Read::new(shared, reach, &keys).states()? else {
        return Ok(None);
    };
    let mut found: Vec<ViewRows> = views.iter().map(|view| ViewRows::new(view, rows)).collect();
    // Where in its view's rows the state of a key is.
    let mut slots = vec![None; states.len()];
    for places in keys.places.chunks_exact(views.len().max(1)) {
        for (of_view, &place) in found.iter_mut().zip(places) {
            let slot = slots[place].get_or_insert_with(|| of_view.add(states[place].clone()));
            of_view.push(*slot);
        }
    }
    for of_view in &mut found {
        of_view.as_of_seq = as_of_seq;
    }
    Ok(Some(found))
}

/// The keys of the states of each row, one for each view, in one buffer. Rows that follow one another
/// and agree in a view's key share it: the user of five hundred items is one key.
struct Keys<'v> {
    views: &'v [Arc<View>],
    bytes: Vec<u8>,
    /// Where each ends and of which view it is; one of no bytes is that of a null key value, which has
    /// no state.
    ends: Vec<(usize, usize)>,
    /// Which key each view of each row has.
    places: Vec<usize>,
}

impl<'v> Keys<'v> {
    fn new(views: &'v [Arc<View>], rows: usize) -> Self {
        let count = rows * views.len();
        Self {
            views,
            bytes: Vec::with_capacity(count * 32),
            ends: Vec::with_capacity(count),
            places: Vec::with_capacity(count),
        }
    }

    /// Adds the key of the next view of a row. `encode` appends its bytes, or nothing where a key value
    /// is null.
    fn push(&mut self, view: usize, encode: impl FnOnce(&mut Vec<u8>) -> Option<()>) {
        let start = self.bytes.len();
        let _ = encode(&mut self.bytes);
        let before = self.places.len().checked_sub(self.views.len());
        let before = before.map(|row_before| self.places[row_before]);
        if let Some(before) = before
            && self.bytes[self.span(before)] == self.bytes[start..]
        {
            self.bytes.truncate(start);
            self.places.push(before);
            return;
        }
        self.places.push(self.ends.len());
        self.ends.push((self.bytes.len(), view));
    }

    fn span(&self, place: usize) -> Range<usize> {
        let start = place.checked_sub(1).map_or(0, |before| self.ends[before].0);
        start..self.ends[place].0
    }

    fn get(&self, place: usize) -> Option<&[u8]> {
        Some(&self.bytes[self.span(place)]).filter(|key| !key.is_empty())
    }

    fn view(&self, place: usize) -> &View {
        &self.views[self.ends[place].1]
    }
}

/// A read begins anew where states were stored while it went on: once in many thousand events.
enum LookedUp {
    Found(States, u64),
    OutOfReach,
    /// The cut that was read at has moved, or is about to.
    Moved,
}

/// So often a read begins anew at once, then after a pause, and then no more.
const SPINS_MAX: u32 = 16;
const ATTEMPTS_MAX: u32 = 20_000;
/// A large group of an import is shown within some milliseconds after it was stored.
const MOVES_WITHIN: Duration = Duration::from_micros(500);

/// One for each key.
type States = Vec<Option<Arc<ViewState>>>;

struct Read<'a> {
    shared: &'a Shared,
    reach: Reach,
    keys: &'a Keys<'a>,
}

impl<'a> Read<'a> {
    fn new(shared: &'a Shared, reach: Reach, keys: &'a Keys<'a>) -> Self {
        Self {
            shared,
            reach,
            keys,
        }
    }

    /// The states and the cut at which they all are.
    fn states(&self) -> Result<Option<(States, u64)>, ReadError> {
        for attempt in 0..ATTEMPTS_MAX {
            let found = self.look_up();
            match found.inspect_err(|error| self.shared.note_damage(error))? {
                LookedUp::Found(states, cut) => {
                    self.touch(&states);
                    return Ok(Some((states, cut)));
                }
                LookedUp::OutOfReach => return Ok(None),
                LookedUp::Moved if attempt < SPINS_MAX => std::thread::yield_now(),
                LookedUp::Moved if self.reach == Reach::Memory => return Ok(None),
                LookedUp::Moved => std::thread::sleep(MOVES_WITHIN),
            }
        }
        let problem = "states were stored again and again while they were read";
        Err(ReadError::Database(problem.to_owned()))
    }

    fn touch(&self, states: &States) {
        let known = states.iter().enumerate();
        let known = known.filter_map(|(key, state)| Some((self.keys.view(key), state.as_deref()?)));
        ViewState::touch(known);
    }

    fn look_up(&self) -> Result<LookedUp, ReadError> {
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
                    Found::Newer => return Ok(LookedUp::Moved),
                },
            };
            states.push(state);
        }
        self.shared.metrics.states_from_memory.increment(hot);
        if absent.is_empty() {
            return Ok(LookedUp::Found(states, cut));
        }
        Ok(match self.fetch(absent, &mut states)? {
            None => LookedUp::OutOfReach,
            // What was stored later is not what held at the cut.
            Some(stored) if stored > cut => LookedUp::Moved,
            Some(_) => LookedUp::Found(states, cut),
        })
    }

    /// Reads some states from the tables, each once however many rows share it, and keeps them in
    /// memory; the answer is the cut at which they were stored.
    fn fetch(&self, indices: Vec<usize>, states: &mut States) -> Result<Option<u64>, ReadError> {
        let mut wanted: Vec<(usize, &[u8])> = Vec::new();
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut known: HashMap<&[u8], usize> = HashMap::new();
        for index in indices {
            let Some(key) = self.keys.get(index) else {
                continue;
            };
            let place = *known.entry(key).or_insert_with(|| {
                wanted.push((index, key));
                wanted.len() - 1
            });
            places.push((index, place));
        }
        let states_seq = Key::StatesSeq.to_bytes();
        let asked = std::iter::once(&*states_seq).chain(wanted.iter().map(|(_, key)| *key));
        let tables = &self.shared.tables;
        let stored = match self.reach {
            Reach::Disk => tables.get_many(Column::State, asked).map(Some),
            Reach::Memory => tables.get_many_cached(Column::State, asked),
        };
        let Some(stored) = stored.map_err(ReadError::database)? else {
            return Ok(None);
        };
        let mut stored = stored.into_iter();
        let stored_at = match stored.next().flatten() {
            Some(bytes) => bytes.as_ref().try_into().map(u64::from_le_bytes),
            None => Ok(0),
        }
        .map_err(|_| ReadError::Damaged("the number that states were stored at".to_owned()))?;
        let mut fetched = States::with_capacity(wanted.len());
        for (&(index, key), bytes) in wanted.iter().zip(stored) {
            let view = self.keys.view(index);
            let state = bytes.map(|bytes| ViewState::decode(view, &bytes));
            let state = state.transpose().map_err(|error| {
                ReadError::Damaged(format!("a state of view `{}`: {error}", view.name))
            })?;
            let state = state.map(Arc::new);
            self.shared.hot.put(key, state.clone(), stored_at);
            fetched.push(state);
        }
        for (index, place) in places {
            states[index].clone_from(&fetched[place]);
        }
        let metrics = &self.shared.metrics;
        metrics.states_from_table.increment(wanted.len() as u64);
        Ok(Some(stored_at))
    }
}
