//! The command line of `loopgate-bench`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::NaiveDate;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::bare::{Bare, serve_bare};
use crate::chart::short;
use crate::demo::{Demo, run_demo};
use crate::load::{Arrivals, Call, Load, Transport};
use crate::machine::{Cores, pin_self};
use crate::scenario::peers::Peers;
use crate::scenario::{
    Bench, drain, engines, entities, features, ingest, join, keys, memory, overload, peers,
    restart, skew, steady, surge, swap,
};

const SWAP_PHASE_S: u64 = 20;
const MEMORY_SWAPS: usize = 1000;
const ENTITIES: usize = 1_000_000;

/// Load, scenarios and the demo's replay, over HTTP only.
#[derive(Debug, Parser)]
#[command(name = "loopgate-bench", version)]
pub(crate) struct Command {
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Replays a year of flights through a gateway and reports what the loop was worth.
    Demo(DemoArguments),
    /// Throughput of one core, as a share of a bare hyper server's; latency at half of it.
    Steady(BenchArguments),
    /// Goodput from half of capacity to ten times it, and the cost of refusing.
    Overload(BenchArguments),
    /// A standing queue, a storm of retries, dear requests among cheap ones.
    Surge(BenchArguments),
    /// What a key costs, and a caller who is sent away.
    Keys(BenchArguments),
    /// A new champion each second: failures and tail.
    Swap(SwapArguments),
    /// Resident memory over many swaps, with and without recording.
    Memory(MemoryArguments),
    /// SIGTERM under load.
    Drain(BenchArguments),
    /// Killed and started again, with the registry and without.
    Restart(BenchArguments),
    /// A few hot connections against many cold ones, on two serving threads.
    Skew(BenchArguments),
    /// The same file in each engine, at batch 1, 8 and 64.
    Engines(BenchArguments),
    /// Many entities: import, size on disk, cold reads.
    Entities(EntitiesArguments),
    /// Acknowledged events, and predictions beside a stream of them.
    Ingest(BenchArguments),
    /// Rows of features by themselves, beside Feast's server.
    Features(PeersArguments),
    /// History in, and training rows computed from it, beside the same join in pandas.
    Join(JoinArguments),
    /// The servers that people use today, on the same file.
    Peers(PeersArguments),
    /// The short form of every scenario but the peers.
    All(BenchArguments),
    /// A plain hyper server that reads any body and answers the same bytes.
    Bare(BareArguments),
    /// The load generator alone, against any server.
    Load(LoadArguments),
}

