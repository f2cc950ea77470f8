//! What references ask for: features of views, in the order of the request, each view once.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use featurestore::{Definitions, View};

use super::error::{FeastError, shown};

/// Features that one request may ask for.
const FEATURES_MAX: usize = 10_000;

/// The features.
#[derive(Debug)]
pub(super) struct Selection<'d> {
    /// In the order in which they are first asked for.
    pub views: Vec<&'d Arc<View>>,
    pub features: Vec<Selected>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Selected {
    /// Index in `Selection::views`.
    pub view: usize,
    /// Index in `View::features`.
    pub feature: usize,
    /// Whether the reference named the view's version, which a full name then does too.
    pinned: bool,
}

impl<'d> Selection<'d> {
    /// Finds what `references` name.
    pub(super) fn resolve(
        definitions: &'d Definitions,
        references: &[Cow<'_, str>],
    ) -> Result<Self, FeastError> {
        match references.len() {
            0 => return Err(FeastError::NoFeatures),
            found if found > FEATURES_MAX => {
                let max = FEATURES_MAX;
                return Err(FeastError::TooManyFeatures { found, max });
            }
            _ => {}
        }
        let mut selection = Self {
            views: Vec::new(),
            features: Vec::with_capacity(references.len()),
        };
        for reference in references {
            let (view, feature) = reference
                .split_once(':')
                .ok_or_else(|| FeastError::Reference(shown(reference)))?;
            let pinned = pinned(view).is_some();
            let view = find_view(definitions, view)?;
            let selected = Selected {
                pinned,
                view: selection.place(view),
                feature: view.feature(feature).ok_or_else(|| FeastError::Feature {
                    view: view.name.to_string(),
                    feature: shown(feature),
                })?,
            };
            selection.features.push(selected);
        }
        Ok(selection)
    }

    fn place(&mut self, view: &'d Arc<View>) -> usize {
        let known = self.views.iter().rposition(|held| Arc::ptr_eq(held, view));
        known.unwrap_or_else(|| {
            self.views.push(view);
            self.views.len() - 1
        })
    }

    /// The names of the features in the answer.
    pub(super) fn names(&self, full: bool) -> impl Iterator<Item = Cow<'d, str>> {
        self.features.iter().map(move |selected| {
            let view = self.views[selected.view];
            let called = match selected.pinned {
                true => Cow::Owned(format!("{}@v{}", view.name, view.version)),
                false => Cow::Borrowed(&*view.name),
            };
            name(&called, &view.features[selected.feature].name, full)
        })
    }
}

/// A feature's name in an answer: its own, or `view__feature`, as Feast has it `view@v2__feature` of a
/// view whose version was asked for.
pub(super) fn name<'n>(view: &str, feature: &'n str, full: bool) -> Cow<'n, str> {
    match full {
        false => Cow::Borrowed(feature),
        true => Cow::Owned(format!("{view}__{feature}")),
    }
}

/// Refuses an answer in which two columns would have one name.
pub(super) fn refuse_collisions(names: &[Cow<'_, str>], full: bool) -> Result<(), FeastError> {
    let mut seen = HashSet::with_capacity(names.len());
    for name in names {
        if !seen.insert(&**name) {
            let name = shown(name);
            return Err(FeastError::Collision { name, full });
        }
    }
    Ok(())
}

/// The view that `view`, `view@v2` or `view@latest` names.
pub(super) fn find_view<'d>(
    definitions: &'d Definitions,
    reference: &str,
) -> Result<&'d Arc<View>, FeastError> {
    let unknown = || FeastError::View(shown(reference));
    let name = reference
        .split_once('@')
        .map_or(reference, |(name, _)| name);
    let newest = definitions.view(name).ok_or_else(unknown)?;
    let Some(version) = pinned(reference) else {
        return Ok(newest);
    };
    let number = version.strip_prefix(['v', 'V']).ok_or_else(unknown)?;
    let version: u32 = number.parse().map_err(|_| unknown())?;
    let pinned = definitions.view(&format!("{name}@{version}"));
    pinned.ok_or_else(|| FeastError::ViewVersion {
        view: name.to_owned(),
        version,
    })
}

/// The version that a reference to a view names; `None` where it is the newest.
fn pinned(reference: &str) -> Option<&str> {
    let (_, version) = reference.split_once('@')?;
    let newest = version.is_empty() || version.eq_ignore_ascii_case("latest");
    (!newest).then_some(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFINITIONS: &str = r#"
[[source]]
name = "s"
time = "at"
id = ["id", "at"]
fields = { id = "int", at = "time", x = "float?", y = "string?" }

[[view]]
name = "a"
source = "s"
keys = ["id"]
features = [{ last = "x" }, { last = "y" }]

[[view]]
name = "b"
source = "s"
keys = ["id"]
features = [{ last = "x" }]

[[view]]
name = "b"
version = 2
source = "s"
keys = ["id"]
features = [{ last = "y" }]
"#;

    fn select(references: &[&str], full: bool) -> Result<(Vec<String>, usize), String> {
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let references: Vec<_> = references.iter().map(|&name| name.into()).collect();
        let read = || {
            let selection = Selection::resolve(&definitions, &references)?;
            let names: Vec<_> = selection.names(full).collect();
            refuse_collisions(&names, full)?;
            let names = names.iter().map(|name| name.clone().into_owned());
            Ok((names.collect(), selection.views.len()))
        };
        read().map_err(|error: FeastError| format!("{} {error}", error.class()))
    }

    #[test]
    fn references_name_features_of_views() {
        let names = ["last_y", "last_x"].map(str::to_owned).to_vec();
        assert_eq!(
            select(&["b:last_y", "b@v1:last_x"], false),
            Ok((names.clone(), 2))
        );
        assert_eq!(
            select(&["a@latest:last_y", "a@v1:last_x"], false),
            Ok((names, 1))
        );
        let full = ["a__last_x", "b__last_y", "b@v2__last_y", "b@v1__last_x"];
        let full = full.map(str::to_owned).to_vec();
        let asked = ["a:last_x", "b@latest:last_y", "b@v2:last_y", "b@V1:last_x"];
        assert_eq!(select(&asked, true), Ok((full, 3)));
    }

    #[test]
    fn what_is_not_there_is_refused_with_feasts_class() {
        for (reference, refused) in [
            ("a", "FeastError `a` is not"),
            ("c:x", "FeatureViewNotFoundException Feature view c "),
            (
                "a@x:last_x",
                "FeatureViewNotFoundException Feature view a@x ",
            ),
            ("a@v7:last_x", "FeatureViewVersionNotFound Version 7 "),
            (
                "a:z",
                "SpecifiedFeaturesNotPresentError feature view a has no feature z",
            ),
        ] {
            let error = select(&[reference], false).unwrap_err();
            assert!(error.starts_with(refused), "{error}");
        }
        let error = select(&["a:last_y", "b:last_y"], false).unwrap_err();
        assert!(error.starts_with("FeatureNameCollisionError Duplicate features named last_y"));
        assert!(select(&["a:last_x", "a:last_x"], true).is_err());
        assert!(select(&[], true).unwrap_err().contains("no features"));
    }
}
