//! Features as an operator sees them: what is defined, how the store stands, a row as it would be
//! served now, or would have been at a past moment.

use std::ops::ControlFlow;

use featurestore::{BackupError, FeatureStore};
use serde_json::{Map, Value, json};

use super::answer::Refusal;
use super::{Admin, Body};
use crate::lookup::{RowsAsked, Target, Times};

/// Rows of one request.
const ROWS_MAX: usize = 1000;

impl Admin {
    /// Sources, views and services by name, and the store's counters.
    pub(super) fn feature_overview(&self) -> Result<Value, Refusal> {
        let store = self.store()?;
        let definitions = store.definitions();
        let sources = definitions.sources.iter().map(|source| &source.name);
        let views = definitions.views.iter().map(|view| view.pin());
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
            "verification": self.remote.view.borrow().verification,
        }))
    }

    /// Rows of a service or a view (`rows`, fields by name): as a prediction at `at_ms`, or now, would
    /// get them; with `known_at_ms` those of a past moment, from what had arrived by then.
    pub(super) async fn read_features(&self, name: &str, mut body: Body) -> Result<Value, Refusal> {
        const TIME: &str = "a number of milliseconds since 1970";
        let store = self.store()?;
        let target = Target::find(store.definitions(), name)?;
        let rows: Vec<Map<String, Value>> = body.take("rows", "a list of objects")?;
        let at_ms: Option<i64> = body.take("at_ms", TIME)?;
        let known_at_ms: Option<i64> = body.take("known_at_ms", TIME)?;
        body.end()?;
        if rows.len() > ROWS_MAX {
            return Err(Refusal::value(
                "rows",
                &rows.len().to_string(),
                "at most 1000 rows",
            ));
        }
        let times = Times {
            at_ms: at_ms.unwrap_or_else(|| self.core.clock.now_ms()),
            known_at_ms,
        };
        let asked = RowsAsked::new(target, &rows, times)?;
        let told = if asked.is_of_the_past() {
            self.past.tell(store.clone(), asked).await?
        } else {
            let told = asked.tell(store, &mut |_| ControlFlow::Continue(()));
            told.map_err(|error| Refusal::failed(error.to_string()))?
        };
        Ok(serde_json::to_value(told)?)
    }

    /// Copies the store into a folder of this machine that does not exist yet (`to`, absolute).
    pub(super) async fn back_up(&self, mut body: Body) -> Result<Value, Refusal> {
        const TO: &str = "the absolute path of a folder that does not exist yet";
        let store = self.store()?.clone();
        let to: std::path::PathBuf = body.take("to", TO)?;
        body.end()?;
        if !to.is_absolute() {
            return Err(Refusal::value("to", &to.to_string_lossy(), TO));
        }
        match tokio::task::spawn_blocking(move || store.backup(&to)).await {
            Ok(Ok(backed_up)) => Ok(serde_json::to_value(backed_up)?),
            Ok(Err(error @ (BackupError::Exists { .. } | BackupError::Inside { .. }))) => {
                Err(Refusal::conflict(error.to_string()))
            }
            Ok(Err(error)) => Err(Refusal::failed(error.to_string())),
            Err(error) => Err(Refusal::failed(error.to_string())),
        }
    }

    fn store(&self) -> Result<&FeatureStore, Refusal> {
        self.core.store.as_ref().ok_or_else(Refusal::no_project)
    }
}
