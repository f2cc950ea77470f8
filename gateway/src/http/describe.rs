//! Answers about the server and its models: health, metadata, configuration, statistics, index.
//!
//! Each reads one snapshot of the model table and nothing else.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::status::Refusal;
use crate::feature_rows::FeatureRows;
use crate::oip;
use crate::route::{self, Named, Target};
use crate::serve::Core;
use crate::table::{LoadedVersion, ServedModel, Totals};

pub(super) fn model_names(core: &Core) -> Value {
    let table = core.table.snapshot();
    let models = table.iter().flat_map(|table| table.models());
    let names: Vec<&str> = models.map(|model| &*model.name).collect();
    json!({"models": names})
}

pub(super) fn model_metadata(core: &Core, asked: &Named) -> Result<Value, Refusal> {
    let target = match asked {
        Named::Model(target) => target,
        Named::Service(asked) => {
            let rows = FeatureRows::find(core, asked)?;
            let versions = [rows.version().to_owned()];
            let mut metadata = oip::model_metadata(rows.name(), &versions, rows.signature());
            metadata["properties"] = json!({"features": rows.columns()});
            return Ok(metadata);
        }
    };
    of_version(core, target, |model, version| {
        let versions: Vec<String> = model.versions.keys().map(u32::to_string).collect();
        oip::model_metadata(&model.name, &versions, &version.public)
    })
}

pub(super) fn model_config(core: &Core, asked: &Named) -> Result<Value, Refusal> {
    let rows_max = core.limits.rows_max;
    match asked {
        Named::Model(target) => of_version(core, target, |model, version| {
            oip::model_config(&model.name, &version.public, rows_max)
        }),
        Named::Service(asked) => {
            let rows = FeatureRows::find(core, asked)?;
            Ok(oip::model_config(rows.name(), rows.signature(), rows_max))
        }
    }
}

/// The name of what is asked for, and whether the version, or without one the model, answers now; false
/// while the process ends.
pub(super) fn model_ready(core: &Core, asked: &Named) -> Result<(String, bool), Refusal> {
    let name = match asked {
        Named::Model(target) => of_version(core, target, |model, _| model.name.to_string())?,
        Named::Service(asked) => FeatureRows::find(core, asked)?.name().to_owned(),
    };
    Ok((name, !core.is_draining()))
}

fn of_version<T>(
    core: &Core,
    target: &Target,
    answer: impl FnOnce(&ServedModel, &LoadedVersion) -> T,
) -> Result<T, Refusal> {
    let table = core.table.snapshot();
    let model = route::model(table.as_deref(), target)?;
    let version = route::named_or_champion(model, target)?;
    Ok(answer(model, version))
}

/// The statistics of one version, under its name.
#[derive(Serialize)]
struct VersionStatistics<'a> {
    name: &'a str,
    version: &'a str,
    #[serde(flatten)]
    totals: Totals,
}

/// The statistics of one version, of one model's, or of all.
pub(super) fn statistics(core: &Core, target: Option<&Target>) -> Result<Value, Refusal> {
    let table = core.table.snapshot();
    let versions = route::versions(table.as_deref(), target)?;
    let statistics = versions.iter().map(|version| VersionStatistics {
        name: &version.model,
        version: &version.label,
        totals: version.statistics.totals(),
    });
    Ok(json!({"model_stats": statistics.collect::<Vec<_>>()}))
}

/// What a repository index may be asked for.
#[derive(Debug, Default, Deserialize)]
struct IndexRequest {
    /// Only versions that are ready.
    #[serde(default)]
    ready: bool,
}

/// What the one repository holds; its name is not looked at.
pub(super) fn repository_index(core: &Core, body: &[u8]) -> Result<Value, Refusal> {
    let asked = match body {
        [] => IndexRequest::default(),
        body => serde_json::from_slice(body)
            .map_err(|_| Refusal::settings("the body is no index request: `{\"ready\": bool}`"))?,
    };
    let table = core.table.snapshot();
    let index = table.as_ref().map(|table| table.index(asked.ready));
    Ok(json!(index.unwrap_or_default()))
}

/// Traces are not offered: these are the settings of a server that takes none.
pub(super) fn trace_settings() -> Value {
    json!({
        "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1",
        "log_frequency": "0", "trace_file": "", "trace_mode": "triton",
    })
}

/// The log goes to standard error; who starts the process says how much of it.
pub(super) fn log_settings() -> Value {
    let logs = |level| tracing::level_filters::LevelFilter::current() >= level;
    json!({
        "log_file": "", "log_format": "default", "log_verbose_level": 0,
        "log_info": logs(tracing::Level::INFO),
        "log_warning": logs(tracing::Level::WARN),
        "log_error": logs(tracing::Level::ERROR),
    })
}

/// Accepts an update that changes nothing: a setting to its value, or to `null`, its default.
///
/// # Errors
/// When the update would change a setting, with `fixed` as the reason.
pub(super) fn update(settings: Value, body: &[u8], fixed: &'static str) -> Result<Value, Refusal> {
    let update: serde_json::Map<String, Value> = match body {
        [] => serde_json::Map::new(),
        body => serde_json::from_slice(body)
            .map_err(|_| Refusal::settings("the body is no object of settings"))?,
    };
    for (name, value) in &update {
        match settings.get(name) {
            None => return Err(Refusal::settings("there is no such setting")),
            Some(current) if value.is_null() || value == current => {}
            Some(_) => return Err(Refusal::settings(fixed)),
        }
    }
    Ok(settings)
}
