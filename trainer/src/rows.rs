//! The rows of a run and how time cuts them: training, embargo, holdout, maturity.
//!
//! Owns: the cut-offs of a run, where rows are read and how, the split of the training set, and
//! parts of it that learners and gates read in place. Must not know: learners, scores, the registry.
//! Costs: one read of the offline store (and of all sealed events, where rows are computed anew); a
//! part is a range of the one matrix, never a copy.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use featurestore::{
    Definitions, OfflineError, RecomputeError, RowsFrom, TrainingQuery, TrainingSet,
    recomputed_rows, training_rows,
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::recipe::{Period, Train};

/// The instants at which a run cuts its rows, in milliseconds since the Unix epoch. Everything
/// follows from the recipe and the instant of the run, so that the run can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CutOffs {
    /// First prediction that may train.
    pub(crate) from_ms: i64,
    /// Predictions from here to `embargo_from_ms` compare experiments.
    pub(crate) selection_from_ms: i64,
    /// Predictions from here to `holdout_from_ms` train nothing.
    pub(crate) embargo_from_ms: i64,
    /// First prediction of the holdout.
    pub(crate) holdout_from_ms: i64,
    /// First prediction that is too young.
    pub(crate) to_ms: i64,
    /// Labels that arrived later do not exist for this run.
    pub(crate) known_by_ms: i64,
}

impl CutOffs {
    /// The cuts of a run at `as_of_ms`.
    pub(crate) fn at(train: &Train, as_of_ms: i64) -> Self {
        let to_ms = as_of_ms - train.maturity.0;
        let holdout_from_ms = to_ms - train.holdout.0;
        let embargo_from_ms = holdout_from_ms - train.embargo.0;
        Self {
            from_ms: to_ms - train.window.0,
            selection_from_ms: embargo_from_ms - train.selection.0,
            embargo_from_ms,
            holdout_from_ms,
            to_ms,
            known_by_ms: as_of_ms,
        }
    }
}

/// Why there are no rows to train on.
#[derive(Debug, Error)]
pub(crate) enum RowsError {
    /// The offline store could not be read.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// Rows could not be computed anew.
    #[error(transparent)]
    Recompute(#[from] RecomputeError),
    /// Nothing was predicted and labelled in time.
    #[error(
        "model `{model}` has no matured rows of service `{service}` between {from_ms} and {to_ms}{}",
        hint(*.from)
    )]
    None {
        /// Where rows were looked for.
        from: RowsFrom,
        /// The model's name.
        model: String,
        /// The service with its version.
        service: String,
        /// First instant asked for.
        from_ms: i64,
        /// End of the range asked for.
        to_ms: i64,
    },
}

fn hint(from: RowsFrom) -> &'static str {
    match from {
        RowsFrom::Served => {
            "; `rows = \"recomputed\"` in [train] makes them of what was asked before the service was there"
        }
        RowsFrom::Recomputed => "",
    }
}

/// Where the rows of a run are read.
#[derive(Clone, Copy)]
pub(crate) struct Source<'a> {
    /// The data folder.
    pub(crate) data: &'a Path,
    /// What features.toml defines.
    pub(crate) definitions: &'a Definitions,
    /// The model whose requests are the rows.
    pub(crate) model: &'a str,
}

impl Source<'_> {
    /// The labelled rows of `service` that were asked for in `times_ms`.
    fn read(
        self,
        (service, from): (&str, RowsFrom),
        times_ms: Range<i64>,
        known_by_ms: i64,
    ) -> Result<TrainingSet, RowsError> {
        let query = TrainingQuery {
            model: self.model.to_owned(),
            service: service.to_owned(),
            from_ms: times_ms.start,
            to_ms: times_ms.end,
            known_by_ms,
        };
        Ok(match from {
            RowsFrom::Served => training_rows(self.data, self.definitions, &query)?,
            RowsFrom::Recomputed => recomputed_rows(self.data, self.definitions, &query)?,
        })
    }

    /// The holdout of `cuts` as rows of another service: what it would have answered from, at the
    /// same moments. Computed anew, since one request is served by one service.
    pub(crate) fn holdout_of(self, service: &str, cuts: &CutOffs) -> Result<Part, RowsError> {
        let times_ms = cuts.holdout_from_ms..cuts.to_ms;
        let set = self.read((service, RowsFrom::Recomputed), times_ms, cuts.known_by_ms)?;
        Ok(Part {
            range: 0..set.rows(),
            set: Arc::new(set),
        })
    }
}

/// A training set with its cuts.
#[derive(Clone, Debug)]
pub(crate) struct Split {
    set: Arc<TrainingSet>,
    training: Range<usize>,
    selection: Range<usize>,
    selection_fit: Range<usize>,
    holdout: Range<usize>,
}

