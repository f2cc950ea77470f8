//! Small ONNX files, written as the trainer writes its own.

pub(crate) use engine::proto::tensor_proto::DataType;
use engine::proto::tensor_shape_proto::{Dimension, dimension};
use engine::proto::{
    GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};

/// `features` [-1, F] → `score` [-1, 1], the weighted sum plus `bias`, and `probability` [-1, 1],
/// its sigmoid.
pub(crate) fn affine(weights: &[f32], bias: f32) -> Vec<u8> {
    let columns = i64::try_from(weights.len()).expect("few columns");
    model(GraphProto {
        name: "affine".into(),
        node: vec![
            node("Gemm", &["features", "weights", "bias"], "score"),
            node("Sigmoid", &["score"], "probability"),
        ],
        initializer: vec![
            tensor("weights", &[columns, 1], weights),
            tensor("bias", &[1], &[bias]),
        ],
        input: vec![value("features", DataType::Float, &[-1, columns])],
        output: vec![
            value("score", DataType::Float, &[-1, 1]),
            value("probability", DataType::Float, &[-1, 1]),
        ],
        ..Default::default()
    })
}

/// `i` INT64 [-1] → `j` INT64 [-1], unchanged.
pub(crate) fn whole_numbers() -> Vec<u8> {
    identity(["i", "j"], DataType::Int64, &[-1])
}

/// One tensor of `dims`, unchanged, under another name.
pub(crate) fn identity(names: [&str; 2], datatype: DataType, dims: &[i64]) -> Vec<u8> {
    let [input, output] = names;
    model(GraphProto {
        name: "identity".into(),
        node: vec![node("Identity", &[input], output)],
        input: vec![value(input, datatype, dims)],
        output: vec![value(output, datatype, dims)],
        ..Default::default()
    })
}

pub(crate) fn model(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto {
        domain: String::new(),
        version: 17,
    };
    ModelProto {
        ir_version: 8,
        opset_import: vec![opset],
        graph: Some(graph),
        ..Default::default()
    }
    .encode_to_vec()
}

pub(crate) fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        op_type: operator.into(),
        name: format!("{operator}_{output}"),
        input: inputs.iter().map(|&name| name.into()).collect(),
        output: vec![output.into()],
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

pub(crate) fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
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
