//! The events of a body, read straight into typed values.
//!
//! A row of plain values costs one pass and no tree. Any other, such as one with a value that does not
//! fit or a key that is not known, is read again by [`Source::parse_row`], which says what is wrong.

use std::sync::Arc;

use featurestore::{Event, Field, FieldType, Source, Value, time_ms};

use super::{IngestRefusal, body_error, check_rows};
use crate::oip::{Cursor, JsonError};

/// Reads `{"events": […]}`, whose rows arrived at `now_ms`.
pub(super) fn parse_events(
    source: &Arc<Source>,
    body: &[u8],
    rows_max: usize,
    now_ms: i64,
) -> Result<Vec<Event>, IngestRefusal> {
    let mut cursor = Cursor::new(body);
    let (mut events, mut first) = (None, true);
    cursor.begin_object()?;
    while let Some(key) = cursor.next_key(&mut first)? {
        if key != "events" || events.is_some() {
            return Err(cursor.error("expected one key, `events`").into());
        }
        events = Some(read_list(&mut cursor, source, rows_max, now_ms)?);
    }
    cursor.end()?;
    events.ok_or_else(|| cursor.error("missing key `events`").into())
}

impl From<JsonError> for IngestRefusal {
    fn from(error: JsonError) -> Self {
        Self::Body(error.to_string())
    }
}

fn read_list(
    cursor: &mut Cursor<'_>,
    source: &Arc<Source>,
    rows_max: usize,
    now_ms: i64,
) -> Result<Vec<Event>, IngestRefusal> {
    cursor.begin_array()?;
    let (mut events, mut rows, mut first) = (Vec::new(), 0, true);
    while cursor.next_item(&mut first)? {
        if rows < rows_max {
            events.push(read_row(cursor, source, rows, now_ms)?);
        } else {
            cursor.skip_value()?;
        }
        rows += 1;
    }
    check_rows(rows, rows_max)?;
    Ok(events)
}

fn read_row(
    cursor: &mut Cursor<'_>,
    source: &Arc<Source>,
    row: usize,
    now_ms: i64,
) -> Result<Event, IngestRefusal> {
    let start = cursor.clone();
    if let Some(values) = plain_values(cursor, source) {
        return Ok(source.event(row, values, now_ms)?);
    }
    *cursor = start;
    let text = cursor.value_text()?;
    let json = serde_json::from_slice(text).map_err(|error| body_error(&error))?;
    Ok(source.parse_row(row, &json, now_ms)?)
}

/// The values of a row in which every key is a field's, none comes twice and none is missing.
fn plain_values(cursor: &mut Cursor<'_>, source: &Source) -> Option<Vec<Value>> {
    let mut values = vec![Value::Null; source.fields.len()];
    let mut first = true;
    cursor.begin_object().ok()?;
    while let Some(key) = cursor.next_key(&mut first).ok()? {
        let place = source.field(&key)?;
        if !values[place].is_null() {
            return None;
        }
        values[place] = plain_value(cursor, &source.fields[place])?;
    }
    let mut given = source.fields.iter().zip(&values);
    let complete = given.all(|(field, value)| field.nullable || !value.is_null());
    complete.then_some(values)
}

fn plain_value(cursor: &mut Cursor<'_>, field: &Field) -> Option<Value> {
    Some(match (field.ty, cursor.peek()?) {
        (_, b'n') => {
            cursor.skip_value().ok()?;
            Value::Null
        }
        (FieldType::Bool, _) => Value::Bool(cursor.boolean().ok()?),
        (FieldType::Float, _) => Value::Float(cursor.number().ok()?.to_f64()),
        (FieldType::String, _) => Value::String(cursor.string().ok()?.into()),
        (FieldType::Time, b'"') => {
            let text = cursor.string().ok()?.into_owned();
            Value::Int(time_ms(&serde_json::Value::String(text)).ok()?)
        }
        (FieldType::Int | FieldType::Time, _) => Value::Int(cursor.number().ok()?.as_i64()?),
    })
}

#[cfg(test)]
mod tests {
    use featurestore::Definitions;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const NOW_MS: i64 = 1_700_000_000_000;

