//! Group commit: one thread owns all writes of events and labels.
//!
//! It takes whatever is queued, adds it to one write batch (log entries, dedupe keys, labels, counters),
//! writes that with one fsync and only then answers. So a submitted batch is on disk as a whole or not at
//! all, and counts once however often it is sent. Folded states follow from the log and are stored once in
//! a while (`states`). What a failed write does is in `space`.

pub(crate) mod bulk;
mod counters;
mod events;
mod labels;
mod space;
pub(crate) mod states;

use std::collections::{BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ahash::RandomState;
use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use rocksdb::WriteBatch;

use self::bulk::{BulkDone, Prepared, Seen};
pub(crate) use self::counters::Counters;
use self::space::{LOOK_EVERY, Space};
use self::states::States;
use crate::definition::Source;
use crate::event::Event;
use crate::labels::{Label, LabelsIngested, StoredLabel};
use crate::online::expiry::Expired;
use crate::online::keys::Key;
use crate::online::lives::KnownEvent;
use crate::online::mark::{Acked, Mark};
use crate::online::reserve::Reserve;
use crate::online::shared::{Shared, locked};
use crate::online::{Done, IngestError, Ingested, Overloaded, ReadError};
use crate::predictions::PredictionKey;
use crate::value::Value;

/// When the events of a batch arrived.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrival {
    /// Together, at this time.
    At(i64),
    /// Each at its own event time: history.
    EventTime,
}

/// Work for the writer.
pub(crate) enum Job {
    /// A batch of events.
    Events {
        events: Vec<Event>,
        arrival: Arrival,
        done: Done<Ingested>,
    },
    /// A batch of labels.
    Labels {
        labels: Vec<Label>,
        arrived_ms: i64,
        done: Done<LabelsIngested>,
    },
    /// A large group of one source's past, sorted and encoded already.
    Bulk { bulk: Prepared, done: BulkDone },
    /// Predictions that have been recorded and that pending labels wait for.
    Resolve(Vec<PredictionKey>),
    /// All states are to be stored; who asked is told when they are.
    Store(Sender<()>),
    /// States of which no read sees all any more.
    Expire(Expired),
    /// A copy of the database as of the last group; `done` is called with what that one ended at.
    Checkpoint { folder: PathBuf, done: Copied },
}

/// Called on the writer thread when the database was copied, or why it was not.
pub(crate) type Copied = Box<dyn FnOnce(Result<Acked, String>) + Send>;

impl Job {
    /// About what the job holds in memory.
    fn bytes(&self) -> usize {
        match self {
            Self::Events { events, .. } => events.iter().map(event_bytes).sum(),
            Self::Labels { labels, .. } => size_of_val(labels.as_slice()),
            Self::Bulk { bulk, .. } => bulk.bytes(),
            Self::Resolve(predictions) => size_of_val(predictions.as_slice()),
            Self::Expire(expired) => expired.keys.iter().map(|key| key.len()).sum(),
            Self::Store(_) | Self::Checkpoint { .. } => 0,
        }
    }

    fn refuse(self, error: IngestError) {
        match self {
            Self::Events { done, .. } => done(Err(error)),
            Self::Labels { done, .. } => done(Err(error)),
            Self::Bulk { done, .. } => done(Err(error)),
            Self::Resolve(_) | Self::Store(_) | Self::Expire(_) => {}
            Self::Checkpoint { done, .. } => done(Err(error.to_string())),
        }
    }
}

fn event_bytes(event: &Event) -> usize {
    let text = |value: &Value| match value {
        Value::String(text) => text.len(),
        _ => 0,
    };
    size_of::<Event>() + size_of_val(&*event.values) + event.values.iter().map(text).sum::<usize>()
}

struct Queued {
    job: Job,
    bytes: usize,
}

