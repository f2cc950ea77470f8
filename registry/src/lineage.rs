//! Why a version exists: the run that made it, on which rows, set off by what, judged by which
//! evidence, and when it served.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::alias::alias_event;
use crate::decision::{decision, read_decision};
use crate::model::read_version;
use crate::run::{read_run, version_datasets};
use crate::{
    AliasEvent, Decision, LoggedDataset, LookupError, ModelName, ModelVersion, Registry, Run,
    Version,
};

/// Everything that led to a version and came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lineage {
    /// The version.
    pub version: ModelVersion,
    /// The run that made it; none if it came from outside.
    pub run: Option<Run>,
    /// The runs above that one, nearest first.
    pub ancestors: Vec<Run>,
    /// What it was made from: the datasets of the version, its run and the runs above.
    pub datasets: Vec<LoggedDataset>,
    /// The decision that set the run off.
    pub trigger: Option<Decision>,
    /// The decisions about the version and about those runs, oldest first.
    pub decisions: Vec<Decision>,
    /// The changes that gave the version an alias or took one away, oldest first.
    pub served: Vec<AliasEvent>,
}

impl Registry {
    /// Asks why a version exists and what became of it.
    ///
    /// # Errors
    /// Model or version unknown.
    pub async fn lineage(
        &self,
        model: &ModelName,
        version: Version,
    ) -> Result<Lineage, LookupError> {
        let mut transaction = self.read().await?;
        let found = read_version(&mut transaction, model, version).await?;
        let mut runs = Vec::new();
        let mut next = found.run.clone();
        while let Some(id) = next.take() {
            let run = read_run(&mut transaction, &id).await?;
            next = run.summary.parent.clone();
            runs.push(run);
        }
        let mut datasets = version_datasets(&mut transaction, model, version).await?;
        datasets.extend(runs.iter().flat_map(|run| run.datasets.clone()));
        let mut seen = BTreeSet::new();
        datasets.retain(|logged| seen.insert((logged.id, logged.dataset.role.clone())));

        let trigger = match runs.iter().find_map(|run| run.summary.trigger) {
            Some(id) => read_decision(&mut transaction, id).await?,
            None => None,
        };
        // SQLite takes no list as a parameter; as JSON it does.
        let ids: Vec<&str> = runs.iter().map(|run| run.summary.id.as_str()).collect();
        let decisions = sqlx::query(
            "SELECT * FROM decisions
             WHERE (model = ?1 AND version = ?2) OR run IN (SELECT value FROM json_each(?3))
             ORDER BY id",
        )
        .bind(model.as_str())
        .bind(version)
        .bind(serde_json::json!(ids).to_string())
        .fetch_all(&mut *transaction)
        .await?;
        let served = sqlx::query(
            "SELECT generation, alias, from_version, to_version, reason, at_ms FROM alias_events
             WHERE model = ?1 AND (from_version = ?2 OR to_version = ?2)
             ORDER BY generation, alias",
        )
        .bind(model.as_str())
        .bind(version)
        .fetch_all(&mut *transaction)
        .await?;
        let mut runs = runs.into_iter();
        Ok(Lineage {
            version: found,
            run: runs.next(),
            ancestors: runs.collect(),
            datasets,
            trigger,
            decisions: decisions.iter().map(decision).collect::<Result<_, _>>()?,
            served: served.iter().map(alias_event).collect::<Result<_, _>>()?,
        })
    }
}
