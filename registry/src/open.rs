//! Opening the registry: folders, the SQLite file, its migrations, its connections.
//!
//! Several processes write to the one file. So every write is a `BEGIN IMMEDIATE` transaction (it
//! takes the write lock before it reads what it decides on, and cannot fail half-way for want of
//! it), waits up to ten seconds for the other writer, and each process writes through one
//! connection. Readers never wait: WAL.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::DeserializeOwned;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{Connection, Row, Sqlite, SqliteConnection, Transaction};
use thiserror::Error;

use crate::artifact::ArtifactStore;
use crate::{UnknownModel, UnknownRun, UnknownVersion};

/// How long a statement waits for another process's write, and a caller for a connection.
const WAIT_MAX: Duration = Duration::from_secs(10);
const READERS_MAX: u32 = 3;

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Where the registry is.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// The SQLite file; made if missing.
    pub database: PathBuf,
    /// The folder of artifacts; made if missing.
    pub artifacts: PathBuf,
}

/// The open registry. Clones share its connections; any number of processes may have it open.
#[derive(Debug, Clone)]
pub struct Registry {
    readers: SqlitePool,
    writer: SqlitePool,
    pub(crate) artifacts: ArtifactStore,
}

impl Registry {
    /// Opens the registry, makes what is missing and brings its schema up to date. Safe to call
    /// from several processes at once.
    ///
    /// # Errors
    /// A folder cannot be made, the file is not a registry or was written by a newer release, or
    /// another process holds it for longer than ten seconds.
    pub async fn open(options: &RegistryOptions) -> Result<Self, OpenError> {
        let folders = [options.database.parent(), Some(options.artifacts.as_path())];
        for folder in folders.into_iter().flatten() {
            tokio::fs::create_dir_all(folder)
                .await
                .map_err(|source| OpenError::Folder {
                    path: folder.to_owned(),
                    source,
                })?;
        }
        let artifacts =
            ArtifactStore::open(&options.artifacts).map_err(|source| OpenError::Artifacts {
                path: options.artifacts.clone(),
                source: Box::new(source),
            })?;
        let database = |source| OpenError::Database {
            path: options.database.clone(),
            source,
        };
        let connect = connect_options(&options.database);
        migrate(connect.clone().create_if_missing(true))
            .await
            .map_err(database)?;
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(WAIT_MAX)
                // On a full disk SQLite ends a transaction by itself. The connection goes on counting it,
                // and would never begin another.
                .before_acquire(|connection, _| {
                    let is_of_use = !connection.is_in_transaction();
                    Box::pin(std::future::ready(Ok(is_of_use)))
                })
        };
        Ok(Self {
            readers: pool(READERS_MAX).connect_lazy_with(connect.clone()),
            writer: pool(1).connect_lazy_with(connect),
            artifacts,
        })
    }

    /// Closes the connections once their work is done; a registry that is dropped instead is as
    /// durable, only its WAL file stays until the next opening.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    /// Copies the database, as it is, into a file that does not exist yet, on disk when this returns.
    /// Artifacts are not copied: those that it names are there, and files of artifacts never change.
    ///
    /// # Errors
    /// The file exists or cannot be written, or the database cannot be read.
    pub async fn copy_database(&self, to: &std::path::Path) -> Result<(), CopyError> {
        let failed = |source| CopyError::Write {
            path: to.to_owned(),
            source,
        };
        let name = to
            .to_str()
            .ok_or_else(|| failed(std::io::Error::other("its name is not Unicode")))?;
        sqlx::query("VACUUM INTO ?")
            .bind(name)
            .execute(&self.readers)
            .await?;
        let file = tokio::fs::File::open(to).await.map_err(failed)?;
        file.sync_all().await.map_err(failed)
    }

    /// One snapshot for several reads.
    pub(crate) async fn read(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.readers.begin().await
    }

    /// The write lock, taken before anything is read. Dropped without `commit`: nothing happened.
    pub(crate) async fn write(&self) -> Result<Transaction<'static, Sqlite>, sqlx::Error> {
        self.writer.begin_with("BEGIN IMMEDIATE").await
    }
}

