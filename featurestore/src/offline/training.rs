//! The join of sealed predictions and labels into training rows.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use ahash::RandomState;
use arrow::array::{Array, AsArray, ListArray, RecordBatch};
use arrow::datatypes::{Float32Type, TimestampMillisecondType, UInt8Type, UInt32Type};
use sha2::{Digest, Sha256};

use super::manifest::SealedFile;
use super::segments::{Wanted, corrupt, model_folder};
use super::table::Table;
use super::{OfflineError, OfflineTables, TrainingQuery, TrainingSet, label_rows, location};
use crate::definition::Definitions;
use crate::labels::StoredLabel;
use crate::predictions::columns::{lists, numbers, optional, texts};
use crate::predictions::{PredictionKey, Role};
use crate::service::Service;
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
        return assemble(Vec::new());
    };
    read_again(
        |error| matches!(error, OfflineError::Missing { .. }),
        || served_rows(&OfflineTables::read_only(&place)?, definitions, query),
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

/// The rows that these tables name.
pub(crate) fn served_rows(
    tables: &OfflineTables,
    definitions: &Definitions,
    query: &TrainingQuery,
) -> Result<TrainingSet, OfflineError> {
    let service = definitions.service(&query.service);
    let refusing = service.map_or(&[][..], |service| &service.refusing);
    let labels = known_labels(&tables.labels, query)?;
    let predictions = &*tables.predictions;
    let folder = format!("{}/", model_folder(&query.model));
    let manifest = predictions.manifest()?;
    let wanted = |file: &&SealedFile| {
        file.path.starts_with(&folder) && file.to_ms >= query.from_ms && file.from_ms < query.to_ms
    };
    let files: Vec<_> = manifest.files.iter().filter(wanted).collect();
    let stripes = std::thread::available_parallelism().map_or(1, |count| count.get().min(4));
    let joined = std::thread::scope(|scope| {
        let share = |stripe: usize| files.iter().copied().skip(stripe).step_by(stripes);
        let threads: Vec<_> = (0..stripes)
            .map(|stripe| {
                scope.spawn({
                    let labels = &labels;
                    move || join((predictions, share(stripe)), (query, refusing), labels)
                })
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().expect("the join does not panic")
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
    })?;
    assemble(joined)
}

pub(crate) type Labels = HashMap<PredictionKey, StoredLabel, RandomState>;

/// The label that stood for each prediction at `known_by_ms`. A label does not arrive before its
/// prediction is made, so earlier files are not read.
pub(crate) fn known_labels(table: &Table, query: &TrainingQuery) -> Result<Labels, OfflineError> {
    let mut labels = Labels::default();
    for file in &table.manifest()?.files {
        if file.to_ms < query.from_ms || file.from_ms > query.known_by_ms {
            continue;
        }
        let path = table.shown(&file.path);
        for batch in table.segment(file, Wanted::Named(&label_rows::JOINED))? {
            let mut found = |prediction, label: StoredLabel| {
                if label.arrived_ms <= query.known_by_ms {
                    labels
                        .entry(prediction)
                        .and_modify(|held| {
                            if label.supersedes(held) {
                                *held = label;
                            }
                        })
                        .or_insert(label);
                }
            };
            let read = label_rows::read(&batch?, &mut found);
            read.map_err(|problem| corrupt(&path, problem))?;
        }
    }
    Ok(labels)
}

/// Labelled rows of some files, in the order of the files.
#[derive(Default)]
pub(crate) struct Joined {
    /// Feature names and the file that they come from.
    names: Option<(Vec<String>, PathBuf)>,
    values: Vec<f32>,
    rows: Vec<TrainingRow>,
    /// Those that their service refuses.
    refused: Vec<PredictionKey>,
}

/// A labelled row, but for its features.
pub(crate) struct TrainingRow {
    pub(crate) predicted_ms: i64,
    pub(crate) request_id: String,
    pub(crate) prediction: PredictionKey,
    pub(crate) label: f32,
    /// When the label arrived.
    pub(crate) known_ms: i64,
}

fn join<'a>(
    (table, files): (&Table, impl Iterator<Item = &'a SealedFile>),
    asked: (&TrainingQuery, &[usize]),
    labels: &Labels,
) -> Result<Joined, OfflineError> {
    let mut joined = Joined::default();
    let columns = match asked.1 {
        [] => &COLUMNS[..COLUMNS.len() - 1],
        _ => &COLUMNS,
    };
    for file in files {
        let path = table.shown(&file.path);
        let segment = table.segment(file, Wanted::Named(columns))?;
        let names = segment.features()?;
        let before = joined.rows.len();
        for batch in segment {
            let taken = joined.take(&batch?, names.len(), asked, labels);
            taken.map_err(|problem| corrupt(&path, problem))?;
        }
        if joined.rows.len() > before {
            joined.agree(Some((names, path)))?;
        }
    }
    Ok(joined)
}

impl Joined {
    /// No rows yet, of a service whose features are computed here.
    pub(crate) fn of_service(service: &Service) -> Self {
        let names = service.feature_names().map(str::to_owned).collect();
        Self {
            names: Some((names, PathBuf::new())),
            ..Self::default()
        }
    }

    /// Makes room for so many more rows.
    pub(crate) fn reserve(&mut self, rows: usize) {
        let width = self.names.as_ref().map_or(0, |(names, _)| names.len());
        self.values.reserve_exact(rows * width);
        self.rows.reserve_exact(rows);
    }

    /// Adds a row with its features.
    pub(crate) fn push(&mut self, values: &[f32], row: TrainingRow) {
        self.values.extend_from_slice(values);
        self.rows.push(row);
    }

    /// Counts a row from which no model may answer.
    pub(crate) fn refuse(&mut self, prediction: PredictionKey) {
        self.refused.push(prediction);
    }

    fn take(
        &mut self,
        batch: &RecordBatch,
        width: usize,
        (query, refusing): (&TrainingQuery, &[usize]),
        labels: &Labels,
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
            let Some(label) = labels.get(&prediction) else {
                continue;
            };
            if let Some(statuses) = &statuses
                && statuses.refuse(index, refusing)
            {
                self.refuse(prediction);
                continue;
            }
            let ends = features.value_offsets();
            let row = &values[ends[index] as usize..ends[index + 1] as usize];
            if row.len() != width {
                return Err(format!("{} features in a row, {width} names", row.len()));
            }
            self.values.extend_from_slice(row);
            self.rows.push(TrainingRow {
                predicted_ms,
                request_id: optional(request_ids, index).unwrap_or_default().to_owned(),
                prediction,
                label: label.value,
                known_ms: label.arrived_ms,
            });
        }
        Ok(())
    }

    fn agree(&mut self, names: Option<(Vec<String>, PathBuf)>) -> Result<(), OfflineError> {
        match (&self.names, names) {
            (_, None) => Ok(()),
            (Some((held, _)), Some((names, path))) if *held != names => {
                Err(OfflineError::FeaturesDiffer { path })
            }
            (Some(_), Some(_)) => Ok(()),
            (None, names) => {
                self.names = names;
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

/// Sorts the rows, drops repeated ones (two backfills may cover the same request) and takes the digest.
/// Ties of (time, request id) are broken by content: prediction ids are random.
pub(crate) fn assemble(mut parts: Vec<Joined>) -> Result<TrainingSet, OfflineError> {
    let mut all = Joined::default();
    for part in &mut parts {
        all.agree(part.names.take())?;
    }
    let names = all.names.map_or(Vec::new(), |(names, _)| names);
    let width = names.len();
    let mut order: Vec<(usize, usize)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        order.extend((0..part.rows.len()).map(|row| (index, row)));
    }
    let row = |place: (usize, usize)| &parts[place.0].rows[place.1];
    let values = |place: (usize, usize)| &parts[place.0].values[place.1 * width..][..width];
    let bits = |place| values(place).iter().map(|value| value.to_bits());
    order.sort_unstable_by(|&a, &b| {
        let key = |place| (row(place).predicted_ms, row(place).request_id.as_str());
        let content = |place| (row(place).known_ms, row(place).label.to_bits());
        key(a)
            .cmp(&key(b))
            .then_with(|| content(a).cmp(&content(b)))
            .then_with(|| bits(a).cmp(bits(b)))
            .then_with(|| row(a).prediction.cmp(&row(b).prediction))
    });
    let mut seen = HashSet::with_capacity_and_hasher(order.len(), RandomState::new());
    order.retain(|&place| seen.insert(row(place).prediction));
    let refused = parts.iter().flat_map(|part| &part.refused);
    let mut set = TrainingSet {
        refused: refused
            .filter(|&&prediction| seen.insert(prediction))
            .count() as u64,
        values: Vec::new(),
        labels: order.iter().map(|&place| row(place).label).collect(),
        predicted_ms: order.iter().map(|&it| row(it).predicted_ms).collect(),
        known_ms: order.iter().map(|&place| row(place).known_ms).collect(),
        request_ids: order.iter().map(|&it| row(it).request_id.clone()).collect(),
        predictions: order.iter().map(|&place| row(place).prediction).collect(),
        names,
        digest: [0; 32],
    };
    let as_they_are = parts.len() == 1 && order.iter().map(|it| it.1).eq(0..parts[0].rows.len());
    // A copy would double what is in memory.
    set.values = match as_they_are {
        true => std::mem::take(&mut parts[0].values),
        false => order.iter().flat_map(|&it| values(it)).copied().collect(),
    };
    set.digest = digest(&set);
    Ok(set)
}

/// SHA-256 over names, then per row time, request id, arrival and bits of label and values. Lengths go
/// before what varies in length.
fn digest(set: &TrainingSet) -> [u8; 32] {
    let mut hash = Sha256::new();
    let text = |hash: &mut Sha256, text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    hash.update((set.names.len() as u64).to_le_bytes());
    set.names.iter().for_each(|name| text(&mut hash, name));
    let mut bytes = Vec::new();
    for row in 0..set.rows() {
        hash.update(set.predicted_ms[row].to_le_bytes());
        text(&mut hash, &set.request_ids[row]);
        hash.update(set.known_ms[row].to_le_bytes());
        hash.update(set.labels[row].to_bits().to_le_bytes());
        bytes.clear();
        let values = &set.values[row * set.columns()..(row + 1) * set.columns()];
        bytes.extend(
            values
                .iter()
                .flat_map(|value| value.to_bits().to_le_bytes()),
        );
        hash.update(&bytes);
    }
    hash.finalize().into()
}
