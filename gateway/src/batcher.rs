//! Batches: the rows of several requests as one run, and its outputs as several answers.
//!
//! Only a version whose rows do not depend on each other is batched. That its first axis varies
//! does not say so (it may be time), so it is tried when the version is made: rows must score the
//! same alone and together.

use engine::{Signature, Tensor, TensorData, sample_inputs};

/// Difference of an output, relative to its size and to 1, that rounding may make: kernels sum in
/// another order for another number of rows.
const TOLERANCE: f64 = 1e-5;

/// Whether the first axis of every input and output varies, and is one and the same.
pub(crate) fn has_rows(signature: &Signature) -> bool {
    let varies = |spec: &engine::TensorSpec| spec.shape.first() == Some(&-1);
    !signature.inputs.is_empty()
        && signature.inputs.iter().all(varies)
        && signature.outputs.iter().all(varies)
}

/// Whether rows score the same alone and together, by `run` on samples.
pub(crate) fn is_rowwise(
    signature: &Signature,
    mut run: impl FnMut(&[Tensor]) -> Option<Vec<Tensor>>,
) -> bool {
    if !has_rows(signature) {
        return false;
    }
    // Different rows, and more of one part than of the other.
    let rows = [1, 3];
    let parts = rows.map(|rows| sample_inputs(signature, rows, rows as u64));
    let Some(joined) = join(&[&parts[0], &parts[1]]) else {
        return false;
    };
    let together = run(&joined).and_then(|outputs| split(outputs, &rows));
    together.is_some_and(|together| {
        parts.iter().zip(together).all(|(part, expected)| {
            let alike = |found: Vec<Tensor>| {
                let mut pairs = found.iter().zip(&expected);
                found.len() == expected.len() && pairs.all(|(a, b)| is_close(a, b))
            };
            run(part).is_some_and(alike)
        })
    })
}

/// Whether requests with these inputs can share a run.
pub(crate) fn is_joinable(one: &[Tensor], other: &[Tensor]) -> bool {
    let fits = |(a, b): (&Tensor, &Tensor)| {
        let (inner, others) = (a.shape().get(1..), b.shape().get(1..));
        a.datatype() == b.datatype() && inner.is_some() && inner == others
    };
    one.len() == other.len() && one.iter().zip(other).all(fits)
}

/// The inputs of several requests, one after the other along the first axis; `None` where they do
/// not fit each other.
pub(crate) fn join(requests: &[&[Tensor]]) -> Option<Vec<Tensor>> {
    let first = *requests.first()?;
    if !requests.iter().all(|request| is_joinable(first, request)) {
        return None;
    }
    (0..first.len())
        .map(|input| {
            let parts = requests.iter().map(|request| &request[input]);
            let rows = parts.clone().map(|part| part.shape()[0]).sum();
            let mut shape = vec![rows];
            shape.extend_from_slice(&first[input].shape()[1..]);
            Tensor::new(shape, concatenated(parts.map(Tensor::data))?).ok()
        })
        .collect()
}

/// The outputs of each request, by its rows; `None` where the outputs do not have their sum.
pub(crate) fn split(outputs: Vec<Tensor>, rows: &[usize]) -> Option<Vec<Vec<Tensor>>> {
    let total: usize = rows.iter().sum();
    let mut answers: Vec<Vec<Tensor>> = rows.iter().map(|_| Vec::new()).collect();
    for output in outputs {
        let (shape, data) = output.into_parts();
        let (&length, inner) = shape.split_first()?;
        if length != total {
            return None;
        }
        let width: usize = inner.iter().product();
        let mut start = 0;
        for (answer, &rows) in answers.iter_mut().zip(rows) {
            let end = start + rows * width;
            let mut shape = vec![rows];
            shape.extend_from_slice(inner);
            answer.push(Tensor::new(shape, slice(&data, start..end)?).ok()?);
            start = end;
        }
    }
    Some(answers)
}

/// Does the same for whatever vector a tensor holds.
macro_rules! each_type {
    ($macro:ident) => {
        $macro!(
            Bool, Uint8, Uint16, Uint32, Uint64, Int8, Int16, Int32, Int64, Fp16, Bf16, Fp32, Fp64,
            Bytes
        )
    };
}

fn concatenated<'d>(mut parts: impl Iterator<Item = &'d TensorData>) -> Option<TensorData> {
    let mut whole = parts.next()?.clone();
    for part in parts {
        macro_rules! append {
            ($($kind:ident),*) => {
                match (&mut whole, part) {
                    $((TensorData::$kind(whole), TensorData::$kind(part)) => whole.extend_from_slice(part),)*
                    _ => return None,
                }
            };
        }
        each_type!(append);
    }
    Some(whole)
}

