//! ONNX Runtime, where its library is found.
//!
//! Owns: finding and loading the library once for the process, and sessions on one thread that do
//! not spin. A session is not shared: a serving thread has its own, with shared prepacked weights.
//! Trap: `ort` panics where its library is missing or too old; nothing of `ort` is called before
//! the library is known to be good. Older than 1.28 is refused: it reads memory that a model names.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::builder::{GraphOptimizationLevel, PrepackedWeights};
use ort::session::{Session, SessionInputValue};
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};

use crate::onnx::OnnxFile;
use crate::tensor::{Tensor, TensorData};

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
    /// Names of the inputs and outputs in the order of the signature.
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl RuntimeSession {
    pub(crate) fn new(model: &RuntimeModel) -> Result<Self, String> {
        let environment = &runtime()?.environment;
        let session = guarded(|| {
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
            builder.commit_from_memory(model.file.bytes())
        })?;
        let signature = model.file.signature();
        let names = |specs: &[crate::TensorSpec]| specs.iter().map(|s| s.name.clone()).collect();
        Ok(Self {
            session,
            inputs: names(&signature.inputs),
            outputs: names(&signature.outputs),
        })
    }

    pub(crate) fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, String> {
        let names = &self.inputs;
        let session = &mut self.session;
        let wanted = &self.outputs;
        guarded(|| {
            let values = inputs
                .iter()
                .zip(names)
                .map(|(tensor, name)| Ok((name.as_str(), into_ort(tensor)?)))
                .collect::<ort::Result<Vec<_>>>()?;
            let outputs = session.run(values)?;
            let find = |name: &String| {
                let value = outputs
                    .get(name)
                    .ok_or_else(|| ort::Error::new(format!("output `{name}` is missing")))?;
                from_ort(value)
            };
            wanted.iter().map(find).collect()
        })
    }
}

/// Errors in one line; a panic of `ort` as an error.
fn guarded<T>(work: impl FnOnce() -> ort::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string().replace('\n', " ")),
        Err(_) => Err("onnx runtime panicked on the model".to_owned()),
    }
}

fn into_ort(tensor: &Tensor) -> ort::Result<SessionInputValue<'_>> {
    let shape = tensor.shape();
    Ok(match tensor.data() {
        TensorData::Bool(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint8(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint16(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Uint64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int8(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int16(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Int64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Fp32(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Fp64(v) => TensorRef::from_array_view((shape, v.as_slice()))?.into(),
        TensorData::Fp16(v) => {
            let halves: &[f16] = v.reinterpret_cast();
            TensorRef::from_array_view((shape, halves))?.into()
        }
        TensorData::Bf16(v) => {
            let halves: &[bf16] = v.reinterpret_cast();
            TensorRef::from_array_view((shape, halves))?.into()
        }
        TensorData::Bytes(v) => {
            let text = v.iter().map(|bytes| String::from_utf8(bytes.clone()));
            let text = text
                .collect::<Result<Vec<_>, _>>()
                .map_err(ort::Error::wrap)?;
            ort::value::Tensor::from_string_array((shape, text.as_slice()))?.into()
        }
    })
}

fn from_ort(value: &DynValue) -> ort::Result<Tensor> {
    use TensorElementType as Type;
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(ort::Error::new("an output is no tensor"));
    };
    macro_rules! copied {
        ($variant:ident) => {
            TensorData::$variant(value.try_extract_tensor()?.1.to_vec())
        };
    }
    let data = match ty {
        Type::Bool => copied!(Bool),
        Type::Uint8 => copied!(Uint8),
        Type::Uint16 => copied!(Uint16),
        Type::Uint32 => copied!(Uint32),
        Type::Uint64 => copied!(Uint64),
        Type::Int8 => copied!(Int8),
        Type::Int16 => copied!(Int16),
        Type::Int32 => copied!(Int32),
        Type::Int64 => copied!(Int64),
        Type::Float16 => {
            let (_, halves) = value.try_extract_tensor::<f16>()?;
            TensorData::Fp16(halves.reinterpret_cast().to_vec())
        }
        Type::Bfloat16 => {
            let (_, halves) = value.try_extract_tensor::<bf16>()?;
            TensorData::Bf16(halves.reinterpret_cast().to_vec())
        }
        Type::Float32 => copied!(Fp32),
        Type::Float64 => copied!(Fp64),
        Type::String => {
            let (_, text) = value.try_extract_strings()?;
            TensorData::Bytes(text.into_iter().map(String::into_bytes).collect())
        }
        other => {
            return Err(ort::Error::new(format!(
                "outputs of {other} are not supported"
            )));
        }
    };
    let shape = shape.iter().map(|&dim| usize::try_from(dim).unwrap_or(0));
    Tensor::new(shape.collect(), data).map_err(ort::Error::wrap)
}
