//! Import of events: files in, large sorted groups to the writer, two of them under way.
//!
//! This thread reads, checks, encodes and sorts; the writer's numbers, folds and writes. Each group is
//! durable as a whole and in the order of the files, so that whatever ends an import leaves a prefix of
//! its rows, and importing the same files again takes in the rest.

use std::collections::VecDeque;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded};

use super::table::{read_rows, row_error};
use super::{HistoryError, ImportRequest, Imported, Progress};
use crate::commit::bulk::Prepared;
use crate::definition::Source;
use crate::online::{FeatureStore, IngestError, Ingested};

/// The rest of the files is written as ordinary events where it is fewer: files are not worth their while.
const BULK_EVENTS_MIN: usize = 4096;
/// Groups under way: one is read while one is written.
const UNDER_WAY_MAX: usize = 2;

pub(crate) fn import(
    store: &FeatureStore,
    request: &ImportRequest,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Imported, HistoryError> {
    let definitions = store.definitions();
    let source = definitions.source(&request.source);
    let source = source.ok_or_else(|| HistoryError::Undefined {
        kind: "source",
        name: request.source.clone(),
    })?;
    let mut pipeline = Pipeline::new(store, source, on_progress)?;
    for path in &request.files {
        let bytes = std::fs::metadata(path).map(|found| found.len());
        pipeline.bytes_total += bytes.map_err(|error| super::table::file_error(path, &error))?;
    }
    let read = read_all(request, source, &mut pipeline);
    // What was read before a row that does not fit is written all the same.
    let imported = pipeline.finish()?;
    match read {
        Ok(()) => Ok(imported),
        Err(cause) if imported.rows == 0 => Err(cause),
        Err(cause) => Err(HistoryError::Partial {
            cause: Box::new(cause),
            imported,
        }),
    }
}

fn read_all(
    request: &ImportRequest,
    source: &Arc<Source>,
    pipeline: &mut Pipeline<'_>,
) -> Result<(), HistoryError> {
    let mut newest_ms = i64::MIN;
    let mut bytes_before = 0;
    for path in &request.files {
        let mut bytes = 0;
        read_rows(path, &source.fields, &mut |at, values| {
            let event_ms = source.event_time(values, request.now_ms);
            let event_ms = event_ms.map_err(|problem| row_error(path, at.row, &problem))?;
            if event_ms < newest_ms {
                let field = &source.fields[source.time_field].name;
                let problem = format!(
                    "field `{field}`: time {event_ms} is before {newest_ms} of a row before it; sort \
                     the files by time"
                );
                return Err(row_error(path, at.row, &problem));
            }
            newest_ms = event_ms;
            bytes = at.bytes;
            pipeline.bytes = bytes_before + bytes;
            pipeline.prepared.push(event_ms, values);
            match pipeline.prepared.len() == pipeline.group_events {
                true => pipeline.send(),
                false => Ok(()),
            }
        })?;
        bytes_before += bytes;
    }
    Ok(())
}

/// What the writer says of a group: the counts, and the emptied vessel where there was one.
type Answer = Result<(Ingested, Option<Prepared>), IngestError>;

/// Groups on their way to the writer.
struct Pipeline<'a> {
    store: &'a FeatureStore,
    source: &'a Arc<Source>,
    on_progress: &'a mut dyn FnMut(Progress),
    /// The group that is being filled.
    prepared: Prepared,
    spare: Vec<Prepared>,
    /// What had been read when each group under way was sent.
    under_way: VecDeque<u64>,
    answers: (Sender<Answer>, Receiver<Answer>),
    imported: Imported,
    group_events: usize,
    /// Of all files, read so far.
    bytes: u64,
    bytes_total: u64,
}

impl<'a> Pipeline<'a> {
    fn new(
        store: &'a FeatureStore,
        source: &'a Arc<Source>,
        on_progress: &'a mut dyn FnMut(Progress),
    ) -> Result<Self, HistoryError> {
        Ok(Self {
            prepared: prepared(store, source)?,
            store,
            source,
            on_progress,
            spare: Vec::new(),
            under_way: VecDeque::new(),
            answers: bounded(UNDER_WAY_MAX),
            imported: Imported::default(),
            group_events: store.shared().options.import_group_events.max(1),
            bytes: 0,
            bytes_total: 0,
        })
    }

    fn finish(mut self) -> Result<Imported, HistoryError> {
        if self.prepared.len() > 0 {
            self.send()?;
        }
        while !self.under_way.is_empty() {
            self.receive()?;
        }
        Ok(self.imported)
    }

    fn send(&mut self) -> Result<(), HistoryError> {
        if self.under_way.len() == UNDER_WAY_MAX {
            self.receive()?;
        }
        let next = match self.spare.pop() {
            Some(spare) => spare,
            None => prepared(self.store, self.source)?,
        };
        let mut group = std::mem::replace(&mut self.prepared, next);
        let answers = self.answers.0.clone();
        // The channel has room for every group under way.
        let few = BULK_EVENTS_MIN.min(self.group_events);
        let submitted = if group.len() < few {
            let done = Box::new(move |answer: Result<Ingested, IngestError>| {
                let _ = answers.try_send(answer.map(|ingested| (ingested, None)));
            });
            self.store.submit_history(group.events(), done)
        } else {
            group.sort();
            let done = Box::new(move |answer: Result<(Ingested, Prepared), IngestError>| {
                let answer = answer.map(|(ingested, group)| (ingested, Some(group)));
                let _ = answers.try_send(answer);
            });
            self.store.submit_bulk(group, done)
        };
        submitted.map_err(|error| HistoryError::Store(error.to_string()))?;
        self.under_way.push_back(self.bytes);
        Ok(())
    }

    fn receive(&mut self) -> Result<(), HistoryError> {
        let answer = self.answers.1.recv();
        let answer = answer.map_err(|_| HistoryError::Store("no answer".to_owned()))?;
        let (ingested, group) = answer.map_err(|error| HistoryError::Store(error.to_string()))?;
        if let Some(mut group) = group {
            group.clear();
            self.spare.push(group);
        }
        self.imported.rows += ingested.accepted + ingested.duplicates;
        self.imported.accepted += ingested.accepted;
        self.imported.duplicates += ingested.duplicates;
        self.imported.late += ingested.late;
        (self.on_progress)(Progress {
            rows: self.imported.rows,
            bytes: self.under_way.pop_front().unwrap_or(self.bytes),
            bytes_total: self.bytes_total,
        });
        Ok(())
    }
}

fn prepared(store: &FeatureStore, source: &Arc<Source>) -> Result<Prepared, HistoryError> {
    Prepared::new(store.shared(), source)
        .ok_or_else(|| HistoryError::Store(format!("source `{}` has no schema", source.name)))
}
