//! Typed values of events and requests: what a field may hold, JSON in and out, the binary form.
//!
//! A value that passed `Field::check` or came from `Field::parse_json` is safe to sum: floats are
//! finite and below 2^63 in magnitude, strings are bounded. The binary form is versioned and its
//! reader takes any bytes without a panic.

mod object;

use std::fmt;

use chrono::DateTime;
use smol_str::SmolStr;
use thiserror::Error;

use crate::varint;

pub(crate) use self::object::values_of_object;

/// The type of a field, as written in `features.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FieldType {
    /// `"bool"`
    Bool,
    /// `"int"`: 64 bits, signed
    Int,
    /// `"float"`: 64 bits, finite
    Float,
    /// `"string"`: UTF-8, at most `STRING_BYTES_MAX` bytes
    String,
    /// `"time"`: held as `Value::Int`, milliseconds since the Unix epoch
    Time,
}

impl FieldType {
    /// Every type, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Bool, Self::Int, Self::Float, Self::String, Self::Time];

    /// The name in `features.toml`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Int => "int",
            Self::Float => "float",
            Self::String => "string",
            Self::Time => "time",
        }
    }

    /// The type of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.as_str() == name)
    }
}

impl fmt::Display for FieldType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The longest string value, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// Floats reach up to here, exclusive: 2^63. In 2^-32 units a tile's sum then holds 268 million of them
/// (`window::SUM_MAX`).
const FLOAT_MAGNITUDE_MAX: f64 = 9_223_372_036_854_775_808.0;

/// Times reach from year 1 to year 9999, as RFC 3339 can write them.
const TIME_MS_RANGE: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// One named, typed column of a source or of a service's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, unique in its source or request
    pub name: Box<str>,
    /// Type of every non-null value
    pub ty: FieldType,
    /// Whether null is a value (`"string?"`)
    pub nullable: bool,
}

/// Why a value does not fit its field.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum FieldProblem {
    /// A null in a field that is not nullable
    #[error("may not be null")]
    Null,
    /// Another type than declared; `value` is shortened
    #[error("expected {expected}, found `{value}`")]
    WrongType {
        /// The declared type
        expected: FieldType,
        /// The value as given
        value: String,
    },
    /// NaN, an infinity, or too large to be summed
    #[error("`{value}` is not finite or not below 2^63 in magnitude")]
    Magnitude {
        /// The value as given
        value: String,
    },
    /// A string over `STRING_BYTES_MAX`
    #[error("string of {bytes} bytes is longer than {STRING_BYTES_MAX}")]
    TooLong {
        /// Its length
        bytes: usize,
    },
    /// Neither RFC 3339 nor integer milliseconds, or outside years 1 to 9999
    #[error("`{value}` is not a time (RFC 3339 or integer milliseconds since 1970)")]
    Time {
        /// The value as given
        value: String,
    },
}

impl Field {
    /// Whether `value` may stand in this field. Types are exact: an int is not a float.
    pub fn check(&self, value: &Value) -> Result<(), FieldProblem> {
        match (self.ty, value) {
            (_, Value::Null) if self.nullable => Ok(()),
            (_, Value::Null) => Err(FieldProblem::Null),
            (FieldType::Bool, Value::Bool(_)) | (FieldType::Int, Value::Int(_)) => Ok(()),
            (FieldType::Float, Value::Float(number)) => check_float(*number),
            (FieldType::String, Value::String(text)) => check_string(text),
            (FieldType::Time, Value::Int(ms)) => check_time(*ms),
            (expected, found) => Err(FieldProblem::WrongType {
                expected,
                value: shorten(&found.to_json().to_string()),
            }),
        }
    }

    /// Reads the field from JSON: times as RFC 3339 strings or integer milliseconds, any JSON
    /// number as a float, only integers as an int.
    pub fn parse_json(&self, json: &serde_json::Value) -> Result<Value, FieldProblem> {
        use serde_json::Value as Json;
        let value = match (self.ty, json) {
            (_, Json::Null) => Value::Null,
            (FieldType::Bool, Json::Bool(flag)) => Value::Bool(*flag),
            (FieldType::Int, Json::Number(number)) => match number.as_i64() {
                Some(number) => Value::Int(number),
                None => return Err(self.wrong_type(json)),
            },
            (FieldType::Float, Json::Number(number)) => match number.as_f64() {
                Some(number) => Value::Float(number),
                None => return Err(self.wrong_type(json)),
            },
            (FieldType::String, Json::String(text)) => {
                check_string(text)?;
                Value::String(text.as_str().into())
            }
            (FieldType::Time, Json::Number(_) | Json::String(_)) => Value::Int(time_ms(json)?),
            _ => return Err(self.wrong_type(json)),
        };
        self.check(&value)?;
        Ok(value)
    }

