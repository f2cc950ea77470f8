//! A prediction over HTTP: its body in JSON, JSON with binary tensors after it, or raw; its answer in
//! JSON or with binary tensors.
//!
//! Order of a body's layers, as the protocol has it: content encoding, then the split at the JSON's
//! length, then the JSON.

use bytes::Bytes;
use engine::TensorSpec;
use hyper::body::{Body, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};

use super::status::Refusal;
use super::{Answer, Received, body, ok, request_ms};
use crate::feature_rows::{self, FeatureRows, RowsCall};
use crate::oip::{self, DecodeError, EncodeError, Encoded, InferRequest, Response};
use crate::predict::{Call, Desk, Wire, predict};
use crate::route::{self, AskedService, Target};

/// `false` makes a prediction a probe: answered, not recorded.
const RECORD_HEADER: &str = "loopgate-record";
/// Bytes of JSON before the binary tensors, in requests and in answers.
const JSON_BYTES_HEADER: HeaderName = HeaderName::from_static("inference-header-content-length");

pub(super) async fn infer(
    desk: &Desk,
    target: Target,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    let core = &*desk.core;
    let mut place = desk.enter(&target, bytes_said(&received.body))?;
    let headers = received.headers;
    let at_ms = request_ms(core, headers)?;
    let form = Form::of(headers, || {
        let table = core.table.snapshot();
        let model = route::model(table.as_deref(), &target)?;
        let version = route::named_or_champion(model, &target)?;
        Ok(version.public.inputs.clone())
    })?;
    let probe = headers
        .get(RECORD_HEADER)
        .is_some_and(|value| value == "false");
    let body = body::read(headers, received.body, &core.limits).await?;
    place.hold(body.len())?;
    let call = Call {
        target,
        place,
        arrived: received.arrived,
        at_ms,
        probe,
    };
    let wire = Http { body: &body, form };
    Ok(answer(predict(desk, call, wire).await?))
}

/// The rows of a feature service, asked as a model.
pub(super) async fn rows(
    desk: &Desk,
    asked: &AskedService,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    let core = &*desk.core;
    let mut place = desk.enter_process(bytes_said(&received.body))?;
    let rows = FeatureRows::find(core, asked)?;
    let headers = received.headers;
    let at_ms = request_ms(core, headers)?;
    let form = Form::of(headers, || Ok(rows.signature().inputs.clone()))?;
    let body = body::read(headers, received.body, &core.limits).await?;
    place.hold(body.len())?;
    let call = RowsCall {
        rows,
        place,
        arrived: received.arrived,
        at_ms,
    };
    let wire = Http { body: &body, form };
    Ok(answer(feature_rows::rows(desk, call, wire).await?))
}

/// The bytes that a body is counted with until it is read: those that its head says, else a guess.
pub(super) fn bytes_said(body: &Incoming) -> usize {
    const GUESS: usize = 64 << 10;
    let said = body.size_hint().exact();
    said.map_or(GUESS, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
}

fn answer(encoded: Encoded) -> Answer {
    let Some(json_bytes) = encoded.json_bytes else {
        return ok(encoded.body.into());
    };
    let mut answer = ok(Bytes::from(encoded.body));
    let headers = answer.headers_mut();
    let binary = HeaderValue::from_static("application/octet-stream");
    headers.insert(CONTENT_TYPE, binary);
    headers.insert(JSON_BYTES_HEADER, json_bytes.into());
    answer
}

/// How a body is laid out.
enum Form {
    Json,
    /// Binary tensors after so many bytes of JSON.
    Binary {
        json_bytes: usize,
    },
    /// The elements of the model's only input.
    Raw {
        input: TensorSpec,
        binary_outputs: bool,
    },
}

impl Form {
    /// As the head says; `inputs` are those of what is asked.
    fn of(
        headers: &HeaderMap,
        inputs: impl FnOnce() -> Result<Vec<TensorSpec>, Refusal>,
    ) -> Result<Self, Refusal> {
        let Some(value) = headers.get(JSON_BYTES_HEADER) else {
            return Ok(Self::Json);
        };
        let digits = value
            .to_str()
            .ok()
            .filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
        match digits.and_then(|digits| digits.parse().ok()) {
            None => Err(Refusal::header(JSON_BYTES_HEADER.as_str(), "bytes")),
            Some(0) => Self::raw(inputs()?, headers),
            Some(json_bytes) => Ok(Self::Binary { json_bytes }),
        }
    }

    fn raw(inputs: Vec<TensorSpec>, headers: &HeaderMap) -> Result<Self, Refusal> {
        let [input]: [TensorSpec; 1] = inputs
            .try_into()
            .map_err(|inputs: Vec<_>| Refusal::raw(inputs.len()))?;
        // Beyond the protocol: raw in, JSON out, for a caller that says so.
        let wants_json = headers
            .get(ACCEPT)
            .is_some_and(|accept| accept.as_bytes().starts_with(b"application/json"));
        Ok(Self::Raw {
            input,
            binary_outputs: !wants_json,
        })
    }
}

/// HTTP as a wire of the one prediction path.
struct Http<'b> {
    body: &'b [u8],
    form: Form,
}

impl Wire for Http<'_> {
    type Reply = Encoded;

    fn decode(&mut self) -> Result<InferRequest, DecodeError> {
        match &self.form {
            Form::Json => oip::decode(self.body),
            Form::Binary { json_bytes } => oip::decode_binary(self.body, *json_bytes),
            Form::Raw {
                input,
                binary_outputs,
            } => oip::decode_raw(self.body, input).map(|request| InferRequest {
                binary_outputs: *binary_outputs,
                ..request
            }),
        }
    }

    fn encode(&self, response: &Response<'_>) -> Result<Encoded, EncodeError> {
        oip::encode(response)
    }
}
