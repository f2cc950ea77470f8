//! The one place that knows HTTP's status codes: every cause, its status and its metric's outcome.
//!
//! A body is `{"error": …}`: a sentence for the caller, without paths or internals. On Feast's routes it
//! is what Feast's client raises again: a JSON string that holds module, class and message in JSON.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{
    ACCEPT_ENCODING, ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use hyper::{Response, StatusCode};
use serde_json::json;

use super::body::BodyError;
use super::encoding::{self, CodingError};
use crate::access::{CHALLENGE, Denied};
use crate::admission::{Limit, Overloaded, RETRY_AFTER_S};
use crate::execute::ExecuteError;
use crate::feast::{FeastError, SchemaError};
use crate::ingest::IngestRefusal;
use crate::metrics::Outcome;
use crate::oip::DecodeError;
use crate::predict::PredictError;
use crate::repository::RepositoryError;
use crate::route::RouteError;
use crate::routing::Unrouted;

/// As `Retry-After`, whose unit is the second, in milliseconds.
const RETRY_AFTER_MS: HeaderName = HeaderName::from_static("retry-after-ms");

/// Why a request gets no answer.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    message: Box<str>,
    header: Option<(HeaderName, HeaderValue)>,
    /// Milliseconds, for callers that can wait for less than a second.
    retry_after_ms: Option<u64>,
    /// The rest of the request is not read, so nothing may follow it.
    close: bool,
    /// `None`: our own. Boxed, since it is rare and every answer has room for a refusal.
    form: Option<Box<Form>>,
}

/// How else a body says the message.
#[derive(Debug)]
enum Form {
    /// As an error of that class of `feast.errors`.
    Feast(&'static str),
    /// As FastAPI says that a body has another shape.
    Schema(SchemaError),
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<Box<str>>) -> Self {
        Self {
            status,
            message: message.into(),
            header: None,
            retry_after_ms: None,
            close: false,
            form: None,
        }
    }

    /// For a caller of Feast's routes.
    pub(super) fn for_feast(mut self) -> Self {
        if self.form.is_none() {
            self.form = Some(Box::new(Form::Feast(match self.status {
                StatusCode::FORBIDDEN => "FeastPermissionError",
                _ => "FeastError",
            })));
        }
        self
    }

    fn body(&self) -> String {
        let message = &self.message;
        match self.form.as_deref() {
            None => json!({"error": message}).to_string(),
            Some(Form::Feast(class)) => {
                let error = json!({"module": "feast.errors", "class": class, "message": message});
                json!(error.to_string()).to_string()
            }
            Some(Form::Schema(error)) => {
                let loc: Vec<_> = std::iter::once("body").chain(error.at).collect();
                let problem =
                    json!({"type": error.kind, "loc": loc, "msg": error.message, "input": null});
                json!({"detail": [problem]}).to_string()
            }
        }
    }

    fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    fn retry_after(mut self, seconds: u64) -> Self {
        self.header = Some((RETRY_AFTER, seconds.into()));
        self
    }

    fn retry_in(self, wait: Duration) -> Self {
        let ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        let mut refusal = self.retry_after(ms.div_ceil(1000).max(RETRY_AFTER_S));
        refusal.retry_after_ms = Some(ms.max(1));
        refusal
    }

    pub(super) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "Not Found")
    }

    pub(super) fn name(error: &registry::NameError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error.to_string())
    }

    /// A header that is not a number of `unit`.
    pub(super) fn header(name: &str, unit: &str) -> Self {
        Self::new(
            StatusCode::BAD_REQUEST,
            format!("header `{name}` is not a number of {unit}"),
        )
    }

    /// A raw body for a model with `inputs` inputs.
    pub(super) fn raw(inputs: usize) -> Self {
        let message = format!("a raw body is for a model with one input, this one has {inputs}");
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// A request about the server's own settings that is wrong or asks for what is fixed.
    pub(super) fn settings(problem: &str) -> Self {
        Self::new(StatusCode::BAD_REQUEST, problem)
    }

    pub(super) fn panicked() -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error").closing()
    }

    fn outcome(&self) -> Outcome {
        match self.status {
            StatusCode::NOT_FOUND => Outcome::NotFound,
            StatusCode::TOO_MANY_REQUESTS => Outcome::Overloaded,
            StatusCode::REQUEST_TIMEOUT | StatusCode::GATEWAY_TIMEOUT => Outcome::Late,
            StatusCode::SERVICE_UNAVAILABLE => Outcome::Unavailable,
            StatusCode::NOT_IMPLEMENTED => Outcome::Refused,
            status if status.is_client_error() => Outcome::Refused,
            _ => Outcome::Failed,
        }
    }

    pub(super) fn into_response(self) -> (Response<Full<Bytes>>, Outcome) {
        let outcome = self.outcome();
        let mut response = Response::new(Full::new(Bytes::from(self.body())));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some((name, value)) = self.header {
            headers.insert(name, value);
        }
        if let Some(ms) = self.retry_after_ms {
            headers.insert(RETRY_AFTER_MS, ms.into());
        }
        if self.close {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        (response, outcome)
    }
}

