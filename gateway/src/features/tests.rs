use super::*;

fn field(ty: FieldType, nullable: bool) -> Field {
    Field {
        name: "f".into(),
        ty,
        nullable,
    }
}

#[test]
fn values_take_what_fits_their_field() {
    let string = |text: &str| TensorData::Bytes(vec![text.into()]);
    let cases = [
        (
            FieldType::String,
            false,
            string("ab"),
            Value::String("ab".into()),
        ),
        (FieldType::String, true, string(""), Value::Null),
        (
            FieldType::String,
            false,
            string(""),
            Value::String("".into()),
        ),
        (
            FieldType::Float,
            false,
            TensorData::Fp64(vec![1.5]),
            Value::Float(1.5),
        ),
        (
            FieldType::Float,
            false,
            TensorData::Fp32(vec![1.5]),
            Value::Float(1.5),
        ),
        (
            FieldType::Float,
            false,
            TensorData::Int16(vec![-3]),
            Value::Float(-3.0),
        ),
        (
            FieldType::Float,
            true,
            TensorData::Fp64(vec![f64::NAN]),
            Value::Null,
        ),
        (
            FieldType::Int,
            false,
            TensorData::Uint8(vec![7]),
            Value::Int(7),
        ),
        (
            FieldType::Time,
            false,
            TensorData::Int64(vec![7]),
            Value::Int(7),
        ),
        (
            FieldType::Bool,
            false,
            TensorData::Bool(vec![true]),
            Value::Bool(true),
        ),
    ];
    for (ty, nullable, data, expected) in cases {
        assert_eq!(value(&field(ty, nullable), &data, 0).unwrap(), expected);
    }
}

#[test]
fn values_refuse_what_does_not_fit() {
    let cases = [
        (FieldType::String, TensorData::Fp32(vec![1.0])),
        (FieldType::String, TensorData::Bytes(vec![vec![0xff]])),
        (FieldType::Float, TensorData::Fp64(vec![f64::NAN])),
        (FieldType::Float, TensorData::Fp64(vec![f64::INFINITY])),
        (FieldType::Float, TensorData::Bool(vec![true])),
        (FieldType::Int, TensorData::Fp64(vec![1.0])),
        (FieldType::Int, TensorData::Uint64(vec![u64::MAX])),
        (FieldType::Time, TensorData::Int64(vec![i64::MAX])),
        (FieldType::Bool, TensorData::Int64(vec![1])),
    ];
    for (ty, data) in cases {
        assert!(
            value(&field(ty, false), &data, 0).is_err(),
            "{ty:?} took {data:?}"
        );
    }
}
