//! Which version answers a request.
//!
//! A named version answers itself and bypasses the split. Otherwise `hash(model, key)` decides
//! between champion and challenger: the same key always gets the same answer, and as the share
//! grows keys only move towards the challenger.

use std::sync::Arc;

use featurestore::Role;
use registry::{ModelName, NameError};

use crate::table::{LoadedVersion, ModelTable, ServedModel};

/// What a request asks for.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub model: ModelName,
    /// A number or an alias.
    pub version: Option<Box<str>>,
}

/// A feature service that is asked as a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AskedService {
    /// `name@version`.
    pub id: Box<str>,
    /// The version once more, where a request names one as it would a model's.
    pub version: Option<Box<str>>,
}

/// What a request names.
#[derive(Clone, Debug)]
pub(crate) enum Named {
    Model(Target),
    /// By a name with an `@`, which no model's has.
    Service(AskedService),
}

impl Named {
    /// Reads the name of a model or service, and the version beside it.
    pub(crate) fn parse(name: &str, version: Option<&str>) -> Result<Self, NameError> {
        let version = version.map(Into::into);
        match name.parse() {
            Ok(model) => Ok(Self::Model(Target { model, version })),
            Err(_) if name.contains('@') => {
                let id = name.chars().take(ID_CHARS_MAX).collect::<String>().into();
                Ok(Self::Service(AskedService { id, version }))
            }
            Err(error) => Err(error),
        }
    }
}

/// No service's id is longer, and an error repeats no more.
const ID_CHARS_MAX: usize = 128;

/// The version that is to answer, and its model.
pub(crate) struct Route<'t> {
    pub model: &'t ServedModel,
    pub first: &'t Arc<LoadedVersion>,
    pub role: Role,
}

/// Why no version answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("unknown model `{model}`")]
    UnknownModel { model: ModelName },
    #[error("model `{model}` has no loaded version `{version}`")]
    UnknownVersion { model: ModelName, version: Box<str> },
    #[error("unknown feature service `{id}`")]
    UnknownService { id: Box<str> },
    #[error("model `{model}` has no version ready")]
    NotReady { model: ModelName },
}

/// Finds the model.
pub(crate) fn model<'t>(
    table: Option<&'t ModelTable>,
    target: &Target,
) -> Result<&'t ServedModel, RouteError> {
    let Some(table) = table else {
        return Err(RouteError::NotReady {
            model: target.model.clone(),
        });
    };
    table
        .model(target.model.as_str())
        .ok_or_else(|| RouteError::UnknownModel {
            model: target.model.clone(),
        })
}

/// Finds the version that the target names.
pub(crate) fn named<'t>(
    model: &'t ServedModel,
    target: &Target,
    version: &str,
) -> Result<&'t Arc<LoadedVersion>, RouteError> {
    model
        .version(version)
        .ok_or_else(|| RouteError::UnknownVersion {
            model: target.model.clone(),
            version: version.chars().take(64).collect::<String>().into(),
        })
}

/// The version that the target names, else the champion: what metadata tells of.
pub(crate) fn named_or_champion<'t>(
    model: &'t ServedModel,
    target: &Target,
) -> Result<&'t Arc<LoadedVersion>, RouteError> {
    match &target.version {
        Some(version) => named(model, target, version),
        None => model.champion.as_ref().ok_or_else(|| RouteError::NotReady {
            model: target.model.clone(),
        }),
    }
}

/// The loaded versions that are asked for: one, those of one model, or all.
pub(crate) fn versions<'t>(
    table: Option<&'t ModelTable>,
    target: Option<&Target>,
) -> Result<Vec<&'t LoadedVersion>, RouteError> {
    let of = |model: &'t ServedModel| model.versions.values().map(|version| &**version);
    let Some(target) = target else {
        let models = table.into_iter().flat_map(ModelTable::models);
        return Ok(models.flat_map(of).collect());
    };
    let model = model(table, target)?;
    Ok(match &target.version {
        Some(version) => vec![&**named(model, target, version)?],
        None => of(model).collect(),
    })
}

/// Chooses the version for a request with this key.
pub(crate) fn route<'t>(
    table: Option<&'t ModelTable>,
    target: &Target,
    key: &[u8],
) -> Result<Route<'t>, RouteError> {
    let model = model(table, target)?;
    if let Some(version) = &target.version {
        let first = named(model, target, version)?;
        return Ok(Route {
            model,
            first,
            role: Role::Pinned,
        });
    }
    let champion = model
        .champion
        .as_ref()
        .ok_or_else(|| RouteError::NotReady {
            model: target.model.clone(),
        })?;
    let (first, role) = match &model.split {
        Some(split) if point(model.name.as_bytes(), key) < split.share => {
            (&split.version, Role::Challenger)
        }
        _ => (champion, Role::Champion),
    };
    Ok(Route { model, first, role })
}

/// A point of [0, 1) that depends on salt and key alone: FNV-1a, then the finalizer of MurmurHash3
/// (Appleby, public domain), without which near keys lie near.
fn point(salt: &[u8], key: &[u8]) -> f64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for &byte in salt.iter().chain(&[0]).chain(key) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^= hash >> 33;
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The split takes keys below its share, so a larger share keeps those of a smaller one.
        #[test]
        fn keys_only_move_towards_a_growing_challenger(
            salt in ".{0,20}",
            keys in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..24), 1..50),
            shares in (0.0..=1.0, 0.0..=1.0),
        ) {
            let (less, more) = (f64::min(shares.0, shares.1), f64::max(shares.0, shares.1));
            for key in keys {
                let at = point(salt.as_bytes(), &key);
                prop_assert_eq!(at, point(salt.as_bytes(), &key));
                prop_assert!((0.0..1.0).contains(&at));
                prop_assert!(at >= less || at < more);
            }
        }
    }

    #[test]
    fn points_are_spread_and_depend_on_the_salt() {
        let share = |salt: &[u8], below: f64| {
            let hits = (0..20_000_u32).filter(|k| point(salt, &k.to_le_bytes()) < below);
            hits.count() as f64 / 20_000.0
        };
        for below in [0.01, 0.1, 0.5, 0.9] {
            let sigma = (below * (1.0 - below) / 20_000.0_f64).sqrt();
            assert!((share(b"m", below) - below).abs() < 5.0 * sigma);
        }
        let both = (0..20_000_u32)
            .filter(|k| point(b"a", &k.to_le_bytes()) < 0.5 && point(b"b", &k.to_le_bytes()) < 0.5)
            .count();
        assert!(
            (4_500..5_500).contains(&both),
            "salts are not independent: {both}"
        );
    }
}
