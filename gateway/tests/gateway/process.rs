//! A gateway as a child process on free ports.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::wire::{Connection, Reply};

/// A running gateway; killed when dropped.
pub(crate) struct Gateway {
    child: Child,
    pub(crate) http: SocketAddr,
    pub metrics: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    /// Models and settings; removed with the gateway.
    _folder: tempfile::TempDir,
}

/// What a gateway is started with.
#[derive(Default)]
pub(crate) struct Setup<'a> {
    /// Name and bytes of each model.
    pub models: Vec<(&'a str, Vec<u8>)>,
    /// The text of `loopgate.toml`.
    pub config: &'a str,
    /// Where everything that it has to say goes, instead of our own standard error.
    pub log: Option<&'a Path>,
    pub arguments: Vec<&'a str>,
}

impl Gateway {
    /// Starts `loopgate serve` with models from files and waits until it serves.
    pub(crate) fn with_models(setup: &Setup<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("loopgate.toml");
        std::fs::write(&config, patient(setup.config)).unwrap();
        let mut arguments = vec!["--config".to_owned(), config.display().to_string()];
        for (name, bytes) in &setup.models {
            let path = folder.path().join(format!("{name}.onnx"));
            std::fs::write(&path, bytes).unwrap();
            arguments.extend(["--model".to_owned(), format!("{name}={}", path.display())]);
        }
        arguments.extend(setup.arguments.iter().map(|&argument| argument.to_owned()));
        let mut command = command(&arguments);
        if let Some(log) = setup.log {
            let file = std::fs::File::create(log).unwrap();
            command.stderr(file).env("LOOPGATE_LOG", "trace");
        }
        Self::start(command, folder)
    }

    /// Starts `loopgate serve --project` on a folder that outlives it.
    pub(crate) fn with_project(project: &Path) -> Self {
        let arguments = ["--project".to_owned(), project.display().to_string()];
        Self::start(command(&arguments), tempfile::tempdir().unwrap())
    }

    fn start(mut command: Command, folder: tempfile::TempDir) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let address = |name: &str| {
            let part = line
                .split_whitespace()
                .find_map(|part| part.strip_prefix(name));
            part.unwrap_or_else(|| panic!("no `{name}` in `{line}`"))
                .parse()
                .unwrap()
        };
        Self {
            http: address("http="),
            metrics: address("metrics="),
            grpc: address("grpc="),
            admin: address("admin="),
            child,
            _folder: folder,
        }
    }

    pub(crate) fn connect(&self) -> Connection {
        Connection::open(self.http).unwrap()
    }

    /// Whether a new connection is taken.
    pub(crate) fn try_connect(&self) -> std::io::Result<Connection> {
        Connection::open(self.http)
    }

    pub(crate) fn get(&self, path: &str) -> Reply {
        self.connect().get(path)
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> Reply {
        self.connect().post(path, body)
    }

    /// The sum of a metric's series whose labels contain `labels`.
    pub(crate) fn metric(&self, name: &str, labels: &str) -> f64 {
        let page = Connection::open(self.metrics).unwrap().get("/metrics");
        let text = page.text();
        let series = text.lines().filter(|line| {
            let is_named = line
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']));
            is_named && line.contains(labels)
        });
        series
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
    }

    /// Ends it as a crash would, at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory in KiB by a line of `/proc/PID/status`.
    pub(crate) fn memory_kib(&self, line: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let found = status.lines().find_map(|found| found.strip_prefix(line));
        let found = found
            .unwrap()
            .trim_start_matches(':')
            .trim_end_matches("kB");
        found.trim().parse().unwrap()
    }

    pub(crate) fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS")
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Sends SIGTERM and expects an orderly end.
    pub(crate) fn drain(mut self) {
        self.terminate();
        assert!(self.wait().success());
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Already ended after a drain: both calls then fail, which is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts a project's gateway, sends SIGTERM after a while, whatever it is at, and waits for its end.
pub(crate) fn terminated(project: &Path, after: Duration) -> ExitStatus {
    let mut command = command(&["--project".to_owned(), project.display().to_string()]);
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    child.wait().unwrap()
}

/// Runs `loopgate serve` where it is expected not to serve.
pub(crate) fn refused(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments
        .iter()
        .map(|&argument| argument.to_owned())
        .collect();
    let mut child = command(&arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // Ends at once: with the line of a gateway that serves after all, or with the process.
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    if !line.is_empty() {
        drop(child.kill());
    }
    let mut stderr = Vec::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_end(&mut stderr)
        .unwrap();
    Output {
        status: child.wait().unwrap(),
        stdout: line.into_bytes(),
        stderr,
    }
}

/// The settings, with deadlines that a loaded machine keeps where they say none.
pub(crate) fn patient(settings: &str) -> String {
    const DEADLINE_MS: i64 = 110_000;
    let mut settings: toml::Table = settings.parse().unwrap();
    for (section, key) in [
        ("serving", "deadline_ms"),
        ("ingest", "deadline_ms"),
        ("prepare", "timeout_ms"),
    ] {
        let section = settings.entry(section).or_insert(toml::Table::new().into());
        let section = section.as_table_mut().unwrap();
        section.entry(key).or_insert(DEADLINE_MS.into());
    }
    settings.to_string()
}

fn command(arguments: &[String]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
    command.arg("serve");
    for listener in ["--http", "--grpc", "--admin", "--metrics"] {
        if !arguments.iter().any(|argument| argument == listener) {
            command.args([listener, "127.0.0.1:0"]);
        }
    }
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env("LOOPGATE_LOG", "warn");
    command
}
