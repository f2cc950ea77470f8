//! RocksDB's own numbers, under names of ours.
//!
//! Its tickers cost an increment on a counter of the core where they move, and are copied when the page is
//! made; so are sizes, for which its lock is taken about a hundred times for a microsecond or less each.
//! No histograms: RocksDB would read the clock twice for every call.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use rocksdb::properties::{self, PropName};
use rocksdb::statistics::Ticker;

use crate::online::keys::Column;
use crate::online::tables::Tables;

const BLOCK_READS: &str = "loopgate_store_block_reads_total";
const FILTERED_GETS: &str = "loopgate_store_filtered_gets_total";
const IO_BYTES: &str = "loopgate_store_io_bytes_total";
const WAL_SYNCS: &str = "loopgate_store_wal_syncs_total";
const STALLED: &str = "loopgate_store_stalled_microseconds_total";
const ERRORS: &str = "loopgate_store_background_errors_total";
const EXPIRED_KEYS: &str = "loopgate_store_expired_keys_total";
const CACHE_BYTES: &str = "loopgate_store_block_cache_bytes";
const WRITES_STOPPED: &str = "loopgate_store_writes_stopped";
const DELAYED_RATE: &str = "loopgate_store_delayed_write_bytes_per_second";
const TABLE_BYTES: &str = "loopgate_store_table_bytes";
const TABLE_KEYS: &str = "loopgate_store_table_keys";
const TABLE_FILES: &str = "loopgate_store_table_files";
const BUFFER_BYTES: &str = "loopgate_store_write_buffer_bytes";
const PENDING_BYTES: &str = "loopgate_store_pending_compaction_bytes";

/// Levels of a column family.
const LEVELS: usize = 7;

/// Resolved handles of one database.
#[derive(Clone)]
pub(crate) struct DatabaseMetrics {
    tickers: Vec<(Ticker, Counter)>,
    /// Filters let these gets through though nothing was there.
    passed_in_vain: Counter,
    cache_used: Gauge,
    cache_pinned: Gauge,
    writes_stopped: Gauge,
    delayed_rate: Gauge,
    tables: Vec<TableMetrics>,
}

/// Of one column family.
#[derive(Clone)]
struct TableMetrics {
    column: Column,
    bytes: Gauge,
    keys: Gauge,
    files: [Gauge; LEVELS],
    buffers: Gauge,
    pending: Gauge,
}

impl DatabaseMetrics {
    /// Resolves every handle with the recorder that is installed now.
    pub(crate) fn resolve() -> Self {
        let io = |work: &'static str| counter!(IO_BYTES, "work" => work);
        let tickers = vec![
            (
                Ticker::BlockCacheHit,
                counter!(BLOCK_READS, "from" => "cache"),
            ),
            (
                Ticker::BlockCacheMiss,
                counter!(BLOCK_READS, "from" => "file"),
            ),
            (
                Ticker::BloomFilterUseful,
                counter!(FILTERED_GETS, "outcome" => "spared"),
            ),
            (
                Ticker::BloomFilterFullTruePositive,
                counter!(FILTERED_GETS, "outcome" => "found"),
            ),
            (Ticker::WalFileBytes, io("wal_write")),
            (Ticker::FlushWriteBytes, io("flush_write")),
            (Ticker::CompactReadBytes, io("compaction_read")),
            (Ticker::CompactWriteBytes, io("compaction_write")),
            (Ticker::WalFileSynced, counter!(WAL_SYNCS)),
            (Ticker::StallMicros, counter!(STALLED)),
            (Ticker::ErrorHandlerBgErrorCount, counter!(ERRORS)),
            (Ticker::CompactionKeyDropUser, counter!(EXPIRED_KEYS)),
        ];
        Self {
            tickers,
            passed_in_vain: counter!(FILTERED_GETS, "outcome" => "vain"),
            cache_used: gauge!(CACHE_BYTES, "what" => "used"),
            cache_pinned: gauge!(CACHE_BYTES, "what" => "pinned"),
            writes_stopped: gauge!(WRITES_STOPPED),
            delayed_rate: gauge!(DELAYED_RATE),
            tables: Column::ALL.map(TableMetrics::resolve).into(),
        }
    }

