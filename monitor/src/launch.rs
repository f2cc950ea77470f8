//! The trainer as a child process that cannot hurt the gateway.
//!
//! Arguments are a list, never a shell's line; the environment is emptied but
//! for an allow-list; the child has its own process group, a lower priority, a
//! bounded log, a deadline, and is reaped. It holds our pipe as its standard
//! input: when we die, however, that reads as ended and it stops itself.
//!
//! One thread per run, blocked in its own small runtime.

mod log;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use registry::ModelName;
use rustix::process::{Pid, Resource, Rlimit, Signal};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use self::log::BoundedLog;
use crate::policy::TriggerPolicy;

pub(crate) use self::log::tail_of;

/// The variables that a trainer may see, and those that begin with `AWS_`: sealed files may lie in a bucket.
const ENVIRONMENT: [&str; 7] = [
    "PATH",
    "HOME",
    "RUST_LOG",
    "LOOPGATE_ORT_LIB",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "SSL_CERT_FILE",
];

/// Training yields the processor to serving.
const NICENESS: i32 = 10;

/// How long what is left in the pipe may take to read once the trainer is gone.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// Starts the trainer of one model.
#[derive(Clone, Debug)]
pub struct Launcher {
    /// The trainer's program.
    pub program: PathBuf,
    /// The user's project.
    pub project_dir: PathBuf,
    /// The data folder; logs go to `runs/` in it.
    pub data_dir: PathBuf,
    /// The model to train.
    pub model: ModelName,
    /// Wall time after which the process group is killed.
    pub deadline: Duration,
    /// Most bytes of output kept: the first half and the last.
    pub log_bytes_max: u64,
    /// Most bytes of data that the trainer may allocate.
    pub memory_bytes_max: Option<u64>,
}

/// One run to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunOrder {
    /// The decision that it carries out.
    pub trigger: i64,
    /// The instant from which it looks at the data.
    pub as_of_ms: i64,
    /// Seed of everything random in it.
    pub seed: u64,
}

/// Why a trainer could not be started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The log could not be made.
    #[error("run log {} cannot be written: {source}", path.display())]
    Log {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The program could not be started.
    // Its name alone: whoever asks for a training need not know where it lies.
    #[error("trainer {} cannot be started: {source}", Path::new(program.file_name().unwrap_or_default()).display())]
    Spawn {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No thread or pipe to watch it with.
    #[error("trainer cannot be watched: {0}")]
    Watch(#[source] io::Error),
}

/// How a trainer ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrainerExit {
    /// By itself, with this code.
    #[error("ended with code {0}")]
    Code(i32),
    /// By a signal that we did not send.
    #[error("was killed by signal {0}")]
    Signal(i32),
    /// Killed after the deadline.
    #[error("was killed after {} s", .0.as_secs_f64())]
    DeadlineExceeded(Duration),
    /// Killed because it is no longer wanted.
    #[error("was stopped")]
    Stopped,
    /// Its end could not be seen.
    #[error("could not be watched: {0}")]
    Lost(String),
}

/// Where a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// At work.
    Running,
    /// Gone, with all that it had started.
    Exited(TrainerExit),
}

/// A trainer at work. Dropped, it is killed.
#[derive(Debug)]
pub struct Training {
    pid: u32,
    log: PathBuf,
    exit: Arc<OnceLock<TrainerExit>>,
    ended: Option<oneshot::Receiver<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Launcher {
    /// A launcher with the limits of the policy.
    pub fn new(
        policy: &TriggerPolicy,
        program: PathBuf,
        folders: Folders,
        model: ModelName,
    ) -> Launcher {
        Launcher {
            program,
            project_dir: folders.project,
            data_dir: folders.data,
            model,
            deadline: policy.run_deadline.to_std(),
            log_bytes_max: policy.run_log_bytes_max.get(),
            memory_bytes_max: policy.run_memory_bytes_max.map(Into::into),
        }
    }

    /// The arguments of a run, each as the trainer gets it.
    pub fn arguments(&self, order: &RunOrder) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["run".into()];
        let options: [(&str, OsString); 6] = [
            ("--project", self.project_dir.clone().into()),
            ("--data", self.data_dir.clone().into()),
            ("--model", self.model.as_str().into()),
            ("--trigger", order.trigger.to_string().into()),
            ("--as-of-ms", order.as_of_ms.to_string().into()),
            ("--seed", order.seed.to_string().into()),
        ];
        for (name, value) in options {
            arguments.extend([name.into(), value]);
        }
        arguments.push("--exit-with-stdin".into());
        arguments
    }

