//! The structural check takes good files and refuses the others with a reason.

use std::sync::Arc;

use engine::proto::tensor_proto::{DataLocation, DataType};
use engine::proto::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, StringStringEntryProto, TensorProto, TrainingInfoProto,
};
use engine::{CheckError, OnnxFile, OnnxLimits, TensorSpec};
use proptest::prelude::*;

use crate::fixture::{
    TreeNode, Trees, check, check_bytes, float_tensor, graph_attribute, int_tensor, logistic,
    model, node, value,
};

fn stump() -> Trees {
    let split = TreeNode::Split {
        feature: 1,
        threshold: 0.5,
        missing_is_yes: true,
        yes: 1,
        no: 2,
    };
    let leaf = |weight| TreeNode::Leaf(vec![(1, weight)]);
    Trees {
        mode: "BRANCH_LEQ",
        trees: vec![vec![split, leaf(-0.5), leaf(0.25)]],
    }
}

fn refusal(model: &ModelProto) -> String {
    check(model).unwrap_err().to_string()
}

/// `f` applied to a good model's graph.
fn altered(f: impl FnOnce(&mut GraphProto)) -> ModelProto {
    let mut model = logistic(3);
    f(model.graph.as_mut().unwrap());
    model
}

#[test]
fn a_good_file_gives_its_signature_and_operators() {
    let file = check(&stump().boosted(4)).unwrap();
    let spec = |name: &str, shape: &[i64]| TensorSpec {
        name: name.into(),
        datatype: engine::DataType::Fp32,
        shape: shape.to_vec(),
    };
    assert_eq!(file.signature().inputs, [spec("features", &[-1, 4])]);
    assert_eq!(file.signature().outputs, [spec("probability", &[-1, 1])]);
    let operators: Vec<_> = file
        .operators()
        .iter()
        .map(|found| format!("{}.{} x {}", found.domain, found.name, found.nodes))
        .collect();
    assert_eq!(
        operators,
        [
            "ai.onnx.Sigmoid x 1",
            "ai.onnx.Slice x 1",
            "ai.onnx.ml.TreeEnsembleClassifier x 1"
        ]
    );
}

#[test]
fn initializers_among_the_inputs_are_no_inputs() {
    let model = altered(|graph| graph.input.push(value("bias", DataType::Float, &[1])));
    let file = check(&model).unwrap();
    assert_eq!(file.signature().inputs.len(), 1);
}

#[test]
fn a_file_cut_at_any_length_is_refused() {
    for model in [stump().boosted(4), logistic(3)] {
        // The last import serves trees only: without it the logistic model is whole.
        let mut model = model;
        if check(&model)
            .unwrap()
            .operators()
            .iter()
            .all(|o| o.domain == "ai.onnx")
        {
            model.opset_import.truncate(1);
        }
        let bytes = model.encode_to_vec();
        assert!(check_bytes(&bytes).is_ok());
        for length in 0..bytes.len() {
            let error = check_bytes(&bytes[..length]).unwrap_err();
            assert!(
                matches!(
                    error,
                    CheckError::Truncated { .. }
                        | CheckError::Missing { .. }
                        | CheckError::Operator { .. }
                ),
                "{length} bytes: {error}"
            );
        }
    }
    let bytes = stump().boosted(4).encode_to_vec();
    assert_eq!(
        check_bytes(&bytes[..100]).unwrap_err().to_string(),
        "file is cut short at byte 100"
    );
}

fn external(name: &str, location: &str) -> TensorProto {
    TensorProto {
        raw_data: vec![],
        data_location: Some(DataLocation::External as i32),
        external_data: vec![StringStringEntryProto {
            key: "location".into(),
            value: location.into(),
        }],
        ..float_tensor(name, &[1], &[0.0])
    }
}

fn constant(attribute: AttributeProto) -> NodeProto {
    let mut node = node("Constant", &[], &["outside"]);
    node.attribute = vec![attribute];
    node
}

/// The model with the external tensor `w` in each place where a file can carry a tensor.
fn carriers(location: &str) -> Vec<ModelProto> {
    let w = || external("w", location);
    let sparse = |values: bool| SparseTensorProto {
        values: Some(if values {
            w()
        } else {
            float_tensor("v", &[1], &[1.0])
        }),
        indices: Some(if values { int_tensor("i", &[0]) } else { w() }),
        dims: vec![3],
    };
    let attribute = || AttributeProto {
        name: "value".into(),
        ..Default::default()
    };
    let inner = GraphProto {
        initializer: vec![w()],
        ..Default::default()
    };
    let with_node =
        |attribute: AttributeProto| altered(|graph| graph.node.insert(0, constant(attribute)));
    vec![
        altered(|graph| graph.initializer.push(w())),
        altered(|graph| graph.sparse_initializer.push(sparse(true))),
        altered(|graph| graph.sparse_initializer.push(sparse(false))),
        with_node(AttributeProto {
            t: Some(w()),
            ..attribute()
        }),
        with_node(AttributeProto {
            tensors: vec![w()],
            ..attribute()
        }),
        with_node(AttributeProto {
            sparse_tensor: Some(sparse(true)),
            ..attribute()
        }),
        with_node(graph_attribute("then_branch", inner.clone())),
        with_node(AttributeProto {
            graphs: vec![inner],
            ..attribute()
        }),
    ]
}

