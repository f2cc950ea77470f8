//! Training: a run is decided on, started, and its end read from the registry.

use registry::{RunError, RunStatus, RunSummary, Version};
use serde_json::{Value, json};

use super::{Decided, LastRun, LoopError, ModelLoop, RunUnderWay, Stage, Tick};
use crate::launch::{LaunchError, Progress, RunOrder, TrainerExit, tail_of, trainer_alive};
use crate::trigger::{RunEnd, TriggerCause};

/// Runs that are searched for the one of a trigger.
const RUNS_SEARCHED: u32 = 200;

/// Why a run is to start.
pub(super) struct Order {
    pub(super) cause: TriggerCause,
    pub(super) reason: String,
    pub(super) evidence: Value,
    /// The champion and window that the evidence is about; none for a person's request.
    pub(super) key: Option<(Version, i64)>,
}

/// What a run came to.
struct Ending {
    end: RunEnd,
    outcome: String,
    version: Option<Version>,
}

impl ModelLoop {
    /// Records the trigger and starts the trainer; or says why not.
    pub(super) async fn start_training(
        &mut self,
        order: Order,
        input: &Tick<'_>,
    ) -> Result<Result<i64, String>, LoopError> {
        // A run that somebody started by hand is a run too.
        for run in self.registry.running(&self.config.model).await? {
            if trainer_alive(run.owner_pid, &self.config.trainer) {
                return Ok(Err(format!("run {} is under way", run.id)));
            }
        }
        let champion = self.release.as_ref().and_then(registry::Release::champion);
        let (decision, new) = self
            .decide(Decided {
                kind: "trigger",
                outcome: order.cause.as_str(),
                reason: order.reason,
                run: None,
                version: champion,
                evidence: order.evidence,
                at_ms: input.now_ms,
            })
            .await?;
        if !new {
            return Ok(Err(format!(
                "decision {decision} was taken on the same evidence"
            )));
        }
        let policy = &self.config.policy.trigger;
        self.trigger.started(policy, input.now_ms, order.key);
        self.stage = Stage::Training(RunUnderWay {
            decision,
            cause: order.cause,
            champion,
            child: None,
        });
        if let Err(problem) = self.launch(decision, input).await {
            self.conclude(None, problem.clone(), input.now_ms).await?;
            return Ok(Err(problem));
        }
        Ok(Ok(decision))
    }

    async fn launch(&mut self, decision: i64, input: &Tick<'_>) -> Result<(), String> {
        // The trainer reads sealed files only.
        let store = input.store.clone();
        tokio::task::spawn_blocking(move || store.seal())
            .await
            .map_err(|error| error.to_string())?
            .map_err(|error| format!("served rows could not be sealed: {error}"))?;
        let order = RunOrder {
            trigger: decision,
            as_of_ms: input.now_ms,
            seed: self.config.seed.wrapping_add(decision.unsigned_abs()),
        };
        let started = self.launcher.start(&order);
        let child = started.map_err(|error: LaunchError| error.to_string())?;
        tracing::info!(model = %self.config.model, decision, pid = child.pid(), log = %child.log().display(), "training started");
        if let Stage::Training(run) = &mut self.stage {
            run.child = Some(child);
        }
        Ok(())
    }

    /// Whether the run under way has ended, and then what came of it.
    pub(super) async fn advance_training(&mut self, now_ms: i64) -> Result<bool, LoopError> {
        let Stage::Training(run) = &self.stage else {
            return Ok(false);
        };
        let exit = match run.child.as_ref().map(crate::launch::Training::poll) {
            Some(Progress::Running) => return Ok(false),
            Some(Progress::Exited(exit)) => Some(exit),
            None => None,
        };
        let record = self.run_of(run.decision).await?;
        if let Some(record) = record
            .as_ref()
            .filter(|run| run.status == RunStatus::Running)
        {
            if exit.is_none() && trainer_alive(record.owner_pid, &self.config.trainer) {
                return Ok(false);
            }
            // It could not say so itself. That it just did is seen at the next tick.
            return match self.end_dead_run(record, exit.as_ref(), now_ms).await {
                Ok(outcome) => {
                    self.conclude(Some(record.id.clone()), outcome, now_ms)
                        .await?;
                    Ok(true)
                }
                Err(RunError::RunEnded(_)) => Ok(false),
                Err(error) => Err(error.into()),
            };
        }
        let ending = ending_of(record.as_ref(), exit.as_ref());
        let run = record.map(|record| record.id);
        match ending {
            Ok(ending) => self.conclude_with(run, ending, None, now_ms).await?,
            Err(problem) => self.conclude(run, problem, now_ms).await?,
        }
        Ok(true)
    }

