//! More than can be served, and versions that fail: what is refused, what is shared, who answers.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::dear::{dear, picks};
use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::patience::eventually;
use crate::process::{Gateway, Setup};
use crate::wire::{Connection, Reply, request};

/// One serving thread, one worker.
fn narrow(model: Vec<u8>, config: &str) -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![("m", model), ("cheap", affine(&[2.0], 0.0))],
        config,
        arguments: vec!["--serving-threads", "1"],
        ..Setup::default()
    })
}

fn infer(connection: &mut Connection, features: [f32; 4]) -> Reply {
    connection.post("/v2/models/m/infer", &body(features).to_string())
}

fn body(features: [f32; 4]) -> Value {
    json!({"inputs": [{"name": "features", "shape": [1, 4], "datatype": "FP32", "data": features}]})
}

fn cheap(connection: &mut Connection) -> Reply {
    let body =
        json!({"inputs": [{"name": "features", "shape": [1, 1], "datatype": "FP32", "data": [3]}]});
    connection.post("/v2/models/cheap/infer", &body.to_string())
}

/// Whether a refusal says when to come back.
fn says_when(reply: &Reply) -> bool {
    let number = |name| {
        reply
            .header(name)
            .and_then(|value| value.parse::<u64>().ok())
    };
    let (seconds, ms) = (
        number("retry-after").unwrap(),
        number("retry-after-ms").unwrap(),
    );
    seconds >= 1 && ms >= 1 && seconds == ms.div_ceil(1000)
}

#[test]
fn excess_is_refused_with_a_time_and_nobody_is_answered_late() {
    const CLIENTS: usize = 48;
    // A batch of one request, so that more clients are more work: together much more than the
    // deadline has time for.
    let gateway = narrow(
        dear(400),
        "[serving]\npool_threads = 1\nbatch_rows_max = 1\ndeadline_ms = 100",
    );
    let (answered, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut connection = gateway.connect();
                let both = || [&answered, &refused].map(|n| n.load(Ordering::Relaxed) > 0);
                for k in 0..10_000 {
                    if k >= 20 && both() == [true; 2] {
                        break;
                    }
                    let reply = infer(&mut connection, [1.0, 2.0, 3.0, 6.0]);
                    match reply.status {
                        200 => answered.fetch_add(1, Ordering::Relaxed),
                        429 => {
                            assert!(says_when(&reply), "{reply:?}");
                            refused.fetch_add(1, Ordering::Relaxed)
                        }
                        // It was let in and its turn did not come in time.
                        504 => 0,
                        other => panic!("{other}: {}", reply.text()),
                    };
                }
            });
        }
        // Health and a cheap model are served by the same thread meanwhile.
        let mut connection = gateway.connect();
        for _ in 0..20 {
            assert_eq!(connection.get("/v2/health/ready").status, 200);
            assert_eq!(
                cheap(&mut connection).json()["outputs"][0]["data"],
                json!([6.0])
            );
        }
    });
    let (answered, refused) = (answered.into_inner(), refused.into_inner());
    assert!(
        answered > 0 && refused > 0,
        "{answered} answered, {refused} refused"
    );
    // A run that is certain to outlive its caller's deadline is not answered, however quick.
    let mut hurried = body([1.0; 4]);
    hurried["parameters"] = json!({"timeout": 50});
    for _ in 0..10 {
        let reply = gateway.post("/v2/models/m/infer", &hurried.to_string());
        assert!([429, 504].contains(&reply.status), "{reply:?}");
    }
    assert_eq!(gateway.metric("loopgate_in_place_rows", "model=\"m\""), 0.0);
    // Whoever was late has been answered before the worker finds that out.
    eventually(|| gateway.metric("loopgate_queue_length", "queue=\"pool\"") == 0.0);
    assert_eq!(gateway.metric("loopgate_in_flight", ""), 0.0);
    gateway.drain();
}

