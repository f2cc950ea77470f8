//! The labels of a classifier's columns, read from the file.

use engine::proto::tensor_proto::DataType;
use engine::proto::{AttributeProto, GraphProto, NodeProto};

use crate::fixture::{check, floats, ints, model, node, texts, value};

/// `features` [-1, 1] to the scores of three classes, through `after`, which ends in `scores`.
fn classifier(labels: AttributeProto, after: Vec<NodeProto>) -> GraphProto {
    let first = after.first().map_or("scores", |_| "raw");
    let mut linear = node("LinearClassifier", &["features"], &["label", first]);
    linear.domain = "ai.onnx.ml".into();
    linear.attribute = vec![
        floats("coefficients", vec![1.0, 2.0, 3.0]),
        floats("intercepts", vec![0.0; 3]),
        labels,
    ];
    GraphProto {
        name: "classifier".into(),
        node: [vec![linear], after].concat(),
        input: vec![value("features", DataType::Float, &[-1, 1])],
        output: vec![value("scores", DataType::Float, &[-1, 3])],
        ..Default::default()
    }
}

fn labels_of(graph: GraphProto) -> Option<Vec<String>> {
    let mut labels = check(&model(graph)).unwrap().class_labels();
    let of_scores = labels.remove("scores");
    assert!(labels.is_empty(), "{labels:?}");
    of_scores
}

#[test]
fn texts_and_numbers_of_their_own_are_labels() {
    let named = texts("classlabels_strings", &["no", "perhaps", "yes"]);
    let expected = ["no", "perhaps", "yes"].map(str::to_owned).to_vec();
    assert_eq!(labels_of(classifier(named, vec![])), Some(expected));
    let years = ints("classlabels_ints", vec![1999, 2000, 2024]);
    let expected = ["1999", "2000", "2024"].map(str::to_owned).to_vec();
    assert_eq!(labels_of(classifier(years, vec![])), Some(expected));
    let plain = ints("classlabels_ints", vec![0, 1, 2]);
    assert_eq!(labels_of(classifier(plain, vec![])), None);
}

#[test]
fn labels_go_along_with_columns_that_stay_where_they_are() {
    let named = || texts("classlabels_strings", &["no", "perhaps", "yes"]);
    let kept = vec![
        node("Softmax", &["raw"], &["soft"]),
        node("Identity", &["soft"], &["scores"]),
    ];
    let labels = labels_of(classifier(named(), kept)).unwrap();
    assert_eq!(labels[2], "yes");
    let moved = vec![node("Gather", &["raw", "places"], &["scores"])];
    let mut graph = classifier(named(), moved);
    graph.input.push(value("places", DataType::Int64, &[3]));
    assert_eq!(labels_of(graph), None);
}
