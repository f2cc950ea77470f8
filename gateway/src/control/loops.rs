//! The loops of all models: their ticks, their windows, and what they say.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use featurestore::{Definitions, FeatureStore};
use monitor::{
    Baseline, LoopError, LoopStatus, ModelLoop, ModelLoopConfig, OperatorRequest, Skew, Tick,
};
use registry::{ModelName, Registry, Version};

use crate::config::ProjectConfig;
use crate::recorder::Recorder;

/// One model's loop with what the gateway keeps for it.
struct Driven {
    model_loop: ModelLoop,
    status: Option<LoopStatus>,
    /// Why the last tick failed.
    problem: Option<String>,
    /// Version in whose bins the recorder counts.
    watched: Option<Version>,
}

/// Every loop of the project. Models without a feature service have none: there is nothing to
/// compare and nothing to train from.
pub(super) struct Loops {
    driven: BTreeMap<ModelName, Driven>,
    store: FeatureStore,
    recorder: Recorder,
}

/// One tick, as the control loop orders it.
pub(super) struct Order {
    pub now_ms: i64,
    pub window: Window,
    /// Versions that can answer at once.
    pub loaded: BTreeSet<Version>,
    /// Versions that were refused for good, with their reasons.
    pub refused: BTreeMap<Version, String>,
    pub skew: Option<Skew>,
    pub requested: Option<OperatorRequest>,
}

/// Whether a tick takes in what was served since the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    Close,
    Keep,
}

/// A loop is asked for that there is not.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("model `{0}` has no loop: it has no feature service")]
    NoLoop(ModelName),
    #[error(transparent)]
    Loop(#[from] LoopError),
}

impl Loops {
    pub(super) fn new(
        project: &ProjectConfig,
        definitions: &Definitions,
        registry: &Registry,
        parts: (FeatureStore, Recorder),
    ) -> anyhow::Result<Self> {
        let (store, recorder) = parts;
        // The trainer runs in a folder of its own choosing.
        let absolute = |path: &Path| {
            std::path::absolute(path).with_context(|| format!("folder {}", path.display()))
        };
        let mut driven = BTreeMap::new();
        for (model, config) in &project.models {
            let service = config
                .service
                .as_deref()
                .and_then(|name| definitions.service(name));
            let Some(service) = service else {
                continue;
            };
            let config = ModelLoopConfig {
                model: model.clone(),
                policy: config.policy.clone(),
                project_dir: absolute(&project.folder)?,
                data_dir: absolute(store.data_dir())?,
                trainer: project.trainer.clone(),
                seed: project.seed,
                service_id: service.id().to_owned(),
                definitions: Arc::clone(store.definitions()),
            };
            let looped = Driven {
                model_loop: ModelLoop::new(config, registry.clone()),
                status: None,
                problem: None,
                watched: None,
            };
            driven.insert(model.clone(), looped);
        }
        Ok(Self {
            driven,
            store,
            recorder,
        })
    }

    pub(super) fn models(&self) -> Vec<ModelName> {
        self.driven.keys().cloned().collect()
    }

    pub(super) fn store(&self) -> &FeatureStore {
        &self.store
    }

    /// Whether a loop has something under way, or has not spoken yet.
    pub(super) fn are_busy(&self) -> bool {
        self.driven.values().any(|driven| match &driven.status {
            Some(status) => status.busy() || driven.problem.is_some(),
            None => true,
        })
    }

    /// Whether the last tick of some loop failed.
    pub(super) fn have_problems(&self) -> bool {
        self.driven.values().any(|driven| driven.problem.is_some())
    }

    /// What every loop last said.
    pub(super) fn statuses(&self) -> BTreeMap<ModelName, LoopStatus> {
        let spoken =
            |(model, driven): (&ModelName, &Driven)| Some((model.clone(), driven.status.clone()?));
        self.driven.iter().filter_map(spoken).collect()
    }

    /// Why the last tick of some loops failed.
    pub(super) fn problems(&self) -> BTreeMap<ModelName, String> {
        let failed =
            |(model, driven): (&ModelName, &Driven)| Some((model.clone(), driven.problem.clone()?));
        self.driven.iter().filter_map(failed).collect()
    }

    /// One step of one loop. A failed step is logged, shown, and done again with the next tick.
    pub(super) async fn tick(
        &mut self,
        model: &ModelName,
        order: Order,
    ) -> Result<LoopStatus, RequestError> {
        let driven = self
            .driven
            .get_mut(model)
            .ok_or_else(|| RequestError::NoLoop(model.clone()))?;
        let window = match order.window {
            // A recorder that has stopped is about to be followed by the process.
            Window::Close => {
                let closed = self.recorder.close_window(model.as_str().into()).await;
                closed.ok().flatten()
            }
            Window::Keep => None,
        };
        let ticked = driven.model_loop.tick(Tick {
            now_ms: order.now_ms,
            window,
            store: &self.store,
            loaded: &order.loaded,
            refused: &order.refused,
            skew: order.skew.as_ref(),
            requested: order.requested,
        });
        // Boxed: the future of a tick is tens of kilobytes.
        let ticked = Box::pin(ticked).await;
        let problem = ticked.as_ref().err().map(ToString::to_string);
        if let Some(problem) = problem.as_ref().filter(|_| problem != driven.problem) {
            tracing::error!(%model, problem, "step of the loop failed");
        }
        driven.problem = problem;
        let status = ticked?;
        driven.status = Some(status.clone());
        watch(&self.recorder, model, driven);
        Ok(status)
    }

    /// Ends a training run under way.
    pub(super) async fn shut_down(&mut self) {
        for driven in self.driven.values_mut() {
            driven.model_loop.shut_down().await;
        }
    }
}

/// Lets the recorder count in the bins of the champion's baseline. The bins of a version never
/// change, so a window goes on while the version is the same.
fn watch(recorder: &Recorder, model: &ModelName, driven: &mut Driven) {
    let baseline: Option<Arc<Baseline>> = driven.model_loop.baseline();
    let version = baseline.as_ref().map(|baseline| baseline.version);
    if version == driven.watched {
        return;
    }
    if recorder.watch(model.as_str().into(), baseline).is_ok() {
        driven.watched = version;
    }
}
