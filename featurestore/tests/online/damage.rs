//! Flipped bits and lost files: a damaged folder gives the values that it gave before, or none and says so.
//!
//! `LOOPGATE_DAMAGE_TRIALS` says how often each kind of file is damaged, `LOOPGATE_DAMAGE_SEED` where.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use featurestore::{FeatureRow, FeatureStore, OpenError, StoreOptions, Value};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::crash::{BATCH, batch, label};
use crate::flights::{MINUTE_MS, START_MS, Traffic, definitions, open};
use crate::formats::copy;
use crate::workload::{check_ledger, scratch};

const TRIALS: u64 = 10;
/// Batches of five events with a label each.
const BATCHES: u64 = 40;

/// A folder with table files of several opens, a write-ahead log and a spool, and what is read from it.
struct Whole {
    folder: tempfile::TempDir,
    rows: Vec<FeatureRow>,
    served: usize,
}

fn whole() -> Whole {
    let folder = scratch();
    let mut traffic = Traffic::new(77);
    let (mut rows, mut served) = (Vec::new(), 0);
    for life in 0..4 {
        let store = open(folder.path());
        for number in life * BATCHES / 4..(life + 1) * BATCHES / 4 {
            let now_ms = START_MS + i64::try_from(number).unwrap() * MINUTE_MS;
            let mut events = batch(&store, number);
            events.push(traffic.weather(now_ms));
            store.ingest_events_blocking(events, now_ms).unwrap();
            store
                .ingest_labels_blocking(vec![label(number)], now_ms)
                .unwrap();
            store.record(&[traffic.serve(&store, now_ms)]).unwrap();
            store.flush().unwrap();
            served += 1;
        }
        if life == 1 {
            store.seal().unwrap();
        }
        // The last life stays in the write-ahead log and in the spool.
        rows = read(&store).unwrap();
    }
    Whole {
        folder,
        rows,
        served,
    }
}

fn read(store: &FeatureStore) -> Result<Vec<FeatureRow>, String> {
    let service = store.definitions().service("delay").unwrap();
    let text = |text: &str| Value::String(text.into());
    let mut requests = Vec::new();
    for carrier in ["AA", "UA"] {
        for origin in ["EWR", "JFK", "LGA"] {
            requests.push(vec![
                text(carrier),
                text(origin),
                text("N1"),
                Value::Float(1.0),
            ]);
        }
    }
    let at_ms = START_MS + 200 * MINUTE_MS;
    store
        .read_rows(service, &requests, at_ms)
        .map_err(|error| error.to_string())
}

/// How a damaged folder was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Found {
    /// Nothing was missed.
    Right,
    /// Something was, and a restart made it anew.
    Mended,
    /// The damage was reported, and nothing is served.
    Refused,
}

/// Opens a damaged folder as often as it takes. No value may be another than before; what was acknowledged is
/// there, unless the folder is refused.
fn open_damaged(folder: &Path, whole: &Whole) -> Found {
    let mut mended = folder.join("damaged").exists();
    for _ in 0..3 {
        let store = match FeatureStore::open(folder, definitions(), &StoreOptions::default()) {
            Ok(store) => store,
            Err(OpenError::Damaged(_) | OpenError::Cut { .. }) => return Found::Refused,
            Err(error) => panic!("{error}"),
        };
        mended |= folder.join("quarantine").exists();
        if use_store(&store, whole).is_ok() {
            return if mended { Found::Mended } else { Found::Right };
        }
        assert!(store.stats().damaged.is_some());
        drop(store);
        assert!(folder.join("damaged").exists());
        mended = true;
    }
    panic!("not mended by three opens");
}

/// Reads and writes as a gateway would; an error where the store says that it is damaged.
fn use_store(store: &FeatureStore, whole: &Whole) -> Result<(), String> {
    let rows = read(store)?;
    for (row, expected) in rows.iter().zip(&whole.rows) {
        let bits = |row: &FeatureRow| row.values.iter().map(|it| it.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(row), bits(expected));
        assert_eq!(row.statuses, expected.statuses);
        assert_eq!(row.as_of_seq, expected.as_of_seq);
    }
    for number in 0..BATCHES {
        let events = store.ingest_events_blocking(batch(store, number), START_MS);
        let events = events.map_err(|error| error.to_string())?;
        assert_eq!(events.duplicates, BATCH, "batch {number}");
        let labels = store.ingest_labels_blocking(vec![label(number)], START_MS);
        let labels = labels.map_err(|error| error.to_string())?;
        assert_eq!(labels.duplicates, 1, "label {number}");
    }
    // Folding reads the states of the keys that it changes; the same event twice leaves them as they are.
    assert!(
        store
            .served_rows("delay", i64::MIN, i64::MAX)
            .unwrap()
            .len()
            <= whole.served
    );
    let verified = store
        .verify("delay", "delay", 1000, 1)
        .map_err(|error| error.to_string())?;
    assert_eq!(verified.mismatches, 0, "{verified:?}");
    Ok(())
}

