//! Quantiles from counts in buckets whose width grows with the value, as HdrHistogram and DDSketch have.
//!
//! A bucket is a sixty-fourth of the way from a power of two to the next, taken from the bits of the
//! float: no logarithm, so every machine agrees. A quantile is the middle of its bucket, within 1/128
//! (0.8 %) of the value of that rank; magnitudes below 2^-32 count as 0. A tile holds 512 buckets at
//! most: where its values need more (at 0.8 % they span more than 256 to 1), neighbours become one,
//! which doubles the error, and again at most five times. How coarse a tile is depends on its set of
//! values alone. Costs 16 bytes a bucket in memory, 2 to 3 encoded; a read walks the buckets of its
//! tiles, without allocation. Why not KLL: `docs/decisions/015`.

use super::codec::{ROWS_MAX, StateError, impossible, take, take_byte};
use crate::definition::WINDOW_TILES;
use crate::varint;

/// Buckets of one tile at most.
const BUCKETS_MAX: usize = 512;

/// Bits of the mantissa that choose a bucket between two powers of two.
const FINE_BITS: u32 = 6;

/// Bits of a float below those.
const REST_BITS: u32 = f64::MANTISSA_DIGITS - 1 - FINE_BITS;

/// The first bucket's upper bits: those of 2^-32.
const FIRST: u64 = (1023 - 32) << FINE_BITS;

/// Buckets of one sign: 2^-32 to 2^63.
const KEY_MAX: i32 = (32 + 63) << FINE_BITS;

/// Where each power of two has two buckets; these are fewer than `BUCKETS_MAX`.
const LEVEL_MAX: u8 = 5;

/// The values of one tile.
#[derive(Clone, Debug, Default)]
pub(super) struct Quantiles {
    /// How often neighbouring buckets were made one
    level: u8,
    /// Sorted by key
    buckets: Vec<Bucket>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    /// 0 for zero, else the bucket's number from 1 with the sign of its values
    key: i32,
    count: u64,
}

impl Quantiles {
    /// Takes in a value below 2^63.
    pub(super) fn add(&mut self, number: f64) {
        let key = coarse(key_of(number), self.level);
        match self.buckets.binary_search_by_key(&key, |bucket| bucket.key) {
            Ok(place) => self.buckets[place].count += 1,
            Err(place) => {
                self.buckets.insert(place, Bucket { key, count: 1 });
                while self.buckets.len() > BUCKETS_MAX && self.level < LEVEL_MAX {
                    self.coarsen();
                }
            }
        }
    }

    /// The value whose rank is `millionths` of the way from the smallest, rank 0, to the largest,
    /// rounded down; `None` without values. Twelve tiles at most.
    pub(super) fn quantile<'a>(
        tiles: impl Iterator<Item = &'a Self>,
        millionths: u32,
    ) -> Option<f64> {
        let mut lists = [(&[][..], 0); WINDOW_TILES as usize];
        let (mut level, mut total) = (0, 0);
        for (list, tile) in lists.iter_mut().zip(tiles) {
            *list = (tile.buckets.as_slice(), tile.level);
            level = level.max(tile.level);
            total += tile.buckets.iter().map(|bucket| bucket.count).sum::<u64>();
        }
        let rank = u128::from(total.checked_sub(1)?) * u128::from(millionths) / 1_000_000;
        let mut below = 0;
        loop {
            let keys = lists.iter().filter_map(|(list, from)| {
                let bucket = list.first()?;
                Some(coarse(bucket.key, level - from))
            });
            let key = keys.min()?;
            for (list, from) in &mut lists {
                while let Some((bucket, rest)) = list.split_first()
                    && coarse(bucket.key, level - *from) == key
                {
                    below += u128::from(bucket.count);
                    *list = rest;
                }
            }
            if below > rank {
                return Some(middle(key, level));
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Bucket>() * self.buckets.capacity()
    }

    /// Appends the level, the number of buckets, and for each how far its key is from the one before,
    /// and its count.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(self.level);
        varint::put(self.buckets.len() as u64, out);
        let mut before = 0;
        for bucket in &self.buckets {
            varint::put(varint::zigzag(i64::from(bucket.key - before)), out);
            varint::put(bucket.count, out);
            before = bucket.key;
        }
    }

    pub(super) fn decode(input: &mut &[u8]) -> Result<Self, StateError> {
        let level = take_byte(input)?;
        let count = take(input)?;
        if level > LEVEL_MAX || count > BUCKETS_MAX as u64 {
            return Err(impossible("number of buckets"));
        }
        let key_max = i64::from(coarse(KEY_MAX, level));
        let mut buckets: Vec<Bucket> = Vec::with_capacity(count as usize);
        let mut total = 0u64;
        for _ in 0..count {
            let step = varint::unzigzag(take(input)?);
            let before = buckets.last().map(|bucket| i64::from(bucket.key));
            let key = before.unwrap_or(0).checked_add(step);
            let key = key.filter(|key| before.is_none_or(|before| before < *key));
            let key = key.filter(|key| key.abs() <= key_max);
            let key = key.ok_or_else(|| impossible("bucket"))?;
            let count = take(input)?;
            total = total.saturating_add(count);
            if count == 0 || total > ROWS_MAX {
                return Err(impossible("bucket count"));
            }
            let key = i32::try_from(key).map_err(|_| impossible("bucket"))?;
            buckets.push(Bucket { key, count });
        }
        Ok(Self { level, buckets })
    }

    /// Makes one of every two buckets that are neighbours.
    fn coarsen(&mut self) {
        self.level += 1;
        self.buckets
            .iter_mut()
            .for_each(|bucket| bucket.key = coarse(bucket.key, 1));
        self.buckets.dedup_by(|next, kept| {
            let same = next.key == kept.key;
            if same {
                kept.count += next.count;
            }
            same
        });
    }
}

