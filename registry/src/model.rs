//! Models and their versions. A version never changes: the schema refuses it too.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use thiserror::Error;

use crate::alias::{Appointment, appoint};
use crate::open::{json, parsed, parsed_option};
use crate::run::{Ending, end_run, expect_running};
use crate::{
    AliasError, AliasName, ArtifactError, DatabaseError, Digest, LookupError, ModelName, Registry,
    RunEnded, RunId, RunStatus, UnknownRun, Version,
};

/// What a version is made of.
#[derive(Debug, Clone)]
pub struct NewVersion {
    /// The model that gets the version; it must exist.
    pub model: ModelName,
    /// The model file, already stored.
    pub artifact: Digest,
    /// Rows that it must reproduce before it serves, already stored; `None` for no such rows.
    pub golden: Option<Digest>,
    /// Inputs and outputs, as the engine describes them.
    pub signature: serde_json::Value,
    /// The feature service that assembles its inputs, as `name@version`; `None` takes tensors.
    pub service: Option<String>,
    /// The run that made it, still running; `None` if it came from outside.
    pub run: Option<RunId>,
    /// How it was made, such as `gradient_boosting`.
    pub algorithm: String,
    /// Validation figures by name (`log_loss`, `auc`, `ece`, `rows`); all finite.
    pub metrics: BTreeMap<String, f64>,
    /// The datasets that it was made from, beyond those of its run.
    pub datasets: Vec<DatasetUse>,
    /// For people.
    pub description: String,
    /// When.
    pub at_ms: i64,
}

/// A dataset that a version was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetUse {
    /// As [`Registry::log_dataset`] returned it.
    pub dataset: i64,
    /// What for: `training`, `validation`, `baseline`, …
    pub role: String,
}

/// What a run that ends well brings into the registry: its versions, and the aliases that they take.
#[derive(Debug, Clone)]
pub struct Registration<'a> {
    /// The run, still running.
    pub run: &'a RunId,
    /// The model of the run and of its versions.
    pub model: &'a ModelName,
    /// At least one.
    pub versions: Vec<NewVersion>,
    /// Each alias and the place in `versions` of the one that takes it.
    pub aliases: Vec<(AliasName, usize)>,
    /// The champion that the versions were compared with; `None` where there was none.
    pub expected_champion: Option<Version>,
    /// Why, for the history of the aliases.
    pub reason: &'a str,
    /// When the aliases change.
    pub at_ms: i64,
    /// When the run ends.
    pub ended_ms: i64,
}

/// An immutable version.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelVersion {
    /// The model.
    pub model: ModelName,
    /// Its number; 1 is the first and none is left out.
    pub version: Version,
    /// The model file.
    pub artifact: Digest,
    /// Rows that it must reproduce before it serves.
    pub golden: Option<Digest>,
    /// Inputs and outputs.
    pub signature: serde_json::Value,
    /// The feature service, as `name@version`.
    pub service: Option<String>,
    /// The run that made it.
    pub run: Option<RunId>,
    /// How it was made.
    pub algorithm: String,
    /// Validation figures by name.
    pub metrics: BTreeMap<String, f64>,
    /// For people.
    pub description: String,
    /// When it was registered.
    pub created_ms: i64,
}

/// A line of the list of models.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ModelSummary {
    /// The model.
    pub model: ModelName,
    /// When it was made.
    pub created_ms: i64,
    /// Its newest version, which is also how many it has; 0 for none.
    pub latest: Version,
}

/// A model that the registry does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("model `{0}` is not in the registry")]
pub struct UnknownModel(pub ModelName);

/// A version that its model does not have.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("model `{model}` has no version {version}")]
pub struct UnknownVersion {
    /// The model.
    pub model: ModelName,
    /// The missing version.
    pub version: Version,
}

