//! A table of the offline store: its manifest, the files that the manifest names, and the order in
//! which both change.
//!
//! A file is put, then named; forgotten, then removed. No name is used twice: names carry the revision
//! that their file was made for, so what a crash leaves between the two steps is known for what it is.
//! One process changes a table (the one that holds the data folder's lock), any number read it. What a
//! reader gets of a file has the length and digest that the manifest says, or it gets an error.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use super::OfflineError;
use super::days::About;
use super::manifest::{Manifest, Retirement, SealedFile};
use super::place::Place;
use super::segments::{Indexed, Segment, Wanted, Written, hex};
use crate::online::shared::locked;

/// Which table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableKind {
    /// `source=S/date=D`, by arrival.
    Events,
    /// `model=M/date=D`, by the time of the prediction.
    Predictions,
    /// `date=D`, by arrival.
    Labels,
}

impl TableKind {
    /// Every table.
    pub(crate) const ALL: [Self; 3] = [Self::Events, Self::Predictions, Self::Labels];

    /// Its folder and its name in messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Predictions => "predictions",
            Self::Labels => "labels",
        }
    }

    /// The columns that its files are kept apart by.
    pub(crate) fn indexed(self) -> Indexed<'static> {
        let (time, seq) = match self {
            Self::Events => ("_arrived", Some("_seq")),
            Self::Predictions => ("at", None),
            Self::Labels => ("arrived", Some("seq")),
        };
        Indexed { time, seq }
    }
}

/// A table of one place.
pub(crate) struct Table {
    kind: TableKind,
    place: Place,
    /// A lock, since any handle of a store may seal or read; held while a manifest is written.
    state: Mutex<State>,
}

struct State {
    manifest: Arc<Manifest>,
    /// Whether the place holds that manifest; not known after a failed write.
    stored: bool,
    /// Earlier manifests that somebody may be reading by.
    earlier: Vec<Weak<Manifest>>,
}

/// What a folder of before there were manifests says about itself.
pub(crate) struct Legacy<'a> {
    /// As in [`Manifest::sealed_seq`].
    pub(crate) sealed_seq: u64,
    /// Whether the file of that path was left by a seal that did not end.
    pub(crate) unfinished: &'a dyn Fn(&str) -> bool,
}

/// Folder and name of a file to be.
pub(crate) struct FileName {
    pub(crate) folder: String,
    pub(crate) name: String,
}

impl Table {
    /// Opens a table for the one process that changes it. One without a manifest gets one: of the files
    /// that lie there, if they are of a version that knew none. Removes what an earlier process left
    /// unfinished.
    pub(crate) fn open(
        kind: TableKind,
        place: Place,
        legacy: &Legacy<'_>,
    ) -> Result<Self, OfflineError> {
        let table = Self {
            kind,
            place,
            state: Mutex::new(State {
                manifest: Arc::default(),
                stored: true,
                earlier: Vec::new(),
            }),
        };
        let found = match table.load()? {
            Some(manifest) => manifest,
            None => {
                let manifest = table.of_listing(legacy)?;
                table.put_manifest(&manifest)?;
                manifest
            }
        };
        locked(&table.state).manifest = Arc::new(found);
        table.place.clear_torn_puts(kind.name())?;
        table.sweep()?;
        Ok(table)
    }

    /// Reads a table that another process may be changing.
    pub(crate) fn read_only(kind: TableKind, place: Place) -> Result<Self, OfflineError> {
        let table = Self {
            kind,
            place,
            state: Mutex::new(State {
                manifest: Arc::default(),
                stored: true,
                earlier: Vec::new(),
            }),
        };
        let found = match table.load()? {
            Some(manifest) => manifest,
            None => table.of_listing(&Legacy {
                sealed_seq: 0,
                unfinished: &|_| false,
            })?,
        };
        locked(&table.state).manifest = Arc::new(found);
        Ok(table)
    }

    pub(crate) fn kind(&self) -> TableKind {
        self.kind
    }

    /// The table as it is now. After a write that may or may not have come through, as the place has it.
    pub(crate) fn manifest(&self) -> Result<Arc<Manifest>, OfflineError> {
        let mut state = locked(&self.state);
        if !state.stored {
            let found = self.load()?.unwrap_or_default();
            let before = std::mem::replace(&mut state.manifest, Arc::new(found));
            state.earlier.push(Arc::downgrade(&before));
            state.stored = true;
        }
        Ok(Arc::clone(&state.manifest))
    }

