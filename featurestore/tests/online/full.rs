//! A disk that is full: nothing is acknowledged that is not kept, reads go on, a start succeeds, and writes go
//! on by themselves when there is space. A child works on a small file system of its own; where none may be
//! mounted the test says so and passes.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use featurestore::{FeatureStore, IngestError, RecordError, StoreOptions, TableOptions};

use crate::crash::{batch, label};
use crate::flights::{START_MS, definitions};
use crate::strace;
use crate::workload::{check_ledger, request, scratch};

const CHILD: &str = "full::the_child_on_a_small_disk";
const DISK: &str = "size=32m";

#[test]
fn a_full_disk_refuses_writes_until_there_is_space_and_loses_nothing() {
    let folder = scratch();
    let child = strace::child(CHILD, folder.path());
    // A shell mounts the disk, so that the child finds it whatever it may do itself.
    let script = format!(
        "mount -t tmpfs -o {DISK} tmpfs \"$LOOPGATE_CHILD\" || exit 77; exec \"$0\" \"$@\""
    );
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", &script])
        .arg(child.get_program())
        .args(child.get_args())
        .env("LOOPGATE_CHILD", folder.path())
        .output();
    let Ok(output) = output else {
        return println!("SKIPPED: `unshare` cannot be had");
    };
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}{}", String::from_utf8_lossy(&output.stderr));
    if !said.contains("on a small disk") {
        return println!("SKIPPED: no file system may be mounted here");
    }
    assert!(output.status.success());
}

fn open(folder: &Path) -> FeatureStore {
    let options = StoreOptions {
        tables: TableOptions {
            write_buffers_bytes: 2 << 20,
            ..TableOptions::default()
        },
        ..StoreOptions::default()
    };
    FeatureStore::open(folder, definitions(), &options).unwrap()
}

/// The child's disk, and what was acknowledged on it.
struct Life {
    disk: PathBuf,
    next: u64,
    acked: Vec<u64>,
}

#[test]
#[ignore = "the child of another test"]
fn the_child_on_a_small_disk() {
    println!("\non a small disk");
    let mut life = Life {
        disk: strace::folder_of_child(),
        next: 0,
        acked: Vec::new(),
    };
    let data = life.disk.join("data");
    let store = open(&data);
    for taken_by in ["itself", "another", "another at once"] {
        life.ingest_until(&store, 50);
        match taken_by {
            "itself" => life.take_all_but(1 << 20),
            "another" => life.take_all_but(600 << 10),
            _ => life.take_all_but(0),
        }
        life.ingest_until_refused(&store);
        read(&store);
        life.give_back_and_wait(&store, taken_by);
    }
    life.ingest_until(&store, 20);
    // A start with nothing left.
    life.take_all_but(0);
    drop(store);
    life.take_all_but(0);
    let store = open(&data);
    read(&store);
    life.ingest_until_refused(&store);
    life.give_back_and_wait(&store, "all before the start");
    check_ledger(&store, &life.acked);
    drop(store);
    check_ledger(&open(&data), &life.acked);
    println!("\n{} batches were acknowledged", life.acked.len());
}

impl Life {
    fn send(&mut self, store: &FeatureStore) -> Result<(), IngestError> {
        let number = self.next;
        store.ingest_labels_blocking(vec![label(number)], START_MS)?;
        store.ingest_events_blocking(batch(store, number), START_MS)?;
        self.acked.push(number);
        self.next += 1;
        Ok(())
    }

    fn ingest_until(&mut self, store: &FeatureStore, more: u64) {
        let end = self.next + more;
        while self.next < end {
            self.send(store).unwrap();
        }
    }

    /// Writes until the store says that the disk is full; from then on it says so to everyone.
    fn ingest_until_refused(&mut self, store: &FeatureStore) {
        for _ in 0..1_000_000 {
            match self.send(store) {
                Ok(()) => continue,
                Err(IngestError::Full) => {}
                Err(error) => panic!("{error}"),
            }
            assert!(store.stats().full);
            assert!(store.stats().stopped.is_none());
            assert!(matches!(store.record(&[]), Err(RecordError::Full)));
            return;
        }
        panic!("the disk was never full");
    }

    fn filler(&self) -> PathBuf {
        self.disk.join("filler")
    }

    /// Another file takes the disk but for so many bytes.
    fn take_all_but(&self, left: u64) {
        let mut filler = File::options()
            .create(true)
            .append(true)
            .open(self.filler())
            .unwrap();
        while filler.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
        let length = filler.metadata().unwrap().len();
        filler.set_len(length.saturating_sub(left)).unwrap();
    }

    /// Frees the disk; writes must go on without a restart.
    fn give_back_and_wait(&mut self, store: &FeatureStore, taken_by: &str) {
        fs::remove_file(self.filler()).unwrap();
        let began = Instant::now();
        while let Err(error) = self.send(store) {
            assert!(matches!(error, IngestError::Full), "{error}");
            assert!(began.elapsed() < Duration::from_secs(120), "still full");
            std::thread::sleep(Duration::from_millis(5));
        }
        let ms = began.elapsed().as_millis();
        println!("\nfilled by {taken_by}: writes went on after {ms} ms");
    }
}

/// Rows are answered, full or not.
fn read(store: &FeatureStore) {
    let service = store.definitions().service("delay").unwrap();
    for _ in 0..100 {
        let rows = store
            .read_rows(service, &[request()], START_MS + 1)
            .unwrap();
        assert_eq!(rows[0].statuses.len(), service.features.len());
    }
}
