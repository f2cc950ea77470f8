//! The programs under test as child processes: commands that end, and a gateway that stays.

use std::fs::File;
use std::io::Read as _;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::Lane;
use crate::machine::{children_cpu, command_on, peak_resident_bytes};

const READY_WITHIN: Duration = Duration::from_secs(60);
const DRAIN_WITHIN: Duration = Duration::from_secs(60);

/// Runs `program arguments` to its end and returns its standard output; its log goes to `log`.
pub(crate) fn run(program: &Path, arguments: &[&str], log: &Path) -> Result<String> {
    let errors = File::options().create(true).append(true).open(log)?;
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(errors)
        .output()
        .with_context(|| format!("cannot run {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "`{} {}` ended with {}; its log is {}",
            program.display(),
            arguments.join(" "),
            output.status,
            log.display()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What a command printed and took.
#[derive(Debug, Clone)]
pub(crate) struct Spent {
    pub stdout: String,
    pub wall: Duration,
    /// Of all its threads and children.
    pub cpu: Duration,
    /// Resident, at its highest.
    pub peak_bytes: u64,
}

/// Runs a command to its end; its log goes to `log`. No other child may end meanwhile.
pub(crate) fn run_measured(mut command: Command, log: &Path) -> Result<Spent> {
    const LOOK_EVERY: Duration = Duration::from_millis(5);
    let errors = File::options().create(true).append(true).open(log)?;
    let (before, began) = (children_cpu(), Instant::now());
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    // Beside the wait: a pipe holds 64 KiB, and a command that fills it waits for its reader.
    let pipe = child.stdout.take();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut text))
            .map(|_| text)
    });
    let mut peak_bytes = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        peak_bytes = peak_resident_bytes(child.id()).max(peak_bytes);
        std::thread::sleep(LOOK_EVERY);
    };
    let wall = began.elapsed();
    let stdout = reader.join().expect("reading does not panic")?;
    ensure!(
        status.success(),
        "{command:?} ended with {status}; its log is {}",
        log.display()
    );
    Ok(Spent {
        stdout,
        wall,
        cpu: children_cpu().saturating_sub(before),
        peak_bytes,
    })
}

/// The four addresses of a gateway.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub metrics: SocketAddr,
}

impl Addresses {
    /// Four loopback ports that were free a moment ago.
    pub(crate) fn free() -> Result<Self> {
        let held = (0..4)
            .map(|_| TcpListener::bind("127.0.0.1:0"))
            .collect::<Result<Vec<_>, _>>()?;
        let at = |k: usize| held[k].local_addr();
        Ok(Self {
            http: at(0)?,
            grpc: at(1)?,
            admin: at(2)?,
            metrics: at(3)?,
        })
    }
}

/// Which gateway, on which project, where.
pub(crate) struct Start<'a> {
    pub loopgate: &'a Path,
    pub project: &'a Path,
    pub log: &'a Path,
    /// The core that it stays on, if any.
    pub core: Option<usize>,
}

/// A running gateway; killed when dropped without [`Gateway::drain`].
pub(crate) struct Gateway {
    child: Child,
    pub addresses: Addresses,
}

impl Gateway {
    /// Starts `loopgate serve` on the project and waits until it is ready.
    pub(crate) async fn start(start: &Start<'_>) -> Result<Self> {
        let addresses = Addresses::free()?;
        let child = command_on(start.core, start.loopgate)
            .arg("serve")
            .arg("--project")
            .arg(start.project)
            .args(["--http", &addresses.http.to_string()])
            .args(["--grpc", &addresses.grpc.to_string()])
            .args(["--admin", &addresses.admin.to_string()])
            .args(["--metrics", &addresses.metrics.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(start.log)?)
            .spawn()
            .with_context(|| format!("cannot start {}", start.loopgate.display()))?;
        let mut gateway = Self { child, addresses };
        gateway.wait_ready(start.log).await?;
        Ok(gateway)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    async fn wait_ready(&mut self, log: &Path) -> Result<()> {
        let started = Instant::now();
        let mut lane = Lane::new(self.addresses.http);
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the gateway ended with {status}; its log is {}",
                    log.display()
                );
            }
            if let Ok(answer) = lane.get("/v2/health/ready").await
                && answer.status.is_success()
            {
                return Ok(());
            }
            if started.elapsed() > READY_WITHIN {
                bail!(
                    "the gateway was not ready within {READY_WITHIN:?}; its log is {}",
                    log.display()
                );
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks the gateway to drain (SIGTERM) and waits for its end.
    pub(crate) async fn drain(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let asked = Instant::now();
        while asked.elapsed() < DRAIN_WITHIN {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("the gateway ended its drain with {status}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        bail!("the gateway did not drain within {DRAIN_WITHIN:?}")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Already ended after a drain: both calls then fail, which is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// The first line of what `program --version`-like commands print, for the report.
pub(crate) fn first_line(program: &str, arguments: &[&str], folder: &Path) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}
