//! `engines`: one file, three engines, three batch sizes, each behind a gateway of its own.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Bench, measure, must_be_clean};
use crate::chart::{Bars, short};
use crate::client::Lane;
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::Load;
use crate::machine::Conditions;
use crate::models::{ensemble, rows};
use crate::process::Gateway;
use crate::question::json_call;

const MODEL: &str = "scored";
const ENGINES: [&str; 3] = ["trees", "tract", "onnxruntime"];
const BATCHES: [usize; 3] = [1, 8, 64];

/// One engine at one batch size.
#[derive(Default)]
struct Cell {
    /// Microseconds from end to end, the median of each run.
    whole_us: Vec<f64>,
    /// Microseconds of the model alone, as the gateway's statistics say, where they do.
    compute_us: Vec<f64>,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = bench.conditions();
    let folder = bench.folder("engines")?;
    let mut gateways: Vec<(&str, Gateway)> = Vec::new();
    let mut left_out = Vec::new();
    for engine in ENGINES {
        let deployed = Deployed {
            engine,
            ..Deployed::plain(MODEL, ensemble(bench.seed))
        };
        match bench.deploy(folder.join(engine), vec![deployed]).await {
            Ok(gateway) => gateways.push((engine, gateway)),
            Err(error) => left_out.push(format!("{engine}: {error}")),
        }
    }
    let mut cells: Vec<Vec<Cell>> = gateways
        .iter()
        .map(|_| BATCHES.iter().map(|_| Cell::default()).collect())
        .collect();
    for round in 0..bench.rounds {
        eprintln!("engines: round {} of {}", round + 1, bench.rounds);
        for (b, batch) in BATCHES.iter().enumerate() {
            for (g, (_, gateway)) in gateways.iter().enumerate() {
                one_run(bench, gateway, *batch, &mut cells[g][b]).await?;
            }
        }
    }
    let names: Vec<&str> = gateways.iter().map(|pair| pair.0).collect();
    Ok(finding(bench, conditions, &names, &cells, &left_out))
}

async fn one_run(bench: &Bench, gateway: &Gateway, batch: usize, cell: &mut Cell) -> Result<()> {
    let load = Load {
        connections: 1,
        ..bench.closed(
            gateway.addresses.http,
            vec![json_call(MODEL, &rows(batch, bench.seed))],
        )
    };
    let before = compute(gateway).await;
    let tally = measure(load, gateway.pid()).await?.tally;
    if tally.answered() == 0 && tally.failed_in_all() == 0 {
        // A batch took longer than the run; what it took is not known.
        return Ok(());
    }
    must_be_clean("engines", &tally)?;
    cell.whole_us.push(tally.quantile_us(0.5));
    if let (Some(before), Some(after)) = (before, compute(gateway).await) {
        let (count, ns) = (after.0 - before.0, after.1 - before.1);
        if count > 0.0 {
            cell.compute_us.push(ns / count / 1e3);
        }
    }
    Ok(())
}

/// Runs of the model and nanoseconds in them, from the statistics extension.
async fn compute(gateway: &Gateway) -> Option<(f64, f64)> {
    let mut lane = Lane::new(gateway.addresses.http);
    let answer = lane.get(&format!("/v2/models/{MODEL}/stats")).await.ok()?;
    let statistics: Value = answer.json().ok()?;
    let infer = &statistics["model_stats"][0]["inference_stats"]["compute_infer"];
    Some((infer["count"].as_f64()?, infer["ns"].as_f64()?))
}

fn finding(
    bench: &Bench,
    conditions: Conditions,
    engines: &[&str],
    cells: &[Vec<Cell>],
    left_out: &[String],
) -> Finding {
    let mut table = Table::new(&[
        "engine",
        "batch",
        "end to end µs",
        "model µs",
        "model µs/row",
    ]);
    let mut figures = serde_json::Map::new();
    let mut bars = Vec::new();
    for (engine, cells) in engines.iter().zip(cells) {
        let mut batches = serde_json::Map::new();
        for (batch, cell) in BATCHES.iter().zip(cells) {
            let middle = |us: &[f64]| (!us.is_empty()).then(|| median(us));
            let compute = middle(&cell.compute_us);
            if let Some(us) = compute {
                bars.push((format!("{engine}, batch {batch}"), us / *batch as f64));
            }
            let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
            table.push(&[
                (*engine).into(),
                batch.to_string(),
                shown(middle(&cell.whole_us)),
                shown(compute),
                shown(compute.map(|us| us / *batch as f64)),
            ]);
            batches.insert(
                batch.to_string(),
                json!({"end_to_end_us": cell.whole_us, "compute_us": cell.compute_us}),
            );
        }
        figures.insert((*engine).into(), batches.into());
    }
    figures.insert("left_out".into(), json!(left_out));
    let left_out = match left_out {
        [] => String::new(),
        left_out => format!(" Left out: {}.", left_out.join("; ")),
    };
    Finding {
        name: "engines",
        title: "Engines: one file, three ways",
        method: format!(
            "200 × 31 trees on 71 floats, JSON, one connection, closed loop, one serving thread on one core; \
             medians of {} interleaved runs. End to end holds the parsing of the batch's JSON; the model's \
             own time is the gateway's statistics' (`compute_infer`).{left_out}",
            bench.rounds
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "The model's own time for a row".into(),
            unit: "µs".into(),
            bars,
        }],
    }
}
