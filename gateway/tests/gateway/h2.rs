//! One gRPC call by hand, over any stream.

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

/// The status that a call is refused with before it has begun; 0 where it was begun. The message
/// is empty, which every method can read.
pub(crate) async fn refusal<S>(stream: S, path: &str, key: Option<&str>) -> i32
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    try_refusal(stream, path, key).await.expect("an answer")
}

/// The same; `None` where the connection ends without an answer.
pub(crate) async fn try_refusal<S>(stream: S, path: &str, key: Option<&str>) -> Option<i32>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handshake =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
    let (mut sender, connection) = handshake.await.ok()?;
    let mut request = Request::post(format!("http://gateway{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request
        .body(Full::new(Bytes::from_static(&[0; 5])))
        .unwrap();
    let answer = async {
        let response = sender.send_request(request).await.ok()?;
        let status = response.headers().get("grpc-status");
        Some(status.map_or(0, |code| code.to_str().unwrap().parse().unwrap()))
    };
    tokio::select! {
        status = answer => status,
        _ = connection => None,
    }
}
