//! How one model is trained and judged: the `[train]` and `[gates]` sections of `models/M.toml`.
//!
//! Owns: the keys as the user writes them, their units and defaults, and the check that turns
//! them into a [`Recipe`] that cannot be wrong. The other sections of the file belong to the
//! gateway and the monitor and are named here only so that a misspelt section is still refused.
//! Must not know: rows, learners, the registry.

use std::path::{Path, PathBuf};

use featurestore::{ProjectFileError, RowsFrom, read_toml};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use thiserror::Error;

mod period;

pub(crate) use period::Period;

/// All that a run needs to know of `models/M.toml`, checked.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Recipe {
    /// The feature service whose rows train the model, as written: `delay` or `delay@1`.
    pub(crate) service: String,
    /// Data, experiments and the simple model.
    pub(crate) train: Train,
    /// What a challenger must pass.
    pub(crate) gates: Gates,
}

impl Recipe {
    /// Reads `models/MODEL.toml` of the project.
    pub(crate) fn read(project: &Path, model: &str) -> Result<Self, RecipeError> {
        let path = project.join("models").join(format!("{model}.toml"));
        let file: ModelFile = read_toml(&path)?;
        file.checked(&path)
    }
}

/// Why a recipe cannot be used.
#[derive(Debug, Error)]
pub(crate) enum RecipeError {
    /// The file is missing, is not TOML, or has an unknown key or a wrong type.
    #[error(transparent)]
    File(#[from] ProjectFileError),
    /// A section that training needs is not there.
    #[error("{}: no `{section}`, which training needs", file.display())]
    Missing {
        /// The model's file.
        file: PathBuf,
        /// The key or section.
        section: &'static str,
    },
    /// A value of the right type that makes no sense.
    #[error("{}: `{key}` {problem}", file.display())]
    Value {
        /// The model's file.
        file: PathBuf,
        /// The key with its section.
        key: String,
        /// What is wrong, in words.
        problem: String,
    },
}

/// `models/M.toml` as written. Sections of other programs are named and skipped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelFile {
    service: Option<String>,
    train: Option<Train>,
    #[serde(default)]
    gates: Gates,
    #[serde(default, rename = "engine")]
    _engine: IgnoredAny,
    #[serde(default, rename = "fallback")]
    _fallback: IgnoredAny,
    #[serde(default, rename = "constant")]
    _constant: IgnoredAny,
    #[serde(default, rename = "shadow")]
    _shadow: IgnoredAny,
    #[serde(default, rename = "deadline_ms")]
    _deadline_ms: IgnoredAny,
    #[serde(default, rename = "in_flight_max")]
    _in_flight_max: IgnoredAny,
    #[serde(default, rename = "in_flight_bytes_max")]
    _in_flight_bytes_max: IgnoredAny,
    #[serde(default, rename = "canary_share")]
    _canary_share: IgnoredAny,
    #[serde(default, rename = "label")]
    _label: IgnoredAny,
    #[serde(default, rename = "monitor")]
    _monitor: IgnoredAny,
    #[serde(default, rename = "trigger")]
    _trigger: IgnoredAny,
    #[serde(default, rename = "rollout")]
    _rollout: IgnoredAny,
    #[serde(default, rename = "verify")]
    _verify: IgnoredAny,
}

impl ModelFile {
    fn checked(self, path: &Path) -> Result<Recipe, RecipeError> {
        let missing = |section| RecipeError::Missing {
            file: path.to_owned(),
            section,
        };
        let recipe = Recipe {
            service: self.service.ok_or_else(|| missing("service"))?,
            train: self.train.ok_or_else(|| missing("[train]"))?,
            gates: self.gates,
        };
        let wrong = recipe.train.wrong().or_else(|| recipe.gates.wrong());
        match wrong {
            None => Ok(recipe),
            Some((key, problem)) => Err(RecipeError::Value {
                file: path.to_owned(),
                key,
                problem,
            }),
        }
    }
}

/// `[train]`: which rows, which experiments.
///
/// Along time a run cuts its rows so: `| window … training | embargo | holdout | maturity | now`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Train {
    /// "served": features as they were logged with each answer. "recomputed": the features of
    /// `service` from the event log, for every past request, whichever service answered it; so a
    /// version of a service that never served can be trained on. Equal where both have a row.
    pub(crate) rows: RowsFrom,
    /// The oldest prediction used, counted back from the newest matured one ("120d").
    pub(crate) window: Period,
    /// Predictions younger than this are left out: their labels are not all known yet, and the
    /// early ones are not like the rest ("36h").
    pub(crate) maturity: Period,
    /// The newest matured rows, on which the gates judge and nothing is fitted ("7d").
    pub(crate) holdout: Period,
    /// Rows this long before the holdout (and before the selection rows) train nothing: their
    /// labels were not known yet when the holdout began ("1d").
    pub(crate) embargo: Period,
    /// The newest part of the training rows, on which experiments are compared when there are
    /// several; the winner is then fitted again on all training rows ("7d").
    pub(crate) selection: Period,
    /// At most so many training rows, the newest; bounds time and memory (rows).
    pub(crate) rows_max: usize,
    /// At most so many rows fit each experiment while experiments are compared, the newest (rows).
    pub(crate) selection_rows_max: usize,
    /// A row this much older weighs half as much ("60d"); without it all rows weigh the same.
    pub(crate) half_life: Option<Period>,
    /// The boosted experiments, one table each; one table means no comparison.
    pub(crate) boosted: Vec<BoostedParameters>,
    /// The logistic regression that becomes the `simple` model.
    pub(crate) logistic: LogisticParameters,
}

