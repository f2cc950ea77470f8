//! Who owns the served table: a project's control, the last good release in its stead while the
//! registry is away, or files without a project.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use featurestore::FeatureStore;
use registry::{ModelName, Registry};
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::away::{self, Away};
use super::fleet::Fleet;
use super::last_good::LastGood;
use super::loops::Loops;
use super::nightly::Nightly;
use super::registrar::Registrar;
use super::shelf::Shelf;
use super::{Command, Control, View, start_replayed_clock};
use crate::admin::Admin;
use crate::config::{ModelConfig, ProjectConfig};
use crate::prepare::{Loaders, TrialLimits, Workshop};
use crate::repository::{Job, keep};
use crate::serve::Core;
use crate::table::Publisher;

/// Who owns the served table, and does what the model repository is asked for.
pub(super) enum Owner {
    Project(Box<(Control, Registrar)>),
    /// The registry is away: the release to serve until it is back.
    LastGood(Box<(Foundation, LastGood, Away)>),
    Files(Box<Shelf>),
}

/// All that a project's control is made from, but the registry.
pub(super) struct Foundation {
    pub project: ProjectConfig,
    pub store: FeatureStore,
    pub core: Arc<Core>,
    pub loaders: Loaders,
    pub trial: TrialLimits,
    pub publisher: Publisher,
    pub commands: mpsc::Receiver<Command>,
    pub changed: Arc<Notify>,
    pub view: watch::Sender<Arc<View>>,
    pub unconfigured: ModelConfig,
}

impl Foundation {
    pub(super) fn data(&self) -> &Path {
        self.store.data_dir()
    }

    pub(super) fn model(&self, model: &ModelName) -> &ModelConfig {
        self.project.models.get(model).unwrap_or(&self.unconfigured)
    }

    async fn with(self, registry: Registry) -> Result<(Control, Registrar)> {
        let Self {
            project,
            store,
            core,
            ..
        } = self;
        let definitions = Arc::clone(store.definitions());
        start_replayed_clock(&core, project.models.keys(), &registry).await?;
        let workshop = Workshop {
            registry: registry.clone(),
            definitions: Arc::clone(&definitions),
            loaders: self.loaders,
            trial: self.trial,
        };
        let registrar = Registrar {
            workshop: workshop.clone(),
            models: project.models.clone(),
            core: Arc::clone(&core),
            changed: Arc::clone(&self.changed),
            view: self.view.subscribe(),
        };
        let nightly = Nightly::start(&project, &store).context("thread for verification")?;
        let metrics = Arc::clone(&core.metrics);
        let recorder = core.recorder.clone();
        let control = Control {
            data: store.data_dir().to_owned(),
            fleet: Fleet::new(workshop, project.models.clone(), self.publisher, metrics),
            loops: Loops::new(&project, &definitions, &registry, (store, recorder))?,
            core,
            commands: self.commands,
            changed: self.changed,
            view: self.view,
            fresh: true,
            ticked: None,
            nightly,
        };
        Ok((control, registrar))
    }
}

impl Owner {
    /// Does what there is to do until told to stop.
    pub(super) async fn run(
        self,
        admin: &Admin,
        mut jobs: mpsc::Receiver<Job>,
        stop: &CancellationToken,
    ) {
        let project = match self {
            Self::Files(shelf) => return keep(*shelf, jobs, stop).await,
            Self::Project(project) => Some(*project),
            Self::LastGood(last_good) => Self::awaited(*last_good, admin, (&mut jobs, stop)).await,
        };
        if let Some((control, registrar)) = project {
            tokio::join!(control.run(stop), keep(registrar, jobs, stop));
        }
    }

    /// The project's control, or what stands in for it while the registry is away.
    pub(super) async fn of_project(foundation: Foundation, admin: &Admin) -> Result<Self> {
        let good = LastGood::read(foundation.data());
        let registry = match (away::reach(foundation.data(), good.as_ref()).await, good) {
            (Ok(registry), _) => registry,
            (Err(Away::Unopened(error)), None) => return Err(error),
            (Err(away), None) => return Err(away.into()),
            (Err(away), Some(good)) => {
                return Ok(Self::LastGood(Box::new((foundation, good, away))));
            }
        };
        drop(admin.registry.set(registry.clone()));
        Ok(Self::Project(Box::new(foundation.with(registry).await?)))
    }

    /// Serves the last good release until the registry is back. `None` when told to stop, or when
    /// the registry that came is of no use: what serves then does so to the end.
    async fn awaited(
        (mut foundation, good, away): (Foundation, LastGood, Away),
        admin: &Admin,
        (jobs, stop): (&mut mpsc::Receiver<Job>, &CancellationToken),
    ) -> Option<(Control, Registrar)> {
        let (registry, held) =
            away::serve_last_good(&mut foundation, (&good, away), jobs, stop).await?;
        drop(admin.registry.set(registry.clone()));
        match foundation.with(registry).await {
            Ok((mut control, registrar)) => {
                control.take_over(held);
                Some((control, registrar))
            }
            Err(error) => {
                tracing::error!(
                    error = format!("{error:#}"),
                    "the registry cannot be followed"
                );
                stop.cancelled().await;
                None
            }
        }
    }
}
