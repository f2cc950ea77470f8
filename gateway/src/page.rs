//! The metrics listener: one page, `GET /metrics`, on a port of its own.
//!
//! On loopback it is open, for a scraper beside us. On a public address it asks for what the other
//! listeners ask: TLS and a key, where there are such.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::config::Listeners;
use crate::keys::Scope;
use crate::routing::{Route, Unrouted, find};
use crate::serve::Core;
use crate::tls::{Door, Spoken, Stream};

/// Scrapes at a time; more are closed.
const CONNECTIONS_MAX: usize = 32;
/// Longest wait for a request head, and longest idle keep-alive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listener's route. The page names models and counts traffic: the scope of whoever predicts.
pub(crate) const ROUTES: &[Route<()>] =
    &[Route::get("metrics", Access::Scoped(Scope::Predict), ())];

/// The bound listener.
pub(crate) struct Page {
    listener: TcpListener,
    address: SocketAddr,
    /// Whether others than this machine can reach it.
    public: bool,
    core: Arc<Core>,
}

impl Page {
    pub(crate) async fn bind(listeners: &Listeners, core: Arc<Core>) -> io::Result<Self> {
        let listener = TcpListener::bind(listeners.metrics).await?;
        let address = listener.local_addr()?;
        Ok(Self {
            listener,
            address,
            public: listeners.metrics_is_public(),
            core,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until dropped.
    pub(crate) async fn serve(self) {
        let connections = TaskTracker::new();
        let tls = self.core.tls.clone().filter(|_| self.public);
        let door = Door::new(tls, Spoken::Http1);
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            if connections.len() >= CONNECTIONS_MAX {
                continue;
            }
            let (core, door, public) = (Arc::clone(&self.core), door.clone(), self.public);
            connections.spawn(async move {
                if let Some(stream) = door.enter(stream).await {
                    converse(core, stream, public).await;
                }
            });
        }
    }
}

async fn converse(core: Arc<Core>, stream: Stream, public: bool) {
    let service = service_fn(move |request| {
        let core = Arc::clone(&core);
        async move { Ok::<_, Infallible>(answer(&core, &request, public)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "metrics connection ended badly");
    }
}

fn answer(core: &Core, request: &Request<Incoming>, public: bool) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    let found = find(ROUTES, request.method(), request.uri().path());
    let status = match found {
        Ok(found) => {
            let access = if public {
                found.route.access
            } else {
                Access::Open
            };
            match core.gate.pass(request.headers(), access) {
                Ok(_) => StatusCode::OK,
                Err(denied) => return crate::http::denied(denied),
            }
        }
        Err(Unrouted::Method { .. }) => StatusCode::METHOD_NOT_ALLOWED,
        Err(Unrouted::Path | Unrouted::Encoding) => StatusCode::NOT_FOUND,
    };
    if status == StatusCode::OK {
        *response.body_mut() = Full::new(Bytes::from(core.metrics_page()));
        let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
        response.headers_mut().insert(CONTENT_TYPE, kind);
    }
    *response.status_mut() = status;
    response
}
