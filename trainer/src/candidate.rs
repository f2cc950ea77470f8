//! A fitted model that has become an ONNX file and was run by engines, so that it is judged as it
//! would be served; and the champion, brought to the same rows.
//!
//! Must not know: limits, verdicts. Costs: one load per engine and one pass over the holdout.

use std::sync::Arc;
use std::time::Instant;

use engine::{
    CheckError, DataType, EngineKind, LoadError, Model, OnnxFile, OnnxLimits, ParityReport,
    RunError, Session, Tensor, TensorData, TensorError,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thiserror::Error;

use crate::export::Graph;
use crate::golden;
use crate::learner::{Fitted, LearnError};
use crate::rows::Part;

/// Rows per call while scoring.
const BATCH: usize = 1024;
/// Rows on which engines are compared: as they are, with gaps, and on thresholds.
const SAMPLE_ROWS: usize = 40;
/// Single-row calls timed for the latency gate.
const TIMED_ROWS: usize = 200;

/// A model as it would be registered and served.
pub(crate) struct Candidate {
    /// The ONNX file.
    pub(crate) bytes: Arc<[u8]>,
    /// Inputs and outputs, for the registry.
    pub(crate) signature: serde_json::Value,
    /// What the engines made of it.
    pub(crate) report: ParityReport,
    /// Some of its answers, for who serves it to reproduce.
    pub(crate) golden: String,
    /// The chosen engine's answers on the holdout.
    pub(crate) scores: Vec<f32>,
    /// Largest difference between the chosen engine's and the learner's answers, on the holdout
    /// and on the sample rows.
    pub(crate) learner_difference: f64,
    /// Median time of one row at a time in the chosen engine, in microseconds.
    pub(crate) row_us: f64,
}

/// Why a model could not be run.
#[derive(Debug, Error)]
pub(crate) enum CandidateError {
    /// The learner failed.
    #[error(transparent)]
    Learner(#[from] LearnError),
    /// The file does not pass the structural check.
    #[error(transparent)]
    Check(#[from] CheckError),
    /// No engine loads it, or the engines disagree.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A tensor could not be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// The engine failed on rows.
    #[error(transparent)]
    Run(#[from] RunError),
    /// It is no model from these features to one probability.
    #[error("takes {found}, not [rows, {columns}] of FP32 to one FP32 score a row")]
    Signature {
        /// Features of the rows at hand.
        columns: usize,
        /// What the model takes and gives.
        found: String,
    },
    /// The signature could not be written down.
    #[error("signature: {0}")]
    Json(#[from] serde_json::Error),
}

impl Candidate {
    /// Exports a fitted model, loads it in every engine and scores the holdout.
    pub(crate) fn prepare(
        fitted: &dyn Fitted,
        holdout: &Part,
        seed: u64,
    ) -> Result<Self, CandidateError> {
        let graph = fitted.graph()?;
        let bytes: Arc<[u8]> = graph.onnx().into();
        let file = OnnxFile::check(Arc::clone(&bytes), &OnnxLimits::default())?;
        let columns = holdout.columns();
        expect_signature(&file, columns)?;
        let sample = sample_rows(&graph, holdout, seed);
        let (model, report) = Model::load_auto(&file, &[vec![tensor(&sample, columns)?]])?;
        let mut session = model.session()?;
        let scores = score(&mut session, holdout.values(), columns)?;
        let sampled = score(&mut session, &sample, columns)?;
        let learner_difference = difference(&scores, &fitted.predict(holdout.values())?)
            .max(difference(&sampled, &fitted.predict(&sample)?));
        let row_us = row_us(&mut session, holdout)?;
        let signature = serde_json::to_value(file.signature())?;
        Ok(Self {
            bytes,
            signature,
            golden: golden::document(file.signature(), holdout, &scores),
            report,
            scores,
            learner_difference,
            row_us,
        })
    }
}

/// Scores rows with a registered model, by the first engine that takes it.
pub(crate) fn score_registered(bytes: Arc<[u8]>, rows: &Part) -> Result<Vec<f32>, CandidateError> {
    let file = OnnxFile::check(bytes, &OnnxLimits::default())?;
    expect_signature(&file, rows.columns())?;
    let quickest_first = [
        EngineKind::Trees,
        EngineKind::OnnxRuntime,
        EngineKind::Tract,
    ];
    let mut refusal = None;
    for kind in quickest_first {
        match Model::load(&file, kind) {
            Ok(model) => return score(&mut model.session()?, rows.values(), rows.columns()),
            Err(error) => refusal = Some(error),
        }
    }
    Err(refusal.expect("the list of engines is not empty").into())
}

fn expect_signature(file: &OnnxFile, columns: usize) -> Result<(), CandidateError> {
    let signature = file.signature();
    if let ([input], [output]) = (signature.inputs.as_slice(), signature.outputs.as_slice())
        && input.datatype == DataType::Fp32
        && input.shape == [-1, columns as i64]
        && output.datatype == DataType::Fp32
        && (output.shape == [-1, 1] || output.shape == [-1])
    {
        return Ok(());
    }
    let shapes = |specs: &[engine::TensorSpec]| {
        let shape =
            |spec: &engine::TensorSpec| format!("{} {:?}", spec.datatype.as_str(), spec.shape);
        specs.iter().map(shape).collect::<Vec<_>>().join(", ")
    };
    let found = format!(
        "{} to {}",
        shapes(&signature.inputs),
        shapes(&signature.outputs)
    );
    Err(CandidateError::Signature { columns, found })
}

fn tensor(values: &[f32], columns: usize) -> Result<Tensor, TensorError> {
    Tensor::new(
        vec![values.len() / columns, columns],
        TensorData::Fp32(values.to_vec()),
    )
}

fn score(
    session: &mut Session,
    values: &[f32],
    columns: usize,
) -> Result<Vec<f32>, CandidateError> {
    let mut scores = Vec::with_capacity(values.len() / columns);
    for batch in values.chunks(BATCH * columns) {
        let outputs = session.run(&[tensor(batch, columns)?])?;
        scores.extend_from_slice(outputs.first().and_then(Tensor::as_f32).unwrap_or_default());
    }
    Ok(scores)
}

/// Real rows spread over the holdout; the same with gaps; the same with values on, just below and
/// just above thresholds, where engines that compare differently part; and one empty row.
fn sample_rows(graph: &Graph, holdout: &Part, seed: u64) -> Vec<f32> {
    let (rows, columns) = (holdout.rows(), holdout.columns());
    let real: Vec<f32> = (0..SAMPLE_ROWS)
        .flat_map(|index| {
            let row = index * rows / SAMPLE_ROWS;
            holdout.values()[row * columns..(row + 1) * columns]
                .iter()
                .copied()
        })
        .collect();
    let mut random = StdRng::seed_from_u64(seed);
    let mut gaps = real.clone();
    gaps.iter_mut()
        .filter(|_| random.random_bool(0.2))
        .for_each(|value| *value = f32::NAN);
    let thresholds = graph.thresholds();
    let mut ties = real.clone();
    for row in ties.chunks_exact_mut(columns) {
        for _ in 0..columns.min(thresholds.len()) {
            let (column, threshold) = thresholds[random.random_range(0..thresholds.len())];
            row[column] = match random.random_range(0..3) {
                0 => threshold.next_down(),
                1 => threshold.next_up(),
                _ => threshold,
            };
        }
    }
    let empty = vec![f32::NAN; columns];
    [real, gaps, ties, empty].concat()
}

fn difference(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let gap = |(a, b): (&f32, &f32)| {
        let gap = f64::from(a - b).abs();
        if gap.is_nan() { f64::INFINITY } else { gap }
    };
    a.iter().zip(b).map(gap).fold(0.0, f64::max)
}

fn row_us(session: &mut Session, holdout: &Part) -> Result<f64, CandidateError> {
    let columns = holdout.columns();
    let mut times = Vec::with_capacity(TIMED_ROWS);
    for row in holdout
        .values()
        .chunks_exact(columns)
        .cycle()
        .take(TIMED_ROWS)
    {
        let inputs = [tensor(row, columns)?];
        let began = Instant::now();
        session.run(&inputs)?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times.get(times.len() / 2).copied().unwrap_or(0.0))
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;
    use std::ops::ControlFlow;

    use super::*;
    use crate::export::TreeNode;
    use crate::learner::{Boosted, Fit, Learner, Logistic};
    use crate::recipe::{BoostedParameters, LogisticParameters};
    use crate::synthetic;

    fn fitted(learner: &dyn Learner, training: &Part) -> Box<dyn Fitted> {
        let fit = Fit {
            rows: training,
            weights: None,
            seed: 7,
            threads: NonZeroUsize::MIN,
            step: &|| ControlFlow::Continue(()),
        };
        learner.fit(&fit).unwrap()
    }

    /// The file's answers in each engine that takes it.
    fn answers(graph: &Graph, values: &[f32], columns: usize) -> Vec<(EngineKind, Vec<f32>)> {
        let file = OnnxFile::check(graph.onnx().into(), &OnnxLimits::default()).unwrap();
        EngineKind::ALL
            .into_iter()
            .filter_map(|kind| match Model::load(&file, kind) {
                Ok(model) => {
                    let mut session = model.session().unwrap();
                    Some((kind, score(&mut session, values, columns).unwrap()))
                }
                Err(error) => {
                    println!("{error}");
                    None
                }
            })
            .collect()
    }

    fn agrees_everywhere(fitted: &dyn Fitted, holdout: &Part, wanted: &[EngineKind]) {
        let graph = fitted.graph().unwrap();
        let columns = holdout.columns();
        let mut values = sample_rows(&graph, holdout, 11);
        values.extend_from_slice(&holdout.values()[..500 * columns]);
        let own = fitted.predict(&values).unwrap();
        let answers = answers(&graph, &values, columns);
        for kind in wanted {
            assert!(
                answers.iter().any(|(found, _)| found == kind),
                "{kind:?} took no part"
            );
        }
        if engine::onnx_runtime_available().is_ok() {
            assert!(
                answers
                    .iter()
                    .any(|(kind, _)| *kind == EngineKind::OnnxRuntime)
            );
        }
        for (kind, scores) in answers {
            let difference = difference(&scores, &own);
            assert!(difference <= 1e-6, "{kind:?} differs by {difference:e}");
        }
    }

    #[test]
    fn exported_trees_answer_as_the_learner_in_every_engine() {
        let split = synthetic::split(synthetic::set(6_000, 5));
        let parameters = BoostedParameters {
            trees: 60,
            ..BoostedParameters::default()
        };
        let model = fitted(&Boosted::new(parameters), &split.training());
        agrees_everywhere(
            model.as_ref(),
            &split.holdout(),
            &[EngineKind::Trees, EngineKind::Tract],
        );
    }

    #[test]
    fn trees_of_a_single_leaf_answer_as_the_learner_in_every_engine() {
        let split = synthetic::split(synthetic::set(3_000, 5));
        let parameters = BoostedParameters {
            trees: 3,
            gain_min: 1e9,
            ..BoostedParameters::default()
        };
        let model = fitted(&Boosted::new(parameters), &split.training());
        let Graph::Trees { trees, .. } = model.graph().unwrap() else {
            panic!("no trees")
        };
        assert!(matches!(trees[0][..], [TreeNode::Leaf { .. }]));
        agrees_everywhere(
            model.as_ref(),
            &split.holdout(),
            &[EngineKind::Trees, EngineKind::Tract],
        );
    }

    #[test]
    fn an_exported_logistic_model_answers_as_the_learner_in_every_engine() {
        for gaps in [true, false] {
            let mut set = synthetic::set(6_000, 5);
            if !gaps {
                set.values
                    .iter_mut()
                    .filter(|value| value.is_nan())
                    .for_each(|value| *value = 0.5);
            }
            let split = synthetic::split(set);
            let learner = Logistic::new(LogisticParameters::default());
            let model = fitted(&learner, &split.training());
            agrees_everywhere(model.as_ref(), &split.holdout(), &[EngineKind::Tract]);
        }
    }

    #[test]
    fn a_candidate_carries_what_the_gates_need() {
        let split = synthetic::split(synthetic::set(6_000, 5));
        let holdout = split.holdout();
        let model = fitted(
            &Logistic::new(LogisticParameters::default()),
            &split.training(),
        );
        let candidate = Candidate::prepare(model.as_ref(), &holdout, 1).unwrap();
        assert_eq!(candidate.scores.len(), holdout.rows());
        assert!(candidate.learner_difference <= 1e-6 && candidate.row_us > 0.0);
        let again = score_registered(Arc::clone(&candidate.bytes), &holdout).unwrap();
        assert!(difference(&again, &candidate.scores) <= 1e-6);
    }

    #[test]
    fn a_model_of_other_features_is_refused_with_both_shapes() {
        let split = synthetic::split(synthetic::set(3_000, 5));
        let linear = Graph::Linear(crate::export::Linear {
            means: vec![0.0; 3],
            scales: vec![1.0; 3],
            clip: 6.0,
            weights: vec![1.0; 3],
            missing_weights: vec![0.0; 3],
            bias: 0.0,
        });
        let error = score_registered(linear.onnx().into(), &split.holdout()).unwrap_err();
        let message = error.to_string();
        assert!(
            message.contains("[-1, 3]") && message.contains("8]"),
            "{message}"
        );
    }
}
