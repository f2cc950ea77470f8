//! The columns of the prediction log, alike in spool and Parquet: records in, records out.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, Float32Array, Float32Builder, Int64Builder,
    ListArray, ListBuilder, PrimitiveArray, RecordBatch, StringArray, StringBuilder,
    TimestampMillisecondArray, TimestampMillisecondBuilder, UInt8Builder, UInt32Array,
    UInt32Builder, UInt64Array, UInt64Builder,
};
use arrow::datatypes::{
    DataType, Field, Float32Type, Int64Type, Schema, SchemaRef, TimeUnit, UInt8Type,
};
use arrow::error::ArrowError;

use super::index::Names;
use super::{PredictionKey, PredictionRecord, Role};
use crate::definition::Definitions;
use crate::offline::segments::{FEATURES_KEY, FORMAT, FORMAT_KEY};
use crate::service::{FeatureRow, Service};
use crate::value::{Value, values_of_object};
use crate::window::Status;

/// The schema of records of a service (or of none).
pub(crate) fn schema(service: Option<&Service>) -> SchemaRef {
    let utc = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let list = |ty| DataType::List(Arc::new(item(ty)));
    let features: Vec<&str> = service.map_or(Vec::new(), |it| it.feature_names().collect());
    let metadata = HashMap::from([
        (FORMAT_KEY.to_owned(), FORMAT.to_owned()),
        (
            FEATURES_KEY.to_owned(),
            serde_json::Value::from(features).to_string(),
        ),
    ]);
    let fields = vec![
        Field::new("prediction_id", DataType::Utf8, false),
        Field::new("row", DataType::UInt32, false),
        Field::new("request_id", DataType::Utf8, true),
        Field::new("model", DataType::Utf8, false),
        Field::new("version", DataType::UInt32, false),
        Field::new("role", DataType::Utf8, false),
        Field::new("at", utc, false),
        Field::new("service", DataType::Utf8, true),
        Field::new("score", DataType::Float32, false),
        Field::new("fallback_reason", DataType::Utf8, true),
        Field::new("as_of_seq", DataType::UInt64, true),
        Field::new("request", DataType::Utf8, false),
        Field::new("features", list(DataType::Float32), true),
        Field::new("statuses", list(DataType::UInt8), true),
        Field::new("event_times", list(DataType::Int64), true),
    ];
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

fn item(ty: DataType) -> Field {
    Field::new("item", ty, false)
}

/// Rows in the making, for one service (or none).
pub(crate) struct Columns {
    service: Option<Arc<Service>>,
    schema: SchemaRef,
    rows: usize,
    prediction_id: StringBuilder,
    row: UInt32Builder,
    request_id: StringBuilder,
    model: StringBuilder,
    version: UInt32Builder,
    role: StringBuilder,
    at: TimestampMillisecondBuilder,
    service_id: StringBuilder,
    score: Float32Builder,
    fallback_reason: StringBuilder,
    as_of_seq: UInt64Builder,
    request: StringBuilder,
    features: ListBuilder<Float32Builder>,
    statuses: ListBuilder<UInt8Builder>,
    event_times: ListBuilder<Int64Builder>,
}

impl Columns {
    /// No rows yet.
    pub(crate) fn new(service: Option<Arc<Service>>) -> Self {
        Self {
            schema: schema(service.as_deref()),
            service,
            rows: 0,
            prediction_id: StringBuilder::new(),
            row: UInt32Builder::new(),
            request_id: StringBuilder::new(),
            model: StringBuilder::new(),
            version: UInt32Builder::new(),
            role: StringBuilder::new(),
            at: TimestampMillisecondBuilder::new().with_timezone("UTC"),
            service_id: StringBuilder::new(),
            score: Float32Builder::new(),
            fallback_reason: StringBuilder::new(),
            as_of_seq: UInt64Builder::new(),
            request: StringBuilder::new(),
            features: ListBuilder::new(Float32Builder::new()).with_field(item(DataType::Float32)),
            statuses: ListBuilder::new(UInt8Builder::new()).with_field(item(DataType::UInt8)),
            event_times: ListBuilder::new(Int64Builder::new()).with_field(item(DataType::Int64)),
        }
    }

    /// Rows added since the last [`Columns::finish`].
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Their schema.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Adds a record of this service.
    pub(crate) fn push(&mut self, record: &PredictionRecord) {
        let mut id = uuid::Uuid::encode_buffer();
        let id = record.prediction.id.hyphenated().encode_lower(&mut id);
        self.prediction_id.append_value(id);
        self.row.append_value(record.prediction.row);
        self.request_id.append_option(record.request_id.as_deref());
        self.model.append_value(&record.model);
        self.version.append_value(record.version);
        self.role.append_value(record.role.as_str());
        self.at.append_value(record.at_ms);
        self.service_id.append_option(record.service.as_deref());
        self.score.append_value(record.score);
        self.fallback_reason
            .append_option(record.fallback_reason.as_deref());
        let request = request_json(self.service.as_deref(), &record.request);
        self.request.append_value(request);
        match record.features.as_deref() {
            Some(row) => {
                self.as_of_seq.append_value(row.as_of_seq);
                self.features.values().append_slice(&row.values);
                self.features.append(true);
                let codes = row.statuses.iter().map(|status| Some(status.code()));
                self.statuses.append_value(codes);
                self.event_times.values().append_slice(&row.event_times_ms);
                self.event_times.append(true);
            }
            None => {
                self.as_of_seq.append_null();
                self.features.append(false);
                self.statuses.append(false);
                self.event_times.append(false);
            }
        }
        self.rows += 1;
    }

    /// Takes the rows out.
    pub(crate) fn finish(&mut self) -> Result<RecordBatch, ArrowError> {
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.prediction_id.finish()),
            Arc::new(self.row.finish()),
            Arc::new(self.request_id.finish()),
            Arc::new(self.model.finish()),
            Arc::new(self.version.finish()),
            Arc::new(self.role.finish()),
            Arc::new(self.at.finish()),
            Arc::new(self.service_id.finish()),
            Arc::new(self.score.finish()),
            Arc::new(self.fallback_reason.finish()),
            Arc::new(self.as_of_seq.finish()),
            Arc::new(self.request.finish()),
            Arc::new(self.features.finish()),
            Arc::new(self.statuses.finish()),
            Arc::new(self.event_times.finish()),
        ];
        RecordBatch::try_new(SchemaRef::clone(&self.schema), columns)
    }
}

