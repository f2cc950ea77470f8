//! Decoding of an infer request.
//!
//! Keys may come in any order: `data` that comes before its `shape` or `datatype` is passed over
//! once and read when both are known. A known key that comes twice is refused, an unknown one ignored.

use engine::DataType;

use super::binary::Declared;
use super::element::{RANK_MAX, read_data};
use super::json::{Cursor, JsonError};
use super::parameters::{Parameter, ParameterError, refuse_shared_memory};
use super::{InferRequest, WantedOutput};

/// Inputs or outputs that one request may name.
const TENSORS_MAX: usize = 1024;

/// Why a body is no infer request. All are the caller's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error(transparent)]
    Json(#[from] JsonError),
    #[error("{place} lacks `{key}`")]
    Missing {
        place: &'static str,
        key: &'static str,
    },
    #[error("key `{key}` comes twice")]
    Duplicate { key: &'static str },
    #[error("input `{input}` comes twice")]
    DuplicateInput { input: Box<str> },
    #[error("input `{input}`: {problem}")]
    Input { input: Box<str>, problem: String },
    #[error(transparent)]
    Parameter(#[from] ParameterError),
    #[error("more than {TENSORS_MAX} {what}")]
    TooMany { what: &'static str },
    #[error("more than {max} pairs")]
    TooManyPairs { max: usize },
    #[error("the JSON is said to be {json_bytes} bytes, the body has {bytes}")]
    Split { json_bytes: usize, bytes: usize },
    #[error("unexpected additional input data: {bytes} bytes")]
    LeftOver { bytes: usize },
}

/// Reads one infer request, all of it JSON.
///
/// # Errors
/// When the body is not JSON, lacks a required key, or an input does not hold what it declares.
pub(crate) fn decode(body: &[u8]) -> Result<InferRequest, DecodeError> {
    read(body, None)
}

/// Reads one infer request whose first `json_bytes` are JSON and the rest binary tensors.
///
/// # Errors
/// As [`decode`], and when there are fewer or more bytes than the inputs declare.
pub(crate) fn decode_binary(body: &[u8], json_bytes: usize) -> Result<InferRequest, DecodeError> {
    match body.split_at_checked(json_bytes) {
        Some((json, tail)) => read(json, Some(tail)),
        None => Err(DecodeError::Split {
            json_bytes,
            bytes: body.len(),
        }),
    }
}

fn read(json: &[u8], tail: Option<&[u8]>) -> Result<InferRequest, DecodeError> {
    let mut cursor = Cursor::new(json);
    let mut request = InferRequest::default();
    let (mut id, mut parameters, mut inputs, mut outputs) = (None, None, None, None);
    cursor.begin_object()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        match &*key {
            "id" => once(&mut id, "id", Box::<str>::from(cursor.string()?))?,
            "parameters" => {
                once(
                    &mut parameters,
                    "parameters",
                    read_parameters(&mut cursor, |name, value| request.apply(name, value))?,
                )?;
            }
            "inputs" => once(&mut inputs, "inputs", read_inputs(&mut cursor)?)?,
            "outputs" => once(&mut outputs, "outputs", read_outputs(&mut cursor)?)?,
            _ => cursor.skip_value()?,
        }
    }
    cursor.end()?;
    request.id = id;
    let inputs: Vec<Declared> = inputs.ok_or(DecodeError::Missing {
        place: "the request",
        key: "inputs",
    })?;
    let mut tail = tail;
    let filled = inputs.into_iter().map(|input| input.filled(&mut tail));
    request.inputs = filled.collect::<Result<_, _>>()?;
    request.outputs = outputs.unwrap_or_default();
    match tail {
        Some(rest) if !rest.is_empty() => Err(DecodeError::LeftOver { bytes: rest.len() }),
        _ => Ok(request),
    }
}

pub(super) fn once<T>(
    slot: &mut Option<T>,
    key: &'static str,
    value: T,
) -> Result<(), DecodeError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(DecodeError::Duplicate { key }),
    }
}

/// Reads an object of parameters and gives each to `apply`.
fn read_parameters(
    cursor: &mut Cursor<'_>,
    mut apply: impl FnMut(&str, &Parameter) -> Result<(), ParameterError>,
) -> Result<(), DecodeError> {
    cursor.begin_object()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        let value = match cursor.peek() {
            Some(b'"') => Parameter::Text(cursor.string()?.into()),
            Some(b't' | b'f') => Parameter::Bool(cursor.boolean()?),
            Some(b'-' | b'0'..=b'9') => {
                let number = cursor.number_or_token()?;
                number
                    .to_integer()
                    .map_or(Parameter::Other, Parameter::Integer)
            }
            _ => {
                cursor.skip_value()?;
                Parameter::Other
            }
        };
        apply(&key, &value)?;
    }
    Ok(())
}

