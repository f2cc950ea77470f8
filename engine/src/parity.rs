//! Do the engines agree on a file, and which is the fastest of those that do? Where ONNX Runtime
//! runs it, agreement is with ONNX Runtime: it is what the model's author tried it with.
//!
//! Owns: the comparison and the choice of `engine = "auto"`, and random inputs to compare on.
//! Costs: one run of every engine on all samples, then [`TIMED_RUNS_MIN`] to [`TIMED_RUNS`] more in
//! about [`TIMED_FOR`], and none after [`TIMED_FOR_MAX`]. tract needs 8 ms a row on 200 trees: 64
//! rows are plenty.

use std::time::{Duration, Instant};

use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use crate::model::{EngineKind, LoadError, Model, RunError};
use crate::onnx::OnnxFile;
use crate::runtime::wants_memory;
use crate::signature::Signature;
use crate::tensor::{DataType, Tensor, TensorData};

/// Two numbers agree when they differ by at most this times the larger of 1 and their sizes.
pub const TOLERANCE: f64 = 1e-5;

/// A run on one sample that takes longer is no engine's to serve.
const SAMPLE_FOR: Duration = Duration::from_secs(60);
const TIMED_RUNS: usize = 9;
const TIMED_FOR: Duration = Duration::from_millis(60);
/// So many runs even where they take longer, up to this long.
const TIMED_RUNS_MIN: usize = 3;
const TIMED_FOR_MAX: Duration = Duration::from_millis(600);
/// An engine displaces the one before it in [`PREFERENCE`] only when it is this many times as
/// fast: timings on a busy machine waver, and a choice that wavers changes the last digits.
const CLEARLY_FASTER: f64 = 1.5;
const PREFERENCE: [EngineKind; 3] = [
    EngineKind::Trees,
    EngineKind::OnnxRuntime,
    EngineKind::Tract,
];

/// What every engine made of one file, and the one that was kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParityReport {
    /// One trial for each engine.
    pub trials: Vec<EngineTrial>,
    /// The fastest engine that agrees with ONNX Runtime, which itself does; without it, with any
    /// other; or the only one.
    pub chosen: EngineKind,
}

/// One engine on one file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EngineTrial {
    /// The engine.
    pub engine: EngineKind,
    /// Why it did not load or run the file, in a sentence; none when it ran.
    pub refused: Option<String>,
    /// True when it refused for want of memory, which is the file's doing and not that of the inputs.
    pub wants_memory: bool,
    /// The largest difference from the nearest other engine, divided by the larger of 1 and the
    /// numbers' sizes; `f64::MAX` where shapes, kinds or texts differ. None when it ran alone.
    pub difference_max: Option<f64>,
    /// The shortest time of a row, in microseconds: what else the machine does only adds to it.
    pub micros_per_row: Option<f64>,
    /// True when another engine is within [`TOLERANCE`], or no other engine ran.
    pub agrees: bool,
}

/// Why an engine did not load or run the file.
struct Refusal {
    reason: String,
    wants_memory: bool,
}

impl Refusal {
    fn on_loading(error: LoadError) -> Self {
        let reason = match error {
            LoadError::Refused { reason, .. } => reason,
            other => other.to_string(),
        };
        Self {
            wants_memory: wants_memory(&reason),
            reason,
        }
    }

    fn on_running(error: &RunError) -> Self {
        Self {
            reason: error.to_string(),
            wants_memory: matches!(error, RunError::Memory { .. }),
        }
    }
}

struct Ran {
    model: Model,
    outputs: Vec<Vec<Tensor>>,
    micros_per_row: f64,
}

