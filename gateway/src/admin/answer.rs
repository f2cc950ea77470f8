//! The one place that knows the admin interface's status codes: every cause and its status. Whom
//! routes and keys turn away is answered as on the data plane.
//!
//! A body is always `{"error": …}`. The caller is the operator, so messages name files and causes.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use registry::{AliasError, DatabaseError, LookupError, NameError};
use serde_json::{Value, json};

use crate::access::Denied;
use crate::control::{AdvanceError, RequestError};
use crate::http::{of_denied, of_unrouted};
use crate::lookup::AskError;
use crate::routing::Unrouted;

/// Why a request is refused.
#[derive(Debug)]
pub(super) struct Refusal {
    status: StatusCode,
    message: String,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            header: None,
        }
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "there is nothing at this path")
    }

    pub(super) fn unknown(what: &str, name: &str) -> Self {
        let shown: String = name.chars().take(64).collect();
        Self::new(StatusCode::NOT_FOUND, format!("unknown {what} `{shown}`"))
    }

    pub(super) fn no_project() -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "this gateway serves files, not a project",
        )
    }

    pub(super) fn registry_away() -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "the registry is away, and the last good release is served",
        )
    }

    pub(super) fn encoding() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "the path or query is not percent-encoded UTF-8",
        )
    }

    pub(super) fn content_type() -> Self {
        Self::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "a call that changes something takes `content-type: application/json` only",
        )
    }

    pub(super) fn body(error: &serde_json::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("body: {error}"))
    }

    pub(super) fn unknown_field(field: &str) -> Self {
        let shown: String = field.chars().take(64).collect();
        Self::new(StatusCode::BAD_REQUEST, format!("unknown field `{shown}`"))
    }

    pub(super) fn broken_body() -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            "the body is cut short, too slow or badly framed",
        )
    }

    pub(super) fn large_body(bytes_max: usize) -> Self {
        let message = format!("the body is larger than {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    pub(super) fn value(field: &str, value: &str, expected: &str) -> Self {
        let shown: String = value.chars().take(64).collect();
        let message = format!("field `{field}`: `{shown}` is not {expected}");
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    pub(super) fn foreign(what: &str) -> Self {
        Self::new(StatusCode::FORBIDDEN, what)
    }

    pub(super) fn overloaded() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many commands wait: retry later",
        )
    }

    pub(super) fn past_is_busy() -> Self {
        Self::new(
            StatusCode::TOO_MANY_REQUESTS,
            "the event log is being read for another row of the past: retry later",
        )
    }

    pub(super) fn long_log(pass_max: Duration) -> Self {
        let message = format!(
            "the event log takes longer than {pass_max:?} to read; stop the gateway and ask its folder"
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(super) fn stopping() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the gateway is stopping")
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }
}

impl From<Unrouted> for Refusal {
    fn from(unrouted: Unrouted) -> Self {
        let (status, header) = of_unrouted(&unrouted);
        let message = match unrouted {
            Unrouted::Encoding => return Self::encoding(),
            Unrouted::Path => return Self::no_such_path(),
            Unrouted::Method { allowed } => format!("this path takes {allowed} only"),
        };
        Self {
            status,
            message,
            header,
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let (status, header) = of_denied(&denied);
        Self {
            status,
            message: denied.to_string(),
            header,
        }
    }
}

impl From<NameError> for Refusal {
    fn from(error: NameError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }
}

impl From<serde_json::Error> for Refusal {
    fn from(error: serde_json::Error) -> Self {
        Self::failed(format!("answer has no JSON form: {error}"))
    }
}

impl From<DatabaseError> for Refusal {
    fn from(error: DatabaseError) -> Self {
        let status = if error.is_busy() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Self::new(status, error.to_string())
    }
}

impl From<LookupError> for Refusal {
    fn from(error: LookupError) -> Self {
        match error {
            LookupError::Database(error) => error.into(),
            error => Self::new(StatusCode::NOT_FOUND, error.to_string()),
        }
    }
}

impl From<AliasError> for Refusal {
    fn from(error: AliasError) -> Self {
        let message = error.to_string();
        match error {
            AliasError::UnknownModel(_) | AliasError::UnknownVersion(_) => {
                Self::new(StatusCode::NOT_FOUND, message)
            }
            AliasError::Database(error) => error.into(),
            _ => Self::conflict(message),
        }
    }
}

impl From<AdvanceError> for Refusal {
    fn from(error: AdvanceError) -> Self {
        let message = error.to_string();
        match error {
            AdvanceError::Live => Self::conflict(message),
            AdvanceError::Backwards { .. } => Self::new(StatusCode::BAD_REQUEST, message),
            AdvanceError::Recorder(_) => Self::new(StatusCode::SERVICE_UNAVAILABLE, message),
        }
    }
}

impl From<AskError> for Refusal {
    fn from(error: AskError) -> Self {
        let status = match error {
            AskError::Unknown { .. } => StatusCode::NOT_FOUND,
            _ => StatusCode::BAD_REQUEST,
        };
        Self::new(status, error.to_string())
    }
}

impl From<RequestError> for Refusal {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::NoLoop(_) => Self::conflict(error.to_string()),
            RequestError::Loop(error) => Self::failed(error.to_string()),
        }
    }
}

/// The response of an answer or a refusal.
pub(super) fn respond(answer: Result<Value, Refusal>) -> Response<Full<Bytes>> {
    let (status, body, header) = match answer {
        Ok(body) => (StatusCode::OK, body, None),
        Err(refusal) => {
            let body = json!({"error": refusal.message});
            (refusal.status, body, refusal.header)
        }
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Some((name, value)) = header {
        headers.insert(name, value);
    }
    response
}
