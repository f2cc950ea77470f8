//! `loopgate.toml` and `models/NAME.toml` as the user writes them. Unknown keys are refused.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use engine::EngineKind;
use monitor::policy::{LabelPolicy, MonitorPolicy, RolloutPolicy, TriggerPolicy};
use registry::{AliasName, ModelName};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Limits, ModelConfig, ServeRules};
use crate::admission::InFlight;
use crate::clock::ClockMode;
use crate::prepare::TrialLimits;

/// `loopgate.toml`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct GatewayFile {
    /// Data folder, relative to the project. Default `data`.
    pub data: Option<PathBuf>,
    /// Owns up to listeners on public addresses without keys and TLS; with it `[http]` and `[grpc]` listen
    /// on every address unless they say otherwise. Default false.
    pub insecure: bool,
    pub keys: KeysFile,
    pub tls: Option<TlsFile>,
    pub http: HttpFile,
    pub grpc: ListenerFile,
    pub admin: AdminFile,
    pub metrics: ListenerFile,
    pub serving: ServingFile,
    pub ingest: IngestFile,
    pub recorder: RecorderFile,
    pub shadow: ShadowFile,
    pub clock: ClockFile,
    pub trainer: TrainerFile,
    pub prepare: PrepareFile,
    pub repository: RepositoryFile,
}

/// `[keys]`: who may call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KeysFile {
    /// Ask every caller for a key. Default false, but always so where a listener is public, unless
    /// `insecure` is set.
    pub required: bool,
    /// The file that `loopgate key` writes, relative to this one. Default `keys.toml` in the data
    /// folder.
    pub file: Option<PathBuf>,
}

/// `[tls]`: PEM files, relative to this one; read again when they change. The HTTP, gRPC and admin
/// listeners take TLS only, and the metrics listener where its address is public.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TlsFile {
    /// Our certificate, then what leads to its root.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
    /// Ask every client for a certificate that one of these signed.
    pub client_ca: Option<PathBuf>,
}

/// `[admin]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AdminFile {
    /// IP address and port.
    pub address: Option<SocketAddr>,
    /// Names by which callers may address us in `Host`, besides IP addresses, `localhost` and
    /// `loopgate`.
    pub hosts: Vec<String>,
}

/// `[grpc]`, `[metrics]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ListenerFile {
    /// IP address and port.
    pub address: Option<SocketAddr>,
}

/// `[http]`: the data plane's listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HttpFile {
    /// IP address and port.
    pub address: Option<SocketAddr>,
    /// Open connections; beyond it new ones are closed. Default 4096.
    pub connections_max: NonZeroUsize,
    /// Open connections of one client address, so that no address takes every place; a load
    /// balancer in front may need more. Default 2048.
    pub connections_per_peer_max: NonZeroUsize,
    /// Bytes of a request head. Default 16 KiB.
    pub header_bytes_max: NonZeroUsize,
    /// Milliseconds for a whole request head, and of an idle keep-alive. Default 30,000.
    pub header_timeout_ms: NonZeroU64,
    /// Bytes of a body. Default 16 MiB.
    pub body_bytes_max: NonZeroUsize,
    /// Milliseconds for a whole body. Default 10,000.
    pub body_timeout_ms: NonZeroU64,
    /// Milliseconds that a client may not read its answer. Default 30,000.
    pub write_timeout_ms: NonZeroU64,
}

impl Default for HttpFile {
    fn default() -> Self {
        Self {
            address: None,
            connections_max: size(4096),
            connections_per_peer_max: size(2048),
            header_bytes_max: size(16 << 10),
            header_timeout_ms: nonzero(30_000),
            body_bytes_max: size(16 << 20),
            body_timeout_ms: nonzero(10_000),
            write_timeout_ms: nonzero(30_000),
        }
    }
}

/// `[serving]`: predictions.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ServingFile {
    /// Serving threads. Default one per core.
    pub threads: Option<NonZeroUsize>,
    /// Predictions in flight; beyond it 429. Default 1024.
    pub in_flight_max: NonZeroUsize,
    /// Bytes of their bodies; beyond it 429. Default 256 MiB.
    pub in_flight_bytes_max: NonZeroUsize,
    /// Microseconds that a run on a serving thread may be expected to take; dearer ones go to the
    /// pool. Default 100.
    pub in_place_us: u64,
    /// Threads of the pool. Default one per core.
    pub pool_threads: Option<NonZeroUsize>,
    /// Predictions that may wait in the pool for one version; beyond it 429. Default 512.
    pub pool_queue_max: NonZeroUsize,
    /// Rows of one batch in the pool; 1 turns batching off. Default 64.
    pub batch_rows_max: NonZeroUsize,
    /// Milliseconds that a prediction may take. Default 1,000.
    pub deadline_ms: NonZeroU64,
    /// Rows of one request, of one batch of events or of labels. Default 10,000.
    pub rows_max: NonZeroUsize,
    /// Milliseconds in which keep-alive clients are told to leave before their connections are
    /// closed. Default 300.
    pub drain_notice_ms: u64,
    /// Milliseconds that requests in flight may take to finish once a drain began. Default 10,000.
    pub drain_grace_ms: u64,
}

