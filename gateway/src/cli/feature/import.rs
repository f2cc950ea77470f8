//! `loopgate feature import`: events of the past, from files.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use featurestore::{Definitions, ImportRequest, nearest};

use super::super::{ProjectArgs, wall_ms};
use super::progress::Shown;

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// Files with their sources, `orders=orders.csv`: `.parquet`, `.csv`, or JSON lines of any other ending,
    /// columns named as the source's fields, rows sorted by time. Each event counts as arrived at its own time
    #[arg(required = true, value_name = "SOURCE=FILE", value_parser = source_file)]
    files: Vec<SourceFile>,
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

/// Imports source by source, once every source and file is known to be there. The event log is read in order of arrival, which for history is each
/// event's own time, so the order of the files does not matter.
pub(super) fn run(args: ImportArgs) -> Result<()> {
    let project = args.project.open()?;
    check(&project.definitions, &args.files)?;
    let store = super::store(project)?;
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
        let mut shown = Shown::new(&request.source);
        let imported = store.import_events(request, &mut |progress| shown.show(progress))?;
        drop(shown);
        println!(
            "{}: {} rows, {} new, {} known before, {} late for a window",
            request.source, imported.rows, imported.accepted, imported.duplicates, imported.late
        );
    }
    Ok(())
}

fn check(definitions: &Definitions, files: &[SourceFile]) -> Result<()> {
    for SourceFile { source, file } in files {
        if definitions.source(source).is_none() {
            let known = definitions.sources.iter().map(|source| &*source.name);
            match nearest(source, known) {
                Some(like) => bail!(
                    "source `{source}` is not defined in features.toml, did you mean `{like}`?"
                ),
                None => bail!("source `{source}` is not defined in features.toml"),
            }
        }
        std::fs::metadata(file).with_context(|| file.display().to_string())?;
    }
    Ok(())
}