/// Loads with every engine and keeps the fastest that agrees with the reference.
pub(crate) fn choose(
    file: &OnnxFile,
    samples: &[Vec<Tensor>],
) -> Result<(Model, ParityReport), LoadError> {
    if samples.is_empty() {
        return Err(LoadError::NoSamples);
    }
    let filled;
    let samples = if reads_missing(file) {
        samples
    } else {
        filled = samples
            .iter()
            .map(|inputs| fill_missing(inputs))
            .collect::<Vec<_>>();
        &filled
    };
    let runs = EngineKind::ALL.map(|engine| (engine, try_engine(file, engine, samples)));
    let trials: Vec<EngineTrial> = runs
        .iter()
        .map(|(engine, run)| {
            let others = runs.iter().filter(|(other, _)| other != engine);
            judge(
                *engine,
                run,
                others.filter_map(|(_, run)| run.as_ref().ok()),
            )
        })
        .collect();
    let reference = runs
        .iter()
        .find(|(engine, _)| *engine == EngineKind::OnnxRuntime)
        .and_then(|(_, run)| run.as_ref().ok());
    let may_serve = |engine: EngineKind, ran: &Ran| match reference {
        Some(reference) => difference(&ran.outputs, &reference.outputs) <= TOLERANCE,
        None => trials.iter().any(|t| t.engine == engine && t.agrees),
    };
    let mut chosen: Option<(EngineKind, f64)> = None;
    for preferred in PREFERENCE {
        let run = runs.iter().find(|(engine, _)| *engine == preferred);
        if let Some((engine, Ok(ran))) = run
            && may_serve(*engine, ran)
            && chosen.is_none_or(|(_, best)| ran.micros_per_row * CLEARLY_FASTER < best)
        {
            chosen = Some((*engine, ran.micros_per_row));
        }
    }
    let Some((chosen, _)) = chosen else {
        let differences = trials.iter().filter_map(|trial| trial.difference_max);
        return Err(match differences.reduce(f64::min) {
            Some(difference_max) => LoadError::Disagree {
                difference_max,
                trials,
            },
            None => LoadError::NoEngine { trials },
        });
    };
    let mut runs = runs.into_iter();
    match runs.find(|(engine, _)| *engine == chosen) {
        Some((_, Ok(ran))) => Ok((ran.model, ParityReport { trials, chosen })),
        _ => Err(LoadError::NoEngine { trials }),
    }
}

/// True when some operator gives a missing value a meaning. For any other the standard says
/// nothing, engines differ (`Relu` of NaN), and a comparison on it would refuse good models.
fn reads_missing(file: &OnnxFile) -> bool {
    file.operators().iter().any(|operator| {
        let name = operator.name.as_str();
        matches!(name, "IsNaN" | "Imputer") || name.starts_with("TreeEnsemble")
    })
}

fn fill_missing(inputs: &[Tensor]) -> Vec<Tensor> {
    let filled = inputs.iter().cloned().map(|tensor| {
        let (shape, mut data) = tensor.into_parts();
        match &mut data {
            TensorData::Fp32(values) => {
                values
                    .iter_mut()
                    .filter(|v| v.is_nan())
                    .for_each(|v| *v = 0.0);
            }
            TensorData::Fp64(values) => {
                values
                    .iter_mut()
                    .filter(|v| v.is_nan())
                    .for_each(|v| *v = 0.0);
            }
            _ => {}
        }
        Tensor::new(shape, data).expect("neither shape nor length has changed")
    });
    filled.collect()
}

fn try_engine(
    file: &OnnxFile,
    engine: EngineKind,
    samples: &[Vec<Tensor>],
) -> Result<Ran, Refusal> {
    let model = Model::load(file, engine).map_err(Refusal::on_loading)?;
    let mut session = model.session().map_err(Refusal::on_loading)?;
    let mut run = || {
        let outputs = samples
            .iter()
            .map(|inputs| session.run_until(inputs, Some(Instant::now() + SAMPLE_FOR)));
        outputs
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Refusal::on_running(&error))
    };
    let started = Instant::now();
    let outputs = run()?;
    let first = started.elapsed();
    let rows: usize = samples
        .iter()
        .map(|inputs| file.signature().rows(inputs).unwrap_or(1))
        .sum();
    // The first run is cold and counts only when it is so slow that few more can follow.
    let mut micros = Vec::with_capacity(TIMED_RUNS);
    if first >= TIMED_FOR {
        micros.push(first.as_secs_f64() * 1e6);
    }
    while !enough(micros.len(), started.elapsed()) {
        let before = Instant::now();
        run()?;
        micros.push(before.elapsed().as_secs_f64() * 1e6);
    }
    let shortest = micros.into_iter().fold(f64::MAX, f64::min);
    Ok(Ran {
        model,
        outputs,
        micros_per_row: shortest / rows.max(1) as f64,
    })
}

