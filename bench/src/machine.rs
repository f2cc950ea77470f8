//! The machine under the figures: what it is, how busy it is, which core runs what, and what a
//! process took of it. Everything is read from `/proc`; cores are given out by `taskset`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Serialize;

use crate::process::first_line;

/// What a figure must be read with.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Conditions {
    pub machine: String,
    pub kernel: String,
    /// Runnable tasks over the last minute, as Linux averages them, when the scenario began.
    pub load_average: f64,
    pub commit: String,
    /// Core of the server and core of the generator, where there were two to give.
    pub cores: Option<(usize, usize)>,
    pub date: String,
    /// How often each figure was taken, and for how many seconds each time, where it takes a set time.
    pub runs: usize,
    pub seconds: f64,
}

impl Conditions {
    pub(crate) fn now(runs: usize, each: Duration) -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let unknown = || "unknown".to_owned();
        let git = |arguments: &[&str]| first_line("git", arguments, Path::new("."));
        let commit = git(&["rev-parse", "--short=12", "HEAD"]);
        // What is recorded meanwhile is no change of what is measured.
        let changed = git(&["status", "--porcelain", "--", ".", ":!docs/benchmarks"]).is_some();
        let commit = commit.map(|commit| commit + if changed { " with changes" } else { "" });
        Self {
            machine: machine(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_average: read("/proc/loadavg")
                .split(' ')
                .next()
                .and_then(|text| text.parse().ok())
                .unwrap_or(0.0),
            commit: commit.unwrap_or_else(unknown),
            cores: Cores::of_machine().map(|cores| (cores.server, cores.generator)),
            date: first_line("date", &["-u", "+%Y-%m-%d"], Path::new(".")).unwrap_or_else(unknown),
            runs,
            seconds: each.as_secs_f64(),
        }
    }

    /// One line for a table's foot.
    pub(crate) fn line(&self) -> String {
        let cores = self.cores.map_or_else(
            || "not pinned".to_owned(),
            |(server, generator)| format!("server on core {server}, generator on core {generator}"),
        );
        let each = match self.seconds {
            0.0 => String::new(),
            seconds => format!(" runs of {seconds} s"),
        };
        format!(
            "N = {}{each}; {}, Linux {}, {cores}, load average {:.2} at the start, commit {}, {}",
            self.runs, self.machine, self.kernel, self.load_average, self.commit, self.date
        )
    }
}

/// The processor's name and how many of it, as Linux tells.
pub(crate) fn machine() -> String {
    let model = cpuinfo("model name").next();
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{model}, {} cores", core_count())
}

/// Cores of the machine, whichever of them this process may use.
fn core_count() -> usize {
    cpuinfo("processor").count().max(1)
}

fn cpuinfo(field: &str) -> impl Iterator<Item = String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let values: Vec<String> = text
        .lines()
        .filter(|line| line.starts_with(field))
        .filter_map(|line| Some(line.split(':').nth(1)?.trim().to_owned()))
        .collect();
    values.into_iter()
}

/// Who runs where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cores {
    pub server: usize,
    pub generator: usize,
}

impl Cores {
    /// The first core and the last, or nothing on a machine of one core.
    pub(crate) fn of_machine() -> Option<Self> {
        let count = core_count();
        (count > 1).then(|| Self {
            server: 0,
            generator: count - 1,
        })
    }
}

/// Keeps this process, and threads that it starts from now on, on one core.
pub(crate) fn pin_self(core: usize) {
    // Without `taskset` the scheduler places it, and the report says how late the generator was.
    let pinned = Command::new("taskset")
        .args(["-cp", &core.to_string(), &std::process::id().to_string()])
        .stdout(Stdio::null())
        .status();
    if !pinned.is_ok_and(|status| status.success()) {
        eprintln!("not pinned to core {core}: no taskset");
    }
}

/// A command for `program` that stays on `core`, where one is given.
pub(crate) fn command_on(core: Option<usize>, program: &Path) -> Command {
    match core {
        Some(core) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Processor time of a process and its children, over all their threads that still live.
pub(crate) fn process_cpu(pid: u32) -> Duration {
    let mut total = Duration::ZERO;
    for process in family(pid) {
        let threads = fs::read_dir(format!("/proc/{process}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            total += run_time(&thread.path().join("schedstat").display().to_string());
        }
    }
    total
}

/// Processor time of each thread of a process, in the order of their ids.
pub(crate) fn threads_cpu(pid: u32) -> Vec<(String, Duration)> {
    let threads = fs::read_dir(format!("/proc/{pid}/task"));
    let mut found: Vec<(u32, String, Duration)> = threads
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|thread| {
            let id = thread.file_name().to_str()?.parse().ok()?;
            let name = fs::read_to_string(thread.path().join("comm")).ok()?;
            let path = thread.path().join("schedstat");
            Some((id, name.trim().to_owned(), run_time(path.to_str()?)))
        })
        .collect();
    found.sort();
    found
        .into_iter()
        .map(|(_, name, cpu)| (name, cpu))
        .collect()
}

/// Processor time of a process's threads whose names begin so.
pub(crate) fn named_threads_cpu(pid: u32, name: &str) -> Duration {
    let threads = threads_cpu(pid).into_iter();
    let named = threads.filter(|(thread, _)| thread.starts_with(name));
    named.map(|(_, cpu)| cpu).sum()
}

/// Processor time of this process's children that have ended, in steps of 10 ms.
pub(crate) fn children_cpu() -> Duration {
    const TICK_MS: u64 = 10;
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name may hold blanks; user and system time of the children are 14 and 15 fields behind it.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok());
    Duration::from_millis((ticks(14).unwrap_or(0) + ticks(15).unwrap_or(0)) * TICK_MS)
}

/// Resident bytes of a process.
pub(crate) fn resident_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmRSS:")
}

/// Resident bytes of a process at their highest so far.
pub(crate) fn peak_resident_bytes(pid: u32) -> u64 {
    status_bytes(pid, "VmHWM:")
}

fn status_bytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(field));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// A process and what descends from it.
fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    let mut next = 0;
    while let Some(&process) = family.get(next) {
        next += 1;
        let threads = fs::read_dir(format!("/proc/{process}/task"));
        for thread in threads.into_iter().flatten().flatten() {
            let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            family.extend(
                children
                    .split_whitespace()
                    .filter_map(|id| id.parse::<u32>().ok()),
            );
        }
    }
    family
}

/// The first number of a `schedstat` file: nanoseconds on a core.
fn run_time(path: &str) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    let first = text.split_whitespace().next();
    Duration::from_nanos(first.and_then(|text| text.parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_worked_has_used_its_core() {
        let pid = std::process::id();
        let before = process_cpu(pid);
        let mut sum = 0u64;
        while process_cpu(pid) <= before {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(sum > 0);
    }

    #[test]
    fn this_process_is_resident_and_has_threads() {
        let pid = std::process::id();
        assert!(resident_bytes(pid) > 1 << 20);
        assert!(!threads_cpu(pid).is_empty());
        assert!(family(pid).contains(&pid));
    }
}
