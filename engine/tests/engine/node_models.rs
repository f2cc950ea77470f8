//! ONNX's own models of single operators, with the inputs and outputs that the standard gives.
//!
//! `make node-models` fetches them and runs this; without them it says that it is skipped.

use std::collections::BTreeMap;
use std::path::Path;

use engine::EngineKind;

use crate::case;

const FOLDER_VARIABLE: &str = "LOOPGATE_ONNX_NODE_MODELS";
/// Models in the wheel of onnx 1.22.0.
const MODELS: usize = 1_765;
/// Of them, those that pass, less a few: 1,500 and 985 did, and rounding differs between processors.
/// ONNX Runtime 1.32 passes 1,490 in Python, where it has no BF16. 193 have no protocol form.
const PASSED_MIN: [(EngineKind, usize); 2] =
    [(EngineKind::OnnxRuntime, 1_490), (EngineKind::Tract, 975)];

#[test]
fn the_standards_node_models_give_the_standards_outputs() {
    let Some(folder) = std::env::var_os(FOLDER_VARIABLE) else {
        println!("SKIPPED node models: {FOLDER_VARIABLE} names no folder (make node-models)");
        return;
    };
    let cases = case::all(Path::new(&folder));
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
            if let Err(reason) = case::pass(case, engine) {
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
