//! `loopgate feature …`: definitions, history in, training rows, skew. All but `check` open the
//! data folder, and are refused while a gateway has it open.

mod backfill;
mod check;
mod import;
mod stats;
mod verify;

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Subcommand;
use featurestore::{FeatureStore, StoreOptions};
use registry::ModelName;

use super::{Project, ProjectArgs};

/// What to do with features.
#[derive(Debug, Subcommand)]
pub(crate) enum FeatureCommand {
    /// List what features.toml defines
    Check(ProjectArgs),
    /// Import events of the past from files, Parquet or JSON lines, sorted by time
    Import(import::ImportArgs),
    /// Recompute training rows of the past, point in time, from a file of questions and answers
    Backfill(backfill::BackfillArgs),
    /// Recompute a sample of the served rows and count those that differ
    Verify(verify::VerifyArgs),
    /// Show the store's counters as JSON
    Stats(ProjectArgs),
}

pub(super) fn run(command: FeatureCommand) -> Result<()> {
    match command {
        FeatureCommand::Check(project) => check::run(&project),
        FeatureCommand::Import(args) => import::run(args),
        FeatureCommand::Backfill(args) => backfill::run(&args),
        FeatureCommand::Verify(args) => verify::run(&args),
        FeatureCommand::Stats(project) => stats::run(&project),
    }
}

/// The project's store, for this process alone.
fn store(project: Project) -> Result<FeatureStore> {
    let definitions = Arc::new(project.definitions);
    Ok(FeatureStore::open(
        &project.data,
        definitions,
        &StoreOptions::default(),
    )?)
}

/// The feature service of a model.
fn service_of(project: &Project, model: &ModelName) -> Result<String> {
    let config = project.config.models.get(model);
    let config =
        config.with_context(|| format!("model `{model}` has no file models/{model}.toml"))?;
    let service = config.service.clone();
    service.with_context(|| format!("model `{model}` has no feature service"))
}
