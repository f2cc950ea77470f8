//! Running a request's model, and who answers when it cannot: the next of the chain, then the
//! constant, within the same deadline.
//!
//! A version runs in place on the calling thread. It is not begun once the deadline has passed, and
//! an answer that came too late is not sent.

use std::borrow::Cow;
use std::sync::Arc;

use engine::{RunError, Signature, Tensor, TensorData};
use featurestore::Role;

use crate::admission::{Admitted, DeadlinePassed};
use crate::features::{Bound, Features, InputError, Inputs, Reader};
use crate::metrics::Metrics;
use crate::route::Route;
use crate::table::{LoadedVersion, RunFailure, Seat};

/// Why another than the routed version answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The engine refused or panicked.
    Error,
    /// The output held NaN or an infinity.
    NonFinite,
    /// The deadline passed.
    Deadline,
    /// The features could not be read.
    Features,
}

impl Reason {
    pub(crate) const ALL: [Self; 4] =
        [Self::Error, Self::NonFinite, Self::Deadline, Self::Features];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::NonFinite => "non_finite",
            Self::Deadline => "deadline",
            Self::Features => "features",
        }
    }
}

/// An answer and who gave it.
pub(crate) struct Answered {
    /// `None` for the constant.
    pub version: Option<Arc<LoadedVersion>>,
    pub role: Role,
    pub outputs: Vec<Tensor>,
    /// Why the routed version did not answer.
    pub reason: Option<Reason>,
    /// The answering version's features where they are not the routed version's.
    pub features: Option<Features>,
}

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    #[error(transparent)]
    Deadline(#[from] DeadlinePassed),
    #[error("{0}")]
    Inputs(String),
    #[error("features are not available")]
    Features,
    #[error("model `{model}` failed")]
    Failed { model: Arc<str> },
}

/// What running needs beside the request.
pub(crate) struct Runner<'a> {
    pub seat: Seat,
    pub reader: Reader<'a>,
    pub admitted: &'a Admitted,
    pub metrics: &'a Metrics,
}

/// Why one version gave no answer.
enum Failure {
    /// The caller's fault: nobody else would do better.
    Inputs(String),
    Passed(Reason),
}

impl Runner<'_> {
    /// Answers with the routed version or, unless the caller named it, with the next that can.
    pub(crate) async fn run(
        &self,
        route: &Route<'_>,
        inputs: &Arc<Inputs>,
    ) -> Result<Answered, ExecuteError> {
        let answered = self.ask_in_turn(route, inputs)?;
        if let Some(reason) = answered.reason {
            self.metrics.fallback(reason);
        }
        Ok(answered)
    }

    fn ask_in_turn(&self, route: &Route<'_>, inputs: &Inputs) -> Result<Answered, ExecuteError> {
        if inputs.unreadable {
            return self.constant(route, inputs.rows, Reason::Features);
        }
        let pinned = route.role == Role::Pinned;
        let others = if pinned { &[][..] } else { &route.model.chain };
        let alone = pinned || (others.is_empty() && route.model.constant.is_none());
        let mut reason = None;
        let candidates = std::iter::once(route.first).chain(others);
        for (k, version) in candidates.enumerate() {
            if k > 0 && version.version == route.first.version {
                continue;
            }
            match self.attempt(version, inputs, alone) {
                Ok((outputs, features)) => {
                    return Ok(Answered {
                        version: Some(Arc::clone(version)),
                        role: if k == 0 { route.role } else { Role::Fallback },
                        outputs,
                        reason,
                        features,
                    });
                }
                Err(Failure::Inputs(problem)) => return Err(ExecuteError::Inputs(problem)),
                Err(Failure::Passed(why)) => {
                    reason.get_or_insert(why);
                }
            }
        }
        let reason = reason.unwrap_or(Reason::Error);
        if pinned {
            return Err(self.refusal(route, reason));
        }
        self.constant(route, inputs.rows, reason)
    }

    /// The configured constant, when no version is left to ask.
    fn constant(
        &self,
        route: &Route<'_>,
        rows: usize,
        reason: Reason,
    ) -> Result<Answered, ExecuteError> {
        let filled = route
            .model
            .constant
            .and_then(|value| filled(&route.first.public, rows, value));
        match filled {
            Some(outputs) => Ok(Answered {
                version: None,
                role: Role::Fallback,
                outputs,
                reason: Some(reason),
                features: None,
            }),
            None => Err(self.refusal(route, reason)),
        }
    }

    fn refusal(&self, route: &Route<'_>, reason: Reason) -> ExecuteError {
        match (self.admitted.check(), reason) {
            (Err(passed), _) => passed.into(),
            (Ok(()), Reason::Features) => ExecuteError::Features,
            (Ok(()), _) => ExecuteError::Failed {
                model: Arc::clone(&route.model.name),
            },
        }
    }

    fn attempt(
        &self,
        version: &LoadedVersion,
        inputs: &Inputs,
        alone: bool,
    ) -> Result<(Vec<Tensor>, Option<Features>), Failure> {
        let late = |_| Failure::Passed(Reason::Deadline);
        self.admitted.check().map_err(late)?;
        let bound = self
            .reader
            .bind(inputs, version)
            .map_err(|error| match error {
                InputError::Unreadable => Failure::Passed(Reason::Features),
                error => Failure::Inputs(error.to_string()),
            })?;
        let (tensors, features) = match bound {
            Bound::Shared(tensors) => (Cow::Borrowed(tensors), None),
            Bound::Own(tensors, features) => (Cow::Owned(tensors), Some(features)),
        };
        let outputs = score(version, self.seat, &tensors).map_err(|failure| match failure {
            RunFailure::Engine(error @ RunError::Input { .. }) => Failure::Inputs(error.to_string()),
            failure => {
                tracing::warn!(model = %version.model, version = version.version, %failure, "model failed");
                Failure::Passed(Reason::Error)
            }
        })?;
        if !outputs.iter().all(is_finite) {
            self.metrics.nonfinite.increment(1);
            // With nobody to fall back on the caller gets the numbers as the model gave them.
            if !alone {
                return Err(Failure::Passed(Reason::NonFinite));
            }
        }
        self.admitted.check().map_err(late)?;
        Ok((outputs, features))
    }
}

