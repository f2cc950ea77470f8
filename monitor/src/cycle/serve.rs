//! Serving: a challenger is waited for, promoted, watched, and rolled back where
//! it is much worse; and what a person asks for.

use registry::{AliasChange, AliasError, AliasName, Release, Version};
use serde_json::json;

use super::train::Order;
use super::{
    Candidacy, Decided, LoopError, ModelLoop, OperatorRequest, RequestAnswer, Soak, Stage, Tick,
};
use crate::quality::Quality;
use crate::rollout::{self, Former, RolloutError, Swap, judge_soak};
use crate::trigger::TriggerCause;

impl ModelLoop {
    /// A challenger that appeared is prepared; a soak of another champion ends.
    pub(super) fn advance_watching(&mut self, now_ms: i64) -> bool {
        let release = self.release.as_ref();
        let champion = release.and_then(Release::champion);
        let challenger = release.and_then(Release::challenger);
        if let Some(challenger) = challenger.filter(|challenger| Some(*challenger) != champion) {
            self.stage = Stage::Preparing(Candidacy {
                challenger,
                champion,
                since_ms: now_ms,
                reason: "was made the challenger".into(),
            });
            return true;
        }
        // Somebody else changed the champion.
        if let Stage::Soaking(soak) = &self.stage
            && champion != Some(soak.champion)
        {
            self.stage = Stage::Watching;
            return true;
        }
        false
    }

    /// Promotes the challenger once it and its fallback are ready to answer.
    pub(super) async fn advance_preparing(&mut self, input: &Tick<'_>) -> Result<bool, LoopError> {
        let Stage::Preparing(candidacy) = &self.stage else {
            return Ok(false);
        };
        let candidacy = candidacy.clone();
        let challenger = candidacy.challenger;
        let release = self.release.as_ref();
        if release.and_then(Release::challenger) != Some(challenger) {
            self.stage = Stage::Watching;
            return Ok(true);
        }
        if let Some(reason) = input.refused.get(&challenger) {
            let reason = format!("version {challenger} was refused: {reason}");
            return self
                .give_up(&candidacy, "refused", reason, input.now_ms)
                .await;
        }
        let ready = |version: Version| {
            input.loaded.contains(&version) || input.refused.contains_key(&version)
        };
        // The old champion is the next fallback, so it must be ready as well; one
        // that cannot be loaded at all is no reason to keep it.
        if input.loaded.contains(&challenger) && candidacy.champion.is_none_or(ready) {
            return self.promote(&candidacy, input.now_ms).await;
        }
        let waited_ms = input.now_ms.saturating_sub(candidacy.since_ms);
        let prepare_max = self.config.policy.rollout.prepare_max;
        if waited_ms >= prepare_max.ms() {
            let reason = format!("version {challenger} was not ready within {prepare_max}");
            return self
                .give_up(&candidacy, "given_up", reason, input.now_ms)
                .await;
        }
        Ok(false)
    }

    async fn promote(&mut self, candidacy: &Candidacy, now_ms: i64) -> Result<bool, LoopError> {
        let former = candidacy.champion.map(|version| Former {
            version,
            quality: self.quality_before(version, now_ms),
        });
        let swap = Swap {
            model: &self.config.model,
            from: candidacy.champion,
            to: candidacy.challenger,
            reason: &format!("version {} {}", candidacy.challenger, candidacy.reason),
            evidence: json!({ "former": former }),
            at_ms: now_ms,
        };
        match rollout::promote(&self.registry, swap).await {
            Ok(()) => {}
            Err(RolloutError::Alias(
                error @ (AliasError::Conflict { .. } | AliasError::AlreadyChampion { .. }),
            )) => {
                let reason = format!("version {}: {error}", candidacy.challenger);
                return self.give_up(candidacy, "conflict", reason, now_ms).await;
            }
            Err(error) => return Err(error.into()),
        }
        tracing::info!(model = %self.config.model, version = candidacy.challenger, "promoted");
        self.totals.promotions += 1;
        self.metrics.promoted();
        self.stage = match former {
            None => Stage::Watching,
            Some(former) => Stage::Soaking(Soak {
                champion: candidacy.challenger,
                since_ms: now_ms,
                former,
            }),
        };
        Ok(true)
    }

    /// What the champion scored in its last window: the measure of the next one.
    fn quality_before(&self, champion: Version, now_ms: i64) -> Option<Quality> {
        let decay = &self.config.policy.monitor.decay;
        let from_ms = now_ms.saturating_sub(decay.window.ms());
        Quality::of(self.outcomes.answered(champion, from_ms, now_ms))
            .filter(|quality| quality.rows >= decay.rows_min.get())
    }

