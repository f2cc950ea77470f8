//! The tiles of all windows of a view, one window's after the other's, oldest first.
//!
//! Sparse: only tiles with events exist. Events come about in order of time, so a fold mostly finds each
//! window's newest tile at its end; where time has moved on, one pass drops what is no longer held and
//! puts the new tiles behind. The totals of each window's tiles are kept, so that a read need not add them
//! up: integers, so what comes and goes is added and subtracted exactly.

use std::ops::Range;

use super::summary::TileSummary;
use super::{SUM_MAX, term};
use crate::definition::{Summary, View, WINDOWS_MAX, Window};
use crate::event::Event;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tile {
    pub(super) number: i64,
    pub(super) rows: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell {
    /// Non-null values
    pub(super) present: u64,
    /// Their sum: numbers in units of 2^-32, truths as the number of trues
    pub(super) sum: i128,
}

impl Cell {
    fn add(&mut self, other: &Self) {
        self.present += other.present;
        self.sum += other.sum;
    }

    fn subtract(&mut self, other: &Self) {
        self.present -= other.present;
        self.sum -= other.sum;
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Tiles {
    /// Where the tiles of each window end; sixteen windows of twelve tiles fit
    ends: [u8; WINDOWS_MAX],
    tiles: Vec<Tile>,
    /// One for each measure of each tile, in the order of `tiles`
    cells: Vec<Cell>,
    /// One for each of the view's `summaries` of each tile, in the same order
    summaries: Vec<TileSummary>,
    /// Of all tiles of each window, one after another
    totals: Vec<Cell>,
}

/// What becomes of a window's tiles.
#[derive(Clone, Copy, Default)]
struct Change {
    /// So many of the oldest go
    stale: usize,
    /// The number of one that is put behind
    new: Option<i64>,
}

/// The tile of each window that takes an event, or `NOWHERE`.
pub(super) struct Places([u8; WINDOWS_MAX]);

const NOWHERE: u8 = u8::MAX;

impl Tiles {
    /// No tiles yet, with room for so many.
    pub(super) fn with_capacity(view: &View, tiles: usize) -> Self {
        Self {
            ends: [0; WINDOWS_MAX],
            tiles: Vec::with_capacity(tiles),
            cells: Vec::with_capacity(tiles * view.measures.len()),
            summaries: Vec::with_capacity(tiles * view.summaries.len()),
            totals: vec![Cell::default(); totals_of(view)],
        }
    }

    /// Adds a tile without events behind all others; its cells and summaries follow.
    pub(super) fn push(&mut self, window: usize, number: i64) {
        self.tiles.push(Tile { number, rows: 0 });
        let end = self.tiles.len() as u8;
        self.ends[window..].fill(end);
    }

    /// The tiles that were pushed, to count their rows, and where their cells and summaries go.
    pub(super) fn filling(&mut self) -> (&mut [Tile], &mut Vec<Cell>, &mut Vec<TileSummary>) {
        (&mut self.tiles, &mut self.cells, &mut self.summaries)
    }

    /// Adds up what was pushed and filled.
    pub(super) fn add_up(&mut self, view: &View) {
        for window in 0..view.windows.len() {
            for place in self.of_window(window) {
                self.account(view, (window, place), Cell::add);
            }
        }
    }

    /// Events in some of a window's tiles.
    pub(super) fn rows(&self, view: &View, window: usize, some: Range<usize>) -> u64 {
        let rows = |part: Range<usize>| self.tiles[part].iter().map(|it| it.rows).sum::<u64>();
        let own = self.of_window(window);
        if 2 * some.len() <= own.len() {
            return rows(some);
        }
        let total = self.totals[window * (view.measures.len() + 1)].present;
        total - rows(own.start..some.start) - rows(some.end..own.end)
    }

    /// A measure over some of a window's tiles.
    pub(super) fn sum(
        &self,
        view: &View,
        (window, measure): (usize, usize),
        some: Range<usize>,
    ) -> Cell {
        let width = view.measures.len();
        let cells = |part: Range<usize>| {
            let cells = self.cells[part.start * width..part.end * width].chunks_exact(width);
            cells.map(move |tile| &tile[measure])
        };
        let own = self.of_window(window);
        if 2 * some.len() <= own.len() {
            let mut total = Cell::default();
            cells(some).for_each(|cell| total.add(cell));
            return total;
        }
        let mut total = self.totals[window * (width + 1) + 1 + measure];
        cells(own.start..some.start).for_each(|cell| total.subtract(cell));
        cells(some.end..own.end).for_each(|cell| total.subtract(cell));
        total
    }

    /// Where a window's tiles lie.
    pub(super) fn of_window(&self, window: usize) -> Range<usize> {
        let start = window.checked_sub(1).map_or(0, |before| self.ends[before]);
        usize::from(start)..usize::from(self.ends[window])
    }

    /// Tiles in their order.
    pub(super) fn tiles(&self) -> &[Tile] {
        &self.tiles
    }

    /// Cells of tiles, measure by measure.
    pub(super) fn cells(&self) -> &[Cell] {
        &self.cells
    }

    /// Summaries of tiles likewise.
    pub(super) fn summaries(&self) -> &[TileSummary] {
        &self.summaries
    }

    /// Loads what a read of every window looks at; the result is of no use.
    pub(super) fn touch(&self, view: &View) -> u64 {
        const LINE_BYTES: usize = 64;
        let tiles = self.tiles.iter().step_by(LINE_BYTES / size_of::<Tile>());
        let tiles = tiles.fold(0, |all, tile| all ^ tile.rows);
        let totals = self.totals.iter().step_by(LINE_BYTES / size_of::<Cell>());
        let totals = totals.fold(tiles, |all, total| all ^ total.present);
        let firsts = (0..view.windows.len()).map(|it| self.of_window(it).start);
        let firsts = firsts.filter_map(|first| self.cells.get(first * view.measures.len()));
        firsts.fold(totals, |all, cell| all ^ cell.present)
    }

    /// Where its windows end, and how many tiles there are, likewise.
    pub(super) fn touch_head(&self) -> u64 {
        u64::from(self.ends[WINDOWS_MAX - 1]) ^ self.tiles.len() as u64 ^ self.totals.len() as u64
    }

    /// What they take in memory beside their own size, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Tile>() * self.tiles.capacity()
            + size_of::<Cell>() * (self.cells.capacity() + self.totals.capacity())
            + size_of::<TileSummary>() * self.summaries.capacity()
            + self.summaries.iter().map(TileSummary::bytes).sum::<usize>()
    }

    /// Where an event of the newest time goes: drops what is no longer held, makes what is not there yet.
    pub(super) fn newest(&mut self, view: &View, newest_ms: i64) -> Places {
        let mut changes = [Change::default(); WINDOWS_MAX];
        let mut changed = false;
        for (index, window) in view.windows.iter().enumerate() {
            let own = &self.tiles[self.of_window(index)];
            let newest = number_near(window, newest_ms, own.last());
            let oldest = newest - window.tiling().held + 1;
            let change = &mut changes[index];
            change.stale = own.iter().take_while(|tile| tile.number < oldest).count();
            change.new = own
                .last()
                .is_none_or(|it| it.number != newest)
                .then_some(newest);
            changed |= change.stale > 0 || change.new.is_some();
        }
        if changed {
            self.rearrange(view, &changes);
        }
        let mut places = Places([NOWHERE; WINDOWS_MAX]);
        for (place, end) in places.0.iter_mut().zip(&self.ends).take(view.windows.len()) {
            *place = end - 1;
        }
        places
    }

    /// Where an event goes that is older than the newest.
    pub(super) fn late(&mut self, view: &View, event_ms: i64, newest_ms: i64) -> Places {
        let mut places = Places([NOWHERE; WINDOWS_MAX]);
        for (index, window) in view.windows.iter().enumerate() {
            let number = window.tile_of(event_ms);
            if !window.tiling().holds(number, newest_ms) {
                continue;
            }
            let own = self.of_window(index);
            let found = self.tiles[own.clone()].binary_search_by_key(&number, |tile| tile.number);
            let place = own.start + found.unwrap_or_else(|place| place);
            if found.is_err() {
                self.insert(view, (index, place), number);
            }
            places.0[index] = place as u8;
        }
        places
    }

    /// Adds an event to its tiles; answers whether there was one.
    pub(super) fn add(
        &mut self,
        view: &View,
        (event, seq): (&Event, u64),
        places: &Places,
    ) -> bool {
        let places = &places.0[..view.windows.len()];
        let places = || {
            let placed = |(window, &place): (usize, &u8)| (window, usize::from(place));
            let placed = places.iter().enumerate().map(placed);
            placed.filter(|(_, place)| *place != usize::from(NOWHERE))
        };
        self.totals.resize(totals_of(view), Cell::default());
        let width = view.measures.len();
        for (window, place) in places() {
            self.tiles[place].rows += 1;
            self.totals[window * (width + 1)].present += 1;
        }
        for (index, measure) in view.measures.iter().enumerate() {
            if let Some(term) = term(measure.kind, &event.values[measure.field]) {
                for (window, place) in places() {
                    let cell = &mut self.cells[place * width + index];
                    let sum = cell.sum.saturating_add(term).clamp(-SUM_MAX, SUM_MAX);
                    let total = &mut self.totals[window * (width + 1) + 1 + index];
                    total.sum += sum - cell.sum;
                    total.present += 1;
                    cell.sum = sum;
                    cell.present += 1;
                }
            }
        }
        let width = view.summaries.len();
        for (index, summary) in view.summaries.iter().enumerate() {
            for (_, place) in places() {
                self.summaries[place * width + index].add(event, seq, summary.field);
            }
        }
        places().next().is_some()
    }

    /// Lets go of the tiles that are not held at `at_ms`, and of the memory that they took.
    pub(super) fn release(&mut self, view: &View, at_ms: i64) {
        let held = self.tiles.len();
        let mut changes = [Change::default(); WINDOWS_MAX];
        for (index, window) in view.windows.iter().enumerate() {
            let oldest = window.tiling().oldest_held(at_ms);
            let own = self.tiles[self.of_window(index)].iter();
            changes[index].stale = own.take_while(|tile| tile.number < oldest).count();
        }
        self.rearrange(view, &changes);
        if self.tiles.len() < held {
            self.tiles.shrink_to_fit();
            self.cells.shrink_to_fit();
            self.summaries.shrink_to_fit();
        }
    }

    /// Drops and adds tiles of every window in one pass from the front. Where more would be written than
    /// was read before, all of them are moved out of the way first.
    fn rearrange(&mut self, view: &View, changes: &[Change; WINDOWS_MAX]) {
        let changes = &changes[..view.windows.len()];
        let (mut ahead, mut room) = (0isize, 0);
        for change in changes {
            ahead += isize::from(change.new.is_some()) - change.stale as isize;
            room = ahead.max(room);
        }
        let room = room.unsigned_abs();
        if room > 0 {
            let all = 0..self.tiles.len();
            self.grow(view, room);
            self.shift(view, all, room);
        }
        let (mut from, mut to) = (room, 0);
        for (index, change) in changes.iter().enumerate() {
            for place in from..from + change.stale {
                self.account(view, (index, place), Cell::subtract);
            }
            let end = usize::from(self.ends[index]) + room;
            let kept = from + change.stale..end;
            from = end;
            self.shift(view, kept.clone(), to);
            to += kept.len();
            if let Some(number) = change.new {
                self.clear(view, to, number);
                to += 1;
            }
            self.ends[index] = to as u8;
        }
        self.tiles.truncate(to);
        self.cells.truncate(to * view.measures.len());
        self.summaries.truncate(to * view.summaries.len());
    }

    /// Adds a tile to its window's totals, or subtracts it.
    fn account(
        &mut self,
        view: &View,
        (window, place): (usize, usize),
        change: fn(&mut Cell, &Cell),
    ) {
        let width = view.measures.len();
        let rows = Cell {
            present: self.tiles[place].rows,
            sum: 0,
        };
        let own = std::iter::once(&rows).chain(&self.cells[place * width..][..width]);
        let totals = &mut self.totals[window * (width + 1)..][..width + 1];
        totals
            .iter_mut()
            .zip(own)
            .for_each(|(total, cell)| change(total, cell));
    }

    /// Makes one tile.
    fn insert(&mut self, view: &View, (window, place): (usize, usize), number: i64) {
        let behind = place..self.tiles.len();
        self.grow(view, 1);
        self.shift(view, behind, place + 1);
        self.clear(view, place, number);
        let ends = &mut self.ends[window..view.windows.len()];
        ends.iter_mut().for_each(|end| *end += 1);
    }

    /// Begins a tile where no other is any more.
    fn clear(&mut self, view: &View, place: usize, number: i64) {
        self.tiles[place] = Tile { number, rows: 0 };
        let width = view.measures.len();
        self.cells[place * width..(place + 1) * width].fill(Cell::default());
        let width = view.summaries.len();
        let summaries = &mut self.summaries[place * width..(place + 1) * width];
        for (held, summary) in summaries.iter_mut().zip(&view.summaries) {
            *held = TileSummary::new(summary.kind);
        }
    }

    /// Adds so many empty tiles behind all others, which are no window's yet.
    fn grow(&mut self, view: &View, more: usize) {
        let tiles = self.tiles.len() + more;
        self.tiles.resize(tiles, Tile::default());
        let cells = tiles * view.measures.len();
        self.cells.resize(cells, Cell::default());
        let new = |summary: &Summary| TileSummary::new(summary.kind);
        for _ in 0..more {
            self.summaries.extend(view.summaries.iter().map(new));
        }
    }

    /// Moves tiles to where they begin at `to`; summaries change places.
    fn shift(&mut self, view: &View, from: Range<usize>, to: usize) {
        if from.start == to || from.is_empty() {
            return;
        }
        self.tiles.copy_within(from.clone(), to);
        let width = view.measures.len();
        let cells = from.start * width..from.end * width;
        self.cells.copy_within(cells, to * width);
        let width = view.summaries.len();
        let (from, count) = (from.start * width, from.len() * width);
        let mut swap = |offset| self.summaries.swap(from + offset, to * width + offset);
        match to * width < from {
            true => (0..count).for_each(&mut swap),
            false => (0..count).rev().for_each(&mut swap),
        }
    }
}

/// Totals of a state: for each window the rows (`present`), then the measures.
fn totals_of(view: &View) -> usize {
    view.windows.len() * (view.measures.len() + 1)
}

/// `Window::tile_of`, without a division where `at_ms` lies in the tile given.
pub(super) fn number_near(window: &Window, at_ms: i64, near: Option<&Tile>) -> i64 {
    if let Some(tile) = near {
        let into_ms = at_ms.wrapping_sub(tile.number.wrapping_mul(window.tile_ms));
        if (0..window.tile_ms).contains(&into_ms) {
            return tile.number;
        }
    }
    window.tile_of(at_ms)
}
