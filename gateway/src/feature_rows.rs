//! A feature service asked as a model: its row, as tensors, under its id, such as `delay@1`.
//!
//! No model's name holds an `@`, so neither can hide the other, and a request to a model costs nothing:
//! only a name that is no model's is looked for here. Decoding, limits, reading and encoding are those of
//! predictions. Nothing is recorded, since nothing was predicted.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use engine::{DataType, Signature, Tensor, TensorData, TensorSpec};
use featurestore::{FeatureRow, Service};

use crate::admission::Place;
use crate::execute::ExecuteError;
use crate::features::status_summary;
use crate::oip::{self, Response, ResponseOutput, WantedOutput};
use crate::predict::{Desk, PredictError, Wire};
use crate::route::{AskedService, RouteError};
use crate::serve::Core;
use crate::table::request_tensors;

/// The row, in the order of the service.
const FEATURES: &str = "features";
/// How well each value is known: the codes of `featurestore::Status`.
const STATUSES: &str = "statuses";
/// The time of the newest event behind each value, milliseconds since the Unix epoch; 0 is none.
const EVENT_TIMES: &str = "event_times_ms";

/// A feature service as a model.
pub(crate) struct FeatureRows {
    service: Arc<Service>,
    version: String,
    signature: Signature,
}

/// A request for rows that has a place.
pub(crate) struct RowsCall {
    pub rows: FeatureRows,
    pub place: Place,
    pub arrived: Instant,
    /// The request's time.
    pub at_ms: i64,
}

impl FeatureRows {
    /// Finds the service.
    pub(crate) fn find(core: &Core, asked: &AskedService) -> Result<Self, RouteError> {
        let definitions = core.store.as_ref().map(|store| store.definitions());
        let known = definitions.and_then(|definitions| definitions.service(&asked.id));
        let service = known.ok_or_else(|| RouteError::UnknownService {
            id: asked.id.clone(),
        })?;
        let version = service.version.to_string();
        if asked
            .version
            .as_deref()
            .is_some_and(|named| named != version)
        {
            let id = asked.id.clone();
            return Err(RouteError::UnknownService { id });
        }
        Ok(Self {
            service: Arc::clone(service),
            version,
            signature: signature(service),
        })
    }

    /// The service's id.
    pub(crate) fn name(&self) -> &str {
        self.service.id()
    }

    /// The one version that it is.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Request fields in, rows out.
    pub(crate) fn signature(&self) -> &Signature {
        &self.signature
    }

    /// The names of the row's columns, with commas: what metadata calls a property.
    pub(crate) fn columns(&self) -> String {
        let names: Vec<_> = self.service.feature_names().collect();
        names.join(",")
    }
}

fn signature(service: &Service) -> Signature {
    let width = i64::try_from(service.features.len()).unwrap_or(i64::MAX);
    let output = |name: &str, datatype| TensorSpec {
        name: name.to_owned(),
        datatype,
        shape: vec![-1, width],
    };
    Signature {
        inputs: request_tensors(service),
        outputs: vec![
            output(FEATURES, DataType::Fp32),
            output(STATUSES, DataType::Uint8),
            output(EVENT_TIMES, DataType::Int64),
        ],
    }
}

/// Answers one request for rows.
pub(crate) async fn rows<W: Wire>(
    desk: &Desk,
    call: RowsCall,
    mut wire: W,
) -> Result<W::Reply, PredictError> {
    let core = &*desk.core;
    let request = wire.decode()?;
    let deadline = request.timeout.unwrap_or(core.limits.deadline);
    let admitted = call
        .place
        .admit(call.arrived, deadline.min(core.limits.deadline))?;
    let (service, signature) = (&call.rows.service, &call.rows.signature);
    let wanted = wanted(signature, request.outputs)?;
    let reader = core.reader(call.at_ms, admitted.until());
    let read = reader.rows(service, &request.inputs).await?;
    let features = read.ok_or(PredictError::Execute(ExecuteError::Features))?;
    let mut outputs = Vec::with_capacity(wanted.len());
    for asked in &wanted {
        let tensor = tensor(&asked.name, service, &features.rows);
        let place = signature
            .outputs
            .iter()
            .find(|spec| *spec.name == *asked.name);
        let tensor = match (asked.classification, place) {
            (Some(count), Some(spec)) => oip::classify(spec, &tensor, count, &[])?,
            _ => tensor,
        };
        outputs.push(ResponseOutput {
            name: &asked.name,
            tensor: Cow::Owned(tensor),
            binary: asked.binary.unwrap_or(request.binary_outputs),
        });
    }
    let status = status_summary(&features);
    Ok(wire.encode(&Response {
        model: service.id(),
        version: &call.rows.version,
        id: request.id.as_deref(),
        prediction: None,
        fallback_reason: None,
        feature_status: status.as_deref(),
        outputs,
    })?)
}

/// The outputs that are asked for, each once; all of them where none is named.
fn wanted(
    signature: &Signature,
    asked: Vec<WantedOutput>,
) -> Result<Vec<WantedOutput>, PredictError> {
    if asked.is_empty() {
        let all = signature.outputs.iter().map(|output| WantedOutput {
            name: output.name.as_str().into(),
            ..WantedOutput::default()
        });
        return Ok(all.collect());
    }
    for (k, WantedOutput { name, .. }) in asked.iter().enumerate() {
        if signature
            .outputs
            .iter()
            .all(|output| *output.name != **name)
        {
            return Err(PredictError::UnknownOutput(name.clone()));
        }
        if asked[..k].iter().any(|before| before.name == *name) {
            return Err(PredictError::DoubledOutput(name.clone()));
        }
    }
    Ok(asked)
}

fn tensor(name: &str, service: &Service, rows: &[Arc<FeatureRow>]) -> Tensor {
    let data = match name {
        STATUSES => {
            let codes = rows.iter().flat_map(|row| &row.statuses);
            TensorData::Uint8(codes.map(|status| status.code()).collect())
        }
        EVENT_TIMES => {
            let times = rows.iter().flat_map(|row| &row.event_times_ms);
            TensorData::Int64(times.copied().collect())
        }
        _ => TensorData::Fp32(rows.iter().flat_map(|row| &row.values).copied().collect()),
    };
    Tensor::new(vec![rows.len(), service.features.len()], data)
        .expect("every row has the width of its service")
}
