//! Numbers of JSON: their grammar, and their digits gathered while it is checked.
//!
//! One look at each byte, eight at a time in a fraction; what becomes of the digits is for the type
//! that is asked for (`decimal`).

use super::decimal;

/// A number as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Number<'a> {
    /// Its text, ASCII: valid JSON, or one of the three tokens of non-finite floats.
    text: &'a [u8],
    /// Every digit before the exponent, without the point; meant only while `counted`.
    digits: u64,
    /// The power of ten that the digits are to be multiplied by.
    exponent: i32,
    negative: bool,
    /// The digits fit a word.
    counted: bool,
    /// No fraction, no exponent.
    integral: bool,
    /// `NaN`, `Infinity` or `-Infinity`.
    pub non_finite: bool,
}

impl<'a> Number<'a> {
    pub(super) fn non_finite(token: &'static [u8]) -> Self {
        Self {
            text: token,
            digits: 0,
            exponent: 0,
            negative: false,
            counted: false,
            integral: false,
            non_finite: true,
        }
    }

    pub(crate) fn text(&self) -> &'a str {
        std::str::from_utf8(self.text).expect("a number is ASCII")
    }

    /// Whether it is the token `NaN`.
    pub(crate) fn is_nan(&self) -> bool {
        self.text == b"NaN"
    }

    /// Not more of it than an error may repeat.
    pub(crate) fn shown(&self) -> String {
        self.text().chars().take(32).collect()
    }

    /// The nearest single: a shortest decimal comes back to the bit. Infinite where none is near.
    pub(crate) fn to_f32(self) -> f32 {
        let short = || decimal::to_f32(self.digits, self.exponent);
        match self.counted.then(short).flatten() {
            Some(value) if self.negative => -value,
            Some(value) => value,
            None => parsed(self.text()),
        }
    }

    /// The nearest double.
    pub(crate) fn to_f64(self) -> f64 {
        let short = || decimal::to_f64(self.digits, self.exponent);
        match self.counted.then(short).flatten() {
            Some(value) if self.negative => -value,
            Some(value) => value,
            None => parsed(self.text()),
        }
    }

    /// The number, where it is written as an integer and fits.
    pub(crate) fn as_i64(self) -> Option<i64> {
        let digits = (self.integral && self.counted).then_some(i128::from(self.digits))?;
        i64::try_from(if self.negative { -digits } else { digits }).ok()
    }

    /// The whole number that is meant: an integer, or a fraction or exponent with a whole value that
    /// a double holds exactly (`3.0`, `1e3`).
    pub(crate) fn to_integer(self) -> Option<i128> {
        const EXACT_MAX: f64 = 9_007_199_254_740_992.0;
        if self.integral && self.counted {
            let value = i128::from(self.digits);
            return Some(if self.negative { -value } else { value });
        }
        if self.integral {
            // 39 digits bound an i128; the parse refuses the rest.
            return self.text().parse().ok();
        }
        let value = self.to_f64();
        (value.fract() == 0.0 && value.abs() <= EXACT_MAX).then_some(value as i128)
    }
}

fn parsed<T: std::str::FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse()
        .expect("the standard library reads every number of JSON, and the three tokens")
}

/// A number of at most eight digits before its point and after it, and no exponent: most are.
pub(super) struct Short {
    digits: u64,
    /// How many of the digits are behind the point.
    scale: usize,
    negative: bool,
    /// Bytes of its text.
    pub length: usize,
}

impl Short {
    /// Reads one at the beginning of `text`; `None` where there is none, or none that is sure to end
    /// within `text`. Its sign, its point and the lengths of its parts cost no branch: no processor can
    /// guess them.
    #[inline(always)]
    pub(super) fn scan(text: &[u8; 24]) -> Option<Self> {
        let negative = text[0] == b'-';
        let first = usize::from(negative);
        let (whole, above) = leading_digits(*text[first..].first_chunk()?);
        let point = first + whole;
        let has_point = text[point] == b'.';
        let (more, below) = leading_digits(*text[point + 1..].first_chunk()?);
        let (scale, below) = if has_point { (more, below) } else { (0, 0) };
        let length = point + usize::from(has_point) + scale;
        // A digit that follows is the ninth.
        let is_whole = !(text[length].is_ascii_digit() || text[length] | 0x20 == b'e');
        let begins_well = whole == 1 || (whole > 1 && text[first] != b'0');
        let ends_well = scale > 0 || !has_point;
        (is_whole && begins_well && ends_well).then_some(Self {
            digits: appended(above, below, *TENS.get(scale)?),
            scale,
            negative,
            length,
        })
    }

