//! The reference that one version is judged against: equal-mass bins of its
//! training rows and of its scores; and its own quality at validation.
//!
//! Bins are quantiles of the reference, so one outlier cannot collapse them
//! (equal-width bins, as elsewhere, do). Making one sorts each column once.

pub(crate) mod of_version;

use std::collections::BTreeMap;

use featurestore::Status;
use registry::Version;
use serde::{Deserialize, Serialize};

use crate::counters::{Counters, STATUSES};
use crate::policy::Bins;

/// The reference of one version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The version that it belongs to.
    pub version: Version,
    /// One reference for each feature, in the order of the feature service.
    pub features: Vec<FeatureBaseline>,
    /// The reference of the version's own scores; without rows when the version
    /// could not be run on its training rows, and then never tested.
    pub score: FeatureBaseline,
    /// How features were found in the version's first judged window; none before
    /// it. Training rows keep no statuses, so a fault that stands from the first
    /// day shows only in the missing values.
    #[serde(default)]
    pub statuses: Option<StatusCounts>,
}

/// How often each feature had which status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusCounts {
    /// Rows counted.
    pub rows: u64,
    /// Per feature one count for each status, in the order of [`Status::ALL`].
    pub counts: Vec<[u64; STATUSES]>,
}

/// The reference distribution of one column.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FeatureBaseline {
    /// Name in the feature service.
    pub name: String,
    /// Ascending, distinct. Bin `i` holds the values with exactly `i` edges at
    /// or below them, so the first and last bin take all that lies outside.
    pub edges: Vec<f32>,
    /// Reference rows in each bin: one more than there are edges.
    pub counts: Vec<u64>,
    /// Reference rows without a value (NaN).
    pub missing: u64,
}

/// A version's quality on held-out rows, as its training run measured it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReferenceQuality {
    /// Mean negative log likelihood, nats.
    pub log_loss: f64,
    /// Area under the ROC curve.
    pub auc: f64,
    /// Expected calibration error, 15 equal-width bins.
    pub ece: f64,
    /// Held-out rows.
    pub rows: u64,
    /// Share of positive labels in them, where known.
    pub base_rate: Option<f64>,
}

/// The rows that a baseline is made from.
#[derive(Clone, Copy, Debug)]
pub struct BaselineRows<'a> {
    /// Column names.
    pub names: &'a [String],
    /// Row-major values, `names.len()` to a row; NaN is missing.
    pub values: &'a [f32],
    /// Scores of the version on held-out rows; empty when it could not be run.
    pub scores: &'a [f32],
}

impl Baseline {
    /// The reference of `version` from its rows, in at most `bins` bins a column.
    pub fn from_rows(version: Version, rows: BaselineRows<'_>, bins: Bins) -> Baseline {
        let columns = rows.names.len();
        let features = rows
            .names
            .iter()
            .enumerate()
            .map(|(column, name)| {
                let values = rows.values.iter().skip(column).step_by(columns.max(1));
                FeatureBaseline::from_values(name, values.copied(), bins)
            })
            .collect();
        Baseline {
            version,
            features,
            score: FeatureBaseline::from_values("score", rows.scores.iter().copied(), bins),
            statuses: None,
        }
    }

    /// Reference columns: the features, then the score.
    pub(crate) fn columns(&self) -> impl Iterator<Item = &FeatureBaseline> {
        self.features.iter().chain(std::iter::once(&self.score))
    }
}

impl FeatureBaseline {
    /// Quantile bins of `values`; fewer than `bins` where values repeat, down to
    /// one bin for each distinct value.
    fn from_values(name: &str, values: impl Iterator<Item = f32>, bins: Bins) -> FeatureBaseline {
        let mut missing = 0;
        let mut sorted: Vec<f32> = Vec::new();
        for value in values {
            if value.is_nan() {
                missing += 1;
            } else {
                sorted.push(value);
            }
        }
        sorted.sort_unstable_by(f32::total_cmp);
        let edges = edges(&sorted, bins.get());
        let mut counts = vec![0; edges.len() + 1];
        for value in sorted {
            counts[edges.partition_point(|edge| *edge <= value)] += 1;
        }
        FeatureBaseline {
            name: name.into(),
            edges,
            counts,
            missing,
        }
    }

    /// All reference rows, with a value or without.
    pub fn rows(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.missing
    }

    /// Share of reference rows without a value; 0 without rows.
    pub fn missing_share(&self) -> f64 {
        match self.rows() {
            0 => 0.0,
            rows => self.missing as f64 / rows as f64,
        }
    }
}

