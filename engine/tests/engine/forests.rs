//! Random ensembles of every kind as ONNX models, and what the standard's text makes of them.

use engine::proto::attribute_proto::AttributeType;
use engine::proto::tensor_proto::DataType;
use engine::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use engine::{Tensor, TensorData};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::fixture::{floats, int, ints, model, node, text, texts, value};

pub(crate) const COLUMNS: usize = 6;
const MODES: [&str; 6] = [
    "BRANCH_LEQ",
    "BRANCH_LT",
    "BRANCH_GTE",
    "BRANCH_GT",
    "BRANCH_EQ",
    "BRANCH_NEQ",
];
const MEMBER: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operator {
    Classifier,
    Regressor,
    Ensemble,
}

/// A random ensemble and how its file says it.
#[derive(Debug)]
pub(crate) struct Forest {
    pub(crate) operator: Operator,
    pub(crate) is_double: bool,
    pub(crate) targets: usize,
    pub(crate) transform: &'static str,
    pub(crate) aggregation: &'static str,
    pub(crate) base_values: Vec<f64>,
    pub(crate) has_names: bool,
    pub(crate) has_missing: bool,
    pub(crate) trees: Vec<Vec<Node>>,
}

#[derive(Debug)]
pub(crate) enum Node {
    Leaf(Vec<(usize, f64)>),
    Split {
        feature: usize,
        mode: usize,
        /// The threshold; the members of a set.
        values: Vec<f64>,
        missing_is_yes: bool,
        yes: usize,
        no: usize,
    },
}

/// Numbers that meet each other often, in the precision of the file.
fn number(random: &mut StdRng, is_double: bool) -> f64 {
    let special = [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        1e-40,
        1.1754944e-38,
        3.4028235e38,
        -3.4028235e38,
    ];
    let x: f64 = match random.random_range(0..10) {
        0..6 => f64::from(random.random_range(-4_i8..5)) / 2.0,
        6..9 => random.random_range(-3.0..3.0),
        _ => *special.choose(random).unwrap(),
    };
    if is_double { x } else { f64::from(x as f32) }
}

fn weight(random: &mut StdRng, is_double: bool, is_positive: bool) -> f64 {
    let low = if is_positive { 0.0 } else { -1.0 };
    let x: f64 = random.random_range(low..1.0);
    if is_double { x } else { f64::from(x as f32) }
}

impl Forest {
    pub(crate) fn random(seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let operator = [
            Operator::Classifier,
            Operator::Regressor,
            Operator::Ensemble,
        ];
        let operator = operator[random.random_range(0..3)];
        let is_double = random.random_range(0..3) == 0;
        let targets = match operator {
            Operator::Classifier => *[2, 2, 2, 3, 5].choose(random).unwrap(),
            _ => *[1, 1, 2, 3].choose(random).unwrap(),
        };
        let transforms = ["NONE", "LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO", "PROBIT"];
        let aggregation = match operator {
            Operator::Classifier => "SUM",
            _ => ["SUM", "SUM", "AVERAGE", "MIN", "MAX"][random.random_range(0..5)],
        };
        let transform = *transforms.choose(random).unwrap();
        // ONNX Runtime takes the numbers of these two for each other: refused.
        let is_renumbered = matches!(transform, "LOGISTIC" | "SOFTMAX");
        let transform = match operator {
            Operator::Ensemble if targets > 1 && is_renumbered => "NONE",
            _ => transform,
        };
        let base_values = match (operator, targets) {
            (Operator::Ensemble, _) => 0,
            (Operator::Classifier, 2) => random.random_range(0..3),
            _ => *[0, targets].choose(random).unwrap(),
        };
        let mut forest = Self {
            operator,
            is_double,
            targets,
            transform,
            aggregation,
            base_values: (0..base_values)
                .map(|_| weight(random, is_double, false))
                .collect(),
            has_names: random.random(),
            has_missing: random.random_range(0..4) > 0,
            trees: Vec::new(),
        };
        let shape = Shape {
            // A mode of its own for each split, or one for all.
            mode: random.random_range(0..12),
            is_positive: random.random(),
            // One class for all leaves, or some for each.
            only: random.random_range(0..2 * targets),
            is_full: random.random(),
            leaves_max: *[4, 10, 32, 60, 90].choose(random).unwrap(),
        };
        let count = *[1, 3, 8, 13, 90].choose(random).unwrap();
        let count = if shape.leaves_max > 32 {
            count.min(8)
        } else {
            count
        };
        forest.trees = (0..count).map(|_| forest.tree(random, &shape)).collect();
        forest
    }

