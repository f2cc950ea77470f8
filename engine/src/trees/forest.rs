//! A forest as one flat array of nodes, walked several trees at a time.
//!
//! A node is 12 bytes. Its two children lie side by side, so a step is two loads, a compare and an
//! add, without a branch. A leaf leads to itself, so trees of different depth walk together until
//! none moves: independent chains of loads hide each other's latency.
//!
//! Numbers are compared as integers of the same order ([`key`]). A row is held twice, the second
//! time with every key one higher, so that the missing value wraps from the largest to the
//! smallest: a split whose missing values go to yes reads the second half, and no step asks what
//! is missing.

/// A forest whose scores have `width` columns.
#[derive(Debug)]
pub(super) struct Forest {
    nodes: Vec<Node>,
    /// What a leaf adds, by its place: a weight for column 0, or the start of its span.
    payload: Payload,
    /// Roots of the trees that walk together; the last group is filled with leaves of no weight.
    groups: Vec<[u32; LANES]>,
    columns_min: usize,
    width: usize,
}

/// Trees that walk together; with 4 a walk waits for its loads and takes 1.4 times as long.
const LANES: usize = 8;

#[derive(Clone, Copy, Debug)]
struct Node {
    /// A key up to this goes to `yes`; a leaf's is the largest.
    threshold: i32,
    /// Where the key stands in the row: twice the column, plus one where missing goes to `yes`.
    slot: u32,
    /// The place of the child for yes; the one for no follows it. A leaf's is its own.
    yes: u32,
}

/// An integer with the order of the numbers: both zeros are 0, a missing value is the largest.
fn key(x: f32) -> i32 {
    if x.is_nan() {
        return i32::MAX;
    }
    // The sum turns minus zero into zero; the shift turns a negative number's bits around.
    let bits = (x + 0.0).to_bits().cast_signed();
    bits ^ (bits >> 31 & i32::MAX)
}

#[derive(Debug)]
enum Payload {
    /// Every leaf adds one weight to the only column.
    Single(Vec<f32>),
    /// Leaf at place p adds `weights[starts[p]..starts[p + 1]]`.
    Spans {
        starts: Vec<usize>,
        weights: Vec<Leaf>,
    },
}

/// What a leaf adds to one column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf {
    pub(super) target: usize,
    pub(super) weight: f32,
}

/// A split in the one form that nodes have: a key up to `threshold`, or missing and
/// `missing_is_yes`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Branch {
    threshold: i32,
    feature: u32,
    missing_is_yes: bool,
    /// True when yes stands for the file's no.
    pub(super) is_swapped: bool,
}

impl Branch {
    /// `x < t` is a key up to the one below t's; `x > t` and `x >= t` are the other side of
    /// `x <= t` and `x < t`. Missing values are told apart first, so that all are exact.
    pub(super) fn new(
        mode: &[u8],
        threshold: f32,
        feature: u32,
        missing_is_yes: bool,
    ) -> Result<Self, String> {
        if threshold.is_nan() {
            return Err("a threshold is NaN".to_owned());
        }
        let threshold = key(threshold);
        let (threshold, is_swapped) = match mode {
            b"BRANCH_LEQ" => (threshold, false),
            b"BRANCH_LT" => (threshold - 1, false),
            b"BRANCH_GT" => (threshold, true),
            b"BRANCH_GTE" => (threshold - 1, true),
            other => {
                let name = String::from_utf8_lossy(other);
                return Err(format!("mode `{name}` is left to other engines"));
            }
        };
        Ok(Self {
            threshold,
            feature,
            missing_is_yes: missing_is_yes != is_swapped,
            is_swapped,
        })
    }
}

/// Rows that walk one group of trees before the next, so that both stay in the first-level cache.
const ROWS_PER_BLOCK: usize = 64;

impl Forest {
    /// Columns that a row must have at least.
    pub(super) fn columns_min(&self) -> usize {
        self.columns_min
    }

    /// Adds the leaves of every tree, in the order of the trees, to the scores of each row.
    /// `rows` holds whole rows of `columns`, which is at least `columns_min`; `keys` is a buffer.
    pub(super) fn add_scores(
        &self,
        rows: &[f32],
        columns: usize,
        scores: &mut [f32],
        keys: &mut Vec<i32>,
    ) {
        let row_blocks = rows.chunks(ROWS_PER_BLOCK * columns);
        let score_blocks = scores.chunks_mut(ROWS_PER_BLOCK * self.width);
        for (rows, scores) in row_blocks.zip(score_blocks) {
            keys.resize(2 * rows.len(), 0);
            for (slots, &x) in keys.as_chunks_mut::<2>().0.iter_mut().zip(rows) {
                let key = key(x);
                *slots = [key, key.wrapping_add(1)];
            }
            for group in &self.groups {
                let keys = keys.chunks_exact(2 * columns);
                for (keys, scores) in keys.zip(scores.chunks_exact_mut(self.width)) {
                    let leaves = self.walk(group, keys);
                    self.payload.add(leaves, scores);
                }
            }
        }
    }

