//! The algorithms, behind one small trait: a learner fits rows, a fitted model answers and can be
//! written as an ONNX graph.
//!
//! A new algorithm is a file in `learner/`; nothing above this trait knows a training library.
//! Must not know: time, gates, the registry.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

use thiserror::Error;

use crate::export::Graph;
use crate::rows::Part;

mod boosted;
mod logistic;

pub(crate) use boosted::Boosted;
pub(crate) use logistic::Logistic;

/// An algorithm with its parameters.
pub(crate) trait Learner: Send + Sync {
    /// The algorithm's name in the metadata store.
    fn algorithm(&self) -> &'static str;

    /// Parameters by name, for the metadata store.
    fn parameters(&self) -> BTreeMap<String, String>;

    /// About how often [`Fit::step`] will be called.
    fn steps(&self) -> usize;

    /// Fits the rows. Equal rows, parameters and seed give the same bits for any thread count.
    fn fit(&self, fit: &Fit<'_>) -> Result<Box<dyn Fitted>, LearnError>;
}

/// A model that was fitted.
pub(crate) trait Fitted: Send + Sync {
    /// The probability of label 1 for each row of `values`, row-major, NaN for missing.
    fn predict(&self, values: &[f32]) -> Result<Vec<f32>, LearnError>;

    /// The model in the form that is written to ONNX.
    fn graph(&self) -> Result<Graph, LearnError>;
}

/// What a learner is given.
pub(crate) struct Fit<'a> {
    /// Rows with labels of 0 and 1, whose values are finite or NaN.
    pub(crate) rows: &'a Part,
    /// A weight per row, or all alike.
    pub(crate) weights: Option<&'a [f32]>,
    /// Seed of everything random.
    pub(crate) seed: u64,
    /// Threads that may be used; must not change the result.
    pub(crate) threads: NonZeroUsize,
    /// Called after each step; `Break` ends the fit with [`LearnError::Stopped`].
    pub(crate) step: &'a (dyn Fn() -> ControlFlow<()> + Sync),
}

/// Why a fit or an answer failed.
#[derive(Debug, Error)]
pub(crate) enum LearnError {
    /// The caller asked to stop.
    #[error("training was stopped")]
    Stopped,
    /// The library refused parameters or rows.
    #[error("{algorithm}: {reason}")]
    Refused {
        /// The algorithm's name.
        algorithm: &'static str,
        /// What it said.
        reason: String,
    },
}
