//! Rows of a service or a view for people to look at: of now from the online state, or of a past moment
//! from the event log.
//!
//! Shared by the admin interface and the command line, so that both say the same. A row of the past
//! costs a pass over the whole log: never on a serving or control thread.

use std::ops::ControlFlow;
use std::sync::Arc;

use featurestore::{
    Definitions, FeatureRow, FeatureStore, Field, FieldProblem, Moment, ReadError, Service,
    TravelError, Value, View, ViewKeys, ViewRows, nearest,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

/// What rows are asked of.
#[derive(Clone, Debug)]
pub(crate) enum Target {
    Service(Arc<Service>),
    View(Arc<View>),
}

/// Rows that are asked for; their values fit the target's fields.
#[derive(Clone, Debug)]
pub(crate) struct RowsAsked {
    target: Target,
    rows: Vec<Vec<Value>>,
    times: Times,
}

/// When rows are asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub at_ms: i64,
    /// Up to when events have arrived, for a row of the past; the online state's without.
    pub known_at_ms: Option<i64>,
}

/// Rows as told, in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowsTold {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<String>,
    pub at_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known_at_ms: Option<i64>,
    pub features: Vec<String>,
    pub rows: Vec<RowTold>,
}

/// One row; the lists have the length of the features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowTold {
    /// Null where there is none: JSON has no NaN.
    pub values: Vec<Json>,
    pub statuses: Vec<String>,
    /// 0 where no event was seen.
    pub event_times_ms: Vec<i64>,
    pub as_of_seq: u64,
    /// Why no model may answer from the row, where that is so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A question that cannot be asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(crate) enum AskError {
    #[error("no feature service or view is named `{name}`{}", did_you_mean(.nearest.as_deref()))]
    Unknown {
        name: String,
        nearest: Option<String>,
    },
    #[error("`{name}` is a service and a view: say `service:{name}` or `view:{name}`")]
    Ambiguous { name: String },
    #[error("row {row}: unknown field `{field}`{}", did_you_mean(.nearest.as_deref()))]
    UnknownField {
        row: usize,
        field: String,
        nearest: Option<String>,
    },
    #[error("row {row}: field `{field}`: {problem}")]
    Field {
        row: usize,
        field: String,
        problem: FieldProblem,
    },
}

/// Why rows were not told.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TellError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Travel(#[from] TravelError),
}

impl Target {
    /// What a name means: `delay`, `delay@2`, and where both a service and a view have it
    /// `service:delay` or `view:delay`.
    pub(crate) fn find(definitions: &Definitions, name: &str) -> Result<Self, AskError> {
        let (service, view) = match name.split_once(':') {
            Some(("service", name)) => (definitions.service(name), None),
            Some(("view", name)) => (None, definitions.view(name)),
            _ => (definitions.service(name), definitions.view(name)),
        };
        match (service, view) {
            (Some(service), None) => Ok(Self::Service(Arc::clone(service))),
            (None, Some(view)) => Ok(Self::View(Arc::clone(view))),
            (Some(_), Some(_)) => Err(AskError::Ambiguous {
                name: name.to_owned(),
            }),
            (None, None) => {
                let services = definitions.services.iter().map(|service| service.id());
                let views = definitions.views.iter().map(|view| view.pin());
                Err(AskError::Unknown {
                    name: shorten(name),
                    nearest: nearest(name, services.chain(views)),
                })
            }
        }
    }

    /// What a row is asked by: a request's fields, or a view's keys.
    pub(crate) fn fields(&self) -> &[Field] {
        match self {
            Self::Service(service) => &service.request,
            Self::View(view) => &view.keys,
        }
    }

    fn row(&self, row: usize, object: &Map<String, Json>) -> Result<Vec<Value>, AskError> {
        let fields = self.fields();
        let is_known = |name: &str| fields.iter().any(|field| &*field.name == name);
        if let Some(unknown) = object.keys().find(|name| !is_known(name)) {
            return Err(AskError::UnknownField {
                row,
                field: shorten(unknown),
                nearest: nearest(unknown, fields.iter().map(|field| &*field.name)),
            });
        }
        let value = |field: &Field| {
            let json = object.get(&*field.name).unwrap_or(&Json::Null);
            field.parse_json(json).map_err(|problem| AskError::Field {
                row,
                field: field.name.to_string(),
                problem,
            })
        };
        fields.iter().map(value).collect()
    }
}

