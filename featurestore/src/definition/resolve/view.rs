//! A view as written into one that can fold.

use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::super::written::{FilterText, Text, ViewText};
use super::super::{
    Decay, DefinitionError, Filter, Meaning, MeasureKind, Source, Summary, View, WINDOW_TILES,
    WINDOWS_MAX, Window, WindowKind, parse_duration_ms,
};
use super::Resolver;
use crate::value::{Field, FieldType, Value};

/// How long windows and half-lives may be: a minute to 90 days.
const LENGTH_MS: std::ops::RangeInclusive<i64> = 60_000..=90 * 24 * 3_600_000;

impl Resolver<'_> {
    pub(super) fn view(
        &self,
        written: &ViewText,
        sources: &[Arc<Source>],
    ) -> Result<View, DefinitionError> {
        let name = self.name("name", &written.name)?;
        let version = match &written.version {
            Some(version) => self.version(version)?,
            None => 1,
        };
        let source = sources
            .iter()
            .find(|source| *source.name == **written.source.get_ref())
            .ok_or_else(|| {
                let known = sources.iter().map(|source| &*source.name);
                self.unknown("source", &written.source, known)
            })?;
        let mut view = View {
            pin: format!("{name}@{version}").into(),
            meaning: Meaning::default(),
            name,
            version,
            source: Arc::clone(source),
            keys: Vec::new(),
            key_fields: Vec::new(),
            windows: self.windows(&written.windows)?,
            ttl_ms: match &written.ttl {
                Some(written) => Some(self.duration("ttl", written)?),
                None => None,
            },
            filter: match &written.filter {
                Some(written) => Some(self.filter(written, source)?),
                None => None,
            },
            measures: Vec::new(),
            summaries: Vec::new(),
            decays: Vec::new(),
            last_fields: Vec::new(),
            features: Vec::new(),
            id: 0,
        };
        for key in &written.keys {
            let field = self.typed("keys", key, source, &KEY_TYPES)?;
            if view.key_fields.contains(&field) {
                let problem = format!("`{}` is listed twice", key.get_ref());
                return Err(self.error("keys", key, problem));
            }
            view.key_fields.push(field);
            view.keys.push(source.fields[field].clone());
        }
        view.meaning = Meaning::of_view(&view, written.filter.as_ref());
        self.aggregates(written, &mut view)?;
        view.id = layout_id(&view);
        Ok(view)
    }

    fn windows(&self, written: &[Text]) -> Result<Vec<Window>, DefinitionError> {
        let mut windows: Vec<Window> = Vec::new();
        for text in written {
            let (length, kind) = match text.get_ref().strip_suffix(" tumbling") {
                Some(length) => (length, WindowKind::Tumbling),
                None => (text.get_ref().as_str(), WindowKind::Sliding),
            };
            let length_ms = self.length("windows", text, length)?;
            let tile_ms = match kind {
                WindowKind::Sliding => length_ms / WINDOW_TILES,
                WindowKind::Tumbling => length_ms,
            };
            if length_ms % tile_ms != 0 {
                let problem = format!("`{length}` is not twelve tiles of whole milliseconds");
                return Err(self.error("windows", text, problem));
            }
            let same = |window: &Window| window.kind == kind && window.tile_ms == tile_ms;
            if windows.iter().any(same) {
                let problem = format!("`{}` is listed twice", text.get_ref());
                return Err(self.error("windows", text, problem));
            }
            if windows.len() == WINDOWS_MAX {
                let problem = format!("more than {WINDOWS_MAX} windows");
                return Err(self.error("windows", text, problem));
            }
            windows.push(Window {
                name: text.get_ref().replace(' ', "_").into(),
                tile_ms,
                kind,
            });
        }
        Ok(windows)
    }

    /// A length of time over which something is computed.
    pub(super) fn length(
        &self,
        key: &str,
        written: &Text,
        length: &str,
    ) -> Result<i64, DefinitionError> {
        let length_ms = parse_duration_ms(length)
            .map_err(|error| self.error(key, written, error.to_string()))?;
        if LENGTH_MS.contains(&length_ms) {
            return Ok(length_ms);
        }
        let problem = format!("`{length}` is not from a minute to 90 days");
        Err(self.error(key, written, problem))
    }

    fn filter(&self, written: &FilterText, source: &Source) -> Result<Filter, DefinitionError> {
        let field = self.typed("field", &written.field, source, &KEY_TYPES)?;
        let equals = match written.equals.get_ref() {
            toml::Value::Boolean(flag) => Value::Bool(*flag),
            toml::Value::Integer(number) => Value::Int(*number),
            toml::Value::String(text) => Value::String(text.as_str().into()),
            other => {
                let problem = format!("`{other}` is not a bool, int or string");
                return Err(self.error("equals", &written.equals, problem));
            }
        };
        source.fields[field]
            .check(&equals)
            .map_err(|problem| self.error("equals", &written.equals, problem.to_string()))?;
        Ok(Filter { field, equals })
    }

    /// The index of the source's field that `written` names, if it has one of `types`.
    pub(super) fn typed(
        &self,
        key: &str,
        written: &Text,
        source: &Source,
        types: &[FieldType],
    ) -> Result<usize, DefinitionError> {
        let fields = &source.fields;
        let index = self.field(key, written, fields)?;
        let ty = fields[index].ty;
        if types.contains(&ty) {
            return Ok(index);
        }
        let wanted: Vec<_> = types.iter().map(|ty| ty.as_str()).collect();
        let problem = format!(
            "`{}` is of type {ty}, not {}",
            written.get_ref(),
            wanted.join(" or ")
        );
        Err(self.error(key, written, problem))
    }
}