    /// Starts a run; returns once the program is running.
    ///
    /// # Errors
    /// The log cannot be made, or the program not be started.
    pub fn start(&self, order: &RunOrder) -> Result<Training, LaunchError> {
        let log = self.log_path(order.trigger);
        let file = log::open(&log, &self.model).map_err(|source| LaunchError::Log {
            path: log.clone(),
            source,
        })?;
        let (stop, stopped) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let exit = Arc::new(OnceLock::new());
        // One message: whether the program runs. The thread never waits for it.
        let (tell, told) = sync_channel(1);
        let (launcher, order, thread_exit) = (self.clone(), *order, Arc::clone(&exit));
        let watcher = move || {
            let started = launcher.start_watched(&order, file, stopped);
            let (runtime, watch) = match started {
                Ok((runtime, watch)) => (runtime, watch),
                Err(error) => return drop(tell.send(Err(error))),
            };
            let _ = tell.send(Ok(watch.child.id().unwrap_or_default()));
            let seen = runtime.block_on(watch.until_gone());
            // Set once, here; the receiver may be gone, and then nobody waits.
            let _ = thread_exit.set(seen);
            let _ = end.send(());
        };
        std::thread::Builder::new()
            .name("trainer".into())
            .spawn(watcher)
            .map_err(LaunchError::Watch)?;
        let pid = told
            .recv()
            .map_err(|error| LaunchError::Watch(io::Error::other(error)))??;
        Ok(Training {
            pid,
            log,
            exit,
            ended: Some(ended),
            stop: Some(stop),
        })
    }

    /// On the thread that will watch it: a child belongs to the runtime in which
    /// it was started.
    fn start_watched(
        &self,
        order: &RunOrder,
        log: File,
        stopped: oneshot::Receiver<()>,
    ) -> Result<(Runtime, Watch), LaunchError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(LaunchError::Watch)?;
        let (child, output) = {
            let _context = runtime.enter();
            self.spawn(order)?
        };
        let watch = Watch {
            group: child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())),
            child,
            output,
            log: BoundedLog::new(log, self.log_bytes_max),
            deadline: self.deadline,
            stopped,
        };
        Ok((runtime, watch))
    }

    fn spawn(&self, order: &RunOrder) -> Result<(Child, pipe::Receiver), LaunchError> {
        let (reader, writer) = io::pipe().map_err(LaunchError::Watch)?;
        let errors = writer.try_clone().map_err(LaunchError::Watch)?;
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments(order))
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| may_see(name)))
            .stdin(Stdio::piped())
            .stdout(writer)
            .stderr(errors)
            .process_group(0)
            .kill_on_drop(true);
        let child = command.spawn().map_err(|source| LaunchError::Spawn {
            program: self.program.clone(),
            source,
        })?;
        // Our copies of the writing end close with the command: the reader then
        // ends with the last process that holds one.
        drop(command);
        let output = pipe::Receiver::from_owned_fd(reader.into()).map_err(LaunchError::Watch)?;
        if let Some(pid) = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())) {
            self.limit(pid);
        }
        Ok((child, output))
    }

    /// Best effort: a trainer that has already ended cannot be limited, and one
    /// that runs without limits still has its deadline.
    fn limit(&self, pid: Pid) {
        if let Err(error) = rustix::process::setpriority_pgrp(Some(pid), NICENESS) {
            tracing::debug!(%error, "trainer keeps its priority");
        }
        let set = |resource, bytes| {
            let limit = Rlimit {
                current: Some(bytes),
                maximum: Some(bytes),
            };
            if let Err(error) = rustix::process::prlimit(Some(pid), resource, limit) {
                tracing::warn!(%error, ?resource, "trainer runs without a limit");
            }
        };
        set(Resource::Core, 0);
        if let Some(bytes) = self.memory_bytes_max {
            set(Resource::Data, bytes);
        }
    }

    /// The log of a run.
    pub fn log_path(&self, trigger: i64) -> PathBuf {
        let name = format!("{}-{trigger:08}.log", self.model);
        self.data_dir.join("runs").join(name)
    }
}