/// Files of one kind: how their names begin or end, and where they lie.
const KINDS: [(&str, &str); 6] = [
    ("online", ".sst"),
    ("online", ".log"),
    ("online", "MANIFEST"),
    ("online", "CURRENT"),
    ("spool", ".arrow"),
    ("", "acked"),
];

fn files(folder: &Path, (below, name): (&str, &str)) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder.join(below))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.to_str().unwrap().contains(name))
        .collect();
    files.retain(|path| path.is_file() && fs::metadata(path).unwrap().len() > 0);
    files.sort();
    files
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn a_flipped_bit_in_any_file_never_changes_a_value() {
    let seed = number("LOOPGATE_DAMAGE_SEED").unwrap_or_else(rand::random);
    println!("LOOPGATE_DAMAGE_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let whole = whole();
    let trials = number("LOOPGATE_DAMAGE_TRIALS").unwrap_or(TRIALS);
    for kind in KINDS {
        let mut found: BTreeMap<Found, u64> = BTreeMap::new();
        for _ in 0..trials {
            let damaged = scratch();
            copy(whole.folder.path(), damaged.path());
            let files = files(damaged.path(), kind);
            let file = files.choose(&mut random).unwrap();
            let mut bytes = fs::read(file).unwrap();
            let at = random.random_range(0..bytes.len());
            bytes[at] ^= 1 << random.random_range(0..8);
            println!("byte {at} of {}", file.display());
            fs::write(file, bytes).unwrap();
            *found
                .entry(open_damaged(damaged.path(), &whole))
                .or_default() += 1;
        }
        println!("{kind:?}: {found:?}");
    }
}

/// RocksDB itself would go on without what follows such a record.
#[test]
fn a_manifest_record_without_an_end_hides_nothing() {
    const HEAD_BYTES: usize = 7;
    let whole = whole();
    let manifests = files(whole.folder.path(), ("online", "MANIFEST"));
    let current = fs::read_to_string(whole.folder.path().join("online/CURRENT")).unwrap();
    let manifest = manifests
        .iter()
        .find(|path| path.ends_with(current.trim_end()))
        .unwrap();
    let log = fs::read(manifest).unwrap();
    let mut at = 0;
    while at + HEAD_BYTES < log.len() {
        let bytes = usize::from(u16::from_le_bytes([log[at + 4], log[at + 5]]));
        let next = at + HEAD_BYTES + bytes;
        if next < log.len() {
            let damaged = scratch();
            copy(whole.folder.path(), damaged.path());
            let mut altered = log.clone();
            altered[at + 5] |= 0x40;
            let below = manifest.strip_prefix(whole.folder.path()).unwrap();
            fs::write(damaged.path().join(below), altered).unwrap();
            println!("length of the record at byte {at}");
            assert_ne!(open_damaged(damaged.path(), &whole), Found::Right);
        }
        at = next;
    }
}

#[test]
fn a_lost_file_is_made_anew_or_reported() {
    let whole = whole();
    let online = whole.folder.path().join("online");
    let current = fs::read_to_string(online.join("CURRENT")).unwrap();
    let mut tables = Vec::new();
    for kind in KINDS {
        let files = files(whole.folder.path(), kind);
        let newest = files.last().cloned();
        for path in files {
            let damaged = scratch();
            copy(whole.folder.path(), damaged.path());
            let below = path.strip_prefix(whole.folder.path()).unwrap();
            fs::remove_file(damaged.path().join(below)).unwrap();
            let found = open_damaged(damaged.path(), &whole);
            println!("{} is lost: {found:?}", below.display());
            match kind.1 {
                // What has been replaced may lie there still, and is not missed.
                ".sst" => tables.push(found),
                "MANIFEST" if path.ends_with(current.trim_end()) => {
                    assert_eq!(found, Found::Mended);
                }
                ".log" if newest == Some(path) => assert_eq!(found, Found::Refused),
                "MANIFEST" | ".log" => {}
                "CURRENT" => assert_eq!(found, Found::Mended),
                _ => assert_ne!(found, Found::Refused),
            }
        }
    }
    assert!(tables.contains(&Found::Mended));
}

/// A repair by RocksDB leaves out what column families have in the log alone, before their first table: as all
/// have in the first life, and those that were made anew in the life after.
#[test]
fn current_may_be_lost_in_any_life() {
    let folder = scratch();
    let lose = || fs::remove_file(folder.path().join("online/CURRENT")).unwrap();
    for life in 0..4 {
        let store = open(folder.path());
        let acked: Vec<u64> = (0..life * 10).collect();
        check_ledger(&store, &acked);
        for number in life * 10..(life + 1) * 10 {
            let events = batch(&store, number);
            store.ingest_events_blocking(events, START_MS).unwrap();
            let labels = vec![label(number)];
            store.ingest_labels_blocking(labels, START_MS).unwrap();
        }
        drop(store);
        lose();
    }
    let store = open(folder.path());
    check_ledger(&store, &(0..40).collect::<Vec<_>>());
}
