//! Aliases: which version is champion, challenger, fallback of a model, now and at any time before.
//!
//! An alias is its newest event; there is no second place that could say otherwise. Every change
//! is a compare-and-set in one transaction and raises one generation, counted over all models, so
//! that watching for changes is one integer.

use std::collections::BTreeMap;

use serde::Serialize;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use thiserror::Error;

use crate::model::{expect_model, expect_version};
use crate::open::parsed;
use crate::{
    AliasName, DatabaseError, LookupError, ModelName, Registry, UnknownModel, UnknownVersion,
    Version,
};

/// A compare-and-set of one alias.
#[derive(Debug, Clone, Copy)]
pub struct AliasChange<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The alias.
    pub alias: &'a AliasName,
    /// What the caller believes it to be; `None` is unset.
    pub expected: Option<Version>,
    /// What it shall be; `None` unsets it.
    pub to: Option<Version>,
    /// Why, for the history.
    pub reason: &'a str,
    /// When.
    pub at_ms: i64,
}

/// A challenger takes over: champion := challenger, fallback := the old champion, and the
/// challenger alias is cleared (whoever holds it was measured against a champion of the past).
#[derive(Debug, Clone, Copy)]
pub struct Promotion<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The version that becomes champion.
    pub challenger: Version,
    /// The champion that it was compared with; `None` where there was none.
    pub expected_champion: Option<Version>,
    /// Why, for the history.
    pub reason: &'a str,
    /// When.
    pub at_ms: i64,
}

/// The fallback takes over again: champion := fallback, fallback := the one before it, if any.
#[derive(Debug, Clone, Copy)]
pub struct Rollback<'a> {
    /// The model.
    pub model: &'a ModelName,
    /// The champion that shall go.
    pub expected_champion: Version,
    /// Why, for the history.
    pub reason: &'a str,
    /// When.
    pub at_ms: i64,
}

/// All aliases of a model at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Release {
    /// The model.
    pub model: ModelName,
    /// The registry's generation when this was read: one cut with the aliases.
    pub generation: i64,
    /// The generation that last changed this model; 0 before the first.
    pub changed_generation: i64,
    /// The aliases that are set.
    pub aliases: BTreeMap<AliasName, Version>,
}

impl Release {
    /// The version of an alias, if it is set.
    pub fn get(&self, alias: &AliasName) -> Option<Version> {
        self.aliases.get(alias).copied()
    }

    /// The version that answers.
    pub fn champion(&self) -> Option<Version> {
        self.get(&AliasName::champion())
    }

    /// The version on trial.
    pub fn challenger(&self) -> Option<Version> {
        self.get(&AliasName::challenger())
    }

    /// The version that answers when the champion cannot.
    pub fn fallback(&self) -> Option<Version> {
        self.get(&AliasName::fallback())
    }
}

/// One change of one alias. The changes of a promotion share their generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AliasEvent {
    /// The generation that it made.
    pub generation: i64,
    /// The alias.
    pub alias: AliasName,
    /// What it was; equal to `to` of the alias's event before.
    pub from: Option<Version>,
    /// What it became.
    pub to: Option<Version>,
    /// Why.
    pub reason: String,
    /// When.
    pub at_ms: i64,
}

