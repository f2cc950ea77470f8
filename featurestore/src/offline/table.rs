//! A table of the offline store: its manifest, the files that the manifest names, and the order in
//! which both change.
//!
//! A file is put, then named; forgotten, then removed. Names carry the revision that their file was made
//! for, so what a crash leaves between the two steps is known for what it is, and a part of its digest, so
//! that no name is used for two contents. One process changes a table (the one that holds the data
//! folder's lock), any number read it. In a bucket, where a write may arrive long after its sender gave up
//! or was killed, a process first puts its own name into the manifest: no earlier write holds after that.
//! What a reader gets of a file has the length and digest that the manifest says, or it gets an error.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use parquet::basic::{Compression, ZstdLevel};
use sha2::{Digest as _, Sha256};

use super::OfflineError;
use super::bond::Bond;
use super::days::About;
use super::legacy::{self, Legacy};
use super::location::Settled;
use super::manifest::{Manifest, Retirement, SealedFile};
use super::place::{Place, Stamp};
use super::reach::Reach;
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

    /// Zstandard takes and clears a hundred KiB for each column of each file that it reads. Of events
    /// there are many small files (one a source and day), which it makes no smaller than Snappy does.
    pub(crate) fn compression(self) -> Compression {
        match self {
            Self::Events => Compression::SNAPPY,
            Self::Predictions | Self::Labels => Compression::ZSTD(ZstdLevel::default()),
        }
    }
}

/// A table of one place.
pub(crate) struct Table {
    kind: TableKind,
    place: Place,
    /// Whether its place may be away.
    known: bool,
    /// A lock, since any handle of a store may seal or read; held while a manifest is written.
    state: Mutex<State>,
}

struct State {
    manifest: Arc<Manifest>,
    /// The manifest that the next one takes the place of.
    stamp: Option<Stamp>,
    /// Whether the place holds that manifest; not known after a failed write.
    stored: bool,
    claim: Claim,
    /// Earlier manifests that somebody may be reading by.
    earlier: Vec<Weak<Manifest>>,
}

/// Whose a table is.
#[derive(Debug, Clone, Copy)]
enum Claim {
    /// Another process may change it.
    None,
    /// To be ours, once its place has been reached and it fits its log.
    Pending(Reach),
    Held,
}

/// Folder and name of a file to be.
pub(crate) struct FileName {
    pub(crate) folder: String,
    pub(crate) name: String,
}

impl Table {
    /// Reads a table for the one process that will [claim](Self::claim) it. One without a manifest gets
    /// one then: of the files that lie there, if they are of a version that knew none. A place that is known
    /// may be away: whatever needs the table says so, until it is back.
    pub(crate) fn open(
        kind: TableKind,
        settled: &Settled,
        legacy: &Legacy<'_>,
    ) -> Result<Self, OfflineError> {
        let table = Self {
            known: settled.known,
            ..Self::new(kind, settled.place.clone())
        };
        // One attempt is enough for three tables.
        if settled.known && settled.place.problem().is_some() {
            return Ok(table);
        }
        let loaded = table.load_into(&mut locked(&table.state), legacy);
        match loaded {
            Err(error @ OfflineError::Away { .. }) if settled.known => {
                tracing::error!(table = kind.name(), %error, "sealed files cannot be reached");
            }
            loaded => loaded?,
        }
        Ok(table)
    }

    /// Reads a table that another process may be changing.
    pub(crate) fn read_only(kind: TableKind, place: Place) -> Result<Self, OfflineError> {
        let table = Self::new(kind, place);
        table.load_into(&mut locked(&table.state), &Legacy::NONE)?;
        Ok(table)
    }

    fn new(kind: TableKind, place: Place) -> Self {
        let state = State {
            manifest: Arc::default(),
            stamp: None,
            stored: false,
            claim: Claim::None,
            earlier: Vec::new(),
        };
        Self {
            kind,
            place,
            known: false,
            state: Mutex::new(state),
        }
    }

