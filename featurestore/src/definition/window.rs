//! A window: how long it is, into which tiles it is cut, and what a read of it covers.

/// Tiles held for each sliding window. One read at `t` covers the tile of `t` and the eleven before
/// it, so its older end is off by at most one tile, a twelfth of the window.
pub const WINDOW_TILES: i64 = 12;

/// Tiles held for each tumbling window: the running period and, for late events and readers whose clock
/// is a little behind, the one before.
const TUMBLING_TILES: i64 = 2;

/// One length of time over which a view aggregates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What it adds to a feature's name, such as `"24h"` or `"1d_tumbling"`
    pub name: Box<str>,
    /// Width of one tile in milliseconds
    pub tile_ms: i64,
    /// Which tiles a read covers
    pub kind: WindowKind,
}

/// Which tiles a window covers when it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowKind {
    /// The running tile and the eleven before it: the length of the window up to now
    Sliding,
    /// The running tile, which is as long as the window: from the start of the period until now. Periods
    /// are counted from the Unix epoch, so days begin at midnight UTC
    Tumbling,
}

impl Window {
    /// The number of the tile that holds `at_ms`.
    pub fn tile_of(&self, at_ms: i64) -> i64 {
        at_ms.div_euclid(self.tile_ms)
    }

    /// How many tiles a read covers.
    pub fn tiles_read(&self) -> i64 {
        match self.kind {
            WindowKind::Sliding => WINDOW_TILES,
            WindowKind::Tumbling => 1,
        }
    }

    /// Length in milliseconds; that of the whole period for a tumbling window.
    pub fn length_ms(&self) -> i64 {
        self.tile_ms * self.tiles_read()
    }

    /// By how much a read may fall short of the window at its older end, in milliseconds.
    pub fn error_ms(&self) -> i64 {
        match self.kind {
            WindowKind::Sliding => self.tile_ms,
            WindowKind::Tumbling => 0,
        }
    }

    pub(crate) fn tiling(&self) -> Tiling {
        let held = match self.kind {
            WindowKind::Sliding => WINDOW_TILES,
            WindowKind::Tumbling => TUMBLING_TILES,
        };
        Tiling {
            tile_ms: self.tile_ms,
            held,
        }
    }
}

/// Events that weigh less the older they are, halved with each half-life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decay {
    /// In milliseconds
    pub half_life_ms: i64,
    /// Source index of the field whose values are averaged; `None` to count events
    pub field: Option<usize>,
}

impl Decay {
    /// Twelve tiles of two half-lives each.
    pub(crate) fn tiling(&self) -> Tiling {
        Tiling {
            tile_ms: 2 * self.half_life_ms,
            held: WINDOW_TILES,
        }
    }
}

/// Time cut into tiles, of which the newest are held.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tiling {
    tile_ms: i64,
    /// How many, sixteen at most.
    pub(crate) held: i64,
}

impl Tiling {
    /// How long the tiles held are together, in milliseconds.
    pub(crate) fn span_ms(self) -> i64 {
        self.tile_ms * self.held
    }

    /// The number of the tile that holds `at_ms`.
    pub(crate) fn tile_of(self, at_ms: i64) -> i64 {
        at_ms.div_euclid(self.tile_ms)
    }

    /// Whether a tile is held when the newest event is of `newest_ms`.
    pub(crate) fn holds(self, number: i64, newest_ms: i64) -> bool {
        number >= self.oldest_held(newest_ms)
    }

    /// The oldest tile that is held when the newest event is of `newest_ms`.
    pub(crate) fn oldest_held(self, newest_ms: i64) -> i64 {
        self.tile_of(newest_ms) - self.held + 1
    }
}
