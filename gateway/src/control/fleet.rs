//! The fleet of versions: what the registry intends, what is prepared, what is published.
//!
//! A control loop: [`Fleet::reconcile`] takes no input, compares intended with loaded and is safe
//! to call at any time. Every version that an alias names is prepared before anything is published,
//! so a swap is one pointer store. A champion that cannot be prepared leaves its model's old
//! release in place; another alias that cannot is passed over, with its reason shown.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use registry::{AliasName, DatabaseError, LookupError, ModelName, Version};
use tokio::task::JoinSet;

use super::last_good::{GoodModel, LastGood};
use crate::config::ModelConfig;
use crate::metrics::Metrics;
use crate::prepare::{Origin, PrepareError, Workshop};
use crate::table::{LoadedVersion, ModelParts, ModelTable, Publisher};

/// Wait before a version is tried again whose refusal may pass, such as an unreadable disk.
const RETRY: Duration = Duration::from_secs(5);

pub(super) type Key = (ModelName, Version);
pub(super) type Aliases = BTreeMap<AliasName, Version>;
/// How a preparation ended.
type Ended = (Key, Result<Ready, PrepareError>);

/// A version that can serve, and what it was made from.
pub(super) struct Ready {
    pub version: Arc<LoadedVersion>,
    pub origin: Origin,
}

/// A version that cannot serve.
#[derive(Clone, Debug)]
struct Refused {
    reason: String,
    /// When to try again; `None` where the version itself is at fault.
    retry_at: Option<Instant>,
}

/// What the registry intends, as last read.
#[derive(Default)]
struct Intent {
    generation: i64,
    /// Of the project's models, and of others in the registry that have aliases.
    releases: BTreeMap<ModelName, Aliases>,
}

/// Why the registry's intent could not be read; the fleet stays as it is.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// Every version that serves or is about to.
pub(crate) struct Fleet {
    workshop: Workshop,
    models: BTreeMap<ModelName, ModelConfig>,
    /// For models of the registry that the project does not know, such as those of load requests.
    unconfigured: ModelConfig,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    intent: Option<Intent>,
    /// Published generation; `None` before the first publication.
    published: Option<i64>,
    /// The aliases that are published, by model.
    serving: BTreeMap<ModelName, Aliases>,
    ready: BTreeMap<Key, Ready>,
    refused: BTreeMap<Key, Refused>,
    preparing: BTreeSet<Key>,
    work: JoinSet<Ended>,
    /// What was published and is not on disk yet.
    unsaved: Option<LastGood>,
}

