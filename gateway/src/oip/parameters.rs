//! What the parameters of a request and of its outputs mean, whichever wire they came by.
//!
//! Names that the protocol's other servers reserve for what is not offered here are refused, since
//! an answer that ignores them would be wrong; every other name is passed over.

use std::num::NonZeroUsize;
use std::time::Duration;

use super::{InferRequest, WantedOutput};

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Parameter {
    Bool(bool),
    /// Every integer of 64 bits, signed or not.
    Integer(i128),
    Text(Box<str>),
    /// A number with a fraction, or what is no value of a parameter at all.
    Other,
}

/// Why a parameter is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("parameter `{name}` {problem}")]
pub(crate) struct ParameterError {
    name: Box<str>,
    problem: &'static str,
    /// The parameter asks for a part of the protocol that is not implemented.
    pub unimplemented: bool,
}

impl ParameterError {
    pub(crate) fn new(name: &str, problem: &'static str) -> Self {
        Self {
            name: name.chars().take(64).collect(),
            problem,
            unimplemented: false,
        }
    }

    fn unimplemented(name: &str, problem: &'static str) -> Self {
        Self {
            unimplemented: true,
            ..Self::new(name, problem)
        }
    }
}

impl InferRequest {
    /// Applies a parameter of the request.
    ///
    /// # Errors
    /// When the value is of the wrong kind, or the name is reserved for what is not offered.
    pub(crate) fn apply(&mut self, name: &str, value: &Parameter) -> Result<(), ParameterError> {
        let refused = |problem| Err(ParameterError::new(name, problem));
        match name {
            "timeout" => match whole(value).and_then(|micros| u64::try_from(micros).ok()) {
                Some(micros) => {
                    self.timeout = (micros > 0).then(|| Duration::from_micros(micros));
                }
                None => return refused("is not a number of microseconds"),
            },
            "priority" => match whole(value).and_then(|priority| u32::try_from(priority).ok()) {
                Some(priority) => self.priority = priority,
                None => return refused("is not a whole number from 0 to 4294967295"),
            },
            "binary_data_output" => match value {
                Parameter::Bool(binary) => self.binary_outputs = *binary,
                _ => return refused("is not a boolean"),
            },
            "loopgate_record" => match value {
                Parameter::Bool(record) => self.probe = !record,
                _ => return refused("is not a boolean"),
            },
            "sequence_id" | "sequence_start" | "sequence_end" => {
                return refused("is reserved for sequences, which are not offered");
            }
            "headers" => return refused("is reserved for forwarded headers"),
            _ if name.starts_with("triton_") => return refused("is reserved"),
            _ => {}
        }
        Ok(())
    }
}

impl WantedOutput {
    /// Applies a parameter of the output.
    ///
    /// # Errors
    /// As [`InferRequest::apply`].
    pub(crate) fn apply(&mut self, name: &str, value: &Parameter) -> Result<(), ParameterError> {
        match name {
            "classification" => match whole(value).and_then(|count| usize::try_from(count).ok()) {
                Some(count) => self.classification = NonZeroUsize::new(count),
                None => return Err(ParameterError::new(name, "is not a number of classes")),
            },
            "binary_data" => match value {
                Parameter::Bool(binary) => self.binary = Some(*binary),
                _ => return Err(ParameterError::new(name, "is not a boolean")),
            },
            _ => refuse_shared_memory(name)?,
        }
        Ok(())
    }
}

/// Refuses a parameter, of an input or output, that says where its bytes lie in shared memory.
pub(crate) fn refuse_shared_memory(name: &str) -> Result<(), ParameterError> {
    if name.starts_with("shared_memory_") {
        let problem = "asks for shared memory, which is not offered";
        return Err(ParameterError::unimplemented(name, problem));
    }
    Ok(())
}

fn whole(value: &Parameter) -> Option<i128> {
    match value {
        Parameter::Integer(value) => Some(*value),
        Parameter::Text(digits) => digits.parse().ok(),
        Parameter::Bool(_) | Parameter::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_mean_what_the_protocol_says() {
        let mut request = InferRequest::default();
        for (name, value) in [
            ("timeout", Parameter::Integer(1500)),
            ("priority", Parameter::Text("2".into())),
            ("binary_data_output", Parameter::Bool(true)),
            ("loopgate_record", Parameter::Bool(false)),
            ("content_type", Parameter::Text("np".into())),
            ("anything", Parameter::Other),
        ] {
            request.apply(name, &value).unwrap();
        }
        assert_eq!(request.timeout, Some(Duration::from_micros(1500)));
        assert!(request.priority == 2 && request.binary_outputs && request.probe);
        request.apply("timeout", &Parameter::Integer(0)).unwrap();
        assert_eq!(request.timeout, None);

        let mut output = WantedOutput::default();
        output
            .apply("classification", &Parameter::Integer(3))
            .unwrap();
        output
            .apply("binary_data", &Parameter::Bool(false))
            .unwrap();
        assert_eq!(output.classification, NonZeroUsize::new(3));
        assert_eq!(output.binary, Some(false));
        output
            .apply("classification", &Parameter::Integer(0))
            .unwrap();
        assert_eq!(output.classification, None);
    }

    #[test]
    fn wrong_kinds_and_reserved_names_are_refused() {
        for (name, value) in [
            ("timeout", Parameter::Integer(-1)),
            ("timeout", Parameter::Other),
            ("timeout", Parameter::Text("1s".into())),
            ("priority", Parameter::Integer(1 << 32)),
            ("binary_data_output", Parameter::Integer(1)),
            ("loopgate_record", Parameter::Integer(0)),
            ("sequence_id", Parameter::Integer(7)),
            ("sequence_start", Parameter::Bool(true)),
            ("sequence_end", Parameter::Bool(true)),
            ("headers", Parameter::Text("a".into())),
            ("triton_enable_empty_final_response", Parameter::Bool(true)),
        ] {
            let refused = InferRequest::default().apply(name, &value);
            assert!(refused.is_err_and(|error| !error.unimplemented), "{name}");
        }
        let mut output = WantedOutput::default();
        assert!(
            output
                .apply("classification", &Parameter::Integer(-1))
                .is_err()
        );
        assert!(output.apply("binary_data", &Parameter::Integer(1)).is_err());
        let shared = output.apply("shared_memory_region", &Parameter::Text("r".into()));
        assert!(shared.is_err_and(|error| error.unimplemented));
    }
}
