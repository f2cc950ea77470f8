//! Around the predictions: health of models, reflection, compression, limits.

use std::collections::HashMap;

use prost::Message;
use tonic::codec::CompressionEncoding;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Streaming};
use tonic_prost::ProstCodec;

use crate::grpc_client::{
    Client, Empty, Health, Named, Request, Response, features, floats, gateway, request,
};
use crate::onnx::affine;
use crate::patience::eventually;
use crate::process::{Gateway, Setup};

const INFER: &str = "/inference.GRPCInferenceService/ModelInfer";

impl Client {
    /// One message, many answers.
    fn watch(&mut self, service: &str) -> Streaming<Health> {
        let asked = Named {
            name: service.into(),
            ..Named::default()
        };
        let grpc = &mut self.grpc;
        let opened = self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let path = PathAndQuery::from_static("/grpc.health.v1.Health/Watch");
            let codec = ProstCodec::<Named, Health>::default();
            grpc.server_streaming(tonic::Request::new(asked), path, codec)
                .await
        });
        opened.unwrap().into_inner()
    }

    /// A prediction and the encoding that its answer came in.
    fn infer_encoded(&mut self, asked: Request) -> (Response, Option<String>) {
        let grpc = &mut self.grpc;
        let answered = self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<Request, Response>::default();
            let asked = tonic::Request::new(asked);
            grpc.unary(asked, PathAndQuery::from_static(INFER), codec)
                .await
        });
        let answered = answered.unwrap();
        let encoding = answered.metadata().get("grpc-encoding");
        let encoding = encoding.map(|name| name.to_str().unwrap().to_owned());
        (answered.into_inner(), encoding)
    }

    /// Sends the head of a prediction and keeps its message back. Resolves never.
    fn hold(&mut self) -> tokio::task::JoinHandle<()> {
        let mut grpc = self.grpc.clone();
        let path = PathAndQuery::from_static(INFER);
        let held = async move {
            grpc.ready().await.unwrap();
            let silent = tonic::Request::new(futures_util::stream::pending::<Request>());
            let codec = ProstCodec::<Request, Response>::default();
            drop(grpc.streaming(silent, path, codec).await);
        };
        self.runtime.spawn(held)
    }
}

fn good() -> Request {
    request(vec![features(&[1, 2], None)], vec![floats(&[1.0, 2.0])])
}

#[test]
fn health_is_told_of_each_model_and_watched_until_the_drain() {
    let mut gateway = gateway();
    let mut client = Client::of(&gateway);
    let check = |client: &mut Client, name: &str| {
        let named = Named {
            name: name.into(),
            ..Named::default()
        };
        client.call::<_, Health>("/grpc.health.v1.Health/Check", named)
    };
    assert_eq!(check(&mut client, "m").unwrap().status, 1);
    assert_eq!(
        check(&mut client, "../m").unwrap_err().code(),
        Code::NotFound
    );

    let mut watched = ["", "m", "none"].map(|service| client.watch(service));
    let next = |client: &Client, stream: &mut Streaming<Health>| {
        let told = client.runtime.block_on(stream.message()).unwrap();
        told.map(|health| health.status)
    };
    let told = watched.each_mut().map(|stream| next(&client, stream));
    assert_eq!(told, [Some(1), Some(1), Some(3)]);
    gateway.terminate();
    let told = watched.each_mut().map(|stream| next(&client, stream));
    assert_eq!(told, [Some(2), Some(2), None]);
    let told = watched.each_mut().map(|stream| next(&client, stream));
    assert_eq!(told, [None, None, None]);
    assert!(gateway.wait().success());
}

#[derive(Clone, PartialEq, Message)]
struct ReflectionRequest {
    #[prost(string, optional, tag = "4")]
    file_containing_symbol: Option<String>,
    #[prost(string, optional, tag = "7")]
    list_services: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ReflectionResponse {
    #[prost(message, optional, tag = "4")]
    files: Option<Files>,
    #[prost(message, optional, tag = "6")]
    services: Option<Services>,
}

#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(bytes = "vec", repeated, tag = "1")]
    descriptors: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Services {
    #[prost(message, repeated, tag = "1")]
    services: Vec<Named>,
}

#[test]
fn reflection_tells_of_every_service_under_both_of_its_names() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    for path in [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        let list = ReflectionRequest {
            list_services: Some(String::new()),
            ..ReflectionRequest::default()
        };
        let file = ReflectionRequest {
            file_containing_symbol: Some("inference.GRPCInferenceService".into()),
            ..ReflectionRequest::default()
        };
        let listed: ReflectionResponse = client.call(path, list).unwrap();
        let names: Vec<_> = listed
            .services
            .unwrap()
            .services
            .into_iter()
            .map(|s| s.name)
            .collect();
        for service in ["inference.GRPCInferenceService", "grpc.health.v1.Health"] {
            assert!(names.iter().any(|name| name == service), "{names:?}");
        }
        let found: ReflectionResponse = client.call(path, file).unwrap();
        let [descriptor, ..] = &found.files.unwrap().descriptors[..] else {
            panic!("no file");
        };
        let text = String::from_utf8_lossy(descriptor);
        assert!(text.contains("ModelStreamInfer"), "not our service");
    }
}

