//! Space that is kept back for the time when the disk is full, and how much is left beside it.
//!
//! The file `reserve` of the data folder takes as much as RocksDB's write buffers hold, so that all of them
//! can be flushed, manifests written and a restart done when somebody else has filled the disk. The writer
//! takes no batch once less than a quarter of that is left beside it; where a write fails for want of space
//! all the same, it removes the file. It is made again, and batches are taken again, when half of it is left
//! beside it. Costs one `statvfs` a group.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// The name within the data folder.
const RESERVE: &str = "reserve";
/// What the reserve takes of a small disk at most.
const SHARE_OF_DISK: u64 = 16;

/// The reserve of one data folder.
#[derive(Debug)]
pub(crate) struct Reserve {
    folder: PathBuf,
    path: PathBuf,
    bytes: u64,
    held: bool,
}

impl Reserve {
    /// As the folder has it; nothing is taken or given back yet.
    pub(crate) fn find(folder: &Path, write_buffers_bytes: usize) -> Self {
        let disk =
            statvfs(folder).map_or(u64::MAX, |disk| disk.f_blocks.saturating_mul(disk.f_frsize));
        let bytes = (write_buffers_bytes as u64).min(disk / SHARE_OF_DISK);
        let path = folder.join(RESERVE);
        let held = fs::metadata(&path).is_ok_and(|file| file.blocks() * 512 >= bytes);
        Self {
            folder: folder.to_owned(),
            path,
            bytes,
            held,
        }
    }

    /// Whether so little is left that nothing more may be written but what frees space.
    pub(crate) fn is_low(&self) -> bool {
        self.beside() < self.bytes / 4
    }

    /// Whether there is space to go on.
    pub(crate) fn is_ample(&self) -> bool {
        self.beside() >= self.bytes / 2
    }

    /// Gives the space back: to RocksDB, to seals, to a start.
    pub(crate) fn release(&mut self) {
        match fs::remove_file(&self.path) {
            Ok(()) => tracing::warn!(bytes = self.bytes, "reserved space is given up"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(%error, "reserved space could not be given up"),
        }
        self.held = false;
    }

    /// Takes the space where it is not held and can be had. A file system that cannot set space aside has
    /// no reserve, only the limit.
    pub(crate) fn hold(&mut self) {
        if self.held || !self.is_ample() {
            return;
        }
        let taken = File::create(&self.path).and_then(|file| {
            let taken = fallocate(&file, FallocateFlags::empty(), 0, self.bytes);
            taken.map_err(std::io::Error::from)
        });
        match taken {
            Ok(()) => self.held = true,
            Err(error) => {
                tracing::warn!(%error, bytes = self.bytes, "no space could be reserved");
                self.release();
            }
        }
    }

    /// Bytes that others may take before the reserve is touched; where that is not known, no end of them.
    fn beside(&self) -> u64 {
        let Ok(disk) = statvfs(&self.folder) else {
            return u64::MAX;
        };
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        match self.held {
            true => free,
            false => free.saturating_sub(self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_takes_its_space_and_gives_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut reserve = Reserve::find(folder.path(), 1 << 20);
        assert!(!reserve.held && reserve.is_ample() && !reserve.is_low());
        reserve.hold();
        let taken = || fs::metadata(folder.path().join(RESERVE)).map(|file| file.blocks() * 512);
        assert!(taken().unwrap() >= 1 << 20);
        // The next process finds it; one with other sizes makes it anew.
        assert!(Reserve::find(folder.path(), 1 << 20).held);
        let mut larger = Reserve::find(folder.path(), 3 << 20);
        assert!(!larger.held);
        larger.hold();
        assert!(taken().unwrap() >= 3 << 20);
        larger.release();
        assert!(taken().is_err() && !larger.held);
    }
}
