//! Hostile and broken clients: each gets one defined answer, and the next client gets its own.

use crate::onnx::affine;
use crate::patience::{eventually, eventually_some};
use crate::process::{Gateway, Setup};
use crate::wire::{Connection, request};

const INFER: &str = "/v2/models/m/infer";
const GOOD: &str = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;

fn gateway(config: &str) -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        config,
        ..Setup::default()
    })
}

/// Every response that the bytes draw until the connection ends or falls silent.
fn statuses(gateway: &Gateway, bytes: &[u8]) -> Vec<u16> {
    let mut connection = gateway.connect();
    // The peer may close while we still write: what it answered is what counts.
    drop(connection.send(bytes));
    let mut statuses = Vec::new();
    while let Ok(Some(reply)) = connection.receive() {
        statuses.push(reply.status);
    }
    statuses
}

/// Ends the connection after this request, so that [`statuses`] need not wait for a timeout.
fn closing(method: &str, path: &str, body: &[u8]) -> Vec<u8> {
    request(method, path, &[("connection", "close")], body)
}

#[test]
fn garbage_bodies_are_refused_and_the_connection_lives_on() {
    let gateway = gateway("");
    let mut connection = gateway.connect();
    let bomb = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let in_unknown = |n: usize| format!(r#"{{"x":{},{}"#, bomb(n), &GOOD[1..]);
    let in_data = |n: usize| GOOD.replace("[1]}", &format!("{}}}", bomb(n)));
    let last = |n: usize| format!(r#"{},"x":{}}}"#, &GOOD[..GOOD.len() - 1], bomb(n));
    let mut bodies: Vec<Vec<u8>> = [
        "{", "null", "[]", "{}", "\u{feff}{}", "{\"inputs\":[{}]}", "nan", "{\"inputs\":1e999}", "{\"inputs\":[]}x",
        "{\"inputs\":[{\"name\":\"features\",\"shape\":[1,1],\"datatype\":\"FP32\",\"data\":[1e39]}]}",
        "{\"inputs\":[{\"name\":\"features\",\"shape\":[-1,1],\"datatype\":\"FP32\",\"data\":[1]}]}",
        "{\"inputs\":[{\"name\":\"features\",\"shape\":[1099511627776,1],\"datatype\":\"FP32\",\"data\":[1]}]}",
        "{\"inputs\":[{\"name\":\"features\",\"shape\":[1,1],\"datatype\":\"FP16\",\"data\":[1]}]}",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    bodies.push(b"{\"inputs\":\"\xff\xfe\"}".to_vec());
    for depth in [65, 10_000, 1_000_000] {
        bodies.extend(
            [bomb(depth), in_unknown(depth), in_data(depth), last(depth)].map(String::into_bytes),
        );
    }
    let refused = bodies.len();
    for body in bodies {
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        let reply = connection.request("POST", INFER, &[], &body);
        assert_eq!(reply.status, 400, "{shown}");
        let error = reply.error();
        assert!(!error.is_empty() && error.len() < 300, "{shown}: {error}");
        for leak in ["src/", ".rs", "0x", "panicked", "/root", "/tmp"] {
            assert!(!error.contains(leak), "{shown}: {error}");
        }
    }
    assert_eq!(connection.post(INFER, "").status, 400);
    assert_eq!(connection.post(INFER, GOOD).status, 200);
    let counted = gateway.metric(
        "loopgate_requests_total",
        "operation=\"infer\",outcome=\"refused\"",
    );
    assert_eq!(counted, (refused + 1) as f64);
}

#[test]
fn paths_names_and_methods_have_one_answer() {
    let gateway = gateway("");
    let mut connection = gateway.connect();
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/metrics", 404),
        ("GET", "/v1/models", 404),
        ("POST", "/v1/clock", 404),
        ("GET", "/v2/models/none", 404),
        ("POST", "/v2/models/none/infer", 404),
        ("POST", "/v2/models/m/versions/9/infer", 404),
        ("GET", "/v2/models/%2e%2e", 400),
        ("GET", "/v2/models/a%2Fb", 400),
        ("GET", "/v2/models/m%00", 400),
        ("GET", "/v2/models/%zz", 400),
        ("POST", "/v1/events/any", 404),
        ("POST", "/v1/labels", 404),
        ("POST", "/v2/models/m", 405),
        ("GET", "/v2/models/m/infer", 405),
        ("PUT", "/v2/models/m/infer", 405),
        ("DELETE", "/v2/health/live", 405),
        ("PATCH", "/v1/labels", 405),
        ("BREW", "/v2", 405),
    ] {
        let body = if method == "POST" && path.ends_with("infer") {
            GOOD
        } else {
            ""
        };
        let reply = connection.request(method, path, &[], body.as_bytes());
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.text());
        assert!(!reply.error().is_empty());
        assert_eq!(reply.header("allow").is_some(), status == 405);
    }
    assert_eq!(
        connection.get("/v2/models/m/infer").header("allow"),
        Some("POST")
    );
}

#[test]
fn bodies_are_bounded_whatever_their_head_says() {
    let gateway = gateway("[http]\nbody_bytes_max = 1000");
    let padded = |bytes: usize| format!("{GOOD}{}", " ".repeat(bytes - GOOD.len()));
    let mut connection = gateway.connect();
    assert_eq!(connection.post(INFER, &padded(1000)).status, 200);
    let reply = connection.post(INFER, &padded(1001));
    assert_eq!(
        (reply.status, reply.header("connection")),
        (413, Some("close"))
    );
    assert!(connection.is_closed());

    // Only promised, never sent: refused by its head.
    let mut connection = gateway.connect();
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n");
    connection.send(head.as_bytes()).unwrap();
    assert_eq!(connection.receive().unwrap().unwrap().status, 413);

    // Without a length and without an end.
    let mut connection = gateway.connect();
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    connection.send(head.as_bytes()).unwrap();
    let chunk = format!("100\r\n{}\r\n", " ".repeat(256));
    for _ in 0..5 {
        drop(connection.send(chunk.as_bytes()));
    }
    assert_eq!(connection.receive().unwrap().unwrap().status, 413);
}

#[test]
fn chunked_bodies_are_read_even_byte_by_byte() {
    let gateway = gateway("[serving]\ndeadline_ms = 20000");
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n");
    let mut bytes = head.into_bytes();
    for byte in GOOD.bytes().chain(std::iter::repeat_n(b' ', 20_000)) {
        bytes.extend_from_slice(b"1\r\n");
        bytes.push(byte);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"0\r\n\r\n");
    let mut connection = gateway.connect();
    connection.send(&bytes).unwrap();
    assert_eq!(connection.receive().unwrap().unwrap().status, 200);
}

#[test]
fn encodings_that_are_not_offered_are_refused() {
    let gateway = gateway("");
    for encoding in ["br", "zstd", "gzip, deflate"] {
        let headers = [("content-encoding", encoding)];
        let reply = gateway
            .connect()
            .request("POST", INFER, &headers, GOOD.as_bytes());
        assert_eq!(reply.status, 415, "{encoding}");
        assert_eq!(reply.header("accept-encoding"), Some("gzip, deflate"));
        assert!(!reply.error().is_empty());
    }
    let plain = gateway.connect().request(
        "POST",
        INFER,
        &[("content-encoding", "identity")],
        GOOD.as_bytes(),
    );
    assert_eq!(plain.status, 200);
}

#[test]
fn oversized_heads_are_refused() {
    let gateway = gateway("[http]\nheader_bytes_max = 8192");
    let long_header = format!(
        "GET /v2 HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n",
        "x".repeat(1 << 20)
    );
    let many = format!(
        "GET /v2 HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(1000)
    );
    let long_path = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(70_000));
    for head in [long_header, many, long_path] {
        let answered = statuses(&gateway, head.as_bytes());
        assert!(matches!(answered[..], [] | [414 | 431]), "{answered:?}");
    }
    assert_eq!(gateway.get("/v2").status, 200);
}

