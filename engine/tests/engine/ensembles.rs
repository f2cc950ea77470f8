//! Our evaluator gives what ONNX Runtime gives, for ensembles of every kind.
//!
//! `LOOPGATE_TREE_ROWS` asks for more rows than the usual million, `LOOPGATE_TREE_SEED` for others.

use engine::{EngineKind, Model, RunError, Session, Tensor, TensorData, onnx_runtime_available};

use crate::fixture::{check, session};
use crate::forests::{COLUMNS, Forest, Operator};

const ROWS: usize = 1_000_000;
const ROWS_PER_FOREST: usize = 2_000;

fn from_environment(name: &str, default: usize) -> usize {
    let value = std::env::var(name).ok();
    value
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    match tensor.data() {
        TensorData::Fp32(values) => values.iter().map(|&x| x.into()).collect(),
        TensorData::Fp64(values) => values.clone(),
        other => panic!("{other:?}"),
    }
}

/// The largest difference, in relation to the larger of 1 and the numbers' sizes.
fn difference(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let one = |(&a, &b): (&f64, &f64)| {
        if a == b || (a.is_nan() && b.is_nan()) {
            return 0.0;
        }
        let difference = (a - b).abs() / a.abs().max(b.abs()).max(1.0);
        if difference.is_nan() {
            f64::MAX
        } else {
            difference
        }
    };
    a.iter().zip(b).map(one).fold(0.0, f64::max)
}

fn part(tensor: &Tensor, rows: std::ops::Range<usize>) -> Tensor {
    let place = rows.start * COLUMNS..rows.end * COLUMNS;
    let data = match tensor.data() {
        TensorData::Fp32(values) => TensorData::Fp32(values[place].to_vec()),
        TensorData::Fp64(values) => TensorData::Fp64(values[place].to_vec()),
        other => panic!("{other:?}"),
    };
    Tensor::new(vec![rows.len(), COLUMNS], data).unwrap()
}

/// One row, few rows and many take different ways through the trees, and come to one answer.
fn check_batches(session: &mut Session, input: &Tensor, all: &[Tensor]) {
    let mut start = 0;
    for count in [1, 2, 7, 8, 9, 15, 16, 17, 63, 64, 65, 129] {
        let outputs = session.run(&[part(input, start..start + count)]).unwrap();
        for (some, all) in outputs.iter().zip(all) {
            match (some.data(), all.data()) {
                (TensorData::Int64(some), TensorData::Int64(all)) => {
                    assert_eq!(some[..], all[start..start + count]);
                }
                (TensorData::Bytes(some), TensorData::Bytes(all)) => {
                    assert_eq!(some[..], all[start..start + count]);
                }
                _ => {
                    let (some, all) = (numbers(some), numbers(all));
                    let width = some.len() / count;
                    let place = start * width..(start + count) * width;
                    assert_eq!(difference(&some, &all[place]), 0.0, "{count} rows");
                }
            }
        }
        start += count;
    }
}

