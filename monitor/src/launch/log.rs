//! A run's log: bounded, and the oldest make room.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use registry::ModelName;

/// Run logs kept for one model; the oldest go first.
const LOGS_MAX: usize = 100;

/// Makes the log, its folder, and room for it.
pub(super) fn open(path: &Path, model: &ModelName) -> io::Result<File> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let prefix = format!("{model}-");
    let mut logs: Vec<PathBuf> = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            // Another model's name may begin with ours.
            name.and_then(|name| name.strip_prefix(&prefix)?.strip_suffix(".log"))
                .is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()))
        })
        .collect();
    logs.sort();
    let surplus = logs.len().saturating_sub(LOGS_MAX - 1);
    for old in &logs[..surplus] {
        fs::remove_file(old)?;
    }
    File::create(path)
}

/// The first and the last half of an output; the tail is written when it ends.
pub(super) struct BoundedLog {
    file: File,
    head_left: usize,
    tail: Vec<u8>,
    tail_bytes_max: usize,
    left_out: u64,
}

impl BoundedLog {
    pub(super) fn new(file: File, bytes_max: u64) -> BoundedLog {
        let half = usize::try_from(bytes_max / 2).unwrap_or(usize::MAX);
        BoundedLog {
            file,
            head_left: half,
            tail: Vec::new(),
            tail_bytes_max: half,
            left_out: 0,
        }
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        let (head, rest) = bytes.split_at(bytes.len().min(self.head_left));
        self.head_left -= head.len();
        self.write(head);
        self.tail.extend_from_slice(rest);
        // Cut at twice the size, so that each byte is moved about once.
        if self.tail.len() > self.tail_bytes_max.saturating_mul(2) {
            self.cut();
        }
    }

    fn cut(&mut self) {
        let surplus = self.tail.len().saturating_sub(self.tail_bytes_max);
        self.tail.drain(..surplus);
        self.left_out += surplus as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.file.write_all(bytes) {
            tracing::debug!(%error, "run log is cut short");
        }
    }
}

impl Drop for BoundedLog {
    fn drop(&mut self) {
        self.cut();
        if self.left_out > 0 {
            self.write(format!("\n… {} bytes left out …\n", self.left_out).as_bytes());
        }
        let tail = std::mem::take(&mut self.tail);
        self.write(&tail);
    }
}

/// The last lines of a log, for a decision's evidence.
pub(crate) fn tail_of(log: &Path) -> String {
    const BYTES_MAX: usize = 2000;
    let bytes = fs::read(log).unwrap_or_default();
    let from = bytes.len().saturating_sub(BYTES_MAX);
    String::from_utf8_lossy(&bytes[from..]).into_owned()
}
