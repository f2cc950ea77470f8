//! Trees with the operators that exporters put around them, on our evaluator and on ONNX Runtime.

use engine::proto::tensor_proto::DataType;
use engine::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, attribute_proto};
use engine::{EngineKind, Model, Tensor, TensorData};

use crate::fixture::{
    TreeNode, Trees, check, float_tensor, floats, int, int_tensor, ints, model, node, session,
    text, texts, value,
};

fn ml(operator: &str, io: [&str; 2], attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        domain: "ai.onnx.ml".into(),
        attribute: attributes,
        ..node(operator, &[io[0]], &[io[1]])
    }
}

fn float(name: &str, value: f32) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: attribute_proto::AttributeType::Float as i32,
        f: value,
        ..Default::default()
    }
}

/// A stump on each of `columns`, which adds 1 where the column is up to its threshold.
fn stumps(columns: usize) -> Trees {
    let tree = |column: usize| {
        let split = TreeNode::Split {
            feature: column as i64,
            threshold: 0.25,
            missing_is_yes: false,
            yes: 1,
            no: 2,
        };
        let weight = (1 << column) as f32;
        vec![
            split,
            TreeNode::Leaf(vec![(0, weight)]),
            TreeNode::Leaf(vec![(0, 0.0)]),
        ]
    };
    Trees {
        mode: "BRANCH_LEQ",
        trees: (0..columns).map(tree).collect(),
    }
}

/// Amounts are imputed, scaled and normalized; a number is spread over columns; a word is mapped.
fn pipeline(norm: &str) -> ModelProto {
    let mut concat = node("Concat", &["normal", "spread", "rank"], &["features"]);
    concat.attribute = vec![int("axis", 1)];
    let mut ensemble = stumps(7).regressor(1);
    ensemble.output = vec!["sum".into()];
    let encoder = vec![
        texts("keys_strings", &["low", "high"]),
        floats("values_floats", vec![0.0, 1.0]),
        float("default_float", 0.5),
    ];
    model(GraphProto {
        name: "pipeline".into(),
        node: vec![
            ml(
                "Imputer",
                ["amounts", "filled"],
                vec![
                    floats("imputed_value_floats", vec![1.0, 2.0, 3.0]),
                    float("replaced_value_float", f32::NAN),
                ],
            ),
            ml(
                "Scaler",
                ["filled", "scaled"],
                vec![
                    floats("offset", vec![1.0, 0.0, -1.0]),
                    floats("scale", vec![0.5; 3]),
                ],
            ),
            ml("Normalizer", ["scaled", "normal"], vec![text("norm", norm)]),
            ml(
                "OneHotEncoder",
                ["number", "cube"],
                vec![ints("cats_int64s", vec![3, 1, 2]), int("zeros", 1)],
            ),
            node("Reshape", &["cube", "shape"], &["spread"]),
            ml("LabelEncoder", ["word", "rank"], encoder),
            concat,
            ensemble,
            node("Mul", &["sum", "half"], &["product"]),
            node("Add", &["product", "shift"], &["moved"]),
            node("Squeeze", &["moved", "one"], &["answer"]),
            node("Sigmoid", &["moved"], &["chance"]),
        ],
        initializer: vec![
            int_tensor("shape", &[-1, 3]),
            int_tensor("one", &[1]),
            float_tensor("half", &[1], &[0.5]),
            float_tensor("shift", &[1, 1], &[-1.0]),
        ],
        input: vec![
            value("amounts", DataType::Float, &[-1, 3]),
            value("number", DataType::Int64, &[-1, 1]),
            value("word", DataType::String, &[-1, 1]),
        ],
        output: vec![
            value("answer", DataType::Float, &[-1]),
            value("chance", DataType::Float, &[-1, 1]),
        ],
        ..Default::default()
    })
}

fn inputs() -> [Tensor; 3] {
    let amounts = vec![
        1.0,
        2.0,
        3.0,
        f32::NAN,
        -2.0,
        0.0,
        1.0,
        0.0,
        -1.0,
        5.0,
        0.0,
        f32::NAN,
        -3.0,
        8.0,
        -9.0,
    ];
    let words = ["low", "high", "none", "low", ""].map(|word| word.as_bytes().to_vec());
    [
        Tensor::new(vec![5, 3], TensorData::Fp32(amounts)).unwrap(),
        Tensor::new(vec![5, 1], TensorData::Int64(vec![1, 2, 3, 4, -1])).unwrap(),
        Tensor::new(vec![5, 1], TensorData::Bytes(words.to_vec())).unwrap(),
    ]
}

#[test]
fn whole_pipelines_are_folded_into_the_evaluator() {
    for norm in ["MAX", "L1", "L2"] {
        let file = check(&pipeline(norm)).unwrap();
        let mut ours = session(&file, EngineKind::Trees).unwrap();
        let found = ours.run(&inputs()).unwrap();
        assert_eq!(
            (found[0].shape(), found[1].shape()),
            (&[5][..], &[5, 1][..])
        );
        if let Some(mut reference) = session(&file, EngineKind::OnnxRuntime) {
            let expected = reference.run(&inputs()).unwrap();
            for (found, expected) in found.iter().zip(&expected) {
                let pairs = found
                    .as_f32()
                    .unwrap()
                    .iter()
                    .zip(expected.as_f32().unwrap());
                for (found, expected) in pairs {
                    assert!(
                        (found - expected).abs() <= 1e-6,
                        "{norm}: {found}, {expected}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_pipeline_gives_what_its_operators_say() {
    let file = check(&pipeline("L1")).unwrap();
    let mut ours = session(&file, EngineKind::Trees).unwrap();
    let found = ours.run(&inputs()).unwrap();
    // The first row: 1, 2, 3 scaled to 0, 1, 2 and normalized to 0, 1/3, 2/3; 1 is the second of
    // the categories; `low` is 0. Up to 0.25 are columns 0, 3, 5 and 6.
    let sum = f32::from(1_u8 + 8 + 32 + 64);
    assert_eq!(found[0].as_f32().unwrap()[0], sum * 0.5 - 1.0);
    // The third row: 1, 0, -1 scaled to zeros, which stay; 3 is the first category; no rank.
    let sum = f32::from(1_u8 + 2 + 4 + 16 + 32);
    assert_eq!(found[0].as_f32().unwrap()[2], sum * 0.5 - 1.0);
}

#[test]
fn what_cannot_be_folded_is_refused_by_name() {
    let refusal = |change: fn(&mut GraphProto)| {
        let mut model = pipeline("L1");
        change(model.graph.as_mut().unwrap());
        let file = check(&model).unwrap();
        Model::load(&file, EngineKind::Trees)
            .unwrap_err()
            .to_string()
    };
    let strict = refusal(|graph| graph.node[3].attribute[1].i = 0);
    assert!(
        strict.contains("operator `OneHotEncoder` is left to other engines"),
        "{strict}"
    );
    let twice = refusal(|graph| graph.node[3].attribute[0].ints[0] = 1);
    assert!(
        twice.contains("operator `OneHotEncoder` is left to other engines"),
        "{twice}"
    );
    let wide = refusal(|graph| graph.initializer[2] = float_tensor("half", &[1, 5], &[0.5; 5]));
    assert!(
        wide.contains("operator `Mul` is left to other engines"),
        "{wide}"
    );
}
