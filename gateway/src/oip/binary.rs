//! The binary tensor extension, as a request uses it: elements in the bytes after the JSON, in the
//! order of the inputs that have no `data`; or a body that is one tensor's elements and nothing else.

use engine::{DataType, Tensor, TensorData, TensorSpec};

use super::raw::read_raw;
use super::request::DecodeError;
use super::{InferRequest, NamedTensor};

/// An input as the JSON declares it.
pub(super) struct Declared {
    pub name: Box<str>,
    pub shape: Vec<usize>,
    pub datatype: DataType,
    pub data: Option<TensorData>,
    /// Parameter `binary_data_size`.
    pub binary_bytes: Option<usize>,
}

impl Declared {
    /// The input with its elements: its own, or the next of `tail`, the bytes after the JSON.
    pub(super) fn filled(self, tail: &mut Option<&[u8]>) -> Result<NamedTensor, DecodeError> {
        let refused = |problem: &str| DecodeError::Input {
            input: self.name.clone(),
            problem: problem.to_owned(),
        };
        let data = match (self.data, self.binary_bytes, tail) {
            (Some(data), None, _) => data,
            (Some(_), Some(_), _) => {
                return Err(refused("has both `data` and `binary_data_size`"));
            }
            (None, Some(_), None) => {
                return Err(refused(
                    "binary data needs the header `Inference-Header-Content-Length`",
                ));
            }
            (None, None, None) => {
                return Err(DecodeError::Missing {
                    place: "an input",
                    key: "data",
                });
            }
            (None, given, Some(tail)) => {
                let declared = fixed_size(&self.shape, self.datatype);
                let size = match (given, declared) {
                    (Some(given), Some(declared)) if given != declared => {
                        return Err(refused(&format!(
                            "`binary_data_size` is {given}, shape and datatype need {declared}"
                        )));
                    }
                    (Some(size), _) | (None, Some(size)) => size,
                    (None, None) => return Err(refused("lacks `binary_data_size`")),
                };
                let (blob, rest) = tail.split_at_checked(size).ok_or_else(|| {
                    refused(&format!(
                        "{size} binary bytes declared, {} left",
                        tail.len()
                    ))
                })?;
                *tail = rest;
                read_raw(self.datatype, blob).map_err(|error| refused(&error.to_string()))?
            }
        };
        match Tensor::new(self.shape, data) {
            Ok(tensor) => Ok(NamedTensor {
                name: self.name,
                tensor,
            }),
            Err(error) => Err(DecodeError::Input {
                input: self.name,
                problem: error.to_string(),
            }),
        }
    }
}

/// The bytes of a shape's elements; `None` where they vary, or fit no memory.
fn fixed_size(shape: &[usize], datatype: DataType) -> Option<usize> {
    let each = datatype.bytes_per_element()?;
    shape
        .iter()
        .try_fold(each, |bytes, &axis| bytes.checked_mul(axis))
}

/// A request whose body is the elements of the model's only input. An axis that varies, of which
/// there may be one, takes its length from the body. `BYTES` is one element, without its length.
///
/// # Errors
/// When the body's length fits no shape of `input`.
pub(crate) fn decode_raw(body: &[u8], input: &TensorSpec) -> Result<InferRequest, DecodeError> {
    let refused = |problem: String| DecodeError::Input {
        input: input.name.as_str().into(),
        problem,
    };
    let unfit = || {
        refused(format!(
            "{} raw bytes fit no tensor of {} {:?}",
            body.len(),
            input.datatype,
            input.shape
        ))
    };
    let data = match input.datatype {
        DataType::Bytes => TensorData::Bytes(vec![body.to_vec()]),
        datatype => read_raw(datatype, body).map_err(|error| refused(error.to_string()))?,
    };
    let fixed = input
        .shape
        .iter()
        .filter_map(|&axis| usize::try_from(axis).ok())
        .try_fold(1_usize, usize::checked_mul)
        .ok_or_else(unfit)?;
    let varying = input.shape.iter().filter(|&&axis| axis < 0).count();
    let length = match varying {
        0 => 1,
        1 => data.len().checked_div(fixed).ok_or_else(unfit)?,
        _ => {
            return Err(refused(format!(
                "a raw body cannot say the lengths of {varying} axes"
            )));
        }
    };
    let axes = input.shape.iter();
    let shape = axes.map(|&axis| usize::try_from(axis).unwrap_or(length));
    let tensor = Tensor::new(shape.collect(), data).map_err(|_| unfit())?;
    Ok(InferRequest {
        inputs: vec![NamedTensor {
            name: input.name.as_str().into(),
            tensor,
        }],
        ..InferRequest::default()
    })
}
