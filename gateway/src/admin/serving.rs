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
use hyper::header::{CONTENT_TYPE, HOST, HeaderMap, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::answer::{Refusal, respond};
use super::routes::ROUTES;
use super::{Admin, Asked};
use crate::routing::{Found, find};
use crate::tls::{Door, Spoken};

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
    let door = Door::new(admin.core.tls.clone(), Spoken::Http1);
    let entered = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        entered = door.enter(stream) => entered,
    };
    let Some(stream) = entered else {
        return;
    };
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
    refuse_foreign(&head.headers, &admin.hosts)?;
    let Found { route, named } = find(ROUTES, &head.method, head.uri.path())?;
    let passed = admin.core.gate.pass(&head.headers, route.access)?;
    let body = read(body).await?;
    if route.method != Method::GET {
        refuse_untyped(&head.headers, &body)?;
        let key = passed.key.map(tracing::field::display);
        tracing::info!(key, call = ?route.to, path = ?head.uri.path(), "asked by an operator");
    }
    let asked = Asked {
        named,
        query: head.uri.query().unwrap_or_default(),
        body: &body,
    };
    // Boxed: some handlers' futures are large.
    Box::pin(admin.answer(route.to, &asked)).await
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
/// machine's own names and `loopgate` (a container's) cannot be a page's; `known` are those that the
/// operator vouches for.
fn refuse_foreign(headers: &HeaderMap, known: &[Box<str>]) -> Result<(), Refusal> {
    if headers.contains_key(ORIGIN) {
        return Err(Refusal::foreign(
            "requests with an `Origin` header are refused",
        ));
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Refusal::foreign("requests need one `Host` header"));
    };
    if host.to_str().is_ok_and(|host| is_own(host, known)) {
        return Ok(());
    }
    Err(Refusal::foreign("the `Host` header names another host"))
}

/// Refuses a body of any type that a page could send without asking first: a form's, or text.
fn refuse_untyped(headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let is_json = |value: &HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        let essence = text.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case("application/json")
    };
    match (types.next(), types.next()) {
        (None, None) if body.is_empty() => Ok(()),
        (Some(one), None) if is_json(one) => Ok(()),
        _ => Err(Refusal::content_type()),
    }
}

fn is_own(host: &str, known: &[Box<str>]) -> bool {
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
        || known.iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::percent_decode;

    fn verdict(pairs: &[(&'static str, &'static str)]) -> bool {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, hyper::header::HeaderValue::from_static(value));
        }
        refuse_foreign(&headers, &["gate.example".into()]).is_ok()
    }

    #[test]
    fn only_own_hosts_are_answered() {
        for own in [
            "localhost",
            "localhost:8003",
            "LocalHost",
            "loopgate",
            "gate.example",
            "Gate.Example:8003",
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
            "gate.example.evil.example",
            "evil.gate.example",
            "localhost:evil.example",
            "localhost@evil.example",
            "[localhost]:8003:1",
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
    fn a_change_comes_as_json_or_without_a_body() {
        let verdict = |kind: Option<&'static str>, body: &[u8]| {
            let mut headers = HeaderMap::new();
            if let Some(kind) = kind {
                headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
            }
            refuse_untyped(&headers, body).is_ok()
        };
        for json in ["application/json", "Application/JSON; charset=utf-8"] {
            assert!(
                verdict(Some(json), b"{}") && verdict(Some(json), b""),
                "{json}"
            );
        }
        assert!(verdict(None, b"") && !verdict(None, b"{}"));
        for other in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data",
            "text/plain; a=application/json",
            "application/json5",
            "",
        ] {
            assert!(
                !verdict(Some(other), b"{}") && !verdict(Some(other), b""),
                "{other}"
            );
        }
    }

    #[test]
    fn paths_are_decoded_after_they_are_split() {
        assert_eq!(percent_decode("a%2Fb").as_deref(), Some("a/b"));
        for broken in ["%", "%2", "%zz", "%ff"] {
            assert!(percent_decode(broken).is_none(), "{broken}");
        }
    }
}
