//! What the server says about itself and its models.

use serde_json::{Value, json};

use super::{assert_scores, gateway, scores};
use crate::onnx::{DataType, affine, identity};
use crate::process::{Gateway, Setup};

#[test]
fn a_configuration_has_what_tritons_clients_read() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![
            ("affine", affine(&[1.0, 10.0], 0.5)),
            ("scalar", identity(["x", "y"], DataType::Double, &[])),
        ],
        config: "[serving]\nrows_max = 7",
        ..Setup::default()
    });
    for path in [
        "/v2/models/affine/config",
        "/v2/models/affine/versions/1/config/",
    ] {
        let config = gateway.get(path).json();
        assert_eq!(
            (&config["name"], &config["max_batch_size"]),
            (&json!("affine"), &json!(7))
        );
        assert_eq!(config["model_transaction_policy"]["decoupled"], false);
        assert_eq!(
            config["input"],
            json!([{"name": "features", "data_type": "TYPE_FP32", "dims": [2]}])
        );
        assert_eq!(config["output"][1]["name"], "probability");
        for absent in [
            "dynamic_batching",
            "sequence_batching",
            "ensemble_scheduling",
        ] {
            assert!(config.get(absent).is_none());
        }
    }
    let scalar = gateway.get("/v2/models/scalar/config").json();
    assert_eq!(
        (&scalar["max_batch_size"], &scalar["input"][0]["dims"]),
        (&json!(0), &json!([]))
    );
    assert_eq!(gateway.get("/v2/models/none/config").status, 404);
}

#[test]
fn statistics_count_what_was_answered_and_only_grow() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![
            ("affine", affine(&[1.0, 10.0], 0.5)),
            ("other", affine(&[1.0], 0.5)),
        ],
        ..Setup::default()
    });
    let of = |path: &str| {
        gateway.get(path).json()["model_stats"]
            .as_array()
            .unwrap()
            .clone()
    };
    let before = of("/v2/models/affine/stats");
    assert_eq!(before[0]["inference_count"], 0);
    for _ in 0..3 {
        assert_scores(&scores(&gateway, ""));
    }
    assert_eq!(
        scores(&gateway, r#""outputs":[{"name":"none"}],"#).status,
        400
    );
    let all = of("/v2/models/stats");
    assert_eq!(all.len(), 2);
    for path in [
        "/v2/models/affine/stats",
        "/v2/models/affine/versions/1/stats",
    ] {
        let [stats] = &of(path)[..] else {
            panic!("one version");
        };
        assert_eq!(
            (&stats["name"], &stats["version"]),
            (&json!("affine"), &json!("1"))
        );
        assert_eq!(
            (&stats["inference_count"], &stats["execution_count"]),
            (&json!(6), &json!(3))
        );
        assert!(stats["last_inference"].as_u64().unwrap() > 0);
        for leaf in [
            "success",
            "fail",
            "queue",
            "compute_input",
            "compute_infer",
            "compute_output",
            "cache_hit",
            "cache_miss",
        ] {
            let leaf = &stats["inference_stats"][leaf];
            assert!(leaf["count"].is_u64() && leaf["ns"].is_u64(), "{stats}");
        }
        assert_eq!(stats["inference_stats"]["success"]["count"], 3);
        assert!(
            stats["inference_stats"]["compute_infer"]["ns"]
                .as_u64()
                .unwrap()
                > 0
        );
        let batch = &stats["batch_stats"][0];
        assert_eq!(
            (&batch["batch_size"], &batch["compute_infer"]["count"]),
            (&json!(2), &json!(3))
        );
        assert_eq!(
            (&stats["response_stats"], &stats["memory_usage"]),
            (&json!({}), &json!([]))
        );
    }
    for unknown in [
        "/v2/models/none/stats",
        "/v2/models/affine/versions/9/stats",
    ] {
        assert_eq!(gateway.get(unknown).status, 404);
    }
}

