//! The tiles of all windows of a view, one window's after the other's, oldest first.
//!
//! Sparse: only tiles with events exist. Events come about in order of time, so a fold mostly finds each
//! window's newest tile at its end; where time has moved on, one pass forward drops what is no longer held
//! and one backward makes room for the new tiles, each moving a tile once at most.

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

#[derive(Clone, Debug, Default)]
pub(super) struct Tiles {
    /// Where the tiles of each window end; sixteen windows of twelve tiles fit
    ends: [u8; WINDOWS_MAX],
    tiles: Vec<Tile>,
    /// One for each measure of each tile, in the order of `tiles`
    cells: Vec<Cell>,
    /// One for each of the view's `summaries` of each tile, in the same order
    summaries: Vec<TileSummary>,
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

    /// Where a window's tiles lie.
    pub(super) fn of_window(&self, window: usize) -> std::ops::Range<usize> {
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

    /// What they take in memory beside their own size, in bytes.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Tile>() * self.tiles.capacity()
            + size_of::<Cell>() * self.cells.capacity()
            + size_of::<TileSummary>() * self.summaries.capacity()
            + self.summaries.iter().map(TileSummary::bytes).sum::<usize>()
    }

    /// Where an event of the newest time goes: drops what is no longer held, makes what is not there yet.
    pub(super) fn newest(&mut self, view: &View, newest_ms: i64) -> Places {
        let mut numbers = [0; WINDOWS_MAX];
        let (mut missing, mut stale) = (0, false);
        for (index, window) in view.windows.iter().enumerate() {
            let own = &self.tiles[self.of_window(index)];
            let newest = number_near(window, newest_ms, own.last());
            numbers[index] = newest;
            missing += usize::from(own.last().is_none_or(|tile| tile.number != newest));
            let oldest = newest - window.tiling().held + 1;
            stale |= own.first().is_some_and(|tile| tile.number < oldest);
        }
        if stale {
            self.drop_older(view, |index, window| {
                numbers[index] - window.tiling().held + 1
            });
        }
        if missing > 0 {
            self.append(view, &numbers, missing);
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
            places
                .iter()
                .filter(|&&it| it != NOWHERE)
                .map(|&it| usize::from(it))
        };
        places().for_each(|place| self.tiles[place].rows += 1);
        let width = view.measures.len();
        for (index, measure) in view.measures.iter().enumerate() {
            if let Some(term) = term(measure.kind, &event.values[measure.field]) {
                for place in places() {
                    let cell = &mut self.cells[place * width + index];
                    cell.present += 1;
                    cell.sum = cell.sum.saturating_add(term).clamp(-SUM_MAX, SUM_MAX);
                }
            }
        }
        let width = view.summaries.len();
        for (index, summary) in view.summaries.iter().enumerate() {
            for place in places() {
                self.summaries[place * width + index].add(event, seq, summary.field);
            }
        }
        places().next().is_some()
    }

    /// Lets go of the tiles that are not held at `at_ms`, and of the memory that they took.
    pub(super) fn release(&mut self, view: &View, at_ms: i64) {
        let held = self.tiles.len();
        self.drop_older(view, |_, window| window.tiling().oldest_held(at_ms));
        if self.tiles.len() < held {
            self.tiles.shrink_to_fit();
            self.cells.shrink_to_fit();
            self.summaries.shrink_to_fit();
        }
    }

    /// Drops the tiles of each window before the oldest that it holds.
    fn drop_older(&mut self, view: &View, oldest: impl Fn(usize, &Window) -> i64) {
        let (mut start, mut kept) = (0, 0);
        for (index, window) in view.windows.iter().enumerate() {
            let end = usize::from(self.ends[index]);
            let oldest = oldest(index, window);
            let own = self.tiles[start..end].iter();
            start += own.take_while(|tile| tile.number < oldest).count();
            self.shift(view, start..end, kept);
            kept += end - start;
            self.ends[index] = kept as u8;
            start = end;
        }
        self.tiles.truncate(kept);
        self.cells.truncate(kept * view.measures.len());
        self.summaries.truncate(kept * view.summaries.len());
    }

    /// Makes the newest tile of each window that does not have it; so many are missing.
    fn append(&mut self, view: &View, numbers: &[i64; WINDOWS_MAX], mut missing: usize) {
        let width = view.measures.len();
        self.grow(view, missing);
        for index in (0..view.windows.len()).rev() {
            if missing == 0 {
                return;
            }
            let own = self.of_window(index);
            let there = self.tiles[own.clone()].last();
            let is_new = there.is_none_or(|tile| tile.number != numbers[index]);
            self.ends[index] = (own.end + missing) as u8;
            missing -= usize::from(is_new);
            self.shift(view, own.clone(), own.start + missing);
            if is_new {
                let place = own.end + missing;
                self.tiles[place] = Tile {
                    number: numbers[index],
                    rows: 0,
                };
                self.cells[place * width..(place + 1) * width].fill(Cell::default());
            }
        }
    }

    /// Makes one tile.
    fn insert(&mut self, view: &View, (window, place): (usize, usize), number: i64) {
        let behind = place..self.tiles.len();
        self.grow(view, 1);
        self.shift(view, behind, place + 1);
        let width = view.measures.len();
        self.tiles[place] = Tile { number, rows: 0 };
        self.cells[place * width..(place + 1) * width].fill(Cell::default());
        let windows = &mut self.ends[window..view.windows.len()];
        windows.iter_mut().for_each(|end| *end += 1);
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

    /// Moves tiles to where they begin at `to`. Summaries change places, so that empty ones stay whole.
    fn shift(&mut self, view: &View, from: std::ops::Range<usize>, to: usize) {
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
