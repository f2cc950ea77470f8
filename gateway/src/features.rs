//! From a request's tensors to a model's: by name for a model that takes them as they come, through
//! its feature service for one that is bound to one.
//!
//! Reads of the online store happen in place where all is in memory, which takes about as long as the
//! model; what must come from disk is read by threads of its own (`cold`).

use std::sync::Arc;
use std::time::Instant;

use engine::{Signature, Tensor, TensorData};
use featurestore::{
    FeatureRow, FeatureStore, Field, FieldProblem, FieldType, ReadError, Refused, Service, Status,
    Value,
};

use crate::cold::{ColdReadError, ColdReads};
use crate::oip::NamedTensor;
use crate::table::LoadedVersion;

/// What one request gives to the versions that score it.
pub(crate) struct Inputs {
    pub rows: usize,
    /// The request's tensors, kept for versions with a service of their own.
    columns: Vec<NamedTensor>,
    /// In the order of the routed version's signature.
    pub tensors: Vec<Tensor>,
    /// With a service: the request's values and the rows made from them.
    pub features: Option<Features>,
    /// The online store failed: no version can answer, only a constant.
    pub unreadable: bool,
}

impl Inputs {
    /// Inputs of a model without a feature service.
    pub(crate) fn of_tensors(tensors: Vec<Tensor>, rows: usize) -> Self {
        Self {
            rows,
            columns: Vec::new(),
            tensors,
            features: None,
            unreadable: false,
        }
    }
}

/// Rows of one feature service.
pub(crate) struct Features {
    pub service_id: Arc<str>,
    pub requests: Vec<Vec<Value>>,
    /// Shared with the records of them.
    pub rows: Vec<Arc<FeatureRow>>,
    /// The first row from which no model may answer.
    pub refused: Option<RefusedRow>,
}

impl Features {
    /// Whether a model may answer from every row.
    fn answerable(&self) -> Result<(), InputError> {
        let refused = self.refused.clone();
        refused.map_or(Ok(()), |refused| Err(InputError::Refused(refused)))
    }
}

/// A row without a feature that its service cannot do without (`missing = "refuse"`).
#[derive(Clone, Debug, thiserror::Error)]
#[error("row {row}: {refused}")]
pub(crate) struct RefusedRow {
    row: usize,
    refused: Refused,
}

impl RefusedRow {
    /// The first of `rows` that the service refuses; costs nothing where it refuses none.
    fn first(service: &Service, rows: &[FeatureRow]) -> Option<Self> {
        rows.iter().enumerate().find_map(|(row, features)| {
            let refused = service.check_row(features).err()?;
            Some(Self { row, refused })
        })
    }
}

/// The tensors for one version, and its own features where it does not share the routed version's.
pub(crate) enum Bound<'i> {
    Shared(&'i [Tensor]),
    Own(Vec<Tensor>, Features),
}

/// Why a request gives no inputs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    #[error("input `{name}` is missing")]
    Missing { name: String },
    #[error("unknown input `{name}`")]
    Unknown { name: Box<str> },
    #[error("input `{name}`: {problem}")]
    Mismatch { name: String, problem: String },
    #[error("input `{name}`, row {row}: {problem}")]
    Value {
        name: Box<str>,
        row: usize,
        problem: FieldProblem,
    },
    #[error("{rows} rows, at most {rows_max} allowed")]
    TooManyRows { rows: usize, rows_max: usize },
    #[error("features are not available")]
    Unreadable,
    #[error(transparent)]
    Refused(RefusedRow),
}

