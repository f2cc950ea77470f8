//! `loopgate model …`: versions come in from files, aliases are set, history is read.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use registry::{
    AliasChange, AliasName, LookupError, ModelName, ModelVersion, NewVersion, Promotion, Registry,
    Release, Rollback, Version,
};

use super::{Project, ProjectArgs, print, print_json};
use crate::prepare::{Artifact, Blueprint, Golden, LABELS_KEY, Verdicts, prepare, service};
use crate::repository::lines;
use crate::table::{Labels, LoadedVersion, Seats};

const REASON: &str = "set on the command line";

/// What to do with models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List the models of the registry
    List(ProjectArgs),
    /// Show a model's aliases and versions as JSON
    Show(Named),
    /// Check an ONNX file and register it as a version; the first version becomes the champion
    Register(RegisterArgs),
    /// Set an alias, if it is what it is believed to be
    Alias(AliasArgs),
    /// Show what served when, as JSON
    History(Named),
    /// Make a version the champion and the champion the fallback
    Promote(PromoteArgs),
    /// Make the fallback the champion again
    Rollback(ChangeArgs),
}

/// A model of a project.
#[derive(Debug, Args)]
pub(crate) struct Named {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model
    model: ModelName,
}

#[derive(Debug, Args)]
pub(crate) struct RegisterArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The ONNX file
    file: PathBuf,
    /// The model that gets the version
    #[arg(long, value_name = "MODEL")]
    name: ModelName,
    /// Feature service that makes its input, where it is not the one of models/MODEL.toml
    #[arg(long, value_name = "SERVICE")]
    service: Option<String>,
    /// Alias that the version takes, from whatever version has it; `champion` makes the champion
    /// before it the fallback. By default the first version becomes the champion
    #[arg(long, value_name = "ALIAS")]
    alias: Option<AliasName>,
    /// Rows that every gateway must reproduce before the version serves: JSON of requests and
    /// responses in the model's own tensors, as docs/prepare.md has it
    #[arg(long, value_name = "FILE")]
    golden: Option<PathBuf>,
    /// A text file with the label of each class of an output on a line of its own; repeatable
    #[arg(long, value_name = "OUTPUT=FILE", value_parser = label_file)]
    labels: Vec<(String, PathBuf)>,
    /// For people
    #[arg(long, default_value = "")]
    description: String,
    /// When, in milliseconds since the Unix epoch; now by default
    #[arg(long, value_name = "MS")]
    at_ms: Option<i64>,
}

/// A change of a model's aliases.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    #[command(flatten)]
    named: Named,
    /// When, in milliseconds since the Unix epoch; now by default
    #[arg(long, value_name = "MS")]
    at_ms: Option<i64>,
    /// Why, for the history
    #[arg(long, default_value = REASON)]
    reason: String,
}

#[derive(Debug, Args)]
pub(crate) struct AliasArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// The alias
    alias: AliasName,
    /// The version, or `none` to unset the alias
    #[arg(value_parser = version_or_none)]
    version: VersionOrNone,
    /// What the alias is believed to name; by default whatever it does
    #[arg(long, value_parser = version_or_none)]
    expected: Option<VersionOrNone>,
}

#[derive(Debug, Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    change: ChangeArgs,
    /// The version that becomes the champion
    version: Version,
}

fn label_file(text: &str) -> Result<(String, PathBuf), String> {
    let (output, file) = text.split_once('=').ok_or("expected OUTPUT=FILE")?;
    Ok((output.to_owned(), file.into()))
}

/// A version, or none.
#[derive(Clone, Copy, Debug)]
struct VersionOrNone(Option<Version>);

fn version_or_none(text: &str) -> Result<VersionOrNone, String> {
    match text {
        "none" => Ok(VersionOrNone(None)),
        text => match text.parse() {
            Ok(version) => Ok(VersionOrNone(Some(version))),
            Err(_) => Err("expected a number, or none".to_owned()),
        },
    }
}

pub(super) async fn run(command: ModelCommand) -> Result<()> {
    match command {
        ModelCommand::List(project) => list(&project.open()?).await,
        ModelCommand::Show(named) => show(&named).await,
        ModelCommand::Register(args) => register(&args).await,
        ModelCommand::Alias(args) => alias(&args).await,
        ModelCommand::History(named) => {
            let registry = named.project.open()?.registry().await?;
            print_json(&registry.history(&named.model).await?)
        }
        ModelCommand::Promote(args) => promote(&args).await,
        ModelCommand::Rollback(args) => roll_back(&args).await,
    }
}

async fn list(project: &Project) -> Result<()> {
    let registry = project.registry().await?;
    for summary in registry.models().await? {
        let release = registry.release(&summary.model).await?;
        let aliases: Vec<String> = release
            .aliases
            .iter()
            .map(|(alias, version)| format!("{alias}=v{version}"))
            .collect();
        let (model, latest) = (summary.model, summary.latest);
        print(&format!(
            "{model}\t{latest} versions\t{}\n",
            aliases.join(" ")
        ))?;
    }
    Ok(())
}

async fn show(named: &Named) -> Result<()> {
    let registry = named.project.open()?.registry().await?;
    let release: Release = registry.release(&named.model).await?;
    let versions: Vec<ModelVersion> = registry.versions(&named.model).await?;
    print_json(&serde_json::json!({"release": release, "versions": versions}))
}

