//! A bounded pull reader of JSON: one pass, no tree, no recursion.
//!
//! Accepts what RFC 8259 and `serde_json` accept, nested at most [`DEPTH_MAX`] deep, and beside it
//! the bare tokens `NaN`, `Infinity` and `-Infinity` where a caller asks for a float. A key or
//! value that nobody asked for is skipped under the same grammar, without memory. UTF-8 is checked
//! in strings, the only place where the grammar lets it be.

use std::borrow::Cow;

use super::number::{Number, Short, scan};

/// Containers that may be open at once, the outermost one included.
pub(crate) const DEPTH_MAX: u32 = 64;

/// Where a body stopped being what it should be. Boxed, so that what is returned in place of it stays
/// in registers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(transparent)]
pub(crate) struct JsonError(Box<Problem>);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed request at byte {at}: {problem}")]
struct Problem {
    /// Offset into the body.
    at: usize,
    /// What was found or expected there.
    problem: Cow<'static, str>,
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

    #[cold]
    pub(crate) fn error(&self, problem: impl Into<Cow<'static, str>>) -> JsonError {
        JsonError(Box::new(Problem {
            at: self.at,
            problem: problem.into(),
        }))
    }

    #[inline]
    fn byte(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// The first byte of the next token; `None` at the end.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        match self.byte() {
            Some(byte) if byte > b' ' => Some(byte),
            _ => self.peek_past_space(),
        }
    }

    fn peek_past_space(&mut self) -> Option<u8> {
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
    #[inline(always)]
    pub(crate) fn next_item(&mut self, first: &mut bool) -> Result<bool, JsonError> {
        self.next(first, b']')
    }

    #[inline(always)]
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

    /// What `read` makes of a short number, which is then passed over; `None`, and nothing passed over,
    /// where the next token is none or `read` is not sure of it. What comes before it is not skipped.
    #[inline(always)]
    pub(super) fn short_number<T>(&mut self, read: impl Fn(&Short) -> Option<T>) -> Option<T> {
        let short = Short::scan(self.bytes.get(self.at..)?.first_chunk()?)?;
        let value = read(&short)?;
        self.at += short.length;
        Some(value)
    }

    /// A number, or one of the tokens of non-finite floats.
    pub(crate) fn number_or_token(&mut self) -> Result<Number<'a>, JsonError> {
        if matches!(self.peek(), Some(b'N' | b'I' | b'-')) {
            for token in ["NaN", "Infinity", "-Infinity"] {
                if self.rest().starts_with(token.as_bytes()) {
                    self.at += token.len();
                    return Ok(Number::non_finite(token.as_bytes()));
                }
            }
        }
        self.number()
    }

    /// A number of the JSON grammar.
    pub(crate) fn number(&mut self) -> Result<Number<'a>, JsonError> {
        self.peek();
        match scan(self.rest()) {
            Ok((number, length)) => {
                self.at += length;
                Ok(number)
            }
            Err((problem, length)) => {
                self.at += length;
                Err(self.error(problem))
            }
        }
    }

    /// Passes over one value and gives its text.
    pub(crate) fn value_text(&mut self) -> Result<&'a [u8], JsonError> {
        self.peek();
        let start = self.at;
        self.skip_value()?;
        Ok(self.bytes.get(start..self.at).unwrap_or_default())
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
