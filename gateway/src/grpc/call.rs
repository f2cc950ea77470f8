//! From a call's head to its answer: which method, how its messages are read and written.
//!
//! A prediction is refused before its message is read where there is no place for it. An answer is
//! compressed as its request was: clients offer every encoding they know and few of them mean it.

use std::future::{Ready, ready};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codec::{CompressionEncoding, Streaming};
use tonic::codegen::Service;
use tonic::codegen::tokio_stream::Stream;
use tonic::server::{Grpc as Codec, ServerStreamingService, StreamingService, UnaryService};
use tonic::service::Routes;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::infer::Head;
use super::message::{ServerLiveRequest, ServerMetadataRequest, ServerReadyRequest};
use super::method::{self, Method};
use super::{health, infer, load, model, repository, status, stream};
use crate::predict::Desk;
use crate::serve::Core;

/// What every call needs.
pub(super) struct Server {
    pub desk: Arc<Desk>,
    pub reflection: Routes,
    /// Set when the listener drains: streams end with the answer that they are at.
    pub stop: CancellationToken,
}

pub(super) type Answer = hyper::Response<Body>;

/// What a call may cost.
#[derive(Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of a message, as it came and as it is decompressed.
    pub message_bytes_max: usize,
    /// Longest wait for the message, and for its answer.
    pub within: Duration,
}

impl Bounds {
    /// The same as a body's over HTTP.
    fn of(core: &Core) -> Self {
        Self {
            message_bytes_max: core.limits.body_bytes_max,
            within: core.limits.body_timeout,
        }
    }
}

/// Answers one call, whatever happens.
pub(super) async fn respond(server: Arc<Server>, request: Request<Incoming>) -> Answer {
    let arrived = Instant::now();
    let core = &*server.desk.core;
    let (method, access) = method::find(request.uri().path());
    if let Err(denied) = core.gate.pass(request.headers(), access) {
        return status::denied(denied).into_http();
    }
    let Some(method) = method else {
        return status::unknown_method(request.uri().path()).into_http();
    };
    match method {
        Method::ModelInfer => model_infer(&server, request, arrived).await,
        Method::ModelStreamInfer => match Head::read(core, request.headers(), arrived) {
            Ok(head) => {
                let answers = |inbound| stream::answers(Arc::clone(&server), inbound, head);
                streaming(core, request, answers).await
            }
            Err(status) => status.into_http(),
        },
        Method::ServerLive => {
            at_once(core, request, |_: ServerLiveRequest| Ok(model::live())).await
        }
        Method::ServerReady => {
            let ready = |_: ServerReadyRequest| Ok(model::ready(core));
            at_once(core, request, ready).await
        }
        Method::ServerMetadata => {
            let metadata = |_: ServerMetadataRequest| Ok(model::server(core));
            at_once(core, request, metadata).await
        }
        Method::ModelReady => {
            at_once(core, request, |asked| Ok(model::model_ready(core, &asked))).await
        }
        Method::ModelMetadata => {
            at_once(core, request, |asked| model::metadata(core, &asked)).await
        }
        Method::ModelConfig => at_once(core, request, |asked| model::config(core, &asked)).await,
        Method::ModelStatistics => {
            at_once(core, request, |asked| repository::statistics(core, &asked)).await
        }
        Method::RepositoryIndex => {
            at_once(core, request, |asked| Ok(repository::index(core, &asked))).await
        }
        Method::RepositoryModelLoad => load::load(core, request).await,
        Method::RepositoryModelUnload => load::unload(core, request).await,
        Method::HealthCheck => at_once(core, request, |asked| health::check(core, &asked)).await,
        Method::HealthWatch => {
            let statuses = |asked| health::watch(Arc::clone(&server), asked);
            server_streaming(core, request, statuses).await
        }
        Method::Reflection => {
            let Ok(answer) = server.reflection.clone().call(request).await;
            answer
        }
    }
}

async fn model_infer(server: &Server, request: Request<Incoming>, arrived: Instant) -> Answer {
    let core = &*server.desk.core;
    let head = match Head::read(core, request.headers(), arrived) {
        Ok(head) => head,
        Err(status) => return status.into_http(),
    };
    let mut place = match infer::enter(core) {
        Ok(place) => Some(place),
        Err(status) => return status.into_http(),
    };
    let answer = |asked| {
        let place = place.take();
        async move {
            // A unary call is answered once.
            let place = place.ok_or_else(|| Status::internal("answered twice"))?;
            let answered = infer::answer(&server.desk, asked, head, place).await;
            answered.map(tonic::Response::new)
        }
    };
    unary(Bounds::of(core), request, answer).await
}

