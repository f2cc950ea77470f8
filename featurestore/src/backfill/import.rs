//! Import of events: files in, large batches to the writer, a few of them under way at a time.

use crossbeam::channel::{Receiver, Sender, bounded};

use super::table::{read_rows, row_error};
use super::{HistoryError, ImportRequest, Imported};
use crate::event::Event;
use crate::online::{FeatureStore, IngestError, Ingested};

/// Events of one batch.
const BATCH_EVENTS: usize = 8192;
/// Batches under way: one is read while one is written.
const UNDER_WAY_MAX: usize = 2;

pub(crate) fn import(
    store: &FeatureStore,
    request: &ImportRequest,
    on_progress: &mut dyn FnMut(u64),
) -> Result<Imported, HistoryError> {
    let definitions = store.definitions();
    let source = definitions.source(&request.source);
    let source = source.ok_or_else(|| HistoryError::Undefined {
        kind: "source",
        name: request.source.clone(),
    })?;
    let mut pipeline = Pipeline::new(store, on_progress);
    let mut newest_ms = i64::MIN;
    for path in &request.files {
        read_rows(path, &source.fields, &mut |row, values| {
            let event = source.event(row, values, request.now_ms);
            let event = event.map_err(|error| row_error(path, row, &error.problem))?;
            if event.event_ms < newest_ms {
                let problem = format!(
                    "time {} is before {newest_ms} of a row before it; sort the files by time",
                    event.event_ms
                );
                return Err(row_error(path, row, &problem));
            }
            newest_ms = event.event_ms;
            pipeline.push(event)
        })?;
    }
    pipeline.finish()
}

type Answer = Result<Ingested, IngestError>;

/// Batches on their way to the writer.
struct Pipeline<'a> {
    store: &'a FeatureStore,
    on_progress: &'a mut dyn FnMut(u64),
    events: Vec<Event>,
    under_way: usize,
    answers: (Sender<Answer>, Receiver<Answer>),
    imported: Imported,
}

impl<'a> Pipeline<'a> {
    fn new(store: &'a FeatureStore, on_progress: &'a mut dyn FnMut(u64)) -> Self {
        Self {
            store,
            on_progress,
            events: Vec::with_capacity(BATCH_EVENTS),
            under_way: 0,
            answers: bounded(UNDER_WAY_MAX),
            imported: Imported::default(),
        }
    }

    fn push(&mut self, event: Event) -> Result<(), HistoryError> {
        self.imported.rows += 1;
        self.events.push(event);
        if self.events.len() == BATCH_EVENTS {
            self.send()?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Imported, HistoryError> {
        self.send()?;
        while self.under_way > 0 {
            self.receive()?;
        }
        Ok(self.imported)
    }

    fn send(&mut self) -> Result<(), HistoryError> {
        if self.events.is_empty() {
            return Ok(());
        }
        if self.under_way == UNDER_WAY_MAX {
            self.receive()?;
        }
        let events = std::mem::replace(&mut self.events, Vec::with_capacity(BATCH_EVENTS));
        let answers = self.answers.0.clone();
        let done = Box::new(move |answer| {
            // The channel has room for every batch under way.
            let _ = answers.try_send(answer);
        });
        self.store
            .submit_history(events, done)
            .map_err(|error| HistoryError::Store(error.to_string()))?;
        self.under_way += 1;
        Ok(())
    }

    fn receive(&mut self) -> Result<(), HistoryError> {
        let answer = self.answers.1.recv();
        let answer = answer.map_err(|_| HistoryError::Store("no answer".to_owned()))?;
        let ingested = answer.map_err(|error| HistoryError::Store(error.to_string()))?;
        self.under_way -= 1;
        self.imported.accepted += ingested.accepted;
        self.imported.duplicates += ingested.duplicates;
        self.imported.late += ingested.late;
        (self.on_progress)(self.imported.accepted + self.imported.duplicates);
        Ok(())
    }
}
