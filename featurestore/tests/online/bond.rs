//! A data folder and its bucket know each other: a bucket that is not the one that the folder left is refused
//! before anything is removed here, and a start that is cut off anywhere binds them all the same.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use featurestore::{FeatureStore, OfflineError, SealError, training_rows};
use serde_json::{Value, json};

use crate::bucket::{
    LATER_MS, TABLES, check_all_sealed, check_no_orphans, feed, manifest, open_at, options, query,
    refusal, sealed_files, with_credentials,
};
use crate::crash;
use crate::double::{Double, Fate, bucket_of_the_environment};
use crate::flights::{Traffic, definitions, open};
use crate::workload::scratch;

/// Patience: nothing is asked again.
const NONE: Duration = Duration::from_millis(1);

/// What the data folder says of its place.
fn record(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("offline.json")).unwrap()).unwrap()
}

/// Writers of the three manifests.
fn writers(double: &Double) -> [Value; 3] {
    TABLES.map(|table| manifest(&double.table(table))[0]["writer"].clone())
}

/// The folder knows one writer, which all manifests name.
fn check_bound(folder: &Path, double: &Double) {
    let record = record(folder);
    let writer = &record["place"]["writer"];
    assert!(writer.is_string(), "{record}");
    assert_eq!(writers(double), [(); 3].map(|()| writer.clone()));
    assert_eq!(record["place"]["begun"], json!([]));
    assert_eq!(record["place"]["endpoint"], double.endpoint());
    assert_eq!(record["next"], Value::Null);
}

fn spool_files(folder: &Path) -> usize {
    fs::read_dir(folder.join("spool")).unwrap().count()
}

#[test]
fn a_bucket_that_was_emptied_or_is_another_is_refused_and_nothing_is_removed() {
    with_credentials(
        "bond::a_bucket_that_was_emptied_or_is_another_is_refused_and_nothing_is_removed",
        || {
            let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let (double, another) = (Double::start(), Double::start());
            let mut traffic = Traffic::new(101);
            let store = open_at(folder.path(), &double);
            // The other's numbers are the same.
            let twin = open_at(other.path(), &another);
            feed(&mut traffic, 0, &[&store, &twin]);
            store.seal().unwrap();
            twin.seal().unwrap();
            feed(&mut traffic, 1, &[&store]);
            store.flush().unwrap();
            drop((store, twin));
            let (own, others) = (writers(&double), writers(&another));
            for (at, table) in TABLES.into_iter().enumerate() {
                let objects = double.table(table);
                for with in [None, Some(another.table(table))] {
                    double.empty(table);
                    let replaced = with.is_some();
                    for (path, content) in with.into_iter().flatten() {
                        double.put(&format!("{table}/{path}"), content.to_vec());
                    }
                    let said = refusal(folder.path(), double.bucket());
                    let manifest = format!("s3://flights/offline/{table}/manifest.jsonl: ");
                    assert!(said.starts_with(&manifest), "{said}");
                    let mut named = vec![own[at].as_str().unwrap().to_owned(), double.endpoint()];
                    match replaced {
                        true => named.push(others[at].as_str().unwrap().to_owned()),
                        false => named.push("the prefix was emptied".to_owned()),
                    }
                    assert!(named.iter().all(|it| said.contains(it)), "{said}");
                    let read = training_rows(folder.path(), &definitions(), &query());
                    assert!(read.unwrap_err().to_string().starts_with(&manifest));
                    assert_eq!(spool_files(folder.path()), 1);
                }
                double.empty(table);
                for (path, content) in objects {
                    double.put(&format!("{table}/{path}"), content.to_vec());
                }
            }
            let store = open_at(folder.path(), &double);
            store.seal().unwrap();
            check_all_sealed(&double, &store, 2);
            check_bound(folder.path(), &double);
        },
    );
}

const CHILD: &str = "LOOPGATE_BOND_CHILD";