fn may_see(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"AWS_") || ENVIRONMENT.iter().any(|known| known.as_bytes() == name)
}

/// The two folders of a run.
#[derive(Clone, Debug)]
pub struct Folders {
    /// The user's project.
    pub project: PathBuf,
    /// The data folder.
    pub data: PathBuf,
}

impl Training {
    /// Where the run is; never waits.
    pub fn poll(&self) -> Progress {
        match self.exit.get() {
            None => Progress::Running,
            Some(exit) => Progress::Exited(exit.clone()),
        }
    }

    /// The trainer's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Waits for its end, which the deadline bounds. May be given up and begun again.
    pub async fn ended(&mut self) {
        if let Some(ended) = &mut self.ended {
            // An error means that the watching thread is gone, and the child with it.
            let _ = ended.await;
            self.ended = None;
        }
    }

    /// Kills it, and waits until it is gone.
    pub async fn stop(mut self) {
        self.stop = None;
        self.ended().await;
    }
}

/// Everything that the watching thread owns.
struct Watch {
    child: Child,
    group: Option<Pid>,
    output: pipe::Receiver,
    log: BoundedLog,
    deadline: Duration,
    stopped: oneshot::Receiver<()>,
}

impl Watch {
    async fn until_gone(mut self) -> TrainerExit {
        // Waiting would close it, and its end tells the trainer that we died.
        let _stdin = self.child.stdin.take();
        let mut copying = Box::pin(copy(self.output, self.log));
        let mut copied = false;
        let deadline = tokio::time::sleep(self.deadline);
        tokio::pin!(deadline);
        let killed = loop {
            tokio::select! {
                biased;
                status = self.child.wait() => break Some(exit_of(status)),
                () = &mut deadline => break None,
                // Told to stop, or the loop that wanted the run is gone.
                _ = &mut self.stopped => {
                    kill(self.group);
                    let _ = self.child.wait().await;
                    break Some(TrainerExit::Stopped);
                }
                () = &mut copying, if !copied => copied = true,
            }
        };
        let exit = match killed {
            Some(exit) => exit,
            None => {
                kill(self.group);
                let _ = self.child.wait().await;
                TrainerExit::DeadlineExceeded(self.deadline)
            }
        };
        // What the trainer itself had started. Its number cannot have gone to
        // another group while a member lives; an empty group is an error unseen.
        kill(self.group);
        if !copied {
            // The end of the log is lost only if a process left the group and
            // holds the pipe.
            let _ = tokio::time::timeout(DRAIN_MAX, copying).await;
        }
        exit
    }
}

fn kill(group: Option<Pid>) {
    if let Some(group) = group {
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
}

fn exit_of(status: io::Result<ExitStatus>) -> TrainerExit {
    use std::os::unix::process::ExitStatusExt as _;
    match status {
        Err(error) => TrainerExit::Lost(error.to_string()),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => TrainerExit::Code(code),
            (None, Some(signal)) => TrainerExit::Signal(signal),
            (None, None) => TrainerExit::Lost(format!("unknown status {status}")),
        },
    }
}

/// Copies the output to the log. A log that cannot be written (disk full) does
/// not stop the reading: the trainer must never block on its own output.
async fn copy(mut output: pipe::Receiver, mut log: BoundedLog) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(read) = output.read(&mut buffer).await {
        if read == 0 {
            break;
        }
        log.push(&buffer[..read]);
    }
}

/// Whether a process is alive and is this trainer. A number that went to another
/// program, and one that ended but was not reaped, are dead.
pub(crate) fn trainer_alive(pid: u32, program: &Path) -> bool {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return false;
    };
    if rustix::process::test_kill_process(process) == Err(rustix::io::Errno::SRCH) {
        return false;
    }
    let name = program.file_name().unwrap_or(program.as_os_str());
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(command) => {
            let name = name.as_encoded_bytes();
            command.windows(name.len().max(1)).any(|part| part == name)
        }
        // No /proc: the signal's answer has to do.
        Err(_) => !Path::new("/proc/self").exists(),
    }
}
