//! A forest as flat arrays of nodes, walked several trees at a time; whole blocks of rows go
//! through [`Masks`] instead where the trees are small.
//!
//! A step is three loads, a compare and an add, without a branch. A leaf leads to itself, so trees
//! of different depth walk together, as many steps as the highest of them needs: independent
//! chains of loads hide each other's latency.
//!
//! A row is held twice, the second time with every key one higher, so that the missing value wraps
//! from the largest to the smallest: a split whose missing values go to yes reads the second half,
//! and no step asks what is missing.

use super::masks::Masks;
use super::number::Number;
use super::tree::{Laid, Leaf, Record, Tree, only_target};

/// A forest whose scores have `width` columns.
#[derive(Debug)]
pub(super) struct Forest<T> {
    /// Sorted thresholds of each column, where keys need them.
    thresholds: Vec<Vec<T>>,
    walks: Walks,
    masks: Option<Masks<T>>,
    payload: Payload<T>,
    columns_min: usize,
    width: usize,
}

/// How leaves are combined; only sums are compiled for every kind of vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Combine {
    Sum,
    Other,
}

/// Trees that walk together; with 4 a walk waits for its loads and takes 1.5 times as long.
const LANES: usize = 8;
/// Rows that meet one group of trees before the next, so that both stay in the first-level cache.
const ROWS_PER_BLOCK: usize = 64;
/// Nodes of one forest, so that every place, with the filling of the last group, fits 32 bits.
pub(super) const NODES_MAX: usize = 1 << 30;

#[derive(Debug)]
enum Walks {
    /// Nodes of 8 bytes in blocks of at most [`NARROW_NODES`].
    Narrow(Vec<Block<NarrowNodes>>),
    /// Nodes of 12 bytes in one block: forests of many columns, or with a very large tree.
    Wide(Block<WideNodes>),
}

#[derive(Debug)]
struct Block<N> {
    nodes: N,
    groups: Vec<Group>,
    /// Where the block's places start among those of the payload.
    start: u32,
}

#[derive(Debug)]
struct Group {
    roots: [u32; LANES],
    /// The first of the lanes that walk a tree of their own.
    trees: usize,
    steps: u32,
}

trait Nodes {
    /// A row's keys.
    type Row: ?Sized;

    fn step(&self, place: u32, keys: &Self::Row) -> u32;
}

const NARROW_NODES: usize = 1 << 16;
/// Keys of a row of 512 columns.
const NARROW_KEYS: usize = 1 << 10;

/// Slot, place of `yes`, and the two halves of the threshold. As many as a place can name, so that
/// no step checks a bound; pages that hold no node are never touched.
#[derive(Debug)]
struct NarrowNodes(Box<[[u16; 4]; NARROW_NODES]>);

impl Nodes for NarrowNodes {
    type Row = [i32; NARROW_KEYS];

    #[inline(always)]
    fn step(&self, place: u32, keys: &Self::Row) -> u32 {
        let [slot, yes, low, high] = self.0[place as usize % NARROW_NODES];
        let threshold = (u32::from(low) | u32::from(high) << 16).cast_signed();
        let is_no = keys[usize::from(slot) % NARROW_KEYS] > threshold;
        u32::from(yes).wrapping_add(u32::from(is_no))
    }
}

#[derive(Debug)]
struct WideNodes(Vec<Record>);

impl Nodes for WideNodes {
    type Row = [i32];

    #[inline(always)]
    fn step(&self, place: u32, keys: &[i32]) -> u32 {
        let node = &self.0[place as usize];
        let is_no = keys[node.slot as usize] > node.threshold;
        node.yes.wrapping_add(u32::from(is_no))
    }
}

/// What leaves add, by their places.
#[derive(Debug)]
enum Payload<T> {
    /// One weight to the one column that is scored.
    Single { target: usize, weights: Vec<T> },
    /// Leaf at place p adds `weights[starts[p]..starts[p + 1]]`.
    Spans {
        starts: Vec<usize>,
        weights: Vec<Leaf<T>>,
    },
}

/// Kept between runs, so that a run does not allocate.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// Keys by row.
    rows: Vec<i32>,
    /// Keys by column.
    columns: Vec<i32>,
}

