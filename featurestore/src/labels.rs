//! Labels: what the world later said about a prediction, and the outcomes that the monitor reads.
//!
//! A label is keyed by its prediction and counts once however often and in whatever order it is sent:
//! the one with the latest `label_ms` stands, ties are broken by value, so that every order of arrival
//! ends in the same state. A label that comes before its prediction waits in `pending_labels`; when the
//! prediction is recorded the label log gets one more entry, so that the outcomes are a plain scan of
//! the log. If it never is, the label expires.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::online::ReadError;
use crate::online::keys::{Column, Key};
use crate::online::tables::Tables;
use crate::predictions::index::{Names, Scored};
use crate::predictions::{PredictionKey, Role};
use crate::varint;

/// The outcome of one predicted row, as reported by the caller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Label {
    /// The predicted row that it belongs to.
    pub prediction: PredictionKey,
    /// What happened: 0 or 1 for a classifier, a number for a regressor.
    pub value: f32,
    /// When it happened, as the caller says. The latest wins.
    pub label_ms: i64,
}

/// What became of one submitted batch of labels: `accepted` and `duplicates` add up to its length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct LabelsIngested {
    /// Labels that were stored, new or in place of an older one.
    pub accepted: u64,
    /// Labels without effect: equal to the stored one, or older than it.
    pub duplicates: u64,
    /// Accepted labels that replaced an older one.
    pub replaced: u64,
    /// Accepted labels whose prediction is not known (yet); kept until their TTL.
    pub unknown: u64,
}

/// A matured prediction: a score and the label that belongs to it. One per recorded model version,
/// shadows included; a later correction of the label does not come as a second outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Model that scored.
    pub model: Arc<str>,
    /// Its version.
    pub version: u32,
    /// What the version was to the request.
    pub role: Role,
    /// Time of the prediction.
    pub predicted_ms: i64,
    /// Time of the outcome, as the caller said.
    pub label_ms: i64,
    /// Time at which the label arrived here.
    pub arrived_ms: i64,
    /// The score as answered.
    pub score: f32,
    /// The label's value.
    pub label: f32,
}

/// A place in the label log. The default is its start; it only moves forward.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct OutcomeCursor(pub u64);

/// The label that stands for a prediction.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct StoredLabel {
    pub(crate) value: f32,
    pub(crate) label_ms: i64,
    pub(crate) arrived_ms: i64,
}

const STORED_VERSION: u8 = 1;

impl StoredLabel {
    /// Whether this label takes the place of `held`, whichever came first.
    pub(crate) fn supersedes(&self, held: &Self) -> bool {
        let by_time = self.label_ms.cmp(&held.label_ms);
        by_time.then(self.value.total_cmp(&held.value)).is_gt()
    }

    /// Appends the stored form: version, value, the two times.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.push(STORED_VERSION);
        out.extend_from_slice(&self.value.to_bits().to_le_bytes());
        varint::put(varint::zigzag(self.label_ms), out);
        varint::put(varint::zigzag(self.arrived_ms), out);
    }

    /// Reads the stored form.
    pub(crate) fn decode(input: &mut &[u8]) -> Option<Self> {
        let (&version, rest) = input.split_first()?;
        let (bits, rest) = rest.split_first_chunk::<4>()?;
        *input = rest;
        if version != STORED_VERSION {
            return None;
        }
        Some(Self {
            value: f32::from_bits(u32::from_le_bytes(*bits)),
            label_ms: varint::unzigzag(varint::take(input)?),
            arrived_ms: varint::unzigzag(varint::take(input)?),
        })
    }
}

/// What an entry of the label log says. The discriminants are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// The first label of a recorded prediction: an outcome.
    Known = 0,
    /// The first label of a prediction that is not known yet.
    Pending = 1,
    /// The prediction of a pending label has been recorded: an outcome.
    Resolved = 2,
    /// A newer label of a labelled prediction.
    Correction = 3,
}

/// One entry of the label log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct LabelEntry {
    pub(crate) kind: EntryKind,
    pub(crate) prediction: PredictionKey,
    /// The label as it came with this entry.
    pub(crate) label: StoredLabel,
}

impl LabelEntry {
    /// The stored form: kind, prediction, label.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        out.push(self.kind as u8);
        out.extend_from_slice(&Key::Label(self.prediction).to_bytes());
        self.label.encode(&mut out);
        out
    }

    /// Reads the stored form.
    pub(crate) fn decode(input: &[u8]) -> Option<Self> {
        let (&kind, rest) = input.split_first()?;
        let (prediction, mut rest) = rest.split_first_chunk::<20>()?;
        Some(Self {
            kind: match kind {
                0 => EntryKind::Known,
                1 => EntryKind::Pending,
                2 => EntryKind::Resolved,
                3 => EntryKind::Correction,
                _ => return None,
            },
            prediction: Key::prediction(prediction)?,
            label: StoredLabel::decode(&mut rest)?,
        })
    }
}

