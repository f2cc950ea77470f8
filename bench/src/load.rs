//! The load generator: prebuilt requests against one address, closed loop or open loop.
//!
//! Closed loop: each connection (or stream) sends its next request when the last was answered, and
//! latency counts from the send. Open loop: arrivals are a seeded Poisson process, latency counts from
//! the *intended* start, and an arrival that finds no connection free waits with its clock running, so
//! a slow server cannot thin out the load that measures it. How late the generator itself was is
//! measured too, and a run in which it was late says so instead of giving figures.
//!
//! HTTP/1.1 is spoken over bare sockets and one epoll loop (`http1`): a request costs the generator a
//! write, a read and a small parse. HTTP/2 and gRPC go through hyper's client (`http2`), which costs
//! more than the servers under test. Both spin.

mod arrivals;
mod http1;
mod http2;
mod reply;
mod tally;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;

pub(crate) use arrivals::Arrivals;
pub(crate) use tally::{Failure, Tally};

/// One request, built before the clock runs.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub path: String,
    /// Beside `host` and the body's length.
    pub headers: Vec<(&'static str, String)>,
    pub body: Bytes,
}

/// How requests travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    /// HTTP/1.1, one request at a time on each connection.
    KeepAlive,
    /// HTTP/1.1, a new connection for each request.
    ConnectionPerRequest,
    /// HTTP/2 with prior knowledge, so many streams on each connection.
    Http2 { streams: usize },
    /// Unary gRPC: [`Call::body`] is one message, without its frame.
    Grpc { streams: usize },
}

/// Whether an answer of status 200 is right, judged from its body. It runs on the hot path.
pub(crate) type Check = fn(&[u8]) -> bool;

/// The check that believes every answer.
pub(crate) fn believe(_: &[u8]) -> bool {
    true
}

/// A run of the generator.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub address: SocketAddr,
    pub transport: Transport,
    /// Sent in turn.
    pub calls: Vec<Call>,
    pub arrivals: Arrivals,
    pub connections: usize,
    /// Sent like the rest and not counted.
    pub warm_up: Duration,
    pub measured: Duration,
    /// After so long a request counts as timed out and its connection is closed.
    pub timeout: Duration,
    /// How long an arrival that finds every connection busy waits for one. HTTP/1.1 only.
    pub patience: Duration,
    /// How often a caller who is refused (429) asks again at once, however long he is told to wait.
    /// HTTP/1.1 only.
    pub retries: usize,
    /// The first so many of the calls are counted, the rest only load the server. HTTP/1.1 only.
    pub counted_calls: usize,
    pub check: Check,
}

impl Load {
    /// A closed loop of keep-alive connections that believes every answer.
    pub(crate) fn closed(address: SocketAddr, calls: Vec<Call>, connections: usize) -> Self {
        Self {
            address,
            transport: Transport::KeepAlive,
            calls,
            arrivals: Arrivals::Closed,
            connections,
            warm_up: Duration::from_millis(300),
            measured: Duration::from_secs(2),
            timeout: Duration::from_secs(10),
            patience: Duration::from_secs(10),
            retries: 0,
            counted_calls: usize::MAX,
            check: believe,
        }
    }

    /// Runs to its end on this thread.
    ///
    /// # Errors
    /// When the generator itself fails; what the server does wrong is counted.
    pub(crate) fn run(&self) -> Result<Tally> {
        match self.transport {
            Transport::KeepAlive | Transport::ConnectionPerRequest => http1::run(self),
            Transport::Http2 { streams } | Transport::Grpc { streams } => http2::run(self, streams),
        }
    }

    /// Runs on a thread of its own, while the caller goes on with what it does to the server.
    pub(crate) async fn run_beside(self) -> Result<Tally> {
        tokio::task::spawn_blocking(move || self.run()).await?
    }
}
