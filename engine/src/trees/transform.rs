//! The functions that ensembles apply to their scores at the end, as ONNX Runtime computes them.

use std::f32::consts::{PI, SQRT_2};

use super::number::Number;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostTransform {
    None,
    Logistic,
    Softmax,
    /// Leaves zeros out of the sum.
    SoftmaxZero,
    Probit,
}

/// Transforms the scores of one row.
pub(super) fn transform<T: Number>(transform: PostTransform, row: &mut [T]) {
    match transform {
        PostTransform::None => {}
        PostTransform::Logistic => row.iter_mut().for_each(|score| *score = logistic(*score)),
        PostTransform::Softmax => softmax(row),
        PostTransform::SoftmaxZero => softmax_zero(row),
        PostTransform::Probit => row.iter_mut().for_each(|score| *score = probit(*score)),
    }
}

/// What stands beside the score of the only class of two that is scored. The score is written to
/// the first column and belongs to the second.
#[derive(Clone, Copy, Debug)]
pub(super) enum SecondColumn {
    /// `1 - s` and `s`.
    Complement,
    /// `-s` and `s`.
    Opposite,
}

impl SecondColumn {
    pub(super) fn write<T: Number>(self, transform: PostTransform, row: &mut [T]) {
        let score = row[0];
        let [first, second] = match (self, transform) {
            (Self::Complement, _) => [T::ONE - score, score],
            (_, PostTransform::Logistic) => [logistic(-score), logistic(score)],
            (Self::Opposite, _) => [-score, score],
        };
        row[0] = first;
        row[1] = second;
    }
}

fn logistic<T: Number>(x: T) -> T {
    let half = T::ONE / (T::ONE + (-x.abs()).exp());
    if x < T::default() {
        T::ONE - half
    } else {
        half
    }
}

fn highest<T: Number>(row: &[T]) -> T {
    row.iter()
        .fold(-T::INFINITY, |max, &x| if x > max { x } else { max })
}

fn softmax<T: Number>(row: &mut [T]) {
    let max = highest(row);
    let mut sum = T::default();
    for score in row.iter_mut() {
        *score = (*score - max).exp();
        sum += *score;
    }
    row.iter_mut().for_each(|score| *score = *score / sum);
}

fn softmax_zero<T: Number>(row: &mut [T]) {
    let max = highest(row);
    let mut sum = T::default();
    for score in row.iter_mut() {
        if score.abs() > T::of(1e-7) {
            *score = (*score - max).exp();
            sum += *score;
        } else {
            *score = *score * (-max).exp();
        }
    }
    row.iter_mut().for_each(|score| *score = *score / sum);
}

/// The inverse of the normal distribution after Winitzki's approximation of the error function's
/// inverse (2008), in single precision whatever the scores are.
fn probit<T: Number>(x: T) -> T {
    let x = 2.0 * x.to_f32() - 1.0;
    let sign = if x < 0.0 { -1.0 } else { 1.0 };
    // Rounded once: near a half the last digit of the logarithm is the third of the answer.
    let log = f64::from((1.0 - x) * (1.0 + x)).ln() as f32;
    let v = 2.0 / (PI * 0.147) + 0.5 * log;
    let root = (-v + (v * v - 1.0 / 0.147 * log).sqrt()).sqrt();
    T::of(SQRT_2 * (sign * root))
}
