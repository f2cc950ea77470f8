//! The attributes of TreeEnsembleClassifier and TreeEnsembleRegressor, read into a forest.
//!
//! Only the forms that ONNX Runtime, tract and the standard's text read alike; see `columns` and
//! `check_regressor` for what is refused and why.

use std::collections::HashMap;

use tract_onnx::pb::NodeProto;

use super::forest::{Branch, Forest, ForestBuilder, Leaf, NODES_MAX};
use super::graph::attribute;

/// One ensemble, ready to run.
#[derive(Debug)]
pub(super) struct Ensemble {
    pub(super) forest: Forest,
    /// Columns of the operator's scores.
    pub(super) declared_width: usize,
    /// The first of them that is kept; those before it differ between runtimes.
    pub(super) first_column: usize,
    pub(super) base_values: Vec<f32>,
    pub(super) post_transform: PostTransform,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PostTransform {
    None,
    Logistic,
    Softmax,
}

impl Ensemble {
    pub(super) fn read(node: &NodeProto) -> Result<Self, String> {
        let kind = match node.op_type.as_str() {
            "TreeEnsembleClassifier" => Kind::Classifier,
            "TreeEnsembleRegressor" => Kind::Regressor,
            other => return Err(format!("operator `{other}` is left to other engines")),
        };
        for found in &node.attribute {
            if !kind.knows(&found.name) {
                return Err(format!(
                    "attribute `{}` is left to other engines",
                    found.name
                ));
            }
        }
        let post_transform = match text(node, "post_transform").unwrap_or(b"NONE") {
            b"NONE" => PostTransform::None,
            b"LOGISTIC" => PostTransform::Logistic,
            b"SOFTMAX" => PostTransform::Softmax,
            other => {
                let name = String::from_utf8_lossy(other);
                return Err(format!("post_transform `{name}` is left to other engines"));
            }
        };
        let leaves = Weights::read(node, kind)?;
        let trees = Nodes::read(node)?;
        let base_values = floats(node, "base_values").to_vec();
        let (declared_width, first_column) = match kind {
            Kind::Classifier => columns(node, &leaves, &trees)?,
            Kind::Regressor => (check_regressor(node, &base_values)?, 0),
        };
        if kind == Kind::Classifier && !base_values.is_empty() {
            return Err("runtimes disagree on the base values of a classifier".to_owned());
        }
        if post_transform == PostTransform::Softmax && first_column > 0 {
            return Err("runtimes disagree on the softmax of one score".to_owned());
        }
        let width = declared_width - first_column;
        let forest = build(&trees, &leaves, first_column, width)?;
        Ok(Self {
            forest,
            declared_width,
            first_column,
            base_values,
            post_transform,
        })
    }

    /// Columns of the scores that are kept.
    pub(super) fn width(&self) -> usize {
        self.declared_width - self.first_column
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Classifier,
    Regressor,
}

impl Kind {
    fn prefix(self) -> &'static str {
        match self {
            Self::Classifier => "class",
            Self::Regressor => "target",
        }
    }

