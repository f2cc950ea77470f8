//! A feature service: what a model asks for, and how its input row is put together.
//!
//! `assemble` is the only way to a row, online and in training alike. It takes the request's values
//! and the states of the views that the service needs; it reads no store and no clock.

mod derived;
mod rows;

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use thiserror::Error;

pub use self::derived::Derived;
use self::derived::Row;
pub(crate) use self::rows::Rows;
use crate::definition::{Meaning, View, ViewKey};
use crate::value::{Field, FieldProblem, Value};
use crate::window::{Feature, Reading, Status, ViewState};

/// One version of a feature service. Immutable: what it means belongs to the version.
#[derive(Debug)]
pub struct Service {
    /// Name, without the version
    pub name: Box<str>,
    /// Version, from 1
    pub version: u32,
    /// What a request brings, as ordered in the file
    pub request: Vec<Field>,
    /// The model's input row
    pub features: Vec<ServiceFeature>,
    pub(crate) id: Box<str>,
    pub(crate) views: Vec<Arc<View>>,
    /// For each of `views` the indices of its key fields in `request`
    pub(crate) view_keys: Vec<Vec<usize>>,
    /// The columns that a row cannot do without
    pub(crate) refusing: Vec<usize>,
    pub(crate) meaning: Meaning,
}

/// One column of a service's row.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFeature {
    /// `"distance_miles"` of the request, `"origin_departures:count_1h"` of a view
    pub name: Box<str>,
    /// What stands in for a value that is not `Present`
    pub missing: Missing,
    /// Smallest and largest value; what lies outside is set to them
    pub clip: Option<(f32, f32)>,
    /// Where the value comes from
    pub origin: FeatureOrigin,
}

/// What stands where a feature has no value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Missing {
    /// NaN
    Nan,
    /// A number
    Default(f32),
    /// NaN, and no model may answer from the row
    Refuse,
}

/// Where a feature's value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum FeatureOrigin {
    /// A number or boolean of the request
    Request {
        /// Index in `Service::request`
        field: usize,
    },
    /// A string of the request, as its position in the dictionary
    Category {
        /// Index in `Service::request`
        field: usize,
        /// Known strings; their order gives the codes 0, 1, …
        dictionary: Arc<Dictionary>,
    },
    /// A feature of a view
    View(InView),
    /// A string of a view's newest event, as its position in the dictionary
    KeptCategory {
        /// Which
        at: InView,
        /// Known strings; their order gives the codes 0, 1, …
        dictionary: Arc<Dictionary>,
    },
    /// One feature of a view less another; `Present` where both are
    Difference {
        /// From which is taken
        minuend: InView,
        /// What is taken
        subtrahend: InView,
    },
    /// Computed from features of views and the request
    Derived(Derived),
}

/// A feature of a view that a service needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InView {
    /// Index in `Service::needed_views`
    pub view: usize,
    /// Index in `View::features`
    pub feature: usize,
}

/// Known strings and their codes.
#[derive(Debug, PartialEq, Eq)]
pub struct Dictionary {
    words: Vec<Box<str>>,
    codes: HashMap<Box<str>, u32, RandomState>,
}

impl Dictionary {
    /// Numbers `words` from 0; of equal words the last number counts.
    pub(crate) fn new(words: Vec<Box<str>>) -> Self {
        let codes = words.iter().cloned().zip(0..).collect();
        Self { words, codes }
    }

    /// The words in the order of their codes.
    pub fn words(&self) -> &[Box<str>] {
        &self.words
    }

    /// The code of a word.
    pub fn code(&self, word: &str) -> Option<u32> {
        self.codes.get(word).copied()
    }
}

/// One row as a model gets it. The three lists have the length of `Service::features`.
#[derive(Clone, Debug)]
pub struct FeatureRow {
    /// Values; NaN where missing without a default
    pub values: Vec<f32>,
    /// How well each is known
    pub statuses: Vec<Status>,
    /// For a view's feature the time of the newest event of the key (0: none), for one of the
    /// request the request's time; for one derived from views the newest of theirs
    pub event_times_ms: Vec<i64>,
    /// Every event up to this sequence number had been folded, and none after
    pub as_of_seq: u64,
}

/// A feature that is missing in a row, without which no model may answer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("feature `{feature}` is {}, and `{service}` refuses a row without it", status.as_str())]
pub struct Refused {
    /// The service's `name@version`
    pub service: Box<str>,
    /// The column
    pub feature: Box<str>,
    /// Why it is missing
    pub status: Status,
}

/// A request that does not fit its service.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum RequestError {
    /// Another number of values than the service has request fields
    #[error("{found} values for the {expected} request fields of `{service}`")]
    Width {
        /// The service
        service: String,
        /// Values given
        found: usize,
        /// Fields of the request
        expected: usize,
    },
    /// A value that does not fit its field
    #[error("field `{field}`: {problem}")]
    Field {
        /// The request field
        field: String,
        /// Why it does not fit
        problem: FieldProblem,
    },
}