    /// Changes the table; on disk when this returns.
    pub(crate) fn commit(&self, change: impl FnOnce(&mut Manifest)) -> Result<(), OfflineError> {
        let mut state = locked(&self.state);
        if !state.stored {
            let problem = "an earlier write of it failed; try again";
            return Err(self.manifest_error(problem.to_owned()));
        }
        let mut next = Manifest::clone(&state.manifest);
        change(&mut next);
        if next == *state.manifest {
            return Ok(());
        }
        next.revision += 1;
        state.stored = false;
        self.put_manifest(&next)?;
        state.stored = true;
        let before = std::mem::replace(&mut state.manifest, Arc::new(next));
        state.earlier.push(Arc::downgrade(&before));
        state.earlier.retain(|earlier| earlier.strong_count() > 0);
        Ok(())
    }

    /// Puts files in the place of all that came from `origin`.
    pub(crate) fn replace(&self, origin: &str, files: Vec<SealedFile>) -> Result<(), OfflineError> {
        self.commit(|manifest| {
            manifest.retire(Retirement::Replaced, |file| file.origin == origin);
            manifest.files.extend(files);
        })
    }

    /// Whether somebody in this process may still read by an earlier manifest.
    pub(crate) fn has_late_readers(&self) -> bool {
        let state = locked(&self.state);
        let mut earlier = state.earlier.iter();
        earlier.any(|earlier| earlier.strong_count() > 0)
    }

    /// Puts a file into place that the next revision will name.
    pub(crate) fn put_file(
        &self,
        name: &FileName,
        (bytes, written): (Bytes, Written),
        about: &About,
    ) -> Result<SealedFile, OfflineError> {
        let revision = self.manifest()?.revision + 1;
        let path = format!("{}/r{revision:08}-{}.parquet", name.folder, name.name);
        let file = described(path, &bytes, written, about);
        self.place.put(&self.below(&file.path), bytes)?;
        Ok(file)
    }

    /// Removes a file that no revision names any more.
    pub(crate) fn remove_file(&self, file: &SealedFile) -> Result<(), OfflineError> {
        self.place.delete(&self.below(&file.path))
    }

    /// The bytes of a file, which are those that were sealed.
    pub(crate) fn bytes(&self, file: &SealedFile) -> Result<Bytes, OfflineError> {
        let path = || self.shown(&file.path);
        let bytes = self.place.get(&self.below(&file.path))?;
        let bytes = bytes.ok_or_else(|| OfflineError::Missing { path: path() })?;
        if bytes.len() as u64 != file.bytes || hex(&Sha256::digest(&bytes)) != file.sha256 {
            return Err(OfflineError::Altered { path: path() });
        }
        Ok(bytes)
    }

    /// Opens a file.
    pub(crate) fn segment(
        &self,
        file: &SealedFile,
        wanted: Wanted<'_>,
    ) -> Result<Segment, OfflineError> {
        Segment::open(self.shown(&file.path), self.bytes(file)?, wanted)
    }

    /// The name of a file in messages.
    pub(crate) fn shown(&self, path: &str) -> PathBuf {
        self.place.shown(&self.below(path))
    }

    /// Names and sizes of the Parquet files that lie in the table's folder.
    pub(crate) fn listing(&self) -> Result<Vec<(String, u64)>, OfflineError> {
        let prefix = format!("{}/", self.kind.name());
        let found = self.place.list(self.kind.name())?;
        let parquet = |(path, size): (String, u64)| {
            let path = path.strip_prefix(&prefix)?;
            let name = path.rsplit('/').next()?;
            let whole = name.ends_with(".parquet") && !name.starts_with('.');
            (whole && path.contains("date=")).then(|| (path.to_owned(), size))
        };
        Ok(found.into_iter().filter_map(parquet).collect())
    }

