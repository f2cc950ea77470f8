//! Decoding of an infer request.
//!
//! Keys may come in any order: `data` that comes before its `shape` or `datatype` is passed over
//! once and read when both are known. A known key that comes twice is refused, an unknown one ignored.

use engine::{DataType, Tensor, TensorData};

use super::element::{RANK_MAX, integer, read_data};
use super::json::{Cursor, JsonError};
use super::parameters::{Parameter, ParameterError, refuse_shared_memory};
use super::{InferRequest, NamedTensor, WantedOutput};

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
}

/// Reads one infer request.
///
/// # Errors
/// When the body is not JSON, lacks a required key, or an input does not hold what it declares.
pub(crate) fn decode(body: &[u8]) -> Result<InferRequest, DecodeError> {
    let mut cursor = Cursor::new(body)?;
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
    request.inputs = inputs.ok_or(DecodeError::Missing {
        place: "the request",
        key: "inputs",
    })?;
    request.outputs = outputs.unwrap_or_default();
    Ok(request)
}

fn once<T>(slot: &mut Option<T>, key: &'static str, value: T) -> Result<(), DecodeError> {
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
                integer(number).map_or(Parameter::Other, Parameter::Integer)
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

fn read_inputs(cursor: &mut Cursor<'_>) -> Result<Vec<NamedTensor>, DecodeError> {
    let mut inputs: Vec<NamedTensor> = Vec::new();
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

fn read_input(cursor: &mut Cursor<'_>) -> Result<NamedTensor, DecodeError> {
    let (mut name, mut shape, mut datatype, mut data) = (None, None, None, None);
    let mut data_at: Option<Cursor<'_>> = None;
    let mut binary = false;
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
            "parameters" => read_parameters(cursor, |name, _| {
                binary |= name == "binary_data_size";
                refuse_shared_memory(name)
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
    match data {
        Some(data) => tensor(name, shape, data),
        None if binary => Err(DecodeError::Input {
            input: name,
            problem: "binary tensor data is not offered: send `data`".to_owned(),
        }),
        None => Err(missing("data")),
    }
}

fn tensor(name: Box<str>, shape: Vec<usize>, data: TensorData) -> Result<NamedTensor, DecodeError> {
    match Tensor::new(shape, data) {
        Ok(tensor) => Ok(NamedTensor { name, tensor }),
        Err(error) => Err(DecodeError::Input {
            input: name,
            problem: error.to_string(),
        }),
    }
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
        let axis = integer(number).and_then(|axis| usize::try_from(axis).ok());
        shape.push(axis.ok_or_else(|| {
            let shown: String = number.text.chars().take(32).collect();
            cursor.error(format!("{shown} is no length of an axis"))
        })?);
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
mod tests {
    use std::num::NonZeroUsize;
    use std::time::Duration;

    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn one_input(shape: &str, datatype: &str, data: &str) -> Result<TensorData, DecodeError> {
        let body = format!(
            r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#
        );
        let reordered = format!(
            r#"{{"inputs":[{{"data":{data},"shape":{shape},"name":"x","datatype":"{datatype}"}}]}}"#
        );
        let read = |body: &str| {
            let request = decode(body.as_bytes())?;
            let first = request.inputs.into_iter().next();
            Ok::<_, DecodeError>(first.unwrap().tensor.into_parts().1)
        };
        let (straight, late) = (read(&body), read(&reordered));
        assert_eq!(
            straight.is_ok(),
            late.is_ok(),
            "the order of keys matters: {body}"
        );
        if let (Ok(straight), Ok(late)) = (&straight, &late) {
            assert_eq!(format!("{straight:?}"), format!("{late:?}"));
        }
        straight
    }

    #[test]
    fn values_that_fit_are_exact() {
        let cases = [
            (
                "[2,2]",
                "FP32",
                "[[1,2],[3,4.5]]",
                TensorData::Fp32(vec![1.0, 2.0, 3.0, 4.5]),
            ),
            (
                "[2,2]",
                "FP32",
                "[1,2,3,4.5]",
                TensorData::Fp32(vec![1.0, 2.0, 3.0, 4.5]),
            ),
            (
                "[1]",
                "UINT64",
                "[18446744073709551615]",
                TensorData::Uint64(vec![u64::MAX]),
            ),
            (
                "[1]",
                "INT64",
                "[-9223372036854775808]",
                TensorData::Int64(vec![i64::MIN]),
            ),
            (
                "[2]",
                "INT8",
                "[-128, 1.27e2]",
                TensorData::Int8(vec![-128, 127]),
            ),
            ("[2]", "UINT8", "[3.0,1e2]", TensorData::Uint8(vec![3, 100])),
            (
                "[4]",
                "BOOL",
                "[true,false,1,0]",
                TensorData::Bool(vec![true, false, true, false]),
            ),
            ("[]", "FP64", "2.5", TensorData::Fp64(vec![2.5])),
            ("[]", "FP64", "[2.5]", TensorData::Fp64(vec![2.5])),
            ("[0,3]", "FP32", "[]", TensorData::Fp32(vec![])),
            ("[2,0]", "FP32", "[[],[]]", TensorData::Fp32(vec![])),
            (
                "[1]",
                "BYTES",
                r#"["a\u0000\ud83d\ude00"]"#,
                TensorData::Bytes(vec!["a\0😀".into()]),
            ),
            ("[1]", "FP32", "[-0]", TensorData::Fp32(vec![-0.0])),
            (
                "[2]",
                "FP32",
                "[Infinity,-Infinity]",
                TensorData::Fp32(vec![f32::INFINITY, -f32::INFINITY]),
            ),
        ];
        for (shape, datatype, data, expected) in cases {
            assert_eq!(
                one_input(shape, datatype, data),
                Ok(expected),
                "{datatype} {data}"
            );
        }
        let nan = one_input("[1]", "FP64", "[NaN]").unwrap();
        assert!(matches!(nan, TensorData::Fp64(values) if values[0].is_nan()));
    }

    #[test]
    fn values_that_do_not_fit_are_refused() {
        for (shape, datatype, data) in [
            ("[1]", "INT8", "[300]"),
            ("[1]", "UINT8", "[-1]"),
            ("[1]", "INT32", "[1.5]"),
            ("[1]", "INT32", "[true]"),
            ("[1]", "INT64", "[9223372036854775808]"),
            ("[1]", "INT64", "[NaN]"),
            ("[1]", "UINT64", "[1e30]"),
            ("[1]", "FP32", "[1e400]"),
            ("[1]", "FP32", "[3.5e38]"),
            ("[1]", "FP64", "[1e999]"),
            ("[1]", "FP32", "[\"1\"]"),
            ("[1]", "FP32", "[null]"),
            ("[1]", "FP32", "[true]"),
            ("[1]", "BOOL", "[2]"),
            ("[1]", "BYTES", "[1]"),
            ("[1]", "FP16", "[1]"),
            ("[1]", "BF16", "[1]"),
            ("[1]", "fp32", "[1]"),
            ("[2]", "FP32", "[1]"),
            ("[1]", "FP32", "[1,2]"),
            ("[2,2]", "FP32", "[[1,2],[3]]"),
            ("[2,2]", "FP32", "[[1,2,3],[4]]"),
            ("[2,2]", "FP32", "[[[1],[2]],[[3],[4]]]"),
            ("[4]", "FP32", "[[1,2],[3,4]]"),
            ("[-1]", "FP32", "[1]"),
            ("[1.5]", "FP32", "[1]"),
            ("[\"1\"]", "FP32", "[1]"),
            ("[18446744073709551615,18446744073709551615]", "FP32", "[1]"),
            ("[4000000000]", "FP32", "[1]"),
            ("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "FP32", "[1]"),
            ("{}", "FP32", "[1]"),
            ("[1]", "FP32", "{}"),
            ("[1]", "FP32", "1"),
        ] {
            assert!(
                one_input(shape, datatype, data).is_err(),
                "accepted {shape} {datatype} {data}"
            );
        }
    }

    #[test]
    fn missing_unknown_and_doubled_keys_have_one_answer() {
        let refused = [
            "{}",
            "[]",
            r#"{"inputs":{}}"#,
            r#"{"inputs":[{}]}"#,
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}"#,
            r#"{"inputs":[{"name":"x","shape":[1],"data":[1]}]}"#,
            r#"{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}"#,
            r#"{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}"#,
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"data":[1]}]}"#,
            r#"{"inputs":[{"data":[1],"data":[1],"name":"x","shape":[1],"datatype":"FP32"}]}"#,
            r#"{"inputs":[{"data":[1],"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#,
            r#"{"inputs":[],"inputs":[]}"#,
            r#"{"id":1,"inputs":[]}"#,
            r#"{"id":null,"inputs":[]}"#,
            r#"{"inputs":[],"outputs":[{}]}"#,
            r#"{"inputs":[],"parameters":{"timeout":-1}}"#,
            r#"{"inputs":[],"parameters":{"timeout":"1s"}}"#,
            r#"{"inputs":[],"parameters":{"sequence_id":1}}"#,
            r#"{"inputs":[],"parameters":{},"parameters":{}}"#,
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-1}}]}"#,
            r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]}"#,
            r#"{"inputs":[],"parameters":{"loopgate_record":0}}"#,
            r#"{"inputs":[]} {}"#,
            r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#,
        ];
        for body in refused {
            assert!(decode(body.as_bytes()).is_err(), "accepted {body}");
        }
        let body = r#"{"z":[{"deep":[1e400,null]}],"id":"a","outputs":[{"name":"y","parameters":{"binary_data":false,"classification":3}}],
            "parameters":{"timeout":2500,"loopgate_record":false,"other":"x","priority":1,"more":[{}]},"inputs":[]}"#;
        let request = decode(body.as_bytes()).unwrap();
        let expected = InferRequest {
            id: Some("a".into()),
            inputs: vec![],
            outputs: vec![WantedOutput {
                name: "y".into(),
                classification: NonZeroUsize::new(3),
                binary: Some(false),
            }],
            priority: 1,
            timeout: Some(Duration::from_micros(2500)),
            probe: true,
            ..InferRequest::default()
        };
        assert_eq!(request, expected);
    }

    /// Name, shape and elements of each input.
    type Read = Vec<(String, Vec<usize>, Vec<f64>)>;

    /// The same rules, written the slow way over serde_json's tree.
    fn reference(body: &[u8]) -> Option<Read> {
        fn flatten(data: &Value, shape: &[usize], out: &mut Vec<f64>) -> Option<()> {
            let items = data.as_array()?;
            if items.len() != *shape.first()? {
                return None;
            }
            for item in items {
                match shape.len() {
                    1 => out.push(item.as_f64()?),
                    _ => flatten(item, &shape[1..], out)?,
                }
            }
            Some(())
        }
        let document: Value = serde_json::from_slice(body).ok()?;
        let mut inputs = Vec::new();
        for input in document.get("inputs")?.as_array()? {
            let axes = input.get("shape")?.as_array()?;
            let shape: Vec<usize> = axes
                .iter()
                .map(|axis| Some(axis.as_u64()? as usize))
                .collect::<Option<_>>()?;
            if input.get("datatype")?.as_str()? != "FP64" {
                return None;
            }
            let data = input.get("data")?;
            let mut out = Vec::new();
            let nested = data.as_array()?.first().is_some_and(Value::is_array) && shape.len() > 1;
            let flat = [shape.iter().product()];
            flatten(data, if nested { &shape } else { &flat }, &mut out)?;
            inputs.push((input.get("name")?.as_str()?.to_owned(), shape, out));
        }
        Some(inputs)
    }

    fn ours(body: &[u8]) -> Option<Read> {
        let request = decode(body).ok()?;
        let mut inputs = Vec::new();
        for input in request.inputs {
            let (shape, TensorData::Fp64(data)) = input.tensor.into_parts() else {
                return None;
            };
            inputs.push((input.name.into(), shape, data));
        }
        Some(inputs)
    }

    fn arbitrary_input() -> impl Strategy<Value = Value> {
        let numbers = prop::collection::vec(
            prop_oneof![
                any::<f64>().prop_filter("finite", |x| x.is_finite()),
                Just(3.0)
            ],
            0..7,
        );
        let shape = prop::collection::vec(0_usize..4, 1..4);
        ("[a-c\"\\\\é]{1,3}", shape, numbers, any::<bool>(), 0..10_u8).prop_map(
            |(name, shape, mut numbers, nested, honest)| {
                let count = shape.iter().product();
                if honest > 2 {
                    numbers.resize(count, 0.5);
                }
                let mut data = json!(numbers);
                if nested {
                    for axis in shape.iter().skip(1).rev() {
                        let items = data.as_array().cloned().unwrap_or_default();
                        data = items.chunks((*axis).max(1)).map(|chunk| json!(chunk)).collect();
                    }
                }
                json!({"datatype": "FP64", "shape": shape, "name": name, "data": data, "more": {"k": [null, "x"]}})
            },
        )
    }

    proptest! {
        #[test]
        fn requests_decode_as_the_reference_decodes_them(
            inputs in prop::collection::vec(arbitrary_input(), 0..3),
            cut in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
        ) {
            let mut names: Vec<_> = inputs.iter().map(|input| input["name"].to_string()).collect();
            names.sort();
            names.dedup();
            prop_assume!(names.len() == inputs.len());
            let mut body = serde_json::to_vec(&json!({"id": "x", "inputs": inputs})).unwrap();
            if let Some((index, byte)) = cut {
                let at = index.index(body.len());
                body[at] = byte;
            }
            // A doubled or damaged key may be known to one and not to the other; equal elsewhere.
            if let (Some(ours), Some(theirs)) = (ours(&body), reference(&body)) {
                prop_assert_eq!(ours, theirs);
            } else if cut.is_none() {
                prop_assert_eq!(ours(&body), reference(&body));
            }
        }

        #[test]
        fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            drop(decode(&body));
        }
    }
}
