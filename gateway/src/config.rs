//! Configuration in two stages: as the user wrote it (`file`), then as the program uses it (here),
//! checked and with every default filled in. The command line wins over the file.

mod file;
mod security;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use featurestore::{ProjectFileError, StoreOptions, read_toml};
use registry::ModelName;

use crate::admission::InFlight;
use crate::breaker::BreakerRules;
use crate::clock::ClockMode;
use crate::feast::FeastRules;
use crate::prepare::TrialLimits;
use crate::table::Seats;

pub(crate) use file::{Alias, EngineChoice};
use file::{GatewayFile, ModelFile};
pub(crate) use security::Security;

/// What `loopgate serve` is given on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct ServeArgs {
    /// Folder with loopgate.toml, features.toml and models/
    #[arg(long, value_name = "DIR")]
    pub project: Option<PathBuf>,
    /// Serve an ONNX file without a project; repeatable
    #[arg(long, value_name = "NAME=FILE", value_parser = file_model, conflicts_with = "project")]
    pub model: Vec<FileModel>,
    /// Engine of the files: auto, trees, tract or onnxruntime
    #[arg(long, value_name = "ENGINE", value_parser = EngineChoice::parse, default_value = "auto")]
    pub engine: EngineChoice,
    /// Data folder; without a project nothing is recorded unless it is given
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Address of the HTTP listener
    #[arg(long, value_name = "ADDR")]
    pub http: Option<SocketAddr>,
    /// Address of the gRPC listener
    #[arg(long, value_name = "ADDR")]
    pub grpc: Option<SocketAddr>,
    /// Address of the admin listener
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Address of the Prometheus listener
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Serving threads; by default one per core
    #[arg(long, value_name = "N")]
    pub serving_threads: Option<NonZeroUsize>,
    /// Gateway settings without a project, as in loopgate.toml
    #[arg(long, value_name = "FILE", conflicts_with = "project")]
    pub config: Option<PathBuf>,
}

/// A model to be served from a file.
#[derive(Clone, Debug)]
pub(crate) struct FileModel {
    pub name: ModelName,
    pub path: PathBuf,
}

fn file_model(text: &str) -> Result<FileModel, String> {
    let (name, path) = text.split_once('=').ok_or("expected NAME=FILE")?;
    Ok(FileModel {
        name: ModelName::from_str(name).map_err(|error| error.to_string())?,
        path: path.into(),
    })
}

/// A gateway, fully described.
#[derive(Clone, Debug)]
pub(crate) struct ServeConfig {
    pub listeners: Listeners,
    pub security: Security,
    pub limits: Limits,
    pub clock: ClockMode,
    pub feast: FeastRules,
    pub serving_threads: NonZeroUsize,
    pub pool: PoolConfig,
    pub breaker: BreakerRules,
    /// Served without a registry.
    pub files: Vec<FileModel>,
    /// The engine of these files, and of those that are loaded by request.
    pub engine: EngineChoice,
    /// What the trial of a model file may cost.
    pub trial: TrialLimits,
    pub repository: RepositoryConfig,
    /// Folder of online state and logs; `None` where nothing is recorded.
    pub data: Option<PathBuf>,
    /// Its sizes, and how long what is recorded is kept.
    pub store: StoreOptions,
    pub project: Option<ProjectConfig>,
}

/// Loading of models by request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RepositoryConfig {
    /// Whether the data listeners take such requests.
    pub load: bool,
    pub body_bytes_max: usize,
}

/// How runs are divided between serving threads and the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolConfig {
    pub threads: NonZeroUsize,
    /// The longest run of a serving thread.
    pub in_place: Duration,
    /// Rows of one batch.
    pub batch_rows: NonZeroUsize,
}

impl ServeConfig {
    /// The project's models; none without one.
    pub(crate) fn models(&self) -> BTreeMap<ModelName, ModelConfig> {
        let project = self.project.as_ref();
        project.map_or_else(BTreeMap::new, |project| project.models.clone())
    }

    /// Who runs models, and what one run may hold.
    pub(crate) fn seats(&self) -> Seats {
        Seats {
            serving: self.serving_threads.get(),
            pool: self.pool.threads.get(),
            in_place: self.pool.in_place,
            batch_rows: self.pool.batch_rows.get(),
            breaker: self.breaker,
        }
    }
}

