//! Training rows computed anew from sealed events, for requests that were served (or backfilled) before.
//!
//! The same request, the same label, the same moment; only the features come from the event log and not
//! from the prediction log. So a service that is new has training rows at once, over all past traffic,
//! and for one that served they equal the served rows to the bit. A row that was answered saw the events
//! up to its `as_of_seq`; a backfilled one is taken to have seen what had arrived by its time. Rows that
//! the service refuses are left out. Costs one pass over the log for each of the two kinds; memory holds
//! the requests, the rows and the open states.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array, UInt64Array,
};
use arrow::datatypes::{TimestampMillisecondType, UInt32Type, UInt64Type};
use thiserror::Error;

use crate::definition::Definitions;
use crate::join::PointInTime;
use crate::labels::StoredLabel;
use crate::log::{EventLog, Logged, Schemas, by_arrival};
use crate::offline::dataset::{self, files_of};
use crate::offline::location;
use crate::offline::segments::{Wanted, corrupt, model_folder};
use crate::offline::table::Table;
use crate::offline::training::{
    Joined, TrainingRow, assemble, known_labels, read_again, served_rows,
};
use crate::offline::{
    Dataset, DatasetAbout, OfflineError, OfflineTables, RowsFrom, TrainingQuery, TrainingSet,
};
use crate::online::{ReadError, SealError};
use crate::predictions::columns::{numbers, optional, parse_request, texts};
use crate::predictions::{PredictionKey, Role};
use crate::service::Service;
use crate::value::{Value, decode_values, encode_values};

/// Why rows could not be computed anew.
#[derive(Debug, Error)]
pub enum RecomputeError {
    /// No such service is defined.
    #[error("service `{0}` is not defined in features.toml")]
    Undefined(String),
    /// Rows were served with requests that do not bring what the service asks for.
    #[error(
        "rows of service `{served}` have no request field `{field}`, which `{service}` asks for"
    )]
    Request {
        /// The service of the rows.
        served: String,
        /// The field that is missing or of another type.
        field: String,
        /// The service whose features are asked for.
        service: String,
    },
    /// The served rows or labels could not be read.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The event log could not be read.
    #[error("event log: {0}")]
    Events(String),
    /// A row saw events that are not sealed yet: only the process that has the store open knows them.
    #[error("rows saw events up to {seen}, which are sealed up to {sealed}: seal first")]
    NotSealed {
        /// The last event that a row saw.
        seen: u64,
        /// The last event of the sealed files.
        sealed: u64,
    },
    /// What the store holds could not be sealed before.
    #[error(transparent)]
    Seal(#[from] SealError),
}

/// Training rows as [`FeatureStore::recomputed_rows`](crate::FeatureStore::recomputed_rows) has them, from sealed files alone: for who reads
/// beside the process that has the store open, as [`training_rows`](crate::training_rows) does.
pub fn recomputed_rows(
    data_dir: &Path,
    definitions: &Definitions,
    query: &TrainingQuery,
) -> Result<TrainingSet, RecomputeError> {
    let rows = read_sealed(data_dir, |tables| {
        Past::of(tables, definitions, &Schemas::of_files(definitions)).rows(query)
    });
    rows?.map_or_else(|| Ok(assemble(Vec::new())?), Ok)
}

/// Writes a dataset as [`FeatureStore::dataset`](crate::FeatureStore::dataset) does, of what is sealed.
pub fn sealed_dataset(
    data_dir: &Path,
    definitions: &Definitions,
    (query, features): (&TrainingQuery, RowsFrom),
    folder: &Path,
) -> Result<Dataset, RecomputeError> {
    let service = service_of(definitions, &query.service)?;
    let query = TrainingQuery {
        service: service.id().to_owned(),
        ..query.clone()
    };
    let schemas = Schemas::of_files(definitions);
    let read = read_sealed(data_dir, |tables| {
        let set = match features {
            RowsFrom::Served => served_rows(tables, definitions, &query)?,
            RowsFrom::Recomputed => Past::of(tables, definitions, &schemas).rows(&query)?,
        };
        Ok((set, files_of(tables, &query, features)?))
    })?;
    let (set, files) = match read {
        Some(read) => read,
        None => (assemble(Vec::new())?, Vec::new()),
    };
    let about = DatasetAbout::new(&query, service, features, &set);
    Ok(dataset::write(folder, (about, files), &set)?)
}

