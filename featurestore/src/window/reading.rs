//! Reading features from a state at a time.
//!
//! Counts, sums, means, rates and latest values cost tens of nanoseconds. Squares, distinct values and
//! quantiles cost what their heads say; they are read out of line (`beside`), so that the others do not pay
//! for them.

use std::borrow::Cow;

use super::decay::Decays;
use super::distinct::Distinct;
use super::quantiles::Quantiles;
use super::squares::Squares;
use super::summary::{TileSummary, order};
use super::tiles::number_near;
use super::{Cell, Feature, SUM_UNITS, Status, ViewState};
use crate::definition::{Aggregate, Decay, MeasureKind, View, ViewFeature, WINDOWS_MAX};
use crate::value::{FieldType, Value};

/// A state at a time: which tiles each window covers is known.
pub(crate) struct Reading<'a> {
    state: &'a ViewState,
    view: &'a View,
    ttl_ms: Option<i64>,
    at_ms: i64,
    /// Where the tiles that each window covers start and end
    covered: [(u8, u8); WINDOWS_MAX],
}

impl<'a> Reading<'a> {
    pub(super) fn new(state: &'a ViewState, view: &'a View, at_ms: i64) -> Self {
        let mut covered = [(0, 0); WINDOWS_MAX];
        for (index, (window, covered)) in view.windows.iter().zip(&mut covered).enumerate() {
            let std::ops::Range { mut start, mut end } = state.tiles.of_window(index);
            let own = &state.tiles.tiles()[start..end];
            let current = number_near(window, at_ms, own.last());
            let oldest = current - window.tiles_read() + 1;
            start += own.iter().take_while(|it| it.number < oldest).count();
            let ahead = own.iter().rev().take_while(|it| it.number > current);
            end -= ahead.count();
            // Where all tiles are too old none is ahead, and the other way about.
            *covered = (start as u8, end as u8);
        }
        Self {
            state,
            view,
            ttl_ms: view.ttl_ms,
            at_ms,
            covered,
        }
    }

    /// The same without the view's TTL.
    pub(crate) fn of_any_age(self) -> Self {
        Self {
            ttl_ms: None,
            ..self
        }
    }

    /// Time of the newest event folded.
    pub(crate) fn newest_ms(&self) -> Option<i64> {
        self.state.newest_ms()
    }

