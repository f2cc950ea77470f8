//! `loopgate feature dataset`: training rows as a Parquet file that is named by its content.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use featurestore::{RowsFrom, TrainingQuery};
use registry::ModelName;

use super::super::{ProjectArgs, print_json};
use super::get::parse_time;

#[derive(Debug, Args)]
pub(crate) struct DatasetArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model whose labelled requests are the rows
    #[arg(long)]
    model: ModelName,
    /// The feature service, where it is not the model's: a new one has rows over all past traffic
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Features as they were served, or computed anew from the events
    #[arg(long, value_enum, default_value_t = Features::Served)]
    features: Features,
    /// Predicted at or after: RFC 3339, or milliseconds
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    from: i64,
    /// Predicted before
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to: i64,
    /// Labels that had arrived by then; default `--to`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    known_by: Option<i64>,
    /// The folder to write into
    #[arg(long, value_name = "DIR", default_value = "datasets")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Features {
    Served,
    Recomputed,
}

pub(super) fn run(args: &DatasetArgs) -> Result<()> {
    let project = args.project.open()?;
    let service = match &args.service {
        Some(service) => service.clone(),
        None => super::service_of(&project, &args.model)?,
    };
    let query = TrainingQuery {
        model: args.model.as_str().to_owned(),
        service,
        from_ms: args.from,
        to_ms: args.to,
        known_by_ms: args.known_by.unwrap_or(args.to),
    };
    let features = match args.features {
        Features::Served => RowsFrom::Served,
        Features::Recomputed => RowsFrom::Recomputed,
    };
    print_json(&super::store(project)?.dataset(&query, features, &args.out)?)
}
