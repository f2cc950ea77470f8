//! A loaded version: a model, what it takes from a caller, and a session for each thread that runs it.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use engine::{
    DataType, LoadError, Model, ParityReport, RunError, Session, Signature, Tensor, TensorSpec,
};
use featurestore::{FieldType, Service};

use super::statistics::Statistics;
use crate::batcher::is_rowwise;
use crate::breaker::{Breaker, BreakerRules};
use crate::cost::CostModel;
use crate::pool::Backlog;

/// Of so many cheap runs in place one is timed, once the cost is known.
const TIMED_EVERY: u32 = 8;

/// Which session of each version a thread runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat(usize);

impl Seat {
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

/// Who runs models, and what one run may hold.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seats {
    pub serving: usize,
    /// Workers of the pool.
    pub pool: usize,
    /// What a serving thread may spend on one run; dearer ones go to the pool.
    pub in_place: Duration,
    /// Rows of one batch.
    pub batch_rows: usize,
    /// When a version that fails is left alone.
    pub breaker: BreakerRules,
}

impl Seats {
    /// As many workers as serving threads, and the defaults of the configuration.
    pub(crate) fn new(serving: usize) -> Self {
        Self {
            serving,
            pool: serving,
            in_place: Duration::from_micros(100),
            batch_rows: 64,
            breaker: BreakerRules::default(),
        }
    }

    pub(crate) fn serving(self, thread: usize) -> Seat {
        Seat(thread.min(self.serving.saturating_sub(1)))
    }

    pub(crate) fn shadow(self) -> Seat {
        Seat(self.serving)
    }

    pub(crate) fn grpc(self) -> Seat {
        Seat(self.serving + 1)
    }

    /// The seats of the pool's workers.
    pub(crate) fn pool(self) -> Vec<Seat> {
        (0..self.pool).map(|k| Seat(self.serving + 2 + k)).collect()
    }

    /// Every seat.
    pub(crate) fn all(self) -> impl Iterator<Item = Seat> {
        (0..self.count()).map(Seat)
    }

    pub(crate) fn count(self) -> usize {
        self.serving + 2 + self.pool
    }
}

/// What a loaded version is made from.
pub(crate) struct NewVersion {
    pub model: Arc<str>,
    pub version: u32,
    pub engine: Model,
    /// How the engines compared when the model was loaded with `engine = "auto"`.
    pub parity: Option<ParityReport>,
    /// `None` for a model that takes its tensors as they come.
    pub service: Option<Arc<Service>>,
    /// Rows of one request, where the version has a limit of its own.
    pub rows_max: Option<usize>,
    /// What the columns of an output are called, by its name.
    pub labels: Labels,
}

/// The labels of classes, by the output that has a column for each.
pub(crate) type Labels = BTreeMap<String, Vec<String>>;

/// The label of each class of one output.
type ClassLabels = Box<[Box<str>]>;

/// A version that can answer.
pub(crate) struct LoadedVersion {
    pub model: Arc<str>,
    pub version: u32,
    /// The version as responses write it.
    pub label: Box<str>,
    pub engine: Model,
    pub parity: Option<ParityReport>,
    pub service: Option<Arc<Service>>,
    /// The service's `name@version`, shared by the records.
    pub service_id: Option<Arc<str>>,
    /// Rows of one request, where the version has a limit of its own.
    pub rows_max: Option<usize>,
    /// What callers send and get: with a service its request fields, else the model's own inputs.
    pub public: Signature,
    /// The labels of each output's classes; empty where they have none.
    pub labels: Box<[ClassLabels]>,
    pub statistics: Statistics,
    /// What its runs take.
    pub cost: CostModel,
    /// What waits for it in the pool.
    pub backlog: Backlog,
    pub breaker: Breaker,
    /// What it ran when it was loaded: a version that fails on this too does not work.
    pub known_good: Option<Vec<Tensor>>,
    /// Rows of one batch; 1 where requests cannot share a run.
    batch_rows: usize,
    /// One for each seat. A thread uses its own seat only, so no lock is ever waited for; the mutex
    /// is what lends `&mut` through the shared table.
    sessions: Box<[Mutex<Seated>]>,
}

