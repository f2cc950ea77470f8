//! Requests on the wire: Open Inference V2 as JSON, as JSON with binary tensors, and as gRPC messages
//! (hand-written, with the protocol's field numbers); and checks of the answers.

use std::fmt::Write as _;

use bytes::Bytes;
use prost::Message;

use crate::load::Call;
use crate::models::{COLUMNS, Row, VERSION_STEP};

const GRPC_PATH: &str = "/inference.GRPCInferenceService/ModelInfer";

/// One row a request.
pub(crate) fn json_calls(model: &str, rows: &[Row]) -> Vec<Call> {
    rows.iter()
        .map(|row| json_call(model, std::slice::from_ref(row)))
        .collect()
}

/// All rows in one request.
pub(crate) fn json_call(model: &str, rows: &[Row]) -> Call {
    let mut body = format!(
        r#"{{"inputs":[{{"name":"features","shape":[{},{COLUMNS}],"datatype":"FP32","data":["#,
        rows.len()
    );
    for (k, value) in rows.iter().flatten().enumerate() {
        let comma = if k == 0 { "" } else { "," };
        write!(body, "{comma}{value}").expect("a String takes all");
    }
    body.push_str("]}]}");
    call(model, body.into(), Vec::new())
}

/// One row a request, tensors and answers in binary.
pub(crate) fn binary_calls(model: &str, rows: &[Row]) -> Vec<Call> {
    rows.iter()
        .map(|row| {
            let raw = little_endian(row);
            let head = format!(
                r#"{{"inputs":[{{"name":"features","shape":[1,{COLUMNS}],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
                raw.len()
            );
            let length = ("inference-header-content-length", head.len().to_string());
            let mut body = head.into_bytes();
            body.extend_from_slice(&raw);
            call(model, body.into(), vec![length])
        })
        .collect()
}

/// One row a unary `ModelInfer`, raw contents.
pub(crate) fn grpc_calls(model: &str, rows: &[Row]) -> Vec<Call> {
    rows.iter()
        .map(|row| {
            let request = InferRequest {
                model_name: model.into(),
                inputs: vec![InputTensor {
                    name: "features".into(),
                    datatype: "FP32".into(),
                    shape: vec![1, COLUMNS as i64],
                }],
                raw_input_contents: vec![little_endian(row)],
            };
            Call {
                path: GRPC_PATH.into(),
                headers: Vec::new(),
                body: request.encode_to_vec().into(),
            }
        })
        .collect()
}

/// A call of a model by the Open Inference path.
pub(crate) fn call(model: &str, body: Bytes, headers: Vec<(&'static str, String)>) -> Call {
    Call {
        path: format!("/v2/models/{model}/infer"),
        headers,
        body,
    }
}

/// Whether the answer of a [`crate::models::versioned`] model is that of the version it names.
pub(crate) fn version_fits(body: &[u8]) -> bool {
    let number = |key: &[u8]| {
        let at = body.windows(key.len()).position(|window| window == key)? + key.len();
        let rest = &body[at..];
        let end = rest
            .iter()
            .position(|byte| !matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'e'))?;
        std::str::from_utf8(&rest[..end]).ok()?.parse::<f32>().ok()
    };
    let (Some(version), Some(value)) = (number(b"\"model_version\":\""), number(b"\"data\":["))
    else {
        return false;
    };
    (value / VERSION_STEP).round() == version
}

fn little_endian(row: &Row) -> Vec<u8> {
    row.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// `inference.ModelInferRequest`, as far as we fill it.
#[derive(Clone, PartialEq, Message)]
struct InferRequest {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<InputTensor>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw_input_contents: Vec<Vec<u8>>,
}

/// `inference.ModelInferRequest.InferInputTensor`.
#[derive(Clone, PartialEq, Message)]
struct InputTensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::rows;

    #[test]
    fn an_answer_fits_the_version_that_it_names_or_not() {
        let answer = |version: u32, value: f32| {
            format!(
                r#"{{"model_name":"m","model_version":"{version}","outputs":[{{"name":"margin","shape":[1,1],"datatype":"FP32","data":[{value}]}}]}}"#
            )
        };
        assert!(version_fits(answer(3, 3000.7).as_bytes()));
        assert!(version_fits(answer(1, 999.1).as_bytes()));
        assert!(!version_fits(answer(3, 4000.1).as_bytes()));
        assert!(!version_fits(answer(3, 0.25).as_bytes()));
        assert!(!version_fits(br#"{"error":"no"}"#));
    }

    #[test]
    fn a_row_comes_back_from_its_json() {
        let rows = rows(2, 7);
        for (call, row) in json_calls("m", &rows).iter().zip(&rows) {
            let body: serde_json::Value = serde_json::from_slice(&call.body).unwrap();
            let data = body["inputs"][0]["data"].as_array().unwrap();
            let read: Vec<f32> = data.iter().map(|v| v.as_f64().unwrap() as f32).collect();
            assert_eq!(read, row);
        }
    }

    #[test]
    fn a_binary_head_ends_where_it_says() {
        let call = &binary_calls("m", &rows(1, 7))[0];
        let length: usize = call.headers[0].1.parse().unwrap();
        let head: serde_json::Value = serde_json::from_slice(&call.body[..length]).unwrap();
        let size = &head["inputs"][0]["parameters"]["binary_data_size"];
        assert_eq!(size.as_u64().unwrap() as usize, call.body.len() - length);
    }
}
