//! When a verdict becomes a training run. Pure: time comes in, a cause comes out.
//!
//! What holds under any sequence of verdicts, however they flap: one run at a
//! time; between the end of one and the start of the next at least the cooldown,
//! doubled for each rejected challenger in a row; no more starts than the token
//! bucket gives; no run twice on the same evidence; none on faulty data.

use std::collections::VecDeque;
use std::fmt;

use registry::Version;
use serde::{Deserialize, Serialize};

use crate::policy::{Budget, TriggerPolicy};
use crate::verdict::{Judgement, Verdict};

/// Why a training run is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TriggerCause {
    /// Matured labels show it worse than its validation.
    Decay,
    /// Traffic moved away from the training rows, and the policy lets that train.
    Drift,
    /// The last training is too long ago.
    Schedule,
    /// A person asked.
    Operator,
}

impl TriggerCause {
    /// The name in decisions and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            TriggerCause::Decay => "decay",
            TriggerCause::Drift => "drift",
            TriggerCause::Schedule => "schedule",
            TriggerCause::Operator => "operator",
        }
    }

    /// The cause of that name.
    pub fn from_name(name: &str) -> Option<TriggerCause> {
        [
            TriggerCause::Decay,
            TriggerCause::Drift,
            TriggerCause::Schedule,
            TriggerCause::Operator,
        ]
        .into_iter()
        .find(|cause| cause.as_str() == name)
    }
}

impl fmt::Display for TriggerCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How a training run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunEnd {
    /// Its challenger passed the gates, or was the first champion.
    Registered,
    /// Its challenger did not pass, or was rolled back after it had.
    Rejected,
    /// It ended without a result.
    Failed,
}

/// What is remembered between evaluations. Built again after a restart by
/// calling the same methods with the times that were recorded.
#[derive(Clone, Debug)]
pub struct TriggerState {
    /// Newest last, at most n of the policy's k of n; cleared when a run starts,
    /// so that evidence is used once.
    verdicts: VecDeque<Verdict>,
    bucket: Bucket,
    running: bool,
    ended_ms: Option<i64>,
    rejections: u32,
    champion_since_ms: Option<i64>,
    used: Option<EvidenceKey>,
}

/// What makes two triggers the same.
type EvidenceKey = (Version, i64);

/// Decides after an evaluation whether to train, and why. Takes nothing: the
/// caller says [`TriggerState::started`] when the run is under way.
pub fn decide(
    policy: &TriggerPolicy,
    now_ms: i64,
    judgement: &Judgement,
    state: &TriggerState,
) -> Option<TriggerCause> {
    let evidence = &judgement.evidence;
    if state.running
        || judgement.verdict == Verdict::DataFault
        || state.used == Some((evidence.champion, evidence.window_end_ms))
        || state
            .cooldown_until_ms(policy)
            .is_some_and(|until_ms| now_ms < until_ms)
        || state.budget_left(policy, now_ms) == 0
    {
        return None;
    }
    let confirmed = |matches: fn(Verdict) -> bool| {
        let agreeing = state.verdicts.iter().filter(|verdict| matches(**verdict));
        matches(judgement.verdict) && agreeing.count() >= policy.confirm.k()
    };
    if confirmed(|verdict| verdict == Verdict::Decay) {
        return Some(TriggerCause::Decay);
    }
    if policy.drift && confirmed(|verdict| matches!(verdict, Verdict::Drift | Verdict::Decay)) {
        return Some(TriggerCause::Drift);
    }
    let waiting_since_ms = state.ended_ms.or(state.champion_since_ms)?;
    let every = policy.schedule?;
    (now_ms.saturating_sub(waiting_since_ms) >= every.ms()).then_some(TriggerCause::Schedule)
}

impl TriggerState {
    /// Nothing remembered: a full bucket, no cooldown.
    pub fn new(policy: &TriggerPolicy) -> TriggerState {
        TriggerState {
            verdicts: VecDeque::with_capacity(policy.confirm.n()),
            bucket: Bucket::full(policy.budget),
            running: false,
            ended_ms: None,
            rejections: 0,
            champion_since_ms: None,
            used: None,
        }
    }

    /// Remembers the verdict of an evaluation; before [`decide`] is asked.
    pub fn observe(&mut self, policy: &TriggerPolicy, verdict: Verdict) {
        while self.verdicts.len() >= policy.confirm.n() {
            self.verdicts.pop_front();
        }
        self.verdicts.push_back(verdict);
    }

    /// A run starts on this evidence. Whoever asked, it takes a token.
    pub fn started(
        &mut self,
        policy: &TriggerPolicy,
        now_ms: i64,
        evidence: Option<(Version, i64)>,
    ) {
        self.running = true;
        self.verdicts.clear();
        self.bucket.take(policy.budget, now_ms);
        if evidence.is_some() {
            self.used = evidence;
        }
    }

    /// The run ended; the cooldown begins.
    pub fn finished(&mut self, now_ms: i64, end: RunEnd) {
        self.running = false;
        self.ended_ms = Some(self.ended_ms.map_or(now_ms, |before| before.max(now_ms)));
        match end {
            RunEnd::Registered => self.rejections = 0,
            RunEnd::Rejected => self.rejections = self.rejections.saturating_add(1),
            RunEnd::Failed => {}
        }
    }

