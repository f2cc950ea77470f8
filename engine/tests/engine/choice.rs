//! `auto` keeps the fastest engine that agrees with another one.

use engine::proto::GraphProto;
use engine::proto::tensor_proto::DataType;
use engine::{EngineKind, LoadError, Model, OnnxFile, ParityReport, TOLERANCE, sample_inputs};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fixture::{TreeNode, Trees, check, float_tensor, logistic, model, node, value};

/// Trees of `leaves` leaves, grown leaf by leaf at random places.
fn forest(count: usize, leaves: usize, columns: usize, seed: u64) -> Trees {
    let mut random = StdRng::seed_from_u64(seed);
    let trees = (0..count).map(|_| {
        let mut nodes = vec![TreeNode::Leaf(vec![(1, 0.0)])];
        for _ in 1..leaves {
            let open: Vec<_> = (0..nodes.len())
                .filter(|&at| matches!(nodes[at], TreeNode::Leaf(_)))
                .collect();
            let (yes, no) = (nodes.len(), nodes.len() + 1);
            nodes[open[random.random_range(0..open.len())]] = TreeNode::Split {
                feature: i64::try_from(random.random_range(0..columns)).unwrap(),
                threshold: f32::from(random.random_range(-8_i8..8)) / 2.0,
                missing_is_yes: random.random(),
                yes,
                no,
            };
            for _ in 0..2 {
                nodes.push(TreeNode::Leaf(vec![(1, random.random_range(-0.1..0.1))]));
            }
        }
        nodes
    });
    Trees {
        mode: "BRANCH_LEQ",
        trees: trees.collect(),
    }
}

fn choose(file: &OnnxFile, rows: usize) -> (Model, ParityReport) {
    let samples: Vec<_> = (0..4)
        .map(|seed| sample_inputs(file.signature(), rows, seed))
        .collect();
    let (model, report) = Model::load_auto(file, &samples).unwrap();
    println!("{report:?}");
    assert_eq!(model.kind(), report.chosen);
    (model, report)
}

fn has_runtime() -> bool {
    match engine::onnx_runtime_available() {
        Ok(library) => {
            println!("onnxruntime from {}", library.display());
            true
        }
        Err(reason) => {
            println!("SKIPPED onnxruntime: {reason}");
            false
        }
    }
}

#[test]
fn boosted_trees_go_to_our_evaluator() {
    let file = check(&forest(200, 31, 71, 3).boosted(71)).unwrap();
    let (_, report) = choose(&file, 16);
    assert_eq!(report.chosen, EngineKind::Trees);
    let ran = report.trials.iter().filter(|trial| trial.agrees).count();
    assert_eq!(ran, if has_runtime() { 3 } else { 2 });
    for trial in report.trials.iter().filter(|trial| trial.refused.is_none()) {
        assert!(trial.difference_max.unwrap() <= 1e-6, "{trial:?}");
    }
    let json = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<ParityReport>(&json).unwrap(), report);
}

#[test]
fn plain_operators_go_to_tract_or_onnx_runtime() {
    let file = check(&logistic(71)).unwrap();
    let (_, report) = choose(&file, 1);
    assert_ne!(report.chosen, EngineKind::Trees);
    let trees = &report.trials[0];
    assert_eq!(
        trees.refused.as_deref(),
        Some("it has no ensemble of trees")
    );
    assert!(
        report
            .trials
            .iter()
            .all(|t| t.difference_max.is_none_or(|d| d <= TOLERANCE))
    );
}

#[test]
fn an_engine_that_panics_is_left_out_and_its_session_goes_on() {
    // tract overflows in its walk of BRANCH_GTE where that is checked, and errs where it is not.
    let mut trees = forest(20, 31, 5, 9);
    trees.mode = "BRANCH_GTE";
    let file = check(&trees.boosted(5)).unwrap();
    let (_, report) = choose(&file, 64);
    assert_eq!(report.chosen, EngineKind::Trees);
    assert!(!report.trials[1].agrees, "{report:?}");
    let mut session = Model::load(&file, EngineKind::Tract)
        .unwrap()
        .session()
        .unwrap();
    let inputs = sample_inputs(file.signature(), 64, 1);
    let first = session.run(&inputs);
    assert_eq!(format!("{first:?}"), format!("{:?}", session.run(&inputs)));
}

