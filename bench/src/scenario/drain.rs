//! `drain`: SIGTERM in the middle of load. What was accepted must be answered.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{Bench, ROWS, measure, must_be_clean};
use crate::chart::short;
use crate::deployment::Deployed;
use crate::finding::{Finding, Table};
use crate::load::{Arrivals, Failure, Load, Tally, Transport};
use crate::models::{ensemble, rows};
use crate::question::json_calls;

const MODEL: &str = "scored";
const CONNECTIONS: usize = 32;
/// The signal comes in the middle.
const LENGTH: Duration = Duration::from_secs(2);

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = Bench::conditions();
    let folder = bench.folder("drain")?;
    let mut table = Table::new(&[
        "connections",
        "drains",
        "offered/s",
        "answered",
        "failed",
        "reset",
        "timeout",
        "5xx",
        "refused after the end",
    ]);
    let mut figures = serde_json::Map::new();
    for (name, transport) in [
        ("keep-alive", Transport::KeepAlive),
        ("one a request", Transport::ConnectionPerRequest),
    ] {
        let mut sum: Option<Tally> = None;
        let mut offered = 0.0;
        for round in 0..bench.rounds {
            eprintln!("drain: {name}, {} of {}", round + 1, bench.rounds);
            let (tally, per_second) = one_drain(bench, &folder, transport).await?;
            offered = per_second;
            match &mut sum {
                Some(sum) => sum.add(&tally)?,
                None => sum = Some(tally),
            }
        }
        let Some(sum) = sum else {
            continue;
        };
        let refused = refused(&sum);
        table.push(&row(name, bench.rounds, offered, &sum));
        figures.insert(
            name.into(),
            json!({
                "drains": bench.rounds,
                "failed": sum.failed_in_all() - refused,
                "refused": refused,
                "tally": sum.json(),
            }),
        );
    }
    Ok(Finding {
        name: "drain",
        title: "Drain: SIGTERM under load",
        method: format!(
            "One serving thread on one core, 200 × 31 trees, open loop at 0.8 of the capacity of its kind of \
             connection on {CONNECTIONS} connections; SIGTERM after {} s of {} s. Failed is a request on a \
             connection that the gateway's port took and that got no good answer; refused are connections \
             that nobody took any more, which a balancer would send elsewhere.",
            LENGTH.as_secs_f64() / 2.0,
            LENGTH.as_secs_f64()
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: Vec::new(),
    })
}

/// What nobody took any more.
fn refused(tally: &Tally) -> u64 {
    tally.failures(Failure::Connect) + tally.failures(Failure::Unsent)
}

fn row(name: &str, drains: usize, offered: f64, sum: &Tally) -> Vec<String> {
    vec![
        name.into(),
        drains.to_string(),
        short(offered),
        short(sum.answered() as f64),
        (sum.failed_in_all() - refused(sum)).to_string(),
        sum.failures(Failure::Reset).to_string(),
        sum.failures(Failure::Timeout).to_string(),
        sum.failures(Failure::Server).to_string(),
        short(refused(sum) as f64),
    ]
}

/// A fresh gateway, its capacity, and its end.
async fn one_drain(
    bench: &Bench,
    folder: &std::path::Path,
    transport: Transport,
) -> Result<(Tally, f64)> {
    let deployed = Deployed::plain(MODEL, ensemble(bench.seed));
    let gateway = bench.deploy(folder.join("project"), vec![deployed]).await?;
    let load = Load {
        transport,
        connections: CONNECTIONS,
        measured: Duration::from_secs(1),
        ..bench.closed(
            gateway.addresses.http,
            json_calls(MODEL, &rows(ROWS, bench.seed)),
        )
    };
    let capacity = measure(load.clone(), gateway.pid()).await?.tally;
    must_be_clean("capacity", &capacity)?;
    let per_second = 0.8 * capacity.per_second();
    let load = Load {
        arrivals: Arrivals::Poisson {
            per_second,
            seed: bench.seed,
        },
        warm_up: Duration::ZERO,
        measured: LENGTH,
        timeout: Duration::from_secs(5),
        ..load
    };
    let end = async {
        tokio::time::sleep(LENGTH / 2).await;
        gateway.drain().await
    };
    let (tally, drained) = tokio::join!(load.run_beside(), end);
    drained?;
    Ok((tally?, per_second))
}
