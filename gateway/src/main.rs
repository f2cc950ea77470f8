//! `loopgate`: an inference gateway with its training loop attached.
//!
//! The data plane answers predictions, events and labels (`predict`, `ingest`); the control plane
//! decides which versions do (`table` is where they meet).

mod access;
mod admin;
mod admission;
mod batcher;
mod breaker;
mod cli;
mod clock;
mod cold;
mod config;
mod control;
mod cost;
mod execute;
mod feast;
mod feature_rows;
mod features;
mod grpc;
mod http;
mod ingest;
mod keys;
mod listener;
mod lookup;
mod metrics;
mod oip;
#[cfg(test)]
#[path = "../tests/gateway/onnx.rs"]
mod onnx;
mod page;
mod pool;
mod predict;
mod prepare;
mod rate;
mod reaper;
mod recorder;
mod repository;
mod route;
mod routing;
mod serve;
mod shadow;
mod table;
mod tls;
mod watched;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::cli::Cli;

/// Model swaps fragment the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_env("LOOPGATE_LOG").unwrap_or_else(|_| "info".into()))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match cli::run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loopgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}
