//! The binary form of a view's state: sparse, versioned, typically a few hundred bytes.
//!
//! Layout: version; 0 for an empty state, else 1 and the newest event's time and sequence number;
//! the value of each kept field; for each window a 16-bit mask of the tiles that exist, bit k being
//! the k-th before the newest; then each tile's rows and, per measure, nulls and sum, and its summaries;
//! then the decays' masks and tiles in the same way. Integers are variable-length. The reader takes any bytes: it checks every bound and never panics, nor does a
//! fold into or a read from what it accepted.
//!
//! Format 1 kept every value as an f32. It is read where that is exact, for truths; a view that keeps
//! anything else has another id since (`layout_id`), so its states are folded anew.

use thiserror::Error;

use super::decay::Decays;
use super::summary::TileSummary;
use super::tiles::Tiles;
use super::{Cell, Latest, SUM_MAX, ViewState};
use crate::definition::{Decay, Tiling, View, Window};
use crate::value::{Field, Value, ValueDecodeError};
use crate::varint;

/// First byte of every state.
pub(super) const STATE_VERSION: u8 = 2;

/// The format before.
pub(super) const STATE_VERSION_1: u8 = 1;

/// No tile counts more rows, so that twelve of them add up without overflow.
pub(super) const ROWS_MAX: u64 = 1 << 56;

/// Why bytes are not a state of the view.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StateError {
    /// The bytes end inside the state
    #[error("state is cut short")]
    CutShort,
    /// Bytes are left behind the state
    #[error("{bytes} bytes follow the state")]
    Trailing {
        /// How many
        bytes: usize,
    },
    /// Written by another version of the program
    #[error("state has version {found}, known is {STATE_VERSION}")]
    Version {
        /// The version found
        found: u8,
    },
    /// A part that no fold can have made
    #[error("state has an impossible {part}")]
    Impossible {
        /// Which part
        part: &'static str,
    },
}

impl ViewState {
    /// Appends the binary form. `view` is the one whose events were folded.
    pub fn encode(&self, view: &View, out: &mut Vec<u8>) {
        out.push(STATE_VERSION);
        let Some(latest) = self.latest else {
            out.push(0);
            return;
        };
        out.push(1);
        varint::put(varint::zigzag(latest.event_ms), out);
        varint::put(latest.seq, out);
        for value in &self.last {
            value.encode(out);
        }
        let tiles = self.tiles.tiles();
        for (index, window) in view.windows.iter().enumerate() {
            let own = tiles[self.tiles.of_window(index)].iter();
            let newest = window.tile_of(latest.event_ms);
            put_mask(newest, own.map(|tile| tile.number), out);
        }
        let (width, summaries) = (view.measures.len(), view.summaries.len());
        for (index, tile) in tiles.iter().enumerate() {
            varint::put(tile.rows, out);
            for cell in &self.tiles.cells()[index * width..(index + 1) * width] {
                varint::put(tile.rows - cell.present, out);
                put_sum(cell.sum, out);
            }
            let own = index * summaries..(index + 1) * summaries;
            for summary in &self.tiles.summaries()[own] {
                summary.encode(out);
            }
        }
        for (index, decay) in view.decays.iter().enumerate() {
            let newest = decay.tiling().tile_of(latest.event_ms);
            put_mask(newest, self.decays.numbers(index), out);
        }
        self.decays.encode(out);
    }

    /// Reads what `encode` wrote for the same view.
    pub fn decode(view: &View, bytes: &[u8]) -> Result<Self, StateError> {
        let input = &mut { bytes };
        let take_value = match take_byte(input)? {
            STATE_VERSION => take_value,
            STATE_VERSION_1 if !view.keeps_more_than_truths() => take_value_1,
            found => return Err(StateError::Version { found }),
        };
        let state = match take_byte(input)? {
            0 => Self::default(),
            1 => Self::decode_content(view, take_value, input)?,
            _ => return Err(impossible("flag")),
        };
        if !input.is_empty() {
            return Err(StateError::Trailing { bytes: input.len() });
        }
        Ok(state)
    }

    fn decode_content(
        view: &View,
        take_value: TakeValue,
        input: &mut &[u8],
    ) -> Result<Self, StateError> {
        let latest = Latest {
            event_ms: varint::unzigzag(take(input)?),
            seq: take(input)?,
        };
        let last = view
            .last_fields
            .iter()
            .map(|&field| take_value(&view.source.fields[field], input))
            .collect::<Result<_, _>>()?;
        let masks = Masks::take(view.windows.len(), input)?;
        let mut state = Self {
            latest: Some(latest),
            last,
            tiles: Tiles::with_capacity(view, masks.count()),
            decays: Decays::default(),
        };
        let tilings = view.windows.iter().map(Window::tiling);
        masks.each(tilings, latest, |window, number| {
            state.tiles.push(window, number);
        })?;
        let (tiles, cells, held) = state.tiles.filling();
        for tile in tiles {
            tile.rows = take(input)?;
            if tile.rows == 0 || tile.rows > ROWS_MAX {
                return Err(impossible("row count"));
            }
            for _ in &view.measures {
                let present = tile.rows.checked_sub(take(input)?);
                cells.push(Cell {
                    present: present.ok_or_else(|| impossible("null count"))?,
                    sum: take_sum(input)?,
                });
            }
            for summary in &view.summaries {
                let field = &view.source.fields[summary.field];
                held.push(TileSummary::decode(summary.kind, field, input)?);
            }
        }
        state.tiles.add_up(view);
        let masks = Masks::take(view.decays.len(), input)?;
        let tilings = view.decays.iter().map(Decay::tiling);
        masks.each(tilings, latest, |decay, number| {
            state.decays.add_tile(decay, number)
        })?;
        state.decays.decode(input)?;
        Ok(state)
    }
}

