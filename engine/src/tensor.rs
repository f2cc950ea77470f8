//! Tensors as they cross the border of the engine: a shape and one flat, row-major buffer.
//!
//! Owns the datatypes of the Open Inference Protocol and the rule that shape and length agree.
//! Must not know: ONNX, engines, JSON.

use std::fmt;
use std::str::FromStr;

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

/// An element type, named as the Open Inference Protocol names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DataType {
    /// One byte, true or false.
    Bool,
    /// Unsigned, 8 bits.
    Uint8,
    /// Unsigned, 16 bits.
    Uint16,
    /// Unsigned, 32 bits.
    Uint32,
    /// Unsigned, 64 bits.
    Uint64,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// IEEE 754 half precision, kept as its bits.
    Fp16,
    /// The upper half of single precision, kept as its bits.
    Bf16,
    /// IEEE 754 single precision.
    Fp32,
    /// IEEE 754 double precision.
    Fp64,
    /// Bytes of any length; ONNX strings, in UTF-8.
    Bytes,
}

impl DataType {
    /// Every datatype.
    pub const ALL: [Self; 14] = [
        Self::Bool,
        Self::Uint8,
        Self::Uint16,
        Self::Uint32,
        Self::Uint64,
        Self::Int8,
        Self::Int16,
        Self::Int32,
        Self::Int64,
        Self::Fp16,
        Self::Bf16,
        Self::Fp32,
        Self::Fp64,
        Self::Bytes,
    ];

    /// The protocol's name: `FP32`, `BYTES`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }

    /// Bytes of one element; `None` for [`DataType::Bytes`], whose elements vary.
    pub const fn bytes_per_element(self) -> Option<usize> {
        match self {
            Self::Bool | Self::Uint8 | Self::Int8 => Some(1),
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => Some(2),
            Self::Uint32 | Self::Int32 | Self::Fp32 => Some(4),
            Self::Uint64 | Self::Int64 | Self::Fp64 => Some(8),
            Self::Bytes => None,
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no datatype of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown datatype `{0}`")]
pub struct UnknownDataType(pub String);

impl FromStr for DataType {
    type Err = UnknownDataType;

    fn from_str(name: &str) -> Result<Self, UnknownDataType> {
        Self::ALL
            .into_iter()
            .find(|datatype| datatype.as_str() == name)
            .ok_or_else(|| UnknownDataType(name.to_owned()))
    }
}

/// The elements of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum TensorData {
    /// `BOOL`
    Bool(Vec<bool>),
    /// `UINT8`
    Uint8(Vec<u8>),
    /// `UINT16`
    Uint16(Vec<u16>),
    /// `UINT32`
    Uint32(Vec<u32>),
    /// `UINT64`
    Uint64(Vec<u64>),
    /// `INT8`
    Int8(Vec<i8>),
    /// `INT16`
    Int16(Vec<i16>),
    /// `INT32`
    Int32(Vec<i32>),
    /// `INT64`
    Int64(Vec<i64>),
    /// `FP16`, as bits
    Fp16(Vec<u16>),
    /// `BF16`, as bits
    Bf16(Vec<u16>),
    /// `FP32`
    Fp32(Vec<f32>),
    /// `FP64`
    Fp64(Vec<f64>),
    /// `BYTES`
    Bytes(Vec<Vec<u8>>),
}

impl TensorData {
    /// The number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::Bool(v) => v.len(),
            Self::Uint8(v) => v.len(),
            Self::Uint16(v) | Self::Fp16(v) | Self::Bf16(v) => v.len(),
            Self::Uint32(v) => v.len(),
            Self::Uint64(v) => v.len(),
            Self::Int8(v) => v.len(),
            Self::Int16(v) => v.len(),
            Self::Int32(v) => v.len(),
            Self::Int64(v) => v.len(),
            Self::Fp32(v) => v.len(),
            Self::Fp64(v) => v.len(),
            Self::Bytes(v) => v.len(),
        }
    }

    /// True when there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The element at `index`, where the type is a float of whatever width and there is one.
    pub fn float(&self, index: usize) -> Option<f64> {
        match self {
            Self::Fp16(v) => v.get(index).map(|&bits| f16::from_bits(bits).to_f64()),
            Self::Bf16(v) => v.get(index).map(|&bits| bf16::from_bits(bits).to_f64()),
            Self::Fp32(v) => v.get(index).map(|&value| f64::from(value)),
            Self::Fp64(v) => v.get(index).copied(),
            _ => None,
        }
    }

