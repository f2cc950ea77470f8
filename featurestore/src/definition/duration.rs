//! Lengths of time as project files write them: `"30m"`, `"24h"`, `"7d"`.

use thiserror::Error;

/// A text that is not a length of time.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{text}` is not a length of time such as `45s`, `30m`, `24h` or `7d`")]
pub struct DurationError {
    /// The text as given
    pub text: String,
}

/// Ten years: longer is a mistake in the unit.
const DURATION_MS_MAX: i64 = 3653 * 24 * 3_600_000;

/// Milliseconds of a whole number above zero with one unit (`s`, `m`, `h`, `d`); ten years at most.
pub fn parse_duration_ms(text: &str) -> Result<i64, DurationError> {
    parse(text).ok_or_else(|| DurationError {
        text: text.to_owned(),
    })
}

fn parse(text: &str) -> Option<i64> {
    let unit_ms = match text.chars().last()? {
        's' => 1_000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 24 * 3_600_000,
        _ => return None,
    };
    let digits = &text[..text.len() - 1];
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let ms = digits.parse::<i64>().ok()?.checked_mul(unit_ms)?;
    (1..=DURATION_MS_MAX).contains(&ms).then_some(ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_have_one_unit() {
        assert_eq!(parse_duration_ms("45s"), Ok(45_000));
        assert_eq!(parse_duration_ms("7d"), Ok(604_800_000));
        for wrong in [
            "",
            "h",
            "7",
            "-1h",
            "+1h",
            "0h",
            "1.5h",
            "7 d",
            "1w",
            "7é",
            "9999999999999d",
        ] {
            assert!(parse_duration_ms(wrong).is_err(), "{wrong}");
        }
    }
}
