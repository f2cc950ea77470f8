//! `keys`: what asking for a key costs a request, and what it costs to send one away: with a
//! wrong secret, or with a key that has used up its rate.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;

use super::{Bench, ROWS, measure};
use crate::chart::{Bars, short};
use crate::deployment::{Deployed, Deployment};
use crate::finding::{Finding, Table, median};
use crate::load::{Call, Load};
use crate::models::{ensemble, rows};
use crate::process::{Gateway, run as run_command};
use crate::question::json_calls;
use crate::server::ask;

const MODEL: &str = "scored";
/// A running gateway follows its file of keys within a second.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(30);

/// One kind of caller.
struct Case {
    name: &'static str,
    load: Load,
    pid: u32,
    /// What every answer must be.
    status: u16,
    per_second: Vec<f64>,
    cpu_us: Vec<f64>,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = bench.conditions();
    let folder = bench.folder("keys")?;
    let deployed = || vec![Deployed::plain(MODEL, ensemble(bench.seed))];
    let open = bench.deploy(folder.join("open"), deployed()).await?;
    let project = folder.join("keys");
    let locked = Deployment {
        folder: project.clone(),
        models: deployed(),
        keys: true,
        ..Deployment::on_one_core(&bench.loopgate)
    }
    .start()
    .await?;
    let mut cases = cases(bench, &open, (&locked, &project)).await?;
    for round in 0..bench.rounds {
        eprintln!("keys: round {} of {}", round + 1, bench.rounds);
        for case in &mut cases {
            case.run_once().await?;
        }
    }
    open.drain().await?;
    locked.drain().await?;
    Ok(finding(bench, conditions, &cases))
}

async fn cases(
    bench: &Bench,
    open: &Gateway,
    (locked, project): (&Gateway, &Path),
) -> Result<[Case; 4]> {
    let key = |options: &[&str]| -> Result<String> {
        let folder = project.display().to_string();
        let mut arguments = vec!["key", "create", "--scope", "predict", "--project", &folder];
        arguments.extend(options);
        let printed = run_command(&bench.loopgate, &arguments, &project.join("keys.log"))?;
        Ok(printed.trim().to_owned())
    };
    let (good, spent) = (key(&[])?, key(&["--rate", "1/h"])?);
    let plain = json_calls(MODEL, &rows(ROWS, bench.seed));
    let with = |key: &str| -> Vec<Call> {
        let header = ("authorization", format!("Bearer {key}"));
        let calls = plain.iter().cloned().map(|mut call| {
            call.headers.push(header.clone());
            call
        });
        calls.collect()
    };
    until(locked, &with(&good)[0], 200).await?;
    until(locked, &with(&spent)[0], 429).await?;
    let case = |name, gateway: &Gateway, calls, status| Case {
        name,
        load: bench.closed(gateway.addresses.http, calls),
        pid: gateway.pid(),
        status,
        per_second: Vec::new(),
        cpu_us: Vec::new(),
    };
    Ok([
        case("no keys asked for", open, plain.clone(), 200),
        case("a valid key", locked, with(&good), 200),
        case("a key over its rate", locked, with(&spent), 429),
        case("a wrong secret", locked, with(&wrong(&good)), 401),
    ])
}

/// The key with another letter in the middle of its secret.
fn wrong(key: &str) -> String {
    let at = key.len() - 10;
    let other = if key[at..].starts_with('a') { "b" } else { "a" };
    format!("{}{other}{}", &key[..at], &key[at + 1..])
}

/// Asks until the answer has `status`.
async fn until(gateway: &Gateway, call: &Call, status: u16) -> Result<()> {
    let began = Instant::now();
    loop {
        let answer = ask(gateway.addresses.http, call).await?;
        if answer.status.as_u16() == status {
            return Ok(());
        }
        ensure!(
            began.elapsed() < FOLLOWED_WITHIN,
            "{} for {status} after {FOLLOWED_WITHIN:?}",
            answer.status
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

impl Case {
    async fn run_once(&mut self) -> Result<()> {
        let measured = measure(self.load.clone(), self.pid).await?;
        let tally = &measured.tally;
        let answers: u64 = tally.statuses.values().sum();
        let right = tally.statuses.get(&self.status).copied().unwrap_or(0);
        ensure!(
            right == answers && right > 0,
            "{}: {:#}",
            self.name,
            tally.json()
        );
        let seconds = tally.elapsed.as_secs_f64().max(1e-9);
        self.per_second.push(right as f64 / seconds);
        self.cpu_us.push(measured.server_cpu_us);
        Ok(())
    }

    /// Its figures over those of `other` in the same round.
    fn over(&self, other: &Self, figures: fn(&Self) -> &[f64]) -> Vec<f64> {
        let pairs = figures(self).iter().zip(figures(other));
        pairs.map(|(own, other)| own / other).collect()
    }
}

fn finding(bench: &Bench, conditions: crate::machine::Conditions, cases: &[Case; 4]) -> Finding {
    let mut table = Table::new(&[
        "caller",
        "answer",
        "answers/s",
        "× the first",
        "server µs/request",
        "× the first",
    ]);
    let mut figures = serde_json::Map::new();
    let [open, ..] = cases;
    for case in cases {
        let rates = case.over(open, |case| &case.per_second);
        let costs = case.over(open, |case| &case.cpu_us);
        table.push(&[
            case.name.into(),
            case.status.to_string(),
            short(median(&case.per_second)),
            short(median(&rates)),
            short(median(&case.cpu_us)),
            short(median(&costs)),
        ]);
        figures.insert(
            case.name.into(),
            json!({
                "per_second": case.per_second,
                "rate_ratio": rates,
                "server_cpu_us": case.cpu_us,
                "cpu_ratio": costs,
            }),
        );
    }
    let bars = cases
        .iter()
        .map(|case| (case.name.to_owned(), median(&case.cpu_us)));
    Finding {
        name: "keys",
        title: "Keys: the price of asking and of refusing",
        method: format!(
            "Two gateways of one serving thread on one core, one asks every caller for a key; 200 × 31 \
             trees, JSON, one row, {} connections, closed loop; medians of {} interleaved runs of {} s, \
             ratios within a round. A refused request was sent whole, its body too. All answers of a run \
             have the status that is named.",
            super::CONNECTIONS,
            bench.rounds,
            bench.run.as_secs_f64()
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "Processor time of the server for a request".into(),
            unit: "µs".into(),
            bars: bars.collect(),
        }],
    }
}
