//! Sealed files in a bucket: the same rows as from a folder, and nothing lost or doubled by an error, an
//! answer that never comes or a kill at any request.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use featurestore::{
    Bucket, FeatureStore, Label, RetentionOptions, StoreOptions, TrainingQuery, training_rows,
};
use sha2::{Digest, Sha256};

use crate::crash;
use crate::double::{Double, Fate};
use crate::flights::{MINUTE_MS, START_MS, Traffic, definitions, open};

const DAY_MS: i64 = 1440 * MINUTE_MS;
/// After everything that happens here.
pub(crate) const LATER_MS: i64 = START_MS + 10_000 * DAY_MS;
pub(crate) const TABLES: [&str; 3] = ["events", "predictions", "labels"];

/// Runs a test, with its module before its name, in a process whose environment has credentials, and no others than these.
pub(crate) fn with_credentials(test: &str, body: impl FnOnce()) {
    const KEY: &str = "AWS_ACCESS_KEY_ID";
    if std::env::var(KEY).is_ok_and(|key| key == "of a test") {
        return body();
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("AWS_") {
            command.env_remove(name);
        }
    }
    let status = command
        .args(["--exact", test, "--nocapture"])
        .env(KEY, "of a test")
        .env("AWS_SECRET_ACCESS_KEY", "no secret")
        .status()
        .unwrap();
    assert!(status.success(), "{test}");
}

/// Prunes whatever is sealed, and removes files as soon as their table has forgotten them.
pub(crate) fn options(bucket: Option<Bucket>) -> StoreOptions {
    StoreOptions {
        offline: bucket,
        retention: RetentionOptions {
            event_log_ms: Some(0),
            grace_ms: 0,
            small_files_max: 3,
            ..RetentionOptions::default()
        },
        ..StoreOptions::default()
    }
}

pub(crate) fn open_at(folder: &Path, double: &Double) -> FeatureStore {
    FeatureStore::open(folder, definitions(), &options(Some(double.bucket()))).unwrap()
}

pub(crate) fn refusal(folder: &Path, bucket: Bucket) -> String {
    let opened = FeatureStore::open(folder, definitions(), &options(Some(bucket)));
    opened.err().expect("it is refused").to_string()
}

pub(crate) fn query() -> TrainingQuery {
    TrainingQuery {
        model: "delay".to_owned(),
        service: "delay@1".to_owned(),
        from_ms: START_MS,
        to_ms: LATER_MS,
        known_by_ms: LATER_MS,
    }
}

/// An event, a prediction and its label, told to each store alike.
pub(crate) fn feed(traffic: &mut Traffic, step: i64, stores: &[&FeatureStore]) {
    let now_ms = START_MS + step * 97 * MINUTE_MS;
    let events = vec![traffic.departure(now_ms), traffic.weather(now_ms)];
    for store in stores {
        let taken = store.ingest_events_blocking(events.clone(), now_ms);
        taken.unwrap();
    }
    let record = traffic.serve(stores[0], now_ms);
    let label = Label {
        prediction: record.prediction,
        value: 1.0,
        label_ms: now_ms,
    };
    for store in stores {
        store.record(std::slice::from_ref(&record)).unwrap();
        store.ingest_labels_blocking(vec![label], now_ms).unwrap();
    }
}