    /// The run that a trigger set off, if its trainer came so far as to record it.
    pub(super) async fn run_of(&self, decision: i64) -> Result<Option<RunSummary>, LoopError> {
        let runs = self
            .registry
            .runs(&self.config.model, RUNS_SEARCHED)
            .await?;
        Ok(runs.into_iter().find(|run| run.trigger == Some(decision)))
    }

    /// Marks a run failed whose process is gone.
    pub(super) async fn end_dead_run(
        &self,
        run: &RunSummary,
        exit: Option<&TrainerExit>,
        now_ms: i64,
    ) -> Result<String, RunError> {
        let outcome = match exit {
            Some(exit) => format!("trainer {exit}"),
            None => format!("trainer (process {}) is gone", run.owner_pid),
        };
        self.registry
            .finish_run(&run.id, RunStatus::Failed, &outcome, now_ms)
            .await?;
        Ok(outcome)
    }

    /// A run ended without a result.
    async fn conclude(
        &mut self,
        run: Option<registry::RunId>,
        problem: String,
        now_ms: i64,
    ) -> Result<(), LoopError> {
        let log = match &self.stage {
            Stage::Training(run) => Some(tail_of(&self.launcher.log_path(run.decision))),
            _ => None,
        };
        let ending = Ending {
            end: RunEnd::Failed,
            outcome: problem,
            version: None,
        };
        self.conclude_with(run, ending, log, now_ms).await
    }

    /// Records how the run ended; the cooldown begins.
    async fn conclude_with(
        &mut self,
        run: Option<registry::RunId>,
        ending: Ending,
        log: Option<String>,
        now_ms: i64,
    ) -> Result<(), LoopError> {
        let Stage::Training(under_way) = &self.stage else {
            return Ok(());
        };
        let (kind, outcome) = match ending.end {
            RunEnd::Registered => ("training", "registered"),
            RunEnd::Rejected => ("training", "rejected"),
            RunEnd::Failed => ("training_failed", "failed"),
        };
        self.decide(Decided {
            kind,
            outcome,
            reason: ending.outcome.clone(),
            run: run.clone(),
            version: ending.version,
            evidence: json!({
                "trigger": under_way.decision,
                "cause": under_way.cause,
                "champion": under_way.champion,
                "log": log,
            }),
            at_ms: now_ms,
        })
        .await?;
        tracing::info!(model = %self.config.model, decision = under_way.decision, outcome = ending.outcome, "training ended");
        self.stage = match ending.version {
            // Promoted by the trainer itself where there was no champion.
            Some(challenger) if under_way.champion.is_some() => {
                Stage::Preparing(super::Candidacy {
                    challenger,
                    champion: under_way.champion,
                    since_ms: now_ms,
                    reason: format!("passed its gates, trained for {}", under_way.cause),
                })
            }
            _ => Stage::Watching,
        };
        self.trigger.finished(now_ms, ending.end);
        self.count_end(ending.end);
        self.metrics.run_ended(ending.end);
        self.last_run = Some(LastRun {
            id: run,
            outcome: ending.outcome,
            at_ms: now_ms,
        });
        Ok(())
    }
}

/// What an ended run came to, or why it came to nothing. The registry is
/// believed over the exit code: what it says is what will be served.
fn ending_of(record: Option<&RunSummary>, exit: Option<&TrainerExit>) -> Result<Ending, String> {
    let Some(record) = record else {
        return Err(match exit {
            Some(exit) => format!("trainer {exit} and recorded no run"),
            None => "the trainer recorded no run".into(),
        });
    };
    let outcome = record.outcome.clone().unwrap_or_default();
    let end = match (record.status, outcome.split([' ', ':']).next()) {
        (RunStatus::Finished, Some("registered")) => RunEnd::Registered,
        (RunStatus::Finished, Some("rejected")) => RunEnd::Rejected,
        _ => return Err(outcome),
    };
    let version = outcome.strip_prefix("registered v").and_then(|rest| {
        rest.split(|c: char| !c.is_ascii_digit())
            .next()?
            .parse()
            .ok()
    });
    Ok(Ending {
        end,
        version,
        outcome,
    })
}
