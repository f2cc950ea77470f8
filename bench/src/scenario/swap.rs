//! `swap`: the champion changes each second under load. No request may fail, none may mix versions, the
//! tail may hardly move, and memory may not grow.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use super::{Bench, ROWS, measure, must_be_clean};
use crate::chart::{Plot, short};
use crate::client::Lane;
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Load, Tally};
use crate::machine::{Conditions, resident_bytes};
use crate::models::{rows, versioned};
use crate::process::Gateway;
use crate::question::{json_calls, version_fits};

const MODEL: &str = "versioned";
/// Versions that take turns. The gateway holds fewer than these, so that each swap loads one.
const VERSIONS: u16 = 8;
const CONNECTIONS: usize = 64;
const SERVED_WITHIN: Duration = Duration::from_secs(30);
const MIB: f64 = 1024.0 * 1024.0;

/// How many swaps, how fast.
pub(crate) struct Swap {
    /// Length of each of the three phases.
    pub phase: Duration,
    /// Swaps one right after the other in a last phase, for memory; 0 for none.
    pub swaps: usize,
}

/// One swap as it was seen from outside.
struct Seen {
    /// From the request to the first look at which the new version was served.
    took: Duration,
    resident: u64,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench, swap: &Swap) -> Result<Finding> {
    let conditions = Bench::conditions();
    let folder = bench.folder("swap")?.join("project");
    let versions = (1..=VERSIONS).map(|version| versioned(bench.seed, version));
    let deployed = Deployed {
        versions: versions.collect(),
        ..Deployed::plain(MODEL, bytes::Bytes::new())
    };
    let gateway = bench.deploy(folder, vec![deployed]).await?;
    let load = Load {
        check: version_fits,
        ..bench.closed(
            gateway.addresses.http,
            json_calls(MODEL, &rows(ROWS, bench.seed)),
        )
    };
    let capacity = measure(load.clone(), gateway.pid()).await?.tally;
    must_be_clean("capacity", &capacity)?;
    let per_second = 0.6 * capacity.per_second();
    let load = Load {
        arrivals: Arrivals::Poisson {
            per_second,
            seed: bench.seed,
        },
        connections: CONNECTIONS,
        measured: swap.phase,
        ..load
    };
    let mut champion = Champion::new(&gateway);
    eprintln!(
        "swap: three phases of {:?} at {per_second:.0}/s",
        swap.phase
    );
    let before = load.clone().run_beside().await?;
    let count = swap.phase.as_secs() as usize;
    let (during, seen) = tokio::join!(
        load.clone().run_beside(),
        champion.swap(count, Duration::from_secs(1))
    );
    let (during, mut seen) = (during?, seen?);
    let after = load.clone().run_beside().await?;
    let mut phases = vec![
        ("no swap", before),
        ("a swap a second", during),
        ("no swap again", after),
    ];
    let each_second = seen.iter().map(|seen| seen.took.as_secs_f64() * 1e3);
    let took_ms = median(&each_second.collect::<Vec<_>>());
    if swap.swaps > 0 {
        let (tally, more) = rush(&load, &mut champion, swap.swaps).await?;
        phases.push(("swap after swap", tally));
        seen = more;
    }
    gateway.drain().await?;
    let resident: Vec<f64> = seen.iter().map(|seen| seen.resident as f64 / MIB).collect();
    Ok(finding(
        conditions,
        &Found {
            per_second,
            took_ms,
            phases,
            resident,
        },
    ))
}

/// Swaps one after the other under a third of the load, until there were enough.
async fn rush(load: &Load, champion: &mut Champion, swaps: usize) -> Result<(Tally, Vec<Seen>)> {
    eprintln!("swap: {swaps} swaps one after the other");
    let Arrivals::Poisson { per_second, seed } = load.arrivals else {
        bail!("a rush runs under an open loop");
    };
    let done = Cell::new(false);
    let under = async {
        let mut sum: Option<Tally> = None;
        while !done.get() {
            let tally = Load {
                arrivals: Arrivals::Poisson {
                    per_second: per_second / 3.0,
                    seed,
                },
                measured: Duration::from_secs(2),
                ..load.clone()
            }
            .run_beside()
            .await?;
            match &mut sum {
                Some(sum) => sum.add(&tally)?,
                None => sum = Some(tally),
            }
        }
        anyhow::Ok(sum)
    };
    let swapping = async {
        let seen = champion.swap(swaps, Duration::ZERO).await;
        done.set(true);
        seen
    };
    match tokio::join!(under, swapping) {
        (Ok(Some(tally)), Ok(seen)) => Ok((tally, seen)),
        (Err(error), _) | (_, Err(error)) => Err(error),
        (Ok(None), _) => bail!("no load ran under the swaps"),
    }
}

/// The champion of the model, and who sets it.
struct Champion {
    admin: Lane,
    pid: u32,
    version: u16,
}

impl Champion {
    fn new(gateway: &Gateway) -> Self {
        Self {
            admin: Lane::new(gateway.addresses.admin),
            pid: gateway.pid(),
            version: 1,
        }
    }

