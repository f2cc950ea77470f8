//! Shadows: versions that score a copy of an answered request, for comparison only.
//!
//! One worker thread runs them after the answer is on its way. They are the first to go: a full
//! queue drops the request's shadows and counts them. In replay mode the push waits instead, and
//! [`Shadows::settle`] waits until every shadow of earlier requests is recorded.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use engine::Tensor;
use featurestore::{FeatureStore, Role};
use futures_util::FutureExt as _;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::breaker::Run;
use crate::execute::{is_finite, score, scores};
use crate::features::{Bound, InputError, Inputs, Reader};
use crate::metrics::Metrics;
use crate::recorder::{FeatureSource, Recorder, RecorderGone, Served};
use crate::table::{LoadedVersion, RunFailure, Seat};

/// Longest wait of a push in replay mode.
const REPLAY_WAIT: Duration = Duration::from_secs(30);

/// Longest wait for a place in the queue when the gateway stops.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// An answered request that shadows are to score.
pub(crate) struct ShadowJob {
    pub versions: Vec<Arc<LoadedVersion>>,
    /// Versions with an open breaker: they are run to see whether they work again, and not recorded.
    pub probes: Vec<Arc<LoadedVersion>>,
    pub inputs: Arc<Inputs>,
    pub prediction: Uuid,
    pub request_id: Option<Box<str>>,
    pub at_ms: i64,
}

enum Message {
    Score(Box<ShadowJob>),
    Settle(oneshot::Sender<()>),
    Stop,
}

/// What the worker is made from.
pub(crate) struct ShadowOptions {
    pub queue_max: usize,
    /// Rows of one request.
    pub rows_max: usize,
    /// The longest that one run may take.
    pub run_max: Duration,
    pub store: Option<FeatureStore>,
    /// Replay mode: a full queue waits instead of dropping.
    pub wait_when_full: bool,
    pub seat: Seat,
    pub recorder: Recorder,
    pub metrics: Arc<Metrics>,
}

/// The way to the shadow worker.
#[derive(Clone)]
pub(crate) struct Shadows {
    queue: Sender<Message>,
    wait_when_full: bool,
    dropped: Arc<AtomicU64>,
    metrics: Arc<Metrics>,
}

impl Shadows {
    /// Starts the worker.
    pub(crate) fn start(options: ShadowOptions) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (queue, jobs) = bounded(options.queue_max);
        let shadows = Self {
            queue,
            wait_when_full: options.wait_when_full,
            dropped: Arc::default(),
            metrics: Arc::clone(&options.metrics),
        };
        let handle = std::thread::Builder::new()
            .name("loopgate-shadow".to_owned())
            .spawn(move || work(&jobs, &options))?;
        Ok((shadows, handle))
    }

    /// Hands a request to the shadows, or drops and counts it when the queue is full.
    pub(crate) fn push(&self, job: ShadowJob) {
        let message = Message::Score(Box::new(job));
        let sent = if self.wait_when_full {
            self.queue.send_timeout(message, REPLAY_WAIT).is_ok()
        } else {
            self.queue.try_send(message).is_ok()
        };
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            self.metrics.shadows_dropped.increment(1);
        }
    }

    /// Lets the worker end once it has scored what was pushed before; blocks while the queue is full.
    pub(crate) fn stop(&self) {
        // A worker that is gone has nothing left to stop.
        drop(self.queue.send_timeout(Message::Stop, STOP_WAIT));
    }

    /// Requests whose shadows were dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Resolves when every request that was pushed before has been scored and handed to the recorder.
    pub(crate) async fn settle(&self) -> Result<(), RecorderGone> {
        let (done, settled) = oneshot::channel();
        let mut message = Message::Settle(done);
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Disconnected(_)) => return Err(RecorderGone),
                Err(TrySendError::Full(back)) => message = back,
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        settled.await.map_err(|_| RecorderGone)
    }
}

fn work(jobs: &Receiver<Message>, options: &ShadowOptions) {
    for message in jobs {
        match message {
            Message::Score(job) => {
                for version in &job.versions {
                    shadow(&job, version, options);
                }
                for version in &job.probes {
                    let run = match scored(&job, version, options) {
                        Ok((outputs, _)) if outputs.iter().all(is_finite) => Some(Run::Succeeded),
                        // Says nothing of the version: another copy is to try it.
                        Err(
                            ScoreError::Run(RunFailure::OnTheseInputs(_))
                            | ScoreError::Inputs(InputError::Refused(_)),
                        ) => None,
                        Ok(_) | Err(_) => Some(Run::Failed),
                    };
                    version.breaker.probed(Instant::now(), run);
                }
            }
            // An asker that went away needs no answer.
            Message::Settle(done) => drop(done.send(())),
            Message::Stop => return,
        }
    }
}

/// Why a copy was not scored.
#[derive(Debug, thiserror::Error)]
enum ScoreError {
    #[error(transparent)]
    Inputs(#[from] InputError),
    #[error(transparent)]
    Run(#[from] RunFailure),
}

/// Scores a copy of the request.
fn scored(
    job: &ShadowJob,
    version: &LoadedVersion,
    options: &ShadowOptions,
) -> Result<(Vec<Tensor>, FeatureSource), ScoreError> {
    let reader = Reader {
        store: options.store.as_ref(),
        cold: None,
        rows_max: options.rows_max,
        at_ms: job.at_ms,
    };
    let until = Some(Instant::now() + options.run_max);
    let bound = reader.bind(&job.inputs, version).now_or_never();
    match bound.expect("a reader that reads the disk in place never waits") {
        Ok(Bound::Shared(tensors)) => {
            let outputs = score(version, options.seat, tensors, until)?;
            Ok((outputs, FeatureSource::with_answer(&job.inputs)))
        }
        Ok(Bound::Own(tensors, features)) => {
            let outputs = score(version, options.seat, &tensors, until)?;
            Ok((outputs, FeatureSource::Own(features)))
        }
        Err(error) => Err(error.into()),
    }
}

fn shadow(job: &ShadowJob, version: &LoadedVersion, options: &ShadowOptions) {
    match scored(job, version, options) {
        Ok((outputs, source)) => options.recorder.push(Served {
            prediction: job.prediction,
            request_id: job.request_id.clone(),
            model: Arc::clone(&version.model),
            version: version.version,
            role: Role::Shadow,
            at_ms: job.at_ms,
            source,
            scores: scores(&outputs, job.inputs.rows),
            reason: None,
        }),
        // Nor would it have answered.
        Err(ScoreError::Inputs(InputError::Refused(_))) => {}
        Err(error) => {
            tracing::debug!(model = %version.model, version = version.version, %error, "shadow failed");
            options.metrics.shadow_errors.increment(1);
        }
    }
}
