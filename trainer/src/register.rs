//! Bringing a challenger that passed into the registry: artifacts, versions with their lineage,
//! aliases.
//!
//! Versions and the end of their run are one transaction, so a killed trainer leaves all or none
//! of them. The champion's alias is set last: whoever sees a champion sees its fallback too.

use std::collections::BTreeMap;

use registry::{
    AliasChange, AliasError, AliasName, ArtifactError, DatasetUse, LookupError, ModelName,
    NewVersion, Promotion, RegisterError as VersionError, Registry, Release, RunId, Version,
};
use thiserror::Error;

use crate::candidate::Candidate;
use crate::gates::Passed;
use crate::score::Scores;

/// How often an alias is set again after another writer was quicker.
const ALIAS_ATTEMPTS: usize = 3;

/// What versions are registered under.
pub(crate) struct Origin {
    /// The model.
    pub(crate) model: ModelName,
    /// The run that made them.
    pub(crate) run: RunId,
    /// The service that assembles their rows, `name@version`.
    pub(crate) service: String,
    /// Training and holdout rows.
    pub(crate) datasets: Vec<DatasetUse>,
    /// Rows that they were fitted on.
    pub(crate) train_rows: usize,
    /// The run's instant.
    pub(crate) as_of_ms: i64,
    /// When the run ends.
    pub(crate) ended_ms: i64,
}

/// The versions that a run registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registered {
    /// The boosted version.
    pub(crate) challenger: Version,
    /// The logistic version, if it was fit to answer.
    pub(crate) simple: Option<Version>,
    /// Whether the challenger became the model's first champion.
    pub(crate) first: bool,
}

/// Why nothing, or not all, was registered.
#[derive(Debug, Error)]
pub(crate) enum RegisterError {
    /// A model file was not stored.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The versions were not registered.
    #[error(transparent)]
    Version(#[from] VersionError),
    /// An alias was not set.
    #[error(transparent)]
    Alias(#[from] AliasError),
    /// The release could not be read.
    #[error(transparent)]
    Lookup(#[from] LookupError),
}

/// Registers what passed, ends the run, and points the aliases at it.
pub(crate) async fn register(
    registry: &Registry,
    origin: &Origin,
    passed: Passed,
) -> Result<Registered, RegisterError> {
    let first = passed.against.is_none();
    let mut versions = vec![new_version(registry, origin, "boosted", &passed.challenger).await?];
    if let Some(simple) = &passed.simple {
        versions.push(new_version(registry, origin, "logistic", simple).await?);
    }
    let registered = registry
        .register_and_finish(&origin.run, versions, origin.ended_ms)
        .await?;
    let registered = Registered {
        challenger: registered[0].version,
        simple: registered.get(1).map(|simple| simple.version),
        first,
    };
    let aliases = Aliases { registry, origin };
    let simple = AliasName::simple();
    if let Some(version) = registered.simple {
        aliases.point(&simple, version).await?;
    }
    if first {
        if let Some(version) = registered.simple {
            aliases.point(&AliasName::fallback(), version).await?;
        }
        let promotion = Promotion {
            model: &origin.model,
            challenger: registered.challenger,
            expected_champion: None,
            reason: &aliases.reason(),
            at_ms: origin.as_of_ms,
        };
        registry.promote(promotion).await?;
    } else {
        aliases
            .point(&AliasName::challenger(), registered.challenger)
            .await?;
    }
    Ok(registered)
}

async fn new_version(
    registry: &Registry,
    origin: &Origin,
    algorithm: &str,
    (candidate, scores): &(Candidate, Scores),
) -> Result<NewVersion, RegisterError> {
    let artifact = registry.put_artifact(candidate.bytes.to_vec()).await?;
    let metrics = BTreeMap::from([
        ("log_loss".to_owned(), scores.log_loss),
        ("auc".to_owned(), scores.auc),
        ("ece".to_owned(), scores.ece),
        ("rows".to_owned(), scores.rows as f64),
        ("train_rows".to_owned(), origin.train_rows as f64),
    ]);
    Ok(NewVersion {
        model: origin.model.clone(),
        artifact,
        signature: candidate.signature.clone(),
        service: Some(origin.service.clone()),
        run: Some(origin.run.clone()),
        algorithm: algorithm.to_owned(),
        metrics,
        datasets: origin.datasets.clone(),
        description: format!(
            "{algorithm} on {} rows of {}",
            origin.train_rows, origin.service
        ),
        at_ms: origin.as_of_ms,
    })
}

/// Sets aliases of the model on behalf of the run.
struct Aliases<'a> {
    registry: &'a Registry,
    origin: &'a Origin,
}

impl Aliases<'_> {
    fn reason(&self) -> String {
        format!("run {} passed its gates", self.origin.run)
    }

    /// Points an alias at a version, from wherever it points now.
    async fn point(&self, alias: &AliasName, version: Version) -> Result<(), RegisterError> {
        let reason = self.reason();
        let mut attempt = 1;
        loop {
            let release: Release = self.registry.release(&self.origin.model).await?;
            let change = AliasChange {
                model: &self.origin.model,
                alias,
                expected: release.get(alias),
                to: Some(version),
                reason: &reason,
                at_ms: self.origin.as_of_ms,
            };
            match self.registry.set_alias(change).await {
                Err(AliasError::Conflict { .. }) if attempt < ALIAS_ATTEMPTS => attempt += 1,
                Err(error) => return Err(error.into()),
                Ok(_) => return Ok(()),
            }
        }
    }
}
