//! An event of a source: what an edge accepts as one, and what makes two events the same.

use std::sync::Arc;

use thiserror::Error;

use crate::definition::Source;
use crate::project_file::nearest;
use crate::value::{Field, FieldProblem, Value};
use crate::varint;

/// One checked event. Values stand in the order of `source.fields` and fit them.
#[derive(Clone, Debug)]
pub struct Event {
    /// The source that it came through
    pub source: Arc<Source>,
    /// Event time: the value of the source's time field
    pub event_ms: i64,
    /// One value for each of `source.fields`
    pub values: Box<[Value]>,
}

/// A row that is not an event of its source.
#[derive(Clone, Debug, PartialEq, Error)]
#[error("row {row}: {problem}")]
pub struct EventError {
    /// Position in the batch, from 0
    pub row: usize,
    /// What is wrong with it
    pub problem: EventProblem,
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum EventProblem {
    /// JSON, but not an object
    #[error("not a json object")]
    NotObject,
    /// A field that the source does not have
    #[error("unknown field `{field}`{}", did_you_mean(.nearest.as_deref()))]
    UnknownField {
        /// The field as given
        field: String,
        /// The source's field that looks most like it
        nearest: Option<String>,
    },
    /// A field that is neither given nor nullable
    #[error("field `{field}`: missing")]
    Missing {
        /// The source's field
        field: String,
    },
    /// A value that does not fit its field
    #[error("field `{field}`: {problem}")]
    Field {
        /// The source's field
        field: String,
        /// Why it does not fit
        problem: FieldProblem,
    },
    /// An event time ahead of now by more than the source allows
    #[error(
        "field `{field}`: time {event_ms} is {ahead_ms} ms ahead of now, at most {max_ms} allowed"
    )]
    Future {
        /// The time field
        field: String,
        /// The event time
        event_ms: i64,
        /// How far ahead
        ahead_ms: i64,
        /// The source's `future_max`
        max_ms: i64,
    },
    /// Another number of values than the source has fields
    #[error("{found} values for {expected} fields")]
    Width {
        /// Values given
        found: usize,
        /// Fields of the source
        expected: usize,
    },
}

impl Source {
    /// Reads row `row` of a batch from JSON. A nullable field may be left out; `now_ms` is the
    /// time of arrival, against which an event time in the future is judged.
    pub fn parse_row(
        self: &Arc<Self>,
        row: usize,
        json: &serde_json::Value,
        now_ms: i64,
    ) -> Result<Event, EventError> {
        self.values_from_json(json)
            .and_then(|values| self.build(values, now_ms))
            .map_err(|problem| EventError { row, problem })
    }

    /// Checks typed values, in the order of `fields`, for importers that have columns.
    pub fn event(
        self: &Arc<Self>,
        row: usize,
        values: Vec<Value>,
        now_ms: i64,
    ) -> Result<Event, EventError> {
        self.check_values(&values)
            .and_then(|()| self.build(values, now_ms))
            .map_err(|problem| EventError { row, problem })
    }

    /// The event time of values that [`Source::event`] would make an event of.
    pub(crate) fn event_time(&self, values: &[Value], now_ms: i64) -> Result<i64, EventProblem> {
        self.check_values(values)?;
        self.checked_time(values, now_ms)
    }

    /// Appends the dedupe key of an event of these values.
    pub(crate) fn put_dedupe_key(&self, values: &[Value], out: &mut Vec<u8>) {
        self.put_dedupe_prefix(out);
        for &field in &self.id_fields {
            values[field].encode(out);
        }
    }

    /// What the dedupe keys of all its events begin with, and no other source's.
    pub(crate) fn put_dedupe_prefix(&self, out: &mut Vec<u8>) {
        varint::put(self.name.len() as u64, out);
        out.extend_from_slice(self.name.as_bytes());
    }

    fn values_from_json(&self, json: &serde_json::Value) -> Result<Vec<Value>, EventProblem> {
        let object = json.as_object().ok_or(EventProblem::NotObject)?;
        let unknown = |name: &&String| self.field(name).is_none();
        if let Some(name) = object.keys().find(unknown) {
            let known = self.fields.iter().map(|field| &*field.name);
            return Err(EventProblem::UnknownField {
                field: crate::value::shorten(name),
                nearest: nearest(name, known),
            });
        }
        self.fields
            .iter()
            .map(|field| match object.get(&*field.name) {
                Some(json) => field.parse_json(json).map_err(|problem| at(field, problem)),
                None if field.nullable => Ok(Value::Null),
                None => Err(EventProblem::Missing {
                    field: field.name.to_string(),
                }),
            })
            .collect()
    }

    fn check_values(&self, values: &[Value]) -> Result<(), EventProblem> {
        if values.len() != self.fields.len() {
            return Err(EventProblem::Width {
                found: values.len(),
                expected: self.fields.len(),
            });
        }
        for (field, value) in self.fields.iter().zip(values) {
            field.check(value).map_err(|problem| at(field, problem))?;
        }
        Ok(())
    }

    fn build(self: &Arc<Self>, values: Vec<Value>, now_ms: i64) -> Result<Event, EventProblem> {
        Ok(Event {
            source: Arc::clone(self),
            event_ms: self.checked_time(&values, now_ms)?,
            values: values.into_boxed_slice(),
        })
    }

    /// The values have passed their fields; the time field is not nullable, so it holds an int.
    fn checked_time(&self, values: &[Value], now_ms: i64) -> Result<i64, EventProblem> {
        let time = &self.fields[self.time_field];
        let &Value::Int(event_ms) = &values[self.time_field] else {
            return Err(at(time, FieldProblem::Null));
        };
        let ahead_ms = event_ms.saturating_sub(now_ms);
        if ahead_ms > self.future_max_ms {
            return Err(EventProblem::Future {
                field: time.name.to_string(),
                event_ms,
                ahead_ms,
                max_ms: self.future_max_ms,
            });
        }
        Ok(event_ms)
    }
}

impl Event {
    /// Whether it arrived further behind its own time than its source allows. Such an event is logged and
    /// folded nowhere: online, in a rebuild and in every recomputation this is the rule.
    pub fn is_too_late(&self, arrived_ms: i64) -> bool {
        let behind_ms = arrived_ms.saturating_sub(self.event_ms);
        self.source.lateness_ms.is_some_and(|max| behind_ms > max)
    }

    /// The same bytes for the same event sent twice: source name and id fields.
    pub fn dedupe_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.source.name.len() + 16);
        self.put_dedupe_key(&mut key);
        key
    }

    /// Appends the bytes of [`Event::dedupe_key`].
    pub(crate) fn put_dedupe_key(&self, out: &mut Vec<u8>) {
        self.source.put_dedupe_key(&self.values, out);
    }
}

fn at(field: &Field, problem: FieldProblem) -> EventProblem {
    EventProblem::Field {
        field: field.name.to_string(),
        problem,
    }
}

fn did_you_mean(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!(", did you mean `{name}`?"))
}
