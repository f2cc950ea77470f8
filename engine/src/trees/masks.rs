//! Whole blocks of rows through small trees without a walk: QuickScorer's bit vectors (Lucchese et
//! al., SIGIR 2015), without its sorted thresholds and its early exit.
//!
//! Every split is compared for every row of a block, at once. A row that goes to no loses the
//! leaves below yes; the first leaf that is left is the one that a walk would find. The work is
//! the same for any rows: a load, a compare and an or for as many rows as a vector register holds,
//! which beats a walk of dependent loads from about eleven rows on.
//! Costs: 12 bytes a split for trees of up to 32 leaves, 16 for up to 64; others are walked.

use std::ops::{BitOr, BitOrAssign, Not};

use fearless_simd::{Level, dispatch};

use super::number::Number;
use super::tree::{Laid, Leaf, only_target};

/// The forest as masks, the widest vectors of this machine chosen.
#[derive(Debug)]
pub(super) struct Masks<T> {
    table: Width<T>,
    width: usize,
    level: Level,
}

#[derive(Debug)]
enum Width<T> {
    To32(Table<u32, T, 32>),
    To64(Table<u64, T, 64>),
}

/// Rows that pass at once. With fewer LLVM keeps each row in a register of its own and compares one
/// by one: a block of 16 or 32 rows takes longer than this one of 64.
const ROWS: usize = 64;
/// Rows for which a block, filled or not, costs less than their walks.
const ROWS_MIN: usize = 11;

impl<T: Number> Masks<T> {
    /// None where a tree has more than 64 leaves.
    pub(super) fn new(laid: &[Laid<T>], width: usize) -> Option<Self> {
        let to_32 = || Table::new(laid).map(Width::To32);
        let to_64 = || Table::new(laid).map(Width::To64);
        Some(Self {
            table: to_32().or_else(to_64)?,
            width,
            level: Level::new(),
        })
    }

    /// Adds the leaves of every tree, in the order of the trees, to the scores of all rows, where
    /// they are enough; returns how many that are. `keys` holds at most [`ROWS`] rows, `turned` is a
    /// buffer.
    pub(super) fn score(&self, keys: &[i32], scores: &mut [T], turned: &mut Vec<i32>) -> usize {
        let rows = scores.len() / self.width;
        if rows < ROWS_MIN {
            return 0;
        }
        self.block(keys, scores, turned);
        rows
    }

    fn block(&self, keys: &[i32], scores: &mut [T], turned: &mut Vec<i32>) {
        let stride = keys.len() / (scores.len() / self.width);
        turned.resize(stride * ROWS, 0);
        let (turned, _) = turned.as_chunks_mut::<ROWS>();
        for (row, keys) in keys.chunks_exact(stride).enumerate() {
            for (slot, &key) in turned.iter_mut().zip(keys) {
                slot[row] = key;
            }
        }
        let turned = &*turned;
        let width = self.width;
        match &self.table {
            Width::To32(table) => {
                dispatch!(self.level, _simd => table.block(turned, scores, width));
            }
            Width::To64(table) => {
                dispatch!(self.level, _simd => table.block(turned, scores, width));
            }
        }
    }
}

#[derive(Debug)]
struct Table<M, T, const LEAVES: usize> {
    /// The splits of every tree, one tree after the other.
    splits: Vec<Split<M>>,
    /// Where each tree's splits end.
    ends: Vec<usize>,
    leaves: Leaves<T, LEAVES>,
}

#[derive(Clone, Copy, Debug)]
struct Split<M> {
    /// A key up to this goes to yes.
    threshold: i32,
    slot: u32,
    /// The leaves below yes.
    lost: M,
}

/// By tree, what its leaves add.
#[derive(Debug)]
enum Leaves<T, const LEAVES: usize> {
    Single {
        target: usize,
        weights: Vec<[T; LEAVES]>,
    },
    Spans {
        spans: Vec<[(u32, u32); LEAVES]>,
        weights: Vec<Leaf<T>>,
    },
}

trait Mask: Copy + Default + Not<Output = Self> + BitOr<Output = Self> + BitOrAssign + 'static {
    /// The bits from `first` up to `end`.
    fn of(first: usize, end: usize) -> Self;
    fn if_true(self, is_set: bool) -> Self;
    fn trailing_ones(self) -> usize;
}

macro_rules! mask {
    ($type:ty) => {
        impl Mask for $type {
            fn of(first: usize, end: usize) -> Self {
                (first..end).fold(0, |mask, bit| mask | 1 << bit)
            }

            #[inline(always)]
            fn if_true(self, is_set: bool) -> Self {
                if is_set { self } else { 0 }
            }

            #[inline(always)]
            fn trailing_ones(self) -> usize {
                self.trailing_ones() as usize
            }
        }
    };
}

