//! TLS on our listeners: who we are, whom we let in, and how long a greeting may take.
//!
//! A handshake runs in its connection's own task, never in an accept loop; how many are under way
//! is bounded, and so is the time of each. What is greeted with is replaced as a whole when the
//! files change: connections that are open keep what they were opened with. Sessions are resumed
//! within one state of the files only, so that nobody outlives the CA that let them in.

mod client;
mod files;
mod stream;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::metrics::TlsMetrics;
use crate::watched::Watched;

pub(crate) use client::pinning;
pub(crate) use files::{TlsError, TlsFiles};
pub(crate) use stream::Stream;

use files::load;

/// The longest that a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes under way in the process; beyond it new connections are closed.
const HANDSHAKES_MAX: usize = 512;

/// What a listener speaks once the connection is safe; as ALPN has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spoken {
    Http1,
    Http2,
    /// Either; the first bytes say which.
    Http,
}

/// A greeting for each protocol, from one state of the files.
struct Greetings {
    http1: Arc<ServerConfig>,
    http2: Arc<ServerConfig>,
    http: Arc<ServerConfig>,
}

impl Greetings {
    fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let config = load(files)?;
        let with = |protocols: &[&[u8]]| {
            let mut config = config.clone();
            config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
            Arc::new(config)
        };
        Ok(Self {
            http1: with(&[b"http/1.1"]),
            http2: with(&[b"h2"]),
            http: with(&[b"h2", b"http/1.1"]),
        })
    }

    fn of(&self, spoken: Spoken) -> &Arc<ServerConfig> {
        match spoken {
            Spoken::Http1 => &self.http1,
            Spoken::Http2 => &self.http2,
            Spoken::Http => &self.http,
        }
    }
}

/// What every listener greets with, and how many are being greeted.
pub(crate) struct Tls {
    greetings: ArcSwap<Greetings>,
    /// Full means closed and counted.
    places: Semaphore,
    metrics: TlsMetrics,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When one is missing, is not what it should be, or the key is not the certificate's.
    pub(crate) fn new(files: &TlsFiles, metrics: TlsMetrics) -> Result<Arc<Self>, TlsError> {
        Ok(Arc::new(Self {
            greetings: ArcSwap::from_pointee(Greetings::load(files)?),
            places: Semaphore::new(HANDSHAKES_MAX),
            metrics,
        }))
    }

    async fn greet(&self, stream: TcpStream, spoken: Spoken) -> Option<Stream> {
        let Ok(_place) = self.places.try_acquire() else {
            self.metrics.handshakes_shed.increment(1);
            return None;
        };
        let config = Arc::clone(self.greetings.load().of(spoken));
        // Holds the stream to the end, so that whoever sees it closed finds that counted.
        let mut handshake = pin!(TlsAcceptor::from(config).accept(stream).into_fallible());
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake.as_mut()).await {
            Ok(Ok(stream)) => {
                self.metrics.handshakes.increment(1);
                Some(Stream::Tls(Box::new(stream)))
            }
            Ok(Err((error, _stream))) => {
                self.metrics.handshakes_failed.increment(1);
                tracing::debug!(%error, "TLS handshake failed");
                None
            }
            Err(_) => {
                self.metrics.handshakes_late.increment(1);
                None
            }
        }
    }
}

/// The way into one listener.
#[derive(Clone)]
pub(crate) struct Door {
    tls: Option<Arc<Tls>>,
    spoken: Spoken,
}

impl Door {
    /// Without `tls` connections are taken as they come.
    pub(crate) fn new(tls: Option<Arc<Tls>>, spoken: Spoken) -> Self {
        Self { tls, spoken }
    }

    /// Makes a connection safe where it shall be; `None` where that failed or took too long.
    pub(crate) async fn enter(&self, stream: TcpStream) -> Option<Stream> {
        match &self.tls {
            None => Some(Stream::Plain(stream)),
            // Boxed: a handshake is large, and rare.
            Some(tls) => Box::pin(tls.greet(stream, self.spoken)).await,
        }
    }
}

/// Follows the files of certificate, key and CA.
pub(crate) struct TlsWatch {
    files: TlsFiles,
    watched: Watched,
}

impl TlsWatch {
    pub(crate) fn new(files: TlsFiles) -> Self {
        let watched = Watched::new(files.paths());
        Self { files, watched }
    }

    /// Greets with changed files. Such that cannot be used leave everything as it was: so does a
    /// certificate whose key has not been replaced yet, until it has.
    pub(crate) fn look(&mut self, tls: &Tls) {
        if !self.watched.changed() {
            return;
        }
        match Greetings::load(&self.files) {
            Ok(greetings) => {
                tls.greetings.store(greetings.into());
                tls.metrics.certificates_reloaded.increment(1);
                tracing::info!("certificate reloaded");
            }
            Err(error) => {
                tls.metrics.certificates_refused.increment(1);
                tracing::error!(%error, "certificate not reloaded: the one from before holds");
            }
        }
    }
}
