//! Files of rows from elsewhere, Parquet or JSON lines, read as typed values by column name.
//!
//! Other columns than those asked for are ignored; one that is missing is an error that names it.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMillisecondType};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::HistoryError;
use crate::value::{Field, FieldType, Value};

/// The longest line of JSON, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Rows of Parquet that are decoded at a time.
const BATCH_ROWS: usize = 8192;

/// Calls `on_row` with the number (from 0) and the values of each row, in the order of `fields`. A
/// nullable column may be missing from a JSON row, but not from a Parquet file.
pub(super) fn read_rows(
    path: &Path,
    fields: &[Field],
    on_row: &mut dyn FnMut(usize, Vec<Value>) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    match path.extension().is_some_and(|ending| ending == "parquet") {
        true => read_parquet(path, fields, on_row),
        false => read_json_lines(path, fields, on_row),
    }
}

fn read_json_lines(
    path: &Path,
    fields: &[Field],
    on_row: &mut dyn FnMut(usize, Vec<Value>) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let mut input = BufReader::new(File::open(path).map_err(|error| file_error(path, &error))?);
    let mut line = Vec::new();
    let mut row = 0;
    loop {
        line.clear();
        let read = input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        if read.map_err(|error| file_error(path, &error))? == 0 {
            return Ok(());
        }
        if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            let problem = format!("line is longer than {LINE_BYTES_MAX} bytes");
            return Err(row_error(path, row, &problem));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let json: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&line).map_err(|error| row_error(path, row, &error))?;
        let value = |field: &Field| {
            let json = json.get(&*field.name);
            let value = match json {
                Some(json) => field.parse_json(json).map_err(|error| error.to_string()),
                None if field.nullable => Ok(Value::Null),
                None => Err("missing".to_owned()),
            };
            value.map_err(|problem| {
                row_error(path, row, &format!("field `{}`: {problem}", field.name))
            })
        };
        let values = fields.iter().map(value).collect::<Result<_, _>>()?;
        on_row(row, values)?;
        row += 1;
    }
}

fn read_parquet(
    path: &Path,
    fields: &[Field],
    on_row: &mut dyn FnMut(usize, Vec<Value>) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let file = File::open(path).map_err(|error| file_error(path, &error))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file);
    let builder = builder.map_err(|error| file_error(path, &error))?;
    for field in fields {
        if builder.schema().column_with_name(&field.name).is_none() {
            let problem = format!("has no column `{}` ({})", field.name, field.ty);
            return Err(file_error(path, &problem));
        }
    }
    let names = fields.iter().map(|field| &*field.name);
    let mask = ProjectionMask::columns(builder.parquet_schema(), names);
    let batches = builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|error| file_error(path, &error))?;
    let mut first = 0;
    for batch in batches {
        let batch = batch.map_err(|error| file_error(path, &error))?;
        let columns = fields
            .iter()
            .map(|field| Column::of(&batch, field))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|problem| file_error(path, &problem))?;
        for index in 0..batch.num_rows() {
            let values = columns.iter().map(|column| column.value(index)).collect();
            on_row(first + index, values)?;
        }
        first += batch.num_rows();
    }
    Ok(())
}

/// A column cast to the one Arrow type of its field.
enum Column {
    Bool(ArrayRef),
    Int(ArrayRef),
    Float(ArrayRef),
    Text(ArrayRef),
    Time(ArrayRef),
}

impl Column {
    fn of(batch: &RecordBatch, field: &Field) -> Result<Self, String> {
        let column = batch
            .column_by_name(&field.name)
            .ok_or_else(|| format!("has no column `{}`", field.name))?;
        let found = column.data_type();
        let fits = match field.ty {
            FieldType::Bool => *found == DataType::Boolean,
            FieldType::Int => found.is_integer(),
            // Labels are often stored as booleans.
            FieldType::Float => found.is_numeric() || *found == DataType::Boolean,
            FieldType::String => match found {
                DataType::Dictionary(_, value) => value.is_string(),
                other => other.is_string(),
            },
            FieldType::Time => found.is_integer() || matches!(found, DataType::Timestamp(_, _)),
        };
        if !fits {
            let (name, expected) = (&field.name, field.ty);
            return Err(format!("column `{name}` is {found}, expected {expected}"));
        }
        let to = match (field.ty, found) {
            (FieldType::Bool, _) => DataType::Boolean,
            (FieldType::Float, _) => DataType::Float64,
            (FieldType::String, _) => DataType::Utf8,
            (FieldType::Time, DataType::Timestamp(_, zone)) => {
                DataType::Timestamp(TimeUnit::Millisecond, zone.clone())
            }
            (FieldType::Int | FieldType::Time, _) => DataType::Int64,
        };
        let options = CastOptions {
            safe: false,
            ..CastOptions::default()
        };
        let cast = cast_with_options(column, &to, &options)
            .map_err(|error| format!("column `{}`: {error}", field.name))?;
        Ok(match (field.ty, &to) {
            (FieldType::Bool, _) => Self::Bool(cast),
            (FieldType::Float, _) => Self::Float(cast),
            (FieldType::String, _) => Self::Text(cast),
            (FieldType::Time, DataType::Timestamp(_, _)) => Self::Time(cast),
            (FieldType::Int | FieldType::Time, _) => Self::Int(cast),
        })
    }

    /// Null where the column is null; a NaN is taken for a null too, as data frames write them.
    fn value(&self, index: usize) -> Value {
        let (Self::Bool(array)
        | Self::Int(array)
        | Self::Float(array)
        | Self::Text(array)
        | Self::Time(array)) = self;
        if array.is_null(index) {
            return Value::Null;
        }
        match self {
            Self::Bool(array) => Value::Bool(array.as_boolean().value(index)),
            Self::Int(array) => Value::Int(array.as_primitive::<Int64Type>().value(index)),
            Self::Float(array) => match array.as_primitive::<Float64Type>().value(index) {
                number if number.is_nan() => Value::Null,
                number => Value::Float(number),
            },
            Self::Text(array) => Value::String(array.as_string::<i32>().value(index).into()),
            Self::Time(array) => Value::Int(
                array
                    .as_primitive::<TimestampMillisecondType>()
                    .value(index),
            ),
        }
    }
}

pub(super) fn file_error(path: &Path, problem: &dyn std::fmt::Display) -> HistoryError {
    HistoryError::File {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

pub(super) fn row_error(path: &Path, row: usize, problem: &dyn std::fmt::Display) -> HistoryError {
    HistoryError::Row {
        path: path.to_owned(),
        row,
        problem: problem.to_string(),
    }
}
