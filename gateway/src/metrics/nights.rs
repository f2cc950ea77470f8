//! What the nightly verification of a model found.

use std::time::Duration;

use featurestore::VerifyReport;
use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

const ROWS: &str = "loopgate_verified_rows_total";
const PASSED_OVER: &str = "loopgate_verify_rows_passed_over_total";
const MISMATCHES: &str = "loopgate_verify_mismatches_total";
const FAILURES: &str = "loopgate_verify_failures_total";
const UNTIL_SECONDS: &str = "loopgate_verified_until_timestamp_seconds";
const NIGHT_SECONDS: &str = "loopgate_verify_night_seconds";

/// The handles of one model.
pub(crate) struct NightMetrics {
    rows: Counter,
    passed_over: Counter,
    mismatches: Counter,
    pub failures: Counter,
    until: Gauge,
    night: Gauge,
}

impl NightMetrics {
    pub(crate) fn of(model: &str) -> Self {
        let counter = |name: &'static str| counter!(name, "model" => model.to_owned());
        let gauge = |name: &'static str| gauge!(name, "model" => model.to_owned());
        Self {
            rows: counter(ROWS),
            passed_over: counter(PASSED_OVER),
            mismatches: counter(MISMATCHES),
            failures: counter(FAILURES),
            until: gauge(UNTIL_SECONDS),
            night: gauge(NIGHT_SECONDS),
        }
    }

    /// A night has ended after so long.
    pub(crate) fn night(&self, took: Duration) {
        self.night.set(took.as_secs_f64());
    }

    /// A night has ended well.
    pub(crate) fn verified(&self, report: &VerifyReport, until_ms: i64) {
        self.rows.increment(report.rows_checked);
        self.passed_over.increment(report.rows_passed_over);
        self.mismatches.increment(report.mismatches);
        self.until.set(until_ms as f64 / 1e3);
    }
}

pub(super) fn describe() {
    describe_counter!(
        ROWS,
        "Served rows that a night recomputed from the event log"
    );
    describe_counter!(
        PASSED_OVER,
        "Served rows that a night could not recompute, for they saw fewer events than it had folded"
    );
    describe_counter!(
        MISMATCHES,
        "Served rows that differ from what the event log gives: any is a fault"
    );
    describe_counter!(FAILURES, "Nights that could not verify");
    describe_gauge!(
        UNTIL_SECONDS,
        "Up to when served rows have been verified, in seconds since 1970"
    );
    describe_gauge!(NIGHT_SECONDS, "Seconds that the last night took");
}