impl Service {
    /// `"delay@1"`.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// All that can alter the value of one of its columns, the views' meanings included.
    pub fn meaning(&self) -> &Meaning {
        &self.meaning
    }

    /// The columns' names, in order.
    pub fn feature_names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.features.iter().map(|feature| &*feature.name)
    }

    /// The views whose states `assemble` needs, each once.
    pub fn needed_views(&self) -> &[Arc<View>] {
        &self.views
    }

    /// The index of the request field of that name.
    pub fn request_field(&self, name: &str) -> Option<usize> {
        self.request.iter().position(|field| &*field.name == name)
    }

    /// Whether a model may answer from `row`; costs nothing where no column refuses.
    pub fn check_row(&self, row: &FeatureRow) -> Result<(), Refused> {
        for &column in &self.refusing {
            let status = row.statuses.get(column).copied();
            let status = status.unwrap_or(Status::NullValue);
            if status != Status::Present {
                return Err(Refused {
                    service: self.id.clone(),
                    feature: self.features[column].name.clone(),
                    status,
                });
            }
        }
        Ok(())
    }

    /// The request fields that are keys of needed views, in the order of the request.
    pub fn key_fields(&self) -> impl Iterator<Item = usize> {
        let is_key = |field: &usize| self.view_keys.iter().flatten().any(|key| key == field);
        (0..self.request.len()).filter(is_key)
    }

    /// Whether `request` has a fitting value for each request field.
    pub fn check_request(&self, request: &[Value]) -> Result<(), RequestError> {
        if request.len() != self.request.len() {
            return Err(RequestError::Width {
                service: self.id.to_string(),
                found: request.len(),
                expected: self.request.len(),
            });
        }
        for (field, value) in self.request.iter().zip(request) {
            field.check(value).map_err(|problem| RequestError::Field {
                field: field.name.to_string(),
                problem,
            })?;
        }
        Ok(())
    }

    /// For each needed view the key of the state that the request is about; `None` where a key
    /// value is null, whose features are then `NotFound`.
    pub fn keys(&self, request: &[Value]) -> Vec<Option<ViewKey>> {
        self.views
            .iter()
            .zip(&self.view_keys)
            .map(|(view, fields)| view.key_from(fields.iter().map(|&field| request.get(field))))
            .collect()
    }

    /// Appends the bytes of the key of one needed view, as `keys` has it; `None` appends nothing.
    pub(crate) fn encode_key(
        &self,
        view: usize,
        request: &[Value],
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let fields = self.view_keys.get(view)?;
        let values = fields.iter().map(|&field| request.get(field));
        self.views.get(view)?.encode_key(values, out)
    }

    /// The row for `request` at `at_ms`, given one state for each needed view, in their order.
    pub fn assemble(
        &self,
        request: &[Value],
        states: &[Option<ViewState>],
        at_ms: i64,
        as_of_seq: u64,
    ) -> FeatureRow {
        let state = |view: usize| states.get(view).and_then(Option::as_ref);
        self.assemble_from(request, state, at_ms, as_of_seq)
    }

    /// `assemble` for states that lie elsewhere: `state` gives that of a needed view by its index.
    pub fn assemble_from<'a>(
        &self,
        request: &[Value],
        state: impl Fn(usize) -> Option<&'a ViewState>,
        at_ms: i64,
        as_of_seq: u64,
    ) -> FeatureRow {
        let views = self.views.iter().enumerate();
        let readings: Vec<_> = views
            .map(|(index, view)| Some(state(index)?.reading(view, at_ms)))
            .collect();
        let row = Row {
            request,
            readings: &readings,
            at_ms,
        };
        self.row(&row, as_of_seq, |_| None)
    }

    /// The row of what is read; `known` gives the columns that need not be read again, as value, status
    /// and event time.
    fn row(
        &self,
        row: &Row<'_>,
        as_of_seq: u64,
        known: impl Fn(usize) -> Option<(f32, Status, i64)>,
    ) -> FeatureRow {
        let columns = self.features.len();
        let mut found = FeatureRow {
            values: Vec::with_capacity(columns),
            statuses: Vec::with_capacity(columns),
            event_times_ms: Vec::with_capacity(columns),
            as_of_seq,
        };
        for (index, column) in self.features.iter().enumerate() {
            let (value, status, event_ms) = known(index).unwrap_or_else(|| {
                let feature = row.feature(&column.origin);
                (column.finish(feature), feature.status, feature.event_ms)
            });
            found.values.push(value);
            found.statuses.push(status);
            found.event_times_ms.push(event_ms);
        }
        found
    }
}