impl Split {
    /// Reads the rows of `service` that are labelled and matured.
    pub(crate) fn read(
        source: Source<'_>,
        service: &str,
        (cuts, train): (&CutOffs, &Train),
    ) -> Result<Self, RowsError> {
        let times_ms = cuts.from_ms..cuts.to_ms;
        let set = source.read((service, train.rows), times_ms, cuts.known_by_ms)?;
        if set.labels.is_empty() || set.names.is_empty() {
            return Err(RowsError::None {
                from: train.rows,
                model: source.model.to_owned(),
                service: service.to_owned(),
                from_ms: cuts.from_ms,
                to_ms: cuts.to_ms,
            });
        }
        Ok(Self::cut(Arc::new(set), cuts, train))
    }

    /// Cuts a set whose rows are in time order.
    pub(crate) fn cut(set: Arc<TrainingSet>, cuts: &CutOffs, train: &Train) -> Self {
        let at = |at_ms: i64| {
            set.predicted_ms
                .partition_point(|&predicted| predicted < at_ms)
        };
        let newest = |range: Range<usize>, rows_max: usize| {
            range.start.max(range.end.saturating_sub(rows_max))..range.end
        };
        let training = newest(at(cuts.from_ms)..at(cuts.embargo_from_ms), train.rows_max);
        let selection = at(cuts.selection_from_ms).max(training.start)..training.end;
        let fit_end = at(cuts.selection_from_ms - train.embargo.0);
        let selection_fit = newest(
            training.start..fit_end.max(training.start),
            train.selection_rows_max,
        );
        let holdout = at(cuts.holdout_from_ms)..at(cuts.to_ms);
        Self {
            training,
            selection,
            selection_fit,
            holdout,
            set,
        }
    }

    /// Labelled rows that were left out, since no model may answer from them.
    pub(crate) fn refused(&self) -> u64 {
        self.set.refused
    }

    /// All rows that may be fitted.
    pub(crate) fn training(&self) -> Part {
        self.part(&self.training)
    }

    /// The rows on which the gates judge.
    pub(crate) fn holdout(&self) -> Part {
        self.part(&self.holdout)
    }

    /// The rows on which experiments are compared: the newest training rows.
    pub(crate) fn selection(&self) -> Part {
        self.part(&self.selection)
    }

    /// The rows that fit an experiment while experiments are compared, an embargo before them.
    pub(crate) fn selection_fit(&self) -> Part {
        self.part(&self.selection_fit)
    }

    fn part(&self, range: &Range<usize>) -> Part {
        Part {
            set: Arc::clone(&self.set),
            range: range.clone(),
        }
    }
}

/// A stretch of rows of the training set, in time order, read in place.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    set: Arc<TrainingSet>,
    range: Range<usize>,
}

impl Part {
    /// Number of rows.
    pub(crate) fn rows(&self) -> usize {
        self.range.len()
    }

    /// Number of features.
    pub(crate) fn columns(&self) -> usize {
        self.set.names.len()
    }

    /// Feature names, in column order.
    pub(crate) fn names(&self) -> &[String] {
        &self.set.names
    }

    /// Feature values, row by row; NaN is missing.
    pub(crate) fn values(&self) -> &[f32] {
        let columns = self.columns();
        &self.set.values[self.range.start * columns..self.range.end * columns]
    }

    /// Labels, 0 or 1.
    pub(crate) fn labels(&self) -> &[f32] {
        &self.set.labels[self.range.clone()]
    }

    /// When each row was predicted.
    pub(crate) fn times_ms(&self) -> &[i64] {
        &self.set.predicted_ms[self.range.clone()]
    }

    /// Rows whose label arrived only after `at_ms`.
    pub(crate) fn labelled_after(&self, at_ms: i64) -> usize {
        self.set.known_ms[self.range.clone()]
            .iter()
            .filter(|&&known| known > at_ms)
            .count()
    }

    /// Share of rows with label 1.
    pub(crate) fn label_share(&self) -> f64 {
        let positives = self.labels().iter().filter(|&&label| label > 0.5).count();
        positives as f64 / self.rows().max(1) as f64
    }

    /// A weight per row that halves with each `half_life` of age, 1 for the newest row.
    pub(crate) fn weights(&self, half_life: Option<Period>) -> Option<Vec<f32>> {
        let half_life_ms = half_life?.0 as f64;
        let newest_ms = *self.times_ms().last()?;
        let weight = |&at_ms: &i64| 0.5f64.powf((newest_ms - at_ms) as f64 / half_life_ms) as f32;
        Some(self.times_ms().iter().map(weight).collect())
    }

