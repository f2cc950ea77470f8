//! `ingest`: how many events a second are acknowledged, each on disk and folded into four views, and
//! what a stream of them costs the predictions beside it.

use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::json;
use tokio::time::{MissedTickBehavior, interval};

use super::{Bench, CONNECTIONS, ROWS, measure, must_be_clean, must_hold};
use crate::account;
use crate::chart::short;
use crate::client::Lane;
use crate::deployment::{Deployed, Deployment};
use crate::finding::{Finding, Table, median};
use crate::load::{Arrivals, Call, Load, Tally};
use crate::machine::Conditions;
use crate::models::ensemble;
use crate::process::Gateway;

const MODEL: &str = "scored";
const BATCH: usize = 100;
/// Batches that are ready before a run; a server that takes more of them ends it.
const BATCHES_PER_SECOND: f64 = 3000.0;
/// Events a second beside predictions.
const STREAM: usize = 10_000;
/// Predictions beside the stream, as a share of capacity.
const QUIET_LOAD: f64 = 0.3;
const SYNCS: usize = 200;
/// Pairs of short runs of predictions in a round, alone and beside the stream: whatever else the machine
/// does falls on both, and the worst of it on few.
const PAIRS: u32 = 5;
const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99)];

/// One round of writing as fast as it goes.
struct Written {
    per_second: f64,
    /// Batches that shared a sync.
    group: f64,
    /// A batch's bytes appended to a file and synced.
    sync_us: f64,
    ack_p99_us: f64,
}

/// Predictions without and with the stream; `None` where the generator was late.
type Beside = Option<Pair>;

struct Pair {
    quiet: Tally,
    busy: Tally,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = bench.conditions();
    let gateway = Deployment {
        folder: bench.folder("ingest")?.join("project"),
        models: vec![Deployed {
            service: Some(account::SERVICE),
            ..Deployed::plain(MODEL, ensemble(bench.seed))
        }],
        features: Some(account::features_toml()),
        ..Deployment::on_one_core(&bench.loopgate)
    }
    .start()
    .await?;
    let http = gateway.addresses.http;
    account::fill(http, bench.seed).await?;
    let questions = account::calls(MODEL, http, ROWS, bench.seed).await?;
    let capacity = bench.closed(http, questions.clone());
    let capacity = measure(capacity, gateway.pid()).await?.tally;
    must_hold("capacity", &capacity)?;
    let mut subject = Subject {
        bench,
        gateway: &gateway,
        capacity: capacity.per_second(),
        questions,
        // Those below have been sent.
        next: 1_000_000,
    };
    let (mut written, mut beside) = (Vec::new(), Vec::new());
    for round in 0..bench.rounds {
        eprintln!("ingest: round {} of {}", round + 1, bench.rounds);
        // First, while nothing that was written a moment ago is still being compacted.
        for pair in 0..PAIRS {
            let seed = bench.seed + (round as u64) * u64::from(PAIRS) + u64::from(pair);
            beside.push(subject.predict(seed).await?);
        }
        written.push(subject.write().await?);
    }
    let capacity = subject.capacity;
    gateway.drain().await?;
    finding(bench, conditions, (&written, &beside), capacity)
}

struct Subject<'a> {
    bench: &'a Bench,
    gateway: &'a Gateway,
    /// Predictions per second.
    capacity: f64,
    questions: Vec<Call>,
    /// Number of the next payment.
    next: usize,
}