#[test]
fn engines_that_disagree_are_not_chosen() {
    // With class id 0 and LOGISTIC, tract gives the opposite of ONNX Runtime's labels, and of ours.
    let mut trees = forest(20, 31, 5, 9);
    for node in trees.trees.iter_mut().flatten() {
        if let TreeNode::Leaf(payload) = node {
            payload[0].0 = 0;
        }
    }
    let graph = GraphProto {
        name: "labels".into(),
        node: vec![trees.classifier(2, "LOGISTIC")],
        input: vec![value("features", DataType::Float, &[-1, 5])],
        output: vec![value("label", DataType::Int64, &[-1])],
        ..Default::default()
    };
    let file = check(&model(graph)).unwrap();
    let samples = vec![sample_inputs(file.signature(), 64, 1)];
    let result = Model::load_auto(&file, &samples);
    if has_runtime() {
        let (_, report) = result.unwrap();
        assert_eq!(report.chosen, EngineKind::Trees);
        assert!(!report.trials[1].agrees, "{report:?}");
    } else {
        let error = result.map(drop).unwrap_err();
        assert!(matches!(error, LoadError::Disagree { .. }), "{error}");
    }
}

#[test]
fn missing_values_count_only_where_the_model_reads_them() {
    // The Relu of NaN is 0 in tract and NaN in ONNX Runtime; a file without imputation is not
    // refused for that.
    let graph = GraphProto {
        name: "relu".into(),
        node: vec![node("Relu", &["features"], &["y"])],
        input: vec![value("features", DataType::Float, &[-1, 3])],
        output: vec![value("y", DataType::Float, &[-1, 3])],
        ..Default::default()
    };
    let file = check(&model(graph)).unwrap();
    let (_, report) = choose(&file, 64);
    assert!(report.trials[1].agrees, "{report:?}");
    let gives_nan = |engine| {
        let mut session = Model::load(&file, engine).unwrap().session().unwrap();
        let outputs = session
            .run(&sample_inputs(file.signature(), 64, 0))
            .unwrap();
        outputs[0].as_f32().unwrap().iter().any(|y| y.is_nan())
    };
    assert!(!gives_nan(EngineKind::Tract));
    if has_runtime() {
        assert!(gives_nan(EngineKind::OnnxRuntime));
    }
}

#[test]
fn a_model_that_no_engine_runs_is_refused_with_every_reason() {
    // Shapes that cannot be multiplied pass the structural check and no engine.
    let graph = GraphProto {
        name: "wrong".into(),
        node: vec![node("MatMul", &["x", "w"], &["y"])],
        initializer: vec![float_tensor("w", &[3, 1], &[1.0; 3])],
        input: vec![value("x", DataType::Float, &[-1, 2])],
        output: vec![value("y", DataType::Float, &[-1, 1])],
        ..Default::default()
    };
    let file = check(&model(graph)).unwrap();
    let samples = vec![sample_inputs(file.signature(), 2, 1)];
    let error = Model::load_auto(&file, &samples).unwrap_err().to_string();
    for engine in EngineKind::ALL {
        assert!(error.contains(engine.as_str()), "{error}");
    }
    assert!(matches!(
        Model::load_auto(&file, &[]),
        Err(LoadError::NoSamples)
    ));
}

#[test]
fn sessions_of_one_model_run_on_their_own_threads() {
    let file = check(&forest(20, 31, 5, 9).boosted(5)).unwrap();
    let inputs = sample_inputs(file.signature(), 8, 1);
    for kind in EngineKind::ALL {
        if kind == EngineKind::OnnxRuntime && !has_runtime() {
            continue;
        }
        let model = Model::load(&file, kind).unwrap();
        let outputs: Vec<_> = std::thread::scope(|scope| {
            let run = || model.session().unwrap().run(&inputs).unwrap();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(run)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]));
    }
}
