//! Errors of one system call on one kind of file: on the log that is written, on the tables that flushes and
//! compactions write, on the manifest. After an error of the disk the store has stopped and says so, also where
//! nobody writes; after want of space it goes on by itself. What was acknowledged is there.
//!
//! `LOOPGATE_CRASH_CYCLES` says how often each is done, `LOOPGATE_CRASH_SEED` to which calls.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use featurestore::{FeatureStore, IngestError, OpenError, StoreOptions, TableOptions};
use rand::Rng;

use crate::crash::{batch, label};
use crate::flights::{START_MS, definitions, open};
use crate::kills::{number, seeded};
use crate::strace::{self, Inject};
use crate::workload::{Told, check_ledger, scratch};

const CHILD: &str = "background::the_child_that_flushes_and_compacts";
/// Batches of one life: several flushes of each column family and a compaction.
const BATCHES: u64 = 300;
/// Each error is tried on so many calls.
const CYCLES: u64 = 1;
/// Generous: a bound on a hang, not on the time that it takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// Files by the ends or beginnings of their names, and calls on them by the most that a life makes of them.
const AIMS: [(&str, &str, u64); 7] = [
    (".log", "write", 400),
    (".log", "fdatasync", 400),
    (".sst", "write", 12),
    (".sst", "fdatasync", 6),
    (".sst", "openat", 6),
    ("MANIFEST", "write", 60),
    ("MANIFEST", "fdatasync", 60),
];

/// Every name that RocksDB can give to such a file in one life.
fn files(folder: &Path, kind: &str) -> Vec<PathBuf> {
    let name = |number: u64| match kind {
        "MANIFEST" => format!("MANIFEST-{number:06}"),
        ending => format!("{number:06}{ending}"),
    };
    let online = folder.join("online");
    (1..400).map(|number| online.join(name(number))).collect()
}

fn child(folder: &Path, first: u64) -> Command {
    let mut child = strace::child(CHILD, folder);
    child.env(crate::workload::STEPS, first.to_string());
    child
}

fn live(mut child: Command, told: &mut Told) {
    let output = child.output().unwrap();
    (told.ended, told.refused, told.full) = (false, false, 0);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .for_each(|line| told.hear(line));
    assert!(output.status.success(), "{output:?}");
}

/// One fault in each life, and what the child said in those lives that it reached.
fn lives(effect: &'static str, mut judge: impl FnMut(&Told) -> bool) {
    let mut random = seeded();
    let cycles = number("LOOPGATE_CRASH_CYCLES").unwrap_or(CYCLES);
    let mut reached_by_any = 0;
    for (kind, calls, most) in AIMS {
        let mut reached = 0;
        for _ in 0..cycles {
            let folder = scratch();
            let mut told = Told::default();
            let inject = Inject {
                calls,
                effect,
                when: random.random_range(1..=most).to_string(),
                files: files(folder.path(), kind),
            };
            live(
                strace::injected(&child(folder.path(), 0), &inject),
                &mut told,
            );
            let found = judge(&told);
            let acked = told.acked.len();
            println!(
                "{effect} at {calls} {} of {kind}: reached {found}, {acked} acknowledged",
                inject.when
            );
            reached += u64::from(found);
            check_ledger(&open(folder.path()), &told.acked);
        }
        println!("{kind} {calls}: {reached} of {cycles} were reached");
        reached_by_any += reached;
    }
    assert!(reached_by_any > 0, "no fault was reached");
}

#[test]
fn an_error_of_a_file_stops_the_store_and_a_restart_finds_what_was() {
    if !strace::is_there() {
        return;
    }
    lives("error=EIO", |told| {
        assert_eq!(told.full, 0, "{told:?}");
        assert!(told.refused || told.ended || told.acked.is_empty());
        told.refused
    });
}

#[test]
fn want_of_space_for_a_file_is_got_over_without_a_restart() {
    if !strace::is_there() {
        return;
    }
    lives("error=ENOSPC", |told| {
        assert!(!told.refused, "{told:?}");
        assert!(told.ended || told.acked.is_empty(), "{told:?}");
        told.full > 0
    });
}

#[test]
#[ignore = "the child of another test"]
fn the_child_that_flushes_and_compacts() {
    let first: u64 = std::env::var(crate::workload::STEPS)
        .unwrap()
        .parse()
        .unwrap();
    let store = match open_small() {
        Ok(store) => store,
        // By an error, not by a crash.
        Err(error) => return println!("\ndid not open: {error}"),
    };
    let began = Instant::now();
    let mut number = first;
    while number < first + BATCHES {
        match ingest(&store, number) {
            Ok(()) => {
                println!("\nacked {number}");
                number += 1;
            }
            Err(IngestError::Full) => {
                println!("\nfull");
                assert!(began.elapsed() < PATIENCE, "still full");
                std::thread::sleep(Duration::from_millis(100));
            }
            Err(IngestError::Stopped { .. }) => {
                println!("\nrefused");
                assert!(store.stats().stopped.is_some());
                return;
            }
            Err(error) => panic!("{error}"),
        }
    }
    drop(store);
    println!("\nended");
}

fn open_small() -> Result<FeatureStore, OpenError> {
    let options = StoreOptions {
        tables: TableOptions {
            write_buffers_bytes: 256 << 10,
            ..TableOptions::default()
        },
        ..StoreOptions::default()
    };
    FeatureStore::open(&strace::folder_of_child(), definitions(), &options)
}

#[test]
fn an_error_of_a_flush_is_told_while_nobody_writes() {
    if !strace::is_there() {
        return;
    }
    let folder = scratch();
    let child = strace::child(
        "background::the_child_that_waits_for_an_error",
        folder.path(),
    );
    let inject = Inject {
        calls: "openat",
        effect: "error=EIO",
        when: "1+".to_owned(),
        files: files(folder.path(), ".sst"),
    };
    let output = strace::injected(&child, &inject).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("stopped: "),
        "{output:?}"
    );
}

#[test]
#[ignore = "the child of another test"]
fn the_child_that_waits_for_an_error() {
    let store = open_small().unwrap();
    // The second write finds the buffer of the first full, and has it flushed.
    for numbers in [0..200, 200..201] {
        let events = numbers.flat_map(|number| batch(&store, number)).collect();
        store.ingest_events_blocking(events, START_MS).unwrap();
    }
    let began = Instant::now();
    loop {
        if let Some(reason) = store.stats().stopped {
            return println!("\nstopped: {reason}");
        }
        assert!(began.elapsed() < PATIENCE, "no error was seen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ingest(store: &FeatureStore, number: u64) -> Result<(), IngestError> {
    // Enough in one batch that buffers fill: events of other numbers than those of any batch that is told.
    let more = (0..20).flat_map(|more| batch(store, 10_000 + number * 20 + more));
    store.ingest_events_blocking(more.collect(), START_MS)?;
    store.ingest_labels_blocking(vec![label(number)], START_MS)?;
    store.ingest_events_blocking(batch(store, number), START_MS)?;
    Ok(())
}