mask!(u32);
mask!(u64);

impl<M: Mask, T: Number, const LEAVES: usize> Table<M, T, LEAVES> {
    fn new(laid: &[Laid<T>]) -> Option<Self> {
        let mut table = Self {
            splits: Vec::new(),
            ends: Vec::new(),
            leaves: Leaves::new(laid),
        };
        for tree in laid {
            // A path is no longer than its tree, so the recursion is bounded here.
            if tree.records.len() > 4 * LEAVES {
                return None;
            }
            let mut leaves = Vec::new();
            table.add(tree, 0, &mut leaves)?;
            table.ends.push(table.splits.len());
            table.leaves.add(tree, &leaves)?;
        }
        Some(table)
    }

    /// Adds the splits at `place` and below, and the places of their leaves from yes to no.
    fn add(&mut self, tree: &Laid<T>, place: u32, leaves: &mut Vec<u32>) -> Option<()> {
        let record = tree.records[place as usize];
        if record.yes == place {
            leaves.push(place);
            return (leaves.len() <= LEAVES).then_some(());
        }
        let first = leaves.len();
        self.add(tree, record.yes, leaves)?;
        self.splits.push(Split {
            threshold: record.threshold,
            slot: record.slot,
            lost: M::of(first, leaves.len()),
        });
        self.add(tree, record.yes + 1, leaves)
    }

    /// Compiled once for each kind of vector: all that it calls is inlined into it.
    #[inline(always)]
    fn block(&self, keys: &[[i32; ROWS]], scores: &mut [T], width: usize) {
        match &self.leaves {
            Leaves::Single { target, weights } => {
                let mut sums = [T::default(); ROWS];
                for (sum, scores) in sums.iter_mut().zip(scores.chunks_exact(width)) {
                    *sum = scores[*target];
                }
                let mut weights = weights.iter();
                self.pass(keys, |lost| {
                    let Some(weights) = weights.next() else {
                        return;
                    };
                    for (sum, lost) in sums.iter_mut().zip(lost) {
                        *sum += weights[lost.trailing_ones() % LEAVES];
                    }
                });
                for (scores, sum) in scores.chunks_exact_mut(width).zip(sums) {
                    scores[*target] = sum;
                }
            }
            Leaves::Spans { spans, weights } => {
                let mut spans = spans.iter();
                self.pass(keys, |lost| {
                    let Some(spans) = spans.next() else { return };
                    for (scores, lost) in scores.chunks_exact_mut(width).zip(lost) {
                        let (start, end) = spans[lost.trailing_ones() % LEAVES];
                        for leaf in &weights[start as usize..end as usize] {
                            scores[leaf.target] += leaf.weight;
                        }
                    }
                });
            }
        }
    }

    /// The leaves that each row has lost, tree after tree.
    #[inline(always)]
    fn pass(&self, keys: &[[i32; ROWS]], mut exit: impl FnMut(&[M; ROWS])) {
        let mut start = 0;
        for &end in &self.ends {
            let mut lost = [M::default(); ROWS];
            for split in &self.splits[start..end] {
                let keys = &keys[split.slot as usize];
                for (lost, &key) in lost.iter_mut().zip(keys) {
                    *lost |= split.lost.if_true(key > split.threshold);
                }
            }
            exit(&lost);
            start = end;
        }
    }
}

impl<T: Number, const LEAVES: usize> Leaves<T, LEAVES> {
    fn new(laid: &[Laid<T>]) -> Self {
        match only_target(laid) {
            Some(target) => Self::Single {
                target,
                weights: Vec::new(),
            },
            None => Self::Spans {
                spans: Vec::new(),
                weights: Vec::new(),
            },
        }
    }

    /// Adds a tree whose leaves stand at `places`. None beyond 32 bits.
    fn add(&mut self, tree: &Laid<T>, places: &[u32]) -> Option<()> {
        let payloads = places.iter().map(|&place| &tree.leaves[place as usize]);
        match self {
            Self::Single { weights: all, .. } => {
                let mut weights = [T::default(); LEAVES];
                for (weight, payload) in weights.iter_mut().zip(payloads) {
                    *weight = payload.first().map_or(T::default(), |leaf| leaf.weight);
                }
                all.push(weights);
            }
            Self::Spans { spans, weights } => {
                let mut of_tree = [(0, 0); LEAVES];
                for (span, payload) in of_tree.iter_mut().zip(payloads) {
                    let start = u32::try_from(weights.len()).ok()?;
                    weights.extend_from_slice(payload);
                    *span = (start, u32::try_from(weights.len()).ok()?);
                }
                spans.push(of_tree);
            }
        }
        Some(())
    }
}
