//! Unary calls over gRPC.

use std::collections::HashMap;

use tonic::Code;

use crate::grpc_client::{
    Client, Contents, Empty, Flag, Health, Named, Output, Parameter, Request, Tensor, features,
    floats, gateway, request,
};
use crate::onnx::affine;
use crate::operator::{Operator, Project};

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
            Code::ResourceExhausted,
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
