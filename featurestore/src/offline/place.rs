//! Where the offline store lies: a folder or a bucket, read and written as whole objects.
//!
//! Callers are synchronous: each operation runs on a small runtime of the process and is waited for
//! until its deadline, so that a disk or network that hangs is an error and not a stuck thread. Local
//! objects are fsynced, and their folders, before a put returns; one in a bucket is there when its PUT is
//! answered. Costs a copy of each object in memory: sealed files are bounded for that reason.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use metrics::{Counter, Gauge};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, UpdateVersion};
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::OfflineError;
use super::bucket::{self, Bucket};
use super::segments::make_folder;
use crate::online::shared::locked;

/// A folder or a bucket.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    store: Arc<dyn ObjectStore>,
    /// Its name in messages; for a folder its path.
    root: PathBuf,
    is_bucket: bool,
    /// Names the one that writes into a bucket; a folder has its lock.
    writer: Option<Arc<str>>,
    health: Option<Arc<Health>>,
}

/// What a manifest was when it was read: it is replaced on the condition that it still is.
#[derive(Debug, Clone)]
pub(crate) struct Stamp(UpdateVersion);

/// Whether a place answers, for statistics.
#[derive(Debug)]
pub(crate) struct Health {
    /// What the last operation failed of, if it did. A lock, since any thread may read or write files.
    problem: Mutex<Option<Arc<str>>>,
    failures: Counter,
    away: Gauge,
}

impl Health {
    pub(crate) fn new(failures: Counter, away: Gauge) -> Arc<Self> {
        away.set(0.0);
        Arc::new(Self {
            problem: Mutex::default(),
            failures,
            away,
        })
    }

    /// What the last operation failed of, if it did.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        locked(&self.problem).clone()
    }

    fn note(&self, failed: Option<&OfflineError>) {
        self.away.set(f64::from(u8::from(failed.is_some())));
        self.failures.increment(u64::from(failed.is_some()));
        *locked(&self.problem) = failed.map(|error| error.to_string().into());
    }
}

/// Why an operation did not do what it should.
enum Failure {
    NotFound,
    /// The object is not, or no longer, what it was said to be.
    Condition,
    Failed(OfflineError),
}

impl From<OfflineError> for Failure {
    fn from(error: OfflineError) -> Self {
        Self::Failed(error)
    }
}

/// How long one operation may take, with all that is tried again.
const DEADLINE: Duration = Duration::from_secs(120);
/// Threads that wait for disks.
const BLOCKING_THREADS: usize = 4;

