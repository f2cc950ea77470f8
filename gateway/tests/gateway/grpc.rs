//! gRPC by a client whose messages were written from the protocol, not taken from the gateway.

use std::collections::HashMap;

use prost::Message;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use crate::onnx::{affine, whole_numbers};
use crate::operator::{Operator, Project};
use crate::process::{Gateway, Setup};

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct Flag {
    #[prost(bool, tag = "1")]
    value: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "2")]
    versions: Vec<String>,
    #[prost(string, tag = "3")]
    platform: String,
    #[prost(message, repeated, tag = "4")]
    inputs: Vec<Tensor>,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<Tensor>,
}

#[derive(Clone, PartialEq, Message)]
struct Health {
    #[prost(int32, tag = "1")]
    status: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Contents {
    #[prost(int32, repeated, tag = "2")]
    int: Vec<i32>,
    #[prost(int64, repeated, tag = "3")]
    int64: Vec<i64>,
    #[prost(float, repeated, tag = "6")]
    fp32: Vec<f32>,
    #[prost(double, repeated, tag = "7")]
    fp64: Vec<f64>,
    #[prost(bytes = "vec", repeated, tag = "8")]
    bytes: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    datatype: String,
    #[prost(int64, repeated, tag = "3")]
    shape: Vec<i64>,
    #[prost(message, optional, tag = "5")]
    contents: Option<Contents>,
}

#[derive(Clone, PartialEq, Message)]
struct Parameter {
    #[prost(bool, optional, tag = "1")]
    bool: Option<bool>,
    #[prost(int64, optional, tag = "2")]
    int64: Option<i64>,
    #[prost(string, optional, tag = "3")]
    string: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Output {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Request {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    inputs: Vec<Tensor>,
    #[prost(message, repeated, tag = "6")]
    outputs: Vec<Output>,
    #[prost(bytes = "vec", repeated, tag = "7")]
    raw: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Response {
    #[prost(string, tag = "1")]
    model_name: String,
    #[prost(string, tag = "2")]
    model_version: String,
    #[prost(string, tag = "3")]
    id: String,
    #[prost(map = "string, message", tag = "4")]
    parameters: HashMap<String, Parameter>,
    #[prost(message, repeated, tag = "5")]
    outputs: Vec<Tensor>,
    #[prost(bytes = "vec", repeated, tag = "6")]
    raw: Vec<Vec<u8>>,
}

/// A client with a runtime to run on.
struct Client {
    runtime: tokio::runtime::Runtime,
    grpc: Grpc<Channel>,
}

impl Client {
    fn of(gateway: &Gateway) -> Self {
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

    fn call<A, R>(&mut self, path: &'static str, asked: A) -> Result<R, Status>
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
            answered.await.map(tonic::Response::into_inner)
        })
    }

    fn infer(&mut self, request: Request) -> Result<Response, Status> {
        self.call("/inference.GRPCInferenceService/ModelInfer", request)
    }

    fn metadata(&mut self, name: &str, version: &str) -> Result<Metadata, Status> {
        let named = Named {
            name: name.into(),
            version: version.into(),
        };
        self.call("/inference.GRPCInferenceService/ModelMetadata", named)
    }
}

fn gateway() -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0, 2.0], 0.5)), ("whole", whole_numbers())],
        config: "[http]\nbody_bytes_max = 100000",
        ..Setup::default()
    })
}

