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
    /// The rows that `inputs` hold: the first axis of the first input whose first axis varies.
    pub fn rows(&self, inputs: &[Tensor]) -> Option<usize> {
        self.inputs
            .iter()
            .zip(inputs)
            .find(|(spec, _)| spec.shape.first() == Some(&-1))
            .and_then(|(_, tensor)| tensor.shape().first().copied())
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
}
