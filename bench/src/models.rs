//! The models under load, drawn from a seed and written as ONNX files, and the rows that they are asked.
//!
//! The ensemble has the shape that gradient boosting leaves behind: trees grown leaf by leaf, so deeper
//! where they were split more, thresholds taken from the rows. What it predicts means nothing.

use bytes::Bytes;
use prost::Message;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::onnx::{Attribute, Graph, Model, Node, Tensor, Value};

/// Columns of every model's input.
pub(crate) const COLUMNS: usize = 71;
const TREES: usize = 200;
const LEAVES: usize = 31;
/// Rows of which thresholds are taken.
const SPLIT_ROWS: usize = 512;
/// The output of version `v` of [`versioned`] lies within half of this around `v` times this.
pub(crate) const VERSION_STEP: f32 = 1000.0;

pub(crate) type Row = [f32; COLUMNS];

/// Rows that print like features do: a third counts, a third with two decimals, a third means with
/// all their digits.
pub(crate) fn rows(count: usize, seed: u64) -> Vec<Row> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            std::array::from_fn(|column| match column % 3 {
                0 => random.random_range(0i16..500).into(),
                1 => (random.random_range(-50.0f32..150.0) * 100.0).round() / 100.0,
                _ => random.random_range(-30.0f32..120.0),
            })
        })
        .collect()
}

/// 200 trees of 31 leaves and a sigmoid: input `features` `[N, 71]`, output `probability` `[N, 1]`.
pub(crate) fn ensemble(seed: u64) -> Bytes {
    let mut nodes = forest(seed, 0.0);
    nodes.push(Node::new("Sigmoid", &["margin"], &["probability"]));
    file(nodes, "probability", Vec::new())
}

/// The same trees without the sigmoid, and `version` times [`VERSION_STEP`] on top, so that an answer
/// says which version it came from.
pub(crate) fn versioned(seed: u64, version: u16) -> Bytes {
    let nodes = forest(seed, f32::from(version) * VERSION_STEP);
    file(nodes, "margin", Vec::new())
}

/// A model of about two milliseconds a row: a chain of hyperbolic tangents over a wide row. A batch of
/// n takes n times as long, so that the capacity does not depend on how requests are batched.
pub(crate) fn slow() -> Bytes {
    const WIDTH: i64 = 49_152;
    const STEPS: usize = 120;
    let mean = |input: &str, output: &str| Node {
        attribute: vec![
            Attribute::ints("axes", vec![1]),
            Attribute::int("keepdims", 1),
        ],
        ..Node::new("ReduceMean", &[input], &[output])
    };
    let mut nodes = vec![
        mean("features", "mean"),
        Node::new("Mul", &["mean", "spread"], &["step0"]),
    ];
    for step in 0..STEPS {
        let (from, to) = (format!("step{step}"), format!("step{}", step + 1));
        nodes.push(Node::new("Tanh", &[&from], &[&to]));
    }
    nodes.push(mean(&format!("step{STEPS}"), "probability"));
    let spread = (0..WIDTH).map(|k| k as f32 / WIDTH as f32 - 0.5).collect();
    let spread = Tensor::floats("spread", &[1, WIDTH], spread);
    file(nodes, "probability", vec![spread])
}

fn file(nodes: Vec<Node>, output: &str, mut initializers: Vec<Tensor>) -> Bytes {
    for (name, value) in [("starts", 1), ("ends", 2), ("axes", 1)] {
        if nodes
            .iter()
            .any(|node| node.input.iter().any(|input| input == name))
        {
            initializers.push(Tensor::int64s(name, vec![value]));
        }
    }
    let graph = Graph {
        node: nodes,
        name: "bench".into(),
        initializer: initializers,
        input: vec![Value::rows("features", COLUMNS as i64)],
        output: vec![Value::rows(output, 1)],
    };
    Model::of(graph).encode_to_vec().into()
}

/// The columns of a tree ensemble's attributes, one entry a node or leaf.
#[derive(Default)]
struct Trees {
    tree: Vec<i64>,
    node: Vec<i64>,
    feature: Vec<i64>,
    threshold: Vec<f32>,
    leaf: Vec<bool>,
    if_true: Vec<i64>,
    if_false: Vec<i64>,
    missing_true: Vec<i64>,
    weight_tree: Vec<i64>,
    weight_node: Vec<i64>,
    weight: Vec<f32>,
}

