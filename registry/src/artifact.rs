//! Immutable blobs by content: `sha256/ab/abcdef…` below the artifact folder.
//!
//! A blob appears whole (staged file, fsync, rename, fsync of the folders) or not at all, and is
//! hashed again at each read: what a caller gets is what was asked for. Costs one write with two
//! fsyncs to put, one read and one hash to get, both on the blocking pool.

use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use object_store::ObjectStoreExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use thiserror::Error;

use crate::{Digest, Registry};

/// Largest artifact, in bytes (1 GiB): a read holds the whole of it in memory.
pub const ARTIFACT_BYTES_MAX: u64 = 1 << 30;

/// Why an artifact could not be stored or read. Messages name the digest and never a path.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ArtifactError {
    /// No such artifact.
    #[error("artifact sha256:{digest} does not exist")]
    Missing {
        /// What was asked for.
        digest: Digest,
    },
    /// The stored bytes are not those of the name: bit rot, truncation or tampering.
    #[error("artifact sha256:{digest} is corrupt: its bytes hash to {found}")]
    Corrupt {
        /// What was asked for.
        digest: Digest,
        /// What the stored bytes hash to.
        found: Digest,
    },
    /// Larger than [`ARTIFACT_BYTES_MAX`].
    #[error("artifact has {bytes} bytes, more than the {ARTIFACT_BYTES_MAX} allowed")]
    TooLarge {
        /// Size of the artifact.
        bytes: u64,
    },
    /// The store failed; whether to retry depends on the reason.
    #[error("artifact sha256:{digest} could not be {action}: {reason}")]
    Store {
        /// The artifact.
        digest: Digest,
        /// `read` or `written`.
        action: &'static str,
        /// What the operating system said, without the path.
        reason: String,
        /// The store's own error, which may name paths: for logs only.
        source: Box<object_store::Error>,
    },
}

impl Registry {
    /// Stores `bytes` and returns their digest; durable when it returns. Storing what is there
    /// already is harmless, and heals a copy that has rotted.
    ///
    /// # Errors
    /// Too large, or the store failed; then nothing of it is visible.
    pub async fn put_artifact(&self, bytes: Vec<u8>) -> Result<Digest, ArtifactError> {
        self.artifacts.put(bytes.into()).await
    }

    /// Reads an artifact; the returned bytes have been hashed and are the ones asked for.
    ///
    /// # Errors
    /// Missing, corrupt, too large, or the store failed.
    pub async fn get_artifact(&self, digest: &Digest) -> Result<Bytes, ArtifactError> {
        self.artifacts.get(digest).await
    }

    /// Removes the staged files that writers killed before `before_ms` left behind; returns how
    /// many. Invisible to readers either way. Leave live writers time: an hour ago is safe.
    ///
    /// # Errors
    /// A folder could not be read or a file not removed.
    pub async fn sweep_unfinished_artifacts(
        &self,
        before_ms: i64,
    ) -> Result<usize, std::io::Error> {
        let root = self.artifacts.root.join("sha256");
        let before = UNIX_EPOCH + Duration::from_millis(before_ms.max(0).unsigned_abs());
        let swept = tokio::task::spawn_blocking(move || sweep(&root, before));
        swept.await.map_err(std::io::Error::other)?
    }
}

/// The folder of artifacts, which can be read without the database too.
#[derive(Debug, Clone)]
pub struct ArtifactStore {
    store: Arc<LocalFileSystem>,
    root: PathBuf,
}

impl ArtifactStore {
    /// Opens the folder `root`, which must exist.
    ///
    /// # Errors
    /// The folder does not exist.
    pub fn open(root: &FsPath) -> Result<Self, object_store::Error> {
        let store = LocalFileSystem::new_with_prefix(root)?.with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            root: root.to_owned(),
        })
    }

    async fn put(&self, bytes: Bytes) -> Result<Digest, ArtifactError> {
        let size = bytes.len() as u64;
        if size > ARTIFACT_BYTES_MAX {
            return Err(ArtifactError::TooLarge { bytes: size });
        }
        let (digest, bytes) = hash(bytes).await;
        // Overwrites by rename. Asking first whether it exists would trust a copy that may be
        // rotten, or that another process has renamed but not yet synced.
        self.store
            .put(&location(&digest), bytes.into())
            .await
            .map_err(|source| store_error(digest, "written", source))?;
        Ok(digest)
    }

    /// Reads an artifact, as [`Registry::get_artifact`] does.
    ///
    /// # Errors
    /// Missing, corrupt, too large, or the store failed.
    pub async fn get(&self, digest: &Digest) -> Result<Bytes, ArtifactError> {
        let failed = |source| store_error(*digest, "read", source);
        let found = self.store.get(&location(digest)).await.map_err(failed)?;
        if found.meta.size > ARTIFACT_BYTES_MAX {
            return Err(ArtifactError::TooLarge {
                bytes: found.meta.size,
            });
        }
        let (found, bytes) = hash(found.bytes().await.map_err(failed)?).await;
        if found != *digest {
            return Err(ArtifactError::Corrupt {
                digest: *digest,
                found,
            });
        }
        Ok(bytes)
    }
}

fn location(digest: &Digest) -> Path {
    let hex = digest.to_string();
    Path::from_iter(["sha256", &hex[..2], &hex])
}

/// Hashes off the async threads: a model of tens of megabytes takes tens of milliseconds.
async fn hash(bytes: Bytes) -> (Digest, Bytes) {
    let hashed = tokio::task::spawn_blocking(move || (Digest::of(&bytes), bytes));
    hashed.await.expect("hashing does not panic")
}

fn store_error(digest: Digest, action: &'static str, source: object_store::Error) -> ArtifactError {
    if matches!(source, object_store::Error::NotFound { .. }) {
        return ArtifactError::Missing { digest };
    }
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&source);
    let mut reason = "the store failed".to_owned();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            reason = io.kind().to_string();
        }
        cause = error.source();
    }
    ArtifactError::Store {
        digest,
        action,
        reason,
        source: Box::new(source),
    }
}

fn sweep(root: &FsPath, before: std::time::SystemTime) -> Result<usize, std::io::Error> {
    let mut swept = 0;
    let folders = match std::fs::read_dir(root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        folders => folders?,
    };
    for folder in folders {
        for file in std::fs::read_dir(folder?.path())? {
            let file = file?;
            // The object store's staged names: `<digest>#<number>`; a digest has no `#`.
            let staged = file.file_name().to_string_lossy().contains('#');
            if staged && file.metadata()?.modified()? < before {
                std::fs::remove_file(file.path())?;
                swept += 1;
            }
        }
    }
    Ok(swept)
}
