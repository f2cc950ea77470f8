//! RocksDB's MANIFEST, looked at before RocksDB reads it.
//!
//! The file tells, record by record, which table files make the database. RocksDB takes a record that leads
//! past the end of the file for a write that a crash cut off, and goes on without what follows it: the tables
//! that later records name are removed. One flipped bit of a length is enough. Behind a write that was cut
//! off there is nothing; where a whole record follows, the file is damaged.

use std::fs;
use std::io;
use std::path::Path;

/// A block of RocksDB's log format, in bytes; no record crosses its end.
const BLOCK_BYTES: usize = 32 << 10;
/// Of a record: CRC-32C of type and payload, masked (4 bytes), length of the payload (2), type (1).
const HEAD_BYTES: usize = 7;

/// Whether the MANIFEST of the database in `folder` holds records that RocksDB would not come to. Files that
/// are missing or unreadable are RocksDB's to report.
pub(super) fn hides_records(folder: &Path) -> io::Result<bool> {
    let Some(current) = read(&folder.join("CURRENT"))? else {
        return Ok(false);
    };
    let Ok(name) = std::str::from_utf8(&current) else {
        return Ok(false);
    };
    let log = read(&folder.join(name.trim_end()))?.unwrap_or_default();
    let end = end_of_reading(&log);
    Ok((end + 1..log.len()).any(|at| is_whole(&log, at)))
}

/// The name of the newest MANIFEST in `folder`.
pub(super) fn newest(folder: &Path) -> io::Result<Option<String>> {
    let mut newest = None;
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let name = name
            .to_str()
            .and_then(|name| name.strip_prefix("MANIFEST-"));
        newest = newest.max(name.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(newest.map(|number| format!("MANIFEST-{number:06}")))
}

fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    use io::ErrorKind::{InvalidInput, IsADirectory, NotFound};
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        // `CURRENT` may name anything.
        Err(error) if matches!(error.kind(), NotFound | IsADirectory | InvalidInput) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Where one stops who goes from record to record by their lengths.
fn end_of_reading(log: &[u8]) -> usize {
    let mut at = 0;
    loop {
        let left = BLOCK_BYTES - at % BLOCK_BYTES;
        match payload(log, at) {
            Some(payload) => at += HEAD_BYTES + payload.len(),
            None if left < HEAD_BYTES => at += left,
            None => return at,
        }
    }
}

/// The payload of the record at `at`, if one can be there.
fn payload(log: &[u8], at: usize) -> Option<&[u8]> {
    let head = log.get(at..at + HEAD_BYTES)?;
    let bytes = usize::from(u16::from_le_bytes([head[4], head[5]]));
    let in_block = at % BLOCK_BYTES + HEAD_BYTES + bytes <= BLOCK_BYTES;
    // Whole, or the first, a middle or the last part of one.
    let is_known = (1..=4).contains(&head[6]);
    let payload = log.get(at + HEAD_BYTES..at + HEAD_BYTES + bytes)?;
    (in_block && is_known).then_some(payload)
}

fn is_whole(log: &[u8], at: usize) -> bool {
    let Some(payload) = payload(log, at) else {
        return false;
    };
    let checked = &log[at + HEAD_BYTES - 1..at + HEAD_BYTES + payload.len()];
    log[at..].starts_with(&masked(crc32c(checked)).to_le_bytes())
}

/// As RocksDB stores it, so that the checksum of what holds checksums is none of them.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

/// Bit by bit: it is asked for where something is wrong, and for kilobytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    let fold = |crc: u32, byte: &u8| (0..8).fold(crc ^ u32::from(*byte), step);
    !bytes.iter().fold(!0, fold)
}

#[cfg(test)]
mod tests {
    use rocksdb::{DB, IteratorMode, Options};

    use super::*;

    #[test]
    fn a_checksum_is_that_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// A database whose MANIFEST has many records; where it lies, and where they begin.
    fn database() -> (tempfile::TempDir, std::path::PathBuf, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let mut options = Options::default();
        options.create_if_missing(true);
        let db = DB::open(&options, folder.path()).unwrap();
        for number in 0..20u8 {
            db.put([number], [number; 100]).unwrap();
            db.flush().unwrap();
        }
        drop(db);
        let current = fs::read_to_string(folder.path().join("CURRENT")).unwrap();
        let path = folder.path().join(current.trim_end());
        let log = fs::read(&path).unwrap();
        let mut starts = vec![0];
        while let Some(payload) = payload(&log, starts[starts.len() - 1]) {
            starts.push(starts[starts.len() - 1] + HEAD_BYTES + payload.len());
        }
        assert_eq!(starts.pop(), Some(log.len()));
        assert!(starts.len() > 20);
        (folder, path, starts)
    }

    #[test]
    fn a_length_that_leads_past_the_end_is_seen() {
        let (folder, path, starts) = database();
        let whole = fs::read(&path).unwrap();
        assert!(starts.iter().all(|&at| is_whole(&whole, at)));
        assert!(!hides_records(folder.path()).unwrap());
        let mut overlooked = 0;
        for pair in starts.windows(2) {
            let mut log = whole.clone();
            log[pair[0] + 5] |= 0x40;
            fs::write(&path, &log).unwrap();
            let hides = hides_records(folder.path()).unwrap();
            assert!(hides, "record at {}", pair[0]);
            let opened = DB::open_for_read_only(&Options::default(), folder.path(), false);
            let keys = opened.map(|db| db.iterator(IteratorMode::Start).count());
            overlooked += usize::from(keys.is_ok_and(|keys| keys < 20));
        }
        assert!(
            overlooked > 0,
            "RocksDB sees it by itself: this module can go"
        );
    }

    #[test]
    fn a_write_that_was_cut_off_is_none() {
        let (folder, path, starts) = database();
        let whole = fs::read(&path).unwrap();
        for end in starts[starts.len() - 3]..=whole.len() {
            fs::write(&path, &whole[..end]).unwrap();
            assert!(!hides_records(folder.path()).unwrap(), "cut at {end}");
        }
    }
}