    /// A promotion was taken back: its training is one more that did not help.
    pub fn rolled_back(&mut self, now_ms: i64) {
        let running = self.running;
        self.finished(now_ms, RunEnd::Rejected);
        self.running = running;
    }

    /// A run that was started before a restart has not ended.
    pub(crate) fn resumed_running(&mut self) {
        self.running = true;
    }

    /// Another champion answers since then; earlier verdicts were about the old one.
    pub fn champion_changed(&mut self, since_ms: i64) {
        self.verdicts.clear();
        self.champion_since_ms = Some(since_ms);
    }

    /// Whether a run is under way.
    pub fn running(&self) -> bool {
        self.running
    }

    /// End of the cooldown; none before the first run.
    pub fn cooldown_until_ms(&self, policy: &TriggerPolicy) -> Option<i64> {
        let base = policy.cooldown.ms();
        let cap = policy.cooldown_max.ms().max(base);
        let doubled = base.saturating_mul(1i64 << self.rejections.min(40));
        Some(self.ended_ms?.saturating_add(doubled.min(cap)))
    }

    /// Whole runs that the bucket allows now.
    pub fn budget_left(&self, policy: &TriggerPolicy, now_ms: i64) -> u32 {
        self.bucket.tokens(policy.budget, now_ms) as u32
    }
}

/// A token bucket, in fractions of a token at an instant.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at_ms: Option<i64>,
}

impl Bucket {
    fn full(budget: Budget) -> Bucket {
        Bucket {
            tokens: f64::from(budget.runs.get()),
            at_ms: None,
        }
    }

    fn tokens(&self, budget: Budget, now_ms: i64) -> f64 {
        let full = f64::from(budget.runs.get());
        // A clock that went back refills nothing.
        let passed_ms = self
            .at_ms
            .map_or(0, |at_ms| now_ms.saturating_sub(at_ms).max(0));
        (self.tokens + full * passed_ms as f64 / budget.per.ms() as f64).min(full)
    }

