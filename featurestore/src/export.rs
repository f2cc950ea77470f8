//! Export: events of a source, or rows that a model was served, into one file for others to read.
//!
//! Parquet, CSV or JSON lines by the file's ending; the same columns in each, times as milliseconds in
//! the latter two, so that an import reads exported events. The file appears whole or not at all. Costs
//! a pass over the log, and memory for one batch of rows (one row group for Parquet).

mod sink;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use thiserror::Error;

use self::sink::{Cell, Column, ColumnKind, Sink};
use crate::offline::OfflineError;
use crate::online::{FeatureStore, ReadError};
use crate::predictions::PredictionRecord;
use crate::predictions::columns::Row;
use crate::predictions::scan::{Range, scan};
use crate::project_file::nearest;
use crate::service::Service;
use crate::travel::{WATCH_EVENTS, Watch};
use crate::value::{Field, FieldType, Value};

/// What to export.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// Events or rows
    pub what: ExportWhat,
    /// At or after this time: an event's own, a row's prediction
    pub from_ms: i64,
    /// Before this time
    pub to_ms: i64,
    /// `.parquet`, `.csv`, or JSON lines of any other ending; must not be there yet
    pub file: PathBuf,
}

/// Of what rows are exported.
#[derive(Debug, Clone)]
pub enum ExportWhat {
    /// Events of a source: its fields
    Events {
        /// The source's name
        source: String,
    },
    /// Rows that a model answered from: what names them, the request's fields, the features, the score
    Rows {
        /// The model
        model: String,
        /// Its feature service, `name` or `name@version`
        service: String,
    },
}

/// Why nothing was exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// No such source or service is defined.
    #[error("{kind} `{name}` is not defined in features.toml{}", did_you_mean(.nearest.as_deref()))]
    Undefined {
        /// `source` or `service`
        kind: &'static str,
        /// The name asked for
        name: String,
        /// The defined one that is most like it
        nearest: Option<String>,
    },
    /// The file could not be written, or is there already.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file
        path: PathBuf,
        /// What is wrong
        problem: String,
    },
    /// Events could not be read.
    #[error(transparent)]
    Events(#[from] ReadError),
    /// Rows could not be read.
    #[error(transparent)]
    Rows(#[from] OfflineError),
    /// The watcher ended the pass.
    #[error("ended before everything was read")]
    Ended,
}

impl FeatureStore {
    /// Writes the rows into the file; the answer is how many. `watch` is called now and then with the
    /// events or rows read.
    pub fn export(&self, request: &ExportRequest, watch: Watch<'_>) -> Result<u64, ExportError> {
        let part = Part::new(&request.file)?;
        let failed = |problem: String| ExportError::File {
            path: request.file.clone(),
            problem,
        };
        let rows = match &request.what {
            ExportWhat::Events { source } => self.export_events(request, source, &part, watch)?,
            ExportWhat::Rows { model, service } => {
                self.export_rows(request, (model, service), &part, watch)?
            }
        };
        part.put(&request.file)
            .map_err(|error| failed(error.to_string()))?;
        Ok(rows)
    }

    fn export_events(
        &self,
        request: &ExportRequest,
        name: &str,
        part: &Part,
        watch: Watch<'_>,
    ) -> Result<u64, ExportError> {
        let definitions = self.definitions();
        let Some(source) = definitions.source(name) else {
            let known = definitions.sources.iter().map(|source| &*source.name);
            return Err(ExportError::Undefined {
                kind: "source",
                name: name.to_owned(),
                nearest: nearest(name, known),
            });
        };
        let columns = source.fields.iter().map(Column::of_field).collect();
        let failed = |problem| file_error(&request.file, problem);
        let mut sink = Sink::new(&part.0, &request.file, columns).map_err(failed)?;
        for (read, logged) in (1..).zip(self.shared().events().from(0)?) {
            let event = logged?.event;
            let in_time = (request.from_ms..request.to_ms).contains(&event.event_ms);
            if in_time && event.source.name == source.name {
                let cells = event.values.iter().map(Cell::Value);
                sink.push(cells).map_err(failed)?;
            }
            if read % WATCH_EVENTS == 0 && watch(read).is_break() {
                return Err(ExportError::Ended);
            }
        }
        sink.finish().map_err(failed)
    }

    fn export_rows(
        &self,
        request: &ExportRequest,
        (model, service): (&str, &str),
        part: &Part,
        watch: Watch<'_>,
    ) -> Result<u64, ExportError> {
        let definitions = self.definitions();
        let Some(service) = definitions.service(service) else {
            let known = definitions.services.iter().map(|service| service.id());
            return Err(ExportError::Undefined {
                kind: "service",
                name: service.to_owned(),
                nearest: nearest(service, known),
            });
        };
        let failed = |problem| file_error(&request.file, problem);
        let mut sink = Sink::new(&part.0, &request.file, row_columns(service)).map_err(failed)?;
        let times = request.from_ms..request.to_ms;
        let mut wanted = |row: &Row<'_>| {
            row.role.answered()
                && row.has_features
                && row.service == Some(service.id())
                && times.contains(&row.at_ms)
        };
        let range = Range {
            model,
            from_ms: request.from_ms,
            to_ms: request.to_ms,
        };
        let mut outcome = Ok(());
        let mut read = 0;
        let mut found = |record: PredictionRecord| {
            if outcome.is_err() {
                return;
            }
            read += 1;
            outcome = push_row(&mut sink, &record).map_err(failed);
            if read % WATCH_EVENTS == 0 && watch(read) == ControlFlow::Break(()) {
                outcome = outcome
                    .as_ref()
                    .map_or(Ok(()), |()| Err(ExportError::Ended));
            }
        };
        scan(self.shared(), range, &mut wanted, &mut found)?;
        outcome?;
        sink.finish().map_err(failed)
    }
}