#[test]
fn external_data_is_refused_wherever_it_stands() {
    for location in [
        "weights.bin",
        "../../etc/passwd",
        "/etc/passwd",
        "*/_ORT_MEM_ADDR_/*",
    ] {
        for model in carriers(location) {
            let error = refusal(&model);
            assert_eq!(error, "tensor `w` keeps its data in an external file");
        }
    }
    let marked_only = altered(|graph| {
        graph.initializer[0].data_location = Some(DataLocation::External as i32);
    });
    assert!(refusal(&marked_only).contains("external file"));
}

#[test]
fn functions_and_training_graphs_are_refused() {
    let mut model = logistic(3);
    model.functions.push(FunctionProto {
        name: Some("f".into()),
        node: vec![constant(AttributeProto {
            t: Some(external("w", "x")),
            ..Default::default()
        })],
        ..Default::default()
    });
    let sentence = "model uses functions of its own, which is not supported";
    assert_eq!(refusal(&model), sentence);
    let mut model = logistic(3);
    model.training_info.push(TrainingInfoProto::default());
    assert!(refusal(&model).contains("training information"));
    let mut model = logistic(3);
    model.metadata_props.push(StringStringEntryProto {
        key: "ort_config".into(),
        value: "{}".into(),
    });
    assert!(refusal(&model).contains("session configuration"));
}

#[test]
fn operators_that_are_not_allowed_are_named_with_their_node() {
    let with_node = |operator: &str, domain: &str| {
        altered(|graph| {
            let mut extra = node(operator, &["features"], &["extra"]);
            extra.domain = domain.into();
            graph.node.push(extra);
        })
    };
    assert_eq!(
        refusal(&with_node("Foo", "")),
        "operator `Foo` of domain `ai.onnx` is not allowed (node `Foo_extra`)"
    );
    assert_eq!(
        refusal(&with_node("Gelu", "com.microsoft")),
        "operator `Gelu` of domain `com.microsoft` is not allowed (node `Gelu_extra`)"
    );
    assert_eq!(
        refusal(&with_node("Gelu", "ai.onnx")),
        "operator `Gelu` of domain `ai.onnx` is not allowed (node `Gelu_extra`): \
         it needs operator set 20, the file imports 17"
    );
    assert!(refusal(&with_node("ZipMap", "ai.onnx.ml")).contains("export the model without it"));
}

#[test]
fn operator_sets_outside_the_range_are_refused() {
    let with_import = |domain: &str, version| {
        let mut model = logistic(3);
        model.opset_import = vec![OperatorSetIdProto {
            domain: domain.into(),
            version,
        }];
        refusal(&model)
    };
    assert_eq!(
        with_import("", 28),
        "operator set 28 of domain `ai.onnx` is not allowed, 1 to 27 are"
    );
    assert!(with_import("", 0).contains("operator set 0"));
    assert!(with_import("ai.onnx.ml", 6).contains("1 to 5 are"));
    assert!(with_import("com.microsoft", 1).ends_with(": the file does not import the domain"));
    let mut model = stump().boosted(4);
    model.opset_import.truncate(1);
    assert!(refusal(&model).ends_with(": the file does not import the domain"));
}

const GRAPH_OUTPUT: u8 = 12;
const GRAPH_VALUE: u8 = 13;

/// A field of bytes; the messages that we export have no types but tensors.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut field = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        field.push(0x80 | (length & 0x7f) as u8);
        length >>= 7;
    }
    field.push(length as u8);
    [field, bytes.to_vec()].concat()
}

/// The logistic model with one value more (or instead, where it is the output) of any type.
fn typed_value(place: u8, name: &str, kind: &[u8]) -> Vec<u8> {
    let mut model = logistic(3);
    let mut graph = model.graph.take().unwrap();
    if place == GRAPH_OUTPUT {
        graph.output.clear();
    }
    let value = [field(1, name.as_bytes()), field(2, kind)].concat();
    let graph = [graph.encode_to_vec(), field(place, &value)].concat();
    [model.encode_to_vec(), field(7, &graph)].concat()
}

