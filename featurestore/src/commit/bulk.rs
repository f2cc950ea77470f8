//! A large group of one source's past: table files in place of a write batch.
//!
//! A pair in a memtable costs about a microsecond, one in a sorted file a fraction of it. So the importer
//! sorts by dedupe key and encodes the entries on its own thread; the writer drops what is known, numbers
//! the rest, folds each touched state once read, and takes the files in (`online::bulk`). What a reader,
//! a crash or a repetition sees is as with a group of the ordinary kind.

mod seen;

use std::sync::Arc;

pub(super) use self::seen::Seen;
use self::seen::StoredKeys;
use super::states::stored;
use super::{Group, Writer};
use crate::definition::{Source, View, ViewKey};
use crate::event::Event;
use crate::key_table::{KeyTable, encode_key};
use crate::log::{encode_values_entry, read_entry_values};
use crate::online::bulk::BulkFiles;
use crate::online::keys::{Column, Key};
use crate::online::shared::{Shared, locked};
use crate::online::tables::Tables;
use crate::online::{IngestError, Ingested, ReadError};
use crate::value::Value;
use crate::window::{Folded, ViewState};

/// Called like [`crate::Done`], and gives the events back to the thread that made them.
pub(crate) type BulkDone = Box<dyn FnOnce(Result<(Ingested, Prepared), IngestError>) + Send>;

/// Events of one source that each arrived at their own time, prepared for the writer.
pub(crate) struct Prepared {
    source: Arc<Source>,
    schema: u32,
    event_times: Vec<i64>,
    /// The log entries, one after another, and their ends.
    entries: Vec<u8>,
    entry_ends: Vec<usize>,
    /// The dedupe keys likewise.
    keys: Vec<u8>,
    key_ends: Vec<usize>,
    /// The events in the order of their dedupe keys, the first of equal ones first.
    by_key: Vec<u32>,
}

impl Prepared {
    /// No events; `None` where the database has no schema of the source.
    pub(crate) fn new(shared: &Shared, source: &Arc<Source>) -> Option<Self> {
        Some(Self {
            source: Arc::clone(source),
            schema: shared.schemas.id_of(source)?,
            event_times: Vec::new(),
            entries: Vec::new(),
            entry_ends: Vec::new(),
            keys: Vec::new(),
            key_ends: Vec::new(),
            by_key: Vec::new(),
        })
    }

    /// Adds an event of the source, whose values were checked.
    pub(crate) fn push(&mut self, event_ms: i64, values: &[Value]) {
        let times = (event_ms, event_ms);
        encode_values_entry(self.schema, times, values, &mut self.entries);
        self.entry_ends.push(self.entries.len());
        self.source.put_dedupe_key(values, &mut self.keys);
        self.key_ends.push(self.keys.len());
        self.event_times.push(event_ms);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.event_times.len()
    }

    /// Sorts what was pushed.
    pub(crate) fn sort(&mut self) {
        let count = u32::try_from(self.len()).expect("a group has far fewer than 2^32 events");
        let mut prefix = Vec::new();
        self.source.put_dedupe_prefix(&mut prefix);
        // Most keys differ in the bytes that follow the source's name.
        let head = |index: u32| {
            let mut head = [0; 8];
            let own = &self.key(index)[prefix.len()..];
            let count = own.len().min(head.len());
            head[..count].copy_from_slice(&own[..count]);
            (u64::from_be_bytes(head), index)
        };
        let mut by_key: Vec<(u64, u32)> = (0..count).map(head).collect();
        by_key.sort_unstable_by(|a, b| {
            let whole = || self.key(a.1).cmp(self.key(b.1)).then(a.1.cmp(&b.1));
            a.0.cmp(&b.0).then_with(whole)
        });
        self.by_key = by_key.into_iter().map(|(_, index)| index).collect();
    }

    /// Takes all events out, to be filled again.
    pub(crate) fn clear(&mut self) {
        self.event_times.clear();
        self.entries.clear();
        self.entry_ends.clear();
        self.keys.clear();
        self.key_ends.clear();
    }

    /// The events, in the order in which they were pushed.
    pub(crate) fn events(&self) -> Vec<Event> {
        let event = |index| {
            let mut event = self.no_event();
            self.read(index, &mut event);
            event
        };
        (0..self.len()).map(event).collect()
    }

    /// What it holds in memory, about.
    pub(crate) fn bytes(&self) -> usize {
        const EVENT_BYTES: usize = 32;
        self.entries.len() + self.keys.len() + self.len() * EVENT_BYTES
    }

    /// An event to read others into.
    fn no_event(&self) -> Event {
        Event {
            source: Arc::clone(&self.source),
            event_ms: 0,
            values: vec![Value::Null; self.source.fields.len()].into(),
        }
    }

    /// Reads an event from its entry: kept as they are, a group's events would fill the memory that its
    /// states are folded in.
    fn read(&self, index: usize, event: &mut Event) {
        event.event_ms = self.event_times[index];
        let read = read_entry_values(self.entry(index), &mut event.values);
        read.expect("the entry was encoded here");
    }