    fn wrong_type(&self, json: &serde_json::Value) -> FieldProblem {
        FieldProblem::WrongType {
            expected: self.ty,
            value: shorten(&json.to_string()),
        }
    }
}

/// One value of an event or request.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// No value
    Null,
    /// Of a `bool` field
    Bool(bool),
    /// Of an `int` field; of a `time` field in milliseconds since the Unix epoch
    Int(i64),
    /// Of a `float` field
    Float(f64),
    /// Of a `string` field; up to 23 bytes lie in the value itself
    String(SmolStr),
}

impl Value {
    /// As JSON; `Field::parse_json` of the same field gives the value back. Times become integer
    /// milliseconds, a non-finite float (which no checked value is) becomes null.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(flag) => (*flag).into(),
            Self::Int(number) => (*number).into(),
            Self::Float(number) => (*number).into(),
            Self::String(text) => text.as_str().into(),
        }
    }

    /// The value as a feature: numbers and booleans (0 or 1); `None` for null and strings.
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Bool(flag) => Some(f64::from(u8::from(*flag))),
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            Self::Null | Self::String(_) => None,
        }
    }

    /// What the value takes in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let text = match self {
            Self::String(text) if text.is_heap_allocated() => text.len(),
            _ => 0,
        };
        size_of::<Self>() + text
    }

    /// Whether this is `Null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    /// Appends the binary form: a tag, then the content. It frames itself, so values can follow
    /// one another.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.push(TAG_NULL),
            Self::Bool(false) => out.push(TAG_FALSE),
            Self::Bool(true) => out.push(TAG_TRUE),
            Self::Int(number) => {
                out.push(TAG_INT);
                varint::put(varint::zigzag(*number), out);
            }
            Self::Float(number) => {
                out.push(TAG_FLOAT);
                out.extend_from_slice(&number.to_bits().to_le_bytes());
            }
            Self::String(text) => {
                out.push(TAG_STRING);
                varint::put(text.len() as u64, out);
                out.extend_from_slice(text.as_bytes());
            }
        }
    }

    /// Takes one value off the front of `input`, which it leaves at the next.
    pub fn decode(input: &mut &[u8]) -> Result<Self, ValueDecodeError> {
        let (&tag, rest) = input.split_first().ok_or(ValueDecodeError::CutShort)?;
        *input = rest;
        match tag {
            TAG_NULL => Ok(Self::Null),
            TAG_FALSE => Ok(Self::Bool(false)),
            TAG_TRUE => Ok(Self::Bool(true)),
            TAG_INT => {
                let number = varint::take(input).ok_or(ValueDecodeError::CutShort)?;
                Ok(Self::Int(varint::unzigzag(number)))
            }
            TAG_FLOAT => {
                let bytes = input
                    .split_first_chunk::<8>()
                    .ok_or(ValueDecodeError::CutShort)?;
                *input = bytes.1;
                Ok(Self::Float(f64::from_bits(u64::from_le_bytes(*bytes.0))))
            }
            TAG_STRING => {
                let count = varint::take(input).ok_or(ValueDecodeError::CutShort)?;
                let count = usize::try_from(count).map_err(|_| ValueDecodeError::CutShort)?;
                let bytes = varint::take_bytes(input, count).ok_or(ValueDecodeError::CutShort)?;
                let text = std::str::from_utf8(bytes).map_err(|_| ValueDecodeError::NotUtf8)?;
                Ok(Self::String(text.into()))
            }
            tag => Err(ValueDecodeError::Tag { tag }),
        }
    }
}

const TAG_NULL: u8 = 0;
const TAG_FALSE: u8 = 1;
const TAG_TRUE: u8 = 2;
const TAG_INT: u8 = 3;
const TAG_FLOAT: u8 = 4;
const TAG_STRING: u8 = 5;

