//! `loopgate feature stats`: the store's counters, and what the nightly verification found.
//!
//! Asks the gateway where one has the folder open, else opens the folder.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use featurestore::OpenError;
use hyper::Method;

use super::super::admin_client::Call;
use super::super::{ProjectArgs, block_on, print_json};

#[derive(Debug, Args)]
pub(crate) struct StatsArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The gateway's admin listener, where it is not the one of loopgate.toml
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
}

pub(super) fn run(args: &StatsArgs) -> Result<()> {
    let project = args.project.open()?;
    let tls = project.serve.security.tls.clone();
    let address = args.admin.unwrap_or(project.serve.listeners.admin);
    match super::open(project) {
        Ok(store) => print_json(&store.stats()),
        Err(held @ OpenError::Held { .. }) => {
            let call = Call {
                method: Method::GET,
                path: "/v1/features",
                body: Bytes::new(),
            };
            let answer = block_on(super::ask(call, address, tls.as_ref()));
            let mut answer = answer.with_context(|| held.to_string())?;
            let mut stats = answer["stats"].take();
            stats["verification"] = answer["verification"].take();
            print_json(&stats)
        }
        Err(error) => Err(error.into()),
    }
}
