//! `overload`: from half of capacity to ten times it, what share of capacity still comes as good
//! answers within the deadline, and what refusing the rest costs.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Bench, Measured, ROWS, measure, must_hold};
use crate::chart::{Plot, short};
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Call, Failure, Load, Tally};
use crate::models::{ensemble, rows, slow};
use crate::process::Gateway;
use crate::question::json_calls;

const MODEL: &str = "scored";
const MULTIPLES: [f64; 5] = [0.5, 1.0, 2.0, 5.0, 10.0];
/// Between these two only refusals are added.
const REFUSING: [f64; 2] = [2.0, 10.0];
/// What a caller waits for; the model's `deadline_ms`.
pub(super) const DEADLINE: Duration = Duration::from_millis(50);
/// Of the closed loop that finds the capacity: enough that the server always has the next request, few
/// enough that their wait keeps the deadline.
pub(super) const CAPACITY_CONNECTIONS: usize = 4;
/// Clients of an open loop: an arrival that finds them all busy is lost.
pub(super) const CONNECTIONS: usize = 1024;
/// A point at which the generator was late is taken again, so many times in all.
const TRIES: usize = 3;

/// One model under rising load.
struct Curve {
    name: &'static str,
    capacity: Vec<f64>,
    /// Processor time of the whole server for an answer, at capacity.
    answer_us: Vec<f64>,
    /// What a refusal adds to the processor time of the serving thread.
    refusal_us: Vec<f64>,
    points: Vec<Point>,
}

