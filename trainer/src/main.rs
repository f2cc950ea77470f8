//! `loopgate-trainer`: one pipeline run as its own process.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Parser;

use command::{Arguments, STOPPED};

mod candidate;
mod command;
mod experiment;
mod export;
mod gates;
mod golden;
mod journal;
mod learner;
mod progress;
mod recipe;
mod register;
mod rows;
mod run;
mod score;
#[cfg(test)]
mod synthetic;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    progress::log_to_stderr();
    let stop = progress::Stop::default();
    if arguments.exit_with_stdin() {
        stop.clone().ask_at_end_of_stdin(exit_now);
    }
    match command::obey(arguments, now_ms, stop).await {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("loopgate-trainer: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "main's own thread may be the one that hangs"
)]
fn exit_now() {
    std::process::exit(i32::from(STOPPED));
}

fn now_ms() -> i64 {
    let since_epoch = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    since_epoch.as_millis() as i64
}