    fn knows(self, attribute: &str) -> bool {
        match attribute {
            "nodes_treeids"
            | "nodes_nodeids"
            | "nodes_featureids"
            | "nodes_values"
            | "nodes_modes"
            | "nodes_truenodeids"
            | "nodes_falsenodeids"
            | "nodes_hitrates"
            | "nodes_missing_value_tracks_true"
            | "post_transform"
            | "base_values" => true,
            "class_ids"
            | "class_nodeids"
            | "class_treeids"
            | "class_weights"
            | "classlabels_int64s"
            | "classlabels_strings" => self == Self::Classifier,
            "target_ids" | "target_nodeids" | "target_treeids" | "target_weights" | "n_targets"
            | "aggregate_function" => self == Self::Regressor,
            _ => false,
        }
    }
}

/// The score columns of a classifier, and the first that is kept.
///
/// With two classes and one class id, what stands in the other class's column (`1 - s`, `-s`, 0)
/// depends on the runtime, so only column 1 is kept and only the id 1 is read. With two ids, ONNX
/// Runtime drops to that form for every row that meets no leaf of class 1, so a tree must always
/// give it one.
fn columns(
    node: &NodeProto,
    leaves: &Weights<'_>,
    trees: &Nodes<'_>,
) -> Result<(usize, usize), String> {
    let labels = ints(node, "classlabels_int64s").len()
        + attribute(node, "classlabels_strings").map_or(0, |labels| labels.strings.len());
    if labels < 2 {
        return Err(format!(
            "a classifier of {labels} classes is left to other engines"
        ));
    }
    if labels > 2 {
        return Ok((labels, 0));
    }
    if leaves.ids.iter().all(|&id| id == 1) {
        return Ok((2, 1));
    }
    if leaves.always_gives(1, trees) {
        return Ok((2, 0));
    }
    Err("two classes scored by one class id other than 1 are left to other engines".to_owned())
}

/// The targets of a regressor.
fn check_regressor(node: &NodeProto, base_values: &[f32]) -> Result<usize, String> {
    let targets = attribute(node, "n_targets").map_or(0, |targets| targets.i);
    let targets = usize::try_from(targets)
        .ok()
        .filter(|targets| (1..=4_096).contains(targets))
        .ok_or_else(|| format!("{targets} targets"))?;
    match text(node, "aggregate_function").unwrap_or(b"SUM") {
        b"SUM" => {}
        other => {
            let name = String::from_utf8_lossy(other);
            return Err(format!(
                "aggregate_function `{name}` is left to other engines"
            ));
        }
    }
    if base_values.is_empty() || base_values.len() == targets {
        return Ok(targets);
    }
    Err(format!(
        "{} base values for {targets} targets",
        base_values.len()
    ))
}

/// The node attributes, of one length.
struct Nodes<'a> {
    tree: &'a [i64],
    id: &'a [i64],
    feature: &'a [i64],
    value: &'a [f32],
    mode: &'a [Vec<u8>],
    yes: &'a [i64],
    no: &'a [i64],
    missing: &'a [i64],
}

impl<'a> Nodes<'a> {
    fn read(node: &'a NodeProto) -> Result<Self, String> {
        let nodes = Self {
            tree: ints(node, "nodes_treeids"),
            id: ints(node, "nodes_nodeids"),
            feature: ints(node, "nodes_featureids"),
            value: floats(node, "nodes_values"),
            mode: attribute(node, "nodes_modes").map_or(&[], |modes| modes.strings.as_slice()),
            yes: ints(node, "nodes_truenodeids"),
            no: ints(node, "nodes_falsenodeids"),
            missing: ints(node, "nodes_missing_value_tracks_true"),
        };
        let count = nodes.tree.len();
        let lengths = [
            nodes.id.len(),
            nodes.feature.len(),
            nodes.value.len(),
            nodes.mode.len(),
            nodes.yes.len(),
            nodes.no.len(),
        ];
        if count > NODES_MAX {
            return Err(format!("{count} tree nodes are left to other engines"));
        }
        if count == 0 || lengths.iter().any(|&length| length != count) {
            return Err("the node attributes differ in length".to_owned());
        }
        if !nodes.missing.is_empty() && nodes.missing.len() != count {
            return Err("nodes_missing_value_tracks_true has another length".to_owned());
        }
        Ok(nodes)
    }

    fn key(&self, index: usize) -> (i64, i64) {
        (self.tree[index], self.id[index])
    }

    fn is_leaf(&self, index: usize) -> bool {
        self.mode[index] == b"LEAF"
    }

    fn branch(&self, index: usize) -> Result<Branch, String> {
        let feature = u32::try_from(self.feature[index])
            .ok()
            .filter(|&feature| feature < 1 << 30)
            .ok_or_else(|| format!("feature {} of node {index}", self.feature[index]))?;
        let missing_is_yes = self.missing.get(index).is_some_and(|&flag| flag != 0);
        Branch::new(
            &self.mode[index],
            self.value[index],
            feature,
            missing_is_yes,
        )
    }
}

/// The weights of the leaves.
struct Weights<'a> {
    ids: &'a [i64],
    weights: &'a [f32],
    by_leaf: HashMap<(i64, i64), Vec<usize>>,
}

