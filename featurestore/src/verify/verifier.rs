//! The skew test that goes on: one fold of the log over many runs, each over the rows served since.

use std::sync::Arc;

use super::sample::{Sample, Served};
use super::{VerifyError, VerifyReport, services_of};
use crate::online::FeatureStore;
use crate::predictions::scan::Range;
use crate::refold::Refold;
use crate::service::Service;
use crate::travel::{WATCH_EVENTS, Watch};

/// A place in the traffic. A row asked for before `at_ms` that saw no event after `seq` is behind it.
///
/// Both count: a row that was asked for before the mark but read after it saw later events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// A time, in milliseconds
    pub at_ms: i64,
    /// The last event on disk at that time
    pub seq: u64,
}

impl Mark {
    fn is_behind(self, at_ms: i64, as_of_seq: u64) -> bool {
        at_ms < self.at_ms && as_of_seq <= self.seq
    }
}

/// What a verifier may cost.
#[derive(Debug, Clone, Copy)]
pub struct VerifierOptions {
    /// Rows of one run
    pub rows: usize,
    /// Which of those served
    pub seed: u64,
    /// Bytes of the states that it keeps from run to run (estimated). Beyond it each run reads the
    /// whole log again and holds the states of its own rows alone.
    pub states_bytes_max: usize,
}

/// How long before a mark a row that is not behind it may have been asked for: far longer than any
/// request takes.
const LINGER_MS: i64 = 600_000;

/// Verifies one model's served rows run by run. Its states are its own: they are folded from the log
/// and go on from the last event seen, so that all runs together read the log once.
#[derive(Debug)]
pub struct Verifier {
    model: Box<str>,
    services: Vec<Arc<Service>>,
    options: VerifierOptions,
    verified: Mark,
    states: States,
}

#[derive(Debug)]
enum States {
    /// Every state, as of the last event folded.
    Kept { refold: Refold, seq: u64 },
    /// They would take too much memory.
    TooLarge,
}

impl States {
    fn none(services: &[Arc<Service>]) -> Self {
        let views = services.iter().flat_map(|service| service.needed_views());
        Self::Kept {
            refold: Refold::of_all(views),
            seq: 0,
        }
    }
}

impl Verifier {
    /// Verifies what `model` answers with `service` (`name`, in every version, or `name@version`) after
    /// `from`.
    pub fn new(
        store: &FeatureStore,
        (model, service): (&str, &str),
        options: VerifierOptions,
        from: Mark,
    ) -> Result<Self, VerifyError> {
        let services = services_of(store.definitions(), service)?;
        Ok(Self {
            model: model.into(),
            states: States::none(&services),
            services,
            options,
            verified: from,
        })
    }

    /// Up to where rows were verified.
    pub fn verified(&self) -> Mark {
        self.verified
    }

    /// Recomputes a sample of the rows between the last run and `until`, all of which must have been
    /// recorded. After an error the next run covers the same rows again, and reads the log from its
    /// beginning.
    pub fn run(
        &mut self,
        store: &FeatureStore,
        until: Mark,
        watch: Watch<'_>,
    ) -> Result<VerifyReport, VerifyError> {
        let from = self.verified;
        let range = Range {
            model: &self.model,
            from_ms: from.at_ms.saturating_sub(LINGER_MS),
            to_ms: until.at_ms,
        };
        let sample = Sample {
            rows: self.options.rows,
            seed: self.options.seed,
        };
        let covers = |at_ms, seq| until.is_behind(at_ms, seq) && !from.is_behind(at_ms, seq);
        let rows = sample.choose(store.shared(), range, &self.services, &covers)?;
        let report = match self.recompute(store, &rows, watch) {
            Ok(report) => report,
            Err(error) => {
                // The fold may stand anywhere.
                if matches!(self.states, States::Kept { .. }) {
                    self.states = States::none(&self.services);
                }
                return Err(error);
            }
        };
        self.verified = until;
        Ok(report)
    }

    fn recompute(
        &mut self,
        store: &FeatureStore,
        rows: &[Served],
        watch: Watch<'_>,
    ) -> Result<VerifyReport, VerifyError> {
        if let States::Kept { refold, seq } = &mut self.states {
            let mut pass = Pass {
                store,
                refold,
                folded: *seq,
                bytes_max: self.options.states_bytes_max,
            };
            if let Some(report) = pass.over(rows, watch)? {
                *seq = pass.folded;
                return Ok(report);
            }
            let bytes = refold.bytes();
            tracing::warn!(
                model = &*self.model,
                bytes,
                "states for verification take too much memory: each run reads the whole log from now on"
            );
            self.states = States::TooLarge;
        }
        recompute_alone(store, rows, watch)
    }
}

/// Recomputes rows from the whole log, with the states of their own keys alone.
pub(super) fn recompute_alone(
    store: &FeatureStore,
    rows: &[Served],
    watch: Watch<'_>,
) -> Result<VerifyReport, VerifyError> {
    let views = rows.iter().flat_map(|row| row.service.needed_views());
    let keys = rows
        .iter()
        .flat_map(|row| row.service.keys(&row.record.request));
    let mut refold = Refold::of_keys(views, keys.flatten());
    let mut pass = Pass {
        store,
        refold: &mut refold,
        folded: 0,
        bytes_max: usize::MAX,
    };
    let report = pass.over(rows, watch)?;
    Ok(report.unwrap_or_default())
}

/// The log and the rows, side by side.
struct Pass<'a> {
    store: &'a FeatureStore,
    refold: &'a mut Refold,
    /// The last event folded.
    folded: u64,
    bytes_max: usize,
}

impl Pass<'_> {
    /// Compares rows, in the order of the events that they saw. `None` where the states grew too large.
    fn over(
        &mut self,
        rows: &[Served],
        watch: Watch<'_>,
    ) -> Result<Option<VerifyReport>, VerifyError> {
        let mut report = VerifyReport::default();
        let shared = self.store.shared();
        let failed = |error: crate::online::ReadError| VerifyError::Events(error.to_string());
        let events = shared.events().from(self.folded + 1);
        let mut events = events.map_err(failed)?.peekable();
        let mut read = 0;
        for served in rows {
            let as_of_seq = served.row.as_of_seq;
            if as_of_seq < self.folded {
                report.rows_passed_over += 1;
                continue;
            }
            while let Some(logged) = events.next_if(|event| match event {
                Ok(logged) => logged.seq <= as_of_seq,
                Err(_) => true,
            }) {
                let logged = logged.map_err(failed)?;
                self.refold.push(&logged);
                self.folded = logged.seq;
                read += 1;
                if self.refold.bytes() > self.bytes_max {
                    return Ok(None);
                }
                if read % WATCH_EVENTS == 0 && watch(read).is_break() {
                    return Err(VerifyError::Ended);
                }
            }
            let (record, service) = (&served.record, &served.service);
            let row = self
                .refold
                .row(service, &record.request, record.at_ms, as_of_seq);
            report.compare(served, &row);
        }
        Ok(Some(report))
    }
}
