//! Reading back: everything that the loop remembers, from what is written.

use registry::{AliasName, Decision, Release, RunError};
use serde_json::Value;

use super::{Decided, LastRun, LoopError, ModelLoop, RunUnderWay, Soak, Stage};
use crate::launch::trainer_alive;
use crate::rollout::Former;
use crate::trigger::{RunEnd, TriggerCause, TriggerState};
use crate::verdict::{Judgement, Verdict};

/// Decisions of one kind that are read back. Older ones are missing from the
/// totals, and matter to nothing else.
const DECISIONS_MAX: u32 = 10_000;

/// What happened to the trigger, in order of time.
enum Past {
    Started(Decision),
    Ended(RunEnd),
    RolledBack,
}

impl ModelLoop {
    pub(super) async fn read_back(&mut self, now_ms: i64) -> Result<(), LoopError> {
        let model = self.config.model.clone();
        self.registry.ensure_model(&model, now_ms).await?;
        for run in self.registry.running(&model).await? {
            if trainer_alive(run.owner_pid, &self.config.trainer) {
                continue;
            }
            match self.end_dead_run(&run, None, now_ms).await {
                Ok(_) | Err(RunError::RunEnded(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let unfinished = self.read_runs().await?;
        self.look(now_ms).await?;
        self.read_verdicts().await?;
        let evaluated_ms = self.evaluated_ms;
        let promotion = self
            .read_promotions()
            .await?
            .filter(|soak| evaluated_ms.is_none_or(|at_ms| at_ms < self.soak_until_ms(soak)));
        self.stage = match (unfinished, promotion) {
            (Some(run), _) => {
                self.trigger.resumed_running();
                Stage::Training(run)
            }
            (None, Some(soak)) => Stage::Soaking(soak),
            (None, None) => Stage::Watching,
        };
        Ok(())
    }

    async fn kind(&self, kind: &str, limit: u32) -> Result<Vec<Decision>, LoopError> {
        let model = &self.config.model;
        let mut decisions = self.registry.decisions(model, Some(kind), limit).await?;
        decisions.reverse();
        Ok(decisions)
    }

    /// Totals, cooldown and budget; returns the run that has no end recorded.
    async fn read_runs(&mut self) -> Result<Option<RunUnderWay>, LoopError> {
        let mut past: Vec<(i64, i64, Past)> = Vec::new();
        let mut unfinished = None;
        let mut ended = std::collections::BTreeSet::new();
        self.totals = super::Totals::default();
        for kind in ["training", "training_failed"] {
            for decision in self.kind(kind, DECISIONS_MAX).await? {
                let end = match decision.outcome.as_str() {
                    "registered" => RunEnd::Registered,
                    "rejected" => RunEnd::Rejected,
                    _ => RunEnd::Failed,
                };
                self.count_end(end);
                ended.extend(decision.evidence["trigger"].as_i64());
                if self
                    .last_run
                    .as_ref()
                    .is_none_or(|last| last.at_ms <= decision.at_ms)
                {
                    self.last_run = Some(LastRun {
                        id: decision.run.clone(),
                        outcome: decision.reason.clone(),
                        at_ms: decision.at_ms,
                    });
                }
                past.push((decision.at_ms, decision.id, Past::Ended(end)));
            }
        }
        for decision in self.kind("rollback", DECISIONS_MAX).await? {
            self.totals.rollbacks += 1;
            past.push((decision.at_ms, decision.id, Past::RolledBack));
        }
        for decision in self.kind("trigger", DECISIONS_MAX).await? {
            if !ended.contains(&decision.id) {
                unfinished = Some(RunUnderWay {
                    decision: decision.id,
                    cause: TriggerCause::from_name(&decision.outcome)
                        .unwrap_or(TriggerCause::Operator),
                    champion: decision.version,
                    child: None,
                });
            }
            past.push((decision.at_ms, decision.id, Past::Started(decision)));
        }
        past.sort_by_key(|(at_ms, id, _)| (*at_ms, *id));
        let policy = &self.config.policy.trigger;
        self.trigger = TriggerState::new(policy);
        for (at_ms, _, past) in past {
            match past {
                Past::Ended(end) => self.trigger.finished(at_ms, end),
                Past::RolledBack => self.trigger.rolled_back(at_ms),
                Past::Started(decision) => {
                    let window_end_ms = decision.evidence["window_end_ms"].as_i64();
                    self.trigger
                        .started(policy, at_ms, decision.version.zip(window_end_ms));
                }
            }
        }
        Ok(unfinished)
    }

    /// The newest verdict, and those since the last trigger for k of n.
    async fn read_verdicts(&mut self) -> Result<(), LoopError> {
        let policy = &self.config.policy.trigger;
        let n = u32::try_from(policy.confirm.n()).unwrap_or(u32::MAX);
        let verdicts = self.kind("verdict", n).await?;
        let last_trigger = self.kind("trigger", 1).await?.pop();
        let champion = self.release.as_ref().and_then(Release::champion);
        for decision in &verdicts {
            let used = last_trigger
                .as_ref()
                .is_some_and(|trigger| trigger.id > decision.id);
            let verdict = Verdict::from_name(&decision.outcome).unwrap_or(Verdict::Unknown);
            if !used && decision.version == champion {
                self.trigger.observe(policy, verdict);
            }
        }
        if let Some(newest) = verdicts.last() {
            self.evaluated_ms = Some(newest.at_ms);
            self.judgement = serde_json::from_value(newest.evidence.clone())
                .ok()
                .map(|evidence| Judgement {
                    verdict: Verdict::from_name(&newest.outcome).unwrap_or(Verdict::Unknown),
                    reason: newest.reason.clone(),
                    evidence,
                });
        }
        Ok(())
    }

    /// The soak of the champion, where it was promoted over another. A change of
    /// champion whose decision was lost between the two writes is recorded now.
    async fn read_promotions(&mut self) -> Result<Option<Soak>, LoopError> {
        let mut promotions = self.kind("promotion", DECISIONS_MAX).await?;
        let history = self.registry.history(&self.config.model).await?;
        let newest = history
            .iter()
            .rev()
            .find(|event| event.alias == AliasName::champion());
        self.totals.promotions = promotions.len() as u64;
        let Some((event, from, to)) =
            newest.and_then(|event| Some((event, event.from?, event.to?)))
        else {
            return Ok(None);
        };
        // What became champion had been the fallback: that was a way back.
        let way_back = history.iter().any(|other| {
            other.generation == event.generation
                && other.alias == AliasName::fallback()
                && other.from == Some(to)
        });
        let recorded = if way_back {
            self.kind("rollback", 1).await?.pop()
        } else {
            promotions.pop()
        };
        let recorded = recorded
            .filter(|decision| decision.version == Some(to) && decision.at_ms == event.at_ms);
        if recorded.is_none() {
            let (kind, outcome) = if way_back {
                self.totals.rollbacks += 1;
                ("rollback", "rolled_back")
            } else {
                self.totals.promotions += 1;
                ("promotion", "promoted")
            };
            self.decide(Decided {
                kind,
                outcome,
                reason: event.reason.clone(),
                run: None,
                version: Some(to),
                evidence: serde_json::json!({ "from": from, "to": to, "at_ms": event.at_ms }),
                at_ms: event.at_ms,
            })
            .await?;
        }
        if way_back {
            return Ok(None);
        }
        let evidence = recorded.map_or(Value::Null, |decision| decision.evidence);
        let former = serde_json::from_value(evidence["grounds"]["former"].clone());
        Ok(Some(Soak {
            champion: to,
            since_ms: event.at_ms,
            former: former.unwrap_or(Former {
                version: from,
                quality: None,
            }),
        }))
    }
}
