//! CSV: a line of names first, commas, quotes as in RFC 4180. What is empty is null.

use std::fs::File;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};

use super::HistoryError;
use super::table::{OnRow, Place, field_error, file_error, row_error};
use crate::value::{Field, FieldProblem, FieldType, Value, shorten, time_ms};

/// Reads the columns named as `fields`; others are ignored.
pub(super) fn read_csv(
    path: &Path,
    fields: &[Field],
    on_row: OnRow<'_>,
) -> Result<(), HistoryError> {
    let file = File::open(path).map_err(|error| file_error(path, &error))?;
    let mut rows = ReaderBuilder::new()
        .buffer_capacity(1 << 18)
        .from_reader(file);
    let names = rows.byte_headers();
    let names = names.map_err(|error| file_error(path, &error))?.clone();
    let column = |field: &Field| {
        let place = names.iter().position(|name| name == field.name.as_bytes());
        place.ok_or_else(|| {
            let problem = format!("has no column `{}` ({})", field.name, field.ty);
            file_error(path, &problem)
        })
    };
    let columns = fields.iter().map(column).collect::<Result<Vec<_>, _>>()?;
    let mut record = ByteRecord::new();
    let mut values = Vec::with_capacity(fields.len());
    let mut row = 0;
    while rows
        .read_byte_record(&mut record)
        .map_err(|error| row_error(path, row, &error))?
    {
        values.clear();
        for (field, &column) in fields.iter().zip(&columns) {
            let text = record.get(column).unwrap_or_default();
            let value = value_of(field, text);
            values.push(value.map_err(|problem| field_error(path, row, field, &problem))?);
        }
        let bytes = rows.position().byte();
        on_row(Place { row, bytes }, &mut values)?;
        row += 1;
    }
    Ok(())
}

/// The value that a text stands for. Whether it may be null and how large it may be is the field's.
fn value_of(field: &Field, text: &[u8]) -> Result<Value, FieldProblem> {
    let wrong = || FieldProblem::WrongType {
        expected: field.ty,
        value: shorten(&String::from_utf8_lossy(text)),
    };
    let text = std::str::from_utf8(text).map_err(|_| wrong())?;
    if text.is_empty() && (field.nullable || field.ty != FieldType::String) {
        return Ok(Value::Null);
    }
    Ok(match field.ty {
        FieldType::Bool => Value::Bool(match text {
            "true" | "True" | "TRUE" | "1" => true,
            "false" | "False" | "FALSE" | "0" => false,
            _ => return Err(wrong()),
        }),
        FieldType::Int => Value::Int(text.parse().map_err(|_| wrong())?),
        FieldType::Float => Value::Float(text.parse().map_err(|_| wrong())?),
        FieldType::String => Value::String(text.into()),
        FieldType::Time => Value::Int(match text.parse() {
            Ok(ms) => ms,
            Err(_) => time_ms(&text.into())?,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_become_values_of_their_field() {
        let field = |ty, nullable| Field {
            name: "x".into(),
            ty,
            nullable,
        };
        let read = |ty, text: &str| value_of(&field(ty, true), text.as_bytes());
        assert_eq!(read(FieldType::Bool, "True"), Ok(Value::Bool(true)));
        assert_eq!(read(FieldType::Int, "-12"), Ok(Value::Int(-12)));
        assert_eq!(read(FieldType::Float, "1e3"), Ok(Value::Float(1000.0)));
        assert_eq!(read(FieldType::Time, "1500"), Ok(Value::Int(1500)));
        let rfc = "1970-01-01T00:00:01.5Z";
        assert_eq!(read(FieldType::Time, rfc), Ok(Value::Int(1500)));
        assert_eq!(read(FieldType::String, ""), Ok(Value::Null));
        let string = field(FieldType::String, false);
        assert_eq!(value_of(&string, b""), Ok(Value::String("".into())));
        assert!(value_of(&string, b"\xff").is_err());
        for (ty, text) in [
            (FieldType::Bool, "yes"),
            (FieldType::Int, "1.0"),
            (FieldType::Float, "1,5"),
            (FieldType::Time, "yesterday"),
        ] {
            let problem = read(ty, text).unwrap_err().to_string();
            assert!(problem.contains(text), "{problem}");
        }
    }
}
