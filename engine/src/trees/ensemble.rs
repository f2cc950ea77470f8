//! One ensemble: its forest, and what is made of the forest's sums.
//!
//! The reference is ONNX Runtime 1.32, its ways with two classes included; what it leaves to chance
//! is refused.

use super::forest::{Buffers, Combine, Forest};
use super::number::Number;
use super::transform::{PostTransform as Transform, SecondColumn, transform};
use super::tree::{Leaf, Node, Tree};

pub(super) use super::transform::PostTransform;

/// An ensemble as its file describes it.
pub(super) struct Description<T> {
    pub(super) trees: Vec<Tree<T>>,
    /// Targets or classes.
    pub(super) targets: usize,
    pub(super) kind: Kind,
    pub(super) aggregation: Aggregation,
    pub(super) post_transform: PostTransform,
    /// None, or one for each target; two classes may have one.
    pub(super) base_values: Vec<T>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Classifier {
        labels: Labels,
        /// Every leaf scores one and the same class.
        has_one_class_id: bool,
        /// No weight is negative.
        is_positive: bool,
    },
    Regressor,
    /// The operator that is both, from operator set 5 on.
    Ensemble,
}

#[derive(Clone, Debug)]
pub(super) enum Labels {
    Numbers(Vec<i64>),
    Names(Vec<Vec<u8>>),
}

impl Labels {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Numbers(labels) => labels.len(),
            Self::Names(labels) => labels.len(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Aggregation {
    Sum,
    Average,
    Min,
    Max,
}

/// One ensemble, ready to run.
#[derive(Debug)]
pub(super) struct Ensemble<T> {
    forest: Forest<T>,
    trees: usize,
    /// Columns of the operator's scores.
    pub(super) targets: usize,
    /// Columns of the forest's scores: the targets, then one for each [`Presence::Counted`].
    width: usize,
    /// Of each class or target; empty where it does not matter.
    presence: Vec<Presence>,
    pub(super) kind: Kind,
    aggregation: Aggregation,
    post_transform: PostTransform,
    base_values: Vec<T>,
}

/// Whether the leaves that a row meets score a class or target at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Always,
    Never,
    /// The scores have a column that is positive where they do.
    Counted(usize),
}

impl<T: Number> Ensemble<T> {
    /// # Errors
    /// In a sentence, where ONNX Runtime's answer is not defined.
    pub(super) fn new(mut description: Description<T>) -> Result<Self, String> {
        let targets = description.targets;
        let mut width = targets;
        let mut presence = Vec::new();
        let how = match description.aggregation {
            Aggregation::Sum | Aggregation::Average => Combine::Sum,
            Aggregation::Min | Aggregation::Max => Combine::Other,
        };
        let is_classifier = matches!(description.kind, Kind::Classifier { .. });
        if is_classifier
            || (targets > 1 && how == Combine::Sum && !description.base_values.is_empty())
        {
            for target in 0..targets {
                presence.push(count(&mut description.trees, target, &mut width));
            }
        }
        if let Kind::Classifier {
            has_one_class_id, ..
        } = description.kind
        {
            let is_probit = description.post_transform == Transform::Probit;
            let is_half_based = description.base_values.len() == 1 && !has_one_class_id;
            if targets == 2
                && presence[1] != Presence::Always
                && description.base_values.len() < 2
                && (is_probit || is_half_based)
            {
                return Err("runtimes leave one of the two columns of scores unset".to_owned());
            }
        }
        Ok(Self {
            forest: Forest::new(&description.trees, width, how),
            trees: description.trees.len(),
            targets,
            width,
            presence,
            kind: description.kind,
            aggregation: description.aggregation,
            post_transform: description.post_transform,
            base_values: description.base_values,
        })
    }

    /// Columns that a row must have at least.
    pub(super) fn columns_min(&self) -> usize {
        self.forest.columns_min()
    }

    /// Why the labels are not served.
    pub(super) fn label_refusal(&self) -> Option<String> {
        let Kind::Classifier {
            labels,
            has_one_class_id,
            ..
        } = &self.kind
        else {
            return Some("it has no labels".to_owned());
        };
        // Where both classes are scored, ONNX Runtime answers 0 or 1, whatever the labels are.
        match labels {
            Labels::Numbers(labels) if labels.len() == 2 && !has_one_class_id => (labels[..]
                != [0, 1])
            .then(|| "runtimes answer with a label that is not among the labels".to_owned()),
            _ => None,
        }
    }

    /// The scores after aggregation, base values and post-transform, `targets` a row, and the
    /// class of each row where `classes` is asked for. `rows` holds whole rows of `columns`, at
    /// least `columns_min`.
    pub(super) fn run(
        &self,
        (rows, columns): (&[T], usize),
        buffers: &mut EnsembleBuffers<T>,
        scores: &mut Vec<T>,
        mut classes: Option<&mut Vec<usize>>,
    ) {
        let EnsembleBuffers { forest, sums } = buffers;
        let count = rows.len() / columns.max(1);
        let start = match self.aggregation {
            Aggregation::Sum | Aggregation::Average => T::default(),
            Aggregation::Min => T::INFINITY,
            Aggregation::Max => -T::INFINITY,
        };
        sums.clear();
        sums.resize(count * self.width, start);
        match self.aggregation {
            Aggregation::Sum | Aggregation::Average => {
                self.forest
                    .score((rows, columns), sums, forest, |sum, x| *sum += x);
            }
            Aggregation::Min => {
                let least = |sum: &mut T, x| *sum = if x < *sum { x } else { *sum };
                self.forest.score((rows, columns), sums, forest, least);
            }
            Aggregation::Max => {
                let most = |sum: &mut T, x| *sum = if x > *sum { x } else { *sum };
                self.forest.score((rows, columns), sums, forest, most);
            }
        }
        scores.clear();
        for sums in sums.chunks_exact(self.width) {
            let start = scores.len();
            scores.extend_from_slice(&sums[..self.targets]);
            let row = &mut scores[start..];
            match self.kind {
                Kind::Regressor | Kind::Ensemble => self.finish_targets(row, sums),
                Kind::Classifier { .. } => {
                    let class = if self.targets == 2 {
                        self.finish_two_classes(row, sums)
                    } else {
                        self.finish_classes(row, sums)
                    };
                    if let Some(classes) = &mut classes {
                        classes.push(class);
                    }
                }
            }
        }
    }

