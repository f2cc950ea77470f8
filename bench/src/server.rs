//! Any HTTP server under test as a child process: the bare one, and the peers.

use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::client::{Answer, Lane};
use crate::load::Call;
use crate::machine::command_on;

const PROBE_EVERY: Duration = Duration::from_millis(50);
/// How long a server asked to end may take before its whole group is killed.
const END_WITHIN: Duration = Duration::from_secs(5);

/// A running server, in a process group of its own; killed with the group when dropped.
pub(crate) struct Server {
    child: Child,
    pub address: SocketAddr,
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Server {
    /// Starts `command` and waits until it answers `probe` with status 200.
    pub(crate) async fn start(
        mut command: Command,
        address: SocketAddr,
        log: &Path,
        probe: &Call,
        within: Duration,
    ) -> Result<(Self, Answer)> {
        let output = File::create(log)?;
        let program = command.get_program().to_owned();
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let mut server = Self { child, address };
        let started = Instant::now();
        let mut refused = String::new();
        while started.elapsed() < within {
            if let Some(status) = server.child.try_wait()? {
                bail!("ended with {status}; its log is {}", log.display());
            }
            match ask(address, probe).await {
                Ok(answer) if answer.status.is_success() => return Ok((server, answer)),
                Ok(answer) => refused = answer.status.to_string(),
                Err(error) => refused = error.to_string(),
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
        bail!(
            "no answer within {within:?} ({refused}); its log is {}",
            log.display()
        )
    }

    /// A hyper server on `core` that answers `answer` to everything.
    pub(crate) async fn bare(
        core: Option<usize>,
        folder: &Path,
        probe: &Call,
        answer: &[u8],
        header_length: Option<usize>,
    ) -> Result<Self> {
        let file = folder.join("answer");
        std::fs::write(&file, answer)?;
        let address = free_address()?;
        let mut command = command_on(core, &std::env::current_exe()?);
        command.arg("bare").args(["--http", &address.to_string()]);
        command.arg("--answer").arg(&file);
        if let Some(length) = header_length {
            command.args(["--header-length", &length.to_string()]);
        }
        let log = folder.join("bare.log");
        let (server, _) = Self::start(command, address, &log, probe, END_WITHIN).await?;
        Ok(server)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the group to end and waits for its first process.
    pub(crate) async fn stop(mut self) {
        // Fails where the group is gone, which is what was wanted.
        let _gone = kill_process_group(Pid::from_child(&self.child), Signal::TERM);
        let asked = Instant::now();
        while asked.elapsed() < END_WITHIN && matches!(self.child.try_wait(), Ok(None)) {
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails where the group is gone, which is what was wanted.
        let _gone = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        drop(self.child.wait());
    }
}

/// One call on a connection of its own.
pub(crate) async fn ask(address: SocketAddr, call: &Call) -> Result<Answer> {
    let mut request = hyper::Request::builder()
        .method(hyper::Method::POST)
        .uri(&call.path)
        .header("host", address.to_string());
    for (name, value) in &call.headers {
        request = request.header(*name, value);
    }
    let body = http_body_util::Full::new(call.body.clone());
    Lane::new(address).call(request.body(body)?).await
}
