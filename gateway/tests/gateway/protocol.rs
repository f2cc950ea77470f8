//! The Open Inference Protocol as clients see it.

use serde_json::json;

use crate::onnx::{affine, whole_numbers};
use crate::process::{Gateway, Setup};

fn gateway() -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![
            ("affine", affine(&[1.0, 10.0], 0.5)),
            ("whole", whole_numbers()),
        ],
        ..Setup::default()
    })
}

const ROWS: &str = r#"{"name":"features","shape":[2,2],"datatype":"FP32","data":[[1,2],[3,4]]}"#;

#[test]
fn health_and_metadata_have_the_protocols_shape() {
    let gateway = gateway();
    let mut connection = gateway.connect();
    let server = connection.get("/v2").json();
    assert_eq!(server["name"], "loopgate");
    assert!(server["version"].is_string() && server["extensions"].is_array());
    assert_eq!(
        connection.get("/v2/health/live").json(),
        json!({"live": true})
    );
    assert_eq!(
        connection.get("/v2/health/ready/").json(),
        json!({"ready": true, "live": true})
    );
    assert_eq!(
        connection.get("/v2/models").json(),
        json!({"models": ["affine", "whole"]})
    );
    let model = connection.get("/v2/models/affine").json();
    assert_eq!(
        model,
        json!({
            "name": "affine", "versions": ["1"], "platform": "onnx_onnxv1",
            "inputs": [{"name": "features", "datatype": "FP32", "shape": [-1, 2]}],
            "outputs": [
                {"name": "score", "datatype": "FP32", "shape": [-1, 1]},
                {"name": "probability", "datatype": "FP32", "shape": [-1, 1]},
            ],
        })
    );
    for path in [
        "/v2/models/affine/versions/1",
        "/v2/models/%61ffine/versions/champion/",
    ] {
        assert_eq!(connection.get(path).json(), model);
    }
    let ready = connection.get("/v2/models/affine/versions/1/ready").json();
    assert_eq!(ready, json!({"name": "affine", "ready": true}));
    for path in [
        "/v2/models/none",
        "/v2/models/none/ready",
        "/v2/models/affine/versions/2",
        "/v2/models/affine/versions/x/ready",
    ] {
        assert_eq!(connection.get(path).status, 404, "{path}");
    }
}

