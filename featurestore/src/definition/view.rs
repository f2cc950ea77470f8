//! A view: which events it takes, under which key, and what its state must hold.

use std::sync::Arc;

use super::window::{Decay, Window};
use crate::definition::{Meaning, Source};
use crate::event::Event;
use crate::value::{Field, FieldType, Value};

/// Windows of one view at most; each costs its share of the state and of a read.
pub const WINDOWS_MAX: usize = 16;

/// Features computed from the events of one source, one state for each key.
#[derive(Debug)]
pub struct View {
    /// Name, without the version
    pub name: Box<str>,
    /// Version, from 1; unique in the file together with the name
    pub version: u32,
    /// Where its events come from
    pub source: Arc<Source>,
    /// Key fields (name and type); none means one global state
    pub keys: Vec<Field>,
    /// The key fields' indices in the source
    pub key_fields: Vec<usize>,
    /// Windows, at most `WINDOWS_MAX`
    pub windows: Vec<Window>,
    /// Features of a key whose newest event is older are `OutsideMaxAge`
    pub ttl_ms: Option<i64>,
    /// Only events that pass are folded
    pub filter: Option<Filter>,
    /// Fields summed in each tile
    pub measures: Vec<Measure>,
    /// What each tile keeps beside those
    pub summaries: Vec<Summary>,
    /// What fades instead of leaving a window
    pub decays: Vec<Decay>,
    /// Source indices of the fields kept of the newest event
    pub last_fields: Vec<usize>,
    /// What can be read, in the order of the file
    pub features: Vec<ViewFeature>,
    /// First 8 bytes of the SHA-256 over name and state layout: a view whose definition changed
    /// never reads a state that was folded under the old one
    pub id: u64,
    pub(crate) pin: Box<str>,
    pub(crate) meaning: Meaning,
}

/// `where = { field = …, … }`
#[derive(Clone, Debug, PartialEq)]
pub struct Filter {
    /// Source index of the field
    pub field: usize,
    /// What its value must be
    pub test: Test,
}

/// What a filter asks of a value; null never passes.
#[derive(Clone, Debug, PartialEq)]
pub enum Test {
    /// `equals = …`
    Equals(Value),
    /// `in = […]`: one of these
    In(Vec<Value>),
    /// `min = …`, `max = …`: a number within both, themselves included
    Within {
        /// The smallest, of the field's type
        min: Option<Value>,
        /// The largest, of the field's type
        max: Option<Value>,
    },
}

impl Test {
    /// Whether a value of the field passes.
    pub fn passes(&self, value: &Value) -> bool {
        match self {
            Self::Equals(wanted) => value == wanted,
            Self::In(wanted) => wanted.contains(value),
            Self::Within { min, max } => {
                let reaches = |low: &Value, high: &Value| match (low, high) {
                    (Value::Int(low), Value::Int(high)) => low <= high,
                    (Value::Float(low), Value::Float(high)) => low <= high,
                    _ => false,
                };
                min.as_ref().is_none_or(|min| reaches(min, value))
                    && max.as_ref().is_none_or(|max| reaches(value, max))
            }
        }
    }
}

/// A field whose non-null values are counted and added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// Source index
    pub field: usize,
    /// How its values are added
    pub kind: MeasureKind,
}

/// How a measure adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasureKind {
    /// Ints and floats, in units of 2^-32
    Number,
    /// Booleans: the number of trues
    Truth,
}

/// What each tile keeps of a field beside its count and sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Source index
    pub field: usize,
    /// Of what kind
    pub kind: SummaryKind,
}

/// A kind of summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SummaryKind {
    /// The smallest and largest value
    Extremes,
    /// The sum of squares
    Squares,
    /// The oldest event's value
    First,
    /// The different values: exactly 256, beyond that as HyperLogLog registers
    Distinct,
    /// How many values lie in each of up to 512 buckets
    Quantiles,
}

impl SummaryKind {
    /// Its name in the layout of a state.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Extremes => "extremes",
            Self::Squares => "squares",
            Self::First => "first",
            Self::Distinct => "distinct",
            Self::Quantiles => "quantiles",
        }
    }
}

