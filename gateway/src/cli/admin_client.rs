//! Calls to a running gateway's admin interface.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::rt::{Read, Write};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::tls::{TlsFiles, pinning};

/// Longest wait for the whole call.
const CALL_MAX: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// The environment's name for the key to call with.
const KEY: &str = "LOOPGATE_KEY";

/// What is asked.
pub(super) struct Call<'a> {
    pub method: Method,
    pub path: &'a str,
    /// JSON, or nothing.
    pub body: Bytes,
}

impl Call<'_> {
    /// Calls, and returns what came back. Where the project has a certificate, only a gateway that
    /// shows this one is spoken to.
    pub(super) async fn of(
        self,
        address: SocketAddr,
        tls: Option<&TlsFiles>,
    ) -> Result<(StatusCode, Bytes)> {
        let call = tokio::time::timeout(CALL_MAX, exchange(address, self, tls));
        let answered = call.await.context("the gateway did not answer in time")?;
        answered.with_context(|| format!("admin interface on {address}: is the gateway running?"))
    }
}

async fn exchange(
    address: SocketAddr,
    asked: Call<'_>,
    tls: Option<&TlsFiles>,
) -> Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    match tls {
        None => call(TokioIo::new(stream), address, asked).await,
        Some(files) => {
            let connector = TlsConnector::from(pinning(files)?);
            let name = ServerName::IpAddress(address.ip().into());
            let stream = connector.connect(name, stream).await?;
            call(TokioIo::new(stream), address, asked).await
        }
    }
}

async fn call<S>(stream: S, address: SocketAddr, asked: Call<'_>) -> Result<(StatusCode, Bytes)>
where
    S: Read + Write + Unpin,
{
    let (mut sender, connection) = handshake(stream).await?;
    let mut request = Request::builder()
        .method(asked.method)
        .uri(asked.path)
        .header("host", address.to_string());
    if !asked.body.is_empty() {
        request = request.header("content-type", "application/json");
    }
    if let Ok(key) = std::env::var(KEY) {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(Full::new(asked.body))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX)
            .collect()
            .await;
        let body = body.map_err(|error| anyhow::anyhow!(error))?;
        Ok::<_, anyhow::Error>((status, body.to_bytes()))
    };
    // The connection is driven while the answer is waited for, and let go with it.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answered = &mut answer => answered,
        ended = &mut connection => {
            ended?;
            answer.await
        }
    }
}
