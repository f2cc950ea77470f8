//! `loopgate feature dataset`: training rows as a Parquet file that is named by its content.
//!
//! Beside a gateway it reads what is sealed: all up to the last hour, or the last training.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use clap::{Args, ValueEnum};
use featurestore::{OpenError, RowsFrom, TrainingQuery, sealed_dataset};
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
    super::check_times(args.from, args.to)?;
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
    let (data, out) = (project.data.clone(), args.out.as_path());
    let definitions = Arc::clone(&project.definitions);
    let dataset = match super::open(project) {
        Ok(store) => store.dataset(&query, features, out)?,
        Err(OpenError::Held { holder, .. }) => {
            eprintln!("{holder} has the data folder open: these are the rows that it has sealed");
            sealed_dataset(&data, &definitions, (&query, features), out)?
        }
        Err(error) => return Err(error.into()),
    };
    let about = &dataset.about;
    eprintln!(
        "{}: {} labelled rows of {}, {} left out that it refuses",
        dataset.file.display(),
        about.rows,
        about.service,
        dataset.refused
    );
    print_json(&dataset)
}
