//! The classification extension: of each row the best classes, best first, as `value:index`, or
//! `value:index:label` where the class has a label.

use std::cmp::Ordering;
use std::num::NonZeroUsize;

use engine::{DataType, Tensor, TensorData, TensorSpec};

use super::half::{BF16, FP16};

/// An output that has no classes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("output `{output}` of {datatype} cannot be classified")]
pub(crate) struct ClassifyError {
    pub output: Box<str>,
    pub datatype: DataType,
}

/// The best `count` classes of each row of output `spec`, or all where there are fewer, as `BYTES` of
/// shape `[rows, count]`; `[count]` where the first axis is no batch. Equal values come in the order
/// of their indices; NaN is below every number.
///
/// # Errors
/// When the elements are no numbers.
pub(crate) fn classify(
    spec: &TensorSpec,
    tensor: &Tensor,
    count: NonZeroUsize,
    labels: &[Box<str>],
) -> Result<Tensor, ClassifyError> {
    let (batch, inner) = match (tensor.shape(), spec.shape.first()) {
        ([rows, inner @ ..], Some(-1)) => (vec![*rows], inner),
        (shape, _) => (Vec::new(), shape),
    };
    let classes = inner.iter().product();
    let count = count.get().min(classes);
    let wanted = Classes {
        classes,
        count,
        labels,
    };
    let texts = match tensor.data() {
        TensorData::Uint8(values) => ranked(values, wanted),
        TensorData::Uint16(values) => ranked(values, wanted),
        TensorData::Uint32(values) => ranked(values, wanted),
        TensorData::Uint64(values) => ranked(values, wanted),
        TensorData::Int8(values) => ranked(values, wanted),
        TensorData::Int16(values) => ranked(values, wanted),
        TensorData::Int32(values) => ranked(values, wanted),
        TensorData::Int64(values) => ranked(values, wanted),
        TensorData::Fp16(bits) => {
            let values: Vec<f32> = bits.iter().map(|&bits| FP16.widen(bits)).collect();
            ranked(&values, wanted)
        }
        TensorData::Bf16(bits) => {
            let values: Vec<f32> = bits.iter().map(|&bits| BF16.widen(bits)).collect();
            ranked(&values, wanted)
        }
        TensorData::Fp32(values) => ranked(values, wanted),
        TensorData::Fp64(values) => ranked(values, wanted),
        _ => {
            return Err(ClassifyError {
                output: spec.name.as_str().into(),
                datatype: tensor.datatype(),
            });
        }
    };
    let shape = [batch, vec![count]].concat();
    Ok(Tensor::new(shape, TensorData::Bytes(texts)).expect("each row has `count` classes"))
}

/// How many classes a row has, how many of them are wanted, and what they are called.
#[derive(Clone, Copy)]
struct Classes<'l> {
    classes: usize,
    count: usize,
    labels: &'l [Box<str>],
}

