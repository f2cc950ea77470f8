//! What a definition means: all that can alter a value, and nothing else.
//!
//! A data folder keeps the meaning under which it first knew a version, and refuses another one under
//! the same name (`applied`). So what is here is stored: what a file can say anew must add nothing
//! where it is not said, or every folder would find its definitions changed.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use super::{Source, View};
use crate::service::{FeatureOrigin, InView, Missing, Service, ServiceFeature};
use crate::value::{Field, shorten};

/// The meaning of one version of a view or service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Meaning(Map<String, Json>);

/// Where a view's meaning has that of its features, by name.
const FEATURES: &str = "features";

/// Differences that are spelled out.
const DIFFERENCES_MAX: usize = 5;

impl Meaning {
    /// SHA-256 of it, whatever the order of its keys.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.to_string().as_bytes()).into()
    }

    pub(crate) fn from_json(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok().map(Self)
    }

    /// What is otherwise in `now`, in words; empty where both mean the same.
    pub(crate) fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        differ("", &self.0, &now.0, &mut found);
        if found.len() > DIFFERENCES_MAX {
            let more = found.len() - DIFFERENCES_MAX;
            found.truncate(DIFFERENCES_MAX);
            found.push(format!("and {more} more"));
        }
        found
    }

    /// The same of a view. A feature that only one of them has alters no value.
    pub(crate) fn differences_of_view(&self, now: &Self) -> Vec<String> {
        let shared = |own: &Self, other: &Self| {
            let mut own = own.clone();
            own.features().retain(|name, _| {
                other
                    .0
                    .get(FEATURES)
                    .is_some_and(|other| other.get(name).is_some())
            });
            own
        };
        shared(self, now).differences(&shared(now, self))
    }

    /// Adds the features that only `before` has: they keep their meaning while they are not defined.
    pub(crate) fn remember(&mut self, before: &Self) {
        let mut before = before.clone();
        let own = self.features();
        for (name, meaning) in std::mem::take(before.features()) {
            own.entry(name).or_insert(meaning);
        }
    }

    fn features(&mut self) -> &mut Map<String, Json> {
        let features = self.0.entry(FEATURES).or_insert_with(|| json!({}));
        if !features.is_object() {
            *features = json!({});
        }
        features.as_object_mut().expect("it was just made one")
    }

    /// Of a view without features. `written` is its filter as the file has it.
    pub(super) fn of_view(view: &View, filter: Option<&impl Serialize>) -> Self {
        let Source {
            name,
            fields,
            time_field,
            id_fields,
            future_max_ms: _,
            lateness_ms,
        } = &*view.source;
        let named = |&field: &usize| &*fields[field].name;
        let mut source = json!({
            "name": name,
            "time": named(time_field),
            "id": id_fields.iter().map(named).collect::<Vec<_>>(),
        });
        if let Some(lateness_ms) = lateness_ms {
            source["lateness"] = duration(*lateness_ms).into();
        }
        let mut meaning = Map::new();
        meaning.insert("source".to_owned(), source);
        let keys = view.keys.iter().map(typed).collect::<Vec<_>>();
        meaning.insert("keys".to_owned(), json!(keys));
        if let Some(ttl_ms) = view.ttl_ms {
            meaning.insert("ttl".to_owned(), duration(ttl_ms).into());
        }
        if let Some(filter) = filter {
            meaning.insert("where".to_owned(), as_written(filter, &view.source));
        }
        Self(meaning)
    }

    /// Adds a feature of a view: what its entry says, but for its name. The window is part of a
    /// feature's name.
    pub(super) fn add_feature(&mut self, name: &str, entry: &impl Serialize, source: &Source) {
        let mut entry = as_written(entry, source);
        if let Some(entry) = entry.as_object_mut() {
            entry.remove("name");
        }
        self.features().insert(name.to_owned(), entry);
    }

    /// Of a view, with some of its features only.
    fn with_features(&self, names: &[&str]) -> Json {
        let mut meaning = self.clone();
        meaning
            .features()
            .retain(|name, _| names.contains(&name.as_str()));
        Json::Object(meaning.0)
    }

    /// Of a service, with the meaning of every feature that it reads.
    pub(super) fn of_service(service: &Service) -> Self {
        let request = service.request.iter();
        let request: Map<_, _> = request
            .map(|field| (field.name.to_string(), json!(type_of(field))))
            .collect();
        let columns = service.features.iter();
        let columns: Map<_, _> = columns
            .map(|column| (column.name.to_string(), column_meaning(service, column)))
            .collect();
        let order: Vec<_> = service.feature_names().collect();
        let views = service.views.iter().enumerate().map(|(index, view)| {
            let read = service
                .features
                .iter()
                .flat_map(|column| column.origin.reads());
            let of_view = read.filter(|at| at.view == index);
            let names: Vec<_> = of_view.map(|at| &*view.features[at.feature].name).collect();
            (view.pin().to_owned(), view.meaning.with_features(&names))
        });
        let views: Map<_, _> = views.collect();
        let meaning = json!({
            "request": request,
            "order": order,
            "columns": columns,
            "views": views,
        });
        match meaning {
            Json::Object(meaning) => Self(meaning),
            _ => unreachable!("it is written as an object"),
        }
    }
}

