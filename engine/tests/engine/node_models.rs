//! ONNX's own models of single operators, with the inputs and outputs that the standard gives.
//!
//! `make node-models` fetches them and runs this; without them it says that it is skipped.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::proto::{Message, ModelProto, TensorProto};
use engine::{CheckError, EngineKind, Model, OnnxFile, Tensor, TensorData};
use half::{bf16, f16};

use crate::fixture::check_bytes;

const FOLDER_VARIABLE: &str = "LOOPGATE_ONNX_NODE_MODELS";
/// Models in the wheel of onnx 1.22.0.
const MODELS: usize = 1_765;
/// Of them, those that pass, less a few: 1,500 and 985 did, and rounding differs between processors.
/// ONNX Runtime 1.32 passes 1,490 in Python, where it has no BF16. 193 have no protocol form.
const PASSED_MIN: [(EngineKind, usize); 2] =
    [(EngineKind::OnnxRuntime, 1_490), (EngineKind::Tract, 975)];
/// Far more than any of them needs.
const RUN_FOR: Duration = Duration::from_secs(60);

#[test]
fn the_standards_node_models_give_the_standards_outputs() {
    let Some(folder) = std::env::var_os(FOLDER_VARIABLE) else {
        println!("SKIPPED node models: {FOLDER_VARIABLE} names no folder (make node-models)");
        return;
    };
    let mut cases: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("model.onnx").is_file())
        .collect();
    cases.sort();
    assert_eq!(cases.len(), MODELS);
    let runtime = engine::onnx_runtime_available();
    for (engine, passed_min) in PASSED_MIN {
        if engine == EngineKind::OnnxRuntime
            && let Err(reason) = &runtime
        {
            println!("SKIPPED onnxruntime: {reason}");
            continue;
        }
        let mut failures = BTreeMap::<String, Vec<String>>::new();
        for case in &cases {
            if let Err(reason) = pass(case, engine) {
                let name = case.file_name().unwrap().to_string_lossy().into_owned();
                failures.entry(reason).or_default().push(name);
            }
        }
        for (reason, names) in &failures {
            println!("{engine}: {} x {reason}: {}", names.len(), names.join(" "));
        }
        let passed = MODELS - failures.values().map(Vec::len).sum::<usize>();
        println!("{engine}: {passed} of {MODELS} node models pass");
        assert!(passed >= passed_min, "{engine} passes {passed} of {MODELS}");
    }
}

/// Runs every data set of one model; the error says at which step it fails.
fn pass(case: &Path, engine: EngineKind) -> Result<(), String> {
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
        let inputs = in_order(&read_all(&set, "input")?, &names.inputs, &file);
        let outputs = session
            .run_until(&inputs, Some(Instant::now() + RUN_FOR))
            .map_err(|error| format!("run: {error}"))?;
        let expected = read_all(&set, "output")?;
        for ((found, expected), name) in outputs.iter().zip(&expected).zip(&names.outputs) {
            compare(found, expected).map_err(|problem| format!("output {name}: {problem}"))?;
        }
        assert_eq!(outputs.len(), expected.len());
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

fn in_order(values: &[Tensor], names: &[String], file: &OnnxFile) -> Vec<Tensor> {
    let specs = file.signature().inputs.iter();
    let place = |name: &str| names.iter().position(|other| other == name).unwrap();
    specs
        .map(|spec| values[place(&spec.name)].clone())
        .collect()
}

fn read_all(set: &Path, prefix: &str) -> Result<Vec<Tensor>, String> {
    let paths = (0..).map(|k| set.join(format!("{prefix}_{k}.pb")));
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
