//! `surge`: what overload does besides taking throughput: a queue that stands, callers who ask again
//! at once, a few dear requests among many cheap ones.

use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use super::overload::{CAPACITY_CONNECTIONS, CONNECTIONS, DEADLINE};
use super::{Bench, ROWS, measure, must_hold};
use crate::chart::short;
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Call, Load, Tally};
use crate::models::{ensemble, rows, slow};
use crate::process::Gateway;
use crate::question::json_calls;

const SLOW: &str = "slow";
const FAST: &str = "fast";
/// After this the queue of a step must have settled.
const SETTLED: Duration = Duration::from_millis(500);
const STORM: Duration = Duration::from_secs(5);
const AFTER: Duration = Duration::from_secs(5);
const RETRIES: usize = 3;
/// One request in so many goes to the dear model.
const ONE_IN: usize = 100;
/// Share of the cheap model's capacity at which the mix is offered.
const MIX_LOAD: f64 = 0.3;

/// One figure, taken once a round.
struct Figure {
    fault: &'static str,
    what: String,
    wanted: &'static str,
    /// Where the generator was late the round has none.
    values: Vec<f64>,
    late: usize,
    show: fn(f64) -> String,
    /// The worse of two values.
    worse: fn(f64, f64) -> f64,
}

/// What is asked, and how fast it can be answered.
struct Subject<'a> {
    bench: &'a Bench,
    gateway: &'a Gateway,
    slow: Vec<Call>,
    fast: Vec<Call>,
    slow_capacity: f64,
    fast_capacity: f64,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = bench.conditions();
    let deployed = [(SLOW, slow()), (FAST, ensemble(bench.seed))].map(|(name, onnx)| Deployed {
        deadline: Some(DEADLINE),
        ..Deployed::plain(name, onnx)
    });
    let folder = bench.folder("surge")?.join("project");
    let gateway = bench.deploy(folder, deployed.into()).await?;
    let rows = rows(ROWS, bench.seed);
    let (slow, fast) = (json_calls(SLOW, &rows), json_calls(FAST, &rows));
    let capacity = async |calls: &[Call]| -> Result<f64> {
        let load = Load {
            connections: CAPACITY_CONNECTIONS,
            ..bench.closed(gateway.addresses.http, calls.to_vec())
        };
        let tally = measure(load, gateway.pid()).await?.tally;
        must_hold("capacity", &tally)?;
        Ok(tally.per_second())
    };
    let subject = Subject {
        slow_capacity: capacity(&slow).await?,
        fast_capacity: capacity(&fast).await?,
        bench,
        gateway: &gateway,
        slow,
        fast,
    };
    let mut figures = figures();
    for round in 0..bench.rounds {
        eprintln!("surge: round {} of {}", round + 1, bench.rounds);
        let [wait, storm, mix] = &mut figures;
        wait.take(subject.step(round).await?);
        storm.take(subject.storm(round).await?);
        mix.take(subject.mix(round).await?);
    }
    let capacities = (subject.slow_capacity, subject.fast_capacity);
    gateway.drain().await?;
    Ok(finding(bench, conditions, &figures, capacities))
}

fn figures() -> [Figure; 3] {
    let figure = |fault, what: String, wanted| Figure {
        fault,
        what,
        wanted,
        values: Vec::new(),
        late: 0,
        show: |value| format!("{value:.2}"),
        worse: f64::max,
    };
    [
        Figure {
            show: |ms| format!("{} ms", short(ms)),
            ..figure(
                "a step to 3 × the capacity of the 2 ms model",
                format!(
                    "time that the answered waited, p99, from {} ms after the step",
                    SETTLED.as_millis()
                ),
                "≤ 20 ms",
            )
        },
        Figure {
            show: |share| format!("{:.1} %", 100.0 * share),
            worse: f64::min,
            ..figure(
                "5 × its capacity, each refused caller asks again at once, 3 times",
                format!(
                    "good answers of what is offered in the {} s after it, at 0.8 of capacity",
                    AFTER.as_secs()
                ),
                "≥ 99 %",
            )
        },
        figure(
            "one request in 100 of the 2 ms model among those of 200 × 31 trees",
            "p99 of the cheap ones over their p99 alone".into(),
            "≤ 2",
        ),
    ]
}

