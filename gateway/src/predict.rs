//! The life of a prediction, on one thread from its first byte to its last:
//! decode → admit → snapshot → route → features → run → record → encode.
//!
//! Nothing here locks or queues. Features that are not in memory and a run that is too dear for the
//! serving thread are awaited from other threads. The wire is a parameter, so that HTTP and gRPC lead
//! the same life.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use featurestore::Role;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};
use uuid::{Builder, Uuid};

use crate::admission::{Admitted, DeadlinePassed, Limit, Overloaded, Place};
use crate::execute::{Answered, ExecuteError, Reason, Runner, scores};
use crate::features::{InputError, Inputs, status_summary};
use crate::metrics::{Laps, Phase};
use crate::oip::{
    self, ClassifyError, DecodeError, EncodeError, InferRequest, Response, ResponseOutput,
    WantedOutput,
};
use crate::pool::Priority;
use crate::recorder::{FeatureSource, Served};
use crate::route::{self, Route, RouteError, Target, route};
use crate::serve::Core;
use crate::shadow::ShadowJob;
use crate::table::{Seat, ServedModel, Timed};

/// How a request is written on one wire, and its answer.
pub(crate) trait Wire {
    type Reply;

    fn decode(&mut self) -> Result<InferRequest, DecodeError>;

    fn encode(&self, response: &Response<'_>) -> Result<Self::Reply, EncodeError>;
}

/// A request that has a place, before its body is looked at.
pub(crate) struct Call {
    pub target: Target,
    pub place: Place,
    pub arrived: Instant,
    /// The request's time.
    pub at_ms: i64,
    /// A header says that it is not to be recorded.
    pub probe: bool,
}

/// Why a prediction was not answered: one cause for each step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PredictError {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
    #[error(transparent)]
    Deadline(#[from] DeadlinePassed),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Inputs(#[from] InputError),
    #[error("unknown output `{0}`")]
    UnknownOutput(Box<str>),
    #[error("output `{0}` is asked for twice")]
    DoubledOutput(Box<str>),
    #[error(transparent)]
    Execute(#[from] ExecuteError),
    #[error(transparent)]
    Classify(#[from] ClassifyError),
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// The shortest time after which a refused caller is asked to come again.
const RETRY_MIN: Duration = Duration::from_millis(50);

/// The thread that answers: its sessions and its source of prediction ids.
pub(crate) struct Desk {
    pub core: Arc<Core>,
    seat: Seat,
    /// Used by this desk's thread only, so never waited for.
    random: Mutex<StdRng>,
}

impl Desk {
    pub(crate) fn new(core: Arc<Core>, seat: Seat) -> Self {
        Self {
            core,
            seat,
            random: Mutex::new(StdRng::from_os_rng()),
        }
    }

    /// Gives a request its places by its head: in the process, with its model, and where the model
    /// runs in the pool, only if its line is short enough. `bytes` is what the head says of the body.
    pub(crate) fn enter(&self, target: &Target, bytes: usize) -> Result<Place, PredictError> {
        let core = &*self.core;
        let mut place = self.enter_process(bytes)?;
        let table = core.table.snapshot();
        let model = route::model(table.as_deref(), target)?;
        let refused = match place.join(&model.places) {
            Ok(()) => self.refused_wait(model, target)?.map(Limit::Wait),
            Err(limit) => Some(limit),
        };
        match refused {
            None => Ok(place),
            Some(Limit::Wait(wait)) => Err(self.overloaded(Limit::Wait(wait), wait).into()),
            Some(limit) => Err(self.overloaded(limit, Duration::ZERO).into()),
        }
    }

    /// Gives a request that no model answers its place.
    pub(crate) fn enter_process(&self, bytes: usize) -> Result<Place, Overloaded> {
        let enter = self.core.admission.enter_with(bytes);
        enter.map_err(|limit| self.overloaded(limit, Duration::ZERO))
    }

    /// Takes a place with the routed model, and its deadline.
    fn join(&self, admitted: &mut Admitted, model: &ServedModel) -> Result<(), Overloaded> {
        admitted
            .join(&model.places)
            .map_err(|limit| self.overloaded(limit, Duration::ZERO))?;
        admitted.tighten(model.deadline);
        Ok(())
    }

    /// How long the pool's line is, where that is too long.
    fn refused_wait(
        &self,
        model: &ServedModel,
        target: &Target,
    ) -> Result<Option<Duration>, RouteError> {
        let version = route::named_or_champion(model, target)?;
        if version.cost.is_in_place(1) {
            return Ok(None);
        }
        let most = self.core.limits.deadline;
        let deadline = model.deadline.map_or(most, |deadline| deadline.min(most));
        Ok(self.core.pool.refuses(version, deadline, Instant::now()))
    }

    /// A refusal that asks to come again when what waits is done, each caller at another time.
    fn overloaded(&self, limit: Limit, wait: Duration) -> Overloaded {
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        Overloaded {
            limit,
            retry_after: wait.max(RETRY_MIN).mul_f64(random.random_range(1.0..2.0)),
        }
    }

    /// A UUIDv7 of the request's time.
    fn prediction_id(&self, at_ms: i64) -> Uuid {
        let mut random = [0; 10];
        self.random
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .fill_bytes(&mut random);
        Builder::from_unix_timestamp_millis(u64::try_from(at_ms).unwrap_or(0), &random).into_uuid()
    }
}

/// Answers one request.
pub(crate) async fn predict<W: Wire>(
    desk: &Desk,
    call: Call,
    mut wire: W,
) -> Result<W::Reply, PredictError> {
    let core = &*desk.core;
    let mut laps = Laps::start(&core.metrics.phases, desk.seat, call.arrived);

    let request = wire.decode()?;
    let decode = laps.end(Phase::Decode);

    let deadline = request.timeout.unwrap_or(core.limits.deadline);
    let deadline = deadline.min(core.limits.deadline);
    let mut admitted = call.place.admit(call.arrived, deadline)?;

    let table = core.table.held();
    let asked = Asked {
        prediction: desk.prediction_id(call.at_ms),
        id: request.id,
        at_ms: call.at_ms,
        probe: request.probe || call.probe,
        outputs: request.outputs,
        binary_outputs: request.binary_outputs,
    };
    let route = route(table.as_deref(), &call.target, asked.key())?;
    desk.join(&mut admitted, route.model)?;
    check_outputs(&route, &asked.outputs)?;

    let reader = core.reader(asked.at_ms, admitted.until());
    let inputs = Arc::new(reader.assemble(route.first, request.inputs).await?);
    let features = laps.end(Phase::Features);

    let runner = Runner {
        seat: desk.seat,
        pool: &core.pool,
        reader,
        admitted: &admitted,
        priority: Priority::of_level(request.priority),
        metrics: &core.metrics,
    };
    let ran = runner.run(&route, &inputs).await;
    let run = laps.end(Phase::Run);
    // A fallback's answer is a failure of the version that it stands in for.
    if ran.as_ref().map_or(true, |ran| ran.reason.is_some()) {
        route.first.statistics.failed(desk.seat, run);
    }
    let mut answered = ran?;

    probe(core, &mut answered, &inputs, &asked);
    let status = feature_status(&answered, &inputs);
    if !asked.probe {
        record(core, &route, &mut answered, &inputs, &asked);
    }
    let response = response(&route, &answered, &asked, status.as_deref())?;
    let reply = wire.encode(&response)?;
    let output = laps.end(Phase::Encode);
    let timed = Timed {
        at_ms: asked.at_ms,
        rows: inputs.rows,
        queue: answered.queue,
        input: decode + features,
        run: run.saturating_sub(answered.queue),
        output,
        total: laps.finish(),
    };
    if let Some(version) = &answered.version {
        version.statistics.succeeded(desk.seat, &timed);
    }
    Ok(reply)
}

/// What a request says beside its inputs, and the name that it is given.
struct Asked {
    prediction: Uuid,
    /// The caller's own id.
    id: Option<Box<str>>,
    at_ms: i64,
    /// Answered, not recorded.
    probe: bool,
    /// The wanted outputs; empty means all of them.
    outputs: Vec<WantedOutput>,
    /// Outputs come as binary where they do not say otherwise.
    binary_outputs: bool,
}

impl Asked {
    /// What the split hashes: the caller's id, so that it can be made sticky.
    fn key(&self) -> &[u8] {
        match &self.id {
            Some(id) => id.as_bytes(),
            None => self.prediction.as_bytes(),
        }
    }
}

/// Hands a copy of the request to the versions whose breakers want to be tried.
fn probe(core: &Core, answered: &mut Answered, inputs: &Arc<Inputs>, asked: &Asked) {
    if !answered.probes.is_empty() {
        core.shadows.push(ShadowJob {
            versions: Vec::new(),
            probes: std::mem::take(&mut answered.probes),
            inputs: Arc::clone(inputs),
            prediction: asked.prediction,
            request_id: None,
            at_ms: asked.at_ms,
        });
    }
}

/// Hands the answer to the recorder and a copy of the request to the shadows; neither is waited for.
fn record(
    core: &Core,
    route: &Route<'_>,
    answered: &mut Answered,
    inputs: &Arc<Inputs>,
    asked: &Asked,
) {
    let own = answered.features.take();
    let version = answered.version.as_ref();
    core.recorder.push(Served {
        prediction: asked.prediction,
        request_id: asked.id.clone(),
        model: Arc::clone(&route.model.name),
        version: version.map_or(0, |version| version.version),
        role: answered.role,
        at_ms: asked.at_ms,
        source: own.map_or_else(|| FeatureSource::of(inputs), FeatureSource::Own),
        scores: scores(&answered.outputs, inputs.rows),
        reason: answered.reason,
    });
    // Shadows compare with what routing chose, not with what a caller insisted on.
    let routed = route.role != Role::Pinned && !inputs.unreadable;
    if routed && !route.model.shadows.is_empty() {
        core.shadows.push(ShadowJob {
            versions: route.model.shadows.clone(),
            probes: Vec::new(),
            inputs: Arc::clone(inputs),
            prediction: asked.prediction,
            request_id: asked.id.clone(),
            at_ms: asked.at_ms,
        });
    }
}

fn response<'a>(
    route: &Route<'a>,
    answered: &'a Answered,
    asked: &'a Asked,
    feature_status: Option<&'a str>,
) -> Result<Response<'a>, ClassifyError> {
    let version = answered.version.as_ref();
    Ok(Response {
        model: &route.model.name,
        version: version.map_or("constant", |version| &*version.label),
        id: asked.id.as_deref(),
        prediction: (!asked.probe).then_some(asked.prediction),
        fallback_reason: answered.reason.map(Reason::as_str),
        feature_status,
        outputs: select(route, answered, asked)?,
    })
}

fn feature_status(answered: &Answered, inputs: &Inputs) -> Option<String> {
    let features = answered.features.as_ref().or(inputs.features.as_ref());
    features.and_then(status_summary)
}

fn check_outputs(route: &Route<'_>, wanted: &[WantedOutput]) -> Result<(), PredictError> {
    let known = &route.first.public.outputs;
    for (k, WantedOutput { name, .. }) in wanted.iter().enumerate() {
        if known.iter().all(|output| *output.name != **name) {
            return Err(PredictError::UnknownOutput(name.clone()));
        }
        if wanted[..k].iter().any(|before| before.name == *name) {
            return Err(PredictError::DoubledOutput(name.clone()));
        }
    }
    Ok(())
}

/// The outputs in the order in which they were asked for, as they were asked for; all of them where
/// none was named. Every version of a chain has the same outputs in the same order.
fn select<'a>(
    route: &Route<'a>,
    answered: &'a Answered,
    asked: &Asked,
) -> Result<Vec<ResponseOutput<'a>>, ClassifyError> {
    let known = || route.first.public.outputs.iter().zip(&answered.outputs);
    if asked.outputs.is_empty() {
        let whole = known().map(|(spec, tensor)| ResponseOutput {
            name: &spec.name,
            tensor: Cow::Borrowed(tensor),
            binary: asked.binary_outputs,
        });
        return Ok(whole.collect());
    }
    let mut selected = Vec::with_capacity(asked.outputs.len());
    for wanted in &asked.outputs {
        let mut places = known().enumerate();
        let named = places.find(|(_, (spec, _))| *spec.name == *wanted.name);
        let Some((place, (spec, tensor))) = named else {
            continue;
        };
        selected.push(ResponseOutput {
            name: &spec.name,
            tensor: match wanted.classification {
                Some(count) => {
                    let version = answered.version.as_ref();
                    let labels = version.and_then(|version| version.labels.get(place));
                    let labels = labels.map_or(&[][..], |labels| labels);
                    Cow::Owned(oip::classify(spec, tensor, count, labels)?)
                }
                None => Cow::Borrowed(tensor),
            },
            binary: wanted.binary.unwrap_or(asked.binary_outputs),
        });
    }
    Ok(selected)
}

#[cfg(test)]
mod tests;
