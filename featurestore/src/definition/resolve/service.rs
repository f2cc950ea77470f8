//! A service as written into one that can assemble rows.

use std::collections::BTreeSet;
use std::sync::Arc;

use toml::Spanned;

use super::super::written::{ColumnText, ServiceText, Text};
use super::super::{DefinitionError, Meaning, View, ViewFeature};
use super::{Known, Resolver};
use crate::expression::{Expression, Program, Type};
use crate::service::{Derived, Dictionary, FeatureOrigin, InView, Service, ServiceFeature};
use crate::value::Field;

/// A service while its columns are read.
pub(super) struct Draft<'k> {
    pub(super) service: Service,
    pub(super) known: Known<'k>,
}

/// What an entry takes its columns from.
#[derive(Clone, Copy)]
enum Origin<'t> {
    Request(&'t Text),
    View(&'t Text),
    Difference(&'t Spanned<[Text; 2]>),
    Expression(&'t Text),
    Derived(&'t Text),
}

impl Resolver<'_> {
    pub(super) fn service(
        &self,
        written: &ServiceText,
        known: Known<'_>,
    ) -> Result<Service, DefinitionError> {
        let name = self.name("name", &written.name)?;
        let version = self.version(&written.version)?;
        let service = Service {
            id: format!("{name}@{version}").into(),
            name,
            version,
            request: self.fields("request", &written.request)?,
            features: Vec::new(),
            views: Vec::new(),
            view_keys: Vec::new(),
            refusing: Vec::new(),
            meaning: Meaning::default(),
        };
        let mut draft = Draft { service, known };
        for column in written.features.get_ref() {
            self.column(column, &mut draft)?;
        }
        let mut service = draft.service;
        if service.features.is_empty() {
            return Err(self.error("features", &written.features, "a service needs a feature"));
        }
        service.refusing = ServiceFeature::refusing(&service.features);
        service.meaning = Meaning::of_service(&service);
        Ok(service)
    }

    /// Adds the columns of one entry.
    fn column(
        &self,
        written: &Spanned<ColumnText>,
        draft: &mut Draft<'_>,
    ) -> Result<(), DefinitionError> {
        let entry = written.get_ref();
        let Some(from) = entry.origin() else {
            let problem = "an entry has exactly one of `request`, `view`, `difference`, \
                           `expression` and `derived`";
            return Err(self.error("features", written, problem));
        };
        self.only_where_it_belongs(entry, from)?;
        let before = draft.service.features.len();
        match from {
            Origin::Request(request) => self.request_column(request, entry, draft)?,
            Origin::View(view) => self.view_columns(view, entry, draft)?,
            Origin::Difference(difference) => self.difference_column(difference, entry, draft)?,
            Origin::Expression(text) => {
                let expression = self.parsed(text)?;
                self.derived_column(&expression, ("expression", text), entry, draft)?;
            }
            Origin::Derived(name) => {
                let shared = self.shared(name, draft.known)?;
                self.derived_column(&shared.expression, ("derived", name), entry, draft)?;
            }
        }
        let (old, new) = draft.service.features.split_at(before);
        let mut names: BTreeSet<&str> = old.iter().map(|feature| &*feature.name).collect();
        for feature in new {
            if !names.insert(&feature.name) {
                let problem = match (&entry.name, new.len()) {
                    (Some(_), 2..) => "names one column, but the entry has more".to_owned(),
                    _ => format!("feature `{}` is listed twice", feature.name),
                };
                return Err(self.error("features", written, problem));
            }
        }
        Ok(())
    }

    /// Refuses keys that mean nothing beside the entry's origin.
    fn only_where_it_belongs(
        &self,
        entry: &ColumnText,
        from: Origin<'_>,
    ) -> Result<(), DefinitionError> {
        if let (Some(features), false) = (&entry.features, matches!(from, Origin::View(_))) {
            return Err(self.error("features", features, "belongs to `view`"));
        }
        match (from, &entry.dictionary, &entry.name) {
            (Origin::Difference(_), Some(words), _) => {
                Err(self.error("dictionary", words, "does not go with `difference`"))
            }
            (Origin::Difference(written), _, None) => {
                Err(self.error("difference", written, "needs a `name` for its column"))
            }
            (Origin::Expression(written), _, None) => {
                Err(self.error("expression", written, "needs a `name` for its column"))
            }
            _ => Ok(()),
        }
    }

    fn request_column(
        &self,
        request: &Text,
        entry: &ColumnText,
        draft: &mut Draft<'_>,
    ) -> Result<(), DefinitionError> {
        let field = self.field("request", request, &draft.service.request)?;
        let Field { name, ty, .. } = &draft.service.request[field];
        let of_type = (&**name, Type::of_field(*ty));
        let origin = match self.codes(("request", request), of_type, (entry, draft.known))? {
            Some(dictionary) => FeatureOrigin::Category { field, dictionary },
            None => FeatureOrigin::Request { field },
        };
        let column = self.finished(name.clone(), origin, entry)?;
        draft.service.features.push(column);
        Ok(())
    }

    fn view_columns(
        &self,
        name: &Text,
        entry: &ColumnText,
        draft: &mut Draft<'_>,
    ) -> Result<(), DefinitionError> {
        let view = self.known_view("view", name, name.get_ref(), draft.known)?;
        let index = self.needed_view("view", name, view, draft)?;
        let features = match &entry.features {
            None => (0..view.features.len()).collect(),
            Some(features) => self.chosen(features, view)?,
        };
        for feature in features {
            let ViewFeature {
                name: of_view, ty, ..
            } = &view.features[feature];
            let column = format!("{}:{of_view}", view.name);
            let of_type = (&*column, Type::of_field(*ty));
            let at = InView {
                view: index,
                feature,
            };
            let origin = match self.codes(("view", name), of_type, (entry, draft.known))? {
                Some(dictionary) => FeatureOrigin::KeptCategory { at, dictionary },
                None => FeatureOrigin::View(at),
            };
            let column = self.finished(column.into(), origin, entry)?;
            draft.service.features.push(column);
        }
        Ok(())
    }

    fn difference_column(
        &self,
        difference: &Spanned<[Text; 2]>,
        entry: &ColumnText,
        draft: &mut Draft<'_>,
    ) -> Result<(), DefinitionError> {
        let [minuend, subtrahend] = difference.get_ref();
        let origin = FeatureOrigin::Difference {
            minuend: self.view_feature(minuend, draft)?,
            subtrahend: self.view_feature(subtrahend, draft)?,
        };
        let column = self.finished(Box::default(), origin, entry)?;
        draft.service.features.push(column);
        Ok(())
    }

    /// A column that an expression gives: a number, a bool, or a string with a dictionary.
    fn derived_column(
        &self,
        expression: &Expression,
        (key, written): (&str, &Text),
        entry: &ColumnText,
        draft: &mut Draft<'_>,
    ) -> Result<(), DefinitionError> {
        let program: Program = self.program(expression, (key, written), draft)?;
        let of_type = (written.get_ref().as_str(), program.ty());
        let dictionary = self.codes((key, written), of_type, (entry, draft.known))?;
        let origin = FeatureOrigin::Derived(Derived::new(expression, program, dictionary));
        let column = self.finished(written.get_ref().as_str().into(), origin, entry)?;
        draft.service.features.push(column);
        Ok(())
    }

    /// The dictionary of an entry whose value, called `name`, is a string. A model takes numbers.
    fn codes(
        &self,
        (key, written): (&str, &Text),
        (name, ty): (&str, Type),
        (entry, known): (&ColumnText, Known<'_>),
    ) -> Result<Option<Arc<Dictionary>>, DefinitionError> {
        match (ty, &entry.dictionary) {
            (Type::Text, Some(words)) => Ok(Some(self.dictionary_of(words, known)?)),
            (Type::Number | Type::Bool, None) => Ok(None),
            (Type::Text, None) => {
                let problem = format!("`{name}` is a string and needs a `dictionary`");
                Err(self.error(key, written, problem))
            }
            (Type::Time, _) => {
                let problem = format!(
                    "`{name}` is a time, which is no feature: take its `hour`, or the \
                     `hours_between` it and another, in an `expression`"
                );
                Err(self.error(key, written, problem))
            }
            (ty, Some(words)) => {
                let problem = format!("`{name}` is {}, only strings have one", ty.as_str());
                Err(self.error("dictionary", words, problem))
            }
        }
    }

    /// The feature that is written as `view:feature`.
    fn view_feature(
        &self,
        written: &Text,
        draft: &mut Draft<'_>,
    ) -> Result<InView, DefinitionError> {
        let Some((view, feature)) = written.get_ref().split_once(':') else {
            let problem = format!("`{}` is not written as `view:feature`", written.get_ref());
            return Err(self.error("difference", written, problem));
        };
        let view = self.known_view("difference", written, view, draft.known)?;
        let feature = view.feature(feature).ok_or_else(|| {
            let known = view.features.iter().map(|feature| &*feature.name);
            self.unknown("difference", written, known)
        })?;
        let ty = Type::of_field(view.features[feature].ty);
        if !matches!(ty, Type::Number | Type::Bool) {
            let problem = format!("`{}` is {}", written.get_ref(), ty.as_str());
            return Err(self.error("difference", written, problem));
        }
        Ok(InView {
            view: self.needed_view("difference", written, view, draft)?,
            feature,
        })
    }

    fn known_view<'k>(
        &self,
        key: &str,
        written: &Text,
        name: &str,
        known: Known<'k>,
    ) -> Result<&'k Arc<View>, DefinitionError> {
        View::named(known.views, name)
            .ok_or_else(|| self.unknown(key, written, known.view_names(name)))
    }

    fn needed_view(
        &self,
        key: &str,
        written: &Text,
        view: &Arc<View>,
        draft: &mut Draft<'_>,
    ) -> Result<usize, DefinitionError> {
        draft
            .needed_view(view)
            .map_err(|problem| self.error(key, written, problem))
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
}

impl ColumnText {
    /// The one origin that is given.
    fn origin(&self) -> Option<Origin<'_>> {
        let given = [
            self.request.as_ref().map(Origin::Request),
            self.view.as_ref().map(Origin::View),
            self.difference.as_ref().map(Origin::Difference),
            self.expression.as_ref().map(Origin::Expression),
            self.derived.as_ref().map(Origin::Derived),
        ];
        let mut given = given.into_iter().flatten();
        let first = given.next()?;
        given.next().is_none().then_some(first)
    }
}

impl Draft<'_> {
    /// The index of the view among those that the service needs; its keys come from the request.
    pub(super) fn needed_view(&mut self, view: &Arc<View>) -> Result<usize, String> {
        let service = &mut self.service;
        let found = service
            .views
            .iter()
            .position(|known| Arc::ptr_eq(known, view));
        if let Some(index) = found {
            return Ok(index);
        }
        let mut keys = Vec::new();
        for key in &view.keys {
            let Some(field) = service.request_field(&key.name) else {
                return Err(format!(
                    "`{}` has the key `{}`, which the request does not bring",
                    view.name, key.name
                ));
            };
            let found = service.request[field].ty;
            if found != key.ty {
                return Err(format!(
                    "`{}` has the key `{}` of type {}, the request's is of type {found}",
                    view.name, key.name, key.ty
                ));
            }
            keys.push(field);
        }
        service.views.push(Arc::clone(view));
        service.view_keys.push(keys);
        Ok(service.views.len() - 1)
    }
}
