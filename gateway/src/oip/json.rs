//! A bounded pull reader of JSON: one pass, no tree, no recursion.
//!
//! Accepts what RFC 8259 and `serde_json` accept, nested at most [`DEPTH_MAX`] deep, and beside it
//! the bare tokens `NaN`, `Infinity` and `-Infinity` where a caller asks for a float. A key or
//! value that nobody asked for is skipped under the same grammar, without memory.

use std::borrow::Cow;

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
    /// Its text: valid JSON, or one of the three tokens of non-finite floats.
    pub text: &'a str,
    /// No fraction, no exponent.
    pub integral: bool,
    /// `NaN`, `Infinity` or `-Infinity`.
    pub non_finite: bool,
}

/// A place in a body.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
}

impl<'a> Cursor<'a> {
    /// Starts at the first byte; a body that is not UTF-8 is refused here, once for all.
    pub(crate) fn new(body: &'a [u8]) -> Result<Self, JsonError> {
        match std::str::from_utf8(body) {
            Ok(text) => Ok(Self {
                text,
                at: 0,
                depth: 0,
            }),
            Err(error) => Err(JsonError {
                at: error.valid_up_to(),
                problem: "not UTF-8".into(),
            }),
        }
    }

    /// Bytes that are left: no value can have more elements than these.
    pub(crate) fn remaining(&self) -> usize {
        self.text.len().saturating_sub(self.at)
    }

    pub(crate) fn error(&self, problem: impl Into<Cow<'static, str>>) -> JsonError {
        JsonError {
            at: self.at,
            problem: problem.into(),
        }
    }

    /// The first byte of the next token; `None` at the end.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
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
        let start = self.at;
        self.plain_run();
        if self.byte() == Some(b'"') {
            let plain = &self.text[start..self.at];
            self.at += 1;
            return Ok(Cow::Borrowed(plain));
        }
        let mut text = self.text[start..self.at].to_owned();
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
            let run = self.at;
            self.plain_run();
            text.push_str(&self.text[run..self.at]);
        }
    }

    fn byte(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Moves to the next quote, backslash, control character, or the end.
    fn plain_run(&mut self) {
        let rest = &self.text.as_bytes()[self.at..];
        self.at += rest
            .iter()
            .position(|&byte| byte == b'"' || byte == b'\\' || byte < 0x20)
            .unwrap_or(rest.len());
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
                if !self.text[self.at..].starts_with("\\u") {
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
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
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
        if self.text.as_bytes()[self.at..].starts_with(word.as_bytes()) {
            self.at += word.len();
            return Ok(());
        }
        Err(self.error(format!("expected `{word}`")))
    }

    /// A number, or one of the tokens of non-finite floats.
    pub(crate) fn number_or_token(&mut self) -> Result<Number<'a>, JsonError> {
        self.peek();
        let rest = &self.text[self.at..];
        for token in ["NaN", "Infinity", "-Infinity"] {
            if rest.starts_with(token) {
                self.at += token.len();
                return Ok(Number {
                    text: token,
                    integral: false,
                    non_finite: true,
                });
            }
        }
        self.number()
    }

    /// A number of the JSON grammar.
    pub(crate) fn number(&mut self) -> Result<Number<'a>, JsonError> {
        self.peek();
        let start = self.at;
        if self.byte() == Some(b'-') {
            self.at += 1;
        }
        match self.byte() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits(),
            _ => return Err(self.error("expected a number")),
        }
        if matches!(self.byte(), Some(b'0'..=b'9')) {
            return Err(self.error("a number may not begin with 0"));
        }
        let whole = self.at;
        if self.byte() == Some(b'.') {
            self.at += 1;
            self.some_digits()?;
        }
        if matches!(self.byte(), Some(b'e' | b'E')) {
            self.at += 1;
            if matches!(self.byte(), Some(b'+' | b'-')) {
                self.at += 1;
            }
            self.some_digits()?;
        }
        Ok(Number {
            text: &self.text[start..self.at],
            integral: self.at == whole,
            non_finite: false,
        })
    }

    fn digits(&mut self) {
        while matches!(self.byte(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
    }

    fn some_digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.byte(), Some(b'0'..=b'9')) {
            return Err(self.error("expected a digit"));
        }
        self.digits();
        Ok(())
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
        Cursor::new(body)
            .is_ok_and(|mut cursor| cursor.skip_value().is_ok() && cursor.end().is_ok())
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
        let mut cursor = Cursor::new(body).unwrap();
        assert_eq!(cursor.string().unwrap(), "a\0\n\"\\/😀z");
    }

    proptest! {
        /// Whatever bytes come, this reader and serde_json agree on what is JSON; numbers that
        /// overflow a float and the non-finite tokens are the two differences that are meant.
        #[test]
        fn accepts_what_serde_json_accepts(body in "[\\[\\]{}:,\"a\\\\u0d8e1\\-+. tfn]{0,24}|[\\[\\]{}:,\" 01]{0,24}") {
            let theirs = serde_json::from_str::<serde_json::Value>(&body);
            let overflow = theirs.as_ref().is_err_and(|error| error.to_string().contains("out of range"));
            prop_assert_eq!(accepts(body.as_bytes()), theirs.is_ok() || overflow, "{}", body);
        }

        #[test]
        fn strings_read_as_serde_json_reads_them(text in any::<String>()) {
            let body = serde_json::to_string(&text).unwrap();
            let mut cursor = Cursor::new(body.as_bytes()).unwrap();
            prop_assert_eq!(cursor.string().unwrap(), text);
        }
    }
}
