//! Swaps under load: nothing fails, and an answer's version is the one that computed it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::{Value, json};

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::patience::StopWhenDropped;
use crate::process::Gateway;
use crate::wire::Connection;

const CLIENTS: usize = 4;
const SWAPS: i64 = 100;
const INFER: &str = "/v2/models/plain/infer";
const GOOD: &str = r#"{"inputs":[{"name":"features","shape":[2,1],"datatype":"FP32","data":[1,2]}],"outputs":[{"name":"score"}]}"#;

/// A model whose score is its own version number, whatever it is asked.
fn constant(version: u32) -> Vec<u8> {
    affine(&[0.0], version as f32)
}

/// The version that answered; the values must be its own.
fn answered_by(connection: &mut Connection) -> u32 {
    let reply = connection.post(INFER, GOOD);
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    let version: u32 = body["model_version"].as_str().unwrap().parse().unwrap();
    let values = &body["outputs"][0]["data"];
    assert_eq!(*values, json!(vec![f64::from(version); 2]), "{body}");
    assert_eq!(body["parameters"]["fallback"], Value::Null, "{body}");
    version
}

/// Runs `swaps` while clients infer without a pause; returns how many answers they got.
fn under_load(project: &Project, swaps: impl FnOnce(&mut Operator, &Gateway)) -> u64 {
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    let (stop, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = gateway.connect();
                while !stop.load(Ordering::Relaxed) {
                    answered_by(&mut connection);
                    answers.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _stop = StopWhenDropped(&stop);
        swaps(&mut operator, &gateway);
    });
    let failed = gateway.metric("loopgate_requests_total", "operation=\"infer\"")
        - gateway.metric(
            "loopgate_requests_total",
            "operation=\"infer\",outcome=\"ok\"",
        );
    assert_eq!(failed, 0.0);
    gateway.drain();
    answers.into_inner()
}

#[test]
fn a_hundred_swaps_under_load_fail_nothing() {
    let project = Project::new("");
    project.register("plain", &constant(1));
    project.register("plain", &constant(2));
    let mut versions = 2;
    let answers = under_load(&project, |operator, gateway| {
        let mut champion = 1;
        for swap in 0..SWAPS {
            // Every tenth is a version that has to be loaded first.
            let next = if swap % 10 == 9 {
                versions += 1;
                project.register("plain", &constant(versions));
                versions
            } else if champion == 1 {
                2
            } else {
                1
            };
            let change = json!({"version": next, "expected": champion});
            let reply = operator.post("/v1/models/plain/aliases/champion", &change);
            assert_eq!(reply.status, 200, "{}", reply.text());
            let generation = reply.json()["generation"].as_i64().unwrap();
            operator.settled(generation);
            assert_eq!(answered_by(&mut gateway.connect()), next);
            champion = next;
        }
    });
    assert!(
        answers > SWAPS.unsigned_abs(),
        "{answers} answers during {SWAPS} swaps"
    );
}

#[test]
fn a_champion_that_cannot_be_loaded_leaves_the_old_one_serving() {
    let project = Project::new("");
    project.register("plain", &constant(1));
    project.register("plain", &constant(2));
    // Rot the second version's file where it lies.
    let file = project.artifact("plain", 2);
    let sound = std::fs::read(&file).unwrap();
    std::fs::write(&file, &sound[..sound.len() / 2]).unwrap();
    under_load(&project, |operator, gateway| {
        let change = json!({"version": 2, "expected": 1});
        let reply = operator.post("/v1/models/plain/aliases/champion", &change);
        assert_eq!(reply.status, 200, "{}", reply.text());
        let model = operator.until("/v1/models/plain", |model| !model["refused"].is_null());
        assert!(
            model["refused"]["2"].as_str().unwrap().contains("corrupt"),
            "{model}"
        );
        assert_eq!(
            (
                &model["serving"]["champion"],
                &model["release"]["aliases"]["champion"]
            ),
            (&json!(1), &json!(2))
        );
        assert_eq!(answered_by(&mut gateway.connect()), 1);
        // Once the disk is sound again the intended version serves by itself.
        std::fs::write(&file, &sound).unwrap();
        operator.until("/v1/models/plain", |model| {
            model["serving"]["champion"] == 2
        });
        assert_eq!(answered_by(&mut gateway.connect()), 2);
    });
}
