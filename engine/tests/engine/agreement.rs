//! Every engine gives the same numbers, on missing values and on values equal to a threshold too.

use engine::proto::tensor_proto::DataType;
use engine::proto::{GraphProto, Message, ModelProto};
use engine::{DataType as Kind, EngineKind, Model, OnnxFile, Tensor, TensorData, sample_inputs};
use proptest::prelude::*;

use crate::fixture::{
    TreeNode, Trees, check, floats, int, int_tensor, ints, logistic, model, node, rows, run,
    session, value,
};

const COLUMNS: usize = 5;

/// Thresholds come from a small grid, so that inputs of the same grid meet them.
fn threshold() -> impl Strategy<Value = f32> {
    prop_oneof![
        4 => (-4_i8..5).prop_map(|step| f32::from(step) / 2.0),
        2 => -3.0_f32..3.0,
        1 => prop::sample::select(vec![0.0, -0.0, f32::MIN_POSITIVE, 1e30, f32::MAX]),
    ]
}

fn input() -> impl Strategy<Value = f32> {
    prop_oneof![
        2 => Just(f32::NAN),
        5 => (-4_i8..5).prop_map(|step| f32::from(step) / 2.0),
        3 => -3.0_f32..3.0,
        1 => prop::sample::select(vec![
            0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, 1e-45, f32::MIN_POSITIVE,
        ]),
    ]
}

/// A random tree: `shape` says how often the next open leaf is split.
fn tree(targets: i64) -> impl Strategy<Value = Vec<TreeNode>> {
    let split = (
        any::<prop::sample::Index>(),
        0..COLUMNS,
        threshold(),
        any::<bool>(),
    );
    let weights = prop::collection::vec(-1.0_f32..1.0, 64);
    (prop::collection::vec(split, 0..16), weights).prop_map(move |(splits, weights)| {
        let mut nodes = vec![TreeNode::Leaf(vec![])];
        for (at, feature, threshold, missing_is_yes) in splits {
            let leaves: Vec<_> = (0..nodes.len())
                .filter(|&at| matches!(nodes[at], TreeNode::Leaf(_)))
                .collect();
            let (yes, no) = (nodes.len(), nodes.len() + 1);
            nodes[leaves[at.index(leaves.len())]] = TreeNode::Split {
                feature: i64::try_from(feature).unwrap(),
                threshold,
                missing_is_yes,
                yes,
                no,
            };
            nodes.push(TreeNode::Leaf(vec![]));
            nodes.push(TreeNode::Leaf(vec![]));
        }
        let first = if targets == 1 { 1 } else { 0 };
        for (at, node) in nodes.iter_mut().enumerate() {
            if let TreeNode::Leaf(payload) = node {
                for target in 0..targets {
                    payload.push((first + target, weights[at * 3 % 61 + target as usize]));
                }
            }
        }
        nodes
    })
}

fn trees(mode: &'static str, targets: i64) -> impl Strategy<Value = Trees> {
    prop::collection::vec(tree(targets), 1..11).prop_map(move |trees| Trees { mode, trees })
}

fn batch() -> impl Strategy<Value = Vec<f32>> {
    (1_usize..7).prop_flat_map(|count| prop::collection::vec(input(), count * COLUMNS))
}

/// What the standard's text says, without any layout: the reference for our own evaluator.
fn naive(trees: &Trees, row: &[f32], target: i64) -> f32 {
    let mut sum = 0.0;
    for nodes in &trees.trees {
        let mut at = 0;
        loop {
            match &nodes[at] {
                TreeNode::Leaf(payload) => {
                    sum += payload
                        .iter()
                        .find(|leaf| leaf.0 == target)
                        .map_or(0.0, |leaf| leaf.1);
                    break;
                }
                TreeNode::Split {
                    feature,
                    threshold,
                    missing_is_yes,
                    yes,
                    no,
                } => {
                    let x = row[usize::try_from(*feature).unwrap()];
                    let is_yes = match trees.mode {
                        _ if x.is_nan() => *missing_is_yes,
                        "BRANCH_LEQ" => x <= *threshold,
                        "BRANCH_LT" => x < *threshold,
                        "BRANCH_GT" => x > *threshold,
                        "BRANCH_GTE" => x >= *threshold,
                        other => panic!("{other}"),
                    };
                    at = if is_yes { *yes } else { *no };
                }
            }
        }
    }
    sum
}

