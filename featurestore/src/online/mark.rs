//! The high-water mark: a file beside the database that says what has been acknowledged.
//!
//! RocksDB takes a write-ahead log that was cut at a record boundary for a complete one. The mark is
//! written every [`GROUPS_PER_MARK`] groups and at close, so a cut of more than that is seen at open;
//! a cut of less is not. Two slots are written in turn, so that a torn write leaves the other.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sha2::{Digest, Sha256};

/// What was on disk when the mark was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
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
    written: u64,
    groups: u64,
}

const GROUPS_PER_MARK: u64 = 64;
const SLOT_BYTES: usize = 64;
const MAGIC: &[u8; 8] = b"lgmark01";

impl Mark {
    /// Opens or makes the file and reads the newest whole slot.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Acked)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut acked = Acked::default();
        for slot in 0..2 {
            let mut bytes = [0; SLOT_BYTES];
            if file
                .read_exact_at(&mut bytes, slot * SLOT_BYTES as u64)
                .is_ok()
                && let Some(found) = decode(&bytes)
                && (found.seq, found.label_seq) > (acked.seq, acked.label_seq)
            {
                acked = found;
            }
        }
        let mark = Self {
            file,
            written: 0,
            groups: 0,
        };
        Ok((mark, acked))
    }

    /// Counts a committed group and writes the mark when it is due.
    pub(crate) fn committed(&mut self, acked: Acked) -> io::Result<()> {
        self.groups += 1;
        if self.groups.is_multiple_of(GROUPS_PER_MARK) {
            self.write(acked)?;
        }
        Ok(())
    }

    /// Writes the mark and waits until it is on disk.
    pub(crate) fn write(&mut self, acked: Acked) -> io::Result<()> {
        let slot = self.written % 2;
        self.file
            .write_all_at(&encode(acked), slot * SLOT_BYTES as u64)?;
        self.file.sync_data()?;
        self.written += 1;
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
        let (mut mark, found) = Mark::open(&path).unwrap();
        assert_eq!(found, Acked::default());
        mark.write(acked(10)).unwrap();
        mark.write(acked(20)).unwrap();
        assert_eq!(Mark::open(&path).unwrap().1, acked(20));
        mark.write(acked(30)).unwrap();
        assert_eq!(Mark::open(&path).unwrap().1, acked(30));
        // A torn write of the first slot leaves the second.
        mark.file.write_all_at(b"torn", 10).unwrap();
        assert_eq!(Mark::open(&path).unwrap().1, acked(20));
    }
}
