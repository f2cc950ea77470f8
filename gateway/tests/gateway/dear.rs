//! Files whose runs are dear, or fail.

use engine::proto::GraphProto;
use engine::proto::tensor_proto::DataType;

use crate::onnx::{model, node, tensor, value};

/// `features` [-1, 4] → `score` [-1, 1], their mean, by way of `products` products with a matrix of
/// 256 × 256: about 10 µs each.
pub(crate) fn dear(products: usize) -> Vec<u8> {
    const WIDTH: usize = 256;
    let width = WIDTH as i64;
    let mean = |count: usize| vec![1.0 / WIDTH as f32; count];
    let layer = |k: usize| format!("layer{k}");
    let mut nodes = vec![node("MatMul", &["features", "spread"], &layer(0))];
    for k in 0..products {
        nodes.push(node("MatMul", &[&layer(k), "mixed"], &layer(k + 1)));
    }
    nodes.push(node("MatMul", &[&layer(products), "gathered"], "score"));
    model(GraphProto {
        name: "dear".into(),
        node: nodes,
        initializer: vec![
            tensor("spread", &[4, width], &vec![0.25; 4 * WIDTH]),
            tensor("mixed", &[width, width], &mean(WIDTH * WIDTH)),
            tensor("gathered", &[width, 1], &mean(WIDTH)),
        ],
        input: vec![value("features", DataType::Float, &[-1, 4])],
        output: vec![value("score", DataType::Float, &[-1, 1])],
        ..Default::default()
    })
}

/// `i` INT64 [-1] → `picked` [-1], the i-th of a hundred numbers: half of `i`. Others make it fail.
pub(crate) fn picks() -> Vec<u8> {
    let halves: Vec<f32> = (0..100_u8).map(|k| f32::from(k) / 2.0).collect();
    model(GraphProto {
        name: "picks".into(),
        node: vec![node("Gather", &["halves", "i"], "picked")],
        initializer: vec![tensor("halves", &[100], &halves)],
        input: vec![value("i", DataType::Int64, &[-1])],
        output: vec![value("picked", DataType::Float, &[-1])],
        ..Default::default()
    })
}
