//! The pool's line as callers see it.

use serde_json::{Value, json};

use crate::dear::{dear, picks};
use crate::onnx::affine;
use crate::process::{Gateway, Setup};

fn inference_stats(gateway: &Gateway, model: &str) -> Value {
    let stats = gateway.get(&format!("/v2/models/{model}/stats")).json();
    stats["model_stats"][0]["inference_stats"].clone()
}

#[test]
fn statistics_tell_waiting_for_a_worker_from_running() {
    let body = json!({"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]});
    // Everything goes to the pool; nothing does.
    for (in_place_us, waits) in [(0, true), (60_000_000, false)] {
        let config = format!("[serving]\nin_place_us = {in_place_us}\ndeadline_ms = 20000");
        let gateway = Gateway::with_models(&Setup {
            models: vec![("m", dear(10))],
            config: &config,
            ..Setup::default()
        });
        for _ in 0..5 {
            let reply = gateway.post("/v2/models/m/infer", &body.to_string());
            assert_eq!(reply.status, 200, "{}", reply.text());
        }
        let stats = inference_stats(&gateway, "m");
        let ns = |leaf: &str| stats[leaf]["ns"].as_u64().unwrap();
        assert_eq!(stats["queue"]["count"], 5);
        assert_eq!(ns("queue") > 0, waits, "{stats}");
        let parts = ["queue", "compute_input", "compute_infer", "compute_output"].map(ns);
        assert!(parts.iter().sum::<u64>() <= ns("success"), "{stats}");
        gateway.drain();
    }
}

#[test]
fn inputs_that_a_model_cannot_take_do_not_open_its_breaker() {
    for engine in ["auto", "tract"] {
        let gateway = Gateway::with_models(&Setup {
            models: vec![("m", picks()), ("other", affine(&[1.0], 0.0))],
            arguments: vec!["--engine", engine],
            ..Setup::default()
        });
        let pick = |index: i64| {
            let body = json!({"inputs": [{"name": "i", "shape": [1], "datatype": "INT64", "data": [index]}]});
            gateway.post("/v2/models/m/infer", &body.to_string())
        };
        assert_eq!(pick(10).json()["outputs"][0]["data"], json!([5.0]));
        for _ in 0..10 {
            let reply = pick(1000);
            assert_eq!(reply.status, 500, "{engine}: {}", reply.text());
        }
        // Nobody else pays for it.
        assert_eq!(
            pick(20).json()["outputs"][0]["data"],
            json!([10.0]),
            "{engine}"
        );
        assert_eq!(gateway.metric("loopgate_breakers_opened_total", ""), 0.0);
        gateway.drain();
    }
}
