//! The two widths of numbers that trees are written in.

use std::fmt::Debug;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

use tract_onnx::pb::{TensorProto, tensor_proto::DataType};

use super::graph::chunks;

/// FP32 or FP64: thresholds, weights and scores of one ensemble are of one width.
pub(super) trait Number:
    Copy
    + Debug
    + Default
    + PartialOrd
    + AddAssign
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    const ONE: Self;
    const INFINITY: Self;

    fn of(x: f32) -> Self;
    fn of_count(count: usize) -> Self;
    fn to_f32(self) -> f32;
    fn exp(self) -> Self;
    fn abs(self) -> Self;
    fn is_finite(self) -> bool;
    fn is_missing(self) -> bool;
    /// The numbers of a constant of this width.
    fn of_tensor(tensor: &TensorProto) -> Option<Vec<Self>>;

    /// An integer with the order of the numbers among `thresholds`, which are sorted: two numbers
    /// have one key only where no threshold tells them apart. Both zeros have one key; a missing
    /// value has the largest, and no number has that or the smallest.
    fn key(self, thresholds: &[Self]) -> i32;

    /// True when keys need the thresholds.
    const IS_RANKED: bool;
}

macro_rules! arithmetic {
    ($type:ty) => {
        const ONE: Self = 1.0;
        const INFINITY: Self = <$type>::INFINITY;

        fn of(x: f32) -> Self {
            x.into()
        }

        fn of_count(count: usize) -> Self {
            count as $type
        }

        fn to_f32(self) -> f32 {
            self as f32
        }

        fn exp(self) -> Self {
            self.exp()
        }

        fn abs(self) -> Self {
            self.abs()
        }

        fn is_finite(self) -> bool {
            self.is_finite()
        }

        fn is_missing(self) -> bool {
            self.is_nan()
        }
    };
}

impl Number for f32 {
    arithmetic!(f32);

    fn of_tensor(tensor: &TensorProto) -> Option<Vec<Self>> {
        (tensor.data_type == DataType::Float as i32).then(|| {
            if tensor.raw_data.is_empty() {
                tensor.float_data.clone()
            } else {
                chunks(&tensor.raw_data).map(Self::from_le_bytes).collect()
            }
        })
    }

    const IS_RANKED: bool = false;

    /// The bits, turned around for negative numbers: no look at the thresholds.
    #[inline]
    fn key(self, _thresholds: &[Self]) -> i32 {
        if self.is_nan() {
            return i32::MAX;
        }
        // The sum turns minus zero into zero; the shift turns a negative number's bits around.
        let bits = (self + 0.0).to_bits().cast_signed();
        bits ^ (bits >> 31 & i32::MAX)
    }
}

impl Number for f64 {
    arithmetic!(f64);

    fn of_tensor(tensor: &TensorProto) -> Option<Vec<Self>> {
        (tensor.data_type == DataType::Double as i32).then(|| {
            if tensor.raw_data.is_empty() {
                tensor.double_data.clone()
            } else {
                chunks(&tensor.raw_data).map(Self::from_le_bytes).collect()
            }
        })
    }

    const IS_RANKED: bool = true;

    /// The rank: odd on a threshold, even between two.
    #[inline]
    fn key(self, thresholds: &[Self]) -> i32 {
        if self.is_nan() {
            return i32::MAX;
        }
        let below = thresholds.partition_point(|&threshold| threshold < self);
        let is_met = thresholds.get(below).is_some_and(|&next| next == self);
        i32::try_from(2 * below).map_or(i32::MAX - 2, |rank| rank + i32::from(is_met))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBERS: [f32; 13] = [
        f32::NEG_INFINITY,
        f32::MIN,
        -1.5,
        -1.0,
        -f32::MIN_POSITIVE,
        -1e-45,
        0.0,
        1e-45,
        f32::MIN_POSITIVE,
        1.0,
        1.5,
        f32::MAX,
        f32::INFINITY,
    ];

    #[test]
    fn keys_have_the_order_of_the_numbers() {
        let key = |x: f32| x.key(&[]);
        assert!(NUMBERS.is_sorted_by(|a, b| key(*a) < key(*b)));
        assert_eq!((key(-0.0), key(0.0)), (0, 0));
        assert!(key(f32::INFINITY) < i32::MAX - 1 && key(f32::NEG_INFINITY) > i32::MIN + 1);
        assert_eq!((key(f32::NAN), key(-f32::NAN)), (i32::MAX, i32::MAX));
    }

    #[test]
    fn ranks_tell_apart_what_a_threshold_tells_apart() {
        let thresholds = NUMBERS.map(f64::from);
        for (at, &threshold) in thresholds.iter().enumerate() {
            let rank = threshold.key(&thresholds);
            assert_eq!(rank, 2 * i32::try_from(at).unwrap() + 1);
            assert!(threshold.next_up().key(&thresholds) >= rank);
            assert!(threshold.next_down().key(&thresholds) <= rank);
        }
        assert_eq!((-0.0_f64).key(&thresholds), 0.0_f64.key(&thresholds));
        assert_eq!(f64::NAN.key(&thresholds), i32::MAX);
        assert_eq!((-5.0_f64).key(&[]), 0);
    }
}
