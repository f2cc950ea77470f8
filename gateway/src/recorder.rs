//! What was served, off the request path: one thread that takes requests from a bounded ring, writes
//! them to the prediction log and counts the champions' rows for the monitor.
//!
//! A push costs a few tens of nanoseconds and wakes nobody: the thread looks for itself every few
//! milliseconds, so a push is never a system call. A full ring drops the record and counts it; in
//! replay mode the push waits instead, since a replay is to be the same each time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;
use featurestore::{FeatureStore, PredictionKey, PredictionRecord, RecordError, Role};
use monitor::{Baseline, Counters};
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::execute::{Reason, Scores};
use crate::features::{Features, Inputs, count_statuses};
use crate::metrics::Metrics;

/// How long the thread sleeps when there is nothing to do, and so how old a record may get.
const NAP: Duration = Duration::from_millis(2);
/// Age at which recorded rows leave this process for the operating system: about what a killed
/// gateway loses.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// Requests that are handed to the prediction log at once.
const BATCH_MAX: usize = 512;
/// Longest wait of a push in replay mode.
const REPLAY_WAIT: Duration = Duration::from_secs(30);
/// Questions to the thread that may wait.
const QUESTIONS_MAX: usize = 256;

/// One scored request.
pub(crate) struct Served {
    pub prediction: Uuid,
    pub request_id: Option<Box<str>>,
    pub model: Arc<str>,
    /// 0 for the constant.
    pub version: u32,
    pub role: Role,
    pub at_ms: i64,
    pub source: FeatureSource,
    /// One for each row.
    pub scores: Scores,
    pub reason: Option<Reason>,
}

/// Which features a version scored. What needs no inputs does not hold them, so that they are let go
/// on the thread that made them.
pub(crate) enum FeatureSource {
    /// Those of the inputs, if any, recorded with this entry.
    Inputs(Option<Arc<Inputs>>),
    /// Those of the answer's inputs, recorded with it: a shadow of the same service, if any.
    Answer(Option<Arc<str>>),
    /// Its own.
    Own(Features),
}

impl FeatureSource {
    /// The features of `inputs`.
    pub(crate) fn of(inputs: &Arc<Inputs>) -> Self {
        Self::Inputs(inputs.features.is_some().then(|| Arc::clone(inputs)))
    }

    /// The features of `inputs`, where the answer has recorded them.
    pub(crate) fn with_answer(inputs: &Inputs) -> Self {
        let features = inputs.features.as_ref();
        Self::Answer(features.map(|features| Arc::clone(&features.service_id)))
    }

    /// What is recorded with this entry.
    fn features(&self) -> Option<&Features> {
        match self {
            Self::Inputs(inputs) => inputs.as_ref()?.features.as_ref(),
            Self::Answer(_) => None,
            Self::Own(features) => Some(features),
        }
    }

    fn service(&self) -> Option<&Arc<str>> {
        match self {
            Self::Answer(service) => service.as_ref(),
            source => source.features().map(|features| &features.service_id),
        }
    }
}

/// What the thread is asked, in order with the records that were pushed before.
enum Question {
    Flush(oneshot::Sender<()>),
    Watch(Arc<str>, Option<Arc<Baseline>>),
    CloseWindow(Arc<str>, oneshot::Sender<Option<Counters>>),
}

/// The recorder has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the recorder has stopped or does not keep up")]
pub(crate) struct RecorderGone;

/// The way to the recorder; cheap to clone.
#[derive(Clone)]
pub(crate) struct Recorder {
    shared: Arc<Shared>,
    questions: Sender<Question>,
    thread: Thread,
}

struct Shared {
    ring: ArrayQueue<Served>,
    stopping: AtomicBool,
    dropped: AtomicU64,
    wait_when_full: bool,
    metrics: Arc<Metrics>,
}

/// What a recorder is made from.
pub(crate) struct RecorderOptions {
    pub queue_max: usize,
    /// Where records go; without it they are only counted.
    pub store: Option<FeatureStore>,
    /// Replay mode: a full ring waits instead of dropping.
    pub wait_when_full: bool,
    pub metrics: Arc<Metrics>,
}

impl Recorder {
    /// Starts the thread.
    pub(crate) fn start(options: RecorderOptions) -> std::io::Result<(Self, JoinHandle<()>)> {
        let shared = Arc::new(Shared {
            ring: ArrayQueue::new(options.queue_max),
            stopping: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            wait_when_full: options.wait_when_full,
            metrics: options.metrics,
        });
        let (questions, asked) = bounded(QUESTIONS_MAX);
        let worker = Worker {
            shared: Arc::clone(&shared),
            asked,
            store: options.store,
            windows: HashMap::new(),
            batch: Vec::new(),
        };
        let handle = std::thread::Builder::new()
            .name("loopgate-record".to_owned())
            .spawn(move || worker.run())?;
        let recorder = Self {
            shared,
            questions,
            thread: handle.thread().clone(),
        };
        Ok((recorder, handle))
    }

