//! `features.toml` as the user wrote it. Every key is documented here; unknown keys are refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use toml::Spanned;

/// A value with its place in the file.
pub(super) type Text = Spanned<String>;

/// Names and types, such as `{ origin = "string", tailnum = "string?" }`. Types: `bool`, `int`,
/// `float`, `string`, `time`; a trailing `?` allows null.
pub(super) type FieldsText = BTreeMap<Text, Text>;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileText {
    #[serde(default)]
    pub(super) source: Vec<SourceText>,
    #[serde(default)]
    pub(super) entity: Vec<EntityText>,
    #[serde(default)]
    pub(super) view: Vec<ViewText>,
    #[serde(default)]
    pub(super) dictionary: Vec<DictionaryText>,
    #[serde(default)]
    pub(super) derived: Vec<DerivedText>,
    #[serde(default)]
    pub(super) service: Vec<ServiceText>,
}

/// `[[source]]`: a stream of events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceText {
    /// Unique; the last part of `/v1/events/{source}`.
    pub(super) name: Text,
    /// The field with the event time; a `time` that is not nullable.
    pub(super) time: Text,
    /// Fields that identify an event: one sent twice counts once. Not nullable.
    pub(super) id: Spanned<Vec<Text>>,
    /// All fields; an event with another one is refused.
    pub(super) fields: FieldsText,
    /// How far an event time may lie ahead of its arrival, such as `"5m"` (the default).
    pub(super) future_max: Option<Text>,
    /// How far an event time may lie behind its arrival, such as `"2d"`; no limit by default. What comes
    /// later is logged, counted as late and enters no feature, however old the newest event is.
    pub(super) lateness: Option<Text>,
}

/// `[[entity]]`: a name for a list of key fields.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EntityText {
    /// Unique.
    pub(super) name: Text,
    /// Fields of at least one source.
    pub(super) keys: Vec<Text>,
}

/// `[[view]]`: features over the events of one source, one state for each key.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ViewText {
    /// Unique together with the version.
    pub(super) name: Text,
    /// From 1, the default; a change of meaning needs a new one.
    pub(super) version: Option<Spanned<u32>>,
    /// A source's name.
    pub(super) source: Text,
    /// Fields whose values make the key (`bool`, `int` or `string`); `[]` for one global state.
    pub(super) keys: Vec<Text>,
    /// Lengths of time to aggregate over, from a minute to 90 days, such as `["1h", "7d"]`: up to now,
    /// or with `"1d tumbling"` from the start of the running period (UTC) until now.
    #[serde(default)]
    pub(super) windows: Vec<Text>,
    /// A key whose newest event is older counts as expired, such as `"7d"`; never by default.
    pub(super) ttl: Option<Text>,
    /// Only events that pass are taken.
    #[serde(rename = "where")]
    pub(super) filter: Option<FilterText>,
    /// What is computed.
    pub(super) features: Spanned<Vec<Spanned<AggregateText>>>,
}

/// `where = { field = "late", equals = true }`: one of `equals`, `in`, and a range. Null never passes.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilterText {
    /// A field of the source: `bool`, `int` or `string`; for a range `int` or `float`.
    pub(super) field: Text,
    /// The value that it must have.
    pub(super) equals: Option<Spanned<toml::Value>>,
    /// The values of which it must have one, such as `["AA", "UA"]`.
    #[serde(rename = "in")]
    pub(super) one_of: Option<Spanned<Vec<Spanned<toml::Value>>>>,
    /// The smallest number that passes.
    pub(super) min: Option<Spanned<toml::Value>>,
    /// The largest number that passes.
    pub(super) max: Option<Spanned<toml::Value>>,
}