    /// The challenger will not become champion: says why and clears its alias.
    async fn give_up(
        &mut self,
        candidacy: &Candidacy,
        outcome: &str,
        reason: String,
        now_ms: i64,
    ) -> Result<bool, LoopError> {
        tracing::warn!(model = %self.config.model, reason, "challenger given up");
        self.decide(Decided {
            kind: "rollout",
            outcome,
            reason: reason.clone(),
            run: None,
            version: Some(candidacy.challenger),
            evidence: json!({
                "challenger": candidacy.challenger,
                "champion": candidacy.champion,
                "since_ms": candidacy.since_ms,
            }),
            at_ms: now_ms,
        })
        .await?;
        let alias = AliasName::challenger();
        let cleared = self.registry.set_alias(AliasChange {
            model: &self.config.model,
            alias: &alias,
            expected: Some(candidacy.challenger),
            to: None,
            reason: &reason,
            at_ms: now_ms,
        });
        match cleared.await {
            // Somebody has already put another in its place.
            Ok(_) | Err(AliasError::Conflict { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        self.stage = Stage::Watching;
        Ok(true)
    }

    /// At each evaluation of a soak: rolls back a champion that is much worse, and
    /// ends the soak when its time is over.
    pub(super) async fn judge_soak(&mut self, end_ms: i64, now_ms: i64) -> Result<(), LoopError> {
        let Stage::Soaking(soak) = &self.stage else {
            return Ok(());
        };
        let soak = soak.clone();
        // Over or not, it is judged once more.
        if end_ms >= self.soak_until_ms(&soak) {
            self.stage = Stage::Watching;
        }
        let current = self.outcomes.answered(soak.champion, soak.since_ms, end_ms);
        let shadow = self
            .outcomes
            .shadowed(soak.former.version, soak.since_ms, end_ms);
        let policy = &self.config.policy.rollout;
        let Some(judged) = judge_soak(policy, current, shadow, &soak.former) else {
            return Ok(());
        };
        if !judged.worse {
            return Ok(());
        }
        let reason = format!(
            "version {} scores {:.4} normalised log loss, version {} {:.4} ({:.1} standard errors)",
            soak.champion, judged.current, soak.former.version, judged.former, judged.z
        );
        let evidence = json!({ "soak": judged, "window_end_ms": end_ms });
        if let Err(problem) = self
            .roll_back(soak.champion, &reason, evidence, now_ms)
            .await?
        {
            tracing::warn!(model = %self.config.model, problem, "a worse champion could not be rolled back");
        }
        Ok(())
    }

    pub(super) fn soak_until_ms(&self, soak: &Soak) -> i64 {
        let soak_ms = self.config.policy.rollout.soak.ms();
        soak.since_ms.saturating_add(soak_ms)
    }

    async fn roll_back(
        &mut self,
        champion: Version,
        reason: &str,
        evidence: serde_json::Value,
        now_ms: i64,
    ) -> Result<Result<Version, String>, LoopError> {
        let Some(fallback) = self.release.as_ref().and_then(Release::fallback) else {
            return Ok(Err("there is no fallback to roll back to".into()));
        };
        let swap = Swap {
            model: &self.config.model,
            from: Some(champion),
            to: fallback,
            reason,
            evidence,
            at_ms: now_ms,
        };
        match rollout::roll_back(&self.registry, champion, swap).await {
            Ok(()) => {}
            Err(RolloutError::Alias(
                error @ (AliasError::Conflict { .. } | AliasError::NoFallback { .. }),
            )) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error.into()),
        }
        tracing::warn!(model = %self.config.model, from = champion, to = fallback, reason, "rolled back");
        self.totals.rollbacks += 1;
        self.metrics.rolled_back();
        self.trigger.rolled_back(now_ms);
        if matches!(self.stage, Stage::Soaking(_)) {
            self.stage = Stage::Watching;
        }
        self.look(now_ms).await?;
        Ok(Ok(fallback))
    }

    /// Does what a person asks for, or says why not.
    pub(super) async fn answer(
        &mut self,
        request: OperatorRequest,
        input: &Tick<'_>,
    ) -> Result<RequestAnswer, LoopError> {
        let done = match request {
            OperatorRequest::TrainNow => self.train_now(input).await?,
            OperatorRequest::Promote(version) => self.nominate(version, input.now_ms).await?,
            OperatorRequest::RollBack => match self.release.as_ref().and_then(Release::champion) {
                None => Err("there is no champion".into()),
                Some(champion) => {
                    let evidence = json!({ "operator": true });
                    let reason = "asked for by a person";
                    let done = self
                        .roll_back(champion, reason, evidence, input.now_ms)
                        .await?;
                    done.map(|version| format!("version {version} is the champion again"))
                }
            },
        };
        Ok(RequestAnswer {
            accepted: done.is_ok(),
            message: done.unwrap_or_else(|problem| problem),
        })
    }

    async fn train_now(&mut self, input: &Tick<'_>) -> Result<Result<String, String>, LoopError> {
        if matches!(self.stage, Stage::Training(_) | Stage::Preparing(_)) {
            let state = self.stage.state().as_str();
            return Ok(Err(format!("the loop is {state}: one run at a time")));
        }
        let order = Order {
            cause: TriggerCause::Operator,
            reason: "asked for by a person".into(),
            // A replay may stand still between two requests.
            evidence: json!({ "at_ms": input.now_ms, "after": self.totals.ended() }),
            key: None,
        };
        let started = self.start_training(order, input).await?;
        Ok(started.map(|decision| format!("training started by decision {decision}")))
    }

    async fn nominate(
        &mut self,
        version: Version,
        now_ms: i64,
    ) -> Result<Result<String, String>, LoopError> {
        let release = self.release.as_ref();
        let champion = release.and_then(Release::champion);
        if matches!(self.stage, Stage::Training(_)) {
            return Ok(Err("a training run is under way".into()));
        }
        if champion == Some(version) {
            return Ok(Err(format!("version {version} is the champion")));
        }
        let alias = AliasName::challenger();
        let changed = self.registry.set_alias(AliasChange {
            model: &self.config.model,
            alias: &alias,
            expected: release.and_then(Release::challenger),
            to: Some(version),
            reason: "asked for by a person",
            at_ms: now_ms,
        });
        match changed.await {
            Ok(_) => {}
            Err(error @ (AliasError::Conflict { .. } | AliasError::UnknownVersion(_))) => {
                return Ok(Err(error.to_string()));
            }
            Err(error) => return Err(error.into()),
        }
        self.stage = Stage::Preparing(Candidacy {
            challenger: version,
            champion,
            since_ms: now_ms,
            reason: "was asked for by a person".into(),
        });
        self.look(now_ms).await?;
        Ok(Ok(format!("version {version} is being prepared")))
    }
}
