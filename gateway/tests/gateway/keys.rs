//! Keys: who may call what, and how soon a key is worth nothing.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::Deserialize;

use crate::h2;
use crate::onnx::affine;
use crate::patience::eventually;
use crate::process::{Gateway, Setup, refused};
use crate::wire::{Connection, Reply, request};

const INFER: &str = "/v2/models/m/infer";
const GOOD: &str = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;
const SCOPES: [&str; 3] = ["predict", "write", "admin"];

/// A file of keys and the command that changes it.
pub(crate) struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    pub(crate) fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("keys.toml")
    }

    fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_loopgate"))
            .args(["key", arguments[0], "--file"])
            .arg(self.path())
            .args(&arguments[1..])
            .output()
            .unwrap()
    }

    fn done(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {problem}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A new key with one scope.
    pub(crate) fn create(&self, scope: &str, more: &[&str]) -> String {
        let mut arguments = vec!["create", "--scope", scope];
        arguments.extend(more);
        self.done(&arguments)
    }

    fn revoke(&self, key: &str) {
        self.done(&["revoke", id(key)]);
    }

    /// Settings that ask for these keys.
    pub(crate) fn required(&self) -> String {
        format!("[keys]\nrequired = true\nfile = {:?}\n", self.path())
    }
}

fn id(key: &str) -> &str {
    key.split('_').nth(1).unwrap()
}

fn gateway(config: &str, arguments: &[&str]) -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        config,
        arguments: arguments.to_vec(),
        ..Setup::default()
    })
}

fn infer(connection: &mut Connection, key: Option<&str>) -> Reply {
    let bearer = key.map(|key| format!("Bearer {key}"));
    let headers: Vec<_> = bearer
        .iter()
        .map(|bearer| ("authorization", &**bearer))
        .collect();
    connection.request("POST", INFER, &headers, GOOD.as_bytes())
}

/// Asks until the answer is as wanted.
fn until(connection: &mut Connection, key: &str, status: u16) {
    eventually(|| infer(connection, Some(key)).status == status);
}

#[derive(Deserialize)]
struct Row {
    listener: String,
    method: String,
    path: String,
    access: String,
}

impl Row {
    /// The path with something for each name.
    fn filled(&self) -> String {
        let filled = self.path.replace("{model}", "m").replace("{version}", "1");
        let filled = filled.replace("{alias}", "champion").replace("{run}", "r");
        let filled = filled
            .replace("{source}", "any")
            .replace("{service}", "any")
            .replace("{name}", "any");
        assert!(
            !filled.contains('{'),
            "`{filled}`: say what to put for this name"
        );
        filled
    }
}

/// The route tables, from the program that serves them.
fn routes() -> Vec<Row> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
    let output = command.arg("routes").output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn status(address: SocketAddr, method: &str, path: &str, key: Option<&str>) -> Reply {
    let mut connection = Connection::open(address).unwrap();
    let bearer = key.map(|key| format!("authorization: Bearer {key}\r\n"));
    let bearer = bearer.unwrap_or_default();
    let head =
        format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n{bearer}content-length: 0\r\n\r\n");
    connection.send(head.as_bytes()).unwrap();
    connection.receive_head().unwrap().expect("a response")
}

