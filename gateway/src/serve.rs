//! `loopgate serve`: puts the process together, waits for its end, and takes it apart in order.
//!
//! Threads: one per serving core, the pool's workers, those of cold reads, the recorder, the shadow
//! worker, and this one, which runs what is not on the request path. Nothing of the request path is made
//! after the listener is bound.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use featurestore::{Definitions, FeatureStore, OfflineError, SealError, Sealed};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::access::{Gate, KeyWatch};
use crate::admission::{Admission, InFlight};
use crate::clock::Clock;
use crate::cold::ColdReads;
use crate::config::{FileModel, Limits, Security, ServeConfig, ServeRules};
use crate::control::{ControlOptions, ControlThread};
use crate::feast::FeastRules;
use crate::features::Reader;
use crate::grpc::GrpcThread;
use crate::listener::{self, Connections, DataPlane};
use crate::metrics::{AccessMetrics, Metrics, Sampled, TlsMetrics};
use crate::page::Page;
use crate::pool::{Pool, PoolOptions};
use crate::predict::Desk;
use crate::prepare::{Artifact, Blueprint, Verdicts, prepare};
use crate::recorder::{Recorder, RecorderGone, RecorderOptions};
use crate::repository::Repository;
use crate::shadow::{ShadowOptions, Shadows};
use crate::table::{
    CHAMPION, Labels, LiveTable, LoadedVersion, ModelParts, ModelTable, Publisher, Seats,
};
use crate::tls::{Tls, TlsWatch};

/// The version that a file without a registry is served as.
const FILE_VERSION: u32 = 1;
/// How often metrics are folded.
const UPKEEP: Duration = Duration::from_secs(1);
/// How often keys and certificates are looked at; a key is revoked within it.
const LOOK: Duration = Duration::from_millis(250);

/// What every request needs; one for the process.
pub(crate) struct Core {
    pub table: Arc<LiveTable>,
    pub clock: Clock,
    pub limits: Limits,
    pub gate: Gate,
    /// `None` where connections are taken as they come.
    pub tls: Option<Arc<Tls>>,
    pub admission: Arc<Admission>,
    /// Events and labels have places of their own: a flood of them sheds no prediction.
    pub ingest_admission: Arc<Admission>,
    pub pool: Pool,
    pub recorder: Recorder,
    pub shadows: Shadows,
    pub store: Option<FeatureStore>,
    pub cold: ColdReads,
    pub metrics: Arc<Metrics>,
    pub feast: FeastRules,
    pub connections: Connections,
    /// Set once, before anything listens.
    pub repository: OnceLock<Repository>,
    draining: AtomicBool,
}

impl Core {
    /// Whether the process is about to end.
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.is_draining() && self.table.is_ready()
    }

    /// Extensions of the protocol that this process offers: its own names, then ours.
    pub(crate) fn extensions(&self) -> &'static [&'static str] {
        const ALL: [&str; 9] = [
            "binary_tensor_data",
            "classification",
            "model_configuration",
            "parameters",
            "statistics",
            "fallback",
            "version_label",
            "feature_lookup",
            "feedback",
        ];
        match self.store {
            Some(_) => &ALL,
            None => &ALL[..7],
        }
    }

    /// The way from a request of that time to its features, which it waits for until its deadline.
    pub(crate) fn reader(&self, at_ms: i64, until: Instant) -> Reader<'_> {
        Reader {
            store: self.store.as_ref(),
            cold: Some((&self.cold, until)),
            rows_max: self.limits.rows_max,
            at_ms,
        }
    }

    /// Resolves when everything about requests that were answered before is in the prediction log.
    pub(crate) async fn settle(&self) -> Result<(), RecorderGone> {
        self.shadows.settle().await?;
        self.recorder.flush().await
    }

    /// The page that Prometheus reads.
    pub(crate) fn metrics_page(&self) -> String {
        self.metrics.connections.set(self.connections.open() as f64);
        if let Some(table) = self.table.held() {
            self.metrics.costs(&table);
        }
        if let Some(store) = &self.store {
            store.sample_metrics();
        }
        self.metrics.render(Sampled {
            in_flight: self.admission.in_flight(),
            recorder_queue: self.recorder.waiting(),
            shadow_queue: self.shadows.waiting(),
            pool_queue: self.pool.waiting(),
        })
    }
}

/// The threads behind the request path.
pub(crate) struct Backstage {
    pool: Vec<JoinHandle<()>>,
    cold: Vec<JoinHandle<()>>,
    recorder: JoinHandle<()>,
    shadows: JoinHandle<()>,
}

