//! `bare`: a hyper server as a plain user writes it, one thread, hyper's defaults. It reads the whole
//! body and answers the same bytes each time: what HTTP itself costs, and so the ceiling of a gateway.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;

/// Pause after a failed accept: out of file descriptors, a loop would only burn the core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What the server says, whatever it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Bare {
    pub address: SocketAddr,
    pub answer: Bytes,
    /// Bytes of the JSON head of a binary answer; without it the answer is JSON.
    pub header_length: Option<usize>,
}

/// Serves until the process is ended.
pub(crate) async fn serve_bare(bare: Bare) -> Result<()> {
    let listener = TcpListener::bind(bare.address).await?;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                eprintln!("connection not accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        drop(stream.set_nodelay(true));
        let bare = bare.clone();
        // A connection's task ends with its client; the process ends by signal.
        tokio::task::spawn_local(async move {
            let service = service_fn(|request| answer(&bare, request));
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        });
    }
}

async fn answer(
    bare: &Bare,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    request.into_body().collect().await?;
    let mut response = Response::new(Full::new(bare.answer.clone()));
    let headers = response.headers_mut();
    match bare.header_length {
        None => {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        Some(length) => {
            let octets = HeaderValue::from_static("application/octet-stream");
            headers.insert(CONTENT_TYPE, octets);
            let name = HeaderName::from_static("inference-header-content-length");
            headers.insert(name, HeaderValue::from(length));
        }
    }
    Ok(response)
}
