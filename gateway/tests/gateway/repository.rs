//! Load and unload by request, without a project and with one.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::onnx::{DataType, affine, identity};
use crate::operator::{Operator, Project};
use crate::process::{Gateway, Setup};
use crate::wire::Reply;

/// Asks for the loading of a model as Triton's client does.
pub(crate) fn load(gateway: &Gateway, model: &str, onnx: &[u8]) -> Reply {
    load_with(
        gateway,
        model,
        &json!({"file:1/model.onnx": STANDARD.encode(onnx)}),
    )
}

fn load_with(gateway: &Gateway, model: &str, parameters: &Value) -> Reply {
    let body = json!({ "parameters": parameters }).to_string();
    gateway.post(&format!("/v2/repository/models/{model}/load"), &body)
}

pub(crate) fn unload(gateway: &Gateway, model: &str) -> Reply {
    let path = format!("/v2/repository/models/{model}/unload");
    gateway.post(&path, r#"{"parameters":{"unload_dependents":false}}"#)
}

fn infer(gateway: &Gateway, path: &str, rows: usize) -> Reply {
    let body = json!({"inputs": [{"name": "features", "shape": [rows, 1], "datatype": "FP32", "data": vec![1.0; rows]}]});
    gateway.post(&format!("/v2/models/{path}/infer"), &body.to_string())
}

/// The version that answers, and its score.
pub(crate) fn answer(gateway: &Gateway, path: &str) -> (String, f64) {
    let reply = infer(gateway, path, 1);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    (
        body["model_version"].as_str().unwrap().to_owned(),
        body["outputs"][0]["data"][0].as_f64().unwrap(),
    )
}

#[test]
fn models_are_loaded_replaced_and_unloaded_without_a_project() {
    let gateway = Gateway::with_models(&Setup::default());
    assert_eq!(gateway.get("/v2/health/ready").status, 200);
    assert_eq!(infer(&gateway, "a", 1).status, 404);
    let empty = gateway.post("/v2/repository/models/a/load", "");
    assert_eq!(empty.status, 400, "{}", empty.text());

    let loaded = load(&gateway, "a", &affine(&[0.0], 10.0));
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    assert_eq!(answer(&gateway, "a"), ("1".to_owned(), 10.0));
    let file = STANDARD.encode(affine(&[0.0], 20.0));
    let config = json!({"max_batch_size": 2, "backend": "onnxruntime"}).to_string();
    let parameters = json!({"config": config, "file:1/model.onnx": file});
    assert_eq!(load_with(&gateway, "a", &parameters).status, 200);
    assert_eq!(answer(&gateway, "a"), ("2".to_owned(), 20.0));
    assert_eq!(infer(&gateway, "a", 2).status, 200);
    let many = infer(&gateway, "a", 3);
    assert!(
        many.status == 400 && many.error().contains("at most 2"),
        "{}",
        many.text()
    );
    // The version before stays, and can be asked for.
    assert_eq!(answer(&gateway, "a/versions/1").1, 10.0);

    for (parameters, part) in [
        (
            json!({"file:1/model.onnx": STANDARD.encode("no model")}),
            "file",
        ),
        (json!({"file:1/model.onnx": "?"}), "base64"),
        (json!({"file:../../model.onnx": ""}), "VERSION/NAME"),
        (json!({"config": "{", "file:1/model.onnx": ""}), "config"),
    ] {
        let refused = load_with(&gateway, "a", &parameters);
        assert_eq!(refused.status, 400, "{parameters}: {}", refused.text());
        assert!(refused.error().contains(part), "{}", refused.error());
        assert_eq!(answer(&gateway, "a"), ("2".to_owned(), 20.0));
    }
    // Serves still, so there is nothing to do.
    assert_eq!(gateway.post("/v2/repository/models/a/load", "").status, 200);
    assert_eq!(unload(&gateway, "a").status, 200);
    assert_eq!(infer(&gateway, "a", 1).status, 404);
    assert_eq!(unload(&gateway, "a").status, 400);
    assert_eq!(gateway.get("/v2/health/ready").status, 200);
    gateway.drain();
}

#[test]
fn a_file_of_the_command_line_is_loaded_again_from_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, affine(&[0.0], 1.0)).unwrap();
    let model = format!("m={}", path.display());
    let gateway = Gateway::with_models(&Setup {
        arguments: vec!["--model", &model, "--engine", "tract"],
        ..Setup::default()
    });
    assert_eq!(answer(&gateway, "m"), ("1".to_owned(), 1.0));
    let engines = Operator::of(&gateway).ask("/v1/models/m");
    assert_eq!(engines["loaded"][0]["engine"], "tract", "{engines}");
    std::fs::write(&path, affine(&[0.0], 2.0)).unwrap();
    assert_eq!(unload(&gateway, "m").status, 200);
    let again = gateway.post("/v2/repository/models/m/load", "{}");
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(answer(&gateway, "m"), ("2".to_owned(), 2.0));
    gateway.drain();
}