/// Lines of a table's manifest.
pub(crate) fn manifest(objects: &BTreeMap<String, Bytes>) -> Vec<serde_json::Value> {
    let text = std::str::from_utf8(&objects["manifest.jsonl"]).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Every file that a manifest names is there, whole.
fn check_named(double: &Double, when: &str) {
    for table in TABLES {
        let objects = double.table(table);
        if !objects.contains_key("manifest.jsonl") {
            continue;
        }
        for line in manifest(&objects) {
            // One that was retired may be gone before its manifest says so.
            if line["path"].is_null() || line["retired_ms"].is_i64() {
                continue;
            }
            let path = line["path"].as_str().unwrap();
            let content = objects.get(path);
            let content = content.unwrap_or_else(|| panic!("{when}: {table}: {path} is not there"));
            let digest: String = Sha256::digest(content)
                .iter()
                .map(|it| format!("{it:02x}"))
                .collect();
            assert_eq!(line["sha256"], digest, "{when}: {table}: {path}");
        }
    }
}

/// Nothing lies in the tables that their manifests do not name.
pub(crate) fn check_no_orphans(double: &Double) {
    for table in TABLES {
        let objects = double.table(table);
        let named: Vec<_> = manifest(&objects)
            .iter()
            .map(|line| line["path"].clone())
            .collect();
        for path in objects.keys().filter(|path| path.ends_with(".parquet")) {
            assert!(named.contains(&path.as_str().into()), "{table}: {path}");
        }
    }
}

/// Rows that the manifests name, by table.
fn sealed_rows(double: &Double) -> [u64; 3] {
    TABLES.map(|table| {
        let lines = manifest(&double.table(table));
        let named = lines.iter().filter(|line| line["retired"].is_null());
        named.filter_map(|line| line["rows"].as_u64()).sum::<u64>()
    })
}

/// All that was told is sealed, once.
pub(crate) fn check_all_sealed(double: &Double, store: &FeatureStore, steps: u64) {
    check_named(double, "at the end");
    assert_eq!(sealed_rows(double), [2 * steps, steps, steps]);
    assert_eq!(store.stats().last_seq, 2 * steps);
    assert_eq!(
        training_rows(store.data_dir(), &definitions(), &query())
            .unwrap()
            .rows() as u64,
        steps
    );
    let report = store.verify("delay", "delay", 10_000, 3).unwrap();
    assert_eq!((report.rows_checked, report.mismatches), (steps, 0));
}

#[test]
fn a_bucket_holds_what_a_folder_would() {
    with_credentials("bucket::a_bucket_holds_what_a_folder_would", || {
        let (kept, moved) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let double = Double::start();
        let mut traffic = Traffic::new(90);
        let local = open(kept.path());
        let mut store = open_at(moved.path(), &double);
        let mut merged = 0;
        for step in 0..60 {
            feed(&mut traffic, step, &[&local, &store]);
            match step % 10 {
                3 | 6 => drop(store.seal().unwrap()),
                9 => {
                    store.seal().unwrap();
                    merged += store.upkeep(LATER_MS).unwrap().merged_files;
                    drop(store);
                    store = open_at(moved.path(), &double);
                }
                _ => {}
            }
        }
        local.seal().unwrap();
        assert!(merged > 0, "small files were merged");
        check_all_sealed(&double, &store, 60);
        check_no_orphans(&double);
        let rows = [kept.path(), moved.path()]
            .map(|folder| training_rows(folder, &definitions(), &query()).unwrap());
        assert_eq!(rows[0].digest, rows[1].digest);
        let recomputed = [&local, &store].map(|store| store.recomputed_rows(&query()).unwrap());
        assert_eq!(recomputed[0].digest, recomputed[1].digest);
        assert!(
            !moved.path().join("offline").exists(),
            "nothing is sealed beside the bucket"
        );
        // Told nothing, a folder knows where its files lie; a copy of it holds them itself.
        drop(store);
        let store = open(moved.path());
        let copy = kept.path().join("copy");
        store.backup(&copy).unwrap();
        drop(store);
        let before = double.requests();
        let copied = training_rows(&copy, &definitions(), &query()).unwrap();
        assert_eq!((copied.digest, double.requests()), (rows[0].digest, before));
        let store = open(&copy);
        assert_eq!(
            store
                .verify("delay", "delay", 10_000, 3)
                .unwrap()
                .mismatches,
            0
        );
    });
}

#[test]
fn an_error_at_any_request_loses_and_doubles_nothing() {
    with_credentials(
        "bucket::an_error_at_any_request_loses_and_doubles_nothing",
        || {
            for fates in [
                [Fate::Refused(503), Fate::Unanswered],
                [Fate::Lost, Fate::Refused(403)],
            ] {
                let folder = tempfile::tempdir().unwrap();
                let double = Double::start();
                let mut traffic = Traffic::new(91);
                let mut store = open_at(folder.path(), &double);
                let (mut steps, mut failed) = (0, 0);
                for at in 1.. {
                    for _ in 0..3 {
                        feed(&mut traffic, steps, &[&store]);
                        steps += 1;
                    }
                    if at % 5 == 0 {
                        drop(store);
                        store = open_at(folder.path(), &double);
                    }
                    // From that request on, however often it is tried again.
                    let fate = fates[usize::from(at % 2 == 0)];
                    double.plan(move |number| if number >= at { fate } else { Fate::Done });
                    let done = store.seal().and_then(|_| store.upkeep(LATER_MS));
                    let asked = double.requests();
                    check_named(&double, &format!("{fate:?} from request {at} on"));
                    double.plan(|_| Fate::Done);
                    failed += i32::from(done.is_err());
                    if asked < at {
                        break;
                    }
                    assert_eq!(store.stats().offline.is_some(), done.is_err(), "{done:?}");
                    store.seal().unwrap();
                    store.upkeep(LATER_MS).unwrap();
                    assert_eq!(store.stats().offline, None);
                }
                println!("{fates:?}: {failed} errors");
                assert!(failed > 5);
                check_all_sealed(&double, &store, steps.cast_unsigned());
                drop(store);
                drop(open_at(folder.path(), &double));
                check_no_orphans(&double);
            }
        },
    );
}

#[test]
fn one_lost_answer_is_made_up_for_by_asking_again() {
    with_credentials(
        "bucket::one_lost_answer_is_made_up_for_by_asking_again",
        || {
            let folder = tempfile::tempdir().unwrap();
            let double = Double::start();
            let mut traffic = Traffic::new(92);
            let store = FeatureStore::open(
                folder.path(),
                definitions(),
                &options(Some(double.bucket().with_patience(Duration::from_secs(60)))),
            )
            .unwrap();
            for at in 1..20 {
                feed(&mut traffic, at, &[&store]);
                double.plan(move |number| {
                    if number == at.cast_unsigned() {
                        Fate::Refused(503)
                    } else {
                        Fate::Done
                    }
                });
                store.seal().unwrap();
            }
            check_named(&double, "at the end");
        },
    );
}

const CHILD: &str = "LOOPGATE_BUCKET_CHILD";

#[test]
fn a_kill_at_any_request_loses_and_doubles_nothing() {
    if let Ok(folder) = std::env::var(CHILD) {
        return seal_once(Path::new(&folder));
    }
    with_credentials(
        "bucket::a_kill_at_any_request_loses_and_doubles_nothing",
        || {
            let folder = tempfile::tempdir().unwrap();
            let double = Double::start();
            let mut traffic = Traffic::new(93);
            let mut steps = 0;
            for at in 1.. {
                // Done by then, or not; of neighbours that do the same one each.
                let fate = [Fate::Lost, Fate::Unanswered][usize::from(at % 2 == 0)];
                let store = open_at(folder.path(), &double);
                store.seal().unwrap();
                store.upkeep(LATER_MS).unwrap();
                assert_eq!(sealed_rows(&double), [2 * steps, steps, steps]);
                for _ in 0..3 {
                    feed(&mut traffic, steps.cast_signed(), &[&store]);
                    steps += 1;
                }
                drop(store);
                let (tell, told) = std::sync::mpsc::sync_channel(1);
                let mut pid = None;
                double.plan(move |number| {
                    if number < at {
                        return Fate::Done;
                    }
                    let pid = *pid.get_or_insert_with(|| told.recv().unwrap());
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                    fate
                });
                let test = "bucket::a_kill_at_any_request_loses_and_doubles_nothing";
                let mut child = crash::child(test, (CHILD, folder.path()));
                tell.send(rustix::process::Pid::from_child(&child)).unwrap();
                let ended = child.wait().unwrap();
                let asked = double.requests();
                check_named(&double, &format!("killed at request {at}, {fate:?}"));
                double.plan(|_| Fate::Done);
                if asked < at {
                    println!("{asked} requests");
                    assert!(ended.success() && at > 10);
                    break;
                }
            }
            let store = open_at(folder.path(), &double);
            store.seal().unwrap();
            check_all_sealed(&double, &store, steps);
            drop(store);
            drop(open_at(folder.path(), &double));
            check_no_orphans(&double);
        },
    );
}

/// In a folder that knows its bucket.
fn seal_once(folder: &Path) {
    let store = FeatureStore::open(folder, definitions(), &options(None)).unwrap();
    store.seal().unwrap();
    store.upkeep(LATER_MS).unwrap();
}

#[test]
fn a_bucket_that_is_away_makes_sealing_wait_and_nothing_else() {
    with_credentials(
        "bucket::a_bucket_that_is_away_makes_sealing_wait_and_nothing_else",
        || {
            for fate in [Fate::Refused(500), Fate::Refused(403), Fate::Lost] {
                let (folder, new) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
                let double = Double::start();
                let mut traffic = Traffic::new(94);
                let store = open_at(folder.path(), &double);
                feed(&mut traffic, 0, &[&store]);
                store.seal().unwrap();
                store.upkeep(LATER_MS).unwrap();
                feed(&mut traffic, 1, &[&store]);
                drop(store);
                double.plan(move |_| fate);
                // A folder that has used it opens without it; one that has not is refused.
                let said = refusal(new.path(), double.bucket());
                assert!(said.starts_with("s3://flights/offline"), "{said}");
                let store = open_at(folder.path(), &double);
                let said = store.stats().offline.unwrap();
                assert!(said.starts_with("s3://flights/offline/"), "{said}");
                feed(&mut traffic, 2, &[&store]);
                assert!(store.seal().is_err());
                assert!(store.upkeep(LATER_MS).is_err());
                double.plan(|_| Fate::Done);
                store.seal().unwrap();
                store.upkeep(LATER_MS).unwrap();
                assert_eq!(store.stats().offline, None);
                check_all_sealed(&double, &store, 3);
                check_no_orphans(&double);
            }
        },
    );
}

#[test]
fn of_two_gateways_with_one_prefix_only_the_later_seals() {
    with_credentials(
        "bucket::of_two_gateways_with_one_prefix_only_the_later_seals",
        || {
            let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let double = Double::start();
            let mut traffic = Traffic::new(95);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 0, &[&store]);
            store.seal().unwrap();
            let copy = other.path().join("copy");
            store.backup(&copy).unwrap();
            fs::remove_dir_all(copy.join("offline")).unwrap();
            fs::copy(
                folder.path().join("offline.json"),
                copy.join("offline.json"),
            )
            .unwrap();
            let later = open_at(&copy, &double);
            feed(&mut traffic, 1, &[&store, &later]);
            for _ in 0..2 {
                let said = store.seal().unwrap_err().to_string();
                assert!(said.contains("is written by another process"), "{said}");
            }
            later.seal().unwrap();
            check_all_sealed(&double, &later, 2);
            // Nor does the earlier take it back, though the numbers would fit.
            drop(store);
            let said = refusal(folder.path(), double.bucket());
            assert!(said.contains("maybe a copy of this one"), "{said}");
            drop(later);
            check_all_sealed(&double, &open_at(&copy, &double), 2);
        },
    );
}