impl Row<'_> {
    fn feature(&self, origin: &FeatureOrigin) -> Feature {
        let read = |at: InView| match &self.readings[at.view] {
            Some(reading) => reading.feature(at.feature),
            None => Feature::missing(Status::NotFound, 0),
        };
        match origin {
            FeatureOrigin::Request { field } => {
                let number = self.request.get(*field).and_then(Value::as_f64);
                of_request(number, self.at_ms)
            }
            FeatureOrigin::Category { field, dictionary } => {
                of_category(self.request.get(*field), dictionary, self.at_ms)
            }
            FeatureOrigin::View(at) => read(*at),
            FeatureOrigin::KeptCategory { at, dictionary } => {
                kept_category(self.readings[at.view].as_ref(), at.feature, dictionary)
            }
            FeatureOrigin::Difference {
                minuend,
                subtrahend,
            } => difference(read(*minuend), read(*subtrahend)),
            FeatureOrigin::Derived(derived) => derived.feature(self),
        }
    }
}

impl FeatureOrigin {
    /// The features of views that it is computed from, in the order of the file.
    pub fn reads(&self) -> impl Iterator<Item = InView> {
        let (plain, derived) = match self {
            Self::Request { .. } | Self::Category { .. } => ([None, None], None),
            Self::View(at) | Self::KeptCategory { at, .. } => ([Some(*at), None], None),
            Self::Difference {
                minuend,
                subtrahend,
            } => ([Some(*minuend), Some(*subtrahend)], None),
            Self::Derived(derived) => ([None, None], Some(derived.reads())),
        };
        plain
            .into_iter()
            .flatten()
            .chain(derived.into_iter().flatten())
    }
}

impl ServiceFeature {
    fn finish(&self, feature: Feature) -> f32 {
        match (feature.status, self.clip, self.missing) {
            (Status::Present, Some((low, high)), _) => feature.value.clamp(low, high),
            (Status::Present, None, _) => feature.value,
            (_, _, Missing::Default(default)) => default,
            (_, _, Missing::Nan | Missing::Refuse) => f32::NAN,
        }
    }

    /// The places of those that a row cannot do without.
    pub(crate) fn refusing(features: &[Self]) -> Vec<usize> {
        let refuses = |&place: &usize| features[place].missing == Missing::Refuse;
        (0..features.len()).filter(refuses).collect()
    }
}

impl FeatureRow {
    /// Whether values (to the bit, so that NaN equals itself), statuses and event times are the
    /// same: what parity means. `as_of_seq` may differ.
    pub fn same_features(&self, other: &Self) -> bool {
        let bits = |value: &f32| value.to_bits();
        self.values
            .iter()
            .map(bits)
            .eq(other.values.iter().map(bits))
            && self.statuses == other.statuses
            && self.event_times_ms == other.event_times_ms
    }
}

impl PartialEq for FeatureRow {
    /// `same_features`, as of the same sequence number.
    fn eq(&self, other: &Self) -> bool {
        self.same_features(other) && self.as_of_seq == other.as_of_seq
    }
}

/// `a - b`; the first of them that is missing says why there is none.
fn difference(a: Feature, b: Feature) -> Feature {
    let event_ms = a.event_ms.max(b.event_ms);
    match (a.status, b.status) {
        (Status::Present, Status::Present) => Feature {
            value: a.value - b.value,
            status: Status::Present,
            event_ms,
        },
        (Status::Present, missing) | (missing, _) => Feature::missing(missing, event_ms),
    }
}

fn of_request(value: Option<f64>, at_ms: i64) -> Feature {
    // A value is below 2^63, so it stays finite as f32.
    match value.filter(|value| !value.is_nan()) {
        Some(value) => Feature {
            value: value as f32,
            status: Status::Present,
            event_ms: at_ms,
        },
        None => Feature::missing(Status::NullValue, at_ms),
    }
}

fn of_category(value: Option<&Value>, dictionary: &Dictionary, at_ms: i64) -> Feature {
    let Some(Value::String(word)) = value else {
        return Feature::missing(Status::NullValue, at_ms);
    };
    of_category_code(dictionary.code(word), at_ms)
}

fn kept_category(
    reading: Option<&Reading<'_>>,
    feature: usize,
    dictionary: &Dictionary,
) -> Feature {
    let Some(reading) = reading else {
        return Feature::missing(Status::NotFound, 0);
    };
    match reading.kept(feature) {
        Ok(value) => of_category(value, dictionary, reading.newest_ms().unwrap_or(0)),
        Err(missing) => missing,
    }
}

fn of_category_code(code: Option<u32>, event_ms: i64) -> Feature {
    match code {
        Some(code) => of_request(Some(f64::from(code)), event_ms),
        None => Feature::missing(Status::UnknownCategory, event_ms),
    }
}
