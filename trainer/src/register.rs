//! Bringing a challenger that passed into the registry: artifacts, versions with their lineage,
//! aliases.
//!
//! Versions, aliases and the end of their run are one transaction, so a killed trainer leaves all
//! or none of them, and whoever sees a champion sees its fallback too.

use std::collections::BTreeMap;

use registry::{
    AliasName, ArtifactError, DatasetUse, ModelName, NewVersion, RegisterError as VersionError,
    Registration, Registry, RunId, Version,
};
use thiserror::Error;

use crate::candidate::Candidate;
use crate::gates::Passed;
use crate::score::Scores;

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

/// Why nothing was registered.
#[derive(Debug, Error)]
pub(crate) enum RegisterError {
    /// A model file was not stored.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The versions were not registered.
    #[error(transparent)]
    Version(#[from] VersionError),
}

/// Registers what passed, points the aliases at it and ends the run, all or nothing.
pub(crate) async fn register(
    registry: &Registry,
    origin: &Origin,
    passed: Passed,
) -> Result<Registered, RegisterError> {
    let first = passed.against.is_none();
    let mut versions = vec![new_version(registry, origin, "boosted", &passed.challenger).await?];
    let mut aliases = vec![];
    if let Some(simple) = &passed.simple {
        versions.push(new_version(registry, origin, "logistic", simple).await?);
        aliases.push((AliasName::simple(), 1));
    }
    if first {
        aliases.push((AliasName::champion(), 0));
        aliases.extend(passed.simple.as_ref().map(|_| (AliasName::fallback(), 1)));
    } else {
        aliases.push((AliasName::challenger(), 0));
    }
    let registration = Registration {
        run: &origin.run,
        model: &origin.model,
        versions,
        aliases,
        expected_champion: passed.against,
        reason: &format!("run {} passed its gates", origin.run),
        at_ms: origin.as_of_ms,
        ended_ms: origin.ended_ms,
    };
    let registered = registry.register_and_finish(registration).await?;
    Ok(Registered {
        challenger: registered[0].version,
        simple: registered.get(1).map(|simple| simple.version),
        first,
    })
}

async fn new_version(
    registry: &Registry,
    origin: &Origin,
    algorithm: &str,
    (candidate, scores): &(Candidate, Scores),
) -> Result<NewVersion, RegisterError> {
    let artifact = registry.put_artifact(candidate.bytes.to_vec()).await?;
    let golden = candidate.golden.clone().into_bytes();
    let golden = registry.put_artifact(golden).await?;
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
        golden: Some(golden),
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