/// Why an alias was not changed. Nothing was written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AliasError {
    /// Somebody else was first: read again and decide again.
    #[error(
        "alias `{alias}` of model `{model}` is {}, not {}",
        shown(*found),
        shown(*expected)
    )]
    Conflict {
        /// The model.
        model: ModelName,
        /// The alias.
        alias: AliasName,
        /// What the caller believed.
        expected: Option<Version>,
        /// What it is.
        found: Option<Version>,
    },
    /// The version to promote is the champion already.
    #[error("version {version} is already the champion of model `{model}`")]
    AlreadyChampion {
        /// The model.
        model: ModelName,
        /// The version.
        version: Version,
    },
    /// There is nothing to roll back to.
    #[error("model `{model}` has no fallback other than its champion to roll back to")]
    NoFallback {
        /// The model.
        model: ModelName,
    },
    /// No such model.
    #[error(transparent)]
    UnknownModel(#[from] UnknownModel),
    /// No such version.
    #[error(transparent)]
    UnknownVersion(#[from] UnknownVersion),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Registry {
    /// Sets or clears an alias if it is what the caller believes; returns the new generation.
    /// Setting what is set already changes nothing and returns the generation as it is.
    ///
    /// # Errors
    /// [`AliasError::Conflict`] if the belief was wrong; model or version unknown.
    pub async fn set_alias(&self, change: AliasChange<'_>) -> Result<i64, AliasError> {
        let mut transaction = self.write().await?;
        expect_model::<AliasError>(&mut transaction, change.model).await?;
        if let Some(version) = change.to {
            expect_version::<AliasError>(&mut transaction, change.model, version).await?;
        }
        let mut writer = Writer::new(&mut transaction, change.model).await?;
        let found = writer.current(change.alias).await?;
        expect(change.model, change.alias, change.expected, found)?;
        writer.set(change.alias, change.to).await?;
        let generation = writer.write(change.reason, change.at_ms).await?;
        transaction.commit().await?;
        Ok(generation)
    }

    /// Promotes a version in one transaction; returns the new generation.
    ///
    /// # Errors
    /// [`AliasError::Conflict`] if the champion is not the expected one; version unknown or
    /// champion already.
    pub async fn promote(&self, promotion: Promotion<'_>) -> Result<i64, AliasError> {
        let model = promotion.model;
        let champion = AliasName::champion();
        let mut transaction = self.write().await?;
        expect_model::<AliasError>(&mut transaction, model).await?;
        expect_version::<AliasError>(&mut transaction, model, promotion.challenger).await?;
        let mut writer = Writer::new(&mut transaction, model).await?;
        let found = writer.current(&champion).await?;
        expect(model, &champion, promotion.expected_champion, found)?;
        if found == Some(promotion.challenger) {
            return Err(AliasError::AlreadyChampion {
                model: model.clone(),
                version: promotion.challenger,
            });
        }
        writer.set(&champion, Some(promotion.challenger)).await?;
        // The first champion has no predecessor; a fallback that was set beforehand stays.
        if found.is_some() {
            writer.set(&AliasName::fallback(), found).await?;
        }
        writer.set(&AliasName::challenger(), None).await?;
        let generation = writer.write(promotion.reason, promotion.at_ms).await?;
        transaction.commit().await?;
        Ok(generation)
    }

    /// Makes the fallback champion again in one transaction; returns the new generation. The
    /// version that is rolled back keeps no alias.
    ///
    /// # Errors
    /// [`AliasError::Conflict`] if the champion is not the expected one;
    /// [`AliasError::NoFallback`].
    pub async fn roll_back(&self, rollback: Rollback<'_>) -> Result<i64, AliasError> {
        let model = rollback.model;
        let (champion, fallback) = (AliasName::champion(), AliasName::fallback());
        let mut transaction = self.write().await?;
        expect_model::<AliasError>(&mut transaction, model).await?;
        let mut writer = Writer::new(&mut transaction, model).await?;
        let found = writer.current(&champion).await?;
        expect(model, &champion, Some(rollback.expected_champion), found)?;
        let target = writer.current(&fallback).await?;
        if target.is_none() || target == found {
            return Err(AliasError::NoFallback {
                model: model.clone(),
            });
        }
        // Neither the version that failed nor the one that now answers can stand in for it.
        let before = writer.before_current(&fallback).await?;
        let before = before.filter(|_| before != found && before != target);
        writer.set(&champion, target).await?;
        writer.set(&fallback, before).await?;
        let generation = writer.write(rollback.reason, rollback.at_ms).await?;
        transaction.commit().await?;
        Ok(generation)
    }

    /// The aliases of a model as they are.
    ///
    /// # Errors
    /// Unknown model.
    pub async fn release(&self, model: &ModelName) -> Result<Release, LookupError> {
        self.release_at(model, i64::MAX).await
    }

    /// The aliases of a model as they were at an instant: what served when. `generation` and
    /// `changed_generation` are the newest up to then.
    ///
    /// # Errors
    /// Unknown model.
    pub async fn release_at(&self, model: &ModelName, at_ms: i64) -> Result<Release, LookupError> {
        let mut transaction = self.read().await?;
        expect_model::<LookupError>(&mut transaction, model).await?;
        let generation: i64 = sqlx::query_scalar(
            "SELECT coalesce(max(generation), 0) FROM alias_events WHERE at_ms <= ?",
        )
        .bind(at_ms)
        .fetch_one(&mut *transaction)
        .await?;
        let rows = sqlx::query(
            "SELECT alias, to_version, generation FROM alias_events AS newest
             WHERE model = ?1 AND generation =
               (SELECT max(generation) FROM alias_events
                WHERE model = ?1 AND alias = newest.alias AND at_ms <= ?2)",
        )
        .bind(model.as_str())
        .bind(at_ms)
        .fetch_all(&mut *transaction)
        .await?;
        let mut release = Release {
            model: model.clone(),
            generation,
            changed_generation: 0,
            aliases: BTreeMap::new(),
        };
        for row in &rows {
            release.changed_generation = release.changed_generation.max(row.try_get("generation")?);
            if let Some(version) = row.try_get("to_version")? {
                release.aliases.insert(parsed(row, "alias")?, version);
            }
        }
        Ok(release)
    }

    /// The number of alias changes so far, over all models. Cheap enough to poll.
    ///
    /// # Errors
    /// The database failed.
    pub async fn generation(&self) -> Result<i64, DatabaseError> {
        let mut transaction = self.read().await?;
        Ok(generation(&mut transaction).await?)
    }

    /// Every change of every alias of a model, oldest first; empty for an unknown model.
    ///
    /// # Errors
    /// The database failed.
    pub async fn history(&self, model: &ModelName) -> Result<Vec<AliasEvent>, DatabaseError> {
        let mut transaction = self.read().await?;
        let rows = sqlx::query(
            "SELECT generation, alias, from_version, to_version, reason, at_ms
             FROM alias_events WHERE model = ? ORDER BY generation, alias",
        )
        .bind(model.as_str())
        .fetch_all(&mut *transaction)
        .await?;
        Ok(rows.iter().map(alias_event).collect::<Result<_, _>>()?)
    }
}

/// Aliases that new versions take, in one generation.
pub(crate) struct Appointment<'a> {
    pub(crate) model: &'a ModelName,
    pub(crate) expected_champion: Option<Version>,
    pub(crate) aliases: Vec<(AliasName, Version)>,
    pub(crate) reason: &'a str,
    pub(crate) at_ms: i64,
}

