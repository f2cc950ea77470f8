//! Drains over HTTP/2 under load, again and again, and ends in the middle of a start.
//!
//! `LOOPGATE_DRAIN_CYCLES` says how often.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::task::JoinSet;

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::patience::PATIENCE;
use crate::process::{Gateway, Setup, terminated};

const CYCLES: usize = 5;
const CONNECTIONS: usize = 4;
/// Requests at a time on each.
const STREAMS: usize = 4;
const GOOD: &str = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;

fn cycles() -> usize {
    let number = std::env::var("LOOPGATE_DRAIN_CYCLES");
    number.map_or(CYCLES, |number| number.parse().unwrap())
}

/// Asks until the connection takes no more requests. What it took it answers.
async fn ask_until_told_to_leave(
    mut sender: SendRequest<Full<Bytes>>,
    uri: String,
    answered: Arc<AtomicUsize>,
) {
    while sender.ready().await.is_ok() {
        let request = Request::post(&uri).body(Full::from(GOOD)).unwrap();
        match sender.send_request(request).await {
            Ok(response) => {
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
            // The end was told while this waited to be sent.
            Err(error) if error.is_canceled() => return,
            Err(error) => panic!("a request that was sent got no answer: {error:?}"),
        }
    }
}

async fn drain_under_load(gateway: &Gateway) -> Vec<usize> {
    let uri = format!("http://{}/v2/models/m/infer", gateway.http);
    let (mut asking, mut counts) = (JoinSet::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let stream = tokio::net::TcpStream::connect(gateway.http).await.unwrap();
        let opened = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = opened.unwrap();
        asking.spawn(async move { connection.await.unwrap() });
        for _ in 0..STREAMS {
            let answered = Arc::new(AtomicUsize::new(0));
            counts.push(Arc::clone(&answered));
            let asked = ask_until_told_to_leave(sender.clone(), uri.clone(), answered);
            asking.spawn(asked);
        }
    }
    let answered = || counts.iter().map(|count| count.load(Ordering::Relaxed));
    while answered().any(|answered| answered < 20) {
        tokio::task::yield_now().await;
    }
    gateway.terminate();
    let all = async {
        while let Some(ended) = asking.join_next().await {
            ended.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, all).await.unwrap();
    answered().collect()
}

#[test]
fn drains_over_http_2_answer_every_request_that_was_sent() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    for _ in 0..cycles() {
        let mut gateway = Gateway::with_models(&Setup {
            models: vec![("m", affine(&[1.0], 0.0))],
            config: "[serving]\ndrain_notice_ms = 50",
            ..Setup::default()
        });
        println!("{:?}", runtime.block_on(drain_under_load(&gateway)));
        assert!(gateway.wait().success());
    }
}

#[test]
fn an_end_in_the_middle_of_a_start_spoils_nothing() {
    let project = Project::new("");
    project.register("plain", &affine(&[0.0], 1.0));
    for cycle in 0..10 {
        let after = Duration::from_millis(rand::random_range(0..150));
        println!("cycle {cycle}: ended after {after:?}");
        terminated(project.path(), after);
    }
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    gateway.terminate();
    gateway.drain();
}
