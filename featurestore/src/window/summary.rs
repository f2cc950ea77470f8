//! What a tile keeps of a field where a view asks for more than counts and sums.
//!
//! One for each of `View::summaries` in each tile, beside the cells; a view without them has none. Each
//! is a function of the set of values of its tile, whatever their order.

use std::cmp::Ordering;

use super::codec::{StateError, impossible, take, take_value};
use super::distinct::Distinct;
use super::quantiles::Quantiles;
use super::squares::Squares;
use super::{Latest, term};
use crate::definition::{MeasureKind, SummaryKind};
use crate::event::Event;
use crate::value::{Field, Value};
use crate::varint;

/// Of one field in one tile.
#[derive(Clone, Debug)]
pub(super) enum TileSummary {
    /// The smallest and largest value; null where there is none
    Extremes { low: Value, high: Value },
    /// The sum of squares of the terms that the cell adds
    Squares(Squares),
    /// The value of the tile's oldest event, which may be null
    First { at: Latest, value: Value },
    /// Which values there are
    Distinct(Distinct),
    /// How the values lie
    Quantiles(Quantiles),
}

impl TileSummary {
    /// Of no event yet.
    pub(super) fn new(kind: SummaryKind) -> Self {
        match kind {
            SummaryKind::Extremes => Self::Extremes {
                low: Value::Null,
                high: Value::Null,
            },
            SummaryKind::Squares => Self::Squares(Squares::default()),
            SummaryKind::First => Self::First {
                at: Latest {
                    event_ms: i64::MAX,
                    seq: u64::MAX,
                },
                value: Value::Null,
            },
            SummaryKind::Distinct => Self::Distinct(Distinct::default()),
            SummaryKind::Quantiles => Self::Quantiles(Quantiles::default()),
        }
    }

    /// Takes in the event's value of a field.
    pub(super) fn add(&mut self, event: &Event, seq: u64, field: usize) {
        let value = &event.values[field];
        match self {
            Self::Extremes { low, high } => {
                // Of the two zeros one, whichever came first.
                let value = match value {
                    Value::Float(number) => Value::Float(number + 0.0),
                    other => other.clone(),
                };
                if value.is_null() {
                    return;
                }
                if low.is_null() || order(&value, low).is_lt() {
                    *low = value.clone();
                }
                if high.is_null() || order(&value, high).is_gt() {
                    *high = value;
                }
            }
            Self::Squares(squares) => {
                if let Some(term) = term(MeasureKind::Number, value) {
                    squares.add(term);
                }
            }
            Self::First { at, value: first } => {
                let own = Latest {
                    event_ms: event.event_ms,
                    seq,
                };
                if own < *at {
                    *at = own;
                    *first = value.clone();
                }
            }
            Self::Distinct(distinct) => distinct.add(value),
            Self::Quantiles(quantiles) => {
                if let Some(number) = value.as_f64() {
                    quantiles.add(number);
                }
            }
        }
    }

    /// What it takes beside its own size, in bytes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::First { value, .. } => value.bytes() - size_of::<Value>(),
            Self::Distinct(distinct) => distinct.bytes(),
            Self::Quantiles(quantiles) => quantiles.bytes(),
            Self::Extremes { .. } | Self::Squares(_) => 0,
        }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Extremes { low, high } => {
                low.encode(out);
                high.encode(out);
            }
            Self::Squares(squares) => squares.encode(out),
            Self::First { at, value } => {
                varint::put(varint::zigzag(at.event_ms), out);
                varint::put(at.seq, out);
                value.encode(out);
            }
            Self::Distinct(distinct) => distinct.encode(out),
            Self::Quantiles(quantiles) => quantiles.encode(out),
        }
    }

    pub(super) fn decode(
        kind: SummaryKind,
        field: &Field,
        input: &mut &[u8],
    ) -> Result<Self, StateError> {
        Ok(match kind {
            SummaryKind::Extremes => {
                let (low, high) = (take_value(field, input)?, take_value(field, input)?);
                if low.is_null() != high.is_null() || order(&low, &high).is_gt() {
                    return Err(impossible("smallest and largest value"));
                }
                Self::Extremes { low, high }
            }
            SummaryKind::Squares => Self::Squares(Squares::decode(input)?),
            SummaryKind::First => Self::First {
                at: Latest {
                    event_ms: varint::unzigzag(take(input)?),
                    seq: take(input)?,
                },
                value: take_value(field, input)?,
            },
            SummaryKind::Distinct => Self::Distinct(Distinct::decode(input)?),
            SummaryKind::Quantiles => Self::Quantiles(Quantiles::decode(input)?),
        })
    }
}

/// How two numbers of one type compare.
pub(super) fn order(a: &Value, b: &Value) -> Ordering {
    match (a, b) {
        (Value::Int(a), Value::Int(b)) => a.cmp(b),
        (Value::Float(a), Value::Float(b)) => a.total_cmp(b),
        _ => Ordering::Equal,
    }
}
