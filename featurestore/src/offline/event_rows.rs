//! The columns of event files: rows in, rows out.
//!
//! `_seq`, `_arrived` and `_event_time` come first, then the source's fields as it had them when the
//! event was logged, every one nullable. Ours are found by position: a source may have a field of any
//! of these names.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanBuilder, Float64Builder, Int64Builder, RecordBatch,
    StringBuilder, TimestampMillisecondBuilder, UInt64Builder,
};
use arrow::datatypes::{
    DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMillisecondType,
    UInt64Type,
};

use super::OfflineError;
use super::days::{About, DayFiles};
use super::manifest::SealedFile;
use super::segments::{FORMAT, FORMAT_KEY, Segment, corrupt};
use super::table::Table;
use crate::log::{Entry, WrittenSource};
use crate::value::{FieldType, Value};

/// File metadata: the source as it was, JSON.
const SOURCE_KEY: &str = "loopgate.source";
/// Where the source's fields begin.
const OURS: usize = 3;
/// Events that are collected before they are encoded.
const BATCH_ROWS: usize = 4096;

fn schema(source: &WrittenSource) -> SchemaRef {
    let utc = || DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new("_seq", DataType::UInt64, false),
        Field::new("_arrived", utc(), false),
        Field::new("_event_time", utc(), false),
    ];
    fields.extend(source.fields().map(|(name, ty)| {
        let ty = match ty {
            FieldType::Bool => DataType::Boolean,
            FieldType::Int => DataType::Int64,
            FieldType::Float => DataType::Float64,
            FieldType::String => DataType::Utf8,
            FieldType::Time => utc(),
        };
        Field::new(name, ty, true)
    }));
    let metadata = HashMap::from([
        (FORMAT_KEY.to_owned(), FORMAT.to_owned()),
        (SOURCE_KEY.to_owned(), source.to_json()),
    ]);
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// Values of one field in the making.
enum ColumnBuilder {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    String(StringBuilder),
    Time(TimestampMillisecondBuilder),
}

impl ColumnBuilder {
    fn new(ty: FieldType) -> Self {
        match ty {
            FieldType::Bool => Self::Bool(BooleanBuilder::new()),
            FieldType::Int => Self::Int(Int64Builder::new()),
            FieldType::Float => Self::Float(Float64Builder::new()),
            FieldType::String => Self::String(StringBuilder::new()),
            FieldType::Time => Self::Time(TimestampMillisecondBuilder::new().with_timezone("UTC")),
        }
    }

    /// Whether the value is of the column's type.
    fn push(&mut self, value: &Value) -> bool {
        match (self, value) {
            (Self::Bool(column), Value::Bool(flag)) => column.append_value(*flag),
            (Self::Bool(column), Value::Null) => column.append_null(),
            (Self::Int(column), Value::Int(number)) => column.append_value(*number),
            (Self::Int(column), Value::Null) => column.append_null(),
            (Self::Float(column), Value::Float(number)) => column.append_value(*number),
            (Self::Float(column), Value::Null) => column.append_null(),
            (Self::String(column), Value::String(text)) => column.append_value(text),
            (Self::String(column), Value::Null) => column.append_null(),
            (Self::Time(column), Value::Int(at_ms)) => column.append_value(*at_ms),
            (Self::Time(column), Value::Null) => column.append_null(),
            _ => return false,
        }
        true
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(column) => Arc::new(column.finish()),
            Self::Int(column) => Arc::new(column.finish()),
            Self::Float(column) => Arc::new(column.finish()),
            Self::String(column) => Arc::new(column.finish()),
            Self::Time(column) => Arc::new(column.finish()),
        }
    }
}

/// Writes events of one source, as it was at one time, into files by the day of their arrival.
pub(crate) struct EventFiles {
    files: DayFiles,
    schema: SchemaRef,
    rows: usize,
    seq: UInt64Builder,
    arrived: TimestampMillisecondBuilder,
    event_time: TimestampMillisecondBuilder,
    values: Vec<ColumnBuilder>,
}