    /// Records one scored request, or drops and counts it when the ring is full.
    pub(crate) fn push(&self, served: Served) {
        let Err(mut served) = self.shared.ring.push(served) else {
            return;
        };
        let began = Instant::now();
        while self.shared.wait_when_full && began.elapsed() < REPLAY_WAIT {
            self.thread.unpark();
            std::thread::yield_now();
            match self.shared.ring.push(served) {
                Ok(()) => return,
                Err(back) => served = back,
            }
        }
        self.shared.dropped.fetch_add(1, Ordering::Relaxed);
        self.shared.metrics.records_dropped.increment(1);
    }

    /// Requests whose records were dropped since the start.
    pub(crate) fn dropped(&self) -> u64 {
        self.shared.dropped.load(Ordering::Relaxed)
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.shared.ring.len()
    }

    /// Resolves when every record that was pushed before has reached the prediction log.
    pub(crate) async fn flush(&self) -> Result<(), RecorderGone> {
        let (done, flushed) = oneshot::channel();
        self.ask(Question::Flush(done))?;
        flushed.await.map_err(|_| RecorderGone)
    }

    /// From now on counts the model's rows in the bins of `baseline`, in a new window; with `None`
    /// it stops counting.
    pub(crate) fn watch(
        &self,
        model: Arc<str>,
        baseline: Option<Arc<Baseline>>,
    ) -> Result<(), RecorderGone> {
        self.ask(Question::Watch(model, baseline))
    }

    /// The counts of the model's champion since the window began, every record that was pushed
    /// before included; a new window begins. `None` for a model that is not watched.
    pub(crate) async fn close_window(
        &self,
        model: Arc<str>,
    ) -> Result<Option<Counters>, RecorderGone> {
        let (answer, closed) = oneshot::channel();
        self.ask(Question::CloseWindow(model, answer))?;
        closed.await.map_err(|_| RecorderGone)
    }

    /// Lets the thread end once it has written what was pushed before.
    pub(crate) fn stop(&self) {
        self.shared.stopping.store(true, Ordering::Release);
        self.thread.unpark();
    }

    fn ask(&self, question: Question) -> Result<(), RecorderGone> {
        self.questions
            .try_send(question)
            .map_err(|_| RecorderGone)?;
        self.thread.unpark();
        Ok(())
    }
}

/// The champion's rows of one model, counted against its reference.
struct Window {
    baseline: Arc<Baseline>,
    counters: Counters,
}

struct Worker {
    shared: Arc<Shared>,
    asked: Receiver<Question>,
    store: Option<FeatureStore>,
    windows: HashMap<Arc<str>, Window>,
    /// Scratch of `write`.
    batch: Vec<PredictionRecord>,
}

impl Worker {
    fn run(mut self) {
        let mut unflushed_since = None;
        loop {
            let stopping = self.shared.stopping.load(Ordering::Acquire);
            let written = self.write(BATCH_MAX);
            if written > 0 {
                unflushed_since.get_or_insert_with(Instant::now);
            }
            if unflushed_since.is_some_and(|since| since.elapsed() >= FLUSH_AFTER) {
                self.flush_store();
                unflushed_since = None;
            }
            while let Ok(question) = self.asked.try_recv() {
                self.answer(question);
            }
            if written == 0 && stopping {
                break;
            }
            if written == 0 {
                std::thread::park_timeout(NAP);
            }
        }
        self.flush_store();
    }

    fn answer(&mut self, question: Question) {
        // What was pushed before the question lies within the ring's present length.
        let mut before = self.shared.ring.len();
        while before > 0 {
            let written = self.write(before.min(BATCH_MAX));
            if written == 0 {
                break;
            }
            before -= written;
        }
        // An asker that went away needs no answer: the failed sends are dropped.
        match question {
            Question::Flush(done) => {
                self.flush_store();
                let _ = done.send(());
            }
            Question::Watch(model, baseline) => match baseline {
                Some(baseline) => {
                    let counters = Counters::new(&baseline);
                    self.windows.insert(model, Window { baseline, counters });
                }
                None => drop(self.windows.remove(&model)),
            },
            Question::CloseWindow(model, answer) => {
                let closed = self.windows.get_mut(&model).map(|window| {
                    let fresh = Counters::new(&window.baseline);
                    std::mem::replace(&mut window.counters, fresh)
                });
                drop(answer.send(closed));
            }
        }
    }

