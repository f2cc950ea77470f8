//! What one loop is told and what it tells: plain values for the gateway, the
//! admin interface and the demo.

use std::collections::{BTreeMap, BTreeSet};

use featurestore::FeatureStore;
use registry::{ModelName, RunId, Version};
use serde::Serialize;

use crate::counters::Counters;
use crate::quality::Quality;
use crate::trigger::TriggerCause;
use crate::verdict::{Skew, Verdict};

/// Everything that a step of the loop may know. Nothing else is read, but the
/// registry and the files of the data folder.
pub struct Tick<'a> {
    /// Now, as traffic has it: simulated time in a replay.
    pub now_ms: i64,
    /// What was served since the last tick, counted in [`crate::ModelLoop::baseline`]'s bins.
    pub window: Option<Counters>,
    /// Labels and served rows.
    pub store: &'a FeatureStore,
    /// Versions of this model that the gateway has ready to answer.
    pub loaded: &'a BTreeSet<Version>,
    /// Versions of this model that the gateway tried to prepare and refused, and why.
    pub refused: &'a BTreeMap<Version, String>,
    /// What differed in the last verification of served rows, if anything did.
    pub skew: Option<&'a Skew>,
    /// What a person asked for since the last tick.
    pub requested: Option<OperatorRequest>,
}

/// What a person may ask of a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorRequest {
    /// Start a training run now, whatever cooldown and budget say; one at a time still.
    TrainNow,
    /// Prepare this version and make it the champion.
    Promote(Version),
    /// Make the fallback the champion again.
    RollBack,
}

/// The answer to an [`OperatorRequest`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RequestAnswer {
    /// Whether it was done or begun.
    pub accepted: bool,
    /// What was done, or why not.
    pub message: String,
}

/// Where a loop stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopState {
    /// Judging each window.
    Watching,
    /// A training run is under way.
    Training,
    /// The gateway prepares a challenger that passed its gates.
    Preparing,
    /// A new champion is in its first days and may be rolled back.
    Soaking,
}

impl LoopState {
    /// Every state, for metrics.
    pub const ALL: [LoopState; 4] = [
        LoopState::Watching,
        LoopState::Training,
        LoopState::Preparing,
        LoopState::Soaking,
    ];

    /// The name in metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            LoopState::Watching => "watching",
            LoopState::Training => "training",
            LoopState::Preparing => "preparing",
            LoopState::Soaking => "soaking",
        }
    }
}

/// One loop as it stands after a tick.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LoopStatus {
    /// The model.
    pub model: ModelName,
    /// Where the loop stands.
    pub state: LoopState,
    /// The newest verdict; unknown before the first.
    pub verdict: Verdict,
    /// Why, in a sentence.
    pub reason: String,
    /// The last evaluation.
    pub evaluated_ms: Option<i64>,
    /// The version that answers.
    pub champion: Option<Version>,
    /// The version on trial.
    pub challenger: Option<Version>,
    /// The version that answers when the champion cannot.
    pub fallback: Option<Version>,
    /// Whether the champion has a baseline to compare features with.
    pub has_baseline: bool,
    /// Quality of the champion in the newest evaluation that could measure it.
    pub quality: Option<Quality>,
    /// Population stability index of each feature and of `score` in the newest
    /// evaluation with enough rows, highest first.
    pub drift: Vec<FeatureDrift>,
    /// Training runs that ended, by how.
    pub trainings: u64,
    /// Of these, ended with a registered challenger or first champion.
    pub registered: u64,
    /// Of these, ended with a rejected challenger.
    pub rejected: u64,
    /// Of these, ended without a result.
    pub failed: u64,
    /// Promotions by this loop, or by hand through it.
    pub promotions: u64,
    /// Champions rolled back, by this loop or by hand through it.
    pub rollbacks: u64,
    /// The newest run that ended.
    pub last_run: Option<LastRun>,
    /// Why the run under way was started.
    pub training_for: Option<TriggerCause>,
    /// Nothing is triggered before, but by hand.
    pub cooldown_until_ms: Option<i64>,
    /// Whole training runs that the budget allows now.
    pub budget_left: u32,
    /// The answer to this tick's request.
    pub answer: Option<RequestAnswer>,
}

impl LoopStatus {
    /// Whether something is under way that a replay must wait for.
    pub fn busy(&self) -> bool {
        matches!(self.state, LoopState::Training | LoopState::Preparing)
    }
}

/// How far one feature has moved.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FeatureDrift {
    /// The feature, or `score`.
    pub feature: String,
    /// Population stability index against the champion's training rows, nats.
    pub psi: f64,
}

/// A training run that ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LastRun {
    /// The run; none where the trainer ended without recording one.
    pub id: Option<RunId>,
    /// `registered v5`, `rejected: gate: reason`, or why it failed.
    pub outcome: String,
    /// When the loop saw its end.
    pub at_ms: i64,
}