    /// The value that the state keeps as it came, null where it has none; `None` for a feature that is
    /// computed. Where the state has no values at all, the status says why.
    pub(crate) fn kept(&self, index: usize) -> Result<Option<&'a Value>, Feature> {
        let aggregate = self.known(index)?.0.aggregate;
        match aggregate {
            Aggregate::Last { .. }
            | Aggregate::First { .. }
            | Aggregate::Min { .. }
            | Aggregate::Max { .. } => Ok(Some(self.as_it_came(aggregate).unwrap_or(&Value::Null))),
            _ => Ok(None),
        }
    }

    /// The feature of that index in the view, as a model takes it; a string has no such value.
    pub(crate) fn feature(&self, index: usize) -> Feature {
        let (feature, event_ms) = match self.known(index) {
            Ok(known) => known,
            Err(missing) => return missing,
        };
        match self.number(feature.aggregate, event_ms) {
            Some(value) => Feature {
                value: value as f32,
                status: Status::Present,
                event_ms,
            },
            None => Feature::missing(Status::NullValue, event_ms),
        }
    }

    /// The same in the feature's own type (`ViewFeature::ty`): the value, `Null` unless the status is
    /// `Present`, and the time of the newest event. Allocates nothing.
    pub(crate) fn value(&self, index: usize) -> (Cow<'a, Value>, Status, i64) {
        let (feature, event_ms) = match self.known(index) {
            Ok(known) => known,
            Err(missing) => return (Cow::Owned(Value::Null), missing.status, missing.event_ms),
        };
        let aggregate = feature.aggregate;
        let value = match (self.as_it_came(aggregate), feature.ty) {
            (Some(value), _) => Some(Cow::Borrowed(value)),
            (None, FieldType::Int) => {
                let number = self.number(aggregate, event_ms);
                number.map(|number| Cow::Owned(Value::Int(number as i64)))
            }
            (None, _) => {
                let number = self.number(aggregate, event_ms);
                number.map(|number| Cow::Owned(Value::Float(number)))
            }
        };
        match value.filter(|value| !value.is_null()) {
            Some(value) => (value, Status::Present, event_ms),
            None => (Cow::Owned(Value::Null), Status::NullValue, event_ms),
        }
    }

    /// A feature of the view and the time of the newest event, or why it has no value at all.
    fn known(&self, index: usize) -> Result<(&'a ViewFeature, i64), Feature> {
        let (Some(latest), Some(feature)) = (self.state.latest, self.view.features.get(index))
        else {
            return Err(Feature::missing(Status::NotFound, 0));
        };
        let age_ms = self.at_ms.saturating_sub(latest.event_ms);
        if self.ttl_ms.is_some_and(|ttl_ms| age_ms > ttl_ms) {
            return Err(Feature::missing(Status::OutsideMaxAge, latest.event_ms));
        }
        Ok((feature, latest.event_ms))
    }

    /// `None` where there is no value or none that is a number.
    #[inline]
    fn number(&self, aggregate: Aggregate, event_ms: i64) -> Option<f64> {
        match aggregate {
            Aggregate::Count { window } => Some(self.rows(window)),
            Aggregate::Sum { window, measure } => {
                let total = self.total(window, measure);
                Some(to_f64(total.sum) / self.units(measure))
            }
            Aggregate::Mean { window, measure } | Aggregate::Rate { window, measure } => {
                let total = self.total(window, measure);
                let mean = || to_f64(total.sum) / self.units(measure) / total.present as f64;
                (total.present > 0).then(mean)
            }
            Aggregate::Last { slot } => self.state.last.get(slot)?.as_f64(),
            // An event dated ahead of the reader has no age yet.
            Aggregate::AgeOfLast => {
                let age_ms = self.at_ms.saturating_sub(event_ms).max(0);
                Some(age_ms as f64 / HOUR_MS)
            }
            beside => self.beside(beside),
        }
    }

    /// The same of what lies beside the cells; `None` for what `number` reads itself.
    #[inline(never)]
    fn beside(&self, aggregate: Aggregate) -> Option<f64> {
        match aggregate {
            Aggregate::Min { .. } | Aggregate::Max { .. } | Aggregate::First { .. } => {
                self.as_it_came(aggregate)?.as_f64()
            }
            Aggregate::Std {
                window,
                measure,
                summary,
            } => self.std((window, measure, summary)),
            Aggregate::Distinct { window, summary } => Some(self.distinct(window, summary)),
            Aggregate::Quantile {
                window,
                summary,
                millionths,
            } => self.quantile(window, summary, millionths),
            Aggregate::DecayedCount { decay } => {
                let (decays, decay) = self.decay(decay)?;
                Some(decays.count(decay, self.at_ms))
            }
            Aggregate::DecayedMean { decay } => {
                let (decays, decay) = self.decay(decay)?;
                decays.mean(decay, self.at_ms)
            }
            Aggregate::Count { .. }
            | Aggregate::Sum { .. }
            | Aggregate::Mean { .. }
            | Aggregate::Rate { .. }
            | Aggregate::Last { .. }
            | Aggregate::AgeOfLast => None,
        }
    }

    /// The value that the state keeps as it came, where the feature is one.
    fn as_it_came(&self, aggregate: Aggregate) -> Option<&'a Value> {
        match aggregate {
            Aggregate::Last { slot } => self.state.last.get(slot),
            Aggregate::First { window, summary } => {
                let mut tiles = self.summaries(window, summary);
                tiles.find_map(|tile| match tile {
                    TileSummary::First { value, .. } => Some(value),
                    _ => None,
                })
            }
            Aggregate::Min { window, summary } => {
                let lows = self
                    .summaries(window, summary)
                    .filter_map(|tile| match tile {
                        TileSummary::Extremes { low, .. } => Some(low),
                        _ => None,
                    });
                lows.filter(|low| !low.is_null()).min_by(|a, b| order(a, b))
            }
            Aggregate::Max { window, summary } => {
                let highs = self
                    .summaries(window, summary)
                    .filter_map(|tile| match tile {
                        TileSummary::Extremes { high, .. } => Some(high),
                        _ => None,
                    });
                highs
                    .filter(|high| !high.is_null())
                    .max_by(|a, b| order(a, b))
            }
            _ => None,
        }
    }

    /// Of a sample: divided by one less than the number of values, of which there must be two.
    fn std(&self, (window, measure, summary): (usize, usize, usize)) -> Option<f64> {
        let total = self.total(window, measure);
        let pairs = total.present as f64 * total.present.checked_sub(1).filter(|&n| n > 0)? as f64;
        let mut squares = Squares::default();
        for tile in self.summaries(window, summary) {
            if let TileSummary::Squares(more) = tile {
                squares.merge(more);
            }
        }
        Some((squares.spread(total.present, total.sum) / pairs).sqrt() / SUM_UNITS)
    }

    fn distinct(&self, window: usize, summary: usize) -> f64 {
        let tiles = self.summaries(window, summary);
        Distinct::count(tiles.filter_map(|tile| match tile {
            TileSummary::Distinct(distinct) => Some(distinct),
            _ => None,
        })) as f64
    }

    fn quantile(&self, window: usize, summary: usize, millionths: u32) -> Option<f64> {
        let tiles = self.summaries(window, summary);
        let tiles = tiles.filter_map(|tile| match tile {
            TileSummary::Quantiles(quantiles) => Some(quantiles),
            _ => None,
        });
        Quantiles::quantile(tiles, millionths)
    }

    fn decay(&self, index: usize) -> Option<(&'a Decays, (usize, &'a Decay))> {
        let decay = self.view.decays.get(index)?;
        Some((&self.state.decays, (index, decay)))
    }

    fn rows(&self, window: usize) -> f64 {
        let covered = self.covered(window);
        self.state.tiles.rows(self.view, window, covered) as f64
    }

    fn total(&self, window: usize, measure: usize) -> Cell {
        let covered = self.covered(window);
        let tiles = &self.state.tiles;
        tiles.sum(self.view, (window, measure), covered)
    }

    /// One summary in each covered tile, oldest first.
    fn summaries(
        &self,
        window: usize,
        summary: usize,
    ) -> impl Iterator<Item = &'a TileSummary> + Clone + use<'a> {
        let width = self.view.summaries.len();
        let covered = self.covered(window);
        let tiles = &self.state.tiles.summaries()[covered.start * width..covered.end * width];
        tiles.iter().skip(summary).step_by(width.max(1))
    }

    fn covered(&self, window: usize) -> std::ops::Range<usize> {
        let (start, end) = self.covered[window];
        usize::from(start)..usize::from(end)
    }

    /// What a measure's sum is divided by.
    fn units(&self, measure: usize) -> f64 {
        match self.view.measures[measure].kind {
            MeasureKind::Number => SUM_UNITS,
            MeasureKind::Truth => 1.0,
        }
    }
}

/// `sum as f64`; nearly all sums fit 64 bits, for which there is an instruction.
fn to_f64(sum: i128) -> f64 {
    match i64::try_from(sum) {
        Ok(sum) => sum as f64,
        Err(_) => sum as f64,
    }
}

/// Milliseconds in the unit of `age_of_last`.
const HOUR_MS: f64 = 3_600_000.0;