/// Runs one version; a batch of no rows is answered without its engine.
pub(crate) fn score(
    version: &LoadedVersion,
    seat: Seat,
    tensors: &[Tensor],
) -> Result<Vec<Tensor>, RunFailure> {
    if version.engine.signature().rows(tensors) == Some(0)
        && let Some(outputs) = empty(&version.public)
    {
        return Ok(outputs);
    }
    version.run(seat, tensors)
}

/// Outputs of no rows, where the signature says all that they need.
fn empty(signature: &Signature) -> Option<Vec<Tensor>> {
    let output = |spec: &engine::TensorSpec| {
        let (&-1, inner) = spec.shape.split_first()? else {
            return None;
        };
        let mut shape = vec![0];
        for &axis in inner {
            shape.push(usize::try_from(axis).ok()?);
        }
        Tensor::new(shape, no_elements(spec.datatype)).ok()
    };
    signature.outputs.iter().map(output).collect()
}

fn no_elements(datatype: engine::DataType) -> TensorData {
    use engine::DataType;
    match datatype {
        DataType::Bool => TensorData::Bool(vec![]),
        DataType::Uint8 => TensorData::Uint8(vec![]),
        DataType::Uint16 => TensorData::Uint16(vec![]),
        DataType::Uint32 => TensorData::Uint32(vec![]),
        DataType::Uint64 => TensorData::Uint64(vec![]),
        DataType::Int8 => TensorData::Int8(vec![]),
        DataType::Int16 => TensorData::Int16(vec![]),
        DataType::Int32 => TensorData::Int32(vec![]),
        DataType::Int64 => TensorData::Int64(vec![]),
        DataType::Fp16 => TensorData::Fp16(vec![]),
        DataType::Bf16 => TensorData::Bf16(vec![]),
        DataType::Fp32 => TensorData::Fp32(vec![]),
        DataType::Fp64 => TensorData::Fp64(vec![]),
        DataType::Bytes => TensorData::Bytes(vec![]),
    }
}

