//! Sums of squares in 256-bit integers: any order of adding gives the same bits, and the variance that
//! is taken from them suffers no cancellation.

use super::codec::{StateError, impossible, take_byte};
use crate::varint;

/// The sum of the squares of terms as a cell adds them, so in units of 2^-64. A term has 95 bits: 2^64
/// of the largest squares fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Squares {
    /// Least significant first
    limbs: [u64; 4],
}

impl Squares {
    /// Adds the square of a term.
    pub(super) fn add(&mut self, term: i128) {
        self.add_limbs(&square(term)[..4]);
    }

    /// Adds the squares of another tile.
    pub(super) fn merge(&mut self, other: &Self) {
        self.add_limbs(&other.limbs);
    }

    /// `count · self - sum²` of the same terms: their sample variance times `count · (count - 1)`.
    pub(super) fn spread(&self, count: u64, sum: i128) -> f64 {
        let mut rest = product(&self.limbs, &[count]);
        let mut borrow = false;
        for (limb, less) in rest.iter_mut().zip(square(sum)) {
            let (difference, one) = limb.overflowing_sub(less);
            let (difference, other) = difference.overflowing_sub(u64::from(borrow));
            *limb = difference;
            borrow = one || other;
        }
        // Never negative, unless a sum was cut at its bound or the bytes were not those of a fold.
        if borrow { 0.0 } else { to_f64(&rest) }
    }

    /// Appends the place of the first byte that is not zero, how many follow from there, and those.
    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let bytes = self.limbs.map(u64::to_le_bytes);
        let bytes = bytes.as_flattened();
        let first = bytes.iter().position(|&byte| byte != 0).unwrap_or(0);
        let end = bytes.iter().rposition(|&byte| byte != 0);
        let used = end.map_or(&[][..], |last| &bytes[first..=last]);
        out.push(first as u8);
        out.push(used.len() as u8);
        out.extend_from_slice(used);
    }

    pub(super) fn decode(input: &mut &[u8]) -> Result<Self, StateError> {
        let first = usize::from(take_byte(input)?);
        let count = usize::from(take_byte(input)?);
        let used = varint::take_bytes(input, count).ok_or(StateError::CutShort)?;
        let mut bytes = [0; 32];
        bytes
            .get_mut(first..first + count)
            .ok_or_else(|| impossible("sum of squares"))?
            .copy_from_slice(used);
        let mut limbs = [0; 4];
        for (limb, bytes) in limbs.iter_mut().zip(bytes.as_chunks().0) {
            *limb = u64::from_le_bytes(*bytes);
        }
        Ok(Self { limbs })
    }

    /// Stays at the largest number where it does not fit, which depends on no order either.
    fn add_limbs(&mut self, other: &[u64]) {
        let mut carry = false;
        for (limb, more) in self.limbs.iter_mut().zip(other) {
            let (sum, one) = limb.overflowing_add(*more);
            let (sum, two) = sum.overflowing_add(u64::from(carry));
            *limb = sum;
            carry = one || two;
        }
        if carry {
            self.limbs = [u64::MAX; 4];
        }
    }
}

/// Limbs of a product; a factor of four limbs times one, or two times two, fits.
type Wide = [u64; 5];

fn square(term: i128) -> Wide {
    let term = term.unsigned_abs();
    let limbs = [term as u64, (term >> 64) as u64];
    product(&limbs, &limbs)
}

fn product(a: &[u64], b: &[u64]) -> Wide {
    let mut out = Wide::default();
    for (i, &x) in a.iter().enumerate() {
        let mut carry = 0;
        for (j, &y) in b.iter().enumerate() {
            let sum = u128::from(x) * u128::from(y) + u128::from(out[i + j]) + carry;
            out[i + j] = sum as u64;
            carry = sum >> 64;
        }
        out[i + b.len()] = carry as u64;
    }
    out
}

/// From the highest 65 to 128 bits that are set, which is more than a float holds.
fn to_f64(limbs: &Wide) -> f64 {
    let highest = limbs
        .iter()
        .rposition(|&limb| limb != 0)
        .unwrap_or(0)
        .max(1);
    let top = u128::from(limbs[highest]) << 64 | u128::from(limbs[highest - 1]);
    let units = [1.0, LIMB, LIMB * LIMB, LIMB * LIMB * LIMB];
    top as f64 * units[highest - 1]
}

/// 2^64
const LIMB: f64 = 18_446_744_073_709_551_616.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_terms_neither_overflow_nor_cancel() {
        let mut squares = Squares::default();
        let term = -(1 << 95);
        for _ in 0..1000 {
            squares.add(term);
        }
        assert_eq!(squares.spread(1000, 1000 * term), 0.0);
        squares.add(term + 1);
        // n·Σx² - (Σx)² of 1000 equal terms and one that is 1 away.
        assert_eq!(squares.spread(1001, 1001 * term + 1), 1000.0);
        squares.limbs = [u64::MAX; 4];
        let full = squares;
        squares.add(1);
        assert_eq!(squares, full);
        assert_eq!(squares.spread(1, 0), 2f64.powi(256));
    }

    proptest! {
        #[test]
        fn sums_of_squares_are_exact_and_come_back(terms in proptest::collection::vec(-(1i128 << 60)..1 << 60, 0..20)) {
            let mut squares = Squares::default();
            for &term in &terms {
                squares.add(term);
            }
            let exact: i128 = terms.iter().map(|term| (term >> 30) * (term >> 30)).sum();
            let mut coarse = Squares::default();
            terms.iter().for_each(|term| coarse.add(term >> 30));
            prop_assert_eq!(coarse.spread(1, 0), exact as f64);
            let mut bytes = Vec::new();
            squares.encode(&mut bytes);
            let input = &mut bytes.as_slice();
            prop_assert_eq!(Squares::decode(input), Ok(squares));
            prop_assert!(input.is_empty());
        }

        #[test]
        fn any_bytes_are_squares_or_refused(bytes: Vec<u8>) {
            let _ = Squares::decode(&mut bytes.as_slice());
        }
    }
}
