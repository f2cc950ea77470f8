//! Opening a data folder: lock, format, high-water mark, spool left behind, views new or changed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use rocksdb::WriteBatch;

use super::bulk;
use super::keys::{Column, FORMAT, Key};
use super::lives::Lives;
use super::lock::FolderLock;
use super::mark::{Acked, Mark};
use super::mend::{self, Mending, SEGMENTS_SKIPPED};
use super::reserve::Reserve;
use super::shared::Opened;
use super::tables::Tables;
use super::{OpenError, ReadError, SealError, StoreOptions};
use crate::applied::{self, ApplyError};
use crate::commit::states::States;
use crate::commit::{Counters, WriterStart};
use crate::definition::{Definitions, View};
use crate::log::{EventLog, Schemas};
use crate::metrics::StoreMetrics;
use crate::offline::OfflineError;
use crate::offline::location::settle;
use crate::offline::reach::{Reach, Reaches};
use crate::offline::segments::make_folder;
use crate::offline::table::Table;
use crate::predictions::PredictionKey;
use crate::predictions::seal::{closed_files, open_tables, seal_file};

/// Opens the folder; what the store shares, what the writer goes on from, and the predictions whose
/// pending labels can be resolved at once.
pub(crate) fn open(
    data_dir: &Path,
    definitions: Arc<Definitions>,
    options: &StoreOptions,
) -> Result<(Opened, WriterStart, Vec<PredictionKey>), OpenError> {
    let (online, spool) = (data_dir.join("online"), data_dir.join("spool"));
    for folder in [data_dir, &online, &spool] {
        make_folder(folder).map_err(io_at(folder))?;
    }
    let lock = FolderLock::take(data_dir)?;
    open_locked((data_dir, lock), definitions, options).inspect_err(|error| {
        // What was found now is looked for by the next start.
        if let OpenError::Damaged(problem) = error
            && let Err(error) = mend::note_first(data_dir, problem)
        {
            tracing::warn!(%error, "no note of the damage was left");
        }
    })
}

fn open_locked(
    (data_dir, lock): (&Path, FolderLock),
    definitions: Arc<Definitions>,
    options: &StoreOptions,
) -> Result<(Opened, WriterStart, Vec<PredictionKey>), OpenError> {
    let spool = data_dir.join("spool");
    let mut reserve = Reserve::find(data_dir, options.tables.write_buffers_bytes);
    if reserve.is_low() {
        reserve.release();
    }
    let (mut tables, mending) = mend::open(data_dir, options.tables)?;
    check_format(&tables)?;
    bulk::redo(&tables, data_dir).map_err(read)?;
    applied::apply(&tables, &definitions).map_err(refused)?;
    let metrics = StoreMetrics::resolve(&definitions);
    let settled = settle(data_dir, options.offline.as_ref(), metrics.offline());
    let settled = settled.map_err(SealError::from)?;
    let offline = open_tables(&settled, &tables, &spool)?;
    if let Some(mending) = &mending {
        mending.make_logs_anew(&mut tables, &offline, &definitions)?;
    }
    let (last_seq, counters, mark) = check_logs(data_dir, &tables)?;
    let reaches = reaches(&tables, (last_seq, counters.label_seq), mending.as_ref())?;
    offline.claim(&reaches).map_err(SealError::from)?;
    seal_spool(&offline.predictions, &spool, &metrics).or_else(|error| match error {
        // It is sealed later.
        SealError::Offline(OfflineError::Away { .. }) if settled.known => Ok(()),
        error => Err(error),
    })?;
    let schemas = Schemas::load(&tables, &definitions).map_err(read)?;
    Lives::load(&tables, &definitions).map_err(read)?;
    let events = EventLog {
        tables: Some(&tables),
        schemas: &schemas,
        sealed: &offline.events,
    };
    if let Some(mending) = &mending {
        mending.fill(&tables, events).map_err(read)?;
    }
    let views = (&*definitions, options.cached_states_max);
    renew_views(&tables, (events, last_seq), views)?;
    if let Some(mending) = mending {
        mending.end(&tables, data_dir)?;
    }
    let pending = read_pending(&tables).map_err(read)?;
    let waiting: Vec<_> = pending.keys().copied().collect();
    let resolved = recorded(&tables, &waiting).map_err(read)?;
    reserve.hold();
    metrics.labels_pending.set(pending.len() as f64);
    metrics.stopped.set(0.0);
    metrics.full.set(0.0);
    metrics.damaged.set(0.0);
    let start = WriterStart {
        last_seq,
        counters,
        pending_order: pending
            .iter()
            .map(|(key, arrived)| (*arrived, *key))
            .collect(),
        mark,
        reserve,
    };
    let opened = Opened {
        data_dir: data_dir.to_owned(),
        lock,
        tables,
        offline,
        definitions,
        schemas,
        options: options.clone(),
        metrics,
        pending,
        last_seq,
        counters,
    };
    Ok((opened, start, resolved))
}