/// The request as a JSON object by field name; a list where the fields have no names.
fn request_json(service: Option<&Service>, values: &[Value]) -> String {
    if service.is_none() && values.is_empty() {
        return "[]".to_owned();
    }
    let Some(service) = service else {
        return serde_json::Value::from_iter(values.iter().map(Value::to_json)).to_string();
    };
    let mut text = String::with_capacity(24 * values.len() + 2);
    text.push('{');
    for (index, (field, value)) in service.request.iter().zip(values).enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let name = serde_json::Value::from(&*field.name);
        // Writing to a string cannot fail.
        let _ = write!(text, "{comma}{name}:{}", value.to_json());
    }
    text.push('}');
    text
}

/// Reads records back from batches of spool or Parquet.
pub(crate) struct Records<'a> {
    definitions: &'a Definitions,
    names: Names,
}

impl<'a> Records<'a> {
    /// `definitions` give the fields of requests; of a service no longer defined the request is empty.
    pub(crate) fn new(definitions: &'a Definitions) -> Self {
        Self {
            definitions,
            names: Names::default(),
        }
    }

    /// The rows of a batch for which `wanted` says so, given their times and role.
    pub(crate) fn read(
        &mut self,
        batch: &RecordBatch,
        wanted: &mut dyn FnMut(&Row<'_>) -> bool,
    ) -> Result<Vec<PredictionRecord>, String> {
        let view = View::of(batch)?;
        let mut records = Vec::new();
        for index in 0..batch.num_rows() {
            let row = view.row(index)?;
            if wanted(&row) {
                records.push(self.record(&view, index, &row)?);
            }
        }
        Ok(records)
    }

    fn record(
        &mut self,
        view: &View<'_>,
        index: usize,
        row: &Row<'_>,
    ) -> Result<PredictionRecord, String> {
        let service = row.service.map(|name| self.names.intern(name));
        let request = match row.service.and_then(|name| self.definitions.service(name)) {
            Some(service) => parse_request(service, view.request.value(index))?,
            None => Vec::new(),
        };
        Ok(PredictionRecord {
            prediction: row.prediction,
            request_id: row.request_id.map(Into::into),
            model: self.names.intern(view.model.value(index)),
            version: view.version.value(index),
            role: row.role,
            at_ms: row.at_ms,
            service,
            request: request.into(),
            features: view.features(index)?.map(Arc::new),
            score: view.score.value(index),
            fallback_reason: optional(view.fallback_reason, index).map(Into::into),
        })
    }
}

/// What tells whether a row is wanted, before the rest of it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    pub(crate) prediction: PredictionKey,
    pub(crate) request_id: Option<&'a str>,
    pub(crate) role: Role,
    pub(crate) at_ms: i64,
    pub(crate) service: Option<&'a str>,
    pub(crate) has_features: bool,
}