/// A session and the runs that it has done.
struct Seated {
    session: Session,
    runs: u32,
}

impl Seated {
    fn runs_still(&mut self, inputs: &[Tensor], until: Option<Instant>) -> bool {
        let run = || self.session.run_until(inputs, until).is_ok();
        catch_unwind(AssertUnwindSafe(run)).unwrap_or(false)
    }
}

/// Why a model cannot serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BindError {
    #[error(
        "feature service `{service}` gives one FP32 tensor of {features} columns, but the model takes {found}"
    )]
    Signature {
        service: String,
        features: usize,
        found: String,
    },
    #[error("labels are given for output `{0}`, which the model does not have")]
    Labels(String),
    #[error(transparent)]
    Load(#[from] LoadError),
}

/// Why a run gave no outputs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunFailure {
    #[error(transparent)]
    Engine(#[from] RunError),
    #[error("engine panicked")]
    Panicked,
    /// The version runs what it ran when it was loaded, so this is not its fault, or not alone.
    #[error("{0}, on these inputs only")]
    OnTheseInputs(RunError),
}

impl LoadedVersion {
    /// Makes the sessions and checks that the model takes what its service gives.
    pub(crate) fn new(new: NewVersion, seats: Seats) -> Result<Self, BindError> {
        let public = match &new.service {
            Some(service) => public_signature(service, new.engine.signature())?,
            None => new.engine.signature().clone(),
        };
        let labels = labels(&public, new.labels)?;
        let seated = |_| {
            let session = new.engine.session()?;
            Ok::<_, LoadError>(Mutex::new(Seated { session, runs: 0 }))
        };
        let sessions = (0..seats.count()).map(seated).collect::<Result<_, _>>()?;
        let mut version = Self {
            label: new.version.to_string().into(),
            service_id: new.service.as_ref().map(|service| service.id().into()),
            model: new.model,
            version: new.version,
            engine: new.engine,
            parity: new.parity,
            service: new.service,
            rows_max: new.rows_max,
            public,
            labels,
            statistics: Statistics::new(seats.count()),
            cost: CostModel::new(seats.in_place),
            backlog: Backlog::default(),
            breaker: Breaker::new(seats.breaker),
            known_good: None,
            batch_rows: 1,
            sessions,
        };
        let run = |inputs: &[Tensor]| version.run(seats.shadow(), inputs).ok();
        if is_rowwise(version.engine.signature(), run) {
            version.batch_rows = seats.batch_rows;
        }
        Ok(version)
    }

    /// The rows that these inputs hold; 1 where no axis says.
    pub(crate) fn rows(&self, inputs: &[Tensor]) -> usize {
        self.engine.signature().rows(inputs).unwrap_or(1)
    }

    /// The most rows that requests may share a run with; 1 where they cannot. More than pays is not
    /// shared: everybody in a batch waits for all of it.
    pub(crate) fn batch_rows(&self) -> usize {
        self.cost.cost().rows_that_pay(self.batch_rows)
    }

