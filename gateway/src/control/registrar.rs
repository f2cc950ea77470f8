//! Load and unload requests where there is a registry: they change what the registry intends.
//!
//! A file that passes its trial becomes the model's next version and its champion, and the champion
//! before it the fallback, by compare-and-set; the fleet does the rest, as for every other change.
//! Unloading takes the model's aliases away, so that a restart does not bring it back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use registry::{
    AliasChange, AliasName, LookupError, ModelName, NewVersion, Promotion, Registry, Release,
    Version,
};
use tokio::sync::{Notify, watch};

use super::View;
use crate::config::ModelConfig;
use crate::prepare::{Artifact, Blueprint, LABELS_KEY, ROWS_MAX_KEY, Workshop, service};
use crate::repository::{self, Keeper, Load, LoadBody, RepositoryError, Task};
use crate::serve::Core;

const REASON: &str = "asked for through the model repository";
/// Longest wait for the fleet to serve what the registry intends.
const SERVED_WITHIN: Duration = Duration::from_secs(300);

/// Who does it.
pub(super) struct Registrar {
    pub workshop: Workshop,
    pub models: BTreeMap<ModelName, ModelConfig>,
    pub core: Arc<Core>,
    /// Wakes the fleet.
    pub changed: Arc<Notify>,
    pub view: watch::Receiver<Arc<View>>,
}

impl Keeper for Registrar {
    async fn obey(&mut self, model: &ModelName, task: Task) -> Result<Version, RepositoryError> {
        let body = match task {
            Task::Load(body) => body,
            Task::Unload => return self.unload(model).await,
        };
        let version = self.load(model, body).await?;
        self.changed.notify_one();
        self.served(model, Some(version)).await?;
        Ok(version)
    }
}

impl Registrar {
    fn registry(&self) -> &Registry {
        &self.workshop.registry
    }

    /// Makes a version the champion and returns it.
    async fn load(
        &mut self,
        model: &ModelName,
        body: LoadBody,
    ) -> Result<Version, RepositoryError> {
        let load = repository::decode(body, model).await?;
        let Some(bytes) = load.file.clone() else {
            return self.load_again(model).await;
        };
        let config = self.models.get(model);
        let bound = config.and_then(|config| config.service.as_deref());
        let bound = bound
            .map(|id| service(&self.workshop.definitions, id))
            .transpose()?;
        let id = bound.as_ref().map(|service| service.id().to_owned());
        let blueprint = Blueprint {
            model: model.as_str().into(),
            version: 0,
            file: Artifact::new(Arc::clone(&bytes)),
            engine: config.map(|config| config.engine).unwrap_or_default(),
            service: bound,
            rows_max: load.rows_max,
            golden: None,
            labels: load.labels.clone(),
            trial: self.workshop.trial,
        };
        // What cannot serve is not registered.
        let prepared = self.workshop.loaders.prepare(blueprint).await?;
        let mut signature = serde_json::to_value(prepared.engine.signature())
            .expect("a signature can be written to memory");
        drop(prepared);
        if let Load {
            rows_max: Some(rows),
            ..
        } = load
        {
            signature[ROWS_MAX_KEY] = rows.into();
        }
        if !load.labels.is_empty() {
            signature[LABELS_KEY] = serde_json::json!(load.labels);
        }
        let at_ms = self.core.clock.now_ms();
        self.registry().ensure_model(model, at_ms).await?;
        let new = NewVersion {
            model: model.clone(),
            artifact: self.registry().put_artifact(bytes.to_vec()).await?,
            golden: None,
            signature,
            service: id,
            run: None,
            algorithm: "external".to_owned(),
            metrics: BTreeMap::new(),
            datasets: Vec::new(),
            description: REASON.to_owned(),
            at_ms,
        };
        let before = self.registry().release(model).await?.champion();
        let version = self.registry().register_version(new).await?.version;
        self.promote(model, version, before).await?;
        Ok(version)
    }

    /// The champion, else the newest version.
    async fn load_again(&self, model: &ModelName) -> Result<Version, RepositoryError> {
        let release = self.release(model).await?;
        if let Some(champion) = release.as_ref().and_then(Release::champion) {
            return Ok(champion);
        }
        let versions = self.registry().versions(model).await?;
        let newest = versions.iter().map(|version| version.version).max();
        let newest = newest.ok_or_else(|| RepositoryError::NoFile(model.clone()))?;
        self.promote(model, newest, None).await?;
        Ok(newest)
    }

    async fn promote(
        &self,
        model: &ModelName,
        version: Version,
        before: Option<Version>,
    ) -> Result<(), RepositoryError> {
        let promotion = Promotion {
            model,
            challenger: version,
            expected_champion: before,
            reason: REASON,
            at_ms: self.core.clock.now_ms(),
        };
        self.registry().promote(promotion).await?;
        Ok(())
    }

    async fn unload(&mut self, model: &ModelName) -> Result<Version, RepositoryError> {
        let release = self.release(model).await?;
        let champion = release.as_ref().and_then(Release::champion);
        let (Some(release), Some(champion)) = (release, champion) else {
            return Err(RepositoryError::NotLoaded(model.clone()));
        };
        // The champion last: who falls back on another does so to the end.
        let mut aliases: Vec<(&AliasName, &Version)> = release.aliases.iter().collect();
        aliases.sort_by_key(|(alias, _)| **alias == AliasName::champion());
        for (alias, &version) in aliases {
            let change = AliasChange {
                model,
                alias,
                expected: Some(version),
                to: None,
                reason: REASON,
                at_ms: self.core.clock.now_ms(),
            };
            self.registry().set_alias(change).await?;
        }
        self.changed.notify_one();
        self.served(model, None).await?;
        Ok(champion)
    }

    async fn release(&self, model: &ModelName) -> Result<Option<Release>, RepositoryError> {
        match self.registry().release(model).await {
            Ok(release) => Ok(Some(release)),
            Err(LookupError::UnknownModel(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the model's champion is `version`, or the model is not served at all.
    async fn served(
        &mut self,
        model: &ModelName,
        version: Option<Version>,
    ) -> Result<(), RepositoryError> {
        let not_served = |reason: &str| RepositoryError::NotServed {
            version: version.unwrap_or(0),
            reason: reason.to_owned(),
        };
        let deadline = tokio::time::Instant::now() + SERVED_WITHIN;
        loop {
            let refused = {
                let view = self.view.borrow_and_update();
                let of_model = view.refused.get(model);
                of_model
                    .zip(version)
                    .and_then(|(refused, version)| refused.get(&version).cloned())
            };
            if let Some(reason) = refused {
                return Err(not_served(&reason));
            }
            let serving = {
                let table = self.core.table.snapshot();
                let model = table.as_ref().and_then(|table| table.model(model.as_str()));
                model.map(|model| model.champion.as_ref().map(|champion| champion.version))
            };
            if serving.flatten() == version {
                return Ok(());
            }
            match tokio::time::timeout_at(deadline, self.view.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(RepositoryError::Stopping),
                Err(_) => return Err(not_served("it was not ready in time")),
            }
        }
    }
}
