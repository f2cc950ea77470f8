//! One process per data folder: an exclusive lock on `LOCK`, which names its holder.
//!
//! The kernel releases the lock with the process, however it ends; the file stays.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::OpenError;

/// The held lock; dropping it lets go.
#[derive(Debug)]
pub(crate) struct FolderLock {
    file: File,
}

impl Drop for FolderLock {
    /// Not by closing alone: a child that another thread is just starting holds a copy of the file until
    /// it runs its program.
    fn drop(&mut self) {
        // Where this fails, the lock goes with the last copy.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}

/// The lock file within the data folder.
const LOCK_FILE: &str = "LOCK";

impl FolderLock {
    /// Takes the lock on `folder` or says who has it.
    pub(crate) fn take(folder: &Path) -> Result<Self, OpenError> {
        let path = folder.join(LOCK_FILE);
        let failed = |source: std::io::Error| OpenError::Io {
            path: path.clone(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(OpenError::Held {
                    path: folder.to_owned(),
                    holder: holder(&mut file),
                });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        // Written over and then cut, so that a full disk is no hindrance.
        let text = format!("pid {}", std::process::id());
        file.write_all(text.as_bytes()).map_err(failed)?;
        file.set_len(text.len() as u64).map_err(failed)?;
        Ok(Self { file })
    }
}

/// What the holder wrote; it may be writing just now.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(64).read_to_string(&mut text) {
        Ok(_) if text.starts_with("pid ") => text.trim().to_owned(),
        _ => "another process".to_owned(),
    }
}
