//! `loopgate key`: makes, lists and revokes keys. A running gateway follows within a second.

use std::num::NonZeroU32;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, SecondsFormat};
use clap::{Args, Subcommand};

use super::{ProjectArgs, wall_ms};
use crate::config::{ServeArgs, ServeConfig};
use crate::keys::{KeyBook, KeyId, KeyRecord, NewKey, Scope};
use crate::rate::{Quota, Rate};

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it, once
    Create(CreateArgs),
    /// Show every key but not its secret
    List(BookArgs),
    /// Make a key worthless
    Revoke(RevokeArgs),
}

/// Which keys.
#[derive(Debug, Args)]
pub(crate) struct BookArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The file of keys, where there is no project
    #[arg(long, value_name = "FILE", conflicts_with_all = ["project", "data"])]
    file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    book: BookArgs,
    /// What the key may be used for; repeatable
    #[arg(long, required = true, value_name = "SCOPE")]
    scope: Vec<Scope>,
    /// Calls that it may make in a time: N/s, N/m or N/h
    #[arg(long, value_name = "RATE")]
    rate: Option<Rate>,
    /// Calls that it may make at once
    #[arg(long, value_name = "N", requires = "rate", default_value = "1")]
    burst: NonZeroU32,
}

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    book: BookArgs,
    /// The key's name, the part between `lg_` and `_`
    id: KeyId,
}

impl BookArgs {
    fn open(self) -> Result<KeyBook> {
        if let Some(file) = self.file {
            return Ok(KeyBook::at(file));
        }
        let config = ServeConfig::new(ServeArgs {
            project: Some(self.project.project),
            data: self.project.data,
            ..ServeArgs::default()
        })?;
        config.security.keys.context("a project has a data folder")
    }
}

pub(super) fn run(command: KeyCommand) -> Result<()> {
    match command {
        KeyCommand::Create(args) => create(args),
        KeyCommand::List(args) => {
            for key in args.open()?.read()? {
                println!("{}", line(&key));
            }
            Ok(())
        }
        KeyCommand::Revoke(args) => {
            args.book.open()?.revoke(args.id, wall_ms())?;
            println!("{} is revoked", args.id);
            Ok(())
        }
    }
}

/// The key alone goes to standard output, so that it can be piped to where it is kept.
fn create(args: CreateArgs) -> Result<()> {
    let mut scopes = args.scope;
    scopes.sort_unstable();
    scopes.dedup();
    ensure!(!scopes.is_empty(), "a key without a scope opens nothing");
    let burst = args.burst;
    let (record, secret) = args.book.open()?.create(NewKey {
        scopes,
        quota: args.rate.map(|rate| Quota { rate, burst }),
        created_ms: wall_ms(),
    })?;
    println!("{}", secret.reveal(record.id));
    eprintln!("this key is shown once and kept nowhere: store it now");
    Ok(())
}

fn line(key: &KeyRecord) -> String {
    let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let quota = key.quota().map_or("-".to_owned(), |quota| {
        format!("{} burst {}", quota.rate, quota.burst)
    });
    let state = key.revoked_ms.map_or("valid".to_owned(), |at_ms| {
        format!("revoked {}", day_and_time(at_ms))
    });
    let created = day_and_time(key.created_ms);
    format!(
        "{}\t{}\t{quota}\t{created}\t{state}",
        key.id,
        scopes.join(",")
    )
}

fn day_and_time(at_ms: i64) -> String {
    let at = DateTime::from_timestamp_millis(at_ms);
    at.map_or(at_ms.to_string(), |at| {
        at.to_rfc3339_opts(SecondsFormat::Secs, true)
    })
}
