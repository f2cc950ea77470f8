//! The control thread: which versions serve, how the loops go, what operators ask for.
//!
//! One thread with its own runtime owns all of it: it waits for one event, then applies it. It
//! watches the registry's generation by signal and by timer, ticks the models' loops, and serves
//! the admin interface. Nothing here is on the request path.
//!
//! In replay mode nothing moves but by `POST /v1/clock`: the loops are ticked at the times that it
//! names, after every earlier record has been written. Until what a tick began has settled they are
//! ticked again at that same time, by wall clock, which no decision depends on.

mod away;
mod fleet;
mod last_good;
mod loops;
mod nightly;
mod owner;
mod registrar;
mod sealing;
mod shelf;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use monitor::{LoopStatus, OperatorRequest};
use registry::{ModelName, Registry, RegistryOptions, Version};
use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, Admin, Past};
use crate::config::{ModelConfig, ServeConfig};
use crate::prepare::Loaders;
use crate::repository::Job;
use crate::serve::Core;
use crate::table::{LoadedVersion, Publisher, Seats};

use fleet::Fleet;
use loops::{Loops, Order, Window};
use nightly::{Nightly, Verified};
use owner::{Foundation, Owner};
use shelf::{Shelf, ShelfOptions};

pub(crate) use last_good::NAME as LAST_GOOD;
pub(crate) use loops::RequestError;

/// How often the registry is looked at when nothing is under way.
const IDLE: Duration = Duration::from_millis(100);
/// How often everything is looked at while something is under way.
const BUSY: Duration = Duration::from_millis(25);
/// How often loops are ticked in live mode.
const TICK: Duration = Duration::from_secs(1);
/// The registry's file in the data folder.
pub(crate) const REGISTRY: &str = "registry.db";
/// Commands that may wait; beyond it the admin interface sheds.
const COMMANDS_MAX: usize = 64;

/// What the control thread is asked.
pub(crate) enum Command {
    /// Moves the replayed clock on and runs all that is due.
    Advance {
        now_ms: i64,
        done: oneshot::Sender<Result<Arc<View>, AdvanceError>>,
    },
    /// An operator's request to one loop.
    Request {
        model: ModelName,
        request: OperatorRequest,
        done: oneshot::Sender<Result<LoopStatus, RequestError>>,
    },
}

/// Why the clock was not moved, or moved without its ticks.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdvanceError {
    #[error("the clock is live: only a replay's clock is moved by requests")]
    Live,
    #[error("now_ms {now_ms} is before {clock_ms}, which the clock has reached")]
    Backwards { now_ms: i64, clock_ms: i64 },
    #[error(transparent)]
    Recorder(#[from] crate::recorder::RecorderGone),
}

/// What can be said of loops and fleet, as of the last event.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct View {
    /// Whether something is under way that a replay must wait for.
    pub busy: bool,
    pub now_ms: i64,
    /// The registry's generation.
    pub generation: i64,
    /// The generation that is served.
    pub loaded_generation: i64,
    pub models: BTreeMap<ModelName, LoopStatus>,
    /// What the nightly verification found.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub verification: BTreeMap<ModelName, Verified>,
    /// Whether a night is under way. Nothing that is served waits for it.
    pub verifying: bool,
    /// Loops whose last step failed.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub problems: BTreeMap<ModelName, String>,
    /// Why the registry is away, and the last good release is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_away: Option<String>,
    /// Versions that an alias names and that cannot serve.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub refused: BTreeMap<ModelName, BTreeMap<Version, String>>,
}

/// The way to the control thread.
#[derive(Clone)]
pub(crate) struct Remote {
    pub commands: mpsc::Sender<Command>,
    /// Says that the registry was changed.
    pub changed: Arc<Notify>,
    pub view: watch::Receiver<Arc<View>>,
}

/// What the control thread is made from.
pub(crate) struct ControlOptions {
    pub config: ServeConfig,
    pub seats: Seats,
    pub publisher: Publisher,
    pub core: Arc<Core>,
    /// The files of the command line, which are published already.
    pub files: Vec<Arc<LoadedVersion>>,
    /// Requests to the model repository.
    pub jobs: mpsc::Receiver<Job>,
}

/// The running control thread.
pub(crate) struct ControlThread {
    thread: JoinHandle<()>,
    stop: CancellationToken,
    /// Where the admin interface listens.
    pub admin: SocketAddr,
}

