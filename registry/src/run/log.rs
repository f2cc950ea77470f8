//! What a run writes while it runs. A run that has ended takes nothing more but tags: its process
//! may have been taken for dead and go on writing.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::names::check_key;
use crate::run::{expect_run, expect_running};
use crate::{DatabaseError, Dataset, Metric, NameError, Registry, RunEnded, RunId, UnknownRun};

/// Why something was not logged. Nothing of the call was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LogError {
    /// A key is empty, too long or has control characters.
    #[error(transparent)]
    Key(#[from] NameError),
    /// A parameter has another value already.
    #[error("parameter `{key}` is `{recorded}` already and cannot become `{given}`")]
    ParamChanged {
        /// The parameter.
        key: String,
        /// Its value.
        recorded: String,
        /// The value that was refused.
        given: String,
    },
    /// More rows than can be stored.
    #[error("dataset `{name}` has {rows} rows, more than can be stored")]
    TooManyRows {
        /// The dataset.
        name: String,
        /// Its rows.
        rows: u64,
    },
    /// The run has ended.
    #[error(transparent)]
    RunEnded(#[from] RunEnded),
    /// No such run.
    #[error(transparent)]
    UnknownRun(#[from] UnknownRun),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Registry {
    /// Logs parameters. A parameter is written once; the same value again is harmless.
    ///
    /// # Errors
    /// Run unknown or ended, bad key, or another value recorded.
    pub async fn log_params(
        &self,
        run: &RunId,
        params: &BTreeMap<String, String>,
    ) -> Result<(), LogError> {
        let mut transaction = self.write().await?;
        expect_running::<LogError>(&mut transaction, run).await?;
        for (key, value) in params {
            check_key("a parameter", key)?;
            let recorded: String = sqlx::query_scalar(
                "INSERT INTO run_params (run, key, value) VALUES (?, ?, ?)
                 ON CONFLICT DO UPDATE SET value = value RETURNING value",
            )
            .bind(run.as_str())
            .bind(key)
            .bind(value)
            .fetch_one(&mut *transaction)
            .await?;
            if recorded != *value {
                return Err(LogError::ParamChanged {
                    key: key.clone(),
                    recorded,
                    given: value.clone(),
                });
            }
        }
        Ok(transaction.commit().await?)
    }

    /// Logs metrics; of the same key, step and time the last value counts.
    ///
    /// # Errors
    /// Run unknown or ended, or bad key.
    pub async fn log_metrics(&self, run: &RunId, metrics: &[Metric]) -> Result<(), LogError> {
        let mut transaction = self.write().await?;
        expect_running::<LogError>(&mut transaction, run).await?;
        for metric in metrics {
            check_key("a metric", &metric.key)?;
            sqlx::query(
                "INSERT INTO run_metrics (run, key, step, at_ms, value) VALUES (?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET value = excluded.value",
            )
            .bind(run.as_str())
            .bind(&metric.key)
            .bind(metric.step)
            .bind(metric.at_ms)
            .bind((!metric.value.is_nan()).then_some(metric.value))
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Sets tags, also of a run that has ended; the last write counts.
    ///
    /// # Errors
    /// Run unknown, or bad key.
    pub async fn set_tags(
        &self,
        run: &RunId,
        tags: &BTreeMap<String, String>,
    ) -> Result<(), LogError> {
        let mut transaction = self.write().await?;
        expect_run::<LogError>(&mut transaction, run).await?;
        for (key, value) in tags {
            check_key("a tag", key)?;
            sqlx::query(
                "INSERT INTO run_tags (run, key, value) VALUES (?, ?, ?)
                 ON CONFLICT DO UPDATE SET value = excluded.value",
            )
            .bind(run.as_str())
            .bind(key)
            .bind(value)
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// Records that a run used a dataset; returns the dataset's number, which is the same for the
    /// same content from the same source.
    ///
    /// # Errors
    /// Run unknown or ended, or bad name.
    pub async fn log_dataset(&self, run: &RunId, dataset: &Dataset) -> Result<i64, LogError> {
        check_key("a dataset", &dataset.name)?;
        let rows = i64::try_from(dataset.rows).map_err(|_| LogError::TooManyRows {
            name: dataset.name.clone(),
            rows: dataset.rows,
        })?;
        let mut transaction = self.write().await?;
        expect_running::<LogError>(&mut transaction, run).await?;
        let id: i64 = sqlx::query_scalar(
            "INSERT INTO datasets (name, digest, rows, from_ms, to_ms, source)
             VALUES (?, ?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET name = name RETURNING id",
        )
        .bind(&dataset.name)
        .bind(dataset.digest.to_string())
        .bind(rows)
        .bind(dataset.from_ms)
        .bind(dataset.to_ms)
        .bind(dataset.source.to_string())
        .fetch_one(&mut *transaction)
        .await?;
        sqlx::query(
            "INSERT INTO run_datasets (run, dataset, role) VALUES (?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(run.as_str())
        .bind(id)
        .bind(&dataset.role)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(id)
    }
}