/// What a project adds.
#[derive(Clone, Debug)]
pub(crate) struct ProjectConfig {
    pub folder: PathBuf,
    /// `features.toml`.
    pub features: PathBuf,
    pub models: BTreeMap<ModelName, ModelConfig>,
    /// The trainer's program.
    pub trainer: PathBuf,
    /// Seed of the trainings.
    pub seed: u64,
}

/// One `models/NAME.toml`.
#[derive(Clone, Debug)]
pub(crate) struct ModelConfig {
    /// Feature service, `name` or `name@version`.
    pub service: Option<String>,
    pub engine: EngineChoice,
    pub rules: Arc<ServeRules>,
    pub policy: monitor::Policy,
    /// The nightly verification; `None` where it is off.
    pub verify: Option<VerifyRules>,
}

/// What a night's verification may cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct VerifyRules {
    /// Served rows to recompute.
    pub rows: NonZeroUsize,
    /// Of the states kept from night to night.
    pub memory_bytes_max: usize,
}

/// How a model's versions share its requests.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServeRules {
    /// Aliases that answer, in this order, where the routed version cannot.
    pub fallback: Vec<Box<str>>,
    /// Answers when nothing else could.
    pub constant: Option<f32>,
    /// Score a copy of every answered request.
    pub shadow: Vec<Alias>,
    /// The longest that a request may take.
    pub deadline: Option<Duration>,
    /// Share of the requests that the challenger answers, 0 to 1.
    pub canary_share: f64,
    /// Its requests in flight.
    pub in_flight: InFlight,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Listeners {
    pub http: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub metrics: SocketAddr,
}

/// Every bound of the data plane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Open connections of the HTTP listener; beyond it new ones are closed.
    pub connections_max: usize,
    /// The same of one client address.
    pub connections_per_peer_max: usize,
    pub header_bytes_max: usize,
    /// Longest wait for a whole request head, which is also the longest idle keep-alive.
    pub header_timeout: Duration,
    pub body_bytes_max: usize,
    /// Longest wait for a whole body.
    pub body_timeout: Duration,
    /// Longest wait for a client that does not read its answer.
    pub write_timeout: Duration,
    /// Predictions in flight in the process.
    pub in_flight: InFlight,
    /// Batches of events and labels in flight in the process.
    pub ingest_in_flight_max: usize,
    /// Rows of one request, of one batch of events or of labels.
    pub rows_max: usize,
    /// The longest that a prediction may take.
    pub deadline: Duration,
    /// The longest that a batch of events or labels may wait for its fsync.
    pub ingest_deadline: Duration,
    /// Requests that may wait for one version in the pool; beyond it they are shed.
    pub pool_queue_max: usize,
    /// Threads that read features from disk.
    pub cold_read_threads: NonZeroUsize,
    /// Requests that may wait for the recorder; beyond it records are dropped and counted.
    pub recorder_queue_max: usize,
    /// Requests that may wait for their shadows; beyond it shadows are dropped and counted.
    pub shadow_queue_max: usize,
    /// How long keep-alive clients are told to leave before their connections are closed.
    pub drain_notice: Duration,
    /// How long requests in flight may take to finish once a drain has begun.
    pub drain_grace: Duration,
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error(transparent)]
    File(#[from] ProjectFileError),
    #[error("model `{0}` is given twice")]
    Twice(ModelName),
    #[error("{}: the file's name is not a model's: {problem}", path.display())]
    ModelName { path: PathBuf, problem: String },
    #[error("{}: {problem}", path.display())]
    Folder {
        path: PathBuf,
        problem: std::io::Error,
    },
    #[error("model `{model}`: feature service `{service}` is not in features.toml")]
    Service { model: ModelName, service: String },
}

