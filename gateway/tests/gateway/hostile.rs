//! Clients that take what a machine has little of: descriptors, buffers, lines of the log.

use std::io::{BufRead, ErrorKind};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use crate::onnx::affine;
use crate::patience::eventually;
use crate::process::{Gateway, Setup};
use crate::wire::{Connection, request};

const INFER: &str = "/v2/models/m/infer";
const GOOD: &str = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;

fn setup(config: &str) -> Setup<'_> {
    Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        config,
        ..Setup::default()
    }
}

#[test]
fn running_out_of_descriptors_ends_no_listener() {
    let gateway = Gateway::with_models(&setup(""));
    let mut held = gateway.connect();
    assert_eq!(held.post(INFER, GOOD).status, 200);
    let pid = Pid::from_raw(gateway.pid().try_into().unwrap());
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .unwrap()
        .count() as u64;
    let limit = |files: u64| Rlimit {
        current: Some(files),
        maximum: Some(4096),
    };
    prlimit(pid, Resource::Nofile, limit(open + 20)).unwrap();
    // The kernel takes more than the gateway can.
    let addresses = [gateway.http, gateway.grpc, gateway.admin, gateway.metrics];
    let crowd: Vec<_> = (0..120)
        .map(|k| Connection::open(addresses[k % 4]).unwrap())
        .collect();
    let full = || {
        std::fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
            .unwrap()
            .count() as u64
    };
    eventually(|| full() >= open + 20);
    // Who is in is served.
    assert_eq!(held.post(INFER, GOOD).status, 200);
    drop(crowd);
    for address in [gateway.http, gateway.admin, gateway.metrics] {
        let mut connection = Connection::open(address).unwrap();
        connection
            .send(b"GET /v2 HTTP/1.1\r\nhost: localhost\r\n\r\n")
            .unwrap();
        assert!(connection.receive().unwrap().is_some(), "{address}");
    }
}

#[test]
fn a_client_that_never_reads_is_cut_off() {
    let gateway = Gateway::with_models(&setup("[http]\nwrite_timeout_ms = 200"));
    let mut connection = gateway.connect();
    let many = request("GET", "/v2/models/m", &[], b"").repeat(1000);
    let ended = (0..10_000).find_map(|_| connection.send(&many).err());
    let kind = ended.expect("the gateway buffers without end").kind();
    assert!(
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{kind:?}"
    );
    assert_eq!(gateway.post(INFER, GOOD).status, 200);
}

#[test]
fn what_a_caller_sends_cannot_write_lines_of_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut gateway = Gateway::with_models(&Setup {
        log: Some(&path),
        ..setup("")
    });
    let forged = "%0D%0A2031-01-01T00:00:00Z%20ERROR%20forged%1B[31m";
    for (address, method, target) in [
        (gateway.http, "GET", format!("/v2/models/{forged}")),
        (gateway.http, "POST", format!("/v1/events/{forged}")),
        (
            gateway.http,
            "GET",
            format!("/v2/models/m/versions/{forged}"),
        ),
        (gateway.admin, "POST", format!("/v1/models/{forged}/train")),
        (gateway.admin, "POST", format!("/v1/features/{forged}")),
    ] {
        let mut connection = Connection::open(address).unwrap();
        let head = format!("{method} {target} HTTP/1.1\r\nhost: localhost\r\na: \u{9b}31m\r\n\r\n");
        connection.send(head.as_bytes()).unwrap();
        let reply = connection.receive().unwrap().unwrap();
        assert!(
            (400..500).contains(&reply.status),
            "{target}: {}",
            reply.status
        );
        assert!(!reply.body.contains(&0x1b), "{target}");
    }
    gateway.terminate();
    assert!(gateway.wait().success());
    let log = std::fs::read(&path).unwrap();
    assert!(!log.contains(&0x1b));
    let log = String::from_utf8_lossy(&log);
    assert!(log.contains("draining"), "{log}");
    for line in log.lines() {
        assert!(!line.starts_with("2031-"), "{line}");
    }
}

