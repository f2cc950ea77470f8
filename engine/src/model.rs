//! A loaded model and its sessions, whatever engine runs them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::onnx::OnnxFile;
use crate::parity::{self, ParityReport};
use crate::runtime::{RunFailure, RuntimeModel, RuntimeSession};
use crate::signature::Signature;
use crate::tensor::Tensor;
use crate::tract::{TractModel, TractSession};
use crate::trees::{TreeModel, TreeSession};

/// What runs a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Our own evaluator of tree ensembles, built in.
    Trees,
    /// tract, built in.
    Tract,
    /// ONNX Runtime, where its library is found.
    OnnxRuntime,
}

impl EngineKind {
    /// Every engine.
    pub const ALL: [Self; 3] = [Self::Trees, Self::Tract, Self::OnnxRuntime];

    /// `trees`, `tract` or `onnxruntime`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trees => "trees",
            Self::Tract => "tract",
            Self::OnnxRuntime => "onnxruntime",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown engine `{0}`, expected trees, tract or onnxruntime")]
pub struct UnknownEngine(pub String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == name)
            .ok_or_else(|| UnknownEngine(name.to_owned()))
    }
}

/// A loaded model; cheap to clone and shared between threads, each of which runs a [`Session`].
#[derive(Clone, Debug)]
pub struct Model {
    loaded: Loaded,
    signature: Arc<Signature>,
}

#[derive(Clone, Debug)]
enum Loaded {
    Trees(Arc<TreeModel>),
    Tract(Arc<TractModel>),
    OnnxRuntime(Arc<RuntimeModel>),
}

impl Model {
    /// Loads a checked file with one engine.
    ///
    /// # Errors
    /// When the engine does not take the file, or its library is not there.
    pub fn load(file: &OnnxFile, kind: EngineKind) -> Result<Self, LoadError> {
        let loaded = match kind {
            EngineKind::Trees => TreeModel::load(file).map(|m| Loaded::Trees(Arc::new(m))),
            EngineKind::Tract => TractModel::load(file).map(|m| Loaded::Tract(Arc::new(m))),
            EngineKind::OnnxRuntime => {
                RuntimeModel::load(file).map(|m| Loaded::OnnxRuntime(Arc::new(m)))
            }
        };
        let loaded = loaded.map_err(|reason| LoadError::Refused {
            engine: kind,
            reason,
        })?;
        Ok(Self {
            loaded,
            signature: Arc::new(file.signature().clone()),
        })
    }

    /// Loads a checked file with every engine that takes it, compares their outputs on `samples`
    /// and keeps the fastest of those that agree with ONNX Runtime; where that does not run the
    /// file, with another one. A sample is one full list of inputs; speed is measured at the
    /// samples' batch sizes. One engine alone is kept as it is.
    /// Missing values in the samples count only where an operator of the file reads them (trees,
    /// `IsNaN`, `Imputer`); elsewhere they are compared as 0.
    ///
    /// # Errors
    /// When no engine runs the file on the samples, or without ONNX Runtime no two engines agree.
    pub fn load_auto(
        file: &OnnxFile,
        samples: &[Vec<Tensor>],
    ) -> Result<(Self, ParityReport), LoadError> {
        parity::choose(file, samples)
    }

    /// The engine that runs it.
    pub fn kind(&self) -> EngineKind {
        match self.loaded {
            Loaded::Trees(_) => EngineKind::Trees,
            Loaded::Tract(_) => EngineKind::Tract,
            Loaded::OnnxRuntime(_) => EngineKind::OnnxRuntime,
        }
    }

    /// What the model takes and gives.
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// A session for one thread.
    ///
    /// # Errors
    /// When the engine cannot make one, for want of memory.
    pub fn session(&self) -> Result<Session, LoadError> {
        let running = match &self.loaded {
            Loaded::Trees(model) => Ok(Running::Trees(TreeSession::new(Arc::clone(model)))),
            Loaded::Tract(model) => TractSession::new(model).map(|s| Running::Tract(Box::new(s))),
            Loaded::OnnxRuntime(model) => {
                RuntimeSession::new(model).map(|s| Running::OnnxRuntime(Box::new(s)))
            }
        };
        let running = running.map_err(|reason| LoadError::Refused {
            engine: self.kind(),
            reason,
        })?;
        Ok(Session {
            running,
            signature: Arc::clone(&self.signature),
        })
    }
}

/// One thread's way to run a model.
#[derive(Debug)]
pub struct Session {
    running: Running,
    signature: Arc<Signature>,
}

#[derive(Debug)]
enum Running {
    Trees(TreeSession),
    Tract(Box<TractSession>),
    OnnxRuntime(Box<RuntimeSession>),
}

