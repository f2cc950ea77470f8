//! ONNX Runtime, where its library is found.
//!
//! Owns: finding and loading the library once for the process, and sessions on one thread that do
//! not spin. A session is not shared: a serving thread has its own, with shared prepacked weights.
//! Trap: `ort` panics where its library is missing or too old; nothing of `ort` is called before
//! the library is known to be good. Older than 1.28 is refused: it reads memory that a model names.

mod value;
mod watchdog;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::session::{Session, SessionInputValue};
use ort::value::Outlet;

use crate::onnx::OnnxFile;
use crate::signature::TensorSpec;
use crate::tensor::Tensor;
use value::{from_ort, into_ort};
use watchdog::Watch;

/// Names a library of ONNX Runtime; when it is set, no other place is tried.
const LIBRARY_VARIABLE: &str = "LOOPGATE_ORT_LIB";
const LIBRARY_NAME: &str = "libonnxruntime.so";
/// Bytes of one folded constant; a model of 152 bytes can else take 287 MB while it loads.
const FOLDED_BYTES_MAX: &str = "16777216";

/// The library of ONNX Runtime that this process uses, loaded at the first call.
///
/// `LOOPGATE_ORT_LIB` names it; else it is looked for in `../lib` beside the folder of the
/// executable, in `~/.cache/loopgate/onnxruntime` and where the system keeps its libraries.
///
/// # Errors
/// In a sentence, when none is found or the one found cannot be used.
pub fn onnx_runtime_available() -> Result<PathBuf, String> {
    runtime().map(|runtime| runtime.library.clone())
}

struct Runtime {
    library: PathBuf,
    environment: Environment,
}

fn runtime() -> Result<&'static Runtime, String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        // A library that is no ONNX Runtime makes `ort` panic; that is a library not found.
        catch_unwind(start).unwrap_or_else(|_| Err("the library is no onnx runtime".to_owned()))
    });
    runtime.as_ref().map_err(String::clone)
}

fn start() -> Result<Runtime, String> {
    let named = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty());
    let candidates = match named {
        Some(path) => vec![PathBuf::from(path)],
        None => usual_places(),
    };
    let mut reason = String::new();
    for library in candidates {
        match ort::init_from(&library) {
            Ok(builder) => {
                let environment = builder
                    .with_name("loopgate")
                    .with_telemetry(false)
                    .build()
                    .map_err(|error| error.to_string())?;
                environment.set_log_level(LogLevel::Error);
                return Ok(Runtime {
                    library,
                    environment,
                });
            }
            Err(error) => reason = error.to_string(),
        }
    }
    Err(format!("no library of onnx runtime: {reason}"))
}

/// Files that exist, in order of preference, and at the end the system's search by name.
fn usual_places() -> Vec<PathBuf> {
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.join("../lib").join(LIBRARY_NAME)));
    let cached = std::env::var_os("HOME").map(|home| {
        Path::new(&home)
            .join(".cache/loopgate/onnxruntime")
            .join(LIBRARY_NAME)
    });
    let mut places: Vec<_> = [beside, cached]
        .into_iter()
        .flatten()
        .filter(|path| path.is_file())
        .collect();
    places.push(PathBuf::from(LIBRARY_NAME));
    places
}

/// The bytes of a model and the weights that its sessions share.
#[derive(Debug)]
pub(crate) struct RuntimeModel {
    file: OnnxFile,
    weights: PrepackedWeights,
}

impl RuntimeModel {
    /// Makes a session once, so that what the library refuses is refused here.
    ///
    /// # Errors
    /// In a sentence, when there is no library or it does not take the file.
    pub(crate) fn load(file: &OnnxFile) -> Result<Self, String> {
        runtime()?;
        let model = Self {
            file: file.clone(),
            weights: PrepackedWeights::new(),
        };
        RuntimeSession::new(&model)?;
        Ok(model)
    }
}

/// One thread's session of a [`RuntimeModel`].
#[derive(Debug)]
pub(crate) struct RuntimeSession {
    session: Session,
    watch: Arc<Watch>,
}

/// Why a run gave no outputs.
#[derive(Debug)]
pub(crate) enum RunFailure {
    /// Its deadline passed.
    Stopped,
    /// It wanted more memory than there is.
    Memory(String),
    Failed(String),
}

impl RunFailure {
    fn of(reason: String) -> Self {
        match wants_memory(&reason) {
            true => Self::Memory(reason),
            false => Self::Failed(reason),
        }
    }
}

/// Whether the library failed for want of memory: it has no code for that, only its words.
pub(crate) fn wants_memory(reason: &str) -> bool {
    reason.to_ascii_lowercase().contains("alloc")
}

