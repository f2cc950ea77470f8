//! Floats of 16 bits, which are kept as their bits: to and from the floats that hold them exactly.

/// A layout: one bit of sign, then the exponent, then the fraction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    fraction_bits: u32,
    /// Half the range of exponents.
    bias: i32,
}

/// IEEE 754 half precision.
pub(crate) const FP16: Half = Half {
    fraction_bits: 10,
    bias: 15,
};

/// The upper half of single precision.
pub(crate) const BF16: Half = Half {
    fraction_bits: 7,
    bias: 127,
};

impl Half {
    /// The value of some bits.
    pub(crate) fn widen(self, bits: u16) -> f32 {
        let one = 1_u16 << self.fraction_bits;
        let fraction = f64::from(bits & (one - 1));
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let exponent = i32::from((bits & 0x7fff) >> self.fraction_bits);
        match exponent {
            0 => sign * (fraction * 2_f64.powi(self.lowest())) as f32,
            exponent if exponent > 2 * self.bias && fraction == 0.0 => sign * f32::INFINITY,
            exponent if exponent > 2 * self.bias => f32::NAN,
            exponent => {
                let unit = 2_f64.powi(self.lowest() + exponent - 1);
                sign * ((f64::from(one) + fraction) * unit) as f32
            }
        }
    }

    /// The nearest bits, ties to even; `None` for a finite value that is beyond them all.
    pub(crate) fn narrow(self, value: f64) -> Option<u16> {
        let top = u16::try_from(2 * self.bias + 1).ok()? << self.fraction_bits;
        let sign = u16::from(value.is_sign_negative()) << 15;
        if value.is_nan() {
            return Some(sign | top | (1 << (self.fraction_bits - 1)));
        }
        if value.is_infinite() {
            return Some(sign | top);
        }
        let size = value.abs();
        let exponent = ((size.to_bits() >> 52) as i32 - 1023).max(1 - self.bias);
        // In units of the last place at this exponent: exact, but for the one rounding.
        let units = size * 2_f64.powi(self.fraction_bits as i32 - exponent);
        let units = units.round_ties_even() as i64;
        // A rounding up to the next power of two carries into the exponent, as it should.
        let bits = (i64::from(exponent + self.bias - 1) << self.fraction_bits) + units;
        u16::try_from(bits)
            .ok()
            .filter(|&bits| bits < top)
            .map(|bits| sign | bits)
    }

    /// The exponent of the last place of the smallest values.
    fn lowest(self) -> i32 {
        1 - self.bias - self.fraction_bits as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_precision_is_exact() {
        for (bits, value) in [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
            (0x8000, -0.0),
        ] {
            assert_eq!(FP16.widen(bits).to_bits(), f32::to_bits(value));
        }
        assert!(FP16.widen(0x7e00).is_nan() && FP16.widen(0xfc00) == f32::NEG_INFINITY);
    }

    #[test]
    fn a_bf16_is_the_upper_half_of_single_precision() {
        for bits in 0..=u16::MAX {
            let single = f32::from_bits(u32::from(bits) << 16);
            if single.is_nan() {
                assert!(BF16.widen(bits).is_nan());
                continue;
            }
            assert_eq!(BF16.widen(bits).to_bits(), single.to_bits());
            assert_eq!(BF16.narrow(single.into()), Some(bits));
        }
        assert_eq!(BF16.narrow(f32::MAX.into()), None);
    }

    #[test]
    fn every_value_comes_back_and_midpoints_go_to_the_even_one() {
        for bits in 0..=u16::MAX {
            let value = FP16.widen(bits);
            match value.is_nan() {
                true => assert!(FP16.widen(FP16.narrow(value.into()).unwrap()).is_nan()),
                false => assert_eq!(FP16.narrow(value.into()), Some(bits)),
            }
            let next = FP16.widen(bits.wrapping_add(1));
            if value.is_finite() && next.is_finite() && bits & 0x7fff != 0x7fff {
                let middle = f64::midpoint(value.into(), next.into());
                assert_eq!(FP16.narrow(middle), Some(bits + (bits & 1)), "{middle}");
            }
        }
        for beyond in [65520.0, -1e9, f64::MAX] {
            assert_eq!(FP16.narrow(beyond), None);
        }
        assert_eq!(FP16.narrow(65519.9), Some(0x7bff));
    }
}
