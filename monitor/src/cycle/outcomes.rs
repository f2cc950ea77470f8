//! Matured predictions: scores with the labels that became known, as far back as
//! the longest window of the policy reaches.

use std::collections::VecDeque;

use featurestore::{FeatureStore, Outcome, OutcomeCursor, ReadError, Role};
use registry::Version;

use crate::quality::ScoredLabel;

/// Outcomes kept at most, the newest: 40 bytes each. More traffic than this in a
/// window is judged on its last part.
const KEPT_MAX: usize = 500_000;

/// Outcomes read from the store at once.
const BATCH: usize = 10_000;

/// The newest outcomes of one model, in order of arrival.
#[derive(Debug)]
pub(super) struct Outcomes {
    model: Box<str>,
    cursor: OutcomeCursor,
    horizon_ms: i64,
    kept: VecDeque<Kept>,
}

#[derive(Debug)]
struct Kept {
    version: Version,
    shadow: bool,
    predicted_ms: i64,
    known_ms: i64,
    pair: ScoredLabel,
}

impl Outcomes {
    /// Reads from the start of the log; keeps what became known within `horizon_ms`.
    pub(super) fn new(model: &str, horizon_ms: i64) -> Outcomes {
        Outcomes {
            model: model.into(),
            cursor: OutcomeCursor::default(),
            horizon_ms,
            kept: VecDeque::new(),
        }
    }

    /// Reads what is new. After a restart this is the whole log, in batches, with
    /// a chance for others to run in between.
    pub(super) async fn absorb(
        &mut self,
        store: &FeatureStore,
        now_ms: i64,
    ) -> Result<(), ReadError> {
        loop {
            let (batch, cursor) = store.outcomes(self.cursor, BATCH)?;
            if batch.is_empty() {
                self.cursor = cursor;
                self.forget(now_ms);
                return Ok(());
            }
            self.cursor = cursor;
            self.take(batch, now_ms);
            tokio::task::yield_now().await;
        }
    }

    fn take(&mut self, batch: Vec<Outcome>, now_ms: i64) {
        let oldest_ms = now_ms.saturating_sub(self.horizon_ms);
        for outcome in batch {
            // Pinned requests are somebody's tests and backfilled rows were never
            // answered: neither says how the champion does.
            let counts = !matches!(outcome.role, Role::Pinned | Role::Backfill);
            if counts && *outcome.model == *self.model && outcome.arrived_ms > oldest_ms {
                self.kept.push_back(Kept {
                    version: outcome.version,
                    shadow: outcome.role == Role::Shadow,
                    predicted_ms: outcome.predicted_ms,
                    known_ms: outcome.arrived_ms,
                    pair: ScoredLabel {
                        score: outcome.score,
                        label: outcome.label,
                    },
                });
            }
        }
        while self.kept.len() > KEPT_MAX {
            self.kept.pop_front();
        }
    }

    fn forget(&mut self, now_ms: i64) {
        let oldest_ms = now_ms.saturating_sub(self.horizon_ms);
        while self
            .kept
            .front()
            .is_some_and(|kept| kept.known_ms <= oldest_ms)
        {
            self.kept.pop_front();
        }
    }

    /// Answers of a version whose labels became known in `(from_ms, to_ms]`.
    pub(super) fn answered(&self, version: Version, from_ms: i64, to_ms: i64) -> Vec<ScoredLabel> {
        self.pairs(from_ms, to_ms, |kept| {
            !kept.shadow && kept.version == version
        })
    }

    /// The same of a version that ran as a shadow.
    pub(super) fn shadowed(&self, version: Version, from_ms: i64, to_ms: i64) -> Vec<ScoredLabel> {
        self.pairs(from_ms, to_ms, |kept| {
            kept.shadow && kept.version == version
        })
    }

    /// Labels of answers predicted in `[from_ms, to_ms)`, whichever version answered.
    pub(super) fn labelled(&self, from_ms: i64, to_ms: i64) -> u64 {
        let within = |kept: &&Kept| {
            !kept.shadow && kept.predicted_ms >= from_ms && kept.predicted_ms < to_ms
        };
        self.kept.iter().filter(within).count() as u64
    }

    fn pairs(&self, from_ms: i64, to_ms: i64, counts: impl Fn(&Kept) -> bool) -> Vec<ScoredLabel> {
        let known = |kept: &&Kept| kept.known_ms > from_ms && kept.known_ms <= to_ms;
        let kept = self.kept.iter().filter(known).filter(|kept| counts(kept));
        kept.map(|kept| kept.pair).collect()
    }
}
