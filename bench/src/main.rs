//! Load, scenarios and the demo's replay. It sees URLs and processes, and none of our crates.

mod client;
mod command;
mod demo;
mod flights;
mod html;
mod process;
mod project;
mod replay;
mod report;
mod score;
mod served;
mod steady;
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
