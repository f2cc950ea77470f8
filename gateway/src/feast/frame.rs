//! Frames: `/push` and `/write-to-online-store`. Their rows become events of a source, logged and folded
//! like any other, and acknowledged once they are on disk.

use std::sync::Arc;

use featurestore::{Aggregate, Definitions, Event, Field, Ingested, Source, Value, View, nearest};

use super::columns::{Column, Columns};
use super::error::{FeastError, shown};
use super::request::FrameRequest;
use super::selection::find_view;
use crate::ingest::{self, IngestRefusal};
use crate::serve::Core;

/// What Feast's clients call the event's time, whatever the source calls it.
const EVENT_TIMESTAMP: &str = "event_timestamp";
/// When a row was made. Arrival is stamped here: kept only where the source has such a field.
const CREATED: [&str; 2] = ["created", "created_timestamp"];

/// Takes a push of events that arrived at `now_ms`.
pub(crate) async fn push(core: &Core, body: &[u8], now_ms: i64) -> Result<Ingested, FeastError> {
    let request = FrameRequest::decode(body, "push_source_name")?;
    match request.to.as_deref().unwrap_or("online") {
        "online" | "online_and_offline" => {}
        "offline" => return Err(FeastError::OfflineOnly),
        other => return Err(FeastError::To(shown(other))),
    }
    let store = core.store.as_ref().ok_or(FeastError::NoStore)?;
    let source = store.definitions().source(&request.name);
    let source = source.ok_or_else(|| FeastError::PushSource(shown(&request.name)))?;
    let rows = request.frame.rows(core.limits.rows_max)?;
    let mapping = Mapping::of_source(source, &request.frame)?;
    let events = mapping.events(rows, now_ms)?;
    Ok(ingest::write(core, store, events, now_ms).await?)
}

/// Takes values of a view that arrived at `now_ms`.
pub(crate) async fn write(core: &Core, body: &[u8], now_ms: i64) -> Result<Ingested, FeastError> {
    let request = FrameRequest::decode(body, "feature_view_name")?;
    let store = core.store.as_ref().ok_or(FeastError::NoStore)?;
    let definitions = store.definitions();
    let view = find_view(definitions, &request.name)?;
    refuse_computed(view)?;
    let rows = request.frame.rows(core.limits.rows_max)?;
    let mapping = Mapping::of_view(view, &request.frame)?;
    mapping.refuse_partial(view, definitions)?;
    let events = mapping.events(rows, now_ms)?;
    Ok(ingest::write(core, store, events, now_ms).await?)
}

/// Refuses a view of which a value is more than what the newest event says.
fn refuse_computed(view: &View) -> Result<(), FeastError> {
    let source_name = view.source.name.to_string();
    if view.filter.is_some() {
        let view = view.name.to_string();
        return Err(FeastError::Filtered { view, source_name });
    }
    let is_computed =
        |aggregate| !matches!(aggregate, Aggregate::Last { .. } | Aggregate::AgeOfLast);
    match view.features.iter().find(|one| is_computed(one.aggregate)) {
        None => Ok(()),
        Some(feature) => Err(FeastError::Computed {
            view: view.name.to_string(),
            feature: feature.name.to_string(),
            source_name,
        }),
    }
}

/// Which column of a frame each field of a source takes.
struct Mapping<'f> {
    source: &'f Arc<Source>,
    columns: Vec<Option<&'f Column<'f>>>,
}

impl<'f> Mapping<'f> {
    /// Columns are fields by name.
    fn of_source(source: &'f Arc<Source>, frame: &'f Columns<'f>) -> Result<Self, FeastError> {
        Self::new(source, frame, |name| source.field(name))
    }

    /// Columns are features of the view, or fields by name: keys and what no feature is made of.
    fn of_view(view: &'f View, frame: &'f Columns<'f>) -> Result<Self, FeastError> {
        Self::new(&view.source, frame, |name| {
            let feature = view
                .feature(name)
                .map(|index| view.features[index].aggregate);
            match feature {
                Some(Aggregate::Last { slot }) => view.last_fields.get(slot).copied(),
                _ => view.source.field(name),
            }
        })
    }

    fn new(
        source: &'f Arc<Source>,
        frame: &'f Columns<'f>,
        find: impl Fn(&str) -> Option<usize>,
    ) -> Result<Self, FeastError> {
        let mut columns: Vec<Option<&Column<'_>>> = vec![None; source.fields.len()];
        for column in frame.iter() {
            let field = match find(&column.name) {
                Some(field) => field,
                None if column.name == EVENT_TIMESTAMP => source.time_field,
                None if CREATED.contains(&&*column.name) => continue,
                None => return Err(unknown(source, &column.name)),
            };
            if let Some(before) = columns[field].replace(column) {
                let (one, other) = (shown(&before.name), shown(&column.name));
                return Err(FeastError::OneField(one, other));
            }
        }
        for (field, column) in source.fields.iter().zip(&columns) {
            if column.is_none() && !field.nullable {
                return Err(missing(field, format!("source `{}` needs it", source.name)));
            }
        }
        Ok(Self { source, columns })
    }

    /// Refuses a frame that leaves out what a view keeps: null would take the place of its value.
    fn refuse_partial(&self, view: &View, definitions: &Definitions) -> Result<(), FeastError> {
        for reader in definitions.views_of(self.source) {
            let left_out = |&field: &usize| self.columns[field].is_none();
            let Some(field) = reader.fields_read().find(left_out) else {
                continue;
            };
            let why = match reader.name == view.name {
                true => "a row of the view is written whole".to_owned(),
                false => format!(
                    "feature view {} reads it of the same source `{}`",
                    reader.name, self.source.name
                ),
            };
            return Err(missing(&self.source.fields[field], why));
        }
        Ok(())
    }

    fn events(&self, rows: usize, now_ms: i64) -> Result<Vec<Event>, FeastError> {
        let fields = self.source.fields.iter().zip(&self.columns);
        let values = |(field, column): (&Field, &Option<&Column<'_>>)| {
            let values = column.map(|column| column.of_field(field)).transpose()?;
            Ok(values.unwrap_or_default().into_iter())
        };
        let mut columns = fields.map(values).collect::<Result<Vec<_>, FeastError>>()?;
        let event = |row| {
            let values = columns
                .iter_mut()
                .map(|column| column.next().unwrap_or(Value::Null));
            let event = self.source.event(row, values.collect(), now_ms);
            event.map_err(|error| IngestRefusal::from(error).into())
        };
        (0..rows).map(event).collect()
    }
}

fn missing(field: &Field, why: String) -> FeastError {
    FeastError::MissingColumn {
        column: field.name.to_string(),
        why,
    }
}

fn unknown(source: &Source, column: &str) -> FeastError {
    let known = source.fields.iter().map(|field| &*field.name);
    FeastError::UnknownColumn {
        column: shown(column),
        nearest: nearest(column, known),
    }
}