impl Default for Train {
    fn default() -> Self {
        Self {
            rows: RowsFrom::Served,
            window: Period::days(180),
            maturity: Period::days(2),
            holdout: Period::days(7),
            embargo: Period::days(1),
            selection: Period::days(7),
            rows_max: 250_000,
            selection_rows_max: 100_000,
            half_life: None,
            boosted: vec![BoostedParameters::default()],
            logistic: LogisticParameters::default(),
        }
    }
}

impl Train {
    fn wrong(&self) -> Option<(String, String)> {
        let checks = [
            (
                "train.window",
                self.window.0 <= self.holdout.0,
                "is not longer than the holdout",
            ),
            ("train.holdout", self.holdout.0 == 0, "is zero"),
            ("train.selection", self.selection.0 == 0, "is zero"),
            ("train.rows_max", self.rows_max == 0, "is zero"),
            (
                "train.selection_rows_max",
                self.selection_rows_max == 0,
                "is zero",
            ),
            (
                "train.half_life",
                self.half_life.is_some_and(|p| p.0 == 0),
                "is zero",
            ),
            (
                "train.boosted",
                self.boosted.is_empty(),
                "names no experiment",
            ),
        ];
        first_wrong(&checks)
            .or_else(|| self.boosted.iter().find_map(BoostedParameters::wrong))
            .or_else(|| self.logistic.wrong())
    }
}

/// `[[train.boosted]]`: one configuration of gradient-boosted trees.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct BoostedParameters {
    /// Boosting rounds, one tree each (count).
    pub(crate) trees: usize,
    /// Leaves per tree at most; the leaf with the largest gain is split next (count).
    pub(crate) leaves: usize,
    /// Depth of a tree at most; no limit by default (levels).
    pub(crate) depth: Option<usize>,
    /// Share of each tree's answer that is added (0 to 1).
    pub(crate) learning_rate: f64,
    /// Sum of Hessians that a leaf needs at least; a row adds at most 0.25 (weight).
    pub(crate) leaf_weight_min: f64,
    /// Loss reduction that a split needs at least (log loss times rows).
    pub(crate) gain_min: f64,
    /// L2 penalty on leaf values (weight).
    pub(crate) l2: f64,
    /// Histogram bins per feature at most (count).
    pub(crate) bins: usize,
    /// Share of the rows drawn for each tree (0 to 1).
    pub(crate) row_share: f64,
    /// Share of the features drawn for each tree (0 to 1).
    pub(crate) column_share: f64,
}

impl Default for BoostedParameters {
    fn default() -> Self {
        Self {
            trees: 200,
            leaves: 31,
            depth: None,
            learning_rate: 0.1,
            leaf_weight_min: 5.0,
            gain_min: 0.0,
            l2: 1.0,
            bins: 255,
            row_share: 1.0,
            column_share: 1.0,
        }
    }
}

impl BoostedParameters {
    fn wrong(&self) -> Option<(String, String)> {
        let share = |value: f64| !(value > 0.0 && value <= 1.0);
        let weight = |value: f64| !(value >= 0.0 && value.is_finite());
        first_wrong(&[
            (
                "train.boosted.trees",
                !(1..=10_000).contains(&self.trees),
                "is not within 1 to 10000",
            ),
            (
                "train.boosted.leaves",
                !(2..=4096).contains(&self.leaves),
                "is not within 2 to 4096",
            ),
            ("train.boosted.depth", self.depth == Some(0), "is zero"),
            (
                "train.boosted.learning_rate",
                share(self.learning_rate),
                "is not within 0 to 1",
            ),
            (
                "train.boosted.leaf_weight_min",
                weight(self.leaf_weight_min),
                "is negative",
            ),
            (
                "train.boosted.gain_min",
                weight(self.gain_min),
                "is negative",
            ),
            ("train.boosted.l2", weight(self.l2), "is negative"),
            (
                "train.boosted.bins",
                !(2..=65_535).contains(&self.bins),
                "is not within 2 to 65535",
            ),
            (
                "train.boosted.row_share",
                share(self.row_share),
                "is not within 0 to 1",
            ),
            (
                "train.boosted.column_share",
                share(self.column_share),
                "is not within 0 to 1",
            ),
        ])
    }
}

