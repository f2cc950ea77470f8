//! `[retention]` of loopgate.toml.

use featurestore::RetentionOptions;
use serde::Deserialize;

/// `[retention]`: how long sealed files, and the log behind them, are kept.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RetentionFile {
    /// Days that the event log keeps events which are sealed into `offline/events`, since their
    /// arrival. They are read from the files then. Default: for good.
    pub event_log_days: Option<u32>,
    /// Days that sealed predictions are kept. Default: for good.
    pub prediction_days: Option<u32>,
    /// Days that sealed labels are kept, since their arrival. Default: for good.
    pub label_days: Option<u32>,
    /// Minutes that a sealed file stays after its table has forgotten it, for readers that know it
    /// still. Default 60.
    pub grace_minutes: u32,
}

impl Default for RetentionFile {
    fn default() -> Self {
        Self {
            event_log_days: None,
            prediction_days: None,
            label_days: None,
            grace_minutes: 60,
        }
    }
}

impl RetentionFile {
    pub(in crate::config) fn options(&self) -> RetentionOptions {
        const MINUTE_MS: i64 = 60_000;
        let days = |days: Option<u32>| days.map(|days| i64::from(days) * 1440 * MINUTE_MS);
        RetentionOptions {
            event_log_ms: days(self.event_log_days),
            predictions_ms: days(self.prediction_days),
            labels_ms: days(self.label_days),
            grace_ms: i64::from(self.grace_minutes) * MINUTE_MS,
            ..RetentionOptions::default()
        }
    }
}