fn assert_close(engine: EngineKind, found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        let difference = (found - expected).abs();
        assert!(
            difference <= 1e-6,
            "{engine}: {found} instead of {expected}"
        );
    }
}

/// The exported layout on every engine in `engines`, against the reference.
fn check_boosted(trees: &Trees, values: &[f32], engines: &[EngineKind]) {
    let file = check(&trees.boosted(COLUMNS as i64)).unwrap();
    let expected: Vec<_> = values
        .chunks(COLUMNS)
        .map(|row| 1.0 / (1.0 + (-naive(trees, row, 1)).exp()))
        .collect();
    for &engine in engines {
        if let Some(mut session) = session(&file, engine) {
            assert_close(engine, &run(&mut session, values, COLUMNS), &expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn boosted_trees_with_leq_agree(trees in trees("BRANCH_LEQ", 1), values in batch()) {
        check_boosted(&trees, &values, &EngineKind::ALL);
    }

    #[test]
    fn boosted_trees_with_lt_agree(trees in trees("BRANCH_LT", 1), values in batch()) {
        check_boosted(&trees, &values, &EngineKind::ALL);
    }

    // tract reads both of these wrongly, so it does not take part.
    #[test]
    fn boosted_trees_with_gt_agree(trees in trees("BRANCH_GT", 1), values in batch()) {
        check_boosted(&trees, &values, &[EngineKind::Trees, EngineKind::OnnxRuntime]);
    }

    #[test]
    fn boosted_trees_with_gte_agree(trees in trees("BRANCH_GTE", 1), values in batch()) {
        check_boosted(&trees, &values, &[EngineKind::Trees, EngineKind::OnnxRuntime]);
    }

    #[test]
    fn classifiers_of_three_classes_agree(
        trees in trees("BRANCH_LEQ", 3),
        values in batch(),
        transform in prop::sample::select(vec!["NONE", "LOGISTIC", "SOFTMAX"]),
    ) {
        let file = check(&scores_of(trees.classifier(3, transform), 3)).unwrap();
        let mut ours = session(&file, EngineKind::Trees).unwrap();
        let found = run(&mut ours, &values, COLUMNS);
        for engine in [EngineKind::Tract, EngineKind::OnnxRuntime] {
            if let Some(mut session) = session(&file, engine) {
                assert_close(engine, &run(&mut session, &values, COLUMNS), &found);
            }
        }
        if transform == "NONE" {
            let expected: Vec<_> = values
                .chunks(COLUMNS)
                .flat_map(|row| (0..3).map(|target| naive(&trees, row, target)).collect::<Vec<_>>())
                .collect();
            assert_close(EngineKind::Trees, &found, &expected);
        }
    }

    #[test]
    fn classifiers_of_two_scored_classes_agree(trees in trees("BRANCH_LEQ", 2), values in batch()) {
        let file = check(&scores_of(trees.classifier(2, "NONE"), 2)).unwrap();
        let found = run(&mut session(&file, EngineKind::Trees).unwrap(), &values, COLUMNS);
        if let Some(mut session) = session(&file, EngineKind::OnnxRuntime) {
            assert_close(EngineKind::OnnxRuntime, &run(&mut session, &values, COLUMNS), &found);
        }
    }

    #[test]
    fn regressors_with_base_values_agree(trees in trees("BRANCH_LEQ", 2), values in batch()) {
        let mut regressor = trees.regressor(2);
        regressor.attribute.push(floats("base_values", vec![0.5, -2.0]));
        let file = check(&scores_of(regressor, 2)).unwrap();
        let found = run(&mut session(&file, EngineKind::Trees).unwrap(), &values, COLUMNS);
        if let Some(mut session) = session(&file, EngineKind::OnnxRuntime) {
            assert_close(EngineKind::OnnxRuntime, &run(&mut session, &values, COLUMNS), &found);
        }
    }

    #[test]
    fn logistic_regression_agrees(values in batch()) {
        let file = check(&logistic(COLUMNS)).unwrap();
        let found = run(&mut session(&file, EngineKind::Tract).unwrap(), &values, COLUMNS);
        prop_assert!(found.iter().all(|p| (0.0..=1.0).contains(p)));
        if let Some(mut session) = session(&file, EngineKind::OnnxRuntime) {
            assert_close(EngineKind::OnnxRuntime, &run(&mut session, &values, COLUMNS), &found);
        }
    }
}

/// A model whose output is the ensemble's `scores`.
fn scores_of(ensemble: engine::proto::NodeProto, width: i64) -> ModelProto {
    model(GraphProto {
        name: "scores".into(),
        node: vec![ensemble],
        input: vec![value("features", DataType::Float, &[-1, COLUMNS as i64])],
        output: vec![value("scores", DataType::Float, &[-1, width])],
        ..Default::default()
    })
}

fn stump(mode: &'static str) -> Trees {
    let split = TreeNode::Split {
        feature: 4,
        threshold: 0.5,
        missing_is_yes: false,
        yes: 1,
        no: 2,
    };
    let leaf = |weight| TreeNode::Leaf(vec![(1, weight)]);
    Trees {
        mode,
        trees: vec![vec![split, leaf(-1.0), leaf(1.0)]],
    }
}

#[test]
fn plain_operators_around_the_trees_are_folded() {
    let values = [0.0, 0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.75];
    let mut bare = scores_of(stump("BRANCH_LEQ").classifier(2, "NONE"), 2);
    let graph = bare.graph.as_mut().unwrap();
    let mut cast = node("Cast", &["table"], &["features"]);
    cast.attribute = vec![int("to", DataType::Float as i64)];
    graph.input = vec![value("table", DataType::Double, &[-1, COLUMNS as i64])];
    graph.node.insert(0, cast);
    graph.initializer = vec![
        int_tensor("starts", &[-1]),
        int_tensor("ends", &[i64::MAX]),
        int_tensor("axes", &[-1]),
        int_tensor("one", &[1]),
        int_tensor("flat", &[-1]),
        int_tensor("tall", &[-1, 1]),
    ];
    graph.node.extend([
        node("Slice", &["scores", "starts", "ends", "axes"], &["column"]),
        node("Squeeze", &["column", "one"], &["squeezed"]),
        node("Sigmoid", &["squeezed"], &["chance"]),
        node("Unsqueeze", &["chance", "one"], &["unsqueezed"]),
        node("Reshape", &["unsqueezed", "flat"], &["flattened"]),
        node("Identity", &["flattened"], &["vector"]),
        node("Reshape", &["vector", "tall"], &["matrix"]),
    ]);
    graph.output = vec![
        value("vector", DataType::Float, &[-1]),
        value("matrix", DataType::Float, &[-1, 1]),
    ];
    let file = check(&bare).unwrap();
    let input = Tensor::new(vec![2, COLUMNS], TensorData::Fp64(values.to_vec())).unwrap();
    for engine in EngineKind::ALL {
        let Some(mut session) = session(&file, engine) else {
            continue;
        };
        let outputs = session.run(std::slice::from_ref(&input)).unwrap();
        assert_eq!(
            (outputs[0].shape(), outputs[1].shape()),
            (&[2][..], &[2, 1][..])
        );
        for output in &outputs {
            assert_close(
                engine,
                output.as_f32().unwrap(),
                &[0.268_941_42, 0.731_058_6],
            );
        }
    }
}

#[test]
fn what_runtimes_read_in_two_ways_is_left_to_other_engines() {
    let refusal = |model: &ModelProto| {
        let file = check(model).unwrap();
        Model::load(&file, EngineKind::Trees)
            .unwrap_err()
            .to_string()
    };
    // Where leaves score both classes, ONNX Runtime answers 0 or 1, whatever the labels are.
    let mut both = stump("BRANCH_LEQ");
    let TreeNode::Leaf(payload) = &mut both.trees[0][1] else {
        panic!()
    };
    payload.push((0, 1.0));
    let mut classifier = both.classifier(2, "NONE");
    classifier.attribute.pop();
    classifier
        .attribute
        .push(ints("classlabels_int64s", vec![10, 20]));
    let mut labels = scores_of(classifier, 2);
    labels.graph.as_mut().unwrap().output = vec![value("label", DataType::Int64, &[-1])];
    assert!(refusal(&labels).contains("labels of output `label`"));
    // With no score for class 1 in some rows, a probit of two classes leaves a column unset.
    let TreeNode::Leaf(payload) = &mut both.trees[0][2] else {
        panic!()
    };
    payload[0].0 = 0;
    let unset = scores_of(both.classifier(2, "PROBIT"), 2);
    assert!(refusal(&unset).contains("one of the two columns of scores unset"));
    assert!(refusal(&logistic(COLUMNS)).contains("it has no ensemble of trees"));
    let mut narrow = stump("BRANCH_LEQ").boosted(4);
    assert!(refusal(&narrow).contains("the trees read column 4, the input has 4"));
    let last = narrow.graph.as_mut().unwrap().node.last_mut().unwrap();
    last.op_type = "Tanh".into();
    narrow.graph.as_mut().unwrap().input = vec![value("features", DataType::Float, &[-1, 5])];
    assert!(refusal(&narrow).contains("operator `Tanh` is left to other engines"));
}

#[test]
fn trees_that_are_no_trees_are_refused_and_never_walked() {
    let refusal = |f: fn(&mut Vec<TreeNode>)| {
        let mut trees = stump("BRANCH_LEQ");
        f(&mut trees.trees[0]);
        let file = check(&trees.boosted(COLUMNS as i64)).unwrap();
        Model::load(&file, EngineKind::Trees)
            .unwrap_err()
            .to_string()
    };
    let cycle = refusal(|nodes| {
        if let TreeNode::Split { yes, .. } = &mut nodes[0] {
            *yes = 0;
        }
    });
    assert!(cycle.contains("reaches node 0 twice"), "{cycle}");
    let shared = refusal(|nodes| {
        if let TreeNode::Split { yes, .. } = &mut nodes[0] {
            *yes = 2;
        }
    });
    assert!(shared.contains("reaches node 2 twice"), "{shared}");
    let lost = refusal(|nodes| {
        if let TreeNode::Split { yes, .. } = &mut nodes[0] {
            *yes = 9;
        }
    });
    assert!(lost.contains("has no node 9"), "{lost}");
    let apart = refusal(|nodes| nodes.push(TreeNode::Leaf(vec![(1, 1.0)])));
    assert!(apart.contains("out of its reach"), "{apart}");
}

#[test]
fn inputs_that_do_not_fit_are_the_callers_fault() {
    let file = check(&stump("BRANCH_LEQ").boosted(COLUMNS as i64)).unwrap();
    for engine in EngineKind::ALL {
        let Some(mut session) = session(&file, engine) else {
            continue;
        };
        let narrow = session.run(&[rows(vec![0.0; 4], 4)]).unwrap_err();
        assert_eq!(
            narrow.to_string(),
            "input `features`: expected shape [-1, 5], found [1, 4]"
        );
        assert!(session.run(&[]).is_err());
        let other = Tensor::new(vec![1, 5], TensorData::Fp64(vec![0.0; 5])).unwrap();
        assert!(
            session
                .run(&[other])
                .unwrap_err()
                .to_string()
                .contains("found FP64")
        );
        assert_eq!(run(&mut session, &[0.0; 10], COLUMNS).len(), 2);
    }
}

#[test]
fn every_datatype_passes_through_every_engine_that_takes_it() {
    let kinds = [
        (DataType::Bool, Kind::Bool),
        (DataType::Uint8, Kind::Uint8),
        (DataType::Int8, Kind::Int8),
        (DataType::Uint16, Kind::Uint16),
        (DataType::Int16, Kind::Int16),
        (DataType::Int32, Kind::Int32),
        (DataType::Int64, Kind::Int64),
        (DataType::Uint32, Kind::Uint32),
        (DataType::Uint64, Kind::Uint64),
        (DataType::Float, Kind::Fp32),
        (DataType::Double, Kind::Fp64),
        (DataType::String, Kind::Bytes),
    ];
    for (onnx, kind) in kinds {
        let file = passing(onnx);
        assert_eq!(file.signature().inputs[0].datatype, kind);
        let inputs = sample_inputs(file.signature(), 4, 7);
        for engine in [EngineKind::Tract, EngineKind::OnnxRuntime] {
            if engine == EngineKind::Tract && kind == Kind::Bytes {
                continue;
            }
            if let Some(mut session) = session(&file, engine) {
                let outputs = session.run(&inputs).unwrap();
                assert_eq!(
                    format!("{outputs:?}"),
                    format!("{inputs:?}"),
                    "{engine} {kind}"
                );
            }
        }
    }
}

fn passing(onnx: DataType) -> OnnxFile {
    let graph = GraphProto {
        name: "pass".into(),
        node: vec![node("Identity", &["x"], &["y"])],
        input: vec![value("x", onnx, &[-1, 2])],
        output: vec![value("y", onnx, &[-1, 2])],
        ..Default::default()
    };
    let file = check(&model(graph)).unwrap();
    assert!(!file.bytes().is_empty() && ModelProto::decode(&file.bytes()[..]).is_ok());
    file
}

#[test]
fn half_precision_goes_through_onnx_runtime_to_the_bit() {
    let cast = |from: &str, to: &str, datatype: DataType| {
        let mut cast = node("Cast", &[from], &[to]);
        cast.attribute = vec![int("to", (datatype as i32).into())];
        cast
    };
    let file = check(&model(GraphProto {
        name: "halves".into(),
        node: vec![
            cast("half", "from_half", DataType::Float),
            cast("brain", "from_brain", DataType::Float),
            cast("single", "to_half", DataType::Float16),
            cast("single", "to_brain", DataType::Bfloat16),
        ],
        input: vec![
            value("half", DataType::Float16, &[-1]),
            value("brain", DataType::Bfloat16, &[-1]),
            value("single", DataType::Float, &[-1]),
        ],
        output: vec![
            value("from_half", DataType::Float, &[-1]),
            value("from_brain", DataType::Float, &[-1]),
            value("to_half", DataType::Float16, &[-1]),
            value("to_brain", DataType::Bfloat16, &[-1]),
        ],
        ..Default::default()
    }))
    .unwrap();
    let Some(mut session) = session(&file, EngineKind::OnnxRuntime) else {
        return;
    };
    let flat = |data: TensorData| Tensor::new(vec![data.len()], data).unwrap();
    let half = || flat(TensorData::Fp16(vec![0x3c00, 0xc500]));
    let brain = || flat(TensorData::Bf16(vec![0x3f80, 0xc0a0]));
    let single = || flat(TensorData::Fp32(vec![1.0, -5.0]));
    let outputs = session.run(&[half(), brain(), single()]).unwrap();
    assert_eq!(outputs, [single(), single(), half(), brain()]);
}