#[derive(Debug, Args)]
struct DemoArguments {
    /// The gateway's binary.
    #[arg(long)]
    loopgate: PathBuf,
    /// The trainer's binary.
    #[arg(long)]
    trainer: PathBuf,
    /// The folder with `loopgate.toml`, `features.toml`, `models/` and `data/`.
    #[arg(long)]
    project: PathBuf,
    /// Where the run keeps its data, logs and report.
    #[arg(long)]
    out: PathBuf,
    /// Replays departures scheduled before this day (UTC).
    #[arg(long, default_value = "2014-01-02")]
    until: NaiveDate,
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

/// What all scenarios take.
#[derive(Debug, Args)]
struct BenchArguments {
    /// The gateway's binary.
    #[arg(long)]
    loopgate: PathBuf,
    /// Where results, projects and logs go.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// Where results are kept for good as well.
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    /// Interleaved runs of which medians are taken.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of one run, in seconds.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

#[derive(Debug, Args)]
struct SwapArguments {
    #[command(flatten)]
    bench: BenchArguments,
    /// Length of each phase, in seconds; three without swaps and three with them take turns.
    #[arg(long, default_value_t = SWAP_PHASE_S)]
    phase: u64,
    /// Phases of a minute.
    #[arg(long, conflicts_with = "phase")]
    full: bool,
}

#[derive(Debug, Args)]
struct MemoryArguments {
    #[command(flatten)]
    bench: BenchArguments,
    #[arg(long, default_value_t = MEMORY_SWAPS)]
    swaps: usize,
}

#[derive(Debug, Args)]
struct EntitiesArguments {
    #[command(flatten)]
    bench: BenchArguments,
    #[arg(long, default_value_t = ENTITIES)]
    entities: usize,
}

#[derive(Debug, Args)]
struct PeersArguments {
    #[command(flatten)]
    bench: BenchArguments,
    /// The folder with a peer's files each.
    #[arg(long, default_value = "bench/peers")]
    files: PathBuf,
    /// Where their virtual environments are kept.
    #[arg(long)]
    cache: PathBuf,
    /// The Python that makes them; 3.10 to 3.12.
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Only these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

#[derive(Debug, Args)]
struct JoinArguments {
    #[command(flatten)]
    peers: PeersArguments,
    /// The folder with the flights' project and `data/`.
    #[arg(long, default_value = "bench/flights")]
    project: PathBuf,
}

#[derive(Debug, Args)]
struct BareArguments {
    /// Where it listens.
    #[arg(long)]
    http: SocketAddr,
    /// The body of every answer.
    #[arg(long)]
    answer: PathBuf,
    /// The answer is binary, with a JSON head of so many bytes.
    #[arg(long)]
    header_length: Option<usize>,
}

#[derive(Debug, Args)]
struct LoadArguments {
    /// The server, as `127.0.0.1:8000`.
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    path: String,
    /// A file with the body of each request; for gRPC one message without its frame.
    #[arg(long)]
    body: PathBuf,
    #[arg(long, value_enum, default_value = "keep-alive")]
    transport: TransportName,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Arrivals a second of an open loop; without it the loop is closed.
    #[arg(long)]
    rate: Option<f64>,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    #[arg(long, default_value_t = 7)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TransportName {
    KeepAlive,
    ConnectionPerRequest,
    Http2,
    Grpc,
}

impl Command {
    /// Runs the scenario; an error where it could not be run or fell short of what it promises.
    pub(crate) async fn run(self) -> Result<()> {
        match self.scenario {
            Scenario::Demo(arguments) => arguments.run().await,
            Scenario::Steady(arguments) => Part::Steady.keep(&arguments.bench()?).await,
            Scenario::Overload(arguments) => Part::Overload.keep(&arguments.bench()?).await,
            Scenario::Surge(arguments) => Part::Surge.keep(&arguments.bench()?).await,
            Scenario::Keys(arguments) => Part::Keys.keep(&arguments.bench()?).await,
            Scenario::Swap(arguments) => {
                let phase_s = if arguments.full { 60 } else { arguments.phase };
                let part = Part::Swap(Duration::from_secs(phase_s.max(1)));
                part.keep(&arguments.bench.bench()?).await
            }
            Scenario::Memory(arguments) => {
                let part = Part::Memory(arguments.swaps);
                part.keep(&arguments.bench.bench()?).await
            }
            Scenario::Drain(arguments) => Part::Drain.keep(&arguments.bench()?).await,
            Scenario::Restart(arguments) => Part::Restart.keep(&arguments.bench()?).await,
            Scenario::Skew(arguments) => Part::Skew.keep(&arguments.bench()?).await,
            Scenario::Engines(arguments) => Part::Engines.keep(&arguments.bench()?).await,
            Scenario::Entities(arguments) => {
                let part = Part::Entities(arguments.entities.max(1));
                part.keep(&arguments.bench.bench()?).await
            }
            Scenario::Ingest(arguments) => Part::Ingest.keep(&arguments.bench()?).await,
            Scenario::Features(arguments) => {
                let (bench, peers) = arguments.parts()?;
                bench.keep(&features::run(&bench, &peers).await?)
            }
            Scenario::Join(arguments) => {
                let flights = absolute(&arguments.project)?;
                let (bench, peers) = arguments.peers.parts()?;
                bench.keep(&join::run(&bench, &peers, &flights)?)
            }
            Scenario::Peers(arguments) => {
                let (bench, peers) = arguments.parts()?;
                bench.keep(&peers::run(&bench, &peers).await?)
            }
            Scenario::All(arguments) => all(&arguments.bench()?).await,
            Scenario::Bare(arguments) => arguments.run().await,
            Scenario::Load(arguments) => arguments.run().await,
        }
    }
}

impl DemoArguments {
    async fn run(self) -> Result<()> {
        let until = self.until.and_hms_opt(0, 0, 0).context("no such day")?;
        let demo = Demo {
            loopgate: absolute(&self.loopgate)?,
            trainer: absolute(&self.trainer)?,
            template: absolute(&self.project)?,
            out: self.out,
            until_ms: until.and_utc().timestamp_millis(),
            seed: self.seed,
        };
        let report = run_demo(&demo).await?;
        println!("\n{}", report.table());
        println!("report: {}", demo.out.join("report.html").display());
        ensure!(
            report.requests.failed == 0,
            "{} requests failed",
            report.requests.failed
        );
        ensure!(
            report.skew.mismatches == 0,
            "{} served rows differ from their recomputation",
            report.skew.mismatches
        );
        ensure!(
            report.nights.mismatches == 0,
            "{} served rows differ from their nightly recomputation",
            report.nights.mismatches
        );
        Ok(())
    }
}

impl BenchArguments {
    /// Takes the generator's core, before any thread is started.
    fn bench(self) -> Result<Bench> {
        if let Some(cores) = Cores::of_machine() {
            pin_self(cores.generator);
        }
        Ok(Bench {
            loopgate: absolute(&self.loopgate)?,
            out: self.out,
            record: self.record,
            rounds: self.rounds.max(1),
            run: Duration::try_from_secs_f64(self.seconds).context("no such length")?,
            seed: self.seed,
        })
    }
}

impl PeersArguments {
    fn parts(self) -> Result<(Bench, Peers)> {
        std::fs::create_dir_all(&self.cache)?;
        let peers = Peers {
            files: absolute(&self.files)?,
            cache: absolute(&self.cache)?,
            python: self.python,
            only: self.only,
        };
        Ok((self.bench.bench()?, peers))
    }
}

impl BareArguments {
    async fn run(self) -> Result<()> {
        let answer = std::fs::read(&self.answer)
            .with_context(|| format!("cannot read {}", self.answer.display()))?;
        serve_bare(Bare {
            address: self.http,
            answer: answer.into(),
            header_length: self.header_length,
        })
        .await
    }
}

impl LoadArguments {
    async fn run(self) -> Result<()> {
        const STREAMS: usize = 4;
        let body = std::fs::read(&self.body)
            .with_context(|| format!("cannot read {}", self.body.display()))?;
        let call = Call {
            path: self.path,
            headers: Vec::new(),
            body: body.into(),
        };
        let load = Load {
            transport: match self.transport {
                TransportName::KeepAlive => Transport::KeepAlive,
                TransportName::ConnectionPerRequest => Transport::ConnectionPerRequest,
                TransportName::Http2 => Transport::Http2 { streams: STREAMS },
                TransportName::Grpc => Transport::Grpc { streams: STREAMS },
            },
            arrivals: match self.rate {
                None => Arrivals::Closed,
                Some(per_second) => Arrivals::Poisson {
                    per_second,
                    seed: self.seed,
                },
            },
            measured: Duration::try_from_secs_f64(self.seconds).context("no such length")?,
            ..Load::closed(self.address, vec![call], self.connections)
        };
        println!("{:#}", load.run_beside().await?.json());
        Ok(())
    }
}

/// A scenario that measures the gateway alone.
#[derive(Debug, Clone, Copy)]
enum Part {
    Steady,
    Overload,
    Surge,
    Keys,
    Swap(Duration),
    Memory(usize),
    Drain,
    Restart,
    Skew,
    Engines,
    Ingest,
    Entities(usize),
}

impl Part {
    async fn keep(self, bench: &Bench) -> Result<()> {
        let finding = match self {
            Self::Steady => steady::run(bench).await,
            Self::Overload => overload::run(bench).await,
            Self::Surge => surge::run(bench).await,
            Self::Keys => keys::run(bench).await,
            Self::Swap(phase) => swap::run(bench, phase).await,
            Self::Memory(swaps) => memory::run(bench, swaps).await,
            Self::Drain => drain::run(bench).await,
            Self::Restart => restart::run(bench).await,
            Self::Skew => skew::run(bench).await,
            Self::Engines => engines::run(bench).await,
            Self::Ingest => ingest::run(bench).await,
            Self::Entities(entities) => entities::run(bench, entities).await,
        };
        bench.keep(&finding?)
    }
}

/// Every scenario but the peers. One that cannot be run is reported, and the others go on.
async fn all(bench: &Bench) -> Result<()> {
    let parts = [
        Part::Steady,
        Part::Overload,
        Part::Surge,
        Part::Keys,
        Part::Swap(Duration::from_secs(SWAP_PHASE_S)),
        Part::Memory(MEMORY_SWAPS),
        Part::Drain,
        Part::Restart,
        Part::Skew,
        Part::Engines,
        Part::Ingest,
        Part::Entities(ENTITIES),
    ];
    let mut failed = Vec::new();
    for part in parts {
        let began = Instant::now();
        if let Err(error) = part.keep(bench).await {
            eprintln!("{part:?} failed: {error:#}");
            failed.push(format!("{part:?}"));
        }
        eprintln!("{part:?}: {} s", short(began.elapsed().as_secs_f64()));
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join(", "));
    Ok(())
}

fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    path.canonicalize()
        .with_context(|| format!("no {}", path.display()))
}
