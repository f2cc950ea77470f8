//! From the file as written to definitions in which every name is found.

mod aggregate;
mod column;
mod derived;
mod service;
mod view;

use std::collections::BTreeSet;
use std::sync::Arc;

use toml::Spanned;

use self::column::Words;
use self::derived::Shared;
use super::written::{EntityText, FieldsText, FileText, SourceText, Text};
use super::{DefinitionError, Definitions, Entity, Source, View, parse_duration_ms};
use crate::project_file::ProjectText;
use crate::value::{Field, FieldType};

/// Resolves a whole file, in the order source, entity, view, dictionary, derived,
/// service.
pub(super) fn resolve(text: &ProjectText, file: &FileText) -> Result<Definitions, DefinitionError> {
    let resolver = Resolver { text };
    let mut names = Names::default();
    let mut definitions = Definitions {
        sources: Vec::new(),
        entities: Vec::new(),
        views: Vec::new(),
        services: Vec::new(),
    };
    for written in &file.source {
        names.claim(text, "source", &written.name)?;
        definitions
            .sources
            .push(Arc::new(resolver.source(written)?));
    }
    for written in &file.entity {
        names.claim(text, "entity", &written.name)?;
        let entity = resolver.entity(written, &definitions.sources)?;
        definitions.entities.push(entity);
    }
    for written in &file.view {
        let view = resolver.view(written, &definitions.sources)?;
        if definitions.view(view.pin()).is_some() {
            let problem = format!("view `{}` is defined twice", view.pin());
            return Err(text.error(written.name.span(), "name", problem));
        }
        definitions.views.push(Arc::new(view));
    }
    let mut dictionaries = Vec::new();
    for written in &file.dictionary {
        names.claim(text, "dictionary", &written.name)?;
        dictionaries.push(resolver.dictionary(written)?);
    }
    let mut derived = Vec::new();
    for written in &file.derived {
        names.claim(text, "derived", &written.name)?;
        derived.push(resolver.derived(written)?);
    }
    for written in &file.service {
        let known = Known {
            views: &definitions.views,
            dictionaries: &dictionaries,
            derived: &derived,
        };
        let service = resolver.service(written, known)?;
        if definitions.service(service.id()).is_some() {
            let problem = format!("`{}` is defined twice", service.id());
            return Err(text.error(written.version.span(), "version", problem));
        }
        definitions.services.push(Arc::new(service));
    }
    resolver.all_used(&derived)?;
    Ok(definitions)
}

/// The default of a source's `future_max`.
const FUTURE_MAX_MS: i64 = 5 * 60_000;

struct Resolver<'a> {
    text: &'a ProjectText,
}

/// What a service may name.
#[derive(Clone, Copy)]
struct Known<'a> {
    views: &'a [Arc<View>],
    dictionaries: &'a [Words],
    derived: &'a [Shared<'a>],
}

impl<'a> Known<'a> {
    /// What views are called where `name` names none: with their versions where it has one.
    fn view_names(self, name: &str) -> impl Iterator<Item = &'a str> {
        let pinned = name.contains('@');
        let called = move |view: &'a Arc<View>| if pinned { view.pin() } else { &*view.name };
        self.views.iter().map(called)
    }
}

