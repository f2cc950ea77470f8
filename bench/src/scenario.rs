//! The scenarios: each starts what it measures, loads it, and says what it found.

pub(crate) mod drain;
pub(crate) mod engines;
pub(crate) mod overload;
pub(crate) mod peers;
pub(crate) mod skew;
pub(crate) mod steady;
pub(crate) mod swap;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::deployment::{Deployed, Deployment};
use crate::finding::Finding;
use crate::load::{Call, Load, Tally};
use crate::machine::{Conditions, Cores, process_cpu};
use crate::process::Gateway;
use crate::server::ask;

/// Connections of a closed loop that finds a server's capacity.
const CONNECTIONS: usize = 16;
/// Rows that are sent in turn, so that no branch predictor learns one by heart.
const ROWS: usize = 64;

/// What all scenarios are told.
pub(crate) struct Bench {
    pub loopgate: PathBuf,
    /// Results, logs and projects.
    pub out: PathBuf,
    /// Where results are kept for good, if they are.
    pub record: Option<PathBuf>,
    /// Interleaved runs of which medians are taken.
    pub rounds: usize,
    /// Length of one run.
    pub run: Duration,
    pub seed: u64,
}

impl Bench {
    /// Writes a result where it is kept, and the page of all results beside it.
    pub(crate) fn keep(&self, finding: &Finding) -> Result<()> {
        finding.write(&self.out, self.record.as_deref())?;
        match &self.record {
            Some(record) => write_index(record),
            None => Ok(()),
        }
    }

    /// The folder of one scenario's projects and logs.
    fn folder(&self, scenario: &str) -> Result<PathBuf> {
        let folder = self.out.join(scenario);
        std::fs::create_dir_all(&folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        folder
            .canonicalize()
            .with_context(|| format!("no {}", folder.display()))
    }

    fn server_core() -> Option<usize> {
        Cores::of_machine().map(|cores| cores.server)
    }

    /// A gateway of one serving thread on the server's core.
    async fn deploy(&self, folder: PathBuf, models: Vec<Deployed>) -> Result<Gateway> {
        Deployment {
            loopgate: &self.loopgate,
            folder,
            models,
            features: None,
            serving_threads: 1,
            core: Self::server_core(),
        }
        .start()
        .await
    }

    fn conditions() -> Conditions {
        Conditions::now()
    }

    fn closed(&self, address: std::net::SocketAddr, calls: Vec<Call>) -> Load {
        Load {
            measured: self.run,
            ..Load::closed(address, calls, CONNECTIONS)
        }
    }
}

/// A run, with the processor time that the server took for an answer.
struct Measured {
    tally: Tally,
    server_cpu_us: f64,
}

/// Runs `load` against the server `pid`.
async fn measure(load: Load, pid: u32) -> Result<Measured> {
    let before = process_cpu(pid);
    let tally = load.run_beside().await?;
    let spent = process_cpu(pid).saturating_sub(before);
    Ok(Measured {
        server_cpu_us: spent.as_secs_f64() * 1e6 / tally.sent.max(1) as f64,
        tally,
    })
}

/// The answer to one call, which must be good.
async fn answer(address: std::net::SocketAddr, call: &Call) -> Result<Bytes> {
    let answer = ask(address, call).await?;
    if !answer.status.is_success() {
        bail!(
            "{} answers {}: {}",
            call.path,
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }
    Ok(answer.body)
}

/// A run in which nothing may fail and the generator may not be late.
fn must_be_clean(what: &str, tally: &Tally) -> Result<()> {
    if tally.failed_in_all() > 0 || tally.answered() == 0 {
        bail!("{what}: {:#}", tally.json());
    }
    Ok(())
}

/// The recorded tables, one page.
fn write_index(record: &Path) -> Result<()> {
    const ORDER: [&str; 7] = [
        "steady", "overload", "swap", "drain", "skew", "engines", "peers",
    ];
    let mut text = "# Benchmarks\n\nWritten by `make bench` and `make bench-peers`; \
                    [bench.md](../bench.md) says how each figure is measured and what it does not say.\n"
        .to_owned();
    for name in ORDER {
        if let Ok(section) = std::fs::read_to_string(record.join(format!("{name}.md"))) {
            text.push('\n');
            text.push_str(&section);
        }
    }
    let path = record.join("README.md");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}