#[test]
fn requests_that_share_a_run_get_what_they_would_have_got_alone() {
    const CLIENTS: usize = 12;
    let gateway = narrow(
        dear(100),
        "[serving]\npool_threads = 1\nin_place_us = 0\ndeadline_ms = 20000",
    );
    let features = |client: usize, k: usize| {
        let x = (client * 31 + k * 7) as f32;
        [x, x / 3.0, -x / 7.0, 1.0]
    };
    let score = |reply: &Reply| {
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["outputs"][0]["data"][0].as_f64().unwrap()
    };
    let mut alone = gateway.connect();
    let expected: Vec<Vec<f64>> = (0..CLIENTS)
        .map(|client| {
            (0..10)
                .map(|k| score(&infer(&mut alone, features(client, k))))
                .collect()
        })
        .collect();
    let runs = || gateway.metric("loopgate_pool_runs_total", "");
    let requests = || gateway.metric("loopgate_pool_requests_total", "");
    assert_eq!(runs(), requests());
    // Once is enough as a rule; a worker that was always quicker than the clients shared nothing.
    for _ in 0..50 {
        std::thread::scope(|scope| {
            for (client, expected) in expected.iter().enumerate() {
                let gateway = &gateway;
                scope.spawn(move || {
                    let mut connection = gateway.connect();
                    for (k, &expected) in expected.iter().enumerate() {
                        let found = score(&infer(&mut connection, features(client, k)));
                        let tolerance = 1e-6 * expected.abs().max(1.0);
                        assert!((found - expected).abs() <= tolerance, "{found} {expected}");
                    }
                });
            }
        });
        if runs() < requests() {
            break;
        }
    }
    assert!(runs() < requests(), "nothing was batched");
    gateway.drain();
}

#[test]
fn a_row_that_fails_does_not_fail_those_that_shared_its_run() {
    let gateway = narrow(
        picks(),
        "[serving]\npool_threads = 1\nin_place_us = 0\ndeadline_ms = 20000",
    );
    let ask = |connection: &mut Connection, i: i64| {
        let body =
            json!({"inputs": [{"name": "i", "shape": [1], "datatype": "INT64", "data": [i]}]});
        connection.post("/v2/models/m/infer", &body.to_string())
    };
    std::thread::scope(|scope| {
        for client in 0..8_i64 {
            let gateway = &gateway;
            scope.spawn(move || {
                let mut connection = gateway.connect();
                for k in 0..60 {
                    let i = client * 10 + k % 10;
                    let reply = ask(&mut connection, i);
                    assert_eq!(reply.status, 200, "{}", reply.text());
                    assert_eq!(reply.json()["outputs"][0]["data"], json!([i as f64 / 2.0]));
                }
            });
        }
        // Rare enough among the good ones to leave the breaker closed.
        let mut connection = gateway.connect();
        for _ in 0..4 {
            assert_eq!(ask(&mut connection, 1000).status, 500);
            assert_eq!(ask(&mut connection, 7).status, 200);
        }
    });
    gateway.drain();
}

#[test]
fn who_has_gone_leaves_the_queue_unrun() {
    let gateway = narrow(
        dear(400),
        "[serving]\npool_threads = 1\nbatch_rows_max = 1\ndeadline_ms = 20000",
    );
    assert_eq!(infer(&mut gateway.connect(), [1.0; 4]).status, 200);
    let body = body([1.0; 4]).to_string();
    let left = || gateway.metric("loopgate_pool_left_total", "why=\"abandoned\"");
    // One round is enough as a rule; a worker may have been quicker than those who leave.
    for _ in 0..50 {
        for _ in 0..16 {
            let mut connection = gateway.connect();
            let bytes = request("POST", "/v2/models/m/infer", &[], body.as_bytes());
            connection.send(&bytes).unwrap();
        }
        eventually(|| gateway.metric("loopgate_in_flight", "") == 0.0);
        if left() > 0.0 {
            break;
        }
    }
    assert!(left() > 0.0);
    assert_eq!(infer(&mut gateway.connect(), [1.0; 4]).status, 200);
    gateway.drain();
}