#[test]
fn ensembles_of_every_kind_answer_as_onnx_runtime_does() {
    let forests = from_environment("LOOPGATE_TREE_ROWS", ROWS) / ROWS_PER_FOREST;
    let first = from_environment("LOOPGATE_TREE_SEED", 1) as u64;
    let has_runtime = onnx_runtime_available().is_ok();
    println!("seeds from {first}, {forests} ensembles, onnx runtime: {has_runtime}");
    let (mut compared, mut labelled, mut refused, mut worst) = (0, 0, 0, 0.0);
    for seed in (first..).take(forests) {
        let forest = Forest::random(seed);
        let is_classifier = forest.operator == Operator::Classifier;
        let mut file = check(&forest.model(is_classifier)).unwrap();
        let mut loaded = Model::load(&file, EngineKind::Trees);
        if is_classifier && loaded.is_err() {
            file = check(&forest.model(false)).unwrap();
            loaded = Model::load(&file, EngineKind::Trees);
        }
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(error) => {
                assert!(error.to_string().contains("unset"), "seed {seed}: {error}");
                refused += 1;
                continue;
            }
        };
        let input = forest.rows(ROWS_PER_FOREST, seed);
        let mut ours = loaded.session().unwrap();
        let found = ours.run(std::slice::from_ref(&input)).unwrap();
        check_batches(&mut ours, &input, &found);
        if !has_runtime {
            continue;
        }
        let mut reference = session(&file, EngineKind::OnnxRuntime).unwrap();
        let expected = reference.run(std::slice::from_ref(&input)).unwrap();
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.shape(), expected.shape());
            match (found.data(), expected.data()) {
                (TensorData::Int64(_) | TensorData::Bytes(_), expected) => {
                    assert_eq!(found.data(), expected, "seed {seed}: {}", describe(&forest));
                    labelled += 1;
                }
                _ => {
                    let difference = difference(&numbers(found), &numbers(expected));
                    // Near a half the formula of the probit takes one small number from another.
                    let is_probit = forest.transform == "PROBIT";
                    let bound = if is_probit { 1e-3 } else { 1e-6 };
                    let what = describe(&forest);
                    assert!(difference <= bound, "seed {seed}: {difference:e}, {what}");
                    if !is_probit {
                        worst = f64::max(worst, difference);
                    }
                }
            }
        }
        compared += ROWS_PER_FOREST;
    }
    println!(
        "{compared} rows compared, largest difference {worst:e}, {labelled} ensembles with labels, \
         {refused} refused"
    );
    assert!(refused * 4 < forests, "{refused} of {forests} refused");
}

fn describe(forest: &Forest) -> String {
    format!(
        "{:?} double={} targets={} {} {} bases={} missing={} trees={}",
        forest.operator,
        forest.is_double,
        forest.targets,
        forest.transform,
        forest.aggregation,
        forest.base_values.len(),
        forest.has_missing,
        forest.trees.len()
    )
}

#[test]
fn ensembles_answer_as_the_standard_says() {
    let mut compared = 0;
    for seed in 0..1_500 {
        let forest = Forest::random(seed);
        // Two classes, and transforms of one target, are what runtimes have made of them.
        let is_plain = forest.transform == "NONE"
            && (forest.operator != Operator::Classifier || forest.targets > 2);
        if !is_plain {
            continue;
        }
        let is_classifier = forest.operator == Operator::Classifier;
        let file = check(&forest.model(is_classifier)).unwrap();
        let mut ours = session(&file, EngineKind::Trees).unwrap();
        let input = forest.rows(200, seed);
        let outputs = ours.run(std::slice::from_ref(&input)).unwrap();
        let values = numbers(&input);
        let scores: Vec<_> = values
            .chunks(COLUMNS)
            .map(|row| forest.naive(row))
            .collect();
        let expected: Vec<f64> = scores.iter().flatten().map(|score| score.0).collect();
        let difference = difference(&numbers(outputs.last().unwrap()), &expected);
        assert!(
            difference <= 2e-6,
            "seed {seed}: {difference:e}, {}",
            describe(&forest)
        );
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
}

#[test]
fn no_rows_give_no_answers() {
    for seed in 0..20 {
        let forest = Forest::random(seed);
        let file = check(&forest.model(false)).unwrap();
        let Ok(loaded) = Model::load(&file, EngineKind::Trees) else {
            continue;
        };
        let outputs = loaded
            .session()
            .unwrap()
            .run(&[forest.rows(0, seed)])
            .unwrap();
        assert_eq!(outputs[0].shape(), [0, forest.targets]);
    }
}

#[test]
fn rows_of_another_width_are_the_callers_fault() {
    let forest = Forest::random(3);
    let file = check(&forest.model(false)).unwrap();
    let mut session = session(&file, EngineKind::Trees).unwrap();
    let narrow = part(&forest.rows(4, 3), 0..2);
    let (_, data) = narrow.into_parts();
    let narrow = Tensor::new(vec![4, COLUMNS / 2], data).unwrap();
    let error = session.run(&[narrow]).unwrap_err();
    assert!(matches!(error, RunError::Input { .. }), "{error}");
}
