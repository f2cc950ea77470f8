//! What a run writes into the metadata store: itself, its order, rows, trials, figures, decisions.
//!
//! Must not know: how any of it came about.

use std::collections::BTreeMap;
use std::path::Path;

use featurestore::RowsFrom;
use registry::{
    DatabaseError, Dataset, DatasetUse, DecisionError, Digest, LogError, Metric, NewDecision,
    NewRun, OpenError, Registry, RegistryOptions, RunError, RunId, RunStatus,
};
use serde_json::json;
use thiserror::Error;

use crate::experiment::Outcome;
use crate::gates::{SoundRows, Verdict};
use crate::recipe::Recipe;
use crate::rows::CutOffs;
use crate::run::Order;

/// Why something could not be written.
#[derive(Debug, Error)]
pub(crate) enum JournalError {
    /// The registry could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A run could not be started or ended.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Something could not be logged.
    #[error(transparent)]
    Log(#[from] LogError),
    /// A decision could not be recorded.
    #[error(transparent)]
    Decision(#[from] DecisionError),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The order could not be written down.
    #[error("order: {0}")]
    Json(#[from] serde_json::Error),
}

/// The record of one run under way.
#[derive(Debug)]
pub(crate) struct Journal<'a> {
    /// The open registry.
    pub(crate) registry: Registry,
    /// The run.
    pub(crate) run: RunId,
    order: &'a Order,
    clock: fn() -> i64,
}

impl<'a> Journal<'a> {
    /// Opens the registry and starts a run.
    pub(crate) async fn start(order: &'a Order, clock: fn() -> i64) -> Result<Self, JournalError> {
        let registry = Registry::open(&RegistryOptions {
            database: order.data.join("registry.db"),
            artifacts: order.data.join("artifacts"),
        })
        .await?;
        registry.ensure_model(&order.model, order.as_of_ms).await?;
        let name = format!("train {} as of {}", order.model, order.as_of_ms);
        let new = NewRun {
            trigger: order.trigger,
            ..new_run(order, name, clock())
        };
        let run = registry.start_run(new).await?;
        Ok(Self {
            registry,
            run,
            order,
            clock,
        })
    }

    /// Everything that is needed to do the run again.
    pub(crate) async fn order(
        &self,
        recipe: &Recipe,
        service: &str,
        cuts: &CutOffs,
    ) -> Result<(), JournalError> {
        let params = BTreeMap::from([
            ("as_of_ms".to_owned(), self.order.as_of_ms.to_string()),
            ("cut_offs".to_owned(), serde_json::to_string(cuts)?),
            ("program".to_owned(), program()),
            ("recipe".to_owned(), serde_json::to_string(recipe)?),
            ("seed".to_owned(), self.order.seed.to_string()),
            ("service".to_owned(), service.to_owned()),
        ]);
        Ok(self.registry.log_params(&self.run, &params).await?)
    }

    /// The rows of the run; returns them as the datasets of its versions.
    pub(crate) async fn datasets(
        &self,
        rows: &SoundRows,
        (service, from): (&str, RowsFrom),
        cuts: &CutOffs,
    ) -> Result<Vec<DatasetUse>, JournalError> {
        let mut used = Vec::new();
        for (role, part) in [("training", rows.training()), ("holdout", rows.holdout())] {
            let Some((first_ms, last_ms)) = part.span_ms() else {
                continue;
            };
            let dataset = Dataset {
                name: format!("{} {role} rows", self.order.model),
                digest: Digest::from_bytes(part.digest()),
                rows: part.rows() as u64,
                from_ms: first_ms,
                to_ms: last_ms + 1,
                role: role.to_owned(),
                source: json!({
                    "kind": match from {
                        RowsFrom::Served => "served_rows",
                        RowsFrom::Recomputed => "recomputed_rows",
                    },
                    "model": self.order.model.as_str(),
                    "service": service,
                    "from_ms": cuts.from_ms,
                    "to_ms": cuts.to_ms,
                    "known_by_ms": cuts.known_by_ms,
                    "set_digest": Digest::from_bytes(part.set_digest()).to_string(),
                }),
            };
            let dataset = self.registry.log_dataset(&self.run, &dataset).await?;
            used.push(DatasetUse {
                dataset,
                role: role.to_owned(),
            });
        }
        let training = rows.training();
        let late = training.labelled_after(cuts.holdout_from_ms);
        let metrics = BTreeMap::from([
            ("train_rows".to_owned(), training.rows() as f64),
            ("train_label_share".to_owned(), training.label_share()),
            ("train_rows_labelled_within_holdout".to_owned(), late as f64),
            ("holdout_rows".to_owned(), rows.holdout().rows() as f64),
            ("refused_rows".to_owned(), rows.refused() as f64),
        ]);
        self.log(&self.run, &metrics).await?;
        Ok(used)
    }

    /// A child run for each configuration that was tried.
    pub(crate) async fn trials(&self, outcome: &Outcome) -> Result<(), JournalError> {
        for (index, trial) in outcome.trials.iter().enumerate() {
            let new = NewRun {
                parent: Some(self.run.clone()),
                ..new_run(self.order, trial.name.clone(), (self.clock)())
            };
            let id = self.registry.start_run(new).await?;
            let mut params = trial.parameters.clone();
            params.insert("algorithm".to_owned(), trial.algorithm.to_owned());
            self.registry.log_params(&id, &params).await?;
            if let Some(scores) = trial.selection {
                let metrics = BTreeMap::from([
                    ("selection_log_loss".to_owned(), scores.log_loss),
                    ("selection_auc".to_owned(), scores.auc),
                    ("selection_ece".to_owned(), scores.ece),
                    ("selection_rows".to_owned(), scores.rows as f64),
                ]);
                self.log(&id, &metrics).await?;
            }
            let word = if index == outcome.chosen {
                "chosen"
            } else {
                "tried"
            };
            self.registry
                .finish_run(&id, RunStatus::Finished, word, (self.clock)())
                .await?;
        }
        Ok(())
    }

    /// Figures of the run.
    pub(crate) async fn metrics(&self, values: &BTreeMap<String, f64>) -> Result<(), JournalError> {
        self.log(&self.run, values).await
    }

    async fn log(&self, run: &RunId, values: &BTreeMap<String, f64>) -> Result<(), JournalError> {
        let at_ms = self.order.as_of_ms;
        let metric = |(key, &value): (&String, &f64)| Metric {
            key: key.clone(),
            value,
            step: 0,
            at_ms,
        };
        let metrics: Vec<Metric> = values.iter().map(metric).collect();
        Ok(self.registry.log_metrics(run, &metrics).await?)
    }

    /// Records what the gates decided, with every verdict as evidence.
    pub(crate) async fn decide(
        &self,
        outcome: &str,
        decisive: &Verdict,
        verdicts: &[Verdict],
    ) -> Result<(), JournalError> {
        let (gate, reason) = match outcome {
            "passed" => ("all", "every gate was passed"),
            _ => (decisive.gate, decisive.reason.as_str()),
        };
        let evidence = json!({
            "gate": gate,
            "reason": reason,
            "numbers": decisive.numbers,
            "gates": verdicts,
            "run": self.run.as_str(),
            "as_of_ms": self.order.as_of_ms,
        });
        let decision = NewDecision {
            model: self.order.model.clone(),
            kind: "gate".to_owned(),
            outcome: outcome.to_owned(),
            reason: format!("{gate}: {reason}"),
            run: Some(self.run.clone()),
            version: None,
            evidence,
            at_ms: self.order.as_of_ms,
        };
        self.registry.record_decision(decision).await?;
        Ok(())
    }

    /// Ends the run.
    pub(crate) async fn end(&self, status: RunStatus, outcome: &str) -> Result<(), JournalError> {
        let ended_ms = (self.clock)();
        Ok(self
            .registry
            .finish_run(&self.run, status, outcome, ended_ms)
            .await?)
    }
}

fn new_run(order: &Order, name: String, started_ms: i64) -> NewRun {
    NewRun {
        experiment: order.model.to_string(),
        model: order.model.clone(),
        trigger: None,
        name,
        seed: order.seed,
        owner_pid: std::process::id(),
        as_of_ms: order.as_of_ms,
        started_ms,
        parent: None,
    }
}

/// This program: version and digest of its file, so that a run can be done again by the same code.
fn program() -> String {
    let digest = std::env::current_exe()
        .ok()
        .and_then(|path| file_digest(&path).ok());
    let digest = digest.map_or("unknown".to_owned(), |digest| digest.to_string());
    format!(
        "loopgate-trainer {} sha256 {digest}",
        env!("CARGO_PKG_VERSION")
    )
}

fn file_digest(path: &Path) -> std::io::Result<Digest> {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    std::io::copy(&mut std::fs::File::open(path)?, &mut hash)?;
    Ok(Digest::from_bytes(hash.finalize().into()))
}
