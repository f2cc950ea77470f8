//! Which place holds the sealed files of a data folder: its own `offline/`, or the bucket that
//! `offline.json` in it names.
//!
//! The folder remembers, so that whoever has the folder finds the files, and so that a bucket is not taken
//! for that of another folder by a slip in a configuration. Another place than before is accepted once it
//! holds what the one before holds.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::OfflineError;
use super::bucket::{Bucket, BucketFields};
use super::manifest::Manifest;
use super::place::{Health, Place};
use super::segments::sync_folder;
use super::table::{MANIFEST, TableKind};

/// The file in a data folder that names a bucket.
const RECORD: &str = "offline.json";
/// The version that is written, and the newest that is read.
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Record {
    format: u32,
    bucket: BucketFields,
}

/// A place, and whether this folder has used it before.
pub(crate) struct Settled {
    pub(crate) place: Place,
    pub(crate) known: bool,
}

/// The place of a data folder, for readers: makes nothing, `None` where nothing was ever sealed.
pub(crate) fn existing(data_dir: &Path) -> Result<Option<Place>, OfflineError> {
    let own = data_dir.join("offline");
    match (recorded(data_dir)?, own.is_dir()) {
        (Some(bucket), _) => Place::bucket(&bucket).map(Some),
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
    let before = recorded(data_dir)?;
    let Some(bucket) = wanted.or(before.as_ref()) else {
        let place = Place::folder(data_dir.join("offline"))?.for_writing(health);
        return Ok(Settled {
            place,
            known: false,
        });
    };
    let place = Place::bucket(bucket)?;
    let known = before
        .as_ref()
        .is_some_and(|before| before.is_same_place(bucket));
    if !known {
        place.probe()?;
        let old = match &before {
            Some(before) => Place::bucket(before).map(Some)?,
            None => existing(data_dir)?,
        };
        for kind in TableKind::ALL {
            refuse_unless_moved(kind, old.as_ref(), &place)?;
        }
    }
    let fields = BucketFields::from(bucket.clone());
    if before.map(BucketFields::from).as_ref() != Some(&fields) {
        write(data_dir, fields).map_err(|source| OfflineError::Io {
            path: data_dir.join(RECORD),
            source,
        })?;
        tracing::info!(place = %place.shown("").display(), "sealed files lie in a bucket from now on");
    }
    let place = place.for_writing(health);
    Ok(Settled { place, known })
}

/// A table in its new place is the one that it was, file by file; both may be without anything.
fn refuse_unless_moved(
    kind: TableKind,
    old: Option<&Place>,
    new: &Place,
) -> Result<(), OfflineError> {
    let path = format!("{}/{MANIFEST}", kind.name());
    let refused = |problem: String| OfflineError::Manifest {
        path: new.shown(&path),
        problem,
    };
    let now = new.get(&path)?;
    let before = old.map(|old| old.get(&path)).transpose()?.flatten();
    if now.is_some() && now == before {
        let moved = decode(kind, now.as_ref()).map_err(&refused)?;
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
    let empty = match (old, &before) {
        (Some(old), None) => old.list(kind.name())?.is_empty(),
        (_, before) => nothing(&decode(kind, before.as_ref()).map_err(&refused)?),
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

fn decode(kind: TableKind, manifest: Option<&bytes::Bytes>) -> Result<Manifest, String> {
    manifest.map_or(Ok(Manifest::default()), |bytes| {
        Manifest::decode(kind.name(), bytes)
    })
}

/// The bucket that the data folder names.
fn recorded(data_dir: &Path) -> Result<Option<Bucket>, OfflineError> {
    let path = data_dir.join(RECORD);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OfflineError::Io { path, source }),
    };
    let bucket = read(&text);
    bucket
        .map(Some)
        .map_err(|problem| OfflineError::Manifest { path, problem })
}

fn read(text: &[u8]) -> Result<Bucket, String> {
    let record: Record = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if record.format != FORMAT {
        return Err(format!(
            "its format is {}; known is {FORMAT}",
            record.format
        ));
    }
    record
        .bucket
        .try_into()
        .map_err(|error: super::bucket::BucketError| error.to_string())
}

fn write(data_dir: &Path, bucket: BucketFields) -> io::Result<()> {
    let record = Record {
        format: FORMAT,
        bucket,
    };
    let partial = data_dir.join(format!("{RECORD}.partial"));
    let mut file = File::create(&partial)?;
    serde_json::to_writer(&mut file, &record)?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&partial, data_dir.join(RECORD))?;
    sync_folder(data_dir)
}
