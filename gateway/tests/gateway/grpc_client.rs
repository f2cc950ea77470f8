//! A gRPC client whose messages were written from the protocol, not taken from the gateway.

use std::collections::HashMap;

use prost::Message;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::onnx::{affine, whole_numbers};
use crate::process::{Gateway, Setup};
use crate::wire::tells_nothing_of_us;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Empty {}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Flag {
    #[prost(bool, tag = "1")]
    pub value: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Named {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub version: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metadata {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, repeated, tag = "2")]
    pub versions: Vec<String>,
    #[prost(string, tag = "3")]
    pub platform: String,
    #[prost(message, repeated, tag = "4")]
    pub inputs: Vec<Tensor>,
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Health {
    #[prost(int32, tag = "1")]
    pub status: i32,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Contents {
    #[prost(int32, repeated, tag = "2")]
    pub int: Vec<i32>,
    #[prost(int64, repeated, tag = "3")]
    pub int64: Vec<i64>,
    #[prost(float, repeated, tag = "6")]
    pub fp32: Vec<f32>,
    #[prost(double, repeated, tag = "7")]
    pub fp64: Vec<f64>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    pub bytes: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Tensor {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub datatype: String,
    #[prost(int64, repeated, tag = "3")]
    pub shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    pub contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Parameter {
    #[prost(bool, optional, tag = "1")]
    pub bool: Option<bool>,
    #[prost(int64, optional, tag = "2")]
    pub int64: Option<i64>,
    #[prost(string, optional, tag = "3")]
    pub string: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Output {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub model_name: String,
    #[prost(string, tag = "2")]
    pub model_version: String,
    #[prost(string, tag = "3")]
    pub id: String,
    #[prost(map = "string, message", tag = "4")]
    pub parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    pub inputs: Vec<Tensor>,
    #[prost(message, repeated, tag = "6")]
    pub outputs: Vec<Output>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    pub raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Response {
    #[prost(string, tag = "1")]
    pub model_name: String,
    #[prost(string, tag = "2")]
    pub model_version: String,
    #[prost(string, tag = "3")]
    pub id: String,
    #[prost(map = "string, message", tag = "4")]
    pub parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    pub outputs: Vec<Tensor>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub raw: Vec<Vec<u8>>,
}

/// A client with a runtime to run on.
pub(crate) struct Client {
    pub runtime: tokio::runtime::Runtime,
    pub grpc: Grpc<Channel>,
}

impl Client {
    pub(crate) fn of(gateway: &Gateway) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let address = format!("http://{}", gateway.grpc);
        let channel = runtime
            .block_on(Channel::from_shared(address).unwrap().connect())
            .unwrap();
        let grpc = Grpc::new(channel)
            .max_decoding_message_size(usize::MAX)
            .max_encoding_message_size(usize::MAX);
        Self { runtime, grpc }
    }

    pub(crate) fn call<A, R>(&mut self, path: &'static str, asked: A) -> Result<R, Status>
    where
        A: Message + 'static,
        R: Message + Default + 'static,
    {
        let grpc = &mut self.grpc;
        self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let path = PathAndQuery::from_static(path);
            let answered = grpc.unary(
                tonic::Request::new(asked),
                path,
                ProstCodec::<A, R>::default(),
            );
            let answered = answered.await.map(tonic::Response::into_inner);
            answered.inspect_err(|status| tells_nothing_of_us(status.message()))
        })
    }

    pub(crate) fn infer(&mut self, request: Request) -> Result<Response, Status> {
        self.call("/inference.GRPCInferenceService/ModelInfer", request)
    }

    pub(crate) fn metadata(&mut self, name: &str, version: &str) -> Result<Metadata, Status> {
        let named = Named {
            name: name.into(),
            version: version.into(),
        };
        self.call("/inference.GRPCInferenceService/ModelMetadata", named)
    }
}

pub(crate) fn gateway() -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0, 2.0], 0.5)), ("whole", whole_numbers())],
        config: "[http]\nbody_bytes_max = 100000",
        ..Setup::default()
    })
}

pub(crate) fn features(shape: &[i64], contents: Option<Contents>) -> Tensor {
    Tensor {
        name: "features".into(),
        datatype: "FP32".into(),
        shape: shape.to_vec(),
        contents,
    }
}

pub(crate) fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

pub(crate) fn request(inputs: Vec<Tensor>, raw: Vec<Vec<u8>>) -> Request {
    Request {
        model_name: "m".into(),
        inputs,
        raw,
        ..Request::default()
    }
}
