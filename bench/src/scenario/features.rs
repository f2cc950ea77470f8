//! `features`: rows of features by themselves over HTTP, beside Feast's own server on the same question,
//! and the features of 500 items for one user.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::peers::Peers;
use super::{Bench, Measured, ROWS, answer, measure};
use crate::chart::{Bars, short};
use crate::deployment::Deployment;
use crate::finding::{Finding, Table, median};
use crate::load::{Call, Load};
use crate::machine::{Conditions, command_on};
use crate::server::{Server, free_address};
use crate::shop::{self, Profiles};

const FEAST: &str = "feast";
/// Accounts in a question that both servers get.
const ACCOUNTS: usize = 100;
const ITEMS: usize = 500;
/// Of the closed loop that finds what a core gives.
const CONNECTIONS: usize = 4;
const READY_WITHIN: Duration = Duration::from_secs(120);

/// One question to one server, asked again in every round.
struct Case {
    title: &'static str,
    connections: usize,
    runs: Vec<Measured>,
}

impl Case {
    fn new(title: &'static str, connections: usize) -> Self {
        Self {
            title,
            connections,
            runs: Vec::new(),
        }
    }

    fn load(&self, bench: &Bench, address: std::net::SocketAddr, calls: &[Call]) -> Load {
        Load {
            connections: self.connections,
            ..bench.closed(address, calls.to_vec())
        }
    }

    fn take(&mut self, measured: Measured) -> Result<()> {
        let tally = &measured.tally;
        ensure!(
            tally.failed_in_all() == 0 && tally.answered() > 0,
            "{}: {:#}",
            self.title,
            tally.json()
        );
        self.runs.push(measured);
        Ok(())
    }

    fn figures(&self, figure: fn(&Measured) -> f64) -> Vec<f64> {
        self.runs.iter().map(figure).collect()
    }
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench, peers: &Peers) -> Result<Finding> {
    let conditions = bench.conditions();
    let folder = bench.folder("features")?;
    let gateway = Deployment {
        folder: folder.join("project"),
        features: Some(shop::features_toml()),
        ..Deployment::on_one_core(&bench.loopgate)
    }
    .start()
    .await?;
    let http = gateway.addresses.http;
    let profiles = Profiles::new(bench.seed);
    profiles.tell(http).await?;
    shop::click(http, bench.seed).await?;
    let calls = shop::profile_calls(ROWS, ACCOUNTS, bench.seed);
    let ranking = shop::ranking_calls(ROWS, ITEMS, bench.seed);
    let tensors = shop::ranking_tensors(ROWS, ITEMS, bench.seed);
    for calls in [&ranking, &tensors] {
        answer(http, &calls[0]).await?;
    }
    let frame = folder.join("profiles.parquet");
    profiles.write(&frame)?;
    peers.install(FEAST, &folder)?;
    let mut cases = [
        Case::new("Loopgate, 100 rows × 50 features", CONNECTIONS),
        Case::new("Feast 0.67 on SQLite, the same", CONNECTIONS),
        Case::new("Loopgate, 500 items × 20 features for one user", 1),
        Case::new("the same as binary tensors, p99 wanted ≤ 1 ms", 1),
    ];
    for round in 0..bench.rounds {
        eprintln!("features: round {} of {}", round + 1, bench.rounds);
        let [ours, theirs, items, binary] = &mut cases;
        ours.take(measure(ours.load(bench, http, &calls), gateway.pid()).await?)?;
        items.take(measure(items.load(bench, http, &ranking), gateway.pid()).await?)?;
        binary.take(measure(binary.load(bench, http, &tensors), gateway.pid()).await?)?;
        let feast = start_feast(peers, &folder, (&frame, &calls[0])).await?;
        same(&answer(http, &calls[0]).await?, &feast.1)?;
        theirs.take(measure(theirs.load(bench, feast.0.address, &calls), feast.0.pid()).await?)?;
        feast.0.stop().await;
    }
    gateway.drain().await?;
    Ok(finding(bench, conditions, &cases))
}

/// Starts Feast's server on `frame` and asks it once.
async fn start_feast(
    peers: &Peers,
    folder: &Path,
    (frame, call): (&Path, &Call),
) -> Result<(Server, Vec<u8>)> {
    let repository = folder.join("feast");
    if repository.exists() {
        std::fs::remove_dir_all(&repository)?;
    }
    let address = free_address()?;
    let python = peers.cache.join(FEAST).join("bin/python");
    let mut command = command_on(Bench::server_core(), &python);
    command
        .arg("serve.py")
        .current_dir(peers.files.join(FEAST))
        .env("FRAME", frame)
        .env("FOLDER", repository)
        .env("PORT", address.port().to_string())
        .env("FEAST_USAGE", "False")
        .env("PYTHONDONTWRITEBYTECODE", "1");
    let log = folder.join("feast.log");
    let (server, first) = Server::start(command, address, &log, call, READY_WITHIN).await?;
    Ok((server, first.body.to_vec()))
}

