//! `loopgate feature export`: events of a source, or rows that a model was served, into one file.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use featurestore::{ExportRequest, ExportWhat};
use registry::ModelName;

use super::super::ProjectArgs;
use super::get::parse_time;

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The events of this source
    #[arg(long, value_name = "SOURCE", conflicts_with = "model")]
    source: Option<String>,
    /// The rows that this model answered from
    #[arg(long, value_name = "MODEL")]
    model: Option<ModelName>,
    /// Feature service of the rows, where it is not the newest version of the model's
    #[arg(long, value_name = "SERVICE", requires = "model")]
    service: Option<String>,
    /// From this time on: RFC 3339, or milliseconds. Default the beginning
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: Option<i64>,
    /// Before this time. Default the end
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: Option<i64>,
    /// `.parquet`, `.csv`, or JSON lines of any other ending; must not be there yet
    file: PathBuf,
}

pub(super) fn run(args: ExportArgs) -> Result<()> {
    if let (Some(from_ms), Some(to_ms)) = (args.from, args.to) {
        super::check_times(from_ms, to_ms)?;
    }
    let project = args.project.open()?;
    let what = match (args.source, args.model) {
        (Some(source), None) => ExportWhat::Events { source },
        (None, Some(model)) => ExportWhat::Rows {
            service: match args.service {
                Some(service) => service,
                None => super::service_of(&project, &model)?,
            },
            model: model.as_str().to_owned(),
        },
        _ => bail!("say what to export: `--source SOURCE` or `--model MODEL`"),
    };
    let request = ExportRequest {
        what,
        from_ms: args.from.unwrap_or(i64::MIN),
        to_ms: args.to.unwrap_or(i64::MAX),
        file: args.file,
    };
    let store = super::store(project)?;
    let rows = store.export(&request, &mut |_| ControlFlow::Continue(()))?;
    println!("{}: {rows} rows", request.file.display());
    Ok(())
}
