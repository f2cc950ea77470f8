//! Small ONNX models in the layout that the trainer writes.

use std::sync::Arc;

use engine::proto::attribute_proto::AttributeType;
use engine::proto::tensor_proto::DataType;
use engine::proto::tensor_shape_proto::{Dimension, dimension};
use engine::proto::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use engine::{CheckError, EngineKind, Model, OnnxFile, OnnxLimits, Session, Tensor, TensorData};

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Int as i32,
        i: value,
        ..Default::default()
    }
}

pub(crate) fn ints(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values,
        ..Default::default()
    }
}

pub(crate) fn floats(name: &str, values: Vec<f32>) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Floats as i32,
        floats: values,
        ..Default::default()
    }
}

pub(crate) fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::String as i32,
        s: value.into(),
        ..Default::default()
    }
}

pub(crate) fn texts(name: &str, values: &[&str]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Strings as i32,
        strings: values
            .iter()
            .map(|value| value.as_bytes().to_vec())
            .collect(),
        ..Default::default()
    }
}

pub(crate) fn graph_attribute(name: &str, graph: GraphProto) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Graph as i32,
        g: Some(graph),
        ..Default::default()
    }
}

pub(crate) fn node(operator: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: operator.into(),
        name: format!("{operator}_{}", outputs.first().unwrap_or(&"")),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: outputs.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    }
}

/// A value of `dims`; -1 is the batch.
pub(crate) fn value(name: &str, datatype: DataType, dims: &[i64]) -> ValueInfoProto {
    let dim = |&length: &i64| Dimension {
        value: Some(match length {
            -1 => dimension::Value::DimParam("N".into()),
            length => dimension::Value::DimValue(length),
        }),
        ..Default::default()
    };
    ValueInfoProto {
        name: name.into(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(type_proto::Tensor {
                elem_type: datatype as i32,
                shape: Some(TensorShapeProto {
                    dim: dims.iter().map(dim).collect(),
                }),
            })),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn float_tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        raw_data: values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
        ..Default::default()
    }
}

pub(crate) fn int_tensor(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![i64::try_from(values.len()).unwrap()],
        data_type: DataType::Int64 as i32,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

pub(crate) fn model(graph: GraphProto) -> ModelProto {
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: domain.into(),
        version,
    };
    ModelProto {
        ir_version: 8,
        producer_name: "loopgate".into(),
        opset_import: vec![opset("", 17), opset("ai.onnx.ml", 3)],
        graph: Some(graph),
        ..Default::default()
    }
}

pub(crate) fn check(model: &ModelProto) -> Result<OnnxFile, CheckError> {
    check_bytes(&model.encode_to_vec())
}

pub(crate) fn check_bytes(bytes: &[u8]) -> Result<OnnxFile, CheckError> {
    OnnxFile::check(Arc::from(bytes), &OnnxLimits::default())
}

/// One node of a tree: a leaf, or a split with the places of its children.
#[derive(Clone, Debug)]
pub(crate) enum TreeNode {
    Leaf(Vec<(i64, f32)>),
    Split {
        feature: i64,
        threshold: f32,
        missing_is_yes: bool,
        yes: usize,
        no: usize,
    },
}

/// Trees as TreeEnsembleClassifier (class id 1) or TreeEnsembleRegressor attributes.
#[derive(Clone, Debug)]
pub(crate) struct Trees {
    pub(crate) mode: &'static str,
    pub(crate) trees: Vec<Vec<TreeNode>>,
}

impl Trees {
    pub(crate) fn attributes(&self, prefix: &str) -> Vec<AttributeProto> {
        let (mut tree_ids, mut node_ids, mut features) = (vec![], vec![], vec![]);
        let (mut values, mut modes, mut missing) = (vec![], vec![], vec![]);
        let (mut yes_ids, mut no_ids) = (vec![], vec![]);
        let (mut leaf_trees, mut leaf_nodes) = (vec![], vec![]);
        let (mut leaf_ids, mut weights) = (vec![], vec![]);
        for (tree, nodes) in (0..).zip(&self.trees) {
            for (id, node) in (0..).zip(nodes) {
                tree_ids.push(tree);
                node_ids.push(id);
                match node {
                    TreeNode::Leaf(payload) => {
                        features.push(0);
                        values.push(0.0);
                        modes.push("LEAF");
                        missing.push(0);
                        yes_ids.push(0);
                        no_ids.push(0);
                        for &(target, weight) in payload {
                            leaf_trees.push(tree);
                            leaf_nodes.push(id);
                            leaf_ids.push(target);
                            weights.push(weight);
                        }
                    }
                    TreeNode::Split {
                        feature,
                        threshold,
                        missing_is_yes,
                        yes,
                        no,
                    } => {
                        features.push(*feature);
                        values.push(*threshold);
                        modes.push(self.mode);
                        missing.push(i64::from(*missing_is_yes));
                        yes_ids.push(i64::try_from(*yes).unwrap());
                        no_ids.push(i64::try_from(*no).unwrap());
                    }
                }
            }
        }
        vec![
            ints("nodes_treeids", tree_ids),
            ints("nodes_nodeids", node_ids),
            ints("nodes_featureids", features),
            floats("nodes_values", values),
            texts("nodes_modes", &modes),
            ints("nodes_truenodeids", yes_ids),
            ints("nodes_falsenodeids", no_ids),
            ints("nodes_missing_value_tracks_true", missing),
            ints(&format!("{prefix}_treeids"), leaf_trees),
            ints(&format!("{prefix}_nodeids"), leaf_nodes),
            ints(&format!("{prefix}_ids"), leaf_ids),
            floats(&format!("{prefix}_weights"), weights),
        ]
    }