impl ControlThread {
    /// Opens the registry, binds the admin listener and starts the thread.
    ///
    /// # Errors
    /// When the registry cannot be opened or the address not be bound.
    pub(crate) fn start(options: ControlOptions) -> Result<Self> {
        let stop = CancellationToken::new();
        // One message, right after the start.
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("loopgate-control".to_owned())
            .spawn(move || {
                let runtime = match tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(tell.send(Err(error.into()))),
                };
                runtime.block_on(Box::pin(async {
                    match Controlled::open(options, stopped.clone()).await {
                        Ok((controlled, address)) => {
                            drop(tell.send(Ok(address)));
                            controlled.run(stopped).await;
                        }
                        Err(error) => drop(tell.send(Err(error))),
                    }
                }));
            })?;
        let admin = told.recv().context("the control thread ended at once")??;
        Ok(Self {
            thread,
            stop,
            admin,
        })
    }

    /// Ends the thread and with it a training run under way, which counts as failed.
    pub(crate) fn stop(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!("the control thread panicked");
        }
    }
}

/// The thread's parts: the admin interface serves beside the owner of the state.
struct Controlled {
    owner: Owner,
    jobs: mpsc::Receiver<Job>,
    serving: admin::Serving,
    admin: Arc<Admin>,
}

impl Controlled {
    async fn open(options: ControlOptions, stop: CancellationToken) -> Result<(Self, SocketAddr)> {
        let ControlOptions {
            config,
            seats,
            publisher,
            core,
            files,
            jobs,
        } = options;
        let address = config.listeners.admin;
        let listener = admin::bind(address)
            .await
            .with_context(|| format!("admin listener on {address}"))?;
        let address = listener.local_addr()?;
        let (view_sender, view) = watch::channel(Arc::new(View {
            // Until the loops have been looked at, a replay must wait.
            busy: config.project.is_some(),
            ..View::default()
        }));
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let changed = Arc::new(Notify::new());
        let remote = Remote {
            commands,
            changed: Arc::clone(&changed),
            view,
        };
        let admin = Arc::new(Admin {
            core: Arc::clone(&core),
            hosts: config.security.admin_hosts.clone(),
            project: config.project.is_some(),
            registry: OnceLock::new(),
            models: config.models(),
            remote,
            past: Past::new(stop.clone()),
        });
        let loaders = Loaders::start(seats)?;
        let owner = match config.project.clone().zip(core.store.clone()) {
            None => Owner::Files(Box::new(Shelf::new(ShelfOptions {
                config: &config,
                files,
                loaders,
                publisher,
                metrics: Arc::clone(&core.metrics),
            }))),
            Some((project, store)) => {
                let foundation = Foundation {
                    project,
                    store,
                    core,
                    loaders,
                    trial: config.trial,
                    publisher,
                    commands: received,
                    changed,
                    view: view_sender,
                    unconfigured: ModelConfig::default(),
                };
                Owner::of_project(foundation, &admin).await?
            }
        };
        let controlled = Self {
            owner,
            jobs,
            serving: admin::Serving::new(listener, Arc::clone(&admin), stop),
            admin,
        };
        Ok((controlled, address))
    }

    async fn run(self, stop: CancellationToken) {
        let Self {
            owner,
            jobs,
            serving,
            admin,
        } = self;
        let core = Arc::clone(&admin.core);
        tokio::join!(
            serving.serve(),
            owner.run(&admin, jobs, &stop),
            sealing::look_after(core.store.as_ref(), &core.clock, sealing::SEAL, &stop),
        );
        if let Some(registry) = admin.registry.get() {
            registry.close().await;
        }
    }
}

/// The registry of a data folder.
pub(crate) async fn open_registry(data: &Path) -> Result<Registry> {
    let options = RegistryOptions {
        database: data.join(REGISTRY),
        artifacts: data.join("artifacts"),
    };
    Ok(Registry::open(&options).await?)
}

/// A replay goes on from where the registry's history ends: before the first request says what time
/// it is, that is the latest time that is known.
async fn start_replayed_clock(
    core: &Core,
    models: impl Iterator<Item = &ModelName>,
    registry: &Registry,
) -> Result<()> {
    if !core.clock.is_replay() {
        return Ok(());
    }
    for model in models {
        let history = registry.history(model).await?;
        let decisions = registry.decisions(model, None, 1).await?;
        let times = history.iter().map(|event| event.at_ms);
        for at_ms in times.chain(decisions.iter().map(|decision| decision.at_ms)) {
            core.clock.advance(at_ms);
        }
    }
    Ok(())
}

