//! `/get-online-features`: features of views at one cut, or the row of a service.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

use featurestore::{
    Definitions, FeatureOrigin, FeatureRow, FeatureStore, Field, FieldType, Service, Status, Value,
    View, ViewKeys, ViewRows,
};

use super::FeastRules;
use super::answer::{Answer, Cell, Cells};
use super::columns::Columns;
use super::error::{FeastError, shown};
use super::request::OnlineRequest;
use super::selection::{Selection, name, refuse_collisions};
use crate::cold::ColdReads;
use crate::features::Reader;
use crate::serve::Core;

/// Answers one request of that time: the body of the answer.
///
/// # Errors
/// When the request is wrong, or the store cannot be read.
pub(crate) async fn online_features(
    core: &Core,
    body: &[u8],
    at_ms: i64,
    until: Instant,
) -> Result<Vec<u8>, FeastError> {
    let request = OnlineRequest::decode(body)?;
    let desk = Desk {
        store: core.store.as_ref().ok_or(FeastError::NoStore)?,
        reader: core.reader(at_ms, until),
        cold: (&core.cold, until),
        rows_max: core.limits.rows_max,
        rules: core.feast,
        at_ms,
    };
    match &request.service {
        Some(service) => desk.of_service(service, &request).await,
        None => desk.of_views(&request).await,
    }
}

/// What every request is answered with.
struct Desk<'s> {
    store: &'s FeatureStore,
    reader: Reader<'s>,
    /// Who reads what is not in memory, and until when.
    cold: (&'s ColdReads, Instant),
    rows_max: usize,
    rules: FeastRules,
    at_ms: i64,
}

impl Desk<'_> {
    fn definitions(&self) -> &Definitions {
        self.store.definitions()
    }

    async fn of_views(&self, request: &OnlineRequest<'_>) -> Result<Vec<u8>, FeastError> {
        let selection = Selection::resolve(self.definitions(), &request.features)?;
        let keyless = selection.views.iter().all(|view| view.keys.is_empty());
        let rows = match keyless && request.entities.is_empty() {
            true => 1,
            false => request.entities.rows(self.rows_max)?,
        };
        let keys = JoinKeys::read(&selection.views, &request.entities)?;
        // Owned: the keys may go to another thread.
        let key_names = keys
            .echoed()
            .map(|key| Cow::Owned(key.field.name.to_string()));
        let mut names: Vec<_> = key_names.collect();
        names.extend(selection.names(request.full_names));
        refuse_collisions(&names, request.full_names)?;

        let (keys, found) = self.read_views(&selection, keys, rows).await?;
        let readings: Vec<_> = found
            .iter()
            .map(|rows| match self.rules.compat {
                true => rows.readings_of_any_age(self.at_ms),
                false => rows.readings(self.at_ms),
            })
            .collect();
        let mut answer = Answer::new(rows * names.len(), self.rules);
        keys.write(&mut answer, self.rules)?;
        let mut cells: Vec<Cells> = found.iter().map(|_| Cells::default()).collect();
        for selected in &selection.features {
            let ty = selection.views[selected.view].features[selected.feature].ty;
            let cells = &mut cells[selected.view];
            cells.clear();
            for (value, status, event_ms) in readings[selected.view].values(selected.feature) {
                cells.push(
                    &Cell {
                        value,
                        ty,
                        status,
                        event_ms,
                    },
                    self.rules,
                );
            }
            let slots = found[selected.view].slots();
            answer.column(cells, slots.iter().copied())?;
        }
        let views = selection.views.iter().map(|view| &***view);
        Ok(answer.finish(&names, request.with_versions.then_some(views)))
    }

    async fn of_service(
        &self,
        service: &str,
        request: &OnlineRequest<'_>,
    ) -> Result<Vec<u8>, FeastError> {
        let known = self.definitions().service(service);
        let service = known.ok_or_else(|| FeastError::Service(shown(service)))?;
        let asked = request_rows(service, &request.entities, self.rows_max)?;
        let keys: Vec<usize> = service.key_fields().collect();
        let key_names = keys
            .iter()
            .map(|&field| Cow::Borrowed(&*service.request[field].name));
        let mut names: Vec<_> = key_names.collect();
        names.extend(column_names(service, request.full_names));
        refuse_collisions(&names, request.full_names)?;

        let (asked, rows) = self.reader.read(self.store, service, asked).await?;
        let mut answer = Answer::new(rows.len() * names.len(), self.rules);
        let mut cells = Cells::default();
        for field in keys {
            let ty = service.request[field].ty;
            cells.clear();
            for request in &asked {
                cells.push(&Cell::given(&request[field], ty), self.rules);
            }
            answer.column(&cells, 0..rows.len())?;
        }
        let mut slots = Vec::with_capacity(rows.len());
        for column in 0..service.features.len() {
            cells.clear();
            slots.clear();
            let mut before = None;
            for row in &rows {
                // Rows that follow one another and share an entity share its cells.
                let bits = row.values[column].to_bits();
                let cell = (bits, row.statuses[column], row.event_times_ms[column]);
                if before.replace(cell) != Some(cell) {
                    cells.push(&of_row(row, column), self.rules);
                }
                slots.push(cells.len() - 1);
            }
            answer.column(&cells, slots.iter().copied())?;
        }
        let views = service.needed_views().iter().map(|view| &**view);
        Ok(answer.finish(&names, request.with_versions.then_some(views)))
    }

    /// The states of the selection's views at one cut: in place where all is in memory.
    async fn read_views(
        &self,
        selection: &Selection<'_>,
        keys: JoinKeys,
        rows: usize,
    ) -> Result<(JoinKeys, Vec<ViewRows>), FeastError> {
        let asked: Vec<_> = selection.views.iter().map(|view| keys.of(view)).collect();
        let found = self.store.views_in_memory(&asked, rows)?;
        drop(asked);
        if let Some(found) = found {
            return Ok((keys, found));
        }
        let views: Vec<_> = selection
            .views
            .iter()
            .map(|&view| Arc::clone(view))
            .collect();
        let (store, (cold, until)) = (self.store.clone(), self.cold);
        let read = move || {
            let asked: Vec<_> = views.iter().map(|view| keys.of(view)).collect();
            let found = store.read_views(&asked, rows);
            found.map(|found| (keys, found))
        };
        Ok(cold.run(until, read).await??)
    }
}