impl From<Unrouted> for Refusal {
    fn from(unrouted: Unrouted) -> Self {
        let message = match unrouted {
            Unrouted::Path => return Self::no_such_path(),
            Unrouted::Encoding => "the path is not percent-encoded UTF-8",
            Unrouted::Method { .. } => "Method Not Allowed",
        };
        let (status, header) = of_unrouted(&unrouted);
        Self {
            header,
            ..Self::new(status, message)
        }
    }
}

/// The status of a request that no route takes, and the header that belongs to it.
pub(crate) fn of_unrouted(unrouted: &Unrouted) -> (StatusCode, Option<(HeaderName, HeaderValue)>) {
    match unrouted {
        Unrouted::Encoding => (StatusCode::BAD_REQUEST, None),
        Unrouted::Path => (StatusCode::NOT_FOUND, None),
        Unrouted::Method { allowed } => {
            let allowed = HeaderValue::from_str(allowed).expect("methods are tokens");
            (StatusCode::METHOD_NOT_ALLOWED, Some((ALLOW, allowed)))
        }
    }
}

/// The status of a caller who may not, and the header that belongs to it.
pub(crate) fn of_denied(denied: &Denied) -> (StatusCode, Option<(HeaderName, HeaderValue)>) {
    match denied {
        Denied::NoKey | Denied::Unknown => {
            let challenge = HeaderValue::from_static(CHALLENGE);
            (
                StatusCode::UNAUTHORIZED,
                Some((WWW_AUTHENTICATE, challenge)),
            )
        }
        Denied::Scope(_) => (StatusCode::FORBIDDEN, None),
        Denied::Rate { retry_after_s } => {
            let header = (RETRY_AFTER, (*retry_after_s).into());
            (StatusCode::TOO_MANY_REQUESTS, Some(header))
        }
    }
}

impl From<Denied> for Refusal {
    fn from(denied: Denied) -> Self {
        let (status, header) = of_denied(&denied);
        Self {
            header,
            ..Self::new(status, denied.to_string())
        }
    }
}

impl From<BodyError> for Refusal {
    fn from(error: BodyError) -> Self {
        let message = error.to_string();
        let status = match error {
            BodyError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            BodyError::Late { .. } => StatusCode::REQUEST_TIMEOUT,
            BodyError::Broken => StatusCode::BAD_REQUEST,
            BodyError::Coding(CodingError::Unknown) => {
                let mut refusal = Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).closing();
                let offered = HeaderValue::from_static(encoding::OFFERED);
                refusal.header = Some((ACCEPT_ENCODING, offered));
                return refusal;
            }
            // The body has been read whole, so the connection can go on.
            BodyError::Coding(CodingError::Corrupt(_)) => {
                return Self::new(StatusCode::BAD_REQUEST, message);
            }
            BodyError::Coding(CodingError::TooLarge { .. } | CodingError::Bomb) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
        };
        Self::new(status, message).closing()
    }
}

impl From<Overloaded> for Refusal {
    fn from(error: Overloaded) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()).retry_in(error.retry_after)
    }
}

impl From<Limit> for Refusal {
    fn from(limit: Limit) -> Self {
        Overloaded::from(limit).into()
    }
}

impl From<RouteError> for Refusal {
    fn from(error: RouteError) -> Self {
        let message = error.to_string();
        match error {
            RouteError::UnknownModel { .. }
            | RouteError::UnknownVersion { .. }
            | RouteError::UnknownService { .. } => Self::new(StatusCode::NOT_FOUND, message),
            RouteError::NotReady { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_AFTER_S)
            }
        }
    }
}

