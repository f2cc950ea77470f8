use super::*;

fn floats(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::new(shape.to_vec(), TensorData::Fp32(values.to_vec())).unwrap()
}

#[test]
fn the_first_element_that_is_not_as_expected_is_named() {
    let expected = floats(&[2, 2], &[1.0, f32::NAN, 0.5, 2000.0]);
    let near = floats(&[2, 2], &[1.00005, f32::NAN, 0.49995, 2000.1]);
    assert_eq!(first_mismatch(&expected, &near, 1e-4), None);
    let far = floats(&[2, 2], &[1.0, f32::NAN, 0.75, 0.0]);
    let mismatch = first_mismatch(&expected, &far, 1e-4).unwrap();
    assert_eq!(
        (
            mismatch.place.as_slice(),
            &*mismatch.expected,
            &*mismatch.found
        ),
        (&[1, 0][..], "0.5", "0.75")
    );
    let none = floats(&[2, 2], &[1.0, 1.0, 0.5, 2000.0]);
    assert_eq!(
        first_mismatch(&expected, &none, 1e-4).unwrap().place,
        [0, 1]
    );
    let flat = floats(&[4], &[0.0; 4]);
    let mismatch = first_mismatch(&expected, &flat, 1e-4).unwrap();
    assert!(mismatch.place.is_empty());
    assert_eq!(&*mismatch.found, "FP32 [4]");
}

#[test]
fn what_is_no_float_is_to_be_equal() {
    let words = |words: &[&str]| {
        let bytes = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        Tensor::new(vec![words.len()], TensorData::Bytes(bytes)).unwrap()
    };
    let mismatch = first_mismatch(&words(&["a", "b"]), &words(&["a", "c"]), 1.0).unwrap();
    assert_eq!((&*mismatch.expected, &*mismatch.found), ("\"b\"", "\"c\""));
    let whole =
        |values: &[i64]| Tensor::new(vec![1, 2], TensorData::Int64(values.to_vec())).unwrap();
    assert_eq!(first_mismatch(&whole(&[1, 2]), &whole(&[1, 2]), 1.0), None);
    assert_eq!(
        first_mismatch(&whole(&[1, 2]), &whole(&[1, 3]), 9.0)
            .unwrap()
            .place,
        [0, 1]
    );
}
