//! The demo's report: its numbers as `report.json`, a table for the terminal, plots in `html`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use crate::replay::Count;
use crate::score::{Quality, quality};

/// The three policies, scored on the same rows, in the order in which they are shown.
pub(crate) const POLICIES: [&str; 3] = ["loop", "frozen", "static"];

/// One row of the comparison: what each policy answered, and what happened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    pub at_ms: i64,
    pub local_month: i64,
    pub late: bool,
    /// Probabilities in the order of [`POLICIES`].
    pub probabilities: [f32; 3],
}

/// Quality by policy name.
pub(crate) type ByPolicy = BTreeMap<&'static str, Quality>;

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub policies: ByPolicy,
    pub months: Vec<Month>,
    pub trainings: usize,
    pub promotions: usize,
    pub rejected: Vec<Rejected>,
    pub swaps: usize,
    pub requests: Requests,
    pub skew: Skew,
    pub nights: Nights,
    pub seconds: Seconds,
    pub seed: u64,
    pub commit: String,
    pub machine: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Month {
    /// `2013-03`.
    pub month: String,
    pub rows: usize,
    pub late_share: f64,
    #[serde(flatten)]
    pub policies: ByPolicy,
}

/// A challenger that did not pass, with the gate and its reason.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Rejected {
    pub run: String,
    pub gate: String,
    pub reason: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct Requests {
    pub sent: u64,
    pub failed: u64,
    pub by_kind: BTreeMap<&'static str, Count>,
}

/// Served feature rows that were computed again from the event log.
#[derive(Debug, Serialize, serde::Deserialize)]
pub(crate) struct Skew {
    pub rows_checked: u64,
    pub mismatches: u64,
}

/// What the gateway's nightly verification found during the replay.
#[derive(Debug, Serialize, serde::Deserialize)]
pub(crate) struct Nights {
    pub nights: u64,
    pub rows_checked: u64,
    pub mismatches: u64,
}

/// Wall time of the parts of the demo, in seconds.
#[derive(Debug, Serialize)]
pub(crate) struct Seconds {
    pub import: f64,
    pub train_first: f64,
    /// The replay from first to last request, trainings included.
    pub replay: f64,
    /// The part of the replay that waited for training runs and swaps.
    pub trainings: f64,
}

/// Quality of each policy on `rows`; empty without rows.
pub(crate) fn by_policy(rows: &[Row]) -> ByPolicy {
    let mut scored = ByPolicy::new();
    for (k, name) in POLICIES.into_iter().enumerate() {
        let pairs: Vec<(f32, bool)> = rows
            .iter()
            .map(|row| (row.probabilities[k], row.late))
            .collect();
        if let Some(quality) = quality(&pairs) {
            scored.insert(name, quality);
        }
    }
    scored
}

/// The rows month by month, in New York's months.
pub(crate) fn by_month(rows: &[Row]) -> Vec<Month> {
    rows.chunk_by(|a, b| a.local_month == b.local_month)
        .map(|rows| Month {
            month: format!("2013-{:02}", rows[0].local_month),
            rows: rows.len(),
            late_share: rows.iter().filter(|row| row.late).count() as f64 / rows.len() as f64,
            policies: by_policy(rows),
        })
        .collect()
}

impl Report {
    /// The table that ends the demo, for a terminal of 80 columns.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        self.write_table(&mut text).expect("a String takes all");
        text
    }

    fn write_table(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "                          AUC                log loss        calibration error"
        )
        .and_then(|()| {
            writeln!(
                out,
                "month     rows  late   loop frozen static   loop frozen static   loop frozen static"
            )
        })?;
        for month in &self.months {
            write!(
                out,
                "{}{:>8}{:>5.0}%",
                month.month,
                month.rows,
                month.late_share * 100.0
            )?;
            write_quality(out, &month.policies)?;
        }
        let rows = self.policies.get("loop").map_or(0, |quality| quality.rows);
        write!(out, "total  {rows:>8}      ")?;
        write_quality(out, &self.policies)?;
        writeln!(
            out,
            "\ntrainings {}   promotions {}   rejected {}   swaps {}   failed requests {} of {}",
            self.trainings,
            self.promotions,
            self.rejected.len(),
            self.swaps,
            self.requests.failed,
            self.requests.sent
        )?;
        writeln!(
            out,
            "served rows computed again: {}, mismatches {}",
            self.skew.rows_checked, self.skew.mismatches
        )?;
        writeln!(
            out,
            "in {} nights of the loop: {}, mismatches {}",
            self.nights.nights, self.nights.rows_checked, self.nights.mismatches
        )?;
        for rejected in &self.rejected {
            writeln!(
                out,
                "rejected {} at gate {}: {}",
                rejected.run, rejected.gate, rejected.reason
            )?;
        }
        let s = &self.seconds;
        writeln!(
            out,
            "seconds: import {:.1}, first training {:.1}, replay {:.1} (of which the loop's runs {:.1})",
            s.import, s.train_first, s.replay, s.trainings
        )
    }
}

fn write_quality(out: &mut String, policies: &ByPolicy) -> std::fmt::Result {
    let figures: [fn(&Quality) -> f64; 3] = [|q| q.auc, |q| q.log_loss, |q| q.ece];
    for figure in figures {
        out.push(' ');
        for name in POLICIES {
            match policies.get(name) {
                Some(quality) => write!(out, "{:>7.3}", figure(quality))?,
                None => write!(out, "{:>7}", "-")?,
            }
        }
    }
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_scored_apart_and_policies_on_the_same_rows() {
        let row = |month, late, p| Row {
            at_ms: 0,
            local_month: month,
            late,
            probabilities: [p, 0.5, 1.0 - p],
        };
        let rows = [
            row(3, true, 0.9),
            row(3, false, 0.1),
            row(4, true, 0.8),
            row(4, false, 0.3),
        ];
        let months = by_month(&rows);
        assert_eq!(months.len(), 2);
        assert_eq!(months[0].month, "2013-03");
        assert!((months[1].late_share - 0.5).abs() < 1e-12);
        let all = by_policy(&rows);
        assert!((all["loop"].auc - 1.0).abs() < 1e-12);
        assert!((all["frozen"].auc - 0.5).abs() < 1e-12);
        assert!(all["static"].auc.abs() < 1e-12);
        assert!(all.values().all(|quality| quality.rows == 4));
    }
}
