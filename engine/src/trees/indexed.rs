//! The attributes of TreeEnsemble, `ai.onnx.ml` 5: splits and leaves named by their places, one
//! target a leaf, sets of members.

use tract_onnx::pb::NodeProto;

use super::ensemble::{Aggregation, Description, Kind, PostTransform};
use super::forest::NODES_MAX;
use super::graph::{attribute, ints, tensor_bytes};
use super::keyed::{TARGETS_MAX, feature};
use super::number::Number;
use super::tree::{Leaf, Node, Split, Test, Tree};

/// Reads the node, whose thresholds and weights are numbers of type `T`.
pub(super) fn read<T: Number>(node: &NodeProto) -> Result<Description<T>, String> {
    let int = |name: &str, default| attribute(node, name).map_or(default, |found| found.i);
    let targets = int("n_targets", 0);
    let targets = usize::try_from(targets)
        .ok()
        .filter(|count| (1..=TARGETS_MAX).contains(count))
        .ok_or_else(|| format!("an ensemble of {targets} targets is left to other engines"))?;
    let aggregation = match int("aggregate_function", 1) {
        0 => Aggregation::Average,
        1 => Aggregation::Sum,
        2 => Aggregation::Min,
        3 => Aggregation::Max,
        other => return Err(format!("aggregate_function {other} is unknown")),
    };
    let post_transform = match int("post_transform", 0) {
        0 => PostTransform::None,
        1 => PostTransform::Softmax,
        2 => PostTransform::Logistic,
        3 => PostTransform::SoftmaxZero,
        4 => PostTransform::Probit,
        other => return Err(format!("post_transform {other} is unknown")),
    };
    let is_renumbered = matches!(
        post_transform,
        PostTransform::Softmax | PostTransform::Logistic
    );
    if is_renumbered && targets > 1 {
        return Err("ONNX Runtime takes softmax and logistic for each other here".to_owned());
    }
    let attributes = Attributes::<T>::read(node, targets)?;
    let roots = ints(node, "tree_roots");
    let trees: Vec<_> = roots
        .iter()
        .map(|&root| attributes.tree(root))
        .collect::<Result<_, _>>()?;
    if trees.is_empty() {
        return Err("it has no trees".to_owned());
    }
    if trees.iter().map(|tree| tree.nodes.len()).sum::<usize>() > NODES_MAX {
        return Err("its trees have too many nodes".to_owned());
    }
    Ok(Description {
        trees,
        targets,
        kind: Kind::Ensemble,
        aggregation,
        post_transform,
        base_values: Vec::new(),
    })
}

struct Attributes<'a, T> {
    feature: &'a [i64],
    split: Vec<T>,
    mode: Vec<u8>,
    yes: &'a [i64],
    no: &'a [i64],
    yes_is_leaf: &'a [i64],
    no_is_leaf: &'a [i64],
    missing: &'a [i64],
    /// Of each split, in rising order; empty but for sets.
    members: Vec<Vec<T>>,
    leaves: Vec<Leaf<T>>,
}

/// A child: its place among the splits or among the leaves.
#[derive(Clone, Copy)]
struct Child {
    place: i64,
    is_leaf: bool,
}

impl<'a, T: Number> Attributes<'a, T> {
    fn read(node: &'a NodeProto, targets: usize) -> Result<Self, String> {
        let tensor = |name: &str| attribute(node, name).and_then(|found| found.t.as_ref());
        let numbers = |name: &str| match tensor(name) {
            None => Ok(Vec::new()),
            Some(tensor) => T::of_tensor(tensor)
                .ok_or_else(|| format!("attribute `{name}` is of another type than the input")),
        };
        let mode = tensor("nodes_modes").and_then(tensor_bytes);
        let mut attributes = Self {
            feature: ints(node, "nodes_featureids"),
            split: numbers("nodes_splits")?,
            mode: mode.ok_or("nodes_modes are no bytes")?,
            yes: ints(node, "nodes_truenodeids"),
            no: ints(node, "nodes_falsenodeids"),
            yes_is_leaf: ints(node, "nodes_trueleafs"),
            no_is_leaf: ints(node, "nodes_falseleafs"),
            missing: ints(node, "nodes_missing_value_tracks_true"),
            members: Vec::new(),
            leaves: leaves(
                ints(node, "leaf_targetids"),
                &numbers("leaf_weights")?,
                targets,
            )?,
        };
        let count = attributes.feature.len();
        let lengths = [
            attributes.split.len(),
            attributes.mode.len(),
            attributes.yes.len(),
            attributes.no.len(),
            attributes.yes_is_leaf.len(),
            attributes.no_is_leaf.len(),
        ];
        if count == 0 || count > NODES_MAX || lengths.iter().any(|&length| length != count) {
            return Err("the node attributes differ in length".to_owned());
        }
        if !attributes.missing.is_empty() && attributes.missing.len() != count {
            return Err("nodes_missing_value_tracks_true has another length".to_owned());
        }
        attributes.members = members(&numbers("membership_values")?, &attributes.mode)?;
        Ok(attributes)
    }

