//! Tensors between our form and ONNX Runtime's.
//!
//! Costs: an input is lent to the library, except strings, which it copies; an output is copied once.

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use ort::session::SessionInputValue;
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};

use crate::tensor::{Tensor, TensorData};

pub(super) fn into_ort(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape();
    Ok(match tensor.data() {
        TensorData::Bool(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint8(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint16(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int8(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int16(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Fp32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Fp64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Fp16(v) => {
            let halves: &[f16] = v.reinterpret_cast();
            TensorRef::from_array_view((shape, halves))?.into()
        }
        TensorData::Bf16(v) => {
            let halves: &[bf16] = v.reinterpret_cast();
            TensorRef::from_array_view((shape, halves))?.into()
        }
        TensorData::Bytes(v) => {
            // The crate takes owned text only.
            let text = v.iter().map(|bytes| String::from_utf8(bytes.clone()));
            let text = text
                .collect::<Result<Vec<_>, _>>()
                .map_err(ort::Error::wrap)?;
            ort::value::Tensor::from_string_array((shape, text.as_slice()))?.into()
        }
    })
}

pub(super) fn from_ort(value: &DynValue) -> ort::Result<Tensor> {
    use TensorElementType as Type;
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(ort::Error::new("an output is no tensor"));
    };
    macro_rules! copied {
        ($variant:ident) => {
            TensorData::$variant(value.try_extract_tensor()?.1.to_vec())
        };
    }
    let data = match ty {
        Type::Bool => copied!(Bool),
        Type::Uint8 => copied!(Uint8),
        Type::Uint16 => copied!(Uint16),
        Type::Uint32 => copied!(Uint32),
        Type::Uint64 => copied!(Uint64),
        Type::Int8 => copied!(Int8),
        Type::Int16 => copied!(Int16),
        Type::Int32 => copied!(Int32),
        Type::Int64 => copied!(Int64),
        Type::Float16 => {
            let (_, halves) = value.try_extract_tensor::<f16>()?;
            TensorData::Fp16(halves.reinterpret_cast().to_vec())
        }
        Type::Bfloat16 => {
            let (_, halves) = value.try_extract_tensor::<bf16>()?;
            TensorData::Bf16(halves.reinterpret_cast().to_vec())
        }
        Type::Float32 => copied!(Fp32),
        Type::Float64 => copied!(Fp64),
        Type::String => {
            let (_, text) = value.try_extract_strings()?;
            TensorData::Bytes(text.into_iter().map(String::into_bytes).collect())
        }
        other => {
            return Err(ort::Error::new(format!(
                "outputs of {other} are not supported"
            )));
        }
    };
    let shape = shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0));
    Tensor::new(shape.collect(), data).map_err(ort::Error::wrap)
}
