//! Where the offline store lies: a folder or a bucket, read and written as whole objects.
//!
//! The one file that knows `object_store`. Callers are synchronous: each operation runs on a small
//! runtime of the process and is waited for until its deadline, so that a disk or network that hangs
//! is an error and not a stuck thread. Local objects are fsynced, and their folders, before a put
//! returns. Costs a copy of each object in memory: sealed files are bounded for that reason.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _};
use tokio::runtime::Runtime;

use super::OfflineError;
use super::segments::make_folder;

/// A folder or a bucket.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    store: Arc<dyn ObjectStore>,
    /// Its name in messages; for a folder its path.
    root: PathBuf,
}

/// How long one operation may take.
const DEADLINE: Duration = Duration::from_secs(120);
/// Threads that wait for disks.
const BLOCKING_THREADS: usize = 4;

impl Place {
    /// The folder `offline` of a data folder; it is made where it is not there.
    pub(crate) fn of_data_folder(data_dir: &Path) -> Result<Self, OfflineError> {
        let root = data_dir.join("offline");
        make_folder(&root).map_err(|source| failed(&root, source))?;
        Self::folder(root)
    }

    /// As [`Place::of_data_folder`] for a reader: makes nothing, `None` where there is no such folder.
    pub(crate) fn existing(data_dir: &Path) -> Result<Option<Self>, OfflineError> {
        let root = data_dir.join("offline");
        match root.is_dir() {
            true => Self::folder(root).map(Some),
            false => Ok(None),
        }
    }

    fn folder(root: PathBuf) -> Result<Self, OfflineError> {
        let store = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| failed(&root, error.into()))?
            .with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            root,
        })
    }

    /// The name of an object in messages; for a folder its path.
    pub(crate) fn shown(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The whole object; `None` where there is none.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Bytes>, OfflineError> {
        let (store, location) = self.at(path)?;
        let read = self.wait(
            path,
            async move { store.get(&location).await?.bytes().await },
        );
        match read {
            Ok(bytes) => Ok(Some(bytes)),
            Err(OfflineError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the whole object, in place of one of that name; on disk when this returns.
    pub(crate) fn put(&self, path: &str, bytes: Bytes) -> Result<(), OfflineError> {
        let (store, location) = self.at(path)?;
        let put = async move { store.put(&location, bytes.into()).await };
        self.wait(path, put).map(drop)
    }

    /// Removes an object; one that is not there is no error.
    pub(crate) fn delete(&self, path: &str) -> Result<(), OfflineError> {
        let (store, location) = self.at(path)?;
        match self.wait(path, async move { store.delete(&location).await }) {
            Err(OfflineError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(())
            }
            done => done,
        }
    }

    /// Names and sizes of all objects under a prefix, in order of name.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, OfflineError> {
        let (store, location) = self.at(prefix)?;
        let list = async move { store.list(Some(&location)).try_collect::<Vec<_>>().await };
        let found = self.wait(prefix, list)?;
        let mut found: Vec<_> = found
            .into_iter()
            .map(|object| (object.location.to_string(), object.size))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Removes what puts that were cut off have left under a prefix: `NAME#NUMBER` in a folder,
    /// which no listing shows. Call it while nothing is being put.
    pub(crate) fn clear_torn_puts(&self, prefix: &str) -> Result<(), OfflineError> {
        let mut folders = vec![self.root.join(prefix)];
        while let Some(folder) = folders.pop() {
            for path in super::segments::list(&folder)? {
                let name = path.file_name().and_then(|name| name.to_str());
                let torn = name
                    .and_then(|name| name.rsplit_once('#'))
                    .is_some_and(|(_, number)| number.parse::<u64>().is_ok());
                if path.is_dir() {
                    folders.push(path);
                } else if torn {
                    std::fs::remove_file(&path).map_err(|source| failed(&path, source))?;
                }
            }
        }
        Ok(())
    }

    fn at(&self, path: &str) -> Result<(Arc<dyn ObjectStore>, ObjectPath), OfflineError> {
        let location = ObjectPath::parse(path);
        let location =
            location.map_err(|error| failed(&self.shown(path), io::Error::other(error)))?;
        Ok((Arc::clone(&self.store), location))
    }

    fn wait<T: Send + 'static>(
        &self,
        path: &str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, OfflineError> {
        let failed = |error| failed(&self.shown(path), error);
        let runtime = runtime().map_err(failed)?;
        let (sender, receiver) = crossbeam::channel::bounded(1);
        // Not lost track of: the channel is waited for below, as long as the work may take.
        runtime.spawn(async move {
            // Whoever gave up waiting does not need the answer.
            let _ = sender.send(tokio::time::timeout(DEADLINE, work).await);
        });
        match receiver.recv_timeout(2 * DEADLINE) {
            Ok(Ok(done)) => done.map_err(|error| failed(error.into())),
            _ => Err(failed(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer in {} s", DEADLINE.as_secs()),
            ))),
        }
    }
}

/// The runtime of every place of this process.
fn runtime() -> io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("offline-io")
        .enable_all()
        .build()?;
    match RUNTIME.set(runtime) {
        Ok(()) => {}
        // Another thread was first.
        Err(spare) => spare.shutdown_background(),
    }
    Ok(RUNTIME.get().expect("just set"))
}

fn failed(path: &Path, source: io::Error) -> OfflineError {
    OfflineError::Io {
        path: path.to_owned(),
        source,
    }
}
