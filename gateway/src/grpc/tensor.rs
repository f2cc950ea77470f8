//! Tensors between the wire and the engine: raw or typed contents in, raw contents out.

use bytes::Bytes;
use engine::{DataType, Tensor, TensorData};

use super::message::{InferInputTensor, InferTensorContents};
use crate::oip::{DecodeError, NamedTensor, raw_size, read_raw, write_raw};

/// Axes that a tensor may have.
const RANK_MAX: usize = 16;

/// Reads one input, from `raw` where the request has raw contents, else from its typed ones.
pub(super) fn decode(
    input: InferInputTensor,
    raw: Option<Bytes>,
) -> Result<NamedTensor, DecodeError> {
    let name: Box<str> = input.name.into();
    let refused = |problem: String| DecodeError::Input {
        input: name.clone(),
        problem,
    };
    let datatype: DataType = input.datatype.parse().map_err(|_| {
        let shown: String = input.datatype.chars().take(32).collect();
        refused(format!("unknown datatype `{shown}`"))
    })?;
    if input.shape.len() > RANK_MAX {
        return Err(refused(format!("more than {RANK_MAX} axes")));
    }
    let axis = |&axis: &i64| usize::try_from(axis);
    let shape = input.shape.iter().map(axis).collect::<Result<Vec<_>, _>>();
    let shape =
        shape.map_err(|_| refused(format!("shape {:?} has a negative axis", input.shape)))?;
    let data = match (raw, input.contents) {
        (Some(_), Some(_)) => {
            Err("has typed contents although the request has raw ones".to_owned())
        }
        (Some(raw), None) => read_raw(datatype, &raw).map_err(|error| error.to_string()),
        (None, Some(contents)) => from_typed(datatype, contents),
        (None, None) => from_typed(datatype, InferTensorContents::default()),
    };
    let data = data.map_err(refused)?;
    let tensor = Tensor::new(shape, data).map_err(|error| refused(error.to_string()))?;
    Ok(NamedTensor { name, tensor })
}

fn from_typed(datatype: DataType, contents: InferTensorContents) -> Result<TensorData, String> {
    fn narrow<W: Copy + ToString, N: TryFrom<W>>(
        wide: &[W],
        datatype: DataType,
    ) -> Result<Vec<N>, String> {
        let one = |&value: &W| {
            let narrow = N::try_from(value);
            narrow.map_err(|_| format!("{} does not fit {datatype}", value.to_string()))
        };
        wide.iter().map(one).collect()
    }
    let lists = [
        contents.bool_contents.len(),
        contents.int_contents.len(),
        contents.int64_contents.len(),
        contents.uint_contents.len(),
        contents.uint64_contents.len(),
        contents.fp32_contents.len(),
        contents.fp64_contents.len(),
        contents.bytes_contents.len(),
    ];
    let given: usize = lists.iter().sum();
    let data = match datatype {
        DataType::Bool => TensorData::Bool(contents.bool_contents),
        DataType::Uint8 => TensorData::Uint8(narrow(&contents.uint_contents, datatype)?),
        DataType::Uint16 => TensorData::Uint16(narrow(&contents.uint_contents, datatype)?),
        DataType::Uint32 => TensorData::Uint32(contents.uint_contents),
        DataType::Uint64 => TensorData::Uint64(contents.uint64_contents),
        DataType::Int8 => TensorData::Int8(narrow(&contents.int_contents, datatype)?),
        DataType::Int16 => TensorData::Int16(narrow(&contents.int_contents, datatype)?),
        DataType::Int32 => TensorData::Int32(contents.int_contents),
        DataType::Int64 => TensorData::Int64(contents.int64_contents),
        DataType::Fp16 | DataType::Bf16 => {
            return Err(format!("{datatype} has raw contents only"));
        }
        DataType::Fp32 => TensorData::Fp32(contents.fp32_contents),
        DataType::Fp64 => TensorData::Fp64(contents.fp64_contents),
        DataType::Bytes => {
            TensorData::Bytes(contents.bytes_contents.into_iter().map(Vec::from).collect())
        }
    };
    if data.len() != given {
        return Err(format!("has contents of another datatype than {datatype}"));
    }
    Ok(data)
}

/// The raw form of a tensor's elements.
pub(super) fn encode(data: &TensorData) -> Bytes {
    let mut raw = Vec::with_capacity(raw_size(data));
    write_raw(&mut raw, data);
    raw.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn input(
        datatype: &str,
        shape: &[i64],
        contents: Option<InferTensorContents>,
    ) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        }
    }

    fn refusal(input: InferInputTensor, raw: Option<Vec<u8>>) -> String {
        decode(input, raw.map(Bytes::from)).unwrap_err().to_string()
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_reason() {
        let typed = |contents| Some(contents);
        let floats = InferTensorContents {
            fp32_contents: vec![1.0],
            ..InferTensorContents::default()
        };
        let wide = InferTensorContents {
            int_contents: vec![300],
            ..InferTensorContents::default()
        };
        let cases = [
            (input("FP32", &[2], typed(floats.clone())), None, "2"),
            (
                input("INT64", &[1], typed(floats.clone())),
                None,
                "another datatype",
            ),
            (
                input("INT8", &[1], typed(wide)),
                None,
                "300 does not fit INT8",
            ),
            (
                input("FP16", &[1], typed(floats.clone())),
                None,
                "raw contents only",
            ),
            (
                input("FP32", &[1], typed(floats)),
                Some(vec![0; 4]),
                "typed contents",
            ),
            (input("FP32", &[-1], None), Some(vec![0; 4]), "negative"),
            (input("FP32", &[1], None), Some(vec![0; 5]), "4-byte"),
            (
                input("BYTES", &[1], None),
                Some(vec![9, 0, 0, 0, 1]),
                "end within",
            ),
            (input("BYTES", &[1], None), Some(vec![255; 4]), "end within"),
            (input("FP99", &[1], None), None, "unknown datatype"),
            (
                input("FP32", &[i64::MAX, i64::MAX], None),
                Some(vec![]),
                "x",
            ),
            (input("FP32", &[1; 17], None), None, "axes"),
        ];
        for (input, raw, expected) in cases {
            let found = refusal(input.clone(), raw);
            assert!(found.contains(expected), "{input:?}: {found}");
        }
    }

    proptest! {
        #[test]
        fn raw_contents_come_back_to_the_bit(
            floats in proptest::collection::vec(any::<f32>(), 0..8),
            longs in proptest::collection::vec(any::<i64>(), 0..8),
            texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..8),
        ) {
            let cases = [
                ("FP32", TensorData::Fp32(floats)),
                ("INT64", TensorData::Int64(longs)),
                ("BYTES", TensorData::Bytes(texts)),
            ];
            for (name, data) in cases {
                let raw = encode(&data);
                let count = i64::try_from(data.len()).unwrap();
                let back = decode(input(name, &[count], None), Some(raw.clone())).unwrap();
                prop_assert_eq!(encode(back.tensor.data()), raw);
            }
        }

        #[test]
        fn any_bytes_are_taken_or_refused(raw in proptest::collection::vec(any::<u8>(), 0..64), shape in proptest::collection::vec(-2_i64..5, 0..4)) {
            for datatype in DataType::ALL {
                drop(decode(input(datatype.as_str(), &shape, None), Some(raw.clone().into())));
            }
        }
    }
}
