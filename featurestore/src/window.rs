//! The one place where features are computed: `fold` an event into a state, `read` it at a time.
//!
//! Pure: online writes, imports and training rows call the same two functions, so they agree to
//! the bit. State per (view, key): the newest event's time and kept values, and for each window up
//! to twelve tiles with a row count and, per measure, the non-null count and a fixed-point sum.
//! A window read at `t` covers tile `c = floor(t / tile)` and the eleven before it: its older end
//! is off by at most one tile, and an event dated after `t` counts once `t` reaches its tile.
//! Integer sums make any arrival order give the same bits. Sparse: only tiles with events exist.
//! A read costs tens of nanoseconds a feature and allocates nothing. What a view asks for beyond counts,
//! sums and latest values lies beside the cells (`summary`, `decay`) and costs only that view.

mod codec;
mod decay;
mod distinct;
mod expiry;
mod quantiles;
mod reading;
mod squares;
mod summary;
mod tiles;

use self::decay::Decays;
use self::tiles::{Cell, Tiles};
use crate::definition::{MeasureKind, View};
use crate::event::Event;
use crate::value::Value;

pub use self::codec::StateError;
pub(crate) use self::expiry::Expiry;
pub(crate) use self::reading::Reading;

/// How well a feature value is known. The names are Feast's where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Status {
    /// The value is there
    Present = 0,
    /// The entity is known, but there is no value
    NullValue = 1,
    /// No event of the entity was ever seen, or its key is null
    NotFound = 2,
    /// The entity's newest event is older than the view's TTL
    OutsideMaxAge = 3,
    /// A string that is not in the feature's dictionary
    UnknownCategory = 4,
}

impl Status {
    /// Every status, in the order of its code.
    pub const ALL: [Self; 5] = [
        Self::Present,
        Self::NullValue,
        Self::NotFound,
        Self::OutsideMaxAge,
        Self::UnknownCategory,
    ];

    /// The name in responses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Present => "PRESENT",
            Self::NullValue => "NULL_VALUE",
            Self::NotFound => "NOT_FOUND",
            Self::OutsideMaxAge => "OUTSIDE_MAX_AGE",
            Self::UnknownCategory => "UNKNOWN_CATEGORY",
        }
    }

    /// The number in logs; it never changes its meaning.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// The status of that number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }
}

/// One feature as read.
#[derive(Clone, Copy, Debug)]
pub struct Feature {
    /// NaN unless `status` is `Present`
    pub value: f32,
    /// How well it is known
    pub status: Status,
    /// Time of the newest event that the view has seen for the key; 0 where there is none
    pub event_ms: i64,
}

impl Feature {
    pub(crate) fn missing(status: Status, event_ms: i64) -> Self {
        Self {
            value: f32::NAN,
            status,
            event_ms,
        }
    }
}

/// What became of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// It changed the state
    Applied,
    /// It is older than every tile held and than the newest event: the state is as before
    TooLate,
}

/// The state of one view under one key.
#[derive(Clone, Debug, Default)]
pub struct ViewState {
    latest: Option<Latest>,
    /// The newest event's value of each of the view's `last_fields`
    last: Vec<Value>,
    tiles: Tiles,
    decays: Decays,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Latest {
    event_ms: i64,
    seq: u64,
}

/// Sums stay within ± this. A value is below 2^63, so a tile holds 2^28 of the largest; sixteen tiles
/// add up without overflow.
const SUM_MAX: i128 = 1 << 123;

/// Units of a fixed-point sum in 1.0.
const SUM_UNITS: f64 = 4_294_967_296.0;

impl ViewState {
    /// Adds an event that the view takes (`View::key_of` gave this state's key). `seq` breaks ties
    /// of event time: among the newest events the one with the highest is the last. The result
    /// depends on the set of events folded, not on their order.
    pub fn fold(&mut self, view: &View, event: &Event, seq: u64) -> Folded {
        let held_ms = self.newest_ms();
        let newest_ms = held_ms.map_or(event.event_ms, |held_ms| held_ms.max(event.event_ms));
        let places = match event.event_ms == newest_ms {
            true => self.tiles.newest(view, newest_ms),
            false => self.tiles.late(view, event.event_ms, newest_ms),
        };
        let mut applied = self.fold_latest(view, event, seq);
        applied |= self.tiles.add(view, (event, seq), &places);
        if !view.decays.is_empty() {
            if held_ms != Some(newest_ms) {
                self.decays.evict(view, newest_ms);
            }
            applied |= self.decays.fold(view, event, newest_ms);
        }
        if applied {
            Folded::Applied
        } else {
            Folded::TooLate
        }
    }