    fn tree(&self, root: i64) -> Result<Tree<T>, String> {
        let mut nodes = Vec::new();
        let mut order = vec![Child {
            place: root,
            is_leaf: false,
        }];
        while let Some(&child) = order.get(nodes.len()) {
            let place = usize::try_from(child.place).unwrap_or(usize::MAX);
            if child.is_leaf {
                let leaf = self.leaves.get(place);
                let leaf = leaf.ok_or_else(|| format!("there is no leaf {}", child.place))?;
                nodes.push(Node::Leaf(vec![*leaf]));
                continue;
            }
            // More splits in a tree than there are in all, and it runs in a circle.
            if place >= self.feature.len() || nodes.len() > 2 * self.feature.len() {
                return Err(format!(
                    "split {} is not there or is met twice",
                    child.place
                ));
            }
            let children = [
                (self.yes[place], self.yes_is_leaf[place]),
                (self.no[place], self.no_is_leaf[place]),
            ];
            // ONNX Runtime then takes a leaf by the number of the split.
            if nodes.is_empty() && children[0] == children[1] {
                return Err("a tree of one leaf is left to other engines".to_owned());
            }
            let yes = order.len();
            order.extend(children.map(|(place, is_leaf)| Child {
                place,
                is_leaf: is_leaf != 0,
            }));
            nodes.push(Node::Split(self.split(place, yes)?));
        }
        Ok(Tree { nodes })
    }

    fn split(&self, place: usize, yes: usize) -> Result<Split<T>, String> {
        let value = self.split[place];
        let mut split = Split {
            feature: feature(self.feature[place])?,
            test: Test::UpTo(value),
            missing_is_yes: self.missing.get(place).is_some_and(|&flag| flag == 1),
            yes,
            no: yes + 1,
        };
        match self.mode[place] {
            0 => {}
            1 => split.test = Test::Below(value),
            2 => split.test = Test::AtLeast(value),
            3 => split.test = Test::Above(value),
            4 => split.test = Test::In(vec![value]),
            5 => split.negate(value),
            6 => split.test = Test::In(self.members[place].clone()),
            other => return Err(format!("mode {other} is unknown")),
        }
        split.checked()
    }
}

fn leaves<T: Number>(ids: &[i64], weights: &[T], targets: usize) -> Result<Vec<Leaf<T>>, String> {
    if ids.is_empty() || ids.len() != weights.len() {
        return Err("the leaf attributes differ in length".to_owned());
    }
    let leaf = |(&id, &weight): (&i64, &T)| {
        let target = usize::try_from(id).ok().filter(|&target| target < targets);
        let target = target.ok_or_else(|| format!("a leaf scores target {id} of {targets}"))?;
        if !weight.is_finite() {
            return Err(format!("a leaf weighs {weight:?}"));
        }
        Ok(Leaf { target, weight })
    };
    ids.iter().zip(weights).map(leaf).collect()
}

/// The members of each split of a set, which stand one after the other, a missing value between.
fn members<T: Number>(values: &[T], modes: &[u8]) -> Result<Vec<Vec<T>>, String> {
    let mut sets = values.split(|value| value.is_missing());
    modes
        .iter()
        .map(|&mode| {
            if mode != 6 {
                return Ok(Vec::new());
            }
            let set = sets.next().filter(|set| !set.is_empty());
            let mut set = set.ok_or("a split has no members")?.to_vec();
            // ONNX Runtime keeps these as bits; of other sets it tests the integer part.
            let is_small = |member: &T| (0_u8..=30).any(|bit| T::of(bit.into()) == *member);
            if set.len() > 30 || !set.iter().all(is_small) {
                return Err(
                    "sets of other than the numbers 0 to 30 are read in two ways".to_owned(),
                );
            }
            set.sort_by(|a, b| a.partial_cmp(b).expect("missing values are split off"));
            set.dedup_by(|a, b| a == b);
            Ok(set)
        })
        .collect()
}