    /// The classifier's node, `features` to `label` and `scores`.
    pub(crate) fn classifier(&self, classes: i64, post_transform: &str) -> NodeProto {
        let mut node = node(
            "TreeEnsembleClassifier",
            &["features"],
            &["label", "scores"],
        );
        node.domain = "ai.onnx.ml".into();
        node.attribute = self.attributes("class");
        node.attribute.push(text("post_transform", post_transform));
        node.attribute
            .push(ints("classlabels_int64s", (0..classes).collect()));
        node
    }

    /// The regressor's node, `features` to `scores`.
    pub(crate) fn regressor(&self, targets: i64) -> NodeProto {
        let mut node = node("TreeEnsembleRegressor", &["features"], &["scores"]);
        node.domain = "ai.onnx.ml".into();
        node.attribute = self.attributes("target");
        node.attribute.push(text("post_transform", "NONE"));
        node.attribute.push(int("n_targets", targets));
        node
    }

    /// The whole model as the trainer exports it: Slice column 1, then Sigmoid.
    pub(crate) fn boosted(&self, columns: i64) -> ModelProto {
        let slice = node("Slice", &["scores", "starts", "ends", "axes"], &["margin"]);
        model(GraphProto {
            name: "boosted".into(),
            node: vec![
                self.classifier(2, "NONE"),
                slice,
                node("Sigmoid", &["margin"], &["probability"]),
            ],
            initializer: vec![
                int_tensor("starts", &[1]),
                int_tensor("ends", &[2]),
                int_tensor("axes", &[1]),
            ],
            input: vec![value("features", DataType::Float, &[-1, columns])],
            output: vec![value("probability", DataType::Float, &[-1, 1])],
            ..Default::default()
        })
    }
}

/// Logistic regression as the trainer exports it: impute, scale, clip, Gemm, Sigmoid.
pub(crate) fn logistic(columns: usize) -> ModelProto {
    let width = i64::try_from(columns).unwrap();
    let row = |seed: usize, low: f32| -> Vec<f32> {
        let number = |at: usize| ((at * 37 + seed * 11) % 17) as f32 / 8.0 + low;
        (0..columns).map(number).collect()
    };
    let mut gemm = node("Gemm", &["clipped", "weights", "bias"], &["margin"]);
    gemm.attribute = vec![int("transB", 0)];
    model(GraphProto {
        name: "logistic".into(),
        node: vec![
            node("IsNaN", &["features"], &["missing"]),
            node("Where", &["missing", "fill", "features"], &["filled"]),
            node("Sub", &["filled", "mean"], &["centred"]),
            node("Div", &["centred", "deviation"], &["scaled"]),
            node("Clip", &["scaled", "low", "high"], &["clipped"]),
            gemm,
            node("Sigmoid", &["margin"], &["probability"]),
        ],
        initializer: vec![
            float_tensor("fill", &[1, width], &row(1, -1.0)),
            float_tensor("mean", &[1, width], &row(2, -1.0)),
            float_tensor("deviation", &[1, width], &row(3, 0.5)),
            float_tensor("low", &[], &[-6.0]),
            float_tensor("high", &[], &[6.0]),
            float_tensor("weights", &[width, 1], &row(4, -1.0)),
            float_tensor("bias", &[1], &[0.25]),
        ],
        input: vec![value("features", DataType::Float, &[-1, width])],
        output: vec![value("probability", DataType::Float, &[-1, 1])],
        ..Default::default()
    })
}

/// A session, or `None` with a line on the terminal where ONNX Runtime is not installed.
pub(crate) fn session(file: &OnnxFile, engine: EngineKind) -> Option<Session> {
    if engine == EngineKind::OnnxRuntime
        && let Err(reason) = engine::onnx_runtime_available()
    {
        println!("SKIPPED onnxruntime: {reason}");
        return None;
    }
    Some(Model::load(file, engine).unwrap().session().unwrap())
}

pub(crate) fn rows(values: Vec<f32>, columns: usize) -> Tensor {
    Tensor::new(
        vec![values.len() / columns, columns],
        TensorData::Fp32(values),
    )
    .unwrap()
}

/// The one FP32 output of a run on one FP32 input.
pub(crate) fn run(session: &mut Session, values: &[f32], columns: usize) -> Vec<f32> {
    let outputs = session.run(&[rows(values.to_vec(), columns)]).unwrap();
    let [output] = outputs.as_slice() else {
        panic!("one output")
    };
    output.as_f32().unwrap().to_vec()
}
