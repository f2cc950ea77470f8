//! The loop of one model: watching → training → preparing → soaking → watching.
//!
//! Each step compares what is written (aliases, runs, decisions) with what is
//! intended, moves at most one state on and records why. Nothing that a step
//! depends on lives only here: [`ModelLoop::resume`] reads it back, so a restart
//! and normal operation take the same path. The caller ticks often; a tick with
//! nothing to do reads one row of the registry and the new labels.

mod evaluate;
mod outcomes;
mod resume;
mod serve;
mod status;
mod train;
mod windows;

use std::path::PathBuf;
use std::sync::Arc;

use featurestore::{Definitions, ReadError};
use registry::{
    AliasError, DatabaseError, DecisionError, LookupError, ModelName, ModelVersion, NewDecision,
    Registry, Release, RunError, Version,
};

use crate::baseline::Baseline;
use crate::baseline::of_version::{BaselineError, Baselines, Reference};
use crate::launch::{Folders, Launcher, Training};
use crate::metrics::LoopMetrics;
use crate::policy::Policy;
use crate::rollout::{Former, RolloutError};
use crate::trigger::{RunEnd, TriggerCause, TriggerState};
use crate::verdict::{Judgement, Verdict};

use self::outcomes::Outcomes;
use self::windows::Windows;

pub use status::{
    FeatureDrift, LastRun, LoopState, LoopStatus, OperatorRequest, RequestAnswer, Tick,
};

/// What one loop is made from.
#[derive(Clone, Debug)]
pub struct ModelLoopConfig {
    /// The model.
    pub model: ModelName,
    /// What the user decided about its loop.
    pub policy: Policy,
    /// The user's project, passed to the trainer.
    pub project_dir: PathBuf,
    /// The data folder, passed to the trainer; run logs and baselines go below it.
    pub data_dir: PathBuf,
    /// The trainer's program.
    pub trainer: PathBuf,
    /// Seed of the trainings; the trigger's number is added to it.
    pub seed: u64,
    /// The feature service of the model, `name@version`.
    pub service_id: String,
    /// What features.toml defines.
    pub definitions: Arc<Definitions>,
}

/// The loop of one model. One owner ticks it; it spawns nothing but the trainer.
#[derive(Debug)]
pub struct ModelLoop {
    config: ModelLoopConfig,
    registry: Registry,
    launcher: Launcher,
    baselines: Baselines,
    metrics: LoopMetrics,
    stage: Stage,
    trigger: TriggerState,
    windows: Windows,
    outcomes: Outcomes,
    release: Option<Release>,
    champion: Option<Champion>,
    judgement: Option<Judgement>,
    evaluated_ms: Option<i64>,
    totals: Totals,
    last_run: Option<LastRun>,
    resumed: bool,
}

/// Why a step of the loop could not be finished. The next tick tries again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoopError {
    /// The registry could not be read.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// Something that the registry should have is not there.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// An alias could not be changed.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// A decision could not be recorded.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// A run could not be ended.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A swap could not be made.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// Labels could not be read.
    #[error("outcomes cannot be read: {0}")]
    Outcomes(#[from] ReadError),
}

#[derive(Debug)]
enum Stage {
    Watching,
    Training(RunUnderWay),
    Preparing(Candidacy),
    Soaking(Soak),
}

/// A training run that this loop decided on.
#[derive(Debug)]
struct RunUnderWay {
    decision: i64,
    cause: TriggerCause,
    /// The champion that its challenger is compared with.
    champion: Option<Version>,
    /// None after a restart: the trainer, if it still lives, is then another's child.
    child: Option<Training>,
}

/// A version on its way to being champion.
#[derive(Clone, Debug)]
struct Candidacy {
    challenger: Version,
    champion: Option<Version>,
    since_ms: i64,
    reason: String,
}

/// A new champion in its first days.
#[derive(Clone, Debug)]
struct Soak {
    champion: Version,
    since_ms: i64,
    former: Former,
}

#[derive(Debug)]
struct Champion {
    version: ModelVersion,
    reference: Reference,
    /// The baseline could not be made, but may be later.
    retry: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    registered: u64,
    rejected: u64,
    failed: u64,
    promotions: u64,
    rollbacks: u64,
}

impl Totals {
    fn ended(&self) -> u64 {
        self.registered + self.rejected + self.failed
    }
}