impl<T: Number> Forest<T> {
    /// Lays out `trees`, whose leaves score columns below `width`. Their nodes are at most
    /// [`NODES_MAX`].
    pub(super) fn new(trees: &[Tree<T>], width: usize, how: Combine) -> Self {
        let splits = || trees.iter().flat_map(Tree::splits);
        let columns_min = splits().map(|split| split.feature + 1).max().unwrap_or(1);
        let mut thresholds = vec![Vec::new(); if T::IS_RANKED { columns_min } else { 0 }];
        if T::IS_RANKED {
            for split in splits() {
                thresholds[split.feature].extend_from_slice(split.test.thresholds());
            }
            for column in &mut thresholds {
                column.sort_by(|a: &T, b| a.partial_cmp(b).expect("no threshold is NaN"));
                column.dedup_by(|a, b| a == b);
            }
        }
        let laid: Vec<_> = trees
            .iter()
            .map(|tree| Laid::new(tree, &thresholds))
            .collect();
        let masks = match how {
            Combine::Sum => Masks::new(&laid, width),
            Combine::Other => None,
        };
        Self {
            walks: Walks::new(&laid, columns_min),
            payload: Payload::new(&laid, how),
            thresholds,
            masks,
            columns_min,
            width,
        }
    }

    /// Columns that a row must have at least.
    pub(super) fn columns_min(&self) -> usize {
        self.columns_min
    }

    /// Combines the leaves of every tree, in the order of the trees, into the scores of each row.
    /// `rows` holds whole rows of `columns`, which is at least `columns_min`; `combine` adds where
    /// the forest was made for [`Combine::Sum`].
    pub(super) fn score(
        &self,
        (rows, columns): (&[T], usize),
        scores: &mut [T],
        buffers: &mut Buffers,
        combine: impl Fn(&mut T, T) + Copy,
    ) {
        let Buffers {
            rows: keys,
            columns: turned,
        } = buffers;
        let stride = 2 * self.columns_min;
        let row_blocks = rows.chunks(ROWS_PER_BLOCK * columns);
        let score_blocks = scores.chunks_mut(ROWS_PER_BLOCK * self.width);
        for (rows, scores) in row_blocks.zip(score_blocks) {
            let count = rows.len() / columns;
            // Narrow walks look at NARROW_KEYS from the start of each row.
            keys.resize(count * stride + NARROW_KEYS, 0);
            for (row, keys) in rows
                .chunks_exact(columns)
                .zip(keys.chunks_exact_mut(stride))
            {
                self.key_row(row, keys.as_chunks_mut().0);
            }
            let rows = &keys[..count * stride];
            let done = self
                .masks
                .as_ref()
                .map_or(0, |masks| masks.score(rows, scores, turned));
            let (keys, scores) = (&keys[done * stride..], &mut scores[done * self.width..]);
            match &self.walks {
                Walks::Narrow(blocks) => {
                    for block in blocks {
                        let row = |row: usize| {
                            let keys = keys[row * stride..].first_chunk();
                            keys.expect("the buffer goes on after its last row")
                        };
                        self.walk(block, row, scores, combine);
                    }
                }
                Walks::Wide(block) => {
                    self.walk(block, |row| &keys[row * stride..], scores, combine);
                }
            }
        }
    }

    #[inline]
    fn key_row(&self, row: &[T], keys: &mut [[i32; 2]]) {
        if T::IS_RANKED {
            for ((slots, &x), thresholds) in keys.iter_mut().zip(row).zip(&self.thresholds) {
                let key = x.key(thresholds);
                *slots = [key, key.wrapping_add(1)];
            }
        } else {
            for (slots, &x) in keys.iter_mut().zip(row) {
                let key = x.key(&[]);
                *slots = [key, key.wrapping_add(1)];
            }
        }
    }

    #[inline]
    fn walk<'a, N: Nodes>(
        &self,
        block: &Block<N>,
        keys: impl Fn(usize) -> &'a N::Row,
        scores: &mut [T],
        combine: impl Fn(&mut T, T) + Copy,
    ) where
        N::Row: 'a,
    {
        for group in &block.groups {
            for (row, scores) in scores.chunks_exact_mut(self.width).enumerate() {
                let keys = keys(row);
                let mut at = group.roots;
                // Written as a loop over the places: as a map over an array the places spill.
                for _ in 0..group.steps {
                    for place in &mut at {
                        *place = block.nodes.step(*place, keys);
                    }
                }
                let leaves = at.map(|place| block.start + place);
                self.payload.add(&leaves[..group.trees], scores, combine);
            }
        }
    }
}

