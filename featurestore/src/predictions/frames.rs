//! Frames with checksums around a stream of bytes: a spool file shows where it was torn or damaged.
//!
//! Arrow's IPC has no checksum: a flipped bit would be another feature value. A file starts with
//! [`MAGIC`]; a frame is the length of its bytes, their CRC-32, the CRC-32 of these two numbers, each u32
//! little endian, and the bytes. A file without the magic is of before frames, and is read as it is.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::path::Path;
use std::rc::Rc;

/// The first bytes of a file of frames; those of an Arrow stream are others.
const MAGIC: &[u8; 8] = b"lgframe1";
/// The first bytes of a file of before frames.
const ARROW: &[u8] = &[0xff; 4];
const HEAD_BYTES: usize = 12;
/// A frame is a few record batches; more is damage.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Collects what is written into one frame until it is flushed.
pub(crate) struct FrameWriter {
    file: File,
    frame: Vec<u8>,
}

impl FrameWriter {
    /// Starts a file.
    pub(crate) fn start(mut file: File) -> io::Result<Self> {
        file.write_all(MAGIC)?;
        Ok(Self {
            file,
            frame: vec![0; HEAD_BYTES],
        })
    }
}

impl Write for FrameWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.frame.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Hands the frame to the kernel, with one write.
    fn flush(&mut self) -> io::Result<()> {
        let (head, bytes) = self.frame.split_at_mut(HEAD_BYTES);
        if bytes.is_empty() {
            return Ok(());
        }
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        head[..4].copy_from_slice(&length.to_le_bytes());
        head[4..8].copy_from_slice(&crc32fast::hash(bytes).to_le_bytes());
        let of_head = crc32fast::hash(&head[..8]);
        head[8..].copy_from_slice(&of_head.to_le_bytes());
        self.file.write_all(&self.frame)?;
        self.frame.truncate(HEAD_BYTES);
        Ok(())
    }
}

/// Where a file stops being what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It ends in the middle of a frame, as a crash leaves it: nothing follows.
    Torn,
    /// The frame that starts at this byte is not what was written; others may follow.
    Damaged(u64),
}

/// Reads the bytes of whole frames; ends at the first flaw.
pub(crate) struct FrameReader {
    file: BufReader<File>,
    frame: io::Cursor<Vec<u8>>,
    /// Where the next frame starts.
    at: u64,
    framed: bool,
    flaw: Rc<Cell<Option<Flaw>>>,
}

impl FrameReader {
    /// Opens a file; the flaw that is found while it is read will be in the cell.
    pub(crate) fn open(path: &Path) -> io::Result<(Self, Rc<Cell<Option<Flaw>>>)> {
        let mut file = BufReader::new(File::open(path)?);
        let mut magic = [0; MAGIC.len()];
        let found = fill(&mut file, &mut magic)?;
        let framed = magic == *MAGIC;
        let flaw = Rc::default();
        if found < magic.len() {
            Cell::set(&flaw, Some(Flaw::Torn));
        } else if !framed && !magic.starts_with(ARROW) {
            Cell::set(&flaw, Some(Flaw::Damaged(0)));
        }
        if !framed {
            file.rewind()?;
        }
        let reader = Self {
            file,
            frame: io::Cursor::default(),
            at: MAGIC.len() as u64,
            framed,
            flaw: Rc::clone(&flaw),
        };
        Ok((reader, flaw))
    }

    /// Reads the next frame; whether there was one.
    fn advance(&mut self) -> io::Result<bool> {
        if self.flaw.get().is_some() {
            return Ok(false);
        }
        let mut head = [0; HEAD_BYTES];
        let found = fill(&mut self.file, &mut head)?;
        if found < HEAD_BYTES {
            self.flaw.set((found > 0).then_some(Flaw::Torn));
            return Ok(false);
        }
        let number =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = number(0) as usize;
        if number(8) != crc32fast::hash(&head[..8]) || length > FRAME_BYTES_MAX {
            self.flaw.set(Some(Flaw::Damaged(self.at)));
            return Ok(false);
        }
        let bytes = self.frame.get_mut();
        bytes.clear();
        (&mut self.file).take(length as u64).read_to_end(bytes)?;
        let whole = bytes.len() == length;
        if !whole || number(4) != crc32fast::hash(bytes) {
            let flaw = if whole {
                Flaw::Damaged(self.at)
            } else {
                Flaw::Torn
            };
            self.flaw.set(Some(flaw));
            bytes.clear();
            return Ok(false);
        }
        self.at += (HEAD_BYTES + length) as u64;
        self.frame.set_position(0);
        Ok(true)
    }
}

impl Read for FrameReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if !self.framed {
            return match self.flaw.get() {
                None => self.file.read(out),
                Some(_) => Ok(0),
            };
        }
        loop {
            let read = self.frame.read(out)?;
            if read > 0 || out.is_empty() || !self.advance()? {
                return Ok(read);
            }
        }
    }
}

/// Reads until `out` is full or the file ends; how much there was.
fn fill(file: &mut impl Read, out: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < out.len() {
        match file.read(&mut out[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// A file of frames of these lengths, and what was written into each.
    fn written(lengths: &[usize]) -> (tempfile::NamedTempFile, Vec<Vec<u8>>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = FrameWriter::start(file.reopen().unwrap()).unwrap();
        let mut random = StdRng::seed_from_u64(3);
        let frames = lengths.iter().map(|length| {
            let bytes: Vec<u8> = (0..*length).map(|_| random.random()).collect();
            writer.write_all(&bytes).unwrap();
            writer.flush().unwrap();
            bytes
        });
        let frames = frames.collect();
        (file, frames)
    }

    fn read(bytes: &[u8]) -> (Vec<u8>, Option<Flaw>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, bytes).unwrap();
        let (mut reader, flaw) = FrameReader::open(file.path()).unwrap();
        let mut found = Vec::new();
        reader.read_to_end(&mut found).unwrap();
        (found, flaw.get())
    }

    #[test]
    fn whole_frames_come_back_wherever_the_file_is_cut() {
        let lengths = [10, 1, 3000, 700];
        let (file, frames) = written(&lengths);
        let bytes = std::fs::read(file.path()).unwrap();
        assert_eq!(read(&bytes), (frames.concat(), None));
        for cut in MAGIC.len()..bytes.len() {
            let mut end = MAGIC.len();
            let whole = lengths.iter().take_while(|length| {
                end += HEAD_BYTES + **length;
                end <= cut
            });
            let whole = whole.count();
            let start: usize = lengths[..whole].iter().map(|it| HEAD_BYTES + it).sum();
            let flaw = (start + MAGIC.len() < cut).then_some(Flaw::Torn);
            assert_eq!(
                read(&bytes[..cut]),
                (frames[..whole].concat(), flaw),
                "{cut}"
            );
        }
    }

    #[test]
    fn a_flipped_bit_is_found_and_ends_the_file_before_its_frame() {
        let (file, frames) = written(&[10, 1, 3000, 700]);
        let bytes = std::fs::read(file.path()).unwrap();
        let mut random = StdRng::seed_from_u64(4);
        for _ in 0..1000 {
            let mut flipped = bytes.clone();
            let at = random.random_range(0..bytes.len());
            flipped[at] ^= 1 << random.random_range(0..8);
            let (found, flaw) = read(&flipped);
            let whole = (0..=frames.len()).find(|whole| frames[..*whole].concat() == found);
            assert!(whole.is_some_and(|whole| whole < frames.len()), "byte {at}");
            assert!(
                matches!(flaw, Some(Flaw::Damaged(_))),
                "byte {at}: {flaw:?}"
            );
        }
    }
}
