//! The answer, written column by column into one buffer.
//!
//! A column's cells are written once for each state and then copied to the rows that share it. Columns of
//! one view have the same times, and mostly the same statuses: such a list is copied from the column
//! before.

use std::borrow::Cow;
use std::ops::Range;

use featurestore::{FieldType, Status, Value, View};

use super::error::FeastError;
use super::{FeastRules, time};
use crate::oip::{write_float, write_integer, write_string};

/// An answer's bytes at most, to within its last column.
const BYTES_MAX: usize = 64 << 20;

/// The cells of a column by slot: the rows that share a state share its cell.
#[derive(Debug, Default)]
pub(super) struct Cells {
    /// Each with the comma that follows it.
    values: Vec<u8>,
    ends: Vec<usize>,
    statuses: Vec<Status>,
    times_ms: Vec<i64>,
}

/// A value of an answer.
#[derive(Clone, Debug)]
pub(super) struct Cell<'v> {
    pub value: Cow<'v, Value>,
    pub ty: FieldType,
    pub status: Status,
    pub event_ms: i64,
}

impl<'v> Cell<'v> {
    /// Of a column that the request brought.
    pub(super) fn given(value: &'v Value, ty: FieldType) -> Self {
        Self {
            value: Cow::Borrowed(value),
            ty,
            status: Status::Present,
            event_ms: 0,
        }
    }
}

impl Cells {
    /// Empties them for the next column.
    pub(super) fn clear(&mut self) {
        self.values.clear();
        self.ends.clear();
        self.statuses.clear();
        self.times_ms.clear();
    }

    /// Adds the cell of the next slot.
    pub(super) fn push(&mut self, cell: &Cell<'_>, rules: FeastRules) {
        write_value(&mut self.values, cell, rules);
        self.values.push(b',');
        self.ends.push(self.values.len());
        self.statuses.push(cell.status);
        self.times_ms.push(cell.event_ms);
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Those of slots that follow one another, each with its comma.
    fn values(&self, slots: Range<usize>) -> &[u8] {
        let end = |slot: Option<usize>| slot.map_or(0, |slot| self.ends[slot]);
        &self.values[end(slots.start.checked_sub(1))..end(slots.end.checked_sub(1))]
    }
}

/// The answer of `/get-online-features`.
#[derive(Debug)]
pub(super) struct Answer {
    out: Vec<u8>,
    columns: usize,
    rules: FeastRules,
    statuses: Lists<Status>,
    times_ms: Lists<i64>,
}

impl Answer {
    /// Begins one of about so many cells.
    pub(super) fn new(cells: usize, rules: FeastRules) -> Self {
        const CELL_BYTES: usize = 48;
        let mut out = Vec::with_capacity((cells * CELL_BYTES).min(BYTES_MAX) + 256);
        out.extend_from_slice(b"{\"results\":[");
        Self {
            out,
            columns: 0,
            rules,
            statuses: Lists::default(),
            times_ms: Lists::default(),
        }
    }

    /// Adds a column; `slots` gives each row's cell.
    pub(super) fn column(
        &mut self,
        cells: &Cells,
        slots: impl Iterator<Item = usize> + Clone,
    ) -> Result<(), FeastError> {
        let out = &mut self.out;
        if self.columns > 0 {
            out.push(b',');
        }
        self.columns += 1;
        out.extend_from_slice(b"{\"values\":[");
        // Mostly each row has the next slot: what follows one another is copied at once.
        let mut run = 0..0;
        for slot in slots.clone() {
            if slot != run.end {
                out.extend_from_slice(cells.values(run));
                run = slot..slot;
            }
            run.end += 1;
        }
        out.extend_from_slice(cells.values(run));
        if out.last() == Some(&b',') {
            out.pop();
        }
        out.extend_from_slice(b"],\"statuses\":[");
        let compat = self.rules.compat;
        let statuses = slots.clone().map(|slot| cells.statuses[slot]);
        self.statuses.write(out, statuses.collect(), |out, status| {
            out.extend_from_slice(status_text(*status, compat));
        });
        out.extend_from_slice(b"],\"event_timestamps\":[");
        let times_ms = slots.map(|slot| cells.times_ms[slot]);
        self.times_ms
            .write(out, times_ms.collect(), |out, ms| write_time(out, *ms));
        out.extend_from_slice(b"]}");
        if out.len() > BYTES_MAX {
            let bytes_max = BYTES_MAX;
            return Err(FeastError::AnswerSize { bytes_max });
        }
        Ok(())
    }

