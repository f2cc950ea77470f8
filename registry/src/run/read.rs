//! Reading runs.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::open::{json, parsed, parsed_option};
use crate::run::FoundRun;
use crate::{
    DatabaseError, Dataset, LoggedDataset, LookupError, Metric, ModelName, Registry, Run, RunId,
    RunSummary, UnknownRun, Version,
};

impl Registry {
    /// One run with all that it logged.
    ///
    /// # Errors
    /// Unknown run.
    pub async fn run(&self, run: &RunId) -> Result<Run, LookupError> {
        let mut transaction = self.read().await?;
        read_run(&mut transaction, run).await
    }

    /// The runs of a model, newest first, at most `limit`; trials are found in their run.
    ///
    /// # Errors
    /// The database failed.
    pub async fn runs(
        &self,
        model: &ModelName,
        limit: u32,
    ) -> Result<Vec<RunSummary>, DatabaseError> {
        let mut transaction = self.read().await?;
        let rows = sqlx::query(
            "SELECT runs.*, experiments.name AS experiment_name
             FROM runs JOIN experiments ON experiments.id = runs.experiment
             WHERE model = ? AND parent IS NULL ORDER BY ordinal DESC LIMIT ?",
        )
        .bind(model.as_str())
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await?;
        Ok(rows.iter().map(summary).collect::<Result<_, _>>()?)
    }

    /// The runs of a model that have not ended, oldest first, without trials. Whether their
    /// processes live is for the caller to see.
    ///
    /// # Errors
    /// The database failed.
    pub async fn running(&self, model: &ModelName) -> Result<Vec<RunSummary>, DatabaseError> {
        let mut transaction = self.read().await?;
        let rows = sqlx::query(
            "SELECT runs.*, experiments.name AS experiment_name
             FROM runs JOIN experiments ON experiments.id = runs.experiment
             WHERE model = ? AND status = 'running' AND parent IS NULL ORDER BY ordinal",
        )
        .bind(model.as_str())
        .fetch_all(&mut *transaction)
        .await?;
        Ok(rows.iter().map(summary).collect::<Result<_, _>>()?)
    }
}

pub(crate) async fn find_run(
    connection: &mut SqliteConnection,
    run: &RunId,
) -> Result<Option<FoundRun>, sqlx::Error> {
    let row = sqlx::query("SELECT model, status, outcome FROM runs WHERE id = ?")
        .bind(run.as_str())
        .fetch_optional(connection)
        .await?;
    let found = row.map(|row| {
        Ok(FoundRun {
            model: parsed(&row, "model")?,
            status: parsed(&row, "status")?,
            outcome: row.try_get("outcome")?,
        })
    });
    found.transpose()
}

pub(crate) async fn read_run(
    connection: &mut SqliteConnection,
    run: &RunId,
) -> Result<Run, LookupError> {
    let row = sqlx::query(
        "SELECT runs.*, experiments.name AS experiment_name
         FROM runs JOIN experiments ON experiments.id = runs.experiment WHERE runs.id = ?",
    )
    .bind(run.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    let row = row.ok_or_else(|| UnknownRun(run.clone()))?;
    let params = sqlx::query_as("SELECT key, value FROM run_params WHERE run = ?")
        .bind(run.as_str())
        .fetch_all(&mut *connection)
        .await?;
    let tags = sqlx::query_as("SELECT key, value FROM run_tags WHERE run = ?")
        .bind(run.as_str())
        .fetch_all(&mut *connection)
        .await?;
    let children = sqlx::query(
        "SELECT runs.*, experiments.name AS experiment_name
         FROM runs JOIN experiments ON experiments.id = runs.experiment
         WHERE parent = ? ORDER BY ordinal",
    )
    .bind(run.as_str())
    .fetch_all(&mut *connection)
    .await?;
    Ok(Run {
        summary: summary(&row)?,
        params: BTreeMap::from_iter(params),
        metrics: metrics(connection, run).await?,
        tags: BTreeMap::from_iter(tags),
        datasets: run_datasets(connection, run).await?,
        children: children.iter().map(summary).collect::<Result<_, _>>()?,
    })
}

async fn metrics(
    connection: &mut SqliteConnection,
    run: &RunId,
) -> Result<Vec<Metric>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT key, value, step, at_ms FROM run_metrics WHERE run = ? ORDER BY key, step, at_ms",
    )
    .bind(run.as_str())
    .fetch_all(connection)
    .await?;
    let metrics = rows.iter().map(|row| {
        let value: Option<f64> = row.try_get("value")?;
        Ok(Metric {
            key: row.try_get("key")?,
            value: value.unwrap_or(f64::NAN),
            step: row.try_get("step")?,
            at_ms: row.try_get("at_ms")?,
        })
    });
    metrics.collect()
}

async fn run_datasets(
    connection: &mut SqliteConnection,
    run: &RunId,
) -> Result<Vec<LoggedDataset>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT datasets.*, role FROM run_datasets JOIN datasets ON id = dataset
         WHERE run = ? ORDER BY id, role",
    )
    .bind(run.as_str())
    .fetch_all(connection)
    .await?;
    rows.iter().map(logged_dataset).collect()
}

/// The datasets that a version named itself, beyond those of its run.
pub(crate) async fn version_datasets(
    connection: &mut SqliteConnection,
    model: &ModelName,
    version: Version,
) -> Result<Vec<LoggedDataset>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT datasets.*, role FROM version_datasets JOIN datasets ON id = dataset
         WHERE model = ? AND version = ? ORDER BY id, role",
    )
    .bind(model.as_str())
    .bind(version)
    .fetch_all(connection)
    .await?;
    rows.iter().map(logged_dataset).collect()
}

fn logged_dataset(row: &SqliteRow) -> Result<LoggedDataset, sqlx::Error> {
    Ok(LoggedDataset {
        id: row.try_get("id")?,
        dataset: Dataset {
            name: row.try_get("name")?,
            digest: parsed(row, "digest")?,
            rows: row.try_get::<i64, _>("rows")?.unsigned_abs(),
            from_ms: row.try_get("from_ms")?,
            to_ms: row.try_get("to_ms")?,
            role: row.try_get("role")?,
            source: json(row, "source")?,
        },
    })
}

fn summary(row: &SqliteRow) -> Result<RunSummary, sqlx::Error> {
    Ok(RunSummary {
        id: parsed(row, "id")?,
        experiment: row.try_get("experiment_name")?,
        model: parsed(row, "model")?,
        parent: parsed_option(row, "parent")?,
        trigger: row.try_get("trigger_decision")?,
        name: row.try_get("name")?,
        seed: row.try_get::<i64, _>("seed")?.cast_unsigned(),
        owner_pid: row.try_get("owner_pid")?,
        as_of_ms: row.try_get("as_of_ms")?,
        started_ms: row.try_get("started_ms")?,
        finished_ms: row.try_get("finished_ms")?,
        status: parsed(row, "status")?,
        outcome: row.try_get("outcome")?,
    })
}
