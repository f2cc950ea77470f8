//! `RepositoryModelLoad` and `RepositoryModelUnload`: the operations behind HTTP's routes. Whether
//! they are permitted is asked before a message is read.

use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tonic::{Response, Status};

use super::call::{Answer, Bounds, unary};
use super::message::model_repository_parameter::ParameterChoice as Given;
use super::message::{
    RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
};
use super::{model, status};
use crate::repository::{self, LoadBody, LoadParameters, RepositoryError, permitted};
use crate::serve::Core;

/// Longest load: its preparation is bounded by itself, and a few may wait before it.
const LOAD_MAX: Duration = Duration::from_secs(900);

pub(super) async fn load(core: &Core, request: Request<Incoming>) -> Answer {
    let bounds = match bounds(core) {
        Ok(bounds) => bounds,
        Err(error) => return status::of_repository(&error).into_http(),
    };
    let load = |asked: RepositoryModelLoadRequest| async {
        let model = model::target(&asked.model_name, "")?.model;
        let body = LoadBody::Parameters(parameters(asked)?);
        let loaded = repository::load(core, &model, body).await;
        loaded.map_err(|error| status::of_repository(&error))?;
        Ok(Response::new(RepositoryModelLoadResponse {}))
    };
    unary(bounds, request, load).await
}

/// Its parameter `unload_dependents` is taken, and there are none.
pub(super) async fn unload(core: &Core, request: Request<Incoming>) -> Answer {
    let bounds = match bounds(core) {
        Ok(bounds) => bounds,
        Err(error) => return status::of_repository(&error).into_http(),
    };
    let unload = |asked: RepositoryModelUnloadRequest| async move {
        let model = model::target(&asked.model_name, "")?.model;
        let unloaded = repository::unload(core, &model).await;
        unloaded.map_err(|error| status::of_repository(&error))?;
        Ok(Response::new(RepositoryModelUnloadResponse {}))
    };
    unary(bounds, request, unload).await
}

fn bounds(core: &Core) -> Result<Bounds, RepositoryError> {
    Ok(Bounds {
        message_bytes_max: permitted(core)?.config.body_bytes_max,
        within: LOAD_MAX,
    })
}

fn parameters(asked: RepositoryModelLoadRequest) -> Result<LoadParameters, Status> {
    let mut parameters = LoadParameters::default();
    for (name, parameter) in asked.parameters {
        match (&*name, parameter.parameter_choice) {
            ("config", Some(Given::StringParam(config))) => parameters.config = Some(config),
            ("config", _) => return Err(Status::invalid_argument("`config` is not a string")),
            (file, Some(Given::BytesParam(content))) if file.starts_with("file:") => {
                parameters.files.push((name, content));
            }
            (file, _) if file.starts_with("file:") => {
                let shown: String = file.chars().take(64).collect();
                return Err(Status::invalid_argument(format!("`{shown}` is not bytes")));
            }
            _ => {}
        }
    }
    Ok(parameters)
}
