//! One element of a tensor from one JSON token: exact, range-checked, never narrowed in silence.

use std::borrow::Cow;

use engine::{DataType, TensorData};

use super::half::{BF16, FP16, Half};
use super::json::{Cursor, JsonError};
use super::number::Number;

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
        DataType::Fp16 => TensorData::Fp16(read_halves(cursor, shape, FP16)?),
        DataType::Bf16 => TensorData::Bf16(read_halves(cursor, shape, BF16)?),
    })
}

/// Floats of 16 bits have no JSON form in the protocol; their numbers are taken all the same.
fn read_halves(
    cursor: &mut Cursor<'_>,
    shape: &[usize],
    half: Half,
) -> Result<Vec<u16>, JsonError> {
    let wide: Vec<f64> = read(cursor, shape)?;
    let narrow = |value: f64| {
        half.narrow(value)
            .ok_or_else(|| cursor.error(format!("{value:e} does not fit 16 bits")))
    };
    wide.into_iter().map(narrow).collect()
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
        match cursor.number()?.text() {
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
    ($float:ty, $read:ident, $name:literal) => {
        impl Element for $float {
            #[inline(always)]
            fn read(cursor: &mut Cursor<'_>) -> Result<Self, JsonError> {
                if let Some(value) = cursor.short_number(|short| short.$read()) {
                    return Ok(value);
                }
                let number = cursor.number_or_token()?;
                let value = number.$read();
                if value.is_finite() || number.non_finite {
                    return Ok(value);
                }
                Err(unfit(cursor, number, $name))
            }
        }
    };
}
float_element!(f32, to_f32, "FP32");
float_element!(f64, to_f64, "FP64");

macro_rules! integer_element {
    ($($integer:ty, $name:literal;)*) => {
        $(impl Element for $integer {
            fn read(cursor: &mut Cursor<'_>) -> Result<Self, JsonError> {
                let number = cursor.number()?;
                number
                    .to_integer()
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

#[cold]
fn unfit(cursor: &Cursor<'_>, number: Number<'_>, name: &str) -> JsonError {
    cursor.error(format!("{} does not fit {name}", number.shown()))
}