impl ServeConfig {
    /// Reads the project, if there is one, and fills in what neither it nor `args` says.
    ///
    /// # Errors
    /// When a file is missing or wrong.
    pub(crate) fn new(args: ServeArgs) -> Result<Self, ConfigError> {
        for (k, model) in args.model.iter().enumerate() {
            if args.model[..k]
                .iter()
                .any(|before| before.name == model.name)
            {
                return Err(ConfigError::Twice(model.name.clone()));
            }
        }
        let settings = match (&args.project, &args.config) {
            (Some(folder), _) => Some(folder.join("loopgate.toml")),
            (None, file) => file.clone(),
        };
        let file: GatewayFile = settings
            .as_deref()
            .map(read_toml)
            .transpose()?
            .unwrap_or_default();
        let listeners = listeners(&args, &file);
        let project = args
            .project
            .map(|folder| project(folder, &file))
            .transpose()?;
        let data = args.data.or_else(|| {
            let folder = &project.as_ref()?.folder;
            Some(folder.join(file.data.as_deref().unwrap_or(Path::new("data"))))
        });
        let settings_folder = settings.as_deref().and_then(Path::parent);
        let security = Security::new(&file, settings_folder, data.as_deref(), &listeners);
        let local = listeners.http.ip().is_loopback() && listeners.grpc.ip().is_loopback();
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let repository = RepositoryConfig {
            // With keys the route asks for the admin scope.
            load: file.repository.load || security.keys_required || local,
            body_bytes_max: file.repository.body_bytes_max.get(),
        };
        Ok(Self {
            listeners,
            security,
            limits: file.limits(),
            clock: file.clock.mode,
            feast: FeastRules {
                compat: file.feast.compat,
            },
            serving_threads: args
                .serving_threads
                .or(file.serving.threads)
                .unwrap_or_else(cores),
            pool: PoolConfig {
                threads: file.serving.pool_threads.unwrap_or_else(cores),
                in_place: Duration::from_micros(file.serving.in_place_us),
                batch_rows: file.serving.batch_rows_max,
            },
            breaker: file.breaker.rules(),
            store: StoreOptions {
                // Feast reads them whatever their age.
                keep_expired_values: file.feast.compat,
                offline: file.offline.clone(),
                ..file.store.options(file.retention.options())
            },
            files: args.model,
            engine: args.engine,
            trial: file.prepare.limits(),
            repository,
            data,
            project,
        })
    }
}

impl ProjectConfig {
    /// Refuses a model whose feature service is not defined.
    pub(crate) fn check_services(
        &self,
        definitions: &featurestore::Definitions,
    ) -> Result<(), ConfigError> {
        for (model, config) in &self.models {
            if let Some(service) = &config.service
                && definitions.service(service).is_none()
            {
                return Err(ConfigError::Service {
                    model: model.clone(),
                    service: service.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Where each listener is: as the command line says, else the file, else its usual port.
fn listeners(args: &ServeArgs, file: &GatewayFile) -> Listeners {
    Listeners {
        http: args
            .http
            .or(file.http.address)
            .unwrap_or(default(8000, file.insecure)),
        grpc: args
            .grpc
            .or(file.grpc.address)
            .unwrap_or(default(8001, file.insecure)),
        metrics: args
            .metrics
            .or(file.metrics.address)
            .unwrap_or(default(8002, false)),
        admin: args
            .admin
            .or(file.admin.address)
            .unwrap_or(default(8003, false)),
    }
}

fn project(folder: PathBuf, file: &GatewayFile) -> Result<ProjectConfig, ConfigError> {
    let mut models = BTreeMap::new();
    let models_folder = folder.join("models");
    let unreadable = |problem| ConfigError::Folder {
        path: models_folder.clone(),
        problem,
    };
    let entries = match std::fs::read_dir(&models_folder) {
        // Features by themselves are a project, too.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        entries => Some(entries.map_err(unreadable)?),
    };
    for entry in entries.into_iter().flatten() {
        let path = entry.map_err(unreadable)?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = stem
                .parse::<ModelName>()
                .map_err(|error| ConfigError::ModelName {
                    path: path.clone(),
                    problem: error.to_string(),
                })?;
            models.insert(name, read_toml::<ModelFile>(&path)?.into());
        }
    }
    Ok(ProjectConfig {
        features: folder.join("features.toml"),
        trainer: trainer(&folder, file),
        seed: file.trainer.seed,
        folder,
        models,
    })
}

/// The configured program, else the one that was installed beside this one.
fn trainer(folder: &Path, file: &GatewayFile) -> PathBuf {
    const PROGRAM: &str = "loopgate-trainer";
    match &file.trainer.program {
        Some(program) => folder.join(program),
        None => std::env::current_exe()
            .map_or_else(|_| PROGRAM.into(), |own| own.with_file_name(PROGRAM)),
    }
}

/// `port` on every address where that is owned up to, else on loopback.
fn default(port: u16, public: bool) -> SocketAddr {
    let ip = if public {
        Ipv4Addr::UNSPECIFIED
    } else {
        Ipv4Addr::LOCALHOST
    };
    SocketAddr::new(IpAddr::V4(ip), port)
}

#[cfg(test)]
mod tests;