pub(super) fn read_inputs(cursor: &mut Cursor<'_>) -> Result<Vec<Declared>, DecodeError> {
    let mut inputs: Vec<Declared> = Vec::new();
    cursor.begin_array()?;
    let mut first = true;
    while cursor.next_item(&mut first)? {
        if inputs.len() == TENSORS_MAX {
            return Err(DecodeError::TooMany { what: "inputs" });
        }
        let input = read_input(cursor)?;
        if inputs.iter().any(|before| before.name == input.name) {
            return Err(DecodeError::DuplicateInput { input: input.name });
        }
        inputs.push(input);
    }
    Ok(inputs)
}

fn read_input(cursor: &mut Cursor<'_>) -> Result<Declared, DecodeError> {
    let (mut name, mut shape, mut datatype, mut data) = (None, None, None, None);
    let mut data_at: Option<Cursor<'_>> = None;
    let mut binary_bytes = None;
    cursor.begin_object()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        match &*key {
            "name" => once(&mut name, "name", Box::<str>::from(cursor.string()?))?,
            "shape" => once(&mut shape, "shape", read_shape(cursor)?)?,
            "datatype" => once(&mut datatype, "datatype", read_datatype(cursor)?)?,
            "data" if data_at.is_some() => return Err(DecodeError::Duplicate { key: "data" }),
            "data" => match (&shape, datatype) {
                (Some(shape), Some(datatype)) => {
                    once(&mut data, "data", read_data(cursor, shape, datatype)?)?;
                }
                _ => {
                    data_at = Some(cursor.clone());
                    cursor.skip_value()?;
                }
            },
            "parameters" => read_parameters(cursor, |name, value| match name {
                "binary_data_size" => {
                    binary_bytes = Some(binary_size(value)?);
                    Ok(())
                }
                name => refuse_shared_memory(name),
            })?,
            _ => cursor.skip_value()?,
        }
    }
    let missing = |key| DecodeError::Missing {
        place: "an input",
        key,
    };
    let name = name.ok_or(missing("name"))?;
    let shape = shape.ok_or(missing("shape"))?;
    let datatype = datatype.ok_or(missing("datatype"))?;
    if let Some(mut at) = data_at {
        if data.is_some() {
            return Err(DecodeError::Duplicate { key: "data" });
        }
        data = Some(read_data(&mut at, &shape, datatype)?);
    }
    Ok(Declared {
        name,
        shape,
        datatype,
        data,
        binary_bytes,
    })
}

fn binary_size(value: &Parameter) -> Result<usize, ParameterError> {
    match value {
        Parameter::Integer(size) => usize::try_from(*size).ok(),
        _ => None,
    }
    .ok_or_else(|| ParameterError::new("binary_data_size", "is not a number of bytes"))
}

fn read_shape(cursor: &mut Cursor<'_>) -> Result<Vec<usize>, DecodeError> {
    let mut shape = Vec::new();
    cursor.begin_array()?;
    let mut first = true;
    while cursor.next_item(&mut first)? {
        if shape.len() == RANK_MAX {
            return Err(cursor.error(format!("more than {RANK_MAX} axes")).into());
        }
        let number = cursor.number()?;
        let axis = number
            .to_integer()
            .and_then(|axis| usize::try_from(axis).ok());
        let wrong = || cursor.error(format!("{} is no length of an axis", number.shown()));
        shape.push(axis.ok_or_else(wrong)?);
    }
    Ok(shape)
}

fn read_datatype(cursor: &mut Cursor<'_>) -> Result<DataType, DecodeError> {
    let name = cursor.string()?;
    name.parse().map_err(|_| {
        let shown: String = name.chars().take(32).collect();
        cursor.error(format!("unknown datatype `{shown}`")).into()
    })
}

fn read_outputs(cursor: &mut Cursor<'_>) -> Result<Vec<WantedOutput>, DecodeError> {
    let mut outputs = Vec::new();
    cursor.begin_array()?;
    let mut first = true;
    while cursor.next_item(&mut first)? {
        if outputs.len() == TENSORS_MAX {
            return Err(DecodeError::TooMany { what: "outputs" });
        }
        outputs.push(read_output(cursor)?);
    }
    Ok(outputs)
}

fn read_output(cursor: &mut Cursor<'_>) -> Result<WantedOutput, DecodeError> {
    let mut output = WantedOutput::default();
    let (mut name, mut parameters) = (None, None);
    cursor.begin_object()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        match &*key {
            "name" => once(&mut name, "name", Box::<str>::from(cursor.string()?))?,
            "parameters" => {
                once(
                    &mut parameters,
                    "parameters",
                    read_parameters(cursor, |name, value| output.apply(name, value))?,
                )?;
            }
            _ => cursor.skip_value()?,
        }
    }
    output.name = name.ok_or(DecodeError::Missing {
        place: "an output",
        key: "name",
    })?;
    Ok(output)
}

#[cfg(test)]
mod tests;