impl Resolver<'_> {
    fn source(&self, written: &SourceText) -> Result<Source, DefinitionError> {
        let name = self.name("name", &written.name)?;
        let fields = self.fields("fields", &written.fields)?;
        let time_field = self.field("time", &written.time, &fields)?;
        if fields[time_field].ty != FieldType::Time || fields[time_field].nullable {
            let problem = format!("`{}` is not of type `time`", written.time.get_ref());
            return Err(self.error("time", &written.time, problem));
        }
        if written.id.get_ref().is_empty() {
            return Err(self.error("id", &written.id, "at least one field is needed"));
        }
        let mut id_fields = Vec::new();
        for id in written.id.get_ref() {
            let field = self.field("id", id, &fields)?;
            if fields[field].nullable {
                let problem = format!("`{}` may be null and so identifies nothing", id.get_ref());
                return Err(self.error("id", id, problem));
            }
            id_fields.push(field);
        }
        Ok(Source {
            name,
            fields,
            time_field,
            id_fields,
            future_max_ms: match &written.future_max {
                Some(written) => self.duration("future_max", written)?,
                None => FUTURE_MAX_MS,
            },
            lateness_ms: match &written.lateness {
                Some(written) => Some(self.duration("lateness", written)?),
                None => None,
            },
        })
    }

    fn entity(
        &self,
        written: &EntityText,
        sources: &[Arc<Source>],
    ) -> Result<Entity, DefinitionError> {
        let known: Vec<&str> = sources
            .iter()
            .flat_map(|source| &source.fields)
            .map(|field| &*field.name)
            .collect();
        let mut keys = Vec::new();
        for key in &written.keys {
            if !known.contains(&key.get_ref().as_str()) {
                return Err(self.unknown("keys", key, known));
            }
            keys.push(key.get_ref().as_str().into());
        }
        Ok(Entity {
            name: self.name("name", &written.name)?,
            keys,
        })
    }

    /// Fields in the order in which they were written.
    fn fields(&self, key: &str, written: &FieldsText) -> Result<Vec<Field>, DefinitionError> {
        let mut written: Vec<_> = written.iter().collect();
        written.sort_by_key(|(name, _)| name.span().start);
        written
            .into_iter()
            .map(|(name, ty)| {
                let (word, nullable) = match ty.get_ref().strip_suffix('?') {
                    Some(word) => (word, true),
                    None => (ty.get_ref().as_str(), false),
                };
                let known = FieldType::ALL.map(FieldType::as_str);
                Ok(Field {
                    name: self.name(key, name)?,
                    ty: FieldType::parse(word)
                        .ok_or_else(|| self.unknown(name.get_ref(), ty, known))?,
                    nullable,
                })
            })
            .collect()
    }

    /// The index of the field that `written` names.
    fn field(&self, key: &str, written: &Text, fields: &[Field]) -> Result<usize, DefinitionError> {
        fields
            .iter()
            .position(|field| *field.name == **written.get_ref())
            .ok_or_else(|| self.unknown(key, written, fields.iter().map(|field| &*field.name)))
    }

    /// Names are parts of other names (`view:feature`, `service@version`), of paths and of labels.
    fn name(&self, key: &str, written: &Text) -> Result<Box<str>, DefinitionError> {
        let name = written.get_ref();
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        if starts && name.len() <= 64 && name.chars().all(plain) {
            return Ok(name.as_str().into());
        }
        let problem = format!(
            "`{name}` is not a name (a letter or `_`, then letters, digits, `_`, `-`, `.`; 64 at most)"
        );
        Err(self.error(key, written, problem))
    }

    /// Versions start at 1.
    fn version(&self, written: &Spanned<u32>) -> Result<u32, DefinitionError> {
        match *written.get_ref() {
            0 => {
                let problem = "`0` is not a version, they start at 1";
                Err(self.error("version", written, problem))
            }
            version => Ok(version),
        }
    }

    fn duration(&self, key: &str, written: &Text) -> Result<i64, DefinitionError> {
        parse_duration_ms(written.get_ref())
            .map_err(|error| self.error(key, written, error.to_string()))
    }

    fn error<T>(&self, key: &str, at: &Spanned<T>, problem: impl Into<String>) -> DefinitionError {
        self.text.error(at.span(), key, problem)
    }

    fn unknown<'k>(
        &self,
        key: &str,
        at: &Text,
        known: impl IntoIterator<Item = &'k str>,
    ) -> DefinitionError {
        self.text.unknown(at.span(), key, at.get_ref(), known)
    }
}

/// Names taken so far, by kind.
#[derive(Default)]
struct Names<'a>(BTreeSet<(&'static str, &'a str)>);

impl<'a> Names<'a> {
    fn claim(
        &mut self,
        text: &ProjectText,
        kind: &'static str,
        name: &'a Text,
    ) -> Result<(), DefinitionError> {
        if self.0.insert((kind, name.get_ref())) {
            return Ok(());
        }
        let problem = format!("{kind} `{}` is defined twice", name.get_ref());
        Err(text.error(name.span(), "name", problem))
    }
}
