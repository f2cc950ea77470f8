//! The HTTP listener: one serving thread per core, each with its own runtime and its own socket on
//! the same port (`SO_REUSEPORT`), so that a connection lives and dies on one thread: the one that
//! has the fewest when it comes in.
//!
//! Owns connections: how many, how long they may be silent, and how they end in a drain. HTTP/1.1 and
//! HTTP/2 without TLS (prior knowledge) share the port.

mod converse;
mod exchange;
mod preface;
mod stall;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use dashmap::{DashMap, Entry};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::mpsc::Receiver;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Limits;
use crate::predict::Desk;

pub(crate) use converse::bound_frames;

use converse::converse;
use exchange::{Exchange, Handed, Seated};

/// Connections that the kernel may hold for one thread until it accepts them.
const BACKLOG: i32 = 1024;
/// Pause after a failed accept: out of file descriptors, a loop would only burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Binds `count` sockets to one address; with port 0 the first one chooses it for all.
///
/// # Errors
/// When the address is taken or not ours.
pub(crate) fn bind(address: SocketAddr, count: usize) -> io::Result<Vec<TcpListener>> {
    let mut address = address;
    let mut listeners = Vec::with_capacity(count);
    for _ in 0..count {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let listener = TcpListener::from(socket);
        address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(listeners)
}

/// Open connections of the process and of each peer, both bounded.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: AtomicUsize,
    /// Holds peers with an open connection only, so it is bounded too.
    by_peer: DashMap<IpAddr, usize>,
}

impl Connections {
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn enter(&self, peer: IpAddr, limits: &Limits) -> bool {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let mut of_peer = self.by_peer.entry(peer).or_default();
        *of_peer += 1;
        before < limits.connections_max && *of_peer <= limits.connections_per_peer_max
    }

    fn leave(&self, peer: IpAddr) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        if let Entry::Occupied(mut of_peer) = self.by_peer.entry(peer) {
            *of_peer.get_mut() -= 1;
            if *of_peer.get() == 0 {
                of_peer.remove();
            }
        }
    }
}

/// One connection's place; given back when dropped.
struct Connected {
    desk: Arc<Desk>,
    peer: IpAddr,
}

impl Connected {
    fn enter(desk: &Arc<Desk>, peer: IpAddr) -> Option<Self> {
        let core = &desk.core;
        let entered = core.connections.enter(peer, &core.limits);
        let connected = Self {
            desk: Arc::clone(desk),
            peer,
        };
        entered.then_some(connected)
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.desk.core.connections.leave(self.peer);
    }
}

/// The serving threads.
pub(crate) struct DataPlane {
    threads: Vec<JoinHandle<()>>,
    drain: CancellationToken,
}

impl DataPlane {
    /// Starts a thread for each desk.
    pub(crate) fn start(desks: Vec<Arc<Desk>>, listeners: Vec<TcpListener>) -> io::Result<Self> {
        let drain = CancellationToken::new();
        let mut threads = Vec::with_capacity(desks.len());
        let (exchange, taken) = Exchange::new(desks.len());
        let entrances = taken
            .into_iter()
            .enumerate()
            .map(|(thread, handed)| Entrance {
                thread,
                exchange: Arc::clone(&exchange),
                handed,
            });
        let lanes = listeners.into_iter().zip(entrances);
        for (k, (desk, (listener, entrance))) in desks.into_iter().zip(lanes).enumerate() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let drain = drain.clone();
            let thread = std::thread::Builder::new()
                .name(format!("loopgate-serve-{k}"))
                .spawn(move || {
                    if let Err(error) = runtime.block_on(serve(&desk, listener, entrance, drain)) {
                        tracing::error!(%error, "serving thread ended");
                    }
                })?;
            threads.push(thread);
        }
        Ok(Self { threads, drain })
    }

    /// Stops accepting, lets every request in flight finish within the grace, and joins the threads.
    pub(crate) fn drain(self) {
        self.drain.cancel();
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a serving thread panicked");
            }
        }
    }
}