    fn take(&mut self, budget: Budget, now_ms: i64) {
        // A person may ask for more than there is: the bucket is then empty.
        self.tokens = (self.tokens(budget, now_ms) - 1.0).max(0.0);
        self.at_ms = Some(self.at_ms.map_or(now_ms, |before| before.max(now_ms)));
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::policy::{Confirm, Span};
    use crate::verdict::Evidence;
    use proptest::prelude::*;

    const HOUR_MS: i64 = 3_600_000;

    fn judgement(verdict: Verdict, window_end_ms: i64) -> Judgement {
        Judgement {
            verdict,
            reason: String::new(),
            evidence: Evidence::empty(1, window_end_ms),
        }
    }

    fn policy(confirm: (usize, usize), cooldown_hours: u32, budget: u32) -> TriggerPolicy {
        TriggerPolicy {
            confirm: Confirm::new(confirm.0, confirm.1).unwrap(),
            cooldown: Span::hours(cooldown_hours),
            cooldown_max: Span::hours(cooldown_hours * 4),
            budget: Budget {
                runs: NonZeroU32::new(budget).unwrap(),
                per: Span::days(1),
            },
            schedule: None,
            ..TriggerPolicy::default()
        }
    }

    /// One evaluation an hour, as the cycle makes them.
    fn hour(
        policy: &TriggerPolicy,
        state: &mut TriggerState,
        hour: i64,
        verdict: Verdict,
    ) -> Option<TriggerCause> {
        let now_ms = hour * HOUR_MS;
        state.observe(policy, verdict);
        decide(policy, now_ms, &judgement(verdict, now_ms), state)
    }

    #[test]
    fn two_of_three_decays_trigger_and_the_newest_must_be_one() {
        let policy = policy((2, 3), 1, 4);
        let mut state = TriggerState::new(&policy);
        let sequence = [
            (Verdict::Decay, None),
            (Verdict::Healthy, None),
            (Verdict::Decay, Some(TriggerCause::Decay)),
            (Verdict::Healthy, None),
            (Verdict::Healthy, None),
            (Verdict::Decay, None),
        ];
        for (index, (verdict, expected)) in (0..).zip(sequence) {
            assert_eq!(
                hour(&policy, &mut state, index, verdict),
                expected,
                "{index}"
            );
        }
    }

    #[test]
    fn drift_trains_only_where_the_policy_says_so() {
        let mut policy = policy((1, 1), 1, 4);
        let mut state = TriggerState::new(&policy);
        assert_eq!(hour(&policy, &mut state, 0, Verdict::Drift), None);
        policy.drift = true;
        assert_eq!(
            hour(&policy, &mut state, 1, Verdict::Drift),
            Some(TriggerCause::Drift)
        );
    }

    #[test]
    fn the_same_evidence_starts_one_run() {
        let policy = policy((1, 1), 1, 4);
        let mut state = TriggerState::new(&policy);
        let evidence = judgement(Verdict::Decay, 0);
        state.observe(&policy, Verdict::Decay);
        assert!(decide(&policy, 0, &evidence, &state).is_some());
        state.started(&policy, 0, Some((1, 0)));
        state.finished(0, RunEnd::Failed);
        state.observe(&policy, Verdict::Decay);
        let later_ms = 100 * HOUR_MS;
        assert_eq!(decide(&policy, later_ms, &evidence, &state), None);
        let other = judgement(Verdict::Decay, later_ms);
        assert!(decide(&policy, later_ms, &other, &state).is_some());
    }

    #[test]
    fn rejections_double_the_cooldown_up_to_its_cap_and_success_resets_it() {
        let policy = policy((1, 1), 10, 4);
        let mut state = TriggerState::new(&policy);
        let mut waits = Vec::new();
        for end in [
            RunEnd::Failed,
            RunEnd::Rejected,
            RunEnd::Rejected,
            RunEnd::Rejected,
            RunEnd::Failed,
            RunEnd::Registered,
        ] {
            state.started(&policy, 0, None);
            state.finished(0, end);
            waits.push(state.cooldown_until_ms(&policy).unwrap() / HOUR_MS);
        }
        assert_eq!(waits, [10, 20, 40, 40, 40, 10]);
    }

    #[test]
    fn a_schedule_counts_from_the_last_training_or_else_from_the_champion() {
        let policy = TriggerPolicy {
            schedule: Some(Span::hours(30)),
            ..policy((1, 1), 1, 4)
        };
        let mut state = TriggerState::new(&policy);
        assert_eq!(hour(&policy, &mut state, 1000, Verdict::Unknown), None);
        state.champion_changed(0);
        assert_eq!(hour(&policy, &mut state, 29, Verdict::Healthy), None);
        let scheduled = Some(TriggerCause::Schedule);
        assert_eq!(hour(&policy, &mut state, 30, Verdict::Healthy), scheduled);
        assert_eq!(hour(&policy, &mut state, 31, Verdict::DataFault), None);
        state.started(&policy, 32 * HOUR_MS, None);
        state.finished(32 * HOUR_MS, RunEnd::Rejected);
        assert_eq!(hour(&policy, &mut state, 61, Verdict::Healthy), None);
        assert_eq!(hour(&policy, &mut state, 62, Verdict::Healthy), scheduled);
    }

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop::sample::select(Verdict::ALL.to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Ten thousand evaluations of random verdicts, with runs of random
        /// length and end: every promise of the module head holds.
        #[test]
        fn a_flapping_verdict_exceeds_neither_cooldown_nor_budget(
            verdicts in prop::collection::vec(verdict(), 10_000),
            runs in prop::collection::vec((0i64..5, 0u8..3), 64),
            cooldown_hours in 1u32..30,
            budget in 1u32..4,
            schedule in prop::option::of(1u32..200),
            drift: bool,
        ) {
            let policy = TriggerPolicy {
                drift,
                schedule: schedule.map(Span::hours),
                ..policy((1, 2), cooldown_hours, budget)
            };
            let mut state = TriggerState::new(&policy);
            state.champion_changed(0);
            let mut starts: Vec<i64> = Vec::new();
            let mut runs = runs.into_iter().cycle();
            let mut ends_at: Option<(i64, RunEnd)> = None;
            let mut ended: Option<i64> = None;
            let mut rejections = 0;
            for (at, verdict) in (0..).zip(verdicts) {
                if let Some((_, end)) = ends_at.filter(|(end_hour, _)| *end_hour <= at) {
                    state.finished(at * HOUR_MS, end);
                    (ends_at, ended) = (None, Some(at));
                    match end {
                        RunEnd::Registered => rejections = 0,
                        RunEnd::Rejected => rejections += 1,
                        RunEnd::Failed => {}
                    }
                }
                let cause = hour(&policy, &mut state, at, verdict);
                if cause.is_none() {
                    continue;
                }
                prop_assert!(ends_at.is_none(), "a second run at {}", at);
                prop_assert_ne!(verdict, Verdict::DataFault);
                prop_assert!(drift || cause != Some(TriggerCause::Drift));
                let wait = (i64::from(cooldown_hours) << rejections.min(2)).min(i64::from(cooldown_hours) * 4);
                prop_assert!(ended.is_none_or(|end| at - end >= wait), "{} after {:?}", at, ended);
                state.started(&policy, at * HOUR_MS, Some((1, at * HOUR_MS)));
                starts.push(at);
                let (length, end) = runs.next().unwrap();
                let end = [RunEnd::Registered, RunEnd::Rejected, RunEnd::Failed][usize::from(end)];
                ends_at = Some((at + length, end));
            }
            prop_assert!(!starts.is_empty());
            for (i, first) in starts.iter().enumerate() {
                for (j, last) in starts.iter().enumerate().skip(i).take(64) {
                    let allowed = f64::from(budget) * (1.0 + (last - first) as f64 / 24.0);
                    prop_assert!((j - i + 1) as f64 <= allowed + 1e-6);
                }
            }
        }
    }
}