#[derive(Default)]
struct Point {
    multiple: f64,
    /// Goodput of each run over the capacity of its round.
    shares: Vec<f64>,
    total: Option<Tally>,
    late: usize,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = bench.conditions();
    let curves = [
        curve(bench, "2 ms model", "slow", slow()).await?,
        curve(bench, "200 × 31 trees", "fast", ensemble(bench.seed)).await?,
    ];
    let mut table = Table::new(&[
        "model",
        "× capacity",
        "offered/s",
        "good/s",
        "of capacity",
        "lowest",
        "p50 ms",
        "p99 ms",
        "429",
        "no connection free",
        "other failures",
        "late runs",
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
        let measured = curve.points.iter().filter(|point| !point.shares.is_empty());
        let share = measured.map(|point| (point.multiple, median(&point.shares)));
        plot.curves.push((curve.name.into(), share.collect()));
    }
    let sentences: Vec<String> = curves.iter().map(Curve::sentence).collect();
    Ok(Finding {
        name: "overload",
        title: "Overload: goodput",
        method: format!(
            "One serving thread on one core. In each of {} rounds the capacity of a closed loop of {} \
             connections, then an open loop on {CONNECTIONS} connections at each multiple of it, {} s each; \
             medians of the shares within a round. Good is status 200 within {} ms of the intended start, \
             which is the model's `deadline_ms` too. An arrival that finds all connections busy is lost, as \
             behind a balancer without a queue. A run in which the generator was late (p99 over 1 ms) is \
             discarded and taken again, {TRIES} times at most. {}",
            bench.rounds,
            CAPACITY_CONNECTIONS,
            bench.run.as_secs_f64(),
            DEADLINE.as_millis(),
            sentences.join(" ")
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
    let deployed = Deployed {
        deadline: Some(DEADLINE),
        ..Deployed::plain(MODEL, onnx)
    };
    let gateway = bench.deploy(folder, vec![deployed]).await?;
    let calls = json_calls(MODEL, &rows(ROWS, bench.seed));
    let mut curve = Curve {
        name,
        capacity: Vec::new(),
        answer_us: Vec::new(),
        refusal_us: Vec::new(),
        points: MULTIPLES
            .iter()
            .map(|&multiple| Point {
                multiple,
                ..Point::default()
            })
            .collect(),
    };
    for round in 0..bench.rounds {
        eprintln!("overload: {name}, round {} of {}", round + 1, bench.rounds);
        curve.round(bench, &gateway, &calls).await?;
    }
    gateway.drain().await?;
    Ok(curve)
}

/// Requests of a run that were refused, warm-up included, and the serving thread's time.
struct Refused {
    count: f64,
    serving_us: f64,
}

impl Refused {
    fn of(measured: &Measured) -> Self {
        let tally = &measured.tally;
        let answers: u64 = tally.statuses.values().sum();
        let share = tally.failures(Failure::Shed) as f64 / answers.max(1) as f64;
        Self {
            count: share * tally.sent as f64,
            serving_us: measured.serving_cpu_us,
        }
    }
}

impl Curve {
    async fn round(&mut self, bench: &Bench, gateway: &Gateway, calls: &[Call]) -> Result<()> {
        let address = gateway.addresses.http;
        let closed = Load {
            connections: CAPACITY_CONNECTIONS,
            ..bench.closed(address, calls.to_vec())
        };
        let closed = measure(closed, gateway.pid()).await?;
        must_hold(self.name, &closed.tally)?;
        let capacity = closed.tally.per_second();
        self.capacity.push(capacity);
        self.answer_us.push(closed.server_cpu_us);
        let mut refusing = Vec::new();
        for point in &mut self.points {
            let load = Load {
                arrivals: Arrivals::Poisson {
                    per_second: capacity * point.multiple,
                    seed: bench.seed + self.capacity.len() as u64,
                },
                connections: CONNECTIONS,
                warm_up: Duration::from_secs(1),
                timeout: Duration::from_secs(2),
                patience: Duration::ZERO,
                ..bench.closed(address, calls.to_vec())
            };
            let measured = point.take(load, gateway.pid(), capacity).await?;
            if REFUSING.contains(&point.multiple) {
                refusing.push(Refused::of(&measured));
            }
        }
        if let [some, many] = &refusing[..] {
            let more = many.count - some.count;
            // A model that is run in place is never refused.
            if more > 100.0 {
                self.refusal_us
                    .push((many.serving_us - some.serving_us) / more);
            }
        }
        Ok(())
    }

    fn sentence(&self) -> String {
        let refusal = match &self.refusal_us[..] {
            [] => "it refuses nobody, its queue is the open connections".to_owned(),
            costs => format!(
                "a refusal costs the serving thread {} µs, {:.1} % of that",
                short(median(costs)),
                100.0 * median(costs) / median(&self.answer_us)
            ),
        };
        format!(
            "{}: capacity {}/s, {} µs of processor time an answer; {refusal}.",
            self.name,
            short(median(&self.capacity)),
            short(median(&self.answer_us))
        )
    }

    fn tabulate(&self, table: &mut Table) {
        let capacity = median(&self.capacity);
        for point in &self.points {
            let offered = short(capacity * point.multiple);
            let mut row = vec![self.name.into(), point.multiple.to_string(), offered];
            let Some(tally) = &point.total else {
                row.push(format!("the generator was late {} times", point.late));
                row.resize(table.head.len(), String::new());
                table.push(&row);
                continue;
            };
            let shed = tally.failures(Failure::Shed);
            let unsent = tally.failures(Failure::Unsent);
            let lowest = point.shares.iter().copied().fold(f64::INFINITY, f64::min);
            row.extend([
                short(tally.goodput(DEADLINE)),
                format!("{:.1} %", 100.0 * median(&point.shares)),
                format!("{:.1} %", 100.0 * lowest),
                short(tally.quantile_us(0.5) / 1e3),
                short(tally.quantile_us(0.99) / 1e3),
                short(shed as f64),
                short(unsent as f64),
                short((tally.failed_in_all() - shed - unsent) as f64),
                point.late.to_string(),
            ]);
            table.push(&row);
        }
    }

    fn json(&self) -> Value {
        let points: Vec<Value> = self
            .points
            .iter()
            .map(|point| {
                json!({
                    "multiple": point.multiple,
                    "of_capacity": point.shares,
                    "late_runs": point.late,
                    "all_runs": point.total.as_ref().map(Tally::json),
                })
            })
            .collect();
        json!({
            "capacity": self.capacity,
            "answer_us": self.answer_us,
            "refusal_us": self.refusal_us,
            "deadline_ms": DEADLINE.as_millis() as u64,
            "points": points,
        })
    }
}

impl Point {
    /// One run in which the generator was on time, or the last that was not.
    async fn take(&mut self, load: Load, pid: u32, capacity: f64) -> Result<Measured> {
        let mut last = None;
        for _ in 0..TRIES {
            let measured = measure(load.clone(), pid).await?;
            let tally = &measured.tally;
            if tally.on_time() {
                self.shares.push(tally.goodput(DEADLINE) / capacity);
                match &mut self.total {
                    Some(total) => total.add(tally)?,
                    None => self.total = Some(tally.clone()),
                }
                return Ok(measured);
            }
            self.late += 1;
            last = Some(measured);
        }
        last.context("a point is taken at least once")
    }
}
