//! Kill -9 at any moment: nothing acknowledged is lost, nothing counts twice, no batch is half there.
//!
//! The test starts itself as a child that ingests for ever and writes an outside ledger of what was
//! acknowledged; the parent kills it at a random moment, opens the folder and compares.
//! `LOOPGATE_CRASH_CYCLES` sets the number of cycles.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::flights::{START_MS, Traffic, open};
use crate::workload::check_ledger;
use featurestore::{Event, FeatureStore, Label, OutcomeCursor, PredictionKey, Value};
use rand::Rng;
use uuid::Uuid;

const CHILD: &str = "LOOPGATE_CRASH_CHILD";
const CYCLES: &str = "LOOPGATE_CRASH_CYCLES";
pub(crate) const BATCH: u64 = 5;

#[test]
fn acknowledged_events_and_labels_survive_kill_9_and_count_once() {
    if let Ok(folder) = std::env::var(CHILD) {
        return ingest_for_ever(Path::new(&folder));
    }
    let cycles = std::env::var(CYCLES).map_or(50, |text| text.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let mut traffic = Traffic::new(21);
    for cycle in 0..cycles {
        let acked_before = ledger(folder.path()).len();
        let mut child = child(
            "crash::acknowledged_events_and_labels_survive_kill_9_and_count_once",
            (CHILD, folder.path()),
        );
        // Killed after a random number of acknowledgements, with several batches under way.
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let wanted = traffic.random.random_range(1..60);
        let acks = lines
            .by_ref()
            .map_while(Result::ok)
            .filter(|line| line == "acked")
            .take(wanted);
        assert_eq!(acks.count(), wanted, "the child ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let acked = ledger(folder.path());
        assert!(acked.len() >= acked_before + wanted - 1, "cycle {cycle}");
        check(folder.path(), &acked);
    }
}

/// A test of this program started as a child of its own: told by a variable on which folder to work, heard
/// by its output.
pub(crate) fn child(test: &str, told: (&str, &Path)) -> Child {
    command(test, told).spawn().unwrap()
}

/// The same before it is started.
pub(crate) fn command(test: &str, (variable, folder): (&str, &Path)) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(variable, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// Batch numbers that were acknowledged.
fn ledger(folder: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(folder.join("ledger")).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

/// Batch `number`: its events have flight ids from `number * BATCH` on.
pub(crate) fn batch(store: &FeatureStore, number: u64) -> Vec<Event> {
    let source = store.definitions().source("departures").unwrap();
    let event = |id: u64| {
        let at_ms = START_MS + i64::try_from(id).unwrap();
        let values = vec![
            Value::Int(i64::try_from(id).unwrap()),
            Value::String("AA".into()),
            Value::String("EWR".into()),
            Value::Null,
            Value::Int(at_ms),
            Value::Float(1.0),
            Value::Bool(true),
        ];
        source.event(0, values, at_ms).unwrap()
    };
    (number * BATCH..(number + 1) * BATCH).map(event).collect()
}

pub(crate) fn label(number: u64) -> Label {
    Label {
        prediction: PredictionKey {
            id: Uuid::from_u128(u128::from(number)),
            row: 0,
        },
        value: 1.0,
        label_ms: START_MS,
    }
}

/// Sends batches, each twice, several under way, and writes down what is acknowledged.
fn ingest_for_ever(folder: &Path) {
    let store = open(folder);
    let acked = ledger(folder);
    let ledger = OpenOptions::new()
        .create(true)
        .append(true)
        .open(folder.join("ledger"))
        .unwrap();
    let ledger = Arc::new(Mutex::new(ledger));
    let first = acked.iter().max().map_or(0, |last| last + 1);
    let (finished, under_way) = crossbeam::channel::bounded(1024);
    for number in first.. {
        let write_down = {
            let (ledger, finished) = (Arc::clone(&ledger), finished.clone());
            move || {
                let mut file = ledger.lock().unwrap();
                file.write_all(format!("{number}\n").as_bytes()).unwrap();
                println!("\nacked");
                finished.send(()).unwrap();
            }
        };
        store
            .submit_labels(
                vec![label(number)],
                START_MS,
                Box::new(|answer| {
                    answer.unwrap();
                }),
            )
            .unwrap();
        store
            .submit_events(
                batch(&store, number),
                START_MS,
                Box::new(|answer| {
                    answer.unwrap();
                }),
            )
            .unwrap();
        store
            .submit_events(
                batch(&store, number),
                START_MS,
                Box::new(move |answer| {
                    assert_eq!(answer.unwrap().duplicates, BATCH);
                    write_down();
                }),
            )
            .unwrap();
        if number >= first + 4 {
            under_way.recv().unwrap();
        }
    }
}

fn check(folder: &Path, acked: &[u64]) {
    let store = open(folder);
    check_ledger(&store, acked);
    let (outcomes, _) = store.outcomes(OutcomeCursor::default(), 10_000).unwrap();
    assert!(outcomes.is_empty(), "no prediction was recorded");
    assert_eq!(store.stats().pending_labels, store.stats().labels);
}

const FULL_CHILD: &str = "LOOPGATE_FULL_CHILD";

#[test]
fn a_failed_write_stops_the_writer_and_reopening_finds_what_was_acknowledged() {
    if let Ok(folder) = std::env::var(FULL_CHILD) {
        return ingest_until_a_write_fails(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    // No file of the child may grow beyond 1 MiB: the write-ahead log fails as on a full disk.
    let status = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 2048; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "crash::a_failed_write_stops_the_writer_and_reopening_finds_what_was_acknowledged",
        ])
        .env(FULL_CHILD, folder.path())
        .status()
        .unwrap();
    assert!(status.success());
    let acked = ledger(folder.path());
    assert!(acked.len() > 100);
    check(folder.path(), &acked);
}

fn ingest_until_a_write_fails(folder: &Path) {
    let store = open(folder);
    let mut acked = String::new();
    for number in 0..1_000_000 {
        let labelled = store.ingest_labels_blocking(vec![label(number)], START_MS);
        let written = store.ingest_events_blocking(batch(&store, number), START_MS);
        if labelled.is_ok() && written.is_ok() {
            acked.push_str(&format!("{number}\n"));
            continue;
        }
        let reason = store.stats().stopped.unwrap();
        // From now on every batch is answered with the first failure; reads go on.
        let refused = store.ingest_events_blocking(batch(&store, number), START_MS);
        assert!(refused.unwrap_err().to_string().contains(&reason));
        let service = store.definitions().service("delay").unwrap();
        let rows = store.read_rows(service, &[], START_MS).unwrap();
        assert!(rows.is_empty());
        std::fs::write(folder.join("ledger"), acked).unwrap();
        return;
    }
    panic!("no write failed");
}
