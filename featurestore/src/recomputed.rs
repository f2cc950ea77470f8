//! Training rows computed anew from sealed events, for requests that were served (or backfilled) before.
//!
//! The same request, the same label, the same moment; only the features come from the event log and not
//! from the prediction log. So a service that is new has training rows at once, over all past traffic,
//! and for one that served they equal the served rows to the bit. A row that was answered saw the events
//! up to its `as_of_seq`; a backfilled one is taken to have seen what had arrived by its time. Rows that
//! the service refuses are left out. Costs one pass over the log for each of the two kinds; memory holds
//! the requests of a stretch of days, some rows and the open states, however long the history is.

mod asked;

use std::collections::VecDeque;
use std::iter::Peekable;
use std::path::Path;
use std::sync::Arc;

use thiserror::Error;

use self::asked::{Asked, RequestFields, read_requests, seen_first};
use crate::definition::Definitions;
use crate::join::PointInTime;
use crate::log::{EventLog, Logged, Schemas, by_arrival};
use crate::offline::dataset::{self, DatasetWriter, files_of};
use crate::offline::location;
use crate::offline::table::Table;
use crate::offline::training::{Stretch, read_again, served_rows};
use crate::offline::training_set::{RowSink, Rows, SetBuilder, TrainingRow};
use crate::offline::{Dataset, OfflineError, OfflineTables, RowsFrom, TrainingQuery, TrainingSet};
use crate::online::{ReadError, SealError};
use crate::service::Service;

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

/// Training rows as [`FeatureStore::recomputed_rows`](crate::FeatureStore::recomputed_rows) has them, from
/// sealed files alone: for who reads beside the process that has the store open, as
/// [`training_rows`](crate::training_rows) does.
pub fn recomputed_rows(
    data_dir: &Path,
    definitions: &Definitions,
    query: &TrainingQuery,
) -> Result<TrainingSet, RecomputeError> {
    let schemas = Schemas::of_files(definitions);
    let read = read_sealed(data_dir, |tables| {
        let mut set = SetBuilder::default();
        Past::of(tables, definitions, &schemas).rows(query, &mut set)?;
        Ok(set.finish())
    })?;
    Ok(read.unwrap_or_else(|| SetBuilder::default().finish()))
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
    let asked = dataset::Asked {
        query: &query,
        service,
        features,
    };
    let schemas = Schemas::of_files(definitions);
    let written = read_sealed(data_dir, |tables| {
        let mut dataset = DatasetWriter::new(folder, asked);
        match features {
            RowsFrom::Served => served_rows(tables, definitions, &query, &mut dataset)?,
            RowsFrom::Recomputed => {
                Past::of(tables, definitions, &schemas).rows(&query, &mut dataset)?;
            }
        }
        Ok(dataset.finish(files_of(tables, &query, features)?)?)
    })?;
    match written {
        Some(dataset) => Ok(dataset),
        None => Ok(DatasetWriter::new(folder, asked).finish(Vec::new())?),
    }
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

    /// Gives `sink` a row for every request of `query.model` that was answered or backfilled in time and
    /// has a label, with the features of `query.service` as the events tell them.
    fn rows(self, query: &TrainingQuery, sink: &mut dyn RowSink) -> Result<(), RecomputeError> {
        let service = service_of(self.definitions, &query.service)?;
        let manifest = self.predictions.manifest()?;
        let stretches = Stretch::of(&manifest, query);
        let rows_max = stretches.iter().map(|stretch| stretch.rows).sum();
        let names = service.feature_names().map(str::to_owned).collect();
        sink.begin(names, rows_max)?;
        let seen_after = seen_first(self.predictions, &stretches)?;
        let mut pass = Pass::new(self, service, sink)?;
        for (index, stretch) in stretches.iter().enumerate() {
            pass.ask(read_requests(
                (self.predictions, self.labels),
                query,
                stretch,
            )?)?;
            let next_ms = stretches
                .get(index + 1)
                .map_or(i64::MAX, |next| next.from_ms);
            pass.compute(seen_after[index], next_ms)?;
        }
        Ok(())
    }
}

/// Rows are handed on where so many are there.
const PART_ROWS: usize = if cfg!(test) { 4 } else { 4096 };

/// The way through the past: requests in, rows out.
struct Pass<'a, 's> {
    past: Past<'a>,
    service: &'a Arc<Service>,
    fields: RequestFields<'a>,
    sealed_seq: u64,
    served: Option<Lane<'a>>,
    backfilled: Option<Lane<'a>>,
    /// Computed, and not handed on: a row that is computed later may be dated before.
    done: Rows,
    sink: &'s mut dyn RowSink,
}

impl<'a, 's> Pass<'a, 's> {
    fn new(
        past: Past<'a>,
        service: &'a Arc<Service>,
        sink: &'s mut dyn RowSink,
    ) -> Result<Self, RecomputeError> {
        Ok(Self {
            past,
            service,
            fields: RequestFields::new(past.definitions, service),
            sealed_seq: past.events.sealed.manifest()?.sealed_seq,
            served: None,
            backfilled: None,
            done: Rows::new(service.features.len()),
            sink,
        })
    }

