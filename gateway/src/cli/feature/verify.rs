//! `loopgate feature verify`: served rows against what the event log gives for them.

use anyhow::{Result, bail};
use clap::Args;
use featurestore::VerifyReport;
use registry::ModelName;

use super::super::{ProjectArgs, print_json};
use super::text::{table, time};

#[derive(Debug, Args)]
pub(crate) struct VerifyArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The model whose rows are verified
    #[arg(long)]
    model: ModelName,
    /// Rows to recompute
    #[arg(long, default_value_t = 1000)]
    sample: usize,
    /// Which rows
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON, and leave the judgement to the reader
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &VerifyArgs) -> Result<()> {
    let project = args.project.open()?;
    let service = super::service_of(&project, &args.model)?;
    // In every version: rows of the one before were served, too.
    let name = service.split_once('@').map_or(&*service, |(name, _)| name);
    let store = super::store(project)?;
    let report = store.verify(args.model.as_str(), name, args.sample, args.seed)?;
    if args.json {
        return print_json(&report);
    }
    println!(
        "{} rows checked, {} differ",
        report.rows_checked, report.mismatches
    );
    if report.mismatches > 0 {
        print!("{}", differing(&report));
        bail!("served rows differ from recomputed ones");
    }
    Ok(())
}

/// Rows by feature, worst first, then examples.
fn differing(report: &VerifyReport) -> String {
    let mut features: Vec<_> = report.features.iter().collect();
    features.sort_by_key(|(_, rows)| std::cmp::Reverse(**rows));
    let features = features
        .into_iter()
        .map(|(feature, rows)| vec![feature.clone(), format!("in {rows} rows")]);
    let head = ["feature", "prediction", "at", "served", "recomputed"];
    let mut examples = vec![head.map(str::to_owned).to_vec()];
    examples.extend(report.examples.iter().map(|example| {
        let prediction = match &example.request_id {
            Some(id) => format!("{} ({id})", example.prediction),
            None => example.prediction.clone(),
        };
        vec![
            example.feature.clone(),
            prediction,
            time(example.at_ms),
            example.served.clone(),
            example.recomputed.clone(),
        ]
    }));
    let features = table("  ", &features.collect::<Vec<_>>());
    format!("{features}\n{}", table("  ", &examples))
}
