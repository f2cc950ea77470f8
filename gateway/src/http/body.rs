//! Reading a body: bounded in bytes and in time, whatever its head promises.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_ENCODING, HeaderMap};

use crate::config::Limits;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the body did not come within {timeout_ms} ms")]
    Late { timeout_ms: u128 },
    #[error("content encoding is not offered: send the body as it is")]
    Encoded,
    #[error("the body is cut short or badly framed")]
    Broken,
}

/// Reads the whole body. One that says that it is too large is refused unread; one that does not
/// say is refused as soon as it is.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limits: &Limits,
) -> Result<Bytes, BodyError> {
    let encoded = |value: &hyper::header::HeaderValue| value != "identity";
    if headers.get_all(CONTENT_ENCODING).iter().any(encoded) {
        return Err(BodyError::Encoded);
    }
    let bytes_max = limits.body_bytes_max;
    let least = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if least > bytes_max {
        return Err(BodyError::TooLarge { bytes_max });
    }
    match tokio::time::timeout(limits.body_timeout, collect(body, bytes_max)).await {
        Ok(read) => read,
        Err(_) => Err(BodyError::Late {
            timeout_ms: limits.body_timeout.as_millis(),
        }),
    }
}

async fn collect(mut body: Incoming, bytes_max: usize) -> Result<Bytes, BodyError> {
    let mut whole = Bytes::new();
    // Grows only while more than one frame comes; most bodies are one, and are not copied.
    let mut parts = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else {
            continue;
        };
        if whole.len().max(parts.len()) + data.len() > bytes_max {
            return Err(BodyError::TooLarge { bytes_max });
        }
        if whole.is_empty() && parts.is_empty() {
            whole = data;
            continue;
        }
        if parts.is_empty() {
            parts.extend_from_slice(&std::mem::take(&mut whole));
        }
        parts.extend_from_slice(&data);
    }
    Ok(if parts.is_empty() {
        whole
    } else {
        parts.freeze()
    })
}
