//! HTTP/2 with prior knowledge, and unary gRPC over it, through hyper's client on a thread of its own.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper::{Method, Request};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet, spawn_local};
use tokio::time::timeout;

use super::arrivals::Schedule;
use super::tally::{Failure, Tally};
use super::{Arrivals, Call, Load, Transport};

/// An arrival nearer than this is waited for without sleeping: tokio sleeps whole milliseconds.
const NEAR: Duration = Duration::from_millis(2);
/// A gRPC message's frame: a flag and its length.
const FRAME_BYTES: usize = 5;

/// Runs the load with so many streams on each connection.
pub(super) fn run(load: &Load, streams: usize) -> Result<Tally> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut tally = LocalSet::new().block_on(&runtime, async {
        tokio::select! {
            biased;
            tally = drive(load.clone(), streams.max(1)) => tally,
            never = spin() => match never {},
        }
    })?;
    tally.elapsed = load.measured;
    Ok(tally)
}

/// Keeps the thread from sleeping, as `http1` does and for its reasons.
async fn spin() -> Infallible {
    loop {
        tokio::task::yield_now().await;
    }
}

/// What all streams share.
struct Run {
    load: Load,
    calls: Vec<Prepared>,
    count_from: Instant,
    end: Instant,
}

/// A call whose body is already framed.
struct Prepared {
    call: Call,
    body: Bytes,
}

/// What became of one request.
struct Outcome {
    intended: Instant,
    status: Option<u16>,
    result: Result<Duration, Failure>,
}

async fn drive(load: Load, streams: usize) -> Result<Tally> {
    let mut senders = Vec::new();
    for _ in 0..load.connections.max(1) {
        senders.push(connect(&load).await?);
    }
    let started = Instant::now();
    let count_from = started + load.warm_up;
    let run = Rc::new(Run {
        calls: load.calls.iter().map(|call| prepare(&load, call)).collect(),
        count_from,
        end: count_from + load.measured,
        load,
    });
    match run.load.arrivals {
        Arrivals::Closed => closed(&run, &senders, streams).await,
        Arrivals::Poisson { per_second, seed } => {
            let schedule = Schedule::new(per_second, seed);
            open(&run, &senders, streams, schedule).await
        }
    }
}

async fn connect(load: &Load) -> Result<SendRequest<Full<Bytes>>> {
    let stream = TcpStream::connect(load.address)
        .await
        .with_context(|| format!("cannot connect to {}", load.address))?;
    stream.set_nodelay(true)?;
    let (sender, driver) = handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    // The driver ends with its connection, which the run owns.
    spawn_local(async move {
        drop(driver.await);
    });
    Ok(sender)
}

fn prepare(load: &Load, call: &Call) -> Prepared {
    let body = match load.transport {
        Transport::Grpc { .. } => {
            let mut framed = BytesMut::with_capacity(FRAME_BYTES + call.body.len());
            framed.put_u8(0);
            framed.put_u32(u32::try_from(call.body.len()).expect("a request is below 4 GiB"));
            framed.extend_from_slice(&call.body);
            framed.freeze()
        }
        _ => call.body.clone(),
    };
    Prepared {
        call: call.clone(),
        body,
    }
}

async fn closed(
    run: &Rc<Run>,
    senders: &[SendRequest<Full<Bytes>>],
    streams: usize,
) -> Result<Tally> {
    let mut tasks = JoinSet::new();
    for (k, sender) in senders.iter().enumerate() {
        for s in 0..streams {
            let (run, mut sender) = (Rc::clone(run), sender.clone());
            tasks.spawn_local(async move {
                let mut tally = Tally::new()?;
                let mut turn = k * streams + s;
                while Instant::now() < run.end {
                    let outcome = run.exchange(&mut sender, turn, Instant::now()).await;
                    run.count(&mut tally, &outcome);
                    turn += 1;
                    if outcome.status.is_none() {
                        // The connection is gone; what it does now is no figure.
                        break;
                    }
                }
                anyhow::Ok(tally)
            });
        }
    }
    let mut sum = Tally::new()?;
    while let Some(tally) = tasks.join_next().await {
        sum.add(&tally??)?;
    }
    Ok(sum)
}