/// One of a view's features, in each of its windows or as of the newest event: exactly one key beside
/// `name`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AggregateText {
    /// `true`: events in each window.
    pub(super) count: Option<Spanned<bool>>,
    /// An `int` or `float` field: its sum in each window.
    pub(super) sum: Option<Text>,
    /// An `int` or `float` field: its mean in each window.
    pub(super) mean: Option<Text>,
    /// A `bool` field: its share of trues in each window.
    pub(super) rate: Option<Text>,
    /// An `int` or `float` field: its smallest value in each window.
    pub(super) min: Option<Text>,
    /// An `int` or `float` field: its largest value in each window.
    pub(super) max: Option<Text>,
    /// An `int` or `float` field: its standard deviation in each window, as of a sample (n - 1).
    pub(super) std: Option<Text>,
    /// A field: its value in the oldest event of each window, of the field's type.
    pub(super) first: Option<Text>,
    /// A `bool`, `int`, `string` or `time` field: how many values it has in each window, about.
    pub(super) distinct: Option<Text>,
    /// Quantiles of a field in each window, about.
    pub(super) quantile: Option<QuantileText>,
    /// The number of events, each weighing half after every half-life.
    pub(super) decayed_count: Option<DecayedCountText>,
    /// The mean of a field in the same weights.
    pub(super) decayed_mean: Option<DecayedMeanText>,
    /// A field: its value in the newest event, of the field's type.
    pub(super) last: Option<Text>,
    /// `true`: hours since the newest event.
    pub(super) age_of_last: Option<Spanned<bool>>,
    /// What it is called instead of, say, `mean_delay`; where it is computed over windows, each adds
    /// its own, as in `mean_delay_24h`.
    pub(super) name: Option<Text>,
}

/// `[[dictionary]]`: known strings that services use by a name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DictionaryText {
    /// Unique.
    pub(super) name: Text,
    /// A string's position is its value.
    pub(super) words: Spanned<Vec<Text>>,
}

/// `[[derived]]`: an expression that services use by its name.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DerivedText {
    /// Unique.
    pub(super) name: Text,
    /// Over features of views and request fields of the services that use it.
    pub(super) expression: Text,
}

/// `quantile = { field = "delay", q = [0.5, 0.99] }`: `p50_delay_1h`, `p99_delay_1h`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct QuantileText {
    /// An `int` or `float` field.
    pub(super) field: Text,
    /// Above 0 and below 1, in millionths at the finest.
    pub(super) q: Spanned<Vec<Spanned<f64>>>,
}

/// `decayed_count = { half_life = "6h" }`: `decayed_count_6h`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecayedCountText {
    /// From a minute to 90 days.
    pub(super) half_life: Text,
}

/// `decayed_mean = { field = "delay", half_life = "6h" }`: `decayed_mean_delay_6h`.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DecayedMeanText {
    /// An `int` or `float` field.
    pub(super) field: Text,
    /// From a minute to 90 days.
    pub(super) half_life: Text,
}

/// `[[service]]`: the features of a model.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceText {
    /// Unique together with the version.
    pub(super) name: Text,
    /// From 1; a change of meaning needs a new one.
    pub(super) version: Spanned<u32>,
    /// What a request brings.
    #[serde(default)]
    pub(super) request: FieldsText,
    /// The model's columns, in order.
    pub(super) features: Spanned<Vec<Spanned<ColumnText>>>,
}

/// One or several of a service's columns: `request`, `view`, `difference`, `expression` or `derived`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ColumnText {
    /// A request field (`bool`, `int`, `float`, or `string` with a dictionary).
    pub(super) request: Option<Text>,
    /// For a string: the known ones, whose position is their value, or the name of a
    /// `[[dictionary]]` of them.
    pub(super) dictionary: Option<Spanned<toml::Value>>,
    /// A view's name, with `@version` for another than the newest; the columns are called
    /// `view:feature`.
    pub(super) view: Option<Text>,
    /// Which of the view's features; all by default.
    pub(super) features: Option<Spanned<Vec<Text>>>,
    /// Two features of views, `["a:x", "b:y"]`: one column with the first less the second.
    pub(super) difference: Option<Spanned<[Text; 2]>>,
    /// An expression over features and request fields: docs/features.md.
    pub(super) expression: Option<Text>,
    /// A `[[derived]]`'s name.
    pub(super) derived: Option<Text>,
    /// The name of the entry's one column; needed by `difference` and `expression`.
    pub(super) name: Option<Text>,
    /// Value where there is none.
    pub(super) default: Option<Spanned<f64>>,
    /// What stands where there is no value: `"nan"` (the default without `default`), `"default"`
    /// (with it), or `"refuse"`: the row cannot be used.
    pub(super) missing: Option<Spanned<MissingText>>,
    /// Smallest and largest value.
    pub(super) clip: Option<Spanned<[f64; 2]>>,
}

/// `missing = …`
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(super) enum MissingText {
    Nan,
    Default,
    Refuse,
}
