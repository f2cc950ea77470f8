//! Requests with the responses that belong to them, in one JSON document:
//! `{"tolerance": 1e-4, "pairs": [{"request": {"inputs": […]}, "response": {"outputs": […]}}]}`.
//!
//! Request and response are as they go over the wire, so what was captured can be pasted; of their
//! keys only the tensors are read.

use super::NamedTensor;
use super::json::Cursor;
use super::request::{DecodeError, once, read_inputs};

/// Pairs that one document may hold.
const PAIRS_MAX: usize = 1024;

/// A request's tensors and those of its response.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    pub inputs: Vec<NamedTensor>,
    pub outputs: Vec<NamedTensor>,
}

/// A document of pairs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Pairs {
    /// How far floats may be from those of the responses, where it says so.
    pub tolerance: Option<f64>,
    pub pairs: Vec<Pair>,
}

/// Reads a document of pairs.
///
/// # Errors
/// When it is not JSON, lacks a required key, or a tensor does not hold what it declares.
pub(crate) fn decode_pairs(document: &[u8]) -> Result<Pairs, DecodeError> {
    let mut cursor = Cursor::new(document);
    let (mut tolerance, mut pairs) = (None, None);
    cursor.begin_object()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        match &*key {
            "tolerance" => once(&mut tolerance, "tolerance", cursor.number()?.to_f64())?,
            "pairs" => once(&mut pairs, "pairs", read_pairs(&mut cursor)?)?,
            _ => cursor.skip_value()?,
        }
    }
    cursor.end()?;
    let pairs = pairs.ok_or(DecodeError::Missing {
        place: "the document",
        key: "pairs",
    })?;
    Ok(Pairs { tolerance, pairs })
}

fn read_pairs(cursor: &mut Cursor<'_>) -> Result<Vec<Pair>, DecodeError> {
    let mut pairs = Vec::new();
    cursor.begin_array()?;
    let mut first = true;
    while cursor.next_item(&mut first)? {
        if pairs.len() == PAIRS_MAX {
            return Err(DecodeError::TooManyPairs { max: PAIRS_MAX });
        }
        pairs.push(read_pair(cursor)?);
    }
    Ok(pairs)
}

fn read_pair(cursor: &mut Cursor<'_>) -> Result<Pair, DecodeError> {
    let (mut inputs, mut outputs) = (None, None);
    cursor.begin_object()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        match &*key {
            "request" => once(&mut inputs, "request", read_tensors(cursor, "inputs")?)?,
            "response" => once(&mut outputs, "response", read_tensors(cursor, "outputs")?)?,
            _ => cursor.skip_value()?,
        }
    }
    let missing = |key| DecodeError::Missing {
        place: "a pair",
        key,
    };
    Ok(Pair {
        inputs: inputs.ok_or(missing("request"))?,
        outputs: outputs.ok_or(missing("response"))?,
    })
}

/// The tensors below `key` of the object that follows.
fn read_tensors(
    cursor: &mut Cursor<'_>,
    key: &'static str,
) -> Result<Vec<NamedTensor>, DecodeError> {
    let mut tensors = None;
    cursor.begin_object()?;
    let mut first = true;
    while let Some(found) = cursor.next_key(&mut first)? {
        if *found == *key {
            once(&mut tensors, key, read_inputs(cursor)?)?;
        } else {
            cursor.skip_value()?;
        }
    }
    let declared = tensors.ok_or(DecodeError::Missing {
        place: "a request or response",
        key,
    })?;
    let filled = declared.into_iter().map(|tensor| tensor.filled(&mut None));
    filled.collect()
}

#[cfg(test)]
mod tests {
    use engine::{Tensor, TensorData};

    use super::*;

    #[test]
    fn pairs_are_read_as_they_go_over_the_wire() {
        let document = br#"{"tolerance": 0.01, "note": "kept", "pairs": [{
            "request": {"id": "a", "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [NaN, 2]}]},
            "response": {"model_name": "m", "outputs": [
                {"name": "y", "shape": [1], "datatype": "INT64", "data": [7]}]}
        }]}"#;
        let Pairs { tolerance, pairs } = decode_pairs(document).unwrap();
        assert_eq!((tolerance, pairs.len()), (Some(0.01), 1));
        let x = pairs[0].inputs[0].tensor.as_f32().unwrap();
        assert!(x[0].is_nan() && x[1] == 2.0);
        let y = Tensor::new(vec![1], TensorData::Int64(vec![7])).unwrap();
        assert_eq!(pairs[0].outputs[0].tensor, y);
    }

    #[test]
    fn what_is_no_document_of_pairs_is_refused_with_its_reason() {
        for (document, part) in [
            ("[]", "expected"),
            ("{}", "lacks `pairs`"),
            (
                r#"{"pairs": [{"request": {"inputs": []}}]}"#,
                "lacks `response`",
            ),
            (
                r#"{"pairs": [{"request": {}, "response": {}}]}"#,
                "lacks `inputs`",
            ),
            (r#"{"pairs": [], "pairs": []}"#, "comes twice"),
            (
                r#"{"pairs": [{"request": {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1]}]}}]}"#,
                "the shape says 2",
            ),
        ] {
            let error = decode_pairs(document.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{document}: {error}");
        }
    }
}
