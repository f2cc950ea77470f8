//! RocksDB as this crate uses it: how it is opened, and typed access by [`Key`].
//!
//! Memory is bounded by one block cache (index and filter blocks included) and one budget for all
//! write buffers. Every get passes a bloom filter first, so that a dedupe key or prediction that is
//! not there costs no disk read.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::properties::{BACKGROUND_ERRORS, PropName};
use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, DBIterator, DBPinnableSlice, DBRawIterator, DEFAULT_COLUMN_FAMILY_NAME,
    Direction, Error, ErrorKind, IngestExternalFileOptions, IteratorMode, Options, ReadOptions,
    ReadTier, WriteBatch, WriteOptions,
};

use super::keys::{Column, Key};
use super::lives::Lives;
use super::options::TableOptions;

/// The open database.
pub(crate) struct Tables {
    db: DB,
    /// What it was opened with: its tickers are read through them.
    options: Options,
    /// Those of column families that were made anew own the filters that compaction calls; the crate keeps
    /// only those that a database was opened with.
    renewed: Vec<Options>,
    cache: Cache,
    sizes: TableOptions,
    lives: Arc<Lives>,
}

/// A part of a file's filter or index, as the cache holds them.
const METADATA_BLOCK_BYTES: usize = 8 << 10;
/// How long a write waits before it is tried again, when flushes or compactions are behind, and how long in
/// all: where one of them has failed for want of space, it may be for good.
const STALLED_FOR: Duration = Duration::from_millis(1);
const STALLED_MAX: Duration = Duration::from_secs(30);
/// Block cache of one who only looks, in bytes.
const READER_CACHE_BYTES: usize = 4 << 20;

impl Tables {
    /// Opens or makes the database in `folder`.
    pub(crate) fn open(folder: &Path, sizes: TableOptions) -> Result<Self, Error> {
        Self::open_with(folder, sizes, |_| {})
    }

    /// Opens a database that is to be mended: no compaction comes upon the damage first, which would end all
    /// writing, until [`Tables::compact_again`].
    pub(crate) fn open_to_mend(folder: &Path, sizes: TableOptions) -> Result<Self, Error> {
        Self::open_with(folder, sizes, |options| {
            options.set_disable_auto_compactions(true);
        })
    }

    fn open_with(
        folder: &Path,
        sizes: TableOptions,
        alter: impl Fn(&mut Options),
    ) -> Result<Self, Error> {
        let cache = Cache::new_lru_cache(sizes.block_cache_bytes);
        let lives = Arc::new(Lives::default());
        let columns = Column::ALL.map(|column| {
            let mut options = column_options(column, (&cache, sizes), &lives);
            alter(&mut options);
            ColumnFamilyDescriptor::new(column.name(), options)
        });
        let options = database_options(sizes);
        let columns = columns.into_iter().chain([unused_column(sizes)]);
        let db = DB::open_cf_descriptors(&options, folder, columns)?;
        Ok(Self {
            db,
            options,
            renewed: Vec::new(),
            cache,
            sizes,
            lives,
        })
    }

    /// What was opened to be mended compacts from now on.
    pub(crate) fn compact_again(&self) -> Result<(), Error> {
        let again = [("disable_auto_compactions", "false")];
        let mut columns = Column::ALL.into_iter();
        columns.try_for_each(|column| self.db.set_options_cf(self.column(column), &again))
    }

    /// Opens the database in `folder` as it is, to read, also while another process has it open.
    pub(crate) fn open_to_read(folder: &Path) -> Result<Self, Error> {
        let sizes = TableOptions::default();
        let cache = Cache::new_lru_cache(READER_CACHE_BYTES);
        let lives = Arc::new(Lives::default());
        let columns = Column::ALL.map(|column| {
            let options = column_options(column, (&cache, sizes), &lives);
            ColumnFamilyDescriptor::new(column.name(), options)
        });
        let mut options = database_options(sizes);
        options.create_if_missing(false);
        let db = DB::open_cf_descriptors_read_only(&options, folder, columns, false)?;
        Ok(Self {
            db,
            options,
            renewed: Vec::new(),
            cache,
            sizes,
            lives,
        })
    }

