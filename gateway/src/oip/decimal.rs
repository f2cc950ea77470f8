//! Floats from decimal digits that were gathered while they were scanned, rounded correctly.
//!
//! `digits · 10^exponent` becomes the nearest float, ties to even, or `None` where only a longer way
//! is sure: the caller then asks `str::parse`. Neither way allocates; the short one costs a
//! multiplication or a division.

/// Powers of ten as doubles; those up to 10^22 are exact.
const TENS: [f64; 38] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22, 1e23, 1e24, 1e25, 1e26, 1e27, 1e28, 1e29, 1e30, 1e31, 1e32,
    1e33, 1e34, 1e35, 1e36, 1e37,
];
/// The greatest exponent of ten that a double holds exactly.
const EXACT_TEN_MAX: usize = 22;
/// Integers up to this are exact in a double.
const EXACT_INTEGER_MAX: u64 = 1 << 53;

/// Powers of five that fit a word.
const FIVES: [u64; 28] = {
    let mut powers = [1; 28];
    let mut k = 1;
    while k < powers.len() {
        powers[k] = powers[k - 1] * 5;
        k += 1;
    }
    powers
};

/// The single that is nearest.
#[inline(always)]
pub(crate) fn to_f32(digits: u64, exponent: i32) -> Option<f32> {
    // Where a single is halfway between two others, these bits of the double are just this.
    const BELOW_SINGLE: u64 = (1 << 29) - 1;
    const HALFWAY: u64 = 1 << 28;
    // Three roundings of at most half a unit in the last place, the unit of the result being at
    // least half that of an operand's.
    const DOUBT: u64 = 4;
    let near = scaled(digits, exponent)?;
    let doubtful = (near.to_bits() & BELOW_SINGLE).abs_diff(HALFWAY) <= DOUBT;
    // Below that the singles lie further apart.
    let subnormal = near < f64::from(f32::MIN_POSITIVE) && digits != 0;
    (!doubtful && !subnormal).then_some(near as f32)
}

#[inline(always)]
fn scaled(digits: u64, exponent: i32) -> Option<f64> {
    let ten = TENS.get(exponent.unsigned_abs() as usize)?;
    Some(match exponent < 0 {
        true => digits as f64 / ten,
        false => digits as f64 * ten,
    })
}

/// The double that is nearest.
pub(crate) fn to_f64(digits: u64, exponent: i32) -> Option<f64> {
    let scale = exponent.unsigned_abs() as usize;
    if digits <= EXACT_INTEGER_MAX && scale <= EXACT_TEN_MAX {
        // Both operands are exact, so the one rounding is the right one (Clinger 1990).
        return scaled(digits, exponent);
    }
    let five = *FIVES.get(scale)?;
    if digits == 0 {
        return Some(0.0);
    }
    if exponent >= 0 {
        let product = u128::from(digits) * u128::from(five);
        return Some(product as f64 * two_to(exponent));
    }
    // Both to a full word, so that the quotient has 62 or 63 bits: nine more than a double, the
    // last of which says whether anything is left.
    let (up, five_up) = (digits.leading_zeros(), five.leading_zeros());
    let dividend = u128::from(digits << up) << 62;
    let divisor = u128::from(five << five_up);
    let quotient = dividend / divisor;
    let is_inexact = quotient * divisor != dividend;
    let rounded = (quotient as i64 | i64::from(is_inexact)) as f64;
    Some(rounded * two_to(five_up as i32 - up as i32 - 62 + exponent))
}

/// A power of two within the normal doubles.
fn two_to(exponent: i32) -> f64 {
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(digits: u64, exponent: i32) -> Result<(), TestCaseError> {
        let text = format!("{digits}e{exponent}");
        if let Some(single) = to_f32(digits, exponent) {
            let expected: f32 = text.parse().unwrap();
            prop_assert_eq!(single.to_bits(), expected.to_bits(), "{}", text);
        }
        if let Some(double) = to_f64(digits, exponent) {
            let expected: f64 = text.parse().unwrap();
            prop_assert_eq!(double.to_bits(), expected.to_bits(), "{}", text);
        }
        Ok(())
    }

    #[test]
    fn usual_numbers_take_the_short_way() {
        for (digits, exponent) in [
            (0, 0),
            (0, -25),
            (5, -1),
            (12_345_678, -8),
            (10_000_000_149_011_612, -17),
            (u64::MAX, 0),
            (9_999_999_999_999_999_999, -19),
            (17_976_931_348_623_157, 27),
        ] {
            assert!(to_f64(digits, exponent).is_some() && to_f32(digits, exponent).is_some());
            check(digits, exponent).unwrap();
        }
        assert_eq!(to_f64(1, 400), None);
        assert_eq!(to_f32(1, -38), None);
        // Halfway between two singles: 2^24 + 1.
        assert_eq!(to_f32(16_777_217, 0), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn digits_become_what_the_standard_library_makes_of_them(
            digits in prop_oneof![any::<u64>(), 0..1_000_000_u64, (0..64_u32).prop_map(|k| 1 << k), (1..20_u32).prop_map(|k| 10_u64.pow(k) - 1)],
            off in 0..3_u64,
            exponent in -60..60_i32,
        ) {
            check(digits.saturating_add(off), exponent)?;
        }

        /// Decimals on and beside the midpoints of neighbouring floats, where rounding is hardest.
        #[test]
        fn midpoints_round_to_even(bits in any::<u32>(), double in any::<u64>(), off in -2..3_i64) {
            for middle in [
                f64::from(f32::from_bits(bits & 0x7fff_ffff)) * (1.0 + 2_f64.powi(-24)),
                f64::from_bits(double & 0x7fff_ffff_ffff_ffff),
            ] {
                let text = format!("{middle:.18e}");
                let Some((mantissa, exponent)) = text.split_once('e') else { continue };
                let (Ok(digits), Ok(exponent)) = (mantissa.replace('.', "").parse::<u64>(), exponent.parse::<i32>()) else { continue };
                check(digits.saturating_add_signed(off), exponent - 18)?;
                check((digits / 100).saturating_add_signed(off), exponent - 16)?;
            }
        }
    }
}
