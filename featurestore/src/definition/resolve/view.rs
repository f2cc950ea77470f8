//! A view as written into one that can fold.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use toml::Spanned;

use super::super::written::{FilterText, Text, ViewText};
use super::super::{
    Decay, DefinitionError, Filter, Meaning, MeasureKind, Source, Summary, Test, View,
    WINDOW_TILES, WINDOWS_MAX, Window, WindowKind, parse_duration_ms,
};
use super::Resolver;
use super::aggregate::NUMBERS;
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
        let within = written.min.is_some() || written.max.is_some();
        let types = if within { &NUMBERS[..] } else { &KEY_TYPES };
        let field = self.typed("field", &written.field, source, types)?;
        let own = &source.fields[field];
        let test = match (&written.equals, &written.one_of, within) {
            (Some(wanted), None, false) => Test::Equals(self.operand("equals", wanted, own)?),
            (None, Some(wanted), false) => Test::In(self.operands(wanted, own)?),
            (None, None, true) => self.within(written, own)?,
            _ => {
                let problem = "a filter has `equals`, or `in`, or `min` or `max` or both";
                return Err(self.error("where", &written.field, problem));
            }
        };
        Ok(Filter { field, test })
    }

    fn operands(
        &self,
        written: &Spanned<Vec<Spanned<toml::Value>>>,
        field: &Field,
    ) -> Result<Vec<Value>, DefinitionError> {
        let mut values = Vec::new();
        for one in written.get_ref() {
            let value = self.operand("in", one, field)?;
            if values.contains(&value) {
                let problem = format!("`{}` is listed twice", value.to_json());
                return Err(self.error("in", one, problem));
            }
            values.push(value);
        }
        if values.is_empty() {
            return Err(self.error("in", written, "is empty"));
        }
        Ok(values)
    }

    fn within(&self, written: &FilterText, field: &Field) -> Result<Test, DefinitionError> {
        let bound = |key, bound: &Option<Spanned<toml::Value>>| {
            let bound = bound.as_ref();
            bound
                .map(|bound| self.operand(key, bound, field))
                .transpose()
        };
        let (min, max) = (bound("min", &written.min)?, bound("max", &written.max)?);
        let low = min.clone();
        let test = Test::Within { min, max };
        match (&written.min, low) {
            (Some(at), Some(low)) if !test.passes(&low) => {
                let problem = format!("`{}` is above `max`", low.to_json());
                Err(self.error("min", at, problem))
            }
            _ => Ok(test),
        }
    }

    /// A value that a filter compares with its field.
    fn operand(
        &self,
        key: &str,
        written: &Spanned<toml::Value>,
        field: &Field,
    ) -> Result<Value, DefinitionError> {
        let value = match (written.get_ref(), field.ty) {
            (toml::Value::Boolean(flag), _) => Value::Bool(*flag),
            // `15` is a float where one is wanted.
            (toml::Value::Integer(number), FieldType::Float) => Value::Float(*number as f64),
            (toml::Value::Integer(number), _) => Value::Int(*number),
            (toml::Value::Float(number), _) => Value::Float(*number),
            (toml::Value::String(text), _) => Value::String(text.as_str().into()),
            (other, _) => {
                let problem = format!("`{other}` is not a bool, number or string");
                return Err(self.error(key, written, problem));
            }
        };
        match field.check(&value) {
            Ok(()) => Ok(value),
            Err(problem) => Err(self.error(key, written, problem.to_string())),
        }
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
const KEY_TYPES: [FieldType; 3] = [FieldType::Bool, FieldType::Int, FieldType::String];

/// A filter's test in the layout. That of `equals` is the bare value, as it was when there was no other.
fn asked(test: &Test) -> serde_json::Value {
    let json = |bound: &Option<Value>| bound.as_ref().map(Value::to_json);
    match test {
        Test::Equals(wanted) => wanted.to_json(),
        Test::In(wanted) => {
            let mut wanted: Vec<_> = wanted.iter().map(Value::to_json).collect();
            wanted.sort_by_key(serde_json::Value::to_string);
            serde_json::json!({ "in": wanted })
        }
        Test::Within { min, max } => serde_json::json!({ "min": json(min), "max": json(max) }),
    }
}

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
        "where": filter.map(|filter| (field(&filter.field), asked(&filter.test))),
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
