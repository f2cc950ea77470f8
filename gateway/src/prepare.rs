//! Preparing a version: everything that can fail before it may answer.
//!
//! From bytes whose hash was checked: a trial in a child process (structural check, engines and
//! their parity, first runs), then here the same bytes, the signature against its feature service, a
//! session for each seat, the version's golden rows, a warm-up of each seat. Costs tenths of a second of one core, so it happens on
//! loader threads (or in a command), never where requests are served.

mod golden;
mod trial;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use engine::{CheckError, EngineTrial, LoadError, Model, OnnxFile, OnnxLimits, Tensor};
use featurestore::{Definitions, Service};
use registry::{ArtifactError, Digest, LookupError, ModelName, Registry, Version};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};

use crate::config::EngineChoice;
use crate::table::{BindError, Labels, LoadedVersion, NewVersion, RunFailure, Seats};

pub(crate) use golden::{Golden, GoldenError};
pub(crate) use trial::{CheckModelArgs, TrialLimits, Verdicts, check_model};

use trial::{TrialError, batches};

/// Loader threads: a start with several versions overlaps, and serving keeps most of the cores.
const LOADERS: usize = 2;
/// Versions that may wait for a loader; more wait with their bytes not yet read.
const ORDERS_MAX: usize = 4;
/// Longest preparation of one version. Its thread cannot be stopped, but is no longer waited for.
const PREPARE_MAX: Duration = Duration::from_secs(300);
/// Longest warm-up of one version; seats that it does not reach are warmed by their first request.
const WARM_UP_MAX: Duration = Duration::from_secs(2);
/// The key beside a registered version's signature that limits the rows of one request.
pub(crate) const ROWS_MAX_KEY: &str = "max_batch_size";
/// The key beside a registered version's signature with the labels of its outputs' classes.
pub(crate) const LABELS_KEY: &str = "labels";
/// The loaders' niceness: serving goes first.
const LOADER_NICE: i32 = 5;

/// What a version is prepared from.
pub(crate) struct Blueprint {
    pub model: Arc<str>,
    pub version: Version,
    pub file: Artifact,
    pub engine: EngineChoice,
    /// `None` for a model that takes its tensors as they come.
    pub service: Option<Arc<Service>>,
    /// Rows of one request, where the version has a limit of its own.
    pub rows_max: Option<usize>,
    /// Rows that it must reproduce.
    pub golden: Option<Golden>,
    /// What the classes of its outputs are called, beside what the file says.
    pub labels: Labels,
    /// What its trial may cost.
    pub trial: TrialLimits,
}

/// The bytes of a model file and their hash, which is made once.
#[derive(Clone, Debug)]
pub(crate) struct Artifact {
    bytes: Arc<[u8]>,
    digest: Digest,
}

impl Artifact {
    /// Hashes the bytes.
    pub(crate) fn new(bytes: Arc<[u8]>) -> Self {
        let digest = Digest::of(&bytes);
        Self { bytes, digest }
    }

    /// Bytes that were read by this digest, and hashed then.
    pub(crate) fn of_digest(digest: Digest, bytes: &[u8]) -> Self {
        let bytes = Arc::from(bytes);
        Self { bytes, digest }
    }
}

/// Why a version cannot serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PrepareError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error("feature service `{0}` is not in features.toml")]
    Service(String),
    #[error(
        "feature service `{name}` has versions {versions} in features.toml: name the one that the model \
         file was trained with, such as `{name}@1`"
    )]
    Ambiguous { name: String, versions: String },
    #[error(transparent)]
    Trial(#[from] TrialError),
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("a first run failed: {0}")]
    FirstRun(#[from] RunFailure),
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error("it does not run on rows of its feature service")]
    NoRun,
    #[error("its engine panicked while loading")]
    Panicked,
    #[error("not prepared within {} s", PREPARE_MAX.as_secs())]
    Late,
}

impl PrepareError {
    /// Whether trying again may help: not where the fault lies in the version itself.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Lookup(_) | Self::Artifact(_) | Self::Late => true,
            Self::Trial(error) => error.may_pass(),
            Self::Service(_)
            | Self::Ambiguous { .. }
            | Self::Check(_)
            | Self::Load(_)
            | Self::Bind(_)
            | Self::FirstRun(_)
            | Self::Golden(_)
            | Self::NoRun
            | Self::Panicked => false,
        }
    }
}

/// Tries the version in a child process, then loads, binds and warms it on the calling thread.
/// What `verdicts` knows already is not tried again.
pub(crate) fn prepare(
    blueprint: Blueprint,
    seats: Seats,
    verdicts: &Verdicts,
) -> Result<LoadedVersion, PrepareError> {
    // Engines of others read the file: a panic in one is a refusal, not the end of the loader.
    let prepared = catch_unwind(AssertUnwindSafe(|| load(blueprint, seats, verdicts)));
    prepared.unwrap_or(Err(PrepareError::Panicked))
}

