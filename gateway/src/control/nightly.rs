//! The skew test of every night: a sample of what each model was served since the last one is
//! recomputed from the event log, and must agree to the bit.
//!
//! One thread does it, one model at a time, beside the control thread, which only says up to where. Its
//! states are folded from the log by itself and kept from night to night, within a bound; a night costs
//! the events and the served rows of its day. The first night of a process takes in the day before it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use featurestore::{FeatureStore, Mark, Verifier, VerifierOptions, VerifyError, VerifyReport};
use monitor::Skew;
use registry::ModelName;
use serde::Serialize;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::{ProjectConfig, VerifyRules};
use crate::metrics::NightMetrics;

const DAY_MS: i64 = 86_400_000;
/// When nights are due: 03:00 UTC, after the day's late events and before the day's traffic.
const NIGHT_MS: i64 = 3 * 3_600_000;
/// How long a live gateway waits after a night's mark: whatever was asked for before it has been
/// answered and recorded by then.
const SETTLE_MS: i64 = 120_000;
/// How often a night that is waited for is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Longest wait of a replay for the night before, and of the gateway's end for one under way.
const WAIT_MAX: Duration = Duration::from_secs(120);
const STOP_MAX: Duration = Duration::from_secs(5);

/// What the nights of one model found, since the process began.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Verified {
    /// Nights that ended, well or not.
    pub nights: u64,
    /// Served rows that were recomputed.
    pub rows_checked: u64,
    /// Of them with a feature that differs.
    pub mismatches: u64,
    /// Up to where rows have been verified.
    pub until_ms: Option<i64>,
    /// What the last night that ended well found.
    pub last: Option<VerifyReport>,
    /// Why the last night could not verify; the next one covers its rows too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// How the nights stand.
#[derive(Clone, Debug, Default)]
struct Told {
    /// Nights that were carried out, of those that were ordered.
    done: u64,
    models: BTreeMap<ModelName, Verified>,
}

/// The control thread's side.
pub(super) struct Nightly {
    /// To the thread; `None` where no model is verified. Room for one: none is ordered before the last
    /// one is done.
    worker: Option<(Sender<Mark>, JoinHandle<()>)>,
    told: watch::Receiver<Told>,
    /// What the loops know of it: of a replay the nights before the last one ordered, so that verdicts do
    /// not depend on how quick a night is.
    known: BTreeMap<ModelName, Verified>,
    ordered: u64,
    /// The next night.
    due_ms: Option<i64>,
    /// A mark that waits for its rows to be recorded.
    settling: Option<Mark>,
    stop: CancellationToken,
}

impl Nightly {
    /// Starts the thread, if a model has a feature service and is verified.
    pub(super) fn start(project: &ProjectConfig, store: &FeatureStore) -> std::io::Result<Self> {
        let nights: Vec<Night> = project
            .models
            .iter()
            .filter_map(|(model, config)| {
                let service = config.service.as_deref()?;
                let rules = config.verify?;
                Some(Night::new(model, service, rules, project.seed))
            })
            .collect();
        let models = nights.iter().map(|night| night.model.clone());
        let (teller, told) = watch::channel(Told {
            done: 0,
            models: models.map(|model| (model, Verified::default())).collect(),
        });
        let stop = CancellationToken::new();
        let worker = match nights.is_empty() {
            true => None,
            false => {
                let (orders, ordered) = bounded(1);
                let worker = Worker {
                    nights,
                    store: store.clone(),
                    ordered,
                    teller,
                    stop: stop.clone(),
                };
                let thread = std::thread::Builder::new()
                    .name("loopgate-verify".to_owned())
                    .spawn(move || worker.run())?;
                Some((orders, thread))
            }
        };
        Ok(Self {
            worker,
            told,
            known: BTreeMap::new(),
            ordered: 0,
            due_ms: None,
            settling: None,
            stop,
        })
    }

    /// What the nights found, by model.
    pub(super) fn verified(&self) -> BTreeMap<ModelName, Verified> {
        self.told.borrow().models.clone()
    }

    /// What differed in the model's last night, if anything did.
    pub(super) fn skew(&self, model: &ModelName) -> Option<Skew> {
        let last = self.known.get(model)?.last.as_ref()?;
        (last.mismatches > 0).then(|| Skew {
            rows: last.rows_checked,
            features: last.features.clone(),
        })
    }

    /// Whether a night is under way.
    pub(super) fn is_busy(&self) -> bool {
        self.told.borrow().done < self.ordered
    }

    /// Live: marks a night that is due, and orders it once its rows are recorded. Returns at once. A
    /// clock that is set forward just then leaves out what was not recorded yet, and finds nothing false.
    pub(super) fn look(&mut self, store: &FeatureStore, now_ms: i64) {
        self.learn();
        if self.worker.is_none() || self.is_busy() {
            return;
        }
        if let Some(mark) = self.settling {
            if now_ms - mark.at_ms >= SETTLE_MS {
                self.settling = None;
                self.order(mark);
            }
        } else {
            self.settling = self.due(store, now_ms);
        }
    }