impl Default for ServingFile {
    fn default() -> Self {
        Self {
            threads: None,
            in_flight_max: size(1024),
            in_flight_bytes_max: size(256 << 20),
            in_place_us: 100,
            pool_threads: None,
            pool_queue_max: size(512),
            batch_rows_max: size(64),
            deadline_ms: nonzero(1000),
            rows_max: size(10_000),
            drain_notice_ms: 300,
            drain_grace_ms: 10_000,
        }
    }
}

/// `[ingest]`: events and labels.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct IngestFile {
    /// Batches in flight; beyond it 429. Default 256.
    pub in_flight_max: NonZeroUsize,
    /// Milliseconds that a batch may wait until it is on disk. Default 10,000.
    pub deadline_ms: NonZeroU64,
}

impl Default for IngestFile {
    fn default() -> Self {
        Self {
            in_flight_max: size(256),
            deadline_ms: nonzero(10_000),
        }
    }
}

/// `[recorder]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RecorderFile {
    /// Requests that may wait; beyond it records are dropped and counted. Default 65,536.
    pub queue_max: NonZeroUsize,
}

impl Default for RecorderFile {
    fn default() -> Self {
        Self {
            queue_max: size(65_536),
        }
    }
}

/// `[shadow]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ShadowFile {
    /// Requests that may wait; beyond it shadows are dropped and counted. Default 4,096.
    pub queue_max: NonZeroUsize,
}

impl Default for ShadowFile {
    fn default() -> Self {
        Self {
            queue_max: size(4096),
        }
    }
}

/// `[clock]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ClockFile {
    /// `live`, or `replay`: requests bring their time. Default `live`.
    pub mode: ClockMode,
}

/// `[trainer]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TrainerFile {
    /// Program, relative to the project. Default `loopgate-trainer` beside this program.
    pub program: Option<PathBuf>,
    /// Seed of the trainings. Default 0.
    pub seed: u64,
}

/// `[prepare]`: the child process in which a model file is tried first.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PrepareFile {
    /// MiB of address space that a file may take; a small file gets less: 256 MiB and twelve times
    /// its own size. Default 4,096.
    pub memory_max_mib: NonZeroU64,
    /// Milliseconds that a trial may take. Default 30,000.
    pub timeout_ms: NonZeroU64,
    /// Seconds of processor time that a trial may take. Default 10.
    pub cpu_max_s: NonZeroU64,
}

impl Default for PrepareFile {
    fn default() -> Self {
        Self {
            memory_max_mib: nonzero(4096),
            timeout_ms: nonzero(30_000),
            cpu_max_s: nonzero(10),
        }
    }
}

impl PrepareFile {
    pub(super) fn limits(&self) -> TrialLimits {
        TrialLimits {
            memory_bytes_max: self.memory_max_mib.get().saturating_mul(1 << 20),
            timeout: Duration::from_millis(self.timeout_ms.get()),
            cpu: Duration::from_secs(self.cpu_max_s.get()),
        }
    }
}

/// `[repository]`: loading and unloading of models by request.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RepositoryFile {
    /// Whether models may be loaded without a key through data listeners that are not on loopback;
    /// where keys are required, the scope `admin` decides. Default false.
    pub load: bool,
    /// Bytes of a load request, which holds the model file in base64. Default 128 MiB.
    pub body_bytes_max: NonZeroUsize,
}

impl Default for RepositoryFile {
    fn default() -> Self {
        Self {
            load: false,
            body_bytes_max: size(128 << 20),
        }
    }
}

impl GatewayFile {
    pub(super) fn limits(&self) -> Limits {
        let duration = |millis: NonZeroU64| Duration::from_millis(millis.get());
        let Self {
            http,
            serving,
            ingest,
            ..
        } = self;
        Limits {
            connections_max: http.connections_max.get(),
            connections_per_peer_max: http.connections_per_peer_max.get(),
            header_bytes_max: http.header_bytes_max.get(),
            header_timeout: duration(http.header_timeout_ms),
            body_bytes_max: http.body_bytes_max.get(),
            body_timeout: duration(http.body_timeout_ms),
            write_timeout: duration(http.write_timeout_ms),
            in_flight: InFlight {
                requests: serving.in_flight_max.get(),
                bytes: serving.in_flight_bytes_max.get(),
            },
            pool_queue_max: serving.pool_queue_max.get(),
            ingest_in_flight_max: ingest.in_flight_max.get(),
            rows_max: serving.rows_max.get(),
            deadline: duration(serving.deadline_ms),
            ingest_deadline: duration(ingest.deadline_ms),
            recorder_queue_max: self.recorder.queue_max.get(),
            shadow_queue_max: self.shadow.queue_max.get(),
            drain_notice: Duration::from_millis(serving.drain_notice_ms),
            drain_grace: Duration::from_millis(serving.drain_grace_ms),
        }
    }
}

