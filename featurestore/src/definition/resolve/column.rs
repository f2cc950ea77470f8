//! What may be said about each column of a service: its name, its dictionary, what stands for a
//! missing value, its bounds.

use std::collections::BTreeSet;
use std::sync::Arc;

use toml::Spanned;

use super::super::DefinitionError;
use super::super::written::{ColumnText, DictionaryText, MissingText};
use super::{Known, Resolver};
use crate::service::{Dictionary, FeatureOrigin, Missing, ServiceFeature};

/// A `[[dictionary]]`.
pub(super) struct Words {
    name: Box<str>,
    dictionary: Arc<Dictionary>,
}

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

    /// A `[[dictionary]]`, which columns share.
    pub(super) fn dictionary(&self, written: &DictionaryText) -> Result<Words, DefinitionError> {
        let words = written.words.get_ref().iter().map(Spanned::get_ref);
        Ok(Words {
            name: self.name("name", &written.name)?,
            dictionary: self.codes_of("words", &written.words, words)?,
        })
    }

    /// The dictionary that a column writes out or names.
    pub(super) fn dictionary_of(
        &self,
        written: &Spanned<toml::Value>,
        known: Known<'_>,
    ) -> Result<Arc<Dictionary>, DefinitionError> {
        match written.get_ref() {
            toml::Value::String(name) => {
                let found = known
                    .dictionaries
                    .iter()
                    .find(|words| *words.name == **name);
                let names = known.dictionaries.iter().map(|words| &*words.name);
                match found {
                    Some(words) => Ok(Arc::clone(&words.dictionary)),
                    None => Err(self.text.unknown(written.span(), "dictionary", name, names)),
                }
            }
            toml::Value::Array(words) if words.iter().all(toml::Value::is_str) => {
                let words = words.iter().filter_map(toml::Value::as_str);
                self.codes_of("dictionary", written, words)
            }
            _ => {
                let problem = "is neither a list of strings nor the name of a `[[dictionary]]`";
                Err(self.error("dictionary", written, problem))
            }
        }
    }

    fn codes_of<T>(
        &self,
        key: &str,
        written: &Spanned<T>,
        words: impl Iterator<Item = impl AsRef<str>>,
    ) -> Result<Arc<Dictionary>, DefinitionError> {
        let mut known: BTreeSet<Box<str>> = BTreeSet::new();
        let mut in_order = Vec::new();
        for word in words {
            let word: Box<str> = word.as_ref().into();
            if !known.insert(word.clone()) {
                return Err(self.error(key, written, format!("`{word}` is listed twice")));
            }
            in_order.push(word);
        }
        if in_order.is_empty() {
            return Err(self.error(key, written, "is empty"));
        }
        Ok(Arc::new(Dictionary::new(in_order)))
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
