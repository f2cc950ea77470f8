//! Serving while the registry is away: missing, broken, held by another or older than what served.
//!
//! The last good release is served from its artifacts until the registry can be read again; then
//! the fleet takes over with the versions that are loaded. Nothing else works meanwhile: loops
//! rest, and what would change a model is refused. The state shows in the view, a metric, the log.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use registry::{ArtifactStore, DatabaseError, ModelName, Registry};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::fleet::{Aliases, Key, Ready};
use super::last_good::{GoodModel, LastGood};
use super::owner::Foundation;
use super::{Control, REGISTRY, View, open_registry};
use crate::prepare::{Artifact, Blueprint, Golden, PrepareError, service};
use crate::repository::{Job, RepositoryError};
use crate::table::ModelTable;

/// How long a start waits for the registry where it can serve without.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often it is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Why the registry is not followed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Away {
    #[error("there is no registry.db")]
    Missing,
    #[error("the registry cannot be opened: {0:#}")]
    Unopened(anyhow::Error),
    #[error("another process holds the registry")]
    Held,
    #[error("the registry cannot be read: {0}")]
    Unread(#[from] DatabaseError),
    #[error(
        "the registry is of generation {found}, before {good}, which served last: bring the newer one back, or remove last-good.json to follow this one"
    )]
    Behind { found: i64, good: i64 },
}

/// Opens the registry, where it is at least as new as what served last.
pub(super) async fn reach(data: &Path, good: Option<&LastGood>) -> Result<Registry, Away> {
    let Some(good) = good else {
        return open_registry(data).await.map_err(Away::Unopened);
    };
    // Opening would make a new, empty one.
    if !data.join(REGISTRY).exists() {
        return Err(Away::Missing);
    }
    let registry = match tokio::time::timeout(PATIENCE, open_registry(data)).await {
        Ok(opened) => opened.map_err(Away::Unopened)?,
        Err(_) => return Err(Away::Held),
    };
    let found = registry.generation().await?;
    if found < good.generation {
        registry.close().await;
        return Err(Away::Behind {
            found,
            good: good.generation,
        });
    }
    Ok(registry)
}

/// What serves from the last good release, to be taken over by the fleet.
#[derive(Default)]
pub(super) struct Held {
    pub ready: BTreeMap<Key, Ready>,
    pub serving: BTreeMap<ModelName, Aliases>,
}

/// Serves `good` until the registry is back, then returns it; `None` when told to stop.
pub(super) async fn serve_last_good(
    foundation: &mut Foundation,
    (good, away): (&LastGood, Away),
    jobs: &mut mpsc::Receiver<Job>,
    stop: &CancellationToken,
) -> Option<(Registry, Held)> {
    tracing::error!(reason = %away, generation = good.generation, "registry is away: serving the last good release");
    foundation.core.metrics.registry_away.set(1.0);
    let mut held = Held::default();
    let mut reason = away.to_string();
    foundation.show(&reason);
    let loaded = tokio::select! {
        () = stop.cancelled() => return None,
        loaded = load(foundation, good) => loaded,
    };
    if let Some(ready) = loaded {
        held.ready = ready;
        publish(foundation, good, &mut held);
    }
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return None,
            Some(job) = jobs.recv() => {
                drop(job.done.send(Err(RepositoryError::RegistryAway)));
                continue;
            }
            () = tokio::time::sleep(LOOK) => {}
        }
        match reach(foundation.data(), Some(good)).await {
            Ok(registry) => {
                tracing::info!("registry is back");
                foundation.core.metrics.registry_away.set(0.0);
                return Some((registry, held));
            }
            Err(away) => {
                let now = away.to_string();
                if now != reason {
                    tracing::warn!(reason = now, "registry is still away");
                    reason = now;
                }
                foundation.show(&reason);
            }
        }
    }
}

/// Prepares every version of the release; what cannot be prepared is left out.
async fn load(foundation: &Foundation, good: &LastGood) -> Option<BTreeMap<Key, Ready>> {
    let artifacts = ArtifactStore::open(&foundation.data().join("artifacts"));
    let artifacts = match artifacts {
        Ok(artifacts) => artifacts,
        Err(error) => {
            tracing::error!(%error, "artifacts cannot be read");
            return None;
        }
    };
    let keys = good
        .models
        .iter()
        .flat_map(|(model, GoodModel { versions, .. })| {
            versions
                .keys()
                .map(move |&version| (model.clone(), version))
        });
    let mut ready = BTreeMap::new();
    for key in keys {
        match load_one(foundation, &artifacts, (good, &key)).await {
            Ok(loaded) => drop(ready.insert(key, loaded)),
            Err(error) => {
                tracing::error!(model = %key.0, version = key.1, %error, "version refused");
            }
        }
    }
    Some(ready)
}

async fn load_one(
    foundation: &Foundation,
    artifacts: &ArtifactStore,
    (good, (model, version)): (&LastGood, &Key),
) -> Result<Ready, PrepareError> {
    let origin = &good.models[model].versions[version];
    let bound = origin.service.as_deref();
    let definitions = foundation.store.definitions();
    let golden = match &origin.golden {
        Some(golden) => Some(Golden::read(&artifacts.get(golden).await?)?),
        None => None,
    };
    let blueprint = Blueprint {
        model: model.as_str().into(),
        version: *version,
        file: Artifact::of_digest(origin.artifact, &artifacts.get(&origin.artifact).await?),
        engine: foundation.model(model).engine,
        service: bound.map(|id| service(definitions, id)).transpose()?,
        rows_max: origin.rows_max,
        golden,
        labels: origin.labels.clone(),
        trial: foundation.trial,
    };
    Ok(Ready {
        version: Arc::new(foundation.loaders.prepare(blueprint).await?),
        origin: origin.clone(),
    })
}

fn publish(foundation: &mut Foundation, good: &LastGood, held: &mut Held) {
    for (model, GoodModel { aliases, .. }) in &good.models {
        let mut aliases = aliases.clone();
        aliases.retain(|_, version| held.ready.contains_key(&(model.clone(), *version)));
        held.serving.insert(model.clone(), aliases);
    }
    let parts = held.serving.iter().map(|(model, aliases)| {
        super::fleet::parts(foundation.model(model), (model, aliases), &held.ready)
    });
    let table = ModelTable::new(good.generation, parts.collect());
    foundation
        .publisher
        .publish(table, &foundation.core.metrics);
}

impl Foundation {
    /// Says why the registry is away.
    fn show(&self, reason: &str) {
        self.view.send_replace(Arc::new(View {
            now_ms: self.core.clock.now_ms(),
            registry_away: Some(reason.to_owned()),
            ..View::default()
        }));
    }
}

impl Control {
    /// The versions that serve already.
    pub(super) fn take_over(&mut self, held: Held) {
        self.fleet.adopt(held.ready, held.serving);
    }
}
