//! A training set as a file that is named by its content.
//!
//! `NAME.parquet` holds the rows, in order of (time, request id): `request_id`, `at`, `label`,
//! `label_known_at`, then a column for each feature; NaN is missing. Its metadata (`loopgate.dataset`)
//! says what was asked for and what all the features mean; NAME is the head of that text's SHA-256. No
//! clock, path or random id is in it, so the same request over the same rows gives the same bytes under
//! the same name, whoever asks and however the rows were sealed meanwhile.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::manifest::SealedFile;
use super::segments::{corrupt, hex, make_folder, model_folder, sync_folder};
use super::table::TableKind;
use super::training_set::{RowSink, Rows, RowsDigest, TrainingRow};
use super::{OfflineError, OfflineTables, TrainingQuery};
use crate::service::Service;

/// Where the features of a dataset come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowsFrom {
    /// As they were served: log and wait.
    #[default]
    Served,
    /// As the events tell them, for the requests that were served.
    Recomputed,
}

/// What a dataset is; the same for the same rows of the same request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatasetAbout {
    /// Version of this description and of the columns.
    pub format: u32,
    /// The model whose requests are the rows.
    pub model: String,
    /// The service, with its version.
    pub service: String,
    /// SHA-256 of what the service and its views mean, hexadecimal.
    pub service_digest: String,
    /// Its views with their versions and digests.
    pub views: Vec<(String, String)>,
    /// Where the features come from.
    pub features: RowsFrom,
    /// Predicted at or after, in milliseconds since the Unix epoch.
    pub from_ms: i64,
    /// Predicted before.
    pub to_ms: i64,
    /// Labels that had arrived by then.
    pub known_by_ms: i64,
    /// Number of rows.
    pub rows: u64,
    /// [`TrainingSet::digest`](super::TrainingSet::digest), hexadecimal: what the lineage of a model names.
    pub digest: String,
}

/// A dataset that was written; `NAME.json` beside the file holds the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dataset {
    /// The head of the SHA-256 of `about`, 16 hexadecimal digits.
    pub name: String,
    /// The Parquet file.
    pub file: PathBuf,
    /// SHA-256 of the file's bytes, hexadecimal.
    pub sha256: String,
    /// What it is.
    pub about: DatasetAbout,
    /// Labelled rows that were left out, since the service refuses them.
    pub refused: u64,
    /// The sealed files that it was read from. Sealing and compaction alter these and not the rows, so
    /// they are no part of the name or of the file.
    pub read: Vec<ReadFile>,
}

/// A sealed file, as its table's manifest names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReadFile {
    /// `events`, `predictions` or `labels`.
    pub table: &'static str,
    /// Path below the table's folder.
    pub path: String,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
}

/// Version of [`DatasetAbout`].
const FORMAT: u32 = 1;
/// The key of the description in the file's metadata.
const ABOUT_KEY: &str = "loopgate.dataset";
/// Rows that are encoded at a time.
const BATCH_ROWS: usize = 8192;
/// Rows of a row group: bounds what the writer holds.
const ROW_GROUP_ROWS: usize = 65_536;

impl DatasetAbout {
    /// Of so many rows of this digest.
    fn new(asked: Asked<'_>, rows: u64, digest: &[u8]) -> Self {
        let Asked {
            query,
            service,
            features,
        } = asked;
        let views = service.needed_views().iter();
        Self {
            format: FORMAT,
            model: query.model.clone(),
            service: service.id().to_owned(),
            service_digest: hex(&service.meaning().digest()),
            views: views
                .map(|view| (view.pin().to_owned(), hex(&view.meaning().digest())))
                .collect(),
            features,
            from_ms: query.from_ms,
            to_ms: query.to_ms,
            known_by_ms: query.known_by_ms,
            rows,
            digest: hex(digest),
        }
    }
}

