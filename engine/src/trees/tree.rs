//! One tree as its file describes it, and the same tree laid out as records.
//!
//! A record is a split in the one form that all modes come down to: a key up to a threshold goes
//! to the first of two children that lie side by side. `x < t` is a key up to the one below t's;
//! `x > t` and `x >= t` are the other side of `x <= t` and `x < t`; a set is a search over its
//! members, in which a child that is reached in several ways is a copied record, not a copied tree.
//! Missing values are told apart first, so that all are exact.

use std::collections::VecDeque;

use super::number::Number;

/// A tree whose root is its first node and each of whose nodes is reached once.
#[derive(Clone, Debug)]
pub(super) struct Tree<T> {
    pub(super) nodes: Vec<Node<T>>,
}

impl<T> Tree<T> {
    pub(super) fn splits(&self) -> impl Iterator<Item = &Split<T>> {
        self.nodes.iter().filter_map(|node| match node {
            Node::Leaf(_) => None,
            Node::Split(split) => Some(split),
        })
    }
}

#[derive(Clone, Debug)]
pub(super) enum Node<T> {
    Leaf(Vec<Leaf<T>>),
    Split(Split<T>),
}

/// What a leaf adds to one column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaf<T> {
    pub(super) target: usize,
    pub(super) weight: T,
}

#[derive(Clone, Debug)]
pub(super) struct Split<T> {
    pub(super) feature: usize,
    pub(super) test: Test<T>,
    pub(super) missing_is_yes: bool,
    pub(super) yes: usize,
    pub(super) no: usize,
}

#[derive(Clone, Debug)]
pub(super) enum Test<T> {
    UpTo(T),
    Below(T),
    Above(T),
    AtLeast(T),
    /// One of these, in rising order.
    In(Vec<T>),
}

impl<T: Number> Split<T> {
    /// Makes it `x != value`, as the one side of `x == value`. A missing value differs from every
    /// value, whatever its track.
    pub(super) fn negate(&mut self, value: T) {
        self.test = Test::In(vec![value]);
        self.missing_is_yes = false;
        std::mem::swap(&mut self.yes, &mut self.no);
    }

    pub(super) fn checked(self) -> Result<Self, String> {
        if self.test.thresholds().iter().any(|t| t.is_missing()) {
            return Err("a threshold is NaN".to_owned());
        }
        Ok(self)
    }
}

impl<T: Number> Test<T> {
    pub(super) fn thresholds(&self) -> &[T] {
        match self {
            Self::UpTo(t) | Self::Below(t) | Self::Above(t) | Self::AtLeast(t) => {
                std::slice::from_ref(t)
            }
            Self::In(members) => members,
        }
    }

    /// Records between this split and its farthest child.
    fn height(&self) -> u32 {
        match self {
            Self::In(members) => (2 * members.len() + 1).next_power_of_two().ilog2(),
            _ => 1,
        }
    }
}

/// A key up to `threshold` goes to the child at `yes`, a larger one to the child that follows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// A leaf's is the largest.
    pub(super) threshold: i32,
    /// Where the key stands in the row: twice the column, plus one where missing goes to `yes`.
    pub(super) slot: u32,
    /// A place in the tree; a leaf's is its own.
    pub(super) yes: u32,
}

/// A tree as records, the root first and each level after the one above it.
#[derive(Debug)]
pub(super) struct Laid<T> {
    pub(super) records: Vec<Record>,
    /// What each record adds, if it is a leaf.
    pub(super) leaves: Vec<Vec<Leaf<T>>>,
    /// Steps after which a walk has ended, wherever it went.
    pub(super) height: u32,
}

/// The one column that leaves score, each at most once; `None` where there are several.
pub(super) fn only_target<T>(laid: &[Laid<T>]) -> Option<usize> {
    let mut only = None;
    for leaf in laid.iter().flat_map(|tree| &tree.leaves) {
        match &leaf[..] {
            [] => {}
            [leaf] if *only.get_or_insert(leaf.target) == leaf.target => {}
            _ => return None,
        }
    }
    Some(only.unwrap_or(0))
}

/// What is still to lay out.
struct Open {
    /// Nodes and the places of their records.
    nodes: VecDeque<(usize, u32)>,
    /// Places that are copies of others.
    copies: Vec<(u32, u32)>,
}

impl<T: Number> Laid<T> {
    /// A tree of one leaf.
    pub(super) fn leaf(payload: Vec<Leaf<T>>) -> Self {
        let mut laid = Self {
            records: Vec::new(),
            leaves: Vec::new(),
            height: 0,
        };
        laid.add();
        laid.leaves[0] = payload;
        laid
    }

