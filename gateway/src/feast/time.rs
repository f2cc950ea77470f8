//! Times as Feast's callers write them: RFC 3339, Python's `isoformat` and `str`, pandas' forms. One
//! without an offset is UTC. What is finer than a millisecond is cut off.

use chrono::{DateTime, NaiveDate, NaiveDateTime};

/// Milliseconds since the Unix epoch; `None` where it is no time.
pub(super) fn parse(text: &str) -> Option<i64> {
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Some(time.timestamp_millis());
    }
    for form in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M:%S%.f"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text, form) {
            return Some(time.and_utc().timestamp_millis());
        }
    }
    for form in ["%Y-%m-%dT%H:%M:%S%.f%#z", "%Y-%m-%d %H:%M:%S%.f%#z"] {
        if let Ok(time) = DateTime::parse_from_str(text, form) {
            return Some(time.timestamp_millis());
        }
    }
    let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?;
    Some(
        date.and_time(chrono::NaiveTime::MIN)
            .and_utc()
            .timestamp_millis(),
    )
}

/// Appends a time as protobuf's JSON has it: RFC 3339 in UTC, with a fraction of three digits or none.
pub(super) fn write(out: &mut Vec<u8>, ms: i64) {
    let (days, of_day) = (ms.div_euclid(DAY_MS), ms.rem_euclid(DAY_MS) as u64);
    let (year, month, day) = civil(days);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let mut put = |place: usize, pair: u64| {
        text[place] += (pair / 10) as u8;
        text[place + 1] += (pair % 10) as u8;
    };
    put(0, year / 100 % 100);
    put(2, year % 100);
    put(5, month);
    put(8, day);
    put(11, of_day / 3_600_000);
    put(14, of_day / 60_000 % 60);
    put(17, of_day / 1000 % 60);
    let thousandths = of_day % 1000;
    put(20, thousandths / 10);
    text[22] += (thousandths % 10) as u8;
    if thousandths == 0 {
        out.extend_from_slice(&text[..WHOLE]);
        out.push(b'Z');
    } else {
        out.extend_from_slice(&text);
    }
}

const DAY_MS: i64 = 86_400_000;
/// Bytes of a time up to its second.
const WHOLE: usize = 19;

/// Year, month and day of a day since 1970-01-01 (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms", `civil_from_days`). Times of ours are of the years 1 to 9999.
fn civil(days: i64) -> (u64, u64, u64) {
    const DAYS_TO_1970: i64 = 719_468;
    const ERA_DAYS: i64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day) = (days.div_euclid(ERA_DAYS), days.rem_euclid(ERA_DAYS) as u64);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = era * 400 + year as i64 + i64::from(month <= 2);
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    (u64::try_from(year).unwrap_or(0), month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_in_the_forms_of_python_and_pandas() {
        for (text, ms) in [
            ("2024-03-01T12:30:00Z", 1_709_296_200_000),
            ("2024-03-01T12:30:00", 1_709_296_200_000),
            ("2024-03-01 12:30:00", 1_709_296_200_000),
            ("2024-03-01T12:30:00.250", 1_709_296_200_250),
            ("2024-03-01T12:30:00.250999", 1_709_296_200_250),
            ("2024-03-01 12:30:00.250999123", 1_709_296_200_250),
            ("2024-03-01T13:30:00+01:00", 1_709_296_200_000),
            ("2024-03-01 13:30:00+01:00", 1_709_296_200_000),
            ("2024-03-01 13:30:00.5+0100", 1_709_296_200_500),
            ("2024-03-01T12:30:00.000000+00:00", 1_709_296_200_000),
            ("2024-03-01", 1_709_251_200_000),
            ("1969-12-31T23:59:59.999", -1),
        ] {
            assert_eq!(parse(text), Some(ms), "{text}");
        }
        for text in [
            "",
            "now",
            "12:30",
            "2024-13-01",
            "2024-03-01T25:00:00",
            "1709296200",
            "NaT",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn times_are_written_as_the_calendar_has_them(ms in -62_135_596_800_000..=253_402_300_799_999_i64) {
            let mut out = Vec::new();
            write(&mut out, ms);
            let text = String::from_utf8(out).unwrap();
            prop_assert_eq!(parse(&text), Some(ms), "{}", text);
            let theirs = DateTime::from_timestamp_millis(ms).unwrap();
            let theirs = theirs.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true);
            prop_assert_eq!(text, theirs);
        }
    }
}