    fn tree(&self, random: &mut StdRng, shape: &Shape) -> Vec<Node> {
        let is_indexed = self.operator == Operator::Ensemble;
        // A tree of one leaf has no form that all readers take in the last of the operators.
        let least = if is_indexed { 2 } else { 1 };
        let leaves = random.random_range(least..=shape.leaves_max);
        let mut nodes = vec![Node::Leaf(vec![])];
        let mut open = vec![0];
        while open.len() < leaves {
            let at = open.swap_remove(random.random_range(0..open.len()));
            let (yes, no) = (nodes.len(), nodes.len() + 1);
            let modes = if is_indexed { 7 } else { 6 };
            let mode = match shape.mode {
                mode if mode < modes => mode,
                _ => random.random_range(0..modes),
            };
            let count = if mode == MEMBER {
                random.random_range(1..20)
            } else {
                1
            };
            let mut values: Vec<f64> = (0..count).map(|_| number(random, self.is_double)).collect();
            if mode == MEMBER {
                values.fill_with(|| f64::from(random.random_range(0_u8..31)));
            }
            nodes[at] = Node::Split {
                feature: random.random_range(0..COLUMNS),
                mode,
                values,
                missing_is_yes: self.has_missing && random.random(),
                yes,
                no,
            };
            nodes.push(Node::Leaf(vec![]));
            nodes.push(Node::Leaf(vec![]));
            open.extend([yes, no]);
        }
        for at in open {
            let mut payload = Vec::new();
            for target in 0..self.targets {
                let is_scored = match shape.only {
                    only if only < self.targets => target == only,
                    _ => shape.is_full || random.random(),
                };
                if is_scored && (!is_indexed || payload.is_empty()) {
                    payload.push((target, weight(random, self.is_double, shape.is_positive)));
                }
            }
            if payload.is_empty() {
                let target = random.random_range(0..self.targets);
                payload.push((target, weight(random, self.is_double, shape.is_positive)));
            }
            nodes[at] = Node::Leaf(payload);
        }
        nodes
    }

    /// Rows that meet the thresholds, miss values and leave every bound.
    pub(crate) fn rows(&self, count: usize, seed: u64) -> Tensor {
        let random = &mut StdRng::seed_from_u64(seed);
        let one = |random: &mut StdRng| match random.random_range(0..12) {
            0 => f64::NAN,
            1 => *[f64::INFINITY, f64::NEG_INFINITY].choose(random).unwrap(),
            2 => f64::from(random.random_range(0_u8..40)),
            _ => number(random, self.is_double),
        };
        let values = (0..count * COLUMNS).map(|_| one(random));
        let data = if self.is_double {
            TensorData::Fp64(values.collect())
        } else {
            TensorData::Fp32(values.map(|x| x as f32).collect())
        };
        Tensor::new(vec![count, COLUMNS], data).unwrap()
    }

    /// The scores of one row before the transform, from the text of the standard; with which
    /// targets were scored.
    pub(crate) fn naive(&self, row: &[f64]) -> Vec<(f64, bool)> {
        let mut scores = vec![(0.0, false); self.targets];
        for nodes in &self.trees {
            for &(target, weight) in leaf(nodes, 0, row) {
                let (score, is_scored) = scores[target];
                let combined = match self.aggregation {
                    "MIN" if is_scored => weight.min(score),
                    "MAX" if is_scored => weight.max(score),
                    _ => weight + score,
                };
                scores[target] = (combined, true);
            }
        }
        for (target, (score, is_scored)) in scores.iter_mut().enumerate() {
            if self.aggregation == "AVERAGE" {
                *score /= self.trees.len() as f64;
            }
            // As ONNX Runtime has it, one of several targets that no leaf scores is 0.
            if let Some(base) = self.base_values.get(target)
                && (*is_scored || self.operator == Operator::Classifier)
            {
                *score += base;
            }
        }
        scores
    }

