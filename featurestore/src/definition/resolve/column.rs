//! What may be said about each column of a service: its name, its dictionary, what stands for a
//! missing value, its bounds.

use std::collections::BTreeSet;
use std::sync::Arc;

use toml::Spanned;

use super::super::DefinitionError;
use super::super::written::{ColumnText, MissingText, Text};
use super::Resolver;
use crate::service::{Dictionary, FeatureOrigin, Missing, ServiceFeature};

impl Resolver<'_> {
    /// A column called `name`, or as the entry says.
    pub(super) fn finished(
        &self,
        name: Box<str>,
        origin: FeatureOrigin,
        entry: &ColumnText,
    ) -> Result<ServiceFeature, DefinitionError> {
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
            name: match &entry.name {
                Some(name) => self.name("name", name)?,
                None => name,
            },
            missing: self.missing(entry)?,
            clip,
            origin,
        })
    }

    fn missing(&self, entry: &ColumnText) -> Result<Missing, DefinitionError> {
        let default = match &entry.default {
            Some(written) => Some(self.finite("default", written, *written.get_ref())?),
            None => None,
        };
        let Some(written) = &entry.missing else {
            return Ok(default.map_or(Missing::Nan, Missing::Default));
        };
        match (written.get_ref(), default) {
            (MissingText::Nan, None) => Ok(Missing::Nan),
            (MissingText::Refuse, None) => Ok(Missing::Refuse),
            (MissingText::Default, Some(default)) => Ok(Missing::Default(default)),
            (MissingText::Default, None) => {
                Err(self.error("missing", written, "needs a `default`"))
            }
            (MissingText::Nan | MissingText::Refuse, Some(_)) => {
                Err(self.error("missing", written, "does not go with `default`"))
            }
        }
    }

    pub(super) fn dictionary(
        &self,
        words: &Spanned<Vec<Text>>,
    ) -> Result<Arc<Dictionary>, DefinitionError> {
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
        Ok(Arc::new(Dictionary::new(words.collect())))
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
