//! Events of a group: dedupe, number, log, fold.

use std::sync::Arc;

use rocksdb::WriteBatch;

use super::{Arrival, Group, Writer};
use crate::event::Event;
use crate::log::encode_entry;
use crate::online::keys::{Column, Key};
use crate::online::lives::{KnownEvent, Lives};
use crate::online::tables::Tables;
use crate::online::{Ingested, ReadError};
use crate::window::Folded;

impl Writer {
    /// Adds a batch of events to the group.
    pub(super) fn add_events(
        &mut self,
        group: &mut Group,
        events: &[Event],
        arrival: Arrival,
    ) -> Result<Ingested, ReadError> {
        let shared = Arc::clone(&self.shared);
        let tables = &shared.tables;
        self.seen.forget();
        let keys: Vec<Vec<u8>> = events.iter().map(Event::dedupe_key).collect();
        let known = tables
            .get_many(Column::Dedupe, keys.iter().map(Vec::as_slice))
            .map_err(ReadError::database)?;
        if let Arrival::At(arrived_ms) = arrival {
            let noted = Lives::note_oldest(tables, events, arrived_ms);
            noted.map_err(ReadError::database)?;
        }
        let mut ingested = Ingested::default();
        let mut entry = Vec::new();
        let mut log = tables.puts(Column::Events);
        for ((event, key), known) in events.iter().zip(keys).zip(known) {
            if known.is_some() || group.events.contains_key(&key) {
                ingested.duplicates += 1;
                continue;
            }
            let arrived_ms = match arrival {
                Arrival::At(ms) => ms,
                Arrival::EventTime => event.event_ms,
            };
            let life = tables.lives().of(&event.source);
            let too_late = event.is_too_late(arrived_ms);
            // Also what is too late today: the log must not hold it twice, a longer lateness would fold both.
            if life.is_some_and(|life| life.may_have_forgotten(event.event_ms)) {
                ingested.late += 1;
                group.late.push(Arc::clone(&event.source));
                continue;
            }
            let schema = shared.schemas.id_of(&event.source).ok_or_else(|| {
                ReadError::Damaged(format!("source `{}` is not defined", event.source.name))
            })?;
            self.last_seq += 1;
            let seq = self.last_seq;
            entry.clear();
            encode_entry(schema, event, arrived_ms, &mut entry);
            log.add(&mut group.batch, Key::Event(seq), &entry);
            // An import may bring its events again at any time, and a late one comes late again.
            let life = life.filter(|_| !too_late && matches!(arrival, Arrival::At(_)));
            let known = KnownEvent::take(tables.lives(), (seq, event.event_ms), life);
            group.events.insert(key, known);
            ingested.accepted += 1;
            if self.states.fold(tables, event, seq, arrived_ms)? == Folded::TooLate {
                ingested.late += 1;
                group.late.push(Arc::clone(&event.source));
            }
        }
        ingested.last_seq = self.last_seq;
        self.counters.events += ingested.accepted;
        self.counters.duplicate_events += ingested.duplicates;
        self.counters.late_events += ingested.late;
        Ok(ingested)
    }
}

impl Group {
    /// Adds the dedupe keys of its events to a batch, in their order, as [`super::States::write`] does.
    pub(super) fn write_dedupe_keys(&self, tables: &Tables, batch: &mut WriteBatch) {
        let mut events: Vec<_> = self.events.iter().collect();
        events.sort_unstable();
        let mut puts = tables.puts(Column::Dedupe);
        for (key, known) in events {
            known.put(key, &mut puts, batch);
        }
    }
}