/// Distinct values at the quantiles j/bins. Where there are no more distinct
/// values than bins, every one begins a bin, however rare.
fn edges(sorted: &[f32], bins: usize) -> Vec<f32> {
    let Some(first) = sorted.first() else {
        return Vec::new();
    };
    let mut distinct: Vec<f32> = Vec::new();
    let mut last = *first;
    for value in sorted {
        if *value > last {
            distinct.push(*value);
            last = *value;
        }
        if distinct.len() >= bins {
            break;
        }
    }
    if distinct.len() < bins {
        return distinct;
    }
    let mut edges: Vec<f32> = Vec::with_capacity(bins - 1);
    for bin in 1..bins {
        let value = sorted[bin * sorted.len() / bins];
        if value > *edges.last().unwrap_or(first) {
            edges.push(value);
        }
    }
    edges
}

impl StatusCounts {
    /// The statuses of a window, as the reference of those after it.
    pub fn of(window: &Counters) -> StatusCounts {
        let counts = (0..window.features())
            .map(|feature| Status::ALL.map(|status| window.with_status(feature, status)))
            .collect();
        StatusCounts {
            rows: window.rows(),
            counts,
        }
    }

    /// Rows in which a feature had this status; 0 for a feature that is not there.
    pub fn with(&self, feature: usize, status: Status) -> u64 {
        self.counts
            .get(feature)
            .map_or(0, |counts| counts[status as usize])
    }
}

impl ReferenceQuality {
    /// The validation metrics of a version: `log_loss`, `auc`, `ece`, `rows` and,
    /// where its trainer gave it, `base_rate`. Nothing without the first.
    pub fn from_metrics(metrics: &BTreeMap<String, f64>) -> Option<ReferenceQuality> {
        let metric = |name: &str| metrics.get(name).copied();
        Some(ReferenceQuality {
            log_loss: metric("log_loss")?,
            auc: metric("auc").unwrap_or(0.5),
            ece: metric("ece").unwrap_or(0.0),
            rows: metric("rows").map_or(0, |rows| rows.max(0.0) as u64),
            base_rate: metric("base_rate"),
        })
    }

    /// Log loss over the entropy of the base rate; unknown without one.
    pub fn normalized_log_loss(&self) -> Option<f64> {
        self.base_rate
            .and_then(|rate| crate::quality::normalized(self.log_loss, rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn feature(values: &[f32], bins: usize) -> FeatureBaseline {
        FeatureBaseline::from_values("x", values.iter().copied(), Bins::new(bins).unwrap())
    }

    #[test]
    fn each_code_of_a_small_dictionary_has_its_own_bin() {
        let values: Vec<f32> =
            [vec![0.0; 900], vec![1.0; 99], vec![2.0], vec![f32::NAN; 5]].concat();
        let feature = feature(&values, 16);
        assert_eq!(feature.edges, [1.0, 2.0]);
        assert_eq!(feature.counts, [900, 99, 1]);
        assert_eq!(feature.missing, 5);
    }

    #[test]
    fn distinct_values_fall_into_bins_of_equal_mass() {
        let values: Vec<f32> = (0..1600).map(|i| (i as f32).exp2().min(1e30)).collect();
        let distinct: Vec<f32> = (0..1600).map(|i| i as f32).collect();
        assert_eq!(feature(&distinct, 16).counts, [100; 16]);
        // One value that takes most of the mass does not make an empty bin.
        assert!(feature(&values, 16).counts.iter().all(|count| *count > 0));
    }

    #[test]
    fn a_column_without_values_has_one_empty_bin() {
        let feature = feature(&[f32::NAN; 3], 16);
        assert_eq!(
            (feature.edges.len(), feature.counts.as_slice()),
            (0, &[0][..])
        );
        assert_eq!(feature.missing_share(), 1.0);
    }

    proptest! {
        #[test]
        fn bins_are_ordered_and_keep_every_row(
            values in prop::collection::vec(prop_oneof![Just(f32::NAN), -3.0f32..3.0, Just(0.0), Just(-0.0)], 0..400),
            bins in 4usize..20,
        ) {
            let feature = feature(&values, bins);
            prop_assert_eq!(feature.rows(), values.len() as u64);
            prop_assert!(feature.edges.is_sorted_by(|a, b| a < b));
            prop_assert!(feature.counts.len() <= bins);
        }

        #[test]
        fn a_baseline_reads_back_as_written(values in prop::collection::vec(-1e30f32..1e30, 1..50)) {
            let rows = BaselineRows { names: &["x".into()], values: &values, scores: &[0.5] };
            let baseline = Baseline::from_rows(3, rows, Bins::new(16).unwrap());
            let text = serde_json::to_string(&baseline).unwrap();
            prop_assert_eq!(serde_json::from_str::<Baseline>(&text).unwrap(), baseline);
        }
    }
}
