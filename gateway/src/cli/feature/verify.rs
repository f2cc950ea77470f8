//! `loopgate feature verify`: served rows against what the event log gives for them.

use anyhow::{Result, bail};
use clap::Args;
use registry::ModelName;

use super::super::{ProjectArgs, print_json};

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
    let store = super::store(project)?;
    let report = store.verify(args.model.as_str(), &service, args.sample, args.seed)?;
    if args.json {
        return print_json(&report);
    }
    println!(
        "{} rows checked, {} differ",
        report.rows_checked, report.mismatches
    );
    if report.mismatches > 0 {
        print_json(&report.examples)?;
        bail!("served rows differ from recomputed ones");
    }
    Ok(())
}
