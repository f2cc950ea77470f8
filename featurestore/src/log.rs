//! The event log: every acknowledged event by sequence number, for rebuilding what is derived from it.
//!
//! New events are entries of RocksDB; sealed ones lie in the offline table `events`, and the entries
//! behind the seal may be gone. [`EventLog`] is the one reader of both: sealed files, then entries, in
//! the order of their numbers, none missing and none twice.
//!
//! An entry names the schema of its source as it was then. When `features.toml` has changed since,
//! fields are matched by name and type; a field that is new reads as null, a source that is gone is
//! skipped.

mod arrival;
pub(crate) mod seal;
mod stream;

use std::sync::Arc;

use rocksdb::WriteBatch;
use serde::{Deserialize, Serialize};

use crate::definition::{Definitions, Source};
use crate::event::Event;
use crate::online::ReadError;
use crate::online::keys::{Column, Key};
use crate::online::tables::Tables;
use crate::value::{FieldType, Value, decode_values, decode_values_into, encode_values};
use crate::varint;

pub(crate) use self::arrival::{ByArrival, by_arrival};
pub(crate) use self::stream::{EventLog, Stream};

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

/// Appends the binary form of an entry.
pub(crate) fn encode_entry(schema: u32, event: &Event, arrived_ms: i64, out: &mut Vec<u8>) {
    encode_values_entry(schema, (event.event_ms, arrived_ms), &event.values, out);
}

/// The same from its parts: version, schema, event time, arrival, values.
pub(crate) fn encode_values_entry(
    schema: u32,
    (event_ms, arrived_ms): (i64, i64),
    values: &[Value],
    out: &mut Vec<u8>,
) {
    out.push(ENTRY_VERSION);
    varint::put(u64::from(schema), out);
    varint::put(varint::zigzag(event_ms), out);
    varint::put(varint::zigzag(arrived_ms), out);
    encode_values(values, out);
}

/// Reads the values of an entry into as many; `None` where it does not decode.
pub(crate) fn read_entry_values(entry: &[u8], values: &mut [Value]) -> Option<()> {
    let (&version, rest) = entry.split_first()?;
    let input = &mut { rest };
    for _ in ["schema", "event time", "arrival"] {
        varint::take(input)?;
    }
    let read = decode_values_into(input, values);
    (version == ENTRY_VERSION && read.is_ok()).then_some(())
}

/// The schemas that entries were written with, and how they map to today's sources.
#[derive(Debug)]
pub(crate) struct Schemas {
    readers: Vec<Reader>,
    /// Today's sources.
    sources: Vec<Arc<Source>>,
}

/// How entries of one schema are read.
#[derive(Debug, Clone)]
struct Reader {
    id: u32,
    written: WrittenSource,
    /// Today's source, and for each of its fields the position in the entry; `None`: it is gone.
    today: Option<(Arc<Source>, Vec<Option<usize>>)>,
    /// Whether entries are today's values as they are.
    current: bool,
}

/// A source as it was when entries were written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "WrittenForm", into = "WrittenForm")]
pub(crate) struct WrittenSource {
    name: String,
    fields: Vec<(String, FieldType)>,
    time: String,
}

/// [`WrittenSource`] in JSON.
#[derive(Serialize, Deserialize)]
struct WrittenForm {
    name: String,
    fields: Vec<(String, String)>,
    time: String,
}

impl From<WrittenSource> for WrittenForm {
    fn from(source: WrittenSource) -> Self {
        let field = |(name, ty): (String, FieldType)| (name, ty.as_str().to_owned());
        Self {
            name: source.name,
            fields: source.fields.into_iter().map(field).collect(),
            time: source.time,
        }
    }
}

impl TryFrom<WrittenForm> for WrittenSource {
    type Error = String;

    fn try_from(form: WrittenForm) -> Result<Self, String> {
        let field = |(name, ty): (String, String)| match FieldType::parse(&ty) {
            Some(ty) => Ok((name, ty)),
            None => Err(format!("field `{name}` is of unknown type `{ty}`")),
        };
        Ok(Self {
            name: form.name,
            fields: form
                .fields
                .into_iter()
                .map(field)
                .collect::<Result<_, _>>()?,
            time: form.time,
        })
    }
}

impl WrittenSource {
    fn of(source: &Source) -> Self {
        let name = |index: usize| source.fields[index].name.to_string();
        Self {
            name: source.name.to_string(),
            fields: (0..source.fields.len())
                .map(|index| (name(index), source.fields[index].ty))
                .collect(),
            time: name(source.time_field),
        }
    }

    /// As the metadata of its files hold it.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).expect("names and types are plain data")
    }

    /// The source's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its fields and their types.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&str, FieldType)> {
        self.fields.iter().map(|(name, ty)| (name.as_str(), *ty))
    }
}