    fn key(&self, index: u32) -> &[u8] {
        part(&self.keys, &self.key_ends, index as usize)
    }

    fn entry(&self, index: usize) -> &[u8] {
        part(&self.entries, &self.entry_ends, index)
    }
}

fn part<'a>(bytes: &'a [u8], ends: &[usize], index: usize) -> &'a [u8] {
    let start = index.checked_sub(1).map_or(0, |before| ends[before]);
    &bytes[start..ends[index]]
}

impl Writer {
    /// Writes what the group holds so far, then the prepared one by itself: numbers follow one another.
    pub(super) fn add_bulk(
        &mut self,
        group: &mut Group,
        bulk: Prepared,
        done: BulkDone,
    ) -> Result<(), ReadError> {
        // Its files hold whole states, which are read from the tables and take the place of what is there.
        group.stores = true;
        let written = self.write(group).and_then(|()| {
            self.answer(std::mem::take(group));
            self.write_bulk(&bulk)
        });
        let ingested = match written {
            Ok(ingested) => ingested,
            Err(error) => {
                done(Err(IngestError::of(&error)));
                return Err(error);
            }
        };
        let metrics = &self.shared.metrics;
        metrics.events_accepted.increment(ingested.accepted);
        metrics.events_duplicate.increment(ingested.duplicates);
        (0..ingested.late).for_each(|_| metrics.event_late(&bulk.source.name));
        *locked(&self.shared.counters) = (self.last_seq, self.counters);
        done(Ok((ingested, bulk)));
        Ok(())
    }

    /// Writes a prepared group durably.
    fn write_bulk(&mut self, bulk: &Prepared) -> Result<Ingested, ReadError> {
        let shared = Arc::clone(&self.shared);
        let tables = &shared.tables;
        let mut known = self.seen.known(tables, bulk)?;
        let mut ingested = Ingested {
            duplicates: known.iter().map(|&known| u64::from(known)).sum(),
            ..Ingested::default()
        };
        let first_seq = self.last_seq + 1;
        let life = tables.lives().of(&bulk.source);
        let mut folds = Folds::new(&shared.definitions.views, &bulk.source);
        folds.begin(tables, &mut self.seen)?;
        let mut seqs = vec![0; bulk.len()];
        let mut event = bulk.no_event();
        for index in 0..bulk.len() {
            if known[index] {
                continue;
            }
            bulk.read(index, &mut event);
            if life.is_some_and(|life| life.may_have_forgotten(event.event_ms)) {
                known[index] = true;
                ingested.late += 1;
                continue;
            }
            tables.lives().saw_event(event.event_ms);
            self.last_seq += 1;
            seqs[index] = self.last_seq;
            ingested.accepted += 1;
            if folds.fold(tables, &event, self.last_seq)? == Folded::TooLate {
                ingested.late += 1;
            }
        }
        ingested.last_seq = self.last_seq;
        self.counters.events += ingested.accepted;
        self.counters.duplicate_events += ingested.duplicates;
        self.counters.late_events += ingested.late;
        folds.end(&mut self.seen);
        if self.last_seq < first_seq {
            self.write(&mut Group::default())?;
            return Ok(ingested);
        }
        let changed = folds.changed();
        let files = BulkFiles::start(&shared.data_dir)?;
        write_new(&files, bulk, &known, &seqs)?;
        files.write(Column::State, |pairs| {
            let mut encoded = Vec::new();
            for (key, place) in &changed {
                encoded.clear();
                let (state, view) = folds.state(*place);
                state.encode(view, &mut encoded);
                pairs.put(key.as_bytes(), &encoded)?;
            }
            // Behind every view, so that states and number come into sight together.
            pairs.put(&Key::StatesSeq.to_bytes(), &self.last_seq.to_le_bytes())
        })?;
        files.commit(tables, self.last_seq, &self.counters)?;
        self.states.forget();
        let hot = &shared.hot;
        for (key, _) in &changed {
            hot.replaced(key, self.last_seq);
        }
        hot.move_cut(self.last_seq);
        self.stored_seq = self.last_seq;
        let acked = self.acked();
        self.mark
            .write(acked)
            .map_err(|error| ReadError::io("high-water mark", &error))?;
        Ok(ingested)
    }
}

/// Writes the log entries and dedupe keys of those events of a group that are not known.
fn write_new(
    files: &BulkFiles,
    bulk: &Prepared,
    known: &[bool],
    seqs: &[u64],
) -> Result<(), ReadError> {
    files.write(Column::Events, |pairs| {
        for index in (0..bulk.len()).filter(|&index| !known[index]) {
            pairs.put(&seqs[index].to_be_bytes(), bulk.entry(index))?;
        }
        Ok(())
    })?;
    files.write(Column::Dedupe, |pairs| {
        let by_key = bulk.by_key.iter();
        for &index in by_key.filter(|&&index| !known[index as usize]) {
            pairs.put(bulk.key(index), &seqs[index as usize].to_le_bytes())?;
        }
        Ok(())
    })
}

