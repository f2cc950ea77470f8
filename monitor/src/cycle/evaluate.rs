//! One evaluation: the window closes, is judged, and may set off a run.

use std::sync::Arc;

use serde_json::json;

use super::train::Order;
use super::{Decided, LoopError, ModelLoop, Stage, Tick};
use crate::baseline::{Baseline, StatusCounts};
use crate::counters::Counters;
use crate::trigger::decide;
use crate::verdict::{Judgement, Observed, Skew, Verdict, judge};

/// Drifted features named in a trigger's evidence; all of them are in the verdict's.
const DRIFTED_NAMED: usize = 5;

impl ModelLoop {
    /// Judges the window that ended at `end_ms` and acts on the verdict.
    pub(super) async fn evaluate(
        &mut self,
        end_ms: i64,
        input: &Tick<'_>,
    ) -> Result<(), LoopError> {
        self.windows.close(self.evaluated_ms, end_ms);
        self.retry_baseline().await?;
        let Some((judgement, window)) = self.judge(end_ms, input.skew) else {
            self.evaluated_ms = Some(end_ms);
            return Ok(());
        };
        let evidence = serde_json::to_value(&judgement.evidence).unwrap_or_default();
        self.decide(Decided {
            kind: "verdict",
            outcome: judgement.verdict.as_str(),
            reason: judgement.reason.clone(),
            run: None,
            version: Some(judgement.evidence.champion),
            evidence,
            at_ms: end_ms,
        })
        .await?;
        self.evaluated_ms = Some(end_ms);
        self.trigger
            .observe(&self.config.policy.trigger, judgement.verdict);
        self.metrics.evaluated(&judgement);
        if judgement.verdict == Verdict::DataFault {
            tracing::warn!(model = %self.config.model, reason = judgement.reason, "data fault");
        } else if let Some(window) = window {
            self.learn_statuses(&window);
        }
        let cause = match self.stage {
            Stage::Watching => decide(
                &self.config.policy.trigger,
                input.now_ms,
                &judgement,
                &self.trigger,
            ),
            // A new champion is given its soak before it is judged for retraining.
            _ => None,
        };
        self.judgement = Some(judgement.clone());
        self.judge_soak(end_ms, input.now_ms).await?;
        if let Some(cause) = cause {
            let evidence = &judgement.evidence;
            let drifted = evidence.drifted.iter().take(DRIFTED_NAMED);
            let order = Order {
                cause,
                reason: format!("{cause}: {}", judgement.reason),
                evidence: json!({
                    "cause": cause,
                    "champion": evidence.champion,
                    "window_end_ms": evidence.window_end_ms,
                    "verdict": judgement.verdict,
                    "quality": evidence.quality,
                    "reference": evidence.reference,
                    "decay": evidence.decay,
                    "drifted": drifted.collect::<Vec<_>>(),
                }),
                key: Some((evidence.champion, evidence.window_end_ms)),
            };
            if let Err(problem) = self.start_training(order, input).await? {
                tracing::warn!(model = %self.config.model, problem, "training not started");
            }
        }
        Ok(())
    }

    /// The judgement of the champion's window, and the window; none without a champion.
    fn judge(&mut self, end_ms: i64, skew: Option<&Skew>) -> Option<(Judgement, Option<Counters>)> {
        let champion = self.champion.as_ref()?;
        let version = champion.version.version;
        let policy = &self.config.policy;
        let decay = &policy.monitor.decay;
        let window = self.windows.merged(end_ms, policy.monitor.window);
        let from_ms = end_ms.saturating_sub(decay.window.ms());
        let matured = self.windows.matured(end_ms, &policy.label, decay.window);
        let coverage = matured
            .filter(|(_, _, rows)| *rows > 0)
            .map(|(from_ms, to_ms, rows)| {
                let labelled = self.outcomes.labelled(from_ms, to_ms);
                (labelled as f64 / rows as f64).min(1.0)
            });
        let observed = Observed {
            window_end_ms: end_ms,
            champion: version,
            baseline: champion.reference.baseline.as_deref(),
            window: window.as_ref(),
            reference: champion.reference.quality,
            outcomes: self.outcomes.answered(version, from_ms, end_ms),
            coverage,
            skew,
        };
        Some((judge(policy, observed), window))
    }

    /// The first window without a fault is the reference of the statuses.
    fn learn_statuses(&mut self, window: &Counters) {
        let rows_min = self.config.policy.monitor.rows_min.get();
        let Some(champion) = &mut self.champion else {
            return;
        };
        let Some(baseline) = &champion.reference.baseline else {
            return;
        };
        if baseline.statuses.is_some()
            || baseline.version != window.version()
            || window.rows() < rows_min
        {
            return;
        }
        champion.reference.baseline = Some(Arc::new(Baseline {
            statuses: Some(StatusCounts::of(window)),
            ..Baseline::clone(baseline)
        }));
        if let Err(error) = self.baselines.keep(&champion.version, &champion.reference) {
            tracing::warn!(model = %self.config.model, %error, "baseline is not kept");
        }
    }

    /// Tries again to make the baseline of a champion whose rows could not be read.
    async fn retry_baseline(&mut self) -> Result<(), LoopError> {
        let retry = self.champion.as_ref().filter(|champion| champion.retry);
        if let Some(version) = retry.map(|champion| champion.version.version) {
            self.champion = Some(self.read_champion(version).await?);
        }
        Ok(())
    }
}
