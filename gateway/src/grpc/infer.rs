//! `ModelInfer` as a wire of the one prediction path.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hyper::header::HeaderMap;
use tonic::{Code, Status};

use super::message::{
    Choice, InferOutputTensor, InferParameter, InferRequestedOutputTensor, ModelInferRequest,
    ModelInferResponse, Parameters,
};
use super::{model, status, tensor};
use crate::admission::Place;
use crate::feature_rows::{self, FeatureRows, RowsCall};
use crate::metrics::{Operation, Outcome};
use crate::oip::{
    DecodeError, EncodeError, InferRequest, Parameter, ParameterError, Response, WantedOutput,
};
use crate::predict::{Call, Desk, Wire, predict};
use crate::route::Named;
use crate::serve::Core;

/// In replay mode the request's time, milliseconds since the Unix epoch.
const TIME_KEY: &str = "loopgate-time-ms";
/// `false` makes a prediction a probe: answered, not recorded.
const RECORD_KEY: &str = "loopgate-record";

/// Asks that the last answer to a request be marked, which has a meaning in streams alone; a client
/// that knows no other sends it with every request.
pub(super) const FINAL_ASKED: &str = "triton_enable_empty_final_response";
/// Inputs or outputs that one request may name.
const TENSORS_MAX: usize = 1024;

/// What a call's headers say of its predictions.
#[derive(Clone, Copy)]
pub(super) struct Head {
    pub arrived: Instant,
    /// The call's own deadline, `grpc-timeout`.
    pub timeout: Option<Duration>,
    /// The request's time, where it may bring one.
    named_ms: Option<i64>,
    probe: bool,
}

impl Head {
    pub(super) fn read(core: &Core, headers: &HeaderMap, arrived: Instant) -> Result<Self, Status> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let named_ms = match text(TIME_KEY) {
            Some(ms) if core.clock.is_replay() => Some(ms.parse().map_err(|_| {
                Status::invalid_argument(format!("`{TIME_KEY}` is not a number of milliseconds"))
            })?),
            _ => None,
        };
        Ok(Self {
            arrived,
            timeout: text("grpc-timeout").and_then(timeout),
            named_ms,
            probe: text(RECORD_KEY) == Some("false"),
        })
    }

    /// The same for a message of a stream that has so much time left.
    pub(super) fn of_message(self, arrived: Instant, left: Duration) -> Self {
        Self {
            arrived,
            timeout: Some(left),
            ..self
        }
    }
}

/// Takes a place for a prediction.
pub(super) fn enter(core: &Core) -> Result<Place, Status> {
    core.admission.enter().map_err(|error| {
        core.metrics.request(Operation::Infer, Outcome::Overloaded);
        status::shed(&error)
    })
}

/// Answers one request that has a place, and counts how it went.
pub(super) async fn answer(
    desk: &Desk,
    asked: ModelInferRequest,
    head: Head,
    place: Place,
) -> Result<ModelInferResponse, Status> {
    let answered = attempt(desk, asked, head, place).await;
    let outcome = match &answered {
        Ok(_) => Outcome::Ok,
        Err(status) => match status.code() {
            Code::InvalidArgument => Outcome::Refused,
            Code::NotFound => Outcome::NotFound,
            Code::ResourceExhausted => Outcome::Overloaded,
            Code::DeadlineExceeded => Outcome::Late,
            Code::Unavailable => Outcome::Unavailable,
            _ => Outcome::Failed,
        },
    };
    desk.core.metrics.request(Operation::Infer, outcome);
    answered
}

async fn attempt(
    desk: &Desk,
    asked: ModelInferRequest,
    head: Head,
    place: Place,
) -> Result<ModelInferResponse, Status> {
    let arrived = head.arrived;
    let at_ms = desk.core.clock.request_ms(head.named_ms);
    let answered = match model::named(&asked.model_name, &asked.model_version)? {
        Named::Model(target) => {
            let call = Call {
                target,
                place,
                arrived,
                at_ms,
                probe: head.probe,
            };
            predict(desk, call, Grpc::new(asked, head.timeout)).await
        }
        Named::Service(service) => {
            let rows = FeatureRows::find(&desk.core, &service);
            let call = RowsCall {
                rows: rows.map_err(|error| status::of_route(&error))?,
                place,
                arrived,
                at_ms,
            };
            feature_rows::rows(desk, call, Grpc::new(asked, head.timeout)).await
        }
    };
    answered.map_err(|error| status::of_predict(&error))
}

/// A request on its way into the engine's types.
struct Grpc {
    request: ModelInferRequest,
    /// The call's own deadline, `grpc-timeout`.
    timeout: Option<Duration>,
}

impl Grpc {
    fn new(request: ModelInferRequest, timeout: Option<Duration>) -> Self {
        Self { request, timeout }
    }
}

impl Wire for Grpc {
    type Reply = ModelInferResponse;

