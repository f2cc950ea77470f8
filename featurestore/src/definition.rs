//! What `features.toml` defines: sources of events, entities, views over them, services for models.
//!
//! Two stages: `written` is the file as the user wrote it, `resolve` turns it into the types here,
//! in which every name has been found and every number checked. An error names file, line, key and
//! the nearest known name.

mod duration;
mod meaning;
mod resolve;
mod view;
mod window;
mod written;

use std::path::Path;
use std::sync::Arc;

pub use self::view::{
    Aggregate, Filter, Measure, MeasureKind, Summary, SummaryKind, Test, View, ViewFeature,
    ViewKey, WINDOWS_MAX,
};
pub(crate) use self::window::Tiling;
pub use self::window::{Decay, WINDOW_TILES, Window, WindowKind};
use crate::project_file::{ProjectFileError, ProjectText};
use crate::service::Service;
use crate::value::Field;

pub use self::duration::{DurationError, parse_duration_ms};
pub use self::meaning::Meaning;

/// A definition that cannot be used: file, line, key, nearest known name, problem.
pub type DefinitionError = ProjectFileError;

/// Everything that one `features.toml` defines. Immutable; shared by reference.
#[derive(Debug)]
pub struct Definitions {
    /// Event sources, as ordered in the file
    pub sources: Vec<Arc<Source>>,
    /// Entities, as ordered in the file
    pub entities: Vec<Entity>,
    /// Views, as ordered in the file
    pub views: Vec<Arc<View>>,
    /// Services, as ordered in the file
    pub services: Vec<Arc<Service>>,
}

impl Definitions {
    /// Reads and resolves a `features.toml`.
    pub fn load(path: &Path) -> Result<Self, DefinitionError> {
        Self::from_text(&ProjectText::read(path)?)
    }

    /// Resolves the text of a `features.toml`; `file` is its name in errors.
    pub fn parse(text: &str, file: &str) -> Result<Self, DefinitionError> {
        Self::from_text(&ProjectText::new(file, text))
    }

    fn from_text(text: &ProjectText) -> Result<Self, DefinitionError> {
        resolve::resolve(text, &text.parse()?)
    }

    /// The source of that name.
    pub fn source(&self, name: &str) -> Option<&Arc<Source>> {
        self.sources.iter().find(|source| &*source.name == name)
    }

    /// The view `"aircraft@1"`, or the newest version of `"aircraft"`.
    pub fn view(&self, name: &str) -> Option<&Arc<View>> {
        View::named(&self.views, name)
    }

    /// The views that fold the events of `source`.
    pub fn views_of<'a>(&'a self, source: &'a Source) -> impl Iterator<Item = &'a Arc<View>> {
        self.views
            .iter()
            .filter(|view| view.source.name == source.name)
    }

    /// The service `"delay@1"`, or the newest version of `"delay"`.
    pub fn service(&self, name: &str) -> Option<&Arc<Service>> {
        match name.split_once('@') {
            Some(_) => self.services.iter().find(|service| service.id() == name),
            None => self
                .services
                .iter()
                .filter(|service| &*service.name == name)
                .max_by_key(|service| service.version),
        }
    }
}

/// A stream of events of one shape.
#[derive(Debug, PartialEq)]
pub struct Source {
    /// Name, unique in the file; the last part of `/v1/events/{source}`
    pub name: Box<str>,
    /// Columns, as ordered in the file
    pub fields: Vec<Field>,
    /// Index of the field with the event time
    pub time_field: usize,
    /// Indices of the fields that together identify an event; two events alike in them are one
    pub id_fields: Vec<usize>,
    /// How far an event time may lie ahead of now, in milliseconds
    pub future_max_ms: i64,
    /// How far an event time may lie behind its arrival, in milliseconds (`Event::is_too_late`)
    pub lateness_ms: Option<i64>,
}

impl Source {
    /// The index of the field of that name.
    pub fn field(&self, name: &str) -> Option<usize> {
        self.fields.iter().position(|field| &*field.name == name)
    }
}

/// What views are about: a name for a list of key fields.
#[derive(Debug, PartialEq, Eq)]
pub struct Entity {
    /// Name, unique in the file
    pub name: Box<str>,
    /// Names of the key fields
    pub keys: Vec<Box<str>>,
}