#[test]
fn an_answer_holds_every_output_and_echoes_the_id() {
    let gateway = gateway();
    let body = format!(r#"{{"id":"a\"7","inputs":[{ROWS}]}}"#);
    for path in [
        "/v2/models/affine/infer",
        "/v2/models/affine/versions/1/infer",
        "/v2/models/affine/versions/champion/infer/",
    ] {
        let reply = gateway.post(path, &body);
        assert_eq!(
            (reply.status, reply.header("content-type")),
            (200, Some("application/json"))
        );
        let answer = reply.json();
        assert_eq!(
            (
                &answer["model_name"],
                &answer["model_version"],
                &answer["id"]
            ),
            (&json!("affine"), &json!("1"), &json!("a\"7"))
        );
        let id = answer["parameters"]["prediction_id"].as_str().unwrap();
        assert_eq!(uuid::Uuid::parse_str(id).unwrap().get_version_num(), 7);
        assert_eq!(
            answer["outputs"][0],
            json!({"name": "score", "datatype": "FP32", "shape": [2, 1], "data": [21.5, 43.5]})
        );
        assert_eq!(answer["outputs"][1]["name"], "probability");
    }
    let answer = gateway
        .post(
            "/v2/models/affine/infer",
            &format!(r#"{{"inputs":[{ROWS}]}}"#),
        )
        .json();
    assert!(answer.get("id").is_none());
}

#[test]
fn outputs_may_be_all_none_some_or_wrong() {
    let gateway = gateway();
    let names = |outputs: &str| {
        let reply = gateway.post(
            "/v2/models/affine/infer",
            &format!(r#"{{"outputs":{outputs},"inputs":[{ROWS}]}}"#),
        );
        let answer = reply.json();
        let outputs = answer["outputs"].as_array().cloned().unwrap_or_default();
        let names: Vec<String> = outputs
            .iter()
            .map(|o| o["name"].as_str().unwrap().to_owned())
            .collect();
        (reply.status, names.join(" "))
    };
    assert_eq!(names("[]"), (200, "score probability".to_owned()));
    assert_eq!(
        names(r#"[{"name":"probability"}]"#),
        (200, "probability".to_owned())
    );
    assert_eq!(
        names(r#"[{"name":"probability"},{"name":"score"}]"#),
        (200, "probability score".to_owned())
    );
    assert_eq!(names(r#"[{"name":"other"}]"#).0, 400);
    assert_eq!(names(r#"[{"name":"score"},{"name":"score"}]"#).0, 400);
}

#[test]
fn tensors_must_fit_the_signature() {
    let gateway = gateway();
    let mut connection = gateway.connect();
    let mut infer = |model: &str, inputs: &str| {
        connection.post(
            &format!("/v2/models/{model}/infer"),
            &format!(r#"{{"inputs":[{inputs}]}}"#),
        )
    };
    for (model, inputs, part) in [
        ("affine", "", "missing"),
        (
            "affine",
            r#"{"name":"other","shape":[1],"datatype":"FP32","data":[1]}"#,
            "other",
        ),
        (
            "affine",
            r#"{"name":"features","shape":[1,2],"datatype":"FP64","data":[1,2]}"#,
            "FP32",
        ),
        (
            "affine",
            r#"{"name":"features","shape":[1,3],"datatype":"FP32","data":[1,2,3]}"#,
            "[1, 3]",
        ),
        (
            "affine",
            r#"{"name":"features","shape":[2],"datatype":"FP32","data":[1,2]}"#,
            "[2]",
        ),
        (
            "affine",
            r#"{"name":"features","shape":[1,2],"datatype":"FP32","parameters":{"binary_data_size":8}}"#,
            "binary",
        ),
        (
            "whole",
            r#"{"name":"i","shape":[1],"datatype":"INT32","data":[1]}"#,
            "INT64",
        ),
    ] {
        let reply = infer(model, inputs);
        assert_eq!(reply.status, 400, "{inputs}");
        assert!(reply.error().contains(part), "{inputs}: {}", reply.error());
    }
    let flat = infer(
        "affine",
        r#"{"data":[1,2,3,4],"datatype":"FP32","shape":[2,2],"name":"features"}"#,
    );
    assert_eq!(flat.json()["outputs"][0]["data"], json!([21.5, 43.5]));
    let none = infer(
        "affine",
        r#"{"name":"features","shape":[0,2],"datatype":"FP32","data":[]}"#,
    );
    assert_eq!(
        none.json()["outputs"][0],
        json!({"name": "score", "datatype": "FP32", "shape": [0, 1], "data": []})
    );
}

#[test]
fn whole_numbers_are_exact_and_non_finite_ones_come_back_as_tokens() {
    let gateway = gateway();
    let whole = r#"{"inputs":[{"name":"i","shape":[3],"datatype":"INT64","data":[9223372036854775807,-9223372036854775808,3.0]}]}"#;
    let reply = gateway.post("/v2/models/whole/infer", whole);
    assert_eq!(
        reply.json()["outputs"][0]["data"],
        json!([i64::MAX, i64::MIN, 3])
    );
    let odd = r#"{"inputs":[{"name":"features","shape":[2,2],"datatype":"FP32","data":[NaN,0,Infinity,0]}]}"#;
    let reply = gateway.post("/v2/models/affine/infer", odd);
    assert_eq!(reply.status, 200);
    assert!(
        reply.text().contains(r#""data":[NaN,Infinity]"#),
        "{}",
        reply.text()
    );
    assert_eq!(gateway.metric("loopgate_nonfinite_outputs_total", ""), 1.0);
}

#[test]
fn a_deadline_of_the_caller_is_kept() {
    let gateway = gateway();
    let body =
        |micros: u64| format!(r#"{{"parameters":{{"timeout":{micros}}},"inputs":[{ROWS}]}}"#);
    let late = gateway.post("/v2/models/affine/infer", &body(1));
    assert_eq!(late.status, 504);
    assert!(late.error().contains("deadline"));
    assert_eq!(
        gateway.post("/v2/models/affine/infer", &body(0)).status,
        200
    );
    assert_eq!(
        gateway
            .post("/v2/models/affine/infer", &body(900_000))
            .status,
        200
    );
}

#[test]
fn rows_of_one_request_are_bounded() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("affine", affine(&[1.0, 10.0], 0.5))],
        config: "[serving]\nrows_max = 1",
        ..Setup::default()
    });
    let reply = gateway.post(
        "/v2/models/affine/infer",
        &format!(r#"{{"inputs":[{ROWS}]}}"#),
    );
    assert_eq!(reply.status, 400);
    assert!(reply.error().contains("at most 1"), "{}", reply.error());
}
