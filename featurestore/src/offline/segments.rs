//! Parquet files of the offline store: where they lie, how they appear whole, how they are read.

use std::fs::{self, File};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate};
use parquet::arrow::ArrowWriter;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};

use super::OfflineError;

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

/// The folder of predictions of a model.
pub(crate) fn predictions_folder(data_dir: &Path, model: &str) -> PathBuf {
    let folder = data_dir.join("offline").join("predictions");
    folder.join(format!("model={model}"))
}

/// The folder of labels.
pub(crate) fn labels_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("offline").join("labels")
}

/// The folder of a day under `parent`.
pub(crate) fn day_folder(parent: &Path, day: i64) -> PathBuf {
    let date = DateTime::from_timestamp_millis(day.saturating_mul(DAY_MS)).unwrap_or_default();
    parent.join(format!("date={}", date.format("%Y-%m-%d")))
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
    if let Some(parent) = path.parent() {
        make_folder(parent)?;
        match fs::create_dir(path) {
            Ok(()) => sync_folder(parent)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Brings renames and removals in a folder to disk.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// A Parquet file that is not visible yet.
pub(crate) struct Unpublished {
    target: PathBuf,
    temporary: PathBuf,
    writer: ArrowWriter<File>,
}

impl Unpublished {
    /// Starts the file that will be `folder/name`; a file of that name will be replaced.
    pub(crate) fn create(
        folder: &Path,
        name: &str,
        schema: &SchemaRef,
    ) -> Result<Self, ParquetError> {
        make_folder(folder)?;
        let temporary = folder.join(format!(".{name}.tmp"));
        let metadata = schema.metadata().iter();
        let metadata = metadata.map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_statistics_enabled(EnabledStatistics::Chunk)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_key_value_metadata(Some(metadata.collect()))
            .build();
        let file = File::create(&temporary)?;
        let writer = ArrowWriter::try_new(file, SchemaRef::clone(schema), Some(properties))?;
        Ok(Self {
            target: folder.join(name),
            temporary,
            writer,
        })
    }

    /// Adds rows.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<(), ParquetError> {
        self.writer.write(rows)
    }

    /// Ends the file and brings it to disk, still invisible.
    pub(crate) fn close(self) -> Result<Closed, ParquetError> {
        let file = self.writer.into_inner()?;
        file.sync_all()?;
        Ok(Closed {
            target: self.target,
            temporary: self.temporary,
        })
    }

    /// Where the rows lie meanwhile.
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }
}

/// A whole Parquet file on disk that is not visible yet.
pub(crate) struct Closed {
    target: PathBuf,
    temporary: PathBuf,
}

impl Closed {
    /// Makes the file visible, on disk when this returns.
    pub(crate) fn publish(&self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.target)?;
        self.target.parent().map_or(Ok(()), sync_folder)
    }

    /// Where the rows lie meanwhile.
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }
}

/// The published files under `parent` whose day lies in `days`, in order of day and name.
pub(crate) fn files_of_days(
    parent: &Path,
    days: RangeInclusive<i64>,
) -> Result<Vec<PathBuf>, OfflineError> {
    let mut files = Vec::new();
    for folder in list(parent)? {
        let day = folder
            .file_name()
            .and_then(|name| day_of_name(name.to_str()?));
        if day.is_some_and(|day| days.contains(&day)) {
            let parquet = |path: &PathBuf| {
                let name = path.file_name().and_then(|name| name.to_str());
                name.is_some_and(|name| name.ends_with(".parquet") && !name.starts_with('.'))
            };
            files.extend(list(&folder)?.into_iter().filter(parquet));
        }
    }
    Ok(files)
}

fn day_of_name(name: &str) -> Option<i64> {
    let date: NaiveDate = name.strip_prefix("date=")?.parse().ok()?;
    Some(date.signed_duration_since(NaiveDate::default()).num_days())
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

/// A file opened for reading.
pub(crate) struct Segment {
    path: PathBuf,
    schema: SchemaRef,
    rows: ParquetRecordBatchReader,
}

impl Segment {
    /// Opens a file; only `columns` are decoded, or all where there are none named.
    pub(crate) fn open(path: &Path, columns: &[&str]) -> Result<Self, OfflineError> {
        let file = File::open(path).map_err(|source| OfflineError::Io {
            path: path.to_owned(),
            source,
        })?;
        let corrupt = |error: ParquetError| corrupt(path, error.to_string());
        let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(corrupt)?;
        let schema = SchemaRef::clone(builder.schema());
        match schema.metadata().get(FORMAT_KEY).map(String::as_str) {
            Some(FORMAT) => {}
            Some(other) => {
                return Err(self::corrupt(path, format!("format {other} is not known")));
            }
            None => {
                return Err(self::corrupt(
                    path,
                    format!("no `{FORMAT_KEY}` in its metadata"),
                ));
            }
        }
        let mask = match columns {
            [] => ProjectionMask::all(),
            _ => ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied()),
        };
        let rows = builder
            .with_projection(mask)
            .with_batch_size(READ_ROWS)
            .build()
            .map_err(corrupt)?;
        Ok(Self {
            path: path.to_owned(),
            schema,
            rows,
        })
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
            let folder = day_folder(Path::new("x"), day);
            let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
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
