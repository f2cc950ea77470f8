//! `skew`: two serving threads, and connections of which a few do all the work. Whether the threads
//! share it shows in their processor time.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::{Bench, ROWS, must_be_clean};
use crate::chart::{Bars, short};
use crate::deployment::{Deployed, Deployment};
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Load, Tally};
use crate::machine::threads_cpu;
use crate::models::{ensemble, rows};
use crate::process::Gateway;
use crate::question::json_calls;

const MODEL: &str = "scored";
const THREADS: usize = 2;
const EVEN: usize = 32;
const HOT: usize = 4;
const COLD: usize = 200;
/// Of all cold connections together.
const COLD_PER_SECOND: f64 = 200.0;

/// One run: throughput, and the idler thread's processor time as a share of the busier one's.
struct Balance {
    per_second: f64,
    share: f64,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = bench.conditions();
    let gateway = Deployment {
        folder: bench.folder("skew")?.join("project"),
        models: vec![Deployed::plain(MODEL, ensemble(bench.seed))],
        serving_threads: THREADS,
        core: None,
        ..Deployment::on_one_core(&bench.loopgate)
    }
    .start()
    .await?;
    let (mut even, mut skewed) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        eprintln!("skew: round {} of {}", round + 1, bench.rounds);
        even.push(one_run(bench, &gateway, EVEN, 0).await?);
        skewed.push(one_run(bench, &gateway, HOT, COLD).await?);
    }
    gateway.drain().await?;
    let mut table = Table::new(&[
        "connections",
        "per second",
        "idler thread / busier thread, median",
        "worst",
    ]);
    let mut figures = serde_json::Map::new();
    let mut bars = Vec::new();
    for (name, runs) in [
        (format!("{EVEN} alike"), &even),
        (format!("{HOT} hot, {COLD} cold"), &skewed),
    ] {
        let shares: Vec<f64> = runs.iter().map(|run| run.share).collect();
        let rates: Vec<f64> = runs.iter().map(|run| run.per_second).collect();
        let worst = shares.iter().copied().fold(f64::INFINITY, f64::min);
        table.push(&[
            name.clone(),
            short(median(&rates)),
            format!("{:.0} %", 100.0 * median(&shares)),
            format!("{:.0} %", 100.0 * worst),
        ]);
        bars.push((name.clone(), 100.0 * median(&shares)));
        figures.insert(name, json!({"per_second": rates, "balance": shares}));
    }
    Ok(Finding {
        name: "skew",
        title: "Skew: few hot connections",
        method: format!(
            "{THREADS} serving threads, closed loop, {} runs each with fresh connections, so that each run \
             draws its own share-out. Nothing is pinned: on a machine of two cores the generator takes part \
             of one, and the rates are then not the gateway's best.",
            bench.rounds
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "Processor time of the idler thread, of the busier's".into(),
            unit: "%".into(),
            bars,
        }],
    })
}

async fn one_run(bench: &Bench, gateway: &Gateway, hot: usize, cold: usize) -> Result<Balance> {
    let address = gateway.addresses.http;
    let calls = json_calls(MODEL, &rows(ROWS, bench.seed));
    let idle = Load {
        arrivals: Arrivals::Poisson {
            per_second: COLD_PER_SECOND,
            seed: bench.seed,
        },
        connections: cold,
        ..bench.closed(address, calls.clone())
    };
    let busy = Load {
        connections: hot,
        // The cold connections come first.
        warm_up: Duration::from_millis(500),
        ..bench.closed(address, calls)
    };
    let before = threads_cpu(gateway.pid());
    let (tally, _) = tokio::join!(busy.run_beside(), async {
        match cold {
            0 => Ok(None),
            _ => idle.run_beside().await.map(Some),
        }
    });
    let tally: Tally = tally?;
    must_be_clean("skew", &tally)?;
    let after = threads_cpu(gateway.pid());
    let mut spent: Vec<Duration> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after.1.saturating_sub(before.1))
        .collect();
    // The serving threads are those that worked most.
    spent.sort_unstable_by(|a, b| b.cmp(a));
    let share = match spent[..] {
        [busiest, ..] if !busiest.is_zero() => spent
            .get(THREADS - 1)
            .map_or(0.0, |least| least.as_secs_f64() / busiest.as_secs_f64()),
        _ => 0.0,
    };
    Ok(Balance {
        per_second: tally.per_second(),
        share,
    })
}
