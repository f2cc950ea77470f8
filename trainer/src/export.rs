//! Writing a fitted model as ONNX that every engine reads alike.
//!
//! Owns: the layout of the file. One input `features` (float, rows × columns), one output
//! `probability` (float, rows × 1). Equal models give equal bytes: no clock, no names from
//! outside, fields in protobuf order. Must not know: training libraries, engines.

use engine::proto::attribute_proto::AttributeType;
use engine::proto::tensor_proto::DataType;
use engine::proto::tensor_shape_proto::{Dimension, dimension};
use engine::proto::type_proto;
use engine::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
};
use prost::Message;

/// The input's name.
pub(crate) const INPUT: &str = "features";
/// The output's name.
const OUTPUT: &str = "probability";
const IR_VERSION: i64 = 8;
const OPSET: i64 = 17;
const OPSET_ML: i64 = 3;

/// A model in the terms of the file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Graph {
    /// `sigmoid(base_margin + sum of the leaves reached)`.
    Trees {
        /// Features per row.
        columns: usize,
        /// Added to the leaves, as a margin.
        base_margin: f32,
        /// The trees; node 0 is the root of each.
        trees: Vec<Tree>,
    },
    /// `sigmoid(bias + weights · standardised features + weights of missing ones)`.
    Linear(Linear),
}

/// The nodes of a tree.
pub(crate) type Tree = Vec<TreeNode>;

/// A node of a tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum TreeNode {
    /// Goes to `yes` if the value lies below, else to `no`.
    Split {
        /// Feature compared.
        column: usize,
        /// Threshold; a value equal to it goes to `no`.
        below: f32,
        /// Whether a missing value goes to `yes`.
        missing_below: bool,
        /// Node for values below.
        yes: usize,
        /// Node for the others.
        no: usize,
    },
    /// Adds its value.
    Leaf {
        /// Margin added.
        value: f32,
    },
}

/// A logistic regression over features that are filled, standardised and cut off.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Linear {
    /// What fills a missing value and is subtracted, by column.
    pub(crate) means: Vec<f32>,
    /// Inverse standard deviations, by column; 0 for a constant one.
    pub(crate) scales: Vec<f32>,
    /// Standardised values are cut off beyond ± this.
    pub(crate) clip: f32,
    /// Weights of the standardised values.
    pub(crate) weights: Vec<f32>,
    /// Margins added where a value is missing.
    pub(crate) missing_weights: Vec<f32>,
    /// Margin of the average row.
    pub(crate) bias: f32,
}

impl Graph {
    /// The bytes of the ONNX file.
    pub(crate) fn onnx(&self) -> Vec<u8> {
        let (columns, nodes, initializers) = match self {
            Self::Trees {
                columns,
                base_margin,
                trees,
            } => {
                let (nodes, initializers) = tree_nodes(*base_margin, trees);
                (*columns, nodes, initializers)
            }
            Self::Linear(linear) => {
                let (nodes, initializers) = linear_nodes(linear);
                (linear.weights.len(), nodes, initializers)
            }
        };
        let operator_set = |domain: &str, version| OperatorSetIdProto {
            domain: domain.to_owned(),
            version,
        };
        let mut sets = vec![operator_set("", OPSET)];
        if matches!(self, Self::Trees { .. }) {
            sets.push(operator_set("ai.onnx.ml", OPSET_ML));
        }
        let graph = GraphProto {
            name: "model".to_owned(),
            node: nodes,
            initializer: initializers,
            input: vec![value(INPUT, columns)],
            output: vec![value(OUTPUT, 1)],
            ..GraphProto::default()
        };
        ModelProto {
            ir_version: IR_VERSION,
            opset_import: sets,
            producer_name: "loopgate-trainer".to_owned(),
            producer_version: env!("CARGO_PKG_VERSION").to_owned(),
            graph: Some(graph),
            ..ModelProto::default()
        }
        .encode_to_vec()
    }