fn row_columns(service: &Service) -> Vec<Column> {
    let column = |name: &str, ty, nullable| {
        Column::of_field(&Field {
            name: name.into(),
            ty,
            nullable,
        })
    };
    let mut columns = vec![
        column("prediction_id", FieldType::String, false),
        column("request_id", FieldType::String, true),
        column("version", FieldType::Int, false),
        column("role", FieldType::String, false),
        column("at", FieldType::Time, false),
        column("as_of_seq", FieldType::Int, false),
    ];
    columns.extend(service.request.iter().map(|field| Column {
        name: format!("request.{}", field.name),
        kind: ColumnKind::Field(field.ty),
        nullable: true,
    }));
    columns.extend(service.feature_names().map(|name| Column {
        name: name.to_owned(),
        kind: ColumnKind::Feature,
        nullable: true,
    }));
    columns.push(Column {
        name: "score".to_owned(),
        kind: ColumnKind::Feature,
        nullable: true,
    });
    columns
}

fn push_row(sink: &mut Sink, record: &PredictionRecord) -> Result<(), String> {
    let text = |text: &str| Value::String(text.into());
    let features = record.features.as_deref();
    let as_of_seq = features.map_or(0, |row| row.as_of_seq);
    let named = [
        text(&record.prediction.to_string()),
        record.request_id.as_deref().map_or(Value::Null, text),
        Value::Int(record.version.into()),
        text(record.role.as_str()),
        Value::Int(record.at_ms),
        Value::Int(i64::try_from(as_of_seq).unwrap_or(i64::MAX)),
    ];
    let features = features.map_or(&[][..], |row| &row.values);
    let cells = named.iter().chain(record.request.iter()).map(Cell::Value);
    let features = features.iter().copied().map(Cell::Feature);
    sink.push(cells.chain(features).chain([Cell::Feature(record.score)]))
}

/// The file while it is written, beside its place; removed when it is not put there.
struct Part(PathBuf);

impl Part {
    fn new(file: &Path) -> Result<Self, ExportError> {
        if file.exists() {
            return Err(file_error(file, "is there already".to_owned()));
        }
        let Some(name) = file.file_name() else {
            return Err(file_error(file, "names no file".to_owned()));
        };
        let name = format!(".{}.{}.part", name.to_string_lossy(), std::process::id());
        Ok(Self(file.with_file_name(name)))
    }

    /// Puts the written file into its place, durably.
    fn put(self, file: &Path) -> std::io::Result<()> {
        std::fs::File::open(&self.0)?.sync_all()?;
        std::fs::rename(&self.0, file)?;
        let folder = file.parent().filter(|folder| *folder != Path::new(""));
        std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Once it is in its place there is nothing here.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn file_error(path: &Path, problem: String) -> ExportError {
    ExportError::File {
        path: path.to_owned(),
        problem,
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