#[test]
fn every_route_asks_for_its_scope_and_takes_its_methods_only() {
    const METHODS: [&str; 9] = [
        "GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW",
    ];
    let keys = Keys::new();
    let held = SCOPES.map(|scope| keys.create(scope, &[]));
    let gateway = gateway(&keys.required(), &[]);
    let routes = routes();
    assert!(routes.len() > 30);
    let listeners = [("http", gateway.http), ("admin", gateway.admin)];
    let mut asked = 0;
    for (listener, address) in listeners {
        let rows: Vec<&Row> = routes
            .iter()
            .filter(|row| row.listener == listener)
            .collect();
        let paths: BTreeSet<String> = rows.iter().map(|row| row.filled()).collect();
        for (path, method) in paths
            .iter()
            .flat_map(|path| METHODS.map(|method| (path, method)))
        {
            let row = rows
                .iter()
                .find(|row| row.filled() == *path && row.method == method);
            let mut callers = vec![(None, "no")];
            callers.extend(
                held.iter()
                    .zip(SCOPES)
                    .map(|(key, scope)| (Some(&**key), scope)),
            );
            for (key, scope) in callers {
                asked += 1;
                let reply = status(address, method, path, key);
                let shown = format!(
                    "{listener} {method} {path} with {scope} key: {}",
                    reply.status
                );
                match row {
                    None => {
                        assert_eq!(reply.status, 405, "{shown}");
                        assert!(reply.header("allow").is_some(), "{shown}");
                    }
                    Some(row) if row.access == "open" || row.access == scope => {
                        assert!(![401, 403, 405].contains(&reply.status), "{shown}");
                    }
                    Some(_) if key.is_none() => {
                        assert_eq!(reply.status, 401, "{shown}");
                        let challenge = reply.header("www-authenticate").unwrap();
                        assert!(challenge.starts_with("Bearer"), "{shown}");
                    }
                    Some(_) => assert_eq!(reply.status, 403, "{shown}"),
                }
            }
        }
    }
    assert!(asked > 500, "{asked}");
}

#[test]
fn every_grpc_method_asks_for_its_scope() {
    const UNAUTHENTICATED: i32 = 16;
    const PERMISSION_DENIED: i32 = 7;
    let keys = Keys::new();
    let held = SCOPES.map(|scope| keys.create(scope, &[]));
    let gateway = gateway(&keys.required(), &[]);
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().unwrap();
    let refusal = |path: &str, key: Option<&str>| {
        runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(gateway.grpc).await.unwrap();
            h2::refusal(stream, path, key).await
        })
    };
    let rows: Vec<Row> = routes()
        .into_iter()
        .filter(|row| row.listener == "grpc")
        .collect();
    assert!(rows.len() > 5);
    for row in &rows {
        let none = refusal(&row.path, None);
        let open = row.access == "open";
        assert_eq!(none == UNAUTHENTICATED, !open, "{}: {none}", row.path);
        for (key, scope) in held.iter().zip(SCOPES) {
            let code = refusal(&row.path, Some(key));
            let denied = code == PERMISSION_DENIED;
            assert_eq!(
                denied,
                !open && row.access != scope,
                "{} {scope}: {code}",
                row.path
            );
            assert_ne!(code, UNAUTHENTICATED, "{} {scope}", row.path);
        }
    }
    assert_eq!(refusal("/none.Such/Method", None), UNAUTHENTICATED);
}

#[test]
fn only_a_whole_valid_key_opens() {
    let keys = Keys::new();
    let key = keys.create("predict", &[]);
    let other = keys.create("predict", &[]);
    let gateway = gateway(&keys.required(), &[]);
    let mut connection = gateway.connect();
    assert_eq!(infer(&mut connection, Some(&key)).status, 200);
    let crossed = format!("lg_{}_{}", id(&key), other.rsplit('_').next().unwrap());
    let wrong = [
        key[..key.len() - 1].to_owned(),
        format!("{key}0"),
        crossed,
        key.to_uppercase(),
        "lg_".to_owned(),
        "lg__".to_owned(),
        String::new(),
        "ü".repeat(40),
        "x".repeat(8000),
    ];
    for wrong in &wrong {
        let reply = infer(&mut connection, Some(wrong));
        assert_eq!(reply.status, 401, "{wrong}");
        assert!(!reply.text().contains(id(&key)), "{}", reply.text());
    }
    for scheme in ["Basic", "Bearer,", "", "Digest"] {
        let value = format!("{scheme} {key}");
        let reply =
            connection.request("POST", INFER, &[("authorization", &value)], GOOD.as_bytes());
        assert_eq!(reply.status, 401, "{scheme}");
    }
    let bearer = format!("bearer   {key}");
    let one = ("authorization", &*bearer);
    let twice = connection.request("POST", INFER, &[one, one], GOOD.as_bytes());
    assert_eq!(twice.status, 401);
    assert_eq!(
        connection
            .request("POST", INFER, &[one], GOOD.as_bytes())
            .status,
        200
    );
    // An early refusal does not make a request of its body.
    let mut bytes = request(
        "POST",
        INFER,
        &[],
        &request("GET", "/v2/health/live", &[], b""),
    );
    bytes.extend(request(
        "GET",
        "/v2/health/ready",
        &[("connection", "close")],
        b"",
    ));
    let mut raw = gateway.connect();
    raw.send(&bytes).unwrap();
    assert_eq!(raw.receive().unwrap().unwrap().status, 401);
    while let Ok(Some(reply)) = raw.receive() {
        assert!(reply.json().get("ready").is_some(), "{}", reply.text());
    }
}

