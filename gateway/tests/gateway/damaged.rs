//! A gateway whose data folder is damaged, or whose disk is full, while it serves: it answers every prediction,
//! none from a wrong value, and says how it stands.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::SystemTime;

use serde_json::{Value, json};

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::patience::eventually;
use crate::process::Gateway;
use crate::wire::Reply;

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.unwrap().as_millis().try_into().unwrap()
}

/// `bound` adds up its service's columns; where it cannot, it is answered by a constant.
fn project(settings: &str) -> Project {
    let project = Project::new(settings);
    project.write(
        "models/bound.toml",
        b"service = \"score\"\nconstant = 0.25\n",
    );
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    project.register("plain", &affine(&[1.0], 1.0));
    project
}

fn serve(project: &Project) -> Gateway {
    let gateway = project.serve();
    for model in ["bound", "plain"] {
        let path = format!("/v1/models/{model}");
        Operator::of(&gateway).until(&path, |model| model["ready"] == true);
    }
    gateway
}

fn infer(gateway: &Gateway) -> Reply {
    let body = r#"{"inputs":[{"name":"user","shape":[1],"datatype":"BYTES","data":["u1"]},{"name":"base","shape":[1],"datatype":"FP64","data":[2.5]}]}"#;
    gateway.post("/v2/models/bound/infer", body)
}

fn output(reply: &Reply) -> f64 {
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["outputs"][0]["data"][0].as_f64().unwrap()
}

fn click(id: u64, user: &str) -> Value {
    json!({"id": id, "user": user, "at": now_ms() - 60_000, "amount": 4.0})
}

fn send_click(gateway: &Gateway, id: u64) -> Reply {
    let body = json!({"events": [click(id, "u1")]});
    gateway.post("/v1/events/clicks", &body.to_string())
}

/// Answers without a path, a type or a word of the database.
fn tells_nothing_inside(reply: &Reply) {
    for inside in ["online", ".sst", "Corruption", "checksum", "data/"] {
        assert!(!reply.text().contains(inside), "{}", reply.text());
    }
}

/// Inverts the first half of each table file of the states: data blocks, while the index still finds them.
fn damage_states(online: &Path) -> usize {
    let mut damaged = 0;
    for entry in fs::read_dir(online).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        let of_states = bytes.windows(9).any(|bytes| bytes == b"namestate");
        if path.extension().is_some_and(|it| it == "sst") && of_states {
            let half = bytes.len() / 2;
            bytes[..half].iter_mut().for_each(|byte| *byte = !*byte);
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    damaged
}

#[test]
fn damage_found_while_serving_gives_no_wrong_value_and_a_restart_mends_it() {
    let project = project("");
    let gateway = serve(&project);
    for id in 0..3 {
        assert_eq!(send_click(&gateway, id).status, 200);
    }
    // So many states that the last, which a start reads, is not near that of `u1`.
    let clicks = (1000..2000).map(|id| click(id, &format!("v{id}")));
    let body = json!({"events": clicks.collect::<Vec<_>>()}).to_string();
    let sent = gateway.post("/v1/events/clicks", &body);
    assert_eq!(sent.status, 200, "{}", sent.text());
    assert_eq!(output(&infer(&gateway)), 2.5 + 3.0 + 12.0);
    gateway.drain();
    // A start brings what the last process left in its log into tables; nothing of them is in memory.
    let gateway = serve(&project);
    assert!(damage_states(&project.path().join("data/online")) > 0);
    for _ in 0..20 {
        let reply = infer(&gateway);
        assert_eq!(output(&reply), 0.25);
        let parameters = &reply.json()["parameters"];
        assert_eq!(parameters["fallback"], true, "{parameters}");
        assert_eq!(parameters["fallback_reason"], "features");
    }
    assert_eq!(gateway.metric("loopgate_store_damaged", ""), 1.0);
    assert!(gateway.metric("loopgate_fallbacks_total", "features") >= 20.0);
    let mut operator = Operator::of(&gateway);
    let stats = operator.ask("/v1/features")["stats"].clone();
    assert!(stats["damaged"].is_string(), "{stats}");
    let rows = json!({"feature_service": "score", "entities": {"user": ["u1"], "base": [1.0]}});
    let rows = gateway.post("/get-online-features", &rows.to_string());
    assert_eq!(rows.status, 503, "{}", rows.text());
    tells_nothing_inside(&rows);
    // An event of that user cannot be folded: it is refused, not lost.
    let click = send_click(&gateway, 3);
    assert_eq!(click.status, 503, "{}", click.text());
    tells_nothing_inside(&click);
    let plain = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[2]}]}"#;
    let plain = gateway.post("/v2/models/plain/infer", plain);
    assert_eq!(output(&plain), 3.0);
    gateway.drain();
    let gateway = serve(&project);
    assert_eq!(output(&infer(&gateway)), 2.5 + 3.0 + 12.0);
    assert_eq!(gateway.metric("loopgate_store_damaged", ""), 0.0);
    assert_eq!(send_click(&gateway, 3).status, 200);
    assert_eq!(output(&infer(&gateway)), 2.5 + 4.0 + 16.0);
    gateway.drain();
}

const ON_A_SMALL_DISK: &str = "on a small disk";

#[test]
fn a_full_disk_costs_no_prediction_and_writes_go_on_when_there_is_space() {
    let disk = tempfile::tempdir().unwrap();
    // The child's folders for what is temporary lie on a small disk of its own.
    let script = "mount -t tmpfs -o size=48m tmpfs \"$TMPDIR\" || exit 77; exec \"$0\" \"$@\"";
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "damaged::the_child_on_a_small_disk"])
        .args(["--ignored", "--nocapture"])
        .env("TMPDIR", disk.path())
        .output();
    let Ok(output) = output else {
        return println!("SKIPPED: `unshare` cannot be had");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    if !said.contains(ON_A_SMALL_DISK) {
        return println!("SKIPPED: no file system may be mounted here");
    }
    assert!(output.status.success());
}

#[test]
#[ignore = "the child of another test"]
fn the_child_on_a_small_disk() {
    println!("\n{ON_A_SMALL_DISK}");
    let project = project("[store]\nwrite_buffers_mib = 4");
    let gateway = serve(&project);
    assert_eq!(send_click(&gateway, 0).status, 200);
    assert_eq!(output(&infer(&gateway)), 2.5 + 1.0 + 4.0);
    let filler = std::env::temp_dir().join("filler");
    let mut file = File::create(&filler).unwrap();
    while file.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
    let mut next = 1;
    eventually(|| {
        let reply = send_click(&gateway, next);
        next += u64::from(reply.status == 200);
        if reply.status != 200 {
            assert_eq!(reply.status, 503, "{}", reply.text());
            assert!(reply.header("retry-after").is_some());
            tells_nothing_inside(&reply);
        }
        reply.status == 503
    });
    let sum = 2.5 + 5.0 * next as f64;
    for _ in 0..100 {
        let reply = infer(&gateway);
        assert_eq!(output(&reply), sum);
        assert_eq!(reply.json()["parameters"]["fallback"], Value::Null);
    }
    assert_eq!(gateway.metric("loopgate_store_full", ""), 1.0);
    drop(file);
    fs::remove_file(filler).unwrap();
    eventually(|| send_click(&gateway, next).status == 200);
    assert_eq!(output(&infer(&gateway)), sum + 5.0);
    assert_eq!(gateway.metric("loopgate_store_full", ""), 0.0);
    gateway.drain();
    // All of it is there afterwards, and nothing else.
    let gateway = serve(&project);
    assert_eq!(output(&infer(&gateway)), sum + 5.0);
    gateway.drain();
}
