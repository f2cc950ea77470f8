//! The manifest of a table: which sealed files it consists of, and which it once had.
//!
//! JSON lines, a public format: a head (`format`, `table`, `revision`, `sealed_seq`), one line for each
//! file, oldest first, one for each retired file, and a last line with the SHA-256 of all lines before
//! it, so that a manifest that was cut or altered is not taken for a whole one. It is replaced as a
//! whole, and about 400 bytes a file long; retired files stay in it for good.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::segments::{day_of_name, hex};

/// The version that is written, and the newest that is read.
const FORMAT: u32 = 1;
/// What the origin of a file begins with that came from a spool file; its number follows.
pub(crate) const SPOOL_FILE: &str = "spool ";

/// A sealed file, as its table's manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SealedFile {
    /// Path below the table's folder, parts separated by `/`.
    pub(crate) path: String,
    /// Rows in it.
    pub(crate) rows: u64,
    /// Its length.
    pub(crate) bytes: u64,
    /// SHA-256 of its bytes, hexadecimal.
    pub(crate) sha256: String,
    /// The earliest of its times: of prediction, else of arrival.
    pub(crate) from_ms: i64,
    /// The latest of its times, inclusive.
    pub(crate) to_ms: i64,
    /// The first of its sequence numbers; 0 for a table or rows that have none.
    pub(crate) first_seq: u64,
    /// The last of its sequence numbers, inclusive.
    pub(crate) last_seq: u64,
    /// Of events the source as it was then, of predictions the service, in JSON.
    pub(crate) schema: serde_json::Value,
    /// What it was sealed from: a spool file, a range of a log, a backfill, files before it.
    pub(crate) origin: String,
}

impl SealedFile {
    /// The folder in its table: `model=delay/date=2013-03-01`.
    pub(crate) fn partition(&self) -> &str {
        self.path.rsplit_once('/').map_or("", |(folder, _)| folder)
    }

    /// The UTC day of its rows, counted from 1970-01-01.
    pub(crate) fn day(&self) -> Option<i64> {
        self.partition().rsplit('/').next().and_then(day_of_name)
    }
}

/// A file that the table no longer reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetiredFile {
    /// Why.
    pub(crate) retired: Retirement,
    /// When; `None` until the next upkeep has seen it.
    pub(crate) retired_ms: Option<i64>,
    /// Whether the file itself is gone.
    pub(crate) removed: bool,
    /// What it was.
    #[serde(flatten)]
    pub(crate) file: SealedFile,
}

/// Why a file was retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Retirement {
    /// Its rows lie in a larger file.
    Compacted,
    /// A later backfill of the same history took its place.
    Replaced,
    /// Its rows are past the table's retention: they are gone.
    Expired,
}

/// The files of a table at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Manifest {
    /// Counts the changes.
    pub(crate) revision: u64,
    /// The log that the table is sealed from is sealed up to here, inclusive; 0 where there is none.
    pub(crate) sealed_seq: u64,
    /// The process that wrote it, where that is not known by a lock.
    pub(crate) writer: Option<Box<str>>,
    /// What the table consists of, in order of sealing.
    pub(crate) files: Vec<SealedFile>,
    /// What it once consisted of.
    pub(crate) retired: Vec<RetiredFile>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    format: u32,
    table: String,
    revision: u64,
    sealed_seq: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    writer: Option<Box<str>>,
    files: usize,
    retired: usize,
}

#[derive(Serialize, Deserialize)]
struct End {
    sha256: String,
}

impl Manifest {
    /// The stored form.
    pub(crate) fn encode(&self, table: &str) -> Vec<u8> {
        let head = Head {
            format: FORMAT,
            table: table.to_owned(),
            revision: self.revision,
            sealed_seq: self.sealed_seq,
            writer: self.writer.clone(),
            files: self.files.len(),
            retired: self.retired.len(),
        };
        let mut out = Vec::with_capacity(128 + 400 * (self.files.len() + self.retired.len()));
        put_line(&head, &mut out);
        self.files.iter().for_each(|it| put_line(it, &mut out));
        self.retired.iter().for_each(|it| put_line(it, &mut out));
        let sha256 = hex(&Sha256::digest(&out));
        put_line(&End { sha256 }, &mut out);
        out
    }

    /// Reads the stored form of that table; what is wrong with it.
    pub(crate) fn decode(table: &str, bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        let text = text.strip_suffix('\n').ok_or("it is cut short")?;
        let (body, end) = text.rsplit_once('\n').ok_or("it is cut short")?;
        let body = &bytes[..=body.len()];
        let end: End = serde_json::from_str(end).map_err(|_| "it is cut short")?;
        if end.sha256 != hex(&Sha256::digest(body)) {
            return Err("its digest does not fit it".to_owned());
        }
        let mut lines = body.split(|&byte| byte == b'\n');
        let head = lines.next().unwrap_or_default();
        let format = serde_json::from_slice::<serde_json::Value>(head)
            .ok()
            .and_then(|head| head.get("format")?.as_u64());
        if format != Some(u64::from(FORMAT)) {
            let found = format.map_or_else(|| "none".to_owned(), |found| found.to_string());
            return Err(format!("its format is {found}; known is {FORMAT}"));
        }
        let head: Head = serde_json::from_slice(head).map_err(|error| error.to_string())?;
        if head.table != table {
            return Err(format!("it is of table `{}`", head.table));
        }
        let mut line = || lines.next().unwrap_or_default();
        let mut manifest = Self {
            revision: head.revision,
            sealed_seq: head.sealed_seq,
            writer: head.writer,
            ..Self::default()
        };
        for _ in 0..head.files {
            let file = serde_json::from_slice(line()).map_err(|error| error.to_string())?;
            manifest.files.push(file);
        }
        for _ in 0..head.retired {
            let file = serde_json::from_slice(line()).map_err(|error| error.to_string())?;
            manifest.retired.push(file);
        }
        Ok(manifest)
    }