impl Subject<'_> {
    fn open(&self, calls: &[Call], per_second: f64, round: usize) -> Load {
        Load {
            arrivals: Arrivals::Poisson {
                per_second,
                seed: self.bench.seed + round as u64,
            },
            connections: CONNECTIONS,
            patience: Duration::ZERO,
            timeout: Duration::from_secs(2),
            ..self
                .bench
                .closed(self.gateway.addresses.http, calls.to_vec())
        }
    }

    /// Milliseconds in the queue: what an answer took, less what one takes that finds none.
    async fn step(&self, round: usize) -> Result<Option<f64>> {
        let quiet = self.open(&self.slow, 0.1 * self.slow_capacity, round);
        let quiet = quiet.run_beside().await?;
        let step = Load {
            warm_up: SETTLED,
            ..self.open(&self.slow, 3.0 * self.slow_capacity, round)
        };
        let step = step.run_beside().await?;
        let waited_us = step.quantile_us(0.99) - quiet.quantile_us(0.5);
        Ok(on_time(&[&quiet, &step]).then_some(waited_us / 1e3))
    }

    /// The share of good answers once the storm is over.
    async fn storm(&self, round: usize) -> Result<Option<f64>> {
        let storm = Load {
            retries: RETRIES,
            measured: STORM,
            ..self.open(&self.slow, 5.0 * self.slow_capacity, round)
        };
        storm.run_beside().await?;
        let after = Load {
            measured: AFTER,
            warm_up: Duration::ZERO,
            ..self.open(&self.slow, 0.8 * self.slow_capacity, round)
        };
        let after = after.run_beside().await?;
        let offered = (after.answered() + after.failed_in_all()) as f64;
        let good = after.goodput(DEADLINE) * after.elapsed.as_secs_f64();
        Ok(on_time(&[&after]).then_some(good / offered.max(1.0)))
    }

    async fn mix(&self, round: usize) -> Result<Option<f64>> {
        let per_second = MIX_LOAD * self.fast_capacity;
        let cheap: Vec<Call> = self.fast.iter().cycle().take(ONE_IN - 1).cloned().collect();
        let mut mixed = cheap.clone();
        mixed.extend(self.slow.first().cloned());
        let alone = self.open(&cheap, per_second, round).run_beside().await?;
        let load = Load {
            counted_calls: cheap.len(),
            ..self.open(&mixed, per_second, round)
        };
        let beside = load.run_beside().await?;
        let ratio = beside.quantile_us(0.99) / alone.quantile_us(0.99).max(1e-3);
        Ok(on_time(&[&alone, &beside]).then_some(ratio))
    }
}

fn on_time(tallies: &[&Tally]) -> bool {
    tallies.iter().all(|tally| tally.on_time())
}

impl Figure {
    fn take(&mut self, value: Option<f64>) {
        match value {
            Some(value) => self.values.push(value),
            None => self.late += 1,
        }
    }

    fn row(&self) -> Vec<String> {
        let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), self.show);
        let middle = (!self.values.is_empty()).then(|| median(&self.values));
        vec![
            self.fault.into(),
            self.what.clone(),
            self.wanted.into(),
            shown(middle),
            shown(self.values.iter().copied().reduce(self.worse)),
            self.late.to_string(),
        ]
    }
}

fn finding(
    bench: &Bench,
    conditions: crate::machine::Conditions,
    figures: &[Figure],
    (slow_capacity, fast_capacity): (f64, f64),
) -> Finding {
    let mut table = Table::new(&["fault", "figure", "wanted", "median", "worst", "late runs"]);
    for figure in figures {
        table.push(&figure.row());
    }
    let values = figures.iter().map(|figure| {
        json!({
            "fault": figure.fault,
            "figure": figure.what,
            "wanted": figure.wanted,
            "values": figure.values,
            "late_runs": figure.late,
        })
    });
    Finding {
        name: "surge",
        title: "Surge: queues, retries, dear requests",
        method: format!(
            "One serving thread and one worker of the pool on one core; both models have a deadline of {} \
             ms. Open loop on {CONNECTIONS} connections, {} rounds; capacities by closed loop: {}/s of the 2 \
             ms model, {}/s of the trees, which are offered at {MIX_LOAD} of that in the mix. Rounds in \
             which the generator was late are left out.",
            DEADLINE.as_millis(),
            bench.rounds,
            short(slow_capacity),
            short(fast_capacity)
        ),
        conditions,
        figures: json!({
            "slow_capacity": slow_capacity,
            "fast_capacity": fast_capacity,
            "faults": values.collect::<Vec<_>>(),
        }),
        table,
        plots: Vec::new(),
        bars: Vec::new(),
    }
}
