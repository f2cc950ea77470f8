//! What a model takes and gives: names, datatypes and shapes, in the file's order.

use serde::{Deserialize, Serialize};

use crate::tensor::{DataType, Tensor};

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
        if fits {
            return None;
        }
        Some(format!(
            "expected shape {:?}, found {:?}",
            self.shape,
            tensor.shape()
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