impl RowsAsked {
    /// Rows by field name; what is left out is null.
    pub(crate) fn new(
        target: Target,
        rows: &[Map<String, Json>],
        times: Times,
    ) -> Result<Self, AskError> {
        let values = rows
            .iter()
            .enumerate()
            .map(|(row, object)| target.row(row, object))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            target,
            rows: values,
            times,
        })
    }

    /// Whether the answer takes a pass over the event log.
    pub(crate) fn is_of_the_past(&self) -> bool {
        self.times.known_at_ms.is_some()
    }

    /// Reads the rows. `watch` is called now and then with the events read, and may end the pass.
    pub(crate) fn tell(
        &self,
        store: &FeatureStore,
        watch: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<RowsTold, TellError> {
        let Times { at_ms, known_at_ms } = self.times;
        let moment = known_at_ms.map(|known_ms| Moment { at_ms, known_ms });
        let (service, view, features, rows) = match &self.target {
            Target::Service(service) => {
                let rows = match moment {
                    None => store.read_rows(service, &self.rows, at_ms)?,
                    Some(moment) => store.rows_then(service, &self.rows, moment, watch)?,
                };
                let names = service.feature_names().map(str::to_owned).collect();
                let id = service.id().to_owned();
                let rows = rows.iter().map(|row| of_service(service, row)).collect();
                (Some(id), None, names, rows)
            }
            Target::View(view) => {
                let columns = self.key_columns(view);
                let asked = [ViewKeys {
                    view,
                    columns: columns.iter().map(Vec::as_slice).collect(),
                }];
                let found = match moment {
                    None => store.read_views(&asked, self.rows.len())?,
                    Some(moment) => store.views_then(&asked, self.rows.len(), moment, watch)?,
                };
                let rows = found.iter().flat_map(|rows| of_view(view, rows, at_ms));
                let names = view.features.iter().map(|it| it.name.to_string()).collect();
                (None, Some(view.pin().to_owned()), names, rows.collect())
            }
        };
        Ok(RowsTold {
            service,
            view,
            at_ms,
            known_at_ms,
            features,
            rows,
        })
    }

    fn key_columns(&self, view: &View) -> Vec<Vec<Value>> {
        let column = |key| {
            let values = self.rows.iter().filter_map(|row| row.get(key).cloned());
            values.collect()
        };
        (0..view.keys.len()).map(column).collect()
    }
}

fn of_service(service: &Service, row: &FeatureRow) -> RowTold {
    let refused = service.check_row(row).err();
    RowTold {
        refused: refused.map(|refused| refused.to_string()),
        values: row.values.iter().map(|value| json!(value)).collect(),
        statuses: row.statuses.iter().map(|it| it.as_str().into()).collect(),
        event_times_ms: row.event_times_ms.clone(),
        as_of_seq: row.as_of_seq,
    }
}

fn of_view(view: &View, rows: &ViewRows, at_ms: i64) -> Vec<RowTold> {
    let readings = rows.readings(at_ms);
    let told = rows.slots().iter().map(|&slot| {
        let mut told = RowTold {
            values: Vec::with_capacity(view.features.len()),
            statuses: Vec::with_capacity(view.features.len()),
            event_times_ms: Vec::with_capacity(view.features.len()),
            as_of_seq: rows.as_of_seq,
            refused: None,
        };
        for index in 0..view.features.len() {
            let (value, status, event_ms) = readings.value(slot, index);
            told.values.push(value.to_json());
            told.statuses.push(status.as_str().into());
            told.event_times_ms.push(event_ms);
        }
        told
    });
    told.collect()
}

fn shorten(name: &str) -> String {
    name.chars().take(64).collect()
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