    /// Ends it with the columns' names, and the versions of views where they were asked for.
    pub(super) fn finish<'v>(
        self,
        names: &[Cow<'_, str>],
        versions: Option<impl Iterator<Item = &'v View>>,
    ) -> Vec<u8> {
        let mut out = self.out;
        out.extend_from_slice(b"],\"metadata\":{\"feature_names\":[");
        list(&mut out, names.iter(), |out, name| write_string(out, name));
        out.push(b']');
        if let Some(views) = versions {
            out.extend_from_slice(b",\"feature_view_metadata\":[");
            list(&mut out, views, |out, view| {
                out.extend_from_slice(b"{\"name\":");
                write_string(out, &view.name);
                out.extend_from_slice(b",\"version\":");
                write_integer(out, &view.version);
                out.push(b'}');
            });
            out.push(b']');
        }
        out.extend_from_slice(b"}}");
        out
    }
}

/// Lists that stand in the answer already, the latest of them.
#[derive(Debug)]
struct Lists<T>(Vec<(Vec<T>, Range<usize>)>);

/// As many as the views that columns take turns in.
const LISTS_KEPT: usize = 8;

impl<T> Default for Lists<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: PartialEq> Lists<T> {
    /// Appends a list, one item for each row.
    fn write(&mut self, out: &mut Vec<u8>, items: Vec<T>, write: impl Fn(&mut Vec<u8>, &T)) {
        if let Some((_, place)) = self.0.iter().rev().find(|(held, _)| *held == items) {
            out.extend_from_within(place.clone());
            return;
        }
        let start = out.len();
        list(out, items.iter(), write);
        if self.0.len() == LISTS_KEPT {
            self.0.remove(0);
        }
        self.0.push((items, start..out.len()));
    }
}

fn list<T>(out: &mut Vec<u8>, items: impl Iterator<Item = T>, write: impl Fn(&mut Vec<u8>, T)) {
    for (k, item) in items.enumerate() {
        if k > 0 {
            out.push(b',');
        }
        write(out, item);
    }
}

/// Feast knows no `UNKNOWN_CATEGORY`: there is no value. Its server calls a null `PRESENT`.
fn status_text(status: Status, compat: bool) -> &'static [u8] {
    match status {
        Status::NotFound => b"\"NOT_FOUND\"",
        Status::OutsideMaxAge => b"\"OUTSIDE_MAX_AGE\"",
        Status::NullValue | Status::UnknownCategory if !compat => b"\"NULL_VALUE\"",
        Status::Present | Status::NullValue | Status::UnknownCategory => b"\"PRESENT\"",
    }
}

fn write_value(out: &mut Vec<u8>, cell: &Cell<'_>, rules: FeastRules) {
    match (&*cell.value, cell.ty) {
        (Value::Null, _) => out.extend_from_slice(b"null"),
        (Value::Bool(flag), _) => out.extend_from_slice(if *flag { b"true" } else { b"false" }),
        (Value::Int(ms), FieldType::Time) if rules.compat => {
            write_integer(out, &ms.div_euclid(1000));
        }
        (Value::Int(ms), FieldType::Time) => write_time(out, *ms),
        (Value::Int(number), _) => write_integer(out, number),
        (Value::Float(number), _) if number.is_finite() => write_float(out, number),
        (Value::Float(number), _) => out.extend_from_slice(match number.is_nan() {
            true => b"\"NaN\"",
            false if *number > 0.0 => b"\"Infinity\"",
            false => b"\"-Infinity\"",
        }),
        (Value::String(text), _) => write_string(out, text),
    }
}

