//! One keep-alive HTTP/1.1 connection, and small JSON calls over it.
//!
//! A lane carries one request at a time. It reconnects when the server has closed it before the
//! request was sent; a request that was sent and failed is reported, never repeated.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long one call may take before it counts as failed. Promoting or sealing answers well within.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// One connection to one listener.
pub(crate) struct Lane {
    address: SocketAddr,
    connection: Option<SendRequest<Full<Bytes>>>,
}

/// What came back: any status, the whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON if the status is 200, else an error that quotes the body.
    pub(crate) fn json(&self) -> Result<Value> {
        if self.status != StatusCode::OK {
            bail!("{}: {}", self.status, String::from_utf8_lossy(&self.body));
        }
        serde_json::from_slice(&self.body).context("the answer is not JSON")
    }
}

impl Lane {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            connection: None,
        }
    }

    /// Posts `body`, stamped with the replay's time where one is given.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        at_ms: Option<i64>,
        body: Bytes,
    ) -> Result<Answer> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header("host", "loopgate")
            .header("content-type", "application/json");
        if let Some(at_ms) = at_ms {
            request = request.header("loopgate-time-ms", at_ms);
        }
        self.call(request.body(Full::new(body))?).await
    }

    pub(crate) async fn get(&mut self, path: &str) -> Result<Answer> {
        let request = Request::builder()
            .uri(path)
            .header("host", "loopgate")
            .body(Full::default())?;
        self.call(request).await
    }

    pub(crate) async fn call(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let outcome = timeout(CALL_LIMIT, self.exchange(request)).await;
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                self.connection = None;
                Err(error)
            }
            Err(_) => {
                self.connection = None;
                bail!("no answer within {} s", CALL_LIMIT.as_secs())
            }
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Answer> {
        let connection = self.connected().await?;
        let response = match connection.try_send_request(request).await {
            Ok(response) => response,
            // The server closed an idle connection: the request never left, so it may be sent anew.
            Err(mut unsent) if unsent.message().is_some() => {
                let request = unsent.take_message().context("the request is gone")?;
                self.connection = None;
                self.connected().await?.send_request(request).await?
            }
            Err(failed) => return Err(failed.into_error().into()),
        };
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Answer { status, body })
    }

    async fn connected(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let usable = match &mut self.connection {
            Some(connection) => !connection.is_closed() && connection.ready().await.is_ok(),
            None => false,
        };
        if !usable {
            let stream = TcpStream::connect(self.address)
                .await
                .with_context(|| format!("cannot connect to {}", self.address))?;
            stream.set_nodelay(true)?;
            let (connection, driver) = handshake(TokioIo::new(stream)).await?;
            // The driver ends with its connection, which this lane owns.
            tokio::task::spawn_local(async move {
                drop(driver.await);
            });
            self.connection = Some(connection);
        }
        self.connection.as_mut().context("just connected")
    }
}