async fn open(
    run: &Rc<Run>,
    senders: &[SendRequest<Full<Bytes>>],
    streams: usize,
    mut schedule: Schedule,
) -> Result<Tally> {
    let started = run.count_from - run.load.warm_up;
    let places = Rc::new(Semaphore::new(senders.len() * streams));
    let mut tasks = JoinSet::new();
    let mut tally = Tally::new()?;
    for turn in 0.. {
        let intended = started + schedule.next();
        schedule.advance();
        if intended >= run.end {
            break;
        }
        wait_until(intended).await;
        if intended >= run.count_from {
            tally.late(intended.elapsed());
        }
        let places = Rc::clone(&places);
        let mut sender = senders[turn % senders.len()].clone();
        let shared = Rc::clone(run);
        tasks.spawn_local(async move {
            let run = shared;
            let place = timeout(run.load.timeout, places.acquire()).await;
            let Ok(Ok(_place)) = place else {
                return Outcome {
                    intended,
                    status: None,
                    result: Err(Failure::Unsent),
                };
            };
            run.exchange(&mut sender, turn, intended).await
        });
        while let Some(outcome) = tasks.try_join_next() {
            run.count(&mut tally, &outcome?);
        }
    }
    while let Some(outcome) = tasks.join_next().await {
        run.count(&mut tally, &outcome?);
    }
    Ok(tally)
}

/// Sleeps while there is time and then gives the runtime's other tasks their turns.
async fn wait_until(at: Instant) {
    loop {
        match at.saturating_duration_since(Instant::now()) {
            Duration::ZERO => return,
            near if near < NEAR => tokio::task::yield_now().await,
            far => tokio::time::sleep(far - NEAR).await,
        }
    }
}

impl Run {
    async fn exchange(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        turn: usize,
        intended: Instant,
    ) -> Outcome {
        let outcome = timeout(self.load.timeout, self.ask(sender, turn)).await;
        let (status, failure) = match outcome {
            Ok(Ok((status, failure))) => (Some(status), failure),
            Ok(Err(_)) => (None, Some(Failure::Reset)),
            Err(_) => (None, Some(Failure::Timeout)),
        };
        Outcome {
            intended,
            status,
            result: failure.map_or_else(|| Ok(intended.elapsed()), Err),
        }
    }

    /// The answer's status, and why it is not good.
    async fn ask(
        &self,
        sender: &mut SendRequest<Full<Bytes>>,
        turn: usize,
    ) -> Result<(u16, Option<Failure>)> {
        let prepared = &self.calls[turn % self.calls.len()];
        let uri = format!("http://{}{}", self.load.address, prepared.call.path);
        let mut request = Request::builder().method(Method::POST).uri(uri);
        for (name, value) in &prepared.call.headers {
            request = request.header(*name, value);
        }
        let grpc = matches!(self.load.transport, Transport::Grpc { .. });
        if grpc {
            request = request
                .header("content-type", "application/grpc")
                .header("te", "trailers");
        }
        sender.ready().await?;
        let request = request.body(Full::new(prepared.body.clone()))?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?;
        let http = head.status.as_u16();
        if !grpc || http != 200 {
            let body = body.to_bytes();
            let failure = Failure::of_status(http).or_else(|| self.judge(&body));
            return Ok((http, failure));
        }
        let trailers = body.trailers().cloned().unwrap_or_default();
        let code = trailers
            .get("grpc-status")
            .or_else(|| head.headers.get("grpc-status"))
            .and_then(|code| code.to_str().ok()?.parse().ok())
            .unwrap_or(2);
        let body = body.to_bytes();
        let message = body.get(FRAME_BYTES..).unwrap_or_default();
        let failure = of_grpc(code).or_else(|| self.judge(message));
        Ok((1000 + code, failure))
    }

    fn judge(&self, body: &[u8]) -> Option<Failure> {
        (!(self.load.check)(body)).then_some(Failure::Wrong)
    }

    fn count(&self, tally: &mut Tally, outcome: &Outcome) {
        tally.sent += u64::from(outcome.status.is_some());
        if !(self.count_from..self.end).contains(&outcome.intended) {
            return;
        }
        if let Some(status) = outcome.status {
            tally.status(status);
        }
        match outcome.result {
            Ok(latency) => tally.good(latency),
            Err(failure) => tally.failed(failure),
        }
    }
}

/// What a gRPC status code says.
fn of_grpc(code: u16) -> Option<Failure> {
    match code {
        0 => None,
        8 => Some(Failure::Shed),
        2 | 4 | 13 | 14 => Some(Failure::Server),
        _ => Some(Failure::Refused),
    }
}