/// Runs the gateway until SIGTERM or SIGINT has drained it.
///
/// # Errors
/// When the configuration cannot be served; once it serves, only a failed seal.
pub(crate) fn run(config: &ServeConfig) -> Result<()> {
    let threads = config.serving_threads.get();
    let seats = config.seats();
    let metrics = Arc::new(Metrics::install(seats.count())?);
    // Before anything reads the files: what changes from here on is seen.
    let watch = Watch::new(&config.security);
    let (core, mut publisher, backstage) = assemble(config, seats, metrics)?;
    let files = publish_files(config, seats, &mut publisher, &core)?;
    let (repository, jobs) = Repository::new(config.repository);
    drop(core.repository.set(repository));
    let listeners = listener::bind(config.listeners.http, threads)
        .with_context(|| format!("http listener on {}", config.listeners.http))?;
    let http = listeners
        .first()
        .context("no serving thread")?
        .local_addr()?;
    let desks = (0..threads)
        .map(|k| Arc::new(Desk::new(Arc::clone(&core), seats.serving(k))))
        .collect();
    let control = ControlThread::start(ControlOptions {
        config: config.clone(),
        seats,
        publisher,
        core: Arc::clone(&core),
        files,
        jobs,
    })?;
    let grpc_desk = Arc::new(Desk::new(Arc::clone(&core), seats.grpc()));
    let grpc = GrpcThread::start(config.listeners.grpc, grpc_desk)
        .with_context(|| format!("gRPC listener on {}", config.listeners.grpc))?;
    let plane = DataPlane::start(desks, listeners)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Before anybody learns that we serve: a signal sent after that must drain.
        let signals = Signals::listen()?;
        let page = Page::bind(&config.listeners, Arc::clone(&core))
            .await
            .with_context(|| format!("metrics listener on {}", config.listeners.metrics))?;
        announce(&[
            ("http", http),
            ("grpc", grpc.address),
            ("admin", control.admin),
            ("metrics", page.address()),
        ]);
        until_told_to_stop(signals, &core, page, watch).await;
        Ok::<_, anyhow::Error>(())
    })?;
    core.draining.store(true, Ordering::Relaxed);
    tracing::info!("draining");
    plane.drain();
    grpc.drain();
    if let Some(store) = &core.store {
        store.end_by(Instant::now() + LAST_SEAL);
    }
    control.stop();
    close(&core, backstage)
}

/// Makes the core and starts the threads that it hands work to.
pub(crate) fn assemble(
    config: &ServeConfig,
    seats: Seats,
    metrics: Arc<Metrics>,
) -> Result<(Arc<Core>, Publisher, Backstage)> {
    let (gate, tls) = secure(config)?;
    let store = open_store(config)?;
    let clock = Clock::new(config.clock);
    let (table, publisher) = LiveTable::new()?;
    let (recorder, recorder_thread) = Recorder::start(RecorderOptions {
        queue_max: config.limits.recorder_queue_max,
        store: store.clone(),
        wait_when_full: clock.is_replay(),
        metrics: Arc::clone(&metrics),
    })?;
    let (shadows, shadow_thread) = Shadows::start(ShadowOptions {
        queue_max: config.limits.shadow_queue_max,
        rows_max: config.limits.rows_max,
        run_max: config.limits.deadline,
        store: store.clone(),
        wait_when_full: clock.is_replay(),
        seat: seats.shadow(),
        recorder: recorder.clone(),
        metrics: Arc::clone(&metrics),
    })?;
    let (pool, pool_threads) = Pool::start(PoolOptions {
        seats: seats.pool(),
        queue_max: config.limits.pool_queue_max,
        metrics: Arc::clone(&metrics),
    })?;
    let (cold, cold_threads) =
        ColdReads::start(config.limits.cold_read_threads, metrics.cold_reads.clone())?;
    let core = Arc::new(Core {
        table,
        clock,
        limits: config.limits,
        gate,
        tls,
        admission: Admission::new(config.limits.in_flight),
        ingest_admission: Admission::new(InFlight {
            requests: config.limits.ingest_in_flight_max,
            ..InFlight::default()
        }),
        pool,
        recorder,
        shadows,
        store,
        cold,
        metrics,
        feast: config.feast,
        connections: Connections::default(),
        repository: OnceLock::new(),
        draining: AtomicBool::new(false),
    });
    let backstage = Backstage {
        pool: pool_threads,
        cold: cold_threads,
        recorder: recorder_thread,
        shadows: shadow_thread,
    };
    Ok((core, publisher, backstage))
}

/// Who is let in, and with which certificates; refuses an open door to the world.
fn secure(config: &ServeConfig) -> Result<(Gate, Option<Arc<Tls>>)> {
    let security = &config.security;
    let gate = Gate::new(
        security.keys_required,
        security.keys.as_ref(),
        AccessMetrics::resolve(),
    )?;
    security.refuse_exposed(&config.listeners, gate.keys())?;
    let tls = security.tls.as_ref();
    let tls = tls.map(|files| Tls::new(files, TlsMetrics::resolve()));
    Ok((gate, tls.transpose()?))
}

/// Opens the data folder, for this process alone. Without a project there are no features in it,
/// only predictions and labels.
fn open_store(config: &ServeConfig) -> Result<Option<FeatureStore>> {
    let Some(data) = &config.data else {
        return Ok(None);
    };
    let definitions = match &config.project {
        Some(project) => {
            let definitions = Definitions::load(&project.features)?;
            project.check_services(&definitions)?;
            definitions
        }
        None => Definitions::parse("", "features.toml")?,
    };
    let store = FeatureStore::open(data, Arc::new(definitions), &config.store)?;
    Ok(Some(store))
}

