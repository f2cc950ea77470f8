//! The life of one run: rows, experiments, gates, registration, each step in the metadata store.
//!
//! Won, lost or broken, a run ends in the store with its reason. What is needed to do it again
//! (seed, cut-offs, digest of the rows, recipe, this program's digest) is logged before any
//! training. Must not know: the command line, the wall clock.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use featurestore::{DefinitionError, Definitions, Service};
use registry::{
    AliasError, AliasName, LookupError, ModelName, RegisterError as VersionError, RunStatus,
    Version,
};
use thiserror::Error;

use crate::candidate::{Candidate, score_registered};
use crate::experiment::{self, Effort, Outcome};
use crate::gates::{Case, Champion, Judgement, SoundRows, Verdict, judge};
use crate::journal::{Journal, JournalError};
use crate::learner::LearnError;
use crate::progress::Progress;
use crate::recipe::{Recipe, RecipeError};
use crate::register::{Origin, RegisterError, Registered, register};
use crate::rows::{CutOffs, Part, RowsError, Source, Split};

/// What is to be trained, from what, as of when.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    /// The project's folder.
    pub(crate) project: PathBuf,
    /// The data folder: registry, artifacts and the offline store.
    pub(crate) data: PathBuf,
    /// The model.
    pub(crate) model: ModelName,
    /// The decision that set the run off.
    pub(crate) trigger: Option<i64>,
    /// The instant of the run in the data's time.
    pub(crate) as_of_ms: i64,
    /// Seed of everything random.
    pub(crate) seed: u64,
    /// Threads in use at once.
    pub(crate) threads: NonZeroUsize,
}

/// How a run that did not break ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// New versions are in the registry.
    Registered(Registered),
    /// A gate refused.
    Rejected(Verdict),
}

/// Why a run broke.
#[derive(Debug, Error)]
pub(crate) enum RunError {
    /// The model's file is not usable.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// `features.toml` is not usable.
    #[error(transparent)]
    Definitions(#[from] DefinitionError),
    /// The model names a service that `features.toml` does not define.
    #[error("service `{0}` is not defined in features.toml")]
    UnknownService(String),
    /// There are no rows.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// The rows are not fit to train on.
    #[error("data: {}", .0.reason)]
    Data(Verdict),
    /// Training failed or was stopped.
    #[error(transparent)]
    Learn(#[from] LearnError),
    /// The metadata store could not be written.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The release could not be read.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The challenger could not be registered.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl RunError {
    /// Whether the run was asked to stop, and did not break by itself.
    pub(crate) fn stopped(&self) -> bool {
        matches!(self, Self::Learn(LearnError::Stopped))
    }
}

/// Does one run and leaves its end in the registry. `clock` reads the wall clock in milliseconds
/// since the Unix epoch; it dates the run's start and end and nothing else.
pub(crate) async fn run(
    order: &Order,
    clock: fn() -> i64,
    progress: &Progress,
) -> Result<Ended, RunError> {
    let journal = Journal::start(order, clock).await?;
    let active = Active {
        order,
        journal,
        clock,
        progress,
    };
    let result = active.train().await;
    let (status, outcome) = match &result {
        // Registration ended the run together with its versions.
        Ok(Ended::Registered(_)) => return result,
        Ok(Ended::Rejected(verdict)) => (
            RunStatus::Finished,
            format!("rejected: {}: {}", verdict.gate, verdict.reason),
        ),
        Err(error) if error.stopped() => (RunStatus::Killed, error.to_string()),
        Err(error) => (RunStatus::Failed, error.to_string()),
    };
    if let Err(error) = active.journal.end(status, &outcome).await {
        // When the run broke because the registry did, the first failure is the one to tell.
        progress.say(&format!(
            "the end of run {} was not recorded: {error}",
            active.journal.run
        ));
        return result.and(Err(error.into()));
    }
    result
}

/// A run under way.
struct Active<'a> {
    order: &'a Order,
    journal: Journal<'a>,
    clock: fn() -> i64,
    progress: &'a Progress,
}

impl Active<'_> {
    async fn train(&self) -> Result<Ended, RunError> {
        let Order { project, model, .. } = self.order;
        let recipe = Recipe::read(project, model.as_str())?;
        let definitions = Definitions::load(&project.join("features.toml"))?;
        let service = definitions
            .service(&recipe.service)
            .ok_or_else(|| RunError::UnknownService(recipe.service.clone()))?;
        let cuts = CutOffs::at(&recipe.train, self.order.as_of_ms);
        self.journal.order(&recipe, service.id(), &cuts).await?;
        let source = Source {
            data: &self.order.data,
            definitions: &definitions,
            model: model.as_str(),
        };
        let rows = self.rows(source, (&recipe, service), &cuts).await?;
        let from = (service.id(), recipe.train.rows);
        let datasets = self.journal.datasets(&rows, from, &cuts).await?;
        let effort = Effort {
            seed: self.order.seed,
            threads: self.order.threads,
        };
        let outcome = experiment::run(&recipe.train, &rows, effort, self.progress)?;
        self.journal.trials(&outcome).await?;
        let judgement = {
            let _phase = self.progress.phase("gates", 1);
            let champion = self
                .champion(source, (&rows.holdout(), service.id()), &cuts)
                .await?;
            judge(&recipe.gates, self.case(&rows, &outcome, champion).await?)
        };
        self.check_stop()?;
        let origin = Origin {
            model: model.clone(),
            run: self.journal.run.clone(),
            service: service.id().to_owned(),
            datasets,
            train_rows: rows.training().rows(),
            as_of_ms: self.order.as_of_ms,
            ended_ms: (self.clock)(),
        };
        self.conclude(judgement, &origin).await
    }