impl Walks {
    fn new<T>(laid: &[Laid<T>], columns: usize) -> Self {
        let is_narrow = 2 * columns <= NARROW_KEYS
            && laid.chunks(LANES).all(|group| {
                group.iter().map(|tree| tree.records.len()).sum::<usize>() <= NARROW_NODES
            });
        let mut walks = if is_narrow {
            Self::Narrow(Vec::new())
        } else {
            Self::Wide(Block {
                nodes: WideNodes(Vec::new()),
                groups: Vec::new(),
                start: 0,
            })
        };
        let mut start = 0;
        let mut records = Vec::new();
        let mut groups = Vec::new();
        for group in laid.chunks(LANES) {
            let count: usize = group.iter().map(|tree| tree.records.len()).sum();
            if is_narrow && records.len() + count > NARROW_NODES {
                walks.close(&mut records, &mut groups, &mut start);
            }
            groups.push(Group::new(group, &mut records));
        }
        walks.close(&mut records, &mut groups, &mut start);
        walks
    }

    /// Makes a block of what was gathered.
    fn close(&mut self, records: &mut Vec<Record>, groups: &mut Vec<Group>, start: &mut u32) {
        let records = std::mem::take(records);
        let groups = std::mem::take(groups);
        let block_start = *start;
        *start += u32::try_from(records.len()).expect("NODES_MAX keeps places in 32 bits");
        match self {
            Self::Narrow(blocks) => blocks.push(Block {
                nodes: NarrowNodes::new(&records),
                groups,
                start: block_start,
            }),
            Self::Wide(block) => {
                block.nodes = WideNodes(records);
                block.groups = groups;
            }
        }
    }
}

impl Group {
    /// Appends the trees of a group to `records`.
    fn new<T>(trees: &[Laid<T>], records: &mut Vec<Record>) -> Self {
        let mut group = Self {
            roots: [0; LANES],
            trees: trees.len(),
            steps: 0,
        };
        for (root, tree) in group.roots.iter_mut().zip(trees) {
            *root = u32::try_from(records.len()).expect("NODES_MAX keeps places in 32 bits");
            group.steps = group.steps.max(tree.height);
            records.extend(tree.records.iter().map(|record| Record {
                yes: record.yes + *root,
                ..*record
            }));
        }
        group
    }
}

impl NarrowNodes {
    fn new(records: &[Record]) -> Self {
        let narrow = |x: u32| u16::try_from(x).expect("a narrow block was asked for");
        // Zeroed by the allocator, page by page as they are touched.
        let mut nodes = vec![[0_u16; 4]; NARROW_NODES];
        for (node, record) in nodes.iter_mut().zip(records) {
            let threshold = record.threshold.cast_unsigned();
            *node = [
                narrow(record.slot),
                narrow(record.yes),
                narrow(threshold & 0xffff),
                narrow(threshold >> 16),
            ];
        }
        let nodes = nodes.into_boxed_slice().try_into();
        Self(nodes.expect("the vector has that length"))
    }
}

impl<T: Number> Payload<T> {
    fn new(laid: &[Laid<T>], how: Combine) -> Self {
        let leaves = || laid.iter().flat_map(|tree| &tree.leaves);
        // A leaf that scores nothing adds nothing, but it is no minimum.
        if how == Combine::Sum
            && let Some(target) = only_target(laid)
        {
            let weight =
                |leaf: &Vec<Leaf<T>>| leaf.first().map_or(T::default(), |leaf| leaf.weight);
            let weights = leaves().map(weight).collect();
            return Self::Single { target, weights };
        }
        let mut starts = vec![0];
        let mut weights = Vec::new();
        for leaf in leaves() {
            weights.extend_from_slice(leaf);
            starts.push(weights.len());
        }
        Self::Spans { starts, weights }
    }

    #[inline]
    fn add(&self, places: &[u32], scores: &mut [T], combine: impl Fn(&mut T, T)) {
        match self {
            Self::Single { target, weights } => {
                let mut score = scores[*target];
                for &place in places {
                    combine(&mut score, weights[place as usize]);
                }
                scores[*target] = score;
            }
            Self::Spans { starts, weights } => {
                for &place in places {
                    let place = place as usize;
                    for leaf in &weights[starts[place]..starts[place + 1]] {
                        combine(&mut scores[leaf.target], leaf.weight);
                    }
                }
            }
        }
    }
}
