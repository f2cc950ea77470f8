use engine::{DataType, TensorSpec};

use super::*;

fn outputs(specs: &[(DataType, &[i64])]) -> Signature {
    let output = |(k, &(datatype, shape)): (usize, &(DataType, &[i64]))| TensorSpec {
        name: format!("y{k}"),
        datatype,
        shape: shape.to_vec(),
    };
    Signature {
        inputs: vec![],
        outputs: specs.iter().enumerate().map(output).collect(),
    }
}

#[test]
fn the_score_is_the_last_column_of_the_first_float_output() {
    let labels = Tensor::new(vec![2], TensorData::Int64(vec![0, 1])).unwrap();
    let classes = Tensor::new(vec![2, 2], TensorData::Fp32(vec![0.9, 0.1, 0.2, 0.8])).unwrap();
    assert_eq!(scores(&[labels.clone(), classes], 2)[..], [0.1, 0.8]);
    let flat = Tensor::new(vec![2], TensorData::Fp64(vec![0.5, 0.25])).unwrap();
    assert_eq!(scores(&[flat], 2)[..], [0.5, 0.25]);
    // 0.5 and 0.25, in either half precision.
    for halves in [
        TensorData::Fp16(vec![0x3800, 0x3400]),
        TensorData::Bf16(vec![0x3f00, 0x3e80]),
    ] {
        let halves = Tensor::new(vec![2, 1], halves).unwrap();
        assert_eq!(scores(&[halves], 2)[..], [0.5, 0.25]);
    }
    assert!(scores(&[labels], 2).iter().all(|score| score.is_nan()));
    assert!(scores(&[], 0).is_empty());
}

#[test]
fn a_constant_fills_float_outputs_only() {
    let floats = outputs(&[(DataType::Fp32, &[-1, 1]), (DataType::Fp64, &[-1])]);
    let made = filled(&floats, 3, 0.25).unwrap();
    assert_eq!((made[0].shape(), made[1].shape()), (&[3, 1][..], &[3][..]));
    assert_eq!(made[0].as_f32().unwrap(), [0.25; 3]);
    assert!(filled(&outputs(&[(DataType::Int64, &[-1])]), 3, 0.25).is_none());
}

#[test]
fn no_rows_need_no_engine() {
    let made = empty(&outputs(&[
        (DataType::Fp32, &[-1, 4]),
        (DataType::Bytes, &[-1]),
    ]))
    .unwrap();
    assert_eq!((made[0].shape(), made[1].shape()), (&[0, 4][..], &[0][..]));
    assert!(empty(&outputs(&[(DataType::Fp32, &[2])])).is_none());
}
