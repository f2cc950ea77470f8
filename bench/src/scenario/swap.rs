//! `swap`: the champion changes each second under load. No request may fail, none may mix versions, and
//! the tail may hardly move.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::champion::{Champion, VERSIONS, deploy, load};
use super::{Bench, measure, must_be_clean};
use crate::chart::{Bars, short};
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Load, Tally};
use crate::machine::Conditions;

const CONNECTIONS: usize = 64;
/// Phases without swaps and phases with them take turns.
const PAIRS: usize = 3;
const QUANTILES: [f64; 3] = [0.5, 0.99, 0.999];

/// A phase without swaps and the one with them that followed.
struct Pair {
    quiet: Tally,
    swapping: Tally,
}

/// What came of it.
struct Found {
    phase: Duration,
    per_second: f64,
    /// Milliseconds from the request to the first look at which the new version was served.
    took_ms: Vec<f64>,
    pairs: Vec<Pair>,
}

/// Runs the scenario, in phases of such a length.
pub(crate) async fn run(bench: &Bench, phase: Duration) -> Result<Finding> {
    let conditions = Conditions::now(PAIRS, phase);
    let gateway = deploy(bench, bench.folder("swap")?.join("project")).await?;
    let load = load(bench, &gateway);
    let capacity = measure(load.clone(), gateway.pid()).await?.tally;
    must_be_clean("capacity", &capacity)?;
    let per_second = 0.6 * capacity.per_second();
    let mut champion = Champion::new(&gateway);
    let (mut pairs, mut took_ms) = (Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        eprintln!("swap: pair {} of {PAIRS} at {per_second:.0}/s", pair + 1);
        let load = Load {
            arrivals: Arrivals::Poisson {
                per_second,
                seed: bench.seed + pair as u64,
            },
            connections: CONNECTIONS,
            measured: phase,
            ..load.clone()
        };
        let quiet = load.clone().run_beside().await?;
        let swaps = champion.swap(phase.as_secs() as usize, Duration::from_secs(1));
        let (swapping, seen) = tokio::join!(load.run_beside(), swaps);
        took_ms.extend(seen?.iter().map(|seen| seen.took.as_secs_f64() * 1e3));
        pairs.push(Pair {
            quiet,
            swapping: swapping?,
        });
    }
    gateway.drain().await?;
    let found = Found {
        phase,
        per_second,
        took_ms,
        pairs,
    };
    finding(conditions, &found)
}

impl Pair {
    fn ratio(&self, quantile: f64) -> f64 {
        self.swapping.quantile_us(quantile) / self.quiet.quantile_us(quantile).max(1e-3)
    }

    fn on_time(&self) -> bool {
        self.quiet.on_time() && self.swapping.on_time()
    }
}

impl Found {
    fn ratios(&self, quantile: f64) -> Vec<f64> {
        self.pairs.iter().map(|pair| pair.ratio(quantile)).collect()
    }

    fn sentence(&self) -> String {
        let late = self.pairs.iter().filter(|pair| !pair.on_time()).count();
        let late = match late {
            0 => String::new(),
            late => format!(
                " The generator was late in {late} of them: the machine was busy, do not use the latencies."
            ),
        };
        format!(
            "One serving thread on one core, 200 × 31 trees, open loop at 0.6 of capacity ({}/s) on \
             {CONNECTIONS} connections; {VERSIONS} versions take turns as champion by the admin interface, \
             a swap a second, each loaded anew; every answer's value is checked against the version it \
             names. {PAIRS} pairs of a phase of {} s without swaps and one with them, in turn. p99 with \
             swaps is {:.2} × that without (median of the pairs). {} swaps took {} ms each (median, request \
             to served).{late}",
            short(self.per_second),
            self.phase.as_secs(),
            median(&self.ratios(0.99)),
            self.took_ms.len(),
            short(median(&self.took_ms)),
        )
    }

    fn json(&self) -> Value {
        let pairs: Vec<Value> = self
            .pairs
            .iter()
            .map(|pair| json!({"quiet": pair.quiet.json(), "swapping": pair.swapping.json()}))
            .collect();
        json!({
            "per_second": self.per_second,
            "p50_ratio": self.ratios(0.5),
            "p99_ratio": self.ratios(0.99),
            "p999_ratio": self.ratios(0.999),
            "swap_ms": self.took_ms,
            "pairs": pairs,
        })
    }
}

/// All runs as one.
fn sum<'t>(mut tallies: impl Iterator<Item = &'t Tally>) -> Result<Option<Tally>> {
    let Some(mut sum) = tallies.next().cloned() else {
        return Ok(None);
    };
    for tally in tallies {
        sum.add(tally)?;
    }
    Ok(Some(sum))
}

fn finding(conditions: Conditions, found: &Found) -> Result<Finding> {
    let mut table = Table::new(&[
        "phases",
        "answered",
        "failed",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "generator late p99 µs",
    ]);
    let mut bars = Vec::new();
    let quiet = sum(found.pairs.iter().map(|pair| &pair.quiet))?;
    let swapping = sum(found.pairs.iter().map(|pair| &pair.swapping))?;
    for (name, sum) in [("without swaps", quiet), ("a swap a second", swapping)] {
        let Some(sum) = sum else {
            continue;
        };
        let [p50, p99, p999] = QUANTILES.map(|quantile| sum.quantile_us(quantile));
        table.push(&[
            name.into(),
            short(sum.answered() as f64),
            sum.failed_in_all().to_string(),
            short(p50),
            short(p99),
            short(p999),
            short(sum.lateness_us()),
        ]);
        bars.push((format!("p50, {name}"), p50));
        bars.push((format!("p99, {name}"), p99));
    }
    Ok(Finding {
        name: "swap",
        title: "Swap: a new champion each second",
        method: found.sentence(),
        conditions,
        figures: found.json(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "Latency from the intended start".into(),
            unit: "µs".into(),
            bars,
        }],
    })
}
