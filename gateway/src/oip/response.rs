//! Encoding of an infer response. Numbers are the shortest text that reads back to the same bits.

use std::borrow::Cow;

use engine::{Tensor, TensorData};
use uuid::Uuid;

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
    #[expect(
        dead_code,
        reason = "HTTP answers in JSON only, until it has the binary extension"
    )]
    pub binary: bool,
}

/// Why an answer has no JSON form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error("output `{output}` holds bytes that are not UTF-8, which JSON cannot carry")]
    NotText { output: Box<str> },
}

/// Writes the response as one JSON object.
///
/// # Errors
/// When an output of BYTES is not text.
pub(crate) fn encode(response: &Response<'_>) -> Result<Vec<u8>, EncodeError> {
    let elements: usize = response
        .outputs
        .iter()
        .map(|output| output.tensor.data().len())
        .sum();
    let mut out = Vec::with_capacity(320 + 12 * elements);
    out.extend_from_slice(b"{\"model_name\":");
    string(&mut out, response.model);
    out.extend_from_slice(b",\"model_version\":");
    string(&mut out, response.version);
    if let Some(id) = response.id {
        out.extend_from_slice(b",\"id\":");
        string(&mut out, id);
    }
    parameters(&mut out, response);
    out.extend_from_slice(b",\"outputs\":[");
    for (k, item) in response.outputs.iter().enumerate() {
        if k > 0 {
            out.push(b',');
        }
        output(&mut out, item.name, &item.tensor)?;
    }
    out.extend_from_slice(b"]}");
    Ok(out)
}

fn parameters(out: &mut Vec<u8>, response: &Response<'_>) {
    let mut separator: &[u8] = b",\"parameters\":{";
    let mut key = |out: &mut Vec<u8>, name: &str| {
        out.extend_from_slice(std::mem::replace(&mut separator, b","));
        string(out, name);
        out.push(b':');
    };
    if let Some(prediction) = response.prediction {
        key(out, "prediction_id");
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        string(out, prediction.hyphenated().encode_lower(&mut text));
    }
    if let Some(reason) = response.fallback_reason {
        key(out, "fallback");
        out.extend_from_slice(b"true");
        key(out, "fallback_reason");
        string(out, reason);
    }
    if let Some(status) = response.feature_status {
        key(out, "feature_status");
        string(out, status);
    }
    if separator == b"," {
        out.push(b'}');
    }
}

fn output(out: &mut Vec<u8>, name: &str, tensor: &Tensor) -> Result<(), EncodeError> {
    out.extend_from_slice(b"{\"name\":");
    string(out, name);
    out.extend_from_slice(b",\"datatype\":\"");
    out.extend_from_slice(tensor.datatype().as_str().as_bytes());
    out.extend_from_slice(b"\",\"shape\":[");
    list(out, tensor.shape(), plain);
    out.extend_from_slice(b"],\"data\":[");
    match tensor.data() {
        TensorData::Bool(values) => list(out, values, plain),
        TensorData::Uint8(values) => list(out, values, plain),
        TensorData::Uint16(values) => list(out, values, plain),
        TensorData::Uint32(values) => list(out, values, plain),
        TensorData::Uint64(values) => list(out, values, plain),
        TensorData::Int8(values) => list(out, values, plain),
        TensorData::Int16(values) => list(out, values, plain),
        TensorData::Int32(values) => list(out, values, plain),
        TensorData::Int64(values) => list(out, values, plain),
        TensorData::Fp16(bits) => list(out, bits, |out, &bits| float(out, half(bits))),
        TensorData::Fp32(values) => list(out, values, |out, &value| float(out, value)),
        TensorData::Fp64(values) => list(out, values, |out, &value| float(out, value)),
        TensorData::Bytes(values) => {
            let mut texts = Vec::with_capacity(values.len());
            for value in values {
                texts.push(
                    std::str::from_utf8(value).map_err(|_| EncodeError::NotText {
                        output: name.into(),
                    })?,
                );
            }
            list(out, &texts, |out, text| string(out, text));
        }
    }
    out.extend_from_slice(b"]}");
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

fn plain(out: &mut Vec<u8>, value: &impl serde::Serialize) {
    serde_json::to_writer(out, value).expect("numbers and booleans can be written to memory");
}

fn string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string can be written to memory");
}

trait Float: Copy + serde::Serialize {
    /// The bare token of a non-finite value, as the protocol's other servers write it.
    fn token(self) -> Option<&'static [u8]>;
}

macro_rules! float_tokens {
    ($($float:ty)*) => {
        $(impl Float for $float {
            fn token(self) -> Option<&'static [u8]> {
                match self {
                    value if value.is_finite() => None,
                    value if value.is_nan() => Some(b"NaN"),
                    value if value > 0.0 => Some(b"Infinity"),
                    _ => Some(b"-Infinity"),
                }
            }
        })*
    };
}
float_tokens!(f32 f64);

fn float(out: &mut Vec<u8>, value: impl Float) {
    match value.token() {
        Some(token) => out.extend_from_slice(token),
        None => plain(out, &value),
    }
}

/// The value of IEEE 754 half-precision bits, which single precision holds exactly.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let exponent = i32::from((bits >> 10) & 0x1f);
    let fraction = f32::from(bits & 0x3ff);
    match exponent {
        0 => sign * fraction * 2_f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        exponent => sign * (1024.0 + fraction) * 2_f32.powi(exponent - 25),
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
        let plain = encode(&response(vec![("y", &tensor)])).unwrap();
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
            String::from_utf8(full.unwrap()).unwrap(),
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
    fn half_precision_is_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0x8000, -0.0),
        ] {
            assert_eq!(half(bits).to_bits(), f32::to_bits(value));
        }
        assert!(half(0x7e00).is_nan() && half(0xfc00) == f32::NEG_INFINITY);
    }

    proptest! {
        #[test]
        fn floats_come_back_to_the_bit(single in any::<f32>(), double in any::<f64>()) {
            let singles = Tensor::new(vec![1], TensorData::Fp32(vec![single])).unwrap();
            let doubles = Tensor::new(vec![1], TensorData::Fp64(vec![double])).unwrap();
            let encoded = encode(&response(vec![("s", &singles), ("d", &doubles)])).unwrap();
            let text = String::from_utf8(encoded).unwrap();
            let number = |text: &str| text.split("\"data\":[").nth(1).unwrap().split(']').next().unwrap().to_owned();
            let (first, second) = text.split_once("\"name\":\"d\"").unwrap();
            let back: f32 = number(first).parse().unwrap();
            prop_assert!(back.to_bits() == single.to_bits() || (back.is_nan() && single.is_nan()));
            let back: f64 = number(second).parse().unwrap();
            prop_assert!(back.to_bits() == double.to_bits() || (back.is_nan() && double.is_nan()));
        }
    }
}