fn key_of(number: f64) -> i32 {
    let upper = number.abs().to_bits() >> REST_BITS;
    let Some(above) = upper.checked_sub(FIRST) else {
        return 0;
    };
    let key = i32::try_from(above).map_or(KEY_MAX, |above| (above + 1).min(KEY_MAX));
    if number < 0.0 { -key } else { key }
}

/// The key of the bucket that a bucket becomes part of after `levels` joins.
fn coarse(key: i32, levels: u8) -> i32 {
    match key.signum() {
        0 => 0,
        sign => sign * (((key.abs() - 1) >> levels) + 1),
    }
}

fn middle(key: i32, level: u8) -> f64 {
    if key == 0 {
        return 0.0;
    }
    let number = u64::from(key.unsigned_abs() - 1);
    let edge = |number: u64| f64::from_bits(((number << level) + FIRST) << REST_BITS);
    let middle = (edge(number) + edge(number + 1)) / 2.0;
    if key < 0 { -middle } else { middle }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of(numbers: impl IntoIterator<Item = f64>) -> Quantiles {
        let mut quantiles = Quantiles::default();
        numbers.into_iter().for_each(|number| quantiles.add(number));
        quantiles
    }

    fn encoded(quantiles: &Quantiles) -> Vec<u8> {
        let mut bytes = Vec::new();
        quantiles.encode(&mut bytes);
        bytes
    }

    /// Of any magnitude that a value may have, of both signs.
    fn wide() -> impl Strategy<Value = f64> {
        prop_oneof![
            -1000.0..1000.0,
            (-40.0..62.9f64, any::<bool>())
                .prop_map(|(power, negative)| power.exp2() * if negative { -1.0 } else { 1.0 }),
            (-5i8..5).prop_map(f64::from),
        ]
    }

    #[test]
    fn the_widest_values_fit_in_the_bounded_number_of_buckets() {
        let powers = (-3200..6300).map(|power| (f64::from(power) / 100.0).exp2());
        let quantiles = of(powers.flat_map(|number| [number, -number, 0.0]));
        assert_eq!(quantiles.level, LEVEL_MAX);
        assert!(quantiles.buckets.len() <= BUCKETS_MAX);
        // Ten octaves of one sign need 640 buckets, so two become one.
        let quantiles = of((0..100_000).map(|number| (f64::from(number) / 10_000.0).exp2()));
        assert_eq!((quantiles.level, quantiles.buckets.len()), (1, 320));
        let median = Quantiles::quantile([&quantiles].into_iter(), 500_000).unwrap();
        assert!((median / 32.0 - 1.0).abs() <= 1.0 / 64.0, "{median}");
        assert!(encoded(&quantiles).len() < 1_000);
    }

    #[test]
    fn without_values_there_is_no_quantile() {
        assert_eq!(Quantiles::quantile([].into_iter(), 500_000), None);
        assert_eq!(Quantiles::quantile([&of([])].into_iter(), 500_000), None);
        assert_eq!(
            Quantiles::quantile([&of([-0.0, 1e-10])].into_iter(), 999_999),
            Some(0.0)
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_quantile_is_within_its_error_of_the_value_of_that_rank(
            tiles in proptest::collection::vec(proptest::collection::vec(wide(), 0..200), 1..12),
            millionths in 1u32..1_000_000,
        ) {
            let mut all: Vec<f64> = tiles.iter().flatten().copied().collect();
            all.sort_by(f64::total_cmp);
            let held: Vec<_> = tiles.into_iter().map(of).collect();
            let level = held.iter().map(|tile| tile.level).max().unwrap();
            let found = Quantiles::quantile(held.iter(), millionths);
            if all.is_empty() {
                prop_assert_eq!(found, None);
            } else {
                let rank = (all.len() - 1) * millionths as usize / 1_000_000;
                let error = all[rank].abs() * f64::from(1 << level) / 128.0 + 2f64.powi(-32);
                let found = found.unwrap();
                prop_assert!((found - all[rank]).abs() <= error, "{found} for {}", all[rank]);
            }
        }

        #[test]
        fn any_order_gives_the_same_bytes_and_they_come_back(
            (numbers, shuffled) in proptest::collection::vec(wide(), 0..1200)
                .prop_flat_map(|numbers| (Just(numbers.clone()), Just(numbers).prop_shuffle()))
        ) {
            let bytes = encoded(&of(numbers));
            prop_assert_eq!(&encoded(&of(shuffled)), &bytes);
            let input = &mut bytes.as_slice();
            prop_assert_eq!(encoded(&Quantiles::decode(input).unwrap()), bytes.clone());
            prop_assert!(input.is_empty());
        }

        #[test]
        fn any_bytes_are_buckets_or_refused(mut bytes: Vec<u8>, level in 0u8..8, count in 0u8..40) {
            bytes.splice(0..0, [level, count]);
            if let Ok(mut quantiles) = Quantiles::decode(&mut bytes.as_slice()) {
                quantiles.add(1.0);
                Quantiles::quantile([&quantiles].into_iter(), 999_999);
            }
        }
    }
}