/// The columns of a batch by type.
struct View<'a> {
    prediction_id: &'a StringArray,
    row: &'a UInt32Array,
    request_id: &'a StringArray,
    model: &'a StringArray,
    version: &'a UInt32Array,
    role: &'a StringArray,
    at: &'a TimestampMillisecondArray,
    service: &'a StringArray,
    score: &'a Float32Array,
    fallback_reason: &'a StringArray,
    as_of_seq: &'a UInt64Array,
    request: &'a StringArray,
    features: &'a ListArray,
    statuses: &'a ListArray,
    event_times: &'a ListArray,
}

impl<'a> View<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, String> {
        Ok(Self {
            prediction_id: texts(batch, "prediction_id")?,
            row: numbers(batch, "row")?,
            request_id: texts(batch, "request_id")?,
            model: texts(batch, "model")?,
            version: numbers(batch, "version")?,
            role: texts(batch, "role")?,
            at: numbers(batch, "at")?,
            service: texts(batch, "service")?,
            score: numbers(batch, "score")?,
            fallback_reason: texts(batch, "fallback_reason")?,
            as_of_seq: numbers(batch, "as_of_seq")?,
            request: texts(batch, "request")?,
            features: lists(batch, "features")?,
            statuses: lists(batch, "statuses")?,
            event_times: lists(batch, "event_times")?,
        })
    }

    fn row(&self, index: usize) -> Result<Row<'a>, String> {
        let id = self.prediction_id.value(index);
        let role = self.role.value(index);
        Ok(Row {
            prediction: PredictionKey {
                id: uuid::Uuid::try_parse(id).map_err(|_| format!("prediction id `{id}`"))?,
                row: self.row.value(index),
            },
            request_id: optional(self.request_id, index),
            role: Role::from_name(role).ok_or_else(|| format!("role `{role}`"))?,
            at_ms: self.at.value(index),
            service: optional(self.service, index),
            has_features: self.features.is_valid(index),
        })
    }

    fn features(&self, index: usize) -> Result<Option<FeatureRow>, String> {
        if self.features.is_null(index) {
            return Ok(None);
        }
        let values = self.features.value(index);
        let statuses = self.statuses.value(index);
        let times = self.event_times.value(index);
        let wrong = || "features, statuses or event times of a wrong type".to_owned();
        let values = values.as_primitive_opt::<Float32Type>().ok_or_else(wrong)?;
        let statuses = statuses.as_primitive_opt::<UInt8Type>().ok_or_else(wrong)?;
        let times = times.as_primitive_opt::<Int64Type>().ok_or_else(wrong)?;
        let statuses = statuses.values().iter().map(|&code| {
            Status::from_code(code).ok_or_else(|| format!("unknown feature status {code}"))
        });
        Ok(Some(FeatureRow {
            values: values.values().to_vec(),
            statuses: statuses.collect::<Result<_, _>>()?,
            event_times_ms: times.values().to_vec(),
            as_of_seq: self.as_of_seq.value(index),
        }))
    }
}

/// A column of strings, by name.
pub(crate) fn texts<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a StringArray, String> {
    let column = column(batch, name)?;
    column
        .as_string_opt()
        .ok_or_else(|| wrong_type(name, column))
}

/// A column of numbers or times, by name.
pub(crate) fn numbers<'a, T: ArrowPrimitiveType>(
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a PrimitiveArray<T>, String> {
    let column = column(batch, name)?;
    column
        .as_primitive_opt()
        .ok_or_else(|| wrong_type(name, column))
}

/// A column of lists, by name.
pub(crate) fn lists<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ListArray, String> {
    let column = column(batch, name)?;
    column.as_list_opt().ok_or_else(|| wrong_type(name, column))
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array, String> {
    let column = batch.column_by_name(name);
    Ok(column
        .ok_or_else(|| format!("no column `{name}`"))?
        .as_ref())
}

fn wrong_type(name: &str, column: &dyn Array) -> String {
    format!("column `{name}` is {}", column.data_type())
}

/// A string that may be null.
pub(crate) fn optional(column: &StringArray, index: usize) -> Option<&str> {
    column.is_valid(index).then(|| column.value(index))
}

/// The request of a service as the log has it; a field that it does not have is null.
pub(crate) fn parse_request(service: &Service, json: &str) -> Result<Vec<Value>, String> {
    values_of_object(&service.request, json.as_bytes(), |_| Ok(Value::Null))
        .map_err(|error| format!("request: {error}"))
}