    /// Takes up to `max` requests from the ring and returns how many there were.
    fn write(&mut self, max: usize) -> usize {
        let mut taken = 0;
        while taken < max
            && let Some(served) = self.shared.ring.pop()
        {
            taken += 1;
            self.count(&served);
            if self.store.is_some() {
                expand(&served, &mut self.batch);
            }
        }
        if let Some(store) = &self.store
            && !self.batch.is_empty()
        {
            match store.record(&self.batch) {
                Ok(()) => self
                    .shared
                    .metrics
                    .recorded
                    .increment(self.batch.len() as u64),
                // The store itself logs when that begins and when it ends.
                Err(RecordError::Full) => {
                    let requests = taken as u64;
                    self.shared.dropped.fetch_add(requests, Ordering::Relaxed);
                    self.shared.metrics.records_dropped.increment(requests);
                }
                Err(error) => {
                    tracing::error!(%error, rows = self.batch.len(), "prediction log refused a batch");
                    self.shared.metrics.record_errors.increment(1);
                }
            }
            self.batch.clear();
        }
        taken
    }

    fn count(&mut self, served: &Served) {
        let metrics = &self.shared.metrics;
        metrics.predictions(served.role, served.scores.len());
        let features = served.source.features();
        let Some(features) = features.filter(|_| served.role.answered()) else {
            return;
        };
        metrics.feature_values(&count_statuses(&features.rows));
        let window = self.windows.get_mut(&served.model);
        if let Some(window) = window
            && served.role == Role::Champion
            && served.version == window.baseline.version
        {
            for (row, &score) in features.rows.iter().zip(&served.scores) {
                window.counters.observe(&row.values, &row.statuses, score);
            }
        }
    }

    fn flush_store(&self) {
        if let Some(store) = &self.store
            && let Err(error) = store.flush()
        {
            tracing::error!(%error, "prediction log could not be flushed");
            self.shared.metrics.record_errors.increment(1);
        }
    }
}

/// One record for each row.
fn expand(served: &Served, records: &mut Vec<PredictionRecord>) {
    let features = served.source.features();
    let service = served.source.service();
    for (k, (row, &score)) in (0_u32..).zip(&served.scores).enumerate() {
        let request = features.and_then(|features| features.requests.get(k));
        records.push(PredictionRecord {
            prediction: PredictionKey {
                id: served.prediction,
                row,
            },
            request_id: served.request_id.clone(),
            model: Arc::clone(&served.model),
            version: served.version,
            role: served.role,
            at_ms: served.at_ms,
            service: service.cloned(),
            request: request.map_or_else(Arc::default, |values| Arc::from(&values[..])),
            features: features.and_then(|features| features.rows.get(k).cloned()),
            score,
            fallback_reason: served.reason.map(|reason| reason.as_str().into()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn served(inputs: &Arc<Inputs>) -> Served {
        Served {
            prediction: Uuid::nil(),
            request_id: None,
            model: "m".into(),
            version: 1,
            role: Role::Champion,
            at_ms: 0,
            source: FeatureSource::Inputs(Some(Arc::clone(inputs))),
            scores: Scores::from_slice(&[0.5, 0.25]),
            reason: None,
        }
    }

    fn inputs() -> Arc<Inputs> {
        Arc::new(Inputs::of_tensors(vec![], 2))
    }

    #[test]
    fn a_flush_waits_for_what_was_pushed_before() {
        let (recorder, handle) = Recorder::start(RecorderOptions {
            queue_max: 4096,
            store: None,
            wait_when_full: false,
            metrics: Arc::new(Metrics::unread()),
        })
        .unwrap();
        let inputs = inputs();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        for _ in 0..20 {
            for _ in 0..1000 {
                recorder.push(served(&inputs));
            }
            runtime.block_on(recorder.flush()).unwrap();
            // The only other holder is this test: every entry was taken out and let go.
            assert_eq!((recorder.waiting(), Arc::strong_count(&inputs)), (0, 1));
        }
        let closed = runtime.block_on(recorder.close_window("m".into())).unwrap();
        assert!(
            closed.is_none(),
            "a model that is not watched has no window"
        );
        recorder.stop();
        handle.join().unwrap();
        assert!(runtime.block_on(recorder.flush()).is_err());
    }

    #[test]
    fn a_full_ring_waits_in_replay_and_loses_nothing() {
        let (recorder, handle) = Recorder::start(RecorderOptions {
            queue_max: 2,
            store: None,
            wait_when_full: true,
            metrics: Arc::new(Metrics::unread()),
        })
        .unwrap();
        let inputs = inputs();
        for _ in 0..5000 {
            recorder.push(served(&inputs));
        }
        recorder.stop();
        handle.join().unwrap();
        assert_eq!((recorder.waiting(), Arc::strong_count(&inputs)), (0, 1));
    }

    #[test]
    fn a_request_becomes_one_record_a_row() {
        let mut records = Vec::new();
        let mut entry = served(&inputs());
        entry.reason = Some(Reason::NonFinite);
        expand(&entry, &mut records);
        let rows: Vec<_> = records
            .iter()
            .map(|r| (r.prediction.row, r.score))
            .collect();
        assert_eq!(rows, [(0, 0.5), (1, 0.25)]);
        assert_eq!(records[0].fallback_reason.as_deref(), Some("non_finite"));
    }
}
