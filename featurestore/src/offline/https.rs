//! The HTTP client below `object_store`: hyper over TCP and rustls, as the rest of the process has them.
//!
//! Each part of an exchange is bounded: connecting, sending, the answer's head and body. Connections are kept and used again; one that
//! the other side has closed meanwhile is an error that `object_store` tries again. No task is spawned:
//! a connection moves while its exchange is waited for. No proxies.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{HOST, HeaderValue};
use hyper::http::uri::{PathAndQuery, Scheme};
use hyper::{Response, Uri};
use hyper_util::rt::TokioIo;
use object_store::client::{
    ClientConfigKey, ClientOptions, HttpClient, HttpConnector, HttpError, HttpErrorKind,
    HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody, HttpService,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::online::shared::locked;

/// Makes clients.
#[derive(Debug)]
pub(super) struct Https;

impl HttpConnector for Https {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let allow_http = options.get_config_value(&ClientConfigKey::AllowHttp);
        Ok(HttpClient::new(Client {
            allow_http: allow_http.is_some_and(|allowed| allowed == "true"),
            tls: Mutex::default(),
            kept: Mutex::default(),
        }))
    }
}

/// How long connecting may take, the handshake of TLS included.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long an answer may take to begin once the request could have been sent, at 4 Mbit/s or more.
const ANSWER_MAX: Duration = Duration::from_secs(15);
const SEND_BYTES_PER_S: u64 = 500_000;
/// How long an answer may take to end: 32 MiB at 5 Mbit/s.
const BODY_MAX: Duration = Duration::from_secs(60);
/// Connections that are kept; more are closed after use.
const KEPT_MAX: usize = 8;
/// The longest answer that is taken: objects are read as a whole.
const ANSWER_BYTES_MAX: usize = 1 << 30;

struct Client {
    allow_http: bool,
    /// Made with the first connection that needs it. A lock, since exchanges run side by side.
    tls: Mutex<Option<TlsConnector>>,
    /// A lock, as above; held to take one out or put one back.
    kept: Mutex<Vec<(Origin, Connection)>>,
}

/// Scheme and authority of a URL.
type Origin = (Scheme, String);

/// A connection and what moves it.
struct Connection {
    requests: SendRequest<HttpRequestBody>,
    driver: Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("allow_http", &self.allow_http)
            .finish_non_exhaustive()
    }
}

#[async_trait::async_trait]
impl HttpService for Client {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answer = Box::pin(self.exchange(request)).await?;
        Ok(answer
            .map(|body| HttpResponseBody::new(Full::new(body).map_err(|never| match never {}))))
    }
}

impl Client {
    async fn exchange(&self, mut request: HttpRequest) -> Result<Response<Bytes>, HttpError> {
        let origin = origin_of(request.uri())?;
        // A server asks for the path alone, and who it is beside it.
        if !request.headers().contains_key(HOST) {
            let host = HeaderValue::from_str(&origin.1).map_err(unknown)?;
            request.headers_mut().insert(HOST, host);
        }
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.unwrap_or(PathAndQuery::from_static("/")).into();
        let mut connection = match self.take_kept(&origin) {
            Some(connection) => connection,
            None => within(CONNECT_MAX, "no connection", self.connect(&origin)).await?,
        };
        let answer = connection.exchange(request).await?;
        let mut kept = locked(&self.kept);
        if kept.len() < KEPT_MAX {
            kept.push((origin, connection));
        }
        Ok(answer)
    }

    /// A kept connection that is still open.
    fn take_kept(&self, origin: &Origin) -> Option<Connection> {
        let mut kept = locked(&self.kept);
        while let Some(place) = kept.iter().rposition(|(to, _)| to == origin) {
            let (_, mut connection) = kept.swap_remove(place);
            if (&mut connection.driver).now_or_never().is_none() {
                return Some(connection);
            }
        }
        None
    }