/// Version of `encode_values`; its first byte.
const VALUES_VERSION: u8 = 1;

/// Why bytes are not encoded values.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValueDecodeError {
    /// The bytes end inside a value
    #[error("values are cut short")]
    CutShort,
    /// Bytes are left behind the last value
    #[error("{bytes} bytes follow the last value")]
    Trailing {
        /// How many
        bytes: usize,
    },
    /// Written by another version of the program
    #[error("values have version {found}, known is {VALUES_VERSION}")]
    Version {
        /// The version found
        found: u8,
    },
    /// No such kind of value
    #[error("unknown value tag {tag}")]
    Tag {
        /// The tag found
        tag: u8,
    },
    /// A string that is not UTF-8
    #[error("string is not utf-8")]
    NotUtf8,
}

/// Appends a list of values with version and count; `decode_values` reads it.
pub fn encode_values(values: &[Value], out: &mut Vec<u8>) {
    out.push(VALUES_VERSION);
    varint::put(values.len() as u64, out);
    for value in values {
        value.encode(out);
    }
}

/// Reads what `encode_values` wrote; all of `bytes` must be used.
pub fn decode_values(bytes: &[u8]) -> Result<Box<[Value]>, ValueDecodeError> {
    let (count, mut input) = decode_count(bytes)?;
    let values = (0..count)
        .map(|_| Value::decode(&mut input))
        .collect::<Result<Box<[Value]>, _>>()?;
    end_of_values(input)?;
    Ok(values)
}

/// The same where it is known how many there are.
pub(crate) fn decode_values_into(
    bytes: &[u8],
    values: &mut [Value],
) -> Result<(), ValueDecodeError> {
    let (count, mut input) = decode_count(bytes)?;
    if count != values.len() as u64 {
        return Err(ValueDecodeError::CutShort);
    }
    for value in values {
        *value = Value::decode(&mut input)?;
    }
    end_of_values(input)
}

fn decode_count(bytes: &[u8]) -> Result<(u64, &[u8]), ValueDecodeError> {
    let (&version, mut input) = bytes.split_first().ok_or(ValueDecodeError::CutShort)?;
    if version != VALUES_VERSION {
        return Err(ValueDecodeError::Version { found: version });
    }
    let count = varint::take(&mut input).ok_or(ValueDecodeError::CutShort)?;
    // A value takes a byte or more, so the count cannot make this allocate more than was read.
    if count > input.len() as u64 {
        return Err(ValueDecodeError::CutShort);
    }
    Ok((count, input))
}

fn end_of_values(rest: &[u8]) -> Result<(), ValueDecodeError> {
    match rest.len() {
        0 => Ok(()),
        bytes => Err(ValueDecodeError::Trailing { bytes }),
    }
}

/// A time from JSON: an RFC 3339 string, or integer milliseconds since the Unix epoch.
pub fn time_ms(json: &serde_json::Value) -> Result<i64, FieldProblem> {
    let ms = match json {
        serde_json::Value::String(text) => DateTime::parse_from_rfc3339(text)
            .ok()
            .map(|time| time.timestamp_millis()),
        json => json.as_i64(),
    };
    ms.filter(|ms| TIME_MS_RANGE.contains(ms))
        .ok_or_else(|| FieldProblem::Time {
            value: shorten(&json.to_string()),
        })
}

fn check_float(number: f64) -> Result<(), FieldProblem> {
    // False for NaN too.
    if number.abs() < FLOAT_MAGNITUDE_MAX {
        return Ok(());
    }
    Err(FieldProblem::Magnitude {
        value: number.to_string(),
    })
}

fn check_string(text: &str) -> Result<(), FieldProblem> {
    if text.len() <= STRING_BYTES_MAX {
        return Ok(());
    }
    Err(FieldProblem::TooLong { bytes: text.len() })
}

fn check_time(ms: i64) -> Result<(), FieldProblem> {
    if TIME_MS_RANGE.contains(&ms) {
        return Ok(());
    }
    Err(FieldProblem::Time {
        value: ms.to_string(),
    })
}

/// The first 64 characters, so that an error never carries a whole body.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(64) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