/// The owner of all control state.
struct Control {
    data: PathBuf,
    fleet: Fleet,
    loops: Loops,
    core: Arc<Core>,
    commands: mpsc::Receiver<Command>,
    changed: Arc<Notify>,
    view: watch::Sender<Arc<View>>,
    /// Something was published, or asked for, that the loops have not seen yet.
    fresh: bool,
    ticked: Option<Instant>,
    nightly: Nightly,
}

impl Control {
    async fn run(mut self, stop: &CancellationToken) {
        self.look().await;
        loop {
            let pause = self.pause();
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                prepared = self.fleet.prepared() => {
                    self.fresh |= self.fleet.take(prepared);
                    self.look().await;
                }
                Some(command) = self.commands.recv() => self.obey(command).await,
                () = self.changed.notified() => self.look().await,
                () = tokio::time::sleep(pause) => self.look().await,
            }
        }
        self.loops.shut_down().await;
        self.nightly.shut_down().await;
    }

    fn pause(&self) -> Duration {
        if self.loops.have_problems() {
            return TICK;
        }
        if self.is_busy() { BUSY } else { IDLE }
    }

    fn is_busy(&self) -> bool {
        self.fresh || !self.fleet.is_settled() || self.loops.are_busy()
    }

    /// Compares everything with what is intended: no input, safe at any time.
    async fn look(&mut self) {
        self.reconcile().await;
        self.fleet.save(&self.data).await;
        let replay = self.core.clock.is_replay();
        let due = !replay && self.ticked.is_none_or(|at| at.elapsed() >= TICK);
        if due || self.is_busy() {
            let window = if due { Window::Close } else { Window::Keep };
            self.tick(window).await;
        }
        if !replay {
            let now_ms = self.core.clock.now_ms();
            self.nightly.look(self.loops.store(), now_ms);
        }
        self.publish_view();
    }

    async fn reconcile(&mut self) {
        match self.fleet.reconcile().await {
            Ok(published) => self.fresh |= published,
            Err(error) => tracing::warn!(%error, "registry not read"),
        }
    }

    /// Ticks every loop at the present time, and looks at once at what that changed.
    async fn tick(&mut self, window: Window) {
        if window == Window::Close {
            self.ticked = Some(Instant::now());
        }
        // Loops may only be waited for once they know what is published.
        self.fresh = false;
        for model in self.loops.models() {
            let order = self.order(&model, window, None);
            // What failed is kept with the loop, and logged there.
            drop(self.loops.tick(&model, order).await);
        }
        self.reconcile().await;
    }

    fn order(
        &self,
        model: &ModelName,
        window: Window,
        requested: Option<OperatorRequest>,
    ) -> Order {
        Order {
            now_ms: self.core.clock.now_ms(),
            window,
            loaded: self.fleet.loaded(model),
            refused: self.fleet.refused(model),
            skew: self.nightly.skew(model),
            requested,
        }
    }

    async fn obey(&mut self, command: Command) {
        // Whoever asked may be gone: then nobody is told.
        match command {
            Command::Advance { now_ms, done } => {
                let advanced = self.advance(now_ms).await;
                drop(done.send(advanced));
            }
            Command::Request {
                model,
                request,
                done,
            } => {
                self.reconcile().await;
                let order = self.order(&model, Window::Keep, Some(request));
                let answered = self.loops.tick(&model, order).await;
                self.fresh = true;
                self.reconcile().await;
                self.publish_view();
                drop(done.send(answered));
            }
        }
    }

    /// Brings a replay to `now_ms`: all that was answered before is written, windows close, loops
    /// are ticked.
    async fn advance(&mut self, now_ms: i64) -> Result<Arc<View>, AdvanceError> {
        if !self.core.clock.is_replay() {
            return Err(AdvanceError::Live);
        }
        let clock_ms = self.core.clock.now_ms();
        if now_ms < clock_ms {
            return Err(AdvanceError::Backwards { now_ms, clock_ms });
        }
        self.core.clock.advance(now_ms);
        self.core.settle().await?;
        self.nightly.advance(self.loops.store(), now_ms).await;
        self.reconcile().await;
        self.tick(Window::Close).await;
        self.publish_view();
        Ok(Arc::clone(&self.view.borrow()))
    }

    fn publish_view(&self) {
        self.view.send_replace(Arc::new(View {
            busy: self.is_busy(),
            now_ms: self.core.clock.now_ms(),
            generation: self.fleet.generation(),
            loaded_generation: self.fleet.published(),
            models: self.loops.statuses(),
            verification: self.nightly.verified(),
            verifying: self.nightly.is_busy(),
            problems: self.loops.problems(),
            registry_away: None,
            refused: self.fleet.refusals(),
        }));
    }
}
