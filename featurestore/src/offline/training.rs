//! The join of sealed predictions and labels into training rows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use ahash::RandomState;
use arrow::array::{Array, AsArray, ListArray, RecordBatch};
use arrow::datatypes::{Float32Type, TimestampMillisecondType, UInt8Type, UInt32Type};

use super::manifest::{Manifest, SealedFile};
use super::segments::{Wanted, corrupt, model_folder};
use super::table::Table;
use super::training_set::{RowSink, Rows, SetBuilder, TrainingRow};
use super::{OfflineError, OfflineTables, TrainingQuery, TrainingSet, label_rows, location};
use crate::definition::Definitions;
use crate::labels::StoredLabel;
use crate::predictions::columns::{lists, numbers, optional, texts};
use crate::predictions::{PredictionKey, Role};
use crate::window::Status;

/// The columns of predictions that training needs, the last only of a service that refuses rows.
const COLUMNS: [&str; 8] = [
    "prediction_id",
    "row",
    "request_id",
    "role",
    "at",
    "service",
    "features.list.item",
    "statuses.list.item",
];

pub(super) fn training_rows(
    data_dir: &Path,
    definitions: &Definitions,
    query: &TrainingQuery,
) -> Result<TrainingSet, OfflineError> {
    let Some(place) = location::existing(data_dir)? else {
        return Ok(SetBuilder::default().finish());
    };
    read_again(
        |error| matches!(error, OfflineError::Missing { .. }),
        || {
            let mut set = SetBuilder::default();
            let tables = OfflineTables::read_only(&place)?;
            served_rows(&tables, definitions, query, &mut set)?;
            Ok(set.finish())
        },
    )
}

/// Reads by the manifests as they are, and anew where a file was missing: files go only after their
/// manifest has forgotten them, so the manifest was old.
pub(crate) fn read_again<T, E>(
    is_missing: impl Fn(&E) -> bool,
    read: impl Fn() -> Result<T, E>,
) -> Result<T, E> {
    for _ in 1..READS_MAX {
        match read() {
            Err(error) if is_missing(&error) => {}
            read => return read,
        }
    }
    read()
}

/// How often the manifests are read before a missing file is an error.
const READS_MAX: usize = 3;

/// Gives `sink` the rows that these tables name.
pub(crate) fn served_rows(
    tables: &OfflineTables,
    definitions: &Definitions,
    query: &TrainingQuery,
    sink: &mut dyn RowSink,
) -> Result<(), OfflineError> {
    let service = definitions.service(&query.service);
    let refusing = service.map_or(&[][..], |service| &service.refusing);
    let predictions = &*tables.predictions;
    let manifest = predictions.manifest()?;
    let stretches = Stretch::of(&manifest, query);
    let rows_max = stretches.iter().map(|stretch| stretch.rows).sum();
    let mut names: Option<Vec<String>> = None;
    for stretch in &stretches {
        let answered = read_stretch(predictions, stretch, (query, refusing))?;
        let keys = answered.iter().flat_map(Answered::keys);
        let labels = labels_of(&tables.labels, query, stretch, keys)?;
        let mut parts = Vec::new();
        for mut part in answered {
            match (part.names.take(), &names) {
                (None, _) => continue,
                (Some((found, path)), Some(names)) if found != *names => {
                    return Err(OfflineError::FeaturesDiffer { path });
                }
                (Some(_), Some(_)) => {}
                (Some((found, _)), None) => {
                    sink.begin(found.clone(), rows_max)?;
                    names = Some(found);
                }
            }
            parts.push(part.labelled(&labels));
        }
        if !parts.is_empty() {
            sink.take(Rows::in_order(parts))?;
        }
    }
    Ok(())
}

/// Files of predictions that are read together: every row in them is earlier than all of the next
/// stretch, so training rows come in order and memory holds one stretch.
pub(crate) struct Stretch<'m> {
    pub(crate) files: Vec<&'m SealedFile>,
    /// Rows in the files.
    pub(crate) rows: usize,
    /// The earliest of their times.
    pub(crate) from_ms: i64,
    to_ms: i64,
}

/// A stretch is closed where it has so many rows: labels that arrive after it are read once for each, and
/// memory holds it. Tests have many stretches.
const STRETCH_ROWS: usize = if cfg!(test) { 8 } else { 1 << 16 };