/// Why rows were not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadFailure {
    #[error(transparent)]
    Store(#[from] ReadError),
    #[error(transparent)]
    Cold(#[from] ColdReadError),
}

/// Where features come from and how much of them.
#[derive(Clone, Copy)]
pub(crate) struct Reader<'s> {
    pub store: Option<&'s FeatureStore>,
    /// Who reads what is not in memory, and until when; without it the disk is read in place.
    pub cold: Option<(&'s ColdReads, Instant)>,
    pub rows_max: usize,
    pub at_ms: i64,
}

impl Reader<'_> {
    /// Makes the inputs of `version` from a request's tensors.
    pub(crate) async fn assemble(
        self,
        version: &LoadedVersion,
        columns: Vec<NamedTensor>,
    ) -> Result<Inputs, InputError> {
        let own = version.rows_max.unwrap_or(self.rows_max);
        let reader = Self {
            rows_max: self.rows_max.min(own),
            ..self
        };
        if let Some(unknown) = columns
            .iter()
            .find(|column| !takes(&version.public, &column.name))
        {
            return Err(InputError::Unknown {
                name: unknown.name.clone(),
            });
        }
        match (&version.service, &version.service_id) {
            (Some(service), Some(id)) => {
                let requests = reader.requests(service, &columns)?;
                let rows = requests.len();
                let read = reader.rows_of(service, id, requests).await;
                let unreadable = read.is_none();
                let (tensors, features) = read.unzip();
                Ok(Inputs {
                    rows,
                    columns,
                    tensors: tensors.unwrap_or_default(),
                    features,
                    unreadable,
                })
            }
            _ => {
                let tensors = in_order(&version.public, columns)?;
                let rows = version.public.rows(&tensors).unwrap_or(1);
                reader.check_rows(rows)?;
                Ok(Inputs::of_tensors(tensors, rows))
            }
        }
    }

    /// The rows of a service from a request's tensors; `None`, with the cause in the log, where the
    /// store fails.
    pub(crate) async fn rows(
        self,
        service: &Arc<Service>,
        columns: &[NamedTensor],
    ) -> Result<Option<Features>, InputError> {
        let known = |column: &&NamedTensor| service.request_field(&column.name).is_none();
        if let Some(unknown) = columns.iter().find(known) {
            let name = unknown.name.clone();
            return Err(InputError::Unknown { name });
        }
        let requests = self.requests(service, columns)?;
        let read = self.rows_of(service, &service.id().into(), requests).await;
        Ok(read.map(|(_, features)| features))
    }

    /// The inputs for another version than the one that `inputs` were assembled for.
    pub(crate) async fn bind<'i>(
        self,
        inputs: &'i Inputs,
        version: &LoadedVersion,
    ) -> Result<Bound<'i>, InputError> {
        match (&version.service, &version.service_id, &inputs.features) {
            (Some(service), Some(id), Some(features)) if *id != features.service_id => {
                let requests = self.requests(service, &inputs.columns)?;
                let read = self.rows_of(service, id, requests).await;
                let (tensors, features) = read.ok_or(InputError::Unreadable)?;
                features.answerable()?;
                Ok(Bound::Own(tensors, features))
            }
            (_, _, features) => {
                features.as_ref().map_or(Ok(()), Features::answerable)?;
                Ok(Bound::Shared(&inputs.tensors))
            }
        }
    }

    fn check_rows(self, rows: usize) -> Result<(), InputError> {
        if rows <= self.rows_max {
            return Ok(());
        }
        Err(InputError::TooManyRows {
            rows,
            rows_max: self.rows_max,
        })
    }

    /// Reads the rows; `None`, with the cause in the log, where the store fails.
    async fn rows_of(
        self,
        service: &Arc<Service>,
        id: &Arc<str>,
        requests: Vec<Vec<Value>>,
    ) -> Option<(Vec<Tensor>, Features)> {
        let (requests, rows) = match self.store {
            _ if requests.is_empty() => (requests, Vec::new()),
            Some(store) => self
                .read(store, service, requests)
                .await
                .inspect_err(|error| tracing::warn!(service = %id, %error, "features not read"))
                .ok()?,
            None => return None,
        };
        let width = service.features.len();
        let mut values = Vec::with_capacity(rows.len() * width);
        for row in &rows {
            values.extend_from_slice(&row.values);
        }
        let tensor = Tensor::new(vec![rows.len(), width], TensorData::Fp32(values))
            .expect("every row has the width of its service");
        let features = Features {
            service_id: Arc::clone(id),
            requests,
            refused: RefusedRow::first(service, &rows),
            rows: rows.into_iter().map(Arc::new).collect(),
        };
        Some((vec![tensor], features))
    }

    /// The requests and their rows: in place where all is in memory.
    pub(crate) async fn read(
        self,
        store: &FeatureStore,
        service: &Arc<Service>,
        requests: Vec<Vec<Value>>,
    ) -> Result<(Vec<Vec<Value>>, Vec<FeatureRow>), ReadFailure> {
        let at_ms = self.at_ms;
        let Some((cold, until)) = self.cold else {
            let rows = store.read_rows(service, &requests, at_ms)?;
            return Ok((requests, rows));
        };
        if let Some(rows) = store.rows_in_memory(service, &requests, at_ms)? {
            return Ok((requests, rows));
        }
        let (store, service) = (store.clone(), Arc::clone(service));
        let read = move || {
            let rows = store.read_rows(&service, &requests, at_ms);
            rows.map(|rows| (requests, rows))
        };
        Ok(cold.run(until, read).await??)
    }

    /// Turns columns into rows, each value checked against its field.
    fn requests(
        self,
        service: &Service,
        columns: &[NamedTensor],
    ) -> Result<Vec<Vec<Value>>, InputError> {
        let mut rows: Option<usize> = None;
        let mut in_order = Vec::with_capacity(service.request.len());
        for field in &service.request {
            let column = columns
                .iter()
                .find(|column| column.name == field.name)
                .ok_or_else(|| InputError::Missing {
                    name: field.name.to_string(),
                })?;
            let expected = rows.unwrap_or_else(|| column.tensor.data().len());
            let (&[found] | &[found, 1]) = column.tensor.shape() else {
                return Err(mismatch(
                    &field.name,
                    format!("expected shape [-1], found {:?}", column.tensor.shape()),
                ));
            };
            if found != expected {
                return Err(mismatch(
                    &field.name,
                    format!("{found} rows where another input has {expected}"),
                ));
            }
            rows = Some(expected);
            in_order.push((field, column.tensor.data()));
        }
        let rows = rows.unwrap_or(0);
        self.check_rows(rows)?;
        let row = |row| {
            let value = |&(field, data): &(&Field, &TensorData)| value(field, data, row);
            in_order.iter().map(value).collect()
        };
        (0..rows).map(row).collect()
    }
}