/// The sealed files that rows of `query` are read from.
pub(crate) fn files_of(
    offline: &OfflineTables,
    query: &TrainingQuery,
    features: RowsFrom,
) -> Result<Vec<ReadFile>, OfflineError> {
    let mut read = Vec::new();
    for table in offline.all() {
        let model = format!("{}/", model_folder(&query.model));
        let wanted = |file: &SealedFile| match table.kind() {
            TableKind::Events => features == RowsFrom::Recomputed,
            TableKind::Predictions => {
                file.path.starts_with(&model)
                    && file.to_ms >= query.from_ms
                    && file.from_ms < query.to_ms
            }
            TableKind::Labels => file.to_ms >= query.from_ms && file.from_ms <= query.known_by_ms,
        };
        let manifest = table.manifest()?;
        let files = manifest.files.iter().filter(|file| wanted(file));
        read.extend(files.map(|file| ReadFile {
            table: table.kind().name(),
            path: file.path.clone(),
            sha256: file.sha256.clone(),
        }));
    }
    Ok(read)
}

/// Writes rows into a dataset as they come: under a name of its own until all are there. A file of the
/// final name that is there already has the same content.
pub(crate) struct DatasetWriter<'q> {
    folder: &'q Path,
    asked: Asked<'q>,
    /// Begins with the names.
    output: Option<Output>,
    rows: u64,
    refused: u64,
}

/// What was asked for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'q> {
    pub(crate) query: &'q TrainingQuery,
    pub(crate) service: &'q Service,
    pub(crate) features: RowsFrom,
}

/// The file in the making.
struct Output {
    file: ArrowWriter<HashedFile>,
    schema: SchemaRef,
    digest: RowsDigest,
    /// Not yet encoded, fewer than [`BATCH_ROWS`]: the file's bytes do not depend on how rows came.
    held: Rows,
}

impl RowSink for DatasetWriter<'_> {
    fn begin(&mut self, names: Vec<String>, _: usize) -> Result<(), OfflineError> {
        make_folder(self.folder).map_err(io(self.folder))?;
        let schema = schema(&names);
        let file = HashedFile::create(self.folder).map_err(io(self.folder))?;
        // Features are floats that seldom repeat: a dictionary of them is dear and saves nothing.
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::default()))
            .set_dictionary_enabled(false)
            .set_statistics_enabled(EnabledStatistics::None)
            .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
            .set_data_page_row_count_limit(ROW_GROUP_ROWS)
            .build();
        let file = ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties));
        self.output = Some(Output {
            file: file.map_err(|error| self.failed(&error))?,
            schema,
            digest: RowsDigest::new(&names),
            held: Rows::new(names.len()),
        });
        Ok(())
    }

    fn take(&mut self, rows: Rows) -> Result<(), OfflineError> {
        self.rows += rows.rows.len() as u64;
        self.refused += rows.refused.len() as u64;
        let output = self.output.as_mut().expect("names come before rows");
        output.digest.add(&rows);
        let written = output.take(rows);
        written.map_err(|error| self.failed(&error))
    }
}

impl<'q> DatasetWriter<'q> {
    pub(crate) fn new(folder: &'q Path, asked: Asked<'q>) -> Self {
        Self {
            folder,
            asked,
            output: None,
            rows: 0,
            refused: 0,
        }
    }

    /// The dataset of the rows, which are all.
    pub(crate) fn finish(mut self, read: Vec<ReadFile>) -> Result<Dataset, OfflineError> {
        if self.output.is_none() {
            self.begin(Vec::new(), 0)?;
        }
        let output = self.output.take().expect("it has begun");
        let (mut writer, digest) = output.finish().map_err(|error| self.failed(&error))?;
        let about = DatasetAbout::new(self.asked, self.rows, &digest);
        let json = serde_json::to_string(&about).expect("a description is plain data");
        let name = hex(&Sha256::digest(json.as_bytes())[..8]);
        writer.append_key_value_metadata(KeyValue::new(ABOUT_KEY.to_owned(), json));
        let written = writer.into_inner().map_err(|error| self.failed(&error))?;
        let file = self.folder.join(format!("{name}.parquet"));
        let sha256 = written.rename(&file).map_err(io(&file))?;
        let dataset = Dataset {
            name,
            file,
            sha256,
            about,
            refused: self.refused,
            read,
        };
        let told = serde_json::to_vec_pretty(&dataset).expect("a description is plain data");
        let beside = self.folder.join(format!("{}.json", dataset.name));
        put_whole(&beside, &told).map_err(io(&beside))?;
        Ok(dataset)
    }