/// One readable feature of a view.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewFeature {
    /// Name within the view, such as `"mean_delay_24h"`
    pub name: Box<str>,
    /// What its values are, as `ViewState::value` gives them
    pub ty: FieldType,
    /// How it is computed
    pub aggregate: Aggregate,
}

/// How a feature is computed; indices are into the view's `windows`, `measures`, `summaries`,
/// `last_fields` and `decays`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aggregate {
    /// Events in the window
    Count {
        /// Which window
        window: usize,
    },
    /// Sum of the non-null values; 0 where there are none
    Sum {
        /// Which window
        window: usize,
        /// Of what
        measure: usize,
    },
    /// Mean of the non-null values
    Mean {
        /// Which window
        window: usize,
        /// Of what
        measure: usize,
    },
    /// Share of trues among the non-null values
    Rate {
        /// Which window
        window: usize,
        /// Of what
        measure: usize,
    },
    /// Smallest of the non-null values
    Min {
        /// Which window
        window: usize,
        /// Of what
        summary: usize,
    },
    /// Largest of the non-null values
    Max {
        /// Which window
        window: usize,
        /// Of what
        summary: usize,
    },
    /// Standard deviation of the non-null values as a sample (divided by n - 1); null below two
    Std {
        /// Which window
        window: usize,
        /// Of what
        measure: usize,
        /// Of the same
        summary: usize,
    },
    /// The value of the window's oldest event, of those of one time the one with the lowest number
    First {
        /// Which window
        window: usize,
        /// Of what
        summary: usize,
    },
    /// Different non-null values: exact up to 256 a tile, beyond that with a standard error of 2.3 %
    Distinct {
        /// Which window
        window: usize,
        /// Of what
        summary: usize,
    },
    /// The non-null value of rank ⌊q·(n-1)⌋, within 1/128 of it where a tile's values need no more than
    /// 512 buckets (`window/quantiles.rs`)
    Quantile {
        /// Which window
        window: usize,
        /// Of what
        summary: usize,
        /// q in millionths
        millionths: u32,
    },
    /// Events, each of age a weighing 2^(-a / half-life)
    DecayedCount {
        /// Which decay
        decay: usize,
    },
    /// Mean of the non-null values in the same weights
    DecayedMean {
        /// Which decay
        decay: usize,
    },
    /// The newest event's value
    Last {
        /// Of what
        slot: usize,
    },
    /// Hours since the newest event
    AgeOfLast,
}

impl Filter {
    /// As a sentence: `late = true`, `carrier in ["AA","UA"]`, `15.0 <= delay <= 60.0`.
    pub fn describe(&self, source: &Source) -> String {
        let field = &source.fields[self.field].name;
        let bound = |value: &Value| value.to_json().to_string();
        match &self.test {
            Test::Equals(wanted) => format!("{field} = {}", wanted.to_json()),
            Test::In(wanted) => {
                let wanted: Vec<_> = wanted.iter().map(Value::to_json).collect();
                format!("{field} in {}", serde_json::Value::from(wanted))
            }
            Test::Within { min, max } => {
                let low = min
                    .as_ref()
                    .map_or(String::new(), |min| bound(min) + " <= ");
                let high = max
                    .as_ref()
                    .map_or(String::new(), |max| format!(" <= {}", bound(max)));
                format!("{low}{field}{high}")
            }
        }
    }
}

impl Aggregate {
    /// The window that it is over; `None` for what the newest event alone says and for what fades.
    pub fn window(self) -> Option<usize> {
        match self {
            Self::Count { window }
            | Self::Sum { window, .. }
            | Self::Mean { window, .. }
            | Self::Rate { window, .. }
            | Self::Min { window, .. }
            | Self::Max { window, .. }
            | Self::Std { window, .. }
            | Self::First { window, .. }
            | Self::Distinct { window, .. }
            | Self::Quantile { window, .. } => Some(window),
            Self::DecayedCount { .. }
            | Self::DecayedMean { .. }
            | Self::Last { .. }
            | Self::AgeOfLast => None,
        }
    }