    /// Makes of the files in `folder` a database that opens: tables and logs that are damaged or missing
    /// are left out.
    pub(crate) fn repair(folder: &Path) -> Result<(), Error> {
        DB::repair(&database_options(TableOptions::default()), folder)
    }

    /// Whether an error says that files are damaged or gone.
    pub(crate) fn is_damage(error: &Error) -> bool {
        match error.kind() {
            ErrorKind::Corruption => true,
            ErrorKind::IOError => error.as_ref().contains("No such file or directory"),
            _ => false,
        }
    }

    /// Whether an error says that the disk is full, or that no write was let through for too long. RocksDB
    /// gets over such errors.
    pub(crate) fn is_want_of_space(error: &Error) -> bool {
        match error.kind() {
            ErrorKind::Incomplete => true,
            ErrorKind::IOError => error.as_ref().contains("No space left on device"),
            _ => false,
        }
    }

    /// Flushes and compactions that failed since the database was opened.
    pub(crate) fn background_failures(&self) -> u64 {
        let failures = self.db.property_int_value(BACKGROUND_ERRORS);
        failures.ok().flatten().unwrap_or(0)
    }

    /// Makes a copy of the database in a new folder: table files by hard link where that is possible.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), Error> {
        Checkpoint::new(&self.db)?.create_checkpoint(folder)
    }

    /// Drops a column family with its files, and makes it again, empty.
    pub(crate) fn renew(&mut self, column: Column) -> Result<(), Error> {
        self.db.drop_cf(column.name())?;
        let options = column_options(column, (&self.cache, self.sizes), &self.lives);
        self.db.create_cf(column.name(), &options)?;
        self.renewed.push(options);
        Ok(())
    }

    /// The handle of a column family.
    pub(crate) fn column(&self, column: Column) -> &ColumnFamily {
        self.db
            .cf_handle(column.name())
            .expect("every column family is opened")
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: Key<'_>) -> Result<Option<DBPinnableSlice<'_>>, Error> {
        self.db
            .get_pinned_cf(self.column(key.column()), key.to_bytes())
    }

    /// A number stored as eight little endian bytes; `None` also where it is not eight bytes.
    pub(crate) fn get_number(&self, key: Key<'_>) -> Result<Option<u64>, Error> {
        let value = self.get(key)?;
        Ok(value.and_then(|bytes| Some(u64::from_le_bytes(bytes.as_ref().try_into().ok()?))))
    }

    /// The values of some keys of one column family, at one cut, in their order.
    pub(crate) fn get_many<'a>(
        &self,
        column: Column,
        keys: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Vec<Option<DBPinnableSlice<'_>>>, Error> {
        let keys: Vec<&[u8]> = keys.into_iter().collect();
        self.db
            .batched_multi_get_cf(self.column(column), keys.iter(), false)
            .into_iter()
            .collect()
    }

    /// [`Tables::get_many`] from write buffers and block cache alone; `None` where one of the keys, or
    /// what tells where it is, would have to be read from disk. One key after the other: of a batch
    /// RocksDB 11 reads the data blocks from disk whatever tier it is told.
    pub(crate) fn get_many_cached<'a>(
        &self,
        column: Column,
        keys: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<Option<Vec<Option<DBPinnableSlice<'_>>>>, Error> {
        let cut = self.db.snapshot();
        let mut cached = ReadOptions::default();
        cached.set_snapshot(&cut);
        cached.set_read_tier(ReadTier::BlockCache);
        let column = self.column(column);
        let read = |key| self.db.get_pinned_cf_opt(column, key, &cached);
        let values: Result<Vec<_>, Error> = keys.into_iter().map(read).collect();
        match values {
            Ok(values) => Ok(Some(values)),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Key and value pairs of a column family from `start` on.
    pub(crate) fn scan(&self, column: Column, start: &[u8]) -> DBIterator<'_> {
        let mode = IteratorMode::From(start, Direction::Forward);
        self.db.iterator_cf(self.column(column), mode)
    }

    /// A cursor over a column family as it is now; seek before use.
    pub(crate) fn raw_scan(&self, column: Column) -> DBRawIterator<'_> {
        self.db.raw_iterator_cf(self.column(column))
    }

    /// All pairs of a column family, from disk and past the cache.
    pub(crate) fn scan_once(&self, column: Column) -> DBIterator<'_> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let column = self.column(column);
        self.db
            .iterator_cf_opt(column, options, IteratorMode::Start)
    }

    /// [`Tables::scan_once`] from the last pair to the first.
    pub(crate) fn scan_back(&self, column: Column) -> DBIterator<'_> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let column = self.column(column);
        self.db.iterator_cf_opt(column, options, IteratorMode::End)
    }

    /// [`Tables::scan`] from disk and past the cache.
    pub(crate) fn scan_past_cache(&self, column: Column, start: &[u8]) -> DBIterator<'_> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let mode = IteratorMode::From(start, Direction::Forward);
        self.db.iterator_cf_opt(self.column(column), options, mode)
    }

    /// The last key of a column family.
    pub(crate) fn last_key(&self, column: Column) -> Result<Option<Box<[u8]>>, Error> {
        let mut last = self.db.iterator_cf(self.column(column), IteratorMode::End);
        last.next().map(|pair| pair.map(|(key, _)| key)).transpose()
    }

    /// To add many puts of one column family to a batch.
    pub(crate) fn puts(&self, column: Column) -> Puts<'_> {
        Puts {
            handle: self.column(column),
            column,
            key: Vec::new(),
        }
    }

    /// Adds a put to a batch.
    pub(crate) fn put(&self, batch: &mut WriteBatch, key: Key<'_>, value: &[u8]) {
        batch.put_cf(self.column(key.column()), key.to_bytes(), value);
    }

    /// Adds a removal to a batch.
    pub(crate) fn delete(&self, batch: &mut WriteBatch, key: Key<'_>) {
        batch.delete_cf(self.column(key.column()), key.to_bytes());
    }

    /// Adds the removal of `from..to` to a batch.
    pub(crate) fn delete_range(&self, batch: &mut WriteBatch, column: Column, ends: [&[u8]; 2]) {
        batch.delete_range_cf(self.column(column), ends[0], ends[1]);
    }

    /// Writes a batch and waits until it is on disk.
    pub(crate) fn write_durably(&self, batch: WriteBatch) -> Result<(), Error> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.write(batch, options)
    }

    /// Writes a batch that a crash of the machine may lose, though not one of the process.
    pub(crate) fn write_lazily(&self, batch: WriteBatch) -> Result<(), Error> {
        self.write(batch, WriteOptions::default())
    }

    /// Waits here while RocksDB lets nobody write, not within it: a writer that waits there for a flush, when
    /// that flush finds no space, waits for ever, and the recovery from that error for the writer.
    fn write(&self, mut batch: WriteBatch, mut options: WriteOptions) -> Result<(), Error> {
        options.set_no_slowdown(true);
        // A write takes the batch, also where it is refused.
        let data = batch.data().to_vec();
        let until = Instant::now() + STALLED_MAX;
        loop {
            match self.db.write_opt(batch, &options) {
                Err(error) if error.kind() == ErrorKind::Incomplete && Instant::now() < until => {
                    std::thread::sleep(STALLED_FOR);
                    batch = WriteBatch::from_data(&data);
                }
                written => return written,
            }
        }
    }

    /// How a file for [`Tables::ingest`] is written: blocks and filters as in the column family.
    pub(crate) fn file_options(column: Column) -> Options {
        // No block is read through it.
        let cache = Cache::new_lru_cache(0);
        let sizes = TableOptions::default();
        column_options(column, (&cache, sizes), &Arc::default())
    }

    /// Takes a sorted file into a column family, durably and at once; the file stays where it is.
    pub(crate) fn ingest(&self, column: Column, file: &Path) -> Result<(), Error> {
        let options = IngestExternalFileOptions::default();
        self.db
            .ingest_external_file_cf_opts(self.column(column), &options, vec![file])
    }

    /// What compaction may drop.
    pub(crate) fn lives(&self) -> &Lives {
        &self.lives
    }

    /// What RocksDB has counted since it was opened.
    pub(crate) fn ticker(&self, ticker: Ticker) -> u64 {
        self.options.get_ticker_count(ticker)
    }

    /// A number that RocksDB knows of a column family, as a gauge has it; 0 where it does not know.
    pub(crate) fn property(&self, column: Column, name: &PropName) -> f64 {
        let found = self.db.property_int_value_cf(self.column(column), name);
        found.ok().flatten().unwrap_or(0) as f64
    }

    /// Bytes of the block cache in use, and those of them that cannot go.
    pub(crate) fn cache_bytes(&self) -> (usize, usize) {
        (self.cache.get_usage(), self.cache.get_pinned_usage())
    }

    /// Rewrites a column family, so that all that may be dropped is.
    #[cfg(test)]
    pub(crate) fn compact(&self, column: Column) {
        let mut options = rocksdb::CompactOptions::default();
        options.set_bottommost_level_compaction(rocksdb::BottommostLevelCompaction::Force);
        let everything = (None::<&[u8]>, None::<&[u8]>);
        let column = self.column(column);
        self.db
            .compact_range_cf_opt(column, everything.0, everything.1, &options);
    }
}

