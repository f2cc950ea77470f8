//! What binds a data folder to the bucket that holds its sealed files, from both sides: each manifest there
//! names the process that wrote it last, and `offline.json` in the folder names those of this folder.
//!
//! A process writes its name into the folder, then into the three manifests, and then it seals. So a manifest
//! that names none of the folder's processes is not the one that the folder left: another bucket lies behind
//! the same URL, or another folder, be it a copy of this one, has written there. Where there is none, it was
//! removed, or never was there. All of that is refused: what is sealed is then removed here.
//!
//! A bucket that is new to the folder stands as `next` until all three manifests have the name; until then
//! the files lie where they lay. Costs two small files at a start, fsynced.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::OfflineError;
use super::bucket::Bucket;
use super::manifest::Manifest;
use super::segments::sync_folder;
use super::table::TableKind;
use crate::online::shared::locked;

/// What a data folder knows of the places of its sealed files.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Record {
    format: u32,
    /// The bucket that holds them; none for the folder itself.
    pub(super) place: Option<Tie>,
    /// The bucket that is to hold them.
    pub(super) next: Option<Tie>,
}

/// A bucket, and who of this folder wrote there.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tie {
    pub(super) bucket: Bucket,
    /// Where it was last: the environment has a say in that.
    endpoint: Option<Box<str>>,
    /// The process that all three manifests have named; none where that was not yet written down.
    writer: Option<Box<str>>,
    /// Later ones, which some of them may name.
    begun: Vec<Box<str>>,
}

/// Format 1, which knew no writers.
#[derive(Deserialize)]
struct BucketAlone {
    bucket: Bucket,
}

/// The file in a data folder.
const RECORD: &str = "offline.json";
/// The version that is written, and the newest that is read.
const FORMAT: u32 = 2;
/// Processes that began to put their names into the manifests and did not come to the last, before the
/// first of them is forgotten.
const BEGUN_MAX: usize = 64;

impl Record {
    /// Reads what the data folder says.
    pub(super) fn read(data_dir: &Path) -> Result<Self, OfflineError> {
        let path = data_dir.join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::of(None)),
            Err(source) => return Err(OfflineError::Io { path, source }),
        };
        Self::decode(&text).map_err(|problem| OfflineError::Manifest { path, problem })
    }

    fn of(place: Option<Tie>) -> Self {
        Self {
            format: FORMAT,
            place,
            next: None,
        }
    }

    fn decode(text: &[u8]) -> Result<Self, String> {
        let said = |error: serde_json::Error| error.to_string();
        let json: serde_json::Value = serde_json::from_slice(text).map_err(said)?;
        match json["format"].as_u64() {
            Some(1) => {
                let alone: BucketAlone = serde_json::from_value(json).map_err(said)?;
                Ok(Self::of(Some(Tie::new(alone.bucket))))
            }
            Some(2) => serde_json::from_value(json).map_err(said),
            found => {
                let found = found.map_or_else(|| "none".to_owned(), |found| found.to_string());
                Err(format!("its format is {found}; known is {FORMAT}"))
            }
        }
    }

    /// Puts it into the data folder; on disk when this returns.
    pub(super) fn write(&self, data_dir: &Path) -> Result<(), OfflineError> {
        let path = data_dir.join(RECORD);
        let partial = data_dir.join(format!("{RECORD}.partial"));
        let write = || -> io::Result<()> {
            let mut file = File::create(&partial)?;
            serde_json::to_writer(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&partial, &path)?;
            sync_folder(data_dir)
        };
        write().map_err(|source| OfflineError::Io { path, source })
    }
}

impl Tie {
    /// With a bucket in which nobody has written.
    pub(super) fn new(bucket: Bucket) -> Self {
        Self {
            bucket,
            endpoint: None,
            writer: None,
            begun: Vec::new(),
        }
    }

    /// Whether a manifest was written by this folder while it put its name into all three.
    pub(super) fn has_begun(&self, found: Option<&Manifest>) -> bool {
        let writer = found.and_then(|manifest| manifest.writer.as_ref());
        writer.is_some_and(|writer| self.begun.contains(writer))
    }

