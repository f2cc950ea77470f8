//! A span of time as a person writes it: `90s`, `15m`, `6h`, `7d`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A span of time above zero, kept in milliseconds. Written as a whole number
/// and a unit: `500ms`, `90s`, `15m`, `6h`, `7d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Span(i64);

/// A span that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a span of time: write a whole number above zero and ms, s, m, h or d")]
pub struct SpanError {
    text: String,
}

const UNITS: [(&str, i64); 5] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("ms", 1),
    ("m", 60_000),
    ("s", 1_000),
];

impl Span {
    /// A span of whole days (at least one).
    pub const fn days(days: u32) -> Span {
        Span(if days == 0 { 1 } else { days as i64 } * 86_400_000)
    }

    /// A span of whole hours (at least one).
    pub const fn hours(hours: u32) -> Span {
        Span(if hours == 0 { 1 } else { hours as i64 } * 3_600_000)
    }

    /// Milliseconds, above zero.
    pub const fn ms(self) -> i64 {
        self.0
    }

    /// The same span for the standard library's clocks.
    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_millis(self.0.unsigned_abs())
    }
}

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Span, SpanError> {
        let error = || SpanError { text: text.into() };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let number: i64 = number.parse().map_err(|_| error())?;
        let (_, unit_ms) = *UNITS
            .iter()
            .find(|(name, _)| *name == unit)
            .ok_or_else(error)?;
        match number.checked_mul(unit_ms) {
            Some(ms) if ms > 0 => Ok(Span(ms)),
            _ => Err(error()),
        }
    }
}

impl TryFrom<String> for Span {
    type Error = SpanError;

    fn try_from(text: String) -> Result<Span, SpanError> {
        text.parse()
    }
}

impl From<Span> for String {
    fn from(span: Span) -> String {
        span.to_string()
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, unit_ms) in [UNITS[0], UNITS[1], UNITS[3], UNITS[4]] {
            if self.0 % unit_ms == 0 {
                return write!(f, "{}{unit}", self.0 / unit_ms);
            }
        }
        write!(f, "{}ms", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_that_mean_nothing_are_refused() {
        for text in [
            "",
            "7",
            "d",
            "0d",
            "-1d",
            "1 d",
            "1w",
            "9223372036854775807d",
        ] {
            let error = text.parse::<Span>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{text}` is not")), "{error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(ms in 1i64..10_000_000_000) {
            let span = Span(ms);
            prop_assert_eq!(span.to_string().parse::<Span>(), Ok(span));
        }
    }
}