/// Nodes from `features` to `margin`: the sum of all trees' leaves and `base`, `[N, 1]`.
fn forest(seed: u64, base: f32) -> Vec<Node> {
    let mut random = StdRng::seed_from_u64(seed);
    let rows = rows(SPLIT_ROWS, seed ^ 0x5eed);
    let mut trees = Trees::default();
    for tree in 0..TREES {
        trees.grow(
            tree as i64,
            if tree == 0 { base } else { 0.0 },
            &rows,
            &mut random,
        );
    }
    vec![
        Node {
            attribute: trees.attributes(),
            domain: "ai.onnx.ml".into(),
            ..Node::new(
                "TreeEnsembleClassifier",
                &["features"],
                &["label", "scores"],
            )
        },
        Node::new("Slice", &["scores", "starts", "ends", "axes"], &["margin"]),
    ]
}

impl Trees {
    /// Splits leaves drawn at random until there are enough.
    fn grow(&mut self, tree: i64, base: f32, rows: &[Row], random: &mut StdRng) {
        let first = self.tree.len();
        self.push_leaf(tree, first);
        let mut open = vec![first];
        while open.len() < LEAVES {
            let at = open.swap_remove(random.random_range(0..open.len()));
            let feature = random.random_range(0..COLUMNS);
            self.leaf[at] = false;
            self.feature[at] = feature as i64;
            self.threshold[at] = rows[random.random_range(0..rows.len())][feature];
            self.missing_true[at] = i64::from(random.random::<bool>());
            let children = [self.push_leaf(tree, first), self.push_leaf(tree, first)];
            self.if_true[at] = self.node[children[0]];
            self.if_false[at] = self.node[children[1]];
            open.extend(children);
        }
        open.sort_unstable();
        for leaf in open {
            self.weight_tree.push(tree);
            self.weight_node.push(self.node[leaf]);
            // 200 of these add up to less than 2.
            self.weight.push(base + random.random_range(-0.01f32..0.01));
        }
    }

    fn push_leaf(&mut self, tree: i64, first: usize) -> usize {
        let index = self.tree.len();
        self.tree.push(tree);
        self.node.push((index - first) as i64);
        self.feature.push(0);
        self.threshold.push(0.0);
        self.leaf.push(true);
        self.if_true.push(0);
        self.if_false.push(0);
        self.missing_true.push(0);
        index
    }

    fn attributes(self) -> Vec<Attribute> {
        let modes: Vec<&str> = self
            .leaf
            .iter()
            .map(|&leaf| if leaf { "LEAF" } else { "BRANCH_LEQ" })
            .collect();
        let ones = vec![1; self.weight.len()];
        vec![
            Attribute::ints("nodes_treeids", self.tree),
            Attribute::ints("nodes_nodeids", self.node),
            Attribute::ints("nodes_featureids", self.feature),
            Attribute::floats("nodes_values", self.threshold),
            Attribute::strings("nodes_modes", &modes),
            Attribute::ints("nodes_truenodeids", self.if_true),
            Attribute::ints("nodes_falsenodeids", self.if_false),
            Attribute::ints("nodes_missing_value_tracks_true", self.missing_true),
            Attribute::ints("class_treeids", self.weight_tree),
            Attribute::ints("class_nodeids", self.weight_node),
            Attribute::ints("class_ids", ones),
            Attribute::floats("class_weights", self.weight),
            Attribute::ints("classlabels_int64s", vec![0, 1]),
            Attribute::string("post_transform", "NONE"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_file_and_every_version_another() {
        assert_eq!(ensemble(7), ensemble(7));
        assert_ne!(ensemble(7), ensemble(8));
        assert_ne!(versioned(7, 1), versioned(7, 2));
        assert_eq!(rows(3, 7), rows(3, 7));
    }

    #[test]
    fn the_ensemble_has_its_trees_and_leaves() {
        let model = Model::decode(&ensemble(7)[..]).unwrap();
        let graph = model.graph.unwrap();
        let attribute = |name: &str| {
            let found = graph.node[0].attribute.iter().find(|a| a.name == name);
            found.unwrap().clone()
        };
        assert_eq!(attribute("class_weights").floats.len(), TREES * LEAVES);
        assert_eq!(
            attribute("nodes_modes").strings.len(),
            TREES * (2 * LEAVES - 1)
        );
        let columns = attribute("nodes_featureids").ints;
        assert!(
            columns
                .iter()
                .all(|&column| (0..COLUMNS as i64).contains(&column))
        );
    }
}