/// Why a registry could not be copied.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CopyError {
    /// The copy could not be written.
    #[error("could not write {}: {source}", path.display())]
    Write {
        /// The copy.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The database could not be read, or not into this file.
    #[error("registry: {0}")]
    Database(#[from] sqlx::Error),
}

/// Why a registry could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A folder cannot be made.
    #[error("folder `{}` cannot be made: {source}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The artifact folder cannot be used.
    #[error("artifact folder `{}` cannot be used: {source}", path.display())]
    Artifacts {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: Box<object_store::Error>,
    },
    /// The file cannot be opened, or its schema not be brought up to date.
    #[error("registry `{}` cannot be opened: {source}", path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// Why.
        source: MigrateError,
    },
}

/// The database failed: disk, lock or a broken file. Nothing of the operation was written.
#[derive(Debug, Error)]
#[error("registry database: {0}")]
pub struct DatabaseError(#[from] sqlx::Error);

impl DatabaseError {
    /// Whether another process held the file for too long, so that trying again makes sense.
    pub fn is_busy(&self) -> bool {
        is_busy(&self.0)
    }
}

/// Why something could not be looked up.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LookupError {
    /// No such model.
    #[error(transparent)]
    UnknownModel(#[from] UnknownModel),
    /// No such version.
    #[error(transparent)]
    UnknownVersion(#[from] UnknownVersion),
    /// No such run.
    #[error(transparent)]
    UnknownRun(#[from] UnknownRun),
    /// The database failed.
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

/// `?` on a statement inside an operation that has its own error.
macro_rules! database_failure {
    ($($error:ty),+) => {
        $(impl From<sqlx::Error> for $error {
            fn from(error: sqlx::Error) -> Self {
                Self::Database(error.into())
            }
        })+
    };
}

database_failure!(
    LookupError,
    crate::AliasError,
    crate::DecisionError,
    crate::LogError,
    crate::RegisterError,
    crate::RunError
);

/// A column whose text is a name, a digest or a status.
pub(crate) fn parsed<T>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: &str = row.try_get(column)?;
    text.parse().map_err(|error| undecodable(column, error))
}

/// As [`parsed`], of a column that may be null.
pub(crate) fn parsed_option<T>(row: &SqliteRow, column: &str) -> Result<Option<T>, sqlx::Error>
where
    T: FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let text: Option<&str> = row.try_get(column)?;
    let value = text.map(str::parse).transpose();
    value.map_err(|error| undecodable(column, error))
}

/// A column whose text is JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &SqliteRow, column: &str) -> Result<T, sqlx::Error> {
    let text: &str = row.try_get(column)?;
    serde_json::from_str(text).map_err(|error| undecodable(column, error))
}

fn undecodable(column: &str, error: impl std::error::Error + Send + Sync + 'static) -> sqlx::Error {
    sqlx::Error::ColumnDecode {
        index: column.to_owned(),
        source: Box::new(error),
    }
}

fn connect_options(database: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(database)
        .foreign_keys(true)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(WAIT_MAX)
}

/// Turns the WAL on and applies what is missing of the schema, in one transaction: sqlx takes no
/// lock of its own on SQLite, and two processes may open a new registry at once.
async fn migrate(options: SqliteConnectOptions) -> Result<(), MigrateError> {
    // Only here: the mode stays in the file, and turning it on is the one statement that SQLite
    // refuses at once, without waiting, while another process has the file.
    let options = options.journal_mode(SqliteJournalMode::Wal);
    let deadline = tokio::time::Instant::now() + WAIT_MAX;
    let mut connection = loop {
        match SqliteConnection::connect_with(&options).await {
            Err(error) if is_busy(&error) && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            connected => break connected?,
        }
    };
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    MIGRATIONS
        .run_direct(None, &mut *transaction, false)
        .await?;
    transaction.commit().await?;
    connection.close().await?;
    Ok(())
}

fn is_busy(error: &sqlx::Error) -> bool {
    const SQLITE_BUSY: i32 = 5;
    const SQLITE_LOCKED: i32 = 6;
    let code = error.as_database_error().and_then(|error| error.code());
    let code = code.and_then(|code| code.parse::<i32>().ok());
    // The low byte of an extended code is the plain one.
    let locked = matches!(
        code.map(|code| code & 0xff),
        Some(SQLITE_BUSY | SQLITE_LOCKED)
    );
    locked || matches!(error, sqlx::Error::PoolTimedOut)
}
