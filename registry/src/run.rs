//! Runs of the trainer: started, written to while they run, ended once.
//!
//! A run belongs to an experiment and a model; the trials inside a run are its children. What a run
//! leaves behind (parameters, metrics by step, tags, datasets) stays whether it won or lost. Its
//! name is derived from what it is, so that the same seed gives the same names.

mod log;
mod read;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;
use thiserror::Error;

use crate::decision::read_decision;
use crate::model::expect_model;
use crate::names::check_key;
use crate::{DatabaseError, Digest, ModelName, NameError, Registry, RunId, UnknownModel};

pub use log::LogError;
pub(crate) use read::{read_run, version_datasets};

/// A run about to start.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// The experiment; made if missing.
    pub experiment: String,
    /// The model that it trains; it must exist.
    pub model: ModelName,
    /// The decision that set it off.
    pub trigger: Option<i64>,
    /// For people.
    pub name: String,
    /// Seed of everything random in it.
    pub seed: u64,
    /// The process that works on it: when that is gone, the run is dead.
    pub owner_pid: u32,
    /// The instant that it looks at the data from; in a replay, the data's time.
    pub as_of_ms: i64,
    /// When it started, on the wall clock.
    pub started_ms: i64,
    /// The run that it is a trial of; it must be running.
    pub parent: Option<RunId>,
}

/// Where a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunStatus {
    /// At work, or its process was killed and nobody has noticed yet.
    Running,
    /// Came to its end, whether it won or lost.
    Finished,
    /// Gave up with an error.
    Failed,
    /// Was stopped from outside.
    Killed,
}

impl RunStatus {
    /// The status as it is stored and shown.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Failed => "failed",
            Self::Killed => "killed",
        }
    }
}

impl fmt::Display for RunStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for RunStatus {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let all = [Self::Running, Self::Finished, Self::Failed, Self::Killed];
        let found = all.into_iter().find(|status| status.as_str() == text);
        found.ok_or_else(|| {
            NameError::new("a run status", "running, finished, failed or killed", text)
        })
    }
}

/// A run without what it logged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RunSummary {
    /// Its name.
    pub id: RunId,
    /// The experiment.
    pub experiment: String,
    /// The model that it trains.
    pub model: ModelName,
    /// The run that it is a trial of.
    pub parent: Option<RunId>,
    /// The decision that set it off.
    pub trigger: Option<i64>,
    /// For people.
    pub name: String,
    /// Seed of everything random in it.
    pub seed: u64,
    /// The process that works on it.
    pub owner_pid: u32,
    /// The instant that it looks at the data from.
    pub as_of_ms: i64,
    /// When it started, on the wall clock.
    pub started_ms: i64,
    /// When it ended; none while it runs.
    pub finished_ms: Option<i64>,
    /// Where it is.
    pub status: RunStatus,
    /// What came of it, such as `registered v5` or `rejected: …`; none while it runs.
    pub outcome: Option<String>,
}

/// A run with all that it logged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// What it is and where.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// Parameters; written once each.
    pub params: BTreeMap<String, String>,
    /// Metrics, by key, step and time.
    pub metrics: Vec<Metric>,
    /// Tags; the last write counts.
    pub tags: BTreeMap<String, String>,
    /// The rows that it used.
    pub datasets: Vec<LoggedDataset>,
    /// Its trials, in order of starting.
    pub children: Vec<RunSummary>,
}

impl Run {
    /// The value of a metric at its last step.
    pub fn metric(&self, key: &str) -> Option<f64> {
        let of_key = self.metrics.iter().filter(|metric| metric.key == key);
        of_key.map(|metric| metric.value).next_back()
    }
}

/// A figure at a step of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Metric {
    /// Its name.
    pub key: String,
    /// Its value; NaN and infinities are kept.
    pub value: f64,
    /// The step, such as a boosting round.
    pub step: i64,
    /// When.
    pub at_ms: i64,
}

