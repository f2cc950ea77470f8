//! A training set as a file that is named by its content.
//!
//! `NAME.parquet` holds the rows, in order of (time, request id): `request_id`, `at`, `label`,
//! `label_known_at`, then a column for each feature; NaN is missing. Its metadata (`loopgate.dataset`)
//! says what was asked for and what all the features mean; NAME is the head of that text's SHA-256. No
//! clock, path or random id is in it, so the same request over the same rows gives the same bytes under
//! the same name, whoever asks and however the rows were sealed meanwhile.

use std::fs;
use std::io::Write as _;
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
use super::segments::{hex, make_folder, model_folder, sync_folder};
use super::table::TableKind;
use super::{OfflineError, OfflineTables, TrainingQuery, TrainingSet};
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
    /// [`TrainingSet::digest`], hexadecimal: what the lineage of a model names.
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

impl DatasetAbout {
    /// Of rows that were read for `query`.
    pub(crate) fn new(
        query: &TrainingQuery,
        service: &Service,
        features: RowsFrom,
        set: &TrainingSet,
    ) -> Self {
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
            rows: set.rows() as u64,
            digest: hex(&set.digest),
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

/// Writes the rows into `folder`; a file that is there already has the same content.
pub(crate) fn write(
    folder: &Path,
    (about, read): (DatasetAbout, Vec<ReadFile>),
    set: &TrainingSet,
) -> Result<Dataset, OfflineError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| OfflineError::Io { path, source }
    };
    make_folder(folder).map_err(io(folder))?;
    let json = serde_json::to_string(&about).expect("a description is plain data");
    let name = hex(&Sha256::digest(json.as_bytes())[..8]);
    let file = folder.join(format!("{name}.parquet"));
    let failed = |error: parquet::errors::ParquetError| OfflineError::Corrupt {
        path: file.clone(),
        problem: error.to_string(),
    };
    let bytes = encode(set, json).map_err(failed)?;
    put_whole(&file, &bytes).map_err(io(&file))?;
    let dataset = Dataset {
        sha256: hex(&Sha256::digest(&bytes)),
        file,
        about,
        refused: set.refused,
        read,
        name,
    };
    let told = serde_json::to_vec_pretty(&dataset).expect("a description is plain data");
    let beside = folder.join(format!("{}.json", dataset.name));
    put_whole(&beside, &told).map_err(io(&beside))?;
    Ok(dataset)
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

fn encode(set: &TrainingSet, about: String) -> Result<Vec<u8>, parquet::errors::ParquetError> {
    // Features are floats that seldom repeat: a dictionary of them is dear and saves nothing.
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
        .set_dictionary_enabled(false)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_key_value_metadata(Some(vec![KeyValue::new(ABOUT_KEY.to_owned(), about)]))
        .build();
    let schema = schema(set);
    let mut writer = ArrowWriter::try_new(Vec::new(), Arc::clone(&schema), Some(properties))?;
    for first in (0..set.rows()).step_by(BATCH_ROWS) {
        let rows = first..set.rows().min(first + BATCH_ROWS);
        let time = |times: &[i64]| -> ArrayRef {
            let times = TimestampMillisecondArray::from(times[rows.clone()].to_vec());
            Arc::new(times.with_timezone("UTC"))
        };
        let ids = set.request_ids[rows.clone()].iter().map(String::as_str);
        let labels = Float32Array::from(set.labels[rows.clone()].to_vec());
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(ids)),
            time(&set.predicted_ms),
            Arc::new(labels),
            time(&set.known_ms),
        ];
        let width = set.columns();
        let values = &set.values[rows.start * width..rows.end * width];
        for column in 0..width {
            let column = values.iter().copied().skip(column).step_by(width);
            columns.push(Arc::new(Float32Array::from_iter_values(column)));
        }
        writer.write(&RecordBatch::try_new(Arc::clone(&schema), columns)?)?;
    }
    writer.into_inner()
}

fn schema(set: &TrainingSet) -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let mut fields = vec![
        Field::new("request_id", DataType::Utf8, false),
        Field::new("at", time.clone(), false),
        Field::new("label", DataType::Float32, false),
        Field::new("label_known_at", time, false),
    ];
    let feature = |name: &String| Field::new(name.as_str(), DataType::Float32, false);
    fields.extend(set.names.iter().map(feature));
    Arc::new(Schema::new(fields))
}
