//! `peers`: the same file, the same rows and the same generator against the servers that people use
//! today, one core each, one after the other in every round.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Bench, CONNECTIONS, Measured, ROWS, answer, measure};
use crate::chart::{Bars, short};
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::{Call, Tally};
use crate::machine::{Conditions, command_on};
use crate::models::{ensemble, rows};
use crate::question::json_calls;
use crate::server::{Server, free_address};

const MODEL: &str = "scored";
const READY_WITHIN: Duration = Duration::from_secs(120);
/// Python's engine and ours differ by less.
const TOLERANCE: f64 = 1e-4;

/// How a peer is started in its virtual environment: a program of it, and its arguments.
struct Peer {
    /// Its folder below `bench/peers` and in the cache.
    name: &'static str,
    title: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    path: &'static str,
}

const V2: &str = "/v2/models/scored/infer";
const PEERS: [Peer; 8] = [
    Peer {
        name: "fastapi",
        title: "FastAPI + onnxruntime",
        program: "python",
        arguments: &["serve.py"],
        path: "/predict",
    },
    Peer {
        name: "mosec",
        title: "mosec 0.9",
        program: "python",
        arguments: &["serve.py", "--address", "127.0.0.1", "--port", "{port}"],
        path: "/inference",
    },
    Peer {
        name: "triton",
        title: "Triton 2.51, Python backend",
        program: "python",
        arguments: &["serve.py"],
        path: V2,
    },
    Peer {
        name: "litserve",
        title: "LitServe 0.2",
        program: "python",
        arguments: &["serve.py"],
        path: "/predict",
    },
    Peer {
        name: "bentoml",
        title: "BentoML 1.4",
        program: "bentoml",
        arguments: &[
            "serve",
            "serve:Scored",
            "--host",
            "127.0.0.1",
            "--port",
            "{port}",
        ],
        path: "/predict",
    },
    Peer {
        name: "mlserver",
        title: "MLServer 1.7.1",
        program: "mlserver",
        arguments: &["start", "."],
        path: V2,
    },
    Peer {
        name: "kserve",
        title: "KServe 0.21",
        program: "python",
        arguments: &["serve.py"],
        path: V2,
    },
    Peer {
        name: "ray",
        title: "Ray Serve 2.60",
        program: "python",
        arguments: &["serve.py"],
        path: "/predict",
    },
];

/// Which peers, and where their files are.
pub(crate) struct Peers {
    /// `bench/peers`.
    pub files: PathBuf,
    /// Where virtual environments are kept.
    pub cache: PathBuf,
    /// The Python that makes them.
    pub python: PathBuf,
    /// Names; all if empty.
    pub only: Vec<String>,
}

/// Everything that was measured, by name.
struct Line {
    title: String,
    per_second: Vec<f64>,
    /// Processor time of the server and all its processes for an answer.
    cpu_us: Vec<f64>,
    total: Option<Tally>,
    missing: Option<String>,
}

impl Line {
    fn new(title: &str) -> Self {
        Self {
            title: title.into(),
            per_second: Vec::new(),
            cpu_us: Vec::new(),
            total: None,
            missing: None,
        }
    }

