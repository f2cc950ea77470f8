//! `loopgate backup TO`: a copy of the data folder, of a gateway that serves or of one that does not.
//!
//! The store is copied by whoever has it open; registry and artifacts beside it, the registry first, so that
//! every artifact that it names is there. The copy appears under its name when it is whole and on disk.
//! It is a data folder: to restore it, put it where the data folder was.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use featurestore::OpenError;
use hyper::Method;
use serde_json::{Value, json};

use super::admin_client::Call;
use super::{Project, ProjectArgs, block_on, feature, print_json};
use crate::control::{LAST_GOOD, REGISTRY};

#[derive(Debug, Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    project: ProjectArgs,
    /// The gateway's admin listener, where it is not the one of loopgate.toml
    #[arg(long, value_name = "ADDR")]
    admin: Option<SocketAddr>,
    /// Where the copy will be: a folder that does not exist yet
    #[arg(value_name = "TO")]
    to: PathBuf,
}

pub(super) fn run(args: &BackupArgs) -> Result<()> {
    let project = args.project.open()?;
    let data = project.data.clone();
    let to = std::path::absolute(&args.to)?;
    if to.symlink_metadata().is_ok() {
        bail!("{} exists: a backup needs a new folder", to.display());
    }
    let mut begun = to.clone().into_os_string();
    begun.push(".begun");
    let begun = PathBuf::from(begun);
    if begun.exists() {
        fs::remove_dir_all(&begun)?;
    }
    let stored = store(project, args.admin, &begun)?;
    if data.join(REGISTRY).exists() {
        block_on(registry(&data, &begun))?;
    }
    link_folder(&data.join("artifacts"), &begun.join("artifacts"))?;
    if data.join(LAST_GOOD).exists() {
        fs::copy(data.join(LAST_GOOD), begun.join(LAST_GOOD))?;
        File::open(begun.join(LAST_GOOD))?.sync_all()?;
    }
    File::open(&begun)?.sync_all()?;
    fs::rename(&begun, &to)?;
    if let Some(parent) = to.parent() {
        File::open(parent)?.sync_all()?;
    }
    print_json(&json!({"backup": to, "store": stored}))
}

/// Copies the store in this process or, where a gateway has it open, in the gateway.
fn store(project: Project, admin: Option<SocketAddr>, to: &Path) -> Result<Value> {
    let tls = project.serve.security.tls.clone();
    let address = admin.unwrap_or(project.serve.listeners.admin);
    match feature::open(project) {
        Ok(store) => Ok(serde_json::to_value(store.backup(to)?)?),
        Err(held @ OpenError::Held { .. }) => {
            let call = Call {
                method: Method::POST,
                path: "/v1/backup",
                body: Bytes::from(json!({"to": to}).to_string()),
            };
            let answer = block_on(feature::ask(call, address, tls.as_ref()));
            answer.with_context(|| held.to_string())
        }
        Err(error) => Err(error.into()),
    }
}

async fn registry(data: &Path, to: &Path) -> Result<()> {
    let registry = crate::control::open_registry(data).await?;
    let copied = registry.copy_database(&to.join(REGISTRY)).await;
    registry.close().await;
    Ok(copied?)
}

/// Links the files of a folder that never change, or copies them to another disk; on disk when this returns.
fn link_folder(from: &Path, to: &Path) -> io::Result<()> {
    if !from.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (entry, target) = entry.map(|it| (it.path(), to.join(it.file_name())))?;
        if entry.is_dir() {
            link_folder(&entry, &target)?;
        } else if let Err(error) = fs::hard_link(&entry, &target) {
            match error.kind() {
                io::ErrorKind::CrossesDevices => {
                    fs::copy(&entry, &target)?;
                    File::open(&target)?.sync_all()?;
                }
                // Swept meanwhile: unfinished, and so named by nothing.
                io::ErrorKind::NotFound => {}
                _ => return Err(error),
            }
        }
    }
    File::open(to)?.sync_all()
}
