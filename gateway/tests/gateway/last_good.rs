//! Starts without a registry, and kills around an activation.
//!
//! `LOOPGATE_KILL_CYCLES` and `LOOPGATE_KILL_SEED` say how many kills and which way.

use std::path::Path;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::process::Gateway;
use crate::repository::{answer, load};

const CYCLES: u64 = 5;

/// A served project whose champion is version 2 with its fallback.
fn served() -> Project {
    let project = Project::new("");
    project.register("plain", &affine(&[0.0], 1.0));
    project.register("plain", &affine(&[0.0], 2.0));
    project.done(&["model", "promote", "plain", "2"]);
    let gateway = project.serve();
    serving(&gateway, 2);
    gateway.drain();
    project
}

fn serving(gateway: &Gateway, version: u64) -> Value {
    Operator::of(gateway).until("/v1/models/plain", |model| {
        model["serving"]["champion"] == version
    })
}

/// Takes the registry away, with what belongs to it.
fn remove(data: &Path) {
    for name in ["registry.db", "registry.db-wal", "registry.db-shm"] {
        let path = data.join(name);
        if path.exists() {
            std::fs::remove_file(path).unwrap();
        }
    }
}

#[test]
fn without_its_registry_a_gateway_serves_what_served_last_until_it_is_back() {
    let project = served();
    let data = project.path().join("data");
    let sound = std::fs::read(data.join("registry.db")).unwrap();
    let rotten: Vec<u8> = sound.iter().map(|byte| byte ^ 0x5a).collect();
    // Nothing at all, an empty file (which would open as a new registry), garbage.
    for damaged in [None, Some(Vec::new()), Some(rotten)] {
        remove(&data);
        if let Some(bytes) = &damaged {
            std::fs::write(data.join("registry.db"), bytes).unwrap();
        }
        let shown = damaged.map(|bytes| bytes.len());
        let gateway = project.serve();
        let model = serving(&gateway, 2);
        assert_eq!(model["serving"]["fallback"], 1, "{shown:?}: {model}");
        assert_eq!(
            answer(&gateway, "plain"),
            ("2".to_owned(), 2.0),
            "{shown:?}"
        );
        let mut operator = Operator::of(&gateway);
        let view = operator.ask("/v1/loop");
        assert!(view["registry_away"].is_string(), "{shown:?}: {view}");
        assert_eq!(gateway.metric("loopgate_registry_away", ""), 1.0);
        assert_eq!(operator.get("/v1/models/plain/history").status, 503);
        assert_eq!(load(&gateway, "plain", &affine(&[0.0], 9.0)).status, 503);

        remove(&data);
        std::fs::write(data.join("registry.db.new"), &sound).unwrap();
        std::fs::rename(data.join("registry.db.new"), data.join("registry.db")).unwrap();
        operator.until("/v1/loop", |view| view["registry_away"].is_null());
        assert_eq!(gateway.metric("loopgate_registry_away", ""), 0.0);
        assert_eq!(answer(&gateway, "plain").0, "2");
        assert_eq!(operator.get("/v1/models/plain/history").status, 200);
        gateway.drain();
    }
}

#[test]
fn a_registry_older_than_what_served_is_not_followed() {
    let project = served();
    let data = project.path().join("data");
    let older = std::fs::read(data.join("registry.db")).unwrap();
    project.done(&["model", "promote", "plain", "1"]);
    let gateway = project.serve();
    serving(&gateway, 1);
    gateway.drain();
    remove(&data);
    std::fs::write(data.join("registry.db"), older).unwrap();
    let gateway = project.serve();
    serving(&gateway, 1);
    let view = Operator::of(&gateway).ask("/v1/loop");
    let reason = view["registry_away"].as_str().unwrap();
    assert!(reason.contains("generation"), "{reason}");
    gateway.drain();
    std::fs::remove_file(data.join("last-good.json")).unwrap();
    let gateway = project.serve();
    serving(&gateway, 2);
    gateway.drain();
}

#[test]
fn a_kill_around_an_activation_leaves_the_old_version_or_the_new_one() {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = number("LOOPGATE_KILL_SEED").unwrap_or_else(rand::random);
    println!("LOOPGATE_KILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let project = served();
    let mut champion = 2;
    for cycle in 0..number("LOOPGATE_KILL_CYCLES").unwrap_or(CYCLES) {
        let mut gateway = project.serve();
        serving(&gateway, champion);
        let next = 3 - champion;
        let address = gateway.admin;
        let body = json!({"version": next, "expected": champion}).to_string();
        let request = format!(
            "POST /v1/models/plain/aliases/champion HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let asked = std::thread::spawn(move || {
            let mut connection = crate::wire::Connection::open(address).ok()?;
            connection.send(request.as_bytes()).ok()?;
            connection.receive().ok()?.map(|reply| reply.status)
        });
        std::thread::sleep(Duration::from_micros(random.random_range(0..20_000)));
        gateway.kill();
        let acknowledged = asked.join().unwrap() == Some(200);
        let gateway = project.serve();
        let mut operator = Operator::of(&gateway);
        // A registry that opens slowly is served without for a while.
        operator.until("/v1/loop", |view| {
            let is_there = view["registry_away"].is_null() && view["busy"] == false;
            is_there && view["loaded_generation"].as_i64() > Some(0)
        });
        let model = operator.ask("/v1/models/plain");
        let found = model["serving"]["champion"].as_u64().unwrap();
        let allowed = found == next || (found == champion && !acknowledged);
        assert!(
            allowed,
            "cycle {cycle}: {found}, acknowledged {acknowledged}"
        );
        assert_eq!(answer(&gateway, "plain").1, found as f64);
        gateway.drain();
        champion = found;
    }
}
