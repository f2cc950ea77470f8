//! `loopgate backup`: a copy of a data folder in use is a data folder.

use serde_json::{Value, json};

use crate::onnx::affine;
use crate::operator::{Operator, Project};

#[test]
fn a_backup_beside_a_running_gateway_serves_in_its_place() {
    let project = Project::new("");
    project.register("plain", &affine(&[1.0], 0.0));
    let gateway = project.serve();
    let click =
        |id: u64| json!({"id": id, "user": "u", "at": 1_700_000_000_000_u64, "amount": 2.0});
    let send = |ids: std::ops::Range<u64>| {
        let events: Vec<Value> = ids.map(click).collect();
        let reply = gateway.post("/v1/events/clicks", &json!({"events": events}).to_string());
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    send(0..5);
    let copies = tempfile::tempdir().unwrap();
    let to = copies.path().join("backup");
    let (to, admin) = (to.to_str().unwrap(), gateway.admin.to_string());
    let told = project.done(&["backup", to, "--admin", &admin]);
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["store"]["last_seq"], 5, "{told}");
    send(5..9);
    let again = project.fails(&["backup", to, "--admin", &admin]);
    assert!(
        again.contains("exists: a backup needs a new folder"),
        "{again}"
    );

    let restored = Project::new("");
    std::fs::rename(to, restored.path().join("data")).unwrap();
    let shown = restored.done(&["model", "show", "plain"]);
    assert_eq!(shown, project.done(&["model", "show", "plain"]));
    let gateway = restored.serve();
    let mut operator = Operator::of(&gateway);
    assert_eq!(operator.ask("/v1/features")["stats"]["events"], 5);
    let missing = operator.post("/v1/backup", &json!({"to": "somewhere"}));
    assert_eq!(missing.status, 400, "{}", missing.text());
}