    /// Whether a manifest, or that there is none, is what the folder left; where not, what is wrong.
    pub(super) fn check(&self, data_dir: &Path, found: Option<&Manifest>) -> Result<(), String> {
        let known = match (found, &self.writer) {
            (None, _) => false,
            // Of before writers were written down: taken over as it is.
            (Some(_), None) => true,
            (Some(manifest), writer) => manifest.writer == *writer || self.has_begun(found),
        };
        if known {
            return Ok(());
        }
        let (folder, now) = (data_dir.display(), self.bucket.endpoint());
        let before = self
            .endpoint
            .as_deref()
            .unwrap_or("a place not written down");
        let left = self.writer.as_deref().unwrap_or("a process without a name");
        Err(match found {
            None => format!(
                "there is none at {now}, but the data folder {folder} has its sealed files in this bucket, \
                 left by {left} at {before}: the endpoint is another, or the prefix was emptied"
            ),
            Some(manifest) => format!(
                "at {now} it was written by {}, but the data folder {folder} left it written by {left} at \
                 {before}: it is another bucket, or another folder, maybe a copy of this one, writes there",
                manifest
                    .writer
                    .as_deref()
                    .unwrap_or("a process without a name")
            ),
        })
    }
}

/// The bond of an open place.
#[derive(Debug)]
pub(crate) struct Bond {
    data_dir: PathBuf,
    /// This process's name, if it writes.
    writer: Option<Box<str>>,
    /// A lock, since any thread may be the one that reaches the bucket first; held while the record is written.
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    record: Record,
    /// Tables whose manifests have our name.
    named: Vec<TableKind>,
}

impl Bond {
    /// For who only reads.
    pub(super) fn of_reader(data_dir: &Path, record: Record) -> Self {
        Self::new(data_dir, record, None)
    }

    /// For the one process that writes: into the bucket that is `next`, if there is one.
    pub(super) fn of_writer(data_dir: &Path, record: Record) -> Self {
        let name = Uuid::now_v7().to_string();
        Self::new(data_dir, record, Some(name.into()))
    }

    fn new(data_dir: &Path, record: Record, writer: Option<Box<str>>) -> Self {
        let named = Vec::new();
        Self {
            data_dir: data_dir.to_owned(),
            writer,
            state: Mutex::new(State { record, named }),
        }
    }

    /// This process's name, if it writes.
    pub(crate) fn writer(&self) -> Option<&str> {
        self.writer.as_deref()
    }

    /// Whether a manifest, or that there is none, is what the folder left; where not, what is wrong.
    pub(crate) fn check(&self, found: Option<&Manifest>) -> Result<(), String> {
        let state = &mut *locked(&self.state);
        let check = |record: &Record| match &record.place {
            Some(tie) => tie.check(&self.data_dir, found),
            None => Ok(()),
        };
        match (&self.writer, &state.record.next) {
            // It was compared with what the folder has.
            (Some(_), Some(_)) => Ok(()),
            (Some(_), None) => check(&state.record),
            (None, _) => check(&state.record).or_else(|problem| {
                // A gateway may have been started since: its name is in the record before it is there.
                state.record = Record::read(&self.data_dir).map_err(|_| problem)?;
                check(&state.record)
            }),
        }
    }

    /// Puts our name into the record, before it is put into a manifest.
    pub(crate) fn begin(&self) -> Result<(), OfflineError> {
        let state = &mut *locked(&self.state);
        let mut record = state.record.clone();
        let Some((tie, name)) = self.tie(&mut record) else {
            return Ok(());
        };
        if tie.begun.iter().any(|begun| **begun == *name) {
            return Ok(());
        }
        if tie.begun.len() == BEGUN_MAX {
            tie.begun.remove(0);
        }
        tie.begun.push(name.into());
        record.write(&self.data_dir)?;
        state.record = record;
        Ok(())
    }

    /// Takes note that the manifest of a table has our name. Once all have, no other is known any more.
    pub(crate) fn named(&self, kind: TableKind) -> Result<(), OfflineError> {
        let state = &mut *locked(&self.state);
        if !state.named.contains(&kind) {
            state.named.push(kind);
        }
        if state.named.len() < TableKind::ALL.len() {
            return Ok(());
        }
        let mut record = state.record.clone();
        let Some((tie, name)) = self.tie(&mut record) else {
            return Ok(());
        };
        let held = Tie {
            endpoint: Some(tie.bucket.endpoint().into()),
            writer: Some(name.into()),
            ..Tie::new(tie.bucket.clone())
        };
        if record.next.is_some() {
            let place = held.bucket.url();
            tracing::info!(place, "sealed files lie in a bucket from now on");
        }
        let record = Record::of(Some(held));
        record.write(&self.data_dir)?;
        state.record = record;
        Ok(())
    }

