//! gRPC: `inference.GRPCInferenceService`, `grpc.health.v1`, and server reflection.
//!
//! One thread with its own runtime and its own sessions. A call leads the same life as an HTTP
//! request (`predict`); only its wire differs. Owns the listener; `call` answers.

mod call;
mod health;
mod infer;
mod load;
mod message;
mod method;
mod model;
mod reflection;
mod repository;
mod status;
mod stream;
mod tensor;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::listener::bound_frames;
use crate::predict::Desk;
use crate::tls::{Door, Spoken};

pub(crate) use method::METHODS;

use call::Server;

/// Connections at a time; more are closed.
const CONNECTIONS_MAX: usize = 1024;
/// Calls at a time on one connection.
const STREAMS_MAX: u32 = 256;
/// How often silent connections are asked whether they live, and how long they may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The running gRPC thread.
pub(crate) struct GrpcThread {
    thread: JoinHandle<()>,
    stop: CancellationToken,
    pub address: SocketAddr,
}

impl GrpcThread {
    /// Binds the address and starts to serve.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub(crate) fn start(address: SocketAddr, desk: Arc<Desk>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("loopgate-grpc".to_owned())
            .spawn(move || {
                let served = runtime.block_on(Box::pin(serve(listener, desk, stopped)));
                if let Err(error) = served {
                    tracing::error!(%error, "gRPC listener ended");
                }
            })?;
        Ok(Self {
            thread,
            stop,
            address,
        })
    }

    /// Stops accepting, lets calls in flight finish within the drain's grace, and joins the thread.
    pub(crate) fn drain(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!("the gRPC thread panicked");
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    desk: Arc<Desk>,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let server = Arc::new(Server {
        desk,
        reflection: reflection::routes(),
        stop,
    });
    let (core, stop) = (&*server.desk.core, &server.stop);
    let connections = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(converse(Arc::clone(&server), stream));
                }
                Ok(_) => core.metrics.connections_refused.increment(1),
                Err(error) => {
                    tracing::warn!(%error, "gRPC connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    connections.close();
    let grace = core.limits.drain_grace;
    if tokio::time::timeout(grace, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            open = connections.len(),
            "gRPC connections cut after the drain's grace"
        );
    }
    Ok(())
}

async fn converse(server: Arc<Server>, stream: TcpStream) {
    // A socket that the peer has closed already takes no option; its connection ends by itself.
    drop(stream.set_nodelay(true));
    let stop = server.stop.clone();
    let door = Door::new(server.desk.core.tls.clone(), Spoken::Http2);
    let entered = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        entered = door.enter(stream) => entered,
    };
    let Some(stream) = entered else {
        return;
    };
    let service = service_fn(move |request| {
        let answered = Box::pin(call::respond(Arc::clone(&server), request));
        async move { Ok::<_, Infallible>(answered.await) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .adaptive_window(true);
    bound_frames(&mut builder);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "gRPC connection ended badly");
    }
}