    /// The nearest single, as [`Number::to_f32`]; `None` where only the longer way is sure.
    #[inline(always)]
    pub(super) fn to_f32(&self) -> Option<f32> {
        let value = decimal::to_f32(self.digits, -(self.scale as i32))?;
        Some(if self.negative { -value } else { value })
    }

    /// The nearest double, as [`Number::to_f64`].
    #[inline(always)]
    pub(super) fn to_f64(&self) -> Option<f64> {
        let value = decimal::to_f64(self.digits, -(self.scale as i32))?;
        Some(if self.negative { -value } else { value })
    }
}

/// Reads a number at the beginning of `text`, and how long it is; or what is wrong, and where.
#[inline]
pub(super) fn scan(text: &[u8]) -> Result<(Number<'_>, usize), (&'static str, usize)> {
    let negative = text.first() == Some(&b'-');
    let first = usize::from(negative);
    let (mut digits, whole_end) = digit_run(text, first, 0);
    let mut count = whole_end - first;
    if count == 0 {
        return Err(("expected a number", first));
    }
    if count > 1 && text.get(first) == Some(&b'0') {
        return Err(("a number may not begin with 0", first + 1));
    }
    let (mut at, mut exponent) = (whole_end, 0_i32);
    if text.get(at) == Some(&b'.') {
        let start = at + 1;
        (digits, at) = fraction(text, start, digits);
        if at == start {
            return Err(("expected a digit", at));
        }
        count += at - start;
        // A longer fraction than 2^31 digits is not `counted` either.
        exponent = -i32::try_from(at - start).unwrap_or(i32::MAX);
    }
    if let Some(b'e' | b'E') = text.get(at) {
        let (power, end) = power(text, at + 1);
        at = end.ok_or(("expected a digit", at + 1))?;
        exponent = exponent.saturating_add(power);
    }
    let number = Number {
        text: text.get(..at).unwrap_or_default(),
        digits,
        exponent,
        negative,
        // 10^19 is below 2^64.
        counted: count <= 19,
        integral: at == whole_end,
        non_finite: false,
    };
    Ok((number, at))
}

/// Appends the digits from `at` on, one by one; and where they end.
fn digit_run(text: &[u8], mut at: usize, mut digits: u64) -> (u64, usize) {
    while let Some(digit @ b'0'..=b'9') = text.get(at) {
        digits = appended(digits, u64::from(digit - b'0'), 10);
        at += 1;
    }
    (digits, at)
}

/// Appends the digits from `at` on, eight at a time; and where they end.
fn fraction(text: &[u8], mut at: usize, mut digits: u64) -> (u64, usize) {
    while let Some(chunk) = text.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let (count, value) = leading_digits(*chunk);
        digits = appended(digits, value, TENS[count]);
        at += count;
        if count < 8 {
            return (digits, at);
        }
    }
    digit_run(text, at, digits)
}

/// The exponent after an `e`, and where it ends unless it has no digit; one that is out of every
/// float's reach stays so.
fn power(text: &[u8], at: usize) -> (i32, Option<usize>) {
    let negative = text.get(at) == Some(&b'-');
    let signed = negative || text.get(at) == Some(&b'+');
    let first = at + usize::from(signed);
    let mut end = first;
    let mut power = 0_i32;
    while let Some(digit @ b'0'..=b'9') = text.get(end) {
        power = power
            .saturating_mul(10)
            .saturating_add(i32::from(digit - b'0'));
        end += 1;
    }
    (
        if negative { -power } else { power },
        (end > first).then_some(end),
    )
}

const TENS: [u64; 9] = [
    1,
    10,
    100,
    1_000,
    10_000,
    100_000,
    1_000_000,
    10_000_000,
    100_000_000,
];

/// Digits with more digits after them; wraps where they no longer fit, which `counted` tells.
fn appended(digits: u64, more: u64, ten: u64) -> u64 {
    digits.wrapping_mul(ten).wrapping_add(more)
}

/// How many of the eight bytes, from the first, are digits, and their value: all eight in one word,
/// after Lemire, "Number parsing at a gigabyte per second", 2021, section 3.
#[inline(always)]
fn leading_digits(bytes: [u8; 8]) -> (usize, u64) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let values = u64::from_le_bytes(bytes) ^ (EACH * 0x30);
    // The high bit of each byte that is above 9, up to and including the first such byte.
    let others = (values.wrapping_add(EACH * 0x76) | values) & (EACH * 0x80);
    let count = others.trailing_zeros() / 8;
    // Zeros in front, in place of what follows the digits.
    let values = values.unbounded_shl(64 - 8 * count);
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let fours = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let rest = ((pairs >> 16) & PAIRS).wrapping_mul(1 + (10_000 << 32));
    (count as usize, fours.wrapping_add(rest) >> 32)
}
