//! How times, spans and tables look on a terminal.

use chrono::{DateTime, SecondsFormat};

/// A time as RFC 3339 in UTC, with milliseconds where there are any.
pub(super) fn time(at_ms: i64) -> String {
    DateTime::from_timestamp_millis(at_ms).map_or_else(
        || format!("{at_ms} ms"),
        |at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true),
    )
}

/// A length of time in its two largest units: `2d 4h`, `35m`, `1s 20ms`.
pub(super) fn span(ms: i64) -> String {
    const UNITS: [(&str, u64); 5] = [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
        ("ms", 1),
    ];
    let mut left = ms.unsigned_abs();
    let mut parts = Vec::new();
    for (unit, unit_ms) in UNITS {
        if left >= unit_ms && parts.len() < 2 {
            parts.push(format!("{}{unit}", left / unit_ms));
            left %= unit_ms;
        } else if !parts.is_empty() {
            // Two units next to each other: `2d 5s` would look exact and is not.
            break;
        }
    }
    let sign = if ms < 0 { "-" } else { "" };
    match parts.is_empty() {
        true => "0s".to_owned(),
        false => format!("{sign}{}", parts.join(" ")),
    }
}

/// Rows of cells, each column as wide as its widest cell, indented; no blanks at the end of a line.
pub(super) fn table(indent: &str, rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = indent.to_owned();
        for (cell, &width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let pad = width - cell.chars().count() + 2;
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_two_units_at_most() {
        for (ms, told) in [
            (0, "0s"),
            (20, "20ms"),
            (1020, "1s 20ms"),
            (300_000, "5m"),
            (50_400_000, "14h"),
            (90_061_001, "1d 1h"),
            (86_405_000, "1d"),
            (-90_000, "-1m 30s"),
        ] {
            assert_eq!(span(ms), told, "{ms}");
        }
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table("  ", &[row(["größe", "1"]), row(["n", ""])]);
        assert_eq!(text, "  größe  1\n  n\n");
    }

    #[test]
    fn times_are_told_as_rfc_3339() {
        assert_eq!(time(1_362_096_000_000), "2013-03-01T00:00:00Z");
        assert_eq!(time(1_362_096_000_001), "2013-03-01T00:00:00.001Z");
    }
}