#[test]
fn a_revoked_key_ends_and_the_others_go_on() {
    let keys = Keys::new();
    let (old, lasting) = (keys.create("predict", &[]), keys.create("predict", &[]));
    let gateway = gateway(&keys.required(), &[]);
    let (mut connection, mut other) = (gateway.connect(), gateway.connect());
    assert_eq!(infer(&mut connection, Some(&old)).status, 200);
    // Two are valid while one takes over from the other.
    let new = keys.create("predict", &[]);
    until(&mut connection, &new, 200);
    assert_eq!(infer(&mut connection, Some(&old)).status, 200);
    keys.revoke(&old);
    eventually(|| {
        assert_eq!(infer(&mut other, Some(&lasting)).status, 200);
        infer(&mut connection, Some(&old)).status == 401
    });
    assert_eq!(infer(&mut connection, Some(&new)).status, 200);

    // A file that is not ours changes nothing; one that is gone opens nothing.
    let refused = || {
        gateway.metric(
            "loopgate_reloads_total",
            "what=\"keys\",outcome=\"refused\"",
        )
    };
    std::fs::write(keys.path(), "version = 1\n[[key]]\n").unwrap();
    eventually(|| refused() >= 1.0);
    assert_eq!(infer(&mut connection, Some(&new)).status, 200);
    std::fs::remove_file(keys.path()).unwrap();
    until(&mut connection, &new, 401);
    assert_eq!(connection.get("/v2/health/live").status, 200);
}

#[test]
fn a_key_over_its_rate_is_told_when_to_come_again() {
    let keys = Keys::new();
    let limited = keys.create("predict", &["--rate", "1/h", "--burst", "3"]);
    let free = keys.create("predict", &[]);
    let gateway = gateway(&keys.required(), &[]);
    let mut connection = gateway.connect();
    for _ in 0..3 {
        assert_eq!(infer(&mut connection, Some(&limited)).status, 200);
    }
    for _ in 0..10 {
        let reply = infer(&mut connection, Some(&limited));
        assert_eq!(reply.status, 429);
        let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
        assert!((3000..=3600).contains(&wait), "{wait}");
        assert_eq!(infer(&mut connection, Some(&free)).status, 200);
    }
    // Making another key gives nobody a fresh quota.
    let new = keys.create("predict", &[]);
    until(&mut connection, &new, 200);
    assert_eq!(infer(&mut connection, Some(&limited)).status, 429);
    assert!(gateway.metric("loopgate_denied_total", "reason=\"rate\"") >= 11.0);
}

#[test]
fn bogus_keys_leave_nothing_behind() {
    let keys = Keys::new();
    let key = keys.create("predict", &[]);
    let gateway = gateway(&keys.required(), &[]);
    let mut connection = gateway.connect();
    let mut flood = |from: u64, count: u64| {
        for k in from..from + count {
            let bogus = format!("lg_{k:012x}_{k:064x}");
            assert_eq!(infer(&mut connection, Some(&bogus)).status, 401);
        }
    };
    flood(0, 2000);
    let before = gateway.resident_kib();
    flood(2000, 20_000);
    let grown = gateway.resident_kib().saturating_sub(before);
    assert!(grown < 8 << 10, "{grown} KiB");
    let denied = gateway.metric("loopgate_denied_total", "reason=\"unknown_key\"");
    assert_eq!(denied, 22_000.0);
    assert_eq!(infer(&mut connection, Some(&key)).status, 200);
}

