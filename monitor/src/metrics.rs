//! The monitor's metrics: one set of handles per model, resolved when its loop
//! is made. Label values come from closed sets: configured models, verdicts,
//! states, ends of runs. Features are not labels; the admin interface has them.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use registry::ModelName;

use crate::cycle::{LoopState, LoopStatus};
use crate::trigger::RunEnd;
use crate::verdict::{Judgement, Verdict};

const VERDICT: &str = "loopgate_monitor_verdict";
const STATE: &str = "loopgate_loop_state";
const EVALUATIONS: &str = "loopgate_monitor_evaluations_total";
const ROWS: &str = "loopgate_monitor_window_rows";
const LOST_ROWS: &str = "loopgate_monitor_lost_rows_total";
const PSI_MAX: &str = "loopgate_monitor_psi_max";
const PSI_SCORE: &str = "loopgate_monitor_psi_score";
const DRIFTED: &str = "loopgate_monitor_drifted_features";
const FAULTS: &str = "loopgate_monitor_faulty_shares";
const LOG_LOSS: &str = "loopgate_monitor_log_loss";
const NORMALIZED: &str = "loopgate_monitor_normalized_log_loss";
const AUC: &str = "loopgate_monitor_auc";
const ECE: &str = "loopgate_monitor_calibration_error";
const COVERAGE: &str = "loopgate_monitor_label_coverage";
const TRAININGS: &str = "loopgate_trainings_total";
const PROMOTIONS: &str = "loopgate_promotions_total";
const ROLLBACKS: &str = "loopgate_rollbacks_total";
const BUDGET: &str = "loopgate_training_budget_left";
const COOLDOWN: &str = "loopgate_training_cooldown_seconds";

const GAUGES: [(&str, Unit, &str); 14] = [
    (
        VERDICT,
        Unit::Count,
        "1 for the newest verdict about the champion, 0 for the others",
    ),
    (
        STATE,
        Unit::Count,
        "1 for where the loop stands, 0 for the other states",
    ),
    (ROWS, Unit::Count, "rows of the newest evaluated window"),
    (
        PSI_MAX,
        Unit::Count,
        "highest population stability index of any feature, nats",
    ),
    (
        PSI_SCORE,
        Unit::Count,
        "population stability index of the score, nats",
    ),
    (
        DRIFTED,
        Unit::Count,
        "features (and score) beyond their drift threshold",
    ),
    (
        FAULTS,
        Unit::Count,
        "missing, unseen or not-found shares that jumped",
    ),
    (
        LOG_LOSS,
        Unit::Count,
        "log loss of the champion on matured labels, nats",
    ),
    (
        NORMALIZED,
        Unit::Count,
        "log loss over the entropy of the base rate",
    ),
    (
        AUC,
        Unit::Count,
        "area under the ROC curve on matured labels",
    ),
    (
        ECE,
        Unit::Count,
        "expected calibration error on matured labels",
    ),
    (
        COVERAGE,
        Unit::Count,
        "labelled share of matured predictions",
    ),
    (
        BUDGET,
        Unit::Count,
        "whole training runs that the budget allows now",
    ),
    (
        COOLDOWN,
        Unit::Seconds,
        "time until a run may be triggered, in the loop's clock",
    ),
];

const COUNTERS: [(&str, &str); 5] = [
    (EVALUATIONS, "evaluations of the champion"),
    (
        LOST_ROWS,
        "rows counted against another champion's baseline, or of another shape",
    ),
    (TRAININGS, "training runs that ended, by how"),
    (PROMOTIONS, "challengers that became champion"),
    (ROLLBACKS, "champions that were rolled back"),
];

/// Tells the exporter what each metric is; called once per process.
pub fn describe() {
    for (name, unit, help) in GAUGES {
        describe_gauge!(name, unit, help);
    }
    for (name, help) in COUNTERS {
        describe_counter!(name, Unit::Count, help);
    }
}

