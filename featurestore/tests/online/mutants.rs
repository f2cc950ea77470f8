//! Every fsync is needed: taken out, it leaves something undone that had been promised.
//!
//! A child's system calls are replayed on a disk that keeps what was fsynced, without the fsyncs of one kind
//! of file or folder, as if the program did not make them. At each promise of the child what it rests on must
//! be on disk, and after the last one the power is cut and what is left is held against what the child had been
//! told. Each fsync by itself is left out too by
//! `LOOPGATE_MUTANTS=all cargo test --workspace --release --test online mutants:: -- --nocapture`, which tells
//! which are not missed alone: those whose file nothing rests on by then.
//!
//! RocksDB's own are left out too, but only those of its write-ahead log are judged.

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::crash::{batch, label};
use crate::disk::{Disk, Kept};
use crate::flights::{START_MS, open};
use crate::import::{csv, import, open_in_groups};
use crate::strace::{self, Moment};
use crate::workload::{self, Told, check, ingest_and_record, scratch};

#[test]
fn an_fsync_less_of_ingests_and_seals_loses_what_was_promised() {
    let mut child = strace::child(workload::CHILD, Path::new("set below"));
    child.env(workload::STEPS, "0 10");
    every_fsync_is_needed(child);
}

#[test]
fn an_fsync_less_of_an_import_a_backup_or_a_mending_loses_what_was_promised() {
    every_fsync_is_needed(strace::child(
        "mutants::the_child_that_imports_copies_and_mends",
        Path::new("set below"),
    ));
}

/// So often the power is cut with every fsync in place, where not every one is left out.
const CUTS: usize = 24;

/// A call that brought a file or folder to disk.
struct Sync {
    moment: usize,
    node: usize,
    path: PathBuf,
}

impl Sync {
    /// Its path without numbers: the kind of file.
    fn kind(&self) -> String {
        let path = self.path.to_string_lossy();
        let mut kind = String::new();
        for letter in path.chars() {
            match letter.is_ascii_digit() {
                true if kind.ends_with('#') => {}
                true => kind.push('#'),
                false => kind.push(letter),
            }
        }
        kind
    }
}

fn every_fsync_is_needed(mut child: Command) {
    if !strace::is_there() {
        return;
    }
    let (folder, trace) = (
        tempfile::tempdir().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    child.env("LOOPGATE_CHILD", folder.path().join("data"));
    let ended = strace::recorded(&child, trace.path()).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let moments = strace::read(trace.path());
    let replay = Replay {
        root: folder.path(),
        moments: &moments,
    };
    let syncs = replay.syncs();
    let promises = replay.promises();
    let all = std::env::var("LOOPGATE_MUTANTS").is_ok_and(|value| value == "all");
    // With every fsync in place nothing is lost, so that a loss is the mutant's.
    let until = *promises.last().unwrap();
    replay.cut(&[], until).unwrap();
    let step = if all { 1 } else { syncs.len() / CUTS };
    for sync in syncs.iter().step_by(step) {
        replay.cut(&[], sync.moment).unwrap();
    }
    let mut kinds: BTreeMap<String, Vec<&Sync>> = BTreeMap::new();
    for sync in &syncs {
        kinds.entry(sync.kind()).or_default().push(sync);
    }
    let mut not_missed = Vec::new();
    for (kind, of_kind) in kinds {
        let made = of_kind.len();
        let left_out: Vec<_> = of_kind.iter().map(|sync| sync.moment).collect();
        let of_rocksdb = kind.contains("online") && !kind.ends_with(".log");
        let mut missed = replay.cut(&left_out, until).err();
        if missed.is_none() && !of_rocksdb {
            // It may be needed for a while only.
            let mut later = syncs.iter().filter(|sync| sync.moment > left_out[0]);
            missed = later.find_map(|sync| replay.cut(&left_out, sync.moment).err());
        }
        println!(
            "{made} of {kind}: {}",
            missed.as_deref().unwrap_or("not missed")
        );
        if missed.is_none() && !of_rocksdb {
            not_missed.push(kind.clone());
        }
        if all {
            let single = of_kind
                .iter()
                .filter_map(|sync| Some((sync.moment, replay.last_promise(sync, &syncs)?)));
            let lived = single.filter(|(moment, until)| replay.cut(&[*moment], *until).is_ok());
            let lived: Vec<_> = lived.map(|(moment, _)| moment).collect();
            println!("  of these alone not missed, by their moments: {lived:?}");
        }
    }
    assert!(not_missed.is_empty(), "not missed: {not_missed:?}");
}

struct Replay<'a> {
    root: &'a Path,
    moments: &'a [Moment],
}