/// Which tiles there are: bit k stands for the k-th before the newest.
fn put_mask(newest: i64, numbers: impl Iterator<Item = i64>, out: &mut Vec<u8>) {
    let mask = numbers.fold(0u16, |mask, number| mask | 1 << (newest - number));
    out.extend_from_slice(&mask.to_le_bytes());
}

/// One mask for each window or decay.
struct Masks<'a>(&'a [[u8; 2]]);

impl<'a> Masks<'a> {
    fn take(count: usize, input: &mut &'a [u8]) -> Result<Self, StateError> {
        let bytes = varint::take_bytes(input, count * 2).ok_or(StateError::CutShort)?;
        Ok(Self(bytes.as_chunks().0))
    }

    /// How many tiles they name.
    fn count(&self) -> usize {
        let ones = self.0.iter().flatten().map(|byte| byte.count_ones());
        ones.sum::<u32>() as usize
    }

    /// Gives each tile named to `place`, with its tiling's index and its number, in order.
    fn each(
        &self,
        tilings: impl Iterator<Item = Tiling>,
        latest: Latest,
        mut place: impl FnMut(usize, i64),
    ) -> Result<(), StateError> {
        for ((index, tiling), mask) in tilings.enumerate().zip(self.0) {
            let mask = u16::from_le_bytes(*mask);
            if mask >> tiling.held != 0 {
                return Err(impossible("tile mask"));
            }
            let newest = tiling.tile_of(latest.event_ms);
            for age in (0..tiling.held).rev().filter(|age| mask >> age & 1 == 1) {
                place(index, newest - age);
            }
        }
        Ok(())
    }
}

/// Most sums are of whole numbers, whose low 32 bits are zero: those are left out, and bit 0 says
/// so.
fn put_sum(sum: i128, out: &mut Vec<u8>) {
    let whole = sum >> 32;
    if whole << 32 == sum {
        varint::put_wide(varint::zigzag_wide(whole) << 1 | 1, out);
    } else {
        varint::put_wide(varint::zigzag_wide(sum) << 1, out);
    }
}

fn take_sum(input: &mut &[u8]) -> Result<i128, StateError> {
    let coded = varint::take_wide(input).ok_or(StateError::CutShort)?;
    let number = varint::unzigzag_wide(coded >> 1);
    let (sum, max) = match coded & 1 {
        1 => (number << 32, SUM_MAX >> 32),
        _ => (number, SUM_MAX),
    };
    // `number` has 127 bits at most, so its magnitude is a number too.
    if number.abs() > max {
        return Err(impossible("sum"));
    }
    Ok(sum)
}

/// Reads the kept value of a field.
type TakeValue = fn(&Field, &mut &[u8]) -> Result<Value, StateError>;

/// A value of the field's type or null.
pub(super) fn take_value(field: &Field, input: &mut &[u8]) -> Result<Value, StateError> {
    let value = Value::decode(input).map_err(|error| match error {
        ValueDecodeError::CutShort => StateError::CutShort,
        _ => impossible("value"),
    })?;
    // A field that is newer than the event reads as null, whether it is nullable or not.
    if !value.is_null() && field.check(&value).is_err() {
        return Err(impossible("value"));
    }
    Ok(value)
}

/// An f32 that is NaN, 0 or 1.
fn take_value_1(_: &Field, input: &mut &[u8]) -> Result<Value, StateError> {
    let (bytes, rest) = input.split_first_chunk::<4>().ok_or(StateError::CutShort)?;
    *input = rest;
    let number = f32::from_le_bytes(*bytes);
    match number {
        0.0 => Ok(Value::Bool(false)),
        1.0 => Ok(Value::Bool(true)),
        _ if number.is_nan() => Ok(Value::Null),
        _ => Err(impossible("value")),
    }
}

pub(super) fn take_byte(input: &mut &[u8]) -> Result<u8, StateError> {
    let (&byte, rest) = input.split_first().ok_or(StateError::CutShort)?;
    *input = rest;
    Ok(byte)
}

pub(super) fn take(input: &mut &[u8]) -> Result<u64, StateError> {
    varint::take(input).ok_or(StateError::CutShort)
}

pub(super) fn impossible(part: &'static str) -> StateError {
    StateError::Impossible { part }
}