/// Types with an exact equality.
pub(super) const KEY_TYPES: [FieldType; 3] = [FieldType::Bool, FieldType::Int, FieldType::String];

/// First 8 bytes of the SHA-256 over all that decides what a state holds. The TTL and the choice
/// and order of features read from the same state are not part of it.
fn layout_id(view: &View) -> u64 {
    let field = |&index: &usize| {
        let Field { name, ty, .. } = &view.source.fields[index];
        (name.to_string(), ty.as_str())
    };
    let measures: Vec<_> = view
        .measures
        .iter()
        .map(|measure| (field(&measure.field), measure.kind == MeasureKind::Truth))
        .collect();
    let tiles = |window: &Window| match window.kind {
        WindowKind::Sliding => serde_json::json!(window.tile_ms),
        WindowKind::Tumbling => serde_json::json!([window.tile_ms, "tumbling"]),
    };
    let filter = view.filter.as_ref();
    // 1 kept numbers of the newest event as f32; what reads the same has the same id.
    let layout = if view.keeps_more_than_truths() { 2 } else { 1 };
    let mut layout = serde_json::json!({
        "layout": layout,
        "view": &*view.name,
        "source": &*view.source.name,
        "keys": view.key_fields.iter().map(field).collect::<Vec<_>>(),
        "tiles_ms": view.windows.iter().map(tiles).collect::<Vec<_>>(),
        "where": filter.map(|filter| (field(&filter.field), filter.equals.to_json())),
        "measures": measures,
        "last": view.last_fields.iter().map(field).collect::<Vec<_>>(),
    });
    // What a view does not ask for is not named, so that its id stays what it was.
    if view.version > 1 {
        layout["version"] = view.version.into();
    }
    if let Some(lateness_ms) = view.source.lateness_ms {
        layout["lateness_ms"] = lateness_ms.into();
    }
    if !view.summaries.is_empty() {
        let summary = |summary: &Summary| (field(&summary.field), summary.kind.as_str());
        let summaries: Vec<_> = view.summaries.iter().map(summary).collect();
        layout["summaries"] = serde_json::json!(summaries);
    }
    if !view.decays.is_empty() {
        let decay = |decay: &Decay| (decay.half_life_ms, decay.field.as_ref().map(field));
        let decays: Vec<_> = view.decays.iter().map(decay).collect();
        layout["decays"] = serde_json::json!(decays);
    }
    let digest = Sha256::digest(layout.to_string().as_bytes());
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(id)
}
