//! Load, scenarios and the demo's replay. It sees URLs and processes, and none of our crates.

mod account;
mod bare;
mod chart;
mod client;
mod command;
mod demo;
mod deployment;
mod finding;
mod flights;
mod html;
mod load;
mod machine;
mod models;
mod onnx;
mod process;
mod project;
mod question;
mod record;
mod replay;
mod report;
mod scenario;
mod score;
mod served;
mod server;
mod shop;
mod timeline;

use clap::Parser;

use crate::command::Command;

fn main() -> anyhow::Result<()> {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    tokio::task::LocalSet::new().block_on(&runtime, command.run())
}
