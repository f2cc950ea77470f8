//! The protocol's own rules, one test for each: `docs/http.md` says what is answered, these check it.

mod binary;
mod coding;
mod connection;
mod json;
mod routes;

use serde_json::{Value, json};

use crate::onnx::{DataType, affine, identity};
use crate::process::{Gateway, Setup};
use crate::wire::Reply;

/// Two rows for the model `affine`, whose scores are 21.5 and 43.5.
const ROWS: &str = r#"{"name":"features","shape":[2,2],"datatype":"FP32","data":[1,2,3,4]}"#;

/// A gateway with `affine`: `features` FP32 [-1, 2] → `score`, `probability` FP32 [-1, 1].
fn gateway() -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![("affine", affine(&[1.0, 10.0], 0.5))],
        ..Setup::default()
    })
}

/// A gateway whose models give back what they are given, `x` → `y`.
fn echoing(models: &[(&str, DataType, &[i64])]) -> Gateway {
    let models = models.iter();
    Gateway::with_models(&Setup {
        models: models
            .map(|&(name, datatype, dims)| (name, identity(["x", "y"], datatype, dims)))
            .collect(),
        ..Setup::default()
    })
}

/// As [`echoing`], of what only ONNX Runtime runs; `None`, with a line on the terminal, without it.
fn echoing_by_runtime(models: &[(&str, DataType, &[i64])]) -> Option<Gateway> {
    match engine::onnx_runtime_available() {
        Ok(_) => Some(echoing(models)),
        Err(reason) => {
            println!("SKIPPED onnxruntime: {reason}");
            None
        }
    }
}

/// Asks `model` with one input `x`.
fn ask(gateway: &Gateway, model: &str, shape: &str, datatype: &str, data: &str) -> Reply {
    let body = format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#
    );
    gateway.post(&format!("/v2/models/{model}/infer"), &body)
}

/// The first output's data.
fn data(reply: &Reply) -> Value {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["outputs"][0]["data"].clone()
}

/// Asks `affine` for both scores with `more` keys in the request.
fn scores(gateway: &Gateway, more: &str) -> Reply {
    let body = format!(r#"{{{more}"inputs":[{ROWS}]}}"#);
    gateway.post("/v2/models/affine/infer", &body)
}

fn assert_scores(reply: &Reply) {
    assert_eq!(data(reply), json!([21.5, 43.5]));
}