impl RuntimeSession {
    pub(crate) fn new(model: &RuntimeModel) -> Result<Self, String> {
        let environment = &runtime()?.environment;
        let (session, watch) = guarded(|| {
            let builder = Session::builder(environment)?
                .with_intra_threads(1)?
                .with_inter_threads(1)?
                .with_intra_op_spinning(false)?
                .with_inter_op_spinning(false)?
                .with_optimization_level(GraphOptimizationLevel::All)?
                .with_log_level(LogLevel::Error)?
                .with_config_entry("session.load_model_format", "ONNX")?
                .with_config_entry(
                    "optimization.constant_folding_max_output_size_in_bytes",
                    FOLDED_BYTES_MAX,
                )?;
            let mut builder = builder.with_prepacked_weights(&model.weights)?;
            let session = builder.commit_from_memory(model.file.bytes())?;
            Ok((session, Watch::new()?))
        })?;
        let signature = model.file.signature();
        // Values go in and come out by their place.
        if !has_names(session.inputs(), &signature.inputs)
            || !has_names(session.outputs(), &signature.outputs)
        {
            return Err("its inputs or outputs differ from those of the file".to_owned());
        }
        Ok(Self { session, watch })
    }

    /// Runs until `deadline` at the longest; the session is good for the next run afterwards.
    pub(crate) fn run(
        &mut self,
        inputs: &[Tensor],
        deadline: Option<Instant>,
    ) -> Result<Vec<Tensor>, RunFailure> {
        let Some(deadline) = deadline else {
            return run(&mut self.session, &self.watch, inputs).map_err(RunFailure::of);
        };
        self.watch.arm(deadline).map_err(RunFailure::Failed)?;
        let outputs = run(&mut self.session, &self.watch, inputs);
        let is_stopped = guarded(|| self.watch.disarm()).map_err(RunFailure::Failed)?;
        // A run that was over before the stop reached it has its outputs.
        outputs.map_err(|reason| match is_stopped {
            true => RunFailure::Stopped,
            false => RunFailure::of(reason),
        })
    }
}

fn run(session: &mut Session, watch: &Watch, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
    guarded(|| {
        let values: Vec<SessionInputValue<'_>> =
            inputs.iter().map(into_ort).collect::<ort::Result<_>>()?;
        let outputs = session.run_with_options(values.as_slice(), watch.options())?;
        outputs.values().map(|value| from_ort(&value)).collect()
    })
}

fn has_names(found: &[Outlet], expected: &[TensorSpec]) -> bool {
    let names = expected.iter().map(|spec| spec.name.as_str());
    found.iter().map(Outlet::name).eq(names)
}

/// Errors in one line; a panic of `ort` as an error.
fn guarded<T>(work: impl FnOnce() -> ort::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| without_places(&error.to_string())),
        Err(_) => Err("onnx runtime panicked on the model".to_owned()),
    }
}

/// A message on one line, without the places in its own sources that the library names: a path,
/// and the signature of a function after it.
fn without_places(message: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let one_line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = one_line.as_str();
    while let Some((before, place)) = rest.split_once("/onnxruntime") {
        kept.push(before.trim_end());
        let after = place.split_once(' ').map_or("", |(_, after)| after);
        rest = without_signature(after);
    }
    kept.push(rest);
    kept.retain(|part| !part.is_empty());
    kept.join(" ")
}

/// What follows `void* ns::Type::function(arguments)`, where a message begins so.
fn without_signature(message: &str) -> &str {
    let Some(open) = message.find('(') else {
        return message;
    };
    let (name, arguments) = message.split_at(open);
    if !name.contains("::") {
        return message;
    }
    let mut depth = 0;
    let close = arguments.find(|letter| {
        depth += i32::from(letter == '(') - i32::from(letter == ')');
        depth == 0
    });
    close.map_or(message, |close| arguments[close + 1..].trim_start())
}

#[cfg(test)]
mod tests {
    use super::without_places;

    #[test]
    fn messages_tell_no_places_in_sources() {
        let message = "Load model from memory failed:/onnxruntime_src/onnxruntime/core/graph/model.cc:145\nUnsupported IR version: 99 /onnxruntime_src/x.h:1";
        assert_eq!(
            without_places(message),
            "Load model from memory failed: Unsupported IR version: 99"
        );
        let message = "Status Message: /onnxruntime_src/onnxruntime/core/framework/bfc_arena.cc:359 void* onnxruntime::BFCArena::AllocateRawInternal(size_t, bool, onnxruntime::Stream*) Failed to allocate memory";
        assert_eq!(
            without_places(message),
            "Status Message: Failed to allocate memory"
        );
    }
}
