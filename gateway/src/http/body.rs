//! Reading a body: bounded in bytes and in time, whatever its head promises.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::header::HeaderMap;

use super::encoding::{Coding, CodingError};
use crate::config::Limits;

/// Why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than {bytes_max} bytes")]
    TooLarge { bytes_max: usize },
    #[error("the body did not come within {timeout_ms} ms")]
    Late { timeout_ms: u128 },
    #[error(transparent)]
    Coding(#[from] CodingError),
    #[error("the body is cut short or badly framed")]
    Broken,
}

/// Reads the whole body and decodes it. One that says that it is too large is refused unread; one
/// that does not say is refused as soon as it is.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Incoming,
    limits: &Limits,
) -> Result<Bytes, BodyError> {
    let coding = Coding::of_request(headers)?;
    let bytes_max = limits.body_bytes_max;
    let least = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if least > bytes_max {
        return Err(BodyError::TooLarge { bytes_max });
    }
    let sent = match tokio::time::timeout(limits.body_timeout, collect(body, bytes_max)).await {
        Ok(read) => read?,
        Err(_) => {
            return Err(BodyError::Late {
                timeout_ms: limits.body_timeout.as_millis(),
            });
        }
    };
    match coding {
        Some(coding) => Ok(coding.decode(&sent, bytes_max)?.into()),
        None => Ok(sent),
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