#[test]
fn ambiguous_framing_never_yields_two_answers_for_one_request() {
    let gateway = gateway("");
    let smuggled = String::from_utf8(closing("GET", "/v2/health/live", b"")).unwrap();
    let post = |headers: &str, body: &str| {
        format!("POST {INFER} HTTP/1.1\r\nhost: x\r\n{headers}\r\n{body}")
    };
    let cases = [
        post(
            "content-length: 4\r\ncontent-length: 5\r\n",
            &format!("{{}}  {smuggled}"),
        ),
        post("content-length: 4, 5\r\n", &format!("{{}}  {smuggled}")),
        post("content-length: -1\r\n", &smuggled),
        post("content-length: +2\r\n", &format!("{{}}{smuggled}")),
        post("content-length: 0x2\r\n", &format!("{{}}{smuggled}")),
        post("transfer-encoding: gzip\r\n", &smuggled),
        post("transfer-encoding: chunked, gzip\r\n", &smuggled),
        post(
            "transfer-encoding: chunked\r\n",
            &format!("zz\r\n{smuggled}"),
        ),
        post(
            "transfer-encoding: chunked\r\n",
            &format!("fffffffffffffffff\r\n{smuggled}"),
        ),
        post(
            "transfer-encoding: chunked\r\n",
            &format!("2\r\n{{}}xx{smuggled}"),
        ),
        post(
            "transfer-encoding : chunked\r\n",
            &format!("0\r\n\r\n{smuggled}"),
        ),
        post(
            "a: b\r\n folded: c\r\ncontent-length: 2\r\n",
            &format!("{{}}{smuggled}"),
        ),
        format!("POST {INFER} HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{smuggled}"),
        format!("GET /v2 HTTP/1.1\nhost: x\n\0\n\n{smuggled}"),
        format!("GET /v2 HTTP/9.9\r\nhost: x\r\n\r\n{smuggled}"),
        format!("GET /v2 extra HTTP/1.1\r\nhost: x\r\n\r\n{smuggled}"),
        "\x16\x03\x01\x02\x00\x01\x00\x01\x7c\x03\x03".to_owned(),
        "\r\n\r\n\r\n\r\nnonsense\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n".to_owned(),
    ];
    for case in cases {
        let answered = statuses(&gateway, case.as_bytes());
        assert!(answered.len() <= 1, "{answered:?} to {case:?}");
        assert!(
            answered.iter().all(|status| (400..500).contains(status)),
            "{answered:?} to {case:?}"
        );
    }
    // A body that is not read does not become the next request.
    let unread = request(
        "POST",
        "/v2/health/live",
        &[("connection", "close")],
        smuggled.as_bytes(),
    );
    assert_eq!(statuses(&gateway, &unread), [405]);
    assert_eq!(gateway.post(INFER, GOOD).status, 200);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let gateway = gateway("");
    let mut bytes = request("GET", "/v2/health/live", &[], b"");
    bytes.extend(request("POST", INFER, &[], GOOD.as_bytes()));
    bytes.extend(request("GET", "/none", &[], b""));
    bytes.extend(closing("GET", "/v2", b""));
    assert_eq!(statuses(&gateway, &bytes), [200, 200, 404, 200]);
}

