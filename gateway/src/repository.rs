//! The model repository by request: `load` and `unload`, as clients of Triton ask for them.
//!
//! HTTP and gRPC share these functions. A request is handed to the control thread, which takes one
//! at a time: decoding a file, its trial and its warm-up never run where predictions do. Answers
//! once the version serves, or with the reason why it does not; then the old one serves on.

mod body;

use registry::{
    AliasError, ArtifactError, DatabaseError, LookupError, ModelName, RegisterError, Version,
};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::config::RepositoryConfig;
use crate::prepare::PrepareError;
use crate::serve::Core;

pub(crate) use body::{BodyError, Load, LoadBody, LoadParameters, lines};

/// Requests that may wait, each with its body; beyond it they are shed.
const JOBS_MAX: usize = 4;

/// The way to whoever keeps the models.
pub(crate) struct Repository {
    jobs: mpsc::Sender<Job>,
    pub config: RepositoryConfig,
}

/// One request and where its answer goes.
pub(crate) struct Job {
    pub model: ModelName,
    pub task: Task,
    pub done: oneshot::Sender<Result<Version, RepositoryError>>,
}

pub(crate) enum Task {
    Load(LoadBody),
    Unload,
}

/// Who keeps the models, and does what a request asks for.
pub(crate) trait Keeper {
    /// Answers with the version that serves now, or with the one that did.
    async fn obey(&mut self, model: &ModelName, task: Task) -> Result<Version, RepositoryError>;
}

/// Has one request after the other done, until told to stop.
pub(crate) async fn keep(
    mut keeper: impl Keeper,
    mut jobs: mpsc::Receiver<Job>,
    stop: &CancellationToken,
) {
    loop {
        let job = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(job) = jobs.recv() => job,
            else => return,
        };
        let Job { model, task, done } = job;
        let answer = tokio::select! {
            () = stop.cancelled() => return,
            answer = keeper.obey(&model, task) => answer,
        };
        if let Err(error) = &answer {
            tracing::warn!(%model, %error, "request to the repository refused");
        }
        // Whoever asked may be gone: then nobody is told.
        drop(done.send(answer));
    }
}

/// Why a model was not loaded or unloaded. What served before still does.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RepositoryError {
    #[error(
        "models are not loaded through a public listener: set `load = true` in [repository] of loopgate.toml"
    )]
    Forbidden,
    #[error("other models are being loaded: try again")]
    Busy,
    #[error("the gateway is about to end")]
    Stopping,
    #[error("the registry is away, and the last good release is served: nothing can be changed")]
    RegistryAway,
    #[error(transparent)]
    Body(#[from] BodyError),
    #[error("there is no file of model `{0}`: send one as `file:1/model.onnx`")]
    NoFile(ModelName),
    #[error("model `{0}` is not loaded")]
    NotLoaded(ModelName),
    #[error("the model's file cannot be read: {}", .0.kind())]
    File(std::io::Error),
    #[error(transparent)]
    Prepare(#[from] PrepareError),
    #[error("version {version} is registered, but does not serve: {reason}")]
    NotServed { version: Version, reason: String },
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Alias(#[from] AliasError),
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Database(#[from] DatabaseError),
}

impl Repository {
    /// The way in, and the way out for the one who does it.
    pub(crate) fn new(config: RepositoryConfig) -> (Self, mpsc::Receiver<Job>) {
        let (jobs, received) = mpsc::channel(JOBS_MAX);
        (Self { jobs, config }, received)
    }

    async fn ask(&self, model: &ModelName, task: Task) -> Result<Version, RepositoryError> {
        let (done, answered) = oneshot::channel();
        let model = model.clone();
        let job = Job { model, task, done };
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => RepositoryError::Busy,
            mpsc::error::TrySendError::Closed(_) => RepositoryError::Stopping,
        })?;
        answered.await.unwrap_or(Err(RepositoryError::Stopping))
    }
}

/// The repository, where the data listeners may change it: asked before a body is read.
///
/// # Errors
/// Forbidden, or the gateway is not up yet.
pub(crate) fn permitted(core: &Core) -> Result<&Repository, RepositoryError> {
    let repository = core.repository.get().ok_or(RepositoryError::Stopping)?;
    if !repository.config.load {
        return Err(RepositoryError::Forbidden);
    }
    Ok(repository)
}

/// Loads a model, from the file that the request brings, else again from where it came, and
/// returns the version that serves. Waits for as long as a preparation may take.
///
/// # Errors
/// When the version cannot serve; the one before it still does.
pub(crate) async fn load(
    core: &Core,
    model: &ModelName,
    body: LoadBody,
) -> Result<Version, RepositoryError> {
    permitted(core)?.ask(model, Task::Load(body)).await
}

/// Decodes a request off the control thread.
pub(crate) async fn decode(body: LoadBody, model: &ModelName) -> Result<Load, RepositoryError> {
    let model = model.clone();
    let decoded = tokio::task::spawn_blocking(move || body.decode(&model));
    // It fails only where the runtime ends.
    Ok(decoded.await.map_err(|_| RepositoryError::Stopping)??)
}

/// Takes a model out of service. Its versions stay registered, where there is a registry.
///
/// # Errors
/// When it is not in service, or the registry fails.
pub(crate) async fn unload(core: &Core, model: &ModelName) -> Result<(), RepositoryError> {
    permitted(core)?.ask(model, Task::Unload).await.map(drop)
}