impl fmt::Display for Meaning {
    /// As JSON, its keys in order.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&canonical(&Json::Object(self.0.clone())))
    }
}

fn column_meaning(service: &Service, column: &ServiceFeature) -> Json {
    let place = |at: &InView| {
        let view = &service.views[at.view];
        format!("{}:{}", view.pin(), view.features[at.feature].name)
    };
    let field = |field: usize| &*service.request[field].name;
    let mut meaning = match &column.origin {
        FeatureOrigin::Request { field: at } => json!({"request": field(*at)}),
        FeatureOrigin::Category {
            field: at,
            dictionary,
        } => json!({"request": field(*at), "dictionary": dictionary.words()}),
        FeatureOrigin::View(at) => json!({"view": place(at)}),
        FeatureOrigin::KeptCategory { at, dictionary } => {
            json!({"view": place(at), "dictionary": dictionary.words()})
        }
        FeatureOrigin::Difference {
            minuend,
            subtrahend,
        } => json!({"difference": [place(minuend), place(subtrahend)]}),
        FeatureOrigin::Derived(derived) => {
            let reads = derived.reads();
            let reads: Vec<_> = reads.map(|at| place(&at)).collect();
            let mut meaning = json!({"expression": derived.text(), "reads": reads});
            if let Some(dictionary) = derived.dictionary() {
                meaning["dictionary"] = json!(dictionary.words());
            }
            meaning
        }
    };
    if let Some((low, high)) = column.clip {
        meaning["clip"] = json!([low, high]);
    }
    match column.missing {
        Missing::Nan => {}
        Missing::Default(default) => meaning["default"] = json!(default),
        Missing::Refuse => meaning["missing"] = json!("refuse"),
    }
    meaning
}

/// What a part of a file says: keys that are not given left out, fields of the source with their type.
fn as_written(written: &impl Serialize, source: &Source) -> Json {
    let mut written = serde_json::to_value(written).unwrap_or_default();
    with_types(&mut written, source);
    written
}

fn with_types(written: &mut Json, source: &Source) {
    match written {
        Json::Object(keys) => {
            keys.retain(|_, value| !value.is_null());
            keys.values_mut()
                .for_each(|value| with_types(value, source));
        }
        Json::Array(values) => values
            .iter_mut()
            .for_each(|value| with_types(value, source)),
        Json::String(name) => {
            if let Some(field) = source.field(name) {
                *name = typed(&source.fields[field]);
            }
        }
        _ => {}
    }
}

fn typed(field: &Field) -> String {
    // Whether it may be null alters no value that there is.
    format!("{}: {}", field.name, field.ty)
}

fn type_of(field: &Field) -> String {
    format!("{}{}", field.ty, if field.nullable { "?" } else { "" })
}

/// A length of time in its largest whole unit.
fn duration(ms: i64) -> String {
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1_000, "s"),
    ];
    let whole = units.into_iter().find(|(unit, _)| ms % unit == 0);
    match whole {
        Some((unit, name)) => format!("{}{name}", ms / unit),
        None => format!("{ms}ms"),
    }
}

/// With the keys of every object in order.
fn canonical(json: &Json) -> String {
    match json {
        Json::Object(keys) => {
            let mut pairs: Vec<_> = keys.iter().collect();
            pairs.sort_by_key(|(key, _)| *key);
            let pairs = pairs
                .into_iter()
                .map(|(key, value)| format!("{}:{}", Json::from(key.as_str()), canonical(value)));
            format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
        }
        Json::Array(values) => {
            let values = values.iter().map(canonical);
            format!("[{}]", values.collect::<Vec<_>>().join(","))
        }
        plain => plain.to_string(),
    }
}

/// Says what is otherwise in `now`, key by key.
fn differ(
    path: &str,
    before: &Map<String, Json>,
    now: &Map<String, Json>,
    found: &mut Vec<String>,
) {
    let within = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    let shown = |value: &Json| shorten(&canonical(value));
    for (key, value) in before {
        match (value, now.get(key)) {
            (Json::Object(before), Some(Json::Object(now))) => {
                differ(&within(key), before, now, found);
            }
            (value, Some(now)) if value == now => {}
            (value, Some(now)) => {
                found.push(format!(
                    "{} {} to {}",
                    within(key),
                    shown(value),
                    shown(now)
                ));
            }
            (value, None) => found.push(format!("{} {} left out", within(key), shown(value))),
        }
    }
    for (key, value) in now {
        if !before.contains_key(key) {
            found.push(format!("{} {} added", within(key), shown(value)));
        }
    }
}
