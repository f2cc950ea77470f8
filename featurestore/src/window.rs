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
mod quantiles;
mod reading;
mod squares;
mod summary;

use self::decay::Decays;
use self::summary::TileSummary;
use crate::definition::{MeasureKind, Summary, View, WINDOWS_MAX};
use crate::event::Event;
use crate::value::Value;

pub use self::codec::StateError;
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
    /// Sorted by window, then number
    tiles: Vec<Tile>,
    /// One for each measure of each tile, in the order of `tiles`
    cells: Vec<Cell>,
    /// One for each of the view's `summaries` of each tile, in the same order
    summaries: Vec<TileSummary>,
    decays: Decays,
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
        let oldest = Oldest::at(view, newest_ms);
        if self.latest.is_none_or(|latest| latest.event_ms < newest_ms) {
            self.evict(view, newest_ms, &oldest);
        }
        let mut applied = self.fold_latest(view, event, seq);
        for (index, window) in view.windows.iter().enumerate() {
            let number = if event.event_ms == newest_ms {
                oldest.held[index] + window.tiling().held - 1
            } else {
                window.tile_of(event.event_ms)
            };
            if number >= oldest.held[index] {
                self.fold_tile(view, (event, seq), (index, number));
                applied = true;
            }
        }
        if !view.decays.is_empty() {
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
            + size_of::<TileSummary>() * self.summaries.capacity()
            + self.summaries.iter().map(TileSummary::bytes).sum::<usize>()
            + self.decays.bytes()
    }

    /// Lets go of the tiles that no read at `at_ms` or later covers. What is folded and read from then on
    /// is as if they were still there.
    pub(crate) fn release(&mut self, view: &View, at_ms: i64) {
        let held = self.tiles.len();
        self.evict(view, at_ms, &Oldest::at(view, at_ms));
        if self.tiles.len() < held {
            self.tiles.shrink_to_fit();
            self.cells.shrink_to_fit();
            self.summaries.shrink_to_fit();
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

    fn fold_tile(&mut self, view: &View, numbered: (&Event, u64), place: (usize, i64)) {
        let (event, seq) = numbered;
        let found = self
            .tiles
            .binary_search_by_key(&place, |tile| (tile.window, tile.number));
        let index = found.unwrap_or_else(|index| self.insert_tile(view, index, place));
        self.tiles[index].rows += 1;
        let width = view.measures.len();
        let cells = &mut self.cells[index * width..(index + 1) * width];
        for (cell, measure) in cells.iter_mut().zip(&view.measures) {
            if let Some(term) = term(measure.kind, &event.values[measure.field]) {
                cell.present += 1;
                cell.sum = cell.sum.saturating_add(term).clamp(-SUM_MAX, SUM_MAX);
            }
        }
        let first = index * view.summaries.len();
        for (summary, held) in view.summaries.iter().zip(first..) {
            self.summaries[held].add(event, seq, summary.field);
        }
    }

    fn insert_tile(&mut self, view: &View, index: usize, place: (usize, i64)) -> usize {
        let (window, number) = place;
        self.tiles.insert(
            index,
            Tile {
                window,
                number,
                rows: 0,
            },
        );
        let width = view.measures.len();
        let at = index * width;
        self.cells
            .splice(at..at, std::iter::repeat_n(Cell::default(), width));
        if !view.summaries.is_empty() {
            let at = index * view.summaries.len();
            let new = |summary: &Summary| TileSummary::new(summary.kind);
            self.summaries
                .splice(at..at, view.summaries.iter().map(new));
        }
        index
    }

    /// Drops the tiles that are not held when the newest event is of `newest_ms`.
    fn evict(&mut self, view: &View, newest_ms: i64, oldest: &Oldest) {
        self.decays.evict(view, newest_ms);
        let held = |tile: &Tile| tile.number >= oldest.held[tile.window];
        if self.tiles.iter().all(held) {
            return;
        }
        let (width, summaries) = (view.measures.len(), view.summaries.len());
        let mut kept = 0;
        for index in 0..self.tiles.len() {
            if held(&self.tiles[index]) {
                self.tiles[kept] = self.tiles[index];
                self.cells
                    .copy_within(index * width..(index + 1) * width, kept * width);
                for summary in 0..summaries {
                    let (to, from) = (kept * summaries + summary, index * summaries + summary);
                    self.summaries.swap(to, from);
                }
                kept += 1;
            }
        }
        self.tiles.truncate(kept);
        self.cells.truncate(kept * width);
        self.summaries.truncate(kept * summaries);
    }
}

/// The oldest tile that each window holds. Found once for each event: its divisions are a good part of
/// what a fold costs.
struct Oldest {
    held: [i64; WINDOWS_MAX],
}

impl Oldest {
    /// When the newest event is of `newest_ms`.
    fn at(view: &View, newest_ms: i64) -> Self {
        let mut held = [i64::MIN; WINDOWS_MAX];
        for (held, window) in held.iter_mut().zip(&view.windows) {
            *held = window.tiling().oldest_held(newest_ms);
        }
        Self { held }
    }
}

/// What a value adds to its measure's sum; `None` for null.
fn term(kind: MeasureKind, value: &Value) -> Option<i128> {
    match (kind, value) {
        (MeasureKind::Truth, Value::Bool(flag)) => Some(i128::from(*flag)),
        (MeasureKind::Number, Value::Int(number)) => Some(i128::from(*number) << 32),
        (MeasureKind::Number, Value::Float(number)) => Some((number * SUM_UNITS).round() as i128),
        _ => None,
    }
}
