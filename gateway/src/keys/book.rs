//! `keys.toml`: the keys at rest, written whole or not at all.
//!
//! A file and not the registry's database, since a gateway that serves files has no registry and one
//! that has must serve without it; and since the one question that is asked of it, "has it changed",
//! is a `stat`. Writers are commands: they take turns by a lock beside the file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use featurestore::{ProjectFileError, read_toml};
use rand::TryRngCore;
use rand::rand_core::OsError;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};

use super::{Digest, ID_BYTES, KeyId, Scope, Secret};
use crate::rate::{Quota, Rate};

/// Name of the file in the data folder.
const FILE: &str = "keys.toml";
const VERSION: u32 = 1;
/// Bounds the file, and with it what a reload reads.
const KEYS_MAX: usize = 10_000;
const HEAD: &str =
    "# Written by `loopgate key`. Digests of keys; the keys themselves are nowhere.\n";
/// Nobody but the owner needs to read it.
const MODE: u32 = 0o600;

/// A key as it is kept, revoked or not.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct KeyRecord {
    pub id: KeyId,
    pub scopes: Vec<Scope>,
    /// Of the secret's bytes.
    pub sha256: Digest,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    /// Calls in a time; no limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Calls at once; 1 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<NonZeroU32>,
    /// Milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_ms: Option<i64>,
}

impl KeyRecord {
    pub(crate) fn quota(&self) -> Option<Quota> {
        Some(Quota {
            rate: self.rate?,
            burst: self.burst.unwrap_or(NonZeroU32::MIN),
        })
    }
}

/// What a key is made from.
#[derive(Clone, Debug)]
pub(crate) struct NewKey {
    pub scopes: Vec<Scope>,
    pub quota: Option<Quota>,
    pub created_ms: i64,
}

/// The file.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    version: u32,
    #[serde(default)]
    key: Vec<KeyRecord>,
}

/// Why keys cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyBookError {
    #[error(transparent)]
    File(#[from] ProjectFileError),
    #[error("{}: version {version} of the file is not known", path.display())]
    Version { path: PathBuf, version: u32 },
    #[error("{}: {problem}", path.display())]
    Io { path: PathBuf, problem: io::Error },
    #[error("{} keys are kept, which is the limit", KEYS_MAX)]
    Full,
    #[error("there is no key `{0}`")]
    Unknown(KeyId),
    #[error("the system has no random numbers: {0}")]
    Random(#[from] OsError),
}

/// The keys at rest.
#[derive(Clone, Debug)]
pub(crate) struct KeyBook {
    path: PathBuf,
}

impl KeyBook {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The book of a data folder.
    pub(crate) fn in_folder(data: &Path) -> Self {
        Self::at(data.join(FILE))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every key, in the order in which they were made; none where there is no file.
    ///
    /// # Errors
    /// When the file cannot be read or is not what we write.
    pub(crate) fn read(&self) -> Result<Vec<KeyRecord>, KeyBookError> {
        match fs::symlink_metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            _ => {}
        }
        let file: KeyFile = read_toml(&self.path)?;
        if file.version != VERSION {
            return Err(KeyBookError::Version {
                path: self.path.clone(),
                version: file.version,
            });
        }
        match file.key.len() <= KEYS_MAX {
            true => Ok(file.key),
            false => Err(KeyBookError::Full),
        }
    }

    /// Makes a key. Its secret is nowhere but in what is returned.
    ///
    /// # Errors
    /// When the file cannot be read or written; then nothing is changed.
    pub(crate) fn create(&self, new: NewKey) -> Result<(KeyRecord, Secret), KeyBookError> {
        let _turn = self.lock()?;
        let mut keys = self.read()?;
        if keys.len() >= KEYS_MAX {
            return Err(KeyBookError::Full);
        }
        let secret = Secret::draw()?;
        let record = KeyRecord {
            id: unused_id(&keys)?,
            scopes: new.scopes,
            sha256: secret.digest(),
            created_ms: new.created_ms,
            rate: new.quota.map(|quota| quota.rate),
            burst: new.quota.map(|quota| quota.burst),
            revoked_ms: None,
        };
        keys.push(record.clone());
        self.write(keys)?;
        Ok((record, secret))
    }

    /// Revokes a key, once: a second time changes nothing.
    ///
    /// # Errors
    /// When there is no such key, or the file cannot be read or written.
    pub(crate) fn revoke(&self, id: KeyId, now_ms: i64) -> Result<(), KeyBookError> {
        let _turn = self.lock()?;
        let mut keys = self.read()?;
        let key = keys.iter_mut().find(|key| key.id == id);
        let key = key.ok_or(KeyBookError::Unknown(id))?;
        if key.revoked_ms.is_some() {
            return Ok(());
        }
        key.revoked_ms = Some(now_ms);
        self.write(keys)
    }

    /// One writer at a time, or one would undo what the other revoked. Released when dropped.
    fn lock(&self) -> Result<File, KeyBookError> {
        let path = self.path.with_extension("lock");
        let locked = self.folder().and_then(|folder| {
            fs::create_dir_all(folder)?;
            let mut options = File::options();
            let file = options.create(true).append(true).mode(MODE).open(&path)?;
            file.lock()?;
            Ok(file)
        });
        locked.map_err(|problem| KeyBookError::Io { path, problem })
    }

    fn folder(&self) -> io::Result<&Path> {
        let folder = self
            .path
            .parent()
            .filter(|path| !path.as_os_str().is_empty());
        Ok(folder.unwrap_or(Path::new(".")))
    }

    fn write(&self, key: Vec<KeyRecord>) -> Result<(), KeyBookError> {
        let file = KeyFile {
            version: VERSION,
            key,
        };
        let text = toml::to_string(&file).expect("keys have a TOML form");
        let written = self.replace(format!("{HEAD}{text}").as_bytes());
        written.map_err(|problem| KeyBookError::Io {
            path: self.path.clone(),
            problem,
        })
    }

    /// By a temporary name, so that a reader sees the old file or the new one; both on disk.
    fn replace(&self, bytes: &[u8]) -> io::Result<()> {
        let temporary = self.path.with_extension("tmp");
        let mut options = File::options();
        let options = options.write(true).create(true).truncate(true).mode(MODE);
        let mut file = options.open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)?;
        File::open(self.folder()?)?.sync_all()
    }
}