    /// Removes the files of attempts that no manifest came to name, and says so where files that it
    /// names are not there or not whole: reading them will fail. A manifest older than the files beside
    /// it (a backup put back without them) is refused: what it does not name may be all there is.
    fn sweep(&self) -> Result<(), OfflineError> {
        let manifest = self.manifest()?;
        let mut sizes: std::collections::HashMap<_, _> = self.listing()?.into_iter().collect();
        for file in &manifest.files {
            if sizes.remove(&file.path) != Some(file.bytes) {
                let path = self.shown(&file.path);
                tracing::error!(path = %path.display(), "sealed file is missing or not whole");
            }
        }
        for retired in &manifest.retired {
            sizes.remove(&retired.file.path);
        }
        let next = manifest.revision + 1;
        let revision = |path: &str| revision_of(path).unwrap_or_default();
        if let Some(path) = sizes.keys().find(|path| revision(path) > next) {
            return Err(self.manifest_error(format!(
                "it is of revision {}, but {} was made for revision {}",
                manifest.revision,
                self.shown(path).display(),
                revision(path)
            )));
        }
        for path in sizes.into_keys().filter(|path| revision_of(path).is_some()) {
            tracing::info!(path = %self.shown(&path).display(), "unfinished file removed");
            self.place.delete(&self.below(&path))?;
        }
        Ok(())
    }

    fn load(&self) -> Result<Option<Manifest>, OfflineError> {
        let stored = self.place.get(&self.below(MANIFEST))?;
        let decode = |bytes: Bytes| Manifest::decode(self.kind.name(), &bytes);
        let manifest = stored.map(decode).transpose();
        manifest.map_err(|problem| self.manifest_error(problem))
    }

    fn put_manifest(&self, manifest: &Manifest) -> Result<(), OfflineError> {
        let bytes = manifest.encode(self.kind.name());
        self.place.put(&self.below(MANIFEST), bytes.into())
    }

    /// The manifest of files that were written when there was none.
    fn of_listing(&self, legacy: &Legacy<'_>) -> Result<Manifest, OfflineError> {
        let mut manifest = Manifest {
            sealed_seq: legacy.sealed_seq,
            ..Manifest::default()
        };
        for (path, _) in self.listing()? {
            if revision_of(&path).is_some() {
                let path = self.shown(&path);
                let problem = format!("it is not there, but {} is", path.display());
                return Err(self.manifest_error(problem));
            }
            if (legacy.unfinished)(&path) {
                self.place.delete(&self.below(&path))?;
                continue;
            }
            manifest.files.push(self.describe(path)?);
        }
        Ok(manifest)
    }

    fn describe(&self, path: String) -> Result<SealedFile, OfflineError> {
        let shown = self.shown(&path);
        let bytes = self.place.get(&self.below(&path))?;
        let bytes = bytes.ok_or_else(|| OfflineError::Missing {
            path: shown.clone(),
        })?;
        let mut written = Written::default();
        for rows in Segment::open(shown.clone(), bytes.clone(), Wanted::All)? {
            let added = written.add(&rows?, self.kind.indexed());
            added.map_err(|problem| super::segments::corrupt(&shown, problem))?;
        }
        let about = About {
            folder: String::new(),
            name: String::new(),
            schema: serde_json::Value::Null,
            origin: origin_of(&path),
        };
        Ok(described(path, &bytes, written, &about))
    }

    fn below(&self, path: &str) -> String {
        format!("{}/{path}", self.kind.name())
    }

    fn manifest_error(&self, problem: String) -> OfflineError {
        OfflineError::Manifest {
            path: self.shown(MANIFEST),
            problem,
        }
    }
}

/// The manifest's name in its table's folder.
const MANIFEST: &str = "manifest.jsonl";

fn described(path: String, bytes: &Bytes, written: Written, about: &About) -> SealedFile {
    let (from_ms, to_ms) = written.times.unwrap_or_default();
    let (first_seq, last_seq) = written.seqs.unwrap_or_default();
    SealedFile {
        path,
        rows: written.rows,
        bytes: bytes.len() as u64,
        sha256: hex(&Sha256::digest(bytes)),
        from_ms,
        to_ms,
        first_seq,
        last_seq,
        schema: about.schema.clone(),
        origin: about.origin.clone(),
    }
}

/// What a file of before there were manifests was sealed from: a backfill is known by its name.
fn origin_of(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('-') {
        Some((origin, _)) if origin.starts_with("backfill-") => origin.to_owned(),
        _ => "before manifests".to_owned(),
    }
}

/// The revision that a file was made for, from its name.
fn revision_of(path: &str) -> Option<u64> {
    let name = Path::new(path).file_name()?.to_str()?;
    let (number, _) = name.strip_prefix('r')?.split_once('-')?;
    (number.len() >= 8).then(|| number.parse().ok())?
}