/// Rows that a run used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dataset {
    /// Its name, such as `delay/training`.
    pub name: String,
    /// Digest of its content.
    pub digest: Digest,
    /// How many rows.
    pub rows: u64,
    /// Begin of its time span, inclusive.
    pub from_ms: i64,
    /// End of its time span, exclusive.
    pub to_ms: i64,
    /// What for: `training`, `validation`, `baseline`, …
    pub role: String,
    /// Where the rows came from, with what is needed to make them again.
    pub source: serde_json::Value,
}

/// A dataset as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoggedDataset {
    /// Its number; the same content from the same source has one.
    pub id: i64,
    /// The dataset.
    #[serde(flatten)]
    pub dataset: Dataset,
}

/// A run that the registry does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("run {0} is not in the registry")]
pub struct UnknownRun(pub RunId);

/// A run that has ended and takes no more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("run {run} has ended as {status}")]
pub struct RunEnded {
    /// The run.
    pub run: RunId,
    /// How it ended.
    pub status: RunStatus,
}

/// Why a run was not started or ended. Nothing was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The experiment's name is empty, too long or has control characters.
    #[error(transparent)]
    Experiment(NameError),
    /// The triggering decision does not exist, or is about another model.
    #[error("decision {decision} is not one about model `{model}`")]
    UnknownTrigger {
        /// The model of the run.
        model: ModelName,
        /// The decision.
        decision: i64,
    },
    /// A run cannot end as running.
    #[error("run {run} cannot end as running")]
    NotAnEnd {
        /// The run.
        run: RunId,
    },
    /// The run, or its parent, has ended already.
    #[error(transparent)]
    RunEnded(#[from] RunEnded),
    /// No such model.
    #[error(transparent)]
    UnknownModel(#[from] UnknownModel),
    /// No such run.
    #[error(transparent)]
    UnknownRun(#[from] UnknownRun),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Registry {
    /// Makes sure that an experiment exists; returns its number.
    ///
    /// # Errors
    /// The name is empty, longer than 250 characters or has control characters.
    pub async fn ensure_experiment(&self, name: &str) -> Result<i64, RunError> {
        let mut transaction = self.write().await?;
        let id = experiment(&mut transaction, name).await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Starts a run.
    ///
    /// # Errors
    /// Model, trigger or parent unknown; parent ended.
    pub async fn start_run(&self, new: NewRun) -> Result<RunId, RunError> {
        let mut transaction = self.write().await?;
        expect_model::<RunError>(&mut transaction, &new.model).await?;
        if let Some(parent) = &new.parent {
            expect_running::<RunError>(&mut transaction, parent).await?;
        }
        if let Some(id) = new.trigger {
            let found = read_decision(&mut transaction, id).await?;
            if found.is_none_or(|decision| decision.model != new.model) {
                return Err(RunError::UnknownTrigger {
                    model: new.model,
                    decision: id,
                });
            }
        }
        let experiment = experiment(&mut transaction, &new.experiment).await?;
        let id = free_id(&mut transaction, &new).await?;
        sqlx::query(
            "INSERT INTO runs (id, ordinal, experiment, model, parent, trigger_decision, name,
               seed, owner_pid, as_of_ms, started_ms, status)
             VALUES (?, (SELECT coalesce(max(ordinal), 0) + 1 FROM runs),
               ?, ?, ?, ?, ?, ?, ?, ?, ?, 'running')",
        )
        .bind(id.as_str())
        .bind(experiment)
        .bind(new.model.as_str())
        .bind(new.parent.as_ref().map(RunId::as_str))
        .bind(new.trigger)
        .bind(&new.name)
        .bind(new.seed.cast_signed())
        .bind(new.owner_pid)
        .bind(new.as_of_ms)
        .bind(new.started_ms)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(id)
    }

    /// Ends a run, and as killed every trial of it that still runs. Ending it again in the same
    /// way is harmless.
    ///
    /// # Errors
    /// Unknown, or ended in another way: of a trainer and a watcher that took it for dead, the
    /// first to say so is right.
    pub async fn finish_run(
        &self,
        run: &RunId,
        status: RunStatus,
        outcome: &str,
        at_ms: i64,
    ) -> Result<(), RunError> {
        if status == RunStatus::Running {
            return Err(RunError::NotAnEnd { run: run.clone() });
        }
        let mut transaction = self.write().await?;
        let found = expect_run::<RunError>(&mut transaction, run).await?;
        if found.status == status && found.outcome.as_deref() == Some(outcome) {
            return Ok(());
        }
        found.still_running(run)?;
        let ending = Ending {
            status,
            outcome,
            at_ms,
        };
        end_run(&mut transaction, run, ending).await?;
        Ok(transaction.commit().await?)
    }
}

/// How a run ends.
#[derive(Clone, Copy)]
pub(crate) struct Ending<'a> {
    pub(crate) status: RunStatus,
    pub(crate) outcome: &'a str,
    pub(crate) at_ms: i64,
}

/// What must be known of a run before it is written to.
pub(crate) struct FoundRun {
    pub(crate) model: ModelName,
    status: RunStatus,
    outcome: Option<String>,
}

impl FoundRun {
    fn still_running(&self, run: &RunId) -> Result<(), RunEnded> {
        if self.status == RunStatus::Running {
            return Ok(());
        }
        Err(RunEnded {
            run: run.clone(),
            status: self.status,
        })
    }
}

/// Fails if the run is unknown.
pub(crate) async fn expect_run<E>(
    connection: &mut SqliteConnection,
    run: &RunId,
) -> Result<FoundRun, E>
where
    E: From<UnknownRun> + From<sqlx::Error>,
{
    let found = read::find_run(connection, run).await?;
    found.ok_or_else(|| UnknownRun(run.clone()).into())
}

/// Fails if the run is unknown or has ended; returns its model.
pub(crate) async fn expect_running<E>(
    connection: &mut SqliteConnection,
    run: &RunId,
) -> Result<ModelName, E>
where
    E: From<UnknownRun> + From<RunEnded> + From<sqlx::Error>,
{
    let found = expect_run::<E>(connection, run).await?;
    found.still_running(run)?;
    Ok(found.model)
}

/// Ends a run that is known to be running, and everything below it.
pub(crate) async fn end_run(
    connection: &mut SqliteConnection,
    run: &RunId,
    ending: Ending<'_>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "WITH RECURSIVE below (id) AS (
           SELECT id FROM runs WHERE parent = ?1
           UNION ALL SELECT runs.id FROM runs JOIN below ON runs.parent = below.id)
         UPDATE runs SET status = 'killed', outcome = 'its parent run ended', finished_ms = ?2
         WHERE status = 'running' AND id IN (SELECT id FROM below)",
    )
    .bind(run.as_str())
    .bind(ending.at_ms)
    .execute(&mut *connection)
    .await?;
    sqlx::query("UPDATE runs SET status = ?, outcome = ?, finished_ms = ? WHERE id = ?")
        .bind(ending.status.as_str())
        .bind(ending.outcome)
        .bind(ending.at_ms)
        .bind(run.as_str())
        .execute(connection)
        .await?;
    Ok(())
}

async fn experiment(connection: &mut SqliteConnection, name: &str) -> Result<i64, RunError> {
    check_key("an experiment's name", name).map_err(RunError::Experiment)?;
    sqlx::query("INSERT INTO experiments (name) VALUES (?) ON CONFLICT DO NOTHING")
        .bind(name)
        .execute(&mut *connection)
        .await?;
    let id = sqlx::query_scalar("SELECT id FROM experiments WHERE name = ?")
        .bind(name)
        .fetch_one(connection)
        .await?;
    Ok(id)
}

/// The first name that is free for what the run is. Pid and wall clock stay out of it, or no
/// report with run names in it could be had twice.
async fn free_id(connection: &mut SqliteConnection, new: &NewRun) -> Result<RunId, sqlx::Error> {
    for attempt in 0_u64.. {
        let facts = serde_json::json!([
            new.experiment,
            new.model,
            new.trigger,
            new.name,
            new.seed,
            new.as_of_ms,
            new.parent,
            attempt,
        ]);
        let id = RunId::from_digest(&Digest::of(facts.to_string().as_bytes()));
        if read::find_run(connection, &id).await?.is_none() {
            return Ok(id);
        }
    }
    unreachable!("a registry holds fewer than 2^64 runs")
}