fn ranked<T>(values: &[T], wanted: Classes<'_>) -> Vec<Vec<u8>>
where
    T: PartialOrd + std::fmt::Display,
{
    let Classes {
        classes,
        count,
        labels,
    } = wanted;
    let mut texts = Vec::new();
    if count == 0 {
        return texts;
    }
    let mut order: Vec<usize> = Vec::with_capacity(classes);
    for row in values.chunks_exact(classes) {
        order.clear();
        order.extend(0..classes);
        let better = |&a: &usize, &b: &usize| descending(&row[a], &row[b]).then(a.cmp(&b));
        if count < classes {
            order.select_nth_unstable_by(count, better);
        }
        order[..count].sort_unstable_by(better);
        let text = |&index: &usize| {
            let text = match labels.get(index) {
                Some(label) => format!("{}:{index}:{label}", row[index]),
                None => format!("{}:{index}", row[index]),
            };
            text.into_bytes()
        };
        texts.extend(order[..count].iter().map(text));
    }
    texts
}

/// Greater values first, NaN, which alone cannot be compared even with itself, last.
fn descending<T: PartialOrd>(a: &T, b: &T) -> Ordering {
    let is_nan = |value: &T| value.partial_cmp(value).is_none();
    b.partial_cmp(a)
        .unwrap_or_else(|| is_nan(a).cmp(&is_nan(b)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spec(shape: &[i64]) -> TensorSpec {
        TensorSpec {
            name: "y".to_owned(),
            datatype: DataType::Fp32,
            shape: shape.to_vec(),
        }
    }

    /// Shape and texts of the classes; an axis of the shape that is negative is the batch.
    fn classes(shape: &[i64], data: TensorData, count: usize) -> (Vec<usize>, Vec<String>) {
        let axes = shape.iter().map(|&axis| axis.unsigned_abs() as usize);
        let tensor = Tensor::new(axes.collect(), data).unwrap();
        let declared: Vec<i64> = shape.iter().map(|&axis| axis.max(-1)).collect();
        let count = NonZeroUsize::new(count).unwrap();
        let made = classify(&spec(&declared), &tensor, count, &[]).unwrap();
        let (shape, TensorData::Bytes(texts)) = made.into_parts() else {
            panic!("classes are BYTES");
        };
        let text = |text| String::from_utf8(text).unwrap();
        (shape, texts.into_iter().map(text).collect())
    }

    #[test]
    fn the_best_classes_of_each_row_come_first() {
        let rows = TensorData::Fp32(vec![0.25, 0.5, 0.25, f32::NAN, 1.0, -1.0]);
        let (shape, texts) = classes(&[-2, 3], rows.clone(), 2);
        assert_eq!(shape, [2, 2]);
        assert_eq!(texts, ["0.5:1", "0.25:0", "1:1", "-1:2"]);
        let (shape, texts) = classes(&[2, 3], rows, 2);
        assert_eq!((shape, texts.join(" ")), (vec![2], "1:4 0.5:1".into()));
        let whole = TensorData::Int64(vec![3, 9, 9]);
        let (shape, texts) = classes(&[3], whole.clone(), 7);
        assert_eq!((shape, texts.join(" ")), (vec![3], "9:1 9:2 3:0".into()));
        let (shape, texts) = classes(&[-3], whole, 7);
        assert_eq!((shape, texts.join(" ")), (vec![3, 1], "3:0 9:0 9:0".into()));
        assert_eq!(classes(&[], TensorData::Fp64(vec![2.5]), 1).1, ["2.5:0"]);
        assert_eq!(classes(&[0, 3], TensorData::Fp32(vec![]), 2).0, [0]);
        let (shape, texts) = classes(&[-2, 0], TensorData::Fp32(vec![]), 2);
        assert_eq!((shape, texts.len()), (vec![2, 0], 0));
    }

    #[test]
    fn what_is_no_number_has_no_classes() {
        let texts = Tensor::new(vec![1], TensorData::Bytes(vec![vec![]])).unwrap();
        assert!(classify(&spec(&[1]), &texts, NonZeroUsize::MIN, &[]).is_err());
    }

    #[test]
    fn a_class_that_has_a_label_is_written_with_it() {
        let rows = Tensor::new(vec![1, 3], TensorData::Fp32(vec![0.25, 0.5, 0.125])).unwrap();
        let count = NonZeroUsize::new(3).unwrap();
        let labels = ["no".into(), "per:haps".into()];
        let made = classify(&spec(&[-1, 3]), &rows, count, &labels).unwrap();
        let expected = ["0.5:1:per:haps", "0.25:0:no", "0.125:2"];
        let expected = expected.map(|text| text.as_bytes().to_vec()).to_vec();
        assert_eq!(made.data(), &TensorData::Bytes(expected));
    }

    proptest! {
        #[test]
        fn the_selection_is_the_head_of_the_whole_order(values in prop::collection::vec(-4_i32..4, 1..30), count in 1_usize..32) {
            let all = classes(&[-1, values.len() as i64], TensorData::Int32(values.clone()), values.len()).1;
            let some = classes(&[-1, values.len() as i64], TensorData::Int32(values), count).1;
            prop_assert_eq!(&all[..some.len()], &some[..]);
            let mut sorted = all.clone();
            sorted.sort_by_key(|text| {
                let (value, index) = text.split_once(':').unwrap();
                (-value.parse::<i32>().unwrap(), index.parse::<usize>().unwrap())
            });
            prop_assert_eq!(all, sorted);
        }
    }
}