/// Serves the models that were given as files; without a project that may be none.
fn publish_files(
    config: &ServeConfig,
    seats: Seats,
    publisher: &mut Publisher,
    core: &Core,
) -> Result<Vec<Arc<LoadedVersion>>> {
    if config.project.is_some() {
        return Ok(Vec::new());
    }
    let mut models = Vec::with_capacity(config.files.len());
    let mut files = Vec::with_capacity(config.files.len());
    for file in &config.files {
        let loaded = Arc::new(load_file(file, config, seats)?);
        tracing::info!(model = %file.name, engine = %loaded.engine.kind(), "model loaded");
        files.push(Arc::clone(&loaded));
        models.push(ModelParts {
            name: Arc::clone(&loaded.model),
            rules: Arc::new(ServeRules::default()),
            aliases: [(CHAMPION.into(), loaded.version)].into(),
            versions: [(loaded.version, loaded)].into(),
        });
    }
    publisher.publish(ModelTable::new(0, models), &core.metrics);
    Ok(files)
}

/// Prepares a file as it would a registered version, with the fastest of the engines that agree.
fn load_file(file: &FileModel, config: &ServeConfig, seats: Seats) -> Result<LoadedVersion> {
    let from = || format!("model `{}` from {}", file.name, file.path.display());
    let bytes = std::fs::read(&file.path).with_context(from)?;
    let blueprint = Blueprint {
        model: file.name.as_str().into(),
        version: FILE_VERSION,
        file: Artifact::new(bytes.into()),
        engine: config.engine,
        service: None,
        rows_max: None,
        golden: None,
        labels: Labels::new(),
        trial: config.trial,
    };
    prepare(blueprint, seats, &Verdicts::default()).with_context(from)
}

/// One line on standard output, so that whoever started us knows the ports.
fn announce(listeners: &[(&str, std::net::SocketAddr)]) {
    let shown: Vec<_> = listeners
        .iter()
        .map(|(name, at)| format!("{name}={at}"))
        .collect();
    let line = format!("loopgate serves {}", shown.join(" "));
    tracing::info!("{line}");
    // Nobody may be reading: that is no reason not to serve.
    drop(std::io::Write::write_all(
        &mut std::io::stdout(),
        format!("{line}\n").as_bytes(),
    ));
}

/// The signals that end the process in order. A second one changes nothing: the drain is bounded.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }
}

/// Files that may change under a running gateway.
struct Watch {
    keys: Option<KeyWatch>,
    tls: Option<TlsWatch>,
}

impl Watch {
    fn new(security: &Security) -> Self {
        Self {
            keys: security.keys.clone().map(KeyWatch::new),
            tls: security.tls.clone().map(TlsWatch::new),
        }
    }

    fn look(&mut self, core: &Core) {
        if let Some(keys) = &mut self.keys {
            keys.look(&core.gate);
        }
        if let (Some(watch), Some(tls)) = (&mut self.tls, &core.tls) {
            watch.look(tls);
        }
    }
}

/// How long an end waits for a bucket.
const LAST_SEAL: Duration = Duration::from_secs(20);

async fn until_told_to_stop(mut signals: Signals, core: &Core, page: Page, mut watch: Watch) {
    let mut upkeep = tokio::time::interval(UPKEEP);
    let mut look = tokio::time::interval(LOOK);
    let mut page = std::pin::pin!(page.serve());
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return,
            _ = signals.interrupt.recv() => return,
            () = &mut page => {}
            _ = upkeep.tick() => core.metrics.upkeep(),
            _ = look.tick() => watch.look(core),
        }
    }
}

/// Writes what the requests left behind: shadows, then records, then the sealed log.
pub(crate) fn close(core: &Core, backstage: Backstage) -> Result<()> {
    core.pool.stop();
    core.cold.stop();
    join_workers(backstage.pool);
    join_workers(backstage.cold);
    core.shadows.stop();
    if backstage.shadows.join().is_err() {
        tracing::error!("the shadow worker panicked");
    }
    core.recorder.stop();
    if backstage.recorder.join().is_err() {
        tracing::error!("the recorder panicked");
    }
    if let Some(store) = &core.store {
        match store.seal() {
            Ok(Sealed {
                predictions,
                labels,
                ..
            }) => tracing::info!(predictions, labels, "sealed"),
            // All of it is on this disk.
            Err(SealError::Offline(error @ OfflineError::Away { .. })) => {
                tracing::error!(%error, "not sealed: the next start will");
            }
            Err(error) => return Err(error).context("prediction log not sealed"),
        }
    }
    Ok(())
}

/// A worker whose run does not end is left behind: the process ends without it.
fn join_workers(workers: Vec<JoinHandle<()>>) {
    const WAIT: Duration = Duration::from_secs(5);
    let stopped = Instant::now();
    for worker in workers {
        while !worker.is_finished() && stopped.elapsed() < WAIT {
            std::thread::sleep(Duration::from_millis(1));
        }
        if !worker.is_finished() {
            tracing::warn!("a worker of the pool is left in its run");
        } else if worker.join().is_err() {
            tracing::error!("a worker of the pool panicked");
        }
    }
}