    fn source() -> Arc<Source> {
        let text = "[[source]]\nname = \"s\"\ntime = \"at\"\nid = [\"id\"]\n\
            fields = { id = \"int\", at = \"time\", x = \"float?\", shop = \"string\", ok = \"bool?\" }\n";
        let definitions = Definitions::parse(text, "features.toml").unwrap();
        Arc::clone(definitions.source("s").unwrap())
    }

    fn parsed(rows: &str) -> Result<Vec<Box<[Value]>>, String> {
        let body = format!(r#"{{"events":[{rows}]}}"#);
        let events = parse_events(&source(), body.as_bytes(), 3, NOW_MS);
        let events = events.map_err(|refusal| refusal.to_string())?;
        Ok(events.into_iter().map(|event| event.values).collect())
    }

    #[test]
    fn rows_name_their_fields_in_any_order() {
        let rows = r#"{"id":-1,"at":5,"x":0.1,"shop":"a\nb","ok":true},
            {"shop":"","ok":null,"at":"1970-01-01T00:00:01Z","id":2}"#;
        let text = |text: &str| Value::String(text.into());
        let expected: [Box<[Value]>; 2] = [
            [
                Value::Int(-1),
                Value::Int(5),
                Value::Float(0.1),
                text("a\nb"),
                Value::Bool(true),
            ]
            .into(),
            [
                Value::Int(2),
                Value::Int(1000),
                Value::Null,
                text(""),
                Value::Null,
            ]
            .into(),
        ];
        assert_eq!(parsed(rows).unwrap(), expected);
        assert!(parsed("").unwrap().is_empty());
    }

    #[test]
    fn a_body_of_another_shape_is_refused() {
        let good = r#"{"id":1,"at":5,"shop":"a"}"#;
        for (body, problem) in [
            (format!("[{good}]"), "malformed request at byte 0"),
            ("{}".to_owned(), "missing key `events`"),
            (r#"{"rows":[]}"#.to_owned(), "expected one key, `events`"),
            (
                r#"{"events":[],"events":[]}"#.to_owned(),
                "expected one key, `events`",
            ),
            (format!(r#"{{"events":[{good}"#), "malformed request"),
            (format!(r#"{{"events":[{good}]}} x"#), "malformed request"),
            (
                format!(r#"{{"events":[{good},{{"id":NaN}}]}}"#),
                "malformed request",
            ),
            (
                format!(r#"{{"events":[{}]}}"#, [good; 4].join(",")),
                "4 rows, at most 3 allowed",
            ),
        ] {
            let refused = parse_events(&source(), body.as_bytes(), 3, NOW_MS).unwrap_err();
            assert!(refused.to_string().contains(problem), "{body}: {refused}");
        }
    }

    fn field() -> impl Strategy<Value = (&'static str, serde_json::Value)> {
        let value = prop_oneof![
            Just(json!(null)),
            any::<bool>().prop_map(|flag| json!(flag)),
            (-3i64..3).prop_map(|number| json!(number)),
            Just(json!(NOW_MS)),
            Just(json!(NOW_MS * 2)),
            Just(json!(u64::MAX)),
            (-8i32..8).prop_map(|eighths| json!(f64::from(eighths) / 8.0)),
            Just(json!(1e300)),
            "[a\"é]{0,2}".prop_map(|text| json!(text)),
            Just(json!("2024-03-01T12:30:00+01:00")),
            Just(json!([1])),
            Just(json!({"id": 1})),
        ];
        (
            prop::sample::select(vec!["id", "at", "x", "shop", "ok", "idd"]),
            value,
        )
    }

    proptest! {
        /// With its doubts as with its values: what `parse_row` says of the same JSON.
        #[test]
        fn a_row_is_what_parse_row_makes_of_it(
            fitting in any::<bool>(),
            given in prop::collection::vec(field(), 0..6),
        ) {
            let mut row = match fitting {
                true => json!({"id": 7, "at": 9, "x": 1.5, "shop": "b", "ok": false}),
                false => json!({}),
            };
            for (name, value) in given {
                row[name] = value;
            }
            let theirs = source().parse_row(0, &row, NOW_MS);
            let theirs = theirs.map(|event| vec![event.values]).map_err(|error| error.to_string());
            prop_assert_eq!(parsed(&row.to_string()), theirs, "{}", row);
        }
    }
}
