//! What is served: readiness, metadata, configuration.

use engine::{DataType, Signature, TensorSpec};
use registry::ModelName;
use tonic::Status;

use super::message::{
    DataType as TypeName, ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelInput,
    ModelMetadataRequest, ModelMetadataResponse, ModelOutput, ModelReadyRequest,
    ModelReadyResponse, ModelTransactionPolicy, ServerLiveResponse, ServerMetadataResponse,
    ServerReadyResponse, TensorMetadata,
};
use super::status;
use crate::feature_rows::FeatureRows;
use crate::oip;
use crate::route::{self, Named, RouteError, Target};
use crate::serve::Core;
use crate::table::{LoadedVersion, ServedModel};

pub(super) fn live() -> ServerLiveResponse {
    ServerLiveResponse { live: true }
}

pub(super) fn ready(core: &Core) -> ServerReadyResponse {
    ServerReadyResponse {
        ready: core.is_ready(),
    }
}

pub(super) fn server(core: &Core) -> ServerMetadataResponse {
    ServerMetadataResponse {
        name: env!("CARGO_PKG_NAME").to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        extensions: core
            .extensions()
            .iter()
            .map(|&name| name.to_owned())
            .collect(),
    }
}

/// The model and version that a message names; an empty version is none.
pub(super) fn target(model: &str, version: &str) -> Result<Target, Status> {
    let model: ModelName = model.parse().map_err(|error| status::of_name(&error))?;
    let version = (!version.is_empty()).then(|| version.into());
    Ok(Target { model, version })
}

/// The model or feature service that a message names.
pub(super) fn named(name: &str, version: &str) -> Result<Named, Status> {
    let version = (!version.is_empty()).then_some(version);
    Named::parse(name, version).map_err(|error| status::of_name(&error))
}

/// Unknown models are not ready, as Triton has it; that is no error.
pub(super) fn model_ready(core: &Core, asked: &ModelReadyRequest) -> ModelReadyResponse {
    let known = match named(&asked.name, &asked.version) {
        Ok(Named::Model(target)) => of_version(core, &target, |_, _| ()).is_ok(),
        Ok(Named::Service(asked)) => FeatureRows::find(core, &asked).is_ok(),
        Err(_) => false,
    };
    ModelReadyResponse {
        ready: known && !core.is_draining(),
    }
}

pub(super) fn metadata(
    core: &Core,
    asked: &ModelMetadataRequest,
) -> Result<ModelMetadataResponse, Status> {
    let tensors = |specs: &[TensorSpec]| {
        let tensor = |spec: &TensorSpec| TensorMetadata {
            name: spec.name.clone(),
            datatype: spec.datatype.as_str().to_owned(),
            shape: spec.shape.clone(),
        };
        specs.iter().map(tensor).collect()
    };
    let described = |name: &str, versions, signature: &Signature| ModelMetadataResponse {
        name: name.to_owned(),
        versions,
        platform: oip::PLATFORM.to_owned(),
        inputs: tensors(&signature.inputs),
        outputs: tensors(&signature.outputs),
        properties: Default::default(),
    };
    let metadata = match named(&asked.name, &asked.version)? {
        Named::Model(target) => of_version(core, &target, |model, version| {
            let versions = model.versions.keys().map(u32::to_string).collect();
            described(&model.name, versions, &version.public)
        }),
        Named::Service(asked) => FeatureRows::find(core, &asked).map(|rows| {
            let versions = vec![rows.version().to_owned()];
            let properties = [("features".to_owned(), rows.columns())].into();
            ModelMetadataResponse {
                properties,
                ..described(rows.name(), versions, rows.signature())
            }
        }),
    };
    metadata.map_err(|error| status::of_route(&error))
}

/// Triton's model configuration, as its clients read it. Where the model takes batches, their axis is
/// left out of the dimensions.
pub(super) fn config(
    core: &Core,
    asked: &ModelConfigRequest,
) -> Result<ModelConfigResponse, Status> {
    let described = |name: &str, signature: &Signature| {
        let batches = oip::takes_batches(signature);
        let rows_max = i32::try_from(core.limits.rows_max).unwrap_or(i32::MAX);
        let dims = |spec: &TensorSpec| spec.shape[usize::from(batches)..].to_vec();
        let input = |spec: &TensorSpec| ModelInput {
            name: spec.name.clone(),
            data_type: type_name(spec.datatype).into(),
            dims: dims(spec),
        };
        let output = |spec: &TensorSpec| ModelOutput {
            name: spec.name.clone(),
            data_type: type_name(spec.datatype).into(),
            dims: dims(spec),
        };
        ModelConfig {
            name: name.to_owned(),
            platform: oip::PLATFORM.to_owned(),
            backend: "onnx".to_owned(),
            max_batch_size: if batches { rows_max } else { 0 },
            input: signature.inputs.iter().map(input).collect(),
            output: signature.outputs.iter().map(output).collect(),
            model_transaction_policy: Some(ModelTransactionPolicy { decoupled: false }),
        }
    };
    let config = match named(&asked.name, &asked.version)? {
        Named::Model(target) => of_version(core, &target, |model, version| {
            described(&model.name, &version.public)
        }),
        Named::Service(asked) => {
            let rows = FeatureRows::find(core, &asked);
            rows.map(|rows| described(rows.name(), rows.signature()))
        }
    };
    let config = config.map_err(|error| status::of_route(&error))?;
    Ok(ModelConfigResponse {
        config: Some(config),
    })
}

fn of_version<T>(
    core: &Core,
    target: &Target,
    tell: impl FnOnce(&ServedModel, &LoadedVersion) -> T,
) -> Result<T, RouteError> {
    let table = core.table.snapshot();
    let model = route::model(table.as_deref(), target)?;
    let version = route::named_or_champion(model, target)?;
    Ok(tell(model, version))
}

fn type_name(datatype: DataType) -> TypeName {
    match datatype {
        DataType::Bool => TypeName::TypeBool,
        DataType::Uint8 => TypeName::TypeUint8,
        DataType::Uint16 => TypeName::TypeUint16,
        DataType::Uint32 => TypeName::TypeUint32,
        DataType::Uint64 => TypeName::TypeUint64,
        DataType::Int8 => TypeName::TypeInt8,
        DataType::Int16 => TypeName::TypeInt16,
        DataType::Int32 => TypeName::TypeInt32,
        DataType::Int64 => TypeName::TypeInt64,
        DataType::Fp16 => TypeName::TypeFp16,
        DataType::Bf16 => TypeName::TypeBf16,
        DataType::Fp32 => TypeName::TypeFp32,
        DataType::Fp64 => TypeName::TypeFp64,
        DataType::Bytes => TypeName::TypeString,
    }
}
