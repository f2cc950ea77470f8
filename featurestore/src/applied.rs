//! The definitions that a data folder knows: under which meaning each version was first applied.
//!
//! What was served, recorded and trained on under `delay@1` must stay what it was, so another meaning
//! under a known name is refused, when the folder is opened and when definitions are applied, and the
//! next free version named. A version that the file no longer has keeps its place: its name cannot come
//! back with another meaning. A folder that knows nothing yet takes what it is given.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use rocksdb::WriteBatch;
use serde::Serialize;
use thiserror::Error;

use crate::definition::{Definitions, Meaning};
use crate::online::ReadError;
use crate::online::keys::{Column, Key};
use crate::online::tables::Tables;

/// What has versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Versioned {
    /// `[[view]]`
    View,
    /// `[[service]]`
    Service,
}

impl fmt::Display for Versioned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::View => "view",
            Self::Service => "service",
        })
    }
}

/// One version of a view or service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct VersionName {
    /// Which of them
    pub kind: Versioned,
    /// `name@version`
    pub name: String,
}

impl fmt::Display for VersionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} `{}`", self.kind, self.name)
    }
}

/// A version that a data folder knows.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    /// Which
    pub version: VersionName,
    /// What it means
    pub meaning: Meaning,
}

/// What became of a version when definitions were applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Application {
    /// The folder did not know it and does now
    New,
    /// The folder knows it; a view may have more features than before
    Known,
}

/// A version that means something else than when it was first applied.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "{version} has changed since it was first applied ({}); what was served and trained under it must stay: \
     restore it, and write the change as version {next}",
    differences.join("; ")
)]
pub struct ChangedMeaning {
    /// Which
    pub version: VersionName,
    /// What is otherwise, one by one
    pub differences: Vec<String>,
    /// The lowest version of the name that is free in folder and file
    pub next: u32,
}

/// Why definitions cannot be applied to a data folder.
#[derive(Clone, Debug, Error)]
pub enum ApplyError {
    /// Some have changed.
    #[error("{}", sentences(_0))]
    Changed(Vec<ChangedMeaning>),
    /// The folder could not be read or written.
    #[error(transparent)]
    Folder(#[from] ReadError),
}

fn sentences(changed: &[ChangedMeaning]) -> String {
    let sentences: Vec<_> = changed.iter().map(ToString::to_string).collect();
    sentences.join("\n")
}

/// The versions that the folder knows.
pub(crate) fn known(tables: &Tables) -> Result<Vec<Applied>, ReadError> {
    let mut known = Vec::new();
    for pair in tables.scan(Column::Meta, &Key::Applied("").to_bytes()) {
        let (key, value) = pair.map_err(ReadError::database)?;
        let Some(name) = Key::applied(&key) else {
            break;
        };
        let damaged = || ReadError::Damaged("an applied definition".to_owned());
        let (kind, name) = name.split_once(' ').ok_or_else(damaged)?;
        known.push(Applied {
            version: VersionName {
                kind: match kind {
                    "view" => Versioned::View,
                    "service" => Versioned::Service,
                    _ => return Err(damaged()),
                },
                name: name.to_owned(),
            },
            meaning: Meaning::from_json(&value).ok_or_else(damaged)?,
        });
    }
    Ok(known)
}

/// What applying definitions to a data folder would do to a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Planned {
    /// Applied for the first time
    New,
    /// As the folder knows it
    Known,
    /// Refused, and with it all that the file defines
    Changed(ChangedMeaning),
}

