//! Backups of a store in use: what was acknowledged before is in them, a prefix of what came after, no more.

use std::sync::atomic::{AtomicU64, Ordering};

use featurestore::{BackupError, FeatureStore};

use crate::flights::open;
use crate::workload::{Told, check, ingest_and_record, scratch};

/// Batches before the first backup, between backups, and after the last, at least.
const BATCHES: u64 = 20;
const BACKUPS: usize = 3;

#[test]
fn a_backup_under_load_opens_as_a_prefix_of_the_ledger() {
    let (folder, copies) = (scratch(), scratch());
    let store = open(folder.path());
    let (acked, wanted) = (AtomicU64::new(0), AtomicU64::new(BATCHES));
    let taken = std::thread::scope(|scope| {
        scope.spawn(|| load(&store, &acked, &wanted));
        let taken: Vec<_> = (0..BACKUPS)
            .map(|number| {
                let before = wanted.load(Ordering::Acquire);
                while acked.load(Ordering::Acquire) < before {
                    std::thread::yield_now();
                }
                wanted.fetch_add(BATCHES, Ordering::AcqRel);
                let before = acked.load(Ordering::Acquire);
                let to = copies.path().join(number.to_string());
                let said = store.backup(&to).unwrap();
                let after = acked.load(Ordering::Acquire);
                println!("{said:?}, {before} to {after} batches were acknowledged");
                (to, before, after)
            })
            .collect();
        wanted.store(0, Ordering::Release);
        taken
    });
    for (to, before, after) in taken {
        let held = open(&to).stats().events / crate::crash::BATCH;
        // One batch may have been written and not yet been counted.
        assert!(
            (before..=after + 1).contains(&held),
            "{held} of {before} to {after}"
        );
        let told = Told {
            acked: (0..before).collect(),
            sealed: Some(before - 1),
            ..Told::default()
        };
        check(&to, &told);
        // It goes on as the store would have.
        let restored = open(&to);
        ingest_and_record(&restored, 1000).unwrap();
        restored.seal().unwrap();
        drop(restored);
        assert!(to.join("offline").exists());
    }
}

/// Ingests batches, seals now and then, until no more are wanted.
fn load(store: &FeatureStore, acked: &AtomicU64, wanted: &AtomicU64) {
    for number in 0.. {
        if wanted.load(Ordering::Acquire) == 0 {
            return;
        }
        ingest_and_record(store, number).unwrap();
        if number % 7 == 6 {
            store.seal().unwrap();
        }
        acked.store(number + 1, Ordering::Release);
    }
}

#[test]
fn a_backup_is_a_new_folder_outside_of_the_data() {
    let (folder, copies) = (scratch(), scratch());
    let store = open(folder.path());
    let place = copies.path().join("backup");
    store.backup(&place).unwrap();
    let again = store.backup(&place).unwrap_err();
    assert!(matches!(again, BackupError::Exists { .. }), "{again}");
    let inside = store
        .backup(&folder.path().join("offline/x/y"))
        .unwrap_err();
    assert!(matches!(inside, BackupError::Inside { .. }), "{inside}");
    // What an attempt left that was cut off is no obstacle.
    std::fs::create_dir_all(copies.path().join("other.partial/online")).unwrap();
    store.backup(&copies.path().join("other")).unwrap();
}