/// Entries of the label log from number `first` on, as of now.
pub(crate) fn entries(
    tables: &Tables,
    first: u64,
) -> impl Iterator<Item = Result<(u64, LabelEntry), ReadError>> {
    let pairs = tables.scan(Column::LabelLog, &Key::LabelEntry(first).to_bytes());
    pairs.map(|pair| {
        let (key, value) = pair.map_err(ReadError::database)?;
        let entry = Key::number(&key).zip(LabelEntry::decode(&value));
        entry.ok_or_else(|| ReadError::Damaged("label log entry".to_owned()))
    })
}

/// Outcomes after `cursor`, from entries enough for at least one, or to the end of the log.
pub(crate) fn outcomes(
    tables: &Tables,
    cursor: OutcomeCursor,
    max: usize,
) -> Result<(Vec<Outcome>, OutcomeCursor), ReadError> {
    let mut log = entries(tables, cursor.0.saturating_add(1));
    let mut reached = cursor;
    let mut found = Vec::new();
    let mut names = Names::default();
    while found.is_empty() {
        let mut matured = Vec::new();
        let mut read = 0;
        for entry in log.by_ref().take(max.max(1)) {
            let (number, entry) = entry?;
            reached = OutcomeCursor(number);
            read += 1;
            if matches!(entry.kind, EntryKind::Known | EntryKind::Resolved) {
                matured.push(entry.prediction);
            }
        }
        join(tables, &matured, &mut names, &mut found)?;
        if read == 0 {
            break;
        }
    }
    Ok((found, reached))
}

/// Adds the outcomes of some labelled predictions. One without label or index entry (both expire) has
/// none.
fn join(
    tables: &Tables,
    predictions: &[PredictionKey],
    names: &mut Names,
    found: &mut Vec<Outcome>,
) -> Result<(), ReadError> {
    let keys: Vec<_> = predictions
        .iter()
        .map(|&key| Key::Prediction(key).to_bytes())
        .collect();
    let slices = || keys.iter().map(Vec::as_slice);
    let scored = tables
        .get_many(Column::PredictionIndex, slices())
        .map_err(ReadError::database)?;
    let labels = tables
        .get_many(Column::Labels, slices())
        .map_err(ReadError::database)?;
    for ((scored, label), key) in scored.iter().zip(&labels).zip(predictions) {
        let (Some(scored), Some(label)) = (scored, label) else {
            continue;
        };
        let damaged = || ReadError::Damaged(format!("prediction {key} or its label"));
        let scored = Scored::decode(scored, &mut |name| names.intern(name)).ok_or_else(damaged)?;
        let label = StoredLabel::decode(&mut label.as_ref()).ok_or_else(damaged)?;
        found.extend(scored.scores.into_iter().map(|score| Outcome {
            model: score.model,
            version: score.version,
            role: score.role,
            predicted_ms: scored.at_ms,
            label_ms: label.label_ms,
            arrived_ms: label.arrived_ms,
            score: score.score,
            label: label.value,
        }));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    proptest! {
        #[test]
        fn an_entry_comes_back(id: u128, row: u32, bits: u32, label_ms: i64, arrived_ms: i64) {
            let entry = LabelEntry {
                kind: EntryKind::Resolved,
                prediction: PredictionKey { id: Uuid::from_u128(id), row },
                label: StoredLabel { value: f32::from_bits(bits), label_ms, arrived_ms },
            };
            let decoded = LabelEntry::decode(&entry.encode()).unwrap();
            prop_assert_eq!(decoded.prediction, entry.prediction);
            prop_assert_eq!(decoded.kind, entry.kind);
            prop_assert_eq!(decoded.label.value.to_bits(), bits);
            prop_assert_eq!(decoded.label.label_ms, label_ms);
            prop_assert_eq!(decoded.label.arrived_ms, arrived_ms);
        }

        #[test]
        fn of_two_labels_exactly_one_supersedes_or_they_are_equal(
            times in (0i64..3, 0i64..3),
            values in (0u8..3, 0u8..3),
        ) {
            let label = |label_ms, value| StoredLabel { value: f32::from(value), label_ms, arrived_ms: 0 };
            let (a, b) = (label(times.0, values.0), label(times.1, values.1));
            prop_assert_eq!(a == b, !a.supersedes(&b) && !b.supersedes(&a));
            prop_assert!(!(a.supersedes(&b) && b.supersedes(&a)));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = LabelEntry::decode(&bytes);
        }
    }
}
