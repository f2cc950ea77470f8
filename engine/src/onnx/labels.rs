//! The class labels that classifiers keep in the file, by the output that holds their scores.
//!
//! Costs: a file with a classifier is decoded once more.

use std::collections::{BTreeMap, HashMap};

use prost::Message;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

/// Operators of `ai.onnx.ml` whose second output has a column for each label.
const CLASSIFIERS: [&str; 3] = [
    "LinearClassifier",
    "SVMClassifier",
    "TreeEnsembleClassifier",
];
/// What leaves each column where it is.
const KEEPS_COLUMNS: [&str; 4] = ["Cast", "Identity", "Normalizer", "Softmax"];

/// Whether nodes of this operator have labels.
pub(super) fn is_classifier(operator: &str) -> bool {
    CLASSIFIERS.contains(&operator)
}

/// The labels of the outputs of a checked file.
pub(super) fn labels(bytes: &[u8]) -> BTreeMap<String, Vec<String>> {
    let model = ModelProto::decode(bytes);
    let graph = model.ok().and_then(|model| model.graph);
    graph.as_ref().map(of_outputs).unwrap_or_default()
}

fn of_outputs(graph: &GraphProto) -> BTreeMap<String, Vec<String>> {
    let mut known: HashMap<&str, Vec<String>> = HashMap::new();
    // Nodes come after what they read.
    for node in &graph.node {
        let operator = node.op_type.as_str();
        if is_classifier(operator)
            && let (Some(scores), Some(labels)) = (node.output.get(1), own(node))
        {
            known.insert(scores, labels);
        } else if KEEPS_COLUMNS.contains(&operator)
            && let (Some(from), Some(to)) = (node.input.first(), node.output.first())
            && let Some(labels) = known.get(from.as_str()).cloned()
        {
            known.insert(to, labels);
        }
    }
    let outputs = graph.output.iter().map(|output| output.name.as_str());
    let labelled = outputs.filter_map(|name| Some((name.to_owned(), known.remove(name)?)));
    labelled.collect()
}

/// A classifier's own labels: its texts, or its numbers where they are not the columns' own.
fn own(node: &NodeProto) -> Option<Vec<String>> {
    let mut own = node.attribute.iter();
    let labels = own.find(|attribute| {
        let is_given = !attribute.strings.is_empty() || !attribute.ints.is_empty();
        attribute.name.starts_with("classlabels_") && is_given
    })?;
    if labels.strings.is_empty() {
        let plain = (0..).take(labels.ints.len());
        let is_plain = labels.ints.iter().copied().eq(plain);
        return (!is_plain).then(|| labels.ints.iter().map(i64::to_string).collect());
    }
    let texts = labels.strings.iter();
    Some(
        texts
            .map(|text| String::from_utf8_lossy(text).into_owned())
            .collect(),
    )
}
