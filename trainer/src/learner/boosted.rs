//! Gradient-boosted trees by `hessboost`: histograms, leaf-wise growth, as LightGBM does it.
//!
//! The crate is young, so it is pinned, seen by this file alone, and a test holds its AUC against
//! a stored LightGBM reference. The binned rows cost two to four bytes per value.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use hessboost::config::{GrowPolicy, TrainingParams, TreeMethod};
use hessboost::data::{BinnedMatrix, DMatrix};
use hessboost::error::HessboostError;
use hessboost::model::{BoostedModel, Iterations};
use hessboost::objective::{Objective, RegLoss};
use hessboost::training::Trainer;

use super::{Fit, Fitted, LearnError, Learner};
use crate::export::{Graph, Tree, TreeNode};
use crate::recipe::BoostedParameters;

const NAME: &str = "boosted";
/// What stands for a missing value inside the library, below everything measured: its histograms
/// take half the time when no value is absent and only some features are drawn for a tree. So a
/// missing value always goes with the low ones, and a split below the lowest tells it apart.
const MISSING: f32 = -1e30;
/// Rows answered per call to the library.
const PREDICT_ROWS: usize = 4096;

/// One configuration of boosted trees.
#[derive(Clone, Debug)]
pub(crate) struct Boosted {
    parameters: BoostedParameters,
}

impl Boosted {
    /// A learner with these parameters.
    pub(crate) fn new(parameters: BoostedParameters) -> Self {
        Self { parameters }
    }

    /// The rows as bins. The filled copy of the values lives only while it is binned.
    fn bins(&self, fit: &Fit<'_>) -> Result<BinnedMatrix, LearnError> {
        let values = fit.rows.values();
        if let Some(value) = values.iter().find(|&&value| value <= MISSING) {
            return Err(LearnError::Refused {
                algorithm: NAME,
                reason: format!(
                    "a feature has the value {value}, {MISSING} and below mean missing"
                ),
            });
        }
        let filled = values.iter().copied().map(without_gap).collect();
        let mut matrix = DMatrix::from_dense_vec(filled, fit.rows.rows(), fit.rows.columns())
            .and_then(|matrix| matrix.with_labels(fit.rows.labels()))
            .map_err(refused)?;
        if let Some(weights) = fit.weights {
            matrix = matrix.with_weights(weights).map_err(refused)?;
        }
        BinnedMatrix::new(&matrix, self.parameters.bins).map_err(refused)
    }

    fn training_params(&self, fit: &Fit<'_>) -> Result<TrainingParams, LearnError> {
        let wanted = &self.parameters;
        let builder = TrainingParams::builder()
            .objective(Objective::BinaryLogistic(RegLoss::default()))
            .tree_method(TreeMethod::Hist)
            .grow_policy(GrowPolicy::LossGuide)
            .max_leaves(wanted.leaves)
            .eta(wanted.learning_rate)
            .min_child_weight(wanted.leaf_weight_min)
            .gamma(wanted.gain_min)
            .lambda(wanted.l2)
            .max_bin(wanted.bins)
            .subsample(wanted.row_share)
            .colsample_bytree(wanted.column_share)
            .seed(fit.seed)
            .nthread(fit.threads.get());
        let builder = match wanted.depth {
            Some(depth) => builder.max_depth(depth),
            None => builder.unlimited_depth(),
        };
        builder.build().map_err(refused)
    }
}