impl EventFiles {
    /// Files of the events' table, in the source's folder.
    pub(crate) fn new(events: &Arc<Table>, source: &WrittenSource, about: About) -> Self {
        let time = || TimestampMillisecondBuilder::new().with_timezone("UTC");
        let schema = schema(source);
        Self {
            files: DayFiles::new(events, about, Arc::clone(&schema)),
            schema,
            rows: 0,
            seq: UInt64Builder::new(),
            arrived: time(),
            event_time: time(),
            values: source
                .fields()
                .map(|(_, ty)| ColumnBuilder::new(ty))
                .collect(),
        }
    }

    /// Adds an event.
    pub(crate) fn push(&mut self, seq: u64, entry: &Entry) -> Result<(), OfflineError> {
        let whole = self.values.len() == entry.values.len();
        let mut columns = self.values.iter_mut().zip(&*entry.values);
        if !whole || !columns.all(|(column, value)| column.push(value)) {
            let problem = format!("event {seq}: values do not fit the schema");
            return Err(self.files.failed(&problem));
        }
        self.seq.append_value(seq);
        self.arrived.append_value(entry.arrived_ms);
        self.event_time.append_value(entry.event_ms);
        self.rows += 1;
        if self.rows == BATCH_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    /// The files, whole and on disk; the table does not have them yet.
    pub(crate) fn finish(mut self) -> Result<Vec<SealedFile>, OfflineError> {
        self.flush()?;
        self.files.finish()
    }

    fn flush(&mut self) -> Result<(), OfflineError> {
        if self.rows == 0 {
            return Ok(());
        }
        self.rows = 0;
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(self.seq.finish()),
            Arc::new(self.arrived.finish()),
            Arc::new(self.event_time.finish()),
        ];
        columns.extend(self.values.iter_mut().map(ColumnBuilder::finish));
        let rows = RecordBatch::try_new(Arc::clone(&self.schema), columns);
        self.files
            .write(&rows.expect("the columns are the schema's"))
    }
}

/// The source that a file's events are of, as it was.
pub(crate) fn source_of(segment: &Segment) -> Result<WrittenSource, OfflineError> {
    let json = segment.schema().metadata().get(SOURCE_KEY);
    let source = json.and_then(|json| serde_json::from_str(json).ok());
    source.ok_or_else(|| {
        let problem = format!("no `{SOURCE_KEY}` in its metadata");
        corrupt(segment.path(), problem)
    })
}

/// Events of a batch, read one value at a time.
pub(crate) struct EventBatch {
    rows: RecordBatch,
}

impl EventBatch {
    /// Checks the types of our columns.
    pub(crate) fn new(rows: RecordBatch) -> Result<Self, String> {
        let ours = rows.num_columns() >= 2
            && rows.column(0).data_type() == &DataType::UInt64
            && matches!(
                rows.column(1).data_type(),
                DataType::Timestamp(TimeUnit::Millisecond, _)
            );
        match ours {
            true => Ok(Self { rows }),
            false => Err("its first columns are not `_seq` and `_arrived`".to_owned()),
        }
    }

    /// The sequence numbers, ascending.
    pub(crate) fn seqs(&self) -> &[u64] {
        self.rows.column(0).as_primitive::<UInt64Type>().values()
    }

    /// When the events arrived.
    pub(crate) fn arrivals(&self) -> &[i64] {
        let arrived = self.rows.column(1);
        arrived.as_primitive::<TimestampMillisecondType>().values()
    }

    /// The event times; empty where they were not read.
    pub(crate) fn event_times(&self) -> &[i64] {
        let column = self.rows.columns().get(2);
        let times = column.and_then(|it| it.as_primitive_opt::<TimestampMillisecondType>());
        times.map_or(&[], |times| times.values())
    }

    /// Field `index` of the source in row `row`.
    pub(crate) fn value(&self, row: usize, index: usize) -> Option<Value> {
        let column = self.rows.columns().get(OURS + index)?;
        if column.is_null(row) {
            return Some(Value::Null);
        }
        Some(match column.data_type() {
            DataType::Boolean => Value::Bool(column.as_boolean().value(row)),
            DataType::Int64 => Value::Int(column.as_primitive::<Int64Type>().value(row)),
            DataType::Float64 => Value::Float(column.as_primitive::<Float64Type>().value(row)),
            DataType::Utf8 => Value::String(column.as_string::<i32>().value(row).into()),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                let column = column.as_primitive::<TimestampMillisecondType>();
                Value::Int(column.value(row))
            }
            _ => return None,
        })
    }
}
