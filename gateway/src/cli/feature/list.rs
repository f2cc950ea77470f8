//! `loopgate feature list`: all that features.toml defines, a line each.

use anyhow::Result;
use clap::Args;

use super::super::{ProjectArgs, print, print_json};
use super::described::{Described, DescribedField};
use super::text::{span, table};

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ListArgs) -> Result<()> {
    let described = Described::from(&*args.project.open()?.definitions);
    if args.json {
        return print_json(&described);
    }
    print(&drawn(&described))
}

fn drawn(described: &Described) -> String {
    let sources = described.sources.iter().map(|source| {
        let lateness = source.lateness_ms.map_or("any".to_owned(), span);
        vec![
            source.source.clone(),
            format!("{} fields", source.fields.len()),
            format!("time {}", source.time),
            format!("id {}", source.id.join(", ")),
            format!("lateness {lateness}"),
        ]
    });
    let entities = described.entities.iter().map(|entity| {
        vec![
            entity.entity.clone(),
            format!("keys {}", entity.keys.join(", ")),
        ]
    });
    let views = described.views.iter().map(|view| {
        let windows: Vec<&str> = view.windows.iter().map(|it| it.window.as_str()).collect();
        let in_windows = view.windows.iter().map(|it| it.features.len());
        let decayed = view.decays.iter().map(|it| it.features.len());
        let features = in_windows.chain(decayed).sum::<usize>();
        vec![
            view.view.clone(),
            format!("from {}", view.source.source),
            format!("keys {}", or_none(&names(&view.keys))),
            format!("windows {}", or_none(&windows.join(", "))),
            format!("ttl {}", view.ttl_ms.map_or("none".to_owned(), span)),
            format!("{} features", features + view.latest.len()),
        ]
    });
    let services = described.services.iter().map(|service| {
        vec![
            service.service.clone(),
            format!("request {}", or_none(&names(&service.request))),
            format!("views {}", or_none(&service.views.join(", "))),
            format!("{} features", service.features.len()),
        ]
    });
    [
        ("sources", sources.collect::<Vec<_>>()),
        ("entities", entities.collect()),
        ("views", views.collect()),
        ("services", services.collect()),
    ]
    .into_iter()
    .filter(|(_, rows)| !rows.is_empty())
    .map(|(title, rows)| format!("{title}\n{}", table("  ", &rows)))
    .collect::<Vec<_>>()
    .join("\n")
}

fn names(fields: &[DescribedField]) -> String {
    let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
    names.join(", ")
}

fn or_none(text: &str) -> &str {
    if text.is_empty() { "none" } else { text }
}
