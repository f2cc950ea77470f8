//! The trial of a model file in a child process: what a file does to whoever reads it, it does to
//! that process.
//!
//! The gateway runs itself again as `loopgate check-model`, with the bytes in a memory file as its
//! standard input, so that no path can change under it. The child bounds its own memory and
//! processor time, then checks the file, loads it with the engines, compares and times them, and
//! runs each batch size. Its verdict is one line of JSON; whatever else it does is a refusal. It is
//! always waited for, and dies with the thread that started it.
//! Costs a start of this program, some 50 ms, beside the trial, which is not made a second time.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use engine::{
    CheckError, EngineKind, LoadError, Model, OnnxFile, OnnxLimits, ParityReport, RunError, Tensor,
    sample_inputs,
};
use registry::Digest;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, Signal, setrlimit};
use serde::{Deserialize, Serialize};

use super::Artifact;
use crate::config::EngineChoice;

/// Rows of the batches that a version is run with before it serves: one, a few, many.
const BATCHES: [usize; 3] = [1, 8, 64];
/// Batches that the engines are compared on; tract needs milliseconds for a row of many trees.
const COMPARED: usize = 2;
/// The child's niceness, that of the loaders: on busy cores less would leave it next to nothing.
const CHILD_NICE: i32 = 5;
/// Bytes of a verdict: a signature and three trials fit many times over.
const VERDICT_BYTES_MAX: u64 = 4 << 20;
/// What the child needs of our environment: where the library of ONNX Runtime is looked for.
const PASSED_ON: [&str; 4] = ["LOOPGATE_ORT_LIB", "HOME", "LD_LIBRARY_PATH", "PATH"];

/// What a file may cost the child that tries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrialLimits {
    /// Bytes of address space beyond what the child has before it reads the file.
    pub memory_bytes_max: u64,
    /// Longest trial by the clock on the wall.
    pub timeout: Duration,
    /// Longest trial in processor time.
    pub cpu: Duration,
}

impl TrialLimits {
    /// A small file has no business taking much: a graph of 152 bytes can ask for 287 MB. So this
    /// much for any file, and some multiples of its own size, within the limit.
    fn memory_bytes(&self, file_bytes: usize) -> u64 {
        const ANY_FILE: u64 = 256 << 20;
        const TIMES_ITS_SIZE: u64 = 12;
        let worth = ANY_FILE + TIMES_ITS_SIZE * file_bytes as u64;
        worth.min(self.memory_bytes_max)
    }
}

/// What a good file's trial found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Passed {
    /// Hash of the bytes that were tried.
    digest: Digest,
    /// The engine that is to run them.
    pub engine: EngineKind,
    /// How the engines compared, where one was to be chosen and made-up inputs could tell.
    pub parity: Option<ParityReport>,
    /// Whether it ran on made-up inputs of every batch size.
    pub runs: bool,
}

/// What the child says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Passed(Passed),
    Refused(String),
}

/// Why a file did not pass its trial.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrialError {
    #[error("{0}")]
    Refused(String),
    #[error("{0} while it was tried in a child process")]
    Crashed(Ended),
    #[error("not tried within {} ms", timeout.as_millis())]
    Late { timeout: Duration },
    #[error("the child process that tries models gave no verdict on these bytes")]
    NoVerdict,
    #[error("no child process to try it in: {0}")]
    Start(#[from] std::io::Error),
}

impl TrialError {
    /// Whether trying again may help: not where the file is at fault.
    pub(crate) fn may_pass(&self) -> bool {
        match self {
            Self::Late { .. } | Self::Start(_) => true,
            Self::Refused(_) | Self::Crashed(_) | Self::NoVerdict => false,
        }
    }
}

/// How a child without a verdict ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended(ExitStatus);

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const OVER_CPU: i32 = Signal::XCPU.as_raw();
        match (self.0.signal(), self.0.code()) {
            (Some(OVER_CPU), _) => f.write_str("ran out of processor time"),
            (Some(signal), _) => write!(f, "crashed: signal {signal}"),
            (None, code) => write!(f, "ended without a verdict: status {code:?}"),
        }
    }
}

/// What has passed, so that a version that comes back is not tried again. Shared by the loaders, who
/// hold it for a look only.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verdicts(Arc<Mutex<VecDeque<(EngineChoice, Passed)>>>);