    /// The element at `index` as people read it; nothing where there is none.
    pub fn shown(&self, index: usize) -> String {
        fn text<T: ToString>(values: &[T], index: usize) -> String {
            values.get(index).map(T::to_string).unwrap_or_default()
        }
        match self {
            Self::Bool(v) => text(v, index),
            Self::Uint8(v) => text(v, index),
            Self::Uint16(v) => text(v, index),
            Self::Uint32(v) => text(v, index),
            Self::Uint64(v) => text(v, index),
            Self::Int8(v) => text(v, index),
            Self::Int16(v) => text(v, index),
            Self::Int32(v) => text(v, index),
            Self::Int64(v) => text(v, index),
            Self::Fp32(v) => text(v, index),
            Self::Fp64(v) => text(v, index),
            Self::Fp16(_) | Self::Bf16(_) => {
                self.float(index).map(|v| v.to_string()).unwrap_or_default()
            }
            Self::Bytes(v) => v
                .get(index)
                .map(|bytes| format!("\"{}\"", bytes.escape_ascii()))
                .unwrap_or_default(),
        }
    }

    /// The type of the elements.
    pub fn datatype(&self) -> DataType {
        match self {
            Self::Bool(_) => DataType::Bool,
            Self::Uint8(_) => DataType::Uint8,
            Self::Uint16(_) => DataType::Uint16,
            Self::Uint32(_) => DataType::Uint32,
            Self::Uint64(_) => DataType::Uint64,
            Self::Int8(_) => DataType::Int8,
            Self::Int16(_) => DataType::Int16,
            Self::Int32(_) => DataType::Int32,
            Self::Int64(_) => DataType::Int64,
            Self::Fp16(_) => DataType::Fp16,
            Self::Bf16(_) => DataType::Bf16,
            Self::Fp32(_) => DataType::Fp32,
            Self::Fp64(_) => DataType::Fp64,
            Self::Bytes(_) => DataType::Bytes,
        }
    }
}

/// A shape and as many elements as it asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    shape: Vec<usize>,
    data: TensorData,
}

impl Tensor {
    /// A tensor of this shape; an empty shape is a scalar of one element.
    ///
    /// # Errors
    /// When the shape's product overflows or is not the number of elements.
    pub fn new(shape: Vec<usize>, data: TensorData) -> Result<Self, TensorError> {
        let expected = shape
            .iter()
            .try_fold(1_usize, |product, &dim| product.checked_mul(dim))
            .ok_or_else(|| TensorError::Overflow {
                shape: shape.clone(),
            })?;
        if expected != data.len() {
            return Err(TensorError::Length {
                shape,
                expected,
                found: data.len(),
            });
        }
        Ok(Self { shape, data })
    }

    /// The length of each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &TensorData {
        &self.data
    }

    /// The type of the elements.
    pub fn datatype(&self) -> DataType {
        self.data.datatype()
    }

    /// Shape and elements, without a copy.
    pub fn into_parts(self) -> (Vec<usize>, TensorData) {
        (self.shape, self.data)
    }

    /// The elements where the type is `FP32`.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &self.data {
            TensorData::Fp32(values) => Some(values),
            _ => None,
        }
    }
}

/// Why a shape and a buffer make no tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The product of the axes does not fit a machine word.
    #[error("shape {shape:?} has more elements than fit in memory")]
    Overflow {
        /// The shape as given.
        shape: Vec<usize>,
    },
    /// Shape and buffer disagree.
    #[error("shape {shape:?} needs {expected} elements, found {found}")]
    Length {
        /// The shape as given.
        shape: Vec<usize>,
        /// The product of its axes.
        expected: usize,
        /// The elements that came.
        found: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_datatypes_parse_back() {
        for datatype in DataType::ALL {
            assert_eq!(datatype.as_str().parse(), Ok(datatype));
            let json = serde_json::to_string(&datatype).unwrap();
            assert_eq!(json, format!("\"{datatype}\""));
        }
        assert!("fp32".parse::<DataType>().is_err());
    }

    #[test]
    fn shape_and_length_must_agree() {
        let tensor = Tensor::new(vec![2, 3], TensorData::Fp32(vec![0.0; 6])).unwrap();
        assert_eq!(
            (tensor.shape(), tensor.datatype()),
            (&[2, 3][..], DataType::Fp32)
        );
        assert!(Tensor::new(vec![], TensorData::Int64(vec![7])).is_ok());
        assert_eq!(
            Tensor::new(vec![2, 3], TensorData::Fp32(vec![0.0; 5]))
                .unwrap_err()
                .to_string(),
            "shape [2, 3] needs 6 elements, found 5"
        );
        let huge = Tensor::new(vec![usize::MAX, 2], TensorData::Bool(vec![]));
        assert!(matches!(huge, Err(TensorError::Overflow { .. })));
    }
}
