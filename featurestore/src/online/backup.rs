//! A copy of a store that is in use: a whole data folder that any later version opens.
//!
//! The database is copied by the writer between two groups, so that what was acknowledged before the call is
//! in it, and of what comes after a prefix or nothing. Table files and sealed files never change: they are
//! hard links where the copy is on the same disk. Sealed files of a bucket are downloaded. Holds up the
//! writer for a flush of its buffers, and seals until all is copied; predictions wait for neither. The copy
//! appears under its name when it is whole.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use super::FeatureStore;
use super::mark::{Acked, Mark};
use super::shared::locked;
use crate::commit::Job;
use crate::offline::OfflineError;
use crate::offline::segments::{make_folder, sync_folder};

/// What a backup holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BackedUp {
    /// Events up to this sequence number, and maybe some more.
    pub last_seq: u64,
    /// Entries of the label log up to this number, and maybe some more.
    pub last_label_seq: u64,
    /// Files in it, those of the database included.
    pub files: u64,
}

/// Why there is no backup; what was begun is removed by the next attempt.
#[derive(Debug, Error)]
pub enum BackupError {
    /// Something is there already.
    #[error("{} exists: a backup needs a new folder", path.display())]
    Exists {
        /// The place that was asked for.
        path: PathBuf,
    },
    /// The copy would hold itself.
    #[error("{} lies in the data folder", path.display())]
    Inside {
        /// The place that was asked for.
        path: PathBuf,
    },
    /// A file or folder failed.
    #[error("could not copy to {}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Sealed files could not be read or written.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The database was not copied.
    #[error("online store: {0}")]
    Database(String),
}

impl FeatureStore {
    /// Copies the store, as it is, into the new folder `to`. What was acknowledged before is in it.
    /// Takes as long as copying the spool, and all other files where `to` is on another disk.
    pub fn backup(&self, to: &Path) -> Result<BackedUp, BackupError> {
        let shared = &self.inner.shared;
        let to = &std::path::absolute(to).map_err(failed(to))?;
        check_place(to, &shared.data_dir)?;
        let _no_seal = locked(&shared.sealing);
        let mut partial = to.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        begin(&partial).map_err(failed(&partial))?;
        // Before the database, which then knows the number of every spool file that was copied. Rows
        // that are written meanwhile may be torn, as by a crash.
        self.flush()
            .map_err(|error| BackupError::Database(error.to_string()))?;
        for name in ["spool", "quarantine"] {
            let copied = copy_folder(&shared.data_dir.join(name), &partial.join(name), copy_file);
            copied.map_err(failed(&partial.join(name)))?;
        }
        let acked = self.checkpoint(&partial.join("online"))?;
        let offline = partial.join("offline");
        if !shared.offline.download(&offline)? {
            let linked = copy_folder(&shared.data_dir.join("offline"), &offline, link_file);
            linked.map_err(failed(&offline))?;
        }
        let finish = || -> io::Result<u64> {
            Mark::open(&partial.join("acked"))?.0.write(acked)?;
            let files = count_files(&partial)?;
            sync_folder(&partial)?;
            fs::rename(&partial, to)?;
            to.parent().map_or(Ok(()), sync_folder)?;
            Ok(files)
        };
        Ok(BackedUp {
            last_seq: acked.seq,
            last_label_seq: acked.label_seq,
            files: finish().map_err(failed(to))?,
        })
    }

    /// Has the writer copy the database between two groups.
    fn checkpoint(&self, online: &Path) -> Result<Acked, BackupError> {
        let (sender, receiver) = crossbeam::channel::bounded(1);
        let job = Job::Checkpoint {
            folder: online.to_owned(),
            done: Box::new(move |copied| {
                // The receiver waits below.
                let _ = sender.send(copied);
            }),
        };
        self.inner
            .queue
            .submit(job)
            .map_err(|error| BackupError::Database(error.to_string()))?;
        let copied = receiver.recv();
        let copied = copied.unwrap_or_else(|_| Err("it has stopped writing".to_owned()));
        copied.map_err(BackupError::Database)
    }
}

/// A backup is a new folder outside of the data folder.
fn check_place(to: &Path, data_dir: &Path) -> Result<(), BackupError> {
    let path = to.to_owned();
    if to.symlink_metadata().is_ok() {
        return Err(BackupError::Exists { path });
    }
    let data_dir = fs::canonicalize(data_dir).map_err(failed(data_dir))?;
    // Of the folders above it those that are there say where it will lie.
    let above = to
        .ancestors()
        .find_map(|above| fs::canonicalize(above).ok());
    match above.is_some_and(|above| above.starts_with(data_dir)) {
        true => Err(BackupError::Inside { path }),
        false => Ok(()),
    }
}

/// An empty folder, whatever an earlier attempt left.
fn begin(partial: &Path) -> io::Result<()> {
    match fs::remove_dir_all(partial) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    make_folder(partial)
}

/// Copies a folder and what is in it, on disk when this returns; nothing where there is no such folder.
fn copy_folder(from: &Path, to: &Path, copy: fn(&Path, &Path) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    make_folder(to)?;
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_folder(&entry.path(), &target, copy)?;
        } else {
            copy(&entry.path(), &target)?;
        }
    }
    sync_folder(to)
}

/// For a file that is still written.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    fs::copy(from, to)?;
    File::open(to)?.sync_all()
}

/// For a file that will not change.
fn link_file(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy_file(from, to),
        linked => linked,
    }
}

fn count_files(folder: &Path) -> io::Result<u64> {
    let mut files = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files += match entry.file_type()?.is_dir() {
            true => count_files(&entry.path())?,
            false => 1,
        };
    }
    Ok(files)
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::Io { path, source }
}
