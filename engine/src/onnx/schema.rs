//! The fields of the ONNX messages that may appear, and how each is encoded.
//!
//! From onnx.proto at IR version 14. What is not here is refused by number.

/// A message of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Value,
    Type,
    TensorType,
    Sequence,
    Map,
    Optional,
    Shape,
    Dimension,
    Opset,
    Property,
    Annotation,
}

/// How a field is encoded and whether it may repeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    Int,
    Ints,
    Float,
    Floats,
    Doubles,
    Text,
    Texts,
    Bytes,
    ManyBytes,
    One(Message),
    Many(Message),
    /// A part of the format that is never served, by its name.
    Unsupported(&'static str),
    /// A type that is no tensor, by its name.
    NoTensor(&'static str),
}

impl Rule {
    /// True where protobuf would merge or overwrite a second occurrence.
    pub(super) fn is_single(self) -> bool {
        matches!(
            self,
            Self::Int | Self::Float | Self::Text | Self::Bytes | Self::One(_)
        )
    }
}

/// Numbers of the fields whose content the walk looks at.
pub(super) mod field {
    pub(in super::super) const MODEL_IR_VERSION: u32 = 1;
    pub(in super::super) const MODEL_GRAPH: u32 = 7;
    pub(in super::super) const GRAPH_INITIALIZER: u32 = 5;
    pub(in super::super) const GRAPH_INPUT: u32 = 11;
    pub(in super::super) const GRAPH_OUTPUT: u32 = 12;
    pub(in super::super) const NODE_OUTPUT: u32 = 2;
    pub(in super::super) const NODE_NAME: u32 = 3;
    pub(in super::super) const NODE_OPERATOR: u32 = 4;
    pub(in super::super) const NODE_DOMAIN: u32 = 7;
    pub(in super::super) const TENSOR_DIMS: u32 = 1;
    pub(in super::super) const TENSOR_TYPE: u32 = 2;
    pub(in super::super) const TENSOR_NAME: u32 = 8;
    pub(in super::super) const TENSOR_RAW: u32 = 9;
    pub(in super::super) const TENSOR_EXTERNAL: u32 = 13;
    pub(in super::super) const TENSOR_LOCATION: u32 = 14;
    pub(in super::super) const VALUE_NAME: u32 = 1;
    pub(in super::super) const ELEMENT_TYPE: u32 = 1;
    pub(in super::super) const DIMENSION_VALUE: u32 = 1;
    pub(in super::super) const OPSET_DOMAIN: u32 = 1;
    pub(in super::super) const OPSET_VERSION: u32 = 2;
    pub(in super::super) const PROPERTY_KEY: u32 = 1;
}

/// The rule for field `number` of `message`; `None` when the format has no such field.
pub(super) fn rule(message: Message, number: u32) -> Option<Rule> {
    use Rule::{Bytes, Doubles, Float, Floats, Int, Ints, Many, ManyBytes, One, Text, Texts};
    let rule = match (message, number) {
        (Message::Model, 1 | 5) => Int,
        (Message::Model, 2..=4 | 6) => Text,
        (Message::Model, 7) => One(Message::Graph),
        (Message::Model, 8) => Many(Message::Opset),
        (Message::Model, 14) => Many(Message::Property),
        (Message::Model, 20) => Rule::Unsupported("training information"),
        (Message::Model, 25) => Rule::Unsupported("functions of its own"),
        (Message::Model, 26) => Rule::Unsupported("device configurations"),
        (Message::Graph, 1) => Many(Message::Node),
        (Message::Graph, 2 | 10) => Text,
        (Message::Graph, 5) => Many(Message::Tensor),
        (Message::Graph, 11..=13) => Many(Message::Value),
        (Message::Graph, 14) => Many(Message::Annotation),
        (Message::Graph, 15) => Many(Message::SparseTensor),
        (Message::Graph, 16) => Many(Message::Property),
        (Message::Node, 1 | 2) => Texts,
        (Message::Node, 3 | 4 | 6..=8) => Text,
        (Message::Node, 5) => Many(Message::Attribute),
        (Message::Node, 9) => Many(Message::Property),
        (Message::Node, 10) => Rule::Unsupported("device configurations"),
        (Message::Attribute, 1 | 13) => Text,
        (Message::Attribute, 2) => Float,
        (Message::Attribute, 3 | 20) => Int,
        (Message::Attribute, 4) => Bytes,
        (Message::Attribute, 5) => One(Message::Tensor),
        (Message::Attribute, 6) => One(Message::Graph),
        (Message::Attribute, 7) => Floats,
        (Message::Attribute, 8) => Ints,
        (Message::Attribute, 9) => ManyBytes,
        (Message::Attribute, 10) => Many(Message::Tensor),
        (Message::Attribute, 11) => Many(Message::Graph),
        (Message::Attribute, 14 | 15) => Rule::Unsupported("types as attributes"),
        (Message::Attribute, 21) => Rule::Unsupported("attributes of a function"),
        (Message::Attribute, 22) => One(Message::SparseTensor),
        (Message::Attribute, 23) => Many(Message::SparseTensor),
        (Message::Tensor, 1 | 5 | 7 | 11) => Ints,
        (Message::Tensor, 2 | 14) => Int,
        (Message::Tensor, 3) => Rule::Unsupported("tensors in segments"),
        (Message::Tensor, 4) => Floats,
        (Message::Tensor, 6) => ManyBytes,
        (Message::Tensor, 8 | 12) => Text,
        (Message::Tensor, 9) => Bytes,
        (Message::Tensor, 10) => Doubles,
        (Message::Tensor, 13 | 16) => Many(Message::Property),
        (Message::SparseTensor, 1 | 2) => One(Message::Tensor),
        (Message::SparseTensor, 3) => Ints,
        (Message::Value, 1 | 3) => Text,
        (Message::Value, 2) => One(Message::Type),
        (Message::Value, 4) => Many(Message::Property),
        (Message::Type, 1) => One(Message::TensorType),
        (Message::Type, 4) => One(Message::Sequence),
        (Message::Type, 5) => One(Message::Map),
        (Message::Type, 6) => Text,
        (Message::Type, 7) => Rule::NoTensor("opaque value"),
        (Message::Type, 8) => Rule::NoTensor("sparse tensor"),
        (Message::Type, 9) => One(Message::Optional),
        (Message::Sequence | Message::Optional, 1) | (Message::Map, 2) => One(Message::Type),
        (Message::Map, 1) => Int,
        (Message::TensorType, 1) => Int,
        (Message::TensorType, 2) => One(Message::Shape),
        (Message::Shape, 1) => Many(Message::Dimension),
        (Message::Dimension, 1) => Int,
        (Message::Dimension, 2 | 3) => Text,
        (Message::Opset, 1) => Text,
        (Message::Opset, 2) => Int,
        (Message::Property, 1 | 2) => Text,
        (Message::Annotation, 1) => Text,
        (Message::Annotation, 2) => Many(Message::Property),
        _ => return None,
    };
    Some(rule)
}
