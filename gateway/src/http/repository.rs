//! The model repository over HTTP: load and unload.

use registry::ModelName;
use serde_json::json;

use super::status::Refusal;
use super::{Answer, Received, body};
use crate::config::Limits;
use crate::repository::{self, LoadBody, permitted};
use crate::serve::Core;

/// Bytes of an unload request, of which nothing has a meaning here.
const UNLOAD_BYTES_MAX: usize = 64 << 10;

pub(super) async fn load(
    core: &Core,
    model: &ModelName,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    // A body holds a model file: longer than a prediction's, and given as many times longer.
    let bytes_max = permitted(core)?.config.body_bytes_max;
    let longer = bytes_max.div_ceil(core.limits.body_bytes_max).max(1);
    let limits = Limits {
        body_bytes_max: bytes_max,
        body_timeout: core.limits.body_timeout * u32::try_from(longer).unwrap_or(u32::MAX),
        ..core.limits
    };
    let body = body::read(received.headers, received.body, &limits).await?;
    let version = repository::load(core, model, LoadBody::Json(body)).await?;
    Ok(super::json(
        &json!({"name": model, "version": version.to_string()}),
    ))
}

/// What the body says is `unload_dependents`, and no model depends on another.
pub(super) async fn unload(
    core: &Core,
    model: &ModelName,
    received: Received<'_>,
) -> Result<Answer, Refusal> {
    permitted(core)?;
    let limits = Limits {
        body_bytes_max: UNLOAD_BYTES_MAX,
        ..core.limits
    };
    body::read(received.headers, received.body, &limits).await?;
    repository::unload(core, model).await?;
    Ok(super::json(&json!({"name": model})))
}