/// Verdicts that are kept; a replaced one costs a trial.
const VERDICTS_MAX: usize = 256;

impl Verdicts {
    /// The verdict on the bytes, from before or from a trial now. Blocks for as long as that takes.
    ///
    /// # Errors
    /// As [`try_file`].
    pub(crate) fn on(
        &self,
        file: &Artifact,
        engine: EngineChoice,
        limits: &TrialLimits,
    ) -> Result<Passed, TrialError> {
        let known = |(tried, passed): &&(EngineChoice, Passed)| {
            *tried == engine && passed.digest == file.digest
        };
        let before = self.kept().iter().find(known).cloned();
        if let Some((_, passed)) = before {
            return Ok(passed);
        }
        let passed = try_file(file, engine, limits)?;
        let mut kept = self.kept();
        if kept.len() == VERDICTS_MAX {
            kept.pop_front();
        }
        kept.push_back((engine, passed.clone()));
        Ok(passed)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(EngineChoice, Passed)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tries the bytes in a child process. Blocks for as long as that takes.
///
/// # Errors
/// When the file is refused, crashes the child, costs it too much, or no child could be started.
fn try_file(
    file: &Artifact,
    engine: EngineChoice,
    limits: &TrialLimits,
) -> Result<Passed, TrialError> {
    if cfg!(test) {
        // The unit tests' own program has no such command: there the trial is made in place.
        let judged = judge(Arc::clone(&file.bytes), engine);
        return judged.map_err(|error| TrialError::Refused(error.to_string()));
    }
    let mut running = Running::start(&file.bytes, engine, limits)?;
    let said = running.listen(limits.timeout)?;
    let ended = running.child.wait()?;
    if !ended.success() {
        return Err(TrialError::Crashed(Ended(ended)));
    }
    match serde_json::from_slice(&said) {
        Ok(Verdict::Refused(reason)) => Err(TrialError::Refused(reason)),
        Ok(Verdict::Passed(passed)) if passed.digest == file.digest => Ok(passed),
        Ok(Verdict::Passed(_)) | Err(_) => Err(TrialError::NoVerdict),
    }
}

/// A child at work. However it is let go of, it is killed and waited for: no zombie is left.
struct Running {
    child: Child,
}

impl Running {
    fn start(
        bytes: &[u8],
        engine: EngineChoice,
        limits: &TrialLimits,
    ) -> Result<Self, std::io::Error> {
        let mut file = File::from(memfd_create("loopgate-model", MemfdFlags::CLOEXEC)?);
        file.write_all(bytes)?;
        file.rewind()?;
        // The running program itself, whatever lies at its path by now.
        let child = Command::new("/proc/self/exe")
            .arg("check-model")
            .args(["--engine", engine.as_str()])
            .arg("--memory-bytes-max")
            .arg(limits.memory_bytes(bytes.len()).to_string())
            .arg("--cpu-seconds-max")
            .arg(limits.cpu.as_secs().max(1).to_string())
            .env_clear()
            .envs(
                PASSED_ON
                    .iter()
                    .filter_map(|name| Some((name, std::env::var_os(name)?))),
            )
            // The allocator's reserve would be memory that no limit covers.
            .env("MIMALLOC_ARENA_RESERVE", "0")
            .current_dir("/")
            .stdin(file)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self { child })
    }

    /// What the child says until it ends or `timeout` has passed.
    fn listen(&mut self, timeout: Duration) -> Result<Vec<u8>, TrialError> {
        let stdout = self.child.stdout.take();
        let stdout = stdout.expect("standard output is piped and taken once");
        let (tell, told) = sync_channel(1);
        let listener = std::thread::Builder::new()
            .name("loopgate-trial".to_owned())
            .spawn(move || drop(tell.send(read(stdout))))?;
        let said = told.recv_timeout(timeout);
        if said.is_err() {
            // Ends the pipe, and with it the listener.
            drop(self.child.kill());
        }
        drop(listener.join());
        match said {
            Ok(said) => Ok(said?),
            Err(RecvTimeoutError::Timeout) => Err(TrialError::Late { timeout }),
            Err(RecvTimeoutError::Disconnected) => Err(TrialError::NoVerdict),
        }
    }
}

fn read(stdout: ChildStdout) -> std::io::Result<Vec<u8>> {
    let mut said = Vec::new();
    // Closing the pipe ends a child that has more to say.
    stdout.take(VERDICT_BYTES_MAX).read_to_end(&mut said)?;
    Ok(said)
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended and waited for already where all went well: then both fail, which is fine.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the child is told.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckModelArgs {
    #[arg(long, value_parser = EngineChoice::parse)]
    engine: EngineChoice,
    #[arg(long)]
    memory_bytes_max: u64,
    #[arg(long)]
    cpu_seconds_max: u64,
}

/// The child: reads a model from standard input and prints its verdict.
///
/// # Errors
/// When its limits cannot be set, or it cannot read or write.
pub(crate) fn check_model(args: &CheckModelArgs) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Serving goes first. Refused only where a priority is set already.
    rustix::process::setpriority_process(None, CHILD_NICE).ok();
    limit(Resource::Core, 0)?;
    limit(Resource::Cpu, args.cpu_seconds_max)?;
    // The library is ours and trusted; what it maps does not count against the file.
    drop(engine::onnx_runtime_available());
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes)?;
    limit(Resource::As, mapped_bytes()? + args.memory_bytes_max)?;
    let verdict = match judge(bytes.into(), args.engine) {
        Ok(passed) => Verdict::Passed(passed),
        Err(error) => Verdict::Refused(error.to_string()),
    };
    let mut said = serde_json::to_vec(&verdict)?;
    said.push(b'\n');
    std::io::stdout().write_all(&said)?;
    Ok(())
}