#[test]
fn one_framing_holds_where_two_are_named_and_nothing_is_upgraded() {
    let gateway = Gateway::with_models(&setup(""));
    let chunked = format!("{:x}\r\n{GOOD}\r\n0\r\n\r\n", GOOD.len());
    let last = request("GET", "/v2/health/live", &[("connection", "close")], b"");
    // RFC 9112, 6.3: the coding overrides the length, in either order and however long, and nothing
    // is answered on that connection again.
    for (length, first) in [
        (0, true),
        (4, false),
        (4, true),
        (100_000, true),
        (100_000, false),
    ] {
        let (length, coding) = (
            format!("content-length: {length}\r\n"),
            "transfer-encoding: chunked\r\n",
        );
        let framing = match first {
            true => format!("{length}{coding}"),
            false => format!("{coding}{length}"),
        };
        let mut connection = gateway.connect();
        let head = format!("POST {INFER} HTTP/1.1\r\nhost: x\r\n{framing}\r\n{chunked}");
        connection.send(head.as_bytes()).unwrap();
        // It may be closed already.
        drop(connection.send(&last));
        let mut statuses = Vec::new();
        while let Ok(Some(reply)) = connection.receive() {
            statuses.push(reply.status);
        }
        assert_eq!(statuses, [200], "{framing}");
    }
    for upgrade in ["h2c", "websocket", "TLS/1.0"] {
        let headers = [("connection", "upgrade"), ("upgrade", upgrade)];
        let mut connection = gateway.connect();
        assert_eq!(
            connection
                .request("POST", INFER, &headers, GOOD.as_bytes())
                .status,
            200
        );
        assert_eq!(connection.request("GET", "/v2", &headers, b"").status, 200);
    }
    let mut tunnel = gateway.connect();
    tunnel
        .send(b"CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let reply = tunnel.receive().unwrap().unwrap();
    assert!((400..500).contains(&reply.status), "{}", reply.status);
}

#[test]
fn bodies_that_swell_in_memory_do_so_one_at_a_time() {
    const CLIENTS: usize = 64;
    const BODY: usize = 1 << 20;
    let gateway = Gateway::with_models(&setup(""));
    assert_eq!(gateway.post(INFER, GOOD).status, 200);
    let filled = |open: &str, unit: &str, close: &str| {
        let count = (BODY - open.len() - close.len()) / unit.len();
        format!("{open}{}{close}", unit.repeat(count))
    };
    let data = |datatype: &str| {
        format!(r#"{{"inputs":[{{"name":"features","shape":[1,1],"datatype":"{datatype}","data":["#)
    };
    let keys: String = (0..BODY / 10).map(|k| format!("\"{k:06}\":0,")).collect();
    let bodies = [
        filled(r#"{"inputs":["#, "{},", "{}]}"),
        filled(&data("FP32"), "[],", "[]]}]}"),
        filled(&data("FP64"), "0,", "0]}]}"),
        filled(&data("BYTES"), "\"\",", "\"\"]}]}"),
        format!(r#"{{"parameters":{{{keys}"x":0}},"inputs":[]}}"#),
    ];
    let before = gateway.resident_kib();
    for body in &bodies {
        let bytes = request("POST", INFER, &[], body.as_bytes());
        let (last, most) = bytes.split_last().unwrap();
        // Every body is there but for its last byte; then they are all read.
        let mut clients: Vec<Connection> = (0..CLIENTS).map(|_| gateway.connect()).collect();
        for client in &mut clients {
            client.send(most).unwrap();
        }
        for client in &mut clients {
            client.send(&[*last]).unwrap();
        }
        for client in &mut clients {
            assert_eq!(client.receive().unwrap().unwrap().status, 400);
        }
    }
    let grown = gateway.memory_kib("VmHWM").saturating_sub(before);
    println!("{grown} KiB more at most");
    assert!(grown <= CLIENTS as u64 * (4 << 10), "{grown} KiB");
    assert_eq!(gateway.post(INFER, GOOD).status, 200);
}

#[test]
fn no_error_of_an_accept_ends_a_listener() {
    let gateway = Gateway::with_models(&setup(""));
    let addresses = [gateway.http, gateway.grpc, gateway.admin, gateway.metrics];
    // Connections that are reset before they are taken.
    for k in 0..200 {
        let stream = std::net::TcpStream::connect(addresses[k % 4]).unwrap();
        let socket = socket2::Socket::from(stream);
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
    for error in ["ECONNABORTED", "EMFILE", "EPERM", "EINVAL", "ENOBUFS"] {
        let Some(_failing) = Failing::accepts(&gateway, error) else {
            println!("SKIPPED {error}: strace cannot be had, or may not trace");
            continue;
        };
        for k in 0..40 {
            // Whatever the answer is: it was taken.
            let mut connection = Connection::open(addresses[k % 4]).unwrap();
            let asked = request("GET", "/", &[("connection", "close")], b"");
            connection.send(&asked).unwrap();
            assert!(connection.is_answered(), "{error} {k}");
        }
    }
    assert_eq!(gateway.post(INFER, GOOD).status, 200);
}

/// Every third accept of a gateway fails while this lives.
struct Failing(std::process::Child);

impl Failing {
    fn accepts(gateway: &Gateway, error: &str) -> Option<Self> {
        let mut strace = std::process::Command::new("strace")
            .args(["-f", "-e", "trace=accept4", "-o", "/dev/null"])
            .args(["-e", &format!("inject=accept4:error={error}:when=1+3")])
            .args(["-p", &gateway.pid().to_string()])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .ok()?;
        let stderr = std::io::BufReader::new(strace.stderr.take().unwrap());
        let said = stderr.lines().next();
        let failing = Self(strace);
        said?.ok()?.contains("attached").then_some(failing)
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
