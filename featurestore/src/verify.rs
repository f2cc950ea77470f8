//! Skew check: recomputes served rows from the event log and compares them bit for bit.
//!
//! Once over all that was served ([`FeatureStore::verify`]), or run after run over what was served since
//! ([`Verifier`]). Costs one read of the model's log, one pass over the event log, and memory for the
//! sampled rows and the states that they need.

mod compare;
mod sample;
mod verifier;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use thiserror::Error;

use crate::definition::Definitions;
use crate::offline::OfflineError;
use crate::online::FeatureStore;
use crate::predictions::scan::Range;
use crate::project_file::nearest;
use crate::service::Service;
use crate::travel::Watch;

pub(crate) use self::sample::Sample;
pub use self::verifier::{Mark, Verifier, VerifierOptions};

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct VerifyReport {
    /// Served rows that were recomputed.
    pub rows_checked: u64,
    /// Rows with at least one feature that differs in value, status or event time.
    pub mismatches: u64,
    /// Rows by feature that differs.
    pub features: BTreeMap<String, u64>,
    /// Rows that saw fewer events than the verifier had folded, and so could not be recomputed.
    pub rows_passed_over: u64,
    /// The first few differences.
    pub examples: Vec<Mismatch>,
}

/// One feature that was served otherwise than it is recomputed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mismatch {
    /// The row, `uuid/row`.
    pub prediction: String,
    /// The caller's id of the request.
    pub request_id: Option<String>,
    /// Time of the prediction.
    pub at_ms: i64,
    /// Last event that the served row could have seen.
    pub as_of_seq: u64,
    /// The feature.
    pub feature: String,
    /// Value, status and event time as served.
    pub served: String,
    /// The same as recomputed.
    pub recomputed: String,
}

/// Why rows could not be verified.
#[derive(Debug, Error)]
pub enum VerifyError {
    /// No such service is defined.
    #[error("service `{name}` is not defined in features.toml{}", did_you_mean(.nearest.as_deref()))]
    Undefined {
        /// The name asked for
        name: String,
        /// The defined service whose name is most like it
        nearest: Option<String>,
    },
    /// The served rows could not be read.
    #[error(transparent)]
    Offline(#[from] OfflineError),
    /// The event log could not be read.
    #[error("event log: {0}")]
    Events(String),
    /// The watcher ended the pass.
    #[error("ended before the event log was read")]
    Ended,
}

/// Recomputes a sample of the answered rows of a model and service.
pub(crate) fn verify(
    store: &FeatureStore,
    (model, service): (&str, &str),
    sample: Sample,
    watch: Watch<'_>,
) -> Result<VerifyReport, VerifyError> {
    let services = services_of(store.definitions(), service)?;
    let range = Range {
        model,
        from_ms: i64::MIN,
        to_ms: i64::MAX,
    };
    let rows = sample.choose(store.shared(), range, &services, &|_, _| true)?;
    verifier::recompute_alone(store, &rows, watch)
}

/// The services that a name means: `name@version`, or every version of `name`.
fn services_of(definitions: &Definitions, name: &str) -> Result<Vec<Arc<Service>>, VerifyError> {
    let is_meant = |service: &&Arc<Service>| service.id() == name || &*service.name == name;
    let services: Vec<_> = definitions
        .services
        .iter()
        .filter(is_meant)
        .cloned()
        .collect();
    if services.is_empty() {
        let known = definitions.services.iter().map(|service| service.id());
        return Err(VerifyError::Undefined {
            name: name.to_owned(),
            nearest: nearest(name, known),
        });
    }
    Ok(services)
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
