//! Rows of typed columns into a Parquet, CSV or JSON lines file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Float32Builder, Float64Builder, Int64Builder, RecordBatch,
    StringBuilder, TimestampMillisecondBuilder,
};
use arrow::datatypes::{DataType, Field as ArrowField, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

use crate::value::{Field, FieldType, Value};

/// A column of the file.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) kind: ColumnKind,
    pub(super) nullable: bool,
}

/// What a column holds.
#[derive(Clone, Copy)]
pub(super) enum ColumnKind {
    Field(FieldType),
    /// 32-bit floats; NaN is null
    Feature,
}

impl Column {
    pub(super) fn of_field(field: &Field) -> Self {
        Self {
            name: field.name.to_string(),
            kind: ColumnKind::Field(field.ty),
            nullable: field.nullable,
        }
    }

    fn data_type(&self) -> DataType {
        match self.kind {
            ColumnKind::Field(FieldType::Bool) => DataType::Boolean,
            ColumnKind::Field(FieldType::Int) => DataType::Int64,
            ColumnKind::Field(FieldType::Float) => DataType::Float64,
            ColumnKind::Field(FieldType::String) => DataType::Utf8,
            ColumnKind::Field(FieldType::Time) => {
                DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
            }
            ColumnKind::Feature => DataType::Float32,
        }
    }
}

/// One cell of a row; it fits its column.
pub(super) enum Cell<'a> {
    Value(&'a Value),
    Feature(f32),
}

impl Cell<'_> {
    fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Value(value) => value.to_json(),
            // NaN has no JSON form and becomes null.
            Self::Feature(value) => (*value).into(),
        }
    }
}

/// Rows of a batch, and of a Parquet row group.
const BATCH_ROWS: usize = 16_384;

/// Where rows go.
pub(super) struct Sink {
    columns: Vec<Column>,
    format: Format,
    rows: u64,
}

enum Format {
    Parquet(Box<Batches>),
    Csv(Box<csv::Writer<File>>),
    Lines(BufWriter<File>),
}

impl Sink {
    /// Makes the file `part`, in the format that the ending of `named` says.
    pub(super) fn new(part: &Path, named: &Path, columns: Vec<Column>) -> Result<Self, String> {
        let file = File::create(part).map_err(|error| error.to_string())?;
        let ending = named.extension().and_then(|ending| ending.to_str());
        let format = match ending {
            Some("parquet") => Format::Parquet(Box::new(Batches::new(file, &columns)?)),
            Some("csv") => {
                let mut writer = csv::Writer::from_writer(file);
                let names = columns.iter().map(|column| &column.name);
                writer
                    .write_record(names)
                    .map_err(|error| error.to_string())?;
                Format::Csv(Box::new(writer))
            }
            _ => Format::Lines(BufWriter::new(file)),
        };
        Ok(Self {
            columns,
            format,
            rows: 0,
        })
    }

    /// Adds a row, with a cell for each column.
    pub(super) fn push<'a>(&mut self, cells: impl Iterator<Item = Cell<'a>>) -> Result<(), String> {
        self.rows += 1;
        match &mut self.format {
            Format::Parquet(batches) => batches.push(cells),
            Format::Csv(writer) => {
                let texts = cells.map(|cell| match cell.to_json() {
                    serde_json::Value::Null => String::new(),
                    serde_json::Value::String(text) => text,
                    other => other.to_string(),
                });
                writer
                    .write_record(texts)
                    .map_err(|error| error.to_string())
            }
            Format::Lines(writer) => {
                let names = self.columns.iter().map(|column| column.name.clone());
                let row: serde_json::Map<_, _> =
                    names.zip(cells.map(|cell| cell.to_json())).collect();
                writeln!(writer, "{}", serde_json::Value::Object(row))
                    .map_err(|error| error.to_string())
            }
        }
    }

    /// Completes the file; the answer is how many rows it has.
    pub(super) fn finish(self) -> Result<u64, String> {
        match self.format {
            Format::Parquet(batches) => batches.finish()?,
            Format::Csv(mut writer) => writer.flush().map_err(|error| error.to_string())?,
            Format::Lines(mut writer) => writer.flush().map_err(|error| error.to_string())?,
        }
        Ok(self.rows)
    }
}