impl Replay<'_> {
    fn syncs(&self) -> Vec<Sync> {
        let mut disk = Disk::new(self.root);
        let mut syncs = Vec::new();
        for (moment, step) in self.moments.iter().enumerate() {
            if let Moment::Done(call) = step
                && matches!(&*call.name, "fsync" | "fdatasync")
                && let Some((node, path)) = disk.being_synced(call.thread)
            {
                syncs.push(Sync { moment, node, path });
            }
            disk.apply(step);
        }
        syncs
    }

    /// Where the child said something that is to hold.
    fn promises(&self) -> Vec<usize> {
        let moments = self.moments.iter().enumerate();
        let said = moments.filter(|(_, moment)| {
            said(moment).is_some_and(|text| {
                let mut lines = text.lines();
                lines.any(|line| ["acked", "sealed", "copied", "ended"].contains(&first_word(line)))
            })
        });
        said.map(|(index, _)| index).collect()
    }

    /// The last promise before the same file or folder is fsynced again; what comes after is that one's.
    fn last_promise(&self, sync: &Sync, syncs: &[Sync]) -> Option<usize> {
        let again = syncs
            .iter()
            .find(|later| later.node == sync.node && later.moment > sync.moment);
        let until = again.map_or(usize::MAX, |later| later.moment);
        let mut promises = self.promises().into_iter();
        promises.rfind(|promise| (sync.moment..until).contains(promise))
    }

    /// Leaves out some fsyncs and cuts the power after moment `until`; an error where a promise is not kept.
    fn cut(&self, left_out: &[usize], until: usize) -> Result<(), String> {
        let mut disk = Disk::new(self.root);
        let mut told = Told::default();
        for (index, moment) in self.moments.iter().enumerate().take(until + 1) {
            if !left_out.contains(&index) {
                disk.apply(moment);
            }
            for line in said(moment).iter().flat_map(|text| text.lines()) {
                told.hear(line);
                rests_on(line, &disk, self.root)?;
            }
        }
        let left = scratch();
        disk.cut(Kept::Synced, left.path());
        let checked = catch_unwind(AssertUnwindSafe(|| {
            check(&left.path().join("data"), &told);
            goes_on(&left.path().join("data"), &told);
            if let Some(copied) = told.copied {
                told.acked.truncate(copied);
                check(&left.path().join("copy"), &told);
            }
        }));
        checked.map_err(|_| "something is lost".to_owned())
    }
}

/// What a promise rests on is on disk: names, or names and contents.
fn rests_on(line: &str, disk: &Disk, root: &Path) -> Result<(), String> {
    let (names, whole): (&[&str], &[&str]) = match first_word(line) {
        "acked" => (
            &["data/acked", "data/damaged", "data/quarantine"],
            &["data/online/CURRENT"],
        ),
        "sealed" => (&[], &["data/offline", "data/spool"]),
        "copied" => (&["copy"], &["copy/offline", "copy/spool", "copy/acked"]),
        "ended" => (&[], &["data/acked", "data/offline"]),
        _ => (&[], &[]),
    };
    let mut lost = names
        .iter()
        .filter(|name| !disk.are_names_durable(&root.join(name)));
    let mut torn = whole
        .iter()
        .filter(|name| !disk.is_durable(&root.join(name)));
    lost.next().or_else(|| torn.next()).map_or(Ok(()), |name| {
        Err(format!("{name} is not on disk at `{line}`"))
    })
}

/// What is recorded and sealed next does not take the place of what was sealed.
fn goes_on(folder: &Path, told: &Told) {
    const NEXT: u64 = 5000;
    let store = open(folder);
    ingest_and_record(&store, NEXT).unwrap();
    store.seal().unwrap();
    let served = store.served_rows("delay", i64::MIN, i64::MAX).unwrap();
    let id = |number: u64| label(number).prediction;
    let first = told.first_recorded;
    let sealed = told.sealed.map_or(0..0, |sealed| first..sealed + 1);
    for number in sealed.chain([NEXT]) {
        let times = served.iter().filter(|row| row.prediction == id(number));
        assert!(times.count() > 0, "{number} is not among what was served");
    }
}

fn first_word(line: &str) -> &str {
    line.split(' ').next().unwrap_or_default()
}

/// What the child wrote to its output.
fn said(moment: &Moment) -> Option<String> {
    let Moment::Done(call) = moment else {
        return None;
    };
    let output = call.name == "write" && call.fd() == Some(1);
    output.then(|| String::from_utf8_lossy(&call.strings[0]).into_owned())
}

#[test]
#[ignore = "the child of another test"]
fn the_child_that_imports_copies_and_mends() {
    const IMPORTED: u64 = 20;
    println!("\nrecorded from {IMPORTED}");
    let folder = strace::folder_of_child();
    let store = open_in_groups(&folder, 50);
    let history = tempfile::Builder::new().suffix(".csv").tempfile().unwrap();
    let events: Vec<_> = (0..IMPORTED)
        .flat_map(|number| batch(&store, number))
        .collect();
    csv(history.path(), &events);
    import(&store, history.path(), &mut |_| {}).unwrap();
    let labels = (0..IMPORTED).map(label).collect();
    store.ingest_labels_blocking(labels, START_MS).unwrap();
    (0..IMPORTED).for_each(|number| println!("\nacked {number}"));
    live(&store, IMPORTED..IMPORTED + 3);
    store.seal().unwrap();
    println!("\nsealed {}", IMPORTED + 2);
    live(&store, IMPORTED + 3..IMPORTED + 5);
    store.backup(&folder.with_file_name("copy")).unwrap();
    println!("\ncopied");
    live(&store, IMPORTED + 5..IMPORTED + 6);
    drop(store);
    // Found damaged at a start: all that the last life wrote is in tables by then.
    drop(open(&folder));
    fs::remove_file(folder.join("online/CURRENT")).unwrap();
    let store = open(&folder);
    assert!(folder.join("quarantine").exists());
    live(&store, IMPORTED + 6..IMPORTED + 7);
    drop(store);
    // Found damaged by a read.
    fs::write(folder.join("damaged"), "a test\nstate\ndedupe\n").unwrap();
    let store = open(&folder);
    live(&store, IMPORTED + 7..IMPORTED + 8);
    drop(store);
    println!("\nended");
}

fn live(store: &featurestore::FeatureStore, numbers: std::ops::Range<u64>) {
    for number in numbers {
        ingest_and_record(store, number).unwrap();
        println!("\nacked {number}");
    }
}
