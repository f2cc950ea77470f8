//! Runs one of these tests as a child under `strace`: to see its system calls, or to make one of them fail,
//! wait or end in a kill. So every step that reaches the disk is tested without a hook in the program.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a system call is made to do, in `strace`'s words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inject {
    /// Names of system calls, with commas.
    pub(crate) calls: &'static str,
    /// `signal=KILL`, `error=EIO`, `delay_enter=1000`.
    pub(crate) effect: &'static str,
    /// Which of the calls of a thread, from 1: `7`, `7+`.
    pub(crate) when: String,
    /// Calls on these files alone; on all where there is none.
    pub(crate) files: Vec<PathBuf>,
}

/// The child is the ignored test `test`, which finds `folder` in the variable `LOOPGATE_CHILD`.
pub(crate) fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("LOOPGATE_CHILD", folder)
        .stdin(Stdio::null());
    command
}

/// The folder that a child is to work in.
pub(crate) fn folder_of_child() -> PathBuf {
    std::env::var_os("LOOPGATE_CHILD").unwrap().into()
}

/// Whether processes may be traced here; where not, the caller's test says so and passes.
pub(crate) fn is_there() -> bool {
    let tried = Command::new("strace")
        .args(["-f", "-o", "/dev/null", "--seccomp-bpf", "true"])
        .stderr(Stdio::null())
        .status();
    let there = tried.is_ok_and(|status| status.success());
    if !there {
        println!("SKIPPED: strace cannot be had, or may not trace");
    }
    there
}

/// The same child, with these system calls made to fail.
pub(crate) fn injected(child: &Command, inject: &Inject) -> Command {
    let Inject {
        calls,
        effect,
        when,
        files,
    } = inject;
    // Not with `--seccomp-bpf`: strace 6.1 then delivers no signal.
    let mut strace = traced(child, &["-o", "/dev/null", "-e", &format!("trace={calls}")]);
    strace.args(["-e", &format!("inject={calls}:{effect}:when={when}")]);
    for file in files {
        strace.arg("-P").arg(file);
    }
    with_child(strace, child)
}

/// The same child, its system calls on files written to `trace`.
pub(crate) fn recorded(child: &Command, trace: &Path) -> Command {
    let calls = "trace=openat,close,write,pwrite64,writev,pwritev,ftruncate,lseek,fsync,fdatasync,\
        rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,link,linkat,copy_file_range,sendfile";
    let mut strace = traced(
        child,
        &["--seccomp-bpf", "-xx", "-s", "16777216", "-e", calls],
    );
    strace.arg("-o").arg(trace);
    with_child(strace, child)
}

fn traced(child: &Command, options: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-q"]);
    strace.args(options);
    let set = child
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    strace.envs(set).stdin(Stdio::null());
    strace
}

fn with_child(mut strace: Command, child: &Command) -> Command {
    strace.arg(child.get_program()).args(child.get_args());
    strace
}

/// One moment of a trace.
#[derive(Debug)]
pub(crate) enum Moment {
    /// A thread has begun to bring a file to disk.
    SyncStarts {
        /// The thread.
        thread: u32,
        /// The file.
        fd: i32,
    },
    /// A call has come back without an error.
    Done(Call),
}

/// A call that has succeeded.
#[derive(Debug)]
pub(crate) struct Call {
    /// Who called.
    pub(crate) thread: u32,
    /// The name of the call.
    pub(crate) name: String,
    /// All arguments as they were printed.
    pub(crate) text: String,
    /// The arguments that are strings.
    pub(crate) strings: Vec<Vec<u8>>,
    /// What it gave back.
    pub(crate) answer: i64,
}

impl Call {
    /// The first argument, where it is a number.
    pub(crate) fn fd(&self) -> Option<i32> {
        self.text.split(',').next()?.trim().parse().ok()
    }

    /// The last argument.
    pub(crate) fn last(&self) -> Option<u64> {
        self.text.rsplit(',').next()?.trim().parse().ok()
    }

    /// A string argument as a path.
    pub(crate) fn path(&self, index: usize) -> &Path {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(&self.strings[index]))
    }
}

/// Reads what [`recorded`] had written.
pub(crate) fn read(trace: &Path) -> Vec<Moment> {
    let text = std::fs::read_to_string(trace).unwrap();
    let mut begun: HashMap<u32, String> = HashMap::new();
    let mut moments = Vec::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else {
            continue;
        };
        let (thread, rest): (u32, _) = (thread.parse().unwrap(), rest.trim_start());
        if let Some(start) = rest.strip_suffix(" <unfinished ...>") {
            moments.extend(sync_starts(thread, start));
            begun.insert(thread, start.to_owned());
        } else if let Some((_, end)) = rest.strip_prefix("<... ").and_then(|it| it.split_once('>'))
        {
            let whole = format!("{}{end}", begun.remove(&thread).unwrap());
            moments.extend(done(thread, &whole));
        } else {
            moments.extend(sync_starts(thread, rest));
            moments.extend(done(thread, rest));
        }
    }
    moments
}

fn sync_starts(thread: u32, text: &str) -> Option<Moment> {
    let arguments = text
        .strip_prefix("fsync(")
        .or(text.strip_prefix("fdatasync("))?;
    let digits = arguments.split(|it: char| !it.is_ascii_digit()).next()?;
    let fd = digits.parse().unwrap();
    Some(Moment::SyncStarts { thread, fd })
}

fn done(thread: u32, text: &str) -> Option<Moment> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, answer) = rest.rsplit_once(") ")?;
    let answer = answer.trim_start().strip_prefix("= ")?;
    let answer = answer.split(' ').next()?.parse().ok()?;
    if answer < 0 {
        return None;
    }
    let quoted = arguments.split('"').skip(1).step_by(2);
    Some(Moment::Done(Call {
        thread,
        name: name.to_owned(),
        text: arguments.to_owned(),
        strings: quoted.map(bytes).collect(),
        answer,
    }))
}

/// `\x41\x42` → `AB`.
fn bytes(hex: &str) -> Vec<u8> {
    let digits = hex.split("\\x").skip(1);
    digits
        .map(|byte| u8::from_str_radix(byte, 16).unwrap())
        .collect()
}