    /// Every threshold that a value is compared with, as (column, threshold).
    pub(crate) fn thresholds(&self) -> Vec<(usize, f32)> {
        let Self::Trees { trees, .. } = self else {
            return Vec::new();
        };
        let split = |node: &TreeNode| match *node {
            TreeNode::Split { column, below, .. } => Some((column, below)),
            TreeNode::Leaf { .. } => None,
        };
        trees.iter().flatten().filter_map(split).collect()
    }
}

/// `TreeEnsembleClassifier` with class 1 alone and no transform, then the second column and a
/// sigmoid: the one layout that three engines compute alike. Splits are `BRANCH_LT`, never
/// `BRANCH_GTE`; no `base_values`, whose length the engines dispute, so the base margin goes into
/// the first tree's leaves.
fn tree_nodes(base_margin: f32, trees: &[Tree]) -> (Vec<NodeProto>, Vec<TensorProto>) {
    let mut ensemble = Ensemble::default();
    for (id, tree) in trees.iter().enumerate() {
        ensemble.push(id, tree, if id == 0 { base_margin } else { 0.0 });
    }
    let classifier = NodeProto {
        domain: "ai.onnx.ml".to_owned(),
        attribute: ensemble.attributes(),
        ..node("TreeEnsembleClassifier", &[INPUT], &["label", "margins"])
    };
    let slice = node(
        "Slice",
        &["margins", "slice_start", "slice_end", "slice_axis"],
        &["margin"],
    );
    let initializers = vec![
        integers("slice_start", 1),
        integers("slice_end", 2),
        integers("slice_axis", 1),
    ];
    (
        vec![classifier, slice, node("Sigmoid", &["margin"], &[OUTPUT])],
        initializers,
    )
}

/// The attributes of the ensemble, one entry per node or per leaf.
#[derive(Default)]
struct Ensemble {
    tree_ids: Vec<i64>,
    node_ids: Vec<i64>,
    columns: Vec<i64>,
    modes: Vec<Vec<u8>>,
    thresholds: Vec<f32>,
    yes: Vec<i64>,
    no: Vec<i64>,
    missing_yes: Vec<i64>,
    leaf_trees: Vec<i64>,
    leaf_nodes: Vec<i64>,
    leaf_values: Vec<f32>,
}

impl Ensemble {
    fn push(&mut self, tree_id: usize, tree: &Tree, margin: f32) {
        for (node_id, node) in tree.iter().enumerate() {
            self.tree_ids.push(tree_id as i64);
            self.node_ids.push(node_id as i64);
            let (mode, column, threshold, yes, no, missing) = match *node {
                TreeNode::Split {
                    column,
                    below,
                    missing_below,
                    yes,
                    no,
                } => ("BRANCH_LT", column, below, yes, no, missing_below),
                TreeNode::Leaf { value } => {
                    self.leaf_trees.push(tree_id as i64);
                    self.leaf_nodes.push(node_id as i64);
                    self.leaf_values.push(value + margin);
                    ("LEAF", 0, 0.0, 0, 0, false)
                }
            };
            self.modes.push(mode.as_bytes().to_vec());
            self.columns.push(column as i64);
            self.thresholds.push(threshold);
            self.yes.push(yes as i64);
            self.no.push(no as i64);
            self.missing_yes.push(i64::from(missing));
        }
    }

    fn attributes(self) -> Vec<AttributeProto> {
        let class_ids = vec![1; self.leaf_values.len()];
        vec![
            ints("class_ids", class_ids),
            ints("class_nodeids", self.leaf_nodes),
            ints("class_treeids", self.leaf_trees),
            floats("class_weights", self.leaf_values),
            ints("classlabels_int64s", vec![0, 1]),
            ints("nodes_falsenodeids", self.no),
            ints("nodes_featureids", self.columns),
            ints("nodes_missing_value_tracks_true", self.missing_yes),
            AttributeProto {
                r#type: AttributeType::Strings.into(),
                strings: self.modes,
                ..attribute("nodes_modes")
            },
            ints("nodes_nodeids", self.node_ids),
            ints("nodes_treeids", self.tree_ids),
            ints("nodes_truenodeids", self.yes),
            floats("nodes_values", self.thresholds),
            AttributeProto {
                r#type: AttributeType::String.into(),
                s: b"NONE".to_vec(),
                ..attribute("post_transform")
            },
        ]
    }
}