#[test]
fn answers_are_compressed_as_their_requests_were() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let offered = |client: &Client| {
        let grpc = client.grpc.clone();
        grpc.accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
    };
    client.grpc = offered(&client);
    let (plain, encoding) = client.infer_encoded(good());
    assert_eq!(encoding, None);
    for (encoding, name) in [
        (CompressionEncoding::Gzip, "gzip"),
        (CompressionEncoding::Deflate, "deflate"),
    ] {
        client.grpc = offered(&client).send_compressed(encoding);
        let (answered, encoding) = client.infer_encoded(good());
        assert_eq!(encoding.as_deref(), Some(name));
        assert_eq!(answered.raw, plain.raw);
    }
    // 200,000 zeros are few bytes on the wire and too many in memory.
    client.grpc = offered(&client).send_compressed(CompressionEncoding::Gzip);
    let bomb = request(vec![features(&[1, 2], None)], vec![vec![0; 200_000]]);
    assert_eq!(
        client.infer(bomb).unwrap_err().code(),
        Code::ResourceExhausted
    );
}

#[test]
fn what_is_shed_is_told_when_to_come_again() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0, 2.0], 0.5))],
        config: "[serving]\nin_flight_max = 1",
        ..Setup::default()
    });
    let mut client = Client::of(&gateway);
    let held = client.hold();
    let shed = std::iter::repeat_with(|| client.infer(good()))
        .find_map(Result::err)
        .unwrap();
    assert_eq!(shed.code(), Code::ResourceExhausted, "{shed}");
    let trailer = |name: &str| {
        shed.metadata()
            .get(name)
            .map(|value| value.to_str().unwrap())
    };
    assert_eq!(trailer("retry-after"), Some("1"));
    assert_eq!(trailer("grpc-retry-pushback-ms"), Some("1000"));
    held.abort();
    // A call that goes away gives its place back.
    eventually(|| client.infer(good()).is_ok());
}

#[test]
fn shared_memory_is_not_offered() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let path = "/inference.GRPCInferenceService/SystemSharedMemoryStatus";
    let refused = client.call::<_, Empty>(path, Empty {}).unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("shared memory"), "{refused}");
}

#[derive(Clone, PartialEq, Message)]
struct ConfigResponse {
    #[prost(message, optional, tag = "1")]
    config: Option<Config>,
}

#[derive(Clone, PartialEq, Message)]
struct Config {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "4")]
    max_batch_size: i32,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<ConfigInput>,
}

#[derive(Clone, PartialEq, Message)]
struct ConfigInput {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(int64, repeated, tag = "4")]
    dims: Vec<i64>,
}

#[derive(Clone, PartialEq, Message)]
struct StatisticsResponse {
    #[prost(message, repeated, tag = "1")]
    versions: Vec<Statistics>,
}

#[derive(Clone, PartialEq, Message)]
struct Statistics {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(uint64, tag = "4")]
    rows: u64,
    #[prost(uint64, tag = "5")]
    runs: u64,
    #[prost(message, optional, tag = "6")]
    sums: Option<Sums>,
}

#[derive(Clone, PartialEq, Message)]
struct Sums {
    #[prost(message, optional, tag = "1")]
    success: Option<Leaf>,
    #[prost(message, optional, tag = "8")]
    cache_miss: Option<Leaf>,
}

#[derive(Clone, PartialEq, Message)]
struct Leaf {
    #[prost(uint64, tag = "1")]
    count: u64,
    #[prost(uint64, tag = "2")]
    ns: u64,
}

#[derive(Clone, PartialEq, Message)]
struct IndexResponse {
    #[prost(message, repeated, tag = "1")]
    models: Vec<Indexed>,
}

#[derive(Clone, PartialEq, Message)]
struct Indexed {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
    #[prost(string, tag = "3")]
    state: String,
}