/// An entry as it was written.
#[derive(Debug)]
pub(crate) struct Entry {
    /// Id of its source's schema.
    pub(crate) schema: u32,
    pub(crate) event_ms: i64,
    pub(crate) arrived_ms: i64,
    /// In the order of the schema's fields.
    pub(crate) values: Box<[Value]>,
}

impl Schemas {
    /// For sealed files alone, which bring their schemas with them.
    pub(crate) fn of_files(definitions: &Definitions) -> Self {
        Self {
            readers: Vec::new(),
            sources: definitions.sources.clone(),
        }
    }

    /// Reads the schemas of the database and adds those of `definitions` that it does not have yet.
    pub(crate) fn load(tables: &Tables, definitions: &Definitions) -> Result<Self, ReadError> {
        let mut written = Vec::new();
        for pair in tables.scan(Column::Meta, &Key::Schema(0).to_bytes()) {
            let (key, value) = pair.map_err(ReadError::database)?;
            let Some(id) = Key::schema_id(&key) else {
                break;
            };
            let schema: WrittenSource = serde_json::from_slice(&value)
                .map_err(|error| ReadError::Damaged(format!("schema {id}: {error}")))?;
            written.push((id, schema));
        }
        let mut batch = WriteBatch::default();
        for source in &definitions.sources {
            let today = WrittenSource::of(source);
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
            .map(|(id, schema)| Reader::new(id, schema, &definitions.sources))
            .collect();
        Ok(Self {
            readers,
            sources: definitions.sources.clone(),
        })
    }

    /// The id to write events of this source with.
    pub(crate) fn id_of(&self, source: &Source) -> Option<u32> {
        self.readers
            .iter()
            .find(|reader| reader.current && reader.written.name == *source.name)
            .map(|reader| reader.id)
    }

    /// The source of that id as it was.
    pub(crate) fn written(&self, id: u32) -> Option<&WrittenSource> {
        let mut readers = self.readers.iter();
        readers.find(|it| it.id == id).map(|it| &it.written)
    }

    /// How events of a source as it was are read.
    fn reader_of(&self, written: WrittenSource) -> Reader {
        match self.readers.iter().find(|it| it.written == written) {
            Some(reader) => reader.clone(),
            // Of a database before this one.
            None => Reader::new(u32::MAX, written, &self.sources),
        }
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

    /// Arrival of an entry, without reading the rest.
    fn arrived_ms(&self, seq: u64, mut input: &[u8]) -> Result<i64, ReadError> {
        let header = self.header(&mut input);
        let (_, _, arrived_ms) = header.ok_or_else(|| damaged(seq, "header does not decode"))?;
        Ok(arrived_ms)
    }

    /// Reads an entry as it was written.
    pub(crate) fn entry(&self, seq: u64, input: &[u8]) -> Result<Entry, ReadError> {
        self.read(seq, input).map(|(_, entry)| entry)
    }

    /// Reads an entry in today's fields; `None` where its source is no longer defined.
    fn event(&self, seq: u64, input: &[u8]) -> Result<Option<Event>, ReadError> {
        let (reader, entry) = self.read(seq, input)?;
        let Some((source, places)) = &reader.today else {
            return Ok(None);
        };
        let values = if reader.current {
            entry.values
        } else {
            places
                .iter()
                .map(|place| place.map_or(Value::Null, |index| entry.values[index].clone()))
                .collect()
        };
        Ok(Some(Event {
            source: Arc::clone(source),
            event_ms: entry.event_ms,
            values,
        }))
    }

    fn read(&self, seq: u64, mut input: &[u8]) -> Result<(&Reader, Entry), ReadError> {
        let header = self.header(&mut input);
        let (reader, event_ms, arrived_ms) =
            header.ok_or_else(|| damaged(seq, "header does not decode"))?;
        let values = decode_values(input).map_err(|error| damaged(seq, &error.to_string()))?;
        if values.len() != reader.written.fields.len() {
            return Err(damaged(seq, "values do not fit the schema"));
        }
        let entry = Entry {
            schema: reader.id,
            event_ms,
            arrived_ms,
            values,
        };
        Ok((reader, entry))
    }
}

fn damaged(seq: u64, problem: &str) -> ReadError {
    ReadError::Damaged(format!("event {seq}: {problem}"))
}

impl Reader {
    fn new(id: u32, written: WrittenSource, sources: &[Arc<Source>]) -> Self {
        let source = sources.iter().find(|source| *source.name == *written.name);
        let today = source.map(|source| {
            let place = |name: &str, ty: FieldType| {
                let mut fields = written.fields();
                fields.position(|field| field == (name, ty))
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
            .is_some_and(|(source, _)| WrittenSource::of(source) == written);
        Self {
            id,
            written,
            today,
            current,
        }
    }
}