impl Place {
    /// A folder; it is made where it is not there.
    pub(crate) fn folder(root: PathBuf) -> Result<Self, OfflineError> {
        make_folder(&root).map_err(|source| failed(&root, source))?;
        let store = LocalFileSystem::new_with_prefix(&root)
            .map_err(|error| failed(&root, error.into()))?
            .with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            root,
            is_bucket: false,
            writer: None,
            health: None,
        })
    }

    /// A bucket, for readers; asks nobody yet.
    pub(crate) fn bucket(bucket: &Bucket) -> Result<Self, OfflineError> {
        let root = PathBuf::from(bucket.url());
        let store = bucket.store();
        let store = store.map_err(|error| away(&root, error.to_string()))?;
        Ok(Self {
            store,
            root,
            is_bucket: true,
            writer: None,
            health: None,
        })
    }

    /// The same for the one process that writes.
    pub(crate) fn for_writing(mut self, health: Arc<Health>) -> Self {
        if self.is_bucket {
            self.writer = Some(Uuid::now_v7().to_string().into());
        }
        self.health = Some(health);
        self
    }

    /// Names the one that writes; nothing for a folder.
    pub(crate) fn writer(&self) -> Option<&str> {
        self.writer.as_deref()
    }

    /// What the last operation failed of, if it did.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        self.health.as_ref()?.problem()
    }

    /// The name of an object in messages; for a folder its path.
    pub(crate) fn shown(&self, path: &str) -> PathBuf {
        match path {
            "" => self.root.clone(),
            path => self.root.join(path),
        }
    }

    /// The whole object; `None` where there is none.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Bytes>, OfflineError> {
        Ok(self.get_stamped(path)?.map(|(bytes, _)| bytes))
    }

    /// The whole object, and what it is replaced by.
    pub(crate) fn get_stamped(&self, path: &str) -> Result<Option<(Bytes, Stamp)>, OfflineError> {
        let (store, location) = self.at(path)?;
        let read = self.wait(path, async move {
            let found = store.get(&location).await?;
            let stamp = Stamp(UpdateVersion {
                e_tag: found.meta.e_tag.clone(),
                version: found.meta.version.clone(),
            });
            Ok((found.bytes().await?, stamp))
        });
        match read {
            Ok(found) => Ok(Some(found)),
            Err(Failure::NotFound) => Ok(None),
            Err(failure) => Err(self.error(path, failure)),
        }
    }

    /// Writes the whole object, in place of one of that name; on disk when this returns.
    pub(crate) fn put(&self, path: &str, bytes: Bytes) -> Result<(), OfflineError> {
        let (store, location) = self.at(path)?;
        let put = self.wait(
            path,
            async move { store.put(&location, bytes.into()).await },
        );
        put.map(drop).map_err(|failure| self.error(path, failure))
    }

    /// As [`Place::put`]; in a bucket only where the object still is what `before` says, `None` for not
    /// there. `Ok(None)`: it was not.
    pub(crate) fn replace(
        &self,
        path: &str,
        bytes: Bytes,
        before: Option<Stamp>,
    ) -> Result<Option<Stamp>, OfflineError> {
        let (store, location) = self.at(path)?;
        let mode = match (self.is_bucket, before) {
            (false, _) => PutMode::Overwrite,
            (true, None) => PutMode::Create,
            (true, Some(Stamp(before))) => PutMode::Update(before),
        };
        let put = async move { store.put_opts(&location, bytes.into(), mode.into()).await };
        match self.wait(path, put) {
            Ok(put) => Ok(Some(Stamp(put.into()))),
            Err(Failure::Condition) => Ok(None),
            Err(failure) => Err(self.error(path, failure)),
        }
    }

    /// Removes an object; one that is not there is no error.
    pub(crate) fn delete(&self, path: &str) -> Result<(), OfflineError> {
        let (store, location) = self.at(path)?;
        match self.wait(path, async move { store.delete(&location).await }) {
            Ok(()) | Err(Failure::NotFound) => Ok(()),
            Err(failure) => Err(self.error(path, failure)),
        }
    }

    /// Names and sizes of all objects under a prefix, in order of name.
    pub(crate) fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>, OfflineError> {
        let (store, location) = self.at(prefix)?;
        let list = async move { store.list(Some(&location)).try_collect::<Vec<_>>().await };
        let found = self.wait(prefix, list);
        let found = found.map_err(|failure| self.error(prefix, failure))?;
        let mut found: Vec<_> = found
            .into_iter()
            .map(|object| (object.location.to_string(), object.size))
            .collect();
        found.sort();
        Ok(found)
    }

    /// Refuses a bucket that cannot do what will be asked of it.
    pub(crate) fn probe(&self) -> Result<(), OfflineError> {
        let store = Arc::clone(&self.store);
        match self.wait("", async move { bucket::probe(&*store).await }) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(problem)) => Err(away(&self.root, problem.to_owned())),
            Err(failure) => Err(self.error("", failure)),
        }
    }

    /// Removes what puts that were cut off have left under a prefix: `NAME#NUMBER` in a folder,
    /// which no listing shows. Call it while nothing is being put.
    pub(crate) fn clear_torn_puts(&self, prefix: &str) -> Result<(), OfflineError> {
        if self.is_bucket {
            return Ok(());
        }
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
    ) -> Result<T, Failure> {
        let done = self.wait_for(path, work);
        self.note(match &done {
            Err(Failure::Failed(error)) => Some(error),
            _ => None,
        });
        done
    }

    /// Says how the last operation ended.
    pub(crate) fn note(&self, failed: Option<&OfflineError>) {
        if let Some(health) = &self.health {
            health.note(failed);
        }
    }

    fn wait_for<T: Send + 'static>(
        &self,
        path: &str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, Failure> {
        let runtime = runtime().map_err(|source| failed(&self.shown(path), source))?;
        let (sender, receiver) = crossbeam::channel::bounded(1);
        // Not lost track of: the channel is waited for below, as long as the work may take.
        runtime.spawn(async move {
            // Whoever gave up waiting does not need the answer.
            let _ = sender.send(tokio::time::timeout(DEADLINE, work).await);
        });
        let done = receiver.recv_timeout(2 * DEADLINE);
        let Ok(Ok(done)) = done else {
            let problem = format!("no answer in {} s", DEADLINE.as_secs());
            let slow = io::Error::new(io::ErrorKind::TimedOut, problem);
            return Err(self.failed(path, slow).into());
        };
        done.map_err(|error| match error {
            Error::NotFound { .. } => Failure::NotFound,
            Error::Precondition { .. } | Error::AlreadyExists { .. } if self.is_bucket => {
                Failure::Condition
            }
            error => self.failed(path, error.into()).into(),
        })
    }

    fn failed(&self, path: &str, source: io::Error) -> OfflineError {
        match self.is_bucket {
            true => away(&self.shown(path), without_body(&source.to_string())),
            false => failed(&self.shown(path), source),
        }
    }

    fn error(&self, path: &str, failure: Failure) -> OfflineError {
        let problem = match failure {
            Failure::Failed(error) => return error,
            Failure::NotFound => "there is no such place",
            Failure::Condition => "it is not what it was",
        };
        self.failed(path, io::Error::other(problem))
    }
}

/// An error of a bucket without the document that it answered, of which the code stays: others of its parts
/// may repeat the request, with tokens in its headers.
fn without_body(error: &str) -> String {
    let Some((said, body)) = error.split_once('<') else {
        return error.to_owned();
    };
    let code = body.split_once("<Code>");
    let code = code.and_then(|(_, rest)| Some(rest.split_once('<')?.0));
    format!("{said}{}", code.unwrap_or("…"))
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

fn away(path: &Path, problem: String) -> OfflineError {
    OfflineError::Away {
        path: path.to_owned(),
        problem,
    }
}

fn failed(path: &Path, source: io::Error) -> OfflineError {
    OfflineError::Io {
        path: path.to_owned(),
        source,
    }
}