#[test]
fn in_a_project_what_is_loaded_is_registered_and_survives_a_restart() {
    let project = Project::new("");
    project.register("plain", &affine(&[0.0], 1.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    for (model, bias) in [("plain", 2.0), ("extra", 7.0)] {
        let loaded = load(&gateway, model, &affine(&[0.0], bias));
        assert_eq!(loaded.status, 200, "{}", loaded.text());
        assert_eq!(answer(&gateway, model).1, f64::from(bias));
    }
    let model = operator.ask("/v1/models/plain");
    assert_eq!(model["serving"], json!({"champion": 2, "fallback": 1}));
    let refused = load(&gateway, "plain", b"no model");
    assert_eq!(refused.status, 400, "{}", refused.text());
    let versions = operator.ask("/v1/models/plain/versions");
    assert_eq!(
        versions["versions"].as_array().unwrap().len(),
        2,
        "{versions}"
    );
    // `bound` never had a version: the gateway is not ready, whatever is loaded or unloaded.
    assert_eq!(unload(&gateway, "plain").status, 200);
    assert_eq!(infer(&gateway, "plain", 1).status, 404);
    gateway.drain();

    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/extra", |model| model["ready"] == true);
    assert_eq!(answer(&gateway, "extra"), ("1".to_owned(), 7.0));
    assert_eq!(infer(&gateway, "plain", 1).status, 404);
    let again = gateway.post("/v2/repository/models/plain/load", "");
    assert_eq!(again.status, 200, "{}", again.text());
    assert_eq!(answer(&gateway, "plain"), ("2".to_owned(), 2.0));
    gateway.drain();
}

#[test]
fn a_public_listener_loads_nothing_unless_it_is_told_to() {
    for (config, status) in [
        ("insecure = true", 403),
        ("insecure = true\n[repository]\nload = true", 200),
    ] {
        let gateway = Gateway::with_models(&Setup {
            config,
            arguments: vec!["--http", "0.0.0.0:0"],
            ..Setup::default()
        });
        let reply = load(&gateway, "a", &affine(&[0.0], 1.0));
        assert_eq!(reply.status, status, "{}", reply.text());
        assert_eq!(unload(&gateway, "a").status, status);
    }
}

/// The best two of three classes of one row.
fn classes(gateway: &Gateway, model: &str) -> Value {
    let body = json!({
        "inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0.25, 0.5, 0.125]}],
        "outputs": [{"name": "y", "parameters": {"classification": 2}}],
    });
    let reply = gateway.post(&format!("/v2/models/{model}/infer"), &body.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["outputs"][0]["data"].clone()
}

#[test]
fn classes_are_written_with_the_labels_that_were_loaded_or_registered() {
    let onnx = identity(["x", "y"], DataType::Float, &[-1, 3]);
    let config = |output: &str| {
        json!({"output": [{"name": output, "label_filename": "labels.txt"}]}).to_string()
    };
    let parameters = |output: &str| {
        json!({
            "config": config(output),
            "file:1/model.onnx": STANDARD.encode(&onnx),
            "file:1/labels.txt": STANDARD.encode("cat\ndog\n"),
        })
    };
    let gateway = Gateway::with_models(&Setup::default());
    assert_eq!(load(&gateway, "bare", &onnx).status, 200);
    assert_eq!(classes(&gateway, "bare"), json!(["0.5:1", "0.25:0"]));
    let loaded = load_with(&gateway, "pets", &parameters("y"));
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    assert_eq!(
        classes(&gateway, "pets"),
        json!(["0.5:1:dog", "0.25:0:cat"])
    );
    let unknown = load_with(&gateway, "pets", &parameters("z"));
    assert!(
        unknown.status == 400 && unknown.error().contains("output `z`"),
        "{}",
        unknown.text()
    );
    gateway.drain();

    let project = Project::new("");
    let file = project.write("m.onnx", &onnx);
    let labels = project.write("labels.txt", b"one\ntwo\nthree");
    let labels = format!("y={}", labels.display());
    let file = file.to_str().unwrap();
    project.done(&[
        "model", "register", file, "--name", "plain", "--labels", &labels,
    ]);
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    assert_eq!(
        classes(&gateway, "plain"),
        json!(["0.5:1:two", "0.25:0:one"])
    );
    let loaded = load_with(&gateway, "plain", &parameters("y"));
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    assert_eq!(
        classes(&gateway, "plain"),
        json!(["0.5:1:dog", "0.25:0:cat"])
    );
    gateway.drain();
}
