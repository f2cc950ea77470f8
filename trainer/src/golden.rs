//! Golden rows: a few rows of the holdout, in the features as served, with the answers that the
//! engine gave for them here. Who serves the version must reproduce them first.
//!
//! Written as pairs of Open Inference request and response, the form that `loopgate model register
//! --golden` reads, so NaN is written as NaN.

use std::fmt::Write as _;

use engine::{Signature, TensorSpec};

use crate::rows::Part;

/// Rows, spread over the holdout.
const ROWS: usize = 32;
/// How far an answer may be from the one given here, times the larger of 1 and their sizes. The
/// engine that serves may be another, which agreed within a tenth of this.
const TOLERANCE: f64 = 1e-4;

/// The document for a model from one row of features to one score.
pub(crate) fn document(signature: &Signature, holdout: &Part, scores: &[f32]) -> String {
    let columns = holdout.columns();
    let rows = holdout.values().chunks_exact(columns.max(1)).zip(scores);
    let total = rows.len();
    let step = total.div_ceil(ROWS).max(1);
    let (values, scores): (Vec<&[f32]>, Vec<f32>) = rows.step_by(step).unzip();
    let values = values.concat();
    let inputs = tensors(&signature.inputs, scores.len(), &values);
    let outputs = tensors(&signature.outputs, scores.len(), &scores);
    format!(
        r#"{{"tolerance":{TOLERANCE},"pairs":[{{"request":{{"inputs":[{inputs}]}},"response":{{"outputs":[{outputs}]}}}}]}}"#
    )
}

/// The one tensor of `specs`, `rows` rows of it.
fn tensors(specs: &[TensorSpec], rows: usize, values: &[f32]) -> String {
    let Some(spec) = specs.first() else {
        return String::new();
    };
    let shape: Vec<String> = std::iter::once(rows.to_string())
        .chain(spec.shape.iter().skip(1).map(i64::to_string))
        .collect();
    let mut data = String::new();
    for (k, value) in values.iter().enumerate() {
        let comma = if k == 0 { "" } else { "," };
        // Shortest decimals that read back as the same number; `inf` is Infinity on this wire.
        let written = match *value {
            f32::INFINITY => write!(data, "{comma}Infinity"),
            f32::NEG_INFINITY => write!(data, "{comma}-Infinity"),
            value => write!(data, "{comma}{value}"),
        };
        written.expect("a text takes all that is written to it");
    }
    format!(
        r#"{{"name":{},"datatype":"{}","shape":[{}],"data":[{data}]}}"#,
        serde_json::Value::from(spec.name.as_str()),
        spec.datatype,
        shape.join(","),
    )
}

#[cfg(test)]
mod tests {
    use engine::DataType;

    use super::*;
    use crate::synthetic;

    #[test]
    fn a_spread_of_rows_is_written_with_their_scores() {
        let split = synthetic::split(synthetic::set(3_000, 5));
        let holdout = split.holdout();
        let columns = holdout.columns();
        let spec = |name: &str, shape: &[i64]| TensorSpec {
            name: name.to_owned(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
        };
        let signature = Signature {
            inputs: vec![spec("x", &[-1, columns as i64])],
            outputs: vec![spec("y", &[-1, 1])],
        };
        let scores: Vec<f32> = (0..holdout.rows()).map(|row| row as f32 / 1e3).collect();
        let written = document(&signature, &holdout, &scores);
        let has_gaps = holdout.values().iter().any(|value| value.is_nan());
        assert_eq!(written.contains("NaN"), has_gaps);
        let read: serde_json::Value =
            serde_json::from_str(&written.replace("NaN", "null")).unwrap();
        let pair = &read["pairs"][0];
        let rows = pair["response"]["outputs"][0]["shape"][0].as_u64().unwrap() as usize;
        assert!((ROWS / 2..=ROWS).contains(&rows), "{rows} rows");
        let data = pair["response"]["outputs"][0]["data"].as_array().unwrap();
        let step = holdout.rows().div_ceil(ROWS);
        assert_eq!(data[1].as_f64().unwrap() as f32, scores[step]);
        let inputs = pair["request"]["inputs"][0]["data"].as_array().unwrap();
        assert_eq!(inputs.len(), rows * columns);
    }
}
