//! The process: what it refuses to start with, how it takes data, how it ends.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::onnx::affine;
use crate::patience::eventually;
use crate::process::{Gateway, Setup, refused};
use crate::wire::request;

const GOOD: &str = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;

fn setup<'a>() -> Setup<'a> {
    Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        config: "[serving]\ndrain_notice_ms = 60000",
        ..Setup::default()
    }
}

#[test]
fn a_drain_under_load_fails_nothing() {
    const CLIENTS: usize = 8;
    let mut gateway = Gateway::with_models(&setup());
    let served: [AtomicUsize; CLIENTS] = Default::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let client = |answered: &AtomicUsize| {
            let mut told_to_leave = false;
            while !told_to_leave {
                // A refused connection was never taken, so nothing of ours was lost with it.
                let Ok(mut connection) = gateway.try_connect() else {
                    break;
                };
                loop {
                    let sent = connection.send(&request(
                        "POST",
                        "/v2/models/m/infer",
                        &[],
                        GOOD.as_bytes(),
                    ));
                    let reply = sent.and_then(|()| connection.receive());
                    match reply {
                        Ok(Some(reply)) => {
                            assert_eq!(reply.status, 200);
                            answered.fetch_add(1, Ordering::Relaxed);
                            if reply.header("connection") == Some("close") {
                                told_to_leave = stop.load(Ordering::Relaxed);
                                break;
                            }
                        }
                        failed => panic!("a request that was sent got no answer: {failed:?}"),
                    }
                }
            }
        };
        for answered in &served {
            scope.spawn(move || client(answered));
        }
        eventually(|| served.iter().all(|n| n.load(Ordering::Relaxed) >= 200));
        stop.store(true, Ordering::Relaxed);
        gateway.terminate();
    });
    assert!(gateway.wait().success());
    assert!(
        matches!(gateway.try_connect().map(|_| ()), Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
    );
}

#[test]
fn a_request_in_flight_is_finished_and_the_end_is_told() {
    let mut gateway = Gateway::with_models(&setup());
    let mut held = gateway.connect();
    let head = format!(
        "POST /v2/models/m/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        GOOD.len()
    );
    held.send(head.as_bytes()).unwrap();
    assert_eq!(held.receive().unwrap().unwrap().status, 100);
    let mut watcher = gateway.connect();
    assert_eq!(watcher.get("/v2/health/ready").status, 200);
    gateway.terminate();
    // The first answer that says `close` is the drain's; until then it has not begun.
    loop {
        let reply = watcher.get("/v2/health/ready");
        if reply.header("connection") == Some("close") {
            assert_eq!(
                (reply.status, reply.json()["ready"].clone()),
                (503, json!(false))
            );
            break;
        }
        assert_eq!(reply.status, 200);
    }
    held.send(GOOD.as_bytes()).unwrap();
    let reply = held.receive().unwrap().unwrap();
    assert_eq!(
        (reply.status, reply.header("connection")),
        (200, Some("close"))
    );
    gateway.terminate();
    assert!(gateway.wait().success());
}

#[test]
fn what_cannot_be_served_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("good.onnx"), affine(&[1.0], 0.0)).unwrap();
    std::fs::write(path("cut.onnx"), &affine(&[1.0], 0.0)[..60]).unwrap();
    std::fs::write(
        path("typo.toml"),
        "insecure = true\n[http]\nadress = \"127.0.0.1:0\"\n",
    )
    .unwrap();
    let good = format!("m={}", path("good.onnx"));
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["--model", &format!("m={}", path("none.onnx"))],
            &["none.onnx"],
        ),
        (
            &["--model", &format!("m={}", path("cut.onnx"))],
            &["cut.onnx", "byte"],
        ),
        (
            &["--model", &format!("../m={}", path("good.onnx"))],
            &["../m"],
        ),
        (
            &["--model", &good, "--http", "0.0.0.0:0"],
            &["insecure = true"],
        ),
        (
            &["--model", &good, "--config", &path("typo.toml")],
            &["typo.toml:3", "adress", "address"],
        ),
        (&["--project", &path("nowhere")], &["nowhere"]),
    ];
    for (arguments, parts) in cases {
        let output = refused(arguments);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?} was served");
        for part in parts {
            assert!(message.contains(part), "{arguments:?}: {message}");
        }
    }
}

#[test]
fn a_taken_port_is_named() {
    let gateway = Gateway::with_models(&setup());
    let page = gateway.get("/v2");
    assert_eq!(page.status, 200);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    std::fs::write(&model, affine(&[1.0], 0.0)).unwrap();
    let output = refused(&[
        "--model",
        &format!("m={}", model.display()),
        "--http",
        &address,
    ]);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && message.contains(&address),
        "{message}"
    );
}

