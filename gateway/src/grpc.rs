//! gRPC: the core of `inference.GRPCInferenceService`, and `grpc.health.v1.Health/Check`.
//!
//! One thread with its own runtime and its own sessions. A call leads the same life as an HTTP
//! request (`predict`); only its wire differs. Messages and routing are written by hand.

mod infer;
mod message;
mod status;
mod tensor;

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::TensorSpec;
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use registry::ModelName;
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc as Codec, UnaryService};
use tonic_prost::ProstCodec;

use crate::admission::Place;
use crate::metrics::{Operation, Outcome};
use crate::predict::{Call, Desk, predict};
use crate::route::{self, RouteError, Target};
use crate::serve::Core;

use message::{
    Empty, HealthCheckRequest, HealthCheckResponse, ModelInferRequest, ModelInferResponse,
    ModelMetadataResponse, ModelRequest, ServerLiveResponse, ServerMetadataResponse,
    ServerReadyResponse, ServingStatus, TensorMetadata,
};

/// In replay mode the request's time, milliseconds since the Unix epoch.
const TIME_KEY: &str = "loopgate-time-ms";
/// `false` makes a prediction a probe: answered, not recorded.
const RECORD_KEY: &str = "loopgate-record";
/// Connections at a time; more are closed.
const CONNECTIONS_MAX: usize = 1024;
/// Calls at a time on one connection.
const STREAMS_MAX: u32 = 256;
/// How often silent connections are asked whether they live, and how long they may take to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(20);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// The running gRPC thread.
pub(crate) struct GrpcThread {
    thread: JoinHandle<()>,
    stop: CancellationToken,
    pub address: SocketAddr,
}

impl GrpcThread {
    /// Binds the address and starts to serve.
    ///
    /// # Errors
    /// When the address is taken or not ours.
    pub(crate) fn start(address: SocketAddr, desk: Arc<Desk>) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let thread = std::thread::Builder::new()
            .name("loopgate-grpc".to_owned())
            .spawn(move || {
                let served = runtime.block_on(Box::pin(serve(listener, desk, stopped)));
                if let Err(error) = served {
                    tracing::error!(%error, "gRPC listener ended");
                }
            })?;
        Ok(Self {
            thread,
            stop,
            address,
        })
    }

    /// Stops accepting, lets calls in flight finish within the drain's grace, and joins the thread.
    pub(crate) fn drain(self) {
        self.stop.cancel();
        if self.thread.join().is_err() {
            tracing::error!("the gRPC thread panicked");
        }
    }
}

async fn serve(
    listener: std::net::TcpListener,
    desk: Arc<Desk>,
    stop: CancellationToken,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let connections = TaskTracker::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS_MAX => {
                    connections.spawn(converse(Arc::clone(&desk), stream, stop.clone()));
                }
                Ok(_) => desk.core.metrics.connections_refused.increment(1),
                Err(error) => {
                    tracing::warn!(%error, "gRPC connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    connections.close();
    let grace = desk.core.limits.drain_grace;
    if tokio::time::timeout(grace, connections.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            open = connections.len(),
            "gRPC connections cut after the drain's grace"
        );
    }
    Ok(())
}

async fn converse(desk: Arc<Desk>, stream: TcpStream, stop: CancellationToken) {
    // A socket that the peer has closed already takes no option; its connection ends by itself.
    drop(stream.set_nodelay(true));
    let service = service_fn(move |request| {
        let desk = Arc::clone(&desk);
        async move { Ok::<_, Infallible>(Box::pin(respond(&desk, request)).await) }
    });
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .max_concurrent_streams(STREAMS_MAX)
        .adaptive_window(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "gRPC connection ended badly");
    }
}

/// Answers one call, whatever happens.
async fn respond(desk: &Desk, request: Request<Incoming>) -> Response<Body> {
    let arrived = Instant::now();
    let core = &*desk.core;
    let path = request.uri().path();
    let (service, method) = path
        .trim_start_matches('/')
        .split_once('/')
        .unwrap_or_default();
    match (service, method) {
        ("inference.GRPCInferenceService", "ServerLive") => {
            unary(core, request, |Empty {}| {
                at_once(Ok(ServerLiveResponse { live: true }))
            })
            .await
        }
        ("inference.GRPCInferenceService", "ServerReady") => {
            let ready = core.is_ready();
            unary(core, request, move |Empty {}| {
                at_once(Ok(ServerReadyResponse { ready }))
            })
            .await
        }
        ("inference.GRPCInferenceService", "ServerMetadata") => {
            unary(core, request, |Empty {}| at_once(Ok(server_metadata(core)))).await
        }
        ("inference.GRPCInferenceService", "ModelReady") => {
            unary(core, request, |asked| at_once(model_ready(core, &asked))).await
        }
        ("inference.GRPCInferenceService", "ModelMetadata") => {
            unary(core, request, |asked| at_once(model_metadata(core, &asked))).await
        }
        ("inference.GRPCInferenceService", "ModelInfer") => infer(desk, request, arrived).await,
        ("grpc.health.v1.Health", "Check") => {
            unary(core, request, |asked: HealthCheckRequest| {
                at_once(health(core, &asked.service))
            })
            .await
        }
        _ => Status::unimplemented("unknown method").into_http(),
    }
}

/// Refuses before the message is read, where there is no place for it.
async fn infer(desk: &Desk, request: Request<Incoming>, arrived: Instant) -> Response<Body> {
    let core = &*desk.core;
    let mut place = match core.admission.enter() {
        Ok(place) => Some(place),
        Err(error) => {
            core.metrics.request(Operation::Infer, Outcome::Overloaded);
            return Status::resource_exhausted(error.to_string()).into_http();
        }
    };
    let head = request.headers().clone();
    let answer = |asked| {
        let place = place.take();
        let head = &head;
        async move {
            // A unary call is answered once.
            let place = place.ok_or_else(|| Status::internal("answered twice"))?;
            let answered = model_infer(desk, asked, head, Admission { place, arrived }).await;
            answered.map(tonic::Response::new)
        }
    };
    unary(core, request, answer).await
}

