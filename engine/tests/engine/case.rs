//! A model in a folder as ONNX keeps its own: `model.onnx`, and inputs and outputs in
//! `test_data_set_N`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::proto::{Message, ModelProto, TensorProto};
use engine::{CheckError, EngineKind, Model, OnnxFile, Tensor, TensorData};
use half::{bf16, f16};

use crate::fixture::check_bytes;

/// Far more than any of them needs.
const RUN_FOR: Duration = Duration::from_secs(60);

/// The models' folders in `folder`, by name.
pub(crate) fn all(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut cases: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("model.onnx").is_file())
        .collect();
    cases.sort();
    cases
}

/// Runs every data set of one model; the error says at which step it fails.
pub(crate) fn pass(case: &Path, engine: EngineKind) -> Result<(), String> {
    let bytes = fs::read(case.join("model.onnx")).unwrap();
    let file = check_bytes(&bytes).map_err(|error| match error {
        CheckError::Value { problem, .. } => format!("check: value {problem}"),
        other => format!("check: {other}"),
    })?;
    let model = Model::load(&file, engine).map_err(|error| format!("load: {error}"))?;
    let mut session = model
        .session()
        .map_err(|error| format!("session: {error}"))?;
    let names = Names::of(&bytes);
    for set in (0..).map(|k| case.join(format!("test_data_set_{k}"))) {
        if !set.is_dir() {
            break;
        }
        let inputs = inputs(&set, &names.inputs, &file)?;
        let found = session
            .run_until(&inputs, Some(Instant::now() + RUN_FOR))
            .map_err(|error| format!("run: {error}"))?;
        let expected = outputs(&set)?;
        assert_eq!(found.len(), expected.len());
        for ((found, expected), name) in found.iter().zip(&expected).zip(&names.outputs) {
            compare(found, expected).map_err(|problem| format!("output {name}: {problem}"))?;
        }
    }
    Ok(())
}

/// Inputs and outputs of the graph in the order of the data files.
struct Names {
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Names {
    fn of(bytes: &[u8]) -> Self {
        let graph = ModelProto::decode(bytes).unwrap().graph.unwrap();
        Self {
            inputs: graph.input.into_iter().map(|value| value.name).collect(),
            outputs: graph.output.into_iter().map(|value| value.name).collect(),
        }
    }
}

/// Those that the signature asks for; the rest are initializers with a default.
fn inputs(set: &Path, names: &[String], file: &OnnxFile) -> Result<Vec<Tensor>, String> {
    let specs = file.signature().inputs.iter();
    let place = |name: &str| names.iter().position(|other| other == name).unwrap();
    let read = |name: &str| {
        let path = set.join(format!("input_{}.pb", place(name)));
        tensor(&fs::read(path).unwrap())
    };
    specs.map(|spec| read(&spec.name)).collect()
}

fn outputs(set: &Path) -> Result<Vec<Tensor>, String> {
    let paths = (0..).map(|k| set.join(format!("output_{k}.pb")));
    let bytes = paths.map_while(|path| fs::read(path).ok());
    bytes.map(|bytes| tensor(&bytes)).collect()
}

fn tensor(bytes: &[u8]) -> Result<Tensor, String> {
    let proto = TensorProto::decode(bytes).map_err(|error| format!("data: {error}"))?;
    let raw = &proto.raw_data;
    macro_rules! elements {
        ($variant:ident, $type:ty, $typed:expr) => {{
            let (chunks, _) = raw.as_chunks::<{ size_of::<$type>() }>();
            let stored = chunks.iter().map(|&chunk| <$type>::from_le_bytes(chunk));
            let typed = $typed.iter().map(|&value| value as $type);
            TensorData::$variant(stored.chain(typed).collect())
        }};
    }
    let narrow = &proto.int32_data;
    let data = match proto.data_type {
        1 => elements!(Fp32, f32, proto.float_data),
        2 => elements!(Uint8, u8, narrow),
        3 => elements!(Int8, i8, narrow),
        4 => elements!(Uint16, u16, narrow),
        5 => elements!(Int16, i16, narrow),
        6 => elements!(Int32, i32, narrow),
        7 => elements!(Int64, i64, proto.int64_data),
        8 => TensorData::Bytes(proto.string_data.clone()),
        9 => {
            let typed = narrow.iter().map(|&value| value != 0);
            TensorData::Bool(raw.iter().map(|&byte| byte != 0).chain(typed).collect())
        }
        10 => elements!(Fp16, u16, narrow),
        11 => elements!(Fp64, f64, proto.double_data),
        12 => elements!(Uint32, u32, proto.uint64_data),
        13 => elements!(Uint64, u64, proto.uint64_data),
        16 => elements!(Bf16, u16, narrow),
        other => return Err(format!("data: elements of type {other}")),
    };
    let shape = proto.dims.iter().map(|&dim| usize::try_from(dim).unwrap());
    Tensor::new(shape.collect(), data).map_err(|error| format!("data: {error}"))
}

/// As ONNX's own runner compares: relative 1e-3, with the absolute part that the type can hold.
fn compare(found: &Tensor, expected: &Tensor) -> Result<(), String> {
    if found.datatype() != expected.datatype() || found.shape() != expected.shape() {
        return Err("differs in type or shape".to_owned());
    }
    let (Some(a), Some(b)) = (numbers(found.data()), numbers(expected.data())) else {
        return match found.data() == expected.data() {
            true => Ok(()),
            false => Err("differs".to_owned()),
        };
    };
    let absolute = match found.data() {
        TensorData::Fp16(_) | TensorData::Bf16(_) => 1e-2,
        _ => 1e-5,
    };
    let agree = |(a, b): (&f64, &f64)| {
        a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= absolute + 1e-3 * b.abs()
    };
    match a.iter().zip(&b).all(agree) {
        true => Ok(()),
        false => Err("differs".to_owned()),
    }
}

fn numbers(data: &TensorData) -> Option<Vec<f64>> {
    Some(match data {
        TensorData::Fp16(bits) => bits.iter().map(|&b| f16::from_bits(b).to_f64()).collect(),
        TensorData::Bf16(bits) => bits.iter().map(|&b| bf16::from_bits(b).to_f64()).collect(),
        TensorData::Fp32(values) => values.iter().map(|&value| value.into()).collect(),
        TensorData::Fp64(values) => values.clone(),
        _ => return None,
    })
}
