//! What the writer knows of keys that are in the database, so that it need not ask for those that are not.
//!
//! A filter holds every key of its kind, at least: of a source's events, or of the entities that have states.
//! It begins where the database has none, and ends when something else writes keys of the kind.

use std::collections::HashMap;
use std::sync::Arc;

use parquet::bloom_filter::Sbbf;

use super::Prepared;
use crate::definition::{Source, View};
use crate::online::ReadError;
use crate::online::keys::Column;
use crate::online::tables::Tables;

/// What the writer knows of the dedupe keys of the source that is being imported, and of its states.
#[derive(Default)]
pub(in crate::commit) struct Seen {
    /// Sources whose every key in the database is in its filter. Small: a source is dropped when other
    /// events of any source are written.
    filters: HashMap<Box<str>, Filter>,
    /// Views whose states all have their keys in the filter, by the first view of those that share keys.
    pub(super) states: HashMap<u64, Filter>,
}

/// Keys that may have been seen.
pub(super) struct Filter {
    pub(super) keys: Sbbf,
    count: usize,
}

impl Filter {
    fn empty() -> Self {
        // 1.3 bytes a key: about one in a hundred is looked up in vain at the most keys.
        Self {
            keys: Sbbf::new_with_num_of_bytes(FILTER_KEYS_MAX * 5 / 4),
            count: 0,
        }
    }

    fn add(&mut self, key: &[u8]) {
        self.keys.insert(key);
        self.count += 1;
    }
}

/// Under which keys the database has states of the views of a `Fold`.
#[derive(Default)]
pub(super) enum StoredKeys {
    None,
    /// Under none that is not in the filter.
    Among(Filter),
    #[default]
    Unknown,
}

/// Keys of one group for which a filter is made: fewer come again in every group.
const NEW_KEYS_MIN: usize = 8192;

impl StoredKeys {
    /// What is known when the states under these keys are stored, too.
    pub(super) fn and<'k>(self, keys: impl ExactSizeIterator<Item = &'k [u8]>) -> Self {
        let mut filter = match self {
            Self::Among(filter) => filter,
            Self::None if keys.len() >= NEW_KEYS_MIN => Filter::empty(),
            _ => return Self::Unknown,
        };
        for key in keys {
            if !filter.keys.check(key) {
                filter.add(key);
            }
        }
        match filter.count <= FILTER_KEYS_MAX {
            true => Self::Among(filter),
            false => Self::Unknown,
        }
    }
}

/// Keys that a filter takes; those of more events are all looked up.
const FILTER_KEYS_MAX: usize = 1 << 24;
/// Keys of a lookup.
const LOOKUP_KEYS: usize = 4096;

impl Seen {
    /// Events were written past the filters.
    pub(in crate::commit) fn forget(&mut self) {
        self.filters.clear();
        self.states.clear();
    }

    /// Which of the events are known, in the database or earlier in the group. Remembers the others.
    pub(super) fn known(
        &mut self,
        tables: &Tables,
        bulk: &Prepared,
    ) -> Result<Vec<bool>, ReadError> {
        self.begin(tables, &bulk.source)?;
        let mut known = vec![false; bulk.len()];
        let mut asked = Vec::new();
        let mut before: Option<u32> = None;
        let mut filter = self.filters.get_mut(&bulk.source.name);
        for &index in &bulk.by_key {
            let key = bulk.key(index);
            if before.is_some_and(|before| bulk.key(before) == key) {
                known[index as usize] = true;
                continue;
            }
            before = Some(index);
            match &mut filter {
                Some(filter) if !filter.keys.check(key) => filter.add(key),
                _ => asked.push(index),
            }
        }
        for asked in asked.chunks(LOOKUP_KEYS) {
            let keys = asked.iter().map(|&index| bulk.key(index));
            let found = tables.get_many(Column::Dedupe, keys);
            let found = found.map_err(ReadError::database)?;
            for (&index, found) in asked.iter().zip(found) {
                known[index as usize] = found.is_some();
            }
        }
        if filter.is_some_and(|filter| filter.count > FILTER_KEYS_MAX) {
            self.filters.remove(&bulk.source.name);
        }
        Ok(known)
    }

    /// Makes the filter of a source that has no event in the database.
    fn begin(&mut self, tables: &Tables, source: &Source) -> Result<(), ReadError> {
        if self.filters.contains_key(&source.name) {
            return Ok(());
        }
        let mut prefix = Vec::new();
        source.put_dedupe_prefix(&mut prefix);
        let first = tables.scan(Column::Dedupe, &prefix).next().transpose();
        let first = first.map_err(ReadError::database)?;
        if first.is_some_and(|(key, _)| key.starts_with(&prefix)) {
            return Ok(());
        }
        self.filters.insert(source.name.clone(), Filter::empty());
        Ok(())
    }

    /// Under which keys there are states of views that share them. A lookup for each view of each new
    /// entity would be half of what an import costs.
    pub(super) fn stored(
        &mut self,
        tables: &Tables,
        views: &[Arc<View>],
    ) -> Result<StoredKeys, ReadError> {
        let held = views.first().and_then(|view| self.states.remove(&view.id));
        if let Some(filter) = held {
            return Ok(StoredKeys::Among(filter));
        }
        for view in views {
            let prefix = view.id.to_be_bytes();
            let first = tables.scan(Column::State, &prefix).next().transpose();
            let first = first.map_err(ReadError::database)?;
            if first.is_some_and(|(key, _)| key.starts_with(&prefix)) {
                return Ok(StoredKeys::Unknown);
            }
        }
        Ok(StoredKeys::None)
    }
}