/// Reads by the tables as they are; `None` where nothing was ever sealed.
fn read_sealed<T>(
    data_dir: &Path,
    read: impl Fn(&OfflineTables) -> Result<T, RecomputeError>,
) -> Result<Option<T>, RecomputeError> {
    let Some(place) = location::existing(data_dir)? else {
        return Ok(None);
    };
    let is_missing = |error: &RecomputeError| {
        let missing = |error: &OfflineError| matches!(error, OfflineError::Missing { .. });
        matches!(error, RecomputeError::Offline(error) if missing(error))
    };
    let read = read_again(is_missing, || read(&OfflineTables::read_only(&place)?));
    read.map(Some)
}

fn service_of<'a>(
    definitions: &'a Definitions,
    name: &str,
) -> Result<&'a Arc<Service>, RecomputeError> {
    let defined = definitions.service(name);
    defined.ok_or_else(|| RecomputeError::Undefined(name.to_owned()))
}

/// A request and what became of it.
struct Asked {
    at_ms: i64,
    /// The last event that its row saw.
    as_of_seq: u64,
    /// Its values, encoded: in memory a request of nine takes four times as much.
    request: Box<[u8]>,
    request_id: String,
    prediction: PredictionKey,
    label: StoredLabel,
}

/// What rows are computed from: sealed files.
#[derive(Clone, Copy)]
struct Past<'a> {
    definitions: &'a Definitions,
    events: EventLog<'a>,
    predictions: &'a Table,
    labels: &'a Table,
}

impl<'a> Past<'a> {
    fn of(tables: &'a OfflineTables, definitions: &'a Definitions, schemas: &'a Schemas) -> Self {
        Self {
            definitions,
            events: EventLog {
                tables: None,
                schemas,
                sealed: &tables.events,
            },
            predictions: &tables.predictions,
            labels: &tables.labels,
        }
    }

    /// Rows of every request of `query.model` that was answered or backfilled in time and has a label,
    /// with the features of `query.service` as the events tell them.
    fn rows(self, query: &TrainingQuery) -> Result<TrainingSet, RecomputeError> {
        let service = service_of(self.definitions, &query.service)?;
        let Requests {
            mut served,
            mut backfilled,
        } = asked(self, service, query)?;
        served.sort_by_key(|row| (row.as_of_seq, row.at_ms));
        // As a training set has them.
        backfilled.sort_by(|a, b| (a.at_ms, &a.request_id).cmp(&(b.at_ms, &b.request_id)));
        let mut joined = Joined::of_service(service);
        joined.reserve(served.len() + backfilled.len());
        let sealed = self.events.sealed.manifest()?.sealed_seq;
        let all = served.iter().chain(&backfilled);
        if let Some(seen) = all.map(|row| row.as_of_seq).max()
            && seen > sealed
        {
            return Err(RecomputeError::NotSealed { seen, sealed });
        }
        if !served.is_empty() {
            let events = self.events.from(0).map_err(log_error)?;
            let seen = |event: &Logged, row: &Asked| event.seq <= row.as_of_seq;
            // Rows are in the order of what they saw and not quite of their times: nothing is released.
            compute((service, served), (events, seen), i64::MIN, &mut joined)?;
        }
        if !backfilled.is_empty() {
            let events = by_arrival(self.events).map_err(log_error)?;
            let seen = |event: &Logged, row: &Asked| event.arrived_ms <= row.at_ms;
            compute((service, backfilled), (events, seen), i64::MAX, &mut joined)?;
        }
        Ok(assemble(vec![joined])?)
    }
}