#[test]
fn the_index_lists_every_version_with_its_state() {
    let gateway = gateway();
    let expected = json!([{"name": "affine", "version": "1", "state": "READY", "reason": ""}]);
    for (path, body) in [
        ("/v2/repository/index", ""),
        ("/v2/repository/index", "{}"),
        ("/v2/repository/index/", r#"{"ready":true}"#),
        ("/v2/repository/any/index", r#"{"ready":false,"more":1}"#),
    ] {
        assert_eq!(gateway.post(path, body).json(), expected, "{path} {body}");
    }
    assert_eq!(gateway.post("/v2/repository/index", "[").status, 400);
    let reply = gateway.get("/v2/repository/index");
    assert_eq!((reply.status, reply.header("allow")), (405, Some("POST")));
}

#[test]
fn settings_can_be_read_and_kept_but_not_changed() {
    let gateway = gateway();
    for (path, same, other) in [
        (
            "/v2/trace/setting",
            r#"{"trace_level":["OFF"],"trace_rate":null}"#,
            r#"{"trace_level":["TIMESTAMPS"]}"#,
        ),
        (
            "/v2/models/affine/trace/setting",
            "{}",
            r#"{"trace_file":"/etc/passwd"}"#,
        ),
        (
            "/v2/logging",
            r#"{"log_verbose_level":0,"log_file":""}"#,
            r#"{"log_file":"/tmp/x"}"#,
        ),
    ] {
        let settings = gateway.get(path).json();
        assert!(
            settings
                .as_object()
                .is_some_and(|settings| settings.len() > 5),
            "{settings}"
        );
        assert_eq!(gateway.post(path, same).json(), settings);
        for refused in [other, r#"{"no_such":1}"#, "[", "7"] {
            let reply = gateway.post(path, refused);
            assert_eq!(reply.status, 400, "{path} {refused}");
            assert!(!reply.error().is_empty());
        }
        assert_eq!(gateway.get(path).json(), settings);
        let reply = gateway.connect().request("DELETE", path, &[], b"");
        assert_eq!(
            (reply.status, reply.header("allow")),
            (405, Some("GET, POST"))
        );
    }
    assert_eq!(gateway.get("/v2/models/none/trace/setting").status, 404);
}

#[test]
fn the_server_advertises_what_it_does() {
    let server = gateway().get("/v2/").json();
    let extensions = server["extensions"].as_array().unwrap().clone();
    for known in [
        "binary_tensor_data",
        "classification",
        "model_configuration",
        "parameters",
        "statistics",
    ] {
        assert!(extensions.contains(&json!(known)), "{server}");
    }
    for absent in [
        "sequence",
        "system_shared_memory",
        "cuda_shared_memory",
        "trace",
        "logging",
    ] {
        assert!(!extensions.contains(&json!(absent)), "{server}");
    }
}

#[test]
fn names_may_hold_colons_or_be_numbers() {
    let names = ["team:delay_v2.1", "7", "stats"];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.onnx");
    std::fs::write(&file, affine(&[1.0, 10.0], 0.5)).unwrap();
    let given: Vec<String> = names
        .iter()
        .flat_map(|name| ["--model".to_owned(), format!("{name}={}", file.display())])
        .collect();
    let gateway = Gateway::with_models(&Setup {
        arguments: given.iter().map(String::as_str).collect(),
        ..Setup::default()
    });
    let body = format!(r#"{{"inputs":[{}]}}"#, super::ROWS);
    for name in names {
        for written in [
            name.to_owned(),
            name.replace(':', "%3A").replace('.', "%2e"),
        ] {
            let reply = gateway.post(&format!("/v2/models/{written}/infer"), &body);
            assert_scores(&reply);
            assert_eq!(reply.json()["model_name"], name);
            assert_eq!(
                gateway.get(&format!("/v2/models/{written}/ready")).status,
                200
            );
        }
    }
    let listed: Vec<Value> = gateway.get("/v2/models").json()["models"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(listed.len(), 3);
}

#[test]
fn errors_are_objects_with_one_sentence() {
    let gateway = gateway();
    for (method, path, status, sentence) in [
        ("GET", "/v2/nothing", 404, "Not Found"),
        ("PUT", "/v2/models/affine/infer", 405, "Method Not Allowed"),
        ("GET", "/v2/models/none/ready", 404, "unknown model `none`"),
    ] {
        let reply = gateway.connect().request(method, path, &[], b"");
        assert_eq!((reply.status, reply.error().as_str()), (status, sentence));
    }
}
