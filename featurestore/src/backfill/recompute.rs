//! Backfill: one streaming pass over requests and events, in order of time.

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::table::{file_error, read_rows, row_error};
use super::{BackfillRequest, Backfilled, HistoryError, Progress};
use crate::join::PointInTime;
use crate::labels::StoredLabel;
use crate::log::{ByArrival, by_arrival};
use crate::offline::OfflineError;
use crate::offline::days::{About, DayFiles};
use crate::offline::label_rows::LabelFiles;
use crate::offline::segments::{hex, is_folder_name, model_folder};
use crate::offline::table::Table;
use crate::online::ReadError;
use crate::online::shared::{Shared, locked};
use crate::predictions::columns::Columns;
use crate::predictions::{PredictionKey, PredictionRecord, Role};
use crate::service::Service;
use crate::value::{Field, FieldType, Value};

/// Rows that are collected before they are encoded.
const BATCH_ROWS: usize = 2048;

pub(crate) fn backfill(
    shared: &Shared,
    request: &BackfillRequest,
    on_progress: &mut dyn FnMut(Progress),
) -> Result<Backfilled, HistoryError> {
    let service = shared.definitions.service(&request.service);
    let service = service.ok_or_else(|| HistoryError::Undefined {
        kind: "service",
        name: request.service.clone(),
    })?;
    let path = request.file.as_path();
    if !is_folder_name(&request.model) {
        let problem = format!("model name `{}` cannot be a folder name", request.model);
        return Err(HistoryError::Store(problem));
    }
    let _one = locked(&shared.sealing);
    let events = by_arrival(shared.events()).map_err(store_error)?;
    let mut pass = Pass {
        service: Arc::clone(service),
        model: Arc::clone(&request.model),
        path,
        history: PointInTime::new(service),
        events: events.peekable(),
        newest_ms: i64::MIN,
        output: Output::new(shared, request, service)?,
    };
    let fields = fields(service);
    let bytes_total = std::fs::metadata(path).map_err(|error| file_error(path, &error))?;
    let bytes_total = bytes_total.len();
    read_rows(path, &fields, &mut |at, values| {
        if at.row % BATCH_ROWS == 0 {
            let (rows, bytes) = (at.row as u64, at.bytes);
            on_progress(Progress {
                rows,
                bytes,
                bytes_total,
            });
        }
        pass.row(at.row, values)
    })?;
    pass.output.finish(path)
}

/// The columns of a history file: the request's, then these four.
fn fields(service: &Service) -> Vec<Field> {
    let field = |name: &str, ty, nullable| Field {
        name: name.into(),
        ty,
        nullable,
    };
    let mut fields = service.request.clone();
    fields.extend([
        field("request_id", FieldType::String, true),
        field("at", FieldType::Time, false),
        field("label", FieldType::Float, true),
        field("label_known_at", FieldType::Time, true),
    ]);
    fields
}

struct Pass<'a> {
    service: Arc<Service>,
    model: Arc<str>,
    path: &'a Path,
    history: PointInTime,
    events: std::iter::Peekable<ByArrival<'a>>,
    newest_ms: i64,
    output: Output,
}

impl Pass<'_> {
    fn row(&mut self, row: usize, values: &mut Vec<Value>) -> Result<(), HistoryError> {
        let mut values = std::mem::take(values);
        let wrong = |problem: String| row_error(self.path, row, &problem);
        let tail = values.split_off(self.service.request.len());
        let checked = self.service.check_request(&values);
        checked.map_err(|error| wrong(error.to_string()))?;
        let Ok::<[Value; 4], _>([request_id, at, label, known_at]) = tail.try_into() else {
            return Err(wrong("has other columns than asked for".to_owned()));
        };
        let Value::Int(at_ms) = at else {
            return Err(wrong("field `at`: may not be null".to_owned()));
        };
        if at_ms < self.newest_ms {
            let newest_ms = self.newest_ms;
            return Err(wrong(format!(
                "`at` {at_ms} is before {newest_ms} of a row before it; sort the file by `at`"
            )));
        }
        let label = match (label, known_at) {
            (Value::Float(value), Value::Int(known_ms)) if known_ms >= at_ms => Some(StoredLabel {
                value: value as f32,
                label_ms: known_ms,
                arrived_ms: known_ms,
            }),
            (Value::Float(_), Value::Int(known_ms)) => {
                return Err(wrong(format!(
                    "`label_known_at` {known_ms} is before `at` {at_ms}"
                )));
            }
            (Value::Float(_), _) => {
                return Err(wrong("a label without `label_known_at`".to_owned()));
            }
            _ => None,
        };
        self.newest_ms = at_ms;
        self.push_events(at_ms)?;
        self.history.release_in_time(at_ms);
        let features = self.history.row(&values, at_ms);
        let request_id: Option<Box<str>> = match request_id {
            Value::String(text) => Some(text.as_str().into()),
            _ => None,
        };
        let name = request_id
            .as_deref()
            .map_or_else(|| row.to_string(), str::to_owned);
        let record = PredictionRecord {
            prediction: prediction_key(&self.model, &name, at_ms),
            request_id,
            model: Arc::clone(&self.model),
            version: 0,
            role: Role::Backfill,
            at_ms,
            service: Some(self.service.id().into()),
            request: values.into(),
            features: Some(Arc::new(features)),
            score: f32::NAN,
            fallback_reason: None,
        };
        let written = self.output.push(&record, label);
        written.map_err(|error| file_error(self.path, &error))
    }

    /// Takes in every event that had arrived by `at_ms`.
    fn push_events(&mut self, at_ms: i64) -> Result<(), HistoryError> {
        while let Some(logged) = self.events.next_if(|event| match event {
            Ok(logged) => logged.arrived_ms <= at_ms,
            Err(_) => true,
        }) {
            let logged = logged.map_err(store_error)?;
            let arrived_ms = logged.arrived_ms;
            self.history
                .push_event(&logged.event, logged.seq, arrived_ms);
        }
        Ok(())
    }
}

