//! Upkeep of the offline store: small files of a day become one, what is past its retention leaves the
//! table, and files that no manifest has named for the grace period are removed.
//!
//! Rows are copied in their order and never changed. A file that leaves a table stays in its manifest
//! as retired, so that what an old dataset was made of can still be told. Holds one file of each side
//! in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::OfflineError;
use super::days::{About, DayFiles, FILE_BYTES_MAX};
use super::manifest::{Manifest, Retirement, SealedFile};
use super::segments::{Wanted, corrupt, day_of};
use super::table::{Table, TableKind};

/// How long sealed files and what they were sealed from are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetentionOptions {
    /// How long the event log keeps events that are sealed, in milliseconds since their arrival; `None`
    /// for good.
    pub event_log_ms: Option<i64>,
    /// How long predictions are kept, in milliseconds; `None` for good.
    pub predictions_ms: Option<i64>,
    /// How long labels are kept, in milliseconds since their arrival; `None` for good.
    pub labels_ms: Option<i64>,
    /// How long a file stays after its table has forgotten it, in milliseconds: a reader that has read
    /// the manifest before can finish within that time.
    pub grace_ms: i64,
    /// Small files of a day that is not over before they are merged. Those of a day that is over are
    /// merged where there are two.
    pub small_files_max: usize,
}

impl Default for RetentionOptions {
    fn default() -> Self {
        Self {
            event_log_ms: None,
            predictions_ms: None,
            labels_ms: None,
            grace_ms: 3_600_000,
            small_files_max: 12,
        }
    }
}

/// What one upkeep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Upkept {
    /// Small files that were merged.
    pub merged_files: u64,
    /// Files that came of it.
    pub merged_into: u64,
    /// Files past their retention.
    pub expired_files: u64,
    /// Rows in them.
    pub expired_rows: u64,
    /// Files removed from disk.
    pub removed_files: u64,
    /// Events dropped from the log, all of them sealed.
    pub pruned_events: u64,
    /// View states of which what no read can see any more was let go.
    pub expired_states: u64,
}

/// Looks after one table; stops where it is when the process ends.
pub(crate) fn keep_up(
    table: &Arc<Table>,
    options: &RetentionOptions,
    now_ms: i64,
    done: &mut Upkept,
) -> Result<(), OfflineError> {
    let keep_ms = match table.kind() {
        TableKind::Events => None,
        TableKind::Predictions => options.predictions_ms,
        TableKind::Labels => options.labels_ms,
    };
    if let Some(keep_ms) = keep_ms {
        expire(table, day_of(now_ms.saturating_sub(keep_ms)), done)?;
    }
    merge_small_files(table, options.small_files_max, done)?;
    remove_retired(table, now_ms, options.grace_ms, done)
}

/// Takes the files of days before `first_day` out of the table.
fn expire(table: &Table, first_day: i64, done: &mut Upkept) -> Result<(), OfflineError> {
    let old = |file: &SealedFile| file.day().is_some_and(|day| day < first_day);
    for file in table.manifest()?.files.iter().filter(|file| old(file)) {
        done.expired_files += 1;
        done.expired_rows += file.rows;
    }
    table.commit(|manifest| manifest.retire(Retirement::Expired, old))
}

fn merge_small_files(
    table: &Arc<Table>,
    small_files_max: usize,
    done: &mut Upkept,
) -> Result<(), OfflineError> {
    let manifest = table.manifest()?;
    let groups = small_files(&manifest, small_files_max);
    drop(manifest);
    for group in groups {
        if table.place().is_ending() {
            break;
        }
        let (merged, into) = merge(table, &group)?;
        done.merged_files += merged;
        done.merged_into += into;
    }
    Ok(())
}

/// Groups of small files that are worth merging, each of one folder and schema, in order of sealing.
/// Backfills stay as they are: they are replaced as a whole.
fn small_files(manifest: &Manifest, small_files_max: usize) -> Vec<Vec<SealedFile>> {
    let mut groups: BTreeMap<(String, String), Vec<SealedFile>> = BTreeMap::new();
    let newest = manifest.files.iter().filter_map(SealedFile::day).max();
    for file in &manifest.files {
        let small = file.bytes < (FILE_BYTES_MAX / 2) as u64;
        if small && !file.origin.starts_with("backfill-") {
            let group = (file.partition().to_owned(), file.schema.to_string());
            groups.entry(group).or_default().push(file.clone());
        }
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.retain(|group| match group[0].day() < newest {
        true => group.len() > 1,
        false => group.len() >= small_files_max.max(2),
    });
    for group in &mut groups {
        group.sort_by_key(|file| file.first_seq);
    }
    groups
}

/// Merges files as far as they have the same schema; how many there were and are.
fn merge(table: &Arc<Table>, group: &[SealedFile]) -> Result<(u64, u64), OfflineError> {
    let Some(first) = group.first() else {
        return Ok((0, 0));
    };
    let schema = Arc::clone(table.segment(first, Wanted::All)?.schema());
    let folder = first.partition().rsplit_once('/').map_or("", |(it, _)| it);
    let revision = table.manifest()?.revision + 1;
    let about = About {
        folder: folder.to_owned(),
        name: "merged".to_owned(),
        schema: first.schema.clone(),
        origin: format!("merge of revision {revision}"),
    };
    let mut merged = DayFiles::new(table, about, Arc::clone(&schema));
    let mut gone: Vec<&SealedFile> = Vec::new();
    for file in group {
        let segment = table.segment(file, Wanted::All)?;
        if segment.schema() != &schema {
            break;
        }
        for rows in segment {
            merged.write(&rows?)?;
        }
        gone.push(file);
    }
    if gone.len() < 2 {
        return Ok((0, 0));
    }
    let files = merged.finish()?;
    let rows = |files: &mut dyn Iterator<Item = &SealedFile>| files.map(|it| it.rows).sum::<u64>();
    if rows(&mut gone.iter().copied()) != rows(&mut files.iter()) {
        let problem = "merging changed the number of rows".to_owned();
        return Err(corrupt(&table.shown(first.partition()), problem));
    }
    let counts = (gone.len() as u64, files.len() as u64);
    table.commit(|manifest| {
        manifest.retire(Retirement::Compacted, |file| {
            gone.iter().any(|gone| gone.path == file.path)
        });
        manifest.files.extend(files);
    })?;
    Ok(counts)
}

/// Notes when files were first seen retired and removes those that have been for the grace period.
fn remove_retired(
    table: &Table,
    now_ms: i64,
    grace_ms: i64,
    done: &mut Upkept,
) -> Result<(), OfflineError> {
    let overdue = |at_ms: Option<i64>| at_ms.is_some_and(|at_ms| now_ms - at_ms >= grace_ms);
    let mut removed = Vec::new();
    if !table.has_late_readers() {
        for retired in &table.manifest()?.retired {
            if !retired.removed && overdue(retired.retired_ms) {
                table.remove_file(&retired.file)?;
                removed.push(retired.file.path.clone());
            }
        }
    }
    done.removed_files += removed.len() as u64;
    table.commit(|manifest| {
        for retired in &mut manifest.retired {
            retired.retired_ms = retired.retired_ms.or(Some(now_ms));
            retired.removed |= removed.contains(&retired.file.path);
        }
    })
}
