//! Which serving thread a connection lives on.
//!
//! The kernel spreads connections over the listeners by a hash of their addresses: of eight
//! connections two threads get 6 : 2 or worse three times in ten, of two both fall on one half of
//! the time. So a thread that accepts a connection hands it to the thread that has the fewest, if
//! that has fewer than itself. Where they are even nothing is handed over.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::{Receiver, Sender, channel};

/// Connections that may wait for a thread to take them; beyond it they stay where they came in.
const HANDED_MAX: usize = 64;

/// A connection on its way to the thread that it will live on.
pub(super) struct Handed {
    pub stream: TcpStream,
    pub peer: SocketAddr,
    pub seat: Seated,
}

/// The open connections of every serving thread.
pub(super) struct Exchange {
    threads: Box<[Thread]>,
}

struct Thread {
    open: AtomicUsize,
    handed: Sender<Handed>,
}

impl Exchange {
    /// For so many threads, with what each takes over.
    pub(super) fn new(threads: usize) -> (Arc<Self>, Vec<Receiver<Handed>>) {
        let thread = |_| {
            let (handed, taken) = channel(HANDED_MAX);
            let open = AtomicUsize::new(0);
            (Thread { open, handed }, taken)
        };
        let (threads, taken): (Vec<_>, _) = (0..threads).map(thread).unzip();
        let threads = threads.into();
        (Arc::new(Self { threads }), taken)
    }

    /// Counts a connection that `own` has accepted and keeps.
    pub(super) fn keep(self: &Arc<Self>, own: usize) -> Seated {
        self.threads[own].open.fetch_add(1, Ordering::Relaxed);
        Seated {
            exchange: Arc::clone(self),
            thread: own,
        }
    }

    /// The thread with the fewest connections, where that is not `own`.
    pub(super) fn better(&self, own: usize) -> Option<usize> {
        let open = |thread: usize| self.threads[thread].open.load(Ordering::Relaxed);
        let fewest = (0..self.threads.len()).min_by_key(|&thread| open(thread))?;
        (open(fewest) < open(own)).then_some(fewest)
    }

    /// Gives a connection to a thread; back where that takes none.
    pub(super) fn hand(
        self: &Arc<Self>,
        thread: usize,
        (stream, peer): (TcpStream, SocketAddr),
    ) -> Result<(), TcpStream> {
        let seat = self.keep(thread);
        let handed = Handed { stream, peer, seat };
        let sent = self.threads[thread].handed.try_send(handed);
        sent.map_err(|unsent| unsent.into_inner().stream)
    }
}

/// One connection of a thread; it is counted until this is dropped.
pub(super) struct Seated {
    exchange: Arc<Exchange>,
    thread: usize,
}

impl Drop for Seated {
    fn drop(&mut self) {
        let thread = &self.exchange.threads[self.thread];
        thread.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn connection() -> (TcpStream, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let peer = stream.local_addr().unwrap();
        (stream, peer)
    }

    #[test]
    fn connections_go_to_the_thread_with_the_fewest_and_stay_where_it_is_even() {
        let (exchange, mut taken) = Exchange::new(3);
        assert_eq!(exchange.better(0), None);
        let first = exchange.keep(0);
        assert_eq!((exchange.better(0), exchange.better(1)), (Some(1), None));
        exchange.hand(1, connection()).unwrap();
        assert_eq!(exchange.better(0), Some(2));
        let handed = taken[1].try_recv().unwrap();
        exchange.hand(2, connection()).unwrap();
        assert_eq!(exchange.better(0), None);
        drop(handed);
        assert_eq!(exchange.better(0), Some(1));
        drop(first);
        assert_eq!(exchange.better(2), Some(0));
    }

    #[test]
    fn a_thread_that_takes_none_gives_the_connection_back() {
        let (exchange, mut taken) = Exchange::new(2);
        taken[1].close();
        let kept = exchange.keep(0);
        assert!(exchange.hand(1, connection()).is_err());
        drop(kept);
        assert_eq!(exchange.better(0), None);
    }
}