    fn decode(&mut self) -> Result<InferRequest, DecodeError> {
        let ModelInferRequest {
            id,
            parameters,
            inputs,
            outputs,
            raw_input_contents,
            ..
        } = std::mem::take(&mut self.request);
        if inputs.len() > TENSORS_MAX {
            return Err(DecodeError::TooMany { what: "inputs" });
        }
        if outputs.len() > TENSORS_MAX {
            return Err(DecodeError::TooMany { what: "outputs" });
        }
        for (k, input) in inputs.iter().enumerate() {
            if inputs[..k].iter().any(|before| before.name == input.name) {
                let input = input.name.as_str().into();
                return Err(DecodeError::DuplicateInput { input });
            }
        }
        let raw = raw_input_contents;
        if !raw.is_empty() && raw.len() != inputs.len() {
            let (found, expected) = (raw.len(), inputs.len());
            return Err(DecodeError::Input {
                input: inputs
                    .get(found.min(expected))
                    .map_or("", |input| &input.name)
                    .into(),
                problem: format!("{found} raw contents for {expected} inputs"),
            });
        }
        let mut raw = raw.into_iter();
        let decoded = inputs
            .into_iter()
            .map(|input| tensor::decode(input, raw.next()));
        let mut request = InferRequest {
            id: (!id.is_empty()).then(|| id.into()),
            inputs: decoded.collect::<Result<_, _>>()?,
            outputs: outputs.into_iter().map(wanted).collect::<Result<_, _>>()?,
            ..InferRequest::default()
        };
        let others = parameters.iter().filter(|(name, _)| *name != FINAL_ASKED);
        for (name, parameter) in others {
            request.apply(name, &value(name, parameter)?)?;
        }
        request.timeout = [self.timeout, request.timeout].into_iter().flatten().min();
        Ok(request)
    }

    fn encode(&self, response: &Response<'_>) -> Result<ModelInferResponse, EncodeError> {
        let mut parameters = Parameters::new();
        let mut set = |key: &str, choice| {
            let parameter_choice = Some(choice);
            parameters.insert(key.to_owned(), InferParameter { parameter_choice });
        };
        if let Some(prediction) = response.prediction {
            set(
                "prediction_id",
                Choice::StringParam(prediction.hyphenated().to_string()),
            );
        }
        if let Some(reason) = response.fallback_reason {
            set("fallback", Choice::BoolParam(true));
            set("fallback_reason", Choice::StringParam(reason.to_owned()));
        }
        if let Some(status) = response.feature_status {
            set("feature_status", Choice::StringParam(status.to_owned()));
        }
        let outputs = response.outputs.iter();
        let described = outputs.clone().map(|output| InferOutputTensor {
            name: output.name.to_owned(),
            datatype: output.tensor.datatype().as_str().to_owned(),
            // An axis of a tensor in memory is far below 2^63.
            shape: output
                .tensor
                .shape()
                .iter()
                .map(|&axis| i64::try_from(axis).unwrap_or(i64::MAX))
                .collect(),
            parameters: HashMap::new(),
            contents: None,
        });
        Ok(ModelInferResponse {
            model_name: response.model.to_owned(),
            model_version: response.version.to_owned(),
            id: response.id.unwrap_or_default().to_owned(),
            parameters,
            outputs: described.collect(),
            // Clients read these only: typed contents would come back empty.
            raw_output_contents: outputs
                .map(|output| tensor::encode(output.tensor.data()))
                .collect(),
        })
    }
}

fn wanted(output: InferRequestedOutputTensor) -> Result<WantedOutput, ParameterError> {
    let mut wanted = WantedOutput {
        name: output.name.into(),
        ..WantedOutput::default()
    };
    for (name, parameter) in &output.parameters {
        wanted.apply(name, &value(name, parameter)?)?;
    }
    Ok(wanted)
}

fn value(name: &str, parameter: &InferParameter) -> Result<Parameter, ParameterError> {
    Ok(match &parameter.parameter_choice {
        None => return Err(ParameterError::new(name, "is not set")),
        Some(Choice::BoolParam(value)) => Parameter::Bool(*value),
        Some(Choice::Int64Param(value)) => Parameter::Integer((*value).into()),
        Some(Choice::Uint64Param(value)) => Parameter::Integer((*value).into()),
        Some(Choice::StringParam(text)) => Parameter::Text(text.as_str().into()),
        Some(Choice::DoubleParam(_)) => Parameter::Other,
    })
}

/// The header `grpc-timeout`: at most eight digits and a unit.
fn timeout(text: &str) -> Option<Duration> {
    let unit = text.chars().next_back().filter(char::is_ascii)?;
    let digits = &text[..text.len() - 1];
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(count * 3600)),
        'M' => Some(Duration::from_secs(count * 60)),
        'S' => Some(Duration::from_secs(count)),
        'm' => Some(Duration::from_millis(count)),
        'u' => Some(Duration::from_micros(count)),
        'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_calls_timeout_has_a_unit() {
        assert_eq!(timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(
            timeout("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for wrong in ["", "S", "1", "1s", "123456789S", "+1S", "1é", "é"] {
            assert_eq!(timeout(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn parameters_without_a_value_are_refused() {
        let read = |name: &str, parameter_choice| {
            let request = ModelInferRequest {
                parameters: Parameters::from([(
                    name.to_owned(),
                    InferParameter { parameter_choice },
                )]),
                ..ModelInferRequest::default()
            };
            Grpc::new(request, None).decode()
        };
        assert!(read("any", None).is_err());
        assert!(read("timeout", Some(Choice::Int64Param(-1))).is_err());
        assert!(read("loopgate_record", Some(Choice::Int64Param(0))).is_err());
        let timeout = read("timeout", Some(Choice::StringParam("1500".into()))).unwrap();
        assert_eq!(timeout.timeout, Some(Duration::from_micros(1500)));
        assert!(
            read("loopgate_record", Some(Choice::BoolParam(false)))
                .unwrap()
                .probe
        );
    }

    #[test]
    fn raw_contents_cover_every_input_or_none() {
        let request = ModelInferRequest {
            inputs: vec![Default::default()],
            raw_input_contents: vec![Bytes::new(), Bytes::new()],
            ..ModelInferRequest::default()
        };
        let refused = Grpc::new(request, None).decode().unwrap_err().to_string();
        assert!(refused.contains("2 raw contents for 1 inputs"), "{refused}");
    }
}
