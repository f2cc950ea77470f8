//! tract: the built-in engine for everything that is not trees.
//!
//! Owns: parsing with the check's bytes, one symbol for the batch, one plan for each model and
//! one state for each session. Runs on the calling thread.
//! Trap: tract panics on some files that it does not know; a panic is a refusal here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use prost::Message;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::model::TypedRunnableModel;
use tract_onnx::tract_core::plan::SimpleState;
use tract_onnx::tract_hir::infer::Factoid;

use crate::onnx::OnnxFile;
use crate::signature::{Signature, TensorSpec};
use crate::tensor::{DataType, Tensor as OurTensor, TensorData};

/// An optimized plan, shared by all sessions.
#[derive(Debug)]
pub(crate) struct TractModel {
    plan: Arc<TypedRunnableModel>,
}

impl TractModel {
    /// # Errors
    /// In a sentence, when tract does not know an operator or cannot infer a shape.
    pub(crate) fn load(file: &OnnxFile) -> Result<Self, String> {
        let signature = file.signature();
        if let Some(spec) = unsupported(signature) {
            return Err(format!(
                "`{}` of {} is left to other engines",
                spec.name, spec.datatype
            ));
        }
        // A run of tract's cannot be stopped.
        if file
            .operators()
            .iter()
            .any(|o| o.domain == "ai.onnx" && o.name == "Loop")
        {
            return Err("`Loop`, whose run has no bound, is left to ONNX Runtime".to_owned());
        }
        guarded(|| plan(file.bytes(), signature)).map(|plan| Self { plan })
    }
}

/// One thread's state of a [`TractModel`].
#[derive(Debug)]
pub(crate) struct TractSession {
    plan: Arc<TypedRunnableModel>,
    /// None after a failed run, whose state is half filled.
    state: Option<SimpleState<TypedFact, Box<dyn TypedOp>>>,
}

impl TractSession {
    pub(crate) fn new(model: &TractModel) -> Result<Self, String> {
        let plan = Arc::clone(&model.plan);
        let state = guarded(|| plan.spawn())?;
        Ok(Self {
            plan,
            state: Some(state),
        })
    }

    pub(crate) fn run(&mut self, inputs: &[OurTensor]) -> Result<Vec<OurTensor>, String> {
        let kept = self.state.take();
        let (state, outputs) = guarded(|| {
            let mut state = match kept {
                Some(state) => state,
                None => self.plan.spawn()?,
            };
            let inputs = inputs
                .iter()
                .map(|input| Ok(into_tract(input)?.into_tvalue()))
                .collect::<TractResult<TVec<TValue>>>()?;
            let outputs = state.run(inputs)?;
            let outputs: Vec<_> = outputs
                .iter()
                .map(|output| from_tract(output))
                .collect::<TractResult<_>>()?;
            Ok((state, outputs))
        })?;
        self.state = Some(state);
        Ok(outputs)
    }
}

/// The plan, with one symbol for all first axes that the file leaves open without a name.
fn plan(bytes: &[u8], signature: &Signature) -> TractResult<Arc<TypedRunnableModel>> {
    let proto = tract_onnx::pb::ModelProto::decode(bytes)?;
    let onnx = tract_onnx::onnx();
    let mut model = onnx.model_for_proto_model(&proto)?;
    let batch = model.symbols.new_with_prefix("batch");
    for (index, spec) in signature.inputs.iter().enumerate() {
        let mut fact = model.input_fact(index)?.clone();
        for axis in 0..spec.shape.len() {
            if fact
                .shape
                .dim(axis)
                .is_some_and(|dim| dim.concretize().is_none())
            {
                let symbol = match axis {
                    0 => batch.clone(),
                    _ => model.symbols.new_with_prefix("axis"),
                };
                fact.shape.set_dim(axis, symbol.into());
            }
        }
        model.set_input_fact(index, fact)?;
    }
    model.into_optimized()?.into_runnable()
}

/// Errors with their causes in one line; a panic as an error.
fn guarded<T>(work: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| format!("{error:#}")),
        Err(_) => Err("tract panicked on the model".to_owned()),
    }
}

fn unsupported(signature: &Signature) -> Option<&TensorSpec> {
    let mut specs = signature.inputs.iter().chain(&signature.outputs);
    let unknown = [DataType::Bytes, DataType::Fp16, DataType::Bf16];
    specs.find(|spec| unknown.contains(&spec.datatype))
}

fn into_tract(tensor: &OurTensor) -> TractResult<Tensor> {
    let shape = tensor.shape();
    match tensor.data() {
        TensorData::Bool(v) => Tensor::from_shape(shape, v),
        TensorData::Uint8(v) => Tensor::from_shape(shape, v),
        TensorData::Uint16(v) => Tensor::from_shape(shape, v),
        TensorData::Uint32(v) => Tensor::from_shape(shape, v),
        TensorData::Uint64(v) => Tensor::from_shape(shape, v),
        TensorData::Int8(v) => Tensor::from_shape(shape, v),
        TensorData::Int16(v) => Tensor::from_shape(shape, v),
        TensorData::Int32(v) => Tensor::from_shape(shape, v),
        TensorData::Int64(v) => Tensor::from_shape(shape, v),
        TensorData::Fp32(v) => Tensor::from_shape(shape, v),
        TensorData::Fp64(v) => Tensor::from_shape(shape, v),
        TensorData::Fp16(_) | TensorData::Bf16(_) | TensorData::Bytes(_) => {
            refuse(format!("unexpected {}", tensor.datatype()))
        }
    }
}

fn from_tract(tensor: &Tensor) -> TractResult<OurTensor> {
    let view = tensor.try_as_plain_ram()?;
    let data = match tensor.datum_type() {
        DatumType::Bool => TensorData::Bool(view.as_slice()?.to_vec()),
        DatumType::U8 => TensorData::Uint8(view.as_slice()?.to_vec()),
        DatumType::U16 => TensorData::Uint16(view.as_slice()?.to_vec()),
        DatumType::U32 => TensorData::Uint32(view.as_slice()?.to_vec()),
        DatumType::U64 => TensorData::Uint64(view.as_slice()?.to_vec()),
        DatumType::I8 => TensorData::Int8(view.as_slice()?.to_vec()),
        DatumType::I16 => TensorData::Int16(view.as_slice()?.to_vec()),
        DatumType::I32 => TensorData::Int32(view.as_slice()?.to_vec()),
        DatumType::I64 => TensorData::Int64(view.as_slice()?.to_vec()),
        DatumType::F32 => TensorData::Fp32(view.as_slice()?.to_vec()),
        DatumType::F64 => TensorData::Fp64(view.as_slice()?.to_vec()),
        // Shapes are their own type in tract; ONNX calls them INT64.
        DatumType::TDim => {
            let dims = view.as_slice::<TDim>()?.iter().map(TDim::to_i64);
            TensorData::Int64(dims.collect::<Result<_, _>>()?)
        }
        other => return refuse(format!("an output of {other:?} has no datatype")),
    };
    Ok(OurTensor::new(tensor.shape().to_vec(), data)?)
}

fn refuse<T>(reason: String) -> TractResult<T> {
    Err(TractError::msg(reason))
}
