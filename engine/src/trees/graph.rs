//! Who computes which value, and the constants.

use std::collections::HashMap;

use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto, tensor_proto::DataType};

/// A graph's nodes by the values that they compute.
#[derive(Debug)]
pub(super) struct Graph<'a> {
    nodes: &'a [NodeProto],
    producers: HashMap<&'a str, (&'a NodeProto, usize)>,
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
        let mut producers = HashMap::new();
        for node in &proto.node {
            for (index, name) in node.output.iter().enumerate() {
                producers.insert(name.as_str(), (node, index));
            }
            if let (true, [output]) = (is(node, "", "Constant"), node.output.as_slice())
                && let Some(tensor) = attribute(node, "value").and_then(|value| value.t.as_ref())
            {
                constants.insert(output, tensor);
            }
        }
        Ok(Self {
            nodes: &proto.node,
            producers,
            constants,
        })
    }

    /// The one node that is an ensemble of trees.
    pub(super) fn only_ensemble(&self) -> Result<&'a NodeProto, String> {
        let mut found = self
            .nodes
            .iter()
            .filter(|node| node.domain == "ai.onnx.ml" && node.op_type.starts_with("TreeEnsemble"));
        let node = found.next().ok_or("it has no ensemble of trees")?;
        match found.next() {
            None => Ok(node),
            Some(_) => Err("it has more than one ensemble of trees".to_owned()),
        }
    }

    /// The node that computes `value`, and which of its outputs it is.
    pub(super) fn producer(&self, value: &str) -> Option<(&'a NodeProto, usize)> {
        self.producers.get(value).copied()
    }

    /// The integers of the constant `value`.
    pub(super) fn constant_ints(&self, value: &str) -> Option<Vec<i64>> {
        let tensor = self.constants.get(value)?;
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

fn chunks<const N: usize>(raw: &[u8]) -> impl Iterator<Item = [u8; N]> {
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
