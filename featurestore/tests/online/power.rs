//! Power cuts at any moment: what was acknowledged was fsynced before, and what a cut leaves is opened.
//!
//! A child works under `strace`; its system calls are replayed on a disk that knows what was fsynced. After
//! each call that changes what a power cut would leave, such a cut is made, three ways, and the folder that
//! it leaves is opened and held against what the child had been told by then. `LOOPGATE_POWER_CUTS` says how
//! many cuts are made, `LOOPGATE_POWER_SEED` which.

use std::path::Path;

use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use crate::crash::BATCH;
use crate::disk::{Disk, Kept};
use crate::strace::{self, Moment};
use crate::workload::{self, Told, check, scratch};

const CUTS: usize = 40;
const STEPS: u64 = 70;
/// So many groups may be on disk that the mark on disk does not know of.
const GROUPS_PER_MARK: u64 = 64;

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_any_moment() {
    if !strace::is_there() {
        return;
    }
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let cuts = number("LOOPGATE_POWER_CUTS").map_or(CUTS, |cuts| usize::try_from(cuts).unwrap());
    let seed = number("LOOPGATE_POWER_SEED").unwrap_or_else(rand::random);
    println!("LOOPGATE_POWER_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let (folder, trace) = (
        tempfile::tempdir().unwrap(),
        tempfile::NamedTempFile::new().unwrap(),
    );
    let mut child = strace::child(workload::CHILD, &folder.path().join("data"));
    child.env(workload::STEPS, format!("0 {STEPS}"));
    let ended = strace::recorded(&child, trace.path()).output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    let moments = strace::read(trace.path());
    let changes = changes(folder.path(), &moments);
    println!(
        "{} moments at which a cut makes a difference",
        changes.len()
    );
    let mut chosen = changes.iter().copied().choose_multiple(&mut random, cuts);
    chosen.sort_unstable();
    let mut disk = Disk::new(folder.path());
    let mut told = Told::default();
    let mut chosen = chosen.into_iter().peekable();
    for (index, moment) in moments.iter().enumerate() {
        disk.apply(moment);
        hear(moment, &mut told, &disk, &folder.path().join("data"));
        if chosen.next_if_eq(&index).is_some() {
            let kept = match random.random_range(0..3) {
                0 => Kept::Synced,
                1 => Kept::Names,
                _ => Kept::Some(&mut random),
            };
            let left = scratch();
            disk.cut(kept, left.path());
            println!(
                "cut after moment {index}, {} acknowledged",
                told.acked.len()
            );
            check(&left.path().join("data"), &told);
        }
    }
    assert!(told.ended && told.acked.len() as u64 == STEPS, "{told:?}");
}

/// The moments after which a power cut leaves something else than before.
fn changes(folder: &Path, moments: &[Moment]) -> Vec<usize> {
    let mut disk = Disk::new(folder);
    let changing = moments
        .iter()
        .enumerate()
        .filter(|(_, moment)| disk.apply(moment));
    changing.map(|(index, _)| index).collect()
}

/// Notes what the child said, and that the files which it then relied on were on disk.
fn hear(moment: &Moment, told: &mut Told, disk: &Disk, folder: &Path) {
    let Moment::Done(call) = moment else {
        return;
    };
    if call.name != "write" || call.fd() != Some(1) {
        return;
    }
    for line in String::from_utf8_lossy(&call.strings[0]).lines() {
        told.hear(line);
        let relied_on: &[&str] = match line.split(' ').next() {
            Some("acked") => &["online/CURRENT"],
            Some("sealed") => &["offline", "spool"],
            Some("ended") => &["acked", "online/CURRENT", "offline"],
            _ => &[],
        };
        assert!(disk.is_name_durable(&folder.join("acked")), "at `{line}`");
        for name in relied_on {
            assert!(disk.is_durable(&folder.join(name)), "`{name}` at `{line}`");
        }
        // Events of a step are acknowledged before it is told to be done.
        let acked = told.acked.len() as u64 * BATCH;
        let behind = acked.saturating_sub(marked(disk.durable(&folder.join("acked"))));
        assert!(
            behind <= GROUPS_PER_MARK * BATCH,
            "{behind} events after the mark"
        );
    }
}

/// The last event that a mark says was acknowledged.
fn marked(mark: &[u8]) -> u64 {
    let slots = mark
        .chunks_exact(64)
        .filter(|slot| slot.starts_with(b"lgmark"));
    let seq = slots.map(|slot| u64::from_le_bytes(slot[8..16].try_into().unwrap()));
    seq.max().unwrap_or(0)
}