fn project(folder: &Path) {
    std::fs::create_dir(folder.join("models")).unwrap();
    std::fs::write(folder.join("loopgate.toml"), "[clock]\nmode = \"replay\"\n").unwrap();
    let features = "[[source]]\nname = \"visits\"\ntime = \"at\"\nid = [\"id\"]\n\
                    fields = { id = \"int\", page = \"string\", at = \"time\", seconds = \"float?\" }\n";
    std::fs::write(folder.join("features.toml"), features).unwrap();
}

#[test]
fn events_are_taken_whole_or_not_at_all_and_count_once() {
    let folder = tempfile::tempdir().unwrap();
    project(folder.path());
    let gateway = Gateway::with_project(folder.path());
    let mut connection = gateway.connect();
    let mut send = |source: &str, at_ms: i64, events: Value| {
        let body = json!({"events": events}).to_string();
        let time = at_ms.to_string();
        connection.request(
            "POST",
            &format!("/v1/events/{source}"),
            &[("loopgate-time-ms", &time)],
            body.as_bytes(),
        )
    };
    let event = |id: i64, at: i64| json!({"id": id, "page": "a", "at": at, "seconds": 1.5});
    let taken = send(
        "visits",
        1000,
        json!([event(1, 900), event(2, 950), event(1, 900)]),
    );
    assert_eq!(
        taken.json(),
        json!({"accepted": 2, "duplicates": 1, "late": 0}),
        "{}",
        taken.text()
    );
    let again = send("visits", 1000, json!([event(1, 900), event(3, 990)]));
    assert_eq!(
        again.json(),
        json!({"accepted": 1, "duplicates": 1, "late": 0})
    );
    assert_eq!(
        send("visits", 1000, json!([])).json(),
        json!({"accepted": 0, "duplicates": 0, "late": 0})
    );
    for (wrong, part) in [
        (
            json!({"id": 5, "page": "a", "at": 900, "secnds": 1.0}),
            "secnds",
        ),
        (json!({"id": "5", "page": "a", "at": 900}), "id"),
        (json!({"id": 5, "page": "a"}), "at"),
        (json!({"id": 5, "page": "a", "at": 900_000_000}), "at"),
        (json!(7), "object"),
    ] {
        let refused = send("visits", 1000, json!([event(4, 990), wrong]));
        assert_eq!(refused.status, 400, "{}", refused.text());
        let error = refused.error();
        assert!(error.contains("row 1") && error.contains(part), "{error}");
    }
    // Nothing of the refused batches was written.
    assert_eq!(
        send("visits", 1000, json!([event(4, 990)])).json()["accepted"],
        1
    );
    assert_eq!(send("other", 1000, json!([])).status, 404);
    assert_eq!(connection.post("/v1/events/visits", "{").status, 400);
    assert_eq!(
        gateway.metric(
            "loopgate_ingested_total",
            "kind=\"event\",outcome=\"accepted\""
        ),
        4.0
    );

    let second = refused(&["--project", folder.path().to_str().unwrap()]);
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(
        !second.status.success() && message.contains("in use"),
        "{message}"
    );
    gateway.drain();
    let restarted = Gateway::with_project(folder.path());
    let body = json!({"events": [event(1, 900), event(4, 990)]}).to_string();
    assert_eq!(
        restarted.post("/v1/events/visits", &body).json()["duplicates"],
        2
    );
}

#[test]
fn answers_are_recorded_probes_are_not_and_labels_find_them() {
    let data = tempfile::tempdir().unwrap();
    let with_data = || {
        Gateway::with_models(&Setup {
            arguments: vec!["--data", data.path().to_str().unwrap()],
            ..setup()
        })
    };
    let gateway = with_data();
    let answer = gateway.post("/v2/models/m/infer", GOOD).json();
    let id = answer["parameters"]["prediction_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let probe = gateway.connect().request(
        "POST",
        "/v2/models/m/infer",
        &[("loopgate-record", "false")],
        GOOD.as_bytes(),
    );
    assert!(probe.json().get("parameters").is_none(), "{}", probe.text());
    gateway.drain();

    let gateway = with_data();
    let label = |id: &str| {
        json!({"labels": [{"prediction_id": id, "value": 1, "label_time": 5}]}).to_string()
    };
    let known = gateway.post("/v1/labels", &label(&id));
    assert_eq!(
        known.json(),
        json!({"accepted": 1, "duplicates": 0, "unknown": 0}),
        "{}",
        known.text()
    );
    let again = gateway.post("/v1/labels", &label(&id));
    assert_eq!(
        again.json(),
        json!({"accepted": 0, "duplicates": 1, "unknown": 0})
    );
    let unknown = gateway.post("/v1/labels", &label("018f3f2e-7d3c-7cc0-8000-0123456789ab"));
    assert_eq!(unknown.json()["unknown"], 1);
    let wrong = gateway.post("/v1/labels", &label("nonsense"));
    assert_eq!(wrong.status, 400);
    assert!(wrong.error().starts_with("row 0: "), "{}", wrong.error());
    gateway.drain();
}