    /// Reads every feature of the view into `out`, in the view's order.
    pub fn read(&self, view: &View, at_ms: i64, out: &mut [Feature]) {
        let reading = self.reading(view, at_ms);
        for (index, feature) in out.iter_mut().enumerate().take(view.features.len()) {
            *feature = reading.feature(index);
        }
    }

    /// Reads one feature, by its index in the view.
    pub fn feature(&self, view: &View, index: usize, at_ms: i64) -> Feature {
        self.reading(view, at_ms).feature(index)
    }

    /// Reads one feature in its own type (`ViewFeature::ty`): the value, `Null` unless the status is
    /// `Present`, and the time of the newest event as in `Feature`.
    pub fn value(&self, view: &View, index: usize, at_ms: i64) -> (Value, Status, i64) {
        let (value, status, event_ms) = self.reading(view, at_ms).value(index);
        (value.into_owned(), status, event_ms)
    }

    /// Finds the tiles that each window covers at `at_ms`, for reading several features.
    pub(crate) fn reading<'a>(&'a self, view: &'a View, at_ms: i64) -> Reading<'a> {
        Reading::new(self, view, at_ms)
    }

    /// Brings states that are about to be read, one after another, into the processor's caches: here the
    /// loads of many overlap, where a reading would wait for those of each.
    pub(crate) fn touch<'a>(states: impl Iterator<Item = (&'a View, &'a Self)> + Clone) {
        // Heads first: what they say decides how far a body is walked, and a wrong guess of that waits.
        let heads = states.clone().fold(0, |all, (_, state)| {
            all ^ state.tiles.touch_head() ^ state.last.len() as u64
        });
        let bodies = states.fold(heads, |all, (view, state)| {
            let kept = state.last.first().is_some_and(Value::is_null);
            all ^ state.tiles.touch(view) ^ u64::from(kept)
        });
        std::hint::black_box(bodies);
    }

    /// Time of the newest event folded.
    pub fn newest_ms(&self) -> Option<i64> {
        self.latest.map(|latest| latest.event_ms)
    }

    /// What the state takes in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.last.iter().map(Value::bytes).sum::<usize>()
            + self.tiles.bytes()
            + self.decays.bytes()
    }

    /// Lets go of the tiles that no read at `at_ms` or later covers. What is folded and read from then on
    /// is as if they were still there.
    pub(crate) fn release(&mut self, view: &View, at_ms: i64) {
        self.tiles.release(view, at_ms);
        self.decays.evict(view, at_ms);
    }

    fn fold_latest(&mut self, view: &View, event: &Event, seq: u64) -> bool {
        let latest = Latest {
            event_ms: event.event_ms,
            seq,
        };
        if self.latest.is_some_and(|held| held >= latest) {
            return false;
        }
        self.latest = Some(latest);
        self.last.clear();
        let value = |&field: &usize| event.values.get(field).cloned().unwrap_or(Value::Null);
        self.last.extend(view.last_fields.iter().map(value));
        true
    }
}

/// What a value adds to its measure's sum; `None` for null.
fn term(kind: MeasureKind, value: &Value) -> Option<i128> {
    match (kind, value) {
        (MeasureKind::Truth, Value::Bool(flag)) => Some(i128::from(*flag)),
        (MeasureKind::Number, Value::Int(number)) => Some(i128::from(*number) << 32),
        (MeasureKind::Number, Value::Float(number)) => Some(rounded(number * SUM_UNITS)),
        _ => None,
    }
}

/// `units.round() as i128`; what fits 64 bits is rounded without a call.
fn rounded(units: f64) -> i128 {
    const FITS: f64 = (1u64 << 62) as f64;
    if units.abs() < FITS {
        let whole = units as i64;
        let rest = units - whole as f64;
        return i128::from(whole + i64::from(rest >= 0.5) - i64::from(rest <= -0.5));
    }
    units.round() as i128
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_rounded_as_the_platform_does() {
        let near = |units: f64| [units.next_down(), units, units.next_up()];
        let powers = (0..127).flat_map(|power| {
            let power = 2f64.powi(power);
            [0.25, 0.5, 0.75, 1.0, 1.5].map(|part| power + part)
        });
        for units in powers.flat_map(near) {
            for units in [units, -units] {
                assert_eq!(rounded(units), units.round() as i128, "{units:e}");
            }
        }
        for units in [0.0, -0.0, 0.5, -0.5, f64::NAN, f64::INFINITY, f64::MIN] {
            assert_eq!(rounded(units), units.round() as i128, "{units}");
        }
    }
}
