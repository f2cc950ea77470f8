//! A feature service asked as a model: its row as tensors, over both wires.

use serde_json::{Value, json};
use tonic::Code;

use crate::feast::{NOW_MS, ask, ask_at, pushed, start, write_drivers};
use crate::grpc_client::{Client, Contents, Flag, Named, Request, Tensor};
use crate::process::Gateway;

fn body(more: &Value) -> Value {
    let mut body = json!({"id": "7", "inputs": [
        {"name": "weather", "datatype": "BYTES", "shape": [3], "data": ["rain", "", "sun"]},
        {"name": "driver_id", "datatype": "INT64", "shape": [3], "data": [1001, 1002, 1]},
        {"name": "distance", "datatype": "FP64", "shape": [3], "data": [0.1, 2, 3]},
    ]});
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

/// A gateway with two drivers and their trips.
fn filled(folder: &std::path::Path) -> Gateway {
    let gateway = start(folder, "");
    write_drivers(&gateway);
    pushed(&gateway);
    gateway
}

#[test]
fn a_service_answers_as_a_model_with_what_feasts_route_says() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = filled(folder.path());
    let predictions = gateway.metric("loopgate_predictions_total", "");
    let reply = ask(&gateway, "/v2/models/ranking@1/infer", &body(&json!({})));
    assert_eq!(reply.status, 200, "{}", reply.text());
    // A value that is missing is NaN, as a model gets it; that is a token of the protocol's alone.
    let answered: Value = serde_json::from_str(&reply.text().replace("NaN", "null")).unwrap();
    let head = json!([
        answered["model_name"],
        answered["model_version"],
        answered["id"]
    ]);
    assert_eq!(head, json!(["ranking@1", "1", "7"]));
    assert_eq!(
        answered["parameters"],
        json!({"feature_status": "NULL_VALUE=2,NOT_FOUND=2"})
    );
    let rows = ask(
        &gateway,
        "/get-online-features",
        &json!({"feature_service": "ranking", "entities": {
            "weather": ["rain", null, "sun"], "driver_id": [1001, 1002, 1], "distance": [0.1, 2, 3],
        }}),
    );
    let rows = rows.json();
    let outputs = &answered["outputs"];
    let name = |output: &Value| json!([output["name"], output["datatype"], output["shape"]]);
    assert_eq!(name(&outputs[0]), json!(["features", "FP32", [3, 4]]));
    assert_eq!(name(&outputs[1]), json!(["statuses", "UINT8", [3, 4]]));
    assert_eq!(
        name(&outputs[2]),
        json!(["event_times_ms", "INT64", [3, 4]])
    );
    let codes = ["PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE"];
    for row in 0..3 {
        for column in 0..4 {
            let (ours, theirs) = (row * 4 + column, &rows["results"][column + 1]);
            let value = outputs[0]["data"][ours].as_f64().map(|value| value as f32);
            let same = theirs["values"][row].as_f64().map(|value| value as f32);
            assert_eq!(value, same, "row {row}, column {column}");
            let code = outputs[1]["data"][ours].as_u64().unwrap() as usize;
            assert_eq!(theirs["statuses"][row], codes[code]);
        }
    }
    assert_eq!(outputs[2]["data"][2], NOW_MS - 3_600_000);
    // Rows that were only read are no predictions.
    assert_eq!(
        gateway.metric("loopgate_predictions_total", ""),
        predictions
    );
    let wanted = body(&json!({"outputs": [{"name": "statuses"}]}));
    let answered = ask(&gateway, "/v2/models/ranking@1/versions/1/infer", &wanted).json();
    assert_eq!(answered["outputs"].as_array().unwrap().len(), 1);
}

#[test]
fn rows_come_as_bytes_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = filled(folder.path());
    let asked = body(&json!({"outputs": [
        {"name": "features", "parameters": {"binary_data": true}}, {"name": "statuses"},
    ]}));
    let reply = ask(&gateway, "/v2/models/ranking@1/infer", &asked);
    let length: usize = reply
        .header("inference-header-content-length")
        .unwrap()
        .parse()
        .unwrap();
    let (head, tail) = reply.body.split_at(length);
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], 48);
    let values: Vec<f32> = tail
        .chunks_exact(4)
        .map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()))
        .collect();
    assert_eq!(values.len(), 12);
    assert_eq!(values[..4], [0.1, 1.0, 0.5, 2.0]);
}

