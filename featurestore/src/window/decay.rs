//! Counts and means that fade: an event of age `a` weighs 2^(-a / half-life).
//!
//! A decay has twelve tiles of two half-lives each. In its tile an event is weighted by how far it lies
//! behind the tile's start, 2^((t - start) / half-life) from 1 to 4, as an integer rounded once; a read
//! weighs whole tiles, each a fourth of the next. So sums are exact, merge, and do not depend on the
//! order of arrival, unlike a running average. What is older than 22 to 24 half-lives, a four-millionth,
//! is dropped. Costs 56 bytes a tile and decay; weights are good to 2^-32.

use super::codec::{StateError, impossible};
use super::{SUM_MAX, SUM_UNITS};
use crate::definition::{Decay, View, WINDOW_TILES};
use crate::event::Event;
use crate::varint;

/// The tiles of all decays of a view.
#[derive(Clone, Debug, Default)]
pub(super) struct Decays {
    /// Sorted by decay, then number
    tiles: Vec<DecayTile>,
}

#[derive(Clone, Copy, Debug)]
struct DecayTile {
    decay: usize,
    number: i64,
    weighed: Weighed,
}

/// In units of 2^-32.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Weighed {
    /// The events' weights, of those with a value where the decay has a field
    weight: i128,
    /// The values, each times its weight
    sum: i128,
}

impl Decays {
    /// Adds an event to every decay that holds its tile; answers whether one did.
    pub(super) fn fold(&mut self, view: &View, event: &Event, newest_ms: i64) -> bool {
        let mut applied = false;
        for (index, decay) in view.decays.iter().enumerate() {
            let tiling = decay.tiling();
            let number = tiling.tile_of(event.event_ms);
            if !tiling.holds(number, newest_ms) {
                continue;
            }
            applied = true;
            let weighed = self.at((index, number));
            let weight = two_to_the(decay.half_lives_into_tile(event.event_ms));
            let value = match decay.field {
                None => Some(0.0),
                Some(field) => event.values[field].as_f64(),
            };
            if let Some(value) = value {
                let add = |sum: i128, more: f64| {
                    let more = (more * SUM_UNITS).round() as i128;
                    sum.saturating_add(more).clamp(-SUM_MAX, SUM_MAX)
                };
                weighed.weight = add(weighed.weight, weight);
                weighed.sum = add(weighed.sum, value * weight);
            }
        }
        applied
    }

    /// Drops the tiles that are not held when the newest event is of `newest_ms`.
    pub(super) fn evict(&mut self, view: &View, newest_ms: i64) {
        self.tiles.retain(|tile| {
            let tiling = view.decays[tile.decay].tiling();
            tiling.holds(tile.number, newest_ms)
        });
    }

    /// The weights of all events at `at_ms`, added up.
    pub(super) fn count(&self, (index, decay): (usize, &Decay), at_ms: i64) -> f64 {
        let (weight, _) = self.faded(index, decay.tiling().tile_of(at_ms));
        weight / SUM_UNITS / two_to_the(decay.half_lives_into_tile(at_ms))
    }

    /// The weighted mean of the values; how far `at_ms` is into its tile cancels out.
    pub(super) fn mean(&self, (index, decay): (usize, &Decay), at_ms: i64) -> Option<f64> {
        let (weight, sum) = self.faded(index, decay.tiling().tile_of(at_ms));
        (weight > 0.0).then_some(sum / weight)
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<DecayTile>() * self.tiles.capacity()
    }

    /// Numbers of the tiles of one decay, oldest first.
    pub(super) fn numbers(&self, decay: usize) -> impl Iterator<Item = i64> {
        let own = self.tiles.iter().filter(move |tile| tile.decay == decay);
        own.map(|tile| tile.number)
    }

    /// Appends weight and sum of every tile.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        for tile in &self.tiles {
            varint::put_wide(varint::zigzag_wide(tile.weighed.weight), out);
            varint::put_wide(varint::zigzag_wide(tile.weighed.sum), out);
        }
    }

    /// Adds an empty tile behind all others.
    pub(super) fn add_tile(&mut self, decay: usize, number: i64) {
        self.tiles.push(DecayTile {
            decay,
            number,
            weighed: Weighed::default(),
        });
    }

    /// Reads weight and sum of every tile.
    pub(super) fn decode(&mut self, input: &mut &[u8]) -> Result<(), StateError> {
        let mut number = || {
            let coded = varint::take_wide(input).ok_or(StateError::CutShort)?;
            let number = varint::unzigzag_wide(coded);
            let possible = (-SUM_MAX..=SUM_MAX).contains(&number);
            possible
                .then_some(number)
                .ok_or_else(|| impossible("decayed sum"))
        };
        for tile in &mut self.tiles {
            tile.weighed = Weighed {
                weight: number()?,
                sum: number()?,
            };
            if tile.weighed.weight < 0 {
                return Err(impossible("weight"));
            }
        }
        Ok(())
    }

    fn at(&mut self, place: (usize, i64)) -> &mut Weighed {
        let found = self
            .tiles
            .binary_search_by_key(&place, |tile| (tile.decay, tile.number));
        let index = found.unwrap_or_else(|index| {
            let (decay, number) = place;
            self.tiles.insert(
                index,
                DecayTile {
                    decay,
                    number,
                    weighed: Weighed::default(),
                },
            );
            index
        });
        &mut self.tiles[index].weighed
    }

    /// Weight and sum of one decay's tiles up to `current`, as seen from the start of that tile.
    fn faded(&self, decay: usize, current: i64) -> (f64, f64) {
        let (mut weight, mut sum) = (0.0, 0.0);
        for tile in self.tiles.iter().filter(|tile| tile.decay == decay) {
            let age = current - tile.number;
            if (0..WINDOW_TILES).contains(&age) {
                // A power of two: exact.
                let share = 1.0 / (1u64 << (2 * age)) as f64;
                weight += tile.weighed.weight as f64 * share;
                sum += tile.weighed.sum as f64 * share;
            }
        }
        (weight, sum)
    }
}

impl Decay {
    /// From 0 to 2.
    fn half_lives_into_tile(&self, at_ms: i64) -> f64 {
        let into_ms = at_ms.rem_euclid(2 * self.half_life_ms);
        into_ms as f64 / self.half_life_ms as f64
    }
}

/// 2^x for x from 0 to 2, in operations that IEEE 754 rounds the same everywhere; `f64::exp2` is the
/// platform's, and states of two machines have to agree.
fn two_to_the(x: f64) -> f64 {
    let whole = x.trunc();
    let power = (x - whole) * std::f64::consts::LN_2;
    // The exponential series; what is left out is below 2^-60.
    let series = (1..=18)
        .rev()
        .fold(1.0, |rest, n| 1.0 + power / f64::from(n) * rest);
    series * [1.0, 2.0, 4.0][whole as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_those_of_the_platform_but_for_the_last_bits() {
        for step in 0..=2_000 {
            let x = f64::from(step) / 1_000.0;
            assert!((two_to_the(x) / x.exp2() - 1.0).abs() < 1e-15, "{x}");
        }
        assert_eq!([0.0, 1.0, 2.0].map(two_to_the), [1.0, 2.0, 4.0]);
    }
}
