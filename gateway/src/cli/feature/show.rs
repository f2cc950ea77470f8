//! `loopgate feature show`: what a view or a service is made of, drawn from its source to its features.

use std::fmt::Write;

use anyhow::Result;
use clap::Args;

use super::super::{ProjectArgs, print, print_json};
use super::described::{DescribedColumn, DescribedField, DescribedService, DescribedView};
use super::text::{span, table};
use crate::lookup::Target;

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// A view or a service: `delay`, `delay@2`, `view:delay`
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &ShowArgs) -> Result<()> {
    let definitions = args.project.open()?.definitions;
    match Target::find(&definitions, &args.name)? {
        Target::View(view) => {
            let view = DescribedView::from(&*view);
            if args.json {
                return print_json(&view);
            }
            print(&draw_view(&view))
        }
        Target::Service(service) => {
            let views = service.needed_views().iter();
            let views: Vec<DescribedView> = views.map(|view| (&**view).into()).collect();
            let service = DescribedService::from(&*service);
            if args.json {
                return print_json(&service);
            }
            print(&draw_service(&service, &views))
        }
    }
}

/// Source, filter, keys, then a branch for each window and one for the newest event.
fn draw_view(view: &DescribedView) -> String {
    let source = &view.source;
    let mut text = format!("view {}\n\n", view.view);
    line(&mut text, format_args!("source {}", source.source));
    let lateness = match source.lateness_ms {
        Some(ms) => format!("counts up to {} late", span(ms)),
        None => "counts however late, while its tile is held".to_owned(),
    };
    line(
        &mut text,
        format_args!("│      at {}; {lateness}", source.time),
    );
    if let Some(filter) = &view.r#where {
        line(&mut text, format_args!("▼"));
        line(&mut text, format_args!("where  {filter}"));
    }
    line(&mut text, format_args!("▼"));
    let keys = match view.keys.is_empty() {
        true => "nothing: one state for all events".to_owned(),
        false => typed(&view.keys),
    };
    line(&mut text, format_args!("by     {keys}"));
    if let Some(ttl_ms) = view.ttl_ms {
        let ttl = span(ttl_ms);
        line(
            &mut text,
            format_args!("│      outside its age once the newest event is {ttl} old"),
        );
    }
    let mut branches: Vec<(String, &[DescribedField])> = Vec::new();
    for window in &view.windows {
        let exact = match window.error_ms {
            0 => "from the start of the period".to_owned(),
            error_ms => format!(
                "sliding; may fall short by {} at its older end",
                span(error_ms)
            ),
        };
        let title = format!(
            "window {}: {}, {exact}",
            window.window,
            span(window.length_ms)
        );
        branches.push((title, &window.features));
    }
    for decay in &view.decays {
        let half_life = span(decay.half_life_ms);
        let title = format!("all held: half the weight with every {half_life} of age");
        branches.push((title, &decay.features));
    }
    if !view.latest.is_empty() {
        branches.push(("newest event".to_owned(), &view.latest));
    }
    let last = branches.len().saturating_sub(1);
    for (index, (title, features)) in branches.iter().enumerate() {
        let (fork, stem) = if index == last {
            ("└", " ")
        } else {
            ("├", "│")
        };
        line(&mut text, format_args!("│"));
        line(&mut text, format_args!("{fork}─ {title}"));
        let rows: Vec<_> = features
            .iter()
            .map(|feature| vec![feature.name.clone(), feature.r#type.clone()])
            .collect();
        text.push_str(&table(&format!("  {stem}    "), &rows));
    }
    text
}

/// The request, the views by which keys, then the columns.
fn draw_service(service: &DescribedService, views: &[DescribedView]) -> String {
    let mut text = format!("service {}\n\n", service.service);
    line(
        &mut text,
        format_args!("request  {}", typed(&service.request)),
    );
    let last = views.len().saturating_sub(1);
    for (index, view) in views.iter().enumerate() {
        let fork = if index == last { "└" } else { "├" };
        let keys: Vec<&str> = view.keys.iter().map(|key| key.name.as_str()).collect();
        let keys = match keys.is_empty() {
            true => "no key".to_owned(),
            false => format!("by {}", keys.join(", ")),
        };
        let (name, source) = (&view.view, &view.source.source);
        line(
            &mut text,
            format_args!("{fork}─ view {name}  {keys}, from {source}"),
        );
    }
    text.push('\n');
    let head = ["", "feature", "from", "of", "where missing", "clip"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(service.features.iter().enumerate().map(|(index, column)| {
        let mut row = vec![index.to_string(), column.feature.clone()];
        row.extend(cells(column));
        row
    }));
    text.push_str(&table("  ", &rows));
    text
}

fn cells(column: &DescribedColumn) -> [String; 4] {
    let of = match &column.dictionary {
        Some(words) => format!("{}, code of {} words", column.of, words.len()),
        None => column.of.clone(),
    };
    let missing = match column.default {
        Some(value) => value.to_string(),
        None => column.missing.to_owned(),
    };
    let clip = column.clip.map(|(low, high)| format!("{low} to {high}"));
    [
        column.from.to_owned(),
        of,
        missing,
        clip.unwrap_or_default(),
    ]
}

fn typed(fields: &[DescribedField]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|field| format!("{} {}", field.name, field.r#type))
        .collect();
    fields.join(", ")
}

fn line(text: &mut String, written: std::fmt::Arguments<'_>) {
    writeln!(text, "  {written}").expect("a String takes all");
}