/// The columns of predictions that say what was asked; features are left where they are.
const COLUMNS: [&str; 8] = [
    "prediction_id",
    "row",
    "request_id",
    "role",
    "at",
    "service",
    "as_of_seq",
    "request",
];

/// Labelled requests, apart by what they saw.
#[derive(Default)]
struct Requests {
    served: Vec<Asked>,
    backfilled: Vec<Asked>,
}

/// The sealed requests of the query.
fn asked(
    past: Past<'_>,
    service: &Arc<Service>,
    query: &TrainingQuery,
) -> Result<Requests, RecomputeError> {
    let labels = known_labels(past.labels, query)?;
    let table = past.predictions;
    let folder = format!("{}/", model_folder(&query.model));
    let manifest = table.manifest()?;
    let mut fields = RequestFields::new(past.definitions, service);
    let mut requests = Requests::default();
    for file in &manifest.files {
        let misses = file.to_ms < query.from_ms || file.from_ms >= query.to_ms;
        if misses || !file.path.starts_with(&folder) {
            continue;
        }
        for batch in table.segment(file, Wanted::Named(&COLUMNS))? {
            let damaged = |problem| corrupt(&table.shown(&file.path), problem);
            let batch = batch?;
            let rows = AskedRows::of(&batch).map_err(damaged)?;
            for index in 0..rows.len() {
                let place = rows.place(index).map_err(damaged)?;
                let in_time = (query.from_ms..query.to_ms).contains(&place.at_ms);
                let label = labels.get(&place.prediction);
                let (true, Some(&label), Some(as_of_seq)) = (in_time, label, place.as_of_seq)
                else {
                    continue;
                };
                let request = fields.take(place.service, place.request)?;
                let row = Asked {
                    at_ms: place.at_ms,
                    as_of_seq,
                    request: encoded(&request.map_err(damaged)?),
                    request_id: place.request_id.to_owned(),
                    prediction: place.prediction,
                    label,
                };
                match place.role {
                    Some(Role::Shadow) => {}
                    Some(Role::Backfill) => requests.backfilled.push(row),
                    _ => requests.served.push(row),
                }
            }
        }
    }
    Ok(requests)
}

fn encoded(request: &[Value]) -> Box<[u8]> {
    let mut out = Vec::new();
    encode_values(request, &mut out);
    out.into()
}

/// Some columns of the prediction log.
struct AskedRows<'a> {
    ids: &'a StringArray,
    numbers: &'a UInt32Array,
    request_ids: &'a StringArray,
    roles: &'a StringArray,
    at: &'a TimestampMillisecondArray,
    services: &'a StringArray,
    as_of_seqs: &'a UInt64Array,
    requests: &'a StringArray,
}

/// What they say of one row.
struct AskedRow<'a> {
    prediction: PredictionKey,
    request_id: &'a str,
    role: Option<Role>,
    at_ms: i64,
    service: &'a str,
    /// `None` where no features were looked up.
    as_of_seq: Option<u64>,
    request: &'a str,
}

impl<'a> AskedRows<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, String> {
        Ok(Self {
            ids: texts(batch, "prediction_id")?,
            numbers: numbers::<UInt32Type>(batch, "row")?,
            request_ids: texts(batch, "request_id")?,
            roles: texts(batch, "role")?,
            at: numbers::<TimestampMillisecondType>(batch, "at")?,
            services: texts(batch, "service")?,
            as_of_seqs: numbers::<UInt64Type>(batch, "as_of_seq")?,
            requests: texts(batch, "request")?,
        })
    }

    fn len(&self) -> usize {
        self.ids.len()
    }

    fn place(&self, index: usize) -> Result<AskedRow<'a>, String> {
        let id = self.ids.value(index);
        Ok(AskedRow {
            prediction: PredictionKey {
                id: uuid::Uuid::try_parse(id).map_err(|_| format!("prediction id `{id}`"))?,
                row: self.numbers.value(index),
            },
            request_id: optional(self.request_ids, index).unwrap_or_default(),
            role: Role::from_name(self.roles.value(index)),
            at_ms: self.at.value(index),
            service: optional(self.services, index).unwrap_or_default(),
            as_of_seq: self
                .as_of_seqs
                .is_valid(index)
                .then(|| self.as_of_seqs.value(index)),
            request: self.requests.value(index),
        })
    }
}