async fn register(args: &RegisterArgs) -> Result<()> {
    let project = args.project.open()?;
    let bytes =
        std::fs::read(&args.file).with_context(|| format!("model file {}", args.file.display()))?;
    let golden = args.golden.as_deref().map(read_golden).transpose()?;
    let labels = read_labels(&args.labels)?;
    let brought = Brought {
        file: Artifact::new(bytes.as_slice().into()),
        golden: golden.as_deref().map(Golden::read).transpose()?,
        labels: labels.clone(),
    };
    let (prepared, service) = check_file(&project, args, brought)?;
    let mut signature = serde_json::to_value(prepared.engine.signature())?;
    if !labels.is_empty() {
        signature[LABELS_KEY] = serde_json::to_value(labels)?;
    }
    let registry = project.registry().await?;
    let at_ms = match args.at_ms {
        Some(at_ms) => at_ms,
        None => project.now_ms(&registry, &args.name).await?,
    };
    registry.ensure_model(&args.name, at_ms).await?;
    let artifact = registry.put_artifact(bytes).await?;
    let golden = match golden {
        Some(golden) => Some(registry.put_artifact(golden).await?),
        None => None,
    };
    let version = registry
        .register_version(NewVersion {
            model: args.name.clone(),
            artifact,
            golden,
            signature,
            service,
            run: None,
            algorithm: "external".to_owned(),
            metrics: std::collections::BTreeMap::new(),
            datasets: Vec::new(),
            description: args.description.clone(),
            at_ms,
        })
        .await?;
    println!(
        "registered {} v{} ({})",
        args.name,
        version.version,
        prepared.engine.kind()
    );
    appoint(&registry, args, &version).await?;
    registry.close().await;
    Ok(())
}

/// Gives a registered version the alias that was asked for; by default the first is the champion.
async fn appoint(registry: &Registry, args: &RegisterArgs, version: &ModelVersion) -> Result<()> {
    let release = registry.release(&args.name).await?;
    let alias = match &args.alias {
        Some(alias) => alias.clone(),
        None if release.champion().is_none() => AliasName::champion(),
        None => return Ok(()),
    };
    let (reason, at_ms) = (REASON, version.created_ms);
    if alias == AliasName::champion() {
        let promotion = Promotion {
            model: &args.name,
            challenger: version.version,
            expected_champion: release.champion(),
            reason,
            at_ms,
        };
        registry.promote(promotion).await?;
    } else {
        let change = AliasChange {
            model: &args.name,
            alias: &alias,
            expected: release.get(&alias),
            to: Some(version.version),
            reason,
            at_ms,
        };
        registry.set_alias(change).await?;
    }
    println!("v{} is the {alias}", version.version);
    Ok(())
}

fn read_golden(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("golden rows {}", path.display()))
}

fn read_labels(files: &[(String, PathBuf)]) -> Result<Labels> {
    let read = files.iter().map(|(output, path)| {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("labels {}", path.display()))?;
        Ok((output.clone(), lines(&text)))
    });
    read.collect()
}

/// What the files of a registration hold.
struct Brought {
    file: Artifact,
    golden: Option<Golden>,
    labels: Labels,
}

/// What the gateway does before it serves a version is done before it is registered.
fn check_file(
    project: &Project,
    args: &RegisterArgs,
    brought: Brought,
) -> Result<(LoadedVersion, Option<String>)> {
    let config = project.config.models.get(&args.name);
    let configured = || config.and_then(|config| config.service.as_deref());
    let bound = args.service.as_deref().or_else(configured);
    let bound = bound
        .map(|id| service(&project.definitions, id))
        .transpose()?;
    let id = bound.as_ref().map(|service| service.id().to_owned());
    let blueprint = Blueprint {
        model: args.name.as_str().into(),
        version: 0,
        file: brought.file,
        engine: config.map(|config| config.engine).unwrap_or_default(),
        service: bound,
        rows_max: None,
        golden: brought.golden,
        labels: brought.labels,
        trial: project.serve.trial,
    };
    let prepared = prepare(blueprint, Seats::new(1), &Verdicts::default())
        .with_context(|| format!("model file {} is refused", args.file.display()))?;
    Ok((prepared, id))
}

/// An opened change: the registry, the release as it is, and the instant.
async fn open(change: &ChangeArgs) -> Result<(Registry, Release, i64)> {
    let project = change.named.project.open()?;
    let registry = project.registry().await?;
    let model = &change.named.model;
    let release = match registry.release(model).await {
        Ok(release) => release,
        Err(LookupError::UnknownModel(unknown)) => return Err(unknown.into()),
        Err(error) => return Err(error.into()),
    };
    let at_ms = match change.at_ms {
        Some(at_ms) => at_ms,
        None => project.now_ms(&registry, model).await?,
    };
    Ok((registry, release, at_ms))
}

async fn alias(args: &AliasArgs) -> Result<()> {
    let (registry, release, at_ms) = open(&args.change).await?;
    let expected = args
        .expected
        .map_or_else(|| release.get(&args.alias), |given| given.0);
    let generation = registry
        .set_alias(AliasChange {
            model: &args.change.named.model,
            alias: &args.alias,
            expected,
            to: args.version.0,
            reason: &args.change.reason,
            at_ms,
        })
        .await?;
    println!("generation {generation}");
    registry.close().await;
    Ok(())
}

async fn promote(args: &PromoteArgs) -> Result<()> {
    let (registry, release, at_ms) = open(&args.change).await?;
    let generation = registry
        .promote(Promotion {
            model: &args.change.named.model,
            challenger: args.version,
            expected_champion: release.champion(),
            reason: &args.change.reason,
            at_ms,
        })
        .await?;
    println!("generation {generation}");
    registry.close().await;
    Ok(())
}

async fn roll_back(args: &ChangeArgs) -> Result<()> {
    let (registry, release, at_ms) = open(args).await?;
    let generation = registry
        .roll_back(Rollback {
            model: &args.named.model,
            expected_champion: release.champion().context("the model has no champion")?,
            reason: &args.reason,
            at_ms,
        })
        .await?;
    println!("generation {generation}");
    registry.close().await;
    Ok(())
}