    /// Refuses the table as it was read, if it was, where it does not fit its log.
    pub(crate) fn hold_against(&self, reach: Reach) -> Result<(), OfflineError> {
        let state = locked(&self.state);
        match state.stored {
            true => self.check(&state.manifest, reach),
            false => Ok(()),
        }
    }

    /// Makes the table ours, and removes what an earlier process left unfinished; when its place is back,
    /// where it is away.
    pub(crate) fn claim(&self, reach: Reach) -> Result<(), OfflineError> {
        let mut state = locked(&self.state);
        if matches!(state.claim, Claim::Held) {
            return self.check(&state.manifest, reach);
        }
        state.claim = Claim::Pending(reach);
        if !state.stored {
            return Ok(());
        }
        match self.take(&mut state, reach) {
            Err(OfflineError::Away { .. }) if self.known => Ok(()),
            taken => taken,
        }
    }

    fn take(&self, state: &mut State, reach: Reach) -> Result<(), OfflineError> {
        if !state.stored {
            self.load_into(state, &Legacy::NONE)?;
        }
        self.check(&state.manifest, reach)?;
        self.place.clear_torn_puts(self.kind.name())?;
        let orphans = self.orphans(&state.manifest)?;
        let (is_new, bond) = (state.stamp.is_none(), self.place.bond());
        if is_new || self.place.writer().is_some() {
            let mut manifest = Manifest::clone(&state.manifest);
            if let Some(writer) = self.place.writer() {
                manifest.revision += 1;
                manifest.writer = Some(writer.into());
            }
            state.stored = false;
            bond.map_or(Ok(()), Bond::begin)?;
            state.stamp = Some(self.put_manifest(&manifest, state.stamp.clone())?);
            state.manifest = Arc::new(manifest);
            state.stored = true;
            bond.map_or(Ok(()), |bond| bond.named(self.kind))?;
        }
        state.claim = Claim::Held;
        for path in orphans {
            tracing::info!(path = %self.shown(&path).display(), "unfinished file removed");
            self.place.delete(&self.below(&path))?;
        }
        Ok(())
    }

    pub(crate) fn kind(&self) -> TableKind {
        self.kind
    }

    /// The table as it is now. After a write that may or may not have come through, as the place has it.
    pub(crate) fn manifest(&self) -> Result<Arc<Manifest>, OfflineError> {
        let mut state = locked(&self.state);
        if let Claim::Pending(reach) = state.claim {
            self.take(&mut state, reach)?;
        } else if !state.stored {
            self.load_into(&mut state, &Legacy::NONE)?;
        }
        Ok(Arc::clone(&state.manifest))
    }

