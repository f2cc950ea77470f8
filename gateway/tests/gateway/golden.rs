//! Golden rows: a version that does not reproduce them never serves.

use std::collections::BTreeMap;

use registry::{ModelName, NewVersion, Promotion, Registry, RegistryOptions};
use serde_json::json;

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::repository::answer;

/// What `affine(&[2.0], 1.0)` scores for 1 and 3.
const GOLDEN: &str = r#"{"pairs": [
  {"request": {"inputs": [{"name": "features", "datatype": "FP32", "shape": [2, 1], "data": [1, 3]}]},
   "response": {"outputs": [{"name": "score", "datatype": "FP32", "shape": [2, 1], "data": [3, 7]}]}}]}"#;

fn register(project: &Project, onnx: &[u8], golden: &str) -> std::process::Output {
    let file = project.write("candidate.onnx", onnx);
    let rows = project.write("golden.json", golden.as_bytes());
    let (file, rows) = (file.to_str().unwrap(), rows.to_str().unwrap());
    project.command(&[
        "model", "register", file, "--name", "plain", "--golden", rows,
    ])
}

#[test]
fn a_file_that_does_not_reproduce_its_golden_rows_is_not_registered() {
    let project = Project::new("");
    let done = register(&project, &affine(&[2.0], 1.0), GOLDEN);
    assert!(done.status.success(), "{done:?}");
    for (onnx, golden, told) in [
        (
            affine(&[2.5], 1.0),
            GOLDEN.to_owned(),
            "pair 0, row 0, output `score` [0, 0]: expected 3, got 3.5",
        ),
        (
            affine(&[2.0], 1.0),
            GOLDEN.replace("[3, 7]", "[3, 7.5]"),
            "pair 0, row 1, output `score` [1, 0]: expected 7.5, got 7",
        ),
        (
            affine(&[2.0], 1.0),
            GOLDEN.replace("\"score\"", "\"scores\""),
            "the model has no output `scores`",
        ),
        (
            affine(&[2.0], 1.0),
            GOLDEN.replace("\"features\"", "\"feature\""),
            "the model has no input `feature`",
        ),
        (
            affine(&[2.0], 1.0),
            r#"{"pairs": []}"#.to_owned(),
            "there are none",
        ),
        (
            affine(&[2.0], 1.0),
            GOLDEN.replacen('{', r#"{"tolerance": -1,"#, 1),
            "tolerance -1",
        ),
    ] {
        let refused = register(&project, &onnx, &golden);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(told), "{said}");
    }
    // The rows say themselves how far off an answer may be.
    let loose = GOLDEN.replacen('{', r#"{"tolerance": 0.5,"#, 1);
    let done = register(&project, &affine(&[2.5], 1.0), &loose);
    assert!(done.status.success(), "{done:?}");
}

/// Registers the version in the registry itself and makes it the champion, past the command's check.
async fn promote_unchecked(project: &Project, onnx: Vec<u8>, champion: u32) {
    let data = project.path().join("data");
    let options = RegistryOptions {
        database: data.join("registry.db"),
        artifacts: data.join("artifacts"),
    };
    let registry = Registry::open(&options).await.unwrap();
    let model: ModelName = "plain".parse().unwrap();
    let before = registry.version(&model, 1).await.unwrap();
    let new = NewVersion {
        model: model.clone(),
        artifact: registry.put_artifact(onnx).await.unwrap(),
        golden: before.golden,
        signature: before.signature,
        service: None,
        run: None,
        algorithm: "external".to_owned(),
        metrics: BTreeMap::new(),
        datasets: Vec::new(),
        description: String::new(),
        at_ms: before.created_ms,
    };
    let version = registry.register_version(new).await.unwrap().version;
    let promotion = Promotion {
        model: &model,
        challenger: version,
        expected_champion: Some(champion),
        reason: "a test",
        at_ms: before.created_ms,
    };
    registry.promote(promotion).await.unwrap();
    registry.close().await;
}

#[test]
fn a_promoted_version_with_shifted_outputs_is_refused_and_the_one_before_serves_on() {
    let project = Project::new("");
    assert!(
        register(&project, &affine(&[2.0], 1.0), GOLDEN)
            .status
            .success()
    );
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(promote_unchecked(&project, affine(&[2.0], 1.25), 1));
    let model = operator.until("/v1/models/plain", |model| !model["refused"].is_null());
    let reason = model["refused"]["2"].as_str().unwrap();
    assert!(reason.contains("expected 3, got 3.25"), "{reason}");
    assert_eq!(model["serving"]["champion"], json!(1), "{model}");
    assert_eq!(answer(&gateway, "plain"), ("1".to_owned(), 3.0));
    // One that reproduces them serves.
    runtime.block_on(promote_unchecked(&project, affine(&[2.0], 1.00001), 2));
    operator.until("/v1/models/plain", |model| {
        model["serving"]["champion"] == 3
    });
    assert_eq!(answer(&gateway, "plain").0, "3");
    gateway.drain();
}