/// Why a version was not registered. Nothing was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The model file, or that of its golden rows, is missing, corrupt or cannot be read.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// A validation figure is not finite.
    #[error("metric `{key}` is {value}, not a finite number")]
    MetricNotFinite {
        /// The figure.
        key: String,
        /// Its value.
        value: f64,
    },
    /// A dataset does not exist.
    #[error("dataset {dataset} is not in the registry")]
    UnknownDataset {
        /// The missing dataset.
        dataset: i64,
    },
    /// The run belongs to another model.
    #[error("run {run} is of model `{found}`, not of `{model}`")]
    RunOfOtherModel {
        /// The run.
        run: RunId,
        /// The model to register.
        model: ModelName,
        /// The run's model.
        found: ModelName,
    },
    /// No such run.
    #[error(transparent)]
    UnknownRun(#[from] UnknownRun),
    /// The run has ended: perhaps it was taken for dead.
    #[error(transparent)]
    RunEnded(#[from] RunEnded),
    /// No such model.
    #[error(transparent)]
    UnknownModel(#[from] UnknownModel),
    /// The aliases were not to be had.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Registry {
    /// Makes sure that a model exists.
    ///
    /// # Errors
    /// The database failed.
    pub async fn ensure_model(&self, model: &ModelName, at_ms: i64) -> Result<(), DatabaseError> {
        let mut transaction = self.write().await?;
        sqlx::query("INSERT INTO models (name, created_ms) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(model.as_str())
            .bind(at_ms)
            .execute(&mut *transaction)
            .await?;
        Ok(transaction.commit().await?)
    }

    /// All models, by name.
    ///
    /// # Errors
    /// The database failed.
    pub async fn models(&self) -> Result<Vec<ModelSummary>, DatabaseError> {
        let mut transaction = self.read().await?;
        let rows = sqlx::query(
            "SELECT name, created_ms,
               (SELECT coalesce(max(version), 0) FROM versions WHERE model = name) AS latest
             FROM models ORDER BY name",
        )
        .fetch_all(&mut *transaction)
        .await?;
        let summaries = rows.iter().map(|row| {
            Ok(ModelSummary {
                model: parsed(row, "name")?,
                created_ms: row.try_get("created_ms")?,
                latest: row.try_get("latest")?,
            })
        });
        Ok(summaries.collect::<Result<_, sqlx::Error>>()?)
    }

    /// Registers a version and gives it the model's next number. Its artifacts are read back and
    /// hashed first: what cannot be loaded is not registered.
    ///
    /// # Errors
    /// Model, dataset, run or artifact unknown; artifact corrupt; run ended or of another model.
    pub async fn register_version(&self, new: NewVersion) -> Result<ModelVersion, RegisterError> {
        self.expect_artifacts(&new).await?;
        let mut transaction = self.write().await?;
        let version = insert_version(&mut transaction, new).await?;
        transaction.commit().await?;
        Ok(version)
    }

    /// Registers all versions that a run made, points the aliases at them and ends the run as
    /// finished, with an outcome such as `registered v4, v5`, in one transaction: a killed trainer
    /// leaves either a finished run with all that it earned or a running one with nothing. Returns
    /// the versions in their order.
    ///
    /// # Errors
    /// As [`Registry::register_version`] and [`Registry::finish_run`]; [`AliasError::Conflict`] if
    /// the champion is not the expected one.
    pub async fn register_and_finish(
        &self,
        registration: Registration<'_>,
    ) -> Result<Vec<ModelVersion>, RegisterError> {
        let Registration { run, model, .. } = registration;
        for new in &registration.versions {
            self.expect_artifacts(new).await?;
        }
        let mut transaction = self.write().await?;
        let mut registered = Vec::with_capacity(registration.versions.len());
        for new in registration.versions {
            registered.push(insert_version(&mut transaction, new).await?);
        }
        let aliases = registration
            .aliases
            .into_iter()
            .filter_map(|(alias, place)| Some((alias, registered.get(place)?.version)));
        let appointment = Appointment {
            model,
            expected_champion: registration.expected_champion,
            aliases: aliases.collect(),
            reason: registration.reason,
            at_ms: registration.at_ms,
        };
        appoint(&mut transaction, appointment).await?;
        let numbers: Vec<String> = registered
            .iter()
            .map(|v| format!("v{}", v.version))
            .collect();
        let outcome = format!("registered {}", numbers.join(", "));
        expect_running::<RegisterError>(&mut transaction, run).await?;
        let ending = Ending {
            status: RunStatus::Finished,
            outcome: &outcome,
            at_ms: registration.ended_ms,
        };
        end_run(&mut transaction, run, ending).await?;
        transaction.commit().await?;
        Ok(registered)
    }

    async fn expect_artifacts(&self, new: &NewVersion) -> Result<(), ArtifactError> {
        for artifact in std::iter::once(&new.artifact).chain(&new.golden) {
            self.get_artifact(artifact).await?;
        }
        Ok(())
    }

    /// One version.
    ///
    /// # Errors
    /// Model or version unknown.
    pub async fn version(
        &self,
        model: &ModelName,
        version: Version,
    ) -> Result<ModelVersion, LookupError> {
        let mut transaction = self.read().await?;
        read_version(&mut transaction, model, version).await
    }

    /// All versions of a model, oldest first; empty for an unknown model.
    ///
    /// # Errors
    /// The database failed.
    pub async fn versions(&self, model: &ModelName) -> Result<Vec<ModelVersion>, DatabaseError> {
        let mut transaction = self.read().await?;
        let rows = sqlx::query("SELECT * FROM versions WHERE model = ? ORDER BY version")
            .bind(model.as_str())
            .fetch_all(&mut *transaction)
            .await?;
        Ok(rows.iter().map(model_version).collect::<Result<_, _>>()?)
    }
}

pub(crate) async fn read_version(
    connection: &mut SqliteConnection,
    model: &ModelName,
    version: Version,
) -> Result<ModelVersion, LookupError> {
    expect_model::<LookupError>(connection, model).await?;
    let row = sqlx::query("SELECT * FROM versions WHERE model = ? AND version = ?")
        .bind(model.as_str())
        .bind(version)
        .fetch_optional(connection)
        .await?;
    let row = row.ok_or_else(|| UnknownVersion {
        model: model.clone(),
        version,
    })?;
    Ok(model_version(&row)?)
}

/// Fails if the model is unknown.
pub(crate) async fn expect_model<E>(
    connection: &mut SqliteConnection,
    model: &ModelName,
) -> Result<(), E>
where
    E: From<UnknownModel> + From<sqlx::Error>,
{
    let found = sqlx::query("SELECT 1 FROM models WHERE name = ?")
        .bind(model.as_str())
        .fetch_optional(connection)
        .await?;
    found
        .map(|_| ())
        .ok_or_else(|| UnknownModel(model.clone()).into())
}

/// Fails if the version is unknown.
pub(crate) async fn expect_version<E>(
    connection: &mut SqliteConnection,
    model: &ModelName,
    version: Version,
) -> Result<(), E>
where
    E: From<UnknownVersion> + From<sqlx::Error>,
{
    let found = sqlx::query("SELECT 1 FROM versions WHERE model = ? AND version = ?")
        .bind(model.as_str())
        .bind(version)
        .fetch_optional(connection)
        .await?;
    let unknown = || UnknownVersion {
        model: model.clone(),
        version,
    };
    found.map(|_| ()).ok_or_else(|| unknown().into())
}

async fn insert_version(
    connection: &mut SqliteConnection,
    new: NewVersion,
) -> Result<ModelVersion, RegisterError> {
    check_new_version(connection, &new).await?;
    let version: Version =
        sqlx::query_scalar("SELECT coalesce(max(version), 0) + 1 FROM versions WHERE model = ?")
            .bind(new.model.as_str())
            .fetch_one(&mut *connection)
            .await?;
    // Links first: once the version is there, the schema takes no more of them.
    for used in &new.datasets {
        sqlx::query(
            "INSERT INTO version_datasets (model, version, dataset, role) VALUES (?, ?, ?, ?)
             ON CONFLICT DO NOTHING",
        )
        .bind(new.model.as_str())
        .bind(version)
        .bind(used.dataset)
        .bind(&used.role)
        .execute(&mut *connection)
        .await?;
    }
    let row = sqlx::query(
        "INSERT INTO versions (model, version, artifact, signature, service, run, algorithm,
           metrics, description, created_ms, golden)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING *",
    )
    .bind(new.model.as_str())
    .bind(version)
    .bind(new.artifact.to_string())
    .bind(new.signature.to_string())
    .bind(&new.service)
    .bind(new.run.as_ref().map(RunId::as_str))
    .bind(&new.algorithm)
    .bind(serde_json::json!(new.metrics).to_string())
    .bind(&new.description)
    .bind(new.at_ms)
    .bind(new.golden.map(|golden| golden.to_string()))
    .fetch_one(connection)
    .await?;
    Ok(model_version(&row)?)
}

async fn check_new_version(
    connection: &mut SqliteConnection,
    new: &NewVersion,
) -> Result<(), RegisterError> {
    // JSON has no NaN: it would come back as null.
    if let Some((key, value)) = new.metrics.iter().find(|(_, value)| !value.is_finite()) {
        return Err(RegisterError::MetricNotFinite {
            key: key.clone(),
            value: *value,
        });
    }
    expect_model::<RegisterError>(connection, &new.model).await?;
    if let Some(run) = &new.run {
        let found = expect_running::<RegisterError>(connection, run).await?;
        if found != new.model {
            return Err(RegisterError::RunOfOtherModel {
                run: run.clone(),
                model: new.model.clone(),
                found,
            });
        }
    }
    for DatasetUse { dataset, .. } in &new.datasets {
        let found = sqlx::query("SELECT 1 FROM datasets WHERE id = ?")
            .bind(dataset)
            .fetch_optional(&mut *connection)
            .await?;
        if found.is_none() {
            return Err(RegisterError::UnknownDataset { dataset: *dataset });
        }
    }
    Ok(())
}

fn model_version(row: &SqliteRow) -> Result<ModelVersion, sqlx::Error> {
    Ok(ModelVersion {
        model: parsed(row, "model")?,
        version: row.try_get("version")?,
        artifact: parsed(row, "artifact")?,
        golden: parsed_option(row, "golden")?,
        signature: json(row, "signature")?,
        service: row.try_get("service")?,
        run: parsed_option(row, "run")?,
        algorithm: row.try_get("algorithm")?,
        metrics: json(row, "metrics")?,
        description: row.try_get("description")?,
        created_ms: row.try_get("created_ms")?,
    })
}
