//! Parquet files of the offline store: how their folders are named, how they are written and read.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::{SchemaRef, TimestampMillisecondType, UInt64Type};
use bytes::Bytes;
use chrono::{DateTime, NaiveDate};
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::OfflineError;
use crate::predictions::columns::numbers;

/// File metadata: version of the format.
pub(crate) const FORMAT_KEY: &str = "loopgate.format";
/// The version that is written, and the newest that is read.
pub(crate) const FORMAT: &str = "1";
/// File metadata: names of the features, a JSON list.
pub(crate) const FEATURES_KEY: &str = "loopgate.features";

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;
/// Rows of a row group: bounds what a writer holds.
const ROW_GROUP_ROWS: usize = 32_768;
/// Rows that a reader decodes at a time.
const READ_ROWS: usize = 4096;

/// The UTC day of a time, counted from 1970-01-01.
pub(crate) fn day_of(at_ms: i64) -> i64 {
    at_ms.div_euclid(DAY_MS)
}

/// The folder of a day.
pub(crate) fn day_folder(day: i64) -> String {
    let date = DateTime::from_timestamp_millis(day.saturating_mul(DAY_MS)).unwrap_or_default();
    format!("date={}", date.format("%Y-%m-%d"))
}

/// The folder of a model's predictions in their table.
pub(crate) fn model_folder(model: &str) -> String {
    format!("model={model}")
}

/// Whether a model's name can be part of a path.
pub(crate) fn is_folder_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:-".contains(&byte);
    name.len() <= 64
        && name.bytes().all(plain)
        && name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric())
}

/// Makes a folder and its parents, on disk when this returns.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    // The parent of a plain name is the working folder.
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        Some(_) => Path::new("."),
        None => return Ok(()),
    };
    make_folder(parent)?;
    match fs::create_dir(path) {
        Ok(()) => sync_folder(parent),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// Brings renames and removals in a folder to disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A Parquet file in the making, in memory.
pub(crate) struct SegmentWriter {
    writer: ArrowWriter<Vec<u8>>,
    written: Written,
}

/// What the rows of a file are about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Written {
    pub(crate) rows: u64,
    pub(crate) times: Option<(i64, i64)>,
    pub(crate) seqs: Option<(u64, u64)>,
}

impl Written {
    pub(crate) fn add(&mut self, rows: &RecordBatch, index: Indexed<'_>) -> Result<(), String> {
        let times = numbers::<TimestampMillisecondType>(rows, index.time)?.values();
        self.rows += rows.num_rows() as u64;
        for &time in times {
            let (first, last) = self.times.unwrap_or((time, time));
            self.times = Some((first.min(time), last.max(time)));
        }
        if let Some(seq) = index.seq {
            for &seq in numbers::<UInt64Type>(rows, seq)?.values() {
                let (first, last) = self.seqs.unwrap_or((seq, seq));
                self.seqs = Some((first.min(seq), last.max(seq)));
            }
        }
        Ok(())
    }
}

/// The columns of a table by which its files are kept apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Indexed<'a> {
    /// The time that decides a row's day.
    pub(crate) time: &'a str,
    /// The sequence number, where rows have one.
    pub(crate) seq: Option<&'a str>,
}

impl SegmentWriter {
    /// An empty file.
    pub(crate) fn new(schema: &SchemaRef, compression: Compression) -> Result<Self, ParquetError> {
        let metadata = schema.metadata().iter();
        let mut metadata: Vec<_> = metadata
            .map(|(key, value)| KeyValue::new(key.clone(), value.clone()))
            .collect();
        metadata.sort_by(|a, b| a.key.cmp(&b.key));
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_key_value_metadata(Some(metadata))
            .build();
        Ok(Self {
            writer: ArrowWriter::try_new(Vec::new(), SchemaRef::clone(schema), Some(properties))?,
            written: Written::default(),
        })
    }

    /// Adds rows.
    pub(crate) fn write(
        &mut self,
        rows: &RecordBatch,
        index: Indexed<'_>,
    ) -> Result<(), ParquetError> {
        let added = self.written.add(rows, index);
        added.map_err(ParquetError::General)?;
        self.writer.write(rows)
    }

