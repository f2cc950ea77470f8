//! Scenario `steady`: one request body, N keep-alive connections, each sending its next request when
//! the last was answered (closed loop). It measures a running gateway and nothing else.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use hdrhistogram::Histogram;
use serde_json::json;

use crate::client::Lane;
use crate::process::machine;

pub(crate) struct Steady {
    pub url: String,
    pub model: String,
    pub body: Vec<u8>,
    pub connections: usize,
    pub seconds: u64,
    pub runs: usize,
}

/// One run's figures.
#[derive(Debug, Clone, Copy)]
struct Run {
    per_second: f64,
    p50_us: u64,
    p99_us: u64,
    p999_us: u64,
    sent: u64,
}

/// Runs the scenario and prints the medians as one JSON object.
pub(crate) async fn run_steady(steady: &Steady) -> Result<()> {
    let address = address(&steady.url)?;
    let mut runs = Vec::with_capacity(steady.runs);
    // One more run than counted: the first warms caches and connections.
    for counted in 0..=steady.runs {
        let run = one_run(steady, address).await?;
        if counted > 0 {
            runs.push(run);
        }
    }
    let result = json!({
        "scenario": "steady",
        "machine": machine(),
        "connections": steady.connections,
        "runs": runs.len(),
        "requests": runs.iter().map(|run| run.sent).sum::<u64>(),
        "per_second": median(&runs, |run| run.per_second),
        "p50_us": median(&runs, |run| run.p50_us as f64),
        "p99_us": median(&runs, |run| run.p99_us as f64),
        "p999_us": median(&runs, |run| run.p999_us as f64),
    });
    println!("{result:#}");
    Ok(())
}

async fn one_run(steady: &Steady, address: SocketAddr) -> Result<Run> {
    let path = format!("/v2/models/{}/infer", steady.model);
    let body = Bytes::from(steady.body.clone());
    let started = Instant::now();
    let end = started + Duration::from_secs(steady.seconds);
    let lanes = (0..steady.connections).map(|_| one_connection(address, &path, &body, end));
    let mut latency = new_histogram()?;
    for histogram in try_join_all(lanes).await? {
        latency.add(histogram)?;
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Run {
        per_second: latency.len() as f64 / seconds,
        p50_us: latency.value_at_quantile(0.5),
        p99_us: latency.value_at_quantile(0.99),
        p999_us: latency.value_at_quantile(0.999),
        sent: latency.len(),
    })
}

async fn one_connection(
    address: SocketAddr,
    path: &str,
    body: &Bytes,
    end: Instant,
) -> Result<Histogram<u64>> {
    let mut lane = Lane::new(address);
    let mut latency = new_histogram()?;
    while Instant::now() < end {
        let sent = Instant::now();
        let answer = lane.post(path, None, body.clone()).await?;
        ensure!(
            answer.status.is_success(),
            "{}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        latency.saturating_record(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    Ok(latency)
}

/// Microseconds up to a minute, to three digits.
fn new_histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

fn address(url: &str) -> Result<SocketAddr> {
    url.trim_start_matches("http://")
        .trim_end_matches('/')
        .to_socket_addrs()
        .with_context(|| format!("`{url}` is no address like http://127.0.0.1:8000"))?
        .next()
        .with_context(|| format!("`{url}` has no address"))
}

fn median(runs: &[Run], figure: impl Fn(&Run) -> f64) -> f64 {
    let mut figures: Vec<f64> = runs.iter().map(figure).collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_from_urls() {
        assert_eq!(
            address("http://127.0.0.1:8000/")
                .expect("an address")
                .port(),
            8000
        );
        assert!(address("nonsense").is_err());
    }
}
