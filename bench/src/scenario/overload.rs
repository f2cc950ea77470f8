//! `overload`: from half of capacity to ten times it, what share of capacity still comes as good
//! answers within the deadline.

use std::time::Duration;

use anyhow::Result;
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Bench, ROWS, measure, must_be_clean};
use crate::chart::{Plot, short};
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Failure, Load, Tally};
use crate::models::{ensemble, rows, slow};
use crate::question::{json_calls, with_timeout};

const MODEL: &str = "scored";
const MULTIPLES: [f64; 8] = [0.5, 0.8, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0];
/// What a caller waits for; sent along as the protocol's `timeout`.
const DEADLINE: Duration = Duration::from_millis(50);
/// Clients of an open loop: an arrival that finds them all busy waits for one.
const CONNECTIONS: usize = 1024;
/// Runs from whose median the capacity is taken.
const CAPACITY_RUNS: usize = 3;

/// One model under rising load.
struct Curve {
    name: &'static str,
    capacity: f64,
    points: Vec<(f64, Tally)>,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = Bench::conditions();
    let curves = [
        curve(bench, "2 ms model", "slow", slow()).await?,
        curve(bench, "200 × 31 trees", "fast", ensemble(bench.seed)).await?,
    ];
    let mut table = Table::new(&[
        "model",
        "offered",
        "× capacity",
        "good/s",
        "of capacity",
        "p50 ms",
        "p99 ms",
        "429",
        "5xx",
        "other failures",
    ]);
    let mut figures = serde_json::Map::new();
    let mut plot = Plot {
        title: "Good answers within 50 ms, as a share of capacity".into(),
        x: "offered, × capacity".into(),
        y: "share".into(),
        curves: Vec::new(),
    };
    for curve in &curves {
        curve.tabulate(&mut table);
        figures.insert(curve.name.into(), curve.json());
        let points = curve.points.iter().filter(|(_, tally)| tally.on_time());
        let share = points.map(|(x, tally)| (*x, tally.goodput(DEADLINE) / curve.capacity));
        plot.curves.push((curve.name.into(), share.collect()));
    }
    let capacities: Vec<String> = curves
        .iter()
        .map(|curve| format!("{} {}/s", curve.name, short(curve.capacity)))
        .collect();
    Ok(Finding {
        name: "overload",
        title: "Overload: goodput",
        method: format!(
            "One serving thread on one core. Capacity is a closed loop's of {} connections, the median of \
             {CAPACITY_RUNS} ({}). Then an open loop on {CONNECTIONS} connections for {} s a point; good is \
             status 200 within {} ms of the intended start, and each request says so as its `timeout`. A \
             point at which the generator was late (p99 over 1 ms) is discarded.",
            super::CONNECTIONS,
            capacities.join(", "),
            bench.run.as_secs_f64(),
            DEADLINE.as_millis()
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: vec![plot],
        bars: Vec::new(),
    })
}

async fn curve(bench: &Bench, name: &'static str, folder: &str, onnx: Bytes) -> Result<Curve> {
    let folder = bench.folder("overload")?.join(folder);
    let gateway = bench
        .deploy(folder, vec![Deployed::plain(MODEL, onnx)])
        .await?;
    let address = gateway.addresses.http;
    let plain = json_calls(MODEL, &rows(ROWS, bench.seed));
    let mut capacities = Vec::new();
    for _ in 0..CAPACITY_RUNS {
        let measured = measure(bench.closed(address, plain.clone()), gateway.pid()).await?;
        must_be_clean(name, &measured.tally)?;
        capacities.push(measured.tally.per_second());
    }
    let capacity = median(&capacities);
    let deadline_us = DEADLINE.as_micros() as u64;
    let timed: Vec<_> = plain
        .into_iter()
        .map(|call| with_timeout(call, deadline_us))
        .collect();
    let mut points = Vec::new();
    for multiple in MULTIPLES {
        eprintln!("overload: {name} at {multiple} × {capacity:.0}/s");
        let load = Load {
            arrivals: Arrivals::Poisson {
                per_second: capacity * multiple,
                seed: bench.seed,
            },
            connections: CONNECTIONS,
            warm_up: Duration::from_secs(1),
            timeout: Duration::from_secs(2),
            ..bench.closed(address, timed.clone())
        };
        points.push((multiple, load.run_beside().await?));
    }
    gateway.drain().await?;
    Ok(Curve {
        name,
        capacity,
        points,
    })
}

impl Curve {
    fn tabulate(&self, table: &mut Table) {
        for (multiple, tally) in &self.points {
            let offered = short(self.capacity * multiple);
            if !tally.on_time() {
                let late = format!(
                    "discarded: the generator was {} ms late",
                    short(tally.lateness_us() / 1e3)
                );
                let mut row = vec![self.name.into(), offered, multiple.to_string(), late];
                row.resize(table.head.len(), String::new());
                table.push(&row);
                continue;
            }
            let (shed, server) = (
                tally.failures(Failure::Shed),
                tally.failures(Failure::Server),
            );
            table.push(&[
                self.name.into(),
                offered,
                multiple.to_string(),
                short(tally.goodput(DEADLINE)),
                format!("{:.0} %", 100.0 * tally.goodput(DEADLINE) / self.capacity),
                short(tally.quantile_us(0.5) / 1e3),
                short(tally.quantile_us(0.99) / 1e3),
                shed.to_string(),
                server.to_string(),
                (tally.failed_in_all() - shed - server).to_string(),
            ]);
        }
    }

    fn json(&self) -> Value {
        let points: Vec<Value> = self
            .points
            .iter()
            .map(|(multiple, tally)| {
                json!({
                    "multiple": multiple,
                    "goodput": tally.goodput(DEADLINE),
                    "of_capacity": tally.goodput(DEADLINE) / self.capacity,
                    "tally": tally.json(),
                })
            })
            .collect();
        json!({"capacity": self.capacity, "deadline_ms": DEADLINE.as_millis() as u64, "points": points})
    }
}