impl ModelLoop {
    /// A loop that has not looked at anything yet.
    pub fn new(config: ModelLoopConfig, registry: Registry) -> ModelLoop {
        let policy = &config.policy;
        let folders = Folders {
            project: config.project_dir.clone(),
            data: config.data_dir.clone(),
        };
        let launcher = Launcher::new(
            &policy.trigger,
            config.trainer.clone(),
            folders,
            config.model.clone(),
        );
        let baselines = Baselines {
            registry: registry.clone(),
            data_dir: config.data_dir.clone(),
            service_id: config.service_id.clone(),
            definitions: Arc::clone(&config.definitions),
            bins: policy.monitor.bins,
        };
        // Labels are looked back at by the decay window, the soak, and the cohort
        // whose coverage is measured.
        let label_ms = policy.label.delay.ms() + policy.monitor.decay.window.ms();
        let horizon_ms = label_ms.max(policy.rollout.soak.ms()) + 2 * policy.monitor.every.ms();
        ModelLoop {
            launcher,
            baselines,
            metrics: LoopMetrics::new(&config.model),
            stage: Stage::Watching,
            trigger: TriggerState::new(&policy.trigger),
            windows: Windows::default(),
            outcomes: Outcomes::new(config.model.as_str(), horizon_ms),
            release: None,
            champion: None,
            judgement: None,
            evaluated_ms: None,
            totals: Totals::default(),
            last_run: None,
            resumed: false,
            config,
            registry,
        }
    }

    /// Reads back where the loop stood, and ends the runs that a crash left
    /// behind. Called once before the first tick.
    ///
    /// # Errors
    /// The registry failed.
    pub async fn resume(&mut self, now_ms: i64) -> Result<(), LoopError> {
        self.read_back(now_ms).await?;
        self.resumed = true;
        Ok(())
    }

    /// One step: takes in the window and the new labels, moves on what is under
    /// way, and judges when an evaluation is due.
    ///
    /// # Errors
    /// Registry or store failed; the state is as before the step that failed.
    pub async fn tick(&mut self, input: Tick<'_>) -> Result<LoopStatus, LoopError> {
        let mut input = input;
        if let Some(window) = input.window.take() {
            let champion = self
                .champion
                .as_ref()
                .map(|champion| champion.version.version);
            let lost = self.windows.absorb(window, champion);
            self.metrics.lost_rows(lost);
        }
        if !self.resumed {
            self.resume(input.now_ms).await?;
        }
        self.look(input.now_ms).await?;
        self.outcomes.absorb(input.store, input.now_ms).await?;
        let answer = match input.requested {
            Some(request) => Some(self.answer(request, &input).await?),
            None => None,
        };
        self.advance(&input).await?;
        if let Some(end_ms) = self.due(input.now_ms) {
            self.evaluate(end_ms, &input).await?;
            self.advance(&input).await?;
        }
        let status = self.status(input.now_ms, answer);
        self.metrics.show(&status, input.now_ms);
        Ok(status)
    }

    /// The reference of the current champion, in whose bins traffic is to be
    /// counted; none before there is a champion with known training rows.
    pub fn baseline(&self) -> Option<Arc<Baseline>> {
        self.champion.as_ref()?.reference.baseline.clone()
    }

    /// Waits until the trainer under way has ended, so that the next tick sees it;
    /// for ever where there is none. May be given up and begun again.
    pub async fn training_ended(&mut self) {
        match &mut self.stage {
            Stage::Training(RunUnderWay {
                child: Some(child), ..
            }) => child.ended().await,
            _ => std::future::pending().await,
        }
    }

    /// Ends a run under way and waits until its process group is gone. The run is
    /// marked failed at the next start.
    pub async fn shut_down(&mut self) {
        if let Stage::Training(run) = &mut self.stage
            && let Some(child) = run.child.take()
        {
            child.stop().await;
        }
    }

    /// Moves on while there is something to move on to; bounded, since a step
    /// that changed aliases is followed by a look at them.
    async fn advance(&mut self, input: &Tick<'_>) -> Result<(), LoopError> {
        const STEPS_MAX: usize = 4;
        for _ in 0..STEPS_MAX {
            let moved = match self.stage {
                Stage::Training(_) => self.advance_training(input.now_ms).await?,
                Stage::Preparing(_) => self.advance_preparing(input).await?,
                Stage::Watching | Stage::Soaking(_) => self.advance_watching(input.now_ms),
            };
            if !moved {
                break;
            }
            self.look(input.now_ms).await?;
        }
        Ok(())
    }

    /// Reads the aliases; a new champion brings its reference.
    async fn look(&mut self, now_ms: i64) -> Result<(), LoopError> {
        let release = self.registry.release(&self.config.model).await?;
        let before = self
            .champion
            .as_ref()
            .map(|champion| champion.version.version);
        let after = release.champion();
        if after != before {
            self.champion = match after {
                Some(version) => Some(self.read_champion(version).await?),
                None => None,
            };
            self.windows.champion_changed();
            let since_ms = self.champion_since_ms(after).await?.unwrap_or(now_ms);
            self.trigger.champion_changed(since_ms);
        }
        self.release = Some(release);
        Ok(())
    }