#[test]
fn slow_and_silent_clients_are_closed() {
    let gateway = gateway("[http]\nheader_timeout_ms = 300\nbody_timeout_ms = 300");
    let mut silent: Vec<Connection> = (0..50).map(|_| gateway.connect()).collect();
    let mut slow_head = gateway.connect();
    drop(slow_head.send(b"GET /v2 HTTP/1.1\r\nhos"));
    // Where we are too slow ourselves we are closed before we have said anything.
    let served = || {
        let mut connection = gateway.connect();
        let bytes = request("POST", INFER, &[], GOOD.as_bytes());
        let reply = connection.try_request(&bytes)?;
        (reply.status == 200).then_some(connection)
    };
    let mut idle = eventually_some(served);
    let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{");
    let mut slow_body = eventually_some(|| {
        let mut connection = gateway.connect();
        let reply = connection.try_request(head.as_bytes())?;
        assert_eq!(reply.status, 408);
        // Who was late with the head is told without a body.
        (!reply.body.is_empty()).then_some(connection)
    });
    // Each read waits until the gateway has ended the connection.
    assert!(slow_body.is_closed());
    // hyper may say 408 before it closes.
    while let Ok(Some(reply)) = slow_head.receive() {
        assert_eq!(reply.status, 408);
    }
    assert!(slow_head.is_closed() && idle.is_closed());
    for connection in &mut silent {
        while let Ok(Some(reply)) = connection.receive() {
            assert_eq!(reply.status, 408);
        }
        assert!(connection.is_closed());
    }
    eventually_some(served);
}

#[test]
fn connections_are_bounded() {
    let gateway = gateway("[http]\nconnections_max = 2");
    let (mut first, mut second) = (gateway.connect(), gateway.connect());
    assert_eq!(
        (first.get("/v2").status, second.get("/v2").status),
        (200, 200)
    );
    let mut third = gateway.connect();
    assert!(third.is_closed());
    drop(first);
    // The place comes free once the gateway has seen the end of the first.
    let reply = eventually_some(|| {
        let mut connection = gateway.connect();
        connection.try_request(&request("GET", "/v2", &[], b""))
    });
    assert_eq!(reply.status, 200);
    assert!(gateway.metric("loopgate_connections_refused_total", "") >= 1.0);
}

#[test]
fn one_address_does_not_take_every_place() {
    let gateway = gateway("[http]\nconnections_per_peer_max = 1");
    let mut first = gateway.connect();
    assert_eq!(first.get("/v2").status, 200);
    assert!(gateway.connect().is_closed());
    let mut other = Connection::open_from([127, 0, 0, 2], gateway.http).unwrap();
    assert_eq!(other.get("/v2").status, 200);
    assert_eq!(first.get("/v2").status, 200);
}

#[test]
fn more_in_flight_than_allowed_is_shed_before_its_body_is_read() {
    let gateway = gateway("[serving]\nin_flight_max = 1");
    let mut holder = gateway.connect();
    let head = format!(
        "POST {INFER} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {}\r\n\r\n",
        GOOD.len()
    );
    holder.send(head.as_bytes()).unwrap();
    // Asked for its body, so it is in.
    assert_eq!(holder.receive().unwrap().unwrap().status, 100);
    let mut other = gateway.connect();
    let shed = other.post(INFER, GOOD);
    assert_eq!((shed.status, shed.header("retry-after")), (429, Some("1")));
    assert!(shed.error().contains("in flight"));
    assert_eq!(other.get("/v2/health/ready").status, 200);
    assert_eq!(gateway.metric("loopgate_in_flight", ""), 1.0);
    holder.send(GOOD.as_bytes()).unwrap();
    assert_eq!(holder.receive().unwrap().unwrap().status, 200);
    assert_eq!(other.post(INFER, GOOD).status, 200);

    // A client that goes away gives its place back.
    let mut gone = gateway.connect();
    gone.send(head.as_bytes()).unwrap();
    assert_eq!(gone.receive().unwrap().unwrap().status, 100);
    drop(gone);
    eventually(|| {
        let status = other.post(INFER, GOOD).status;
        assert!([200, 429].contains(&status), "{status}");
        status == 200
    });
}
