//! `ModelInfer` as a wire of the one prediction path.

use std::collections::HashMap;
use std::time::Duration;

use super::message::{
    Choice, InferOutputTensor, InferParameter, InferRequestedOutputTensor, ModelInferRequest,
    ModelInferResponse, Parameters,
};
use super::tensor;
use crate::oip::{
    DecodeError, EncodeError, InferRequest, Parameter, ParameterError, Response, WantedOutput,
};
use crate::predict::Wire;

/// Inputs or outputs that one request may name.
const TENSORS_MAX: usize = 1024;

/// A request on its way into the engine's types.
pub(super) struct Grpc {
    request: ModelInferRequest,
    /// The call's own deadline, `grpc-timeout`.
    timeout: Option<Duration>,
}

impl Grpc {
    pub(super) fn new(request: ModelInferRequest, timeout: Option<Duration>) -> Self {
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
        for (name, parameter) in &parameters {
            request.apply(name, &value(name, parameter)?)?;
        }
        request.timeout = [self.timeout, request.timeout].into_iter().flatten().min();
        Ok(request)
    }

    fn encode(&self, response: &Response<'_>) -> Result<ModelInferResponse, EncodeError> {
        let mut parameters = Parameters::new();
        let mut set = |key: &str, choice| {
            let choice = Some(choice);
            parameters.insert(key.to_owned(), InferParameter { choice });
        };
        if let Some(prediction) = response.prediction {
            set(
                "prediction_id",
                Choice::String(prediction.hyphenated().to_string()),
            );
        }
        if let Some(reason) = response.fallback_reason {
            set("fallback", Choice::Bool(true));
            set("fallback_reason", Choice::String(reason.to_owned()));
        }
        if let Some(status) = response.feature_status {
            set("feature_status", Choice::String(status.to_owned()));
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
    Ok(match &parameter.choice {
        None => return Err(ParameterError::new(name, "is not set")),
        Some(Choice::Bool(value)) => Parameter::Bool(*value),
        Some(Choice::Int64(value)) => Parameter::Integer((*value).into()),
        Some(Choice::Uint64(value)) => Parameter::Integer((*value).into()),
        Some(Choice::String(text)) => Parameter::Text(text.as_str().into()),
        Some(Choice::Double(_)) => Parameter::Other,
    })
}

/// The header `grpc-timeout`: at most eight digits and a unit.
pub(super) fn timeout(text: &str) -> Option<Duration> {
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
        let read = |name: &str, choice| {
            let request = ModelInferRequest {
                parameters: Parameters::from([(name.to_owned(), InferParameter { choice })]),
                ..ModelInferRequest::default()
            };
            Grpc::new(request, None).decode()
        };
        assert!(read("any", None).is_err());
        assert!(read("timeout", Some(Choice::Int64(-1))).is_err());
        assert!(read("loopgate_record", Some(Choice::Int64(0))).is_err());
        let timeout = read("timeout", Some(Choice::String("1500".into()))).unwrap();
        assert_eq!(timeout.timeout, Some(Duration::from_micros(1500)));
        assert!(
            read("loopgate_record", Some(Choice::Bool(false)))
                .unwrap()
                .probe
        );
    }

    #[test]
    fn raw_contents_cover_every_input_or_none() {
        let request = ModelInferRequest {
            inputs: vec![Default::default()],
            raw_input_contents: vec![vec![], vec![]],
            ..ModelInferRequest::default()
        };
        let refused = Grpc::new(request, None).decode().unwrap_err().to_string();
        assert!(refused.contains("2 raw contents for 1 inputs"), "{refused}");
    }
}
