//! JSON lines: an object a line. A nullable field may be left out; other fields are ignored.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::HistoryError;
use super::table::{OnRow, Place, file_error, row_error};
use crate::value::{Field, Value, values_of_object};

/// The longest line of JSON, in bytes.
const LINE_BYTES_MAX: u64 = 1 << 20;

pub(super) fn read_json_lines(
    path: &Path,
    fields: &[Field],
    on_row: OnRow<'_>,
) -> Result<(), HistoryError> {
    let mut input = BufReader::new(File::open(path).map_err(|error| file_error(path, &error))?);
    let mut line = Vec::new();
    let mut at = Place { row: 0, bytes: 0 };
    loop {
        line.clear();
        let read = input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut line);
        match read.map_err(|error| file_error(path, &error))? {
            0 => return Ok(()),
            bytes => at.bytes += bytes as u64,
        }
        if line.len() as u64 == LINE_BYTES_MAX && !line.ends_with(b"\n") {
            let problem = format!("line is longer than {LINE_BYTES_MAX} bytes");
            return Err(row_error(path, at.row, &problem));
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let values = values_of_object(fields, &line, absent);
        let mut values = values.map_err(|error| row_error(path, at.row, &error))?;
        on_row(at, &mut values)?;
        at.row += 1;
    }
}

fn absent(field: &Field) -> Result<Value, &'static str> {
    match field.nullable {
        true => Ok(Value::Null),
        false => Err("missing"),
    }
}