fn load(
    blueprint: Blueprint,
    seats: Seats,
    verdicts: &Verdicts,
) -> Result<LoadedVersion, PrepareError> {
    let passed = verdicts.on(&blueprint.file, blueprint.engine, &blueprint.trial)?;
    for EngineTrial {
        engine, refused, ..
    } in passed.parity.iter().flat_map(|parity| &parity.trials)
    {
        if let Some(reason) = refused {
            let model = &*blueprint.model;
            tracing::debug!(model, version = blueprint.version, %engine, reason, "engine passed over");
        }
    }
    if !passed.runs && blueprint.service.is_some() {
        return Err(PrepareError::NoRun);
    }
    let golden = blueprint.golden;
    let file = OnnxFile::check(blueprint.file.bytes, &OnnxLimits::default())?;
    let mut labels = file.class_labels();
    labels.extend(blueprint.labels);
    let new = NewVersion {
        model: blueprint.model,
        version: blueprint.version,
        engine: Model::load(&file, passed.engine)?,
        parity: passed.parity,
        service: blueprint.service,
        rows_max: blueprint.rows_max,
        labels,
    };
    let mut loaded = LoadedVersion::new(new, seats)?;
    if let Some(golden) = golden {
        golden.reproduce(&loaded, seats.shadow())?;
    }
    if passed.runs {
        let batches = batches(&file);
        warm_up(&loaded, seats, &batches)?;
        loaded.known_good = batches.into_iter().next();
    }
    Ok(loaded)
}

