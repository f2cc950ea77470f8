//! Columns by name, `{"driver_id": [1001, 1002]}`: what `entities` and `df` are.
//!
//! Values are kept as they were written until the field is known that they are for.

use std::borrow::Cow;

use featurestore::{Field, FieldProblem, FieldType, Value};

use super::error::{FeastError, SchemaError, shown};
use super::time;
use crate::oip::{Cursor, Number};

/// Columns that one request may have.
const COLUMNS_MAX: usize = 4096;

/// The columns, in the order of the request; all of one length.
#[derive(Debug, Default)]
pub(super) struct Columns<'a>(Vec<Column<'a>>);

/// One column.
#[derive(Debug)]
pub(super) struct Column<'a> {
    pub name: Cow<'a, str>,
    pub values: Vec<Scalar<'a>>,
}

/// One value as it is written.
#[derive(Clone, Debug)]
pub(super) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// A number, or one of the bare tokens `NaN` and `Infinity`, which Python writes.
    Number(Number<'a>),
    Text(Cow<'a, str>),
    /// A list or an object.
    Nested,
}

impl<'a> Columns<'a> {
    /// Reads the object that stands at the key `at`.
    pub(super) fn read(cursor: &mut Cursor<'a>, at: &'static str) -> Result<Self, SchemaError> {
        if cursor.peek() != Some(b'{') {
            let problem = "Input should be a valid dictionary";
            return Err(SchemaError::of_key("dict_type", at, problem));
        }
        cursor.begin_object()?;
        let (mut columns, mut first) = (Vec::new(), true);
        while let Some(name) = cursor.next_key(&mut first)? {
            if columns.len() == COLUMNS_MAX {
                return Err(SchemaError::of_key("too_long", at, "too many columns"));
            }
            if cursor.peek() != Some(b'[') {
                let problem = format!("column `{}`: Input should be a valid list", shown(&name));
                return Err(SchemaError::of_key("list_type", at, &problem));
            }
            let values = read_list(cursor)?;
            columns.push(Column { name, values });
        }
        Ok(Self(columns))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Column<'a>> {
        self.0.iter().find(|column| column.name == name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Column<'a>> {
        self.0.iter()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many rows the columns have: they are of one length, not empty and within the limit.
    pub(super) fn rows(&self, rows_max: usize) -> Result<usize, FeastError> {
        let Some(first) = self.0.first() else {
            return Err(FeastError::NoRows);
        };
        for (k, column) in self.0.iter().enumerate() {
            if self.0[..k].iter().any(|before| before.name == column.name) {
                return Err(FeastError::DoubledColumn(shown(&column.name)));
            }
            if column.values.len() != first.values.len() {
                return Err(FeastError::Lengths {
                    column: shown(&column.name),
                    found: column.values.len(),
                    other: shown(&first.name),
                    expected: first.values.len(),
                });
            }
        }
        match first.values.len() {
            0 => Err(FeastError::NoRows),
            rows if rows > rows_max => Err(FeastError::TooManyRows { rows, rows_max }),
            rows => Ok(rows),
        }
    }
}

fn read_list<'a>(cursor: &mut Cursor<'a>) -> Result<Vec<Scalar<'a>>, SchemaError> {
    cursor.begin_array()?;
    let (mut values, mut first) = (Vec::new(), true);
    while cursor.next_item(&mut first)? {
        values.push(match cursor.peek() {
            Some(b'"') => Scalar::Text(cursor.string()?),
            Some(b't' | b'f') => Scalar::Bool(cursor.boolean()?),
            Some(b'n') => {
                cursor.skip_value()?;
                Scalar::Null
            }
            Some(b'[' | b'{') => {
                cursor.skip_value()?;
                Scalar::Nested
            }
            _ => Scalar::Number(cursor.number_or_token()?),
        });
    }
    Ok(values)
}

impl Column<'_> {
    /// The values as those of a field.
    pub(super) fn of_field(&self, field: &Field) -> Result<Vec<Value>, FeastError> {
        let value = |(row, scalar): (usize, &Scalar<'_>)| {
            scalar.of_field(field).map_err(|problem| FeastError::Value {
                column: shown(&self.name),
                row,
                problem,
            })
        };
        self.values.iter().enumerate().map(value).collect()
    }
}

impl Scalar<'_> {
    /// The value of a field. `NaN` is what pandas has for null; a number as a time is one of seconds, as
    /// Feast writes times.
    fn of_field(&self, field: &Field) -> Result<Value, FieldProblem> {
        let fitting = match (field.ty, self) {
            (_, Self::Null) => Some(Value::Null),
            (FieldType::Bool, Self::Bool(flag)) => Some(Value::Bool(*flag)),
            (FieldType::Float | FieldType::Int, Self::Number(number)) if number.is_nan() => {
                Some(Value::Null)
            }
            (FieldType::Int, Self::Number(number)) => whole(number).map(Value::Int),
            (FieldType::Float, Self::Number(number)) => Some(Value::Float(number.to_f64())),
            (FieldType::String, Self::Text(text)) => Some(Value::String(text.as_ref().into())),
            (FieldType::Time, Self::Text(text)) => time::parse(text).map(Value::Int),
            (FieldType::Time, Self::Number(number)) => {
                let ms = whole(number).and_then(|seconds| seconds.checked_mul(1000));
                ms.map(Value::Int)
            }
            _ => None,
        };
        let value = fitting.ok_or_else(|| self.problem(field.ty))?;
        field.check(&value).map(|()| value)
    }

    fn problem(&self, expected: FieldType) -> FieldProblem {
        let value = match self {
            Self::Null => "null".to_owned(),
            Self::Bool(flag) => flag.to_string(),
            Self::Number(number) => number.shown(),
            Self::Text(text) => shown(text),
            Self::Nested => "a list or an object".to_owned(),
        };
        match expected {
            FieldType::Time => FieldProblem::Time { value },
            expected => FieldProblem::WrongType { expected, value },
        }
    }
}