    /// Whether anything was sealed from `origin`, be it retired by now.
    pub(crate) fn has_origin(&self, origin: &str) -> bool {
        self.origins().any(|found| found == origin)
    }

    /// One more than the highest number of a spool file that was sealed; 0 where none was.
    pub(crate) fn spool_files(&self) -> u64 {
        let number = |origin: &str| origin.strip_prefix(SPOOL_FILE)?.parse::<u64>().ok();
        self.origins()
            .filter_map(number)
            .max()
            .map_or(0, |it| it + 1)
    }

    fn origins(&self) -> impl Iterator<Item = &str> {
        let retired = self.retired.iter().map(|retired| &retired.file);
        self.files.iter().chain(retired).map(|file| &*file.origin)
    }

    /// Takes the files for which `which` says so out of the table.
    pub(crate) fn retire(&mut self, why: Retirement, which: impl Fn(&SealedFile) -> bool) {
        let (gone, kept) = std::mem::take(&mut self.files)
            .into_iter()
            .partition(|file| which(file));
        self.files = kept;
        let retired = |file| RetiredFile {
            retired: why,
            retired_ms: None,
            removed: false,
            file,
        };
        let gone: Vec<SealedFile> = gone;
        self.retired.extend(gone.into_iter().map(retired));
    }
}

/// Appends a line of JSON. The types here always serialize.
fn put_line(line: &impl Serialize, out: &mut Vec<u8>) {
    serde_json::to_writer(&mut *out, line).expect("a line of the manifest is plain data");
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str) -> SealedFile {
        SealedFile {
            path: path.to_owned(),
            rows: 3,
            bytes: 900,
            sha256: hex(&[7; 32]),
            from_ms: -5,
            to_ms: 1_362_096_000_000,
            first_seq: 1,
            last_seq: 3,
            schema: serde_json::json!({"service": "delay@1"}),
            origin: "spool 3".to_owned(),
        }
    }

    fn manifest() -> Manifest {
        let mut manifest = Manifest {
            revision: 4,
            sealed_seq: 17,
            writer: Some("of a test".into()),
            files: vec![
                file("date=2013-03-01/a.parquet"),
                file("date=2013-03-02/b.parquet"),
            ],
            retired: Vec::new(),
        };
        manifest.retire(Retirement::Compacted, |file| {
            file.path.ends_with("a.parquet")
        });
        manifest
    }

    #[test]
    fn a_manifest_comes_back() {
        let manifest = manifest();
        let stored = manifest.encode("labels");
        assert_eq!(Manifest::decode("labels", &stored), Ok(manifest));
        let empty = Manifest::default();
        assert_eq!(
            Manifest::decode("labels", &empty.encode("labels")),
            Ok(empty)
        );
        assert_eq!(
            Manifest::decode("events", &stored).unwrap_err(),
            "it is of table `labels`"
        );
    }

    #[test]
    fn a_manifest_that_was_cut_or_altered_is_refused() {
        let stored = manifest().encode("labels");
        for end in 0..stored.len() {
            assert!(
                Manifest::decode("labels", &stored[..end]).is_err(),
                "cut at {end}"
            );
        }
        for place in 0..stored.len() {
            let mut altered = stored.clone();
            altered[place] ^= 1;
            assert!(
                Manifest::decode("labels", &altered).is_err(),
                "flip at {place}"
            );
        }
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut newer = br#"{"format":2,"table":"labels"}"#.to_vec();
        newer.push(b'\n');
        let sha256 = hex(&Sha256::digest(&newer));
        newer.extend(format!("{{\"sha256\":\"{sha256}\"}}\n").as_bytes());
        let refused = Manifest::decode("labels", &newer).unwrap_err();
        assert_eq!(refused, "its format is 2; known is 1");
    }

    #[test]
    fn a_file_knows_its_folder_and_day() {
        let file = file("model=delay/date=1970-01-03/a.parquet");
        assert_eq!(file.partition(), "model=delay/date=1970-01-03");
        assert_eq!(file.day(), Some(2));
        assert!(manifest().has_origin("spool 3"));
        assert!(!manifest().has_origin("spool 30"));
        assert_eq!(manifest().spool_files(), 4);
        assert_eq!(Manifest::default().spool_files(), 0);
    }
}