    fn take(&mut self, measured: &Measured) -> Result<()> {
        let tally = &measured.tally;
        ensure!(
            tally.failed_in_all() == 0 && tally.answered() > 0,
            "{} good answers, failures: {:?}",
            tally.answered(),
            tally.failures
        );
        self.per_second.push(tally.per_second());
        self.cpu_us.push(measured.server_cpu_us);
        match &mut self.total {
            Some(total) => total.add(tally)?,
            None => self.total = Some(tally.clone()),
        }
        Ok(())
    }
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench, peers: &Peers) -> Result<Finding> {
    let conditions = bench.conditions();
    let folder = bench.folder("peers")?;
    let onnx = ensemble(bench.seed);
    let model = folder.join("scored.onnx");
    fs::write(&model, &onnx)?;
    let gateway = bench
        .deploy(folder.join("project"), vec![Deployed::plain(MODEL, onnx)])
        .await?;
    let calls = json_calls(MODEL, &rows(ROWS, bench.seed));
    let reference = answer(gateway.addresses.http, &calls[0]).await?;
    let core = Bench::server_core();
    let bare = Server::bare(core, &folder, &calls[0], &reference, None).await?;
    let chosen: Vec<&Peer> = PEERS
        .iter()
        .filter(|peer| peers.only.is_empty() || peers.only.iter().any(|only| only == peer.name))
        .collect();
    let mut own = [Line::new("bare hyper"), Line::new("Loopgate")];
    let mut others: Vec<Line> = chosen.iter().map(|peer| Line::new(peer.title)).collect();
    for (peer, line) in chosen.iter().zip(&mut others) {
        if let Err(error) = peers.install(peer.name, &folder) {
            line.missing = Some(format!("not installed: {error:#}"));
        }
    }
    for round in 0..bench.rounds {
        for (line, (address, pid)) in own.iter_mut().zip([
            (bare.address, bare.pid()),
            (gateway.addresses.http, gateway.pid()),
        ]) {
            let load = bench.closed(address, calls.clone());
            line.take(&measure(load, pid).await?)?;
        }
        for (peer, line) in chosen.iter().zip(&mut others) {
            if line.missing.is_some() {
                continue;
            }
            eprintln!(
                "peers: {}, round {} of {}",
                peer.title,
                round + 1,
                bench.rounds
            );
            let asked = Asked {
                model: &model,
                calls: &calls,
                reference: &reference,
                folder: &folder,
            };
            let measured = peers.measure(bench, peer, &asked).await;
            if let Err(error) = measured.and_then(|measured| line.take(&measured)) {
                eprintln!("peers: {}: {error:#}", peer.title);
                line.missing = Some(format!("{error:#}"));
            }
        }
    }
    gateway.drain().await?;
    let lines: Vec<Line> = own.into_iter().chain(others).collect();
    Ok(finding(bench, conditions, &lines))
}

/// What every peer is asked.
struct Asked<'a> {
    model: &'a Path,
    calls: &'a [Call],
    reference: &'a [u8],
    folder: &'a Path,
}

impl Peers {
    /// Makes a peer's virtual environment unless it holds these very requirements; the log goes to `folder`.
    pub(super) fn install(&self, peer: &str, folder: &Path) -> Result<()> {
        let home = self.cache.join(peer);
        let wanted_file = self.files.join(peer).join("requirements.txt");
        let wanted = fs::read_to_string(&wanted_file)
            .with_context(|| format!("no {}", wanted_file.display()))?;
        let mark = home.join("installed.txt");
        if fs::read_to_string(&mark).is_ok_and(|installed| installed == wanted) {
            return Ok(());
        }
        eprintln!("installing {peer} into {}", home.display());
        let log = folder.join(format!("{peer}-install.log"));
        let output = fs::File::create(&log)?;
        let mut make = Command::new(&self.python);
        make.args(["-m", "venv"]).arg(&home);
        let mut install = Command::new(home.join("bin/python"));
        install
            .args(["-m", "pip", "install", "-q", "-r"])
            .arg(&wanted_file);
        for command in [&mut make, &mut install] {
            let status = command
                .stdin(Stdio::null())
                .stdout(output.try_clone()?)
                .stderr(output.try_clone()?)
                .status()?;
            ensure!(status.success(), "{status}; the log is {}", log.display());
        }
        fs::write(mark, wanted)?;
        Ok(())
    }

    /// Starts the peer, compares its first answer with ours, loads it and ends it.
    async fn measure(&self, bench: &Bench, peer: &Peer, asked: &Asked<'_>) -> Result<Measured> {
        let address = free_address()?;
        let calls: Vec<Call> = asked
            .calls
            .iter()
            .map(|call| Call {
                path: peer.path.into(),
                headers: vec![("content-type", "application/json".into())],
                body: call.body.clone(),
            })
            .collect();
        let log = asked.folder.join(format!("{}.log", peer.name));
        let command = self.command(peer, address, asked.model)?;
        let (server, first) =
            Server::start(command, address, &log, &calls[0], READY_WITHIN).await?;
        let (ours, theirs) = (score(asked.reference)?, score(&first.body)?);
        ensure!(
            (ours - theirs).abs() < TOLERANCE,
            "{} answers {theirs}, we {ours}",
            peer.title
        );
        let mut load = bench.closed(address, calls);
        // Interpreters and pools warm slowly.
        load.warm_up = Duration::from_secs(2);
        let measured = measure(load, server.pid()).await;
        server.stop().await;
        measured
    }

