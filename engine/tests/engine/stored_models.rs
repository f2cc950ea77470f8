//! Models of the exporters that people use, in small: what each needs, and that it gives what
//! Python's onnxruntime gives. `engine/tests/models/make.py` writes them.

use std::path::Path;

use engine::{DataType, EngineKind, OnnxFile, Signature, Tensor, TensorData};

use crate::case;
use crate::fixture::check_bytes;

/// Another folder of models in the same form, such as large ones that are not kept here.
const FOLDER_VARIABLE: &str = "LOOPGATE_ONNX_MODELS";

fn kept() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/models"))
}

fn file(name: &str) -> OnnxFile {
    let bytes = std::fs::read(kept().join(name).join("model.onnx")).unwrap();
    check_bytes(&bytes).unwrap()
}

/// `name: DATATYPE[shape]` of each input, an arrow, and of each output.
fn shown(signature: &Signature) -> String {
    let side = |specs: &[engine::TensorSpec]| {
        let specs = specs.iter();
        let texts = specs.map(|spec| format!("{}: {}{:?}", spec.name, spec.datatype, spec.shape));
        texts.collect::<Vec<_>>().join(", ")
    };
    format!(
        "{} -> {}",
        side(&signature.inputs),
        side(&signature.outputs)
    )
}

#[test]
fn stored_models_give_what_python_gives() {
    let mut cases = case::all(kept());
    assert!(cases.len() >= 11, "{}", cases.len());
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE) {
        cases.extend(case::all(Path::new(&folder)));
    }
    let mut engines = EngineKind::ALL.to_vec();
    if let Err(reason) = engine::onnx_runtime_available() {
        println!("SKIPPED onnxruntime: {reason}");
        engines.retain(|&engine| engine != EngineKind::OnnxRuntime);
    }
    for case in &cases {
        for &engine in &engines {
            let passed = case::pass(case, engine);
            println!("{} {engine}: {passed:?}", case.display());
            match passed {
                Err(reason) if engine == EngineKind::OnnxRuntime => panic!("{reason}"),
                // The built-in engines may leave a model to others, but not run it otherwise.
                Err(reason) => assert!(reason.starts_with("load: "), "{reason}"),
                Ok(()) => {}
            }
        }
    }
}

#[test]
fn a_zip_map_is_served_as_the_tensor_that_it_hides() {
    for (name, expected) in [
        (
            "sklearn_zipmap",
            "X: FP32[-1, 4] -> output_label: INT64[-1], output_probability: FP32[-1, 3]",
        ),
        (
            "sklearn_zipmap_text_labels",
            "X: FP32[-1, 4] -> output_label: BYTES[-1], output_probability: FP32[-1, 3]",
        ),
        // onnxmltools declares one label whatever the batch.
        (
            "lightgbm_zipmap",
            "X: FP32[-1, 4] -> label: INT64[-1], probabilities: FP32[-1, 3]",
        ),
    ] {
        let file = file(name);
        assert_eq!(shown(file.signature()), expected);
        assert!(file.operators().iter().all(|used| used.name != "ZipMap"));
    }
}

#[test]
fn a_default_is_no_input_and_a_model_may_have_none() {
    let default = file("input_with_default");
    assert_eq!(shown(default.signature()), "x: FP32[-1] -> y: FP32[-1]");
    let none = file("no_input");
    assert_eq!(shown(none.signature()), " -> y: FP32[2]");
}

#[test]
fn rows_are_counted_where_the_first_axis_is_a_batch() {
    let zeros = |datatype: DataType, shape: &[usize]| {
        let count = shape.iter().product();
        let data = match datatype {
            DataType::Fp32 => TensorData::Fp32(vec![0.0; count]),
            other => panic!("{other}"),
        };
        Tensor::new(shape.to_vec(), data).unwrap()
    };
    let rows = |name: &str, shapes: &[&[usize]]| {
        let file = file(name);
        let inputs: Vec<_> = shapes.iter().map(|s| zeros(DataType::Fp32, s)).collect();
        file.signature().rows(&inputs)
    };
    assert_eq!(rows("sklearn_zipmap", &[&[5, 4]]), Some(5));
    assert_eq!(rows("state", &[&[3, 4], &[2, 3, 4]]), Some(3));
    for (name, shape) in [("first_axis_fixed", &[2, 3][..]), ("scalar", &[])] {
        assert_eq!(rows(name, &[shape]), None, "{name} is served as it is");
    }
    assert_eq!(rows("no_input", &[]), None);
}