#[test]
fn a_key_is_shown_once_and_kept_nowhere() {
    let keys = Keys::new();
    let log = keys.folder.path().join("log");
    let held = SCOPES.map(|scope| keys.create(scope, &[]));
    let mut gateway = Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        config: &keys.required(),
        log: Some(&log),
        ..Setup::default()
    });
    for key in &held {
        infer(&mut gateway.connect(), Some(key));
        infer(&mut gateway.connect(), Some(&format!("{key}0")));
        status(gateway.admin, "GET", "/v1/models", Some(key));
        status(gateway.admin, "POST", "/v1/models/m/train", Some(key));
    }
    let page = Connection::open(gateway.metrics).unwrap().get("/metrics");
    let listed = keys.done(&["list"]);
    gateway.terminate();
    assert!(gateway.wait().success());
    let log = std::fs::read_to_string(&log).unwrap();
    let file = std::fs::read_to_string(keys.path()).unwrap();
    // Says by whom a change was asked for.
    assert!(
        log.contains("asked by an operator") && log.contains(id(&held[2])),
        "{log}"
    );
    for key in &held {
        assert!(listed.contains(id(key)));
        let secret = key.rsplit('_').next().unwrap();
        for text in [page.text(), &listed, &log, &file] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}

#[test]
fn a_public_address_starts_with_a_key_and_not_without() {
    let keys = Keys::new();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    std::fs::write(&model, affine(&[1.0], 0.0)).unwrap();
    let model = format!("m={}", model.display());
    let config = folder.path().join("c.toml");
    std::fs::write(&config, format!("[keys]\nfile = {:?}\n", keys.path())).unwrap();
    let config: &Path = &config;
    let refused_with = |listener: &str, told: &str| {
        let config = config.to_str().unwrap();
        let output = refused(&["--model", &model, "--config", config, listener, "0.0.0.0:0"]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && message.contains(told),
            "{message}"
        );
    };
    for listener in ["--http", "--grpc", "--admin", "--metrics"] {
        refused_with(listener, "needs a key");
    }
    let key = keys.create("predict", &[]);
    refused_with("--admin", "[tls]");
    let settings = std::fs::read_to_string(config).unwrap();
    let gateway = gateway(
        &settings,
        &["--http", "0.0.0.0:0", "--metrics", "0.0.0.0:0"],
    );
    let local = |at: SocketAddr| SocketAddr::from(([127, 0, 0, 1], at.port()));
    let mut connection = Connection::open(local(gateway.http)).unwrap();
    assert_eq!(infer(&mut connection, None).status, 401);
    assert_eq!(infer(&mut connection, Some(&key)).status, 200);
    let metrics = local(gateway.metrics);
    assert_eq!(status(metrics, "GET", "/metrics", None).status, 401);
    assert_eq!(status(metrics, "GET", "/metrics", Some(&key)).status, 200);
    keys.revoke(&key);
    until(&mut connection, &key, 401);
}

#[test]
fn the_commands_refuse_what_makes_no_key() {
    let keys = Keys::new();
    for wrong in [
        &["create"][..],
        &["create", "--scope", "root"],
        &["create", "--scope", "predict", "--rate", "fast"],
        &["create", "--scope", "predict", "--burst", "3"],
        &[
            "create", "--scope", "predict", "--rate", "1/s", "--burst", "0",
        ],
        &["revoke", "0123456789ab"],
        &["revoke", "lg_0123456789ab"],
    ] {
        let output = keys.command(wrong);
        assert!(!output.status.success(), "{wrong:?}");
        assert!(
            !output.stderr.is_empty() && output.stdout.is_empty(),
            "{wrong:?}"
        );
    }
    assert!(!keys.path().exists());
    assert_eq!(keys.done(&["list"]), "");
}