/// What [`FeatureStore::apply`](crate::FeatureStore::apply), or opening the folder, would do. Writes
/// nothing, and reads beside a process that has the folder open; to a folder that is not there all is new.
pub fn plan(
    data_dir: &Path,
    definitions: &Definitions,
) -> Result<Vec<(VersionName, Planned)>, ReadError> {
    let folder = data_dir.join("online");
    let known = match folder.join("CURRENT").exists() {
        true => known(&Tables::open_to_read(&folder).map_err(ReadError::database)?)?,
        false => Vec::new(),
    };
    let known = by_version(known);
    let given = given(definitions);
    let planned = given.iter().map(|(version, meaning)| {
        let planned = match (
            known.get(version),
            changed(version, meaning, &known, &given),
        ) {
            (_, Some(changed)) => Planned::Changed(changed),
            (Some(_), None) => Planned::Known,
            (None, None) => Planned::New,
        };
        (version.clone(), planned)
    });
    Ok(planned.collect())
}

/// Checks every version of `definitions` against what the folder knows and remembers the new ones; all
/// of them or, where one has changed, none.
pub(crate) fn apply(
    tables: &Tables,
    definitions: &Definitions,
) -> Result<Vec<(VersionName, Application)>, ApplyError> {
    let known = by_version(known(tables)?);
    let given = given(definitions);
    let mut batch = WriteBatch::default();
    let mut done = Vec::new();
    let mut refused = Vec::new();
    for (version, meaning) in &given {
        if let Some(changed) = changed(version, meaning, &known, &given) {
            refused.push(changed);
            continue;
        }
        let mut meaning = Meaning::clone(meaning);
        let before = known.get(version);
        if let (Some(before), Versioned::View) = (before, version.kind) {
            meaning.remember(before);
        }
        if before != Some(&meaning) {
            let name = format!("{} {}", version.kind, version.name);
            tables.put(
                &mut batch,
                Key::Applied(&name),
                meaning.to_string().as_bytes(),
            );
        }
        let application = match before {
            None => Application::New,
            Some(_) => Application::Known,
        };
        done.push((version.clone(), application));
    }
    if !refused.is_empty() {
        return Err(ApplyError::Changed(refused));
    }
    if !batch.is_empty() {
        tables.write_durably(batch).map_err(ReadError::database)?;
    }
    Ok(done)
}

fn by_version(known: Vec<Applied>) -> BTreeMap<VersionName, Meaning> {
    let known = known.into_iter();
    known
        .map(|applied| (applied.version, applied.meaning))
        .collect()
}

/// How a version differs from what the folder knows under its name, if it does.
fn changed(
    version: &VersionName,
    meaning: &Meaning,
    known: &BTreeMap<VersionName, Meaning>,
    given: &BTreeMap<VersionName, &Meaning>,
) -> Option<ChangedMeaning> {
    let before = known.get(version)?;
    let differences = match version.kind {
        Versioned::View => before.differences_of_view(meaning),
        Versioned::Service => before.differences(meaning),
    };
    (!differences.is_empty()).then(|| ChangedMeaning {
        next: next_free(version, known.keys().chain(given.keys())),
        version: version.clone(),
        differences,
    })
}

/// Everything that has a version, views before services.
fn given(definitions: &Definitions) -> BTreeMap<VersionName, &Meaning> {
    let version = |kind, name: &str| VersionName {
        kind,
        name: name.to_owned(),
    };
    let views = definitions.views.iter();
    let views = views.map(|view| (version(Versioned::View, view.pin()), view.meaning()));
    let services = definitions.services.iter();
    let services = services.map(|service| {
        let name = version(Versioned::Service, service.id());
        (name, service.meaning())
    });
    views.chain(services).collect()
}

/// One more than the highest version that the name has.
fn next_free<'v>(of: &VersionName, versions: impl Iterator<Item = &'v VersionName>) -> u32 {
    let parts = |version: &'v VersionName| version.name.rsplit_once('@');
    let name = of.name.rsplit_once('@').map_or(&*of.name, |(name, _)| name);
    let highest = versions
        .filter(|version| version.kind == of.kind)
        .filter_map(|version| parts(version).filter(|(known, _)| *known == name))
        .filter_map(|(_, version)| version.parse::<u32>().ok())
        .max();
    highest.unwrap_or(0).saturating_add(1)
}
