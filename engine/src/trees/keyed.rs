//! The attributes of TreeEnsembleClassifier and TreeEnsembleRegressor, `ai.onnx.ml` 1 to 3: nodes
//! named by tree and number, leaves that name their targets one by one.

use std::collections::HashMap;

use tract_onnx::pb::NodeProto;

use super::ensemble::{Aggregation, Description, Kind, Labels, PostTransform};
use super::forest::NODES_MAX;
use super::graph::{attribute, ints, text, texts};
use super::number::Number;
use super::tree::{Leaf, Node, Split, Test, Tree};

/// Targets or classes of one ensemble.
pub(super) const TARGETS_MAX: usize = 4_096;

/// Reads the node, whose thresholds and weights are numbers of type `T`.
pub(super) fn read<T: Number>(node: &NodeProto) -> Result<Description<T>, String> {
    let is_classifier = node.op_type == "TreeEnsembleClassifier";
    let prefix = if is_classifier { "class" } else { "target" };
    for found in &node.attribute {
        if !knows(prefix, &found.name) {
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
        b"SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
        b"PROBIT" => PostTransform::Probit,
        other => return Err(unknown("post_transform", other)),
    };
    let aggregation = match text(node, "aggregate_function").unwrap_or(b"SUM") {
        b"SUM" => Aggregation::Sum,
        b"AVERAGE" => Aggregation::Average,
        b"MIN" => Aggregation::Min,
        b"MAX" => Aggregation::Max,
        other => return Err(unknown("aggregate_function", other)),
    };
    let labels = labels(node)?;
    let declared = if is_classifier {
        labels.len()
    } else {
        attribute(node, "n_targets")
            .and_then(|targets| usize::try_from(targets.i).ok())
            .unwrap_or(0)
    };
    let least = if is_classifier { 2 } else { 1 };
    if !(least..=TARGETS_MAX).contains(&declared) {
        return Err(format!(
            "an ensemble of {declared} targets or classes is left to other engines"
        ));
    }
    let weights = Weights::read(node, prefix, declared)?;
    let kind = if is_classifier {
        Kind::Classifier {
            labels,
            has_one_class_id: weights.targets.iter().all(|id| *id == weights.targets[0]),
            is_positive: weights.weights.iter().all(|&weight| weight >= T::default()),
        }
    } else {
        Kind::Regressor
    };
    let base_values = numbers(node, "base_values")?;
    let may_be_short = is_classifier && declared == 2 && base_values.len() == 1;
    if !base_values.is_empty() && base_values.len() != declared && !may_be_short {
        let count = base_values.len();
        return Err(format!("{count} base values for {declared} targets"));
    }
    Ok(Description {
        trees: Nodes::<T>::read(node)?.trees(&weights)?,
        targets: declared,
        kind,
        aggregation,
        post_transform,
        base_values,
    })
}

fn knows(prefix: &str, attribute: &str) -> bool {
    match attribute {
        "nodes_treeids"
        | "nodes_nodeids"
        | "nodes_featureids"
        | "nodes_values"
        | "nodes_values_as_tensor"
        | "nodes_modes"
        | "nodes_truenodeids"
        | "nodes_falsenodeids"
        | "nodes_hitrates"
        | "nodes_hitrates_as_tensor"
        | "nodes_missing_value_tracks_true"
        | "post_transform"
        | "base_values"
        | "base_values_as_tensor" => true,
        "classlabels_int64s" | "classlabels_strings" => prefix == "class",
        "n_targets" | "aggregate_function" => prefix == "target",
        other => matches!(
            other.strip_prefix(prefix),
            Some("_ids" | "_nodeids" | "_treeids" | "_weights" | "_weights_as_tensor")
        ),
    }
}

fn unknown(what: &str, name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    format!("{what} `{name}` is left to other engines")
}

fn labels(node: &NodeProto) -> Result<Labels, String> {
    let (numbers, names) = (
        ints(node, "classlabels_int64s"),
        texts(node, "classlabels_strings"),
    );
    match (numbers.is_empty(), names.is_empty()) {
        (_, true) => Ok(Labels::Numbers(numbers.to_vec())),
        (true, false) => Ok(Labels::Names(names.to_vec())),
        (false, false) => Err("classes have two kinds of labels".to_owned()),
    }
}

/// The numbers of an attribute, which also has a form as a tensor.
fn numbers<T: Number>(node: &NodeProto, name: &str) -> Result<Vec<T>, String> {
    let plain = attribute(node, name).map_or(&[][..], |found| found.floats.as_slice());
    let Some(tensor) = attribute(node, &format!("{name}_as_tensor")).and_then(|a| a.t.as_ref())
    else {
        return Ok(plain.iter().copied().map(T::of).collect());
    };
    if !plain.is_empty() {
        return Err(format!("attribute `{name}` is there twice"));
    }
    T::of_tensor(tensor).ok_or_else(|| format!("attribute `{name}_as_tensor` is of another type"))
}

/// The node attributes, of one length.
struct Nodes<'a, T> {
    tree: &'a [i64],
    id: &'a [i64],
    feature: &'a [i64],
    value: Vec<T>,
    mode: &'a [Vec<u8>],
    yes: &'a [i64],
    no: &'a [i64],
    missing: &'a [i64],
}