/// The queue before the writer, bounded in batches and bytes: beyond that, batches are refused.
pub(crate) struct Queue {
    /// `None` once the store is closing.
    sender: Option<Sender<Queued>>,
    bytes: Arc<AtomicUsize>,
    bytes_max: usize,
    /// What a group took lately, in microseconds, as the writer measured it.
    group_us: Arc<AtomicU64>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What a refused caller is told to wait at least, and at most.
const RETRY_AFTER_MS: RangeInclusive<u64> = 10..=10_000;

impl Queue {
    /// Starts the writer from what the database holds.
    pub(crate) fn start(shared: Arc<Shared>, start: WriterStart) -> std::io::Result<Self> {
        let (sender, receiver) = bounded(shared.options.queue_batches_max.max(1));
        let bytes = Arc::new(AtomicUsize::new(0));
        let group_us = Arc::new(AtomicU64::new(0));
        let writer = Writer {
            states: States::new(
                shared.definitions.views.clone(),
                shared.options.cached_states_max,
            ),
            shared: Arc::clone(&shared),
            receiver,
            queue_bytes: Arc::clone(&bytes),
            group_us: Arc::clone(&group_us),
            last_seq: start.last_seq,
            stored_seq: start.last_seq,
            counters: start.counters,
            pending_order: start.pending_order,
            mark: start.mark,
            seen: Seen::default(),
            space: Space::new(start.reserve),
            expected: 0,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())?;
        Ok(Self {
            sender: Some(sender),
            bytes,
            group_us,
            bytes_max: shared.options.queue_bytes_max,
            shared,
            thread: Some(thread),
        })
    }

    /// Queues a job or refuses it at once; never blocks. Where the writer has stopped or the disk is full,
    /// the job is answered with that.
    pub(crate) fn submit(&self, job: Job) -> Result<(), Overloaded> {
        if let Some(refusal) = self.shared.refusal() {
            job.refuse(refusal);
            return Ok(());
        }
        let bytes = job.bytes();
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        // One batch is always taken, however large: else it could never be written.
        let sent = if before > 0 && before + bytes > self.bytes_max {
            Err(TrySendError::Full(Queued { job, bytes }))
        } else {
            match &self.sender {
                Some(sender) => sender.try_send(Queued { job, bytes }),
                None => Err(TrySendError::Disconnected(Queued { job, bytes })),
            }
        };
        match sent {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                self.bytes.fetch_sub(bytes, Ordering::AcqRel);
                Err(Overloaded {
                    retry_after_ms: self.drained_in_ms(before),
                })
            }
            Err(TrySendError::Disconnected(queued)) => {
                self.bytes.fetch_sub(bytes, Ordering::AcqRel);
                queued.job.refuse(stopped("the writer thread has ended"));
                Ok(())
            }
        }
    }

    /// How long the writer needs for what waits and for the group that it has in hand.
    fn drained_in_ms(&self, bytes: usize) -> u64 {
        let groups = (bytes / GROUP_BYTES_MAX + 2) as u64;
        let ms = self.group_us.load(Ordering::Relaxed) * groups / 1000;
        ms.clamp(*RETRY_AFTER_MS.start(), *RETRY_AFTER_MS.end())
    }

    /// Batches and bytes that wait.
    pub(crate) fn depth(&self) -> (usize, usize) {
        let batches = self.sender.as_ref().map_or(0, Sender::len);
        (batches, self.bytes.load(Ordering::Relaxed))
    }
}

impl Drop for Queue {
    /// Lets the writer finish what is queued.
    fn drop(&mut self) {
        self.sender = None;
        let Some(thread) = self.thread.take() else {
            return;
        };
        // The last handle may go inside a `done` callback, which runs on the writer thread.
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            tracing::error!("store writer thread panicked");
        }
    }
}

fn stopped(reason: &str) -> IngestError {
    IngestError::Stopped {
        reason: reason.into(),
    }
}

/// What the writer goes on from.
pub(crate) struct WriterStart {
    pub(crate) last_seq: u64,
    pub(crate) counters: Counters,
    pub(crate) pending_order: BTreeSet<(i64, PredictionKey)>,
    pub(crate) mark: Mark,
    pub(crate) reserve: Reserve,
}