    /// The bucket that is written into, and our name.
    fn tie<'a>(&'a self, record: &'a mut Record) -> Option<(&'a mut Tie, &'a str)> {
        let tie = record.next.as_mut().or(record.place.as_mut());
        tie.zip(self.writer.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::BucketFields;

    fn manifest(writer: Option<&str>) -> Manifest {
        Manifest {
            writer: writer.map(Into::into),
            ..Manifest::default()
        }
    }

    fn bucket() -> Bucket {
        let fields = BucketFields {
            url: "s3://flights/offline".to_owned(),
            ..BucketFields::default()
        };
        Bucket::try_from(fields).unwrap()
    }

    #[test]
    fn names_come_before_the_manifests_and_earlier_ones_go_after_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let data_dir = folder.path();
        let read = || Record::read(data_dir).unwrap();
        let left = |bond: &Bond| manifest(bond.writer());
        let mut record = read();
        record.next = Some(Tie::new(bucket()));
        let first = Bond::of_writer(data_dir, record);
        assert_eq!(first.check(None), Ok(()));
        first.begin().unwrap();
        assert!(read().next.unwrap().has_begun(Some(&left(&first))));
        assert!(read().place.is_none());
        TableKind::ALL
            .into_iter()
            .for_each(|kind| first.named(kind).unwrap());
        assert!(read().next.is_none());
        // A process that is killed between two manifests leaves both names.
        let second = Bond::of_writer(data_dir, read());
        let reader = Bond::of_reader(data_dir, read());
        second.begin().unwrap();
        second.named(TableKind::Events).unwrap();
        for bond in [&Bond::of_writer(data_dir, read()), &reader] {
            for known in [&first, &second] {
                assert_eq!(bond.check(Some(&left(known))), Ok(()));
            }
            assert!(bond.check(Some(&manifest(None))).is_err());
            let refused = bond.check(Some(&manifest(Some("another")))).unwrap_err();
            let own = first.writer().unwrap();
            assert!(
                refused.contains("another") && refused.contains(own),
                "{refused}"
            );
            assert!(bond.check(None).unwrap_err().contains("emptied"));
        }
        for kind in TableKind::ALL {
            second.named(kind).unwrap();
        }
        let third = Bond::of_writer(data_dir, read());
        assert_eq!(third.check(Some(&left(&second))), Ok(()));
        assert!(third.check(Some(&left(&first))).is_err());
    }

    #[test]
    fn a_bucket_of_before_writers_were_written_down_is_taken_over_once() {
        let folder = tempfile::tempdir().unwrap();
        let text = br#"{"format":1,"bucket":{"url":"s3://flights/offline","allow_http":false}}"#;
        fs::write(folder.path().join(RECORD), text).unwrap();
        let bond = Bond::of_writer(folder.path(), Record::read(folder.path()).unwrap());
        for writer in [None, Some("of before")] {
            assert_eq!(bond.check(Some(&manifest(writer))), Ok(()));
        }
        assert!(bond.check(None).is_err());
        bond.begin().unwrap();
        for kind in TableKind::ALL {
            bond.named(kind).unwrap();
        }
        let next = Bond::of_writer(folder.path(), Record::read(folder.path()).unwrap());
        assert_eq!(next.check(Some(&manifest(bond.writer()))), Ok(()));
        assert!(next.check(Some(&manifest(Some("of before")))).is_err());
    }

    #[test]
    fn what_is_begun_is_bounded_and_the_name_that_held_stays() {
        let folder = tempfile::tempdir().unwrap();
        let record = Record::of(Some(Tie {
            writer: Some("held".into()),
            ..Tie::new(bucket())
        }));
        record.write(folder.path()).unwrap();
        let mut last = None;
        for _ in 0..2 * BEGUN_MAX {
            let bond = Bond::of_writer(folder.path(), Record::read(folder.path()).unwrap());
            bond.begin().unwrap();
            last = bond.writer().map(str::to_owned);
        }
        let bond = Bond::of_writer(folder.path(), Record::read(folder.path()).unwrap());
        for writer in [Some("held"), last.as_deref()] {
            assert_eq!(bond.check(Some(&manifest(writer))), Ok(()));
        }
        let tie = Record::read(folder.path()).unwrap().place.unwrap();
        assert_eq!(tie.begun.len(), BEGUN_MAX);
    }

    #[test]
    fn a_record_that_is_not_known_is_refused() {
        for (text, problem) in [
            ("{\"format\":3}", "its format is 3; known is 2"),
            ("{}", "its format is none; known is 2"),
            ("{\"format\":2,\"place\":{}}", "missing field"),
            (
                "{\"format\":1,\"bucket\":{\"url\":\"/srv\"}}",
                "must be s3://",
            ),
            ("not json", "expected"),
        ] {
            let refused = Record::decode(text.as_bytes()).unwrap_err();
            assert!(refused.contains(problem), "{text}: {refused}");
        }
    }
}
