//! Limits and sizes of a store.

use crate::offline::{Bucket, RetentionOptions};

/// Limits and sizes of a store; [`Default`] suits one machine.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// What RocksDB may take.
    pub tables: TableOptions,
    /// Submitted batches that may wait; more are refused.
    pub queue_batches_max: usize,
    /// Bytes of submitted batches that may wait (estimated); more are refused.
    pub queue_bytes_max: usize,
    /// Decoded view states that the writer keeps between groups.
    pub cached_states_max: usize,
    /// Events that the states on disk may lack: so many are folded again after a crash.
    pub unstored_events_max: u64,
    /// Decoded view states that reads keep, in bytes (estimated); 0 reads every state from its table.
    pub hot_states_bytes: usize,
    /// Rows per model that wait in memory for the spool.
    pub spool_rows_max: usize,
    /// Events of one group of an import, which is durable as a whole; takes about 400 bytes each.
    pub import_group_events: usize,
    /// How long a label waits for its prediction, in milliseconds.
    pub pending_label_ttl_ms: i64,
    /// Labels that may wait for their prediction; beyond it the oldest expire early.
    pub pending_labels_max: usize,
    /// How long labels can find a prediction, in milliseconds of prediction time.
    pub prediction_ttl_ms: i64,
    /// Whether latest values are read after their view's TTL too, and so stay on disk.
    pub keep_expired_values: bool,
    /// The bucket that takes sealed files; `None`: they stay where the data folder has them, in itself when
    /// it is new.
    pub offline: Option<Bucket>,
    /// How long sealed files and the log behind them are kept.
    pub retention: RetentionOptions,
}

/// What RocksDB may take.
#[derive(Debug, Clone, Copy)]
pub struct TableOptions {
    /// Its block cache, index and filter blocks included, in bytes.
    pub block_cache_bytes: usize,
    /// Write buffers of all its tables together, in bytes; the write-ahead log is at most twice as long,
    /// which bounds what is read again at open.
    pub write_buffers_bytes: usize,
    /// Files that it keeps open.
    pub open_files_max: u16,
}

impl Default for TableOptions {
    fn default() -> Self {
        Self {
            block_cache_bytes: 64 << 20,
            write_buffers_bytes: 96 << 20,
            open_files_max: 512,
        }
    }
}

const DAY_MS: i64 = 86_400_000;

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            tables: TableOptions::default(),
            queue_batches_max: 1024,
            queue_bytes_max: 32 << 20,
            cached_states_max: 16_384,
            unstored_events_max: 1 << 16,
            hot_states_bytes: 64 << 20,
            spool_rows_max: 1024,
            import_group_events: 1 << 17,
            pending_label_ttl_ms: 7 * DAY_MS,
            pending_labels_max: 1 << 20,
            prediction_ttl_ms: 90 * DAY_MS,
            keep_expired_values: false,
            offline: None,
            retention: RetentionOptions::default(),
        }
    }
}