/// The columns of join keys, each once however many views share it.
struct JoinKeys(Vec<JoinKey>);

struct JoinKey {
    field: Field,
    values: Vec<Value>,
}

impl JoinKeys {
    /// Reads the keys of the views; a key of another type in another view is a column of its own.
    fn read(views: &[&Arc<View>], entities: &Columns<'_>) -> Result<Self, FeastError> {
        let mut keys: Vec<JoinKey> = Vec::new();
        for view in views {
            for field in &view.keys {
                if keys.iter().any(|known| known.field == *field) {
                    continue;
                }
                let column = entities
                    .get(&field.name)
                    .ok_or_else(|| FeastError::JoinKey {
                        key: field.name.to_string(),
                        of: format!("feature view {}", view.name),
                    })?;
                let values = column.of_field(field)?;
                let field = field.clone();
                keys.push(JoinKey { field, values });
            }
        }
        Ok(Self(keys))
    }

    /// The columns of one view.
    fn of<'k>(&'k self, view: &'k Arc<View>) -> ViewKeys<'k> {
        let column = |field: &Field| {
            let key = self.0.iter().find(|key| key.field == *field);
            key.map_or(&[][..], |key| &key.values)
        };
        ViewKeys {
            view,
            columns: view.keys.iter().map(column).collect(),
        }
    }

    /// The keys that the answer begins with: each name once.
    fn echoed(&self) -> impl Iterator<Item = &JoinKey> {
        let is_first = |(k, key): &(usize, &JoinKey)| {
            self.0[..*k]
                .iter()
                .all(|before| before.field.name != key.field.name)
        };
        let keys = self.0.iter().enumerate().filter(is_first);
        keys.map(|(_, key)| key)
    }

    fn write(&self, answer: &mut Answer, rules: FeastRules) -> Result<(), FeastError> {
        for key in self.echoed() {
            let mut cells = Cells::default();
            for value in &key.values {
                cells.push(&Cell::given(value, key.field.ty), rules);
            }
            answer.column(&cells, 0..key.values.len())?;
        }
        Ok(())
    }
}

/// The request's rows, each value that of its field.
fn request_rows(
    service: &Service,
    entities: &Columns<'_>,
    rows_max: usize,
) -> Result<Vec<Vec<Value>>, FeastError> {
    let rows = match service.request.is_empty() && entities.is_empty() {
        true => 1,
        false => entities.rows(rows_max)?,
    };
    let column = |(index, field): (usize, &Field)| {
        let column = entities.get(&field.name);
        let column = column.ok_or_else(|| lacks(service, index, field))?;
        Ok(column.of_field(field)?.into_iter())
    };
    let fields = service.request.iter().enumerate();
    let columns: Result<Vec<_>, FeastError> = fields.map(column).collect();
    let mut columns = columns?;
    let row = |_| columns.iter_mut().filter_map(Iterator::next).collect();
    Ok((0..rows).map(row).collect())
}

fn lacks(service: &Service, index: usize, field: &Field) -> FeastError {
    let (name, service_name) = (field.name.to_string(), service.name.to_string());
    match service.key_fields().any(|key| key == index) {
        true => FeastError::JoinKey {
            key: name,
            of: format!("feature service {service_name}"),
        },
        false => FeastError::RequestData {
            field: name,
            service: service_name,
        },
    }
}

/// The names of a service's columns. What is no view's own is called after the service in full, as an
/// on-demand view of Feast would be.
fn column_names(service: &Service, full: bool) -> impl Iterator<Item = Cow<'_, str>> {
    service
        .features
        .iter()
        .map(move |column| match &column.origin {
            FeatureOrigin::View(at) => {
                let view = &service.needed_views()[at.view];
                name(&view.name, &view.features[at.feature].name, full)
            }
            _ => name(&service.name, &column.name, full),
        })
}

/// One value of a service's row, as a model gets it: the default where there is one.
fn of_row(row: &FeatureRow, column: usize) -> Cell<'static> {
    let value = f64::from(row.values[column]);
    let status = row.statuses[column];
    let is_missing = value.is_nan() && status != Status::Present;
    Cell {
        value: Cow::Owned(if is_missing {
            Value::Null
        } else {
            Value::Float(value)
        }),
        ty: FieldType::Float,
        status,
        event_ms: row.event_times_ms[column],
    }
}
