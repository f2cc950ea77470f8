//! `loopgate feature check` and `apply`: whether features.toml is well defined and fits the data folder,
//! and making it the folder's.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use clap::Args;
use featurestore::{Definitions, Planned, Versioned, plan};

use super::super::{Project, ProjectArgs, print, print_json};

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Instead read every sealed file and hold it against its manifest; beside a running gateway too
    #[arg(long, conflicts_with = "json")]
    files: bool,
}

/// Says what apply would do. Fails where it would be refused.
pub(super) fn run(args: &CheckArgs) -> Result<()> {
    let project = args.project.open()?;
    if args.files {
        return super::files::run(&project);
    }
    let planned = told(&project)?;
    if args.json {
        let versions = planned.iter().map(|(what, (outcome, _))| (what, outcome));
        print_json(&versions.collect::<BTreeMap<_, _>>())?;
    } else {
        print(&drawn(&project.definitions, &planned))?;
    }
    refuse_changed(&planned)
}

fn drawn(definitions: &Definitions, planned: &Told) -> String {
    let mut text = String::new();
    for source in &definitions.sources {
        let fields = source.fields.len();
        text.push_str(&format!("source {}: {fields} fields\n", source.name));
    }
    let views = definitions.views.iter();
    let views = views.map(|view| (format!("view {}", view.pin()), view.features.len()));
    let services = definitions.services.iter();
    let services = services.map(|it| (format!("service {}", it.id()), it.features.len()));
    for (what, features) in views.chain(services) {
        let (outcome, _) = &planned[&what];
        text.push_str(&format!("{what}: {features} features, {outcome}\n"));
    }
    text
}

/// Makes the definitions the folder's: states of new views are folded from the event log. A gateway that
/// has the folder open takes definitions when it starts.
pub(super) fn apply(args: &ProjectArgs) -> Result<()> {
    let project = args.open()?;
    let planned = told(&project)?;
    refuse_changed(&planned)?;
    drop(super::store(project)?);
    for (what, (outcome, _)) in &planned {
        println!("{what}: {outcome}");
    }
    Ok(())
}

/// By `view NAME@VERSION` or `service NAME@VERSION`: `new`, `unchanged` or `changed`, and why.
type Told = BTreeMap<String, (&'static str, Option<String>)>;

fn told(project: &Project) -> Result<Told> {
    let planned = plan(&project.data, &project.definitions);
    let planned = planned.context("what the data folder knows cannot be read")?;
    let told = planned.into_iter().map(|(version, planned)| {
        let kind = match version.kind {
            Versioned::View => "view",
            Versioned::Service => "service",
        };
        let outcome = match planned {
            Planned::New => ("new", None),
            Planned::Known => ("unchanged", None),
            Planned::Changed(changed) => ("changed", Some(changed.to_string())),
        };
        (format!("{kind} {}", version.name), outcome)
    });
    Ok(told.collect())
}

fn refuse_changed(told: &Told) -> Result<()> {
    let reasons: Vec<&str> = told
        .values()
        .filter_map(|(_, why)| why.as_deref())
        .collect();
    if !reasons.is_empty() {
        bail!(
            "features.toml does not fit the data folder:\n{}",
            reasons.join("\n")
        );
    }
    Ok(())
}
