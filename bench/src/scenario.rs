//! The scenarios: each starts what it measures, loads it, and says what it found.

mod champion;
pub(crate) mod drain;
pub(crate) mod engines;
pub(crate) mod entities;
pub(crate) mod features;
pub(crate) mod ingest;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod memory;
pub(crate) mod overload;
pub(crate) mod peers;
pub(crate) mod restart;
pub(crate) mod skew;
pub(crate) mod steady;
pub(crate) mod surge;
pub(crate) mod swap;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;

use crate::deployment::{Deployed, Deployment};
use crate::finding::Finding;
use crate::load::{Call, Load, Tally};
use crate::machine::{Conditions, Cores, named_threads_cpu, process_cpu};
use crate::process::Gateway;
use crate::record;
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
        finding.write(&self.out)?;
        match &self.record {
            Some(record) => record::keep(finding, record),
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
            folder,
            models,
            ..Deployment::on_one_core(&self.loopgate)
        }
        .start()
        .await
    }

    fn conditions(&self) -> Conditions {
        Conditions::now(self.rounds, self.run)
    }

    fn closed(&self, address: std::net::SocketAddr, calls: Vec<Call>) -> Load {
        Load {
            measured: self.run,
            ..Load::closed(address, calls, CONNECTIONS)
        }
    }
}

/// A run, with the processor time that the server took for a request.
struct Measured {
    tally: Tally,
    server_cpu_us: f64,
    /// That of the gateway's serving threads alone, for the whole run.
    serving_cpu_us: f64,
}

/// Runs `load` against the server `pid`.
async fn measure(load: Load, pid: u32) -> Result<Measured> {
    const SERVING: &str = "loopgate-serve";
    let before = (process_cpu(pid), named_threads_cpu(pid, SERVING));
    let tally = load.run_beside().await?;
    let spent = process_cpu(pid).saturating_sub(before.0);
    let serving = named_threads_cpu(pid, SERVING).saturating_sub(before.1);
    Ok(Measured {
        server_cpu_us: spent.as_secs_f64() * 1e6 / tally.sent.max(1) as f64,
        serving_cpu_us: serving.as_secs_f64() * 1e6,
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

/// A run that finds a capacity: a pause of the machine may cost some a short deadline, no more.
fn must_hold(what: &str, tally: &Tally) -> Result<()> {
    const FAILING_MAX: f64 = 0.01;
    let answered = tally.answered() as f64;
    if answered == 0.0 || tally.failed_in_all() as f64 > FAILING_MAX * answered {
        bail!("{what}: {:#}", tally.json());
    }
    Ok(())
}

/// A run in which nothing may fail and the generator may not be late.
fn must_be_clean(what: &str, tally: &Tally) -> Result<()> {
    if tally.failed_in_all() > 0 || tally.answered() == 0 {
        bail!("{what}: {:#}", tally.json());
    }
    Ok(())
}
