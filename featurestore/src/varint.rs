//! Variable-length integers of the binary forms: 7 bits a byte, low bits first.
//!
//! Readers take any bytes and answer `None` for what is cut short or too long; they never panic.

/// Appends `value` in at most 10 bytes.
#[inline]
pub(crate) fn put(value: u64, out: &mut Vec<u8>) {
    if value < 0x80 {
        out.push(value as u8);
    } else {
        put_long(value, out);
    }
}

fn put_long(mut value: u64, out: &mut Vec<u8>) {
    let mut bytes = [0; 10];
    let mut last = 0;
    while value >= 0x80 {
        bytes[last] = value as u8 | 0x80;
        value >>= 7;
        last += 1;
    }
    bytes[last] = value as u8;
    // A copy of a length that is known beforehand is two moves; of any other it is a call.
    let end = out.len() + last + 1;
    out.extend_from_slice(&bytes);
    out.truncate(end);
}

/// Appends `value` in at most 19 bytes; the same bytes as `put` where it fits 64 bits.
pub(crate) fn put_wide(mut value: u128, out: &mut Vec<u8>) {
    // Nearly all fit 64 bits, where shifts are cheap.
    if let Ok(value) = u64::try_from(value) {
        return put(value, out);
    }
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Takes one integer off the front of `input`.
#[inline]
pub(crate) fn take(input: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (position, &byte) in input.iter().take(10).enumerate() {
        // The 10th byte may hold one bit only.
        if position == 9 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << (7 * position);
        if byte < 0x80 {
            *input = &input[position + 1..];
            return Some(value);
        }
    }
    None
}

/// Takes one integer of up to 128 bits off the front of `input`.
#[inline]
pub(crate) fn take_wide(input: &mut &[u8]) -> Option<u128> {
    // Nearly all fit 64 bits, where shifts are cheap.
    match take(input) {
        Some(value) => Some(u128::from(value)),
        None => take_widest(input),
    }
}

fn take_widest(input: &mut &[u8]) -> Option<u128> {
    let mut value = 0;
    for (position, &byte) in input.iter().take(19).enumerate() {
        // The 19th byte may hold two bits only.
        if position == 18 && byte > 3 {
            return None;
        }
        value |= u128::from(byte & 0x7f) << (7 * position);
        if byte < 0x80 {
            *input = &input[position + 1..];
            return Some(value);
        }
    }
    None
}

/// Takes the next `count` bytes off the front of `input`.
pub(crate) fn take_bytes<'a>(input: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (bytes, rest) = input.split_at_checked(count)?;
    *input = rest;
    Some(bytes)
}

/// Small magnitudes of either sign become small unsigned numbers.
pub(crate) fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

/// The inverse of `zigzag`.
pub(crate) fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// `zigzag` for sums.
pub(crate) fn zigzag_wide(value: i128) -> u128 {
    ((value << 1) ^ (value >> 127)) as u128
}

/// The inverse of `zigzag_wide`.
pub(crate) fn unzigzag_wide(value: u128) -> i128 {
    (value >> 1) as i128 ^ -((value & 1) as i128)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn integers_come_back(small: u64, wide: u128, signed: i64, sum: i128) {
            let mut bytes = Vec::new();
            put(small, &mut bytes);
            put_wide(wide, &mut bytes);
            let mut input = bytes.as_slice();
            prop_assert_eq!(take(&mut input), Some(small));
            prop_assert_eq!(take_wide(&mut input), Some(wide));
            prop_assert!(input.is_empty());
            prop_assert_eq!(unzigzag(zigzag(signed)), signed);
            prop_assert_eq!(unzigzag_wide(zigzag_wide(sum)), sum);
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let mut input = bytes.as_slice();
            while take_wide(&mut input).is_some() {}
            let mut input = bytes.as_slice();
            while take(&mut input).is_some() {}
        }
    }
}