/// Points aliases at versions, whatever they point at now, unless the champion has changed.
pub(crate) async fn appoint(
    connection: &mut SqliteConnection,
    appointment: Appointment<'_>,
) -> Result<(), AliasError> {
    let model = appointment.model;
    let champion = AliasName::champion();
    let mut writer = Writer::new(connection, model).await?;
    let found = writer.current(&champion).await?;
    expect(model, &champion, appointment.expected_champion, found)?;
    for (alias, version) in &appointment.aliases {
        writer.set(alias, Some(*version)).await?;
    }
    writer.write(appointment.reason, appointment.at_ms).await?;
    Ok(())
}

/// The changes of one generation: collected, then written together.
struct Writer<'a> {
    connection: &'a mut SqliteConnection,
    model: &'a ModelName,
    generation: i64,
    changes: Vec<(AliasName, Option<Version>, Option<Version>)>,
}

impl<'a> Writer<'a> {
    /// The connection must hold the write lock, or the generation could be taken twice.
    async fn new(
        connection: &'a mut SqliteConnection,
        model: &'a ModelName,
    ) -> Result<Self, sqlx::Error> {
        let generation = generation(connection).await?;
        Ok(Self {
            connection,
            model,
            generation,
            changes: Vec::new(),
        })
    }

    async fn current(&mut self, alias: &AliasName) -> Result<Option<Version>, sqlx::Error> {
        let version: Option<Option<Version>> = sqlx::query_scalar(
            "SELECT to_version FROM alias_events WHERE model = ? AND alias = ?
             ORDER BY generation DESC LIMIT 1",
        )
        .bind(self.model.as_str())
        .bind(alias.as_str())
        .fetch_optional(&mut *self.connection)
        .await?;
        Ok(version.flatten())
    }

    /// What the alias was before it became what it is.
    async fn before_current(&mut self, alias: &AliasName) -> Result<Option<Version>, sqlx::Error> {
        let version: Option<Option<Version>> = sqlx::query_scalar(
            "SELECT from_version FROM alias_events WHERE model = ? AND alias = ?
             ORDER BY generation DESC LIMIT 1",
        )
        .bind(self.model.as_str())
        .bind(alias.as_str())
        .fetch_optional(&mut *self.connection)
        .await?;
        Ok(version.flatten())
    }

    async fn set(&mut self, alias: &AliasName, to: Option<Version>) -> Result<(), sqlx::Error> {
        let from = self.current(alias).await?;
        if from != to {
            self.changes.push((alias.clone(), from, to));
        }
        Ok(())
    }

    async fn write(self, reason: &str, at_ms: i64) -> Result<i64, sqlx::Error> {
        if self.changes.is_empty() {
            return Ok(self.generation);
        }
        let generation = self.generation + 1;
        for (alias, from, to) in &self.changes {
            sqlx::query(
                "INSERT INTO alias_events
                 (generation, model, alias, from_version, to_version, reason, at_ms)
                 VALUES (?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(generation)
            .bind(self.model.as_str())
            .bind(alias.as_str())
            .bind(from)
            .bind(to)
            .bind(reason)
            .bind(at_ms)
            .execute(&mut *self.connection)
            .await?;
        }
        Ok(generation)
    }
}

async fn generation(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(max(generation), 0) FROM alias_events")
        .fetch_one(connection)
        .await
}

fn expect(
    model: &ModelName,
    alias: &AliasName,
    expected: Option<Version>,
    found: Option<Version>,
) -> Result<(), AliasError> {
    if expected == found {
        return Ok(());
    }
    Err(AliasError::Conflict {
        model: model.clone(),
        alias: alias.clone(),
        expected,
        found,
    })
}

pub(crate) fn alias_event(row: &SqliteRow) -> Result<AliasEvent, sqlx::Error> {
    Ok(AliasEvent {
        generation: row.try_get("generation")?,
        alias: parsed(row, "alias")?,
        from: row.try_get("from_version")?,
        to: row.try_get("to_version")?,
        reason: row.try_get("reason")?,
        at_ms: row.try_get("at_ms")?,
    })
}

fn shown(version: Option<Version>) -> String {
    version.map_or_else(
        || "unset".to_owned(),
        |version| format!("version {version}"),
    )
}