/// The place of a call and when it came.
struct Admission {
    place: Place,
    arrived: Instant,
}

/// One call with one answer, once its message is there in time.
async fn unary<A, R, F, Fut>(core: &Core, request: Request<Incoming>, answer: F) -> Response<Body>
where
    A: Message + Default + Send + 'static,
    R: Message + Send + 'static,
    F: FnMut(A) -> Fut,
    Fut: Future<Output = Result<tonic::Response<R>, Status>>,
{
    let bytes_max = core.limits.body_bytes_max;
    let mut codec = Codec::new(ProstCodec::<R, A>::default())
        .max_decoding_message_size(bytes_max)
        .max_encoding_message_size(usize::MAX);
    let answered = codec.unary(Answering(answer), request);
    let answered = tokio::time::timeout(core.limits.body_timeout, answered);
    let late = |_| Status::deadline_exceeded("the message did not come in time").into_http();
    answered.await.unwrap_or_else(late)
}

/// An answer that needs no waiting.
fn at_once<R>(answer: Result<R, Status>) -> Ready<Result<tonic::Response<R>, Status>> {
    ready(answer.map(tonic::Response::new))
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

fn server_metadata(core: &Core) -> ServerMetadataResponse {
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

fn target(model: &str, version: &str) -> Result<Target, Status> {
    let model: ModelName = model.parse().map_err(|error| status::of_name(&error))?;
    let version = (!version.is_empty()).then(|| version.into());
    Ok(Target { model, version })
}

/// Unknown models are not ready, as Triton has it; that is no error.
fn model_ready(core: &Core, asked: &ModelRequest) -> Result<ServerReadyResponse, Status> {
    let known = target(&asked.name, &asked.version)
        .is_ok_and(|target| model_metadata_of(core, &target).is_ok());
    Ok(ServerReadyResponse {
        ready: known && !core.is_draining(),
    })
}

fn model_metadata(core: &Core, asked: &ModelRequest) -> Result<ModelMetadataResponse, Status> {
    let target = target(&asked.name, &asked.version)?;
    model_metadata_of(core, &target).map_err(|error| status::of_route(&error))
}

fn model_metadata_of(core: &Core, target: &Target) -> Result<ModelMetadataResponse, RouteError> {
    let table = core.table.snapshot();
    let model = route::model(table.as_deref(), target)?;
    let version = route::named_or_champion(model, target)?;
    let tensors = |specs: &[TensorSpec]| {
        let tensor = |spec: &TensorSpec| TensorMetadata {
            name: spec.name.clone(),
            datatype: spec.datatype.as_str().to_owned(),
            shape: spec.shape.clone(),
        };
        specs.iter().map(tensor).collect()
    };
    Ok(ModelMetadataResponse {
        name: model.name.to_string(),
        versions: model.versions.keys().map(u32::to_string).collect(),
        platform: "onnx_onnxv1".to_owned(),
        inputs: tensors(&version.public.inputs),
        outputs: tensors(&version.public.outputs),
        properties: Default::default(),
    })
}

async fn model_infer(
    desk: &Desk,
    asked: ModelInferRequest,
    head: &HeaderMap,
    admission: Admission,
) -> Result<ModelInferResponse, Status> {
    let answered = attempt(desk, asked, head, admission).await;
    let outcome = match &answered {
        Ok(_) => Outcome::Ok,
        Err(status) => match status.code() {
            tonic::Code::InvalidArgument => Outcome::Refused,
            tonic::Code::NotFound => Outcome::NotFound,
            tonic::Code::ResourceExhausted => Outcome::Overloaded,
            tonic::Code::DeadlineExceeded => Outcome::Late,
            tonic::Code::Unavailable => Outcome::Unavailable,
            _ => Outcome::Failed,
        },
    };
    desk.core.metrics.request(Operation::Infer, outcome);
    answered
}

async fn attempt(
    desk: &Desk,
    asked: ModelInferRequest,
    head: &HeaderMap,
    Admission { place, arrived }: Admission,
) -> Result<ModelInferResponse, Status> {
    let core = &*desk.core;
    let target = target(&asked.model_name, &asked.model_version)?;
    let text = |name: &str| head.get(name).and_then(|value| value.to_str().ok());
    let named_ms = match text(TIME_KEY) {
        Some(ms) if core.clock.is_replay() => {
            let wrong = || {
                Status::invalid_argument(format!("`{TIME_KEY}` is not a number of milliseconds"))
            };
            Some(ms.parse().map_err(|_| wrong())?)
        }
        _ => None,
    };
    let call = Call {
        target,
        place,
        arrived,
        at_ms: core.clock.request_ms(named_ms),
        probe: text(RECORD_KEY) == Some("false"),
    };
    let timeout = text("grpc-timeout").and_then(infer::timeout);
    predict(desk, call, infer::Grpc::new(asked, timeout))
        .await
        .map_err(|error| status::of_predict(&error))
}

/// The whole server is asked for by an empty name, the service by its own.
fn health(core: &Core, service: &str) -> Result<HealthCheckResponse, Status> {
    if !matches!(service, "" | "inference.GRPCInferenceService") {
        return Err(Status::not_found("unknown service"));
    }
    let status = match core.is_ready() {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    };
    Ok(HealthCheckResponse {
        status: status as i32,
    })
}