#[test]
fn a_bucket_that_is_not_the_folders_own_is_refused() {
    with_credentials(
        "bucket::a_bucket_that_is_not_the_folders_own_is_refused",
        || {
            let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let double = Double::start();
            let mut traffic = Traffic::new(96);
            let store = open(folder.path());
            feed(&mut traffic, 0, &[&store]);
            store.seal().unwrap();
            drop(store);
            let said = refusal(folder.path(), double.bucket());
            assert!(
                said.contains("events/manifest.jsonl: it is not what lies in "),
                "{said}"
            );
            // Moved as a whole but for one file, then as a whole.
            let files = sealed_files(folder.path());
            let (last, most) = files.split_last().unwrap();
            let put = |path: &String| {
                double.put(
                    path,
                    fs::read(folder.path().join("offline").join(path)).unwrap(),
                )
            };
            most.iter().for_each(put);
            let said = refusal(folder.path(), double.bucket());
            assert!(said.contains(last.rsplit('/').next().unwrap()), "{said}");
            put(last);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 1, &[&store]);
            store.seal().unwrap();
            check_all_sealed(&double, &store, 2);
            let said = refusal(other.path(), double.bucket());
            assert!(
                said.contains("manifest.jsonl: it is of another data folder"),
                "{said}"
            );
        },
    );
}

