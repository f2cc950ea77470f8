//! Cold reads: what the online store must fetch from disk is read by threads of its own, so that no
//! serving thread waits for a disk.
//!
//! The queue is bounded. Where it is full, or the request's deadline comes first, the request goes on
//! without its features, as where the store fails.

use std::num::NonZeroUsize;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use metrics::Counter;
use tokio::sync::oneshot;

/// Reads that may wait for each thread.
const WAITING_PER_THREAD: usize = 64;
/// Longest wait of an order to end.
const STOP_WAIT: Duration = Duration::from_secs(5);

type Job = Box<dyn FnOnce() + Send>;

/// The way to the threads.
pub(crate) struct ColdReads {
    /// `None` is the order to end, for one thread.
    jobs: Sender<Option<Job>>,
    threads: usize,
    metrics: ColdReadMetrics,
}

/// Reads of the disk, by outcome.
#[derive(Clone)]
pub(crate) struct ColdReadMetrics {
    pub read: Counter,
    pub refused: Counter,
    pub late: Counter,
}

/// Why a read gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ColdReadError {
    #[error("too many reads wait for the disk")]
    Full,
    #[error("the disk did not answer within the deadline")]
    Late,
    #[error("the reading threads have ended")]
    Ended,
}

impl ColdReads {
    /// Starts the threads.
    ///
    /// # Errors
    /// When a thread cannot be made.
    pub(crate) fn start(
        threads: NonZeroUsize,
        metrics: ColdReadMetrics,
    ) -> std::io::Result<(Self, Vec<JoinHandle<()>>)> {
        let threads = threads.get();
        let (jobs, taken) = bounded(threads * WAITING_PER_THREAD);
        let reader = |k| {
            let taken: Receiver<Option<Job>> = taken.clone();
            std::thread::Builder::new()
                .name(format!("loopgate-read-{k}"))
                .spawn(move || {
                    while let Ok(Some(job)) = taken.recv() {
                        job();
                    }
                })
        };
        let readers = (0..threads).map(reader).collect::<std::io::Result<_>>()?;
        let reads = Self {
            jobs,
            threads,
            metrics,
        };
        Ok((reads, readers))
    }

    /// What `read` gives, unless the queue is full or it takes longer than `until`. One that nobody
    /// waits for any more is not begun.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        until: Instant,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ColdReadError> {
        let (found, finding) = oneshot::channel();
        let job = move || {
            if !found.is_closed() {
                // Whoever asked may have gone meanwhile.
                drop(found.send(read()));
            }
        };
        match self.jobs.try_send(Some(Box::new(job))) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.metrics.refused.increment(1);
                return Err(ColdReadError::Full);
            }
            Err(TrySendError::Disconnected(_)) => return Err(ColdReadError::Ended),
        }
        match tokio::time::timeout_at(until.into(), finding).await {
            Ok(Ok(found)) => {
                self.metrics.read.increment(1);
                Ok(found)
            }
            Ok(Err(_)) => Err(ColdReadError::Ended),
            Err(_) => {
                self.metrics.late.increment(1);
                Err(ColdReadError::Late)
            }
        }
    }

    /// Lets the threads end once they have read what waits.
    pub(crate) fn stop(&self) {
        for _ in 0..self.threads {
            // A thread that is gone needs no order.
            drop(self.jobs.send_timeout(None, STOP_WAIT));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> (ColdReads, Vec<JoinHandle<()>>) {
        let metrics = ColdReadMetrics {
            read: Counter::noop(),
            refused: Counter::noop(),
            late: Counter::noop(),
        };
        ColdReads::start(NonZeroUsize::MIN, metrics).unwrap()
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(600)
    }

    #[tokio::test]
    async fn a_read_is_answered_from_another_thread() {
        let (reads, threads) = start();
        let here = std::thread::current().id();
        let there = reads.run(far(), || std::thread::current().id()).await;
        assert_ne!(there.unwrap(), here);
        reads.stop();
        for thread in threads {
            thread.join().unwrap();
        }
        drop(reads);
    }

    #[tokio::test]
    async fn beyond_the_queue_a_read_is_refused_and_past_its_deadline_given_up() {
        let (reads, _threads) = start();
        let (release, held) = bounded::<()>(0);
        let begun = bounded::<()>(0);
        let held_up = reads.run(far(), {
            let begun = begun.0.clone();
            move || {
                begun.send(()).unwrap();
                held.recv()
            }
        });
        let mut held_up = Box::pin(held_up);
        // Polled once, it is queued; the thread then waits inside it.
        assert!(futures_util::poll!(&mut held_up).is_pending());
        begun.1.recv().unwrap();
        let late = reads.run(Instant::now(), || 1).await;
        assert_eq!(late, Err(ColdReadError::Late));
        let mut waiting = Vec::new();
        for _ in 1..WAITING_PER_THREAD {
            let mut read = Box::pin(reads.run(far(), || 2));
            assert!(futures_util::poll!(&mut read).is_pending());
            waiting.push(read);
        }
        assert_eq!(reads.run(far(), || 3).await, Err(ColdReadError::Full));
        release.send(()).unwrap();
        for read in waiting {
            assert_eq!(read.await, Ok(2));
        }
        assert!(held_up.await.unwrap().is_ok());
    }
}