    /// About how long the file would be now.
    pub(crate) fn bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    /// The whole file, and what is in it.
    pub(crate) fn close(self) -> Result<(Bytes, Written), ParquetError> {
        Ok((self.writer.into_inner()?.into(), self.written))
    }
}

pub(crate) fn day_of_name(name: &str) -> Option<i64> {
    let date: NaiveDate = name.strip_prefix("date=")?.parse().ok()?;
    Some(date.signed_duration_since(NaiveDate::default()).num_days())
}

/// Bytes as lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is in a folder, sorted; nothing where there is no folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<PathBuf>, OfflineError> {
    let failed = |source| OfflineError::Io {
        path: folder.to_owned(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()));
    let mut paths = paths.collect::<io::Result<Vec<_>>>().map_err(failed)?;
    paths.sort();
    Ok(paths)
}

/// Which columns of a file to decode.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted<'a> {
    All,
    /// By name, parts of a nested one separated by dots.
    Named(&'a [&'a str]),
    /// So many from the left.
    First(usize),
}

/// A file opened for reading.
pub(crate) struct Segment {
    path: PathBuf,
    schema: SchemaRef,
    rows: ParquetRecordBatchReader,
}

impl Segment {
    /// Opens a whole file; `path` is its name in errors.
    pub(crate) fn open(
        path: PathBuf,
        bytes: Bytes,
        wanted: Wanted<'_>,
    ) -> Result<Self, OfflineError> {
        let corrupt = |problem: String| corrupt(&path, problem);
        let builder = ParquetRecordBatchReaderBuilder::try_new(bytes)
            .map_err(|error| corrupt(error.to_string()))?;
        let schema = SchemaRef::clone(builder.schema());
        match schema.metadata().get(FORMAT_KEY).map(String::as_str) {
            Some(FORMAT) => {}
            Some(other) => return Err(corrupt(format!("format {other} is not known"))),
            None => return Err(corrupt(format!("no `{FORMAT_KEY}` in its metadata"))),
        }
        let parquet = builder.parquet_schema();
        let mask = match wanted {
            Wanted::All => ProjectionMask::all(),
            Wanted::Named(names) => ProjectionMask::columns(parquet, names.iter().copied()),
            Wanted::First(count) => ProjectionMask::roots(parquet, 0..count),
        };
        let rows = builder
            .with_projection(mask)
            .with_batch_size(READ_ROWS)
            .build()
            .map_err(|error| corrupt(error.to_string()))?;
        Ok(Self { path, schema, rows })
    }

    /// Its name in errors.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its schema, metadata included.
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Names of the features in it.
    pub(crate) fn features(&self) -> Result<Vec<String>, OfflineError> {
        let json = self.schema.metadata().get(FEATURES_KEY);
        let names = json.map_or(Ok(Vec::new()), |json| serde_json::from_str(json));
        names.map_err(|error| corrupt(&self.path, format!("`{FEATURES_KEY}`: {error}")))
    }
}

impl Iterator for Segment {
    type Item = Result<RecordBatch, OfflineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rows = self.rows.next()?;
        Some(rows.map_err(|error| corrupt(&self.path, error.to_string())))
    }
}

pub(crate) fn corrupt(path: &Path, problem: String) -> OfflineError {
    OfflineError::Corrupt {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_comes_back_from_the_name_of_its_folder() {
        for day in [-1, 0, 15_764, 2_932_896] {
            let name = day_folder(day);
            assert_eq!(day_of_name(&name), Some(day), "{name}");
        }
        assert_eq!(day_of(-1), -1);
        assert_eq!(day_of_name("date=2013-02-30"), None);
    }

    #[test]
    fn only_plain_names_become_folders() {
        for name in ["delay", "a.b-c_d", "9:x"] {
            assert!(is_folder_name(name), "{name}");
        }
        for name in ["", "..", ".a", "a/b", "a\\b", "a b", &"x".repeat(65)] {
            assert!(!is_folder_name(name), "{name}");
        }
    }
}