    /// [`LoadedVersion::run_until`], however long it takes.
    pub(crate) fn run(&self, seat: Seat, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunFailure> {
        self.run_until(seat, inputs, None)
    }

    /// Runs on this thread, with its own session, and learns what it took; a run of ONNX Runtime is
    /// stopped at `until`. A panic of the engine is an error like another: its session is replaced,
    /// since its state is unknown. After an error of the engine what is known to run is run once, to
    /// tell a version that is broken from inputs that it cannot take.
    pub(crate) fn run_until(
        &self,
        seat: Seat,
        inputs: &[Tensor],
        until: Option<Instant>,
    ) -> Result<Vec<Tensor>, RunFailure> {
        let mut seated = self.sessions[seat.0]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let rows = self.rows(inputs);
        seated.runs = seated.runs.wrapping_add(1);
        let is_timed = seated.runs.is_multiple_of(TIMED_EVERY)
            || self.cost.is_young()
            || !self.cost.is_in_place(rows);
        let began = is_timed.then(Instant::now);
        match catch_unwind(AssertUnwindSafe(|| seated.session.run_until(inputs, until))) {
            Ok(Ok(outputs)) => {
                if let Some(began) = began {
                    self.cost.observe(rows, began.elapsed());
                }
                Ok(outputs)
            }
            Ok(Err(error @ (RunError::Engine { .. } | RunError::Memory { .. }))) => {
                match &self.known_good {
                    Some(inputs) if seated.runs_still(inputs, until) => {
                        Err(RunFailure::OnTheseInputs(error))
                    }
                    _ => Err(error.into()),
                }
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => {
                if let Ok(fresh) = self.engine.session() {
                    seated.session = fresh;
                }
                Err(RunFailure::Panicked)
            }
        }
    }

    /// Whether a caller of `other` can be answered by this version: it can read the request and
    /// gives the same outputs.
    pub(crate) fn can_answer_for(&self, other: &Self) -> bool {
        let same = |(mine, theirs): (&TensorSpec, &TensorSpec)| {
            mine.name == theirs.name && mine.datatype == theirs.datatype
        };
        let (mine, theirs) = (&self.public.outputs, &other.public.outputs);
        self.can_read_for(other) && mine.len() == theirs.len() && mine.iter().zip(theirs).all(same)
    }

    /// Whether this version can score a request for `other`: both assemble their rows from request
    /// fields, or both take the same tensors.
    pub(crate) fn can_read_for(&self, other: &Self) -> bool {
        match (&self.service, &other.service) {
            (Some(mine), Some(theirs)) => {
                let known = |name: &str| theirs.request_field(name).is_some();
                mine.request.iter().all(|field| known(&field.name))
            }
            (None, None) => self.public.inputs == other.public.inputs,
            _ => false,
        }
    }
}

/// The labels in the order of the outputs.
fn labels(public: &Signature, mut labels: Labels) -> Result<Box<[ClassLabels]>, BindError> {
    let outputs = public.outputs.iter();
    let in_order = outputs.map(|output| {
        let of_output = labels.remove(&output.name).unwrap_or_default();
        of_output.into_iter().map(String::into_boxed_str).collect()
    });
    let in_order = in_order.collect();
    match labels.pop_first() {
        Some((output, _)) => Err(BindError::Labels(output)),
        None => Ok(in_order),
    }
}

fn public_signature(service: &Service, model: &Signature) -> Result<Signature, BindError> {
    let features = service.features.len();
    let takes_the_row = |input: &TensorSpec| {
        let columns = input.shape.get(1).copied().unwrap_or(0);
        input.datatype == DataType::Fp32
            && input.shape.len() == 2
            && input.shape[0] < 0
            && (columns < 0 || usize::try_from(columns) == Ok(features))
    };
    match &model.inputs[..] {
        [input] if takes_the_row(input) => {}
        inputs => {
            let shown: Vec<_> = inputs
                .iter()
                .map(|input| format!("{} {} {:?}", input.name, input.datatype, input.shape))
                .collect();
            return Err(BindError::Signature {
                service: service.id().to_owned(),
                features,
                found: format!("({})", shown.join(", ")),
            });
        }
    }
    Ok(Signature {
        inputs: request_tensors(service),
        outputs: model.outputs.clone(),
    })
}

/// What a request of a service brings: a tensor of one axis for each field.
pub(crate) fn request_tensors(service: &Service) -> Vec<TensorSpec> {
    let fields = service.request.iter();
    fields
        .map(|field| TensorSpec {
            name: field.name.to_string(),
            datatype: match field.ty {
                FieldType::Bool => DataType::Bool,
                FieldType::Int | FieldType::Time => DataType::Int64,
                FieldType::Float => DataType::Fp64,
                FieldType::String => DataType::Bytes,
            },
            shape: vec![-1],
        })
        .collect()
}
