//! Models, versions, history, runs, decisions; and what operators ask of a model.

use std::collections::BTreeSet;

use monitor::OperatorRequest;
use registry::{AliasChange, AliasName, LookupError, ModelName, RunId, Version};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::answer::Refusal;
use super::routes::Action;
use super::{Admin, Asked, Body};
use crate::control::Command;
use crate::table::{LoadedVersion, ServedModel};

const RUNS_SHOWN: u32 = 100;
const DECISIONS_SHOWN: u32 = 100;
const VERSION: &str = "a version or null";
const REASON: &str = "asked for through the admin interface";

impl Admin {
    /// Every model that is served or configured, in short.
    pub(super) async fn model_list(&self) -> Result<Value, Refusal> {
        let mut names: BTreeSet<ModelName> = self.models.keys().cloned().collect();
        {
            let table = self.core.table.snapshot();
            let served = table.iter().flat_map(|table| table.models());
            names.extend(served.filter_map(|model| model.name.parse().ok()));
        }
        let mut models = Vec::with_capacity(names.len());
        for name in &names {
            models.push(self.model(name).await?);
        }
        Ok(json!({"models": models}))
    }

    /// What there is to know of a model.
    pub(super) async fn show(
        &self,
        model: &ModelName,
        action: Action,
        asked: &Asked<'_>,
    ) -> Result<Value, Refusal> {
        if action == Action::ShowModel {
            return self.model(model).await;
        }
        let registry = self.registry()?;
        match action {
            Action::ListVersions => Ok(json!({"versions": registry.versions(model).await?})),
            Action::ListHistory => Ok(json!({"history": registry.history(model).await?})),
            Action::ListRuns => {
                let runs = registry.runs(model, asked.limit(RUNS_SHOWN)?).await?;
                Ok(json!({"runs": runs}))
            }
            Action::ListDecisions => {
                let (kind, limit) = (asked.parameter("kind")?, asked.limit(DECISIONS_SHOWN)?);
                let decisions = registry.decisions(model, kind.as_deref(), limit).await?;
                Ok(json!({"decisions": decisions}))
            }
            Action::ShowLineage => {
                let version = number("version", asked.named("version"))?;
                Ok(serde_json::to_value(
                    registry.lineage(model, version).await?,
                )?)
            }
            _ => Err(Refusal::no_such_path()),
        }
    }

    /// What an operator asks of a model.
    pub(super) async fn change(
        &self,
        model: &ModelName,
        action: Action,
        asked: &Asked<'_>,
    ) -> Result<Value, Refusal> {
        match action {
            Action::Promote => {
                let mut body = asked.body()?;
                let version = body.take("version", "a version")?;
                body.end()?;
                self.registry()?.version(model, version).await?;
                self.request(model, OperatorRequest::Promote(version)).await
            }
            Action::RollBack => self.request(model, OperatorRequest::RollBack).await,
            Action::Train => self.request(model, OperatorRequest::TrainNow).await,
            Action::SetAlias => {
                let alias = asked.named("alias");
                self.set_alias(model, alias, asked.body()?).await
            }
            _ => Err(Refusal::no_such_path()),
        }
    }

    /// One run with all that it logged.
    pub(super) async fn run(&self, run: &str) -> Result<Value, Refusal> {
        let run: RunId = run.parse()?;
        Ok(serde_json::to_value(self.registry()?.run(&run).await?)?)
    }

    /// A model: what the registry intends, what is served, what is loaded, how its loop goes.
    async fn model(&self, name: &ModelName) -> Result<Value, Refusal> {
        let mut shown = json!({"model": name, "ready": false, "serving": {}, "loaded": []});
        let known = {
            let table = self.core.table.snapshot();
            let served = table.as_ref().and_then(|table| table.model(name.as_str()));
            if let Some(served) = served {
                shown["ready"] = json!(served.champion.is_some());
                shown["serving"] = json!(served.aliases);
                shown["loaded"] = served.versions.values().map(|v| loaded(v)).collect();
                shown["ways"] = ways(served);
            }
            served.is_some() || self.models.contains_key(name)
        };
        if let Some(registry) = self.registry.get() {
            match registry.release(name).await {
                Ok(release) => shown["release"] = serde_json::to_value(release)?,
                Err(LookupError::UnknownModel(_)) if known => {}
                Err(error) => return Err(error.into()),
            }
        } else if !known {
            return Err(Refusal::unknown("model", name.as_str()));
        }
        let view = self.remote.view.borrow();
        if let Some(status) = view.models.get(name) {
            shown["loop"] = serde_json::to_value(status)?;
        }
        if let Some(refused) = view.refused.get(name) {
            shown["refused"] = json!(refused);
        }
        Ok(shown)
    }

    /// Hands an operator's request to the model's loop.
    async fn request(&self, model: &ModelName, request: OperatorRequest) -> Result<Value, Refusal> {
        if !self.models.contains_key(model) {
            return Err(Refusal::unknown("model", model.as_str()));
        }
        let (done, answered) = oneshot::channel();
        let model = model.clone();
        self.send(Command::Request {
            model,
            request,
            done,
        })?;
        let status = answered.await.map_err(|_| Refusal::stopping())??;
        match status.answer {
            Some(answer) if answer.accepted => Ok(serde_json::to_value(answer)?),
            Some(answer) => Err(Refusal::conflict(answer.message)),
            None => Err(Refusal::failed("the loop did not answer")),
        }
    }

    /// Compare-and-set of one alias: `version` is what it shall name, `expected` what the caller
    /// believes that it does; null or left out is nothing.
    async fn set_alias(
        &self,
        model: &ModelName,
        alias: &str,
        mut body: Body,
    ) -> Result<Value, Refusal> {
        let alias: AliasName = alias.parse()?;
        let (to, expected) = (
            body.take("version", VERSION)?,
            body.take("expected", VERSION)?,
        );
        let reason: Option<String> = body.take("reason", "a text")?;
        body.end()?;
        let change = AliasChange {
            model,
            alias: &alias,
            expected,
            to,
            reason: reason.as_deref().unwrap_or(REASON),
            at_ms: self.core.clock.now_ms(),
        };
        let generation = self.registry()?.set_alias(change).await?;
        self.remote.changed.notify_one();
        Ok(json!({"generation": generation}))
    }
}

fn number(field: &str, text: &str) -> Result<Version, Refusal> {
    text.parse()
        .map_err(|_| Refusal::value(field, text, "a number of a version"))
}

fn loaded(version: &LoadedVersion) -> Value {
    json!({
        "version": version.version,
        "engine": version.engine.kind().as_str(),
        "parity": version.parity,
        "service": version.service_id,
        "signature": version.public,
    })
}

/// Who answers, in which order, and who scores copies.
fn ways(model: &ServedModel) -> Value {
    let versions = |list: &[std::sync::Arc<LoadedVersion>]| -> Vec<String> {
        list.iter()
            .map(|version| format!("{}@{}", version.model, version.version))
            .collect()
    };
    json!({
        "champion": model.champion.as_ref().map(|version| version.version),
        "challenger_share": model.split.as_ref().map(|split| split.share),
        "fallback": versions(&model.chain),
        "constant": model.constant,
        "shadows": versions(&model.shadows),
    })
}