impl<'a> Weights<'a> {
    fn read(node: &'a NodeProto, kind: Kind) -> Result<Self, String> {
        let prefix = kind.prefix();
        let ids = ints(node, &format!("{prefix}_ids"));
        let trees = ints(node, &format!("{prefix}_treeids"));
        let nodes = ints(node, &format!("{prefix}_nodeids"));
        let weights = floats(node, &format!("{prefix}_weights"));
        if ids.is_empty() || [trees.len(), nodes.len(), weights.len()] != [ids.len(); 3] {
            return Err(format!("the {prefix} attributes differ in length"));
        }
        if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
            return Err(format!("a leaf weighs {weight}"));
        }
        let mut by_leaf: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, key) in trees.iter().copied().zip(nodes.iter().copied()).enumerate() {
            by_leaf.entry(key).or_default().push(index);
        }
        Ok(Self {
            ids,
            weights,
            by_leaf,
        })
    }

    fn of(&self, key: (i64, i64)) -> &[usize] {
        self.by_leaf.get(&key).map_or(&[], Vec::as_slice)
    }

    /// True when some tree has a weight for `class` in every leaf.
    fn always_gives(&self, class: i64, nodes: &Nodes<'_>) -> bool {
        let mut trees: HashMap<i64, bool> = HashMap::new();
        for index in (0..nodes.tree.len()).filter(|&index| nodes.is_leaf(index)) {
            let key = nodes.key(index);
            let gives = self.of(key).iter().any(|&at| self.ids[at] == class);
            *trees.entry(key.0).or_insert(true) &= gives;
        }
        trees.values().any(|&always| always)
    }
}

/// Lays out every tree from its root, which is the first node listed.
fn build(
    nodes: &Nodes<'_>,
    leaves: &Weights<'_>,
    first_column: usize,
    width: usize,
) -> Result<Forest, String> {
    let mut index_of = HashMap::new();
    let mut roots = Vec::new();
    for index in 0..nodes.tree.len() {
        let key = nodes.key(index);
        if roots
            .last()
            .is_none_or(|&root: &usize| nodes.tree[root] != key.0)
        {
            roots.push(index);
        }
        if index_of.insert(key, index).is_some() {
            return Err(format!("tree {} has two nodes {}", key.0, key.1));
        }
    }
    let mut is_used = vec![false; nodes.tree.len()];
    let mut builder = ForestBuilder::new(width);
    for &root in &roots {
        let tree = nodes.tree[root];
        let place = builder.add_tree();
        let mut open = vec![(root, place)];
        while let Some((index, place)) = open.pop() {
            if std::mem::replace(&mut is_used[index], true) {
                return Err(format!(
                    "tree {tree} reaches node {} twice",
                    nodes.id[index]
                ));
            }
            if nodes.is_leaf(index) {
                let payload = leaf(leaves, nodes.key(index), first_column, width)?;
                builder.set_leaf(place, &payload);
                continue;
            }
            let branch = nodes.branch(index)?;
            let child = |id: i64| {
                index_of
                    .get(&(tree, id))
                    .copied()
                    .ok_or_else(|| format!("tree {tree} has no node {id}"))
            };
            let (yes, no) = (child(nodes.yes[index])?, child(nodes.no[index])?);
            let places = builder.set_branch(place, &branch);
            let (first, second) = if branch.is_swapped {
                (no, yes)
            } else {
                (yes, no)
            };
            open.push((second, places + 1));
            open.push((first, places));
        }
    }
    if is_used.iter().any(|used| !used) {
        return Err("nodes of one tree are apart or out of its reach".to_owned());
    }
    Ok(builder.finish())
}

fn leaf(
    leaves: &Weights<'_>,
    key: (i64, i64),
    first_column: usize,
    width: usize,
) -> Result<Vec<Leaf>, String> {
    let payload = leaves.of(key).iter().map(|&at| {
        let target = usize::try_from(leaves.ids[at])
            .ok()
            .and_then(|id| id.checked_sub(first_column))
            .filter(|&target| target < width)
            .ok_or_else(|| format!("a leaf of tree {} scores target {}", key.0, leaves.ids[at]))?;
        Ok(Leaf {
            target,
            weight: leaves.weights[at],
        })
    });
    payload.collect()
}

fn ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |found| found.ints.as_slice())
}

fn floats<'a>(node: &'a NodeProto, name: &str) -> &'a [f32] {
    attribute(node, name).map_or(&[], |found| found.floats.as_slice())
}

fn text<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [u8]> {
    attribute(node, name).map(|found| found.s.as_slice())
}