    /// Replay: orders a night that is due at once, for all is recorded, and first waits for the one
    /// before: what is found may not depend on speed.
    pub(super) async fn advance(&mut self, store: &FeatureStore, now_ms: i64) {
        if self.worker.is_none() {
            return;
        }
        let since = Instant::now();
        while self.is_busy() {
            if since.elapsed() > WAIT_MAX {
                tracing::warn!("a night's verification takes long: its successor covers two days");
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.learn();
        if let Some(mark) = self.due(store, now_ms) {
            self.order(mark);
        }
    }

    /// Takes in what the nights that ended found.
    fn learn(&mut self) {
        // An error is a thread that is gone, with all told.
        if self.told.has_changed().is_ok_and(|changed| changed) {
            self.known = self.told.borrow_and_update().models.clone();
        }
    }

    /// The mark of the night that is due, if one is.
    fn due(&mut self, store: &FeatureStore, now_ms: i64) -> Option<Mark> {
        let due_ms = *self.due_ms.get_or_insert_with(|| next_night(now_ms));
        if now_ms < due_ms {
            return None;
        }
        self.due_ms = Some(next_night(now_ms));
        // A row that is asked for after `now_ms` is read after these events were on disk.
        let seq = store.stats().last_seq;
        Some(Mark { at_ms: now_ms, seq })
    }

    fn order(&mut self, mark: Mark) {
        let Some((orders, _)) = &self.worker else {
            return;
        };
        // Full it is not, since the last order was carried out. A thread that is gone has panicked.
        match orders.try_send(mark) {
            Ok(()) => self.ordered += 1,
            Err(error) => tracing::error!(%error, "no night is verified any more"),
        }
    }

    /// Ends the thread, and a night under way with it.
    pub(super) async fn shut_down(&mut self) {
        self.stop.cancel();
        let Some((orders, thread)) = self.worker.take() else {
            return;
        };
        drop(orders);
        let since = Instant::now();
        while !thread.is_finished() && since.elapsed() < STOP_MAX {
            tokio::time::sleep(LOOK).await;
        }
        // One that reads a long file still only reads: it goes with the process.
        if thread.is_finished() && thread.join().is_err() {
            tracing::error!("the thread of the nightly verification panicked");
        }
    }
}

/// The first night after a time.
fn next_night(after_ms: i64) -> i64 {
    let today_ms = after_ms - (after_ms - NIGHT_MS).rem_euclid(DAY_MS);
    today_ms + DAY_MS
}

/// The thread's side.
struct Worker {
    nights: Vec<Night>,
    store: FeatureStore,
    ordered: Receiver<Mark>,
    teller: watch::Sender<Told>,
    stop: CancellationToken,
}

impl Worker {
    fn run(mut self) {
        while let Ok(mark) = self.ordered.recv() {
            for night in &mut self.nights {
                let verified = night.verify(&self.store, mark, &self.stop);
                self.teller.send_modify(|told| {
                    told.models.insert(night.model.clone(), verified);
                });
            }
            self.teller.send_modify(|told| told.done += 1);
            if self.stop.is_cancelled() {
                break;
            }
        }
    }
}

/// The nights of one model.
struct Night {
    model: ModelName,
    /// Its name: rows are verified whichever version of it they were served with.
    service: String,
    options: VerifierOptions,
    verifier: Option<Verifier>,
    verified: Verified,
    metrics: NightMetrics,
}

impl Night {
    fn new(model: &ModelName, service: &str, rules: VerifyRules, seed: u64) -> Self {
        let name = service.split_once('@').map_or(service, |(name, _)| name);
        Self {
            model: model.clone(),
            service: name.to_owned(),
            options: VerifierOptions {
                rows: rules.rows.get(),
                seed,
                states_bytes_max: rules.memory_bytes_max,
            },
            verifier: None,
            verified: Verified::default(),
            metrics: NightMetrics::of(model.as_str()),
        }
    }

    /// Verifies up to a mark, and says how the nights stand then.
    fn verify(&mut self, store: &FeatureStore, mark: Mark, stop: &CancellationToken) -> Verified {
        let began = Instant::now();
        let report = self.report(store, mark, stop);
        if matches!(report, Err(VerifyError::Ended)) {
            return self.verified.clone();
        }
        self.verified.nights += 1;
        self.metrics.night(began.elapsed());
        match report {
            Ok(report) => self.take(mark, report),
            Err(error) => {
                tracing::error!(model = %self.model, %error, "served rows were not verified");
                self.metrics.failures.increment(1);
                self.verified.problem = Some(error.to_string());
            }
        }
        self.verified.clone()
    }

    fn report(
        &mut self,
        store: &FeatureStore,
        mark: Mark,
        stop: &CancellationToken,
    ) -> Result<VerifyReport, VerifyError> {
        let mut verifier = match self.verifier.take() {
            Some(verifier) => verifier,
            None => {
                // Whatever was served more than a day before lies behind.
                let from = Mark {
                    at_ms: mark.at_ms - DAY_MS,
                    seq: u64::MAX,
                };
                let names = (self.model.as_str(), self.service.as_str());
                Verifier::new(store, names, self.options, from)?
            }
        };
        let report = verifier.run(store, mark, &mut |_| match stop.is_cancelled() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        });
        self.verifier = Some(verifier);
        report
    }

    fn take(&mut self, mark: Mark, report: VerifyReport) {
        let model = &self.model;
        for example in &report.examples {
            tracing::error!(
                %model,
                feature = example.feature,
                prediction = example.prediction,
                request_id = example.request_id,
                served = example.served,
                recomputed = example.recomputed,
                "a served feature differs from what the event log gives"
            );
        }
        let (rows, mismatches) = (report.rows_checked, report.mismatches);
        if mismatches > 0 {
            tracing::error!(%model, rows, mismatches, "served rows differ from the event log");
        } else {
            tracing::debug!(%model, rows, "served rows agree with the event log");
        }
        self.metrics.verified(&report, mark.at_ms);
        self.verified.rows_checked += rows;
        self.verified.mismatches += mismatches;
        self.verified.until_ms = Some(mark.at_ms);
        self.verified.last = Some(report);
        self.verified.problem = None;
    }
}

#[cfg(test)]
mod tests;