    #[inline]
    fn walk(&self, roots: &[u32; LANES], keys: &[i32]) -> [u32; LANES] {
        let mut at = *roots;
        loop {
            // Two steps for one look at whether a tree still moves. Written as loops over the
            // places: as maps over arrays the places spill, and a walk takes a third longer.
            for place in &mut at {
                *place = self.step(*place, keys);
            }
            let mut moved = 0;
            for place in &mut at {
                let next = self.step(*place, keys);
                moved |= next ^ *place;
                *place = next;
            }
            if moved == 0 {
                return at;
            }
        }
    }

    #[inline]
    fn step(&self, place: u32, keys: &[i32]) -> u32 {
        let node = &self.nodes[place as usize];
        let is_no = keys[node.slot as usize] > node.threshold;
        node.yes.wrapping_add(u32::from(is_no))
    }
}

impl Payload {
    #[inline]
    fn add(&self, leaves: [u32; LANES], scores: &mut [f32]) {
        match self {
            Self::Single(weights) => {
                if let [score] = scores {
                    for leaf in leaves {
                        *score += weights[leaf as usize];
                    }
                }
            }
            Self::Spans { starts, weights } => {
                for leaf in leaves {
                    let span = starts[leaf as usize]..starts[leaf as usize + 1];
                    for leaf in &weights[span] {
                        scores[leaf.target] += leaf.weight;
                    }
                }
            }
        }
    }
}

/// Nodes of one forest, so that every place, with the filling of the last group, fits 32 bits.
pub(super) const NODES_MAX: usize = 1 << 30;

/// A forest while its trees are laid out; the caller keeps to [`NODES_MAX`].
#[derive(Debug)]
pub(super) struct ForestBuilder {
    nodes: Vec<Node>,
    leaves: Vec<Vec<Leaf>>,
    roots: Vec<u32>,
    columns_min: usize,
    width: usize,
}

impl ForestBuilder {
    pub(super) fn new(width: usize) -> Self {
        Self {
            nodes: Vec::new(),
            leaves: Vec::new(),
            roots: Vec::new(),
            // A leaf compares column 0.
            columns_min: 1,
            width,
        }
    }

    /// The place of a new tree's root.
    pub(super) fn add_tree(&mut self) -> u32 {
        let place = self.add_node();
        self.roots.push(place);
        place
    }

    /// The place of the first of two new children.
    pub(super) fn set_branch(&mut self, place: u32, branch: &Branch) -> u32 {
        let yes = self.add_node();
        self.add_node();
        self.columns_min = self.columns_min.max(branch.feature as usize + 1);
        let flag = i32::from(branch.missing_is_yes);
        self.nodes[place as usize] = Node {
            threshold: branch.threshold + flag,
            slot: 2 * branch.feature + flag.cast_unsigned(),
            yes,
        };
        yes
    }

    pub(super) fn set_leaf(&mut self, place: u32, payload: &[Leaf]) {
        self.leaves[place as usize] = payload.to_vec();
    }

    pub(super) fn finish(mut self) -> Forest {
        while !self.roots.len().is_multiple_of(LANES) {
            self.add_tree();
        }
        let groups = self.roots.as_chunks::<LANES>().0.to_vec();
        let is_single = self.width == 1 && self.leaves.iter().all(|leaf| leaf.len() <= 1);
        let payload = if is_single {
            let weight = |leaf: &Vec<Leaf>| leaf.first().map_or(0.0, |leaf| leaf.weight);
            Payload::Single(self.leaves.iter().map(weight).collect())
        } else {
            let mut starts = vec![0];
            let mut weights = Vec::new();
            for leaf in &self.leaves {
                weights.extend_from_slice(leaf);
                starts.push(weights.len());
            }
            Payload::Spans { starts, weights }
        };
        Forest {
            nodes: self.nodes,
            payload,
            groups,
            columns_min: self.columns_min,
            width: self.width,
        }
    }

    /// A new node, a leaf that adds nothing until it is set.
    fn add_node(&mut self) -> u32 {
        let place = u32::try_from(self.nodes.len()).expect("NODES_MAX keeps places in 32 bits");
        self.nodes.push(Node {
            threshold: i32::MAX,
            slot: 0,
            yes: place,
        });
        self.leaves.push(Vec::new());
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_order_of_the_numbers() {
        let numbers = [
            f32::NEG_INFINITY,
            f32::MIN,
            -1.5,
            -1.0,
            -f32::MIN_POSITIVE,
            -1e-45,
            0.0,
            1e-45,
            f32::MIN_POSITIVE,
            1.0,
            1.5,
            f32::MAX,
            f32::INFINITY,
        ];
        assert!(numbers.is_sorted_by(|a, b| key(*a) < key(*b)));
        assert_eq!((key(-0.0), key(0.0)), (0, 0));
        assert!(key(f32::INFINITY) < i32::MAX - 1 && key(f32::NEG_INFINITY) > i32::MIN + 1);
        assert_eq!((key(f32::NAN), key(-f32::NAN)), (i32::MAX, i32::MAX));
    }
}