    fn command(&self, peer: &Peer, address: SocketAddr, model: &Path) -> Result<Command> {
        let home = self.cache.join(peer.name);
        let mut command = command_on(Bench::server_core(), &home.join("bin").join(peer.program));
        let port = address.port().to_string();
        for argument in peer.arguments {
            command.arg(argument.replace("{port}", &port));
        }
        let other = || free_address().map(|address| address.port().to_string());
        command
            .current_dir(self.files.join(peer.name))
            .env("MODEL", model)
            .env("PORT", &port)
            .env("OMP_NUM_THREADS", "1")
            .env("MLSERVER_HTTP_PORT", &port)
            .env("MLSERVER_GRPC_PORT", other()?)
            .env("MLSERVER_METRICS_PORT", other()?)
            .env("MLSERVER_PARALLEL_WORKERS", "0")
            .env("MLSERVER_DEBUG", "false")
            .env("BENTOML_DO_NOT_TRACK", "True")
            .env("RAY_USAGE_STATS_ENABLED", "0")
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Ok(command)
    }
}

/// The first number of an answer in the protocol's shape.
fn score(body: &[u8]) -> Result<f64> {
    let answer: Value = serde_json::from_slice(body).context("the answer is not JSON")?;
    let mut value = &answer["outputs"][0]["data"];
    while value.is_array() {
        value = &value[0];
    }
    value
        .as_f64()
        .with_context(|| format!("no number in {answer}"))
}

fn finding(bench: &Bench, conditions: Conditions, lines: &[Line]) -> Finding {
    let ours = &lines[1].per_second;
    let mut table = Table::new(&[
        "server",
        "per second",
        "Loopgate is",
        "least to most",
        "server µs/request",
        "p50 µs",
        "p99 µs",
    ]);
    let mut figures = serde_json::Map::new();
    let mut bars = Vec::new();
    for line in lines {
        match (&line.missing, &line.total) {
            (None, Some(total)) => {
                let rate = median(&line.per_second);
                let pairs = ours.iter().zip(&line.per_second);
                let mut times: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
                times.sort_unstable_by(f64::total_cmp);
                let shown = |times: Option<&f64>| times.map_or_else(String::new, |x| short(*x));
                table.push(&[
                    line.title.clone(),
                    short(rate),
                    format!("{} ×", short(median(&times))),
                    format!("{} to {}", shown(times.first()), shown(times.last())),
                    short(median(&line.cpu_us)),
                    short(total.quantile_us(0.5)),
                    short(total.quantile_us(0.99)),
                ]);
                bars.push((line.title.clone(), rate));
                figures.insert(
                    line.title.clone(),
                    json!({
                        "per_second": line.per_second,
                        "loopgate_times": times,
                        "server_cpu_us": line.cpu_us,
                        "all_runs": total.json(),
                    }),
                );
            }
            (missing, _) => {
                let reason = missing.as_deref().unwrap_or("not measured");
                let row = missing_row(&line.title, reason, table.head.len());
                table.push(&row);
                figures.insert(line.title.clone(), json!({"missing": reason}));
            }
        }
    }
    Finding {
        name: "peers",
        title: "Peers: the same file, row and generator",
        method: format!(
            "200 × 31 trees on 71 floats, JSON, one row, {CONNECTIONS} connections, closed loop, the server \
             and all its processes on one core, the generator on another; medians of {} rounds of {} s, in \
             each of which every server runs once, ratios within a round. Each peer is configured for speed \
             as its documentation recommends (`bench/peers`); its first answer is compared with ours.",
            bench.rounds,
            bench.run.as_secs_f64()
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "Answers per second".into(),
            unit: "/s".into(),
            bars,
        }],
    }
}

/// A row of a server that gave no figures, and why, on one line.
fn missing_row(title: &str, reason: &str, width: usize) -> Vec<String> {
    let words: Vec<&str> = reason.split_whitespace().collect();
    let mut row = vec![
        title.to_owned(),
        format!("not measured: {}", words.join(" ")),
    ];
    row.resize(width, String::new());
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_score_is_read_however_deep_it_lies() {
        for body in [
            r#"{"outputs":[{"data":[0.25]}]}"#,
            r#"{"outputs":[{"data":[[0.25]]}]}"#,
        ] {
            assert_eq!(score(body.as_bytes()).unwrap(), 0.25);
        }
        assert!(score(b"{}").is_err());
    }
}