/// Where the service's request fields stand in the requests of other services.
struct RequestFields<'a> {
    definitions: &'a Definitions,
    service: &'a Arc<Service>,
    places: HashMap<Box<str>, Vec<usize>>,
}

impl<'a> RequestFields<'a> {
    fn new(definitions: &'a Definitions, service: &'a Arc<Service>) -> Self {
        Self {
            definitions,
            service,
            places: HashMap::new(),
        }
    }

    /// The values of a request of `served` that the service asks for, in its order; the inner error says
    /// what is wrong with the text.
    fn take(
        &mut self,
        served: &str,
        request: &str,
    ) -> Result<Result<Vec<Value>, String>, RecomputeError> {
        let definitions = self.definitions;
        if !self.places.contains_key(served) {
            let places = self.places_in(served)?;
            self.places.insert(served.into(), places);
        }
        let places = &self.places[served];
        let request = parse_request(service_of(definitions, served)?, request);
        Ok(request.map(|values| {
            let value = |&place: &usize| values.get(place).cloned();
            let values = places.iter().map(value);
            values.map(|value| value.unwrap_or(Value::Null)).collect()
        }))
    }

    fn places_in(&self, served: &str) -> Result<Vec<usize>, RecomputeError> {
        let defined = service_of(self.definitions, served)?;
        let place = |field: &crate::value::Field| {
            let same =
                |known: &crate::value::Field| known.name == field.name && known.ty == field.ty;
            let place = defined.request.iter().position(same);
            place.ok_or_else(|| RecomputeError::Request {
                served: served.to_owned(),
                field: field.name.to_string(),
                service: self.service.id().to_owned(),
            })
        };
        self.service.request.iter().map(place).collect()
    }
}

/// Feeds each row, in order, the events that it saw. `release` bounds the moment up to which tiles may be
/// let go.
fn compute(
    (service, rows): (&Arc<Service>, Vec<Asked>),
    (events, seen): (
        impl Iterator<Item = Result<Logged, ReadError>>,
        impl Fn(&Logged, &Asked) -> bool,
    ),
    release_max_ms: i64,
    joined: &mut Joined,
) -> Result<(), RecomputeError> {
    let mut history = PointInTime::new(service);
    let mut events = events.peekable();
    for row in rows {
        let due = |event: &Result<Logged, ReadError>| match event {
            Ok(event) => seen(event, &row),
            Err(_) => true,
        };
        while let Some(event) = events.next_if(due) {
            let event = event.map_err(log_error)?;
            history.push_event(&event.event, event.seq, event.arrived_ms);
        }
        history.release_in_time(row.at_ms.min(release_max_ms));
        let request = decode_values(&row.request).expect("encoded when it was read");
        let features = history.row(&request, row.at_ms);
        if service.check_row(&features).is_err() {
            joined.refuse(row.prediction);
            continue;
        }
        joined.push(
            &features.values,
            TrainingRow {
                predicted_ms: row.at_ms,
                request_id: row.request_id,
                prediction: row.prediction,
                label: row.label.value,
                known_ms: row.label.arrived_ms,
            },
        );
    }
    Ok(())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn log_error(error: ReadError) -> RecomputeError {
    RecomputeError::Events(error.to_string())
}