/// Puts of one column family, which is looked up once for all of them.
pub(crate) struct Puts<'t> {
    handle: &'t ColumnFamily,
    column: Column,
    key: Vec<u8>,
}

impl Puts<'_> {
    /// Adds one to a batch; `key` is of this column family.
    pub(crate) fn add(&mut self, batch: &mut WriteBatch, key: Key<'_>, value: &[u8]) {
        debug_assert_eq!(key.column(), self.column);
        self.key.clear();
        key.put_bytes(&mut self.key);
        batch.put_cf(self.handle, &self.key, value);
    }
}

fn database_options(sizes: TableOptions) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_db_write_buffer_size(sizes.write_buffers_bytes);
    options.set_max_total_wal_size(2 * sizes.write_buffers_bytes as u64);
    options.set_max_open_files(sizes.open_files_max.into());
    options.set_max_background_jobs(2);
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 << 20);
    options.set_track_and_verify_wals_in_manifest(true);
    options.enable_statistics();
    options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
    options
}

/// RocksDB's own column family, in which nothing lies. After a flush for which there was no space RocksDB goes
/// on when as much is free as the largest write buffer of any family takes, by default 64 MiB.
fn unused_column(sizes: TableOptions) -> ColumnFamilyDescriptor {
    let mut options = Options::default();
    options.set_write_buffer_size(sizes.write_buffers_bytes / 4);
    ColumnFamilyDescriptor::new(DEFAULT_COLUMN_FAMILY_NAME, options)
}

/// The writer adds the states and dedupe keys of a group in order: the search for a key's place goes on
/// from the place before, within what agrees in the first byte.
fn memtable_options(column: Column) -> Options {
    match column {
        Column::State | Column::Dedupe => Options::default()
            .get_options_from_string("memtable_insert_with_hint_prefix_extractor=capped:1")
            .expect("the option is one of RocksDB's"),
        _ => Options::default(),
    }
}

fn column_options(
    column: Column,
    (cache, sizes): (&Cache, TableOptions),
    lives: &Arc<Lives>,
) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    // Whole, the filter and index of a file of a million keys are larger than a shard of the cache takes,
    // and every get would read them from the file.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(METADATA_BLOCK_BYTES);
    table.set_pin_top_level_index_and_filter(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(5);
    let mut options = memtable_options(column);
    options.set_write_buffer_size(sizes.write_buffers_bytes / 4);
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compression_type(DBCompressionType::Lz4);
    if matches!(
        column,
        Column::Dedupe | Column::Labels | Column::PredictionIndex
    ) {
        options.set_memtable_prefix_bloom_ratio(0.05);
        options.set_memtable_whole_key_filtering(true);
    }
    lives.filter(column, &mut options);
    options.set_block_based_table_factory(&table);
    options
}