impl Subject<'_> {
    fn batches(&mut self, seconds: f64, per_second: f64) -> Vec<Call> {
        let count = (seconds * per_second).ceil() as usize;
        let calls = account::batches(self.next, count, BATCH);
        self.next += count * BATCH;
        calls
    }

    /// Every writer sends its next batch when the last was acknowledged.
    async fn write(&mut self) -> Result<Written> {
        let sync_us = sync_us(&self.bench.out)?;
        let warm_up = Duration::from_millis(300);
        let seconds = (self.bench.run + warm_up).as_secs_f64();
        let calls = self.batches(seconds, BATCHES_PER_SECOND);
        let prepared = calls.len() as u64;
        let load = Load {
            warm_up,
            check: all_new,
            ..self.bench.closed(self.gateway.addresses.http, calls)
        };
        let before = commits(self.gateway.addresses.metrics).await?;
        let tally = measure(load, self.gateway.pid()).await?.tally;
        let syncs = commits(self.gateway.addresses.metrics).await? - before;
        ensure!(
            tally.sent <= prepared,
            "more batches were asked for than made"
        );
        must_be_clean("ingest", &tally)?;
        Ok(Written {
            per_second: tally.per_second() * BATCH as f64,
            group: tally.sent as f64 / syncs.max(1.0),
            sync_us,
            ack_p99_us: tally.quantile_us(0.99),
        })
    }

    /// Predictions alone and beside the stream; which of them comes first changes with the seed.
    async fn predict(&mut self, seed: u64) -> Result<Beside> {
        let load = Load {
            arrivals: Arrivals::Poisson {
                per_second: QUIET_LOAD * self.capacity,
                seed,
            },
            measured: self.bench.run / 2,
            ..self
                .bench
                .closed(self.gateway.addresses.http, self.questions.clone())
        };
        let (quiet, busy) = if seed.is_multiple_of(2) {
            let quiet = load.clone().run_beside().await?;
            (quiet, self.beside_stream(load).await?)
        } else {
            let busy = self.beside_stream(load.clone()).await?;
            (load.run_beside().await?, busy)
        };
        must_be_clean("predictions alone", &quiet)?;
        must_be_clean("predictions beside a stream", &busy)?;
        Ok((quiet.on_time() && busy.on_time()).then_some(Pair { quiet, busy }))
    }

    async fn beside_stream(&mut self, load: Load) -> Result<Tally> {
        let seconds = (load.warm_up + load.measured).as_secs_f64();
        let per_second = (STREAM / BATCH) as f64;
        let batches = self.batches(seconds + 1.0, per_second);
        let stream = send(self.gateway.addresses.http, batches, per_second);
        tokio::select! {
            busy = load.run_beside() => busy,
            ended = stream => {
                ended?;
                anyhow::bail!("the stream ended before the predictions");
            }
        }
    }
}

/// Whether an acknowledgement says that every event of the batch was new.
fn all_new(body: &[u8]) -> bool {
    const NONE: &[u8] = b"\"duplicates\":0";
    body.windows(NONE.len()).any(|window| window == NONE)
}

/// Sends one batch after another at a steady rate.
async fn send(address: SocketAddr, batches: Vec<Call>, per_second: f64) -> Result<()> {
    let mut lane = Lane::new(address);
    let mut ticks = interval(Duration::from_secs_f64(1.0 / per_second));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for batch in batches {
        ticks.tick().await;
        let told = lane.post(&batch.path, None, batch.body).await?;
        ensure!(
            all_new(&told.body),
            "{}",
            String::from_utf8_lossy(&told.body)
        );
    }
    Ok(())
}

/// Syncs of the store's writer so far.
async fn commits(metrics: SocketAddr) -> Result<f64> {
    let answer = Lane::new(metrics).get("/metrics").await?;
    let text = String::from_utf8_lossy(&answer.body);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("loopgate_store_commits_total "));
    Ok(line.unwrap_or("0").trim().parse()?)
}