/// Opens, as it is told to by the environment, and seals if it may.
fn seal_there(folder: &Path) {
    let bucket = std::env::var("AWS_ENDPOINT_URL").map(|_| bucket_of_the_environment());
    match FeatureStore::open(folder, definitions(), &options(bucket.ok())) {
        Err(error) => println!("\nrefused: {error}"),
        Ok(store) => {
            store.seal().unwrap();
            println!("\nsealed");
        }
    }
}

#[test]
fn the_same_bucket_of_another_endpoint_is_refused() {
    if let Ok(folder) = std::env::var(CHILD) {
        return seal_there(Path::new(&folder));
    }
    let test = "bond::the_same_bucket_of_another_endpoint_is_refused";
    with_credentials(test, || {
        let folder = tempfile::tempdir().unwrap();
        let (double, another) = (Double::start(), Double::start());
        let start = |endpoint: &Double| {
            let mut child = crash::command(test, (CHILD, folder.path()));
            let child = child
                .env("AWS_ENDPOINT_URL", endpoint.endpoint())
                .env("AWS_ALLOW_HTTP", "true");
            String::from_utf8(child.output().unwrap().stdout).unwrap()
        };
        assert!(start(&double).contains("\nsealed"));
        check_bound(folder.path(), &double);
        let said = start(&another);
        let refused = said.split_once("\nrefused: ").expect("it is refused").1;
        for endpoint in [&double, &another] {
            assert!(refused.contains(&endpoint.endpoint()), "{refused}");
        }
        assert!(TABLES.iter().all(|table| another.table(table).is_empty()));
        assert!(start(&double).contains("\nsealed"));
    });
}

#[test]
fn a_bucket_that_is_emptied_while_it_is_away_takes_nothing_afterwards() {
    with_credentials(
        "bond::a_bucket_that_is_emptied_while_it_is_away_takes_nothing_afterwards",
        || {
            let folder = tempfile::tempdir().unwrap();
            let double = Double::start();
            let mut traffic = Traffic::new(102);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 0, &[&store]);
            store.seal().unwrap();
            drop(store);
            double.plan(|_| Fate::Refused(503));
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 1, &[&store]);
            let tables = TABLES.map(|table| double.table(table));
            TABLES.into_iter().for_each(|table| double.empty(table));
            double.plan(|_| Fate::Done);
            for _ in 0..2 {
                let said = store.seal().unwrap_err().to_string();
                assert!(said.contains("the prefix was emptied"), "{said}");
                assert_eq!(store.stats().offline, Some(said));
            }
            assert!(TABLES.iter().all(|table| double.table(table).is_empty()));
            for (table, objects) in TABLES.iter().zip(tables) {
                for (path, content) in objects {
                    double.put(&format!("{table}/{path}"), content.to_vec());
                }
            }
            store.seal().unwrap();
            assert_eq!(store.stats().offline, None);
            check_all_sealed(&double, &store, 2);
            check_bound(folder.path(), &double);
        },
    );
}

/// A folder with something sealed and something recorded, and a bucket that it is to be bound to.
struct Start {
    folder: tempfile::TempDir,
    double: Double,
}

/// How a folder stood before the start that binds it.
#[derive(Debug, Clone, Copy)]
enum Before {
    /// Nothing was ever sealed.
    New,
    /// The bucket holds a copy of what the folder holds.
    Moved,
    /// The folder used the bucket when no writers were written down.
    FormatOne,
    /// As it was left.
    Bound,
}

impl Start {
    fn new(before: Before) -> Self {
        let (folder, double) = (scratch(), Double::start());
        let mut traffic = Traffic::new(103);
        let store = match before {
            Before::New | Before::Moved => open(folder.path()),
            Before::FormatOne | Before::Bound => open_at(folder.path(), &double),
        };
        feed(&mut traffic, 0, &[&store]);
        match before {
            Before::New => {}
            _ => drop(store.seal().unwrap()),
        }
        feed(&mut traffic, 1, &[&store]);
        store.flush().unwrap();
        drop(store);
        match before {
            Before::New => fs::remove_dir_all(folder.path().join("offline")).unwrap(),
            Before::Moved => {
                for path in sealed_files(folder.path()) {
                    let content = fs::read(folder.path().join("offline").join(&path)).unwrap();
                    double.put(&path, content);
                }
            }
            Before::FormatOne => {
                let bucket = record(folder.path())["place"]["bucket"].clone();
                let before = json!({"format": 1, "bucket": bucket});
                fs::write(folder.path().join("offline.json"), before.to_string()).unwrap();
            }
            Before::Bound => {}
        }
        Self { folder, double }
    }