    async fn read_champion(&self, version: Version) -> Result<Champion, LoopError> {
        let version = self.registry.version(&self.config.model, version).await?;
        let made = self.baselines.of(&version).await;
        let retry = made
            .as_ref()
            .is_err_and(|error| !matches!(error, BaselineError::NoDataset));
        let reference = made.unwrap_or_else(|error| {
            tracing::warn!(model = %self.config.model, version = version.version, %error, "champion has no baseline");
            Reference::of_metrics(&version)
        });
        Ok(Champion {
            version,
            reference,
            retry,
        })
    }

    async fn champion_since_ms(&self, champion: Option<Version>) -> Result<Option<i64>, LoopError> {
        let history = self.registry.history(&self.config.model).await?;
        let mut events = history.iter().rev();
        let event = events.find(|event| event.alias == registry::AliasName::champion());
        Ok(event
            .filter(|event| event.to == champion)
            .map(|event| event.at_ms))
    }

    /// The boundary to evaluate at, where one has passed since the last. Missed
    /// ones are not made up: their windows were not closed in time.
    fn due(&mut self, now_ms: i64) -> Option<i64> {
        let every_ms = self.config.policy.monitor.every.ms();
        let boundary_ms = now_ms.div_euclid(every_ms) * every_ms;
        match self.evaluated_ms {
            // The first window begins now and is judged when it ends.
            None => {
                self.evaluated_ms = Some(boundary_ms);
                None
            }
            Some(evaluated_ms) => (boundary_ms > evaluated_ms).then_some(boundary_ms),
        }
    }

    async fn decide(&self, new: Decided<'_>) -> Result<(i64, bool), LoopError> {
        let recorded = self.registry.record_decision(NewDecision {
            model: self.config.model.clone(),
            kind: new.kind.into(),
            outcome: new.outcome.into(),
            reason: new.reason,
            run: new.run,
            version: new.version,
            evidence: new.evidence,
            at_ms: new.at_ms,
        });
        Ok(recorded.await?)
    }

    fn count_end(&mut self, end: RunEnd) {
        match end {
            RunEnd::Registered => self.totals.registered += 1,
            RunEnd::Rejected => self.totals.rejected += 1,
            RunEnd::Failed => self.totals.failed += 1,
        }
    }

    fn status(&self, now_ms: i64, answer: Option<RequestAnswer>) -> LoopStatus {
        let release = self.release.as_ref();
        let evidence = self.judgement.as_ref().map(|judgement| &judgement.evidence);
        let mut drift: Vec<FeatureDrift> = evidence
            .iter()
            .flat_map(|evidence| &evidence.psi)
            .map(|(feature, psi)| FeatureDrift {
                feature: feature.clone(),
                psi: *psi,
            })
            .collect();
        drift.sort_by(|a, b| b.psi.total_cmp(&a.psi));
        let policy = &self.config.policy.trigger;
        let totals = self.totals;
        LoopStatus {
            model: self.config.model.clone(),
            state: self.stage.state(),
            verdict: self
                .judgement
                .as_ref()
                .map_or(Verdict::Unknown, |judgement| judgement.verdict),
            reason: match &self.judgement {
                Some(judgement) => judgement.reason.clone(),
                None => "no window has been judged yet".into(),
            },
            evaluated_ms: evidence.map(|evidence| evidence.window_end_ms),
            champion: release.and_then(Release::champion),
            challenger: release.and_then(Release::challenger),
            fallback: release.and_then(Release::fallback),
            has_baseline: self.baseline().is_some(),
            quality: evidence.and_then(|evidence| evidence.quality.clone()),
            drift,
            trainings: totals.ended(),
            registered: totals.registered,
            rejected: totals.rejected,
            failed: totals.failed,
            promotions: totals.promotions,
            rollbacks: totals.rollbacks,
            last_run: self.last_run.clone(),
            training_for: match &self.stage {
                Stage::Training(run) => Some(run.cause),
                _ => None,
            },
            cooldown_until_ms: self.trigger.cooldown_until_ms(policy),
            budget_left: self.trigger.budget_left(policy, now_ms),
            answer,
        }
    }
}

/// A decision of this loop, as it is recorded.
struct Decided<'a> {
    kind: &'a str,
    outcome: &'a str,
    reason: String,
    run: Option<registry::RunId>,
    version: Option<Version>,
    evidence: serde_json::Value,
    at_ms: i64,
}

impl Stage {
    fn state(&self) -> LoopState {
        match self {
            Stage::Watching => LoopState::Watching,
            Stage::Training(_) => LoopState::Training,
            Stage::Preparing(_) => LoopState::Preparing,
            Stage::Soaking(_) => LoopState::Soaking,
        }
    }
}