fn size(value: usize) -> NonZeroUsize {
    NonZeroUsize::new(value).expect("a default above zero")
}

fn nonzero(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).expect("a default above zero")
}

/// `models/NAME.toml`. `[train]` and `[gates]` are the trainer's and not looked into here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ModelFile {
    /// Feature service that makes the model's input, `name` or `name@version`.
    pub service: Option<String>,
    /// `auto`, `trees`, `tract` or `onnxruntime`. Default `auto`.
    pub engine: EngineChoice,
    /// Aliases that answer, in this order, where the routed version cannot.
    pub fallback: Vec<AliasName>,
    /// Answers when nothing else could: every float output is filled with it.
    pub constant: Option<FiniteF32>,
    /// Score a copy of each answered request: an alias of this model, or `model@alias`.
    pub shadow: Vec<Alias>,
    /// Milliseconds that a prediction may take, where less than `[serving] deadline_ms`.
    pub deadline_ms: Option<NonZeroU64>,
    /// Its predictions in flight; beyond it 429. Default as many as the process takes.
    pub in_flight_max: Option<NonZeroUsize>,
    /// Bytes of their bodies; beyond it 429. Default as many as the process takes.
    pub in_flight_bytes_max: Option<NonZeroUsize>,
    /// Share of the requests that the alias `challenger` answers, 0 to 1. Default 0.
    pub canary_share: ShareOfRequests,
    pub label: LabelPolicy,
    pub monitor: MonitorPolicy,
    pub trigger: TriggerPolicy,
    pub rollout: RolloutPolicy,
    #[serde(rename = "train")]
    _train: Option<IgnoredAny>,
    #[serde(rename = "gates")]
    _gates: Option<IgnoredAny>,
}

impl Default for ModelConfig {
    /// What an empty file says.
    fn default() -> Self {
        ModelFile::default().into()
    }
}

impl From<ModelFile> for ModelConfig {
    fn from(file: ModelFile) -> Self {
        let rules = ServeRules {
            fallback: file
                .fallback
                .iter()
                .map(|alias| alias.as_str().into())
                .collect(),
            constant: file.constant.map(|constant| constant.0),
            shadow: file.shadow,
            deadline: file.deadline_ms.map(|ms| Duration::from_millis(ms.get())),
            canary_share: file.canary_share.0,
            in_flight: InFlight {
                requests: file.in_flight_max.map_or(usize::MAX, NonZeroUsize::get),
                bytes: file
                    .in_flight_bytes_max
                    .map_or(usize::MAX, NonZeroUsize::get),
            },
        };
        Self {
            service: file.service,
            engine: file.engine,
            rules: Arc::new(rules),
            policy: monitor::Policy {
                label: file.label,
                monitor: file.monitor,
                trigger: file.trigger,
                rollout: file.rollout,
            },
        }
    }
}

/// Which engine runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum EngineChoice {
    /// The fastest of those that agree.
    #[default]
    Auto,
    Only(EngineKind),
}

impl EngineChoice {
    const AUTO: &str = "auto";

    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => Self::AUTO,
            Self::Only(kind) => kind.as_str(),
        }
    }

    /// Reads what [`EngineChoice::as_str`] writes.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        if name == Self::AUTO {
            return Ok(Self::Auto);
        }
        let kind: Result<EngineKind, _> = name.parse();
        kind.map(Self::Only)
            .map_err(|error| format!("{error}, or auto"))
    }
}

impl TryFrom<String> for EngineChoice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name)
    }
}

/// An alias, of the model at hand or of a named one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Alias {
    pub model: Option<Box<str>>,
    pub alias: Box<str>,
}

impl TryFrom<String> for Alias {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (model, alias) = match text.split_once('@') {
            Some((model, alias)) => {
                let model: ModelName = model.parse().map_err(|error| format!("{error}"))?;
                (Some(model.as_str().into()), alias)
            }
            None => (None, text.as_str()),
        };
        let alias: AliasName = alias.parse().map_err(|error| format!("{error}"))?;
        Ok(Self {
            model,
            alias: alias.as_str().into(),
        })
    }
}

/// A finite number.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
pub(super) struct FiniteF32(f32);

impl TryFrom<f64> for FiniteF32 {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        let narrow = value as f32;
        narrow
            .is_finite()
            .then_some(Self(narrow))
            .ok_or_else(|| format!("{value} is not a finite number"))
    }
}

/// A share, 0 to 1.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "f64")]
pub(super) struct ShareOfRequests(f64);

impl TryFrom<f64> for ShareOfRequests {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        (0.0..=1.0)
            .contains(&value)
            .then_some(Self(value))
            .ok_or_else(|| format!("{value} is not a share from 0 to 1"))
    }
}
