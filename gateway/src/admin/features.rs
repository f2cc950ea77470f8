//! Features as an operator sees them: what is defined, how the store stands, a row as it would be
//! served now.

use featurestore::{FeatureStore, Field, Service};
use serde_json::{Map, Value, json};

use super::answer::Refusal;
use super::{Admin, Body};

/// Rows of one request.
const ROWS_MAX: usize = 1000;

impl Admin {
    /// Sources, views and services by name, and the store's counters.
    pub(super) fn feature_overview(&self) -> Result<Value, Refusal> {
        let store = self.store()?;
        let definitions = store.definitions();
        let sources = definitions.sources.iter().map(|source| &source.name);
        let views = definitions.views.iter().map(|view| &view.name);
        let services = definitions.services.iter().map(|service| {
            json!({
                "service": service.id(),
                "request": service.request.iter().map(|field| &field.name).collect::<Vec<_>>(),
                "features": service.feature_names().collect::<Vec<_>>(),
            })
        });
        Ok(json!({
            "sources": sources.collect::<Vec<_>>(),
            "views": views.collect::<Vec<_>>(),
            "services": services.collect::<Vec<_>>(),
            "stats": store.stats(),
        }))
    }

    /// The rows of a service for some requests (`rows`, fields by name), as a prediction at `at_ms`,
    /// or now, would get them.
    pub(super) fn read_features(&self, service: &str, mut body: Body) -> Result<Value, Refusal> {
        let store = self.store()?;
        let found = store.definitions().service(service);
        let service = found.ok_or_else(|| Refusal::unknown("feature service", service))?;
        let asked: Vec<Map<String, Value>> = body.take("rows", "a list of objects")?;
        let at_ms: Option<i64> = body.take("at_ms", "a number of milliseconds since 1970")?;
        body.end()?;
        if asked.len() > ROWS_MAX {
            return Err(Refusal::value(
                "rows",
                &asked.len().to_string(),
                "at most 1000 rows",
            ));
        }
        let at_ms = at_ms.unwrap_or_else(|| self.core.clock.now_ms());
        let requests = asked.iter().enumerate();
        let requests = requests
            .map(|(row, object)| request(service, row, object))
            .collect::<Result<Vec<_>, _>>()?;
        let rows = store
            .read_rows(service, &requests, at_ms)
            .map_err(|error| Refusal::failed(error.to_string()))?;
        let shown = rows.iter().map(|row| {
            // JSON has no NaN: what is missing is null.
            json!({
                "values": row.values,
                "statuses": row.statuses.iter().map(|status| status.as_str()).collect::<Vec<_>>(),
                "event_times_ms": row.event_times_ms,
                "as_of_seq": row.as_of_seq,
            })
        });
        Ok(json!({
            "service": service.id(),
            "at_ms": at_ms,
            "features": service.feature_names().collect::<Vec<_>>(),
            "rows": shown.collect::<Vec<_>>(),
        }))
    }

    fn store(&self) -> Result<&FeatureStore, Refusal> {
        self.core.store.as_ref().ok_or_else(Refusal::no_project)
    }
}

fn request(
    service: &Service,
    row: usize,
    object: &Map<String, Value>,
) -> Result<Vec<featurestore::Value>, Refusal> {
    if let Some(unknown) = object
        .keys()
        .find(|name| service.request_field(name).is_none())
    {
        let shown: String = unknown.chars().take(64).collect();
        return Err(Refusal::row(row, format!("unknown field `{shown}`")));
    }
    let value = |field: &Field| {
        let json = object.get(&*field.name).unwrap_or(&Value::Null);
        let parsed = field.parse_json(json);
        parsed.map_err(|problem| Refusal::row(row, format!("field `{}`: {problem}", field.name)))
    };
    service.request.iter().map(value).collect()
}
