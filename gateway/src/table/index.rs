//! What the repository holds, as the protocol's extension lists it.

use std::borrow::Cow;

use serde::Serialize;

use super::{ModelTable, ServedModel};

/// A version, or a model without one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Indexed {
    pub name: Box<str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Box<str>>,
    /// `READY` or `UNAVAILABLE`.
    pub state: &'static str,
    /// Why it is not ready.
    pub reason: Cow<'static, str>,
}

impl ModelTable {
    /// Every loaded version and, unless only those are asked for, what an alias names that is not
    /// loaded.
    pub(crate) fn index(&self, ready_only: bool) -> Vec<Indexed> {
        let mut index = Vec::new();
        for model in self.models() {
            let entry = |version: Option<u32>, state, reason| Indexed {
                name: (*model.name).into(),
                version: version.map(|version| version.to_string().into()),
                state,
                reason,
            };
            let ready = |&version: &u32| entry(Some(version), "READY", "".into());
            index.extend(model.versions.keys().map(ready));
            if !ready_only {
                let missing = missing(model).into_iter();
                index.extend(missing.map(|(version, why)| entry(version, "UNAVAILABLE", why)));
            }
        }
        index
    }
}

fn missing(model: &ServedModel) -> Vec<(Option<u32>, Cow<'static, str>)> {
    if model.versions.is_empty() && model.aliases.is_empty() {
        return vec![(None, "no version is ready".into())];
    }
    let is_missing = |(_, version): &(_, &u32)| !model.versions.contains_key(version);
    let missing = model.aliases.iter().filter(is_missing);
    missing
        .map(|(alias, &version)| {
            let reason = format!("not loaded, though alias `{alias}` names it");
            (Some(version), reason.into())
        })
        .collect()
}
