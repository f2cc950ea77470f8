//! Preparing a version: everything that can fail before it may answer.
//!
//! From bytes whose hash was checked: structural check, engines and their parity, the signature
//! against its feature service, a session for each seat, a first run. Costs tenths of a second of
//! one core, so it happens on loader threads (or in a command), never where requests are served.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, bounded};
use engine::{
    CheckError, EngineTrial, LoadError, Model, OnnxFile, OnnxLimits, Tensor, sample_inputs,
};
use featurestore::{Definitions, Service};
use registry::{ArtifactError, LookupError, ModelName, Registry, Version};
use tokio::sync::{Semaphore, oneshot};

use crate::config::EngineChoice;
use crate::table::{BindError, LoadedVersion, NewVersion, RunFailure, Seats};

/// Loader threads: a start with several versions overlaps, and serving keeps most of the cores.
const LOADERS: usize = 2;
/// Versions that may wait for a loader; more wait with their bytes not yet read.
const ORDERS_MAX: usize = 4;
/// Longest preparation of one version. Its thread cannot be stopped, but is no longer waited for.
const PREPARE_MAX: Duration = Duration::from_secs(300);

/// What a version is prepared from.
pub(crate) struct Blueprint {
    pub model: Arc<str>,
    pub version: Version,
    pub bytes: Arc<[u8]>,
    pub engine: EngineChoice,
    /// `None` for a model that takes its tensors as they come.
    pub service: Option<Arc<Service>>,
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
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("a first run failed: {0}")]
    FirstRun(#[from] RunFailure),
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
            Self::Service(_)
            | Self::Check(_)
            | Self::Load(_)
            | Self::Bind(_)
            | Self::FirstRun(_)
            | Self::Panicked => false,
        }
    }
}

/// Checks, loads, binds and runs the version once, on the calling thread.
pub(crate) fn prepare(blueprint: Blueprint, seats: Seats) -> Result<LoadedVersion, PrepareError> {
    // Engines of others read the file: a panic in one is a refusal, not the end of the loader.
    let prepared = catch_unwind(AssertUnwindSafe(|| load(blueprint, seats)));
    prepared.unwrap_or(Err(PrepareError::Panicked))
}

fn load(blueprint: Blueprint, seats: Seats) -> Result<LoadedVersion, PrepareError> {
    // One row and a few: the two shapes of traffic.
    const SAMPLES: [(usize, u64); 2] = [(1, 1), (8, 2)];
    let file = OnnxFile::check(blueprint.bytes, &OnnxLimits::default())?;
    let samples: [Vec<Tensor>; 2] =
        SAMPLES.map(|(rows, seed)| sample_inputs(file.signature(), rows, seed));
    let (engine, parity) = match blueprint.engine {
        EngineChoice::Only(kind) => (Model::load(&file, kind)?, None),
        EngineChoice::Auto => {
            let (model, parity) = Model::load_auto(&file, &samples)?;
            for EngineTrial {
                engine, refused, ..
            } in &parity.trials
            {
                if let Some(reason) = refused {
                    let model = &*blueprint.model;
                    tracing::debug!(model, version = blueprint.version, %engine, reason, "engine passed over");
                }
            }
            (model, Some(parity))
        }
    };
    let new = NewVersion {
        model: blueprint.model,
        version: blueprint.version,
        engine,
        parity,
        service: blueprint.service,
    };
    let loaded = LoadedVersion::new(new, seats)?;
    for inputs in &samples {
        loaded.run(seats.shadow(), inputs)?;
    }
    Ok(loaded)
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
        for k in 0..LOADERS {
            let taken = taken.clone();
            std::thread::Builder::new()
                .name(format!("loopgate-load-{k}"))
                .spawn(move || work(&taken, seats))?;
        }
        let places = Arc::new(Semaphore::new(ORDERS_MAX));
        Ok(Self { orders, places })
    }

    /// Prepares on a loader thread.
    async fn prepare(&self, blueprint: Blueprint) -> Result<LoadedVersion, PrepareError> {
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

fn work(orders: &Receiver<Order>, seats: Seats) {
    for Order { blueprint, done } in orders {
        // Nobody may wait any more; then the version is dropped here.
        drop(done.send(prepare(blueprint, seats)));
    }
}

/// Where versions come from, and how they are to be run.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub registry: Registry,
    pub definitions: Arc<Definitions>,
    pub loaders: Loaders,
}

impl Workshop {
    /// Fetches a registered version, its bytes hashed again, and prepares it on a loader thread.
    pub(crate) async fn fetch_and_prepare(
        &self,
        model: &ModelName,
        version: Version,
        engine: EngineChoice,
    ) -> Result<LoadedVersion, PrepareError> {
        let registered = self.registry.version(model, version).await?;
        let service = match registered.service {
            None => None,
            Some(id) => Some(service(&self.definitions, &id)?),
        };
        let bytes = self.registry.get_artifact(&registered.artifact).await?;
        let blueprint = Blueprint {
            model: model.as_str().into(),
            version,
            bytes: Arc::from(&bytes[..]),
            engine,
            service,
        };
        self.loaders.prepare(blueprint).await
    }
}

/// The feature service that a version names.
pub(crate) fn service(definitions: &Definitions, id: &str) -> Result<Arc<Service>, PrepareError> {
    let found = definitions.service(id).cloned();
    found.ok_or_else(|| PrepareError::Service(id.to_owned()))
}
