//! A derived feature: an expression as a column of a service.

use std::sync::Arc;

use super::{Dictionary, InView, of_category_code, of_request};
use crate::expression::{Datum, Expression, Operand, Program, Type};
use crate::value::Value;
use crate::window::{Feature, Reading, Status};

/// What is computed from features of views and the request.
#[derive(Clone, Debug, PartialEq)]
pub struct Derived {
    /// The expression as `Display` writes it
    text: Box<str>,
    program: Program,
    /// Indices in `Service::needed_views` of those that are read, each once
    views: Box<[usize]>,
    /// Codes of the strings that it gives
    dictionary: Option<Arc<Dictionary>>,
}

/// What one row is computed from.
pub(super) struct Row<'r> {
    pub(super) request: &'r [Value],
    /// Of each needed view; `None` where there is no state
    pub(super) readings: &'r [Option<Reading<'r>>],
    pub(super) at_ms: i64,
}

impl Derived {
    pub(crate) fn new(
        expression: &Expression,
        program: Program,
        dictionary: Option<Arc<Dictionary>>,
    ) -> Self {
        let read = program.operands().filter_map(in_view);
        let mut views: Vec<usize> = read.map(|at| at.view).collect();
        views.sort_unstable();
        views.dedup();
        Self {
            text: expression.to_string().into(),
            program,
            views: views.into(),
            dictionary,
        }
    }

    /// The expression, with no more parentheses than it needs.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The features of views that it reads, in the order of the text.
    pub fn reads(&self) -> impl Iterator<Item = InView> {
        self.program.operands().filter_map(in_view)
    }

    /// The dictionary, where the expression gives strings.
    pub fn dictionary(&self) -> Option<&Dictionary> {
        self.dictionary.as_deref()
    }

    /// The feature of one row. Its event time is the newest of the views that it names, whichever
    /// side of an `if` was taken; the request's moment where it names none.
    pub(super) fn feature(&self, row: &Row<'_>) -> Feature {
        let event_ms = match &*self.views {
            [] => row.at_ms,
            views => views
                .iter()
                .map(|&view| row.newest_ms(view))
                .max()
                .unwrap_or(0),
        };
        let feature = match self.program.run(|operand| row.datum(operand)) {
            Datum::Number(number) => of_request(Some(number), event_ms),
            Datum::Int(number) => of_request(Some(number as f64), event_ms),
            Datum::Bool(flag) => of_request(Some(f64::from(u8::from(flag))), event_ms),
            Datum::Text(word) => match &self.dictionary {
                Some(dictionary) => of_category_code(dictionary.code(word), event_ms),
                None => Feature::missing(Status::NullValue, event_ms),
            },
            Datum::Missing(status) => Feature::missing(status, event_ms),
            // No column gives times.
            Datum::Time(_) => Feature::missing(Status::NullValue, event_ms),
        };
        match feature.value.is_infinite() {
            // Above what 32 bits hold.
            true => Feature::missing(Status::NullValue, event_ms),
            false => feature,
        }
    }
}

impl<'r> Row<'r> {
    fn datum(&self, operand: Operand) -> Datum<'r> {
        match operand {
            Operand::Moment => Datum::Time(self.at_ms),
            Operand::Field { field, ty } => datum(self.request.get(field), ty),
            Operand::Feature { at, ty } => {
                let Some(Some(reading)) = self.readings.get(at.view) else {
                    return Datum::Missing(Status::NotFound);
                };
                match reading.kept(at.feature) {
                    Ok(None) => computed(reading.feature(at.feature)),
                    Ok(kept) => datum(kept, ty),
                    Err(missing) => Datum::Missing(missing.status),
                }
            }
        }
    }

    fn newest_ms(&self, view: usize) -> i64 {
        let reading = self.readings.get(view).and_then(Option::as_ref);
        reading.and_then(Reading::newest_ms).unwrap_or(0)
    }
}

fn datum(value: Option<&Value>, ty: Type) -> Datum<'_> {
    match (value, ty) {
        (Some(Value::Float(number)), _) => Datum::number(*number),
        (Some(Value::Int(ms)), Type::Time) => Datum::Time(*ms),
        (Some(Value::Int(number)), _) => Datum::Int(*number),
        (Some(Value::Bool(flag)), _) => Datum::Bool(*flag),
        (Some(Value::String(text)), _) => Datum::Text(text),
        (Some(Value::Null) | None, _) => Datum::Missing(Status::NullValue),
    }
}

/// A feature that is computed enters as it would be served: as 32 bits.
fn computed<'a>(feature: Feature) -> Datum<'a> {
    match feature.status {
        Status::Present => Datum::number(f64::from(feature.value)),
        status => Datum::Missing(status),
    }
}

fn in_view(operand: Operand) -> Option<InView> {
    match operand {
        Operand::Feature { at, .. } => Some(at),
        Operand::Moment | Operand::Field { .. } => None,
    }
}