#[test]
fn a_model_is_configured_over_grpc_as_over_http() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let asked = Named {
        name: "m".into(),
        ..Named::default()
    };
    let path = "/inference.GRPCInferenceService/ModelConfig";
    let told: ConfigResponse = client.call(path, asked).unwrap();
    let told = told.config.unwrap();
    let json = gateway.get("/v2/models/m/config").json();
    assert_eq!(json["name"], told.name);
    assert_eq!(json["max_batch_size"], told.max_batch_size);
    assert_eq!(json["input"][0]["name"], told.inputs[0].name);
    assert_eq!(
        json["input"][0]["dims"],
        serde_json::json!(told.inputs[0].dims)
    );
    // TYPE_FP32.
    assert_eq!(
        (
            &*json["input"][0]["data_type"].to_string(),
            told.inputs[0].data_type
        ),
        ("\"TYPE_FP32\"", 11)
    );
    let unknown = Named {
        name: "none".into(),
        ..Named::default()
    };
    let refused = client.call::<_, ConfigResponse>(path, unknown).unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
}

#[test]
fn versions_are_counted_and_listed() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let two = request(vec![features(&[2, 2], None)], vec![floats(&[0.0; 4])]);
    client.infer(two).unwrap();
    client.infer(good()).unwrap();
    let mut statistics = |name: &str| {
        let named = Named {
            name: name.into(),
            ..Named::default()
        };
        let path = "/inference.GRPCInferenceService/ModelStatistics";
        client.call::<_, StatisticsResponse>(path, named)
    };
    assert_eq!(statistics("").unwrap().versions.len(), 2);
    assert_eq!(statistics("none").unwrap_err().code(), Code::NotFound);
    let told = statistics("m").unwrap().versions.remove(0);
    assert_eq!(
        (&*told.name, &*told.version, told.rows, told.runs),
        ("m", "1", 3, 2)
    );
    let sums = told.sums.unwrap();
    let success = sums.success.unwrap();
    assert!(success.count == 2 && success.ns > 0, "{success:?}");
    assert_eq!(
        sums.cache_miss,
        Some(Leaf::default()),
        "every leaf is there"
    );

    let path = "/inference.GRPCInferenceService/RepositoryIndex";
    let listed: IndexResponse = client.call(path, Empty {}).unwrap();
    let ready = |name: &str| Indexed {
        name: name.into(),
        version: "1".into(),
        state: "READY".into(),
    };
    assert_eq!(listed.models, [ready("m"), ready("whole")]);
}

#[derive(Clone, PartialEq, Message)]
struct LoadRequest {
    #[prost(string, tag = "2")]
    model_name: String,
    #[prost(map = "string, message", tag = "3")]
    parameters: HashMap<String, RepositoryParameter>,
}

#[derive(Clone, PartialEq, Message)]
struct RepositoryParameter {
    #[prost(string, optional, tag = "3")]
    string: Option<String>,
    #[prost(bytes = "vec", optional, tag = "4")]
    bytes: Option<Vec<u8>>,
}

#[test]
fn models_are_loaded_and_unloaded_over_grpc() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let load = |client: &mut Client, name: &str, file: RepositoryParameter| {
        let asked = LoadRequest {
            model_name: "new".into(),
            parameters: HashMap::from([(name.to_owned(), file)]),
        };
        client.call::<_, Empty>("/inference.GRPCInferenceService/RepositoryModelLoad", asked)
    };
    let file = |bytes| RepositoryParameter {
        bytes: Some(bytes),
        ..RepositoryParameter::default()
    };
    let new = || Request {
        model_name: "new".into(),
        ..good()
    };
    let text = RepositoryParameter {
        string: Some("base64".into()),
        ..RepositoryParameter::default()
    };
    for (name, wrong) in [
        ("file:1/model.onnx", text),
        ("file:1/model.onnx", file(vec![1; 9])),
    ] {
        let refused = load(&mut client, name, wrong).unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    assert_eq!(client.infer(new()).unwrap_err().code(), Code::NotFound);
    load(
        &mut client,
        "file:1/model.onnx",
        file(affine(&[0.0, 0.0], 7.0)),
    )
    .unwrap();
    assert_eq!(client.infer(new()).unwrap().raw[0], floats(&[7.0]));

    let unload = LoadRequest {
        model_name: "new".into(),
        ..LoadRequest::default()
    };
    let path = "/inference.GRPCInferenceService/RepositoryModelUnload";
    client.call::<_, Empty>(path, unload.clone()).unwrap();
    assert_eq!(client.infer(new()).unwrap_err().code(), Code::NotFound);
    let twice = client.call::<_, Empty>(path, unload).unwrap_err();
    assert_eq!(twice.code(), Code::InvalidArgument, "{twice}");
}