/// The median time to append a batch's bytes to a file and sync it, in microseconds.
fn sync_us(folder: &Path) -> Result<f64> {
    let path = folder.join("sync-probe");
    let mut file = File::create(&path)?;
    let batch = &account::batches(0, 1, BATCH)[0].body;
    let mut times = Vec::with_capacity(SYNCS);
    for _ in 0..SYNCS {
        let began = Instant::now();
        file.write_all(batch)?;
        file.sync_data()?;
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    std::fs::remove_file(path)?;
    Ok(median(&times))
}

fn finding(
    bench: &Bench,
    conditions: Conditions,
    (written, beside): (&[Written], &[Beside]),
    capacity: f64,
) -> Result<Finding> {
    let of = |figure: fn(&Written) -> f64| -> Vec<f64> { written.iter().map(figure).collect() };
    let rates = of(|run| run.per_second);
    let syncs = of(|run| run.sync_us);
    let on_time: Vec<&Pair> = beside.iter().flatten().collect();
    let mut table = Table::new(&["figure", "median", "least to most", "wanted"]);
    let mut row = |what: &str, values: &[f64], wanted| table.push(&spread(what, values, wanted));
    row("acknowledged events/s", &rates, "≥ 80,000");
    row(
        "one batch's bytes appended to a file and synced, µs",
        &syncs,
        "",
    );
    row("batches that share a sync", &of(|run| run.group), "");
    row("acknowledgement p99, µs", &of(|run| run.ack_p99_us), "");
    let mut quantiles = serde_json::Map::new();
    for (name, quantile) in QUANTILES {
        let of = |which: fn(&Pair) -> &Tally| -> Vec<f64> {
            let runs = on_time.iter();
            runs.map(|pair| which(pair).quantile_us(quantile)).collect()
        };
        let (quiet, busy) = (of(|pair| &pair.quiet), of(|pair| &pair.busy));
        let pairs = quiet.iter().zip(&busy);
        let ratios: Vec<f64> = pairs.map(|(quiet, busy)| busy / quiet).collect();
        let wanted = if name == "p99" { "≤ 1.2" } else { "" };
        row(&format!("predictions alone, {name} µs"), &quiet, "");
        row(&format!("beside 10,000 events/s, {name} µs"), &busy, "");
        row(
            &format!("the second over the first, {name}"),
            &ratios,
            wanted,
        );
        let pooled = pooled(&on_time)?;
        let pooled =
            pooled.map(|(quiet, busy)| busy.quantile_us(quantile) / quiet.quantile_us(quantile));
        row(
            "the same, all answers as one run",
            &Vec::from_iter(pooled),
            wanted,
        );
        quantiles.insert(
            name.into(),
            json!({ "quiet_us": quiet, "busy_us": busy, "ratio": ratios, "pooled_ratio": pooled }),
        );
    }
    let late = beside.len() - on_time.len();
    Ok(Finding {
        name: "ingest",
        title: "Ingest: acknowledged events, and predictions beside them",
        method: format!(
            "Events of {} bytes of JSON in batches of {BATCH} over HTTP, each deduplicated, logged, folded \
             into four views of four windows and synced before its 200; every answer is checked to count \
             no duplicate. {CONNECTIONS} writers in a closed loop, the whole gateway on one core, {} rounds \
             of {} s. Then predictions with features of these views, open loop at {QUIET_LOAD} of the \
             capacity ({}/s), without and with a stream of {STREAM} events/s in {} pairs of runs of {} s; {late} pairs \
             in which the generator was late are left out.",
            account::batches(0, 1, BATCH)[0].body.len() / BATCH,
            bench.rounds,
            bench.run.as_secs_f64(),
            short(capacity),
            beside.len(),
            (bench.run / 2).as_secs_f64(),
        ),
        conditions,
        figures: json!({
            "per_second": rates,
            "sync_us": syncs,
            "batches_per_sync": of(|run| run.group),
            "ack_p99_us": of(|run| run.ack_p99_us),
            "capacity": capacity,
            "beside": quantiles,
            "late_pairs": late,
        }),
        table,
        plots: Vec::new(),
        bars: Vec::new(),
    })
}

/// The answers of all pairs together; `None` where there are none.
fn pooled(pairs: &[&Pair]) -> Result<Option<(Tally, Tally)>> {
    let Some((first, rest)) = pairs.split_first() else {
        return Ok(None);
    };
    let (mut quiet, mut busy) = (first.quiet.clone(), first.busy.clone());
    for pair in rest {
        quiet.add(&pair.quiet)?;
        busy.add(&pair.busy)?;
    }
    Ok(Some((quiet, busy)))
}

/// A row of the table: the middle and the ends, dashes where nothing was measured.
fn spread(what: &str, values: &[f64], wanted: &str) -> [String; 4] {
    let shown = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), short);
    let end = |pick: fn(f64, f64) -> f64| shown(values.iter().copied().reduce(pick));
    let middle = shown((!values.is_empty()).then(|| median(values)));
    let range = format!("{} to {}", end(f64::min), end(f64::max));
    [what.into(), middle, range, wanted.into()]
}
