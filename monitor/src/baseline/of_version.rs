//! The reference of a registered version, from what the registry says it was
//! trained on. Made once, then kept as a file; a file that is lost or damaged is
//! made again.
//!
//! Reading the training rows takes about a second per 10⁷ values, off the
//! caller's thread; of rows that were computed anew, a pass over all sealed events.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use engine::{EngineKind, Model, OnnxFile, OnnxLimits, Tensor, TensorData};
use featurestore::{
    Definitions, OfflineError, RecomputeError, TrainingQuery, TrainingSet, recomputed_rows,
    training_rows,
};
use registry::{ArtifactError, Dataset, LookupError, ModelVersion, Registry};

use super::{Baseline, BaselineRows, ReferenceQuality};
use crate::policy::Bins;

/// Training rows that a baseline is made from, spread evenly over all of them.
/// Shares are then known to about 0.1 %, far below any drift that matters.
const SAMPLE_ROWS: usize = 60_000;

/// Rows scored at a time.
const SCORE_ROWS: usize = 1024;

/// What a version is judged against.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reference {
    pub(crate) baseline: Option<Arc<Baseline>>,
    pub(crate) quality: Option<ReferenceQuality>,
}

impl Reference {
    /// Quality alone, of a version without known training rows.
    pub(crate) fn of_metrics(version: &ModelVersion) -> Reference {
        Reference {
            baseline: None,
            quality: ReferenceQuality::from_metrics(&version.metrics),
        }
    }
}