    /// Takes in the requests of the next stretch.
    fn ask(&mut self, requests: Vec<Asked>) -> Result<(), RecomputeError> {
        if let Some(seen) = requests.iter().map(|row| row.as_of_seq).max()
            && seen > self.sealed_seq
        {
            let sealed = self.sealed_seq;
            return Err(RecomputeError::NotSealed { seen, sealed });
        }
        for row in requests {
            let lane = match row.is_backfilled {
                true => &mut self.backfilled,
                false => &mut self.served,
            };
            let lane = match lane {
                Some(lane) => lane,
                None => lane.insert(Lane::new(self.past, self.service, row.is_backfilled)?),
            };
            lane.waiting.push_back(row);
        }
        let lanes = [&mut self.served, &mut self.backfilled];
        lanes.into_iter().flatten().for_each(Lane::sort);
        Ok(())
    }

    /// Computes the rows that saw no more than every later stretch, all of whose rows are dated `next_ms`
    /// or after.
    fn compute(&mut self, seen_after: u64, next_ms: i64) -> Result<(), RecomputeError> {
        let mut full = PART_ROWS;
        loop {
            let floor = |lane: &Option<Lane<'_>>| lane.as_ref().map_or(i64::MAX, Lane::floor);
            let (served, backfilled) = (floor(&self.served), floor(&self.backfilled));
            let lane = match served <= backfilled {
                true => &mut self.served,
                false => &mut self.backfilled,
            };
            let due = |lane: &Lane<'_>| {
                let row = lane.waiting.front();
                row.is_some_and(|row| row.is_backfilled || row.as_of_seq <= seen_after)
            };
            let floor = served.min(backfilled).min(next_ms);
            match lane.as_mut().filter(|lane| due(lane)) {
                Some(lane) => {
                    lane.history.release_in_time(floor);
                    lane.compute_next((self.service, &mut self.fields), &mut self.done)?;
                }
                None => return self.hand_on(floor),
            }
            if self.done.rows.len() >= full {
                self.hand_on(floor)?;
                full = PART_ROWS.max(2 * self.done.rows.len());
            }
        }
    }

    /// Hands on the rows that none can come before any more.
    fn hand_on(&mut self, floor_ms: i64) -> Result<(), RecomputeError> {
        let rows = Rows::in_order(vec![self.done.take_before(floor_ms)]);
        Ok(self.sink.take(rows)?)
    }
}

/// Rows of one kind, in the order of what they saw.
struct Lane<'a> {
    history: PointInTime,
    events: Peekable<Box<dyn Iterator<Item = Result<Logged, ReadError>> + 'a>>,
    waiting: VecDeque<Asked>,
    /// For each of `waiting` the earliest time of it and those behind it.
    floors: VecDeque<i64>,
}

impl<'a> Lane<'a> {
    fn new(
        past: Past<'a>,
        service: &Arc<Service>,
        is_backfilled: bool,
    ) -> Result<Self, RecomputeError> {
        let events: Box<dyn Iterator<Item = _>> = match is_backfilled {
            true => Box::new(by_arrival(past.events).map_err(log_error)?),
            false => Box::new(past.events.from(0).map_err(log_error)?),
        };
        Ok(Self {
            history: PointInTime::new(service),
            events: events.peekable(),
            waiting: VecDeque::new(),
            floors: VecDeque::new(),
        })
    }

    /// Puts those that wait into their order: some may have seen less than some before them.
    fn sort(&mut self) {
        let waiting = self.waiting.make_contiguous();
        waiting.sort_by_key(|row| match row.is_backfilled {
            true => (0, row.at_ms),
            false => (row.as_of_seq, row.at_ms),
        });
        let mut earliest_ms = i64::MAX;
        self.floors.clear();
        for row in self.waiting.iter().rev() {
            earliest_ms = earliest_ms.min(row.at_ms);
            self.floors.push_front(earliest_ms);
        }
    }

    /// No row that waits is dated before.
    fn floor(&self) -> i64 {
        self.floors.front().copied().unwrap_or(i64::MAX)
    }

    /// Feeds the first of `waiting` the events that it saw and reads its row.
    fn compute_next(
        &mut self,
        (service, fields): (&Service, &mut RequestFields<'_>),
        done: &mut Rows,
    ) -> Result<(), RecomputeError> {
        self.floors.pop_front();
        let row = self.waiting.pop_front().expect("one waits");
        let due = |event: &Result<Logged, ReadError>| match event {
            Ok(event) if row.is_backfilled => event.arrived_ms <= row.at_ms,
            Ok(event) => event.seq <= row.as_of_seq,
            Err(_) => true,
        };
        while let Some(event) = self.events.next_if(due) {
            let event = event.map_err(log_error)?;
            self.history
                .push_event(&event.event, event.seq, event.arrived_ms);
        }
        let request = fields.take(&row)?;
        let features = self.history.row(&request, row.at_ms);
        if service.check_row(&features).is_err() {
            done.refused.push((row.at_ms, row.prediction));
            return Ok(());
        }
        done.push(
            &features.values,
            TrainingRow {
                predicted_ms: row.at_ms,
                request_id: row.request_id().to_owned(),
                prediction: row.prediction,
                label: row.label.value,
                known_ms: row.label.arrived_ms,
            },
        );
        Ok(())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn log_error(error: ReadError) -> RecomputeError {
    RecomputeError::Events(error.to_string())
}

#[cfg(test)]
mod tests;