/// One message in, one out that needs no waiting.
async fn at_once<A, R, F>(core: &Core, request: Request<Incoming>, mut answer: F) -> Answer
where
    A: Message + Default + Send + 'static,
    R: Message + Send + 'static,
    F: FnMut(A) -> Result<R, Status>,
{
    let answer = |asked| ready(answer(asked).map(tonic::Response::new));
    unary(Bounds::of(core), request, answer).await
}

/// One message in, one out.
pub(super) async fn unary<A, R, F, Fut>(
    bounds: Bounds,
    request: Request<Incoming>,
    answer: F,
) -> Answer
where
    A: Message + Default + Send + 'static,
    R: Message + Send + 'static,
    F: FnMut(A) -> Fut,
    Fut: Future<Output = Result<tonic::Response<R>, Status>>,
{
    let mut codec = codec::<A, R>(bounds, &request);
    let answered = codec.unary(Answering(answer), request);
    let answered = tokio::time::timeout(bounds.within, answered).await;
    let late = |_| Status::deadline_exceeded("the message did not come in time").into_http();
    too_large(answered.unwrap_or_else(late))
}

/// One message in, many out.
async fn server_streaming<A, R, F, S>(core: &Core, request: Request<Incoming>, answer: F) -> Answer
where
    A: Message + Default + Send + 'static,
    R: Message + Send + 'static,
    F: FnMut(A) -> S,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let mut codec = codec::<A, R>(Bounds::of(core), &request);
    let answered = codec.server_streaming(Answering(answer), request);
    let answered = tokio::time::timeout(core.limits.body_timeout, answered).await;
    let late = |_| Status::deadline_exceeded("the message did not come in time").into_http();
    too_large(answered.unwrap_or_else(late))
}

/// Many messages in, many out.
async fn streaming<A, R, F, S>(core: &Core, request: Request<Incoming>, answer: F) -> Answer
where
    A: Message + Default + Send + 'static,
    R: Message + Send + 'static,
    F: FnMut(Streaming<A>) -> S + Send,
    S: Stream<Item = Result<R, Status>> + Send + 'static,
{
    let mut codec = codec::<A, R>(Bounds::of(core), &request);
    codec.streaming(Answering(answer), request).await
}

fn codec<A, R>(bounds: Bounds, request: &Request<Incoming>) -> Codec<ProstCodec<R, A>>
where
    A: Message + Default + Send + 'static,
    R: Message + Send + 'static,
{
    let codec = Codec::new(ProstCodec::default())
        .accept_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Deflate)
        // Of a message as it came and of what it is decompressed to.
        .max_decoding_message_size(bounds.message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    match request
        .headers()
        .get("grpc-encoding")
        .map(|name| name.as_bytes())
    {
        Some(b"gzip") => codec.send_compressed(CompressionEncoding::Gzip),
        Some(b"deflate") => codec.send_compressed(CompressionEncoding::Deflate),
        _ => codec,
    }
}

/// The codec tells of a message over the limit in its own words and code.
fn too_large(answer: Answer) -> Answer {
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() == Code::OutOfRange => status::too_large(status).into_http(),
        _ => answer,
    }
}

/// A function as tonic's service.
struct Answering<F>(F);

impl<A, R, F, Fut> UnaryService<A> for Answering<F>
where
    F: FnMut(A) -> Fut,
    Fut: Future<Output = Result<tonic::Response<R>, Status>>,
{
    type Response = R;
    type Future = Fut;

    fn call(&mut self, request: tonic::Request<A>) -> Fut {
        (self.0)(request.into_inner())
    }
}

impl<A, R, F, S> ServerStreamingService<A> for Answering<F>
where
    F: FnMut(A) -> S,
    S: Stream<Item = Result<R, Status>>,
{
    type Response = R;
    type ResponseStream = S;
    type Future = Ready<Result<tonic::Response<S>, Status>>;

    fn call(&mut self, request: tonic::Request<A>) -> Self::Future {
        ready(Ok(tonic::Response::new((self.0)(request.into_inner()))))
    }
}

impl<A, R, F, S> StreamingService<A> for Answering<F>
where
    F: FnMut(Streaming<A>) -> S,
    S: Stream<Item = Result<R, Status>>,
{
    type Response = R;
    type ResponseStream = S;
    type Future = Ready<Result<tonic::Response<S>, Status>>;

    fn call(&mut self, request: tonic::Request<Streaming<A>>) -> Self::Future {
        ready(Ok(tonic::Response::new((self.0)(request.into_inner()))))
    }
}
