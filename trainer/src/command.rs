//! The command line.

use std::fmt::Write as _;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use featurestore::{Definitions, ProjectFileError, RowsFrom, read_toml};
use registry::ModelName;
use serde::Deserialize;

use crate::progress::{Progress, Stop};
use crate::recipe::Recipe;
use crate::run::{self, Ended, Order};

/// Exit code of a run that was stopped.
pub(crate) const STOPPED: u8 = 3;

/// Trains a model of a Loopgate project and registers what passes its gates.
#[derive(Debug, Parser)]
#[command(name = "loopgate-trainer", version)]
pub(crate) struct Arguments {
    /// What to do.
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// Whether the end of stdin ends the run.
    pub(crate) fn exit_with_stdin(&self) -> bool {
        matches!(&self.command, Command::Run(run) if run.exit_with_stdin)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
enum Command {
    /// One run: rows, experiments, gates, registration. Exits with 0 if it registered a challenger
    /// or a gate refused it, with 3 if it was stopped, else with 1.
    Run(RunArguments),
    /// Reads the project's files and says what each model would be trained on.
    Check {
        /// The project's folder.
        #[arg(long)]
        project: PathBuf,
    },
}

/// One run.
#[derive(Debug, Args)]
struct RunArguments {
    /// The project's folder.
    #[arg(long)]
    project: PathBuf,
    /// The model to train: `models/MODEL.toml`.
    #[arg(long)]
    model: ModelName,
    /// The data folder, instead of the one that loopgate.toml names.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Number of the decision that set the run off.
    #[arg(long)]
    trigger: Option<i64>,
    /// The instant of the run: nothing later is seen (milliseconds since the Unix epoch); now by
    /// default.
    #[arg(long)]
    as_of_ms: Option<i64>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Threads in use at once; every core by default. Does not change the result.
    #[arg(long)]
    threads: Option<NonZeroUsize>,
    /// Ends the run when stdin reaches its end, so that no run outlives the gateway that holds
    /// the other side of the pipe.
    #[arg(long)]
    exit_with_stdin: bool,
}

/// The one key of loopgate.toml that the trainer reads; the gateway checks the rest.
#[derive(Deserialize)]
struct ProjectFile {
    /// The data folder, relative to the project's.
    data: Option<PathBuf>,
}

/// Why the program ends with another code than 0.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What to tell.
    pub(crate) message: String,
    /// 1, or [`STOPPED`].
    pub(crate) code: u8,
}

/// Does what the command line asks for; what it returns is for stdout.
pub(crate) async fn obey(
    arguments: Arguments,
    clock: fn() -> i64,
    stop: Stop,
) -> Result<String, Failure> {
    match arguments.command {
        Command::Check { project } => check(&project).map_err(|error| Failure {
            message: format!("{error:#}"),
            code: 1,
        }),
        Command::Run(run) => {
            let progress = Progress::new(stop);
            train(&run, clock, &progress).await.map_err(|error| {
                let code = if error.stopped() { STOPPED } else { 1 };
                Failure {
                    message: error.to_string(),
                    code,
                }
            })
        }
    }
}

/// Does one run and says how it ended.
async fn train(
    arguments: &RunArguments,
    clock: fn() -> i64,
    progress: &Progress,
) -> Result<String, run::RunError> {
    let project = &arguments.project;
    let data = match &arguments.data {
        Some(data) => data.clone(),
        None => data_folder(project).map_err(crate::recipe::RecipeError::from)?,
    };
    // A misspelt model must not become a model of the registry.
    Recipe::read(project, arguments.model.as_str())?;
    let order = Order {
        project: project.clone(),
        data,
        model: arguments.model.clone(),
        trigger: arguments.trigger,
        as_of_ms: arguments.as_of_ms.unwrap_or_else(clock),
        seed: arguments.seed,
        threads: arguments.threads.unwrap_or_else(every_core),
    };
    Ok(match run::run(&order, clock, progress).await? {
        Ended::Registered(registered) => {
            let standing = if registered.first {
                "champion"
            } else {
                "challenger"
            };
            let simple = registered
                .simple
                .map_or(String::new(), |v| format!(", simple v{v}"));
            format!(
                "{}: registered {standing} v{}{simple}",
                order.model, registered.challenger
            )
        }
        Ended::Rejected(verdict) => {
            format!(
                "{}: rejected by gate {}: {}",
                order.model, verdict.gate, verdict.reason
            )
        }
    })
}

/// Reads everything that a run would read of the project, and says what it found.
fn check(project: &Path) -> Result<String> {
    let data = data_folder(project)?;
    let mut said = format!("data: {}", data.display());
    let definitions = Definitions::load(&project.join("features.toml"))?;
    let folder = project.join("models");
    let entries = match std::fs::read_dir(&folder) {
        // Features by themselves are a project, too.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        entries => Some(entries.with_context(|| format!("cannot read {}", folder.display()))?),
    };
    let mut models: Vec<String> = entries
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            entry
                .ok()?
                .file_name()
                .to_str()?
                .strip_suffix(".toml")
                .map(str::to_owned)
        })
        .collect();
    models.sort();
    for model in models {
        let name: ModelName = model.parse()?;
        let recipe = Recipe::read(project, name.as_str())?;
        let Some(service) = definitions.service(&recipe.service) else {
            bail!(
                "models/{model}.toml: service `{}` is not defined",
                recipe.service
            );
        };
        write!(
            said,
            "\n{name}: {} features of {}, rows {}, {} boosted experiments, window {}, holdout {}",
            service.features.len(),
            service.id(),
            match recipe.train.rows {
                RowsFrom::Served => "as served",
                RowsFrom::Recomputed => "computed anew",
            },
            recipe.train.boosted.len(),
            recipe.train.window,
            recipe.train.holdout,
        )?;
    }
    Ok(said)
}

fn data_folder(project: &Path) -> Result<PathBuf, ProjectFileError> {
    let file: ProjectFile = read_toml(&project.join("loopgate.toml"))?;
    Ok(project.join(file.data.unwrap_or_else(|| PathBuf::from("data"))))
}

fn every_core() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}