/// Paths below `offline/`, manifests first.
pub(crate) fn sealed_files(folder: &Path) -> Vec<String> {
    let root = folder.join("offline");
    let (mut found, mut folders) = (Vec::new(), vec![root.clone()]);
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            match path.is_dir() {
                true => folders.push(path),
                false => found.push(
                    path.strip_prefix(&root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                ),
            }
        }
    }
    found.sort_by_key(|path| !path.ends_with("manifest.jsonl"));
    found
}

#[test]
fn a_store_that_does_not_keep_conditions_is_refused_when_it_is_configured() {
    with_credentials(
        "bucket::a_store_that_does_not_keep_conditions_is_refused_when_it_is_configured",
        || {
            let folder = tempfile::tempdir().unwrap();
            let double = Double::start();
            double.forget_conditions();
            let said = refusal(folder.path(), double.bucket());
            assert_eq!(
                said,
                "s3://flights/offline: it does not keep `If-None-Match: *` of a PUT"
            );
            assert!(!folder.path().join("offline.json").exists());
        },
    );
}

#[test]
fn an_object_that_is_not_what_was_sealed_is_named_and_never_read() {
    with_credentials(
        "bucket::an_object_that_is_not_what_was_sealed_is_named_and_never_read",
        || {
            let folder = tempfile::tempdir().unwrap();
            let double = Double::start();
            let mut traffic = Traffic::new(97);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 0, &[&store]);
            store.seal().unwrap();
            store.upkeep(LATER_MS).unwrap();
            for table in TABLES {
                let objects = double.table(table);
                let (path, whole) = objects
                    .iter()
                    .find(|(path, _)| path.ends_with(".parquet"))
                    .unwrap();
                let mut flipped = whole.to_vec();
                flipped[whole.len() / 2] ^= 4;
                double.put(&format!("{table}/{path}"), flipped);
                let said = match table {
                    "events" => store
                        .verify("delay", "delay", 10, 3)
                        .unwrap_err()
                        .to_string(),
                    _ => training_rows(folder.path(), &definitions(), &query())
                        .unwrap_err()
                        .to_string(),
                };
                assert!(said.contains(path) && said.contains("digest"), "{said}");
                double.put(&format!("{table}/{path}"), whole.to_vec());
            }
            check_all_sealed(&double, &store, 1);
        },
    );
}