fn features(shape: &[i64], contents: Option<Contents>) -> Tensor {
    Tensor {
        name: "features".into(),
        datatype: "FP32".into(),
        shape: shape.to_vec(),
        contents,
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn request(inputs: Vec<Tensor>, raw: Vec<Vec<u8>>) -> Request {
    Request {
        model_name: "m".into(),
        inputs,
        raw,
        ..Request::default()
    }
}

#[test]
fn typed_and_raw_contents_are_answered_alike_in_raw_form() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let contents = Contents {
        fp32: vec![1.0, 2.0, 3.0, 4.0],
        ..Contents::default()
    };
    let typed = request(vec![features(&[2, 2], Some(contents))], vec![]);
    let raw = request(
        vec![features(&[2, 2], None)],
        vec![floats(&[1.0, 2.0, 3.0, 4.0])],
    );
    for asked in [typed, raw] {
        let asked = Request {
            id: "mine".into(),
            ..asked
        };
        let answered = client.infer(asked.clone()).unwrap();
        assert_eq!(
            (
                &*answered.model_name,
                &*answered.model_version,
                &*answered.id
            ),
            ("m", "1", "mine")
        );
        assert_eq!(answered.raw[0], floats(&[5.5, 11.5]));
        let score = &answered.outputs[0];
        assert_eq!(
            (&*score.name, &*score.datatype, &score.shape[..]),
            ("score", "FP32", &[2, 1][..])
        );
        assert!(score.contents.is_none());
        assert!(answered.parameters["prediction_id"].string.is_some());
        let wanted = vec![Output {
            name: "probability".into(),
        }];
        let answered = client
            .infer(Request {
                outputs: wanted,
                ..asked
            })
            .unwrap();
        assert_eq!((answered.outputs.len(), answered.raw.len()), (1, 1));
    }
    let whole = Tensor {
        name: "i".into(),
        datatype: "INT64".into(),
        shape: vec![2],
        contents: Some(Contents {
            int64: vec![i64::MIN, i64::MAX],
            ..Contents::default()
        }),
    };
    let asked = Request {
        model_name: "whole".into(),
        model_version: "1".into(),
        inputs: vec![whole],
        ..Request::default()
    };
    let answered = client.infer(asked).unwrap();
    assert_eq!(
        answered.raw[0],
        [i64::MIN.to_le_bytes(), i64::MAX.to_le_bytes()].concat()
    );
}

#[test]
fn what_is_wrong_has_a_code_and_a_sentence() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let good = || request(vec![features(&[1, 2], None)], vec![floats(&[1.0, 2.0])]);
    let typed = Contents {
        fp32: vec![1.0, 2.0],
        ..Contents::default()
    };
    let unset = HashMap::from([("any".to_owned(), Parameter::default())]);
    let micros = |micros| {
        HashMap::from([(
            "timeout".to_owned(),
            Parameter {
                int64: Some(micros),
                ..Parameter::default()
            },
        )])
    };
    let cases = [
        (
            Request {
                model_name: "none".into(),
                ..good()
            },
            Code::NotFound,
            "none",
        ),
        (
            Request {
                model_name: "../m".into(),
                ..good()
            },
            Code::InvalidArgument,
            "../m",
        ),
        (
            Request {
                model_version: "9".into(),
                ..good()
            },
            Code::NotFound,
            "9",
        ),
        (
            Request {
                raw: vec![vec![], vec![]],
                ..good()
            },
            Code::InvalidArgument,
            "2 raw contents for 1 inputs",
        ),
        (
            Request {
                raw: vec![vec![0; 7]],
                ..good()
            },
            Code::InvalidArgument,
            "4-byte",
        ),
        (
            Request {
                inputs: vec![features(&[1, 2], Some(typed))],
                ..good()
            },
            Code::InvalidArgument,
            "typed contents",
        ),
        (
            Request {
                inputs: vec![],
                raw: vec![],
                ..good()
            },
            Code::InvalidArgument,
            "features",
        ),
        (
            Request {
                outputs: vec![Output {
                    name: "none".into(),
                }],
                ..good()
            },
            Code::InvalidArgument,
            "none",
        ),
        (
            Request {
                parameters: unset,
                ..good()
            },
            Code::InvalidArgument,
            "`any`",
        ),
        (
            Request {
                parameters: micros(-1),
                ..good()
            },
            Code::InvalidArgument,
            "`timeout`",
        ),
        (
            Request {
                raw: vec![vec![0; 200_000]],
                ..good()
            },
            Code::OutOfRange,
            "200",
        ),
    ];
    for (asked, code, told) in cases {
        let status = client.infer(asked).unwrap_err();
        assert_eq!(status.code(), code, "{told}: {status}");
        assert!(status.message().contains(told), "{told}: {status}");
    }
    assert!(client.infer(good()).is_ok());
    let unknown = client.call::<_, Empty>("/inference.GRPCInferenceService/None", Empty {});
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}

