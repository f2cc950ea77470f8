//! Derived features: the names that an expression may use in a service.

use std::cell::Cell;

use super::super::written::{DerivedText, Text};
use super::super::{DefinitionError, View};
use super::service::Draft;
use super::{Known, Resolver};
use crate::expression::{Expression, ExpressionError, Operand, Program, Scope, Type, Unknown};
use crate::project_file::nearest;
use crate::service::InView;

/// A `[[derived]]`: read, but resolved anew for each service that uses it.
pub(super) struct Shared<'t> {
    pub(super) name: Box<str>,
    pub(super) expression: Expression,
    written: &'t DerivedText,
    used: Cell<bool>,
}

impl Resolver<'_> {
    pub(super) fn derived<'t>(
        &self,
        written: &'t DerivedText,
    ) -> Result<Shared<'t>, DefinitionError> {
        Ok(Shared {
            name: self.name("name", &written.name)?,
            expression: self.parsed(&written.expression)?,
            written,
            used: Cell::new(false),
        })
    }

    /// What no service uses has never been checked.
    pub(super) fn all_used(&self, derived: &[Shared<'_>]) -> Result<(), DefinitionError> {
        match derived.iter().find(|shared| !shared.used.get()) {
            None => Ok(()),
            Some(shared) => {
                let problem = format!("no service uses `{}`", shared.name);
                Err(self.error("derived", &shared.written.name, problem))
            }
        }
    }

    /// The definition that `name` is the name of.
    pub(super) fn shared<'k>(
        &self,
        name: &Text,
        known: Known<'k>,
    ) -> Result<&'k Shared<'k>, DefinitionError> {
        let found = known
            .derived
            .iter()
            .find(|shared| *shared.name == **name.get_ref());
        let shared = found.ok_or_else(|| {
            let names = known.derived.iter().map(|shared| &*shared.name);
            self.unknown("derived", name, names)
        })?;
        shared.used.set(true);
        Ok(shared)
    }

    pub(super) fn parsed(&self, written: &Text) -> Result<Expression, DefinitionError> {
        Expression::parse(written.get_ref())
            .map_err(|error| self.in_expression("expression", written, &error))
    }

    /// The program of an expression in a service, which then needs the views that it names. An error
    /// is about `written`, the value of `key`.
    pub(super) fn program(
        &self,
        expression: &Expression,
        (key, written): (&str, &Text),
        draft: &mut Draft<'_>,
    ) -> Result<Program, DefinitionError> {
        let mut names = Names { draft };
        expression
            .resolve(&mut names)
            .map_err(|error| self.in_expression(key, written, &error))
    }

    fn in_expression(&self, key: &str, written: &Text, error: &ExpressionError) -> DefinitionError {
        DefinitionError {
            nearest: error.nearest.clone(),
            ..self.error(key, written, error.to_string())
        }
    }
}

/// The request fields of a service and the features of all views.
struct Names<'d, 'k> {
    draft: &'d mut Draft<'k>,
}

impl Scope for Names<'_, '_> {
    fn field(&mut self, name: &str) -> Result<(Operand, Type), Unknown> {
        let fields = &self.draft.service.request;
        match fields.iter().position(|field| &*field.name == name) {
            Some(field) => {
                let ty = Type::of_field(fields[field].ty);
                Ok((Operand::Field { field, ty }, ty))
            }
            None => Err(unknown(name, fields.iter().map(|field| &*field.name))),
        }
    }

    fn feature(&mut self, view: &str, feature: &str) -> Result<(Operand, Type), Unknown> {
        let views = self.draft.known.views;
        let found = View::named(views, view);
        let found = found.ok_or_else(|| unknown(view, self.draft.known.view_names(view)))?;
        let index = found.feature(feature).ok_or_else(|| {
            let known: &View = found;
            unknown(feature, known.features.iter().map(|known| &*known.name))
        })?;
        let needed = self.draft.needed_view(found);
        let view = needed.map_err(|problem| Unknown {
            problem,
            nearest: None,
        })?;
        let ty = Type::of_field(found.features[index].ty);
        let at = InView {
            view,
            feature: index,
        };
        Ok((Operand::Feature { at, ty }, ty))
    }
}

fn unknown<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Unknown {
    Unknown {
        problem: format!("unknown name `{name}`"),
        nearest: nearest(name, known),
    }
}