fn whole(number: &Number<'_>) -> Option<i64> {
    number.to_integer()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Columns<'_>, SchemaError> {
        Columns::read(&mut Cursor::new(json.as_bytes()), "df")
    }

    fn values(ty: FieldType, nullable: bool, list: &str) -> Result<Vec<Value>, String> {
        let json = format!("{{\"c\":{list}}}");
        let columns = read(&json).unwrap();
        let field = Field {
            name: "c".into(),
            ty,
            nullable,
        };
        let column = columns.get("c").unwrap();
        column.of_field(&field).map_err(|error| error.to_string())
    }

    #[test]
    fn values_become_those_of_their_field() {
        use FieldType::{Bool, Float, Int, String, Time};
        let string = |text: &str| Value::String(text.into());
        for (ty, list, expected) in [
            (
                Int,
                "[1, -2, 3.0, null, NaN]",
                vec![
                    Value::Int(1),
                    Value::Int(-2),
                    Value::Int(3),
                    Value::Null,
                    Value::Null,
                ],
            ),
            (
                Float,
                "[1, 0.5, null, NaN]",
                vec![
                    Value::Float(1.0),
                    Value::Float(0.5),
                    Value::Null,
                    Value::Null,
                ],
            ),
            (
                String,
                r#"["a", "\u00e9", null]"#,
                vec![string("a"), string("é"), Value::Null],
            ),
            (
                Bool,
                "[true, false, null]",
                vec![Value::Bool(true), Value::Bool(false), Value::Null],
            ),
            (
                Time,
                r#"["1970-01-01T00:00:01Z", "1970-01-01 00:00:02", 3, null]"#,
                vec![
                    Value::Int(1000),
                    Value::Int(2000),
                    Value::Int(3000),
                    Value::Null,
                ],
            ),
        ] {
            assert_eq!(values(ty, true, list).unwrap(), expected, "{ty}");
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_named_by_column_and_row() {
        use FieldType::{Bool, Float, Int, String, Time};
        for (ty, list) in [
            (Int, "[1, 1.5]"),
            (Int, r#"[1, "1"]"#),
            (Int, "[1, 9223372036854775808]"),
            (Int, "[1, true]"),
            (Int, "[1, null]"),
            (Int, "[1, [2]]"),
            (Float, "[1, Infinity]"),
            (Float, "[1, NaN]"),
            (Float, "[1, 1e300]"),
            (Float, r#"[1, "NaN"]"#),
            (String, r#"["a", 1]"#),
            (String, r#"["a", {"b": 1}]"#),
            (Bool, "[true, 1]"),
            (Time, r#"[1, "yesterday"]"#),
            // Milliseconds and nanoseconds of our days, and a time beyond any calendar.
            (Time, "[1, 1700000000000]"),
            (Time, "[1, 1700000000000000000]"),
            (Time, "[1, 9223372036854775807]"),
            (Time, "[1, 1.5]"),
        ] {
            let refused = values(ty, false, list).unwrap_err();
            assert!(
                refused.starts_with("column `c`, row 1: "),
                "{list}: {refused}"
            );
        }
    }

    #[test]
    fn columns_are_of_one_length_and_within_the_limit() {
        let rows = |json: &str| match read(json).unwrap().rows(3) {
            Ok(rows) => rows.to_string(),
            Err(error) => error.to_string(),
        };
        assert_eq!(rows(r#"{"a":[1,2,3],"b":[null,null,null]}"#), "3");
        assert_eq!(rows("{}"), "no rows: each column is empty");
        assert_eq!(rows(r#"{"a":[]}"#), "no rows: each column is empty");
        assert_eq!(rows(r#"{"a":[1,2,3,4]}"#), "4 rows, at most 3 allowed");
        assert_eq!(
            rows(r#"{"a":[1],"b":[1,2]}"#),
            "column `b` has 2 values where `a` has 1"
        );
        assert_eq!(rows(r#"{"a":[1],"a":[1]}"#), "column `a` comes twice");
        for wrong in [
            "[]",
            "1",
            r#"{"a":1}"#,
            r#"{"a":{"0":1}}"#,
            r#"{"a":[1"#,
            r#"{"a":[1,]}"#,
        ] {
            assert!(read(wrong).is_err(), "took {wrong}");
        }
    }
}