impl<'m> Stretch<'m> {
    /// All that rows of `query` may lie in, by time.
    pub(crate) fn of(manifest: &'m Manifest, query: &TrainingQuery) -> Vec<Self> {
        let folder = format!("{}/", model_folder(&query.model));
        let wanted = |file: &&SealedFile| {
            file.path.starts_with(&folder)
                && file.to_ms >= query.from_ms
                && file.from_ms < query.to_ms
        };
        let mut files: Vec<_> = manifest.files.iter().filter(wanted).collect();
        files.sort_by_key(|file| file.from_ms);
        let mut stretches: Vec<Self> = Vec::new();
        for file in files {
            let rows = usize::try_from(file.rows).unwrap_or(usize::MAX);
            match stretches.last_mut() {
                Some(last) if last.rows < STRETCH_ROWS || file.from_ms <= last.to_ms => {
                    last.rows = last.rows.saturating_add(rows);
                    last.to_ms = last.to_ms.max(file.to_ms);
                    last.files.push(file);
                }
                _ => stretches.push(Self {
                    files: vec![file],
                    rows,
                    from_ms: file.from_ms,
                    to_ms: file.to_ms,
                }),
            }
        }
        stretches
    }
}

pub(crate) type Labels = HashMap<PredictionKey, Option<StoredLabel>, RandomState>;

/// The label that stood at `known_by_ms` for each of these predictions of a stretch, where there was one.
/// A label does not arrive before its prediction is made, so earlier files are not read.
pub(crate) fn labels_of(
    table: &Table,
    query: &TrainingQuery,
    stretch: &Stretch<'_>,
    predictions: impl Iterator<Item = PredictionKey>,
) -> Result<Labels, OfflineError> {
    let mut labels: Labels = predictions.map(|prediction| (prediction, None)).collect();
    for file in &table.manifest()?.files {
        if file.to_ms < stretch.from_ms || file.from_ms > query.known_by_ms {
            continue;
        }
        let path = table.shown(&file.path);
        for batch in table.segment(file, Wanted::Named(&label_rows::JOINED))? {
            let mut found = |prediction, label: StoredLabel| {
                if label.arrived_ms <= query.known_by_ms
                    && let Some(held) = labels.get_mut(&prediction)
                    && held.is_none_or(|held| label.supersedes(&held))
                {
                    *held = Some(label);
                }
            };
            let read = label_rows::read(&batch?, &mut found);
            read.map_err(|problem| corrupt(&path, problem))?;
        }
    }
    Ok(labels)
}

