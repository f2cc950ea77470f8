//! A service as written into one that can assemble rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use toml::Spanned;

use super::super::written::{ColumnText, ServiceText, Text};
use super::super::{DefinitionError, View};
use super::Resolver;
use crate::service::{Dictionary, FeatureOrigin, InView, Service, ServiceFeature};
use crate::value::{Field, FieldType};

impl Resolver<'_> {
    pub(super) fn service(
        &self,
        written: &ServiceText,
        views: &[Arc<View>],
    ) -> Result<Service, DefinitionError> {
        let name = self.name("name", &written.name)?;
        let version = *written.version.get_ref();
        if version == 0 {
            return Err(self.error(
                "version",
                &written.version,
                "`0` is not a version, they start at 1",
            ));
        }
        let mut service = Service {
            id: format!("{name}@{version}").into(),
            name,
            version,
            request: self.fields("request", &written.request)?,
            features: Vec::new(),
            views: Vec::new(),
            view_keys: Vec::new(),
        };
        for column in written.features.get_ref() {
            self.column(column, views, &mut service)?;
        }
        if service.features.is_empty() {
            return Err(self.error("features", &written.features, "a service needs a feature"));
        }
        Ok(service)
    }

    /// Adds the columns of one entry.
    fn column(
        &self,
        written: &Spanned<ColumnText>,
        views: &[Arc<View>],
        service: &mut Service,
    ) -> Result<(), DefinitionError> {
        let entry = written.get_ref();
        let before = service.features.len();
        match (&entry.request, &entry.view, &entry.difference) {
            (Some(request), None, None) => self.request_column(request, entry, service)?,
            (None, Some(view), None) => self.view_columns(view, entry, views, service)?,
            (None, None, Some(difference)) => {
                self.difference_column(difference, entry, views, service)?;
            }
            _ => {
                let problem = "an entry has exactly one of `request`, `view` and `difference`";
                return Err(self.error("features", written, problem));
            }
        }
        if let (Some(name), None) = (&entry.name, &entry.difference) {
            return Err(self.error("name", name, "belongs to `difference`"));
        }
        let mut names: BTreeSet<&str> = service.features[..before]
            .iter()
            .map(|feature| &*feature.name)
            .collect();
        for feature in &service.features[before..] {
            if !names.insert(&feature.name) {
                let problem = format!("feature `{}` is listed twice", feature.name);
                return Err(self.error("features", written, problem));
            }
        }
        Ok(())
    }

    fn request_column(
        &self,
        request: &Text,
        entry: &ColumnText,
        service: &mut Service,
    ) -> Result<(), DefinitionError> {
        if let Some(features) = &entry.features {
            return Err(self.error("features", features, "belongs to `view`, not to `request`"));
        }
        let field = self.field("request", request, &service.request)?;
        let Field { name, ty, .. } = &service.request[field];
        let origin = match (ty, &entry.dictionary) {
            (FieldType::String, Some(words)) => FeatureOrigin::Category {
                field,
                dictionary: Arc::new(self.dictionary(words)?),
            },
            (FieldType::String, None) => {
                let problem = format!("`{name}` is a string and needs a `dictionary`");
                return Err(self.error("request", request, problem));
            }
            (FieldType::Time, _) => {
                let problem = format!("`{name}` is a time, which is no feature");
                return Err(self.error("request", request, problem));
            }
            (ty, Some(words)) => {
                let problem = format!("`{name}` is of type {ty}, only strings have one");
                return Err(self.error("dictionary", words, problem));
            }
            (_, None) => FeatureOrigin::Request { field },
        };
        let column = self.finished(name.clone(), origin, entry)?;
        service.features.push(column);
        Ok(())
    }

    fn view_columns(
        &self,
        name: &Text,
        entry: &ColumnText,
        views: &[Arc<View>],
        service: &mut Service,
    ) -> Result<(), DefinitionError> {
        if let Some(words) = &entry.dictionary {
            return Err(self.error("dictionary", words, "belongs to `request`, not to `view`"));
        }
        let view = self.known_view("view", name, name.get_ref(), views)?;
        let index = self.needed_view(name, view, service)?;
        let features = match &entry.features {
            None => (0..view.features.len()).collect(),
            Some(features) => self.chosen(features, view)?,
        };
        for feature in features {
            self.number("view", name, (view, feature))?;
            let name = format!("{}:{}", view.name, view.features[feature].name).into();
            let origin = FeatureOrigin::View(InView {
                view: index,
                feature,
            });
            let column = self.finished(name, origin, entry)?;
            service.features.push(column);
        }
        Ok(())
    }

    fn difference_column(
        &self,
        difference: &Spanned<[Text; 2]>,
        entry: &ColumnText,
        views: &[Arc<View>],
        service: &mut Service,
    ) -> Result<(), DefinitionError> {
        if entry.features.is_some() || entry.dictionary.is_some() {
            let problem = "goes with neither `features` nor `dictionary`";
            return Err(self.error("difference", difference, problem));
        }
        let Some(name) = &entry.name else {
            return Err(self.error("difference", difference, "needs a `name` for its column"));
        };
        let [minuend, subtrahend] = difference.get_ref();
        let origin = FeatureOrigin::Difference {
            minuend: self.view_feature(minuend, views, service)?,
            subtrahend: self.view_feature(subtrahend, views, service)?,
        };
        let column = self.finished(self.name("name", name)?, origin, entry)?;
        service.features.push(column);
        Ok(())
    }

    /// The feature that is written as `view:feature`.
    fn view_feature(
        &self,
        written: &Text,
        views: &[Arc<View>],
        service: &mut Service,
    ) -> Result<InView, DefinitionError> {
        let Some((view, feature)) = written.get_ref().split_once(':') else {
            let problem = format!("`{}` is not written as `view:feature`", written.get_ref());
            return Err(self.error("difference", written, problem));
        };
        let view = self.known_view("difference", written, view, views)?;
        let feature = view.feature(feature).ok_or_else(|| {
            let known = view.features.iter().map(|feature| &*feature.name);
            self.unknown("difference", written, known)
        })?;
        self.number("difference", written, (view, feature))?;
        Ok(InView {
            view: self.needed_view(written, view, service)?,
            feature,
        })
    }

    /// Refuses a feature of a view that a model cannot take.
    fn number(
        &self,
        key: &str,
        written: &Text,
        (view, feature): (&View, usize),
    ) -> Result<(), DefinitionError> {
        let feature = &view.features[feature];
        match feature.ty {
            FieldType::Bool | FieldType::Int | FieldType::Float => Ok(()),
            ty @ (FieldType::String | FieldType::Time) => {
                let problem = format!("`{}:{}` is a {ty}, not a number", view.name, feature.name);
                Err(self.error(key, written, problem))
            }
        }
    }

    fn known_view<'v>(
        &self,
        key: &str,
        written: &Text,
        name: &str,
        views: &'v [Arc<View>],
    ) -> Result<&'v Arc<View>, DefinitionError> {
        views
            .iter()
            .find(|view| *view.name == *name)
            .ok_or_else(|| self.unknown(key, written, views.iter().map(|view| &*view.name)))
    }

    /// The index of the view among those that the service needs; its keys come from the request.
    fn needed_view(
        &self,
        name: &Text,
        view: &Arc<View>,
        service: &mut Service,
    ) -> Result<usize, DefinitionError> {
        if let Some(index) = service
            .views
            .iter()
            .position(|known| known.name == view.name)
        {
            return Ok(index);
        }
        let mut keys = Vec::new();
        for key in &view.keys {
            let field = service
                .request
                .iter()
                .position(|field| field.name == key.name);
            let Some(field) = field else {
                let problem = format!(
                    "`{}` has the key `{}`, which the request does not bring",
                    view.name, key.name
                );
                return Err(self.error("view", name, problem));
            };
            let found = service.request[field].ty;
            if found != key.ty {
                let problem = format!(
                    "`{}` has the key `{}` of type {}, the request's is of type {found}",
                    view.name, key.name, key.ty
                );
                return Err(self.error("view", name, problem));
            }
            keys.push(field);
        }
        service.views.push(Arc::clone(view));
        service.view_keys.push(keys);
        Ok(service.views.len() - 1)
    }

    fn chosen(
        &self,
        features: &Spanned<Vec<Text>>,
        view: &View,
    ) -> Result<Vec<usize>, DefinitionError> {
        if features.get_ref().is_empty() {
            return Err(self.error("features", features, "is empty; leave it out to take all"));
        }
        features
            .get_ref()
            .iter()
            .map(|name| {
                view.feature(name.get_ref()).ok_or_else(|| {
                    let known = view.features.iter().map(|feature| &*feature.name);
                    self.unknown("features", name, known)
                })
            })
            .collect()
    }

    fn dictionary(&self, words: &Spanned<Vec<Text>>) -> Result<Dictionary, DefinitionError> {
        let mut known = BTreeSet::new();
        for word in words.get_ref() {
            if !known.insert(word.get_ref()) {
                let problem = format!("`{}` is listed twice", word.get_ref());
                return Err(self.error("dictionary", word, problem));
            }
        }
        if known.is_empty() {
            return Err(self.error("dictionary", words, "is empty"));
        }
        let words = words
            .get_ref()
            .iter()
            .map(|word| word.get_ref().as_str().into());
        Ok(Dictionary::new(words.collect()))
    }

    fn finished(
        &self,
        name: Box<str>,
        origin: FeatureOrigin,
        entry: &ColumnText,
    ) -> Result<ServiceFeature, DefinitionError> {
        let default = match &entry.default {
            Some(written) => Some(self.finite("default", written, *written.get_ref())?),
            None => None,
        };
        let clip = match &entry.clip {
            Some(written) => {
                let [low, high] = *written.get_ref();
                let low = self.finite("clip", written, low)?;
                let high = self.finite("clip", written, high)?;
                if low > high {
                    let problem = format!("`{low}` is above `{high}`");
                    return Err(self.error("clip", written, problem));
                }
                Some((low, high))
            }
            None => None,
        };
        Ok(ServiceFeature {
            name,
            default,
            clip,
            origin,
        })
    }

    /// A number as the models compute with it.
    fn finite<T>(&self, key: &str, at: &Spanned<T>, number: f64) -> Result<f32, DefinitionError> {
        let single = number as f32;
        if single.is_finite() {
            return Ok(single);
        }
        Err(self.error(
            key,
            at,
            format!("`{number}` is not finite as a 32-bit float"),
        ))
    }
}
