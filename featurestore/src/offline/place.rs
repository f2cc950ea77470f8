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
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use metrics::{Counter, Gauge};
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{Error, ObjectStore, ObjectStoreExt as _, PutMode, UpdateVersion};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::OfflineError;
use super::bond::Bond;
use super::bucket::{self, Bucket};
use super::manifest::Manifest;
use super::segments::make_folder;
use crate::online::SealError;
use crate::online::shared::locked;

/// A folder or a bucket.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    store: Arc<dyn ObjectStore>,
    /// Its name in messages; for a folder its path.
    root: PathBuf,
    is_bucket: bool,
    /// With the data folder, of a bucket; a folder has its lock.
    bond: Option<Arc<Bond>>,
    health: Option<Arc<Health>>,
}

/// What a manifest was when it was read: it is replaced on the condition that it still is.
#[derive(Debug, Clone)]
pub(crate) struct Stamp(UpdateVersion);

/// Whether a place does what it is asked, for statistics; and until when it is asked.
#[derive(Debug)]
pub(crate) struct Health {
    /// What an operation or a seal failed of since the last seal that did not. A lock, since any thread may
    /// read or write files.
    problem: Mutex<Option<Arc<str>>>,
    failures: Counter,
    away: Gauge,
    /// When the process ends, once it is known.
    end: watch::Sender<Option<Instant>>,
}

impl Health {
    pub(crate) fn new(failures: Counter, away: Gauge) -> Arc<Self> {
        away.set(0.0);
        Arc::new(Self {
            problem: Mutex::default(),
            failures,
            away,
            end: watch::Sender::default(),
        })
    }

    fn set(&self, problem: Option<String>) {
        self.away.set(f64::from(u8::from(problem.is_some())));
        *locked(&self.problem) = problem.map(Into::into);
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
const SLOW: &str = "no answer in two minutes";
const ENDING: &str = "no answer before the end of this process";
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
            bond: None,
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
            bond: None,
            health: None,
        })
    }

    /// The same as a data folder's own.
    pub(crate) fn bound(mut self, bond: Bond) -> Self {
        self.bond = Some(Arc::new(bond));
        self
    }

    /// The same for the one process that writes.
    pub(crate) fn for_writing(mut self, health: Arc<Health>) -> Self {
        self.health = Some(health);
        self
    }

    /// What binds a bucket to the data folder; nothing for a folder.
    pub(crate) fn bond(&self) -> Option<&Bond> {
        self.bond.as_deref()
    }

    /// Names the one that writes; nothing for a folder.
    pub(crate) fn writer(&self) -> Option<&str> {
        self.bond()?.writer()
    }

    /// Refuses a manifest, or that there is none, that is not what the data folder left there.
    pub(crate) fn check(&self, path: &str, found: Option<&Manifest>) -> Result<(), OfflineError> {
        let checked = self.bond().map_or(Ok(()), |bond| bond.check(found));
        checked.map_err(|problem| {
            let path = self.shown(path);
            let refused = OfflineError::NotOurs { path, problem };
            self.note(&refused);
            refused
        })
    }

    /// What an operation or a seal failed of since the last seal that did not.
    pub(crate) fn problem(&self) -> Option<Arc<str>> {
        locked(&self.health.as_ref()?.problem).clone()
    }

    /// Says how a seal ended.
    pub(crate) fn note_seal(&self, failed: Option<&SealError>) {
        if let Some(health) = &self.health {
            health.set(failed.map(ToString::to_string));
        }
    }

    /// No operation of a bucket is waited for past that moment: the process ends.
    pub(crate) fn end_by(&self, moment: Instant) {
        if let Some(health) = &self.health {
            health.end.send_replace(Some(moment));
        }
    }

    /// Whether the process ends: only what must be done still is.
    pub(crate) fn is_ending(&self) -> bool {
        let mut health = self.health.iter();
        health.any(|health| health.end.borrow().is_some())
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
        if let Err(Failure::Failed(error)) = &done {
            self.note(error);
        }
        done
    }

    /// Says that an operation failed.
    pub(crate) fn note(&self, failed: &OfflineError) {
        if let Some(health) = &self.health {
            health.failures.increment(1);
            health.set(Some(failed.to_string()));
        }
    }

    fn wait_for<T: Send + 'static>(
        &self,
        path: &str,
        work: impl Future<Output = object_store::Result<T>> + Send + 'static,
    ) -> Result<T, Failure> {
        let runtime = runtime().map_err(|source| failed(&self.shown(path), source))?;
        let (sender, receiver) = crossbeam::channel::bounded(1);
        let end = self.end();
        // Not lost track of: the channel is waited for below, as long as the work may take.
        runtime.spawn(async move {
            let done = tokio::select! {
                done = tokio::time::timeout(DEADLINE, work) => done.map_err(|_| SLOW),
                () = end => Err(ENDING),
            };
            // Whoever gave up waiting does not need the answer.
            let _ = sender.send(done);
        });
        let done = receiver.recv_timeout(2 * DEADLINE);
        let done = done.unwrap_or(Err(SLOW)).map_err(|problem| {
            let slow = io::Error::new(io::ErrorKind::TimedOut, problem);
            self.failed(path, slow)
        });
        done?.map_err(|error| match error {
            Error::NotFound { .. } => Failure::NotFound,
            Error::Precondition { .. } | Error::AlreadyExists { .. } if self.is_bucket => {
                Failure::Condition
            }
            error => self.failed(path, error.into()).into(),
        })
    }

    /// Comes to its end when no operation of a bucket is waited for any more.
    fn end(&self) -> impl Future<Output = ()> + Send + 'static {
        let health = self.health.as_ref().filter(|_| self.is_bucket);
        let end = health.map(|health| health.end.subscribe());
        async move {
            let moment = match end {
                Some(mut end) => end
                    .wait_for(Option::is_some)
                    .await
                    .ok()
                    .and_then(|end| *end),
                None => None,
            };
            match moment {
                Some(moment) => tokio::time::sleep_until(moment.into()).await,
                None => std::future::pending().await,
            }
        }
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
