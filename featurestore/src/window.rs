//! The one place where features are computed: `fold` an event into a state, `read` it at a time.
//!
//! Pure: online writes, imports and training rows call the same two functions, so they agree to
//! the bit. State per (view, key): the newest event's time and kept values, and for each window up
//! to twelve tiles with a row count and, per measure, the non-null count and a fixed-point sum.
//! A window read at `t` covers tile `c = floor(t / tile)` and the eleven before it: its older end
//! is off by at most one tile, and an event dated after `t` counts once `t` reaches its tile.
//! Integer sums make any arrival order give the same bits. Sparse: only tiles with events exist.
//! A read costs tens of nanoseconds a feature and allocates nothing.

mod codec;

use crate::definition::{Aggregate, MeasureKind, View, ViewFeature, WINDOWS_MAX};
use crate::event::Event;
use crate::value::{FieldType, Value};

pub use self::codec::StateError;

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
    /// Sorted by window, then number
    tiles: Vec<Tile>,
    /// One for each measure of each tile, in the order of `tiles`
    cells: Vec<Cell>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Latest {
    event_ms: i64,
    seq: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tile {
    window: usize,
    number: i64,
    rows: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// Non-null values
    present: u64,
    /// Their sum: numbers in units of 2^-32, truths as the number of trues
    sum: i128,
}

/// Sums stay within ± this. A value is below 2^63, so a tile holds 2^30 of the largest.
const SUM_MAX: i128 = 1 << 125;

/// Units of a fixed-point sum in 1.0.
const SUM_UNITS: f64 = 4_294_967_296.0;

impl ViewState {
    /// Adds an event that the view takes (`View::key_of` gave this state's key). `seq` breaks ties
    /// of event time: among the newest events the one with the highest is the last. The result
    /// depends on the set of events folded, not on their order.
    pub fn fold(&mut self, view: &View, event: &Event, seq: u64) -> Folded {
        let newest_ms = match self.latest {
            Some(latest) => latest.event_ms.max(event.event_ms),
            None => event.event_ms,
        };
        if self.latest.is_none_or(|latest| latest.event_ms < newest_ms) {
            self.evict(view, newest_ms);
        }
        let mut applied = self.fold_latest(view, event, seq);
        for (index, window) in view.windows.iter().enumerate() {
            let tiling = window.tiling();
            let number = tiling.tile_of(event.event_ms);
            if tiling.holds(number, newest_ms) {
                self.fold_tile(view, event, (index, number));
                applied = true;
            }
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
        self.reading(view, at_ms).value(index)
    }

    /// Finds the tiles that each window covers at `at_ms`, for reading several features.
    pub(crate) fn reading<'a>(&'a self, view: &'a View, at_ms: i64) -> Reading<'a> {
        let mut covered = [(0, 0); WINDOWS_MAX];
        let mut next = 0;
        for (index, (window, covered)) in view.windows.iter().zip(&mut covered).enumerate() {
            let current = window.tile_of(at_ms);
            let oldest = current - window.tiles_read() + 1;
            let own = self.tiles[next..]
                .iter()
                .take_while(|tile| tile.window == index);
            let (mut before, mut until) = (0, 0);
            let mut count = 0;
            for tile in own {
                before += usize::from(tile.number < oldest);
                until += usize::from(tile.number <= current);
                count += 1;
            }
            *covered = (index_of(next + before), index_of(next + until));
            next += count;
        }
        Reading {
            state: self,
            view,
            at_ms,
            covered,
        }
    }

    /// Time of the newest event folded.
    pub fn newest_ms(&self) -> Option<i64> {
        self.latest.map(|latest| latest.event_ms)
    }

    /// What the state takes in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>()
            + self.last.iter().map(Value::bytes).sum::<usize>()
            + size_of::<Tile>() * self.tiles.capacity()
            + size_of::<Cell>() * self.cells.capacity()
    }

    /// Lets go of the tiles that no read at `at_ms` or later covers. What is folded and read from then on
    /// is as if they were still there.
    pub(crate) fn release(&mut self, view: &View, at_ms: i64) {
        let held = self.tiles.len();
        self.evict(view, at_ms);
        if self.tiles.len() < held {
            self.tiles.shrink_to_fit();
            self.cells.shrink_to_fit();
        }
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

    fn fold_tile(&mut self, view: &View, event: &Event, place: (usize, i64)) {
        let width = view.measures.len();
        let found = self
            .tiles
            .binary_search_by_key(&place, |tile| (tile.window, tile.number));
        let index = match found {
            Ok(index) => index,
            Err(index) => {
                let (window, number) = place;
                self.tiles.insert(
                    index,
                    Tile {
                        window,
                        number,
                        rows: 0,
                    },
                );
                let at = index * width;
                self.cells
                    .splice(at..at, std::iter::repeat_n(Cell::default(), width));
                index
            }
        };
        self.tiles[index].rows += 1;
        let cells = &mut self.cells[index * width..(index + 1) * width];
        for (cell, measure) in cells.iter_mut().zip(&view.measures) {
            if let Some(term) = term(measure.kind, &event.values[measure.field]) {
                cell.present += 1;
                cell.sum = cell.sum.saturating_add(term).clamp(-SUM_MAX, SUM_MAX);
            }
        }
    }

    /// Drops the tiles that no window holds when the newest event is of `newest_ms`.
    fn evict(&mut self, view: &View, newest_ms: i64) {
        let width = view.measures.len();
        let held = |tile: &Tile| {
            let tiling = view.windows[tile.window].tiling();
            tiling.holds(tile.number, newest_ms)
        };
        if self.tiles.iter().all(held) {
            return;
        }
        let mut kept = 0;
        for index in 0..self.tiles.len() {
            if held(&self.tiles[index]) {
                self.tiles[kept] = self.tiles[index];
                self.cells
                    .copy_within(index * width..(index + 1) * width, kept * width);
                kept += 1;
            }
        }
        self.tiles.truncate(kept);
        self.cells.truncate(kept * width);
    }
}

/// A state at a time: which tiles each window covers is known.
pub(crate) struct Reading<'a> {
    state: &'a ViewState,
    view: &'a View,
    at_ms: i64,
    /// Start and end in `state.tiles`, for each window
    covered: [(u16, u16); WINDOWS_MAX],
}

impl<'a> Reading<'a> {
    /// Time of the newest event folded.
    pub(crate) fn newest_ms(&self) -> Option<i64> {
        self.state.newest_ms()
    }

    /// What the newest event left behind for a `last`, as it is; `None` for a feature that is computed.
    /// Where the state has no values at all, the status says why.
    pub(crate) fn kept(&self, index: usize) -> Result<Option<&'a Value>, Feature> {
        match self.known(index)?.0.aggregate {
            Aggregate::Last { slot } => Ok(Some(self.state.last.get(slot).unwrap_or(&Value::Null))),
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

    /// The same in the feature's own type.
    pub(crate) fn value(&self, index: usize) -> (Value, Status, i64) {
        let (feature, event_ms) = match self.known(index) {
            Ok(known) => known,
            Err(missing) => return (Value::Null, missing.status, missing.event_ms),
        };
        let value = match (feature.aggregate, feature.ty) {
            (Aggregate::Last { slot }, _) => self.state.last.get(slot).cloned(),
            (aggregate, FieldType::Int) => {
                let number = self.number(aggregate, event_ms);
                number.map(|number| Value::Int(number as i64))
            }
            (aggregate, _) => self.number(aggregate, event_ms).map(Value::Float),
        };
        match value.filter(|value| !value.is_null()) {
            Some(value) => (value, Status::Present, event_ms),
            None => (Value::Null, Status::NullValue, event_ms),
        }
    }

    /// A feature of the view and the time of the newest event, or why it has no value at all.
    fn known(&self, index: usize) -> Result<(&ViewFeature, i64), Feature> {
        let (Some(latest), Some(feature)) = (self.state.latest, self.view.features.get(index))
        else {
            return Err(Feature::missing(Status::NotFound, 0));
        };
        let age_ms = self.at_ms.saturating_sub(latest.event_ms);
        if self.view.ttl_ms.is_some_and(|ttl_ms| age_ms > ttl_ms) {
            return Err(Feature::missing(Status::OutsideMaxAge, latest.event_ms));
        }
        Ok((feature, latest.event_ms))
    }

    /// `None` where there is no value or none that is a number.
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
        }
    }

    fn rows(&self, window: usize) -> f64 {
        let tiles = &self.state.tiles[self.covered(window)];
        tiles.iter().map(|tile| tile.rows).sum::<u64>() as f64
    }

    fn total(&self, window: usize, measure: usize) -> Cell {
        let width = self.view.measures.len();
        let covered = self.covered(window);
        let cells = &self.state.cells[covered.start * width..covered.end * width];
        let mut total = Cell::default();
        for tile in cells.chunks_exact(width) {
            let cell = &tile[measure];
            total.present += cell.present;
            // Twelve sums of up to 2^125 do not fit 128 bits.
            total.sum = total.sum.saturating_add(cell.sum);
        }
        total
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

fn index_of(tile: usize) -> u16 {
    u16::try_from(tile).expect("a state has twelve tiles of sixteen windows at most")
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

/// What a value adds to its measure's sum; `None` for null.
fn term(kind: MeasureKind, value: &Value) -> Option<i128> {
    match (kind, value) {
        (MeasureKind::Truth, Value::Bool(flag)) => Some(i128::from(*flag)),
        (MeasureKind::Number, Value::Int(number)) => Some(i128::from(*number) << 32),
        (MeasureKind::Number, Value::Float(number)) => Some((number * SUM_UNITS).round() as i128),
        _ => None,
    }
}