impl<'a, T: Number> Nodes<'a, T> {
    fn read(node: &'a NodeProto) -> Result<Self, String> {
        let nodes = Self {
            tree: ints(node, "nodes_treeids"),
            id: ints(node, "nodes_nodeids"),
            feature: ints(node, "nodes_featureids"),
            value: numbers(node, "nodes_values")?,
            mode: texts(node, "nodes_modes"),
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

    /// Every tree from its root, which is the first node listed.
    fn trees(&self, weights: &Weights<T>) -> Result<Vec<Tree<T>>, String> {
        let mut index_of = HashMap::new();
        let mut roots = Vec::new();
        for (index, &tree) in self.tree.iter().enumerate() {
            if index == 0 || self.tree[index - 1] != tree {
                roots.push(index);
            }
            let key = self.key(index);
            if index_of.insert(key, index).is_some() {
                return Err(format!("tree {} has two nodes {}", key.0, key.1));
            }
        }
        let mut is_used = vec![false; self.tree.len()];
        let tree = |&root| self.tree_at(root, &index_of, weights, &mut is_used);
        let trees = roots.iter().map(tree).collect::<Result<_, _>>()?;
        if is_used.iter().any(|used| !used) {
            return Err("nodes of one tree are apart or out of its reach".to_owned());
        }
        Ok(trees)
    }

    fn tree_at(
        &self,
        root: usize,
        index_of: &HashMap<(i64, i64), usize>,
        weights: &Weights<T>,
        is_used: &mut [bool],
    ) -> Result<Tree<T>, String> {
        let tree = self.tree[root];
        let mut nodes = Vec::new();
        // Indexes in the order of `nodes`: a node's children are appended as it is reached.
        let mut order = vec![root];
        while let Some(&index) = order.get(nodes.len()) {
            let id = self.id[index];
            if std::mem::replace(&mut is_used[index], true) {
                return Err(format!("tree {tree} reaches node {id} twice"));
            }
            if self.mode[index] == b"LEAF" {
                nodes.push(Node::Leaf(weights.of(self.key(index))?));
                continue;
            }
            let child = |id: i64| {
                index_of
                    .get(&(tree, id))
                    .copied()
                    .ok_or_else(|| format!("tree {tree} has no node {id}"))
            };
            let yes = order.len();
            order.push(child(self.yes[index])?);
            order.push(child(self.no[index])?);
            nodes.push(Node::Split(self.split(index, yes)?));
        }
        Ok(Tree { nodes })
    }

    fn split(&self, index: usize, yes: usize) -> Result<Split<T>, String> {
        let missing_is_yes = self.missing.get(index).is_some_and(|&flag| flag == 1);
        let value = self.value[index];
        let mut split = Split {
            feature: feature(self.feature[index])?,
            test: Test::UpTo(value),
            missing_is_yes,
            yes,
            no: yes + 1,
        };
        match self.mode[index].as_slice() {
            b"BRANCH_LEQ" => {}
            b"BRANCH_LT" => split.test = Test::Below(value),
            b"BRANCH_GTE" => split.test = Test::AtLeast(value),
            b"BRANCH_GT" => split.test = Test::Above(value),
            b"BRANCH_EQ" => split.test = Test::In(vec![value]),
            b"BRANCH_NEQ" => split.negate(value),
            other => return Err(unknown("mode", other)),
        }
        split.checked()
    }
}

/// A column that trees may read.
pub(super) fn feature(id: i64) -> Result<usize, String> {
    usize::try_from(id)
        .ok()
        .filter(|&feature| feature < 1 << 20)
        .ok_or_else(|| format!("the trees read column {id}"))
}

/// The weights of the leaves.
struct Weights<T> {
    targets: Vec<usize>,
    weights: Vec<T>,
    by_leaf: HashMap<(i64, i64), Vec<usize>>,
}

impl<T: Number> Weights<T> {
    fn read(node: &NodeProto, prefix: &str, declared: usize) -> Result<Self, String> {
        let ids = ints(node, &format!("{prefix}_ids"));
        let trees = ints(node, &format!("{prefix}_treeids"));
        let nodes = ints(node, &format!("{prefix}_nodeids"));
        let weights: Vec<T> = numbers(node, &format!("{prefix}_weights"))?;
        if ids.is_empty() || [trees.len(), nodes.len(), weights.len()] != [ids.len(); 3] {
            return Err(format!("the {prefix} attributes differ in length"));
        }
        if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
            return Err(format!("a leaf weighs {weight:?}"));
        }
        let target = |&id: &i64| {
            usize::try_from(id)
                .ok()
                .filter(|&target| target < declared)
                .ok_or_else(|| format!("a leaf scores target {id} of {declared}"))
        };
        let targets = ids.iter().map(target).collect::<Result<_, _>>()?;
        let mut by_leaf: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, key) in trees.iter().copied().zip(nodes.iter().copied()).enumerate() {
            by_leaf.entry(key).or_default().push(index);
        }
        Ok(Self {
            targets,
            weights,
            by_leaf,
        })
    }

    fn of(&self, key: (i64, i64)) -> Result<Vec<Leaf<T>>, String> {
        let indexes = self.by_leaf.get(&key).map_or(&[][..], Vec::as_slice);
        if indexes.is_empty() {
            return Err(format!("leaf {} of tree {} has no weight", key.1, key.0));
        }
        let mut leaves: Vec<Leaf<T>> = Vec::with_capacity(indexes.len());
        for &at in indexes {
            let target = self.targets[at];
            if leaves.iter().any(|leaf| leaf.target == target) {
                return Err(format!(
                    "a leaf of tree {} scores target {target} twice",
                    key.0
                ));
            }
            leaves.push(Leaf {
                target,
                weight: self.weights[at],
            });
        }
        Ok(leaves)
    }
}