fn slice(data: &TensorData, range: std::ops::Range<usize>) -> Option<TensorData> {
    macro_rules! sliced {
        ($($kind:ident),*) => {
            match data {
                $(TensorData::$kind(values) => TensorData::$kind(values.get(range)?.to_vec()),)*
            }
        };
    }
    Some(each_type!(sliced))
}

fn is_close(one: &Tensor, other: &Tensor) -> bool {
    let near = |a: f64, b: f64| {
        a == b
            || (a.is_nan() && b.is_nan())
            || (a - b).abs() <= TOLERANCE * a.abs().max(b.abs()).max(1.0)
    };
    let same_shape = one.shape() == other.shape();
    same_shape
        && match (one.data(), other.data()) {
            (TensorData::Fp32(a), TensorData::Fp32(b)) => {
                a.iter().zip(b).all(|(&a, &b)| near(a.into(), b.into()))
            }
            (TensorData::Fp64(a), TensorData::Fp64(b)) => {
                a.iter().zip(b).all(|(&a, &b)| near(a, b))
            }
            (a, b) => a == b,
        }
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use engine::{DataType, TensorSpec};
    use proptest::prelude::*;

    use super::*;

    fn signature(inputs: &[&[i64]], outputs: &[&[i64]]) -> Signature {
        let specs = |shapes: &[&[i64]]| {
            let spec = |(k, shape): (usize, &&[i64])| TensorSpec {
                name: format!("t{k}"),
                datatype: DataType::Fp32,
                shape: shape.to_vec(),
            };
            shapes.iter().enumerate().map(spec).collect()
        };
        Signature {
            inputs: specs(inputs),
            outputs: specs(outputs),
        }
    }

    fn floats(shape: &[usize], values: Vec<f32>) -> Tensor {
        Tensor::new(shape.to_vec(), TensorData::Fp32(values)).unwrap()
    }

    #[test]
    fn a_varying_first_axis_is_rows_only_where_rows_do_not_touch_each_other() {
        let rows = signature(&[&[-1, 2]], &[&[-1]]);
        let sums = |inputs: &[Tensor]| -> Vec<f32> {
            let values = inputs[0].as_f32().unwrap();
            values.chunks(2).map(|row| row[0] + row[1]).collect()
        };
        let each = |inputs: &[Tensor]| {
            let sums = sums(inputs);
            Some(vec![floats(&[sums.len()], sums)])
        };
        assert!(is_rowwise(&rows, each));
        let running = |inputs: &[Tensor]| {
            let mut total = 0.0;
            let sums: Vec<f32> = sums(inputs)
                .iter()
                .map(|sum| {
                    total += sum;
                    total
                })
                .collect();
            Some(vec![floats(&[sums.len()], sums)])
        };
        assert!(!is_rowwise(&rows, running));
        assert!(!is_rowwise(&rows, |_| None));
        assert!(!is_rowwise(&signature(&[&[-1, 2], &[2]], &[&[-1]]), each));
        assert!(!is_rowwise(&signature(&[&[-1, 2]], &[&[1]]), each));
    }

    #[test]
    fn requests_of_other_shapes_are_not_joined() {
        let (one, other) = (floats(&[1, 2], vec![1.0; 2]), floats(&[1, 3], vec![1.0; 3]));
        assert!(join(&[from_ref(&one), &[other]]).is_none());
        assert!(!is_joinable(from_ref(&one), &[]));
        let scalar = Tensor::new(vec![], TensorData::Fp32(vec![1.0])).unwrap();
        assert!(!is_joinable(from_ref(&scalar), from_ref(&scalar)));
        assert!(split(vec![one], &[2]).is_none());
    }

    proptest! {
        #[test]
        fn what_is_joined_comes_apart_again(
            rows in prop::collection::vec(0_usize..5, 1..6),
            width in 0_usize..4,
            seed: u64,
        ) {
            let request = |(k, &rows): (usize, &usize)| {
                let value = |j: usize| (seed as f32) + (k * 100 + j) as f32;
                let text = |j: usize| format!("{k}/{j}").into_bytes();
                vec![
                    floats(&[rows, width], (0..rows * width).map(value).collect()),
                    Tensor::new(vec![rows], TensorData::Bytes((0..rows).map(text).collect())).unwrap(),
                ]
            };
            let requests: Vec<Vec<Tensor>> = rows.iter().enumerate().map(request).collect();
            let parts: Vec<&[Tensor]> = requests.iter().map(Vec::as_slice).collect();
            let joined = join(&parts).unwrap();
            prop_assert_eq!(joined[1].shape(), &[rows.iter().sum::<usize>()][..]);
            prop_assert_eq!(split(joined, &rows).unwrap(), requests);
        }
    }
}
