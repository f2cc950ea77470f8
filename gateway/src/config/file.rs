//! `loopgate.toml` and `models/NAME.toml` as the user writes them, a file for some sections each.
//! Unknown keys are refused.

mod listen;
mod model;
mod prepare;
mod retention;
mod serving;
mod store;

use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use featurestore::Bucket;
use serde::Deserialize;

use super::Limits;
use crate::admission::InFlight;
use crate::clock::ClockMode;

use listen::{AdminFile, HttpFile, KeysFile, ListenerFile, TlsFile};
use prepare::{PrepareFile, RepositoryFile};
use retention::RetentionFile;
use serving::{BreakerFile, IngestFile, RecorderFile, ServingFile, ShadowFile};
use store::StoreFile;

pub(super) use model::ModelFile;
pub(crate) use model::{Alias, EngineChoice};

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
    pub breaker: BreakerFile,
    pub ingest: IngestFile,
    pub recorder: RecorderFile,
    pub shadow: ShadowFile,
    pub clock: ClockFile,
    pub feast: FeastFile,
    pub trainer: TrainerFile,
    pub prepare: PrepareFile,
    pub store: StoreFile,
    /// `[offline]`: the bucket that takes sealed files. Default: where the data folder has them, in itself
    /// when it is new.
    pub offline: Option<Bucket>,
    pub retention: RetentionFile,
    pub repository: RepositoryFile,
}

/// `[clock]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ClockFile {
    /// `live`, or `replay`: requests bring their time. Default `live`.
    pub mode: ClockMode,
}

/// `[feast]`: Feast's routes.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FeastFile {
    /// Follow Feast where it is wrong: a value that is null or older than its view's TTL is `PRESENT`,
    /// a time is a number of seconds. Default false.
    pub compat: bool,
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
            cold_read_threads: serving.cold_read_threads,
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
