//! `drain`: SIGTERM in the middle of load. What was accepted must be answered.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::{Bench, ROWS, measure, must_be_clean};
use crate::chart::{Bars, short};
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Failure, Load, Tally, Transport};
use crate::machine::Conditions;
use crate::models::{ensemble, rows};
use crate::question::json_calls;

const MODEL: &str = "scored";
const CONNECTIONS: usize = 32;
/// The signal comes in the middle.
const LENGTH: Duration = Duration::from_secs(2);

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = Conditions::now(bench.rounds, LENGTH);
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
        "gone after ms",
    ]);
    let mut figures = serde_json::Map::new();
    let mut bars = Vec::new();
    for (name, transport) in [
        ("keep-alive", Transport::KeepAlive),
        ("one a request", Transport::ConnectionPerRequest),
    ] {
        let mut sum: Option<Tally> = None;
        let (mut offered, mut gone_ms) = (Vec::new(), Vec::new());
        for round in 0..bench.rounds {
            eprintln!("drain: {name}, {} of {}", round + 1, bench.rounds);
            let Drained {
                tally,
                per_second,
                took,
            } = one_drain(bench, &folder, transport).await?;
            offered.push(per_second);
            gone_ms.push(took.as_secs_f64() * 1e3);
            match &mut sum {
                Some(sum) => sum.add(&tally)?,
                None => sum = Some(tally),
            }
        }
        let Some(sum) = sum else {
            continue;
        };
        let refused = refused(&sum);
        let mut row = row(name, bench.rounds, median(&offered), &sum);
        row.push(short(median(&gone_ms)));
        table.push(&row);
        bars.push((name.to_owned(), median(&gone_ms)));
        figures.insert(
            name.into(),
            json!({
                "drains": bench.rounds,
                "failed": sum.failed_in_all() - refused,
                "refused": refused,
                "gone_ms": gone_ms,
                "tally": sum.json(),
            }),
        );
    }
    Ok(finding(conditions, table, figures.into(), bars))
}

fn finding(
    conditions: Conditions,
    table: Table,
    figures: serde_json::Value,
    bars: Vec<(String, f64)>,
) -> Finding {
    Finding {
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
        figures,
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "From SIGTERM to the end of the process".into(),
            unit: "ms".into(),
            bars,
        }],
    }
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

/// A gateway that came to its end under load.
struct Drained {
    tally: Tally,
    per_second: f64,
    /// From the signal to the end of the process.
    took: Duration,
}

/// A fresh gateway, its capacity, and its end.
async fn one_drain(
    bench: &Bench,
    folder: &std::path::Path,
    transport: Transport,
) -> Result<Drained> {
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
        patience: Duration::from_secs(5),
        ..load
    };
    let end = async {
        tokio::time::sleep(LENGTH / 2).await;
        let asked = Instant::now();
        gateway.drain().await?;
        anyhow::Ok(asked.elapsed())
    };
    let (tally, took) = tokio::join!(load.run_beside(), end);
    Ok(Drained {
        tally: tally?,
        per_second,
        took: took?,
    })
}
