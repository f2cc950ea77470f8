//! The admin listener: a bounded number of connections, bodies bounded in bytes and time, and the
//! refusal of what a web page could make a browser send.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::header::{HOST, HeaderMap, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Refusal, respond};
use super::{Admin, Asked};
use crate::http::percent_decode;

/// Connections at a time; more are closed.
const CONNECTIONS_MAX: usize = 64;
const BODY_BYTES_MAX: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a request head, and longest idle keep-alive.
const HEADER_TIMEOUT: Duration = Duration::from_secs(60);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long connections may take to finish once the gateway stops.
const GRACE: Duration = Duration::from_secs(1);

/// Binds the admin listener.
pub(crate) async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// The admin interface, ready to serve.
pub(crate) struct Serving {
    listener: TcpListener,
    admin: Arc<Admin>,
    stop: CancellationToken,
}

impl Serving {
    pub(crate) fn new(listener: TcpListener, admin: Arc<Admin>, stop: CancellationToken) -> Self {
        Self {
            listener,
            admin,
            stop,
        }
    }

    /// Serves until told to stop.
    pub(crate) async fn serve(self) {
        let connections = TaskTracker::new();
        loop {
            tokio::select! {
                biased;
                () = self.stop.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                        let (admin, stop) = (Arc::clone(&self.admin), self.stop.clone());
                        connections.spawn(converse(admin, stream, stop));
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::warn!(%error, "admin connection not accepted");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        connections.close();
        // What is left then ends with the thread.
        drop(tokio::time::timeout(GRACE, connections.wait()).await);
    }
}

async fn converse(admin: Arc<Admin>, stream: TcpStream, stop: CancellationToken) {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(handle(&admin, request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
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
        tracing::debug!(%error, "admin connection ended badly");
    }
}

async fn handle(admin: &Admin, request: Request<Incoming>) -> Response<Full<Bytes>> {
    respond(attempt(admin, request).await)
}

async fn attempt(admin: &Admin, request: Request<Incoming>) -> Result<serde_json::Value, Refusal> {
    let (head, body) = request.into_parts();
    refuse_foreign(&head.headers)?;
    let path = head.uri.path().trim_matches('/');
    let segments = path
        .split('/')
        .map(percent_decode)
        .collect::<Option<Vec<String>>>();
    let segments = segments.ok_or_else(Refusal::encoding)?;
    let body = read(body).await?;
    let asked = Asked {
        method: &head.method,
        segments: segments.iter().map(String::as_str).collect(),
        query: head.uri.query().unwrap_or_default(),
        body: &body,
    };
    // Boxed: some handlers' futures are large.
    Box::pin(admin.answer(&asked)).await
}

async fn read(body: Incoming) -> Result<Bytes, Refusal> {
    let limited = Limited::new(body, BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_TIMEOUT, limited).await {
        Ok(Ok(read)) => Ok(read.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Refusal::large_body(BODY_BYTES_MAX))
        }
        Ok(Err(_)) | Err(_) => Err(Refusal::broken_body()),
    }
}

/// Refuses what a browser sends for a web page: cross-origin requests carry an `Origin`, and a page
/// that has rebound its own name to our address carries that name as the `Host`. An address, this
/// machine's own names and `loopgate` (a container's) cannot be a page's.
fn refuse_foreign(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::foreign(
            "requests with an `Origin` header are refused",
        ));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::foreign("requests need one `Host` header"));
    };
    if host.to_str().is_ok_and(is_own) {
        return Ok(());
    }
    Err(Refusal::foreign("the `Host` header names another host"))
}

fn is_own(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'));
    name.eq_ignore_ascii_case("localhost")
        || name.eq_ignore_ascii_case("loopgate")
        || address.unwrap_or(name).parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(pairs: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, hyper::header::HeaderValue::from_static(value));
        }
        refuse_foreign(&headers).is_ok()
    }

    #[test]
    fn only_own_hosts_are_answered() {
        for own in [
            "localhost",
            "localhost:8003",
            "LocalHost",
            "loopgate",
            "127.0.0.1:8003",
            "[::1]:8003",
            "[::1]",
        ] {
            assert!(verdict(&[("host", own)]), "{own}");
        }
        for foreign in [
            "evil.example",
            "evil.example:8003",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            ":8003",
        ] {
            assert!(!verdict(&[("host", foreign)]), "{foreign}");
        }
        assert!(!verdict(&[]));
        assert!(!verdict(&[("host", "localhost"), ("host", "evil.example")]));
    }

    #[test]
    fn a_page_in_a_browser_is_refused() {
        assert!(!verdict(&[
            ("host", "localhost"),
            ("origin", "http://localhost:3000")
        ]));
        assert!(!verdict(&[("host", "localhost"), ("origin", "null")]));
    }

    #[test]
    fn paths_are_decoded_after_they_are_split() {
        assert_eq!(percent_decode("a%2Fb").as_deref(), Some("a/b"));
        for broken in ["%", "%2", "%zz", "%ff"] {
            assert!(percent_decode(broken).is_none(), "{broken}");
        }
    }
}
