//! The sections of serving: `[serving]`, `[breaker]`, `[ingest]`, `[recorder]`, `[shadow]`.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

use super::{nonzero, size};
use crate::breaker::BreakerRules;

/// `[serving]`: predictions.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ServingFile {
    /// Serving threads. Default one per core.
    pub threads: Option<NonZeroUsize>,
    /// Predictions in flight; beyond it 429. Default 1024.
    pub in_flight_max: NonZeroUsize,
    /// Bytes of their bodies; beyond it 429. Default 256 MiB.
    pub in_flight_bytes_max: NonZeroUsize,
    /// Microseconds that a run on a serving thread may be expected to take; dearer ones go to the
    /// pool. Default 100.
    pub in_place_us: u64,
    /// Threads of the pool. Default one per core.
    pub pool_threads: Option<NonZeroUsize>,
    /// Threads that read features from disk which are not in memory. Default 4.
    pub cold_read_threads: NonZeroUsize,
    /// Predictions that may wait in the pool for one version; beyond it 429. Default 512.
    pub pool_queue_max: NonZeroUsize,
    /// Rows of one batch in the pool; 1 turns batching off. Default 64.
    pub batch_rows_max: NonZeroUsize,
    /// Milliseconds that a prediction may take. Default 1,000.
    pub deadline_ms: NonZeroU64,
    /// Rows of one request, of one batch of events or of labels. Default 10,000.
    pub rows_max: NonZeroUsize,
    /// Milliseconds in which keep-alive clients are told to leave before their connections are
    /// closed. Default 300.
    pub drain_notice_ms: u64,
    /// Milliseconds that requests in flight may take to finish once a drain began. Default 10,000.
    pub drain_grace_ms: u64,
}

impl Default for ServingFile {
    fn default() -> Self {
        Self {
            threads: None,
            in_flight_max: size(1024),
            in_flight_bytes_max: size(256 << 20),
            in_place_us: 100,
            pool_threads: None,
            cold_read_threads: size(4),
            pool_queue_max: size(512),
            batch_rows_max: size(64),
            deadline_ms: nonzero(1000),
            rows_max: size(10_000),
            drain_notice_ms: 300,
            drain_grace_ms: 10_000,
        }
    }
}

/// `[breaker]`: when a version that fails is left alone, and when it is tried again.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct BreakerFile {
    /// Failures in a row that open it. Default 5.
    pub failures_in_a_row: NonZeroU32,
    /// The failing share of the runs within the window that opens it. Default 0.5.
    pub failing_share: FailingShare,
    /// Runs within the window without which the share says nothing. Default 20.
    pub runs_min: NonZeroU32,
    /// Milliseconds of the window. Default 10,000.
    pub window_ms: NonZeroU64,
    /// Milliseconds that it is open at first; they double each time that it opens again. Default
    /// 1,000.
    pub open_ms: NonZeroU64,
    /// Milliseconds that it is open at most. Default 60,000.
    pub open_max_ms: NonZeroU64,
    /// Successful probes in a row that close it. Default 3.
    pub probes: NonZeroU32,
}

impl Default for BreakerFile {
    fn default() -> Self {
        let rules = BreakerRules::default();
        let count = |count| NonZeroU32::new(count).expect("a default above zero");
        let ms = |duration: Duration| nonzero(duration.as_millis() as u64);
        Self {
            failures_in_a_row: count(rules.failures_in_a_row),
            failing_share: FailingShare(rules.failing_share),
            runs_min: count(rules.runs_min),
            window_ms: ms(rules.window),
            open_ms: ms(rules.open_first),
            open_max_ms: ms(rules.open_max),
            probes: count(rules.probes),
        }
    }
}

impl BreakerFile {
    pub(in crate::config) fn rules(&self) -> BreakerRules {
        let duration = |ms: NonZeroU64| Duration::from_millis(ms.get());
        BreakerRules {
            failures_in_a_row: self.failures_in_a_row.get(),
            failing_share: self.failing_share.0,
            runs_min: self.runs_min.get(),
            window: duration(self.window_ms),
            open_first: duration(self.open_ms),
            open_max: duration(self.open_max_ms.max(self.open_ms)),
            probes: self.probes.get(),
        }
    }
}

/// A share that not even a version without failures has: above 0, up to 1.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
pub(in crate::config) struct FailingShare(f64);

impl TryFrom<f64> for FailingShare {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        (value > 0.0 && value <= 1.0)
            .then_some(Self(value))
            .ok_or_else(|| format!("{value} is not a share above 0, up to 1"))
    }
}

/// `[ingest]`: events and labels.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct IngestFile {
    /// Batches in flight; beyond it 429. Default 256.
    pub in_flight_max: NonZeroUsize,
    /// Milliseconds that a batch may wait until it is on disk. Default 10,000.
    pub deadline_ms: NonZeroU64,
}

impl Default for IngestFile {
    fn default() -> Self {
        Self {
            in_flight_max: size(256),
            deadline_ms: nonzero(10_000),
        }
    }
}

/// `[recorder]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RecorderFile {
    /// Requests that may wait; beyond it records are dropped and counted. Default 65,536.
    pub queue_max: NonZeroUsize,
}

impl Default for RecorderFile {
    fn default() -> Self {
        Self {
            queue_max: size(65_536),
        }
    }
}

/// `[shadow]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ShadowFile {
    /// Requests that may wait; beyond it shadows are dropped and counted. Default 4,096.
    pub queue_max: NonZeroUsize,
}

impl Default for ShadowFile {
    fn default() -> Self {
        Self {
            queue_max: size(4096),
        }
    }
}
