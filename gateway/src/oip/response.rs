//! Encoding of an infer response. Numbers are the shortest text that reads back to the same bits.

use std::borrow::Cow;

use engine::{Tensor, TensorData};
use uuid::Uuid;

use super::half::{BF16, FP16};
use super::raw::{raw_size, write_raw};
use super::scalar::{write_float, write_integer, write_string};

/// What a response says, borrowed from the answer.
pub(crate) struct Response<'a> {
    pub model: &'a str,
    /// The version that answered.
    pub version: &'a str,
    pub id: Option<&'a str>,
    /// Names the rows for labels; absent for a probe.
    pub prediction: Option<Uuid>,
    /// Why another than the routed version answered.
    pub fallback_reason: Option<&'static str>,
    /// Counts by status, only where not every feature was present.
    pub feature_status: Option<&'a str>,
    pub outputs: Vec<ResponseOutput<'a>>,
}

/// One output of a response.
pub(crate) struct ResponseOutput<'a> {
    pub name: &'a str,
    /// The model's own, or what classification made of it.
    pub tensor: Cow<'a, Tensor>,
    /// Asked for as binary, where the wire has the choice.
    pub binary: bool,
}

/// Why an answer has no JSON form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error(
        "output `{output}` holds bytes that are not UTF-8, which JSON cannot carry: ask for it with `binary_data`"
    )]
    NotText { output: Box<str> },
}

/// An encoded response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Encoded {
    /// One JSON object, then the binary outputs.
    pub body: Vec<u8>,
    /// The length of the JSON; `None` where no output is binary.
    pub json_bytes: Option<usize>,
}

/// Writes the response as one JSON object, and after it the outputs that are wanted as binary.
///
/// # Errors
/// When an output of BYTES that is wanted as JSON is not text.
pub(crate) fn encode(response: &Response<'_>) -> Result<Encoded, EncodeError> {
    // More than a name, its keys and the numbers of the usual output take, so that one allocation
    // is enough.
    let space = |output: &ResponseOutput<'_>| match output.binary {
        true => 128 + output.name.len() + raw_size(output.tensor.data()),
        false => 128 + output.name.len() + 14 * output.tensor.data().len(),
    };
    let space: usize = response.outputs.iter().map(space).sum();
    let mut out = Vec::with_capacity(320 + space);
    out.extend_from_slice(b"{\"model_name\":");
    write_string(&mut out, response.model);
    out.extend_from_slice(b",\"model_version\":");
    write_string(&mut out, response.version);
    if let Some(id) = response.id {
        out.extend_from_slice(b",\"id\":");
        write_string(&mut out, id);
    }
    parameters(&mut out, response);
    out.extend_from_slice(b",\"outputs\":[");
    for (k, item) in response.outputs.iter().enumerate() {
        if k > 0 {
            out.push(b',');
        }
        output(&mut out, item)?;
    }
    out.extend_from_slice(b"]}");
    let mut binary = response
        .outputs
        .iter()
        .filter(|output| output.binary)
        .peekable();
    let json_bytes = binary.peek().map(|_| out.len());
    for output in binary {
        write_raw(&mut out, output.tensor.data());
    }
    Ok(Encoded {
        body: out,
        json_bytes,
    })
}

fn parameters(out: &mut Vec<u8>, response: &Response<'_>) {
    let mut separator: &[u8] = b",\"parameters\":{";
    let mut key = |out: &mut Vec<u8>, name: &str| {
        out.extend_from_slice(std::mem::replace(&mut separator, b","));
        write_string(out, name);
        out.push(b':');
    };
    if let Some(prediction) = response.prediction {
        key(out, "prediction_id");
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        write_string(out, prediction.hyphenated().encode_lower(&mut text));
    }
    if let Some(reason) = response.fallback_reason {
        key(out, "fallback");
        out.extend_from_slice(b"true");
        key(out, "fallback_reason");
        write_string(out, reason);
    }
    if let Some(status) = response.feature_status {
        key(out, "feature_status");
        write_string(out, status);
    }
    if separator == b"," {
        out.push(b'}');
    }
}

fn output(out: &mut Vec<u8>, output: &ResponseOutput<'_>) -> Result<(), EncodeError> {
    let tensor = &*output.tensor;
    out.extend_from_slice(b"{\"name\":");
    write_string(out, output.name);
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.datatype().as_str().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    list(out, tensor.shape(), write_integer);
    if output.binary {
        out.extend_from_slice(b"],\"parameters\":{\"binary_data_size\":");
        write_integer(out, &raw_size(tensor.data()));
        out.extend_from_slice(b"}}");
        return Ok(());
    }
    out.extend_from_slice(b"],\"data\":[");
    match tensor.data() {
        TensorData::Bool(values) => list(out, values, |out, &value| {
            out.extend_from_slice(if value { b"true" } else { b"false" });
        }),
        TensorData::Uint8(values) => list(out, values, write_integer),
        TensorData::Uint16(values) => list(out, values, write_integer),
        TensorData::Uint32(values) => list(out, values, write_integer),
        TensorData::Uint64(values) => list(out, values, write_integer),
        TensorData::Int8(values) => list(out, values, write_integer),
        TensorData::Int16(values) => list(out, values, write_integer),
        TensorData::Int32(values) => list(out, values, write_integer),
        TensorData::Int64(values) => list(out, values, write_integer),
        TensorData::Fp16(bits) => list(out, bits, |out, &bits| write_float(out, &FP16.widen(bits))),
        TensorData::Bf16(bits) => list(out, bits, |out, &bits| write_float(out, &BF16.widen(bits))),
        TensorData::Fp32(values) => list(out, values, write_float),
        TensorData::Fp64(values) => list(out, values, write_float),
        TensorData::Bytes(values) => texts(out, output.name, values)?,
    }
    out.extend_from_slice(b"]}");
    Ok(())
}