/// The handles of one loop.
#[derive(Debug)]
pub(crate) struct LoopMetrics {
    verdicts: [Gauge; Verdict::ALL.len()],
    states: [Gauge; LoopState::ALL.len()],
    evaluations: Counter,
    rows: Gauge,
    lost_rows: Counter,
    psi_max: Gauge,
    psi_score: Gauge,
    drifted: Gauge,
    faults: Gauge,
    log_loss: Gauge,
    normalized: Gauge,
    auc: Gauge,
    ece: Gauge,
    coverage: Gauge,
    registered: Counter,
    rejected: Counter,
    failed: Counter,
    promotions: Counter,
    rollbacks: Counter,
    budget: Gauge,
    cooldown: Gauge,
}

impl LoopMetrics {
    pub(crate) fn new(model: &ModelName) -> LoopMetrics {
        let model = model.as_str().to_owned();
        let one = |name: &'static str| gauge!(name, "model" => model.clone());
        let count = |name: &'static str| counter!(name, "model" => model.clone());
        let ended = |outcome: &'static str| counter!(TRAININGS, "model" => model.clone(), "outcome" => outcome);
        LoopMetrics {
            verdicts: Verdict::ALL.map(
                |verdict| gauge!(VERDICT, "model" => model.clone(), "verdict" => verdict.as_str()),
            ),
            states: LoopState::ALL
                .map(|state| gauge!(STATE, "model" => model.clone(), "state" => state.as_str())),
            evaluations: count(EVALUATIONS),
            rows: one(ROWS),
            lost_rows: count(LOST_ROWS),
            psi_max: one(PSI_MAX),
            psi_score: one(PSI_SCORE),
            drifted: one(DRIFTED),
            faults: one(FAULTS),
            log_loss: one(LOG_LOSS),
            normalized: one(NORMALIZED),
            auc: one(AUC),
            ece: one(ECE),
            coverage: one(COVERAGE),
            registered: ended("registered"),
            rejected: ended("rejected"),
            failed: ended("failed"),
            promotions: count(PROMOTIONS),
            rollbacks: count(ROLLBACKS),
            budget: one(BUDGET),
            cooldown: one(COOLDOWN),
        }
    }

    pub(crate) fn evaluated(&self, judgement: &Judgement) {
        self.evaluations.increment(1);
        for (verdict, gauge) in Verdict::ALL.iter().zip(&self.verdicts) {
            gauge.set(flag(*verdict == judgement.verdict));
        }
        let evidence = &judgement.evidence;
        self.rows.set(evidence.rows as f64);
        self.drifted.set(evidence.drifted.len() as f64);
        self.faults.set(evidence.faults.len() as f64);
        let features = evidence.psi.iter().filter(|(name, _)| *name != "score");
        self.psi_max
            .set(features.map(|(_, psi)| *psi).fold(0.0, f64::max));
        self.psi_score
            .set(evidence.psi.get("score").copied().unwrap_or(0.0));
        if let Some(coverage) = evidence.coverage {
            self.coverage.set(coverage);
        }
        if let Some(quality) = &evidence.quality {
            self.log_loss.set(quality.log_loss);
            self.ece.set(quality.ece);
            if let Some(normalized) = quality.normalized_log_loss {
                self.normalized.set(normalized);
            }
            if let Some(auc) = quality.auc {
                self.auc.set(auc);
            }
        }
    }

    pub(crate) fn run_ended(&self, end: RunEnd) {
        let counter = match end {
            RunEnd::Registered => &self.registered,
            RunEnd::Rejected => &self.rejected,
            RunEnd::Failed => &self.failed,
        };
        counter.increment(1);
    }

    pub(crate) fn promoted(&self) {
        self.promotions.increment(1);
    }

    pub(crate) fn rolled_back(&self) {
        self.rollbacks.increment(1);
    }

    pub(crate) fn lost_rows(&self, rows: u64) {
        self.lost_rows.increment(rows);
    }

    pub(crate) fn show(&self, status: &LoopStatus, now_ms: i64) {
        for (state, gauge) in LoopState::ALL.iter().zip(&self.states) {
            gauge.set(flag(*state == status.state));
        }
        self.budget.set(f64::from(status.budget_left));
        let until_ms = status.cooldown_until_ms.unwrap_or(now_ms);
        self.cooldown
            .set((until_ms - now_ms).max(0) as f64 / 1000.0);
    }
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}