/// Whether so many timed runs will do after this long. A pause of the machine can be longer than
/// [`TIMED_FOR`], and a single run would take it for the engine's.
fn enough(runs: usize, spent: Duration) -> bool {
    match runs {
        0 => false,
        runs if runs < TIMED_RUNS_MIN => spent >= TIMED_FOR_MAX,
        runs => runs >= TIMED_RUNS || spent >= TIMED_FOR,
    }
}

fn judge<'a>(
    engine: EngineKind,
    run: &Result<Ran, Refusal>,
    others: impl Iterator<Item = &'a Ran>,
) -> EngineTrial {
    let ran = match run {
        Ok(ran) => ran,
        Err(refusal) => {
            return EngineTrial {
                engine,
                refused: Some(refusal.reason.clone()),
                wants_memory: refusal.wants_memory,
                difference_max: None,
                micros_per_row: None,
                agrees: false,
            };
        }
    };
    let difference_max = others
        .map(|other| difference(&ran.outputs, &other.outputs))
        .reduce(f64::min);
    EngineTrial {
        engine,
        refused: None,
        wants_memory: false,
        difference_max,
        micros_per_row: Some(ran.micros_per_row),
        agrees: difference_max.is_none_or(|difference| difference <= TOLERANCE),
    }
}

fn difference(a: &[Vec<Tensor>], b: &[Vec<Tensor>]) -> f64 {
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs
        .map(|(a, b)| tensor_difference(a, b))
        .fold(0.0, f64::max)
}

fn tensor_difference(a: &Tensor, b: &Tensor) -> f64 {
    if a.shape() != b.shape() {
        return f64::MAX;
    }
    let (Some(a_numbers), Some(b_numbers)) = (numbers(a.data()), numbers(b.data())) else {
        return if a.data() == b.data() { 0.0 } else { f64::MAX };
    };
    let pairs = a_numbers.iter().zip(&b_numbers);
    pairs
        .map(|(&a, &b)| number_difference(a, b))
        .fold(0.0, f64::max)
}

/// Where a tensor is not as it was to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The element's place on each axis; empty where shape or datatype differ.
    pub place: Vec<usize>,
    /// The element as it was to be, or datatype and shape.
    pub expected: String,
    /// What there is instead.
    pub found: String,
}

/// The first element of `found` that is not that of `expected`. Floats may differ by `tolerance`
/// times the larger of 1 and their sizes, and NaN is NaN; all else is to be equal.
pub fn first_mismatch(expected: &Tensor, found: &Tensor, tolerance: f64) -> Option<Mismatch> {
    if expected.shape() != found.shape() || expected.datatype() != found.datatype() {
        let shown = |tensor: &Tensor| format!("{} {:?}", tensor.datatype(), tensor.shape());
        return Some(Mismatch {
            place: Vec::new(),
            expected: shown(expected),
            found: shown(found),
        });
    }
    let (wanted, got) = (expected.data(), found.data());
    let parts = |index: &usize| match (wanted.float(*index), got.float(*index)) {
        (Some(wanted), Some(got)) => number_difference(wanted, got) > tolerance,
        _ => wanted.shown(*index) != got.shown(*index),
    };
    let index = (0..wanted.len()).find(parts)?;
    Some(Mismatch {
        place: place(index, expected.shape()),
        expected: wanted.shown(index),
        found: got.shown(index),
    })
}

/// The place on each axis of an element of a row-major buffer.
fn place(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut place: Vec<usize> = shape
        .iter()
        .rev()
        .map(|&axis| {
            let at = index % axis.max(1);
            index /= axis.max(1);
            at
        })
        .collect();
    place.reverse();
    place
}

fn number_difference(a: f64, b: f64) -> f64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0.0;
    }
    if !a.is_finite() || !b.is_finite() {
        return f64::MAX;
    }
    (a - b).abs() / a.abs().max(b.abs()).max(1.0)
}