fn texts(out: &mut Vec<u8>, name: &str, values: &[Vec<u8>]) -> Result<(), EncodeError> {
    for (k, value) in values.iter().enumerate() {
        if k > 0 {
            out.push(b',');
        }
        let text = std::str::from_utf8(value).map_err(|_| EncodeError::NotText {
            output: name.into(),
        })?;
        write_string(out, text);
    }
    Ok(())
}

fn list<T>(out: &mut Vec<u8>, values: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
    for (k, value) in values.iter().enumerate() {
        if k > 0 {
            out.push(b',');
        }
        write(out, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn response<'a>(outputs: Vec<(&'a str, &'a Tensor)>) -> Response<'a> {
        Response {
            model: "m\"",
            version: "3",
            id: None,
            prediction: None,
            fallback_reason: None,
            feature_status: None,
            outputs: outputs
                .into_iter()
                .map(|(name, tensor)| ResponseOutput {
                    name,
                    tensor: Cow::Borrowed(tensor),
                    binary: false,
                })
                .collect(),
        }
    }

    #[test]
    fn a_response_has_the_protocols_keys() {
        let tensor = Tensor::new(vec![2], TensorData::Fp32(vec![0.1, f32::NAN])).unwrap();
        let plain = encode(&response(vec![("y", &tensor)])).unwrap().body;
        assert_eq!(
            String::from_utf8(plain).unwrap(),
            r#"{"model_name":"m\"","model_version":"3","outputs":[{"name":"y","datatype":"FP32","shape":[2],"data":[0.1,NaN]}]}"#
        );
        let full = encode(&Response {
            id: Some("7"),
            prediction: Some(Uuid::nil()),
            fallback_reason: Some("error"),
            feature_status: Some("NOT_FOUND=1"),
            ..response(vec![])
        });
        assert_eq!(
            String::from_utf8(full.unwrap().body).unwrap(),
            concat!(
                r#"{"model_name":"m\"","model_version":"3","id":"7","parameters":{"prediction_id":"#,
                r#""00000000-0000-0000-0000-000000000000","fallback":true,"fallback_reason":"error","#,
                r#""feature_status":"NOT_FOUND=1"},"outputs":[]}"#
            )
        );
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let tensor = Tensor::new(vec![1], TensorData::Bytes(vec![vec![0xff]])).unwrap();
        assert!(encode(&response(vec![("y", &tensor)])).is_err());
    }

    #[test]
    fn binary_outputs_follow_the_json_in_order() {
        let floats = Tensor::new(vec![2], TensorData::Fp32(vec![1.0, -2.0])).unwrap();
        let texts = Tensor::new(vec![1], TensorData::Bytes(vec![vec![0xff, 0]])).unwrap();
        let whole = Tensor::new(vec![], TensorData::Int8(vec![-7])).unwrap();
        let mut response = response(vec![("a", &texts), ("b", &whole), ("c", &floats)]);
        response.outputs[0].binary = true;
        response.outputs[2].binary = true;
        let encoded = encode(&response).unwrap();
        let json = concat!(
            r#"{"model_name":"m\"","model_version":"3","outputs":["#,
            r#"{"name":"a","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":6}},"#,
            r#"{"name":"b","datatype":"INT8","shape":[],"data":[-7]},"#,
            r#"{"name":"c","datatype":"FP32","shape":[2],"parameters":{"binary_data_size":8}}]}"#
        );
        assert_eq!(encoded.json_bytes, Some(json.len()));
        let (head, tail) = encoded.body.split_at(json.len());
        assert_eq!(std::str::from_utf8(head).unwrap(), json);
        assert_eq!(tail, b"\x02\0\0\0\xff\0\0\0\x80\x3f\0\0\0\xc0");
    }

    proptest! {
        #[test]
        fn floats_come_back_to_the_bit(single in any::<f32>(), double in any::<f64>()) {
            let singles = Tensor::new(vec![1], TensorData::Fp32(vec![single])).unwrap();
            let doubles = Tensor::new(vec![1], TensorData::Fp64(vec![double])).unwrap();
            let encoded = encode(&response(vec![("s", &singles), ("d", &doubles)])).unwrap();
            let text = String::from_utf8(encoded.body).unwrap();
            let number = |text: &str| text.split("\"data\":[").nth(1).unwrap().split(']').next().unwrap().to_owned();
            let (first, second) = text.split_once("\"name\":\"d\"").unwrap();
            let back: f32 = number(first).parse().unwrap();
            prop_assert!(back.to_bits() == single.to_bits() || (back.is_nan() && single.is_nan()));
            let back: f64 = number(second).parse().unwrap();
            prop_assert!(back.to_bits() == double.to_bits() || (back.is_nan() && double.is_nan()));
        }
    }
}