#[test]
fn places_are_counted_by_model_from_the_head_on() {
    let project = Project::new("[serving]\nin_flight_max = 3\nin_flight_bytes_max = 1000000");
    project.write(
        "models/plain.toml",
        b"in_flight_max = 1\nfallback = [\"fallback\"]",
    );
    project.write("models/other.toml", b"in_flight_bytes_max = 1000");
    project.register("plain", &affine(&[1.0], 0.0));
    project.register("other", &affine(&[1.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    operator.until("/v1/models/other", |model| model["ready"] == true);
    let good = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;
    let infer = |model: &str| gateway.post(&format!("/v2/models/{model}/infer"), good);
    let hold = |model: &str, bytes: usize| {
        let mut held = gateway.connect();
        let head = format!(
            "POST /v2/models/{model}/infer HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {bytes}\r\n\r\n"
        );
        held.send(head.as_bytes()).unwrap();
        assert_eq!(held.receive().unwrap().unwrap().status, 100);
        held
    };
    let first = hold("plain", good.len());
    let refused = infer("plain");
    assert_eq!(refused.status, 429);
    assert!(
        says_when(&refused) && refused.error().contains("1 requests"),
        "{refused:?}"
    );
    assert_eq!(infer("other").status, 200);
    let second = hold("other", 950);
    let refused = infer("other");
    assert!(
        refused.status == 429 && refused.error().contains("1000 bytes"),
        "{refused:?}"
    );
    let third = hold("other", 1);
    assert_eq!(infer("other").status, 429);
    assert_eq!(gateway.get("/v2/health/live").status, 200);
    drop((first, second, third));
    // The gateway sees by and by that they have gone.
    eventually(|| infer("plain").status == 200 && infer("other").status == 200);
    assert_eq!(infer("nobody").status, 404);
    gateway.drain();
}

#[test]
fn a_failing_champion_is_answered_for_broken_off_and_taken_back_when_it_works() {
    let project = Project::new("");
    // The first answers 7 whatever it is asked; the second's product overflows for large numbers.
    project.register("plain", &affine(&[0.0], 7.0));
    project.register("plain", &affine(&[10.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    let alias = |operator: &mut Operator, name: &str, version: i64, expected: Option<i64>| {
        let change = json!({"version": version, "expected": expected});
        let path = format!("/v1/models/plain/aliases/{name}");
        let reply = operator.post(&path, &change);
        assert_eq!(reply.status, 200, "{}", reply.text());
        operator.settled(reply.json()["generation"].as_i64().unwrap());
    };
    alias(&mut operator, "fallback", 1, None);
    alias(&mut operator, "champion", 2, Some(1));
    let mut connection = gateway.connect();
    let mut infer = |path: &str, x: f64| {
        let body = json!({"inputs": [{"name": "features", "shape": [1, 1], "datatype": "FP32", "data": [x]}],
            "outputs": [{"name": "score"}]});
        connection.post(&format!("/v2/models/plain{path}/infer"), &body.to_string())
    };
    let reason = |reply: &Reply| {
        assert_eq!(reply.status, 200, "{}", reply.text());
        let body = reply.json();
        let reason = body["parameters"]["fallback_reason"]
            .as_str()
            .unwrap_or_default();
        let value = &body["outputs"][0]["data"][0];
        assert_eq!(body["model_version"] == "1", !reason.is_empty(), "{body}");
        assert_eq!(*value == json!(7.0), !reason.is_empty(), "{body}");
        reason.to_owned()
    };
    assert_eq!(reason(&infer("", 1.0)), "");
    // Every request fails on the champion: every one is answered, and soon without asking it.
    let reasons: Vec<String> = (0..30).map(|_| reason(&infer("", 3e38))).collect();
    assert_eq!(reasons[..5], ["non_finite"; 5]);
    assert_eq!(reasons[5..], ["breaker"; 25]);
    let state = || {
        gateway.metric(
            "loopgate_breaker_state",
            "model=\"plain\",alias=\"champion\"",
        )
    };
    assert!(state() > 0.0);
    assert_eq!(gateway.metric("loopgate_breakers_opened_total", ""), 1.0);
    // With nobody to answer instead it is refused, or tried where it is time to.
    let pinned = infer("/versions/2", 1.0);
    assert!(
        pinned.status == 200 || pinned.status == 503 && says_when(&pinned),
        "{pinned:?}"
    );
    // Copies of what is asked now find out that it works again.
    eventually(|| reason(&infer("", 1.0)).is_empty());
    assert_eq!(infer("/versions/2", 1.0).status, 200);
    assert_eq!(state(), 0.0);
    let failed = gateway.metric("loopgate_requests_total", "outcome=\"failed\"");
    assert_eq!(failed, 0.0);
    gateway.drain();
}