/// Why a version has no baseline.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BaselineError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("its training rows are not recorded")]
    NoDataset,
    #[error("its training rows cannot be read: {0}")]
    Rows(#[from] OfflineError),
    #[error("its training rows cannot be computed anew: {0}")]
    Recompute(#[from] RecomputeError),
    #[error("its training rows are no longer there")]
    NoRows,
    #[error("reading its training rows was abandoned: {0}")]
    Abandoned(#[from] tokio::task::JoinError),
}

/// Where baselines come from and are kept.
#[derive(Clone, Debug)]
pub(crate) struct Baselines {
    pub(crate) registry: Registry,
    pub(crate) data_dir: PathBuf,
    pub(crate) service_id: String,
    pub(crate) definitions: Arc<Definitions>,
    pub(crate) bins: Bins,
}

impl Baselines {
    /// The reference of a version. Quality comes from its metrics; a base rate
    /// that its trainer did not record is counted on its held-out rows.
    pub(crate) async fn of(&self, version: &ModelVersion) -> Result<Reference, BaselineError> {
        let quality = ReferenceQuality::from_metrics(&version.metrics);
        let path = self.path(version);
        if let Some(kept) = read_kept(&path, version) {
            return Ok(kept);
        }
        let lineage = self
            .registry
            .lineage(&version.model, version.version)
            .await?;
        let dataset = |role: &str| {
            let mut datasets = lineage.datasets.iter().map(|logged| &logged.dataset);
            datasets.find(|dataset| dataset.role == role).cloned()
        };
        let ranges = Ranges {
            training: dataset("training").ok_or(BaselineError::NoDataset)?,
            holdout: dataset("holdout"),
        };
        let artifact = self.registry.get_artifact(&version.artifact).await?;
        let (this, version, bytes) = (self.clone(), version.clone(), Arc::from(&artifact[..]));
        let made = tokio::task::spawn_blocking(move || {
            let reference = this.make(&version, &ranges, bytes, quality)?;
            if let Err(error) = keep(&this.path(&version), &reference) {
                tracing::warn!(model = %version.model, version = version.version, %error, "baseline is not kept");
            }
            Ok::<_, BaselineError>(reference)
        });
        made.await?
    }

    /// Writes a baseline that has learned more.
    pub(crate) fn keep(&self, version: &ModelVersion, reference: &Reference) -> io::Result<()> {
        keep(&self.path(version), reference)
    }

    fn path(&self, version: &ModelVersion) -> PathBuf {
        let name = format!("{}-{}.json", version.version, version.artifact);
        self.data_dir
            .join("baselines")
            .join(version.model.as_str())
            .join(name)
    }

    fn make(
        &self,
        version: &ModelVersion,
        ranges: &Ranges,
        bytes: Arc<[u8]>,
        quality: Option<ReferenceQuality>,
    ) -> Result<Reference, BaselineError> {
        let training = self.rows(version, &ranges.training)?;
        if training.rows() == 0 {
            return Err(BaselineError::NoRows);
        }
        let holdout = ranges
            .holdout
            .as_ref()
            .map(|dataset| self.rows(version, dataset))
            .transpose()?;
        // Scores on the rows that it learned from are too sure of themselves.
        let scores = match holdout.as_ref().map(|rows| scores(bytes, rows)) {
            None => Vec::new(),
            Some(Ok(scores)) => scores,
            Some(Err(problem)) => {
                tracing::warn!(model = %version.model, version = version.version, problem, "scores have no baseline");
                Vec::new()
            }
        };
        let sample = sample(&training, SAMPLE_ROWS);
        let rows = BaselineRows {
            names: &training.names,
            values: &sample,
            scores: &scores,
        };
        let quality = quality.map(|quality| ReferenceQuality {
            base_rate: quality.base_rate.or_else(|| base_rate(holdout.as_ref()?)),
            ..quality
        });
        Ok(Reference {
            baseline: Some(Arc::new(Baseline::from_rows(
                version.version,
                rows,
                self.bins,
            ))),
            quality,
        })
    }
}

impl Baselines {
    /// The rows of a dataset, made as its trainer made them.
    fn rows(
        &self,
        version: &ModelVersion,
        dataset: &Dataset,
    ) -> Result<TrainingSet, BaselineError> {
        let service = version.service.as_ref().unwrap_or(&self.service_id);
        let query = TrainingQuery {
            model: version.model.to_string(),
            service: service.clone(),
            from_ms: dataset.from_ms,
            to_ms: dataset.to_ms,
            known_by_ms: dataset.source["known_by_ms"].as_i64().unwrap_or(i64::MAX),
        };
        let (data_dir, definitions) = (&self.data_dir, &self.definitions);
        Ok(match dataset.source["kind"].as_str() {
            Some("recomputed_rows") => recomputed_rows(data_dir, definitions, &query)?,
            _ => training_rows(data_dir, definitions, &query)?,
        })
    }
}

struct Ranges {
    training: Dataset,
    holdout: Option<Dataset>,
}

/// Every k-th row, at most `rows_max` of them.
fn sample(rows: &TrainingSet, rows_max: usize) -> Vec<f32> {
    let every = rows.rows().div_ceil(rows_max).max(1);
    let rows = rows.values.chunks_exact(rows.columns().max(1));
    rows.step_by(every).flatten().copied().collect()
}

fn base_rate(rows: &TrainingSet) -> Option<f64> {
    let labels = rows.labels.iter().copied().map(f64::from);
    (rows.rows() > 0).then(|| labels.sum::<f64>() / rows.rows() as f64)
}

/// The version's scores on these rows, or why it has none. A model that takes
/// one matrix of features and gives one number a row is understood.
fn scores(bytes: Arc<[u8]>, rows: &TrainingSet) -> Result<Vec<f32>, String> {
    let file = OnnxFile::check(bytes, &OnnxLimits::default()).map_err(|error| error.to_string())?;
    let model = Model::load(&file, EngineKind::Trees)
        .or_else(|_| Model::load(&file, EngineKind::Tract))
        .map_err(|error| error.to_string())?;
    let mut session = model.session().map_err(|error| error.to_string())?;
    let columns = rows.columns().max(1);
    let mut scores = Vec::with_capacity(rows.rows());
    for values in rows.values.chunks(SCORE_ROWS * columns) {
        let count = values.len() / columns;
        let input = Tensor::new(vec![count, columns], TensorData::Fp32(values.to_vec()))
            .map_err(|error| error.to_string())?;
        let outputs = session.run(&[input]).map_err(|error| error.to_string())?;
        match outputs.first().and_then(Tensor::as_f32) {
            Some(found) if outputs.len() == 1 && found.len() == count => {
                scores.extend_from_slice(found);
            }
            _ => return Err("it does not give one FP32 number a row".into()),
        }
    }
    Ok(scores)
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Kept {
    format: u32,
    baseline: Baseline,
    quality: Option<ReferenceQuality>,
}

const FORMAT: u32 = 1;

fn read_kept(path: &Path, version: &ModelVersion) -> Option<Reference> {
    let bytes = fs::read(path).ok()?;
    let kept: Kept = match serde_json::from_slice(&bytes) {
        Ok(kept) => kept,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a damaged baseline is made again");
            return None;
        }
    };
    (kept.format == FORMAT && kept.baseline.version == version.version).then(|| Reference {
        baseline: Some(Arc::new(kept.baseline)),
        quality: kept.quality,
    })
}

/// Writes the file whole or not at all.
fn keep(path: &Path, reference: &Reference) -> io::Result<()> {
    let Some(baseline) = &reference.baseline else {
        return Ok(());
    };
    let kept = Kept {
        format: FORMAT,
        baseline: Baseline::clone(baseline),
        quality: reference.quality,
    };
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(&serde_json::to_vec(&kept)?)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(folder)?.sync_all()
}