impl From<PredictError> for Refusal {
    fn from(error: PredictError) -> Self {
        let message = error.to_string();
        match error {
            PredictError::Overloaded(error) => error.into(),
            PredictError::Route(error) => error.into(),
            PredictError::Decode(DecodeError::Parameter(error)) if error.unimplemented => {
                Self::new(StatusCode::NOT_IMPLEMENTED, message)
            }
            PredictError::Decode(_)
            | PredictError::Inputs(_)
            | PredictError::UnknownOutput(_)
            | PredictError::DoubledOutput(_)
            | PredictError::Classify(_)
            | PredictError::Encode(_)
            | PredictError::Execute(ExecuteError::Inputs(_)) => {
                Self::new(StatusCode::BAD_REQUEST, message)
            }
            PredictError::Deadline(_) | PredictError::Execute(ExecuteError::Deadline(_)) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, message)
            }
            PredictError::Execute(ExecuteError::Overloaded(error)) => error.into(),
            PredictError::Execute(ExecuteError::Broken { retry_after, .. }) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_in(retry_after)
            }
            PredictError::Execute(ExecuteError::Features) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_AFTER_S)
            }
            // Sent again it would be refused again, until the entity is known.
            PredictError::Execute(ExecuteError::Missing(_)) => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, message)
            }
            PredictError::Execute(ExecuteError::Failed { .. }) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
            }
        }
    }
}

impl From<RepositoryError> for Refusal {
    fn from(error: RepositoryError) -> Self {
        use RepositoryError as Error;
        let message = error.to_string();
        match error {
            // Refused by its head, a request's body is left unread.
            Error::Forbidden => Self::new(StatusCode::FORBIDDEN, message).closing(),
            Error::Busy => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, message).retry_after(RETRY_AFTER_S)
            }
            Error::RegistryAway => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_AFTER_S)
            }
            Error::Stopping => Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
                .retry_after(RETRY_AFTER_S)
                .closing(),
            Error::Body(_)
            | Error::NoFile(_)
            | Error::NotLoaded(_)
            | Error::File(_)
            | Error::Prepare(_)
            | Error::NotServed { .. } => Self::new(StatusCode::BAD_REQUEST, message),
            Error::Alias(_) => Self::new(StatusCode::CONFLICT, message),
            Error::Artifact(_) | Error::Register(_) | Error::Lookup(_) | Error::Database(_) => {
                tracing::error!(error = message, "registry failed");
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the registry failed")
            }
        }
    }
}

impl From<FeastError> for Refusal {
    fn from(error: FeastError) -> Self {
        let (message, class) = (error.to_string(), error.class());
        let refusal = match error {
            FeastError::Schema(error) => {
                let mut refusal = Self::new(StatusCode::UNPROCESSABLE_ENTITY, message);
                refusal.form = Some(Box::new(Form::Schema(error)));
                return refusal;
            }
            FeastError::Ingest(refusal) => refusal.into(),
            FeastError::Read(error) => {
                tracing::warn!(%error, "features not read");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_AFTER_S)
            }
            FeastError::Cold(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_AFTER_S)
            }
            FeastError::PushSource(_) => Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            FeastError::NoStore
            | FeastError::View(_)
            | FeastError::ViewVersion { .. }
            | FeastError::Feature { .. }
            | FeastError::Service(_)
            | FeastError::RequestData { .. } => Self::new(StatusCode::NOT_FOUND, message),
            _ => Self::new(StatusCode::BAD_REQUEST, message),
        };
        Self {
            form: Some(Box::new(Form::Feast(class))),
            ..refusal
        }
    }
}

impl From<IngestRefusal> for Refusal {
    fn from(error: IngestRefusal) -> Self {
        let message = error.to_string();
        match error {
            IngestRefusal::Body(_)
            | IngestRefusal::TooManyRows { .. }
            | IngestRefusal::Event(_)
            | IngestRefusal::Label { .. } => Self::new(StatusCode::BAD_REQUEST, message),
            IngestRefusal::UnknownSource(_) | IngestRefusal::NoStore => {
                Self::new(StatusCode::NOT_FOUND, message)
            }
            IngestRefusal::Overloaded { retry_after_ms } => {
                Self::new(StatusCode::TOO_MANY_REQUESTS, message)
                    .retry_after(retry_after_ms.div_ceil(1000).max(RETRY_AFTER_S))
            }
            IngestRefusal::Late { .. } | IngestRefusal::Full | IngestRefusal::Stopped => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, message).retry_after(RETRY_AFTER_S)
            }
        }
    }
}
