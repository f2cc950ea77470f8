//! Lengths of time as the recipe writes them.

use std::fmt;
use std::str::FromStr;

use featurestore::definition::{DurationError, parse_duration_ms};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A stretch of time, written as a number and a unit: "45s", "30m", "36h", "7d", or "0s" for none.
/// Milliseconds inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Period(pub(crate) i64);

impl Period {
    pub(super) const fn days(days: i64) -> Self {
        Self(days * 86_400_000)
    }
}

impl FromStr for Period {
    type Err = DurationError;

    fn from_str(text: &str) -> Result<Self, DurationError> {
        if text == "0s" {
            return Ok(Self(0));
        }
        parse_duration_ms(text).map(Self)
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m")];
        for (unit_ms, unit) in units {
            if self.0 > 0 && self.0 % unit_ms == 0 {
                return write!(f, "{}{unit}", self.0 / unit_ms);
            }
        }
        write!(f, "{}s", self.0 / 1_000)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_read_back_as_written() {
        for text in ["45s", "30m", "36h", "7d", "0s"] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
        }
        for text in ["", "d", "7", "-7d", "7w", "7é"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }
}