fn takes(signature: &Signature, name: &str) -> bool {
    signature.inputs.iter().any(|input| input.name == name)
}

fn in_order(
    signature: &Signature,
    mut columns: Vec<NamedTensor>,
) -> Result<Vec<Tensor>, InputError> {
    let take = |spec: &engine::TensorSpec| {
        let position = columns.iter().position(|column| *column.name == *spec.name);
        let column = columns.swap_remove(position.ok_or_else(|| InputError::Missing {
            name: spec.name.clone(),
        })?);
        match spec.mismatch(&column.tensor) {
            None => Ok(column.tensor),
            Some(problem) => Err(mismatch(&spec.name, problem)),
        }
    };
    signature.inputs.iter().map(take).collect()
}

fn mismatch(name: &str, problem: String) -> InputError {
    InputError::Mismatch {
        name: name.to_owned(),
        problem,
    }
}

/// One value of a request field. The wire has no null: an empty string and NaN stand for it where
/// the field is nullable.
fn value(field: &Field, data: &TensorData, row: usize) -> Result<Value, InputError> {
    let value = match field.ty {
        FieldType::String => text(data, row),
        FieldType::Bool => match data {
            TensorData::Bool(values) => values.get(row).map(|&flag| Value::Bool(flag)),
            _ => None,
        },
        FieldType::Int | FieldType::Time => whole(data, row).map(Value::Int),
        FieldType::Float => number(data, row).map(Value::Float),
    };
    let Some(value) = value else {
        return Err(mismatch(
            &field.name,
            format!(
                "{} does not fit a {} field",
                data.datatype(),
                field.ty.as_str()
            ),
        ));
    };
    let value = match value {
        Value::String(text) if field.nullable && text.is_empty() => Value::Null,
        Value::Float(number) if field.nullable && number.is_nan() => Value::Null,
        value => value,
    };
    match field.check(&value) {
        Ok(()) => Ok(value),
        Err(problem) => Err(InputError::Value {
            name: field.name.clone(),
            row,
            problem,
        }),
    }
}

fn text(data: &TensorData, row: usize) -> Option<Value> {
    let TensorData::Bytes(values) = data else {
        return None;
    };
    let text = std::str::from_utf8(values.get(row)?).ok()?;
    Some(Value::String(text.into()))
}

fn whole(data: &TensorData, row: usize) -> Option<i64> {
    match data {
        TensorData::Int64(values) => values.get(row).copied(),
        TensorData::Int32(values) => values.get(row).copied().map(i64::from),
        TensorData::Int16(values) => values.get(row).copied().map(i64::from),
        TensorData::Int8(values) => values.get(row).copied().map(i64::from),
        TensorData::Uint64(values) => values.get(row).and_then(|&value| value.try_into().ok()),
        TensorData::Uint32(values) => values.get(row).copied().map(i64::from),
        TensorData::Uint16(values) => values.get(row).copied().map(i64::from),
        TensorData::Uint8(values) => values.get(row).copied().map(i64::from),
        _ => None,
    }
}

fn number(data: &TensorData, row: usize) -> Option<f64> {
    match data {
        TensorData::Fp64(values) => values.get(row).copied(),
        TensorData::Fp32(values) => values.get(row).copied().map(f64::from),
        data => whole(data, row).map(|value| value as f64),
    }
}

/// How the features of a request were found: counts by status in the order of the codes.
pub(crate) fn count_statuses(rows: &[Arc<FeatureRow>]) -> [u64; Status::ALL.len()] {
    let mut counts = [0; Status::ALL.len()];
    for status in rows.iter().flat_map(|row| &row.statuses) {
        counts[usize::from(status.code())] += 1;
    }
    counts
}

/// The response's `feature_status`, `STATUS=count` with commas; `None` when all are present.
pub(crate) fn status_summary(features: &Features) -> Option<String> {
    let present =
        |row: &Arc<FeatureRow>| row.statuses.iter().all(|&status| status == Status::Present);
    if features.rows.iter().all(present) {
        return None;
    }
    let counts = count_statuses(&features.rows);
    let shown: Vec<_> = Status::ALL
        .into_iter()
        .zip(counts)
        .filter(|&(status, count)| status != Status::Present && count > 0)
        .map(|(status, count)| format!("{}={count}", status.as_str()))
        .collect();
    Some(shown.join(","))
}

#[cfg(test)]
mod tests;
