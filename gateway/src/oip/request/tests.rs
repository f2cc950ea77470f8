//! What decodes to what, and what does not.

use std::num::NonZeroUsize;
use std::time::Duration;

use engine::TensorData;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

fn one_input(shape: &str, datatype: &str, data: &str) -> Result<TensorData, DecodeError> {
    let body = format!(
        r#"{{"inputs":[{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}"#
    );
    let reordered = format!(
        r#"{{"inputs":[{{"data":{data},"shape":{shape},"name":"x","datatype":"{datatype}"}}]}}"#
    );
    let read = |body: &str| {
        let request = decode(body.as_bytes())?;
        let first = request.inputs.into_iter().next();
        Ok::<_, DecodeError>(first.unwrap().tensor.into_parts().1)
    };
    let (straight, late) = (read(&body), read(&reordered));
    assert_eq!(
        straight.is_ok(),
        late.is_ok(),
        "the order of keys matters: {body}"
    );
    if let (Ok(straight), Ok(late)) = (&straight, &late) {
        assert_eq!(format!("{straight:?}"), format!("{late:?}"));
    }
    straight
}

#[test]
fn values_that_fit_are_exact() {
    let cases = [
        (
            "[2,2]",
            "FP32",
            "[[1,2],[3,4.5]]",
            TensorData::Fp32(vec![1.0, 2.0, 3.0, 4.5]),
        ),
        (
            "[2,2]",
            "FP32",
            "[1,2,3,4.5]",
            TensorData::Fp32(vec![1.0, 2.0, 3.0, 4.5]),
        ),
        (
            "[1]",
            "UINT64",
            "[18446744073709551615]",
            TensorData::Uint64(vec![u64::MAX]),
        ),
        (
            "[1]",
            "INT64",
            "[-9223372036854775808]",
            TensorData::Int64(vec![i64::MIN]),
        ),
        (
            "[2]",
            "INT8",
            "[-128, 1.27e2]",
            TensorData::Int8(vec![-128, 127]),
        ),
        ("[2]", "UINT8", "[3.0,1e2]", TensorData::Uint8(vec![3, 100])),
        (
            "[4]",
            "BOOL",
            "[true,false,1,0]",
            TensorData::Bool(vec![true, false, true, false]),
        ),
        ("[]", "FP64", "2.5", TensorData::Fp64(vec![2.5])),
        ("[]", "FP64", "[2.5]", TensorData::Fp64(vec![2.5])),
        ("[0,3]", "FP32", "[]", TensorData::Fp32(vec![])),
        ("[2,0]", "FP32", "[[],[]]", TensorData::Fp32(vec![])),
        (
            "[1]",
            "BYTES",
            r#"["a\u0000\ud83d\ude00"]"#,
            TensorData::Bytes(vec!["a\0😀".into()]),
        ),
        ("[1]", "FP32", "[-0]", TensorData::Fp32(vec![-0.0])),
        (
            "[2]",
            "FP32",
            "[Infinity,-Infinity]",
            TensorData::Fp32(vec![f32::INFINITY, -f32::INFINITY]),
        ),
    ];
    for (shape, datatype, data, expected) in cases {
        assert_eq!(
            one_input(shape, datatype, data),
            Ok(expected),
            "{datatype} {data}"
        );
    }
    let half = one_input("[4]", "FP16", "[1,-0.5,65504,Infinity]").unwrap();
    assert_eq!(half, TensorData::Fp16(vec![0x3c00, 0xb800, 0x7bff, 0x7c00]));
    let brain = one_input("[3]", "BF16", "[1,-0.5,Infinity]").unwrap();
    assert_eq!(brain, TensorData::Bf16(vec![0x3f80, 0xbf00, 0x7f80]));
    let nan = one_input("[1]", "FP64", "[NaN]").unwrap();
    assert!(matches!(nan, TensorData::Fp64(values) if values[0].is_nan()));
}

