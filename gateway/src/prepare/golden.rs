//! Golden rows: inputs of a version's own tensors and the outputs that it must give for them before
//! it serves. They come with the version, from whoever trained it, in the form of [`oip::decode_pairs`].
//!
//! What they catch: a file that loads and runs and is not the model that was meant, and an engine
//! that runs it otherwise than the trainer's did. Cost: one run for each pair.

use std::time::{Duration, Instant};

use engine::{Mismatch, Tensor, first_mismatch};

use crate::oip::{self, DecodeError, NamedTensor, Pair, Pairs};
use crate::table::{LoadedVersion, RunFailure, Seat};

/// Bytes of a version's golden rows.
const BYTES_MAX: usize = 4 << 20;
/// How far floats may be from the expected ones where the rows do not say: this times the larger of
/// 1 and their sizes. Ten times what engines that agree may differ by.
const TOLERANCE: f64 = 10.0 * engine::TOLERANCE;
/// Longest run of one pair.
const RUN_MAX: Duration = Duration::from_secs(10);

/// Why golden rows are none, or were not reproduced.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GoldenError {
    #[error("golden rows have {bytes} bytes, at most {BYTES_MAX} allowed")]
    TooLarge { bytes: usize },
    #[error("golden rows: {0}")]
    Decode(#[from] DecodeError),
    #[error("golden rows: there are none in `pairs`")]
    Empty,
    #[error("golden rows: tolerance {0} is not a number from 0 on")]
    Tolerance(f64),
    #[error("golden rows, pair {pair}: the model has no {what} `{name}`")]
    Unknown {
        pair: usize,
        what: &'static str,
        name: Box<str>,
    },
    #[error("golden rows, pair {pair}: input `{input}` is not given")]
    Missing { pair: usize, input: String },
    #[error("golden rows, pair {pair}: {failure}")]
    Run { pair: usize, failure: RunFailure },
    #[error(
        "golden rows, pair {pair}, row {row}, output `{output}` {place:?}: expected {expected}, got {got}"
    )]
    NotReproduced {
        pair: usize,
        row: usize,
        output: Box<str>,
        place: Vec<usize>,
        expected: String,
        got: String,
    },
}

/// The golden rows of a version.
#[derive(Clone, Debug)]
pub(crate) struct Golden {
    tolerance: f64,
    pairs: Vec<Pair>,
}

impl Golden {
    /// # Errors
    /// When the document is too large or is not one of golden rows.
    pub(crate) fn read(document: &[u8]) -> Result<Self, GoldenError> {
        if document.len() > BYTES_MAX {
            let bytes = document.len();
            return Err(GoldenError::TooLarge { bytes });
        }
        let Pairs { tolerance, pairs } = oip::decode_pairs(document)?;
        if pairs.iter().all(|pair| pair.outputs.is_empty()) {
            return Err(GoldenError::Empty);
        }
        let tolerance = tolerance.unwrap_or(TOLERANCE);
        if !tolerance.is_finite() || tolerance < 0.0 {
            return Err(GoldenError::Tolerance(tolerance));
        }
        Ok(Self { tolerance, pairs })
    }

    /// Runs every pair and compares.
    ///
    /// # Errors
    /// At the first output that is not reproduced, and when the rows do not suit the model.
    pub(super) fn reproduce(&self, version: &LoadedVersion, seat: Seat) -> Result<(), GoldenError> {
        for (number, pair) in self.pairs.iter().enumerate() {
            let inputs = inputs(number, pair, version)?;
            let until = Some(Instant::now() + RUN_MAX);
            let outputs = version.run_until(seat, &inputs, until);
            let outputs = outputs.map_err(|failure| GoldenError::Run {
                pair: number,
                failure,
            })?;
            for NamedTensor { name, tensor } in &pair.outputs {
                let found = output(number, name, version, &outputs)?;
                if let Some(mismatch) = first_mismatch(tensor, found, self.tolerance) {
                    return Err(not_reproduced(number, name, mismatch));
                }
            }
        }
        Ok(())
    }
}

/// The pair's inputs in the model's order.
fn inputs(number: usize, pair: &Pair, version: &LoadedVersion) -> Result<Vec<Tensor>, GoldenError> {
    let known = &version.engine.signature().inputs;
    for NamedTensor { name, .. } in &pair.inputs {
        if known.iter().all(|spec| *spec.name != **name) {
            return Err(GoldenError::Unknown {
                pair: number,
                what: "input",
                name: name.clone(),
            });
        }
    }
    let given = known.iter().map(|spec| {
        let found = pair.inputs.iter().find(|input| *input.name == *spec.name);
        found
            .map(|input| input.tensor.clone())
            .ok_or_else(|| GoldenError::Missing {
                pair: number,
                input: spec.name.clone(),
            })
    });
    given.collect()
}

fn output<'o>(
    number: usize,
    name: &str,
    version: &LoadedVersion,
    outputs: &'o [Tensor],
) -> Result<&'o Tensor, GoldenError> {
    let specs = &version.engine.signature().outputs;
    let found = specs
        .iter()
        .zip(outputs)
        .find(|(spec, _)| spec.name == name);
    found
        .map(|(_, tensor)| tensor)
        .ok_or_else(|| GoldenError::Unknown {
            pair: number,
            what: "output",
            name: name.into(),
        })
}

fn not_reproduced(pair: usize, output: &str, mismatch: Mismatch) -> GoldenError {
    GoldenError::NotReproduced {
        pair,
        row: mismatch.place.first().copied().unwrap_or(0),
        output: output.into(),
        place: mismatch.place,
        expected: mismatch.expected,
        got: mismatch.found,
    }
}
