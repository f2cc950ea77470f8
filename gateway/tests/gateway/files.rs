//! Model files that are half written or replaced while they are read: what serves was whole and was
//! checked, or it is what served before.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::patience::StopWhenDropped;
use crate::process::{Gateway, Setup};
use crate::repository::{answer, unload};
use crate::wire::Reply;

/// Columns of a model whose file is 64 KiB and a little.
const WIDE: usize = 16 << 10;

/// Asks for the file that is registered, or that the command line named.
fn load_again(gateway: &Gateway, model: &str) -> Reply {
    gateway.post(&format!("/v2/repository/models/{model}/load"), "")
}

fn wide_answer(gateway: &Gateway) -> f64 {
    let body = json!({"outputs": [{"name": "score"}], "inputs": [{"name": "features",
        "shape": [1, WIDE], "datatype": "FP32", "data": vec![0; WIDE]}]});
    let reply = gateway.post("/v2/models/m/infer", &body.to_string());
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["outputs"][0]["data"][0].as_f64().unwrap()
}

/// Replaces a file as a whole.
fn put(path: &Path, bytes: &[u8]) {
    let staged = path.with_extension("staged");
    std::fs::write(&staged, bytes).unwrap();
    std::fs::rename(staged, path).unwrap();
}

#[test]
fn a_file_whose_writer_was_killed_is_not_loaded() {
    const STEP: usize = 4 << 10;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, affine(&[0.0; WIDE], 1.0)).unwrap();
    let model = format!("m={}", path.display());
    let gateway = Gateway::with_models(&Setup {
        arguments: vec!["--model", &model],
        ..Setup::default()
    });
    let next = affine(&[0.0; WIDE], 2.0);
    assert!(next.len() > 16 * STEP);
    for written in (0..next.len()).step_by(STEP) {
        std::fs::write(&path, &next[..written]).unwrap();
        let reply = load_again(&gateway, "m");
        assert_eq!(reply.status, 400, "{written} bytes: {}", reply.text());
        assert_eq!(wide_answer(&gateway), 1.0, "{written} bytes");
    }
    std::fs::write(&path, &next).unwrap();
    assert_eq!(load_again(&gateway, "m").status, 200);
    assert_eq!(wide_answer(&gateway), 2.0);
    gateway.drain();
}

#[test]
fn a_registered_file_that_is_replaced_is_served_as_registered_or_not_at_all() {
    const ROUNDS: usize = 30;
    let project = Project::new("");
    let sound = affine(&[0.0], 1.0);
    project.register("plain", &sound);
    let file = project.artifact("plain", 1);
    let gateway = project.serve();
    Operator::of(&gateway).until("/v1/models/plain", |model| model["ready"] == true);
    let stop = AtomicBool::new(false);
    let (mut served, mut refused) = (0, 0);
    std::thread::scope(|scope| {
        let _stop = StopWhenDropped(&stop);
        scope.spawn(|| {
            // A good model, but another.
            let other = affine(&[0.0], 9.0);
            while !stop.load(Ordering::Relaxed) {
                put(&file, &other);
                put(&file, &sound);
            }
        });
        for _ in 0..ROUNDS {
            let reply = load_again(&gateway, "plain");
            match reply.status {
                200 => {
                    served += 1;
                    assert_eq!(answer(&gateway, "plain"), ("1".to_owned(), 1.0));
                }
                _ => {
                    refused += 1;
                    assert!(reply.error().contains("corrupt"), "{}", reply.text());
                }
            }
            unload(&gateway, "plain");
        }
    });
    println!("{served} served, {refused} refused");
    put(&file, &sound);
    assert_eq!(load_again(&gateway, "plain").status, 200);
    assert_eq!(answer(&gateway, "plain"), ("1".to_owned(), 1.0));
    gateway.drain();
}