#[test]
fn values_that_do_not_fit_are_refused() {
    for (shape, datatype, data) in [
        ("[1]", "INT8", "[300]"),
        ("[1]", "UINT8", "[-1]"),
        ("[1]", "INT32", "[1.5]"),
        ("[1]", "INT32", "[true]"),
        ("[1]", "INT64", "[9223372036854775808]"),
        ("[1]", "INT64", "[NaN]"),
        ("[1]", "UINT64", "[1e30]"),
        ("[1]", "FP32", "[1e400]"),
        ("[1]", "FP32", "[3.5e38]"),
        ("[1]", "FP64", "[1e999]"),
        ("[1]", "FP32", "[\"1\"]"),
        ("[1]", "FP32", "[null]"),
        ("[1]", "FP32", "[true]"),
        ("[1]", "BOOL", "[2]"),
        ("[1]", "BYTES", "[1]"),
        ("[1]", "FP16", "[65520]"),
        ("[1]", "FP16", "[1e300]"),
        ("[1]", "BF16", "[3.4e38]"),
        ("[1]", "fp32", "[1]"),
        ("[2]", "FP32", "[1]"),
        ("[1]", "FP32", "[1,2]"),
        ("[2,2]", "FP32", "[[1,2],[3]]"),
        ("[2,2]", "FP32", "[[1,2,3],[4]]"),
        ("[2,2]", "FP32", "[[[1],[2]],[[3],[4]]]"),
        ("[4]", "FP32", "[[1,2],[3,4]]"),
        ("[-1]", "FP32", "[1]"),
        ("[1.5]", "FP32", "[1]"),
        ("[\"1\"]", "FP32", "[1]"),
        ("[18446744073709551615,18446744073709551615]", "FP32", "[1]"),
        ("[4000000000]", "FP32", "[1]"),
        ("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", "FP32", "[1]"),
        ("{}", "FP32", "[1]"),
        ("[1]", "FP32", "{}"),
        ("[1]", "FP32", "1"),
    ] {
        assert!(
            one_input(shape, datatype, data).is_err(),
            "accepted {shape} {datatype} {data}"
        );
    }
}

#[test]
fn missing_unknown_and_doubled_keys_have_one_answer() {
    let refused = [
        "{}",
        "[]",
        r#"{"inputs":{}}"#,
        r#"{"inputs":[{}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1],"data":[1]}]}"#,
        r#"{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}"#,
        r#"{"inputs":[{"shape":[1],"datatype":"FP32","data":[1]}]}"#,
        r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[1],"data":[1]}]}"#,
        r#"{"inputs":[{"data":[1],"data":[1],"name":"x","shape":[1],"datatype":"FP32"}]}"#,
        r#"{"inputs":[{"data":[1],"name":"x","shape":[1],"datatype":"FP32","data":[1]}]}"#,
        r#"{"inputs":[],"inputs":[]}"#,
        r#"{"id":1,"inputs":[]}"#,
        r#"{"id":null,"inputs":[]}"#,
        r#"{"inputs":[],"outputs":[{}]}"#,
        r#"{"inputs":[],"parameters":{"timeout":-1}}"#,
        r#"{"inputs":[],"parameters":{"timeout":"1s"}}"#,
        r#"{"inputs":[],"parameters":{"sequence_id":1}}"#,
        r#"{"inputs":[],"parameters":{},"parameters":{}}"#,
        r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"classification":-1}}]}"#,
        r#"{"inputs":[],"outputs":[{"name":"y","parameters":{"shared_memory_region":"r"}}]}"#,
        r#"{"inputs":[],"parameters":{"loopgate_record":0}}"#,
        r#"{"inputs":[]} {}"#,
        r#"{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}}]}"#,
    ];
    for body in refused {
        assert!(decode(body.as_bytes()).is_err(), "accepted {body}");
    }
    let body = r#"{"z":[{"deep":[1e400,null]}],"id":"a","outputs":[{"name":"y","parameters":{"binary_data":false,"classification":3}}],
        "parameters":{"timeout":2500,"loopgate_record":false,"other":"x","priority":1,"more":[{}]},"inputs":[]}"#;
    let request = decode(body.as_bytes()).unwrap();
    let expected = InferRequest {
        id: Some("a".into()),
        inputs: vec![],
        outputs: vec![WantedOutput {
            name: "y".into(),
            classification: NonZeroUsize::new(3),
            binary: Some(false),
        }],
        priority: 1,
        timeout: Some(Duration::from_micros(2500)),
        probe: true,
        ..InferRequest::default()
    };
    assert_eq!(request, expected);
}