/// The states that a group changes.
struct Folds {
    tables: Vec<Fold>,
    key: Vec<u8>,
}

/// Views of the source that take their key from the same fields.
struct Fold {
    key_fields: Vec<usize>,
    table: KeyTable,
    /// Of the states of `table`, in its order.
    changed: Vec<bool>,
    stored: StoredKeys,
}

/// Where a state lies: table, row and column.
type Place = (usize, usize, usize);

impl Folds {
    fn new(views: &[Arc<View>], source: &Source) -> Self {
        let mut tables: Vec<Fold> = Vec::new();
        for view in views.iter().filter(|view| view.source.name == source.name) {
            let same = |fold: &&mut Fold| fold.key_fields == view.key_fields;
            let fold = match tables.iter_mut().find(same) {
                Some(fold) => fold,
                None => {
                    tables.push(Fold {
                        key_fields: view.key_fields.clone(),
                        table: KeyTable::default(),
                        changed: Vec::new(),
                        stored: StoredKeys::Unknown,
                    });
                    tables.last_mut().expect("just put there")
                }
            };
            fold.table.add_view(view);
        }
        Self {
            tables,
            key: Vec::new(),
        }
    }

    /// Takes over what is known of the states that the database has.
    fn begin(&mut self, tables: &Tables, seen: &mut Seen) -> Result<(), ReadError> {
        for fold in &mut self.tables {
            fold.stored = seen.stored(tables, fold.table.views())?;
        }
        Ok(())
    }

    /// Gives it back, with the keys of this group.
    fn end(&mut self, seen: &mut Seen) {
        for fold in &mut self.tables {
            let keys = fold.table.keys().map(|(key, _)| key);
            let stored = std::mem::take(&mut fold.stored).and(keys);
            if let (StoredKeys::Among(filter), Some(view)) = (stored, fold.table.views().first()) {
                seen.states.insert(view.id, filter);
            }
        }
    }

    /// Folds an event, which arrived at its own time, into every view that takes it.
    fn fold(&mut self, tables: &Tables, event: &Event, seq: u64) -> Result<Folded, ReadError> {
        if event.is_too_late(event.event_ms) {
            return Ok(Folded::TooLate);
        }
        let mut folded = Folded::Applied;
        for fold in &mut self.tables {
            let values = fold.key_fields.iter().map(|&at| event.values.get(at));
            if encode_key(values, &mut self.key).is_some() {
                fold.fold(tables, (event, seq), &self.key, &mut folded)?;
            }
        }
        Ok(folded)
    }

    /// The keys of the changed states, in their order.
    fn changed(&self) -> Vec<(ViewKey, Place)> {
        let mut changed = Vec::new();
        for (at, fold) in self.tables.iter().enumerate() {
            let views = fold.table.views();
            for (key, row) in fold.table.keys() {
                for (column, view) in views.iter().enumerate() {
                    if fold.changed[row * views.len() + column] {
                        changed.push((view.key_under(key), (at, row, column)));
                    }
                }
            }
        }
        changed.sort_unstable();
        changed
    }

    fn state(&self, (table, row, column): Place) -> (&ViewState, &View) {
        let table = &self.tables[table].table;
        (table.state(row, column), &table.views()[column])
    }
}

impl Fold {
    fn fold(
        &mut self,
        tables: &Tables,
        (event, seq): (&Event, u64),
        key: &[u8],
        folded: &mut Folded,
    ) -> Result<(), ReadError> {
        let mut row = self.table.row_of(key);
        let columns = self.table.views().len();
        for column in 0..columns {
            if !self.table.views()[column].passes(event) {
                continue;
            }
            let row = match row {
                Some(row) => row,
                None => *row.insert(self.read_row(tables, key)?),
            };
            let (state, view) = self.table.state_mut(row, column);
            match state.fold(view, event, seq) {
                Folded::Applied => self.changed[row * columns + column] = true,
                Folded::TooLate => *folded = Folded::TooLate,
            }
        }
        Ok(())
    }

    /// Adds the row of a key with the states that are stored.
    fn read_row(&mut self, tables: &Tables, key: &[u8]) -> Result<usize, ReadError> {
        let may_be_stored = match &self.stored {
            StoredKeys::None => false,
            StoredKeys::Among(filter) => filter.keys.check(key),
            StoredKeys::Unknown => true,
        };
        let read = |view: &Arc<View>| match may_be_stored {
            true => stored(tables, view, &view.key_under(key)),
            false => Ok(ViewState::default()),
        };
        let views = self.table.views().iter();
        let states = views.map(read).collect::<Result<Vec<_>, _>>()?;
        self.changed
            .resize(self.changed.len() + states.len(), false);
        Ok(self.table.add_row(key, states.into_iter()))
    }
}