/// Where the rows go.
struct Output {
    columns: Columns,
    rows: DayFiles,
    labels: LabelFiles,
    /// Predictions, labels.
    tables: [Arc<Table>; 2],
    origin: String,
    done: Backfilled,
}

impl Output {
    fn new(
        shared: &Shared,
        request: &BackfillRequest,
        service: &Arc<Service>,
    ) -> Result<Self, HistoryError> {
        let columns = Columns::new(Some(Arc::clone(service)));
        let prefix = prefix(request, service).map_err(|error| file_error(&request.file, &error))?;
        let schema = Arc::clone(columns.schema());
        let about = About {
            folder: model_folder(&request.model),
            name: prefix.clone(),
            schema: serde_json::json!({ "service": service.id() }),
            origin: prefix.clone(),
        };
        let (predictions, labels) = (&shared.offline.predictions, &shared.offline.labels);
        Ok(Self {
            columns,
            rows: DayFiles::new(predictions, about, schema),
            labels: LabelFiles::new(labels, prefix.clone(), prefix.clone()),
            tables: [Arc::clone(predictions), Arc::clone(labels)],
            origin: prefix,
            done: Backfilled::default(),
        })
    }

    fn push(
        &mut self,
        record: &PredictionRecord,
        label: Option<StoredLabel>,
    ) -> Result<(), OfflineError> {
        self.columns.push(record);
        self.done.rows += 1;
        if self.columns.rows() == BATCH_ROWS {
            self.flush()?;
        }
        if let Some(label) = label {
            self.done.labels += 1;
            self.labels.push(record.prediction, label, 0)?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), OfflineError> {
        let rows = self.columns.finish();
        let rows = rows.map_err(|error| self.rows.failed(&error))?;
        self.rows.write(&rows)
    }

    fn finish(mut self, path: &Path) -> Result<Backfilled, HistoryError> {
        let failed = |error| file_error(path, &error);
        self.flush().map_err(failed)?;
        let files = [
            self.rows.finish().map_err(failed)?,
            self.labels.finish().map_err(failed)?,
        ];
        for (table, files) in self.tables.iter().zip(files) {
            self.done.files += files.len() as u64;
            table.replace(&self.origin, files).map_err(failed)?;
        }
        Ok(self.done)
    }
}

/// Names the files of this backfill after what it reads, so that repeating it replaces them.
fn prefix(request: &BackfillRequest, service: &Service) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    hash.update(request.model.as_bytes());
    hash.update([0]);
    hash.update(service.id().as_bytes());
    hash.update([0]);
    let mut file = std::fs::File::open(&request.file)?;
    let mut chunk = vec![0; 1 << 16];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            count => hash.update(&chunk[..count]),
        }
    }
    Ok(format!("backfill-{}", hex(&hash.finalize()[..8])))
}

/// The same row of history always has the same prediction id: a UUID (version 8) from SHA-256.
fn prediction_key(model: &str, request_id: &str, at_ms: i64) -> PredictionKey {
    let mut hash = Sha256::new();
    for text in [model, request_id] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    }
    hash.update(at_ms.to_le_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash.finalize()[..16]);
    let id = uuid::Builder::from_custom_bytes(bytes).into_uuid();
    PredictionKey { id, row: 0 }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn store_error(error: ReadError) -> HistoryError {
    HistoryError::Store(error.to_string())
}
