//! The event log: every acknowledged event by sequence number, for rebuilding what is derived from it.
//!
//! An entry names the schema of its source as it was then. When `features.toml` has changed since,
//! fields are matched by name and type; a field that is new reads as null, a source that is gone is
//! skipped.

mod arrival;

use std::sync::Arc;

use rocksdb::{DBIterator, WriteBatch};
use serde::{Deserialize, Serialize};

use crate::definition::{Definitions, Source};
use crate::event::Event;
use crate::online::ReadError;
use crate::online::keys::{Column, Key};
use crate::online::tables::Tables;
use crate::value::{FieldType, Value, decode_values, encode_values};
use crate::varint;

pub(crate) use self::arrival::{ByArrival, by_arrival};

/// One event of the log.
#[derive(Debug, Clone)]
pub(crate) struct Logged {
    /// Its place in the total order, from 1.
    pub(crate) seq: u64,
    /// When it arrived.
    pub(crate) arrived_ms: i64,
    /// The event in today's fields.
    pub(crate) event: Event,
}

const ENTRY_VERSION: u8 = 1;

/// Appends the binary form of an entry: version, schema, event time, arrival, values.
pub(crate) fn encode_entry(schema: u32, event: &Event, arrived_ms: i64, out: &mut Vec<u8>) {
    out.push(ENTRY_VERSION);
    varint::put(u64::from(schema), out);
    varint::put(varint::zigzag(event.event_ms), out);
    varint::put(varint::zigzag(arrived_ms), out);
    encode_values(&event.values, out);
}

/// The schemas that entries were written with, and how they map to today's sources.
#[derive(Debug)]
pub(crate) struct Schemas {
    readers: Vec<Reader>,
}

/// How entries of one schema are read.
#[derive(Debug)]
struct Reader {
    id: u32,
    written: Written,
    /// Today's source, and for each of its fields the position in the entry; `None`: it is gone.
    today: Option<(Arc<Source>, Vec<Option<usize>>)>,
    /// Whether entries are today's values as they are.
    current: bool,
}

/// A source as it was when entries were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    name: String,
    fields: Vec<(String, String)>,
    time: String,
}

impl Written {
    fn of(source: &Source) -> Self {
        let name = |index: usize| source.fields[index].name.to_string();
        Self {
            name: source.name.to_string(),
            fields: (0..source.fields.len())
                .map(|index| (name(index), source.fields[index].ty.as_str().to_owned()))
                .collect(),
            time: name(source.time_field),
        }
    }
}

impl Schemas {
    /// Reads the schemas of the database and adds those of `definitions` that it does not have yet.
    pub(crate) fn load(tables: &Tables, definitions: &Definitions) -> Result<Self, ReadError> {
        let mut written = Vec::new();
        for pair in tables.scan(Column::Meta, &Key::Schema(0).to_bytes()) {
            let (key, value) = pair.map_err(ReadError::database)?;
            let Some(id) = Key::schema_id(&key) else {
                break;
            };
            let schema: Written = serde_json::from_slice(&value)
                .map_err(|error| ReadError::Damaged(format!("schema {id}: {error}")))?;
            written.push((id, schema));
        }
        let mut batch = WriteBatch::default();
        for source in &definitions.sources {
            let today = Written::of(source);
            if !written.iter().any(|(_, schema)| *schema == today) {
                let id = written.iter().map(|(id, _)| id + 1).max().unwrap_or(0);
                let json = serde_json::to_vec(&today)
                    .map_err(|error| ReadError::Damaged(format!("schema {id}: {error}")))?;
                tables.put(&mut batch, Key::Schema(id), &json);
                written.push((id, today));
            }
        }
        if !batch.is_empty() {
            tables.write_durably(batch).map_err(ReadError::database)?;
        }
        let readers = written
            .into_iter()
            .map(|(id, schema)| Reader::new(id, schema, definitions))
            .collect();
        Ok(Self { readers })
    }

    /// The id to write events of this source with.
    pub(crate) fn id_of(&self, source: &Source) -> Option<u32> {
        self.readers
            .iter()
            .find(|reader| reader.current && reader.written.name == *source.name)
            .map(|reader| reader.id)
    }

    /// The schema, event time and arrival at the front of an entry; values follow in `input`.
    fn header(&self, input: &mut &[u8]) -> Option<(&Reader, i64, i64)> {
        let (&version, rest) = input.split_first()?;
        *input = rest;
        if version != ENTRY_VERSION {
            return None;
        }
        let id = u32::try_from(varint::take(input)?).ok()?;
        let event_ms = varint::unzigzag(varint::take(input)?);
        let arrived_ms = varint::unzigzag(varint::take(input)?);
        let reader = self.readers.iter().find(|reader| reader.id == id)?;
        Some((reader, event_ms, arrived_ms))
    }

    /// Reads an entry; `None` where its source is no longer defined.
    fn decode(&self, seq: u64, mut input: &[u8]) -> Result<Option<Logged>, ReadError> {
        let damaged = |problem: &str| ReadError::Damaged(format!("event {seq}: {problem}"));
        let (reader, event_ms, arrived_ms) = self
            .header(&mut input)
            .ok_or_else(|| damaged("header does not decode"))?;
        let Some((source, places)) = &reader.today else {
            return Ok(None);
        };
        let values = decode_values(input).map_err(|error| damaged(&error.to_string()))?;
        if values.len() != reader.written.fields.len() {
            return Err(damaged("values do not fit the schema"));
        }
        let values = if reader.current {
            values
        } else {
            places
                .iter()
                .map(|place| place.map_or(Value::Null, |index| values[index].clone()))
                .collect()
        };
        Ok(Some(Logged {
            seq,
            arrived_ms,
            event: Event {
                source: Arc::clone(source),
                event_ms,
                values,
            },
        }))
    }
}

impl Reader {
    fn new(id: u32, written: Written, definitions: &Definitions) -> Self {
        let today = definitions.source(&written.name).map(|source| {
            let place = |name: &str, ty: FieldType| {
                let same =
                    |(field, found): &(String, String)| field == name && found == ty.as_str();
                written.fields.iter().position(same)
            };
            let places = source
                .fields
                .iter()
                .map(|field| place(&field.name, field.ty))
                .collect();
            (Arc::clone(source), places)
        });
        let current = today
            .as_ref()
            .is_some_and(|(source, _)| Written::of(source) == written);
        Self {
            id,
            written,
            today,
            current,
        }
    }
}

/// Reads the log in order of sequence numbers.
pub(crate) struct Scan<'a> {
    schemas: &'a Schemas,
    pairs: DBIterator<'a>,
}

impl<'a> Scan<'a> {
    /// From `first` on, as of now.
    pub(crate) fn from(tables: &'a Tables, schemas: &'a Schemas, first: u64) -> Self {
        Self {
            schemas,
            pairs: tables.scan(Column::Events, &Key::Event(first).to_bytes()),
        }
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Logged, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (key, value) = match self.pairs.next()? {
                Ok(pair) => pair,
                Err(error) => return Some(Err(ReadError::database(error))),
            };
            let Some(seq) = Key::number(&key) else {
                return Some(Err(ReadError::Damaged("key of an event".to_owned())));
            };
            if let Some(logged) = self.schemas.decode(seq, &value).transpose() {
                return Some(logged);
            }
        }
    }
}
