//! A run of ONNX Runtime that outlives its deadline is stopped.

use std::time::{Duration, Instant};

use engine::proto::GraphProto;
use engine::proto::tensor_proto::DataType;
use engine::{EngineKind, Model, OnnxFile, RunError, Tensor, TensorData};

use crate::fixture::{check, float_tensor, graph_attribute, model, node, session, value};

/// Adds 1 to `x` as often as `trips` says.
fn counter() -> OnnxFile {
    let flag = |name: &str| value(name, DataType::Bool, &[]);
    let number = |name: &str| value(name, DataType::Float, &[1]);
    let body = GraphProto {
        name: "body".into(),
        node: vec![
            node("Identity", &["go"], &["go_on"]),
            node("Add", &["sum", "one"], &["next"]),
        ],
        initializer: vec![float_tensor("one", &[1], &[1.0])],
        input: vec![value("k", DataType::Int64, &[]), flag("go"), number("sum")],
        output: vec![flag("go_on"), number("next")],
        ..Default::default()
    };
    let mut repeat = node("Loop", &["trips", "", "x"], &["y"]);
    repeat.attribute = vec![graph_attribute("body", body)];
    check(&model(GraphProto {
        name: "counter".into(),
        node: vec![repeat],
        input: vec![value("trips", DataType::Int64, &[]), number("x")],
        output: vec![number("y")],
        ..Default::default()
    }))
    .unwrap()
}

fn inputs(trips: i64) -> [Tensor; 2] {
    [
        Tensor::new(vec![], TensorData::Int64(vec![trips])).unwrap(),
        Tensor::new(vec![1], TensorData::Fp32(vec![0.5])).unwrap(),
    ]
}

#[test]
fn an_endless_run_is_stopped_and_its_session_goes_on() {
    let Some(mut session) = session(&counter(), EngineKind::OnnxRuntime) else {
        return;
    };
    let soon = || Some(Instant::now() + Duration::from_millis(20));
    let late = || Some(Instant::now() + Duration::from_secs(3_600));
    let expected = [Tensor::new(vec![1], TensorData::Fp32(vec![3.5])).unwrap()];
    for _ in 0..3 {
        // Would run for some 10,000 years.
        let stopped = session.run_until(&inputs(i64::MAX), soon());
        assert_eq!(
            stopped.unwrap_err(),
            RunError::Stopped {
                engine: EngineKind::OnnxRuntime
            }
        );
        assert_eq!(session.run_until(&inputs(3), late()).unwrap(), expected);
        assert_eq!(session.run(&inputs(3)).unwrap(), expected);
    }
}

#[test]
fn one_run_is_stopped_and_another_goes_on() {
    let file = counter();
    if session(&file, EngineKind::OnnxRuntime).is_none() {
        return;
    }
    let model = Model::load(&file, EngineKind::OnnxRuntime).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let mut session = model.session().unwrap();
            scope.spawn(move || {
                for k in 0..20 {
                    let (trips, millis) = match (k + thread) % 2 {
                        0 => (i64::MAX, 5),
                        _ => (1_000, 3_600_000),
                    };
                    let deadline = Instant::now() + Duration::from_millis(millis);
                    let ran = session.run_until(&inputs(trips), Some(deadline));
                    assert_eq!(ran.is_err(), trips == i64::MAX, "{ran:?}");
                }
            });
        }
    });
}

#[test]
fn a_loop_is_left_to_the_engine_that_can_be_stopped() {
    for engine in [EngineKind::Trees, EngineKind::Tract] {
        assert!(Model::load(&counter(), engine).is_err());
    }
}
