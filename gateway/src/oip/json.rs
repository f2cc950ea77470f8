//! A bounded pull reader of JSON: one pass, no tree, no recursion.
//!
//! Accepts what RFC 8259 and `serde_json` accept, nested at most [`DEPTH_MAX`] deep, and beside it
//! the bare tokens `NaN`, `Infinity` and `-Infinity` where a caller asks for a float. A key or
//! value that nobody asked for is skipped under the same grammar, without memory. UTF-8 is checked
//! in strings, the only place where the grammar lets it be. Digits are gathered as they are scanned.

use std::borrow::Cow;

use super::decimal;

/// Containers that may be open at once, the outermost one included.
pub(crate) const DEPTH_MAX: u32 = 64;

/// Where a body stopped being what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed request at byte {at}: {problem}")]
pub(crate) struct JsonError {
    /// Offset into the body.
    pub at: usize,
    /// What was found or expected there.
    pub problem: Cow<'static, str>,
}

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
    fn non_finite(token: &'static [u8]) -> Self {
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

/// A place in a body.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte.
    pub(crate) fn new(body: &'a [u8]) -> Self {
        Self {
            bytes: body,
            at: 0,
            depth: 0,
        }
    }

    /// Bytes that are left: no value can have more elements than these.
    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub(crate) fn error(&self, problem: impl Into<Cow<'static, str>>) -> JsonError {
        JsonError {
            at: self.at,
            problem: problem.into(),
        }
    }

    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The first byte of the next token; `None` at the end.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.byte() {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(byte);
            }
            self.at += 1;
        }
        None
    }

    /// Refuses anything but white space.
    pub(crate) fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error("bytes after the end of the document")),
        }
    }

    pub(crate) fn begin_object(&mut self) -> Result<(), JsonError> {
        self.begin(b'{', "expected an object")
    }

    pub(crate) fn begin_array(&mut self) -> Result<(), JsonError> {
        self.begin(b'[', "expected an array")
    }

    fn begin(&mut self, bracket: u8, expected: &'static str) -> Result<(), JsonError> {
        if self.peek() != Some(bracket) {
            return Err(self.error(expected));
        }
        if self.depth == DEPTH_MAX {
            return Err(self.error(format!("nested deeper than {DEPTH_MAX}")));
        }
        self.depth += 1;
        self.at += 1;
        Ok(())
    }

    /// The next key of the open object, its colon read; `None` once the object is closed.
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Result<Option<Cow<'a, str>>, JsonError> {
        if !self.next(first, b'}')? {
            return Ok(None);
        }
        if self.peek() != Some(b'"') {
            return Err(self.error("expected a key"));
        }
        let key = self.string()?;
        if self.peek() != Some(b':') {
            return Err(self.error("expected `:`"));
        }
        self.at += 1;
        Ok(Some(key))
    }

    /// Whether the open array has another item; false once it is closed.
    pub(crate) fn next_item(&mut self, first: &mut bool) -> Result<bool, JsonError> {
        self.next(first, b']')
    }

    fn next(&mut self, first: &mut bool, closing: u8) -> Result<bool, JsonError> {
        let was_first = std::mem::replace(first, false);
        match self.peek() {
            Some(byte) if byte == closing => {
                self.at += 1;
                self.depth = self.depth.saturating_sub(1);
                Ok(false)
            }
            Some(_) if was_first => Ok(true),
            Some(b',') => {
                self.at += 1;
                match self.peek() {
                    Some(byte) if byte == closing => Err(self.error("a comma too many")),
                    _ => Ok(true),
                }
            }
            _ => Err(self.error(match closing {
                b'}' => "expected `,` or `}`",
                _ => "expected `,` or `]`",
            })),
        }
    }

    /// A string, unescaped; borrowed where it holds no escape.
    pub(crate) fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        if self.peek() != Some(b'"') {
            return Err(self.error("expected a string"));
        }
        self.at += 1;
        let plain = self.plain_run()?;
        if self.byte() == Some(b'"') {
            self.at += 1;
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = plain.to_owned();
        loop {
            match self.byte() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(Cow::Owned(text));
                }
                Some(b'\\') => text.push(self.escape()?),
                Some(_) => return Err(self.error("control character in a string")),
                None => return Err(self.error("string without an end")),
            }
            text.push_str(self.plain_run()?);
        }
    }

    /// What comes before the next quote, backslash, control character, or the end.
    fn plain_run(&mut self) -> Result<&'a str, JsonError> {
        let rest = self.rest();
        let stops = |&byte: &u8| byte == b'"' || byte == b'\\' || byte < 0x20;
        let length = rest.iter().position(stops).unwrap_or(rest.len());
        match std::str::from_utf8(rest.get(..length).unwrap_or_default()) {
            Ok(run) => {
                self.at += length;
                Ok(run)
            }
            Err(error) => {
                self.at += error.valid_up_to();
                Err(self.error("not UTF-8"))
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        self.at += 1;
        let letter = self.byte();
        let plain = match letter {
            Some(letter @ (b'"' | b'\\' | b'/')) => char::from(letter),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                self.at += 1;
                return self.unicode_escape();
            }
            _ => return Err(self.error("unknown escape")),
        };
        self.at += 1;
        Ok(plain)
    }

    fn unicode_escape(&mut self) -> Result<char, JsonError> {
        let unit = self.hex4()?;
        let code = match unit {
            0xD800..=0xDBFF => {
                if !self.rest().starts_with(b"\\u") {
                    return Err(self.error("half of a surrogate pair"));
                }
                self.at += 2;
                let low = self.hex4()?;
                if !(0xDC00..=0xDFFF).contains(&low) {
                    return Err(self.error("half of a surrogate pair"));
                }
                0x1_0000 + ((unit - 0xD800) << 10) + (low - 0xDC00)
            }
            unit => unit,
        };
        char::from_u32(code).ok_or_else(|| self.error("half of a surrogate pair"))
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.bytes.get(self.at..self.at + 4);
        let mut unit = 0;
        for &digit in digits.unwrap_or_default() {
            let Some(value) = char::from(digit).to_digit(16) else {
                return Err(self.error("expected four hexadecimal digits"));
            };
            unit = unit * 16 + value;
        }
        if digits.is_none() {
            return Err(self.error("expected four hexadecimal digits"));
        }
        self.at += 4;
        Ok(unit)
    }

    /// `true` or `false`.
    pub(crate) fn boolean(&mut self) -> Result<bool, JsonError> {
        match self.peek() {
            Some(b't') => self.literal("true").map(|()| true),
            Some(b'f') => self.literal("false").map(|()| false),
            _ => Err(self.error("expected true or false")),
        }
    }

    fn literal(&mut self, word: &'static str) -> Result<(), JsonError> {
        if self.rest().starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.error(format!("expected `{word}`")))
    }

    fn rest(&self) -> &'a [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// A number, or one of the tokens of non-finite floats.
    pub(crate) fn number_or_token(&mut self) -> Result<Number<'a>, JsonError> {
        if let Some(b'0'..=b'9') = self.peek() {
            return self.number();
        }
        for token in ["NaN", "Infinity", "-Infinity"] {
            if self.rest().starts_with(token.as_bytes()) {
                self.at += token.len();
                return Ok(Number::non_finite(token.as_bytes()));
            }
        }
        self.number()
    }

    /// A number of the JSON grammar.
    pub(crate) fn number(&mut self) -> Result<Number<'a>, JsonError> {
        self.peek();
        let start = self.at;
        let negative = self.byte() == Some(b'-');
        self.at += usize::from(negative);
        let first = self.at;
        let mut digits = 0;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            digits = appended(digits, u64::from(digit - b'0'), 10);
            self.at += 1;
        }
        let mut count = self.at - first;
        match self.bytes.get(first) {
            _ if count == 0 => return Err(self.error("expected a number")),
            Some(b'0') if count > 1 => return Err(self.error("a number may not begin with 0")),
            _ => {}
        }
        let whole_end = self.at;
        let mut exponent = 0_i32;
        if self.byte() == Some(b'.') {
            self.at += 1;
            let places = self.fraction(&mut digits)?;
            count += places;
            // A body is far shorter than 2^31 bytes; a longer fraction is not `counted` either.
            exponent = -i32::try_from(places).unwrap_or(i32::MAX);
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            exponent = exponent.saturating_add(self.power()?);
        }
        Ok(Number {
            text: self.bytes.get(start..self.at).unwrap_or_default(),
            digits,
            exponent,
            negative,
            // 10^19 is below 2^64.
            counted: count <= 19,
            integral: self.at == whole_end,
            non_finite: false,
        })
    }

    /// Appends the digits of a fraction, eight at a time, and counts them.
    fn fraction(&mut self, digits: &mut u64) -> Result<usize, JsonError> {
        let first = self.at;
        while let Some(chunk) = self.rest().first_chunk::<8>() {
            let (count, value) = leading_digits(*chunk);
            *digits = appended(*digits, value, TENS[count]);
            self.at += count;
            if count < 8 {
                break;
            }
        }
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            *digits = appended(*digits, u64::from(digit - b'0'), 10);
            self.at += 1;
        }
        match self.at - first {
            0 => Err(self.error("expected a digit")),
            count => Ok(count),
        }
    }

    /// An exponent after its `e`; one that is out of every float's reach stays so.
    fn power(&mut self) -> Result<i32, JsonError> {
        let negative = self.byte() == Some(b'-');
        if matches!(self.byte(), Some(b'+' | b'-')) {
            self.at += 1;
        }
        let first = self.at;
        let mut power = 0_i32;
        while let Some(digit @ b'0'..=b'9') = self.byte() {
            power = power
                .saturating_mul(10)
                .saturating_add(i32::from(digit - b'0'));
            self.at += 1;
        }
        if self.at == first {
            return Err(self.error("expected a digit"));
        }
        Ok(if negative { -power } else { power })
    }

    /// Passes over one value of any kind. The open brackets are bits of one word, so the cost in
    /// memory is none, however the value is nested.
    pub(crate) fn skip_value(&mut self) -> Result<(), JsonError> {
        let floor = self.depth;
        // Bit 0 tells the innermost open container: 1 an object, 0 an array.
        let mut kinds: u64 = 0;
        let mut first = true;
        loop {
            if self.depth > floor {
                let more = if kinds & 1 == 1 {
                    self.next_key(&mut first)?.is_some()
                } else {
                    self.next_item(&mut first)?
                };
                if !more {
                    kinds >>= 1;
                    if self.depth == floor {
                        return Ok(());
                    }
                    continue;
                }
            }
            match self.peek() {
                Some(open @ (b'{' | b'[')) => {
                    self.begin(open, "")?;
                    kinds = (kinds << 1) | u64::from(open == b'{');
                    first = true;
                    continue;
                }
                Some(b'"') => drop(self.string()?),
                Some(b't' | b'f') => drop(self.boolean()?),
                Some(b'n') => self.literal("null")?,
                Some(_) => drop(self.number_or_token()?),
                None => return Err(self.error("the body ends too early")),
            }
            if self.depth == floor {
                return Ok(());
            }
        }
    }
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
fn leading_digits(bytes: [u8; 8]) -> (usize, u64) {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let values = u64::from_le_bytes(bytes) ^ (EACH * 0x30);
    // The high bit of each byte that is above 9, up to and including the first such byte.
    let others = (values.wrapping_add(EACH * 0x76) | values) & (EACH * 0x80);
    let count = others.trailing_zeros() / 8;
    if count == 0 {
        return (0, 0);
    }
    // Zeros in front, in place of what follows the digits.
    let values = values << (64 - 8 * count);
    const PAIRS: u64 = 0x0000_00ff_0000_00ff;
    let pairs = values.wrapping_mul(10).wrapping_add(values >> 8);
    let fours = (pairs & PAIRS).wrapping_mul(100 + (1_000_000 << 32));
    let rest = ((pairs >> 16) & PAIRS).wrapping_mul(1 + (10_000 << 32));
    (count as usize, fours.wrapping_add(rest) >> 32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn accepts(body: &[u8]) -> bool {
        let mut cursor = Cursor::new(body);
        cursor.skip_value().is_ok() && cursor.end().is_ok()
    }

    #[test]
    fn malformed_documents_are_refused() {
        for body in [
            "",
            " ",
            "{",
            "}",
            "[",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "[1 2]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":1 \"b\":2}",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "1e+",
            "+1",
            "- 1",
            "tru",
            "nul",
            "True",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\\ud800\"",
            "\"\\udc00\"",
            "\"\\ud800\\u0041\"",
            "\"\u{1}\"",
            "1 2",
            "[]]",
            "\u{feff}[]",
            "0x10",
            "Inf",
            "nan",
            "[}",
            "{]",
        ] {
            assert!(!accepts(body.as_bytes()), "accepted {body:?}");
        }
        assert!(!accepts(b"\"\xff\""));
    }

    #[test]
    fn depth_is_bounded_in_every_place() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(accepts(deep(64).as_bytes()));
        for bomb in [
            deep(65),
            deep(1_000_000),
            "[".repeat(1_000_000),
            "{\"a\":".repeat(100_000),
        ] {
            assert!(!accepts(bomb.as_bytes()));
        }
    }

    #[test]
    fn strings_are_unescaped() {
        let body = br#" "a\u0000\n\"\\\/\ud83d\ude00z" "#;
        let mut cursor = Cursor::new(body);
        assert_eq!(cursor.string().unwrap(), "a\0\n\"\\/😀z");
    }

    proptest! {
        #[test]
        fn bytes_that_are_not_utf_8_are_refused_where_serde_json_refuses_them(body in prop::collection::vec(prop_oneof![Just(b'"'), Just(b' '), 0x7e_u8..=0xff], 0..12)) {
            let theirs = serde_json::from_slice::<serde_json::Value>(&body);
            prop_assert_eq!(accepts(&body), theirs.is_ok());
        }

        /// Whatever bytes come, this reader and serde_json agree on what is JSON; numbers that
        /// overflow a float and the non-finite tokens are the two differences that are meant.
        #[test]
        fn accepts_what_serde_json_accepts(body in "[\\[\\]{}:,\"a\\\\u0d8e1\\-+. tfn]{0,24}|[\\[\\]{}:,\" 01]{0,24}") {
            let theirs = serde_json::from_str::<serde_json::Value>(&body);
            let overflow = theirs.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
            prop_assert_eq!(accepts(body.as_bytes()), theirs.is_ok() || overflow, "{}", body);
        }

        /// Every way to write a number, near and beyond the edges of the types.
        #[test]
        fn numbers_read_as_the_standard_library_reads_them(
            body in prop_oneof![
                "-?(0|[1-9][0-9]{0,25})(\\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?",
                any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| x.to_string()),
                any::<f32>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{:?}", f64::from(x))),
                any::<f64>().prop_filter("finite", |x| x.is_finite()).prop_map(|x| format!("{x:e}")),
                any::<i64>().prop_map(|x| x.to_string()),
                any::<u64>().prop_map(|x| x.to_string()),
                any::<i128>().prop_map(|x| x.to_string()),
            ],
            after in "[],} ]{0,9}",
        ) {
            let padded = format!("{body}{after}");
            let number = Cursor::new(padded.as_bytes()).number().unwrap();
            prop_assert_eq!(number.text(), &body);
            prop_assert_eq!(number.to_f32().to_bits(), body.parse::<f32>().unwrap().to_bits());
            prop_assert_eq!(number.to_f64().to_bits(), body.parse::<f64>().unwrap().to_bits());
            if body.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit()) {
                prop_assert_eq!(number.to_integer(), body.parse::<i128>().ok());
            }
        }

        #[test]
        fn strings_read_as_serde_json_reads_them(text in any::<String>()) {
            let body = serde_json::to_string(&text).unwrap();
            let mut cursor = Cursor::new(body.as_bytes());
            prop_assert_eq!(cursor.string().unwrap(), text);
        }
    }
}
