//! The command line: `serve`, and commands on a project whose gateway may or may not be running.
//!
//! Registry commands open the registry beside a running gateway, which sees their change within a
//! tenth of a second. Feature commands open the data folder, which one process may do at a time.

mod admin_client;
mod backup;
mod feature;
mod key;
mod model;
mod run;

use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::process::Command as Process;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};
use featurestore::Definitions;
use registry::{ModelName, Registry};

use crate::clock::{Clock, ClockMode};
use crate::config::{ProjectConfig, ServeArgs, ServeConfig};
use crate::control::open_registry;
use crate::prepare::{CheckModelArgs, check_model};
use crate::routing::{self, Shown};
use crate::{admin, grpc, http, page};

/// An inference gateway with its training loop attached.
#[derive(Debug, Parser)]
#[command(name = "loopgate", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a project, or models from files
    Serve(ServeArgs),
    /// Check a project's files
    Check(ProjectArgs),
    /// Models, versions and aliases
    #[command(subcommand)]
    Model(model::ModelCommand),
    /// Feature definitions, history, training rows
    #[command(subcommand)]
    Feature(feature::FeatureCommand),
    /// Copy the data folder, beside a running gateway or without one
    Backup(backup::BackupArgs),
    /// Keys of the API: who may call
    #[command(subcommand)]
    Key(key::KeyCommand),
    /// Print every route of every listener and what it asks of its caller, as JSON
    Routes,
    /// Training runs
    #[command(subcommand)]
    Run(run::RunCommand),
    /// Ask the running gateway to train a model now
    Trigger(run::TriggerArgs),
    /// Try a model in this process, for a gateway
    #[command(hide = true)]
    CheckModel(CheckModelArgs),
}

/// Every row of every route table.
fn routes() -> Vec<Shown> {
    let grpc = grpc::METHODS.iter().map(|&(path, access, _)| Shown {
        listener: "grpc",
        method: "POST".to_owned(),
        path: path.to_owned(),
        access: access.as_str(),
    });
    routing::shown("http", http::ROUTES)
        .chain(grpc)
        .chain(routing::shown("admin", admin::ROUTES))
        .chain(routing::shown("metrics", page::ROUTES))
        .collect()
}

/// Which project.
#[derive(Clone, Debug, Args)]
pub(crate) struct ProjectArgs {
    /// Folder with loopgate.toml, features.toml and models/
    #[arg(long, value_name = "DIR", default_value = ".")]
    project: PathBuf,
    /// Data folder, where it is not the one of loopgate.toml
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

/// Carries out every command but `serve`.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Serve(args) => crate::serve::run(&ServeConfig::new(args)?),
        Command::Check(project) => check(&project),
        Command::Model(command) => block_on(model::run(command)),
        Command::Feature(command) => feature::run(command),
        Command::Backup(args) => backup::run(&args),
        Command::Key(command) => key::run(command),
        Command::Routes => print_json(&routes()),
        Command::Run(command) => block_on(run::run(command)),
        Command::Trigger(args) => block_on(run::trigger(&args)),
        Command::CheckModel(args) => check_model(&args),
    }
}

/// A project whose files have been read and checked.
struct Project {
    config: ProjectConfig,
    serve: ServeConfig,
    data: PathBuf,
    definitions: Arc<Definitions>,
}

impl ProjectArgs {
    fn open(&self) -> Result<Project> {
        let mut serve = ServeConfig::new(ServeArgs {
            project: Some(self.project.clone()),
            data: self.data.clone(),
            ..ServeArgs::default()
        })?;
        let config = serve.project.take().context("a project was asked for")?;
        let data = serve.data.clone().context("a project has a data folder")?;
        let definitions = Arc::new(Definitions::load(&config.features)?);
        config.check_services(&definitions)?;
        Ok(Project {
            config,
            serve,
            data,
            definitions,
        })
    }
}

impl Project {
    async fn registry(&self) -> Result<Registry> {
        open_registry(&self.data).await
    }

    /// The instant of a change that does not say its own: the wall clock's, or where the project
    /// replays time the latest that the model's history knows.
    async fn now_ms(&self, registry: &Registry, model: &ModelName) -> Result<i64> {
        if self.serve.clock == ClockMode::Live {
            return Ok(wall_ms());
        }
        let history = registry.history(model).await?;
        Ok(history.iter().map(|event| event.at_ms).max().unwrap_or(0))
    }
}

fn wall_ms() -> i64 {
    Clock::new(ClockMode::Live).now_ms()
}

/// Checks the gateway's part of a project here and the trainer's by the trainer, where it is.
fn check(args: &ProjectArgs) -> Result<()> {
    let project = args.open()?;
    let (models, services) = (
        project.config.models.len(),
        project.definitions.services.len(),
    );
    let trainer = &project.config.trainer;
    if trainer.is_file() {
        let status = Process::new(trainer)
            .arg("check")
            .arg("--project")
            .arg(&args.project)
            .status()
            .with_context(|| format!("trainer {}", trainer.display()))?;
        if !status.success() {
            bail!("the trainer refuses the project");
        }
    } else {
        println!(
            "[train] and [gates] not checked: there is no {}",
            trainer.display()
        );
    }
    println!("{models} models and {services} feature services are well defined");
    Ok(())
}

fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    // Boxed: a command's future is large.
    runtime.block_on(Box::pin(future))
}

/// Prints a value as indented JSON.
fn print_json(value: &impl serde::Serialize) -> Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Prints lines. Whoever reads them may have had enough (`| head`), which is no failure.
fn print(lines: &str) -> Result<()> {
    match std::io::stdout().write_all(lines.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
