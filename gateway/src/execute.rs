//! Running a request's model, and who answers when it cannot: the next of the chain, then the
//! constant, within the same deadline.
//!
//! A version runs in place on the calling thread where that is cheap, else on a worker of the pool,
//! which is waited for until just before the deadline: what is left is for whoever answers instead.
//! Nothing is begun once the deadline has passed, and an answer that came too late is not sent. How
//! each run ended is told to its version's breaker.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{RunError, Signature, Tensor, TensorData};
use featurestore::Role;
use smallvec::SmallVec;

use crate::admission::{Admitted, DeadlinePassed, Limit, Overloaded};
use crate::breaker::{Gate, Run};
use crate::features::{Bound, Features, InputError, Inputs, Reader, RefusedRow};
use crate::metrics::Metrics;
use crate::pool::{Pool, PoolFailure, Pooled, Priority, Tensors};
use crate::route::Route;
use crate::table::{LoadedVersion, RunFailure, Seat};

/// Time that is kept for whoever answers instead, beside twice what its run is expected to take:
/// timers are exact to a millisecond.
const RESERVE: Duration = Duration::from_millis(2);

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
    /// A feature is missing without which its service refuses a row.
    Missing,
    /// The version failed lately.
    Breaker,
}

impl Reason {
    pub(crate) const ALL: [Self; 6] = [
        Self::Error,
        Self::NonFinite,
        Self::Deadline,
        Self::Features,
        Self::Missing,
        Self::Breaker,
    ];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::NonFinite => "non_finite",
            Self::Deadline => "deadline",
            Self::Features => "features",
            Self::Missing => "missing_feature",
            Self::Breaker => "breaker",
        }
    }
}

/// An answer and who gave it.
pub(crate) struct Answered {
    /// `None` for the constant.
    pub version: Option<Arc<LoadedVersion>>,
    pub role: Role,
    pub outputs: Vec<Tensor>,
    /// How long the run that gave them waited for a worker of the pool.
    pub queue: Duration,
    /// Why the routed version did not answer.
    pub reason: Option<Reason>,
    /// The answering version's features where they are not the routed version's.
    pub features: Option<Features>,
    /// Versions whose breakers want a copy of the request as a probe.
    pub probes: Vec<Arc<LoadedVersion>>,
}

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExecuteError {
    #[error(transparent)]
    Deadline(#[from] DeadlinePassed),
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    #[error("{0}")]
    Inputs(String),
    #[error("features are not available")]
    Features,
    #[error(transparent)]
    Missing(RefusedRow),
    #[error("model `{model}` failed")]
    Failed { model: Arc<str> },
    #[error("model `{model}` has failed lately and is being tried again")]
    Broken {
        model: Arc<str>,
        retry_after: Duration,
    },
}

/// What running needs beside the request.
pub(crate) struct Runner<'a> {
    pub seat: Seat,
    pub pool: &'a Pool,
    pub reader: Reader<'a>,
    pub admitted: &'a Admitted,
    pub priority: Priority,
    pub metrics: &'a Metrics,
}

/// One version's turn to answer.
#[derive(Clone, Copy)]
struct Turn<'a> {
    version: &'a Arc<LoadedVersion>,
    /// Nobody would answer instead.
    alone: bool,
    /// Who would; `None` for the constant.
    next: Option<&'a Arc<LoadedVersion>>,
}

/// What one version gave.
struct Output {
    tensors: Vec<Tensor>,
    features: Option<Features>,
    queue: Duration,
}

/// Why one version gave no answer.
enum Failure {
    /// The caller's fault: nobody else would do better.
    Inputs(String),
    Overloaded(Overloaded),
    Broken(Gate),
    Missing(RefusedRow),
    Passed(Reason),
}

