//! HTTP beneath the protocol: both versions on one port, and every way to send a body.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};

use super::{ROWS, assert_scores, gateway};
use crate::onnx::affine;
use crate::patience::{PATIENCE, eventually, eventually_some};
use crate::process::{Gateway, Setup};
use crate::wire::request;

const INFER: &str = "/v2/models/affine/infer";

fn body() -> String {
    format!(r#"{{"inputs":[{ROWS}]}}"#)
}

#[test]
fn a_client_that_waits_to_be_told_is_told() {
    let gateway = gateway();
    let mut connection = gateway.connect();
    let mut large = body();
    large.push_str(&" ".repeat(2 << 20));
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        large.len()
    );
    connection.send(head.as_bytes()).unwrap();
    assert_eq!(connection.receive().unwrap().unwrap().status, 100);
    connection.send(large.as_bytes()).unwrap();
    assert_scores(&connection.receive().unwrap().unwrap());
    // What is refused by its head is not asked for.
    let head = head.replace(&large.len().to_string(), "99999999999");
    connection.send(head.as_bytes()).unwrap();
    assert_eq!(connection.receive().unwrap().unwrap().status, 413);
}

#[test]
fn a_body_may_come_in_chunks() {
    let gateway = gateway();
    let mut connection = gateway.connect();
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    connection.send(head.as_bytes()).unwrap();
    for part in body().as_bytes().chunks(7) {
        let chunk = [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
        connection.send(&chunk).unwrap();
    }
    connection.send(b"0\r\n\r\n").unwrap();
    assert_scores(&connection.receive().unwrap().unwrap());
}

#[test]
fn pipelined_requests_are_answered_in_their_order() {
    let gateway = gateway();
    let mut connection = gateway.connect();
    let ask = |id: usize| {
        let body = format!(r#"{{"id":"{id}","inputs":[{ROWS}]}}"#);
        request("POST", INFER, &[], body.as_bytes())
    };
    let bytes: Vec<u8> = (0..20).flat_map(ask).collect();
    connection.send(&bytes).unwrap();
    for id in 0..20 {
        let reply = connection.receive().unwrap().unwrap();
        assert_scores(&reply);
        assert_eq!(reply.json()["id"], json!(id.to_string()));
    }
}

/// Sends requests over one HTTP/2 connection, all at once, and returns their answers.
fn over_http2(gateway: &Gateway, requests: &[(&str, String)]) -> Vec<(StatusCode, Value)> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
        let connection = runtime.spawn(connection);
        let answers = requests.iter().map(|(path, body)| {
            let mut sender = sender.clone();
            let method = if body.is_empty() { "GET" } else { "POST" };
            let request = Request::builder()
                .method(method)
                .uri(format!("http://{}{path}", gateway.http))
                .body(Full::new(Bytes::from(body.clone())))
                .unwrap();
            runtime.spawn(async move {
                sender.ready().await.unwrap();
                let response = sender.send_request(request).await.unwrap();
                let status = response.status();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                (status, serde_json::from_slice(&body).unwrap())
            })
        });
        let mut collected = Vec::new();
        for answer in answers.collect::<Vec<_>>() {
            let answer = tokio::time::timeout(PATIENCE, answer).await;
            collected.push(answer.unwrap().unwrap());
        }
        drop(sender);
        connection.abort();
        collected
    })
}

#[test]
fn http_2_shares_the_port_and_answers_many_at_once() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("affine", affine(&[1.0, 10.0], 0.5))],
        config: "[serving]\ndeadline_ms = 20000",
        ..Setup::default()
    });
    let mut requests: Vec<(&str, String)> = (0..150).map(|_| (INFER, body())).collect();
    requests.push(("/v2/health/ready", String::new()));
    requests.push(("/v2/models/none", String::new()));
    requests.push((INFER, "{".to_owned()));
    requests.push((INFER, format!("{}{}", body(), " ".repeat(300_000))));
    let answers = over_http2(&gateway, &requests);
    let (inferred, others) = answers.split_at(150);
    for (status, answer) in inferred.iter().chain(&others[3..]) {
        assert_eq!(*status, 200);
        assert_eq!(answer["outputs"][0]["data"], json!([21.5, 43.5]));
    }
    assert_eq!(
        others[0],
        (StatusCode::OK, json!({"ready": true, "live": true}))
    );
    assert_eq!(
        (others[1].0, others[2].0),
        (StatusCode::NOT_FOUND, StatusCode::BAD_REQUEST)
    );
    // The same port, the other version.
    assert_scores(&gateway.post(INFER, &body()));
}

#[test]
fn a_drain_ends_http_2_connections() {
    let gateway = gateway();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
        let (sender, connection) =
            http2::handshake::<_, _, Full<Bytes>>(TokioExecutor::new(), TokioIo::new(stream))
                .await
                .unwrap();
        gateway.terminate();
        // Ends when the gateway says goodbye and closes.
        let ended = tokio::time::timeout(PATIENCE, connection).await;
        assert!(ended.is_ok());
        drop(sender);
    });
    gateway.drain();
}

#[test]
fn an_offer_to_upgrade_is_passed_over() {
    let gateway = gateway();
    let headers = [
        ("connection", "upgrade, http2-settings"),
        ("upgrade", "h2c"),
        ("http2-settings", "AAMAAABkAAQAAP__"),
    ];
    let mut connection = gateway.connect();
    assert_scores(&connection.request("POST", INFER, &headers, body().as_bytes()));
    assert_scores(&connection.request("POST", INFER, &[], body().as_bytes()));
}

#[test]
fn a_silent_http_2_client_is_closed() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("affine", affine(&[1.0, 10.0], 0.5))],
        config: "[http]\nheader_timeout_ms = 300",
        ..Setup::default()
    });
    // The preface and nothing after it; half a preface.
    for sent in [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], b"PRI * HTTP"] {
        let mut connection = gateway.connect();
        drop(connection.send(sent));
        // Frames of the gateway may come before the end, a byte with each look.
        assert!((0..1000).any(|_| connection.is_closed()));
    }
    // A client that is itself too slow is closed too.
    let good = request("POST", INFER, &[], body().as_bytes());
    assert_scores(&eventually_some(|| gateway.connect().try_request(&good)));
}

#[test]
fn a_client_that_leaves_gives_its_place_back() {
    let gateway = gateway();
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9\r\n\r\n"
    );
    let mut gone = gateway.connect();
    gone.send(head.as_bytes()).unwrap();
    assert_eq!(gone.receive().unwrap().unwrap().status, 100);
    assert_eq!(gateway.metric("loopgate_in_flight", ""), 1.0);
    drop(gone);
    eventually(|| gateway.metric("loopgate_in_flight", "") == 0.0);
}