/// What was answered in the files of a stretch, in parts of no order.
fn read_stretch(
    table: &Table,
    stretch: &Stretch<'_>,
    asked: (&TrainingQuery, &[usize]),
) -> Result<Vec<Answered>, OfflineError> {
    let stripes = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
    std::thread::scope(|scope| {
        let share = |stripe: usize| stretch.files.iter().copied().skip(stripe).step_by(stripes);
        let threads: Vec<_> = (0..stripes)
            .map(|stripe| scope.spawn(move || read_files((table, share(stripe)), asked)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().expect("the join does not panic")
        };
        threads.into_iter().map(join).collect()
    })
}

/// Rows of some files, as they were answered.
#[derive(Default)]
struct Answered {
    /// Feature names and the file that they come from.
    names: Option<(Vec<String>, PathBuf)>,
    values: Vec<f32>,
    rows: Vec<AnsweredRow>,
    /// Those that their service refuses, with their times.
    refused: Vec<(i64, PredictionKey)>,
}

struct AnsweredRow {
    predicted_ms: i64,
    request_id: String,
    prediction: PredictionKey,
}

fn read_files<'a>(
    (table, files): (&Table, impl Iterator<Item = &'a SealedFile>),
    asked: (&TrainingQuery, &[usize]),
) -> Result<Answered, OfflineError> {
    let mut answered = Answered::default();
    let columns = match asked.1 {
        [] => &COLUMNS[..COLUMNS.len() - 1],
        _ => &COLUMNS,
    };
    for file in files {
        let path = table.shown(&file.path);
        let segment = table.segment(file, Wanted::Named(columns))?;
        let names = segment.features()?;
        let before = answered.rows.len() + answered.refused.len();
        for batch in segment {
            let taken = answered.take(&batch?, names.len(), asked);
            taken.map_err(|problem| corrupt(&path, problem))?;
        }
        if answered.rows.len() + answered.refused.len() > before {
            answered.agree(names, path)?;
        }
    }
    Ok(answered)
}

impl Answered {
    fn keys(&self) -> impl Iterator<Item = PredictionKey> {
        let rows = self.rows.iter().map(|row| row.prediction);
        rows.chain(self.refused.iter().map(|refused| refused.1))
    }

    /// Those that have a label.
    fn labelled(self, labels: &Labels) -> Rows {
        let label_of = |prediction: PredictionKey| labels.get(&prediction).copied().flatten();
        let width = self.values.len() / self.rows.len().max(1);
        let mut rows = Rows::new(width);
        for (index, row) in self.rows.into_iter().enumerate() {
            let Some(label) = label_of(row.prediction) else {
                continue;
            };
            rows.push(
                &self.values[index * width..][..width],
                TrainingRow {
                    predicted_ms: row.predicted_ms,
                    request_id: row.request_id,
                    prediction: row.prediction,
                    label: label.value,
                    known_ms: label.arrived_ms,
                },
            );
        }
        let refused = self.refused.into_iter();
        rows.refused = refused
            .filter(|(_, prediction)| label_of(*prediction).is_some())
            .collect();
        rows
    }

    fn take(
        &mut self,
        batch: &RecordBatch,
        width: usize,
        (query, refusing): (&TrainingQuery, &[usize]),
    ) -> Result<(), String> {
        let (ids, roles) = (texts(batch, "prediction_id")?, texts(batch, "role")?);
        let (request_ids, services) = (texts(batch, "request_id")?, texts(batch, "service")?);
        let numbers_of = numbers::<UInt32Type>(batch, "row")?;
        let at = numbers::<TimestampMillisecondType>(batch, "at")?;
        let features = lists(batch, "features")?;
        let values = features.values().as_primitive_opt::<Float32Type>();
        let values = values.ok_or("features are not float32")?.values();
        let statuses = match refusing {
            [] => None,
            _ => Some(Statuses::of(batch)?),
        };
        let (from_ms, to_ms) = (query.from_ms, query.to_ms);
        for index in 0..batch.num_rows() {
            let predicted_ms = at.value(index);
            if !(from_ms..to_ms).contains(&predicted_ms)
                || features.is_null(index)
                || optional(services, index) != Some(&query.service)
                || roles.value(index) == Role::Shadow.as_str()
            {
                continue;
            }
            let id = ids.value(index);
            let prediction = PredictionKey {
                id: uuid::Uuid::try_parse(id).map_err(|_| format!("prediction id `{id}`"))?,
                row: numbers_of.value(index),
            };
            if let Some(statuses) = &statuses
                && statuses.refuse(index, refusing)
            {
                self.refused.push((predicted_ms, prediction));
                continue;
            }
            let ends = features.value_offsets();
            let row = &values[ends[index] as usize..ends[index + 1] as usize];
            if row.len() != width {
                return Err(format!("{} features in a row, {width} names", row.len()));
            }
            self.values.extend_from_slice(row);
            self.rows.push(AnsweredRow {
                predicted_ms,
                request_id: optional(request_ids, index).unwrap_or_default().to_owned(),
                prediction,
            });
        }
        Ok(())
    }

    fn agree(&mut self, names: Vec<String>, path: PathBuf) -> Result<(), OfflineError> {
        match &self.names {
            Some((held, _)) if *held != names => Err(OfflineError::FeaturesDiffer { path }),
            Some(_) => Ok(()),
            None => {
                self.names = Some((names, path));
                Ok(())
            }
        }
    }
}

/// How well the features of a batch are known.
struct Statuses<'a> {
    lists: &'a ListArray,
    codes: &'a [u8],
}

impl<'a> Statuses<'a> {
    fn of(batch: &'a RecordBatch) -> Result<Self, String> {
        let lists = lists(batch, "statuses")?;
        let codes = lists.values().as_primitive_opt::<UInt8Type>();
        let codes = codes.ok_or("statuses are not uint8")?.values();
        Ok(Self { lists, codes })
    }

    /// Whether one of these features is not present in a row.
    fn refuse(&self, row: usize, refusing: &[usize]) -> bool {
        let first = self.lists.value_offsets()[row] as usize;
        let present = |&feature: &usize| {
            feature < self.lists.value_length(row) as usize
                && self.codes[first + feature] == Status::Present.code()
        };
        !refusing.iter().all(present)
    }
}