impl Runner<'_> {
    /// Answers with the routed version or, unless the caller named it, with the next that can.
    pub(crate) async fn run(
        &self,
        route: &Route<'_>,
        inputs: &Arc<Inputs>,
    ) -> Result<Answered, ExecuteError> {
        let mut probes = Vec::new();
        match self.ask_in_turn(route, inputs, &mut probes).await {
            Ok(mut answered) => {
                if let Some(reason) = answered.reason {
                    self.metrics.fallback(reason);
                }
                answered.probes = probes;
                Ok(answered)
            }
            Err(error) => {
                let now = Instant::now();
                for version in probes {
                    version.breaker.probed(now, None);
                }
                Err(error)
            }
        }
    }

    async fn ask_in_turn(
        &self,
        route: &Route<'_>,
        inputs: &Arc<Inputs>,
        probes: &mut Vec<Arc<LoadedVersion>>,
    ) -> Result<Answered, ExecuteError> {
        if inputs.unreadable {
            return self.constant(route, inputs.rows, Reason::Features);
        }
        let pinned = route.role == Role::Pinned;
        let others = if pinned { &[][..] } else { &route.model.chain };
        let alone = pinned || (others.is_empty() && route.model.constant.is_none());
        let (mut reason, mut broken, mut missing) = (None, None, None);
        let candidates = std::iter::once(route.first).chain(others);
        for (k, version) in candidates.enumerate() {
            if k > 0 && version.version == route.first.version {
                continue;
            }
            let next = others.get(k);
            let turn = Turn {
                version,
                alone,
                next,
            };
            match self.attempt(turn, inputs).await {
                Ok(output) => {
                    return Ok(Answered {
                        version: Some(Arc::clone(version)),
                        role: if k == 0 { route.role } else { Role::Fallback },
                        outputs: output.tensors,
                        queue: output.queue,
                        reason,
                        features: output.features,
                        probes: Vec::new(),
                    });
                }
                Err(Failure::Inputs(problem)) => return Err(ExecuteError::Inputs(problem)),
                Err(Failure::Overloaded(overloaded)) if k == 0 => return Err(overloaded.into()),
                Err(Failure::Overloaded(_)) => {}
                Err(Failure::Broken(gate)) => {
                    reason.get_or_insert(Reason::Breaker);
                    match gate {
                        Gate::Open { retry_after } => broken = Some(retry_after),
                        Gate::Closed | Gate::Probe => probes.push(Arc::clone(version)),
                    }
                }
                Err(Failure::Missing(row)) => {
                    reason.get_or_insert(Reason::Missing);
                    missing.get_or_insert(row);
                }
                Err(Failure::Passed(why)) => _ = reason.get_or_insert(why),
            }
        }
        let reason = reason.unwrap_or(Reason::Error);
        let answered = match pinned {
            true => Err(self.refusal(route, reason)),
            false => self.constant(route, inputs.rows, reason),
        };
        match (answered, broken, missing) {
            (Err(ExecuteError::Failed { .. }), _, Some(row)) if reason == Reason::Missing => {
                Err(ExecuteError::Missing(row))
            }
            (Err(ExecuteError::Failed { model }), Some(retry_after), _) => {
                Err(ExecuteError::Broken { model, retry_after })
            }
            (answered, ..) => answered,
        }
    }

    /// When a version must have answered, so that the next, or the constant, still can; half of the
    /// time that is left at least.
    fn until(&self, turn: Turn<'_>) -> Instant {
        let until = self.admitted.until();
        if turn.alone {
            return until;
        }
        let run = turn.next.map(|next| next.cost.cost().of(1, 1));
        let reserve = RESERVE + 2 * run.unwrap_or_default();
        let left = until.saturating_duration_since(Instant::now());
        until.checked_sub(reserve.min(left / 2)).unwrap_or(until)
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
                queue: Duration::ZERO,
                reason: Some(reason),
                features: None,
                probes: Vec::new(),
            }),
            None => Err(self.refusal(route, reason)),
        }
    }

    fn refusal(&self, route: &Route<'_>, reason: Reason) -> ExecuteError {
        match (self.admitted.check(), reason) {
            (Err(passed), _) => passed.into(),
            (Ok(()), Reason::Deadline) => self.admitted.late().into(),
            (Ok(()), Reason::Features) => ExecuteError::Features,
            (Ok(()), _) => ExecuteError::Failed {
                model: Arc::clone(&route.model.name),
            },
        }
    }

    async fn attempt(&self, turn: Turn<'_>, inputs: &Arc<Inputs>) -> Result<Output, Failure> {
        let late = |_| Failure::Passed(Reason::Deadline);
        self.admitted.check().map_err(late)?;
        let gate = turn.version.breaker.gate(Instant::now);
        if gate != Gate::Closed && !(gate == Gate::Probe && turn.alone) {
            return Err(Failure::Broken(gate));
        }
        let mut verdict = None;
        let answered = self.answer(turn, inputs, &mut verdict).await;
        let breaker = &turn.version.breaker;
        match verdict {
            verdict if gate == Gate::Probe => breaker.probed(Instant::now(), verdict),
            None => {}
            Some(Run::Succeeded) => breaker.succeeded(Instant::now),
            Some(Run::Failed) if breaker.failed(Instant::now()) => {
                self.metrics.breakers_opened.increment(1);
                let LoadedVersion { model, version, .. } = &**turn.version;
                tracing::warn!(%model, version, "breaker opened");
            }
            Some(Run::Failed) => {}
        }
        answered
    }

    /// Binds, runs and looks at the outputs; the verdict is on the version, where there is one.
    async fn answer(
        &self,
        turn: Turn<'_>,
        inputs: &Arc<Inputs>,
        verdict: &mut Option<Run>,
    ) -> Result<Output, Failure> {
        let Turn { version, alone, .. } = turn;
        let bound = self.reader.bind(inputs, version).await;
        let (tensors, features) = match bound {
            Ok(Bound::Shared(tensors)) => (Cow::Borrowed(tensors), None),
            Ok(Bound::Own(tensors, features)) => (Cow::Owned(tensors), Some(features)),
            Err(InputError::Unreadable) => return Err(Failure::Passed(Reason::Features)),
            Err(InputError::Refused(row)) => return Err(Failure::Missing(row)),
            Err(error) => return Err(Failure::Inputs(error.to_string())),
        };
        let outputs = match version.cost.is_in_place(version.rows(&tensors)) {
            true => score(version, self.seat, &tensors, Some(self.admitted.until()))
                .map(|outputs| Pooled {
                    outputs,
                    waited: Duration::ZERO,
                })
                .map_err(PoolFailure::Run),
            false => {
                let tensors = match tensors {
                    Cow::Borrowed(_) => Tensors::Shared(Arc::clone(inputs)),
                    Cow::Owned(tensors) => Tensors::Own(Arc::new(tensors)),
                };
                let until = self.until(turn);
                self.pool.run(version, tensors, until, self.priority).await
            }
        };
        let Pooled { outputs, waited } = match outputs {
            Ok(pooled) => pooled,
            Err(failure) => return Err(self.judge(turn, failure, verdict)),
        };
        *verdict = Some(Run::Succeeded);
        if !outputs.iter().all(is_finite) {
            self.metrics.nonfinite.increment(1);
            // With nobody to fall back on the caller gets the numbers as the model gave them.
            if !alone {
                *verdict = Some(Run::Failed);
                return Err(Failure::Passed(Reason::NonFinite));
            }
        }
        match self.admitted.check() {
            Ok(()) => Ok(Output {
                tensors: outputs,
                features,
                queue: waited,
            }),
            Err(_) => Err(Failure::Passed(Reason::Deadline)),
        }
    }

    /// What a run without outputs means: for the request, and for the version's breaker.
    fn judge(&self, turn: Turn<'_>, failure: PoolFailure, verdict: &mut Option<Run>) -> Failure {
        let version = turn.version;
        match failure {
            PoolFailure::Run(RunFailure::Engine(error @ RunError::Input { .. })) => {
                Failure::Inputs(error.to_string())
            }
            // In place, where it should have taken a hundred microseconds.
            PoolFailure::Run(RunFailure::Engine(RunError::Stopped { .. })) => {
                *verdict = Some(Run::Failed);
                Failure::Passed(Reason::Deadline)
            }
            PoolFailure::Run(failure @ RunFailure::OnTheseInputs(_)) => {
                tracing::warn!(model = %version.model, version = version.version, %failure, "model failed");
                Failure::Passed(Reason::Error)
            }
            PoolFailure::Run(failure) => {
                tracing::warn!(model = %version.model, version = version.version, %failure, "model failed");
                *verdict = Some(Run::Failed);
                Failure::Passed(Reason::Error)
            }
            PoolFailure::Late { is_overdue } => {
                if is_overdue {
                    *verdict = Some(Run::Failed);
                }
                Failure::Passed(Reason::Deadline)
            }
            PoolFailure::Overloaded { wait } => Failure::Overloaded(Overloaded {
                limit: Limit::Wait(wait),
                retry_after: wait,
            }),
            PoolFailure::Stopped => Failure::Passed(Reason::Error),
        }
    }
}