    /// Lays out `tree`; `thresholds` of each column are what keys are made with.
    pub(super) fn new(tree: &Tree<T>, thresholds: &[Vec<T>]) -> Self {
        let mut laid = Self::leaf(Vec::new());
        let mut order = Vec::with_capacity(tree.nodes.len());
        let mut open = Open {
            nodes: VecDeque::from([(0, 0)]),
            copies: Vec::new(),
        };
        while let Some((index, place)) = open.nodes.pop_front() {
            order.push(index);
            match &tree.nodes[index] {
                Node::Leaf(payload) => laid.leaves[place as usize].clone_from(payload),
                Node::Split(split) => {
                    let ranks = thresholds.get(split.feature).map_or(&[][..], Vec::as_slice);
                    laid.split(place, split, ranks, &mut open);
                }
            }
        }
        for (copy, original) in open.copies {
            let (copy, original) = (copy as usize, original as usize);
            if laid.records[original].yes as usize == original {
                laid.leaves[copy] = laid.leaves[original].clone();
            } else {
                laid.records[copy] = laid.records[original];
            }
        }
        laid.height = height(tree, &order);
        laid
    }

    fn split(&mut self, place: u32, split: &Split<T>, ranks: &[T], open: &mut Open) {
        let (bound, is_swapped) = match &split.test {
            Test::UpTo(t) => (t.key(ranks), false),
            Test::Below(t) => (t.key(ranks) - 1, false),
            Test::Above(t) => (t.key(ranks), true),
            Test::AtLeast(t) => (t.key(ranks) - 1, true),
            Test::In(members) => {
                let keys = members.iter().map(|member| member.key(ranks));
                let bounds: Vec<_> = keys.flat_map(|key| [key - 1, key]).collect();
                self.search(place, split, &bounds, open);
                return;
            }
        };
        let yes = self.branch(
            place,
            split.feature,
            bound,
            split.missing_is_yes != is_swapped,
        );
        let (first, second) = if is_swapped {
            (split.no, split.yes)
        } else {
            (split.yes, split.no)
        };
        open.nodes.push_back((first, yes));
        open.nodes.push_back((second, yes + 1));
    }

    /// A search for the segment between two `bounds` that holds the key: odd ones are members.
    fn search(&mut self, place: u32, split: &Split<T>, bounds: &[i32], open: &mut Open) {
        let missing = usize::from(split.missing_is_yes && !bounds.is_empty());
        let mut first = [None; 2];
        let mut ranges = vec![(0, bounds.len(), place)];
        while let Some((low, high, place)) = ranges.pop() {
            if low < high {
                let middle = low + (high - low) / 2;
                let yes = self.branch(place, split.feature, bounds[middle], missing <= middle);
                ranges.push((middle + 1, high, yes + 1));
                ranges.push((low, middle, yes));
                continue;
            }
            let is_member = low % 2;
            match first[is_member] {
                Some(original) => open.copies.push((place, original)),
                None => {
                    first[is_member] = Some(place);
                    open.nodes
                        .push_back(([split.no, split.yes][is_member], place));
                }
            }
        }
    }

    /// Makes `place` a split; the place of the first of its two new children.
    fn branch(&mut self, place: u32, feature: usize, bound: i32, missing_is_yes: bool) -> u32 {
        let yes = self.add();
        self.add();
        // The slot of a missing value that goes to yes holds every key one higher.
        let flag = i32::from(missing_is_yes);
        self.records[place as usize] = Record {
            threshold: bound + flag,
            slot: 2 * u32::try_from(feature).expect("columns fit 30 bits") + flag.cast_unsigned(),
            yes,
        };
        yes
    }

    /// A new record, a leaf that adds nothing until it is set.
    fn add(&mut self) -> u32 {
        let place = u32::try_from(self.records.len()).expect("NODES_MAX keeps places in 32 bits");
        self.records.push(Record {
            threshold: i32::MAX,
            slot: 0,
            yes: place,
        });
        self.leaves.push(Vec::new());
        place
    }
}

/// The longest way down; `order` has every node after its parent.
fn height<T: Number>(tree: &Tree<T>, order: &[usize]) -> u32 {
    let mut heights = vec![0; tree.nodes.len()];
    for &index in order.iter().rev() {
        if let Node::Split(split) = &tree.nodes[index] {
            heights[index] = split.test.height() + heights[split.yes].max(heights[split.no]);
        }
    }
    heights[0]
}