#[test]
fn a_service_tells_what_it_takes_and_what_comes_out() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = filled(folder.path());
    let told = gateway.get("/v2/models/ranking%401").json();
    let names = "distance,weather,drivers:conv_rate,driver_trips:count_1d";
    assert_eq!(
        told,
        json!({
            "name": "ranking@1", "versions": ["1"], "platform": "onnx_onnxv1",
            "inputs": [
                {"name": "driver_id", "datatype": "INT64", "shape": [-1]},
                {"name": "distance", "datatype": "FP64", "shape": [-1]},
                {"name": "weather", "datatype": "BYTES", "shape": [-1]},
            ],
            "outputs": [
                {"name": "features", "datatype": "FP32", "shape": [-1, 4]},
                {"name": "statuses", "datatype": "UINT8", "shape": [-1, 4]},
                {"name": "event_times_ms", "datatype": "INT64", "shape": [-1, 4]},
            ],
            "properties": {"features": names},
        })
    );
    let ready = gateway.get("/v2/models/ranking@1/ready");
    assert_eq!(ready.json(), json!({"name": "ranking@1", "ready": true}));
    assert_eq!(
        gateway.get("/v2/models/ranking@1/config").json()["output"][0]["dims"],
        json!([4])
    );
    assert_eq!(gateway.get("/v2/models").json(), json!({"models": []}));
    for (path, asked, status, message) in [
        (
            "/v2/models/none@1/infer",
            body(&json!({})),
            404,
            "unknown feature service `none@1`",
        ),
        (
            "/v2/models/ranking@2/infer",
            body(&json!({})),
            404,
            "unknown feature service `ranking@2`",
        ),
        (
            "/v2/models/ranking@1/versions/2/infer",
            body(&json!({})),
            404,
            "unknown feature service",
        ),
        (
            "/v2/models/ranking@1/infer",
            body(&json!({"outputs": [{"name": "score"}]})),
            400,
            "unknown output `score`",
        ),
        (
            "/v2/models/ranking@1/infer",
            body(&json!({"inputs": []})),
            400,
            "is missing",
        ),
    ] {
        let reply = ask(&gateway, path, &asked);
        assert_eq!(reply.status, status, "{path}: {}", reply.text());
        assert!(reply.text().contains(message), "{path}: {}", reply.text());
    }
    let raw = ask_at(&gateway, "/v2/models/ranking@1/infer", "{", NOW_MS);
    assert_eq!(raw.status, 400);
}

#[test]
fn over_grpc_a_service_is_a_model_too() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = filled(folder.path());
    let mut client = Client::of(&gateway);
    let told = client.metadata("ranking@1", "").unwrap();
    assert_eq!(
        (told.name.as_str(), told.inputs.len(), told.outputs.len()),
        ("ranking@1", 3, 3)
    );
    let named = |name: &str| Named {
        name: name.into(),
        version: String::new(),
    };
    let path = "/inference.GRPCInferenceService/ModelReady";
    assert!(
        client
            .call::<_, Flag>(path, named("ranking@1"))
            .unwrap()
            .value
    );
    assert!(!client.call::<_, Flag>(path, named("none@1")).unwrap().value);
    let input = |name: &str, datatype: &str, contents: Contents| Tensor {
        name: name.into(),
        datatype: datatype.into(),
        shape: vec![1],
        contents: Some(contents),
    };
    let inputs = vec![
        input(
            "driver_id",
            "INT64",
            Contents {
                int64: vec![1001],
                ..Contents::default()
            },
        ),
        input(
            "distance",
            "FP64",
            Contents {
                fp64: vec![0.5],
                ..Contents::default()
            },
        ),
        input(
            "weather",
            "BYTES",
            Contents {
                bytes: vec![b"sun".to_vec()],
                ..Contents::default()
            },
        ),
    ];
    let asked = |name: &str| Request {
        model_name: name.into(),
        inputs: inputs.clone(),
        ..Request::default()
    };
    let answered = client.infer(asked("ranking@1")).unwrap();
    assert_eq!(answered.model_name, "ranking@1");
    assert!(!answered.parameters.contains_key("prediction_id"));
    let features = &answered.outputs[0];
    assert_eq!(
        (features.name.as_str(), &features.shape[..]),
        ("features", &[1, 4][..])
    );
    assert_eq!(
        answered.raw[0][..8],
        [0.5_f32.to_le_bytes(), 0.0_f32.to_le_bytes()].concat()
    );
    assert_eq!(
        client.infer(asked("none@1")).unwrap_err().code(),
        Code::NotFound
    );
}
