//! Server and model metadata, as the protocol writes them.

use engine::{DataType, Signature, TensorSpec};
use serde_json::{Value, json};

/// What runs the models, as metadata and configuration name it.
pub(crate) const PLATFORM: &str = "onnx_onnxv1";

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
        "platform": PLATFORM,
        "inputs": tensors(&signature.inputs),
        "outputs": tensors(&signature.outputs),
    })
}

fn tensors(specs: &[TensorSpec]) -> Vec<Value> {
    let tensor = |spec: &TensorSpec| json!({"name": spec.name, "datatype": spec.datatype.as_str(), "shape": spec.shape});
    specs.iter().map(tensor).collect()
}

/// The answer to `GET /v2/models/{model}/config`: Triton's model configuration, as its clients read
/// it. Where the model takes batches, their axis is left out of the dimensions.
pub(crate) fn model_config(name: &str, signature: &Signature, rows_max: usize) -> Value {
    let batches = takes_batches(signature);
    let tensor = |spec: &TensorSpec| {
        let dims = &spec.shape[usize::from(batches)..];
        json!({"name": spec.name, "data_type": type_name(spec.datatype), "dims": dims})
    };
    let tensors = |specs: &[TensorSpec]| specs.iter().map(tensor).collect::<Vec<_>>();
    json!({
        "name": name,
        "platform": PLATFORM,
        "backend": "onnx",
        "version_policy": {"all": {}},
        "max_batch_size": if batches { rows_max } else { 0 },
        "input": tensors(&signature.inputs),
        "output": tensors(&signature.outputs),
        "model_transaction_policy": {"decoupled": false},
        "response_cache": {"enable": false},
        "parameters": {},
    })
}

/// Whether every input and output begins with an axis that varies.
pub(crate) fn takes_batches(signature: &Signature) -> bool {
    let mut specs = signature.inputs.iter().chain(&signature.outputs);
    !signature.inputs.is_empty() && specs.all(|spec| matches!(spec.shape.first(), Some(-1)))
}

/// A datatype as a model configuration names it.
fn type_name(datatype: DataType) -> String {
    match datatype {
        DataType::Bytes => "TYPE_STRING".to_owned(),
        datatype => format!("TYPE_{datatype}"),
    }
}
