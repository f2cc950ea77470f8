//! Kill -9 before any one system call that reaches the disk, and disks that answer such a call with an error
//! or late: a child works, `strace` does it to the N-th call of a thread, the folder is opened and held
//! against what the child had been told. There is no hook in the program, so no step is left out: between
//! batch and mark, between the steps of a seal, in a recovery.
//!
//! `LOOPGATE_CRASH_CYCLES` says how often each is done, `LOOPGATE_CRASH_SEED` to which calls.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use featurestore::{FeatureStore, StoreOptions};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::crash::batch;
use crate::flights::{START_MS, definitions};
use crate::strace::{self, Inject, Moment};
use crate::workload::{self, Told, check, check_events, scratch};

const CYCLES: u64 = 32;
const ERRORS: u64 = 12;
/// Steps of one life, enough for three seals.
const STEPS: u64 = 12;
/// The kinds of calls that a life on disk is made of.
const CALLS: [&str; 8] = [
    "write",
    "pwrite64",
    "fdatasync",
    "fsync",
    "rename",
    "unlink",
    "openat",
    "ftruncate",
];

pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

pub(crate) fn seeded() -> StdRng {
    let seed = number("LOOPGATE_CRASH_SEED").unwrap_or_else(rand::random);
    println!("LOOPGATE_CRASH_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

fn child(folder: &Path, first: u64) -> Command {
    let mut child = strace::child(workload::CHILD, folder);
    child.env(workload::STEPS, format!("{first} {}", first + STEPS));
    child
}

/// Lets a child live, and adds what it said to `told`.
fn live(mut child: Command, told: &mut Told) -> std::process::Output {
    let output = child.output().unwrap();
    (told.ended, told.refused) = (false, false);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .for_each(|line| told.hear(line));
    if !told.ended {
        told.repeated.insert(told.next());
    }
    output
}

/// The most calls of each kind that one thread makes in a life which goes on from the one before.
fn calls_of_a_life(folder: &Path, told: &mut Told) -> BTreeMap<&'static str, u64> {
    live(child(folder, 0), told);
    let trace = tempfile::NamedTempFile::new().unwrap();
    live(
        strace::recorded(&child(folder, told.next()), trace.path()),
        told,
    );
    assert!(told.ended, "{told:?}");
    let mut calls: BTreeMap<(&str, u32), u64> = BTreeMap::new();
    for moment in strace::read(trace.path()) {
        let Moment::Done(call) = moment else { continue };
        if let Some(name) = CALLS.into_iter().find(|name| *name == call.name) {
            *calls.entry((name, call.thread)).or_default() += 1;
        }
    }
    let mut most = BTreeMap::new();
    for ((name, _), times) in calls {
        let held: &mut u64 = most.entry(name).or_default();
        *held = times.max(*held);
    }
    println!("calls of the busiest thread: {most:?}");
    most
}

#[test]
fn a_kill_before_any_call_that_reaches_the_disk_loses_and_doubles_nothing() {
    if !strace::is_there() {
        return;
    }
    let mut random = seeded();
    let folder = scratch();
    let mut told = Told::default();
    let most = calls_of_a_life(folder.path(), &mut told);
    let mut killed = 0;
    let cycles = number("LOOPGATE_CRASH_CYCLES").unwrap_or(CYCLES);
    for (cycle, (calls, most)) in (0..cycles).zip(most.iter().cycle()) {
        let when = random.random_range(1..=*most).to_string();
        println!(
            "cycle {cycle}: killed before {calls} {when}, step {}",
            told.next()
        );
        let inject = Inject {
            calls,
            effect: "signal=KILL",
            when,
            ..Inject::default()
        };
        live(
            strace::injected(&child(folder.path(), told.next()), &inject),
            &mut told,
        );
        killed += u64::from(!told.ended);
        // What the kernel was given outlives a kill.
        told.sealed = told.acked.last().copied();
        check(folder.path(), &told);
    }
    assert!(killed * 4 > cycles, "{killed} of {cycles} were killed");
}

#[test]
fn after_an_error_of_fsync_nothing_is_acknowledged_and_a_restart_finds_what_was() {
    if !strace::is_there() {
        return;
    }
    let mut random = seeded();
    let folder = scratch();
    let mut told = Told::default();
    let most = calls_of_a_life(folder.path(), &mut told);
    let (mut refused, mut unopened) = (0, 0);
    let cycles = number("LOOPGATE_CRASH_CYCLES").unwrap_or(ERRORS);
    for (cycle, calls) in (0..cycles).zip(["fdatasync", "fsync"].into_iter().cycle()) {
        let when = random.random_range(1..=most[calls]).to_string();
        println!("cycle {cycle}: {calls} {when} fails, step {}", told.next());
        let inject = Inject {
            calls,
            effect: "error=EIO",
            when,
            ..Inject::default()
        };
        let acked = told.acked.len();
        let output = live(
            strace::injected(&child(folder.path(), told.next()), &inject),
            &mut told,
        );
        // It may fail to open, by an error and not by a crash.
        let code = output.status.code();
        assert!(code.is_some(), "{output:?}");
        refused += u32::from(told.refused);
        unopened += u32::from(code != Some(0));
        assert!(code == Some(0) || told.acked.len() == acked, "{output:?}");
        check(folder.path(), &told);
    }
    println!("{refused} stopped, {unopened} did not open, of {cycles}");
    assert!(refused + unopened > 0);
}

#[test]
fn a_slow_fsync_fills_a_bounded_queue_and_nothing_is_acknowledged_early() {
    if !strace::is_there() {
        return;
    }
    let folder = scratch();
    let slow = strace::child("kills::the_child_with_a_slow_disk", folder.path());
    let inject = Inject {
        calls: "fdatasync",
        effect: "delay_enter=20000",
        when: "1+".to_owned(),
        ..Inject::default()
    };
    let mut told = Told::default();
    let output = live(strace::injected(&slow, &inject), &mut told);
    assert!(told.ended && !told.acked.is_empty(), "{output:?}");
    told.acked.sort_unstable();
    check_events(folder.path(), &told.acked);
}

const QUEUE_BYTES: usize = 8 << 10;

#[test]
#[ignore = "the child of another test"]
fn the_child_with_a_slow_disk() {
    const BATCHES: u64 = 200;
    let options = StoreOptions {
        queue_bytes_max: QUEUE_BYTES,
        ..StoreOptions::default()
    };
    let folder = strace::folder_of_child();
    let store = FeatureStore::open(&folder, definitions(), &options).unwrap();
    let mut refused = 0;
    for number in 0..BATCHES {
        let events = batch(&store, number);
        let done = Box::new(move |answer: Result<_, _>| {
            answer.unwrap();
            println!("\nacked {number}");
        });
        if let Err(overloaded) = store.submit_events(events, START_MS, done) {
            assert!(overloaded.retry_after_ms > 0);
            refused += 1;
        }
        let queued = usize::try_from(store.stats().queued_bytes).unwrap();
        assert!(queued <= QUEUE_BYTES, "{queued} bytes wait");
    }
    assert!(refused > 0, "nothing was refused");
    drop(store);
    println!("\nended");
}