    fn finish_targets(&self, row: &mut [T], sums: &[T]) {
        for (target, score) in row.iter_mut().enumerate() {
            let has = match self.aggregation {
                Aggregation::Sum | Aggregation::Average => {
                    self.presence.is_empty() || self.has(target, sums)
                }
                // Where no leaf scored, the infinity of the start is left.
                Aggregation::Min | Aggregation::Max => score.is_finite(),
            };
            if self.aggregation == Aggregation::Average {
                *score = *score / T::of_count(self.trees);
            }
            let base = self.base_values.get(target).copied().unwrap_or_default();
            // ONNX Runtime adds no base value to one of several targets that no leaf scored.
            *score = if has { *score + base } else { T::default() };
        }
        // Of a single target, ONNX Runtime transforms the probit only.
        if row.len() > 1 || self.post_transform == Transform::Probit {
            transform(self.post_transform, row);
        }
    }

    fn has(&self, class: usize, sums: &[T]) -> bool {
        match self.presence[class] {
            Presence::Always => true,
            Presence::Never => false,
            Presence::Counted(column) => sums[column] > T::default(),
        }
    }

    fn finish_classes(&self, row: &mut [T], sums: &[T]) -> usize {
        for (score, &base) in row.iter_mut().zip(&self.base_values) {
            *score += base;
        }
        let is_based = !self.base_values.is_empty();
        let mut best = None;
        for (class, &score) in row.iter().enumerate() {
            let is_better = best.is_none_or(|best: usize| score > row[best]);
            if (is_based || self.has(class, sums)) && is_better {
                best = Some(class);
            }
        }
        transform(self.post_transform, row);
        best.unwrap_or(0)
    }

    /// Two classes: what ONNX Runtime makes of them depends on which are scored, how many base
    /// values there are, and whether a weight is negative.
    fn finish_two_classes(&self, row: &mut [T], sums: &[T]) -> usize {
        let Kind::Classifier {
            has_one_class_id,
            is_positive,
            ..
        } = self.kind
        else {
            return 0;
        };
        let (has_first, has_second) = (self.has(0, sums), self.has(1, sums));
        let mut is_single = false;
        match (self.base_values.as_slice(), has_second) {
            (&[_, base], true) => {
                row[1] = base + row[0];
                row[0] = -row[1];
            }
            (&[first, second], false) => {
                row[0] += first;
                row[1] += second;
            }
            (&[base], has_second) => {
                row[0] += base;
                is_single = !has_second;
            }
            (_, has_second) => is_single = !has_second,
        }
        let positive = match (has_second, has_first) {
            (true, _) => row[1],
            (false, true) => row[0],
            (false, false) => T::default(),
        };
        let bound = if has_one_class_id && is_positive {
            T::of(0.5)
        } else {
            T::default()
        };
        let class = usize::from(positive > bound);
        if is_single {
            let second = if has_one_class_id && is_positive {
                SecondColumn::Complement
            } else {
                SecondColumn::Opposite
            };
            second.write(self.post_transform, row);
        } else {
            for (score, has) in row.iter_mut().zip([has_first, has_second]) {
                if !has {
                    *score = T::default();
                }
            }
            transform(self.post_transform, row);
        }
        class
    }
}

/// Kept between runs, so that a run does not allocate.
#[derive(Debug, Default)]
pub(super) struct EnsembleBuffers<T> {
    forest: Buffers,
    sums: Vec<T>,
}

/// How to know whether a row's leaves score target `class`; where only rows can tell, each leaf that does
/// gets a weight of 1 in a column of its own.
fn count<T: Number>(trees: &mut [Tree<T>], class: usize, width: &mut usize) -> Presence {
    let scores = |leaf: &[Leaf<T>]| leaf.iter().any(|leaf| leaf.target == class);
    let leaves = |tree: &Tree<T>| -> Vec<bool> {
        let leaves = tree.nodes.iter().filter_map(|node| match node {
            Node::Leaf(leaf) => Some(scores(leaf)),
            Node::Split(_) => None,
        });
        leaves.collect()
    };
    if trees
        .iter()
        .any(|tree| leaves(tree).iter().all(|&scores| scores))
    {
        return Presence::Always;
    }
    if !trees.iter().any(|tree| leaves(tree).contains(&true)) {
        return Presence::Never;
    }
    let column = *width;
    *width += 1;
    for node in trees.iter_mut().flat_map(|tree| &mut tree.nodes) {
        if let Node::Leaf(leaf) = node
            && scores(leaf)
        {
            leaf.push(Leaf {
                target: column,
                weight: T::ONE,
            });
        }
    }
    Presence::Counted(column)
}