/// Where the logs end, held against the counters and the high-water mark.
fn check_logs(data_dir: &Path, tables: &Tables) -> Result<(u64, Counters, Mark), OpenError> {
    let (last_seq, counters) = read_counters(tables).map_err(read)?;
    let path = data_dir.join("acked");
    let (mark, acked) = Mark::open(&path).map_err(io_at(&path))?;
    check_mark(acked, last_seq, counters.label_seq)?;
    Ok((last_seq, counters, mark))
}

/// Seals what the last process left behind; nothing where the place has not answered before.
fn seal_spool(
    predictions: &Arc<Table>,
    spool: &Path,
    metrics: &StoreMetrics,
) -> Result<(), SealError> {
    if predictions.place().problem().is_some() {
        return Ok(());
    }
    let mut files = closed_files(spool)?.into_iter();
    files.try_for_each(|file| seal_file(predictions, &file, metrics).map(drop))
}

/// What sealed tables are held against.
fn reaches(
    tables: &Tables,
    (last_seq, label_seq): (u64, u64),
    mending: Option<&Mending>,
) -> Result<Reaches, OpenError> {
    let number = |key| tables.get_number(key).map_err(database);
    let events = Reach {
        pruned: number(Key::EventsPruned)?.unwrap_or(0),
        last: last_seq,
    };
    let skipped = mending.map_or(0, |_| SEGMENTS_SKIPPED);
    Ok(Reaches {
        events,
        predictions: Reach::up_to(number(Key::NextSegment)?.unwrap_or(0) + skipped),
        labels: Reach::up_to(label_seq),
    })
}

fn check_format(tables: &Tables) -> Result<(), OpenError> {
    let found = tables.get(Key::Format).map_err(database)?;
    let Some(found) = found else {
        if tables.last_key(Column::Events).map_err(database)?.is_some() {
            return Err(OpenError::Damaged(
                "its format number is missing".to_owned(),
            ));
        }
        return write_format(tables);
    };
    let found = found.as_ref().try_into().map(u32::from_le_bytes);
    match found.map_err(|_| OpenError::Damaged("format number".to_owned()))? {
        FORMAT => Ok(()),
        1 => write_format(tables),
        found => Err(OpenError::Newer {
            found,
            known: FORMAT,
        }),
    }
}

fn write_format(tables: &Tables) -> Result<(), OpenError> {
    let mut batch = WriteBatch::default();
    tables.put(&mut batch, Key::Format, &FORMAT.to_le_bytes());
    tables.write_durably(batch).map_err(database)
}

/// The last sequence number and the counters, held against the ends of both logs.
pub(crate) fn read_counters(tables: &Tables) -> Result<(u64, Counters), ReadError> {
    let counters = match tables.get(Key::Counters).map_err(ReadError::database)? {
        Some(bytes) => Counters::decode(&bytes)
            .ok_or_else(|| ReadError::Damaged("counters do not decode".to_owned()))?,
        None => Counters::default(),
    };
    // Every event that was taken has a number.
    let last_seq = counters.events;
    let pruned = tables.get_number(Key::EventsPruned);
    let pruned = pruned.map_err(ReadError::database)?.unwrap_or(0);
    for (column, last, before) in [
        (Column::Events, last_seq, pruned),
        (Column::LabelLog, counters.label_seq, 0),
    ] {
        let found = tables.last_key(column).map_err(ReadError::database)?;
        let found = found.and_then(|key| Key::number(&key)).unwrap_or(before);
        if found != last {
            return Err(ReadError::Damaged(format!(
                "`{}` ends at {found}, the counters say {last}",
                column.name()
            )));
        }
    }
    let stored = tables.get_number(Key::StatesSeq);
    let stored = stored.map_err(ReadError::database)?.unwrap_or(0);
    if stored > last_seq {
        return Err(ReadError::Damaged(format!(
            "states hold {stored} events, the log {last_seq}"
        )));
    }
    Ok((last_seq, counters))
}

fn check_mark(acked: Option<Acked>, last_seq: u64, label_seq: u64) -> Result<(), OpenError> {
    let Some(acked) = acked else {
        if (last_seq, label_seq) != (0, 0) {
            tracing::warn!("no high-water mark can be read: a cut log would not have been seen");
        }
        return Ok(());
    };
    if acked.seq <= last_seq && acked.label_seq <= label_seq {
        return Ok(());
    }
    Err(OpenError::Cut {
        found: last_seq,
        acked: acked.seq,
        found_labels: label_seq,
        acked_labels: acked.label_seq,
    })
}

/// The labels that wait, with their arrival.
pub(crate) fn read_pending(tables: &Tables) -> Result<HashMap<PredictionKey, i64>, ReadError> {
    let mut pending = HashMap::new();
    for pair in tables.scan(Column::PendingLabels, &[]) {
        let (key, value) = pair.map_err(ReadError::database)?;
        let arrived = value.as_ref().try_into().map(i64::from_le_bytes).ok();
        let (prediction, arrived_ms) = Key::prediction(&key)
            .zip(arrived)
            .ok_or_else(|| ReadError::Damaged("a pending label".to_owned()))?;
        pending.insert(prediction, arrived_ms);
    }
    Ok(pending)
}