/// Floats as numbers; the other types must be equal.
fn numbers(data: &TensorData) -> Option<Vec<f64>> {
    match data {
        TensorData::Fp32(values) => Some(values.iter().map(|&v| f64::from(v)).collect()),
        TensorData::Fp64(values) => Some(values.clone()),
        TensorData::Fp16(bits) => Some(bits.iter().map(|&b| f16::from_bits(b).to_f64()).collect()),
        TensorData::Bf16(bits) => Some(bits.iter().map(|&b| bf16::from_bits(b).to_f64()).collect()),
        _ => None,
    }
}

/// Random inputs for `signature`: `rows` rows where the first axis varies, 1 where another does.
/// Floats are missing in 5 %, multiples of 1/2 in a third (ties with thresholds), small in most
/// and large in some. The same seed gives the same inputs.
pub fn sample_inputs(signature: &Signature, rows: usize, seed: u64) -> Vec<Tensor> {
    let mut random = SplitMix(seed);
    signature
        .inputs
        .iter()
        .map(|spec| {
            let axis = |(index, &dim): (usize, &i64)| match usize::try_from(dim) {
                Ok(dim) => dim,
                Err(_) if index == 0 => rows,
                Err(_) => 1,
            };
            let shape: Vec<usize> = spec.shape.iter().enumerate().map(axis).collect();
            let count = shape.iter().product();
            let data = sample_data(spec.datatype, count, &mut random);
            Tensor::new(shape, data).expect("the data was made for the shape")
        })
        .collect()
}

fn sample_data(datatype: DataType, count: usize, random: &mut SplitMix) -> TensorData {
    macro_rules! small {
        ($variant:ident, $type:ty) => {
            TensorData::$variant((0..count).map(|_| (random.next() % 100) as $type).collect())
        };
    }
    match datatype {
        DataType::Bool => TensorData::Bool(
            (0..count)
                .map(|_| random.next().is_multiple_of(2))
                .collect(),
        ),
        DataType::Uint8 => small!(Uint8, u8),
        DataType::Uint16 => small!(Uint16, u16),
        DataType::Uint32 => small!(Uint32, u32),
        DataType::Uint64 => small!(Uint64, u64),
        DataType::Int8 => small!(Int8, i8),
        DataType::Int16 => small!(Int16, i16),
        DataType::Int32 => small!(Int32, i32),
        DataType::Int64 => small!(Int64, i64),
        DataType::Fp16 => TensorData::Fp16((0..count).map(|_| random.one_of(HALVES)).collect()),
        DataType::Bf16 => {
            TensorData::Bf16((0..count).map(|_| random.one_of(BRAIN_HALVES)).collect())
        }
        DataType::Fp32 => TensorData::Fp32((0..count).map(|_| random.float() as f32).collect()),
        DataType::Fp64 => TensorData::Fp64((0..count).map(|_| random.float()).collect()),
        DataType::Bytes => TensorData::Bytes(
            (0..count)
                .map(|_| format!("v{}", random.next() % 20).into_bytes())
                .collect(),
        ),
    }
}

/// 1.0 and 2.0 in half precision.
const HALVES: [u16; 2] = [0x3c00, 0x4000];
/// 1.0 and 2.0 in BF16.
const BRAIN_HALVES: [u16; 2] = [0x3f80, 0x4000];

/// SplitMix64 (Steele, Lea, Flood 2014): enough for samples, and the same on every machine.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_of(&mut self, [a, b]: [u16; 2]) -> u16 {
        if self.next().is_multiple_of(2) { a } else { b }
    }

    /// Uniform in -1 to 1.
    fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 52) as f64 - 1.0
    }

    fn float(&mut self) -> f64 {
        match self.next() % 60 {
            0..3 => f64::NAN,
            3..23 => (self.unit() * 8.0).round() / 2.0,
            23..50 => self.unit() * 3.0,
            50..58 => self.unit() * 100.0,
            _ => self.unit() * 1e5,
        }
    }
}

#[cfg(test)]
mod tests;
