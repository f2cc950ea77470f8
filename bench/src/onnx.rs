//! The few ONNX protobuf messages and fields that our models need, so that a file can be written.
//!
//! Field numbers are those of `onnx.proto3` (onnx 1.17, IR version 8).

use prost::{Enumeration, Message};

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Model {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<Value>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<Value>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub s: Vec<u8>,
    #[prost(float, repeated, tag = "7")]
    pub floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub strings: Vec<Vec<u8>>,
    #[prost(enumeration = "AttributeType", tag = "20")]
    pub r#type: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub(crate) enum AttributeType {
    Undefined = 0,
    Int = 2,
    String = 3,
    Floats = 6,
    Ints = 7,
    Strings = 8,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Value {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Type {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Dimension {
    #[prost(oneof = "Extent", tags = "1, 2")]
    pub value: Option<Extent>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Extent {
    #[prost(int64, tag = "1")]
    Fixed(i64),
    #[prost(string, tag = "2")]
    Named(String),
}

const FLOAT: i32 = 1;
const INT64: i32 = 7;

impl Model {
    /// A file of `graph` for operator sets 17 of ONNX and 3 of `ai.onnx.ml`.
    pub(crate) fn of(graph: Graph) -> Self {
        let set = |domain: &str, version| OperatorSet {
            domain: domain.into(),
            version,
        };
        Self {
            ir_version: 8,
            producer_name: "loopgate-bench".into(),
            graph: Some(graph),
            opset_import: vec![set("", 17), set("ai.onnx.ml", 3)],
        }
    }
}

impl Node {
    pub(crate) fn new(op_type: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        Self {
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: outputs.iter().map(|&name| name.into()).collect(),
            name: outputs.first().copied().unwrap_or(op_type).into(),
            op_type: op_type.into(),
            ..Self::default()
        }
    }
}

impl Attribute {
    pub(crate) fn int(name: &str, i: i64) -> Self {
        Self::of(name, AttributeType::Int, |attribute| attribute.i = i)
    }

    pub(crate) fn string(name: &str, text: &str) -> Self {
        Self::of(name, AttributeType::String, |attribute| {
            attribute.s = text.into();
        })
    }

    pub(crate) fn floats(name: &str, floats: Vec<f32>) -> Self {
        Self::of(name, AttributeType::Floats, |attribute| {
            attribute.floats = floats;
        })
    }

    pub(crate) fn ints(name: &str, ints: Vec<i64>) -> Self {
        Self::of(name, AttributeType::Ints, |attribute| attribute.ints = ints)
    }

    pub(crate) fn strings(name: &str, strings: &[&str]) -> Self {
        let strings = strings.iter().map(|text| text.as_bytes().to_vec());
        Self::of(name, AttributeType::Strings, |attribute| {
            attribute.strings = strings.collect();
        })
    }

    fn of(name: &str, r#type: AttributeType, fill: impl FnOnce(&mut Self)) -> Self {
        let mut attribute = Self {
            name: name.into(),
            ..Self::default()
        };
        attribute.set_type(r#type);
        fill(&mut attribute);
        attribute
    }
}

impl Tensor {
    pub(crate) fn floats(name: &str, dims: &[i64], data: Vec<f32>) -> Self {
        Self {
            dims: dims.to_vec(),
            data_type: FLOAT,
            float_data: data,
            name: name.into(),
            ..Self::default()
        }
    }

    pub(crate) fn int64s(name: &str, data: Vec<i64>) -> Self {
        Self {
            dims: vec![i64::try_from(data.len()).expect("a small tensor")],
            data_type: INT64,
            int64_data: data,
            name: name.into(),
            ..Self::default()
        }
    }
}

impl Value {
    /// A table of floats with any number of rows.
    pub(crate) fn rows(name: &str, columns: i64) -> Self {
        let dim = |extent| Dimension {
            value: Some(extent),
        };
        Self {
            name: name.into(),
            r#type: Some(Type {
                tensor_type: Some(TensorType {
                    elem_type: FLOAT,
                    shape: Some(Shape {
                        dim: vec![dim(Extent::Named("N".into())), dim(Extent::Fixed(columns))],
                    }),
                }),
            }),
        }
    }
}