fn unused_id(keys: &[KeyRecord]) -> Result<KeyId, OsError> {
    loop {
        let mut bytes = [0; ID_BYTES];
        OsRng.try_fill_bytes(&mut bytes)?;
        let id = KeyId(bytes);
        if keys.iter().all(|key| key.id != id) {
            return Ok(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::keys::KeyTable;

    fn new_key(scope: Scope) -> NewKey {
        NewKey {
            scopes: vec![scope],
            quota: Some(Quota {
                rate: "10/s".parse().unwrap(),
                burst: NonZeroU32::new(3).unwrap(),
            }),
            created_ms: 1,
        }
    }

    #[test]
    fn keys_survive_the_file_and_their_secrets_are_not_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let book = KeyBook::in_folder(folder.path());
        assert!(book.read().unwrap().is_empty());
        let (record, secret) = book.create(new_key(Scope::Write)).unwrap();
        let text = secret.reveal(record.id);
        let kept = book.read().unwrap();
        assert_eq!(kept[0].quota(), record.quota());
        let table = KeyTable::new(&kept, &KeyTable::default());
        assert!(table.find(text.as_bytes()).unwrap().may(Scope::Write));

        let written = fs::read_to_string(book.path()).unwrap();
        assert!(!written.contains(text.rsplit('_').next().unwrap()));
        let mode = fs::metadata(book.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, MODE);

        book.revoke(record.id, 5).unwrap();
        book.revoke(record.id, 9).unwrap();
        let kept = book.read().unwrap();
        assert_eq!(kept[0].revoked_ms, Some(5));
        assert_eq!(KeyTable::new(&kept, &table).len(), 0);
        let unknown = book.revoke("0123456789ab".parse().unwrap(), 9);
        assert!(matches!(unknown, Err(KeyBookError::Unknown(_))));
    }

    #[test]
    fn writers_take_turns() {
        let folder = tempfile::tempdir().unwrap();
        let book = KeyBook::in_folder(folder.path());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| book.create(new_key(Scope::Predict)).unwrap());
            }
        });
        assert_eq!(book.read().unwrap().len(), 8);
    }

    #[test]
    fn a_file_that_is_not_ours_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let book = KeyBook::in_folder(folder.path());
        for wrong in [
            "",
            "version = 2",
            "version = 1\n[[key]]\nid = \"x\"",
            "version = 1\nkeys = []",
        ] {
            fs::write(book.path(), wrong).unwrap();
            assert!(book.read().is_err(), "{wrong}");
        }
    }
}
