//! What an operator has at hand: a small project, the command line and the admin interface.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::Value;

use crate::patience::{PATIENCE, PAUSE};
use crate::process::{Gateway, patient};
use crate::wire::{Connection, Reply};

/// Counts and sums of clicks by user; the service's columns are `base`, the count and the sum.
const FEATURES: &str = r#"
[[source]]
name = "clicks"
time = "at"
id = ["id"]
fields = { id = "int", user = "string", at = "time", amount = "float" }

[[entity]]
name = "user"
keys = ["user"]

[[view]]
name = "user_clicks"
source = "clicks"
keys = ["user"]
windows = ["7d"]
features = [{ count = true }, { sum = "amount" }]

[[service]]
name = "score"
version = 1
request = { user = "string", base = "float" }
features = [{ request = "base" }, { view = "user_clicks", default = 0 }]
"#;

/// A project in a folder of its own: model `plain` takes tensors, `bound` goes through the service.
pub(crate) struct Project {
    folder: tempfile::TempDir,
}

impl Project {
    pub(crate) fn new(settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        write("loopgate.toml", &patient(settings));
        write("features.toml", FEATURES);
        write("models/plain.toml", "fallback = [\"fallback\"]");
        write(
            "models/bound.toml",
            "service = \"score\"\nfallback = [\"fallback\"]",
        );
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn serve(&self) -> Gateway {
        Gateway::with_project(self.path())
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// Runs a command on the project.
    pub(crate) fn command(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_loopgate"))
            .args(&arguments[..2])
            .arg("--project")
            .arg(self.path())
            .args(&arguments[2..])
            .stdin(Stdio::null())
            .env("LOOPGATE_LOG", "warn")
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed and returns what it printed.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        let problem = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {problem}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that must fail and returns its complaint.
    pub(crate) fn fails(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Registers a model file.
    pub(crate) fn register(&self, model: &str, onnx: &[u8]) {
        let file = self.write("candidate.onnx", onnx);
        self.done(&["model", "register", file.to_str().unwrap(), "--name", model]);
    }

    /// Where the file of a version lies.
    pub(crate) fn artifact(&self, model: &str, version: usize) -> PathBuf {
        let shown: Value = serde_json::from_str(&self.done(&["model", "show", model])).unwrap();
        let digest = shown["versions"][version - 1]["artifact"].as_str().unwrap();
        let folder = self.path().join("data/artifacts/sha256");
        folder.join(&digest[..2]).join(digest)
    }

    /// Tries to register a model file that must be refused.
    pub(crate) fn register_refused(&self, model: &str, onnx: &[u8]) -> String {
        let file = self.write("candidate.onnx", onnx);
        self.fails(&["model", "register", file.to_str().unwrap(), "--name", model])
    }
}

/// A connection to the admin interface.
pub(crate) struct Operator(Connection);

impl Operator {
    pub(crate) fn of(gateway: &Gateway) -> Self {
        Self(Connection::open(gateway.admin).unwrap())
    }

    pub(crate) fn get(&mut self, path: &str) -> Reply {
        self.call("GET", path, &["host: localhost"], "")
    }

    pub(crate) fn post(&mut self, path: &str, body: &Value) -> Reply {
        self.call("POST", path, &["host: localhost"], &body.to_string())
    }

    /// A request with these headers; a body comes as JSON where they do not say otherwise.
    pub(crate) fn call(&mut self, method: &str, path: &str, headers: &[&str], body: &str) -> Reply {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        for header in headers {
            head.push_str(&format!("{header}\r\n"));
        }
        let is_typed = headers
            .iter()
            .any(|header| header.starts_with("content-type:"));
        if !body.is_empty() && !is_typed {
            head.push_str("content-type: application/json\r\n");
        }
        let length = body.len();
        self.0
            .send(format!("{head}content-length: {length}\r\n\r\n{body}").as_bytes())
            .unwrap();
        self.0.receive().unwrap().expect("a response")
    }

    /// The answer to a call that must succeed.
    pub(crate) fn ask(&mut self, path: &str) -> Value {
        let reply = self.get(path);
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()
    }

    /// Asks again until the answer is as wanted.
    pub(crate) fn until(&mut self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let answer = self.ask(path);
            if wanted(&answer) {
                return answer;
            }
            assert!(started.elapsed() < PATIENCE, "{path} stays {answer}");
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until the gateway serves what the registry intends and its loops have settled.
    pub(crate) fn settled(&mut self, generation: i64) -> Value {
        self.until("/v1/loop", |view| {
            view["busy"] == false && view["loaded_generation"].as_i64() >= Some(generation)
        })
    }
}
