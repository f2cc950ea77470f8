//! The requests that rows are computed for, as sealed predictions and labels tell them.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ahash::RandomState;
use arrow::array::{Array, RecordBatch, StringArray};
use arrow::datatypes::{TimestampMillisecondType, UInt32Type, UInt64Type};

use super::{RecomputeError, service_of};
use crate::definition::Definitions;
use crate::labels::StoredLabel;
use crate::offline::segments::{Wanted, corrupt};
use crate::offline::table::Table;
use crate::offline::training::{Stretch, labels_of};
use crate::offline::{OfflineError, TrainingQuery};
use crate::predictions::columns::{numbers, optional, parse_request, texts};
use crate::predictions::{PredictionKey, Role};
use crate::service::Service;
use crate::value::{Field, Value};

/// A request that was answered or backfilled, and what became of it.
pub(super) struct Asked {
    pub(super) at_ms: i64,
    /// The last event that its row saw.
    pub(super) as_of_seq: u64,
    /// Never served: it saw what had arrived by its time.
    pub(super) is_backfilled: bool,
    pub(super) prediction: PredictionKey,
    pub(super) label: StoredLabel,
    /// Where its texts lie.
    texts: Arc<Texts>,
    row: u32,
}

/// Texts of some rows of a file.
struct Texts {
    path: Box<Path>,
    request_ids: StringArray,
    services: StringArray,
    requests: StringArray,
}

impl Asked {
    /// The caller's id of it; empty where it gave none.
    pub(super) fn request_id(&self) -> &str {
        optional(&self.texts.request_ids, self.row as usize).unwrap_or_default()
    }
}

/// Of each stretch, the smallest of the numbers that rows served in later ones saw.
pub(super) fn seen_first(
    table: &Table,
    stretches: &[Stretch<'_>],
) -> Result<Vec<u64>, OfflineError> {
    let mut seen = vec![u64::MAX; stretches.len()];
    let mut first = u64::MAX;
    for (index, stretch) in stretches.iter().enumerate().skip(1).rev() {
        for file in &stretch.files {
            let path = table.shown(&file.path);
            for batch in table.segment(file, Wanted::Named(&["role", "as_of_seq"]))? {
                let found = first_of(&batch?).map_err(|problem| corrupt(&path, problem))?;
                first = first.min(found);
            }
        }
        seen[index - 1] = first;
    }
    Ok(seen)
}

fn first_of(batch: &RecordBatch) -> Result<u64, String> {
    let roles = texts(batch, "role")?;
    let seqs = numbers::<UInt64Type>(batch, "as_of_seq")?;
    let served = |&row: &usize| {
        let answered = Role::from_name(roles.value(row)).is_none_or(Role::answered);
        answered && seqs.is_valid(row)
    };
    let served = (0..batch.num_rows()).filter(served);
    Ok(served.map(|row| seqs.value(row)).min().unwrap_or(u64::MAX))
}

/// The columns of predictions that say what was asked; features are left where they are.
const COLUMNS: [&str; 8] = [
    "prediction_id",
    "row",
    "request_id",
    "role",
    "at",
    "service",
    "as_of_seq",
    "request",
];

/// The labelled requests of a stretch, in no order.
pub(super) fn read_requests(
    (predictions, labels): (&Table, &Table),
    query: &TrainingQuery,
    stretch: &Stretch<'_>,
) -> Result<Vec<Asked>, OfflineError> {
    let mut asked = Vec::with_capacity(stretch.rows);
    for file in &stretch.files {
        let path = predictions.shown(&file.path);
        for batch in predictions.segment(file, Wanted::Named(&COLUMNS))? {
            let read = find(&batch?, &path, query, &mut asked);
            read.map_err(|problem| corrupt(&path, problem))?;
        }
    }
    let keys = asked.iter().map(|row| row.prediction);
    let labels = labels_of(labels, query, stretch, keys)?;
    asked.retain_mut(|row| {
        let label = labels.get(&row.prediction).copied().flatten();
        label.is_some_and(|label| {
            row.label = label;
            true
        })
    });
    Ok(asked)
}

/// Adds the requests of a batch that were made in time, without their labels.
fn find(
    batch: &RecordBatch,
    path: &Path,
    query: &TrainingQuery,
    asked: &mut Vec<Asked>,
) -> Result<(), String> {
    let ids = texts(batch, "prediction_id")?;
    let rows = numbers::<UInt32Type>(batch, "row")?;
    let roles = texts(batch, "role")?;
    let at = numbers::<TimestampMillisecondType>(batch, "at")?.values();
    let seqs = numbers::<UInt64Type>(batch, "as_of_seq")?;
    let texts = Arc::new(Texts {
        path: path.into(),
        request_ids: texts(batch, "request_id")?.clone(),
        services: texts(batch, "service")?.clone(),
        requests: texts(batch, "request")?.clone(),
    });
    for (row, &at_ms) in at.iter().enumerate() {
        let role = Role::from_name(roles.value(row));
        let in_time = (query.from_ms..query.to_ms).contains(&at_ms);
        // No number where no features were looked up.
        if !in_time || role == Some(Role::Shadow) || seqs.is_null(row) {
            continue;
        }
        let id = ids.value(row);
        asked.push(Asked {
            at_ms,
            as_of_seq: seqs.value(row),
            is_backfilled: role == Some(Role::Backfill),
            prediction: PredictionKey {
                id: uuid::Uuid::try_parse(id).map_err(|_| format!("prediction id `{id}`"))?,
                row: rows.value(row),
            },
            label: StoredLabel::default(),
            texts: Arc::clone(&texts),
            row: row as u32,
        });
    }
    Ok(())
}

/// Where the service's request fields stand in the requests of other services.
pub(super) struct RequestFields<'a> {
    definitions: &'a Definitions,
    service: &'a Arc<Service>,
    /// By the name of the other service.
    known: HashMap<Box<str>, (&'a Arc<Service>, Vec<usize>), RandomState>,
}

impl<'a> RequestFields<'a> {
    pub(super) fn new(definitions: &'a Definitions, service: &'a Arc<Service>) -> Self {
        Self {
            definitions,
            service,
            known: HashMap::default(),
        }
    }

    /// The values of a request that the service asks for, in its order.
    pub(super) fn take(&mut self, asked: &Asked) -> Result<Vec<Value>, RecomputeError> {
        let (texts, row) = (&asked.texts, asked.row as usize);
        let served = optional(&texts.services, row).unwrap_or_default();
        if !self.known.contains_key(served) {
            let places = self.places_in(served)?;
            self.known.insert(served.into(), places);
        }
        let (defined, places) = &self.known[served];
        let mut values = parse_request(defined, texts.requests.value(row))
            .map_err(|problem| corrupt(&texts.path, problem))?;
        if !places.iter().copied().eq(0..values.len()) {
            let value = |&place: &usize| values.get(place).cloned().unwrap_or(Value::Null);
            values = places.iter().map(value).collect();
        }
        Ok(values)
    }

    fn places_in(&self, served: &str) -> Result<(&'a Arc<Service>, Vec<usize>), RecomputeError> {
        let defined = service_of(self.definitions, served)?;
        let place = |field: &Field| {
            let same = |known: &Field| known.name == field.name && known.ty == field.ty;
            let place = defined.request.iter().position(same);
            place.ok_or_else(|| RecomputeError::Request {
                served: served.to_owned(),
                field: field.name.to_string(),
                service: self.service.id().to_owned(),
            })
        };
        let places: Result<_, _> = self.service.request.iter().map(place).collect();
        Ok((defined, places?))
    }
}