    /// The next start binds, and nothing is lost or doubled.
    fn check(&self) {
        self.double.plan(|_| Fate::Done);
        let store = open_at(self.folder.path(), &self.double);
        check_bound(self.folder.path(), &self.double);
        store.seal().unwrap();
        store.upkeep(LATER_MS).unwrap();
        check_all_sealed(&self.double, &store, 2);
        drop(store);
        drop(open_at(self.folder.path(), &self.double));
        check_no_orphans(&self.double);
    }
}

#[test]
fn a_start_that_fails_at_any_request_is_made_up_for_by_the_next() {
    with_credentials(
        "bond::a_start_that_fails_at_any_request_is_made_up_for_by_the_next",
        || {
            for before in [Before::New, Before::FormatOne] {
                for at in 1.. {
                    let start = Start::new(before);
                    let fate = [Fate::Refused(403), Fate::Unanswered][usize::from(at % 2 == 0)];
                    let plan = move |number| if number >= at { fate } else { Fate::Done };
                    start.double.plan(plan);
                    let options = options(Some(start.double.bucket().with_patience(NONE)));
                    let opened = FeatureStore::open(start.folder.path(), definitions(), &options);
                    let asked = start.double.requests();
                    // Serving does not wait for a bucket that is known.
                    let known = matches!(before, Before::FormatOne);
                    assert_eq!(
                        opened.is_ok(),
                        known || asked < at,
                        "{before:?}, {fate:?}, {at}"
                    );
                    drop(opened);
                    start.check();
                    if asked < at {
                        println!("{before:?}: {asked} requests");
                        assert!(at > 6);
                        break;
                    }
                }
            }
        },
    );
}

#[test]
fn a_start_that_is_killed_at_any_request_is_made_up_for_by_the_next() {
    let test = "bond::a_start_that_is_killed_at_any_request_is_made_up_for_by_the_next";
    if let Ok(folder) = std::env::var(CHILD) {
        let double = std::env::var("LOOPGATE_BOND_ENDPOINT").unwrap();
        let bucket = crate::double::bucket_at(double).with_patience(NONE);
        return drop(FeatureStore::open(
            Path::new(&folder),
            definitions(),
            &options(Some(bucket)),
        ));
    }
    with_credentials(test, || {
        for before in [Before::New, Before::Moved, Before::FormatOne, Before::Bound] {
            for at in 1.. {
                let start = Start::new(before);
                let fate = [Fate::Lost, Fate::Unanswered][usize::from(at % 2 == 0)];
                let (tell, told) = std::sync::mpsc::sync_channel(1);
                let mut pid = None;
                start.double.plan(move |number| {
                    if number < at {
                        return Fate::Done;
                    }
                    let pid = *pid.get_or_insert_with(|| told.recv().unwrap());
                    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
                    fate
                });
                let mut command = crash::command(test, (CHILD, start.folder.path()));
                let command = command.env("LOOPGATE_BOND_ENDPOINT", start.double.endpoint());
                let mut child = command.spawn().unwrap();
                tell.send(rustix::process::Pid::from_child(&child)).unwrap();
                let ended = child.wait().unwrap();
                let asked = start.double.requests();
                start.check();
                if asked < at {
                    println!("{before:?}: {asked} requests");
                    assert!(ended.success() && at > 6);
                    break;
                }
            }
        }
    });
}