#[test]
fn health_and_metadata_are_told() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let flag = |client: &mut Client, path| client.call::<_, Flag>(path, Empty {}).unwrap().value;
    assert!(flag(
        &mut client,
        "/inference.GRPCInferenceService/ServerLive"
    ));
    assert!(flag(
        &mut client,
        "/inference.GRPCInferenceService/ServerReady"
    ));
    let ready = |client: &mut Client, name: &str| {
        let named = Named {
            name: name.into(),
            version: String::new(),
        };
        client
            .call::<_, Flag>("/inference.GRPCInferenceService/ModelReady", named)
            .unwrap()
            .value
    };
    assert!(ready(&mut client, "m"));
    assert!(!ready(&mut client, "none"));
    let metadata = client.metadata("m", "1").unwrap();
    assert_eq!(
        (&*metadata.name, &metadata.versions[..], &*metadata.platform),
        ("m", &["1".to_owned()][..], "onnx_onnxv1")
    );
    assert_eq!(
        (metadata.inputs[0].shape.clone(), metadata.outputs.len()),
        (vec![-1, 2], 2)
    );
    assert_eq!(
        client.metadata("none", "").unwrap_err().code(),
        Code::NotFound
    );
    let server: Named = client
        .call("/inference.GRPCInferenceService/ServerMetadata", Empty {})
        .unwrap();
    assert_eq!(server.name, "loopgate");
    let health = |client: &mut Client, service: &str| {
        let named = Named {
            name: service.into(),
            version: String::new(),
        };
        client.call::<_, Health>("/grpc.health.v1.Health/Check", named)
    };
    assert_eq!(health(&mut client, "").unwrap().status, 1);
    assert_eq!(
        health(&mut client, "inference.GRPCInferenceService")
            .unwrap()
            .status,
        1
    );
    assert_eq!(
        health(&mut client, "none").unwrap_err().code(),
        Code::NotFound
    );
}

#[test]
fn features_are_looked_up_for_grpc_too_and_the_answer_is_recorded() {
    let project = Project::new("");
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/bound", |model| model["ready"] == true);
    let mut client = Client::of(&gateway);
    let user = Tensor {
        name: "user".into(),
        datatype: "BYTES".into(),
        shape: vec![1],
        contents: Some(Contents {
            bytes: vec![b"u1".to_vec()],
            ..Contents::default()
        }),
    };
    let base = Tensor {
        name: "base".into(),
        datatype: "FP64".into(),
        shape: vec![1],
        contents: Some(Contents {
            fp64: vec![2.5],
            ..Contents::default()
        }),
    };
    let asked = Request {
        model_name: "bound".into(),
        inputs: vec![user, base],
        ..Request::default()
    };
    let probe = HashMap::from([(
        "loopgate_record".to_owned(),
        Parameter {
            bool: Some(false),
            ..Parameter::default()
        },
    )]);
    let answered = client
        .infer(Request {
            parameters: probe,
            ..asked.clone()
        })
        .unwrap();
    assert!(!answered.parameters.contains_key("prediction_id"));
    let answered = client.infer(asked).unwrap();
    assert_eq!(answered.raw[0], floats(&[2.5]));
    assert!(
        answered.parameters["feature_status"]
            .string
            .as_ref()
            .unwrap()
            .contains("NOT_FOUND")
    );
    operator.until("/v1/features", |features| {
        features["stats"]["predictions"] == 1
    });
}
