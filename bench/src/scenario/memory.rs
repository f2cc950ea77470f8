//! `memory`: the champion changes a thousand times, one swap right after the other. What a swap leaves
//! behind shows where nothing is asked; what recording takes shows where nothing is swapped.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::champion::{Champion, VERSIONS, deploy, load};
use super::{Bench, measure, must_be_clean};
use crate::chart::{Plot, short};
use crate::finding::{Finding, Table};
use crate::load::{Arrivals, Load, Tally};
use crate::machine::{Conditions, resident_bytes};
use crate::process::Gateway;

/// Share of capacity that is asked meanwhile.
const ASKED: f64 = 0.2;
/// The load runs in pieces of this length until the swaps are done.
const PIECE: Duration = Duration::from_secs(2);
const MIB: f64 = 1024.0 * 1024.0;

/// The gateway's resident memory over one kind of time.
struct Course {
    name: &'static str,
    took: Duration,
    answered: u64,
    failed: u64,
    /// MiB after each swap, or as often as there were swaps in the same time.
    resident: Vec<f64>,
}

/// Runs the scenario with so many swaps.
pub(crate) async fn run(bench: &Bench, swaps: usize) -> Result<Finding> {
    let conditions = Conditions::now(1, Duration::ZERO);
    let folder = bench.folder("memory")?;
    eprintln!("memory: {swaps} swaps, nothing asked");
    let gateway = deploy(bench, folder.join("rest")).await?;
    let rest = swapping("swaps, nothing asked", &gateway, swaps).await?;
    gateway.drain().await?;
    let gateway = deploy(bench, folder.join("asked")).await?;
    let asked = asked(bench, &gateway).await?;
    eprintln!("memory: {swaps} swaps while predictions are recorded");
    let both = beside(&asked, swapping("swaps, recording", &gateway, swaps)).await?;
    gateway.drain().await?;
    eprintln!("memory: the same without swaps, {:?}", both.took);
    let gateway = deploy(bench, folder.join("control")).await?;
    let asked = Load {
        address: gateway.addresses.http,
        ..asked
    };
    let control = beside(&asked, watching("recording, no swaps", &gateway, &both)).await?;
    gateway.drain().await?;
    Ok(finding(conditions, swaps, [rest, both, control]))
}

/// The load that is recorded meanwhile.
async fn asked(bench: &Bench, gateway: &Gateway) -> Result<Load> {
    let load = load(bench, gateway);
    let capacity = measure(load.clone(), gateway.pid()).await?.tally;
    must_be_clean("capacity", &capacity)?;
    Ok(Load {
        arrivals: Arrivals::Poisson {
            per_second: ASKED * capacity.per_second(),
            seed: bench.seed,
        },
        connections: super::CONNECTIONS,
        measured: PIECE,
        ..load
    })
}

async fn swapping(name: &'static str, gateway: &Gateway, swaps: usize) -> Result<Course> {
    let began = Instant::now();
    let seen = Champion::new(gateway).swap(swaps, Duration::ZERO).await?;
    Ok(Course {
        name,
        took: began.elapsed(),
        answered: 0,
        failed: 0,
        resident: seen.iter().map(|seen| seen.resident as f64 / MIB).collect(),
    })
}

/// Looks at the memory as long and as often as in `other`.
async fn watching(name: &'static str, gateway: &Gateway, other: &Course) -> Result<Course> {
    let looks = other.resident.len();
    let began = Instant::now();
    let mut resident = Vec::with_capacity(looks);
    for look in 1..=looks {
        let at = began + other.took.mul_f64(look as f64 / looks as f64);
        tokio::time::sleep(at.saturating_duration_since(Instant::now())).await;
        resident.push(resident_bytes(gateway.pid()) as f64 / MIB);
    }
    Ok(Course {
        name,
        took: began.elapsed(),
        answered: 0,
        failed: 0,
        resident,
    })
}

/// `course` under the load, with what was asked in it.
async fn beside(load: &Load, course: impl Future<Output = Result<Course>>) -> Result<Course> {
    let done = Cell::new(false);
    let asking = async {
        let mut sum: Option<Tally> = None;
        while !done.get() {
            let tally = load.clone().run_beside().await?;
            match &mut sum {
                Some(sum) => sum.add(&tally)?,
                None => sum = Some(tally),
            }
        }
        anyhow::Ok(sum)
    };
    let course = async {
        let course = course.await;
        done.set(true);
        course
    };
    let (sum, course) = tokio::join!(asking, course);
    let (sum, course) = (sum?, course?);
    Ok(Course {
        answered: sum.as_ref().map_or(0, Tally::answered),
        failed: sum.as_ref().map_or(0, Tally::failed_in_all),
        ..course
    })
}

fn finding(conditions: Conditions, swaps: usize, courses: [Course; 3]) -> Finding {
    let mut table = Table::new(&[
        "course",
        "seconds",
        "recorded",
        "failed",
        "first MiB",
        "last MiB",
        "KiB a swap",
    ]);
    let mut figures = serde_json::Map::new();
    let mut curves = Vec::new();
    for course in courses {
        let kib = slope(&course.resident) * 1024.0;
        let shown = |mib: Option<&f64>| mib.map_or_else(|| "–".to_owned(), |mib| short(*mib));
        table.push(&[
            course.name.into(),
            short(course.took.as_secs_f64()),
            short(course.answered as f64),
            course.failed.to_string(),
            shown(course.resident.first()),
            shown(course.resident.last()),
            short(kib),
        ]);
        figures.insert(
            course.name.into(),
            json!({
                "seconds": course.took.as_secs_f64(),
                "answered": course.answered,
                "failed": course.failed,
                "kib_per_swap": kib,
                "resident_mib": course.resident,
            }),
        );
        let points = course.resident.into_iter().enumerate();
        let points = points.map(|(k, mib)| (k as f64, mib)).collect();
        curves.push((course.name.to_owned(), points));
    }
    Finding {
        name: "memory",
        title: "Memory: a thousand swaps",
        method: format!(
            "{swaps} swaps one right after the other among {VERSIONS} versions of 200 × 31 trees, each loaded \
             anew; a fresh gateway on one core for each course. First with nothing asked and so nothing \
             recorded; then at {ASKED} of capacity, recorded; then the same load for as long without a swap, \
             looked at as often. KiB a swap is the slope of resident memory, least squares over the last \
             three quarters; what swaps leave behind while recording is the second less the third."
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: vec![Plot {
            title: "Resident memory".into(),
            x: "swap".into(),
            y: "MiB".into(),
            curves,
        }],
        bars: Vec::new(),
    }
}

/// What each step adds, by least squares over the last three quarters.
fn slope(values: &[f64]) -> f64 {
    let part = &values[values.len() / 4..];
    let count = part.len() as f64;
    if part.len() < 2 {
        return 0.0;
    }
    let mean_x = (count - 1.0) / 2.0;
    let mean_y = part.iter().sum::<f64>() / count;
    let (mut over, mut under) = (0.0, 0.0);
    for (k, value) in part.iter().enumerate() {
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
    fn the_slope_is_that_of_the_last_three_quarters() {
        assert_eq!(slope(&[50.0, 10.0, 12.0, 14.0]), 2.0);
        assert_eq!(slope(&[5.0; 9]), 0.0);
        assert_eq!(slope(&[5.0]), 0.0);
    }
}