#[test]
fn a_restored_copy_takes_the_bucket_only_as_it_was_then() {
    with_credentials(
        "bond::a_restored_copy_takes_the_bucket_only_as_it_was_then",
        || {
            let (folder, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let double = Double::start();
            let mut traffic = Traffic::new(104);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 0, &[&store]);
            store.seal().unwrap();
            let [early, late] = ["early", "late"].map(|name| copies.path().join(name));
            store.backup(&early).unwrap();
            feed(&mut traffic, 1, &[&store]);
            store.seal().unwrap();
            store.backup(&late).unwrap();
            drop(store);
            let said = refusal(&early, double.bucket());
            assert!(said.contains("it is not what lies in "), "{said}");
            let store = open_at(&late, &double);
            feed(&mut traffic, 2, &[&store]);
            store.seal().unwrap();
            check_all_sealed(&double, &store, 3);
            check_bound(&late, &double);
            let said = refusal(folder.path(), double.bucket());
            assert!(said.contains("maybe a copy of this one"), "{said}");
        },
    );
}

#[test]
fn a_folder_that_is_older_than_its_bucket_is_refused() {
    with_credentials(
        "bond::a_folder_that_is_older_than_its_bucket_is_refused",
        || {
            let (folder, copies) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            let double = Double::start();
            let mut traffic = Traffic::new(105);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 0, &[&store]);
            store.seal().unwrap();
            let copy = copies.path().join("copy");
            store.backup(&copy).unwrap();
            fs::remove_dir_all(copy.join("offline")).unwrap();
            fs::copy(
                folder.path().join("offline.json"),
                copy.join("offline.json"),
            )
            .unwrap();
            // No event and no label comes after: of predictions alone the numbers of spool files tell.
            let record = traffic.serve(&store, crate::flights::START_MS);
            store.record(&[record]).unwrap();
            store.seal().unwrap();
            let said = refusal(&copy, double.bucket());
            assert!(
                said.contains("it holds spool file 1, but 1 were begun here"),
                "{said}"
            );
            drop(store);
            drop(open_at(folder.path(), &double));
        },
    );
}

#[test]
fn an_end_does_not_wait_for_a_bucket_that_does_not_answer() {
    with_credentials(
        "bond::an_end_does_not_wait_for_a_bucket_that_does_not_answer",
        || {
            let folder = tempfile::tempdir().unwrap();
            let double = Double::start();
            let mut traffic = Traffic::new(106);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 0, &[&store]);
            double.plan(|_| Fate::Silent);
            std::thread::scope(|scope| {
                let sealing = scope.spawn(|| store.seal());
                while double.requests() == 0 {
                    std::thread::yield_now();
                }
                store.end_by(Instant::now());
                let away = |error| matches!(error, SealError::Offline(OfflineError::Away { .. }));
                assert!(sealing.join().unwrap().is_err_and(away));
            });
            let said = store.seal().unwrap_err().to_string();
            assert!(said.contains("before the end of this process"), "{said}");
            double.plan(|_| Fate::Done);
            drop(store);
            let store = open_at(folder.path(), &double);
            store.seal().unwrap();
            check_all_sealed(&double, &store, 1);
        },
    );
}

#[test]
fn a_seal_that_failed_stays_so_until_one_succeeds() {
    with_credentials(
        "bond::a_seal_that_failed_stays_so_until_one_succeeds",
        || {
            let folder = tempfile::tempdir().unwrap();
            let double = Double::start();
            let mut traffic = Traffic::new(107);
            let store = open_at(folder.path(), &double);
            feed(&mut traffic, 0, &[&store]);
            store.seal().unwrap();
            feed(&mut traffic, 1, &[&store]);
            double.plan(|_| Fate::Refused(500));
            store.seal().unwrap_err();
            double.plan(|_| Fate::Done);
            // Reads are answered again; what is to be sealed waits still.
            assert_eq!(store.verify("delay", "delay", 10, 3).unwrap().mismatches, 0);
            assert!(store.stats().offline.is_some());
            store.seal().unwrap();
            assert_eq!(store.stats().offline, None);
        },
    );
}