    /// The model: the ensemble alone, with its labels where `has_labels`.
    pub(crate) fn model(&self, has_labels: bool) -> ModelProto {
        let input = if self.is_double {
            DataType::Double
        } else {
            DataType::Float
        };
        let wide = self.is_double && self.operator == Operator::Ensemble;
        let scores = if wide {
            DataType::Double
        } else {
            DataType::Float
        };
        let mut output = vec![value("scores", scores, &[-1, self.targets as i64])];
        if has_labels {
            let label = if self.has_names {
                DataType::String
            } else {
                DataType::Int64
            };
            output.insert(0, value("label", label, &[-1]));
        }
        let mut ensemble = match self.operator {
            Operator::Classifier => node("TreeEnsembleClassifier", &["x"], &["label", "scores"]),
            Operator::Regressor => node("TreeEnsembleRegressor", &["x"], &["scores"]),
            Operator::Ensemble => node("TreeEnsemble", &["x"], &["scores"]),
        };
        ensemble.domain = "ai.onnx.ml".into();
        match self.operator {
            Operator::Ensemble => self.indexed(&mut ensemble),
            _ => self.keyed(&mut ensemble),
        }
        let mut model = model(GraphProto {
            name: "forest".into(),
            node: vec![ensemble],
            input: vec![value("x", input, &[-1, COLUMNS as i64])],
            output,
            ..Default::default()
        });
        if self.operator == Operator::Ensemble {
            model.opset_import[1].version = 5;
        }
        model
    }

    fn numbers(&self, name: &str, values: &[f64]) -> AttributeProto {
        if self.is_double {
            tensor(&format!("{name}_as_tensor"), true, values)
        } else {
            floats(name, values.iter().map(|&x| x as f32).collect())
        }
    }

    fn keyed(&self, node: &mut NodeProto) {
        let prefix = if self.operator == Operator::Classifier {
            "class"
        } else {
            "target"
        };
        let mut columns: [Vec<i64>; 6] = Default::default();
        let (mut values, mut modes) = (vec![], vec![]);
        let (mut leaf_trees, mut leaf_nodes) = (vec![], vec![]);
        let (mut leaf_ids, mut weights) = (vec![], vec![]);
        for (tree, nodes) in (0..).zip(&self.trees) {
            for (id, node) in (0..).zip(nodes) {
                let mut push = |of: [i64; 6]| {
                    for (column, value) in columns.iter_mut().zip(of) {
                        column.push(value);
                    }
                };
                match node {
                    Node::Leaf(payload) => {
                        push([tree, id, 0, 0, 0, 0]);
                        values.push(0.0);
                        modes.push("LEAF");
                        for &(target, weight) in payload {
                            leaf_trees.push(tree);
                            leaf_nodes.push(id);
                            leaf_ids.push(target as i64);
                            weights.push(weight);
                        }
                    }
                    Node::Split {
                        feature,
                        mode,
                        values: of,
                        missing_is_yes,
                        yes,
                        no,
                    } => {
                        let missing = i64::from(*missing_is_yes);
                        push([tree, id, *feature as i64, *yes as i64, *no as i64, missing]);
                        values.push(of[0]);
                        modes.push(MODES[*mode]);
                    }
                }
            }
        }
        let [tree_ids, node_ids, features, yes, no, missing] = columns;
        node.attribute = vec![
            ints("nodes_treeids", tree_ids),
            ints("nodes_nodeids", node_ids),
            ints("nodes_featureids", features),
            self.numbers("nodes_values", &values),
            texts("nodes_modes", &modes),
            ints("nodes_truenodeids", yes),
            ints("nodes_falsenodeids", no),
            ints(&format!("{prefix}_treeids"), leaf_trees),
            ints(&format!("{prefix}_nodeids"), leaf_nodes),
            ints(&format!("{prefix}_ids"), leaf_ids),
            self.numbers(&format!("{prefix}_weights"), &weights),
            text("post_transform", self.transform),
        ];
        if self.has_missing {
            node.attribute
                .push(ints("nodes_missing_value_tracks_true", missing));
        }
        if !self.base_values.is_empty() {
            node.attribute
                .push(self.numbers("base_values", &self.base_values));
        }
        if self.operator == Operator::Regressor {
            node.attribute.push(int("n_targets", self.targets as i64));
            node.attribute
                .push(text("aggregate_function", self.aggregation));
        } else if self.has_names {
            let names = ["a", "b", "c", "d", "e"];
            node.attribute
                .push(texts("classlabels_strings", &names[..self.targets]));
        } else {
            let labels = (0..self.targets as i64).collect();
            node.attribute.push(ints("classlabels_int64s", labels));
        }
    }

