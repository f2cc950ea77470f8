//! A challenger becomes the champion, and is watched in its first days.
//!
//! Promotion and rollback are compare-and-set in the registry, each recorded as
//! a decision with its evidence. The soak compares the new champion with the old
//! one: on the same days where the old one runs as a shadow, else with what the
//! old one last scored.

use registry::{
    AliasError, DecisionError, ModelName, NewDecision, Promotion, Registry, Rollback, Version,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use statrs::distribution::{ContinuousCDF, Normal};

use crate::policy::RolloutPolicy;
use crate::quality::{Quality, ScoredLabel};

/// A promotion or rollback that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    /// An alias was not as expected, or could not be set.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// The aliases are set, but the decision could not be recorded.
    #[error(transparent)]
    Decision(#[from] DecisionError),
}

/// One change of champion.
#[derive(Clone, Debug)]
pub struct Swap<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The version that answers before.
    pub from: Option<Version>,
    /// The version that answers after.
    pub to: Version,
    /// Why, in a sentence.
    pub reason: &'a str,
    /// What it rests on.
    pub evidence: serde_json::Value,
    /// When.
    pub at_ms: i64,
}

/// Makes `swap.to` the champion and the one before it the fallback.
///
/// # Errors
/// Another champion answers by now ([`AliasError::Conflict`]); the registry failed.
pub async fn promote(registry: &Registry, swap: Swap<'_>) -> Result<(), RolloutError> {
    registry
        .promote(Promotion {
            model: swap.model,
            challenger: swap.to,
            expected_champion: swap.from,
            reason: swap.reason,
            at_ms: swap.at_ms,
        })
        .await?;
    record(registry, "promotion", "promoted", swap).await
}

/// Makes the fallback, `swap.to`, the champion again.
///
/// # Errors
/// Another champion answers by now; there is no fallback; the registry failed.
pub async fn roll_back(
    registry: &Registry,
    from: Version,
    swap: Swap<'_>,
) -> Result<(), RolloutError> {
    registry
        .roll_back(Rollback {
            model: swap.model,
            expected_champion: from,
            reason: swap.reason,
            at_ms: swap.at_ms,
        })
        .await?;
    record(registry, "rollback", "rolled_back", swap).await
}

async fn record(
    registry: &Registry,
    kind: &str,
    outcome: &str,
    swap: Swap<'_>,
) -> Result<(), RolloutError> {
    let version = registry.version(swap.model, swap.to).await;
    let run = version.ok().and_then(|version| version.run);
    registry
        .record_decision(NewDecision {
            model: swap.model.clone(),
            kind: kind.into(),
            outcome: outcome.into(),
            reason: swap.reason.into(),
            run,
            version: Some(swap.to),
            evidence: json!({
                "from": swap.from,
                "to": swap.to,
                "at_ms": swap.at_ms,
                "grounds": swap.evidence,
            }),
            at_ms: swap.at_ms,
        })
        .await?;
    Ok(())
}

/// What the new champion is compared with in its soak.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Former {
    /// The version that answered before.
    pub version: Version,
    /// Its quality in the last window before the swap, where it was measured.
    pub quality: Option<Quality>,
}

/// What the soak says so far.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SoakJudgement {
    /// Roll back.
    pub worse: bool,
    /// `shadow` (the former champion on the same days) or `before` (its last window).
    pub against: &'static str,
    /// Normalised log loss of the new champion.
    pub current: f64,
    /// Of the former one.
    pub former: f64,
    /// Standard errors by which the new one is worse.
    pub z: f64,
    /// Rows of the new champion.
    pub rows: u64,
}

/// Compares the new champion with the former one; nothing while there are too
/// few labels, or nothing to compare with.
///
/// Log loss over the entropy of each one's own base rate: without a shadow the
/// two were measured on different days.
pub fn judge_soak(
    policy: &RolloutPolicy,
    current: Vec<ScoredLabel>,
    shadow: Vec<ScoredLabel>,
    former: &Former,
) -> Option<SoakJudgement> {
    let enough = |quality: &Quality| quality.rows >= policy.soak_rows_min.get();
    let current = Quality::of(current).filter(enough)?;
    let shadow = Quality::of(shadow).filter(enough);
    let (against, tolerance) = match shadow {
        Some(_) => ("shadow", policy.soak_tolerance),
        None => ("before", policy.soak_tolerance_before),
    };
    let former = shadow.or_else(|| former.quality.clone())?;
    let (current_loss, current_se) = normalized(&current)?;
    let (former_loss, former_se) = normalized(&former)?;
    let z = (current_loss - former_loss) / current_se.hypot(former_se).max(f64::MIN_POSITIVE);
    let limit = former_loss * (1.0 + tolerance.get());
    let z_limit = Normal::standard().inverse_cdf(1.0 - policy.soak_alpha.get());
    Some(SoakJudgement {
        worse: current_loss > limit && z > z_limit,
        against,
        current: current_loss,
        former: former_loss,
        z: z.clamp(-1e6, 1e6),
        rows: current.rows,
    })
}

fn normalized(quality: &Quality) -> Option<(f64, f64)> {
    let loss = quality.normalized_log_loss?;
    Some((loss, quality.log_loss_se * loss / quality.log_loss))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `rows` pairs of which every fourth is positive, scored `right` of the way
    /// from the base rate to the label, one in five to the other label.
    fn pairs(rows: usize, right: f32) -> Vec<ScoredLabel> {
        (0..rows)
            .map(|row| {
                let label = f32::from(u8::from(row % 4 == 0));
                let wrong = f32::from(u8::from(row % 5 == 0));
                let toward = if wrong == 1.0 { 1.0 - label } else { label };
                ScoredLabel {
                    score: 0.25 + right * (toward - 0.25),
                    label,
                }
            })
            .collect()
    }

    fn former(quality: Option<Quality>) -> Former {
        Former {
            version: 1,
            quality,
        }
    }

    #[test]
    fn a_much_worse_champion_is_found_and_an_equal_one_is_not() {
        let policy = RolloutPolicy::default();
        let before = former(Quality::of(pairs(4000, 0.6)));
        let worse = judge_soak(&policy, pairs(4000, -0.3), Vec::new(), &before).unwrap();
        assert!(worse.worse && worse.against == "before", "{worse:?}");
        let equal = judge_soak(&policy, pairs(4000, 0.6), Vec::new(), &before).unwrap();
        assert!(!equal.worse, "{equal:?}");
    }

    #[test]
    fn the_shadow_on_the_same_days_counts_over_what_was_before() {
        let policy = RolloutPolicy::default();
        let before = former(Quality::of(pairs(4000, 0.6)));
        let hard_days = judge_soak(&policy, pairs(4000, -0.3), pairs(4000, -0.3), &before).unwrap();
        assert_eq!((hard_days.worse, hard_days.against), (false, "shadow"));
    }

    #[test]
    fn too_few_labels_or_nothing_to_compare_with_decide_nothing() {
        let policy = RolloutPolicy::default();
        let before = former(Quality::of(pairs(4000, 0.6)));
        assert_eq!(
            judge_soak(&policy, pairs(999, 0.1), Vec::new(), &before),
            None
        );
        assert_eq!(
            judge_soak(&policy, pairs(4000, 0.1), pairs(999, 0.6), &former(None)),
            None
        );
    }
}