/// Every output filled with `value`; `None` when one of them is no float.
fn filled(signature: &Signature, rows: usize, value: f32) -> Option<Vec<Tensor>> {
    let output = |spec: &engine::TensorSpec| {
        let axis = |(k, &axis): (usize, &i64)| match usize::try_from(axis) {
            Ok(axis) => axis,
            Err(_) if k == 0 => rows,
            Err(_) => 1,
        };
        let shape: Vec<usize> = spec.shape.iter().enumerate().map(axis).collect();
        let count = shape.iter().product();
        let data = match spec.datatype {
            engine::DataType::Fp32 => TensorData::Fp32(vec![value; count]),
            engine::DataType::Fp64 => TensorData::Fp64(vec![f64::from(value); count]),
            _ => return None,
        };
        Tensor::new(shape, data).ok()
    };
    signature.outputs.iter().map(output).collect()
}

fn is_finite(tensor: &Tensor) -> bool {
    match tensor.data() {
        TensorData::Fp32(values) => values.iter().all(|value| value.is_finite()),
        TensorData::Fp64(values) => values.iter().all(|value| value.is_finite()),
        TensorData::Fp16(bits) => bits.iter().all(|bits| bits & 0x7c00 != 0x7c00),
        TensorData::Bf16(bits) => bits.iter().all(|bits| bits & 0x7f80 != 0x7f80),
        _ => true,
    }
}

/// The score of each row: the last column of the first float output (for a classifier with two
/// columns the positive class); NaN where there is none.
pub(crate) fn scores(outputs: &[Tensor], rows: usize) -> Vec<f32> {
    let last_of_each = |count: usize| {
        let width = count
            .checked_div(rows)
            .filter(|width| width * rows == count && *width > 0);
        width.map(|width| (0..rows).map(move |row| row * width + width - 1))
    };
    for output in outputs {
        let scores = match output.data() {
            TensorData::Fp32(values) => {
                last_of_each(values.len()).map(|places| places.map(|place| values[place]).collect())
            }
            TensorData::Fp64(values) => last_of_each(values.len())
                .map(|places| places.map(|place| values[place] as f32).collect()),
            _ => None,
        };
        if let Some(scores) = scores {
            return scores;
        }
    }
    vec![f32::NAN; rows]
}

#[cfg(test)]
mod tests {
    use engine::{DataType, TensorSpec};

    use super::*;

    fn outputs(specs: &[(DataType, &[i64])]) -> Signature {
        let output = |(k, &(datatype, shape)): (usize, &(DataType, &[i64]))| TensorSpec {
            name: format!("y{k}"),
            datatype,
            shape: shape.to_vec(),
        };
        Signature {
            inputs: vec![],
            outputs: specs.iter().enumerate().map(output).collect(),
        }
    }

    #[test]
    fn the_score_is_the_last_column_of_the_first_float_output() {
        let labels = Tensor::new(vec![2], TensorData::Int64(vec![0, 1])).unwrap();
        let classes = Tensor::new(vec![2, 2], TensorData::Fp32(vec![0.9, 0.1, 0.2, 0.8])).unwrap();
        assert_eq!(scores(&[labels.clone(), classes], 2), [0.1, 0.8]);
        let flat = Tensor::new(vec![2], TensorData::Fp64(vec![0.5, 0.25])).unwrap();
        assert_eq!(scores(&[flat], 2), [0.5, 0.25]);
        assert!(scores(&[labels], 2).iter().all(|score| score.is_nan()));
        assert!(scores(&[], 0).is_empty());
    }

    #[test]
    fn a_constant_fills_float_outputs_only() {
        let floats = outputs(&[(DataType::Fp32, &[-1, 1]), (DataType::Fp64, &[-1])]);
        let made = filled(&floats, 3, 0.25).unwrap();
        assert_eq!((made[0].shape(), made[1].shape()), (&[3, 1][..], &[3][..]));
        assert_eq!(made[0].as_f32().unwrap(), [0.25; 3]);
        assert!(filled(&outputs(&[(DataType::Int64, &[-1])]), 3, 0.25).is_none());
    }

    #[test]
    fn no_rows_need_no_engine() {
        let made = empty(&outputs(&[
            (DataType::Fp32, &[-1, 4]),
            (DataType::Bytes, &[-1]),
        ]))
        .unwrap();
        assert_eq!((made[0].shape(), made[1].shape()), (&[0, 4][..], &[0][..]));
        assert!(empty(&outputs(&[(DataType::Fp32, &[2])])).is_none());
    }
}