/// Runs one version; a batch of no rows is answered without its engine.
pub(crate) fn score(
    version: &LoadedVersion,
    seat: Seat,
    tensors: &[Tensor],
    until: Option<Instant>,
) -> Result<Vec<Tensor>, RunFailure> {
    if version.engine.signature().rows(tensors) == Some(0)
        && let Some(outputs) = empty(&version.public)
    {
        return Ok(outputs);
    }
    version.run_until(seat, tensors, until)
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

pub(crate) fn is_finite(tensor: &Tensor) -> bool {
    match tensor.data() {
        TensorData::Fp32(values) => values.iter().all(|value| value.is_finite()),
        TensorData::Fp64(values) => values.iter().all(|value| value.is_finite()),
        TensorData::Fp16(bits) => bits.iter().all(|bits| bits & 0x7c00 != 0x7c00),
        TensorData::Bf16(bits) => bits.iter().all(|bits| bits & 0x7f80 != 0x7f80),
        _ => true,
    }
}

/// The scores of some rows; of few rows without an allocation.
pub(crate) type Scores = SmallVec<[f32; 4]>;

/// The score of each row: the last column of the first float output (for a classifier with two
/// columns the positive class); NaN where there is none.
pub(crate) fn scores(outputs: &[Tensor], rows: usize) -> Scores {
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
            halves @ (TensorData::Fp16(_) | TensorData::Bf16(_)) => {
                let score = |place| halves.float(place).map_or(f32::NAN, |value| value as f32);
                last_of_each(halves.len()).map(|places| places.map(score).collect())
            }
            _ => None,
        };
        if let Some(scores) = scores {
            return scores;
        }
    }
    Scores::from_elem(f32::NAN, rows)
}

#[cfg(test)]
mod tests;