    /// The decay that weighs its events, if one does.
    pub fn decay(self) -> Option<usize> {
        match self {
            Self::DecayedCount { decay } | Self::DecayedMean { decay, .. } => Some(decay),
            _ => None,
        }
    }
}

impl View {
    /// `"aircraft@1"`: how a service names this version and no later one.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// All that can alter the value of one of its features.
    pub fn meaning(&self) -> &Meaning {
        &self.meaning
    }

    /// That of the name and version, or the newest of the name.
    pub(crate) fn named<'v>(views: &'v [Arc<Self>], name: &str) -> Option<&'v Arc<Self>> {
        match name.contains('@') {
            true => views.iter().find(|view| view.pin() == name),
            false => views
                .iter()
                .filter(|view| &*view.name == name)
                .max_by_key(|view| view.version),
        }
    }

    /// The state that `event` belongs to; `None` where it is another source's, is filtered out, or
    /// has a null key.
    pub fn key_of(&self, event: &Event) -> Option<ViewKey> {
        if !Arc::ptr_eq(&self.source, &event.source) && self.source.name != event.source.name {
            return None;
        }
        if !self.passes(event) {
            return None;
        }
        self.key_from(self.key_fields.iter().map(|&field| event.values.get(field)))
    }

    /// The key whose values, encoded one after another, are these bytes.
    pub(crate) fn key_under(&self, values: &[u8]) -> ViewKey {
        ViewKey([&self.id.to_be_bytes(), values].concat().into_boxed_slice())
    }

    /// Whether the filter lets an event of the view's source through.
    pub(crate) fn passes(&self, event: &Event) -> bool {
        let passes = |filter: &Filter| {
            let value = event.values.get(filter.field);
            value.is_some_and(|value| filter.test.passes(value))
        };
        self.filter.as_ref().is_none_or(passes)
    }

    /// The key with these values, one for each of `keys`; `None` where one is null or absent.
    pub fn key_from<'a>(&self, values: impl Iterator<Item = Option<&'a Value>>) -> Option<ViewKey> {
        let mut bytes = Vec::with_capacity(24);
        self.encode_key(values, &mut bytes)?;
        Some(ViewKey(bytes.into_boxed_slice()))
    }

    /// Appends the bytes of `key_from`; where that gives `None`, `out` is as before.
    pub(crate) fn encode_key<'a>(
        &self,
        values: impl Iterator<Item = Option<&'a Value>>,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let start = out.len();
        out.extend_from_slice(&self.id.to_be_bytes());
        for value in values {
            let Some(value) = value.filter(|value| !value.is_null()) else {
                out.truncate(start);
                return None;
            };
            value.encode(out);
        }
        Some(())
    }

    /// Whether a value of the newest event is kept that is not true or false.
    pub(crate) fn keeps_more_than_truths(&self) -> bool {
        let ty = |&field: &usize| self.source.fields[field].ty;
        self.last_fields
            .iter()
            .map(ty)
            .any(|ty| ty != FieldType::Bool)
    }

    /// Source indices of the fields that its states are made of: keys, filter, measures, kept values.
    pub fn fields_read(&self) -> impl Iterator<Item = usize> {
        let keys = self.key_fields.iter().copied();
        let filter = self.filter.iter().map(|filter| filter.field);
        let measures = self.measures.iter().map(|measure| measure.field);
        let summaries = self.summaries.iter().map(|summary| summary.field);
        let decays = self.decays.iter().filter_map(|decay| decay.field);
        let last = self.last_fields.iter().copied();
        let tiled = measures.chain(summaries).chain(decays);
        keys.chain(filter).chain(tiled).chain(last)
    }

    /// The index of the feature of that name.
    pub fn feature(&self, name: &str) -> Option<usize> {
        self.features
            .iter()
            .position(|feature| &*feature.name == name)
    }
}

/// Where one state is kept: the view's id (8 bytes, big endian), then the encoded key values.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ViewKey(Box<[u8]>);

impl ViewKey {
    /// The bytes to store the state under.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Compared, ordered and hashed as its bytes.
impl std::borrow::Borrow<[u8]> for ViewKey {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for ViewKey {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
