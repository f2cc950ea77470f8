//! `ZipMap` cut off the end of a model.
//!
//! scikit-learn's exports end in it: it turns the tensor of probabilities `[N, classes]` into a
//! sequence of maps, which no tensor protocol can say. The copy that is made here gives the tensor
//! under the same name. Costs: the file is decoded and encoded once, and held twice meanwhile.

use std::sync::Arc;

use prost::Message;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

use super::CheckError;
use super::wire::malformed;

/// The operator set for `Identity` where the file imports none.
const ONNX_VERSION: i64 = 9;

/// The model with `Identity` in place of each `ZipMap` of the main graph that makes an output.
pub(super) fn cut(bytes: &[u8]) -> Result<Arc<[u8]>, CheckError> {
    let mut model = ModelProto::decode(bytes).map_err(|error| malformed(0, error.to_string()))?;
    if let Some(graph) = &mut model.graph {
        cut_graph(graph);
    }
    let opsets = &mut model.opset_import;
    if !opsets
        .iter()
        .any(|o| o.domain.is_empty() || o.domain == "ai.onnx")
    {
        opsets.push(OperatorSetIdProto {
            domain: String::new(),
            version: ONNX_VERSION,
        });
    }
    Ok(model.encode_to_vec().into())
}

fn cut_graph(graph: &mut GraphProto) {
    let batch = batch_axis(graph);
    let mut is_cut = false;
    let nodes = graph.node.iter_mut();
    for node in nodes.filter(|node| node.op_type == "ZipMap" && node.domain == "ai.onnx.ml") {
        let output = node.output.first();
        let Some(value) = graph.output.iter_mut().find(|v| Some(&v.name) == output) else {
            continue;
        };
        graph
            .value_info
            .retain(|described| described.name != value.name);
        is_cut = true;
        value.r#type = Some(probabilities(batch.clone(), class_count(node)));
        node.op_type = "Identity".to_owned();
        node.domain.clear();
        node.attribute.clear();
    }
    if is_cut {
        graph
            .output
            .iter_mut()
            .for_each(|value| open_labels(value, &batch));
    }
}

/// onnxmltools declares one label whatever the batch.
fn open_labels(value: &mut ValueInfoProto, batch: &Dimension) {
    let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    if let Some(type_proto::Value::TensorType(tensor)) = kind
        && let Some([axis]) = tensor.shape.as_mut().map(|shape| shape.dim.as_mut_slice())
        && axis.value == Some(dimension::Value::DimValue(1))
    {
        *axis = batch.clone();
    }
}

/// The first axis of the first input that has one.
fn batch_axis(graph: &GraphProto) -> Dimension {
    let shapes =
        graph
            .input
            .iter()
            .filter_map(|input| match input.r#type.as_ref()?.value.as_ref()? {
                type_proto::Value::TensorType(tensor) => tensor.shape.as_ref(),
            });
    let mut axes = shapes.filter_map(|shape| shape.dim.first());
    axes.next().cloned().unwrap_or_default()
}

/// Labels stand in one of two attributes.
fn class_count(node: &NodeProto) -> usize {
    let labels = node.attribute.iter();
    let counts = labels.map(|attribute| attribute.ints.len().max(attribute.strings.len()));
    counts.max().unwrap_or_default()
}

fn probabilities(batch: Dimension, classes: usize) -> TypeProto {
    let classes = Dimension {
        value: i64::try_from(classes).ok().map(dimension::Value::DimValue),
        ..Dimension::default()
    };
    TypeProto {
        value: Some(type_proto::Value::TensorType(type_proto::Tensor {
            elem_type: DataType::Float.into(),
            shape: Some(TensorShapeProto {
                dim: vec![batch, classes],
            }),
        })),
        ..TypeProto::default()
    }
}