    /// Makes the next version the champion `count` times, `every` so often.
    async fn swap(&mut self, count: usize, every: Duration) -> Result<Vec<Seen>> {
        let mut seen = Vec::with_capacity(count);
        let mut due = Instant::now();
        for _ in 0..count {
            tokio::time::sleep(due.saturating_duration_since(Instant::now())).await;
            due += every;
            let asked = Instant::now();
            self.promote_next().await?;
            while self.served().await? != json!(self.version) {
                ensure!(
                    asked.elapsed() < SERVED_WITHIN,
                    "version {} was not served within {SERVED_WITHIN:?}",
                    self.version
                );
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            seen.push(Seen {
                took: asked.elapsed(),
                resident: resident_bytes(self.pid),
            });
        }
        Ok(seen)
    }

    async fn promote_next(&mut self) -> Result<()> {
        let next = self.version % VERSIONS + 1;
        let body = json!({"version": next, "expected": self.version, "reason": "bench"});
        let path = format!("/v1/models/{MODEL}/aliases/champion");
        let body = serde_json::to_vec(&body)?.into();
        self.admin.post(&path, None, body).await?.json()?;
        self.version = next;
        Ok(())
    }

    /// The version that answers now.
    async fn served(&mut self) -> Result<Value> {
        let model = self
            .admin
            .get(&format!("/v1/models/{MODEL}"))
            .await?
            .json()?;
        Ok(model["ways"]["champion"].clone())
    }
}

/// What came of it.
struct Found {
    per_second: f64,
    took_ms: f64,
    phases: Vec<(&'static str, Tally)>,
    /// MiB after each swap.
    resident: Vec<f64>,
}

impl Found {
    /// p99 with swaps over the mean of the two without.
    fn p99_ratio(&self) -> f64 {
        let p99 = |phase: usize| self.phases[phase].1.quantile_us(0.99);
        p99(1) / f64::midpoint(p99(0), p99(2))
    }

    fn kib_per_swap(&self) -> f64 {
        slope(&self.resident) * 1024.0
    }

    fn sentence(&self) -> String {
        let mib =
            |resident: Option<&f64>| resident.map_or_else(|| "–".to_owned(), |mib| short(*mib));
        let late = self.phases.iter().any(|(_, tally)| !tally.on_time());
        format!(
            "One serving thread on one core, 200 × 31 trees, open loop at 0.6 of capacity ({}/s) on \
             {CONNECTIONS} connections; {VERSIONS} versions take turns as champion by the admin \
             interface, each loaded anew; every answer's value is checked against the version it names. \
             p99 with swaps is {:.2} × that without. A swap took {} ms (median, request to served). \
             Resident memory over the last {} swaps: {} MiB to {} MiB, {} KiB a swap (least squares \
             over the second half).{}",
            short(self.per_second),
            self.p99_ratio(),
            short(self.took_ms),
            self.resident.len(),
            mib(self.resident.first()),
            mib(self.resident.last()),
            short(self.kib_per_swap()),
            if late {
                " The generator was late in a phase: the machine was busy, do not use the latencies."
            } else {
                ""
            }
        )
    }

    fn json(&self) -> Value {
        let phases: Vec<Value> = self
            .phases
            .iter()
            .map(|(name, tally)| json!({"phase": name, "tally": tally.json()}))
            .collect();
        json!({
            "per_second": self.per_second,
            "p99_ratio": self.p99_ratio(),
            "swap_ms": self.took_ms,
            "swaps": self.resident.len(),
            "resident_mib": self.resident,
            "resident_kib_per_swap": self.kib_per_swap(),
            "phases": phases,
        })
    }
}

fn finding(conditions: Conditions, found: &Found) -> Finding {
    let mut table = Table::new(&[
        "phase",
        "answered",
        "failed",
        "p50 µs",
        "p99 µs",
        "p99.9 µs",
        "generator late p99 µs",
    ]);
    for (name, tally) in &found.phases {
        table.push(&[
            (*name).into(),
            short(tally.answered() as f64),
            tally.failed_in_all().to_string(),
            short(tally.quantile_us(0.5)),
            short(tally.quantile_us(0.99)),
            short(tally.quantile_us(0.999)),
            short(tally.lateness_us()),
        ]);
    }
    Finding {
        name: "swap",
        title: "Swap: a new champion each second",
        method: found.sentence(),
        conditions,
        figures: found.json(),
        table,
        plots: vec![Plot {
            title: "Resident memory after each swap".into(),
            x: "swap".into(),
            y: "MiB".into(),
            curves: vec![(
                "resident".into(),
                found
                    .resident
                    .iter()
                    .enumerate()
                    .map(|(k, mib)| (k as f64, *mib))
                    .collect(),
            )],
        }],
        bars: Vec::new(),
    }
}

/// What each step adds, by least squares over the second half.
fn slope(values: &[f64]) -> f64 {
    let half = &values[values.len() / 2..];
    let count = half.len() as f64;
    if half.len() < 2 {
        return 0.0;
    }
    let mean_x = (count - 1.0) / 2.0;
    let mean_y = half.iter().sum::<f64>() / count;
    let (mut over, mut under) = (0.0, 0.0);
    for (k, value) in half.iter().enumerate() {
        let x = k as f64 - mean_x;
        over += x * (value - mean_y);
        under += x * x;
    }
    over / under
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slope_is_that_of_the_second_half() {
        assert_eq!(slope(&[50.0, 90.0, 10.0, 12.0, 14.0, 16.0]), 2.0);
        assert_eq!(slope(&[5.0; 9]), 0.0);
        assert_eq!(slope(&[5.0]), 0.0);
    }
}
