//! `ModelStreamInfer` and what ends it.

use std::time::Duration;

use prost::Message;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::grpc_client::{
    Client, Parameter, Request, Response, features, floats, gateway, request,
};

#[derive(Clone, PartialEq, Message)]
struct StreamResponse {
    #[prost(string, tag = "1")]
    error_message: String,
    #[prost(message, optional, tag = "2")]
    infer_response: Option<Response>,
}

type Sender = tokio::sync::mpsc::Sender<Request>;

impl Client {
    /// Opens a stream of predictions; what is sent goes out in order.
    fn stream(&mut self) -> (Sender, Streaming<StreamResponse>) {
        self.try_stream(None).unwrap()
    }

    fn try_stream(
        &mut self,
        timeout: Option<Duration>,
    ) -> Result<(Sender, Streaming<StreamResponse>), Status> {
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let outbound = futures_util::stream::unfold(receiver, |mut receiver| async {
            let request = receiver.recv().await?;
            Some((request, receiver))
        });
        let mut asked = tonic::Request::new(outbound);
        if let Some(timeout) = timeout {
            asked.set_timeout(timeout);
        }
        let grpc = &mut self.grpc;
        let opened = self.runtime.block_on(async {
            grpc.ready().await.unwrap();
            let path =
                PathAndQuery::from_static("/inference.GRPCInferenceService/ModelStreamInfer");
            let codec = ProstCodec::<Request, StreamResponse>::default();
            grpc.streaming(asked, path, codec).await
        });
        Ok((sender, opened?.into_inner()))
    }

    fn next(
        &self,
        stream: &mut Streaming<StreamResponse>,
    ) -> Result<Option<StreamResponse>, Status> {
        self.runtime.block_on(stream.message())
    }

    fn answer(&self, stream: &mut Streaming<StreamResponse>) -> StreamResponse {
        self.next(stream).unwrap().unwrap()
    }
}

fn good(id: &str, x: f32) -> Request {
    Request {
        id: id.into(),
        ..request(vec![features(&[1, 2], None)], vec![floats(&[x, 0.0])])
    }
}

#[test]
fn a_stream_is_answered_in_order_and_goes_on_after_an_error() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let (sender, mut stream) = client.stream();
    for k in 0..40_u8 {
        let asked = match k % 4 {
            3 => Request {
                model_name: "none".into(),
                ..good(&k.to_string(), 0.0)
            },
            _ => good(&k.to_string(), k.into()),
        };
        sender.blocking_send(asked).unwrap();
    }
    for k in 0..40_u8 {
        let answer = client.answer(&mut stream);
        let response = answer.infer_response.unwrap();
        assert_eq!(response.id, k.to_string());
        match k % 4 {
            3 => {
                assert!(
                    answer.error_message.contains("none"),
                    "{}",
                    answer.error_message
                );
                assert!(response.outputs.is_empty() && response.raw.is_empty());
            }
            _ => {
                assert_eq!(answer.error_message, "");
                assert_eq!(response.raw[0], floats(&[f32::from(k) + 0.5]));
            }
        }
    }
    drop(sender);
    assert_eq!(client.next(&mut stream).unwrap(), None);
}

#[test]
fn the_final_answer_is_marked_for_who_asks() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    let (sender, mut stream) = client.stream();
    let mut asked = good("a", 1.0);
    let yes = Parameter {
        bool: Some(true),
        ..Parameter::default()
    };
    let name = "triton_enable_empty_final_response";
    asked.parameters.insert(name.to_owned(), yes.clone());
    sender.blocking_send(asked.clone()).unwrap();
    sender.blocking_send(good("b", 1.0)).unwrap();
    assert!(client.infer(asked).is_ok(), "a unary call may say it too");
    let marked = |answer: StreamResponse| {
        let response = answer.infer_response.unwrap();
        response.parameters.get("triton_final_response").cloned()
    };
    assert_eq!(marked(client.answer(&mut stream)), Some(yes));
    assert_eq!(marked(client.answer(&mut stream)), None);
}

#[test]
fn a_stream_ends_at_its_deadline() {
    let gateway = gateway();
    let mut client = Client::of(&gateway);
    // On a loaded machine the deadline may come before the first answer; then there is more time.
    let mut ended = [1, 5, 60].into_iter().filter_map(|seconds| {
        let opened = client.try_stream(Some(Duration::from_secs(seconds)));
        let (sender, mut stream) = opened.ok()?;
        sender.blocking_send(good("a", 1.0)).unwrap();
        let answer = client.next(&mut stream).ok()?.unwrap();
        assert_eq!(answer.error_message, "");
        Some(client.next(&mut stream).unwrap_err())
    });
    let ended = ended.next().unwrap();
    // The client's own clock may be the first to say so.
    assert!(
        matches!(ended.code(), Code::DeadlineExceeded | Code::Cancelled),
        "{ended}"
    );
}

#[test]
fn a_drain_ends_a_stream_after_the_answer_that_it_is_at() {
    let mut gateway = gateway();
    let mut client = Client::of(&gateway);
    let (sender, mut stream) = client.stream();
    sender.blocking_send(good("a", 1.0)).unwrap();
    assert_eq!(client.answer(&mut stream).error_message, "");
    gateway.terminate();
    let ended = client.next(&mut stream).unwrap_err();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert!(gateway.wait().success());
}
