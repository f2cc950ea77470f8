//! Models without a registry: from files of the command line and from load requests, in memory.
//!
//! Owns the served table where there is no project. A loaded version gets the model's next number;
//! the one before it stays resident and answers where the new one cannot. Nothing of it is written
//! down: a restart serves the files of the command line again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use registry::{ModelName, Version};

use crate::config::{EngineChoice, ServeConfig, ServeRules};
use crate::metrics::Metrics;
use crate::prepare::{Artifact, Blueprint, Loaders, TrialLimits};
use crate::repository::{self, Keeper, Load, LoadBody, RepositoryError, Task};
use crate::table::{CHAMPION, LoadedVersion, ModelParts, ModelTable, Publisher};

/// The alias of the version before the champion.
const FALLBACK: &str = "fallback";

/// A model that is served, or was and can be again.
struct Shelved {
    /// Where the command line has it.
    path: Option<PathBuf>,
    /// The highest version so far.
    last: Version,
    champion: Option<Arc<LoadedVersion>>,
    before: Option<Arc<LoadedVersion>>,
}

/// What a shelf is made from.
pub(super) struct ShelfOptions<'c> {
    pub config: &'c ServeConfig,
    /// The files of the command line, prepared and published.
    pub files: Vec<Arc<LoadedVersion>>,
    pub loaders: Loaders,
    pub publisher: Publisher,
    pub metrics: Arc<Metrics>,
}

/// The owner of the table.
pub(super) struct Shelf {
    models: BTreeMap<ModelName, Shelved>,
    rules: Arc<ServeRules>,
    engine: EngineChoice,
    trial: TrialLimits,
    loaders: Loaders,
    publisher: Publisher,
    metrics: Arc<Metrics>,
}

impl Keeper for Shelf {
    async fn obey(&mut self, model: &ModelName, task: Task) -> Result<Version, RepositoryError> {
        match task {
            Task::Load(body) => self.load(model, body).await,
            Task::Unload => self.unload(model),
        }
    }
}

impl Shelf {
    pub(super) fn new(options: ShelfOptions<'_>) -> Self {
        let ShelfOptions { config, files, .. } = options;
        let shelved = config.files.iter().zip(files).map(|(file, version)| {
            let shelved = Shelved {
                path: Some(file.path.clone()),
                last: version.version,
                champion: Some(version),
                before: None,
            };
            (file.name.clone(), shelved)
        });
        Self {
            models: shelved.collect(),
            rules: Arc::new(ServeRules {
                fallback: vec![FALLBACK.into()],
                ..ServeRules::default()
            }),
            engine: config.engine,
            trial: config.trial,
            loaders: options.loaders,
            publisher: options.publisher,
            metrics: options.metrics,
        }
    }

    async fn load(
        &mut self,
        model: &ModelName,
        body: LoadBody,
    ) -> Result<Version, RepositoryError> {
        let Load {
            file,
            rows_max,
            labels,
        } = repository::decode(body, model).await?;
        let shelved = self.models.get(model);
        let bytes = match file {
            Some(bytes) => bytes,
            None => match shelved.and_then(|shelved| shelved.path.clone()) {
                Some(path) => tokio::fs::read(path)
                    .await
                    .map_err(RepositoryError::File)?
                    .into(),
                // From a request before: it serves still, and there is nothing else to load.
                None => {
                    let serving = shelved.and_then(|shelved| shelved.champion.as_ref());
                    return serving
                        .map(|version| version.version)
                        .ok_or_else(|| RepositoryError::NoFile(model.clone()));
                }
            },
        };
        let version = shelved.map_or(1, |shelved| shelved.last + 1);
        let blueprint = Blueprint {
            model: model.as_str().into(),
            version,
            file: Artifact::new(bytes),
            engine: self.engine,
            service: None,
            rows_max,
            golden: None,
            labels,
            trial: self.trial,
        };
        let loaded = Arc::new(self.loaders.prepare(blueprint).await?);
        let shelved = self.models.entry(model.clone()).or_insert(Shelved {
            path: None,
            last: 0,
            champion: None,
            before: None,
        });
        shelved.last = version;
        shelved.before = shelved.champion.replace(loaded);
        self.publish();
        tracing::info!(%model, version, "loaded by request");
        Ok(version)
    }

    fn unload(&mut self, model: &ModelName) -> Result<Version, RepositoryError> {
        let shelved = self.models.get_mut(model);
        let taken = shelved.and_then(|shelved| {
            shelved.before = None;
            shelved.champion.take()
        });
        let taken = taken.ok_or_else(|| RepositoryError::NotLoaded(model.clone()))?;
        self.publish();
        tracing::info!(%model, "unloaded by request");
        Ok(taken.version)
    }

    fn publish(&mut self) {
        let parts = self.models.iter().filter_map(|(model, shelved)| {
            let champion = shelved.champion.as_ref()?;
            let named = [
                (CHAMPION, Some(champion)),
                (FALLBACK, shelved.before.as_ref()),
            ];
            let named = named
                .into_iter()
                .filter_map(|(alias, version)| Some((alias, version?)));
            Some(ModelParts {
                name: model.as_str().into(),
                rules: Arc::clone(&self.rules),
                aliases: named
                    .clone()
                    .map(|(alias, version)| (alias.into(), version.version))
                    .collect(),
                versions: named
                    .map(|(_, version)| (version.version, Arc::clone(version)))
                    .collect(),
            })
        });
        let table = ModelTable::new(0, parts.collect());
        self.publisher.publish(table, &self.metrics);
    }
}