struct Writer {
    shared: Arc<Shared>,
    receiver: Receiver<Queued>,
    queue_bytes: Arc<AtomicUsize>,
    group_us: Arc<AtomicU64>,
    states: States,
    last_seq: u64,
    /// The last event in the stored states.
    stored_seq: u64,
    counters: Counters,
    /// The keys of `shared.pending` by arrival, to expire the oldest.
    pending_order: BTreeSet<(i64, PredictionKey)>,
    mark: Mark,
    /// Dedupe keys of the import under way.
    seen: Seen,
    space: Space,
    /// Jobs that were on their way while the last group was written.
    expected: usize,
}

/// One write batch in the making.
#[derive(Default)]
struct Group {
    batch: WriteBatch,
    /// Dedupe keys added by this group, and what they are stored with.
    events: HashMap<Vec<u8>, KnownEvent, RandomState>,
    /// Labels as this group leaves them; `None` where it removes them.
    labels: HashMap<PredictionKey, Option<StoredLabel>>,
    /// The sources of events that came too late, once for each.
    late: Vec<Arc<Source>>,
    answers: Vec<Answer>,
    /// States are stored with it, however few have changed.
    stores: bool,
}

impl Group {
    /// One that stores the states.
    fn storing() -> Self {
        Self {
            stores: true,
            ..Self::default()
        }
    }
}

enum Answer {
    Events(Done<Ingested>, Ingested),
    Labels(Done<LabelsIngested>, LabelsIngested),
    Stored(Sender<()>),
}

/// A group takes queued batches up to about this many bytes.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// A group waits no longer than this for more.
const GATHER_WAIT_MAX: Duration = Duration::from_millis(5);

impl Writer {
    fn run(mut self) {
        loop {
            match self.receiver.recv_timeout(LOOK_EVERY) {
                Ok(first) => self.take(first),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.watch();
        }
        if self.shared.refusal().is_none() {
            self.close();
        }
    }

    /// Writes what waits, or refuses it.
    fn take(&mut self, first: Queued) {
        let jobs = self.gather(first);
        if let Some(refusal) = self.refusal() {
            let refused = jobs.into_iter();
            return refused.for_each(|job| job.refuse(refusal.clone()));
        }
        let (began, count) = (Instant::now(), jobs.len());
        self.commit(jobs);
        self.expected = count + self.receiver.len();
        self.measured(began.elapsed());
    }

    /// A moving mean: an eighth of it is the last group.
    fn measured(&self, took: Duration) {
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX) / 8;
        let mean = self.group_us.load(Ordering::Relaxed);
        // Only this thread stores it.
        self.group_us
            .store(mean - mean / 8 + took, Ordering::Relaxed);
    }

    /// Takes what is queued. Those who were just answered send again at once, and a state that many of them
    /// change is written once for a group: so it waits for as many jobs as were on their way at the last
    /// group, though for no more than an eighth of what that group took.
    fn gather(&self, first: Queued) -> Vec<Job> {
        let mut bytes = first.bytes;
        let mut jobs = vec![first.job];
        let group = Duration::from_micros(self.group_us.load(Ordering::Relaxed));
        let until = Instant::now() + (group / 8).min(GATHER_WAIT_MAX);
        while bytes < GROUP_BYTES_MAX {
            let queued = match self.receiver.try_recv() {
                Err(_) if jobs.len() < self.expected => self.receiver.recv_deadline(until).ok(),
                queued => queued.ok(),
            };
            let Some(next) = queued else {
                break;
            };
            bytes += next.bytes;
            jobs.push(next.job);
        }
        let left = self.queue_bytes.fetch_sub(bytes, Ordering::AcqRel) - bytes;
        let metrics = &self.shared.metrics;
        metrics.queue_bytes.set(left as f64);
        metrics.queue_batches.set(self.receiver.len() as f64);
        jobs
    }

    fn commit(&mut self, jobs: Vec<Job>) {
        let mut group = Group::default();
        let mut jobs = jobs.into_iter();
        let mut written = Ok(());
        for job in jobs.by_ref() {
            written = self.add(&mut group, job);
            if written.is_err() {
                break;
            }
        }
        match written.and_then(|()| self.write(&mut group)) {
            Ok(()) => self.answer(group),
            Err(error) => {
                self.fail(&error);
                let refusal = IngestError::of(&error);
                group.answers.into_iter().for_each(|answer| match answer {
                    Answer::Events(done, _) => done(Err(refusal.clone())),
                    Answer::Labels(done, _) => done(Err(refusal.clone())),
                    Answer::Stored(_) => {}
                });
                jobs.for_each(|job| job.refuse(refusal.clone()));
            }
        }
    }