/// Filling, scaling and cutting off, then one product for the values and, where a feature was
/// ever missing, one for being missing.
fn linear_nodes(linear: &Linear) -> (Vec<NodeProto>, Vec<TensorProto>) {
    let columns = linear.weights.len() as i64;
    let mut nodes = vec![
        node("IsNaN", &[INPUT], &["missing"]),
        node("Where", &["missing", "means", INPUT], &["filled"]),
        node("Sub", &["filled", "means"], &["centred"]),
        node("Mul", &["centred", "scales"], &["scaled"]),
        node("Clip", &["scaled", "clip_low", "clip_high"], &["inputs"]),
        node("Gemm", &["inputs", "weights", "bias"], &["values_margin"]),
    ];
    let mut initializers = vec![
        numbers("means", &[1, columns], &linear.means),
        numbers("scales", &[1, columns], &linear.scales),
        numbers("clip_low", &[], &[-linear.clip]),
        numbers("clip_high", &[], &[linear.clip]),
        numbers("weights", &[columns, 1], &linear.weights),
        numbers("bias", &[1], &[linear.bias]),
    ];
    let mut margin = "values_margin";
    if linear.missing_weights.iter().any(|&weight| weight != 0.0) {
        let to_float = AttributeProto {
            r#type: AttributeType::Int.into(),
            i: DataType::Float as i64,
            ..attribute("to")
        };
        nodes.push(NodeProto {
            attribute: vec![to_float],
            ..node("Cast", &["missing"], &["missing_numbers"])
        });
        nodes.push(node(
            "MatMul",
            &["missing_numbers", "missing_weights"],
            &["missing_margin"],
        ));
        nodes.push(node(
            "Add",
            &["values_margin", "missing_margin"],
            &["margin"],
        ));
        initializers.push(numbers(
            "missing_weights",
            &[columns, 1],
            &linear.missing_weights,
        ));
        margin = "margin";
    }
    nodes.push(node("Sigmoid", &[margin], &[OUTPUT]));
    (nodes, initializers)
}

fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        input: owned(inputs),
        output: owned(outputs),
        name: format!(
            "{operator}_{}",
            outputs.first().copied().unwrap_or_default()
        ),
        op_type: operator.to_owned(),
        ..NodeProto::default()
    }
}

fn attribute(name: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ..AttributeProto::default()
    }
}

fn ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto {
        r#type: AttributeType::Ints.into(),
        ints,
        ..attribute(name)
    }
}

fn floats(name: &str, floats: Vec<f32>) -> AttributeProto {
    AttributeProto {
        r#type: AttributeType::Floats.into(),
        floats,
        ..attribute(name)
    }
}

fn numbers(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float.into(),
        raw_data: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        ..TensorProto::default()
    }
}

fn integers(name: &str, value: i64) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![1],
        data_type: DataType::Int64.into(),
        raw_data: value.to_le_bytes().to_vec(),
        ..TensorProto::default()
    }
}

/// A float tensor of any number of rows.
fn value(name: &str, columns: usize) -> ValueInfoProto {
    let dimension = |value| Dimension {
        value: Some(value),
        ..Dimension::default()
    };
    let shape = TensorShapeProto {
        dim: vec![
            dimension(dimension::Value::DimParam("rows".to_owned())),
            dimension(dimension::Value::DimValue(columns as i64)),
        ],
    };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float.into(),
        shape: Some(shape),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}
