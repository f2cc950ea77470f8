//! What a model takes and gives: names, datatypes and shapes, in the file's order.

use serde::{Deserialize, Serialize};

use crate::tensor::{DataType, Tensor, TensorData};

/// One input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// The name in the ONNX graph.
    pub name: String,
    /// The type of the elements.
    pub datatype: DataType,
    /// The length of each axis; -1 where it varies, as the batch does.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// Why `tensor` does not fit, in a sentence; `None` when it does.
    pub fn mismatch(&self, tensor: &Tensor) -> Option<String> {
        if tensor.datatype() != self.datatype {
            return Some(format!(
                "expected {}, found {}",
                self.datatype,
                tensor.datatype()
            ));
        }
        let fits = tensor.shape().len() == self.shape.len()
            && tensor
                .shape()
                .iter()
                .zip(&self.shape)
                .all(|(&found, &expected)| expected < 0 || usize::try_from(expected) == Ok(found));
        if !fits {
            return Some(format!(
                "expected shape {:?}, found {:?}",
                self.shape,
                tensor.shape()
            ));
        }
        let TensorData::Bytes(texts) = tensor.data() else {
            return None;
        };
        // Strings of ONNX are UTF-8, and engines end them with a zero.
        let is_text = |bytes: &Vec<u8>| !bytes.contains(&0) && std::str::from_utf8(bytes).is_ok();
        let place = texts.iter().position(|bytes| !is_text(bytes))?;
        Some(format!(
            "expected text in UTF-8 without zeros, found other bytes in element {place}"
        ))
    }
}

/// The inputs and outputs of a model, in the order of its graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// Graph inputs that no initializer fills.
    pub inputs: Vec<TensorSpec>,
    /// Graph outputs.
    pub outputs: Vec<TensorSpec>,
}

impl Signature {
    /// The rows that `inputs` hold: the length of the first axis of those inputs whose first axis
    /// varies. None where there is no such input, where their lengths differ, and where no output
    /// has such an axis: then the first axis is no batch but, say, time, and the inputs are one row.
    pub fn rows(&self, inputs: &[Tensor]) -> Option<usize> {
        let varies = |spec: &TensorSpec| spec.shape.first() == Some(&-1);
        if !self.outputs.is_empty() && !self.outputs.iter().any(varies) {
            return None;
        }
        let mut rows = None;
        for (spec, tensor) in self.inputs.iter().zip(inputs) {
            if !varies(spec) {
                continue;
            }
            let length = tensor.shape().first().copied();
            if rows.is_some() && rows != length {
                return None;
            }
            rows = length;
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_told_and_bytes_that_are_no_text_do_not() {
        let spec = |datatype, shape: &[i64]| TensorSpec {
            name: "x".to_owned(),
            datatype,
            shape: shape.to_vec(),
        };
        let tensor = |texts: &[&[u8]]| {
            let texts: Vec<Vec<u8>> = texts.iter().map(|text| text.to_vec()).collect();
            Tensor::new(vec![texts.len()], TensorData::Bytes(texts)).unwrap()
        };
        let open = spec(DataType::Bytes, &[-1]);
        assert_eq!(open.mismatch(&tensor(&[b"", "é".as_bytes()])), None);
        for wrong in [&b"\xff"[..], b"a\0b"] {
            let told = open.mismatch(&tensor(&[b"a", wrong])).unwrap();
            assert!(told.contains("element 1"), "{told}");
        }
        let two = spec(DataType::Bytes, &[2]).mismatch(&tensor(&[b"a"]));
        assert!(two.unwrap().contains("shape"));
        let number = spec(DataType::Fp32, &[-1]).mismatch(&tensor(&[b"a"]));
        assert!(number.unwrap().contains("FP32"));
    }

    #[test]
    fn rows_need_inputs_that_agree_on_them() {
        let spec = |shape: &[i64]| TensorSpec {
            name: "x".into(),
            datatype: DataType::Bool,
            shape: shape.to_vec(),
        };
        let signature = |shapes: &[&[i64]]| Signature {
            inputs: shapes.iter().map(|shape| spec(shape)).collect(),
            outputs: vec![],
        };
        let tensor = |shape: &[usize]| {
            let count = shape.iter().product();
            Tensor::new(shape.to_vec(), TensorData::Bool(vec![false; count])).unwrap()
        };
        let two = signature(&[&[-1, 2], &[3], &[-1]]);
        let rows = |first, last| two.rows(&[tensor(&[first, 2]), tensor(&[3]), tensor(&[last])]);
        assert_eq!(
            (rows(4, 4), rows(0, 0), rows(4, 5)),
            (Some(4), Some(0), None)
        );
        assert_eq!(
            signature(&[&[3], &[]]).rows(&[tensor(&[3]), tensor(&[])]),
            None
        );
        assert_eq!(signature(&[]).rows(&[]), None);
        // A signal of any length to one number, beside a state: one row, however long it is.
        let mut signal = signature(&[&[-1]]);
        signal.outputs = vec![spec(&[1]), spec(&[2, -1])];
        assert_eq!(signal.rows(&[tensor(&[16_000])]), None);
        signal.outputs.push(spec(&[-1]));
        assert_eq!(signal.rows(&[tensor(&[16_000])]), Some(16_000));
    }
}