    /// Reads the rows and puts them before the data gate.
    async fn rows(
        &self,
        source: Source<'_>,
        (recipe, service): (&Recipe, &Service),
        cuts: &CutOffs,
    ) -> Result<SoundRows, RunError> {
        let split = {
            let _phase = self.progress.phase("rows", 1);
            Split::read(source, service.id(), (cuts, &recipe.train))?
        };
        self.check_stop()?;
        let features: Vec<String> = service.feature_names().map(str::to_owned).collect();
        match SoundRows::check(split, &features, &recipe.gates) {
            Ok(rows) => {
                self.progress.say(&rows.verdict.reason);
                Ok(rows)
            }
            Err(verdict) => {
                self.journal
                    .decide("failed", &verdict, std::slice::from_ref(&verdict))
                    .await?;
                Err(RunError::Data(verdict))
            }
        }
    }

    /// Brings challenger and simple model to the holdout rows.
    async fn case<'r>(
        &self,
        rows: &'r SoundRows,
        outcome: &Outcome,
        champion: Champion,
    ) -> Result<Case<'r>, RunError> {
        let holdout = rows.holdout();
        let release = self.journal.registry.release(&self.order.model).await?;
        let seed = self.order.seed;
        Ok(Case {
            rows,
            challenger: Candidate::prepare(outcome.challenger.as_ref(), &holdout, seed),
            simple: Candidate::prepare(outcome.simple.as_ref(), &holdout, seed),
            simple_needed: release.get(&AliasName::simple()).is_none(),
            champion,
            seed,
        })
    }

    /// The champion's answers, by its own ONNX file, to the requests of the holdout, whose rows are of
    /// `service`. One of another service gets rows of its own: these have other columns, or columns that
    /// mean something else.
    async fn champion(
        &self,
        source: Source<'_>,
        (holdout, service): (&Part, &str),
        cuts: &CutOffs,
    ) -> Result<Champion, RunError> {
        let registry = &self.journal.registry;
        let release = registry.release(&self.order.model).await?;
        let Some(version) = release.champion() else {
            return Ok(Champion::None);
        };
        let registered = registry.version(&self.order.model, version).await?;
        let unscorable = |reason: String| Champion::Unscorable { version, reason };
        let bytes = match registry.get_artifact(&registered.artifact).await {
            Ok(bytes) => Arc::from(bytes.as_ref()),
            Err(error) => return Ok(unscorable(error.to_string())),
        };
        let own = match registered.service.filter(|own| own != service) {
            Some(own) => match source.holdout_of(&own, cuts) {
                Ok(rows) => Some(rows),
                Err(error) => return Ok(unscorable(format!("it takes rows of `{own}`: {error}"))),
            },
            None => None,
        };
        let scores = match score_registered(bytes, own.as_ref().unwrap_or(holdout)) {
            Ok(scores) => scores,
            Err(error) => return Ok(unscorable(error.to_string())),
        };
        let (rows, scores) = match &own {
            None => ((0..scores.len()).collect(), scores),
            Some(own) => {
                let shared = holdout.shared_with(own);
                shared.map(|(row, theirs)| (row, scores[theirs])).unzip()
            }
        };
        Ok(Champion::Scored {
            version,
            rows,
            scores,
        })
    }

    /// Registers what passed, unless the champion changed meanwhile; records the decision.
    async fn conclude(&self, judgement: Judgement, origin: &Origin) -> Result<Ended, RunError> {
        let Judgement {
            verdicts,
            metrics,
            result,
        } = judgement;
        self.journal.metrics(&metrics).await?;
        for verdict in &verdicts {
            let word = if verdict.passed { "passed" } else { "refused" };
            self.progress
                .say(&format!("gate {} {word}: {}", verdict.gate, verdict.reason));
        }
        let passed = match result {
            Ok(passed) => passed,
            Err(verdict) => {
                self.journal.decide("rejected", &verdict, &verdicts).await?;
                return Ok(Ended::Rejected(verdict));
            }
        };
        let release = self.journal.registry.release(&self.order.model).await?;
        if release.champion() != passed.against {
            return self
                .overtaken(verdicts, passed.against, release.champion())
                .await;
        }
        self.journal
            .decide("passed", &verdicts[0].clone(), &verdicts)
            .await?;
        let against = passed.against;
        match register(&self.journal.registry, origin, passed).await {
            Ok(registered) => Ok(Ended::Registered(registered)),
            // Another came in between: nothing was registered.
            Err(RegisterError::Version(VersionError::Alias(AliasError::Conflict {
                found,
                ..
            }))) => self.overtaken(verdicts, against, found).await,
            Err(error) => Err(error.into()),
        }
    }

    /// Rejects a challenger that beat a champion of the past.
    async fn overtaken(
        &self,
        mut verdicts: Vec<Verdict>,
        judged: Option<Version>,
        now: Option<Version>,
    ) -> Result<Ended, RunError> {
        let verdict = Verdict::champion_changed(judged, now);
        verdicts.push(verdict.clone());
        self.journal.decide("rejected", &verdict, &verdicts).await?;
        Ok(Ended::Rejected(verdict))
    }

    fn check_stop(&self) -> Result<(), LearnError> {
        if self.progress.stop_asked() {
            Err(LearnError::Stopped)
        } else {
            Ok(())
        }
    }
}
