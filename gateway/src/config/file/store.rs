//! `[store]` of loopgate.toml.

use std::num::{NonZeroU16, NonZeroU32, NonZeroUsize};

use featurestore::{RetentionOptions, StoreOptions, TableOptions};
use serde::Deserialize;

use super::size;

const MIB: usize = 1 << 20;
const DAY_MS: i64 = 86_400_000;

/// `[store]`: what the feature store may take.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct StoreFile {
    /// MiB of view states that are kept decoded, so that reading them asks no table; 0 keeps none.
    /// Default 64.
    pub hot_states_mib: usize,
    /// MiB of RocksDB's block cache. Default 64.
    pub block_cache_mib: NonZeroUsize,
    /// MiB of RocksDB's write buffers; its log, which a start reads again, is at most twice as long.
    /// Default 96.
    pub write_buffers_mib: NonZeroUsize,
    /// Files that RocksDB keeps open. Default 512.
    pub open_files_max: NonZeroU16,
    /// Batches of events and labels that wait to be written; beyond it 429. Default 1024.
    pub queue_batches_max: NonZeroUsize,
    /// MiB of such batches; beyond it 429. Default 32.
    pub queue_mib: NonZeroUsize,
    /// Days that a label waits for its prediction. Default 7.
    pub label_wait_days: NonZeroU32,
    /// Days that labels find a prediction. Default 90.
    pub prediction_days: NonZeroU32,
}

impl Default for StoreFile {
    fn default() -> Self {
        Self {
            hot_states_mib: 64,
            block_cache_mib: size(64),
            write_buffers_mib: size(96),
            open_files_max: NonZeroU16::new(512).expect("it is not zero"),
            queue_batches_max: size(1024),
            queue_mib: size(32),
            label_wait_days: NonZeroU32::new(7).expect("it is not zero"),
            prediction_days: NonZeroU32::new(90).expect("it is not zero"),
        }
    }
}

impl StoreFile {
    pub(in crate::config) fn options(&self, retention: RetentionOptions) -> StoreOptions {
        let bytes = |mib: NonZeroUsize| mib.get().saturating_mul(MIB);
        let days = |days: NonZeroU32| i64::from(days.get()) * DAY_MS;
        StoreOptions {
            tables: TableOptions {
                block_cache_bytes: bytes(self.block_cache_mib),
                write_buffers_bytes: bytes(self.write_buffers_mib),
                open_files_max: self.open_files_max.get(),
            },
            queue_batches_max: self.queue_batches_max.get(),
            queue_bytes_max: bytes(self.queue_mib),
            hot_states_bytes: self.hot_states_mib.saturating_mul(MIB),
            pending_label_ttl_ms: days(self.label_wait_days),
            prediction_ttl_ms: days(self.prediction_days),
            retention,
            ..StoreOptions::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_project_that_says_nothing_has_the_stores_own_sizes() {
        let said = StoreFile::default().options(RetentionOptions::default());
        let own = StoreOptions::default();
        assert_eq!(format!("{said:?}"), format!("{own:?}"));
    }
}
