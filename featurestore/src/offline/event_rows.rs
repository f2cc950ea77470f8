//! The columns of event files: rows in, rows out.
//!
//! `_seq`, `_arrived` and `_event_time` come first, then the source's fields as it had them when the
//! event was logged, every one nullable. Ours are found by position: a source may have a field of any
//! of these names.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, BooleanBuilder, Float64Array, Float64Builder,
    Int64Array, Int64Builder, PrimitiveArray, RecordBatch, StringArray, StringBuilder,
    TimestampMillisecondArray, TimestampMillisecondBuilder, UInt64Array, UInt64Builder,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

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
    seqs: UInt64Array,
    arrived: TimestampMillisecondArray,
    /// `None` where nothing but numbers and arrivals was read.
    event_time: Option<TimestampMillisecondArray>,
    values: Vec<Column>,
}

/// Values of one field.
enum Column {
    Bool(BooleanArray),
    Int(Int64Array),
    Float(Float64Array),
    String(StringArray),
    Time(TimestampMillisecondArray),
}

impl EventBatch {
    /// Of the rows of an event file.
    pub(crate) fn new(rows: &RecordBatch) -> Result<Self, String> {
        let ours = |index: usize| rows.columns().get(index).map(AsArray::as_primitive_opt);
        let seqs = rows.columns().first().and_then(AsArray::as_primitive_opt);
        let arrived = ours(1).flatten();
        let (Some(seqs), Some(arrived)) = (seqs, arrived) else {
            return Err("its first columns are not `_seq` and `_arrived`".to_owned());
        };
        let event_time = match ours(2) {
            Some(None) => return Err("its third column is not `_event_time`".to_owned()),
            Some(Some(times)) => Some(PrimitiveArray::clone(times)),
            None => None,
        };
        let values = rows.columns().iter().skip(OURS).enumerate();
        let values = values.map(|(index, column)| {
            let column = Column::of(column);
            column.ok_or_else(|| format!("field {index} of its source is of a type unknown"))
        });
        Ok(Self {
            seqs: PrimitiveArray::clone(seqs),
            arrived: PrimitiveArray::clone(arrived),
            event_time,
            values: values.collect::<Result<_, _>>()?,
        })
    }

    /// The sequence numbers, ascending.
    pub(crate) fn seqs(&self) -> &[u64] {
        self.seqs.values()
    }

    /// When the events arrived.
    pub(crate) fn arrivals(&self) -> &[i64] {
        self.arrived.values()
    }

    /// The event times; empty where they were not read.
    pub(crate) fn event_times(&self) -> &[i64] {
        self.event_time.as_ref().map_or(&[], |times| times.values())
    }

    /// Field `index` of the source in row `row`; `None` where the file has no such field.
    pub(crate) fn value(&self, row: usize, index: usize) -> Option<Value> {
        self.values.get(index).map(|column| column.value(row))
    }
}

impl Column {
    fn of(column: &ArrayRef) -> Option<Self> {
        Some(match column.data_type() {
            DataType::Boolean => Self::Bool(column.as_boolean().clone()),
            DataType::Int64 => Self::Int(column.as_primitive().clone()),
            DataType::Float64 => Self::Float(column.as_primitive().clone()),
            DataType::Utf8 => Self::String(column.as_string().clone()),
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                Self::Time(column.as_primitive().clone())
            }
            _ => return None,
        })
    }

    fn value(&self, row: usize) -> Value {
        match self {
            Self::Bool(column) if column.is_valid(row) => Value::Bool(column.value(row)),
            Self::Int(column) if column.is_valid(row) => Value::Int(column.value(row)),
            Self::Float(column) if column.is_valid(row) => Value::Float(column.value(row)),
            Self::String(column) if column.is_valid(row) => Value::String(column.value(row).into()),
            Self::Time(column) if column.is_valid(row) => Value::Int(column.value(row)),
            _ => Value::Null,
        }
    }
}