    fn add(&mut self, group: &mut Group, job: Job) -> Result<(), ReadError> {
        match job {
            Job::Events {
                events,
                arrival,
                done,
            } => match self.add_events(group, &events, arrival) {
                Ok(ingested) => group.answers.push(Answer::Events(done, ingested)),
                Err(error) => {
                    done(Err(IngestError::of(&error)));
                    return Err(error);
                }
            },
            Job::Labels {
                labels,
                arrived_ms,
                done,
            } => match self.add_labels(group, &labels, arrived_ms) {
                Ok(ingested) => group.answers.push(Answer::Labels(done, ingested)),
                Err(error) => {
                    done(Err(IngestError::of(&error)));
                    return Err(error);
                }
            },
            Job::Bulk { bulk, done } => self.add_bulk(group, bulk, done)?,
            Job::Resolve(predictions) => self.resolve(group, &predictions)?,
            Job::Store(done) => {
                group.stores = true;
                group.answers.push(Answer::Stored(done));
            }
            Job::Expire(expired) => self.expire_states(group, &expired)?,
            Job::Checkpoint { folder, done } => {
                let (seq, counters) = *locked(&self.shared.counters);
                let label_seq = counters.label_seq;
                let copied = self.shared.tables.copy_to(&folder);
                let copied = copied.map(|()| Acked { seq, label_seq });
                done(copied.map_err(|error| error.to_string()));
            }
        }
        Ok(())
    }

    fn write(&mut self, group: &mut Group) -> Result<(), ReadError> {
        let tables = &self.shared.tables;
        let mut batch = std::mem::take(&mut group.batch);
        group.write_dedupe_keys(tables, &mut batch);
        tables.put(&mut batch, Key::Counters, &self.counters.encode());
        let hot = &self.shared.hot;
        self.states
            .show(|key, state| hot.show(key, state, self.last_seq));
        let unstored = self.last_seq - self.stored_seq;
        let stores = group.stores
            || self.states.are_many()
            || unstored >= self.shared.options.unstored_events_max;
        if stores {
            self.states.store(tables, &mut batch, self.last_seq);
        }
        tables.write_durably(batch).map_err(ReadError::database)?;
        hot.move_cut(self.last_seq);
        if stores {
            self.stored_seq = self.last_seq;
            self.states.stored();
            hot.stored(self.last_seq);
        }
        let acked = self.acked();
        self.mark
            .committed(acked)
            .map_err(|error| ReadError::io("high-water mark", &error))
    }

    fn answer(&mut self, group: Group) {
        let metrics = &self.shared.metrics;
        metrics.groups.increment(1);
        let pending = locked(&self.shared.pending).len();
        metrics.labels_pending.set(pending as f64);
        *locked(&self.shared.counters) = (self.last_seq, self.counters);
        for source in &group.late {
            metrics.event_late(&source.name);
        }
        for answer in group.answers {
            match answer {
                Answer::Events(done, ingested) => {
                    metrics.events_accepted.increment(ingested.accepted);
                    metrics.events_duplicate.increment(ingested.duplicates);
                    done(Ok(ingested));
                }
                Answer::Labels(done, ingested) => {
                    metrics.labels_accepted.increment(ingested.accepted);
                    metrics.labels_duplicate.increment(ingested.duplicates);
                    metrics.labels_replaced.increment(ingested.replaced);
                    metrics.labels_unknown.increment(ingested.unknown);
                    done(Ok(ingested));
                }
                // Who asked may have given up.
                Answer::Stored(done) => drop(done.try_send(())),
            }
        }
    }

    fn acked(&self) -> Acked {
        Acked {
            seq: self.last_seq,
            label_seq: self.counters.label_seq,
        }
    }
}
