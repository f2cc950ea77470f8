//! The binary tensor extension.

use serde_json::{Value, json};

use super::{ROWS, echoing, echoing_by_runtime, gateway};
use crate::onnx::DataType;
use crate::process::Gateway;
use crate::wire::Reply;

const HEADER: &str = "inference-header-content-length";

/// Sends JSON and blobs after it.
fn send(gateway: &Gateway, model: &str, json: &str, blobs: &[u8]) -> Reply {
    let length = json.len().to_string();
    let body = [json.as_bytes(), blobs].concat();
    let path = format!("/v2/models/{model}/infer");
    gateway
        .connect()
        .request("POST", &path, &[(HEADER, &length)], &body)
}

/// One input `x` with its elements behind the JSON, asked to come back so.
fn echo(gateway: &Gateway, model: &str, datatype: &str, shape: &str, blob: &[u8]) -> Reply {
    let json = format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{}}}}}],"parameters":{{"binary_data_output":true}}}}"#,
        blob.len()
    );
    send(gateway, model, &json, blob)
}

/// The JSON of an answer and the bytes after it.
fn parts(reply: &Reply) -> (Value, &[u8]) {
    assert_eq!(
        reply.status,
        200,
        "{}",
        String::from_utf8_lossy(&reply.body)
    );
    let length: usize = reply.header(HEADER).unwrap().parse().unwrap();
    assert_eq!(
        reply.header("content-type"),
        Some("application/octet-stream")
    );
    let (json, blobs) = reply.body.split_at(length);
    (serde_json::from_slice(json).unwrap(), blobs)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

#[test]
fn every_datatype_of_fixed_size_goes_through_as_bytes() {
    let types = [
        ("BOOL", DataType::Bool, 1),
        ("UINT8", DataType::Uint8, 1),
        ("INT8", DataType::Int8, 1),
        ("UINT16", DataType::Uint16, 2),
        ("INT16", DataType::Int16, 2),
        ("UINT32", DataType::Uint32, 4),
        ("INT32", DataType::Int32, 4),
        ("FP32", DataType::Float, 4),
        ("UINT64", DataType::Uint64, 8),
        ("INT64", DataType::Int64, 8),
        ("FP64", DataType::Double, 8),
    ];
    let models: Vec<_> = types.iter().map(|t| (t.0, t.1, &[-1][..])).collect();
    let gateway = echoing(&models);
    for (name, _, size) in types {
        let blob: Vec<u8> = match name {
            "BOOL" => vec![1, 0, 1],
            _ => (0..3 * size).map(|k| (k * 37 + 1) as u8).collect(),
        };
        let reply = echo(&gateway, name, name, "[3]", &blob);
        let (json, blobs) = parts(&reply);
        assert_eq!(blobs, blob, "{name}");
        assert_eq!(
            json["outputs"][0],
            json!({"name": "y", "datatype": name, "shape": [3], "parameters": {"binary_data_size": blob.len()}})
        );
    }
}

#[test]
fn half_precision_goes_through_as_bytes() {
    let types = [("FP16", DataType::Float16), ("BF16", DataType::Bfloat16)];
    let models = types.map(|(name, datatype)| (name, datatype, &[-1][..]));
    let Some(gateway) = echoing_by_runtime(&models) else {
        return;
    };
    for (name, one, beyond) in [("FP16", 0x3c, "65520"), ("BF16", 0x3f, "3.4e38")] {
        // Values of every kind: the smallest above 0, the sign alone, a quiet NaN.
        let blob = [0x00, one, 0x01, 0x00, 0x00, 0x80, 0xc1, 0x7f];
        assert_eq!(parts(&echo(&gateway, name, name, "[4]", &blob)).1, blob);
        // Beyond the protocol it has a JSON form too.
        let reply = super::ask(&gateway, name, "[2]", name, "[-2.5,0.125]");
        assert_eq!(super::data(&reply), json!([-2.5, 0.125]));
        let reply = super::ask(&gateway, name, "[1]", name, &format!("[{beyond}]"));
        assert_eq!(reply.status, 400, "{name} took {beyond}");
    }
}

#[test]
fn texts_go_through_as_bytes() {
    let Some(gateway) = echoing_by_runtime(&[("m", DataType::String, &[-1])]) else {
        return;
    };
    let blob = b"\x02\0\0\0ab\0\0\0\0\x03\0\0\0\xe2\x82\xac";
    assert_eq!(parts(&echo(&gateway, "m", "BYTES", "[3]", blob)).1, blob);
    // ONNX knows text only: other bytes are the caller's mistake.
    for other in [b"\x02\0\0\0\xff\xfe", b"\x02\0\0\0a\0"] {
        let reply = echo(&gateway, "m", "BYTES", "[1]", other);
        assert_eq!(reply.status, 400, "{}", reply.text());
    }
}

#[test]
fn lengths_of_texts_past_the_end_are_refused() {
    let Some(gateway) = echoing_by_runtime(&[("m", DataType::String, &[-1])]) else {
        return;
    };
    for (shape, blob) in [
        ("[1]", &b"\x02\0\0\0a"[..]),
        ("[1]", b"\xff\xff\xff\xffa"),
        ("[1]", b"\x01\0\0"),
        ("[2]", b"\x01\0\0\0a"),
        ("[1]", b"\x01\0\0\0a\x01\0\0\0b"),
        ("[1]", b""),
    ] {
        let reply = echo(&gateway, "m", "BYTES", shape, blob);
        assert_eq!(reply.status, 400, "{shape} {blob:?}");
        assert!(!reply.error().is_empty());
    }
}

#[test]
fn binary_and_json_mix_in_both_directions() {
    let gateway = gateway();
    let blob = floats(&[1.0, 2.0, 3.0, 4.0]);
    let binary = r#"{"name":"features","shape":[2,2],"datatype":"FP32","parameters":{"binary_data_size":16}}"#;
    let ask = |inputs: &str, more: &str, blob: &[u8]| {
        send(
            &gateway,
            "affine",
            &format!(r#"{{"inputs":[{inputs}]{more}}}"#),
            blob,
        )
    };
    // Binary in, JSON out.
    let reply = ask(binary, "", &blob);
    super::assert_scores(&reply);
    assert_eq!(
        (reply.header(HEADER), reply.header("content-type")),
        (None, Some("application/json"))
    );
    // JSON in, one output binary and one not; the output's own wish is the stronger one.
    let outputs = r#","outputs":[{"name":"probability","parameters":{"binary_data":false}},{"name":"score"}],"parameters":{"binary_data_output":true}"#;
    let reply = ask(ROWS, outputs, b"");
    let (json, blobs) = parts(&reply);
    assert_eq!(blobs, floats(&[21.5, 43.5]));
    assert_eq!(json["outputs"][0]["data"].as_array().unwrap().len(), 2);
    assert_eq!(json["outputs"][1]["parameters"]["binary_data_size"], 8);
    assert!(json["outputs"][1].get("data").is_none());
    let outputs = r#","outputs":[{"name":"score","parameters":{"binary_data":true}}]"#;
    assert_eq!(parts(&ask(ROWS, outputs, b"")).1, floats(&[21.5, 43.5]));
    // The size may be left out where the datatype says it.
    let sizeless = r#"{"name":"features","shape":[2,2],"datatype":"FP32"}"#;
    super::assert_scores(&ask(sizeless, "", &blob));
    // JSON without the header may ask for binary too.
    let body = format!(r#"{{"inputs":[{ROWS}],"parameters":{{"binary_data_output":true}}}}"#);
    let reply = gateway.post("/v2/models/affine/infer", &body);
    assert_eq!(parts(&reply).1.len(), 16);
}

#[test]
fn bytes_too_few_or_left_over_are_refused() {
    let gateway = gateway();
    let ask = |size: usize, blob: &[u8]| {
        let input = format!(
            r#"{{"name":"features","shape":[1,2],"datatype":"FP32","parameters":{{"binary_data_size":{size}}}}}"#
        );
        send(
            &gateway,
            "affine",
            &format!(r#"{{"inputs":[{input}]}}"#),
            blob,
        )
    };
    assert_eq!(ask(8, &[0; 8]).status, 200);
    for (size, sent) in [(8, 7), (8, 0), (8, 9), (4, 8), (12, 12), (0, 8), (8, 16)] {
        let reply = ask(size, &vec![0; sent]);
        assert_eq!(reply.status, 400, "{size} declared, {sent} sent");
    }
    assert!(
        ask(8, &[0; 9])
            .error()
            .contains("unexpected additional input data")
    );
    let both = format!(
        r#"{{"inputs":[{}]}}"#,
        ROWS.replacen('{', r#"{"parameters":{"binary_data_size":16},"#, 1)
    );
    assert_eq!(send(&gateway, "affine", &both, &[0; 16]).status, 400);
}

#[test]
fn the_header_must_be_a_length_within_the_body() {
    let gateway = gateway();
    let body = format!(r#"{{"inputs":[{ROWS}]}}"#);
    for (value, status) in [
        (body.len().to_string().as_str(), 200),
        ("9999", 400),
        ("5", 400),
        ("-1", 400),
        ("+5", 400),
        ("x", 400),
        ("", 400),
        ("0x10", 400),
        ("99999999999999999999999", 400),
    ] {
        for name in [HEADER, "Inference-Header-Content-Length"] {
            let mut connection = gateway.connect();
            let headers = [(name, value)];
            let reply =
                connection.request("POST", "/v2/models/affine/infer", &headers, body.as_bytes());
            assert_eq!(reply.status, status, "{name}: {value}");
        }
    }
}

#[test]
fn a_raw_body_is_the_models_only_input() {
    let gateway = gateway();
    let raw = |headers: &[(&str, &str)], body: &[u8]| {
        let headers = [&[(HEADER, "0")], headers].concat();
        gateway
            .connect()
            .request("POST", "/v2/models/affine/infer", &headers, body)
    };
    let rows = floats(&[1.0, 2.0, 3.0, 4.0]);
    let reply = raw(&[], &rows);
    let (json, blobs) = parts(&reply);
    assert_eq!(blobs[..8], floats(&[21.5, 43.5]));
    assert_eq!(json["outputs"][0]["shape"], json!([2, 1]));
    // Raw in, JSON out.
    super::assert_scores(&raw(&[("accept", "application/json")], &rows));
    assert_eq!(raw(&[], &rows[..12]).status, 400);
    assert_eq!(raw(&[], &rows[..3]).status, 400);
    if let Some(texts) = echoing_by_runtime(&[("m", DataType::String, &[-1])]) {
        let headers = [(HEADER, "0"), ("accept", "application/json")];
        let reply = texts
            .connect()
            .request("POST", "/v2/models/m/infer", &headers, b"whole");
        assert_eq!(super::data(&reply), json!(["whole"]));
    }
}
