//! Server and model metadata, as the protocol writes them.

use engine::{Signature, TensorSpec};
use serde_json::{Value, json};

/// The answer to `GET /v2`.
pub(crate) fn server_metadata(extensions: &[&str]) -> Value {
    json!({
        "name": env!("CARGO_PKG_NAME"),
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": extensions,
    })
}

/// The answer to `GET /v2/models/{model}`.
pub(crate) fn model_metadata(name: &str, versions: &[String], signature: &Signature) -> Value {
    json!({
        "name": name,
        "versions": versions,
        "platform": "onnx_onnxv1",
        "inputs": tensors(&signature.inputs),
        "outputs": tensors(&signature.outputs),
    })
}

fn tensors(specs: &[TensorSpec]) -> Vec<Value> {
    let tensor = |spec: &TensorSpec| json!({"name": spec.name, "datatype": spec.datatype.as_str(), "shape": spec.shape});
    specs.iter().map(tensor).collect()
}
