//! Files of rows from elsewhere, read as typed values by column name: Parquet here, and the formats of
//! text beside.
//!
//! Other columns than those asked for are ignored; one that is missing is an error that names it, and a
//! value that does not fit one that names file, row, field and value.

use std::fs::File;
use std::path::Path;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray,
    TimestampMillisecondArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, TimeUnit, TimestampMillisecondType};
use arrow::util::display::array_value_to_string;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::HistoryError;
use super::csv::read_csv;
use super::json::read_json_lines;
use crate::value::{Field, FieldType, Value};

/// Rows of Parquet that are decoded at a time.
const BATCH_ROWS: usize = 8192;

/// Where a row stands in its file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// From 0.
    pub(super) row: usize,
    /// Of the file, up to the end of the row; of Parquet its share.
    pub(super) bytes: u64,
}

/// Takes each row's values, in the order of the fields asked for. The list is filled anew for the next.
pub(super) type OnRow<'a> = &'a mut dyn FnMut(Place, &mut Vec<Value>) -> Result<(), HistoryError>;

/// Calls `on_row` for each row. A nullable column may be missing from a JSON row, but not from a Parquet
/// or CSV file.
pub(super) fn read_rows(
    path: &Path,
    fields: &[Field],
    on_row: OnRow<'_>,
) -> Result<(), HistoryError> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("parquet") => read_parquet(path, fields, on_row),
        Some("csv") => read_csv(path, fields, on_row),
        _ => read_json_lines(path, fields, on_row),
    }
}

fn read_parquet(path: &Path, fields: &[Field], on_row: OnRow<'_>) -> Result<(), HistoryError> {
    let failed = |error: &dyn std::fmt::Display| file_error(path, error);
    let file = File::open(path).map_err(|error| failed(&error))?;
    let bytes = file.metadata().map_err(|error| failed(&error))?.len();
    let builder = ParquetRecordBatchReaderBuilder::try_new(file);
    let builder = builder.map_err(|error| failed(&error))?;
    let rows = builder.metadata().file_metadata().num_rows();
    for field in fields {
        if builder.schema().column_with_name(&field.name).is_none() {
            let problem = format!("has no column `{}` ({})", field.name, field.ty);
            return Err(failed(&problem));
        }
    }
    let names = fields.iter().map(|field| &*field.name);
    let mask = ProjectionMask::columns(builder.parquet_schema(), names);
    let batches = builder
        .with_projection(mask)
        .with_batch_size(BATCH_ROWS)
        .build()
        .map_err(|error| failed(&error))?;
    let mut first = 0;
    let mut values = Vec::with_capacity(fields.len());
    for batch in batches {
        let batch = batch.map_err(|error| failed(&error))?;
        let column = |field| Column::of((path, first), &batch, field);
        let columns = fields.iter().map(column).collect::<Result<Vec<_>, _>>()?;
        for index in 0..batch.num_rows() {
            let row = first + index;
            values.clear();
            values.extend(columns.iter().map(|column| column.value(index)));
            let share = bytes as f64 * (row + 1) as f64 / rows.max(1) as f64;
            on_row(
                Place {
                    row,
                    bytes: share as u64,
                },
                &mut values,
            )?;
        }
        first += batch.num_rows();
    }
    Ok(())
}

/// A column cast to the one Arrow type of its field.
enum Column {
    Bool(BooleanArray),
    Int(Int64Array),
    Float(Float64Array),
    Text(StringArray),
    Time(TimestampMillisecondArray),
}

impl Column {
    fn of(
        (path, first): (&Path, usize),
        batch: &RecordBatch,
        field: &Field,
    ) -> Result<Self, HistoryError> {
        let column = batch.column_by_name(&field.name);
        let column = column.expect("the file's schema has every column asked for");
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
            let problem = format!("column `{name}` is {found}, expected {expected}");
            return Err(file_error(path, &problem));
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
        // What cannot be cast becomes a null, which is then looked for.
        let cast = cast(column, &to)
            .map_err(|error| file_error(path, &format!("column `{}`: {error}", field.name)))?;
        if let Some(index) = lost(column, &cast) {
            let value = array_value_to_string(column, index).unwrap_or_default();
            let problem = format!("expected {}, found `{value}`", field.ty);
            return Err(field_error(path, first + index, field, &problem));
        }
        Ok(match (field.ty, &to) {
            (FieldType::Bool, _) => Self::Bool(cast.as_boolean().clone()),
            (FieldType::Float, _) => Self::Float(cast.as_primitive::<Float64Type>().clone()),
            (FieldType::String, _) => Self::Text(cast.as_string::<i32>().clone()),
            (FieldType::Time, DataType::Timestamp(_, _)) => {
                Self::Time(cast.as_primitive::<TimestampMillisecondType>().clone())
            }
            (FieldType::Int | FieldType::Time, _) => {
                Self::Int(cast.as_primitive::<Int64Type>().clone())
            }
        })
    }

    /// Null where the column is null; a NaN is taken for a null too, as data frames write them.
    fn value(&self, index: usize) -> Value {
        match self {
            Self::Bool(array) if array.is_valid(index) => Value::Bool(array.value(index)),
            Self::Int(array) if array.is_valid(index) => Value::Int(array.value(index)),
            Self::Float(array) if array.is_valid(index) => match array.value(index) {
                number if number.is_nan() => Value::Null,
                number => Value::Float(number),
            },
            Self::Text(array) if array.is_valid(index) => Value::String(array.value(index).into()),
            Self::Time(array) if array.is_valid(index) => Value::Int(array.value(index)),
            _ => Value::Null,
        }
    }
}

/// The first value that the cast has lost.
fn lost(from: &ArrayRef, to: &ArrayRef) -> Option<usize> {
    if from.logical_null_count() == to.logical_null_count() {
        return None;
    }
    let nulls = from.logical_nulls();
    let was_null = |index: usize| nulls.as_ref().is_some_and(|nulls| nulls.is_null(index));
    (0..to.len()).find(|&index| to.is_null(index) && !was_null(index))
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

pub(super) fn field_error(
    path: &Path,
    row: usize,
    field: &Field,
    problem: &dyn std::fmt::Display,
) -> HistoryError {
    row_error(path, row, &format!("field `{}`: {problem}", field.name))
}
