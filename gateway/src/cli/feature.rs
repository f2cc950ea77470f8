//! `loopgate feature …`: definitions, rows of now and of the past, history in, training rows, skew.
//!
//! `check`, `list` and `show` change nothing and need nothing closed. `get` and `stats` ask the gateway that has
//! the data folder open, if one has, `dataset` then reads what is sealed; the others open the folder, and are
//! refused while a gateway has it.

mod backfill;
mod check;
mod dataset;
mod described;
mod export;
mod files;
mod get;
mod import;
mod list;
mod progress;
mod show;
mod stats;
mod text;
mod verify;

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Subcommand;
use featurestore::{FeatureStore, OpenError};
use registry::ModelName;
use serde_json::Value;

use super::admin_client::Call;
use super::{Project, ProjectArgs};
use crate::tls::TlsFiles;

/// What to do with features.
#[derive(Debug, Subcommand)]
pub(crate) enum FeatureCommand {
    /// Check features.toml, and say what applying it to the data folder would do
    Check(check::CheckArgs),
    /// Make what features.toml defines the data folder's
    Apply(ProjectArgs),
    /// List sources, entities, views and services
    List(list::ListArgs),
    /// Draw what a view or a service is made of
    Show(show::ShowArgs),
    /// Print a row with statuses, event times and ages, now or at a past moment
    Get(get::GetArgs),
    /// Import events of the past from files, Parquet, CSV or JSON lines, sorted by time
    Import(import::ImportArgs),
    /// Write events of a source, or rows that a model was served, into a file
    Export(export::ExportArgs),
    /// Recompute training rows of the past, point in time, from a file of questions and answers
    Backfill(backfill::BackfillArgs),
    /// Write training rows as a Parquet file named by its content
    Dataset(dataset::DatasetArgs),
    /// Recompute a sample of the served rows and count those that differ
    Verify(verify::VerifyArgs),
    /// Show the store's counters as JSON
    Stats(stats::StatsArgs),
}

pub(super) fn run(command: FeatureCommand) -> Result<()> {
    match command {
        FeatureCommand::Check(args) => check::run(&args),
        FeatureCommand::Apply(project) => check::apply(&project),
        FeatureCommand::List(args) => list::run(&args),
        FeatureCommand::Show(args) => show::run(&args),
        FeatureCommand::Get(args) => get::run(&args),
        FeatureCommand::Import(args) => import::run(args),
        FeatureCommand::Export(args) => export::run(args),
        FeatureCommand::Backfill(args) => backfill::run(&args),
        FeatureCommand::Dataset(args) => dataset::run(&args),
        FeatureCommand::Verify(args) => verify::run(&args),
        FeatureCommand::Stats(args) => stats::run(&args),
    }
}

/// The project's store, for this process alone.
fn store(project: Project) -> Result<FeatureStore> {
    open(project).map_err(|error| match error {
        held @ OpenError::Held { .. } => {
            anyhow!("{held}: this command needs the folder to itself, so stop that process first")
        }
        error => error.into(),
    })
}

/// [`store`], for those who know what to do when another process has it.
pub(super) fn open(project: Project) -> Result<FeatureStore, OpenError> {
    let Project {
        data,
        definitions,
        serve,
        ..
    } = project;
    FeatureStore::open(&data, definitions, &serve.store)
}

/// What the gateway's admin interface answers.
pub(super) async fn ask(
    call: Call<'_>,
    address: SocketAddr,
    tls: Option<&TlsFiles>,
) -> Result<Value> {
    let (status, body) = call.of(address, tls).await?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !status.is_success() {
        let problem = body["error"].as_str().unwrap_or(status.as_str());
        bail!("the gateway on {address} refused: {problem}");
    }
    Ok(body)
}

/// Refuses times between which nothing can be.
fn check_times(from_ms: i64, to_ms: i64) -> Result<()> {
    let (from, to) = (text::time(from_ms), text::time(to_ms));
    ensure!(from_ms < to_ms, "`--from` {from} is not before `--to` {to}");
    Ok(())
}

/// The feature service of a model.
fn service_of(project: &Project, model: &ModelName) -> Result<String> {
    let config = project.config.models.get(model);
    let config =
        config.with_context(|| format!("model `{model}` has no file models/{model}.toml"))?;
    let service = config.service.clone();
    service.with_context(|| format!("model `{model}` has no feature service"))
}
