//! The raw form of a tensor's elements, as both wires carry it: little-endian, row-major, without
//! padding; an element of `BYTES` has its length before it, in four bytes.
//!
//! One copy per tensor, at the speed of memory. Lengths are checked before anything is allocated for
//! them.

use engine::{DataType, TensorData};

/// Bytes before an element of `BYTES`.
const LENGTH_BYTES: usize = 4;

/// Why bytes are no elements.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RawError {
    #[error("{bytes} raw bytes are no whole number of {size}-byte elements")]
    Ragged { bytes: usize, size: usize },
    #[error("its raw bytes end within an element")]
    Cut,
}

/// Reads every element that `raw` holds.
///
/// # Errors
/// When the last one is cut short.
pub(crate) fn read_raw(datatype: DataType, raw: &[u8]) -> Result<TensorData, RawError> {
    macro_rules! numbers {
        ($number:ty) => {{
            let (elements, rest) = raw.as_chunks::<{ size_of::<$number>() }>();
            if !rest.is_empty() {
                return Err(RawError::Ragged {
                    bytes: raw.len(),
                    size: size_of::<$number>(),
                });
            }
            elements
                .iter()
                .map(|bytes| <$number>::from_le_bytes(*bytes))
                .collect()
        }};
    }
    Ok(match datatype {
        DataType::Bool => TensorData::Bool(raw.iter().map(|&byte| byte != 0).collect()),
        DataType::Uint8 => TensorData::Uint8(raw.to_vec()),
        DataType::Uint16 => TensorData::Uint16(numbers!(u16)),
        DataType::Uint32 => TensorData::Uint32(numbers!(u32)),
        DataType::Uint64 => TensorData::Uint64(numbers!(u64)),
        DataType::Int8 => TensorData::Int8(numbers!(i8)),
        DataType::Int16 => TensorData::Int16(numbers!(i16)),
        DataType::Int32 => TensorData::Int32(numbers!(i32)),
        DataType::Int64 => TensorData::Int64(numbers!(i64)),
        DataType::Fp16 => TensorData::Fp16(numbers!(u16)),
        DataType::Bf16 => TensorData::Bf16(numbers!(u16)),
        DataType::Fp32 => TensorData::Fp32(numbers!(f32)),
        DataType::Fp64 => TensorData::Fp64(numbers!(f64)),
        DataType::Bytes => TensorData::Bytes(texts(raw)?),
    })
}

fn texts(raw: &[u8]) -> Result<Vec<Vec<u8>>, RawError> {
    let mut rest = raw;
    let mut elements = Vec::new();
    while !rest.is_empty() {
        let element = rest
            .split_first_chunk::<LENGTH_BYTES>()
            .and_then(|(length, after)| {
                let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
                after.split_at_checked(length)
            });
        let (element, after) = element.ok_or(RawError::Cut)?;
        elements.push(element.to_vec());
        rest = after;
    }
    Ok(elements)
}

/// Bytes that [`write_raw`] appends.
pub(crate) fn raw_size(data: &TensorData) -> usize {
    match data {
        TensorData::Bytes(values) => values.iter().map(|value| value.len() + LENGTH_BYTES).sum(),
        data => data.len() * data.datatype().bytes_per_element().unwrap_or(0),
    }
}

/// Appends the raw form of `data`.
pub(crate) fn write_raw(out: &mut Vec<u8>, data: &TensorData) {
    macro_rules! numbers {
        ($values:expr, $number:ty) => {{
            const SIZE: usize = size_of::<$number>();
            let start = out.len();
            out.resize(start + $values.len() * SIZE, 0);
            let (places, _) = out[start..].as_chunks_mut::<SIZE>();
            for (place, value) in places.iter_mut().zip($values) {
                *place = value.to_le_bytes();
            }
        }};
    }
    match data {
        TensorData::Bool(values) => out.extend(values.iter().map(|&value| u8::from(value))),
        TensorData::Uint8(values) => out.extend_from_slice(values),
        TensorData::Uint16(values) | TensorData::Fp16(values) | TensorData::Bf16(values) => {
            numbers!(values, u16)
        }
        TensorData::Uint32(values) => numbers!(values, u32),
        TensorData::Uint64(values) => numbers!(values, u64),
        TensorData::Int8(values) => numbers!(values, i8),
        TensorData::Int16(values) => numbers!(values, i16),
        TensorData::Int32(values) => numbers!(values, i32),
        TensorData::Int64(values) => numbers!(values, i64),
        TensorData::Fp32(values) => numbers!(values, f32),
        TensorData::Fp64(values) => numbers!(values, f64),
        TensorData::Bytes(values) => {
            for value in values {
                // An answer fits a message, which is shorter than 4 GiB.
                let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever bytes come, for whatever datatype, they are refused or come back as they were.
        #[test]
        fn raw_elements_come_back_to_the_bit(raw in prop::collection::vec(any::<u8>(), 0..64)) {
            for datatype in DataType::ALL {
                let Ok(data) = read_raw(datatype, &raw) else {
                    prop_assert!(datatype.bytes_per_element().is_none_or(|size| raw.len() % size != 0));
                    continue;
                };
                let mut back = vec![7];
                write_raw(&mut back, &data);
                prop_assert_eq!(back.len(), raw_size(&data) + 1);
                let expected: Vec<u8> = match datatype {
                    DataType::Bool => raw.iter().map(|&byte| u8::from(byte != 0)).collect(),
                    _ => raw.clone(),
                };
                prop_assert_eq!(&back[1..], &expected[..]);
            }
        }

        #[test]
        fn texts_come_back(texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..8), cut in any::<prop::sample::Index>()) {
            let data = TensorData::Bytes(texts.clone());
            let mut raw = Vec::new();
            write_raw(&mut raw, &data);
            prop_assert_eq!(read_raw(DataType::Bytes, &raw), Ok(data));
            let whole: Vec<usize> = texts.iter().scan(0, |end, text| { *end += text.len() + 4; Some(*end) }).collect();
            let cut = cut.index(raw.len() + 1);
            let is_whole = cut == 0 || whole.contains(&cut);
            prop_assert_eq!(read_raw(DataType::Bytes, &raw[..cut]).is_ok(), is_whole);
        }
    }
}
