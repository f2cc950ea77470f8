//! A trainer that misbehaves is bounded, reaped and told of; nothing of it stays.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use monitor::launch::{LaunchError, Launcher, Progress, RunOrder, TrainerExit, Training};
use tempfile::TempDir;

const ORDER: RunOrder = RunOrder {
    trigger: 42,
    as_of_ms: 1_362_096_000_000,
    seed: 7,
};

/// Long enough to end only what hangs; nothing waits for it otherwise.
const DEADLINE: Duration = Duration::from_secs(120);

fn program(folder: &Path, script: &str) -> PathBuf {
    let path = folder.join("trainer.sh");
    // Written by another process: a descriptor of ours would be inherited by what another test
    // starts just now, and what somebody has open for writing cannot be run.
    let written = Command::new("sh")
        .args(["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""])
        .arg(&path)
        .arg(format!("#!/bin/sh\n{script}\n"))
        .status();
    assert!(written.unwrap().success());
    path
}

fn launcher(folder: &TempDir, script: &str) -> Launcher {
    Launcher {
        program: program(folder.path(), script),
        project_dir: folder.path().join("a project; with $(touch oops) `quotes'"),
        data_dir: folder.path().join("data"),
        model: "delay".parse().unwrap(),
        deadline: DEADLINE,
        log_bytes_max: 64 << 10,
        memory_bytes_max: None,
    }
}

async fn end_of(training: &mut Training) -> TrainerExit {
    training.ended().await;
    match training.poll() {
        Progress::Exited(exit) => exit,
        Progress::Running => panic!("ended, but still running"),
    }
}

async fn run(launcher: &Launcher) -> (TrainerExit, String) {
    let mut training = launcher.start(&ORDER).unwrap();
    let exit = end_of(&mut training).await;
    let log = fs::read(training.log()).unwrap();
    (exit, String::from_utf8_lossy(&log).into_owned())
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A zombie is gone for everybody but its parent.
    !stat.is_empty() && stat.rsplit(')').next().unwrap().trim_start().as_bytes()[0] != b'Z'
}

/// A killed process is not gone at once: waits for what was set off already.
fn gone(pid: u32) -> bool {
    let began = Instant::now();
    while alive(pid) {
        if began.elapsed() > DEADLINE {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[tokio::test]
async fn every_argument_arrives_as_it_is_and_no_shell_reads_it() {
    let folder = TempDir::new().unwrap();
    let launcher = launcher(&folder, r#"for a in "$@"; do echo "[$a]"; done"#);
    let (exit, log) = run(&launcher).await;
    assert_eq!(exit, TrainerExit::Code(0));
    let expected: Vec<String> = launcher
        .arguments(&ORDER)
        .iter()
        .map(|argument| format!("[{}]", argument.to_str().unwrap()))
        .collect();
    assert_eq!(log.lines().collect::<Vec<_>>(), expected);
    assert_eq!(expected[0], "[run]");
    assert_eq!(expected.last().unwrap(), "[--exit-with-stdin]");
    assert!(!folder.path().join("oops").exists());
}

#[tokio::test]
async fn only_the_listed_variables_are_passed_on() {
    let folder = TempDir::new().unwrap();
    let (_, log) = run(&launcher(&folder, "env")).await;
    let listed = [
        "PATH",
        "HOME",
        "RUST_LOG",
        "LOOPGATE_ORT_LIB",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
    ];
    // The shell adds these itself.
    let own = ["PWD", "SHLVL", "_", "OLDPWD"];
    for line in log.lines() {
        let name = line.split('=').next().unwrap();
        let of_bucket = name.starts_with("AWS_");
        assert!(
            listed.contains(&name) || own.contains(&name) || of_bucket,
            "{line}"
        );
    }
    assert!(log.contains("PATH="));
}

#[tokio::test]
async fn a_log_for_which_there_is_no_space_holds_up_no_trainer() {
    let folder = TempDir::new().unwrap();
    let script = "head -c 1000000 /dev/zero; echo said > \"$TMPDIR/said\"; exit 4";
    let launcher = launcher(
        &folder,
        &script.replace("$TMPDIR", folder.path().to_str().unwrap()),
    );
    fs::create_dir_all(launcher.data_dir.join("runs")).unwrap();
    let mut training = launcher.start(&ORDER).unwrap();
    let log = training.log().to_owned();
    assert_eq!(end_of(&mut training).await, TrainerExit::Code(4));
    fs::remove_file(&log).unwrap();
    fs::remove_file(folder.path().join("said")).unwrap();
    // Every write to it finds no space.
    std::os::unix::fs::symlink("/dev/full", &log).unwrap();
    let mut training = launcher.start(&ORDER).unwrap();
    assert_eq!(end_of(&mut training).await, TrainerExit::Code(4));
    assert!(folder.path().join("said").exists());
}

#[tokio::test]
async fn codes_and_signals_are_told_apart() {
    let folder = TempDir::new().unwrap();
    let (exit, log) = run(&launcher(&folder, "echo no rows >&2; exit 3")).await;
    assert_eq!((exit, log.as_str()), (TrainerExit::Code(3), "no rows\n"));
    let (exit, _) = run(&launcher(&folder, "kill -9 $$")).await;
    assert_eq!(exit, TrainerExit::Signal(9));
}

#[tokio::test]
async fn a_trainer_that_hangs_is_killed_with_all_that_it_started() {
    let folder = TempDir::new().unwrap();
    let launcher = Launcher {
        deadline: Duration::from_millis(300),
        ..launcher(&folder, "trap '' TERM INT\nsleep 600 &\necho $!\nwait")
    };
    let (exit, log) = run(&launcher).await;
    assert_eq!(exit, TrainerExit::DeadlineExceeded(launcher.deadline));
    // Killed before it could say so on a slow machine, and then it started nothing.
    if let Ok(child) = log.trim().parse() {
        assert!(gone(child));
    }
}

#[tokio::test]
async fn a_child_left_behind_neither_lives_on_nor_holds_up_the_end() {
    let folder = TempDir::new().unwrap();
    let (exit, log) = run(&launcher(&folder, "sleep 600 &\necho $!")).await;
    assert_eq!(exit, TrainerExit::Code(0));
    assert!(gone(log.trim().parse().unwrap()));
}

#[tokio::test]
async fn a_flood_keeps_its_beginning_and_its_end_and_blocks_nobody() {
    let folder = TempDir::new().unwrap();
    let script = "echo first; head -c 5000000 /dev/zero | tr '\\0' x; echo; echo last";
    let launcher = launcher(&folder, script);
    let (exit, log) = run(&launcher).await;
    assert_eq!(exit, TrainerExit::Code(0));
    assert!(log.starts_with("first\n") && log.ends_with("last\n"));
    assert!(log.contains("bytes left out"));
    assert!(
        log.len() as u64 <= launcher.log_bytes_max + 100,
        "{} bytes",
        log.len()
    );
}

#[tokio::test]
async fn standard_input_stays_open_until_the_run_is_stopped() {
    let folder = TempDir::new().unwrap();
    let seen = folder.path().join("seen");
    // As the trainer does: the end of standard input is the end of the parent.
    let script = format!("read line\necho ended > {}", seen.display());
    let training = launcher(&folder, &script).start(&ORDER).unwrap();
    let pid = training.pid();
    assert_eq!(training.poll(), Progress::Running);
    training.stop().await;
    assert!(!alive(pid), "killed and reaped");
    assert!(!seen.exists(), "its input had not ended");
}

#[tokio::test]
async fn a_program_that_is_not_there_is_an_error_at_once() {
    let folder = TempDir::new().unwrap();
    let launcher = Launcher {
        program: folder.path().join("nowhere"),
        ..launcher(&folder, "")
    };
    let error = launcher.start(&ORDER).unwrap_err();
    assert!(matches!(error, LaunchError::Spawn { .. }), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
}

#[tokio::test]
async fn a_limit_on_memory_holds() {
    let folder = TempDir::new().unwrap();
    // Until it fails: the limit is set on a process that runs already.
    let script = "while dd if=/dev/zero of=/dev/null bs=1G count=1; do :; done; exit 1";
    let launcher = Launcher {
        memory_bytes_max: Some(64 << 20),
        ..launcher(&folder, script)
    };
    let (exit, log) = run(&launcher).await;
    assert_eq!(exit, TrainerExit::Code(1), "{log}");
    assert!(log.contains("memory"), "{log}");
}

#[tokio::test]
async fn old_logs_of_the_model_go_and_others_stay() {
    let folder = TempDir::new().unwrap();
    let launcher = launcher(&folder, "echo new");
    let runs = folder.path().join("data/runs");
    fs::create_dir_all(&runs).unwrap();
    for trigger in 1000..1150 {
        fs::write(launcher.log_path(trigger), "old").unwrap();
    }
    fs::write(runs.join("delay-static-00000001.log"), "another model's").unwrap();
    run(&Launcher {
        model: "delay".parse().unwrap(),
        ..launcher.clone()
    })
    .await;
    assert!(runs.join("delay-static-00000001.log").exists());
    assert!(!launcher.log_path(1000).exists());
    assert!(launcher.log_path(1149).exists());
    assert_eq!(fs::read_dir(&runs).unwrap().count(), 101);
}