#[test]
fn values_that_are_no_tensor_are_refused() {
    let tensor = value("", DataType::Float, &[-1, 1]).r#type.unwrap();
    let tensor = tensor.encode_to_vec();
    let map = field(5, &[vec![1 << 3, 7], field(2, &tensor)].concat());
    for (kind, name) in [
        (field(4, &field(1, &tensor)), "sequence"),
        (field(4, &field(1, &map)), "sequence"),
        (field(9, &field(1, &tensor)), "optional value"),
        (map.clone(), "map"),
    ] {
        let refused = check_bytes(&typed_value(GRAPH_OUTPUT, "probability", &kind));
        assert_eq!(
            refused.unwrap_err().to_string(),
            format!("value `probability` is a {name}, which has no tensor form")
        );
        // Between the nodes it may be anything.
        check_bytes(&typed_value(GRAPH_VALUE, "margin", &kind)).unwrap();
    }
    for (kind, name) in [(7, "opaque value"), (8, "sparse tensor")] {
        let refused = check_bytes(&typed_value(GRAPH_VALUE, "margin", &field(kind, &[])));
        assert!(refused.unwrap_err().to_string().contains(name));
    }
    let complex = altered(|graph| {
        graph.input[0] = value("features", DataType::Complex64, &[-1, 3]);
    });
    assert!(refusal(&complex).contains("unsupported element type 14"));
    let without = altered(|graph| graph.output[0].name = "nothing".into());
    assert!(refusal(&without).contains("is an output that no node computes"));
    let twice = altered(|graph| {
        let again = graph.node[0].clone();
        graph.node.push(again);
    });
    assert!(refusal(&twice).contains("is computed by two nodes"));
}

#[test]
fn tensors_whose_shape_and_bytes_disagree_are_refused() {
    let with_dims = |dims: &[i64]| {
        let dims = dims.to_vec();
        refusal(&altered(|graph| graph.initializer[0].dims = dims))
    };
    assert!(with_dims(&[1, 4]).contains("3 elements instead of 4"));
    assert!(with_dims(&[-1]).contains("impossible shape"));
    assert!(with_dims(&[1 << 40, 1 << 40]).contains("impossible shape"));
    assert!(with_dims(&[i64::MAX]).contains("impossible shape"));
    assert!(with_dims(&[1; 17]).contains("more than 16 axes"));
    let two = altered(|graph| graph.initializer[0].float_data = vec![0.0; 3]);
    assert!(refusal(&two).contains("in two fields"));
}

#[test]
fn bombs_end_at_a_limit() {
    let mut graph = GraphProto::default();
    for _ in 0..20 {
        let mut outer = node("If", &["c"], &["y"]);
        outer.attribute = vec![graph_attribute("then_branch", graph)];
        graph = GraphProto {
            node: vec![outer],
            ..Default::default()
        };
    }
    assert!(refusal(&model(graph)).contains("inside one another"));
    // A graph of empty nodes takes two bytes for each.
    let empty = [0x0a, 0x00].repeat(200_000);
    let mut bytes = vec![0x08, 8, 0x3a];
    prost_length(empty.len(), &mut bytes);
    bytes.extend_from_slice(&empty);
    assert!(check_bytes(&bytes).is_err());
    let bytes: Arc<[u8]> = logistic(3).encode_to_vec().into();
    let limits = |change: fn(&mut OnnxLimits)| {
        let mut limits = OnnxLimits::default();
        change(&mut limits);
        OnnxFile::check(Arc::clone(&bytes), &limits)
            .unwrap_err()
            .to_string()
    };
    assert!(limits(|l| l.file_bytes_max = 10).contains("more than the 10 allowed"));
    assert_eq!(limits(|l| l.nodes_max = 6), "model has more than 6 nodes");
    assert_eq!(
        limits(|l| l.tensors_max = 6),
        "model has more than 6 tensors"
    );
    assert!(limits(|l| l.strings_max = 5).contains("5 strings"));
    assert!(limits(|l| l.messages_max = 5).contains("5 protobuf messages"));
    assert!(limits(|l| l.values_max = 0).contains("0 inputs"));
}

fn prost_length(mut length: usize, bytes: &mut Vec<u8>) {
    while length >= 0x80 {
        bytes.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// What passes must also decode, so that no later parser meets bytes that it cannot read.
    #[test]
    fn flipped_and_cut_bytes_never_panic(
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        trees in any::<bool>(),
    ) {
        let model = if trees { stump().boosted(4) } else { logistic(3) };
        let mut bytes = model.encode_to_vec();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(file) = check_bytes(&bytes) {
            prop_assert!(ModelProto::decode(&file.bytes()[..]).is_ok());
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(check_bytes(&bytes).is_err());
    }
}