fn write_time(out: &mut Vec<u8>, ms: i64) {
    out.push(b'"');
    time::write(out, ms);
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, SecondsFormat};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn value() -> impl Strategy<Value = (Value, FieldType)> {
        prop_oneof![
            Just((Value::Null, FieldType::Float)),
            any::<bool>().prop_map(|flag| (Value::Bool(flag), FieldType::Bool)),
            any::<i64>().prop_map(|number| (Value::Int(number), FieldType::Int)),
            (-1000..1000i32).prop_map(|number| (Value::Float(number.into()), FieldType::Float)),
            any::<f64>().prop_map(|number| (Value::Float(number), FieldType::Float)),
            any::<f32>().prop_map(|number| (Value::Float(number.into()), FieldType::Float)),
            TIMES.prop_map(|ms| (Value::Int(ms), FieldType::Time)),
            any::<String>().prop_map(|text| (Value::String(text.into()), FieldType::String)),
        ]
    }

    /// Of the years 1 to 9999.
    const TIMES: std::ops::Range<i64> = -62_135_596_800_000..253_402_300_800_000;

    fn time_text(ms: i64) -> String {
        let time = DateTime::from_timestamp_millis(ms).unwrap();
        time.to_rfc3339_opts(SecondsFormat::AutoSi, true)
    }

    fn expected(value: &Value, ty: FieldType) -> serde_json::Value {
        match value {
            Value::Float(number) if number.is_nan() => "NaN".into(),
            Value::Float(number) if number.is_infinite() => match *number > 0.0 {
                true => "Infinity".into(),
                false => "-Infinity".into(),
            },
            Value::Int(ms) if ty == FieldType::Time => time_text(*ms).into(),
            value => value.to_json(),
        }
    }

    proptest! {
        #[test]
        fn an_answer_is_what_serde_json_reads(
            cells in prop::collection::vec((value(), 0..3u8, TIMES), 1..20),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
            in_order: bool,
        ) {
            let status = |code| Status::from_code(code).unwrap();
            let cells = cells.into_iter().map(|((value, ty), code, ms)| (value, ty, status(code), ms));
            let cells: Vec<_> = cells.collect();
            let mut slots: Vec<usize> = picks.iter().map(|pick| pick.index(cells.len())).collect();
            if in_order {
                slots = (0..cells.len()).collect();
            }
            let text = written(&cells, &slots, FeastRules::default());
            let of_rows = |part: fn(&(Value, FieldType, Status, i64)) -> serde_json::Value| {
                slots.iter().map(|&slot| part(&cells[slot])).collect::<Vec<_>>()
            };
            let column = json!({
                "values": of_rows(|(value, ty, _, _)| expected(value, *ty)),
                "statuses": of_rows(|(_, _, status, _)| status.as_str().into()),
                "event_timestamps": of_rows(|(_, _, _, ms)| time_text(*ms).into()),
            });
            let whole = json!({"results": [column], "metadata": {"feature_names": ["a\"b"]}});
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read, whole, "{}", text);
        }
    }

    fn written(
        cells: &[(Value, FieldType, Status, i64)],
        slots: &[usize],
        rules: FeastRules,
    ) -> String {
        let mut of_column = Cells::default();
        for (value, ty, status, event_ms) in cells {
            let (ty, status, event_ms) = (*ty, *status, *event_ms);
            let value = Cow::Borrowed(value);
            of_column.push(
                &Cell {
                    value,
                    ty,
                    status,
                    event_ms,
                },
                rules,
            );
        }
        let mut answer = Answer::new(1, rules);
        answer.column(&of_column, slots.iter().copied()).unwrap();
        let names = [Cow::Borrowed("a\"b")];
        String::from_utf8(answer.finish(&names, None::<std::iter::Empty<&View>>)).unwrap()
    }

    #[test]
    fn values_are_written_in_their_types() {
        use FieldType::{Bool, Float, Int, String, Time};
        let cells = [
            (Value::Int(-7), Int, Status::Present, 1500),
            (Value::Float(3.0), Float, Status::Present, 0),
            (Value::Float(f64::from(0.6_f32)), Float, Status::Present, 0),
            (Value::Float(f64::NAN), Float, Status::Present, 0),
            (Value::Float(f64::NEG_INFINITY), Float, Status::Present, 0),
            (Value::Float(f64::INFINITY), Float, Status::Present, 0),
            (Value::String("x\"\n".into()), String, Status::Present, 0),
            (Value::Bool(true), Bool, Status::Present, 0),
            (Value::Int(2500), Time, Status::Present, 0),
            (Value::Null, Int, Status::NotFound, 0),
        ];
        let slots: Vec<usize> = (0..cells.len()).collect();
        let text = written(&cells, &slots, FeastRules::default());
        let values = r#"[-7,3.0,0.6000000238418579,"NaN","-Infinity","Infinity","x\"\n",true,"1970-01-01T00:00:02.500Z",null]"#;
        assert!(
            text.starts_with(&format!("{{\"results\":[{{\"values\":{values},")),
            "{text}"
        );
        let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
        let result = &parsed["results"][0];
        assert_eq!(result["statuses"][9], "NOT_FOUND");
        assert_eq!(result["event_timestamps"][0], "1970-01-01T00:00:01.500Z");
        assert_eq!(parsed["metadata"]["feature_names"][0], "a\"b");
    }

    #[test]
    fn rows_share_cells_and_statuses_are_feasts_where_asked() {
        let cells = [
            (Value::Int(1), FieldType::Int, Status::Present, 0),
            (Value::Null, FieldType::Int, Status::NullValue, 0),
            (Value::Int(3), FieldType::Time, Status::OutsideMaxAge, 0),
            (Value::Null, FieldType::Int, Status::UnknownCategory, 0),
            (Value::Null, FieldType::Int, Status::NotFound, 0),
        ];
        let slots = [0, 0, 1, 2, 3, 4];
        let statuses = |rules| {
            let text = written(&cells, &slots, rules);
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            parsed["results"][0]["statuses"].to_string()
        };
        assert_eq!(
            statuses(FeastRules::default()),
            r#"["PRESENT","PRESENT","NULL_VALUE","OUTSIDE_MAX_AGE","NULL_VALUE","NOT_FOUND"]"#
        );
        assert_eq!(
            statuses(FeastRules { compat: true }),
            r#"["PRESENT","PRESENT","PRESENT","OUTSIDE_MAX_AGE","PRESENT","NOT_FOUND"]"#
        );
    }
}