    fn indexed(&self, node: &mut NodeProto) {
        let mut columns: [Vec<i64>; 6] = Default::default();
        let (mut splits, mut modes, mut members) = (vec![], vec![], vec![]);
        let (mut leaf_ids, mut weights, mut roots) = (vec![], vec![], vec![]);
        for nodes in &self.trees {
            // The places of this tree's nodes among all splits or all leaves.
            let (mut split_count, mut leaf_count) = (splits.len(), weights.len());
            let places: Vec<_> = nodes
                .iter()
                .map(|node| {
                    let count = match node {
                        Node::Leaf(_) => &mut leaf_count,
                        Node::Split { .. } => &mut split_count,
                    };
                    *count += 1;
                    *count as i64 - 1
                })
                .collect();
            roots.push(places[0]);
            for node in nodes {
                match node {
                    Node::Leaf(payload) => {
                        leaf_ids.push(payload[0].0 as i64);
                        weights.push(payload[0].1);
                    }
                    Node::Split {
                        feature,
                        mode,
                        values,
                        missing_is_yes,
                        yes,
                        no,
                    } => {
                        let is_leaf = |at: usize| i64::from(matches!(nodes[at], Node::Leaf(_)));
                        let of = [
                            *feature as i64,
                            places[*yes],
                            places[*no],
                            is_leaf(*yes),
                            is_leaf(*no),
                            i64::from(*missing_is_yes),
                        ];
                        for (column, value) in columns.iter_mut().zip(of) {
                            column.push(value);
                        }
                        modes.push(*mode as u8);
                        splits.push(if *mode == MEMBER { 0.0 } else { values[0] });
                        if *mode == MEMBER {
                            members.extend_from_slice(values);
                            members.push(f64::NAN);
                        }
                    }
                }
            }
        }
        let [features, yes, no, yes_is_leaf, no_is_leaf, missing] = columns;
        let code = |names: &[&str], name| names.iter().position(|n| *n == name).unwrap() as i64;
        let transforms = ["NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT"];
        node.attribute = vec![
            ints("tree_roots", roots),
            ints("nodes_featureids", features),
            ints("nodes_truenodeids", yes),
            ints("nodes_falsenodeids", no),
            ints("nodes_trueleafs", yes_is_leaf),
            ints("nodes_falseleafs", no_is_leaf),
            tensor("nodes_splits", self.is_double, &splits),
            bytes("nodes_modes", modes),
            ints("leaf_targetids", leaf_ids),
            tensor("leaf_weights", self.is_double, &weights),
            int("n_targets", self.targets as i64),
            int(
                "aggregate_function",
                code(&["AVERAGE", "SUM", "MIN", "MAX"], self.aggregation),
            ),
            int("post_transform", code(&transforms, self.transform)),
        ];
        if self.has_missing {
            node.attribute
                .push(ints("nodes_missing_value_tracks_true", missing));
        }
        if !members.is_empty() {
            node.attribute
                .push(tensor("membership_values", self.is_double, &members));
        }
    }
}

struct Shape {
    mode: usize,
    is_positive: bool,
    only: usize,
    is_full: bool,
    leaves_max: usize,
}

fn leaf<'a>(nodes: &'a [Node], at: usize, row: &[f64]) -> &'a [(usize, f64)] {
    match &nodes[at] {
        Node::Leaf(payload) => payload,
        Node::Split {
            feature,
            mode,
            values,
            missing_is_yes,
            yes,
            no,
        } => {
            let x = row[*feature];
            let is_yes = (x.is_nan() && *missing_is_yes)
                || match mode {
                    0 => x <= values[0],
                    1 => x < values[0],
                    2 => x >= values[0],
                    3 => x > values[0],
                    5 => x != values[0],
                    _ => values.contains(&x),
                };
            leaf(nodes, if is_yes { *yes } else { *no }, row)
        }
    }
}

fn attribute_of(name: &str, tensor: TensorProto) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Tensor as i32,
        t: Some(tensor),
        ..Default::default()
    }
}

fn tensor(name: &str, is_double: bool, values: &[f64]) -> AttributeProto {
    let (data_type, raw_data) = if is_double {
        let raw = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        (DataType::Double, raw)
    } else {
        let raw = values
            .iter()
            .flat_map(|&x| (x as f32).to_le_bytes())
            .collect();
        (DataType::Float, raw)
    };
    let tensor = TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: data_type as i32,
        raw_data,
        ..Default::default()
    };
    attribute_of(name, tensor)
}

fn bytes(name: &str, values: Vec<u8>) -> AttributeProto {
    let tensor = TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: DataType::Uint8 as i32,
        raw_data: values,
        ..Default::default()
    };
    attribute_of(name, tensor)
}