    /// Changes the table; on disk when this returns.
    pub(crate) fn commit(&self, change: impl FnOnce(&mut Manifest)) -> Result<(), OfflineError> {
        let mut state = locked(&self.state);
        if !state.stored || !matches!(state.claim, Claim::Held) {
            let problem = "an earlier write of it failed; try again";
            return Err(self.manifest_error(problem.to_owned()));
        }
        let mut next = Manifest::clone(&state.manifest);
        change(&mut next);
        if next == *state.manifest {
            return Ok(());
        }
        next.revision += 1;
        next.writer = self.place.writer().map(Into::into);
        state.stored = false;
        let stamp = self.put_manifest(&next, state.stamp.clone())?;
        state.stamp = Some(stamp);
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
        let mut file = described(String::new(), &bytes, written, about);
        let FileName { folder, name } = name;
        let digest = &file.sha256[..16];
        file.path = format!("{folder}/r{revision:08}-{name}-{digest}.parquet");
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

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Copies the table into another place: its files, then its manifest.
    pub(crate) fn copy_to(&self, place: &Place) -> Result<(), OfflineError> {
        let manifest = self.manifest()?;
        for file in &manifest.files {
            place.put(&self.below(&file.path), self.bytes(file)?)?;
        }
        place.put(
            &self.below(MANIFEST),
            manifest.encode(self.kind.name()).into(),
        )
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

    fn check(&self, manifest: &Manifest, reach: Reach) -> Result<(), OfflineError> {
        let problem = reach.refusal(self.kind, manifest);
        problem.map_or(Ok(()), |problem| Err(self.manifest_error(problem)))
    }

    /// The files of attempts that no manifest came to name. Says so where files that it names are not
    /// there or not whole: reading them will fail. A manifest older than the files beside it (a backup put
    /// back without them) is refused: what it does not name may be all there is.
    fn orphans(&self, manifest: &Manifest) -> Result<Vec<String>, OfflineError> {
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
        let ours = |path: &String| revision_of(path).is_some();
        Ok(sizes.into_keys().filter(ours).collect())
    }

    /// The manifest as its place has it.
    fn load_into(&self, state: &mut State, legacy: &Legacy<'_>) -> Result<(), OfflineError> {
        let path = self.below(MANIFEST);
        let (found, stamp) = self.place.get_stamped(&path)?.unzip();
        let found = found.map(|bytes| Manifest::decode(self.kind.name(), &bytes));
        let found = found.transpose();
        let found = found.map_err(|problem| self.manifest_error(problem))?;
        let writer = self.place.writer();
        let other = |found: &Manifest| writer.is_some() && found.writer.as_deref() != writer;
        if matches!(state.claim, Claim::Held) && found.as_ref().is_some_and(other) {
            return Err(self.taken());
        }
        self.place.check(&path, found.as_ref())?;
        let found = found.map_or_else(|| legacy::manifest_of(self, legacy), Ok)?;
        let before = std::mem::replace(&mut state.manifest, Arc::new(found));
        state.earlier.push(Arc::downgrade(&before));
        state.stamp = stamp;
        state.stored = true;
        Ok(())
    }

    /// Writes the manifest in place of the one of that stamp.
    fn put_manifest(
        &self,
        manifest: &Manifest,
        before: Option<Stamp>,
    ) -> Result<Stamp, OfflineError> {
        let path = self.below(MANIFEST);
        let bytes = Bytes::from(manifest.encode(self.kind.name()));
        if let Some(stamp) = self.place.replace(&path, bytes.clone(), before)? {
            return Ok(stamp);
        }
        // Of a write that was tried again the first attempt may have come through.
        let found = self.place.get_stamped(&path)?;
        match found {
            Some((found, stamp)) if found == bytes => Ok(stamp),
            Some((found, _)) if self.is_ours(&found) => {
                let problem = "an earlier write of it came through late; try again";
                Err(self.manifest_error(problem.to_owned()))
            }
            _ => Err(self.taken()),
        }
    }

    fn is_ours(&self, manifest: &[u8]) -> bool {
        let manifest = Manifest::decode(self.kind.name(), manifest);
        manifest.is_ok_and(|manifest| manifest.writer.as_deref() == self.place.writer())
    }

    fn taken(&self) -> OfflineError {
        let taken = OfflineError::Taken {
            path: self.shown(MANIFEST),
        };
        self.place.note(&taken);
        taken
    }

    pub(super) fn below(&self, path: &str) -> String {
        format!("{}/{path}", self.kind.name())
    }

    pub(super) fn manifest_error(&self, problem: String) -> OfflineError {
        OfflineError::Manifest {
            path: self.shown(MANIFEST),
            problem,
        }
    }
}

/// The manifest's name in its table's folder.
pub(super) const MANIFEST: &str = "manifest.jsonl";

pub(super) fn described(
    path: String,
    bytes: &Bytes,
    written: Written,
    about: &About,
) -> SealedFile {
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

/// The revision that a file was made for, from its name.
pub(super) fn revision_of(path: &str) -> Option<u64> {
    let name = Path::new(path).file_name()?.to_str()?;
    let (number, _) = name.strip_prefix('r')?.split_once('-')?;
    (number.len() >= 8).then(|| number.parse().ok())?
}