    /// Copies what RocksDB says now.
    pub(crate) fn sample(&self, tables: &Tables) {
        for (ticker, counter) in &self.tickers {
            counter.absolute(tables.ticker(*ticker));
        }
        let passed = tables.ticker(Ticker::BloomFilterFullPositive);
        let found = tables.ticker(Ticker::BloomFilterFullTruePositive);
        self.passed_in_vain.absolute(passed.saturating_sub(found));
        let (used, pinned) = tables.cache_bytes();
        self.cache_used.set(used as f64);
        self.cache_pinned.set(pinned as f64);
        // Of the whole database, whichever column family is asked.
        let of_all = |property| tables.property(Column::Meta, property);
        self.writes_stopped
            .set(of_all(properties::IS_WRITE_STOPPED));
        self.delayed_rate
            .set(of_all(properties::ACTUAL_DELAYED_WRITE_RATE));
        for table in &self.tables {
            table.sample(tables);
        }
    }
}

impl TableMetrics {
    fn resolve(column: Column) -> Self {
        let table = column.name();
        let files =
            |level: usize| gauge!(TABLE_FILES, "table" => table, "level" => level.to_string());
        Self {
            column,
            bytes: gauge!(TABLE_BYTES, "table" => table),
            keys: gauge!(TABLE_KEYS, "table" => table),
            files: std::array::from_fn(files),
            buffers: gauge!(BUFFER_BYTES, "table" => table),
            pending: gauge!(PENDING_BYTES, "table" => table),
        }
    }

    fn sample(&self, tables: &Tables) {
        let of = |property: &PropName| tables.property(self.column, property);
        self.bytes.set(of(properties::LIVE_SST_FILES_SIZE));
        self.keys.set(of(properties::ESTIMATE_NUM_KEYS));
        self.buffers.set(of(properties::SIZE_ALL_MEM_TABLES));
        self.pending
            .set(of(properties::ESTIMATE_PENDING_COMPACTION_BYTES));
        for (level, files) in self.files.iter().enumerate() {
            files.set(of(&properties::num_files_at_level(level)));
        }
    }
}

pub(super) fn describe() {
    let count = |name: &'static str, help: &'static str| {
        describe_counter!(name, Unit::Count, help);
    };
    count(
        BLOCK_READS,
        "Blocks of RocksDB's tables that were read, by where they were",
    );
    count(
        FILTERED_GETS,
        "Files that a filter was asked for: spared, found there, or looked into in vain",
    );
    count(WAL_SYNCS, "Syncs of RocksDB's write-ahead log");
    count(ERRORS, "Flushes and compactions that failed");
    count(
        EXPIRED_KEYS,
        "Dedupe keys and predictions past their life that compaction dropped",
    );
    describe_counter!(
        IO_BYTES,
        Unit::Bytes,
        "Bytes written to the log, flushed, and read and written by compaction"
    );
    describe_counter!(
        STALLED,
        Unit::Microseconds,
        "Time for which RocksDB held up writes, in microseconds"
    );
    let bytes = |name: &'static str, help: &'static str| {
        describe_gauge!(name, Unit::Bytes, help);
    };
    bytes(CACHE_BYTES, "RocksDB's block cache: used, and pinned of it");
    bytes(TABLE_BYTES, "Files of a table of RocksDB");
    bytes(BUFFER_BYTES, "Write buffers of a table of RocksDB");
    bytes(
        PENDING_BYTES,
        "Bytes that compaction is behind with, estimated, by table",
    );
    describe_gauge!(TABLE_KEYS, Unit::Count, "Keys of a table, estimated");
    describe_gauge!(
        TABLE_FILES,
        Unit::Count,
        "Files of a table of RocksDB, by level"
    );
    describe_gauge!(
        WRITES_STOPPED,
        Unit::Count,
        "1 while RocksDB takes no writes"
    );
    describe_gauge!(
        DELAYED_RATE,
        Unit::Bytes,
        "Bytes a second to which RocksDB slows writes; 0 where it does not"
    );
}