fn limit(resource: Resource, most: u64) -> std::io::Result<()> {
    // One more for the hard limit: at that of processor time the signal would not say why.
    let limit = Rlimit {
        current: Some(most),
        maximum: Some(most + 1),
    };
    Ok(setrlimit(resource, limit)?)
}

/// Address space of this process.
fn mapped_bytes() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kib = size.and_then(|size| size.trim().strip_suffix(" kB"));
    Ok(kib.context("the kernel says no size")?.parse::<u64>()? << 10)
}

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
enum JudgeError {
    #[error(transparent)]
    Check(#[from] CheckError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("a first run failed: {0}")]
    FirstRun(#[from] RunError),
}

/// Checks, loads, compares and runs.
fn judge(bytes: Arc<[u8]>, engine: EngineChoice) -> Result<Passed, JudgeError> {
    let digest = Digest::of(&bytes);
    let file = OnnxFile::check(bytes, &OnnxLimits::default())?;
    let batches = batches(&file);
    let (model, parity) = match engine {
        EngineChoice::Only(kind) => (Model::load(&file, kind)?, None),
        EngineChoice::Auto => match Model::load_auto(&file, &batches[..COMPARED]) {
            Ok((model, parity)) => (model, Some(parity)),
            Err(error) => (uncompared(&file, error)?, None),
        },
    };
    let mut session = model.session()?;
    let mut runs = true;
    for (k, inputs) in batches.iter().enumerate() {
        match session.run(inputs) {
            Err(RunError::Engine { .. }) => runs = false,
            // One row has to fit; that many do not is for the rows of a request to bound.
            Err(RunError::Memory { .. }) if k > 0 => runs = false,
            outputs => drop(outputs?),
        }
    }
    Ok(Passed {
        digest,
        engine: model.kind(),
        parity,
        runs,
    })
}

/// Made-up inputs suit not every model: one knows two sample rates of sound, another wants pictures
/// whose sides divide by 32. What ONNX Runtime loads is then served by it, without a comparison.
fn uncompared(file: &OnnxFile, error: LoadError) -> Result<Model, LoadError> {
    let is_unsuited = match &error {
        LoadError::NoEngine { trials } => trials.iter().all(|trial| !trial.wants_memory),
        _ => false,
    };
    if !is_unsuited {
        return Err(error);
    }
    Model::load(file, EngineKind::OnnxRuntime).map_err(|_| error)
}

/// Inputs of each batch size; of one size only where the model takes one size only.
pub(super) fn batches(file: &OnnxFile) -> [Vec<Tensor>; BATCHES.len()] {
    let mut seed = 0;
    BATCHES.map(|rows| {
        seed += 1;
        sample_inputs(file.signature(), rows, seed)
    })
}

#[cfg(test)]
mod tests;
