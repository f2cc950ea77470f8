//! `loopgate feature backfill`: training rows of the past, point in time.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use featurestore::BackfillRequest;
use registry::ModelName;

use super::super::ProjectArgs;
use super::progress::Shown;

#[derive(Debug, Args)]
pub(crate) struct BackfillArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model that the rows are for
    #[arg(long)]
    model: ModelName,
    /// The service's request fields, `request_id`, `at`, `label` and `label_known_at`, sorted by `at`;
    /// `.parquet`, `.csv`, or JSON lines of any other ending
    file: PathBuf,
}

pub(super) fn run(args: &BackfillArgs) -> Result<()> {
    let project = args.project.open()?;
    let request = BackfillRequest {
        model: args.model.as_str().into(),
        service: super::service_of(&project, &args.model)?,
        file: args.file.clone(),
    };
    let store = super::store(project)?;
    let mut shown = Shown::new(args.model.as_str());
    let made = store.backfill(&request, &mut |progress| shown.show(progress))?;
    drop(shown);
    println!(
        "{}: {} rows, {} with a label, in {} files",
        args.model, made.rows, made.labels, made.files
    );
    Ok(())
}
