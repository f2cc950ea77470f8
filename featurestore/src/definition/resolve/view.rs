//! A view as written into one that can fold.

use std::sync::Arc;

use sha2::{Digest, Sha256};
use toml::Spanned;

use super::super::written::{AggregateText, FilterText, Text, ViewText};
use super::super::{
    Aggregate, DefinitionError, Filter, Meaning, Measure, MeasureKind, Source, View, ViewFeature,
    WINDOW_TILES, WINDOWS_MAX, Window, WindowKind, parse_duration_ms,
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
    fn length(&self, key: &str, written: &Text, length: &str) -> Result<i64, DefinitionError> {
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

    /// Fills in features, measures and kept fields.
    fn aggregates(&self, written: &ViewText, view: &mut View) -> Result<(), DefinitionError> {
        let mut windowed = false;
        for aggregate in written.features.get_ref() {
            let before = view.features.len();
            windowed |= self.aggregate(aggregate, view)?;
            let (old, new) = view.features.split_at(before);
            if let Some(twice) = new
                .iter()
                .find(|new| old.iter().any(|old| old.name == new.name))
            {
                let problem = format!("feature `{}` is defined twice", twice.name);
                return Err(self.error("features", aggregate, problem));
            }
            for feature in new {
                view.meaning
                    .add_feature(&feature.name, aggregate.get_ref(), &view.source);
            }
        }
        if view.features.is_empty() {
            return Err(self.error("features", &written.features, "a view needs a feature"));
        }
        match written.windows.first() {
            Some(first) if !windowed => {
                Err(self.error("windows", first, "no feature of the view uses a window"))
            }
            _ => Ok(()),
        }
    }

    /// Adds the features of one entry; answers whether it uses the windows.
    fn aggregate(
        &self,
        written: &Spanned<AggregateText>,
        view: &mut View,
    ) -> Result<bool, DefinitionError> {
        let entry = written.get_ref();
        match entry {
            _ if entry.keys_given() != 1 => {
                let problem = "an entry has exactly one of `count`, `sum`, `mean`, `rate`, `last`, \
                               `age_of_last`";
                Err(self.error("features", written, problem))
            }
            AggregateText {
                count: Some(flag), ..
            } => {
                self.must_be_true("count", flag)?;
                let named = self.named(entry, "count".to_owned(), FieldType::Int)?;
                let count = |window| Aggregate::Count { window };
                self.per_window(written, view, &named, count)
            }
            AggregateText {
                sum: Some(name), ..
            } => {
                let measure = self.measure("sum", name, view)?;
                let named = self.named_after("sum", name, entry)?;
                let sum = |window| Aggregate::Sum { window, measure };
                self.per_window(written, view, &named, sum)
            }
            AggregateText {
                mean: Some(name), ..
            } => {
                let measure = self.measure("mean", name, view)?;
                let named = self.named_after("mean", name, entry)?;
                let mean = |window| Aggregate::Mean { window, measure };
                self.per_window(written, view, &named, mean)
            }
            AggregateText {
                rate: Some(name), ..
            } => {
                let measure = self.measure("rate", name, view)?;
                let named = self.named_after("rate", name, entry)?;
                let rate = |window| Aggregate::Rate { window, measure };
                self.per_window(written, view, &named, rate)
            }
            AggregateText { .. } => self.of_newest(entry, view),
        }
    }

    /// Adds the feature of an entry with `last` or `age_of_last`.
    fn of_newest(&self, entry: &AggregateText, view: &mut View) -> Result<bool, DefinitionError> {
        let (named, aggregate) = match &entry.last {
            Some(name) => {
                let field = self.field("last", name, &view.source.fields)?;
                let slot = view.last_fields.len();
                view.last_fields.push(field);
                let ty = view.source.fields[field].ty;
                let named = self.named(entry, format!("last_{}", name.get_ref()), ty)?;
                (named, Aggregate::Last { slot })
            }
            None => {
                if let Some(flag) = &entry.age_of_last {
                    self.must_be_true("age_of_last", flag)?;
                }
                let named = self.named(entry, "age_of_last".to_owned(), FieldType::Float)?;
                (named, Aggregate::AgeOfLast)
            }
        };
        view.features.push(ViewFeature {
            name: named.name,
            ty: named.ty,
            aggregate,
        });
        Ok(false)
    }

    /// What an entry's features are called: by its `name`, else by what it computes.
    fn named(
        &self,
        entry: &AggregateText,
        computed: String,
        ty: FieldType,
    ) -> Result<Named, DefinitionError> {
        let name = match &entry.name {
            Some(name) => self.name("name", name)?,
            None => computed.into(),
        };
        Ok(Named { name, ty })
    }

    /// The same for a float computed from one field.
    fn named_after(
        &self,
        key: &str,
        field: &Text,
        entry: &AggregateText,
    ) -> Result<Named, DefinitionError> {
        let computed = format!("{key}_{}", field.get_ref());
        self.named(entry, computed, FieldType::Float)
    }

    /// The index of the measure that `key` needs; several features share one.
    fn measure(&self, key: &str, name: &Text, view: &mut View) -> Result<usize, DefinitionError> {
        let (types, kind) = match key {
            "rate" => (&[FieldType::Bool][..], MeasureKind::Truth),
            _ => (&[FieldType::Int, FieldType::Float][..], MeasureKind::Number),
        };
        let field = self.typed(key, name, &view.source, types)?;
        let measure = Measure { field, kind };
        let found = view.measures.iter().position(|known| *known == measure);
        Ok(found.unwrap_or_else(|| {
            view.measures.push(measure);
            view.measures.len() - 1
        }))
    }

    fn per_window(
        &self,
        written: &Spanned<AggregateText>,
        view: &mut View,
        named: &Named,
        aggregate: impl Fn(usize) -> Aggregate,
    ) -> Result<bool, DefinitionError> {
        if view.windows.is_empty() {
            let problem = format!("`{}` needs the view to have `windows`", named.name);
            return Err(self.error("features", written, problem));
        }
        for (index, window) in view.windows.iter().enumerate() {
            view.features.push(ViewFeature {
                name: format!("{}_{}", named.name, window.name).into(),
                ty: named.ty,
                aggregate: aggregate(index),
            });
        }
        Ok(true)
    }

    fn must_be_true(&self, key: &str, flag: &Spanned<bool>) -> Result<(), DefinitionError> {
        if *flag.get_ref() {
            return Ok(());
        }
        Err(self.error(key, flag, "leave it out instead of `false`"))
    }

    /// The index of the source's field that `written` names, if it has one of `types`.
    fn typed(
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

/// Name and type of a feature, or of one for each window.
struct Named {
    name: Box<str>,
    ty: FieldType,
}

/// Types with an exact equality.
const KEY_TYPES: [FieldType; 3] = [FieldType::Bool, FieldType::Int, FieldType::String];

impl AggregateText {
    fn keys_given(&self) -> usize {
        let fields = [&self.sum, &self.mean, &self.rate, &self.last];
        let flags = [&self.count, &self.age_of_last];
        fields.iter().filter(|key| key.is_some()).count()
            + flags.iter().filter(|key| key.is_some()).count()
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
        "where": filter.map(|filter| (field(&filter.field), filter.equals.to_json())),
        "measures": measures,
        "last": view.last_fields.iter().map(field).collect::<Vec<_>>(),
    });
    if view.version > 1 {
        layout["version"] = view.version.into();
    }
    if let Some(lateness_ms) = view.source.lateness_ms {
        layout["lateness_ms"] = lateness_ms.into();
    }
    let digest = Sha256::digest(layout.to_string().as_bytes());
    let mut id = [0; 8];
    id.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(id)
}
