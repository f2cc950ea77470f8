//! `loopgate run …` and `loopgate trigger`: what was trained, and training now.

use anyhow::{Result, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use hyper::Method;
use registry::{ModelName, RunId};
use serde_json::Value;

use super::admin_client::Call;
use super::{ProjectArgs, print, print_json};

/// What to do with runs.
#[derive(Debug, Subcommand)]
pub(crate) enum RunCommand {
    /// List a model's runs, newest first
    List(ListArgs),
    /// Show a run with all that it logged, as JSON
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model
    #[arg(long)]
    model: ModelName,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The run
    run: RunId,
}

/// `loopgate trigger`.
#[derive(Debug, Args)]
pub(crate) struct TriggerArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model to train
    model: ModelName,
    /// The gateway's admin listener, where it is not the one of loopgate.toml
    #[arg(long, value_name = "ADDR")]
    admin: Option<std::net::SocketAddr>,
}

pub(super) async fn run(command: RunCommand) -> Result<()> {
    match command {
        RunCommand::List(args) => {
            let registry = args.project.open()?.registry().await?;
            for run in registry.runs(&args.model, args.limit).await? {
                let outcome = run.outcome.as_deref().unwrap_or("-");
                let (id, status, name) = (run.id, run.status, run.name);
                print(&format!("{id}\t{status}\t{name}\t{outcome}\n"))?;
            }
            Ok(())
        }
        RunCommand::Show(args) => {
            let registry = args.project.open()?.registry().await?;
            print_json(&registry.run(&args.run).await?)
        }
    }
}

pub(super) async fn trigger(args: &TriggerArgs) -> Result<()> {
    let project = args.project.open()?;
    let address = args.admin.unwrap_or(project.serve.listeners.admin);
    let path = format!("/v1/models/{}/train", args.model);
    let call = Call {
        method: Method::POST,
        path: &path,
        body: Bytes::new(),
    };
    let (status, body) = call
        .of(address, project.serve.security.tls.as_ref())
        .await?;
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !status.is_success() {
        bail!("{}", body["error"].as_str().unwrap_or(status.as_str()));
    }
    println!("{}", body["message"].as_str().unwrap_or("accepted"));
    Ok(())
}