/// A Parquet file, a batch of rows at a time.
struct Batches {
    writer: ArrowWriter<File>,
    schema: SchemaRef,
    builders: Vec<Builder>,
    rows: usize,
}

enum Builder {
    Bool(BooleanBuilder),
    Int(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
    Time(TimestampMillisecondBuilder),
    Feature(Float32Builder),
}

impl Batches {
    fn new(file: File, columns: &[Column]) -> Result<Self, String> {
        let fields: Vec<ArrowField> = columns
            .iter()
            .map(|column| ArrowField::new(&column.name, column.data_type(), column.nullable))
            .collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let level = ZstdLevel::try_new(1).map_err(|error| error.to_string())?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(level))
            .set_max_row_group_row_count(Some(BATCH_ROWS))
            .build();
        let writer = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties));
        Ok(Self {
            writer: writer.map_err(|error| error.to_string())?,
            builders: columns
                .iter()
                .map(|column| Builder::of(column.kind))
                .collect(),
            schema,
            rows: 0,
        })
    }

    fn push<'a>(&mut self, cells: impl Iterator<Item = Cell<'a>>) -> Result<(), String> {
        for (builder, cell) in self.builders.iter_mut().zip(cells) {
            builder.push(&cell);
        }
        self.rows += 1;
        if self.rows == BATCH_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), String> {
        self.rows = 0;
        let arrays = self.builders.iter_mut().map(Builder::finish).collect();
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays);
        let batch = batch.map_err(|error| error.to_string())?;
        self.writer.write(&batch).map_err(|error| error.to_string())
    }

    fn finish(mut self: Box<Self>) -> Result<(), String> {
        if self.rows > 0 {
            self.flush()?;
        }
        let closed = self.writer.close();
        closed.map(drop).map_err(|error| error.to_string())
    }
}

impl Builder {
    fn of(kind: ColumnKind) -> Self {
        match kind {
            ColumnKind::Field(FieldType::Bool) => Self::Bool(BooleanBuilder::new()),
            ColumnKind::Field(FieldType::Int) => Self::Int(Int64Builder::new()),
            ColumnKind::Field(FieldType::Float) => Self::Float(Float64Builder::new()),
            ColumnKind::Field(FieldType::String) => Self::Text(StringBuilder::new()),
            ColumnKind::Field(FieldType::Time) => {
                Self::Time(TimestampMillisecondBuilder::new().with_timezone("UTC"))
            }
            ColumnKind::Feature => Self::Feature(Float32Builder::new()),
        }
    }

    /// Adds a cell; what does not fit the column, which no checked value does, is null.
    fn push(&mut self, cell: &Cell<'_>) {
        match (self, cell) {
            (Self::Bool(it), Cell::Value(Value::Bool(flag))) => it.append_value(*flag),
            (Self::Bool(it), _) => it.append_null(),
            (Self::Int(it), Cell::Value(Value::Int(number))) => it.append_value(*number),
            (Self::Int(it), _) => it.append_null(),
            (Self::Float(it), Cell::Value(Value::Float(number))) => it.append_value(*number),
            (Self::Float(it), _) => it.append_null(),
            (Self::Text(it), Cell::Value(Value::String(text))) => it.append_value(text),
            (Self::Text(it), _) => it.append_null(),
            (Self::Time(it), Cell::Value(Value::Int(ms))) => it.append_value(*ms),
            (Self::Time(it), _) => it.append_null(),
            (Self::Feature(it), Cell::Feature(value)) if !value.is_nan() => {
                it.append_value(*value);
            }
            (Self::Feature(it), _) => it.append_null(),
        }
    }

    fn finish(&mut self) -> ArrayRef {
        match self {
            Self::Bool(it) => Arc::new(it.finish()),
            Self::Int(it) => Arc::new(it.finish()),
            Self::Float(it) => Arc::new(it.finish()),
            Self::Text(it) => Arc::new(it.finish()),
            Self::Time(it) => Arc::new(it.finish()),
            Self::Feature(it) => Arc::new(it.finish()),
        }
    }
}