/// A serving thread's way to the others.
struct Entrance {
    thread: usize,
    exchange: Arc<Exchange>,
    /// What the others hand over.
    handed: Receiver<Handed>,
}

impl Entrance {
    /// Hands an accepted connection to the thread that should have it, or keeps it.
    fn place(&self, stream: TcpStream, peer: SocketAddr) -> io::Result<Option<TcpStream>> {
        let Some(thread) = self.exchange.better(self.thread) else {
            return Ok(Some(stream));
        };
        match self.exchange.hand(thread, (stream.into_std()?, peer)) {
            Ok(()) => Ok(None),
            Err(stream) => TcpStream::from_std(stream).map(Some),
        }
    }
}

async fn serve(
    desk: &Arc<Desk>,
    listener: TcpListener,
    mut entrance: Entrance,
    drain: CancellationToken,
) -> io::Result<()> {
    let connections = TaskTracker::new();
    let idle = CancellationToken::new();
    let backlog = listener.try_clone()?;
    let accepting = tokio::net::TcpListener::from_std(listener)?;
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled() => break,
            Some(handed) = entrance.handed.recv() => take(handed, desk, &connections, &idle),
            accepted = accepting.accept() => {
                let kept = accepted.and_then(|(stream, peer)| {
                    let kept = entrance.place(stream, peer)?;
                    Ok(kept.map(|stream| (stream, peer)))
                });
                match kept {
                    Ok(Some(accepted)) => {
                        let seat = entrance.exchange.keep(entrance.thread);
                        admit(desk, accepted, seat, &connections, &idle);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "connection not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }
    drop(accepting);
    // Whoever finds this closed keeps the connection.
    entrance.handed.close();
    while let Ok(handed) = entrance.handed.try_recv() {
        take(handed, desk, &connections, &idle);
    }
    // Closing the socket would reset what the kernel has queued for it: those are served too.
    while let Ok((stream, peer)) = backlog.accept() {
        stream.set_nonblocking(true)?;
        let accepted = (TcpStream::from_std(stream)?, peer);
        let seat = entrance.exchange.keep(entrance.thread);
        admit(desk, accepted, seat, &connections, &idle);
    }
    drop(backlog);
    connections.close();
    let limits = &desk.core.limits;
    // Answers now say `connection: close`, so clients that talk leave by themselves; whoever is
    // silent for this long is idle and may be closed without a request getting lost.
    if tokio::time::timeout(limits.drain_notice, connections.wait())
        .await
        .is_err()
    {
        idle.cancel();
        if tokio::time::timeout(limits.drain_grace, connections.wait())
            .await
            .is_err()
        {
            tracing::warn!(
                open = connections.len(),
                "connections cut after the drain's grace"
            );
        }
    }
    Ok(())
}

fn take(handed: Handed, desk: &Arc<Desk>, connections: &TaskTracker, idle: &CancellationToken) {
    let Handed { stream, peer, seat } = handed;
    match TcpStream::from_std(stream) {
        Ok(stream) => admit(desk, (stream, peer), seat, connections, idle),
        Err(error) => tracing::warn!(%error, "connection not taken over"),
    }
}

fn admit(
    desk: &Arc<Desk>,
    (stream, peer): (TcpStream, SocketAddr),
    seat: Seated,
    connections: &TaskTracker,
    idle: &CancellationToken,
) {
    let Some(connected) = Connected::enter(desk, peer.ip()) else {
        desk.core.metrics.connections_refused.increment(1);
        return;
    };
    // A socket that the peer has closed already takes no option; its connection ends by itself.
    drop(stream.set_nodelay(true));
    let tasks = connections.clone();
    let conversation = converse(connected, stream, idle.clone(), tasks);
    connections.spawn(async move {
        conversation.await;
        drop(seat);
    });
}