    async fn connect(&self, origin: &Origin) -> Result<Connection, HttpError> {
        let (scheme, authority) = origin;
        let secure = *scheme == Scheme::HTTPS;
        if !secure && !self.allow_http {
            return Err(unknown(io::Error::other("http:// is not allowed")));
        }
        let port = if secure { 443 } else { 80 };
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, digits)) if !digits.ends_with(']') => {
                (host, digits.parse().map_err(unknown)?)
            }
            _ => (&**authority, port),
        };
        let host = host.trim_matches(['[', ']']);
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(not_connected)?;
        stream.set_nodelay(true).map_err(not_connected)?;
        if !secure {
            return Connection::new(TokioIo::new(stream)).await;
        }
        let tls = self.tls().map_err(unknown)?;
        let name = ServerName::try_from(host.to_owned()).map_err(unknown)?;
        let stream = tls.connect(name, stream).await.map_err(not_connected)?;
        Connection::new(TokioIo::new(stream)).await
    }

    fn tls(&self) -> io::Result<TlsConnector> {
        let mut tls = locked(&self.tls);
        if let Some(tls) = &*tls {
            return Ok(tls.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(trusted()?)
            .with_no_client_auth();
        Ok(tls.insert(TlsConnector::from(Arc::new(config))).clone())
    }
}

impl Connection {
    async fn new<S>(stream: TokioIo<S>) -> Result<Self, HttpError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, driver) = http1::handshake(stream).await.map_err(failed)?;
        Ok(Self {
            requests,
            driver: Box::pin(driver),
        })
    }

    async fn exchange(&mut self, request: HttpRequest) -> Result<Response<Bytes>, HttpError> {
        let Self { requests, driver } = self;
        let answer = async {
            let sending = request.body().content_length() as u64 / SEND_BYTES_PER_S;
            let head_max = ANSWER_MAX + Duration::from_secs(sending);
            let head = async {
                requests.ready().await?;
                requests.send_request(request).await
            };
            let head = async { head.await.map_err(failed) };
            let (head, body) = within(head_max, "no answer", head).await?.into_parts();
            let body = async {
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
                body.map_err(|error| HttpError::new_boxed(HttpErrorKind::Interrupted, error))
            };
            let body = within(BODY_MAX, "no end of the answer", body).await?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            answer = &mut answer => answer,
            // What the other side said before it closed is still to be read.
            _ = driver.as_mut() => answer.await,
        }
    }
}

fn origin_of(url: &Uri) -> Result<Origin, HttpError> {
    match (url.scheme(), url.authority()) {
        (Some(scheme), Some(authority)) => Ok((scheme.clone(), authority.to_string())),
        _ => Err(unknown(io::Error::other(format!("{url} names no host")))),
    }
}

/// The certificates that are trusted: of the file that the environment names, else the system's.
fn trusted() -> io::Result<RootCertStore> {
    const SYSTEMS: [&str; 4] = [
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
        "/etc/ssl/ca-bundle.pem",
        "/etc/ssl/cert.pem",
    ];
    let named = ["AWS_CA_BUNDLE", "SSL_CERT_FILE"]
        .into_iter()
        .find_map(std::env::var_os);
    let system = || {
        SYSTEMS
            .into_iter()
            .map(PathBuf::from)
            .find(|path| path.exists())
    };
    let path = named.map(PathBuf::from).or_else(system).ok_or_else(|| {
        io::Error::other("no certificates to trust are installed: name a file by SSL_CERT_FILE")
    })?;
    let at =
        |problem: &dyn fmt::Display| io::Error::other(format!("{}: {problem}", path.display()));
    let bytes = fs::read(&path).map_err(|error| at(&error))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(certificates.map_err(|error| at(&error))?);
    match added {
        0 => Err(at(&"no certificate that can be used")),
        _ => Ok(roots),
    }
}

/// Not sent, or not answered: tried again where asking twice is the same as once.
fn failed(error: hyper::Error) -> HttpError {
    let kind = match error.is_canceled() || error.is_closed() {
        true => HttpErrorKind::Request,
        false => HttpErrorKind::Interrupted,
    };
    HttpError::new(kind, error)
}

fn not_connected(error: io::Error) -> HttpError {
    HttpError::new(HttpErrorKind::Connect, error)
}

/// What `work` says within a time.
async fn within<T>(
    limit: Duration,
    without: &str,
    work: impl Future<Output = Result<T, HttpError>>,
) -> Result<T, HttpError> {
    let done = tokio::time::timeout(limit, work).await;
    done.unwrap_or_else(|_| {
        let problem = format!("{without} in {} s", limit.as_secs());
        Err(HttpError::new(
            HttpErrorKind::Timeout,
            io::Error::other(problem),
        ))
    })
}

fn unknown(error: impl std::error::Error + Send + Sync + 'static) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, error)
}