    /// First and last prediction time.
    pub(crate) fn span_ms(&self) -> Option<(i64, i64)> {
        Some((*self.times_ms().first()?, *self.times_ms().last()?))
    }

    /// The places of the predictions that are in both parts, here and there, in the order of here.
    pub(crate) fn shared_with(&self, other: &Self) -> impl Iterator<Item = (usize, usize)> {
        let theirs = &other.set.predictions[other.range.clone()];
        let places: HashMap<_, _> = theirs.iter().zip(0..).collect();
        let ours = self.set.predictions[self.range.clone()].iter();
        ours.enumerate()
            .filter_map(move |(here, prediction)| Some((here, *places.get(prediction)?)))
    }

    /// The digest of the whole set, which a dataset of the same query has too.
    pub(crate) fn set_digest(&self) -> [u8; 32] {
        self.set.digest
    }

    /// Names these rows: sha256 over the whole set's digest and the range within it.
    pub(crate) fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.set.digest);
        hash.update((self.range.start as u64).to_le_bytes());
        hash.update((self.range.end as u64).to_le_bytes());
        hash.finalize().into()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    /// A set of one row an hour from time 0, whose labels are known three hours later.
    fn hourly(rows: usize) -> Arc<TrainingSet> {
        let times: Vec<i64> = (0..rows as i64).map(|row| row * HOUR).collect();
        Arc::new(TrainingSet {
            names: vec!["a".into(), "b".into()],
            values: (0..rows * 2).map(|value| value as f32).collect(),
            labels: (0..rows).map(|row| (row % 2) as f32).collect(),
            known_ms: times.iter().map(|at| at + 3 * HOUR).collect(),
            predicted_ms: times,
            request_ids: (0..rows).map(|row| row.to_string()).collect(),
            predictions: crate::synthetic::predictions(rows),
            refused: 0,
            digest: [7; 32],
        })
    }

    fn periods() -> Train {
        Train {
            window: Period(1_000 * HOUR),
            maturity: Period(4 * HOUR),
            holdout: Period(24 * HOUR),
            embargo: Period(4 * HOUR),
            selection: Period(10 * HOUR),
            ..Train::default()
        }
    }

    #[test]
    fn no_row_is_in_two_parts_and_none_trains_on_what_was_not_known() {
        let train = periods();
        let as_of_ms = 200 * HOUR;
        let cuts = CutOffs::at(&train, as_of_ms);
        let split = Split::cut(hourly(240), &cuts, &train);
        assert_eq!(
            split.holdout().times_ms(),
            (172..196).map(|h| h * HOUR).collect::<Vec<_>>()
        );
        assert_eq!(split.training().times_ms().last(), Some(&(167 * HOUR)));
        assert_eq!(split.training().labelled_after(cuts.holdout_from_ms), 0);
        assert_eq!(split.selection().span_ms(), Some((158 * HOUR, 167 * HOUR)));
        assert_eq!(split.selection_fit().span_ms(), Some((0, 153 * HOUR)));
        assert_eq!(
            split.selection_fit().labelled_after(cuts.selection_from_ms),
            0
        );
        assert_eq!(split.holdout().values()[..2], [344.0, 345.0]);
    }

    #[test]
    fn caps_keep_the_newest_rows() {
        let train = Train {
            rows_max: 50,
            selection_rows_max: 20,
            ..periods()
        };
        let split = Split::cut(hourly(240), &CutOffs::at(&train, 200 * HOUR), &train);
        assert_eq!(split.training().span_ms(), Some((118 * HOUR, 167 * HOUR)));
        assert_eq!(
            split.selection_fit().span_ms(),
            Some((134 * HOUR, 153 * HOUR))
        );
    }

    #[test]
    fn too_little_history_gives_empty_parts_and_not_a_panic() {
        let train = periods();
        for rows in [1, 20, 30] {
            let split = Split::cut(hourly(rows), &CutOffs::at(&train, 34 * HOUR), &train);
            assert_eq!(split.training().rows(), rows.min(2), "of {rows} rows");
            assert_eq!(split.selection_fit().rows(), 0);
            assert!(split.selection().rows() <= 2);
        }
    }

    #[test]
    fn weights_halve_with_age() {
        let train = periods();
        let part = Split::cut(hourly(240), &CutOffs::at(&train, 200 * HOUR), &train).training();
        let weights = part.weights(Some(Period(10 * HOUR))).unwrap();
        assert_eq!(weights[167], 1.0);
        assert!((weights[157] - 0.5).abs() < 1e-6 && (weights[147] - 0.25).abs() < 1e-6);
        assert_eq!(part.weights(None), None);
    }
}
