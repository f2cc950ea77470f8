//! One element of a tensor from one JSON token: exact, range-checked, never narrowed in silence.

use std::borrow::Cow;

use engine::{DataType, TensorData};

use super::json::{Cursor, JsonError, Number};

/// Axes that a tensor may have.
pub(crate) const RANK_MAX: usize = 16;

/// Reads the `data` of a tensor, nested or flat, row-major.
///
/// # Errors
/// When an element does not fit `datatype`, or the elements do not fill `shape` exactly.
pub(crate) fn read_data(
    cursor: &mut Cursor<'_>,
    shape: &[usize],
    datatype: DataType,
) -> Result<TensorData, JsonError> {
    Ok(match datatype {
        DataType::Bool => TensorData::Bool(read(cursor, shape)?),
        DataType::Uint8 => TensorData::Uint8(read(cursor, shape)?),
        DataType::Uint16 => TensorData::Uint16(read(cursor, shape)?),
        DataType::Uint32 => TensorData::Uint32(read(cursor, shape)?),
        DataType::Uint64 => TensorData::Uint64(read(cursor, shape)?),
        DataType::Int8 => TensorData::Int8(read(cursor, shape)?),
        DataType::Int16 => TensorData::Int16(read(cursor, shape)?),
        DataType::Int32 => TensorData::Int32(read(cursor, shape)?),
        DataType::Int64 => TensorData::Int64(read(cursor, shape)?),
        DataType::Fp32 => TensorData::Fp32(read(cursor, shape)?),
        DataType::Fp64 => TensorData::Fp64(read(cursor, shape)?),
        DataType::Bytes => TensorData::Bytes(read(cursor, shape)?),
        DataType::Fp16 => return Err(cursor.error("FP16 has no JSON form")),
    })
}

fn read<T: Element>(cursor: &mut Cursor<'_>, shape: &[usize]) -> Result<Vec<T>, JsonError> {
    let count = shape
        .iter()
        .try_fold(1_usize, |product, &axis| product.checked_mul(axis))
        // Each element takes a digit and a comma at least, so a larger claim is a lie: refused
        // before anything is allocated for it.
        .filter(|&count| count <= cursor.remaining() / 2 + 1)
        .ok_or_else(|| {
            cursor.error(format!(
                "shape {shape:?} needs more elements than there are"
            ))
        })?;
    let mut elements = Vec::with_capacity(count);
    if shape.is_empty() && cursor.peek() != Some(b'[') {
        elements.push(T::read(cursor)?);
        return Ok(elements);
    }
    cursor.begin_array()?;
    if shape.len() > 1 && cursor.peek() == Some(b'[') {
        fill(cursor, shape, &mut elements)?;
    } else {
        fill(cursor, &[count], &mut elements)?;
    }
    Ok(elements)
}

/// Reads the items of an array that is already open; as deep as the shape, which [`RANK_MAX`] bounds.
fn fill<T: Element>(
    cursor: &mut Cursor<'_>,
    shape: &[usize],
    elements: &mut Vec<T>,
) -> Result<(), JsonError> {
    let (axis, inner) = shape.split_first().unwrap_or((&1, &[]));
    let mut items = 0;
    let mut first = true;
    while cursor.next_item(&mut first)? {
        if items == *axis {
            return Err(cursor.error(format!(
                "more than {axis} items where the shape says {axis}"
            )));
        }
        if inner.is_empty() {
            elements.push(T::read(cursor)?);
        } else {
            cursor.begin_array()?;
            fill(cursor, inner, elements)?;
        }
        items += 1;
    }
    if items != *axis {
        return Err(cursor.error(format!("{items} items where the shape says {axis}")));
    }
    Ok(())
}

trait Element: Sized {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, JsonError>;
}

impl Element for bool {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, JsonError> {
        if !matches!(cursor.peek(), Some(b'0' | b'1')) {
            return cursor.boolean();
        }
        match cursor.number()?.text {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(cursor.error("expected true, false, 0 or 1")),
        }
    }
}

impl Element for Vec<u8> {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, JsonError> {
        Ok(match cursor.string()? {
            Cow::Borrowed(text) => text.as_bytes().to_vec(),
            Cow::Owned(text) => text.into_bytes(),
        })
    }
}

macro_rules! float_element {
    ($float:ty, $name:literal) => {
        impl Element for $float {
            fn read(cursor: &mut Cursor<'_>) -> Result<Self, JsonError> {
                let number = cursor.number_or_token()?;
                // Parsed as this very type, so that a shortest decimal comes back to the bit.
                match number.text.parse::<$float>() {
                    Ok(value) if value.is_finite() || number.non_finite => Ok(value),
                    _ => Err(unfit(cursor, number, $name)),
                }
            }
        }
    };
}
float_element!(f32, "FP32");
float_element!(f64, "FP64");

macro_rules! integer_element {
    ($($integer:ty, $name:literal;)*) => {
        $(impl Element for $integer {
            fn read(cursor: &mut Cursor<'_>) -> Result<Self, JsonError> {
                let number = cursor.number()?;
                integer(number)
                    .and_then(|value| Self::try_from(value).ok())
                    .ok_or_else(|| unfit(cursor, number, $name))
            }
        })*
    };
}
integer_element! {
    u8, "UINT8"; u16, "UINT16"; u32, "UINT32"; u64, "UINT64";
    i8, "INT8"; i16, "INT16"; i32, "INT32"; i64, "INT64";
}

/// The whole number that is meant: an integer, or a fraction or exponent with a whole value that a
/// double holds exactly (`3.0`, `1e3`).
pub(crate) fn integer(number: Number<'_>) -> Option<i128> {
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
    if number.integral {
        // 39 digits bound an i128; the parse refuses the rest.
        return number.text.parse().ok();
    }
    let value: f64 = number.text.parse().ok()?;
    (value.fract() == 0.0 && value.abs() <= EXACT_MAX).then_some(value as i128)
}

fn unfit(cursor: &Cursor<'_>, number: Number<'_>, name: &str) -> JsonError {
    let shown: String = number.text.chars().take(32).collect();
    cursor.error(format!("{shown} does not fit {name}"))
}