/// Name, shape and elements of each input.
type Read = Vec<(String, Vec<usize>, Vec<f64>)>;

/// The same rules, written the slow way over serde_json's tree.
fn reference(body: &[u8]) -> Option<Read> {
    fn flatten(data: &Value, shape: &[usize], out: &mut Vec<f64>) -> Option<()> {
        let items = data.as_array()?;
        if items.len() != *shape.first()? {
            return None;
        }
        for item in items {
            match shape.len() {
                1 => out.push(item.as_f64()?),
                _ => flatten(item, &shape[1..], out)?,
            }
        }
        Some(())
    }
    let document: Value = serde_json::from_slice(body).ok()?;
    let mut inputs = Vec::new();
    for input in document.get("inputs")?.as_array()? {
        let axes = input.get("shape")?.as_array()?;
        let shape: Vec<usize> = axes
            .iter()
            .map(|axis| Some(axis.as_u64()? as usize))
            .collect::<Option<_>>()?;
        if input.get("datatype")?.as_str()? != "FP64" {
            return None;
        }
        let data = input.get("data")?;
        let mut out = Vec::new();
        let nested = data.as_array()?.first().is_some_and(Value::is_array) && shape.len() > 1;
        let flat = [shape.iter().product()];
        flatten(data, if nested { &shape } else { &flat }, &mut out)?;
        inputs.push((input.get("name")?.as_str()?.to_owned(), shape, out));
    }
    Some(inputs)
}

fn ours(body: &[u8]) -> Option<Read> {
    let request = decode(body).ok()?;
    let mut inputs = Vec::new();
    for input in request.inputs {
        let (shape, TensorData::Fp64(data)) = input.tensor.into_parts() else {
            return None;
        };
        inputs.push((input.name.into(), shape, data));
    }
    Some(inputs)
}

fn arbitrary_input() -> impl Strategy<Value = Value> {
    let numbers = prop::collection::vec(
        prop_oneof![
            any::<f64>().prop_filter("finite", |x| x.is_finite()),
            Just(3.0)
        ],
        0..7,
    );
    let shape = prop::collection::vec(0_usize..4, 1..4);
    ("[a-c\"\\\\é]{1,3}", shape, numbers, any::<bool>(), 0..10_u8).prop_map(
        |(name, shape, mut numbers, nested, honest)| {
            let count = shape.iter().product();
            if honest > 2 {
                numbers.resize(count, 0.5);
            }
            let mut data = json!(numbers);
            if nested {
                for axis in shape.iter().skip(1).rev() {
                    let items = data.as_array().cloned().unwrap_or_default();
                    data = items.chunks((*axis).max(1)).map(|chunk| json!(chunk)).collect();
                }
            }
            json!({"datatype": "FP64", "shape": shape, "name": name, "data": data, "more": {"k": [null, "x"]}})
        },
    )
}

proptest! {
    #[test]
    fn requests_decode_as_the_reference_decodes_them(
        inputs in prop::collection::vec(arbitrary_input(), 0..3),
        cut in prop::option::of((any::<prop::sample::Index>(), any::<u8>())),
    ) {
        let mut names: Vec<_> = inputs.iter().map(|input| input["name"].to_string()).collect();
        names.sort();
        names.dedup();
        prop_assume!(names.len() == inputs.len());
        let mut body = serde_json::to_vec(&json!({"id": "x", "inputs": inputs})).unwrap();
        if let Some((index, byte)) = cut {
            let at = index.index(body.len());
            body[at] = byte;
        }
        // A doubled or damaged key may be known to one and not to the other; equal elsewhere.
        if let (Some(ours), Some(theirs)) = (ours(&body), reference(&body)) {
            prop_assert_eq!(ours, theirs);
        } else if cut.is_none() {
            prop_assert_eq!(ours(&body), reference(&body));
        }
    }

    #[test]
    fn no_body_makes_it_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(decode(&body));
    }
}
