//! `loopgate feature …`: definitions, history in, training rows, skew. All but `check` open the
//! data folder, and are refused while a gateway has it open.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use featurestore::{BackfillRequest, FeatureStore, ImportRequest, StoreOptions};
use registry::ModelName;

use super::{Project, ProjectArgs, print_json, wall_ms};

/// What to do with features.
#[derive(Debug, Subcommand)]
pub(crate) enum FeatureCommand {
    /// List what features.toml defines
    Check(ProjectArgs),
    /// Import events of the past from files, Parquet or JSON lines, sorted by time
    Import(ImportArgs),
    /// Recompute training rows of the past, point in time, from a file of questions and answers
    Backfill(BackfillArgs),
    /// Recompute a sample of the served rows and count those that differ
    Verify(VerifyArgs),
    /// Show the store's counters as JSON
    Stats(ProjectArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// Files with their sources; each event counts as arrived at its own time
    #[arg(required = true, value_name = "SOURCE=FILE", value_parser = source_file)]
    files: Vec<SourceFile>,
}

#[derive(Debug, Args)]
pub(crate) struct BackfillArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model that the rows are for
    #[arg(long)]
    model: ModelName,
    /// Request fields, `request_id`, `at`, `label` and `label_known_at`, sorted by `at`
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model whose rows are verified
    #[arg(long)]
    model: ModelName,
    /// Rows to recompute
    #[arg(long, default_value_t = 1000)]
    sample: usize,
    /// Which rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON, and leave the judgement to the reader
    #[arg(long)]
    json: bool,
}

/// A file of events of one source.
#[derive(Clone, Debug)]
struct SourceFile {
    source: String,
    file: PathBuf,
}

fn source_file(text: &str) -> Result<SourceFile, String> {
    let (source, file) = text.split_once('=').ok_or("expected SOURCE=FILE")?;
    Ok(SourceFile {
        source: source.to_owned(),
        file: file.into(),
    })
}

pub(super) fn run(command: FeatureCommand) -> Result<()> {
    match command {
        FeatureCommand::Check(project) => check(&project.open()?),
        FeatureCommand::Import(args) => import(args),
        FeatureCommand::Backfill(args) => backfill(&args),
        FeatureCommand::Verify(args) => verify(&args),
        FeatureCommand::Stats(project) => print_json(&store(project.open()?)?.stats()),
    }
}

fn check(project: &Project) -> Result<()> {
    let definitions = &project.definitions;
    for source in &definitions.sources {
        println!("source {}: {} fields", source.name, source.fields.len());
    }
    for view in &definitions.views {
        println!("view {}: {} features", view.name, view.features.len());
    }
    for service in &definitions.services {
        println!(
            "service {}: {} features",
            service.id(),
            service.features.len()
        );
    }
    Ok(())
}

fn store(project: Project) -> Result<FeatureStore> {
    let definitions = Arc::new(project.definitions);
    Ok(FeatureStore::open(
        &project.data,
        definitions,
        &StoreOptions::default(),
    )?)
}

/// Imports source by source. The event log is read in order of arrival, which for history is each
/// event's own time, so the order of the files does not matter.
fn import(args: ImportArgs) -> Result<()> {
    let store = store(args.project.open()?)?;
    let mut requests: Vec<ImportRequest> = Vec::new();
    for SourceFile { source, file } in args.files {
        match requests.iter_mut().find(|request| request.source == source) {
            Some(request) => request.files.push(file),
            None => requests.push(ImportRequest {
                source,
                files: vec![file],
                now_ms: wall_ms(),
            }),
        }
    }
    for request in &requests {
        let imported = store.import_events(request, &mut |_| {})?;
        println!(
            "{}: {} rows, {} new, {} known before, {} late for a window",
            request.source, imported.rows, imported.accepted, imported.duplicates, imported.late
        );
    }
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

fn backfill(args: &BackfillArgs) -> Result<()> {
    let project = args.project.open()?;
    let request = BackfillRequest {
        model: args.model.as_str().into(),
        service: service_of(&project, &args.model)?,
        file: args.file.clone(),
    };
    let made = store(project)?.backfill(&request)?;
    println!(
        "{}: {} rows, {} with a label, in {} files",
        args.model, made.rows, made.labels, made.files
    );
    Ok(())
}

fn verify(args: &VerifyArgs) -> Result<()> {
    let project = args.project.open()?;
    let service = service_of(&project, &args.model)?;
    let report = store(project)?.verify(args.model.as_str(), &service, args.sample, args.seed)?;
    if args.json {
        return print_json(&report);
    }
    println!(
        "{} rows checked, {} differ",
        report.rows_checked, report.mismatches
    );
    if report.mismatches > 0 {
        print_json(&report.examples)?;
        bail!("served rows differ from recomputed ones");
    }
    Ok(())
}
