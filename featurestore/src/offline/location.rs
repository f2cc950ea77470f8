//! Which place holds the sealed files of a data folder: its own `offline/`, or the bucket that
//! [`super::bond`] remembers.
//!
//! The folder remembers, so that whoever has the folder finds the files, and so that a bucket is not taken
//! for that of another folder by a slip in a configuration. Another place than before is accepted once it
//! holds what the one before holds.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::OfflineError;
use super::bond::{Bond, Record, Tie};
use super::bucket::{Bucket, BucketFields};
use super::manifest::Manifest;
use super::place::{Health, Place};
use super::table::{MANIFEST, TableKind};

/// A place, and whether this folder has used it before.
pub(crate) struct Settled {
    pub(crate) place: Place,
    pub(crate) known: bool,
}

/// The place of a data folder, for readers: makes nothing, `None` where nothing was ever sealed.
pub(crate) fn existing(data_dir: &Path) -> Result<Option<Place>, OfflineError> {
    let record = Record::read(data_dir)?;
    let own = data_dir.join("offline");
    match (&record.place, own.is_dir()) {
        (Some(tie), _) => {
            let place = Place::bucket(&tie.bucket)?;
            Ok(Some(place.bound(Bond::of_reader(data_dir, record))))
        }
        (None, true) => Place::folder(own).map(Some),
        (None, false) => Ok(None),
    }
}

/// The place of a data folder, for the one process that writes: the bucket that is wanted, else the place
/// that it has. A bucket is tried when it is new to the folder, and asked for nothing when it is known.
pub(crate) fn settle(
    data_dir: &Path,
    wanted: Option<&Bucket>,
    health: Arc<Health>,
) -> Result<Settled, OfflineError> {
    let mut record = Record::read(data_dir)?;
    let before = record.place.as_ref().map(|tie| tie.bucket.clone());
    let next = record.next.take();
    let Some(bucket) = wanted.or(before.as_ref()) else {
        if next.is_some() {
            record.write(data_dir)?;
        }
        let place = Place::folder(data_dir.join("offline"))?.for_writing(health);
        return Ok(Settled {
            place,
            known: false,
        });
    };
    let place = Place::bucket(bucket)?;
    let same = record
        .place
        .as_mut()
        .filter(|tie| tie.bucket.is_same_place(bucket));
    let known = same.is_some();
    if let Some(tie) = same {
        let fields = |bucket: &Bucket| BucketFields::from(bucket.clone());
        let changed = fields(&tie.bucket) != fields(bucket);
        tie.bucket = bucket.clone();
        // What was begun elsewhere was not ended, and the files lie here.
        if changed || next.is_some() {
            record.write(data_dir)?;
        }
    } else {
        place.probe()?;
        let next = next.filter(|tie| tie.bucket.is_same_place(bucket));
        let next = next.unwrap_or_else(|| Tie::new(bucket.clone()));
        let old = existing(data_dir)?;
        for kind in TableKind::ALL {
            refuse_unless_moved(kind, old.as_ref(), (&place, &next))?;
        }
        record.next = Some(next);
        record.write(data_dir)?;
    }
    let bond = Bond::of_writer(data_dir, record);
    let place = place.bound(bond).for_writing(health);
    Ok(Settled { place, known })
}

/// A table in its new place is the one that it was, file by file; both may be without anything.
fn refuse_unless_moved(
    kind: TableKind,
    old: Option<&Place>,
    (new, next): (&Place, &Tie),
) -> Result<(), OfflineError> {
    let path = format!("{}/{MANIFEST}", kind.name());
    let refused = |problem: String| OfflineError::Manifest {
        path: new.shown(&path),
        problem,
    };
    let now = new.get(&path)?;
    let found = decode(kind, now.as_ref()).map_err(&refused)?;
    if next.has_begun(found.as_ref()) {
        // It was compared before we named it.
        return Ok(());
    }
    let before = old.map(|old| old.get(&path)).transpose()?.flatten();
    let left = decode(kind, before.as_ref()).map_err(&refused)?;
    old.map_or(Ok(()), |old| old.check(&path, left.as_ref()))?;
    if let Some(moved) = found.as_ref().filter(|_| now == before) {
        let listed = new.list(kind.name())?;
        let there = |path: &str, bytes| {
            let path = format!("{}/{path}", kind.name());
            listed.contains(&(path, bytes))
        };
        let missing = moved
            .files
            .iter()
            .find(|file| !there(&file.path, file.bytes));
        return missing.map_or(Ok(()), |file| {
            Err(refused(format!(
                "it was moved, but `{}` was not, or not whole",
                file.path
            )))
        });
    }
    let nothing = |manifest: &Manifest| {
        manifest.files.is_empty() && manifest.retired.is_empty() && manifest.sealed_seq == 0
    };
    let empty = match (old, &left) {
        (Some(old), None) => old.list(kind.name())?.is_empty(),
        (_, left) => left.as_ref().is_none_or(nothing),
    };
    match (now, old) {
        (None, _) if empty => Ok(()),
        (Some(_), _) if empty => Err(refused("it is of another data folder".to_owned())),
        (_, old) => {
            let old = old.map(|old| old.shown(kind.name())).unwrap_or_default();
            Err(refused(format!(
                "it is not what lies in {}: copy that here, as a whole, before a gateway starts",
                old.display()
            )))
        }
    }
}

fn decode(kind: TableKind, manifest: Option<&Bytes>) -> Result<Option<Manifest>, String> {
    let decoded = manifest.map(|bytes| Manifest::decode(kind.name(), bytes));
    decoded.transpose()
}
