//! The high-water mark: a file beside the database that says what has been acknowledged.
//!
//! RocksDB takes a write-ahead log that was cut at a record boundary, or that is damaged from some record
//! on, for one that ends there. The mark is handed to the kernel with every group, after the group is on
//! disk and before it is answered, so that any such cut is seen at open; it is fsynced every
//! [`GROUPS_PER_MARK`] groups and at close, so that after a power cut one of more than that is seen.
//!
//! Two slots are fsynced in turn, so that a torn write leaves the other. The third, on a page of its own,
//! takes what is not fsynced.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::offline::segments::sync_folder;

/// What was on disk when the mark was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Acked {
    /// Last event.
    pub(crate) seq: u64,
    /// Last label log entry.
    pub(crate) label_seq: u64,
}

/// The open file.
#[derive(Debug)]
pub(crate) struct Mark {
    file: File,
    /// The fsynced slot that is written next.
    turn: usize,
    groups: u64,
}

const GROUPS_PER_MARK: u64 = 64;
const SLOT_BYTES: usize = 64;
/// Where the slots lie: two that are fsynced, one that is not.
const SLOTS: [u64; 3] = [0, SLOT_BYTES as u64, 4096];
const MAGIC: &[u8; 8] = b"lgmark01";

impl Mark {
    /// Opens or makes the file, its name on disk, and reads the newest whole slot; `None` where there is
    /// none.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Option<Acked>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        path.parent().map_or(Ok(()), sync_folder)?;
        let found = SLOTS.map(|at| {
            let mut bytes = [0; SLOT_BYTES];
            let read = file.read_exact_at(&mut bytes, at);
            read.ok().and_then(|()| decode(&bytes))
        });
        let mark = Self {
            file,
            turn: usize::from(found[0] > found[1]),
            groups: 0,
        };
        Ok((mark, found.into_iter().max().flatten()))
    }

    /// Notes a group that is on disk.
    pub(crate) fn committed(&mut self, acked: Acked) -> io::Result<()> {
        self.groups += 1;
        if self.groups.is_multiple_of(GROUPS_PER_MARK) {
            self.write(acked)?;
        }
        self.file.write_all_at(&encode(acked), SLOTS[2])
    }

    /// Writes the mark and waits until it is on disk.
    pub(crate) fn write(&mut self, acked: Acked) -> io::Result<()> {
        self.file.write_all_at(&encode(acked), SLOTS[self.turn])?;
        self.file.sync_data()?;
        self.turn = 1 - self.turn;
        Ok(())
    }
}

fn encode(acked: Acked) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..16].copy_from_slice(&acked.seq.to_le_bytes());
    bytes[16..24].copy_from_slice(&acked.label_seq.to_le_bytes());
    let digest = Sha256::digest(&bytes[..24]);
    bytes[24..56].copy_from_slice(&digest);
    bytes
}

fn decode(bytes: &[u8; SLOT_BYTES]) -> Option<Acked> {
    let digest = Sha256::digest(&bytes[..24]);
    let number = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
    if &bytes[..8] != MAGIC || bytes[24..56] != digest[..] {
        return None;
    }
    Some(Acked {
        seq: number(8)?,
        label_seq: number(16)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_whole_slot_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mark");
        let acked = |seq| Acked { seq, label_seq: 3 };
        let newest = || Mark::open(&path).unwrap().1;
        let (mut mark, found) = Mark::open(&path).unwrap();
        assert_eq!(found, None);
        mark.write(acked(10)).unwrap();
        mark.write(acked(20)).unwrap();
        assert_eq!(newest(), Some(acked(20)));
        mark.write(acked(30)).unwrap();
        assert_eq!(newest(), Some(acked(30)));
        mark.committed(acked(31)).unwrap();
        assert_eq!(newest(), Some(acked(31)));
        // What was not fsynced is lost, or the last fsync was torn: the others are left.
        mark.file.write_all_at(b"torn", SLOTS[2] + 10).unwrap();
        assert_eq!(newest(), Some(acked(30)));
        mark.file.write_all_at(b"torn", SLOTS[0] + 10).unwrap();
        assert_eq!(newest(), Some(acked(20)));
        // The next process writes over the torn slot, not over the whole one.
        Mark::open(&path).unwrap().0.write(acked(40)).unwrap();
        mark.file.write_all_at(b"torn", SLOTS[0] + 10).unwrap();
        assert_eq!(newest(), Some(acked(20)));
    }
}