/// Whether both answers hold the same values under the same names, in whatever order: Feast's features
/// come in no order.
fn same(ours: &[u8], theirs: &[u8]) -> Result<()> {
    let (ours, theirs) = (columns(ours)?, columns(theirs)?);
    let differs = ours
        .iter()
        .find(|(name, values)| theirs.get(*name) != Some(values));
    ensure!(
        differs.is_none() && ours.len() == theirs.len(),
        "{} and {} columns, other values in {:?}",
        ours.len(),
        theirs.len(),
        differs.map(|(name, _)| name)
    );
    Ok(())
}

/// The values of an answer, by name.
fn columns(body: &[u8]) -> Result<BTreeMap<String, Value>> {
    let body: Value = serde_json::from_slice(body).context("the answer is not JSON")?;
    let names = body["metadata"]["feature_names"].as_array();
    let names = names.context("no names")?.iter().map(ToString::to_string);
    let results = body["results"].as_array().context("no results")?;
    let values = results.iter().map(|column| column["values"].clone());
    Ok(names.zip(values).collect())
}

fn finding(bench: &Bench, conditions: Conditions, cases: &[Case; 4]) -> Finding {
    let rate = |run: &Measured| run.tally.per_second();
    let cpu = |run: &Measured| run.server_cpu_us;
    let (ours, theirs) = (&cases[0], &cases[1]);
    let over = |figure: fn(&Measured) -> f64| -> Vec<f64> {
        let pairs = ours.figures(figure).into_iter().zip(theirs.figures(figure));
        pairs.map(|(ours, theirs)| ours / theirs).collect()
    };
    let (times, costs) = (over(rate), over(cpu));
    let mut table = Table::new(&[
        "question",
        "connections",
        "answers/s",
        "p50 µs",
        "p99 µs",
        "server µs/answer",
    ]);
    let mut figures = serde_json::Map::new();
    for case in cases {
        let middle = |figure: fn(&Measured) -> f64| short(median(&case.figures(figure)));
        table.push(&[
            case.title.into(),
            case.connections.to_string(),
            middle(rate),
            middle(|run| run.tally.quantile_us(0.5)),
            middle(|run| run.tally.quantile_us(0.99)),
            middle(cpu),
        ]);
        figures.insert(
            case.title.into(),
            json!({
                "per_second": case.figures(rate),
                "p50_us": case.figures(|run| run.tally.quantile_us(0.5)),
                "p99_us": case.figures(|run| run.tally.quantile_us(0.99)),
                "server_cpu_us": case.figures(cpu),
            }),
        );
    }
    figures.insert("times_feast".into(), json!(times));
    let bars = [ours, theirs].map(|case| (case.title.to_owned(), median(&case.figures(rate))));
    Finding {
        name: "features",
        title: "Features: rows by themselves, beside Feast",
        method: format!(
            "`POST /get-online-features` over HTTP, JSON both ways, closed loops, each server on one core. \
             Loopgate answers {} times as many questions of {ACCOUNTS} rows × {} features as Feast's feature \
             server (gunicorn, one uvicorn worker, SQLite), at {:.4} of its processor time; Feast is started \
             anew in each round and one answer of it is compared with ours, value by value. The ranking \
             question reads one user's view and {ITEMS} items' of 10,000, 10 features each. Medians of {} \
             interleaved runs of {} s, ratios within a round.",
            short(median(&times)),
            shop::COLUMNS,
            median(&costs),
            bench.rounds,
            bench.run.as_secs_f64()
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "Answers of 100 rows × 50 features per second".into(),
            unit: "/s".into(),
            bars: bars.into(),
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_the_same_by_name_and_value() {
        let body = |name: &str, value: f64| {
            let column = |values: Value| json!({"values": values, "statuses": []});
            let results = [column(json!([1, 2])), column(json!([value, null]))];
            json!({"results": results, "metadata": {"feature_names": ["account", name]}})
                .to_string()
                .into_bytes()
        };
        let ours = body("f0", 0.25);
        assert!(same(&ours, &body("f0", 0.25)).is_ok());
        assert!(same(&ours, &body("f1", 0.25)).is_err());
        assert!(same(&ours, &body("f0", 0.5)).is_err());
        assert!(same(&ours, b"{}").is_err());
    }
}
