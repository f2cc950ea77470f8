//! JSON lines: an object a line. A nullable field may be left out; other fields are ignored.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use super::HistoryError;
use super::table::{OnRow, Place, field_error, file_error, row_error};
use crate::value::{Field, Value};

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
        let json: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&line).map_err(|error| row_error(path, at.row, &error))?;
        let value = |field: &Field| match json.get(&*field.name) {
            Some(json) => field
                .parse_json(json)
                .map_err(|problem| field_error(path, at.row, field, &problem)),
            None if field.nullable => Ok(Value::Null),
            None => Err(field_error(path, at.row, field, &"missing")),
        };
        let values = fields.iter().map(value).collect::<Result<_, _>>()?;
        on_row(at, values)?;
        at.row += 1;
    }
}
