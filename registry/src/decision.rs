//! Decisions: each verdict change, trigger, gate result, promotion and rollback with the evidence
//! that it rests on. Append-only, and the same decision on the same evidence is recorded once,
//! however often a loop that restarts records it again.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use serde_json::{Value, json};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use thiserror::Error;

use crate::model::{expect_model, expect_version};
use crate::open::{json as json_column, parsed, parsed_option};
use crate::run::expect_run;
use crate::{
    DatabaseError, Digest, ModelName, Registry, RunId, UnknownModel, UnknownRun, UnknownVersion,
    Version,
};

/// What was decided, and on what.
#[derive(Debug, Clone)]
pub struct NewDecision {
    /// The model.
    pub model: ModelName,
    /// `verdict`, `trigger`, `gate`, `promotion`, `rollback`, `training_failed`, …
    pub kind: String,
    /// What was decided, such as `drift` or `passed`.
    pub outcome: String,
    /// Why, in a sentence.
    pub reason: String,
    /// The run that it is about.
    pub run: Option<RunId>,
    /// The version that it is about.
    pub version: Option<Version>,
    /// The figures that it rests on. Should name its window or time: equal evidence is one decision.
    pub evidence: Value,
    /// When.
    pub at_ms: i64,
}

/// A decision as recorded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Decision {
    /// Its number, over all models.
    pub id: i64,
    /// The model.
    pub model: ModelName,
    /// What kind of decision.
    pub kind: String,
    /// What was decided.
    pub outcome: String,
    /// Why, in a sentence.
    pub reason: String,
    /// The run that it is about.
    pub run: Option<RunId>,
    /// The version that it is about.
    pub version: Option<Version>,
    /// The figures that it rests on.
    pub evidence: Value,
    /// Digest of evidence, outcome, run and version: see [`NewDecision::evidence_hash`].
    pub evidence_hash: Digest,
    /// When.
    pub at_ms: i64,
}

/// Why a decision was not recorded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DecisionError {
    /// No such model.
    #[error(transparent)]
    UnknownModel(#[from] UnknownModel),
    /// No such version.
    #[error(transparent)]
    UnknownVersion(#[from] UnknownVersion),
    /// No such run.
    #[error(transparent)]
    UnknownRun(#[from] UnknownRun),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl NewDecision {
    /// Digest of evidence, outcome, run and version, independent of the order of keys. Time and
    /// wording stay out, so that a decision derived again after a crash is the same one; outcome,
    /// run and version are in, so that two runs with equal figures have a decision each.
    pub fn evidence_hash(&self) -> Digest {
        let mut text = String::new();
        let facts = json!({
            "evidence": self.evidence,
            "outcome": self.outcome,
            "run": self.run,
            "version": self.version,
        });
        write_canonical(&facts, &mut text);
        Digest::of(text.as_bytes())
    }
}

impl Registry {
    /// Records a decision; returns its number and whether it is new. Of the same model, kind and
    /// evidence hash only the first is kept.
    ///
    /// # Errors
    /// Model, version or run unknown.
    pub async fn record_decision(&self, new: NewDecision) -> Result<(i64, bool), DecisionError> {
        let hash = new.evidence_hash().to_string();
        let mut transaction = self.write().await?;
        expect_model::<DecisionError>(&mut transaction, &new.model).await?;
        if let Some(version) = new.version {
            expect_version::<DecisionError>(&mut transaction, &new.model, version).await?;
        }
        if let Some(run) = &new.run {
            expect_run::<DecisionError>(&mut transaction, run).await?;
        }
        let known: Option<i64> = sqlx::query_scalar(
            "SELECT id FROM decisions WHERE model = ? AND kind = ? AND evidence_hash = ?",
        )
        .bind(new.model.as_str())
        .bind(&new.kind)
        .bind(&hash)
        .fetch_optional(&mut *transaction)
        .await?;
        if let Some(id) = known {
            return Ok((id, false));
        }
        let id = sqlx::query_scalar(
            "INSERT INTO decisions
               (model, kind, outcome, reason, run, version, evidence, evidence_hash, at_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING id",
        )
        .bind(new.model.as_str())
        .bind(&new.kind)
        .bind(&new.outcome)
        .bind(&new.reason)
        .bind(new.run.as_ref().map(RunId::as_str))
        .bind(new.version)
        .bind(new.evidence.to_string())
        .bind(&hash)
        .bind(new.at_ms)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok((id, true))
    }

    /// Decisions about a model, newest first, of one kind or of all; at most `limit`.
    ///
    /// # Errors
    /// The database failed.
    pub async fn decisions(
        &self,
        model: &ModelName,
        kind: Option<&str>,
        limit: u32,
    ) -> Result<Vec<Decision>, DatabaseError> {
        let mut transaction = self.read().await?;
        let rows = sqlx::query(
            "SELECT * FROM decisions WHERE model = ?1 AND (?2 IS NULL OR kind = ?2)
             ORDER BY id DESC LIMIT ?3",
        )
        .bind(model.as_str())
        .bind(kind)
        .bind(limit)
        .fetch_all(&mut *transaction)
        .await?;
        Ok(rows.iter().map(decision).collect::<Result<_, _>>()?)
    }
}

pub(crate) async fn read_decision(
    connection: &mut SqliteConnection,
    id: i64,
) -> Result<Option<Decision>, sqlx::Error> {
    let row = sqlx::query("SELECT * FROM decisions WHERE id = ?")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(decision).transpose()
}

pub(crate) fn decision(row: &SqliteRow) -> Result<Decision, sqlx::Error> {
    Ok(Decision {
        id: row.try_get("id")?,
        model: parsed(row, "model")?,
        kind: row.try_get("kind")?,
        outcome: row.try_get("outcome")?,
        reason: row.try_get("reason")?,
        run: parsed_option(row, "run")?,
        version: row.try_get("version")?,
        evidence: json_column(row, "evidence")?,
        evidence_hash: parsed(row, "evidence_hash")?,
        at_ms: row.try_get("at_ms")?,
    })
}

/// JSON with sorted keys and no blanks. Not left to `serde_json`, whose order of keys depends on
/// a feature that any crate of the build may turn on.
fn write_canonical(value: &Value, out: &mut String) {
    match value {
        Value::Object(fields) => {
            let sorted: BTreeMap<&String, &Value> = fields.iter().collect();
            out.push('{');
            for (key, value) in sorted {
                write!(out, "{}:", json!(key)).expect("writing to a string cannot fail");
                write_canonical(value, out);
                out.push(',');
            }
            out.push('}');
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write_canonical(item, out);
                out.push(',');
            }
            out.push(']');
        }
        scalar => write!(out, "{scalar}").expect("writing to a string cannot fail"),
    }
}
