//! `/materialize` and `/materialize-incremental`. The online state holds every event that was
//! acknowledged, so there is nothing to move: what is asked for is checked and answered as done.

use featurestore::Definitions;

use super::error::{FeastError, shown};
use super::request::MaterializeRequest;
use super::selection::find_view;
use super::{SchemaError, time};
use crate::serve::Core;

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Materialize {
    /// From one time to another.
    Range,
    /// From where the last one ended.
    Incremental,
}

/// Checks the request; the names of the views that are current.
pub(crate) fn materialize(
    core: &Core,
    kind: Materialize,
    body: &[u8],
) -> Result<Vec<String>, FeastError> {
    let request = MaterializeRequest::decode(body)?;
    let store = core.store.as_ref().ok_or(FeastError::NoStore)?;
    let views = views(store.definitions(), &request)?;
    match kind {
        Materialize::Range => check_range(&request)?,
        Materialize::Incremental => {
            let end = request.end.as_deref();
            parsed("end_ts", end.ok_or_else(|| SchemaError::missing("end_ts"))?)?;
        }
    }
    Ok(views)
}

fn views(
    definitions: &Definitions,
    request: &MaterializeRequest<'_>,
) -> Result<Vec<String>, FeastError> {
    let name = |reference: &str| {
        let view = find_view(definitions, reference)?;
        Ok(view.name.to_string())
    };
    let names = request.views.as_deref();
    match (&request.version, names) {
        (Some(version), Some([view])) => Ok(vec![name(&format!("{view}@{version}"))?]),
        (Some(_), _) => Err(FeastError::Times(
            "`version` is for one feature view: name it in `feature_views`".to_owned(),
        )),
        (None, Some(names)) => names.iter().map(|reference| name(reference)).collect(),
        (None, None) => Ok(definitions
            .views
            .iter()
            .map(|view| view.name.to_string())
            .collect()),
    }
}

fn check_range(request: &MaterializeRequest<'_>) -> Result<(), FeastError> {
    if request.timeless {
        return Ok(());
    }
    let (Some(start), Some(end)) = (request.start.as_deref(), request.end.as_deref()) else {
        let problem = "start_ts and end_ts are required when disable_event_timestamp is false";
        return Err(FeastError::Times(problem.to_owned()));
    };
    let (start_ms, end_ms) = (parsed("start_ts", start)?, parsed("end_ts", end)?);
    if start_ms >= end_ms {
        let problem = format!(
            "start_ts ({}) must be before end_ts ({})",
            shown(start),
            shown(end)
        );
        return Err(FeastError::Times(problem));
    }
    Ok(())
}

fn parsed(name: &str, text: &str) -> Result<i64, FeastError> {
    time::parse(text)
        .ok_or_else(|| FeastError::Times(format!("{name} `{}` is no time", shown(text))))
}