/// Runs every batch on every seat's session, so that no request is the first.
fn warm_up(
    version: &LoadedVersion,
    seats: Seats,
    batches: &[Vec<Tensor>],
) -> Result<(), RunFailure> {
    let started = Instant::now();
    for seat in seats.all() {
        for inputs in batches {
            version.run(seat, inputs)?;
            if started.elapsed() > WARM_UP_MAX {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A version waiting for a loader.
struct Order {
    blueprint: Blueprint,
    done: oneshot::Sender<Result<LoadedVersion, PrepareError>>,
}

/// The loader threads; they end when the last clone is gone.
#[derive(Clone)]
pub(crate) struct Loaders {
    orders: Sender<Order>,
    /// As many as the channel holds, so that a send never waits; who finds none left waits here.
    places: Arc<Semaphore>,
}

impl Loaders {
    /// Starts the threads. They are not joined: at the end of the process a version that is half
    /// prepared is of no use.
    pub(crate) fn start(seats: Seats) -> std::io::Result<Self> {
        let (orders, taken) = bounded(ORDERS_MAX);
        let verdicts = Verdicts::default();
        for k in 0..LOADERS {
            let (taken, verdicts) = (taken.clone(), verdicts.clone());
            std::thread::Builder::new()
                .name(format!("loopgate-load-{k}"))
                .spawn(move || work(&taken, seats, &verdicts))?;
        }
        let places = Arc::new(Semaphore::new(ORDERS_MAX));
        Ok(Self { orders, places })
    }

    /// Prepares on a loader thread.
    pub(crate) async fn prepare(
        &self,
        blueprint: Blueprint,
    ) -> Result<LoadedVersion, PrepareError> {
        // The semaphore is never closed, and the threads outlive this handle.
        let _place = self.places.acquire().await;
        let (done, prepared) = oneshot::channel();
        let order = Order { blueprint, done };
        self.orders
            .try_send(order)
            .map_err(|_| PrepareError::Panicked)?;
        match tokio::time::timeout(PREPARE_MAX, prepared).await {
            Ok(prepared) => prepared.unwrap_or(Err(PrepareError::Panicked)),
            Err(_) => Err(PrepareError::Late),
        }
    }
}

fn work(orders: &Receiver<Order>, seats: Seats, verdicts: &Verdicts) {
    // Of this thread alone, whatever the call's name says. Refused only where a priority is set.
    rustix::process::setpriority_process(None, LOADER_NICE).ok();
    for Order { blueprint, done } in orders {
        // Nobody may wait any more; then the version is dropped here.
        drop(done.send(prepare(blueprint, seats, verdicts)));
    }
}

/// What a registered version is made from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Origin {
    pub artifact: Digest,
    /// Its golden rows, an artifact too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub golden: Option<Digest>,
    /// Feature service, `name@version`.
    pub service: Option<String>,
    /// Rows of one request, where the version has a limit of its own.
    pub rows_max: Option<usize>,
    /// The labels that it was registered with.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
}

/// Where versions come from, and how they are to be run.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub registry: Registry,
    pub definitions: Arc<Definitions>,
    pub loaders: Loaders,
    pub trial: TrialLimits,
}

impl Workshop {
    /// Fetches a registered version, its bytes hashed again, and prepares it on a loader thread.
    pub(crate) async fn fetch_and_prepare(
        &self,
        model: &ModelName,
        version: Version,
        engine: EngineChoice,
    ) -> Result<(LoadedVersion, Origin), PrepareError> {
        let registered = self.registry.version(model, version).await?;
        let origin = Origin {
            artifact: registered.artifact,
            golden: registered.golden,
            service: registered.service,
            rows_max: registered.signature[ROWS_MAX_KEY]
                .as_u64()
                .and_then(|rows| usize::try_from(rows).ok()),
            labels: Labels::deserialize(&registered.signature[LABELS_KEY]).unwrap_or_default(),
        };
        let bound = origin.service.as_deref();
        let service = bound.map(|id| service(&self.definitions, id)).transpose()?;
        let bytes = self.registry.get_artifact(&origin.artifact).await?;
        let golden = match &origin.golden {
            Some(golden) => Some(Golden::read(&self.registry.get_artifact(golden).await?)?),
            None => None,
        };
        let blueprint = Blueprint {
            model: model.as_str().into(),
            version,
            file: Artifact::of_digest(origin.artifact, &bytes),
            engine,
            service,
            rows_max: origin.rows_max,
            golden,
            labels: origin.labels.clone(),
            trial: self.trial,
        };
        Ok((self.loaders.prepare(blueprint).await?, origin))
    }
}

/// The feature service that a version names: what was registered names its version for ever. A file
/// that comes from outside gets what `models/MODEL.toml` says; a name alone will do while it can only
/// mean one version.
pub(crate) fn service(definitions: &Definitions, id: &str) -> Result<Arc<Service>, PrepareError> {
    let found = definitions.service(id).cloned();
    let versions = definitions
        .services
        .iter()
        .filter(|service| *service.name == *id)
        .map(|service| service.version.to_string())
        .collect::<Vec<_>>();
    if versions.len() > 1 {
        return Err(PrepareError::Ambiguous {
            name: id.to_owned(),
            versions: versions.join(", "),
        });
    }
    found.ok_or_else(|| PrepareError::Service(id.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use registry::{NewVersion, RegistryOptions};

    use super::*;
    use crate::config::{ServeArgs, ServeConfig};
    use crate::onnx;

    /// Versions of one service, each a multiple of what the request brings.
    fn definitions(versions: &[u32]) -> Arc<Definitions> {
        let version = |version: &u32| {
            format!(
                "[[service]]\nname = \"visit\"\nversion = {version}\nrequest = {{ length = \"float\" }}\n\
                 features = [{{ name = \"x\", expression = \"length * {version}\" }}]\n"
            )
        };
        let text: String = versions.iter().map(version).collect();
        Arc::new(Definitions::parse(&text, "features.toml").unwrap())
    }

    #[tokio::test]
    async fn a_version_keeps_the_service_that_it_was_registered_with() {
        let folder = tempfile::tempdir().unwrap();
        let options = RegistryOptions {
            database: folder.path().join("registry.db"),
            artifacts: folder.path().join("artifacts"),
        };
        let registry = Registry::open(&options).await.unwrap();
        let model: ModelName = "m".parse().unwrap();
        registry.ensure_model(&model, 0).await.unwrap();
        let new = NewVersion {
            model: model.clone(),
            artifact: registry
                .put_artifact(onnx::affine(&[1.0], 0.0))
                .await
                .unwrap(),
            golden: None,
            signature: serde_json::json!({}),
            service: Some("visit@1".to_owned()),
            run: None,
            algorithm: "external".to_owned(),
            metrics: BTreeMap::new(),
            datasets: Vec::new(),
            description: String::new(),
            at_ms: 0,
        };
        let version = registry.register_version(new).await.unwrap().version;
        let config = ServeConfig::new(ServeArgs::default()).unwrap();
        let mut workshop = Workshop {
            registry,
            definitions: definitions(&[1, 2]),
            loaders: Loaders::start(Seats::new(1)).unwrap(),
            trial: config.trial,
        };
        let prepare = |workshop: Workshop| async move {
            workshop
                .fetch_and_prepare(&"m".parse().unwrap(), version, EngineChoice::Auto)
                .await
        };
        let (loaded, _) = prepare(workshop.clone()).await.unwrap();
        assert_eq!(loaded.service_id.as_deref(), Some("visit@1"));
        workshop.definitions = definitions(&[2]);
        let refused = prepare(workshop).await.err().unwrap();
        assert!(!refused.may_pass());
        assert_eq!(
            refused.to_string(),
            "feature service `visit@1` is not in features.toml"
        );
    }

    #[test]
    fn a_bare_name_means_a_service_of_one_version_only() {
        let id = |versions: &[u32], name: &str| {
            let found = service(&definitions(versions), name);
            found
                .map(|service| service.id().to_owned())
                .map_err(|error| error.to_string())
        };
        assert_eq!(id(&[3], "visit"), Ok("visit@3".to_owned()));
        assert_eq!(id(&[1, 2], "visit@1"), Ok("visit@1".to_owned()));
        let refused = id(&[1, 2], "visit").unwrap_err();
        assert!(
            refused.contains("has versions 1, 2 in features.toml"),
            "{refused}"
        );
        assert!(id(&[1], "visits").is_err());
    }
}
