//! Crashes: what was acknowledged is there, what was not is whole or absent.
//!
//! The writer that is killed is this test binary again, running only `child_writer`.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use registry::{AliasChange, AliasName, Digest};

use crate::fixture::{Fixture, model, open};

const FOLDER: &str = "REGISTRY_TEST_CRASH_FOLDER";

/// Not a test by itself: writes until it is killed, when the variable names a folder.
#[tokio::test]
async fn child_writer() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        return;
    };
    let registry = open(Path::new(&folder)).await;
    loop {
        let release = registry.release(&model()).await.unwrap();
        let expected = release.champion();
        let change = AliasChange {
            model: &model(),
            alias: &AliasName::champion(),
            expected,
            to: Some(expected.unwrap_or(0) % 3 + 1),
            reason: "child",
            at_ms: 1,
        };
        let generation = registry.set_alias(change).await.unwrap();
        let bytes = generation.to_le_bytes().repeat(30_000);
        let digest = registry.put_artifact(bytes).await.unwrap();
        println!("acked {generation} {digest}");
    }
}

fn acks_until_killed(folder: &Path, acks: usize) -> Vec<(i64, Digest)> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crashes::child_writer", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    let mut killed = false;
    // Reads on after the kill: an acknowledgement that was printed counts too.
    for line in lines.map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        if let Some(at) = words.iter().position(|word| *word == "acked")
            && let [generation, digest] = words[at + 1..]
            && let Ok(digest) = digest.parse()
        {
            seen.push((generation.parse().unwrap(), digest));
        }
        if seen.len() >= acks && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    assert!(killed, "the child ended by itself after {seen:?}");
    seen
}

#[tokio::test]
async fn after_kill_9_the_release_is_old_or_new_and_every_ack_holds() {
    let fixture = Fixture::new().await;
    fixture.versions(3).await;
    let folder = fixture.folder.path();
    for round in 1..=6 {
        let acked = acks_until_killed(folder, round);
        let registry = open(folder).await;
        let (last, _) = acked.last().unwrap();
        let generation = registry.generation().await.unwrap();
        // At most one change was under way when the child died.
        assert!(
            (*last..=last + 1).contains(&generation),
            "{generation} after ack {last}"
        );
        let history = registry.history(&model()).await.unwrap();
        let generations: Vec<i64> = history.iter().map(|event| event.generation).collect();
        assert_eq!(generations, (1..=generation).collect::<Vec<i64>>());
        let release = registry.release(&model()).await.unwrap();
        assert_eq!(release.champion(), history.last().unwrap().to);
        for (_, digest) in &acked {
            registry.get_artifact(digest).await.unwrap();
        }
        assert_every_visible_artifact_is_whole(folder);
        registry
            .sweep_unfinished_artifacts(i64::MAX / 2)
            .await
            .unwrap();
        assert_eq!(staged_files(folder), 0);
        registry.close().await;
    }
}

fn artifact_files(folder: &Path) -> Vec<std::path::PathBuf> {
    let shards = std::fs::read_dir(folder.join("artifacts/sha256")).unwrap();
    let files = shards.flat_map(|shard| std::fs::read_dir(shard.unwrap().path()).unwrap());
    files.map(|file| file.unwrap().path()).collect()
}

fn assert_every_visible_artifact_is_whole(folder: &Path) {
    for file in artifact_files(folder) {
        if let Ok(digest) = file
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .parse::<Digest>()
        {
            assert_eq!(Digest::of(&std::fs::read(&file).unwrap()), digest);
        }
    }
}

fn staged_files(folder: &Path) -> usize {
    let files = artifact_files(folder);
    files
        .iter()
        .filter(|file| file.to_string_lossy().contains('#'))
        .count()
}

#[tokio::test]
async fn a_torn_tail_of_the_log_loses_nothing_committed() {
    let fixture = Fixture::new().await;
    fixture.versions(3).await;
    fixture.set(&AliasName::champion(), None, Some(1)).await;
    let before = fixture.registry.history(&model()).await.unwrap();

    // The files as a crash would leave them: the log not yet folded in, its last write torn.
    let crashed = tempfile::tempdir().unwrap();
    for name in ["registry.db", "registry.db-wal"] {
        let copied = std::fs::copy(fixture.folder.path().join(name), crashed.path().join(name));
        copied.unwrap();
    }
    let log = crashed.path().join("registry.db-wal");
    let mut bytes = std::fs::read(&log).unwrap();
    assert!(!bytes.is_empty(), "the log holds what was committed");
    let torn: Vec<u8> = bytes[bytes.len() - 4120..][..2000].to_vec();
    bytes.extend(torn);
    std::fs::write(&log, bytes).unwrap();

    let registry = open(crashed.path()).await;
    assert_eq!(registry.history(&model()).await.unwrap(), before);
    assert_eq!(registry.versions(&model()).await.unwrap().len(), 3);
}
