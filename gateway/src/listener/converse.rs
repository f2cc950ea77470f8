//! One connection, from its first byte to its end, in whichever HTTP it speaks.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Connected;
use super::preface::{Replayed, Version, sniff};
use super::stall::Unstalled;
use crate::config::Limits;
use crate::http::respond;
use crate::predict::Desk;
use crate::tls::{self, Door, Spoken};

/// hyper's own floor of a read buffer.
const READ_BUFFER_MIN: usize = 64 << 10;
/// Requests at a time on one HTTP/2 connection.
const STREAMS_MAX: u32 = 100;
/// Streams that the peer has reset and that are not forgotten yet; beyond it the connection ends.
const RESETS_MAX: usize = 20;
/// The same of streams that we reset for the peer's errors.
const ERROR_RESETS_MAX: usize = 256;
const HEADER_LIST_BYTES_MAX: u32 = 16 << 10;
/// Bytes of bodies that a peer may send ahead, on one stream and on the connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of answers that wait for one stream's peer.
const SEND_BUFFER_MAX: usize = 256 << 10;
/// How often silent connections are asked whether they live, and how long they may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

type Stream = TokioIo<Replayed<Unstalled<tls::Stream>>>;

/// Serves one connection to its end.
pub(super) async fn converse(
    connected: Connected,
    stream: TcpStream,
    idle: CancellationToken,
    tasks: TaskTracker,
) {
    let desk = Arc::clone(&connected.desk);
    let limits = desk.core.limits;
    let door = Door::new(desk.core.tls.clone(), Spoken::Http);
    let entered = tokio::select! {
        biased;
        entered = door.enter(stream) => entered,
        () = idle.cancelled() => None,
    };
    let Some(stream) = entered else {
        return;
    };
    let stream = Unstalled::new(stream, limits.write_timeout);
    let sniffed = tokio::select! {
        biased;
        sniffed = tokio::time::timeout(limits.header_timeout, sniff(stream)) => sniffed,
        () = idle.cancelled() => return,
    };
    let Ok(Ok((version, stream))) = sniffed else {
        return;
    };
    let stream = TokioIo::new(stream);
    let ended = match version {
        Version::Http1 => one(desk, stream, idle).await,
        Version::Http2 => Box::pin(two(desk, stream, idle, tasks)).await,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended badly");
    }
}

async fn one(desk: Arc<Desk>, stream: Stream, idle: CancellationToken) -> hyper::Result<()> {
    let limits = desk.core.limits;
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(respond(desk, request).await) }
    });
    let connection = http1_builder(&limits).serve_connection(stream, service);
    let mut connection = pin!(connection);
    tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = idle.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// hyper's header timeout does nothing without a timer; with one it bounds silent connections and
/// idle keep-alives too.
fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_timeout)
        .max_header_size(limits.header_bytes_max)
        .max_buf_size(limits.header_bytes_max.max(READ_BUFFER_MIN))
        .keep_alive(true);
    builder
}

async fn two(
    desk: Arc<Desk>,
    stream: Stream,
    idle: CancellationToken,
    tasks: TaskTracker,
) -> hyper::Result<()> {
    let patience = desk.core.limits.header_timeout;
    let activity = Arc::new(Activity::default());
    let seen = Arc::clone(&activity);
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        let busy = Busy::new(&activity);
        async move {
            let response = respond(desk, request).await;
            drop(busy);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http2_builder(tasks).serve_connection(stream, service);
    let mut connection = pin!(connection);
    let mut begun = 0;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => return ended,
            () = idle.cancelled() => break,
            () = tokio::time::sleep(patience) => {
                let before = std::mem::replace(&mut begun, seen.begun.load(Ordering::Relaxed));
                if before == begun && seen.open.load(Ordering::Relaxed) == 0 {
                    break;
                }
            }
        }
    }
    // Says that no more is taken, and ends once the peer has had its answers.
    connection.as_mut().graceful_shutdown();
    connection.await
}

fn http2_builder(tasks: TaskTracker) -> http2::Builder<Tracked> {
    let mut builder = http2::Builder::new(Tracked(tasks));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE);
    bound_frames(&mut builder);
    builder
}

/// What a peer's frames may make us keep, on any listener of HTTP/2.
pub(crate) fn bound_frames<E>(builder: &mut http2::Builder<E>) {
    builder
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(ERROR_RESETS_MAX)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_send_buf_size(SEND_BUFFER_MAX);
}

/// Runs the streams of a connection beside it, where a drain waits for them too.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn(stream);
    }
}

/// Requests of one HTTP/2 connection, by which it is known to be idle: pings keep it open for ever.
#[derive(Debug, Default)]
struct Activity {
    begun: AtomicU64,
    open: AtomicUsize,
}

/// A request in flight.
struct Busy(Arc<Activity>);

impl Busy {
    fn new(activity: &Arc<Activity>) -> Self {
        activity.begun.fetch_add(1, Ordering::Relaxed);
        activity.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}