    fn failed(&self, error: &parquet::errors::ParquetError) -> OfflineError {
        corrupt(self.folder, error.to_string())
    }
}

impl Output {
    fn take(&mut self, rows: Rows) -> Result<(), parquet::errors::ParquetError> {
        let values = |index: usize| &rows.values[index * rows.width..][..rows.width];
        for (index, row) in rows.rows.into_iter().enumerate() {
            self.held.push(values(index), row);
            if self.held.rows.len() == BATCH_ROWS {
                self.encode()?;
            }
        }
        Ok(())
    }

    fn finish(
        mut self,
    ) -> Result<(ArrowWriter<HashedFile>, [u8; 32]), parquet::errors::ParquetError> {
        self.encode()?;
        Ok((self.file, self.digest.finish()))
    }

    fn encode(&mut self) -> Result<(), parquet::errors::ParquetError> {
        let held = &mut self.held;
        let time = |time: fn(&TrainingRow) -> i64| -> ArrayRef {
            let times = TimestampMillisecondArray::from_iter_values(held.rows.iter().map(time));
            Arc::new(times.with_timezone("UTC"))
        };
        let ids = held.rows.iter().map(|row| row.request_id.as_str());
        let labels = held.rows.iter().map(|row| row.label);
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(ids)),
            time(|row| row.predicted_ms),
            Arc::new(Float32Array::from_iter_values(labels)),
            time(|row| row.known_ms),
        ];
        for column in 0..held.width {
            let values = held.values.iter().copied().skip(column);
            let values = values.step_by(held.width);
            columns.push(Arc::new(Float32Array::from_iter_values(values)));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
        held.values.clear();
        held.rows.clear();
        self.file.write(&batch)
    }
}

/// A file without its name yet, hashed as it is written; removed where it does not get one.
struct HashedFile {
    path: PathBuf,
    file: BufWriter<fs::File>,
    hash: Sha256,
}

impl HashedFile {
    fn create(folder: &Path) -> std::io::Result<Self> {
        let path = folder.join(format!("{}.tmp", uuid::Uuid::now_v7()));
        Ok(Self {
            file: BufWriter::new(fs::File::create(&path)?),
            path,
            hash: Sha256::new(),
        })
    }

    /// Gives the whole file its name, durably; the SHA-256 of its bytes, hexadecimal.
    fn rename(mut self, path: &Path) -> std::io::Result<String> {
        self.file.flush()?;
        self.file.get_ref().sync_all()?;
        fs::rename(&self.path, path)?;
        path.parent().map_or(Ok(()), sync_folder)?;
        Ok(hex(&std::mem::take(&mut self.hash).finalize()))
    }
}

impl std::io::Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl Drop for HashedFile {
    fn drop(&mut self) {
        // Renamed: there is none of this name.
        let _ = fs::remove_file(&self.path);
    }
}

/// Writes a file that is there whole or not at all, durably.
fn put_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), sync_folder)
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> OfflineError {
    let path = path.to_owned();
    move |source| OfflineError::Io { path, source }
}

fn schema(names: &[String]) -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new("request_id", DataType::Utf8, false),
        Field::new("at", time.clone(), false),
        Field::new("label", DataType::Float32, false),
        Field::new("label_known_at", time, false),
    ];
    let feature = |name: &String| Field::new(name.as_str(), DataType::Float32, false);
    fields.extend(names.iter().map(feature));
    Arc::new(Schema::new(fields))
}