impl Learner for Boosted {
    fn algorithm(&self) -> &'static str {
        NAME
    }

    fn parameters(&self) -> BTreeMap<String, String> {
        let wanted = &self.parameters;
        let depth = wanted
            .depth
            .map_or("unlimited".to_owned(), |depth| depth.to_string());
        [
            ("trees", wanted.trees.to_string()),
            ("leaves", wanted.leaves.to_string()),
            ("depth", depth),
            ("learning_rate", wanted.learning_rate.to_string()),
            ("leaf_weight_min", wanted.leaf_weight_min.to_string()),
            ("gain_min", wanted.gain_min.to_string()),
            ("l2", wanted.l2.to_string()),
            ("bins", wanted.bins.to_string()),
            ("row_share", wanted.row_share.to_string()),
            ("column_share", wanted.column_share.to_string()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into()
    }

    fn steps(&self) -> usize {
        self.parameters.trees
    }

    fn fit(&self, fit: &Fit<'_>) -> Result<Box<dyn Fitted>, LearnError> {
        let params = self.training_params(fit)?;
        let bins = self.bins(fit)?;
        let mut stopped = false;
        let trained = Trainer::new(&params, &bins, self.parameters.trees)
            .on_round(|_| {
                let flow = (fit.step)();
                stopped |= flow == ControlFlow::Break(());
                flow
            })
            .train()
            .map_err(refused)?;
        if stopped {
            return Err(LearnError::Stopped);
        }
        Ok(Box::new(FittedTrees(trained.model)))
    }
}

struct FittedTrees(BoostedModel);

impl Fitted for FittedTrees {
    fn predict(&self, values: &[f32]) -> Result<Vec<f32>, LearnError> {
        let batch = PREDICT_ROWS * self.0.n_features();
        let mut answers = Vec::with_capacity(values.len() / self.0.n_features());
        for rows in values.chunks(batch) {
            let rows: Vec<f32> = rows.iter().copied().map(without_gap).collect();
            let predicted = self
                .0
                .predict_rows(&rows, Iterations::Best)
                .map_err(refused)?;
            answers.extend_from_slice(predicted.as_slice());
        }
        Ok(answers)
    }

    /// `base_score()` is a margin here, and each tree counts with its own weight.
    fn graph(&self) -> Result<Graph, LearnError> {
        let model = &self.0;
        let trees: Vec<Tree> = model
            .trees()
            .iter()
            .zip(model.tree_weights())
            .map(|(tree, weight)| {
                tree.nodes()
                    .iter()
                    .map(|node| tree_node(node, weight))
                    .collect()
            })
            .collect::<Result<_, _>>()?;
        Ok(Graph::Trees {
            columns: model.n_features(),
            base_margin: model.base_score(),
            trees,
        })
    }
}

fn without_gap(value: f32) -> f32 {
    if value.is_nan() { MISSING } else { value }
}

fn tree_node(node: &hessboost::tree::Node, weight: f32) -> Result<TreeNode, LearnError> {
    if node.is_leaf() {
        return Ok(TreeNode::Leaf {
            value: node.leaf_value * weight,
        });
    }
    let child = |index: i32| {
        usize::try_from(index).map_err(|_| LearnError::Refused {
            algorithm: NAME,
            reason: format!("a split has child {index}"),
        })
    };
    Ok(TreeNode::Split {
        column: node.split_feature as usize,
        below: node.split_cond,
        missing_below: MISSING < node.split_cond,
        yes: child(node.left)?,
        no: child(node.right)?,
    })
}

#[expect(clippy::needless_pass_by_value, reason = "a function for `map_err`")]
fn refused(error: HessboostError) -> LearnError {
    LearnError::Refused {
        algorithm: NAME,
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::score::Scores;
    use crate::synthetic;

    const REFERENCE: &str = include_str!("../../tests/reference/lightgbm.json");

    fn fitted(parameters: BoostedParameters, threads: usize, rows: usize) -> Box<dyn Fitted> {
        let split = synthetic::split(synthetic::set(rows, 42));
        let fit = Fit {
            rows: &split.training(),
            weights: None,
            seed: 7,
            threads: NonZeroUsize::new(threads).unwrap(),
            step: &|| ControlFlow::Continue(()),
        };
        Boosted::new(parameters).fit(&fit).unwrap()
    }

    #[test]
    fn scores_are_not_below_lightgbm_on_the_same_rows() {
        let reference: serde_json::Value = serde_json::from_str(REFERENCE).unwrap();
        let set = synthetic::set(30_000, 42);
        let sum: f64 = set
            .values
            .iter()
            .filter(|v| !v.is_nan())
            .map(|&v| f64::from(v))
            .sum();
        let same = (sum - reference["rows_digest"].as_f64().unwrap()).abs() < 1e-6;
        assert!(same, "the rows are not those of the reference: {sum}");
        let parameters = BoostedParameters {
            trees: 100,
            leaves: 15,
            leaf_weight_min: 4.0,
            ..BoostedParameters::default()
        };
        let model = fitted(parameters, 1, 30_000);
        let holdout = synthetic::split(set).holdout();
        let scores = Scores::of(&model.predict(holdout.values()).unwrap(), holdout.labels());
        let auc = reference["auc"].as_f64().unwrap();
        let log_loss = reference["log_loss"].as_f64().unwrap();
        println!("ours {scores:?}, LightGBM {auc} {log_loss}");
        assert!(
            scores.auc > auc - 0.002 && scores.log_loss < log_loss + 0.002,
            "{scores:?}"
        );
    }

    #[test]
    fn one_and_two_threads_give_the_same_bytes() {
        let parameters = BoostedParameters {
            trees: 20,
            row_share: 0.7,
            column_share: 0.5,
            ..BoostedParameters::default()
        };
        let file = |threads| {
            fitted(parameters.clone(), threads, 30_000)
                .graph()
                .unwrap()
                .onnx()
        };
        assert!(file(1) == file(2));
    }

    #[test]
    fn a_stop_ends_the_fit() {
        let split = synthetic::split(synthetic::set(3_000, 1));
        let fit = Fit {
            rows: &split.training(),
            weights: None,
            seed: 7,
            threads: NonZeroUsize::MIN,
            step: &|| ControlFlow::Break(()),
        };
        let result = Boosted::new(BoostedParameters::default()).fit(&fit);
        assert!(matches!(result, Err(LearnError::Stopped)));
    }

    #[test]
    fn a_value_below_the_one_for_missing_is_refused() {
        let mut set = synthetic::set(3_000, 1);
        set.values[3] = -2e30;
        let split = synthetic::split(set);
        let fit = Fit {
            rows: &split.training(),
            weights: None,
            seed: 7,
            threads: NonZeroUsize::MIN,
            step: &|| ControlFlow::Continue(()),
        };
        let error = Boosted::new(BoostedParameters::default())
            .fit(&fit)
            .err()
            .unwrap();
        assert!(error.to_string().contains("missing"), "{error}");
    }
}
