//! Nodes, constants and attributes of a graph.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

/// A graph's nodes and constants.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    nodes: &'a [NodeProto],
    constants: HashMap<&'a str, &'a TensorProto>,
}

impl<'a> Graph<'a> {
    pub(super) fn new(proto: &'a GraphProto) -> Result<Self, String> {
        if !proto.sparse_initializer.is_empty() {
            return Err("sparse initializers are left to other engines".to_owned());
        }
        let mut constants: HashMap<_, _> = proto
            .initializer
            .iter()
            .map(|tensor| (tensor.name.as_str(), tensor))
            .collect();
        for node in &proto.node {
            if let (true, [output]) = (is(node, "", "Constant"), node.output.as_slice())
                && let Some(tensor) = attribute(node, "value").and_then(|value| value.t.as_ref())
            {
                constants.insert(output, tensor);
            }
        }
        Ok(Self {
            nodes: &proto.node,
            constants,
        })
    }

    /// The nodes that the values `outputs` need, in the file's order, but for constants.
    pub(super) fn needed<'o>(&self, outputs: impl Iterator<Item = &'o str>) -> Vec<&'a NodeProto> {
        let mut wanted: HashSet<&str> = outputs.collect();
        let mut nodes = Vec::new();
        for node in self.nodes.iter().rev() {
            if node
                .output
                .iter()
                .any(|name| wanted.contains(name.as_str()))
                && !is(node, "", "Constant")
            {
                wanted.extend(node.input.iter().map(String::as_str));
                nodes.push(node);
            }
        }
        nodes.reverse();
        nodes
    }

    /// The constant `value`.
    pub(super) fn constant(&self, value: &str) -> Option<&'a TensorProto> {
        self.constants.get(value).copied()
    }

    /// The integers of the constant `value`.
    pub(super) fn constant_ints(&self, value: &str) -> Option<Vec<i64>> {
        let tensor = self.constant(value)?;
        let raw = &tensor.raw_data;
        match DataType::try_from(tensor.data_type).ok()? {
            DataType::Int64 if raw.is_empty() => Some(tensor.int64_data.clone()),
            DataType::Int64 => Some(chunks(raw).map(i64::from_le_bytes).collect()),
            DataType::Int32 if raw.is_empty() => {
                Some(tensor.int32_data.iter().map(|&v| i64::from(v)).collect())
            }
            DataType::Int32 => Some(
                chunks(raw)
                    .map(|b| i64::from(i32::from_le_bytes(b)))
                    .collect(),
            ),
            _ => None,
        }
    }
}

/// The bytes of a tensor of UINT8.
pub(super) fn tensor_bytes(tensor: &TensorProto) -> Option<Vec<u8>> {
    (tensor.data_type == DataType::Uint8 as i32).then_some(())?;
    if !tensor.raw_data.is_empty() {
        return Some(tensor.raw_data.clone());
    }
    let bytes = tensor.int32_data.iter().map(|&v| u8::try_from(v).ok());
    bytes.collect()
}

/// The integers of an attribute; none when it is not there.
pub(super) fn ints<'a>(node: &'a NodeProto, name: &str) -> &'a [i64] {
    attribute(node, name).map_or(&[], |found| found.ints.as_slice())
}

/// The floats of an attribute; none when it is not there.
pub(super) fn floats<'a>(node: &'a NodeProto, name: &str) -> &'a [f32] {
    attribute(node, name).map_or(&[], |found| found.floats.as_slice())
}

/// The texts of an attribute; none when it is not there.
pub(super) fn texts<'a>(node: &'a NodeProto, name: &str) -> &'a [Vec<u8>] {
    attribute(node, name).map_or(&[], |found| found.strings.as_slice())
}

/// The text of an attribute.
pub(super) fn text<'a>(node: &'a NodeProto, name: &str) -> Option<&'a [u8]> {
    attribute(node, name).map(|found| found.s.as_slice())
}

/// The number of an attribute, or its default.
pub(super) fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    attribute(node, name).map_or(default, |found| found.i)
}

pub(super) fn chunks<const N: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; N]> {
    raw.chunks_exact(N)
        .filter_map(|chunk| <[u8; N]>::try_from(chunk).ok())
}

/// True when `node` is this operator; the empty domain has two spellings.
pub(super) fn is(node: &NodeProto, domain: &str, operator: &str) -> bool {
    let found = if node.domain == "ai.onnx" {
        ""
    } else {
        &node.domain
    };
    found == domain && node.op_type == operator
}

pub(super) fn attribute<'a>(node: &'a NodeProto, name: &str) -> Option<&'a AttributeProto> {
    node.attribute
        .iter()
        .find(|attribute| attribute.name == name)
}

/// The name of a node for messages: its own, or its first output's.
pub(super) fn label(node: &NodeProto) -> &str {
    match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) => output,
        (name, _) => name,
    }
}
