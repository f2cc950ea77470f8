//! The command line of `loopgate-bench`.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use chrono::NaiveDate;
use clap::{Args, Parser, Subcommand};

use crate::demo::{Demo, run_demo};
use crate::steady::{Steady, run_steady};

/// Load, scenarios and the demo's replay, over HTTP only.
#[derive(Debug, Parser)]
#[command(name = "loopgate-bench", version)]
pub(crate) struct Command {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Replays a year of flights through a gateway and reports what the loop was worth.
    Demo(DemoArguments),
    /// Sends one request body over and over on N connections (closed loop) and reports latency.
    Steady(SteadyArguments),
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// The gateway's binary.
    #[arg(long)]
    loopgate: PathBuf,
    /// The trainer's binary.
    #[arg(long)]
    trainer: PathBuf,
    /// The folder with `loopgate.toml`, `features.toml`, `models/` and `data/`.
    #[arg(long)]
    project: PathBuf,
    /// Where the run keeps its data, logs and report.
    #[arg(long)]
    out: PathBuf,
    /// Replays departures scheduled before this day (UTC).
    #[arg(long, default_value = "2014-01-02")]
    until: NaiveDate,
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

#[derive(Debug, Args)]
struct SteadyArguments {
    /// The gateway's data listener, as `http://127.0.0.1:8000`.
    #[arg(long)]
    url: String,
    #[arg(long)]
    model: String,
    /// A file with the body of one infer request.
    #[arg(long)]
    body: PathBuf,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Length of one run, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Runs of which the medians are printed.
    #[arg(long, default_value_t = 5)]
    runs: usize,
}

impl Command {
    /// Runs the scenario; an error where it could not be run or fell short of what it promises.
    pub(crate) async fn run(self) -> Result<()> {
        match self.scenario {
            Scenario::Demo(arguments) => arguments.run().await,
            Scenario::Steady(arguments) => arguments.run().await,
        }
    }
}

impl DemoArguments {
    async fn run(self) -> Result<()> {
        let until = self.until.and_hms_opt(0, 0, 0).context("no such day")?;
        let demo = Demo {
            loopgate: absolute(&self.loopgate)?,
            trainer: absolute(&self.trainer)?,
            template: absolute(&self.project)?,
            out: self.out,
            until_ms: until.and_utc().timestamp_millis(),
            seed: self.seed,
        };
        let report = run_demo(&demo).await?;
        println!("\n{}", report.table());
        println!("report: {}", demo.out.join("report.html").display());
        ensure!(
            report.requests.failed == 0,
            "{} requests failed",
            report.requests.failed
        );
        ensure!(
            report.skew.mismatches == 0,
            "{} served rows differ from their recomputation",
            report.skew.mismatches
        );
        Ok(())
    }
}

impl SteadyArguments {
    async fn run(self) -> Result<()> {
        let body = std::fs::read(&self.body)
            .with_context(|| format!("cannot read {}", self.body.display()))?;
        run_steady(&Steady {
            url: self.url,
            model: self.model,
            body,
            connections: self.connections.max(1),
            seconds: self.seconds.max(1),
            runs: self.runs.max(1),
        })
        .await
    }
}

fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("no {}", path.display()))
}