/// `[train.logistic]`: the simple model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct LogisticParameters {
    /// Passes over the rows at least; small sets are passed over until 2,000 steps are taken (count).
    pub(crate) epochs: usize,
    /// Rows per step (count).
    pub(crate) batch: usize,
    /// Adam's step size at the start; it falls to zero along a cosine (weight per step).
    pub(crate) learning_rate: f64,
    /// L2 penalty on the weights of standardised features (log loss per squared weight).
    pub(crate) l2: f64,
    /// A standardised feature is cut off beyond so much, so that drift cannot run away with a
    /// frozen model (standard deviations).
    pub(crate) clip: f64,
}

impl Default for LogisticParameters {
    fn default() -> Self {
        Self {
            epochs: 6,
            batch: 512,
            learning_rate: 0.01,
            l2: 1e-5,
            clip: 6.0,
        }
    }
}

impl LogisticParameters {
    fn wrong(&self) -> Option<(String, String)> {
        let positive = |value: f64| !(value > 0.0 && value.is_finite());
        first_wrong(&[
            (
                "train.logistic.epochs",
                !(1..=1000).contains(&self.epochs),
                "is not within 1 to 1000",
            ),
            ("train.logistic.batch", self.batch == 0, "is zero"),
            (
                "train.logistic.learning_rate",
                positive(self.learning_rate),
                "is not above 0",
            ),
            (
                "train.logistic.l2",
                !(self.l2 >= 0.0 && self.l2.is_finite()),
                "is negative",
            ),
            ("train.logistic.clip", positive(self.clip), "is not above 0"),
        ])
    }
}

/// `[gates]`: what a challenger must show before it is registered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gates {
    /// Training rows needed (rows).
    pub(crate) rows_min: usize,
    /// Holdout rows needed (rows).
    pub(crate) holdout_rows_min: usize,
    /// The rarer label's share of the training and of the holdout rows, at least (0 to 0.5).
    pub(crate) label_share_min: f64,
    /// How much better than always answering the training rows' label share (nats of log loss).
    pub(crate) sanity_margin: f64,
    /// The lower bound of (champion's - challenger's log loss) must exceed this; negative lets a
    /// challenger pass that is not shown to be worse (nats).
    pub(crate) improvement_margin: f64,
    /// One-sided confidence of that lower bound (0.5 to 1).
    pub(crate) confidence: f64,
    /// Bootstrap resamples behind the bound (count).
    pub(crate) resamples: usize,
    /// Rows of the same stretch of time are drawn together, as they share weather and load;
    /// "0s" draws single rows ("1h").
    pub(crate) resample_block: Period,
    /// Calibration error over 15 equal bins at most (0 to 1).
    pub(crate) ece_max: f64,
    /// Difference between engines, and to the learner's own answer, at most (probability).
    pub(crate) parity_max: f64,
    /// Median time of a single row in the chosen engine at most (microseconds).
    pub(crate) latency_max_us: f64,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            rows_min: 5_000,
            holdout_rows_min: 1_000,
            label_share_min: 0.01,
            sanity_margin: 0.0,
            improvement_margin: 0.0,
            confidence: 0.95,
            resamples: 1_000,
            resample_block: Period(3_600_000),
            ece_max: 0.05,
            parity_max: 1e-5,
            latency_max_us: 2_000.0,
        }
    }
}

impl Gates {
    fn wrong(&self) -> Option<(String, String)> {
        let positive = |value: f64| !(value > 0.0 && value.is_finite());
        first_wrong(&[
            ("gates.rows_min", self.rows_min < 2, "is below 2"),
            (
                "gates.holdout_rows_min",
                self.holdout_rows_min < 2,
                "is below 2",
            ),
            (
                "gates.label_share_min",
                !(0.0..=0.5).contains(&self.label_share_min),
                "is not within 0 to 0.5",
            ),
            (
                "gates.sanity_margin",
                !self.sanity_margin.is_finite(),
                "is not a finite number",
            ),
            (
                "gates.improvement_margin",
                !self.improvement_margin.is_finite(),
                "is not a finite number",
            ),
            (
                "gates.confidence",
                !(0.5..1.0).contains(&self.confidence),
                "is not within 0.5 to 1",
            ),
            (
                "gates.resamples",
                !(100..=100_000).contains(&self.resamples),
                "is not within 100 to 100000",
            ),
            (
                "gates.ece_max",
                !(0.0..=1.0).contains(&self.ece_max),
                "is not within 0 to 1",
            ),
            (
                "gates.parity_max",
                positive(self.parity_max),
                "is not above 0",
            ),
            (
                "gates.latency_max_us",
                positive(self.latency_max_us),
                "is not above 0",
            ),
        ])
    }
}

fn first_wrong(checks: &[(&str, bool, &str)]) -> Option<(String, String)> {
    checks
        .iter()
        .find(|(_, wrong, _)| *wrong)
        .map(|(key, _, problem)| ((*key).to_owned(), (*problem).to_owned()))
}

#[cfg(test)]
mod tests;