impl Session {
    /// Runs one batch on the calling thread. Inputs and outputs stand in the order of the
    /// signature. Outputs may hold NaN or infinities.
    ///
    /// # Errors
    /// When the inputs do not fit the signature, which is the caller's fault, or the engine fails.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        self.run_until(inputs, None)
    }

    /// [`Session::run`], but ONNX Runtime is stopped when `deadline` has passed, within 5 ms and
    /// the kernel that is under way. A run that ends before it is stopped gives its outputs, late
    /// as they are. The session can be used again at once. The built-in engines run to their end:
    /// they take no model whose run has no bound.
    ///
    /// # Errors
    /// As [`Session::run`], and [`RunError::Stopped`].
    pub fn run_until(
        &mut self,
        inputs: &[Tensor],
        deadline: Option<Instant>,
    ) -> Result<Vec<Tensor>, RunError> {
        let specs = &self.signature.inputs;
        if inputs.len() != specs.len() {
            return Err(RunError::Count {
                expected: specs.len(),
                found: inputs.len(),
            });
        }
        for (spec, tensor) in specs.iter().zip(inputs) {
            if let Some(problem) = spec.mismatch(tensor) {
                return Err(RunError::Input {
                    name: spec.name.clone(),
                    problem,
                });
            }
        }
        let failed = RunFailure::Failed;
        let (engine, outputs) = match &mut self.running {
            Running::Trees(session) => (EngineKind::Trees, session.run(inputs).map_err(failed)),
            Running::Tract(session) => (EngineKind::Tract, session.run(inputs).map_err(failed)),
            Running::OnnxRuntime(session) => {
                (EngineKind::OnnxRuntime, session.run(inputs, deadline))
            }
        };
        let outputs = outputs.map_err(|failure| match failure {
            RunFailure::Stopped => RunError::Stopped { engine },
            RunFailure::Memory(reason) => RunError::Memory { engine, reason },
            RunFailure::Failed(reason) => RunError::Engine { engine, reason },
        })?;
        for (spec, tensor) in self.signature.outputs.iter().zip(&outputs) {
            if spec.datatype != tensor.datatype() {
                let reason = format!(
                    "output `{}` is {} where the file declares {}",
                    spec.name,
                    tensor.datatype(),
                    spec.datatype
                );
                return Err(RunError::Engine { engine, reason });
            }
        }
        Ok(outputs)
    }
}

/// Why a checked file was not loaded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// The engine that was asked for does not take the file.
    #[error("engine {engine} refuses the model: {reason}")]
    Refused {
        /// The engine.
        engine: EngineKind,
        /// Its reason, in a sentence.
        reason: String,
    },
    /// No engine takes the file.
    #[error("no engine runs the model: {}", refusals(.trials))]
    NoEngine {
        /// Every engine with its reason.
        trials: Vec<parity::EngineTrial>,
    },
    /// Engines run the file and give different outputs.
    #[error("engines disagree on the model by {difference_max:e}")]
    Disagree {
        /// The smallest of the largest differences between two engines.
        difference_max: f64,
        /// Every engine with its distance from the nearest other one.
        trials: Vec<parity::EngineTrial>,
    },
    /// There is nothing to compare engines on.
    #[error("no samples to compare engines on")]
    NoSamples,
}

fn refusals(trials: &[parity::EngineTrial]) -> String {
    let reasons: Vec<_> = trials
        .iter()
        .filter_map(|trial| Some(format!("{}: {}", trial.engine, trial.refused.as_ref()?)))
        .collect();
    reasons.join("; ")
}

/// Why a run gave no outputs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The caller gave another number of inputs.
    #[error("expected {expected} inputs, found {found}")]
    Count {
        /// Inputs of the signature.
        expected: usize,
        /// Inputs that came.
        found: usize,
    },
    /// An input does not fit its place in the signature.
    #[error("input `{name}`: {problem}")]
    Input {
        /// The input's name.
        name: String,
        /// What does not fit.
        problem: String,
    },
    /// The engine failed.
    #[error("engine {engine} failed: {reason}")]
    Engine {
        /// The engine.
        engine: EngineKind,
        /// Its reason.
        reason: String,
    },
    /// The engine wanted more memory than there is.
    #[error("engine {engine} has not the memory that it needs: {reason}")]
    Memory {
        /// The engine.
        engine: EngineKind,
        /// Its reason.
        reason: String,
    },
    /// The run outlived its deadline.
    #[error("engine {engine} was stopped at the deadline")]
    Stopped {
        /// The engine.
        engine: EngineKind,
    },
}