impl Fleet {
    pub(crate) fn new(
        workshop: Workshop,
        models: BTreeMap<ModelName, ModelConfig>,
        publisher: Publisher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            workshop,
            models,
            unconfigured: ModelConfig::default(),
            publisher,
            metrics,
            intent: None,
            published: None,
            serving: BTreeMap::new(),
            ready: BTreeMap::new(),
            refused: BTreeMap::new(),
            preparing: BTreeSet::new(),
            work: JoinSet::new(),
            unsaved: None,
        }
    }

    /// The registry's generation as last read; 0 before the first reading.
    pub(crate) fn generation(&self) -> i64 {
        self.intent.as_ref().map_or(0, |intent| intent.generation)
    }

    /// The generation that is published; 0 before the first publication.
    pub(crate) fn published(&self) -> i64 {
        self.published.unwrap_or(0)
    }

    /// Whether what is published is what was last intended.
    pub(crate) fn is_settled(&self) -> bool {
        self.preparing.is_empty()
            && self.published.is_some()
            && self.published() == self.generation()
    }

    fn config(&self, model: &ModelName) -> &ModelConfig {
        self.models.get(model).unwrap_or(&self.unconfigured)
    }

    /// Versions of a model that can answer at once.
    pub(crate) fn loaded(&self, model: &ModelName) -> BTreeSet<Version> {
        let served = self.serving.get(model);
        served
            .into_iter()
            .flat_map(BTreeMap::values)
            .copied()
            .collect()
    }

    /// Versions of a model that were refused for good, with their reasons.
    pub(crate) fn refused(&self, model: &ModelName) -> BTreeMap<Version, String> {
        let of_model = self.refused.iter().filter(|((of, _), _)| of == model);
        of_model
            .filter(|(_, refused)| refused.retry_at.is_none())
            .map(|((_, version), refused)| (*version, refused.reason.clone()))
            .collect()
    }

    /// Every refusal by model, also those that may pass.
    pub(crate) fn refusals(&self) -> BTreeMap<ModelName, BTreeMap<Version, String>> {
        let mut refusals: BTreeMap<ModelName, BTreeMap<Version, String>> = BTreeMap::new();
        for ((model, version), refused) in &self.refused {
            let of_model = refusals.entry(model.clone()).or_default();
            of_model.insert(*version, refused.reason.clone());
        }
        refusals
    }

    /// Compares what is intended with what is loaded, prepares what is missing and publishes when
    /// nothing is. True where it published.
    pub(crate) async fn reconcile(&mut self) -> Result<bool, ReconcileError> {
        let generation = self.workshop.registry.generation().await?;
        if self
            .intent
            .as_ref()
            .is_none_or(|intent| intent.generation != generation)
        {
            self.read_intent().await?;
        }
        self.prepare_missing();
        Ok(self.publish_if_complete())
    }

    /// Waits for the next preparation to end; for ever where none is under way.
    pub(crate) async fn prepared(&mut self) -> Option<Ended> {
        match self.work.join_next().await {
            // A preparation that panicked on our side is as good as none; reconcile tries again.
            Some(ended) => ended.ok(),
            None => std::future::pending().await,
        }
    }

    /// Takes in what [`Fleet::prepared`] gave. True where that completed a release.
    pub(crate) fn take(&mut self, prepared: Option<Ended>) -> bool {
        let Some((key, result)) = prepared else {
            self.preparing.clear();
            return false;
        };
        self.preparing.remove(&key);
        match result {
            Ok(ready) => {
                let engine = ready.version.engine.kind();
                tracing::info!(model = %key.0, version = key.1, %engine, "version prepared");
                self.refused.remove(&key);
                self.ready.insert(key, ready);
            }
            Err(error) => {
                let retry_at = error.may_pass().then(|| Instant::now() + RETRY);
                let reason = error.to_string();
                tracing::error!(model = %key.0, version = key.1, reason, "version refused");
                self.refused.insert(key, Refused { reason, retry_at });
            }
        }
        self.publish_if_complete()
    }

    /// Reads the aliases of every model as of one generation.
    async fn read_intent(&mut self) -> Result<(), ReconcileError> {
        // Another writer may come between two models; what was read before it is then read again.
        const ATTEMPTS: usize = 8;
        let mut intent = Intent::default();
        for _ in 0..ATTEMPTS {
            intent = Intent::default();
            let before = self.workshop.registry.generation().await?;
            let registered = self.workshop.registry.models().await?;
            let registered = registered.into_iter().map(|summary| summary.model);
            let known: BTreeSet<ModelName> =
                self.models.keys().cloned().chain(registered).collect();
            for model in known {
                let (aliases, changed) = match self.workshop.registry.release(&model).await {
                    Ok(release) => (release.aliases, release.changed_generation > 0),
                    Err(LookupError::UnknownModel(_)) => (Aliases::new(), false),
                    Err(error) => return Err(error.into()),
                };
                // A model that never had a version is waited for; one whose aliases were all taken
                // away was unloaded.
                let waited_for = self.models.contains_key(&model) && !changed;
                if !aliases.is_empty() || waited_for {
                    intent.releases.insert(model, aliases);
                }
            }
            intent.generation = before;
            if self.workshop.registry.generation().await? == before {
                break;
            }
        }
        let wanted: BTreeSet<Key> = keys(&intent.releases).collect();
        self.refused.retain(|key, _| wanted.contains(key));
        self.intent = Some(intent);
        Ok(())
    }

    fn prepare_missing(&mut self) {
        let Some(intent) = &self.intent else {
            return;
        };
        let now = Instant::now();
        let missing: Vec<Key> = keys(&intent.releases)
            .filter(|key| !self.ready.contains_key(key) && !self.preparing.contains(key))
            .filter(|key| match self.refused.get(key) {
                None => true,
                Some(refused) => refused.retry_at.is_some_and(|at| at <= now),
            })
            .collect();
        for key in missing {
            let engine = self.config(&key.0).engine;
            if !self.preparing.insert(key.clone()) {
                continue;
            }
            let workshop = self.workshop.clone();
            self.work.spawn(async move {
                let prepared = workshop.fetch_and_prepare(&key.0, key.1, engine).await;
                let ready = prepared.map(|(version, origin)| Ready {
                    version: Arc::new(version),
                    origin,
                });
                (key, ready)
            });
        }
    }

    fn publish_if_complete(&mut self) -> bool {
        let Some(intent) = self.intent.as_ref().filter(|_| self.preparing.is_empty()) else {
            return false;
        };
        let serving: BTreeMap<ModelName, Aliases> = intent
            .releases
            .iter()
            .map(|(model, aliases)| (model.clone(), self.release_of(model, aliases)))
            .collect();
        if self.published == Some(intent.generation) && serving == self.serving {
            return false;
        }
        let generation = intent.generation;
        let parts = serving
            .iter()
            .map(|(model, aliases)| parts(self.config(model), (model, aliases), &self.ready))
            .collect();
        self.publisher
            .publish(ModelTable::new(generation, parts), &self.metrics);
        for (model, aliases) in &serving {
            if self.serving.get(model) != Some(aliases) {
                tracing::info!(%model, generation, ?aliases, "release published");
            }
        }
        self.published = Some(generation);
        self.serving = serving;
        if let Some(good) = self.last_good(generation) {
            self.unsaved = Some(good);
        }
        // What no alias needs goes, once no request holds its table.
        let needed: BTreeSet<Key> = keys(&self.serving).chain(self.intended()).collect();
        for (_, gone) in self.ready.extract_if(.., |key, _| !needed.contains(key)) {
            self.publisher.retire(gone.version);
        }
        true
    }

    fn intended(&self) -> impl Iterator<Item = Key> + '_ {
        self.intent.iter().flat_map(|intent| keys(&intent.releases))
    }

    /// The aliases to publish: those intended whose versions are ready, or the old ones where the
    /// intended champion is not.
    fn release_of(&self, model: &ModelName, intended: &Aliases) -> Aliases {
        let ready = |version: Version| self.ready.contains_key(&(model.clone(), version));
        let champion = intended.get(&AliasName::champion());
        if champion.is_some_and(|&version| !ready(version))
            && let Some(old) = self.serving.get(model).filter(|old| !old.is_empty())
        {
            return old.clone();
        }
        let ready = intended.iter().filter(|(_, version)| ready(**version));
        ready
            .map(|(alias, version)| (alias.clone(), *version))
            .collect()
    }

    /// The release that is served, as far as it answers.
    fn last_good(&self, generation: i64) -> Option<LastGood> {
        let answering = self
            .serving
            .iter()
            .filter(|(_, aliases)| aliases.contains_key(&AliasName::champion()));
        let models: BTreeMap<ModelName, GoodModel> = answering
            .map(|(model, aliases)| {
                let origin = |&version: &Version| {
                    let ready = self.ready.get(&(model.clone(), version))?;
                    Some((version, ready.origin.clone()))
                };
                let model_of = GoodModel {
                    aliases: aliases.clone(),
                    versions: aliases.values().filter_map(origin).collect(),
                };
                (model.clone(), model_of)
            })
            .collect();
        (!models.is_empty()).then(|| LastGood::new(generation, models))
    }

    /// Starts with versions that serve already.
    pub(super) fn adopt(
        &mut self,
        ready: BTreeMap<Key, Ready>,
        serving: BTreeMap<ModelName, Aliases>,
    ) {
        (self.ready, self.serving) = (ready, serving);
    }

    /// Brings what was published to disk, off this thread.
    pub(super) async fn save(&mut self, data: &Path) {
        let Some(good) = self.unsaved.take() else {
            return;
        };
        let data = data.to_owned();
        match tokio::task::spawn_blocking(move || good.write(&data)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "last good release not written"),
            Err(error) => tracing::error!(%error, "writing the last good release panicked"),
        }
    }
}

/// A model's part of a table.
pub(super) fn parts(
    config: &ModelConfig,
    (model, aliases): (&ModelName, &Aliases),
    ready: &BTreeMap<Key, Ready>,
) -> ModelParts {
    let loaded = |&version: &Version| {
        let ready = ready.get(&(model.clone(), version))?;
        Some((version, Arc::clone(&ready.version)))
    };
    ModelParts {
        name: model.as_str().into(),
        rules: Arc::clone(&config.rules),
        aliases: aliases
            .iter()
            .map(|(alias, version)| (alias.as_str().into(), *version))
            .collect(),
        versions: aliases.values().filter_map(loaded).collect(),
    }
}

fn keys(releases: &BTreeMap<ModelName, Aliases>) -> impl Iterator<Item = Key> + '_ {
    let of_model = |(model, aliases): (&ModelName, &Aliases)| {
        let model = model.clone();
        let versions: Vec<Version> = aliases.values().copied().collect();
        versions
            .into_iter()
            .map(move |version| (model.clone(), version))
    };
    releases.iter().flat_map(of_model)
}