/// Those of the predictions that are in the index by now.
pub(crate) fn recorded(
    tables: &Tables,
    predictions: &[PredictionKey],
) -> Result<Vec<PredictionKey>, ReadError> {
    let mut recorded = Vec::new();
    for &prediction in predictions {
        let found = tables.get(Key::Prediction(prediction));
        if found.map_err(ReadError::database)?.is_some() {
            recorded.push(prediction);
        }
    }
    Ok(recorded)
}

/// Events between two writes of a rebuild.
const REBUILD_EVENTS: u64 = 65_536;

/// Drops the states of views that are no longer defined, brings those of the others up to the end of the log,
/// and folds the whole log into views that the database does not know. A view counts as known when its rebuild
/// is complete.
fn renew_views(
    tables: &Tables,
    (log, last_seq): (EventLog<'_>, u64),
    (definitions, states_max): (&Definitions, usize),
) -> Result<(), OpenError> {
    let mut known = Vec::new();
    for pair in tables.scan(Column::Meta, &Key::View(0).to_bytes()) {
        let (key, _) = pair.map_err(database)?;
        let Some(id) = Key::view_id(&key) else { break };
        known.push(id);
    }
    let mut batch = WriteBatch::default();
    let defined = |id: u64| definitions.views.iter().any(|view| view.id == id);
    for id in known.iter().copied().filter(|id| !defined(*id)) {
        drop_states(tables, &mut batch, id);
        tables.delete(&mut batch, Key::View(id));
    }
    let fresh: Vec<Arc<View>> = definitions
        .views
        .iter()
        .filter(|view| !known.contains(&view.id))
        .cloned()
        .collect();
    // An earlier rebuild may have been cut off.
    fresh
        .iter()
        .for_each(|view| drop_states(tables, &mut batch, view.id));
    tables.write_durably(batch).map_err(database)?;
    let mut kept = definitions.views.clone();
    kept.retain(|view| known.contains(&view.id));
    let caught_up = States::new(kept, states_max).catch_up(tables, log, last_seq);
    caught_up.map_err(read)?;
    if fresh.is_empty() {
        return Ok(());
    }
    fill_views(tables, (log, last_seq), (&fresh, states_max))
}

/// Folds the whole log into views that have no states yet.
fn fill_views(
    tables: &Tables,
    (log, last_seq): (EventLog<'_>, u64),
    (fresh, states_max): (&[Arc<View>], usize),
) -> Result<(), OpenError> {
    let mut states = States::new(fresh.to_vec(), states_max);
    let mut events = 0;
    for logged in log.from(0).map_err(read)? {
        let logged = logged.map_err(read)?;
        states
            .fold(tables, &logged.event, logged.seq, logged.arrived_ms)
            .map_err(read)?;
        events += 1;
        if events % REBUILD_EVENTS == 0 {
            let mut batch = WriteBatch::default();
            states.store(tables, &mut batch, last_seq);
            tables.write_lazily(batch).map_err(database)?;
            states.show(|_, _| {});
            states.stored();
        }
    }
    if events > 0 {
        let names: Vec<_> = fresh.iter().map(|view| &*view.name).collect();
        tracing::info!(views = ?names, events, "views rebuilt from the event log");
    }
    let mut batch = WriteBatch::default();
    states.store(tables, &mut batch, last_seq);
    fresh
        .iter()
        .for_each(|view| tables.put(&mut batch, Key::View(view.id), &[]));
    tables.write_durably(batch).map_err(database)
}

fn drop_states(tables: &Tables, batch: &mut WriteBatch, view: u64) {
    let from = view.to_be_bytes();
    // The last sequence number lies behind the last possible view.
    let to = view.saturating_add(1).to_be_bytes();
    tables.delete_range(batch, Column::State, [&from, &to]);
}

fn io_at(path: &Path) -> impl Fn(std::io::Error) -> OpenError {
    let path = path.to_owned();
    move |source| OpenError::Io {
        path: path.clone(),
        source,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn database(error: rocksdb::Error) -> OpenError {
    match Tables::is_damage(&error) {
        true => OpenError::Damaged(error.to_string()),
        false => OpenError::Database(error.to_string()),
    }
}

fn refused(error: ApplyError) -> OpenError {
    match error {
        ApplyError::Changed(changed) => OpenError::Changed(ApplyError::Changed(changed)),
        ApplyError::Folder(error) => read(error),
    }
}

pub(crate) fn read(error: ReadError) -> OpenError {
    match error {
        ReadError::Database(problem) | ReadError::NoSpace(problem) => OpenError::Database(problem),
        ReadError::Damaged(problem) => OpenError::Damaged(problem),
        error @ ReadError::Sealed(_) => OpenError::Damaged(error.to_string()),
    }
}
