//! `restart`: how long until a gateway that was killed answers again, with its registry and without.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::{Bench, answer};
use crate::chart::{Bars, short};
use crate::deployment::Deployed;
use crate::finding::{Finding, Table, median};
use crate::load::Call;
use crate::machine::Conditions;
use crate::models::{ensemble, rows};
use crate::process::{Gateway, Start};
use crate::question::json_calls;

/// As many models as a small team serves; each is loaded before the gateway is ready.
const MODELS: [&str; 4] = ["scored", "second", "third", "fourth"];

/// What happened before the start.
struct Case {
    name: &'static str,
    drained: bool,
    registry: bool,
    /// Milliseconds from the start of the process.
    ready_ms: Vec<f64>,
    answered_ms: Vec<f64>,
}

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench) -> Result<Finding> {
    let conditions = Conditions::now(bench.rounds, Duration::ZERO);
    let project = bench.folder("restart")?.join("project");
    let onnx = ensemble(bench.seed);
    let deployed = MODELS.map(|name| Deployed::plain(name, onnx.clone()));
    let mut gateway = bench.deploy(project.clone(), deployed.into()).await?;
    let call = &json_calls(MODELS[0], &rows(1, bench.seed))[0];
    let case = |name, drained, registry| Case {
        name,
        drained,
        registry,
        ready_ms: Vec::new(),
        answered_ms: Vec::new(),
    };
    let mut cases = [
        case("drained", true, true),
        case("killed", false, true),
        case("killed, the registry is gone", false, false),
    ];
    for round in 0..bench.rounds {
        eprintln!("restart: round {} of {}", round + 1, bench.rounds);
        for case in &mut cases {
            gateway = case.restart(bench, gateway, (&project, call)).await?;
        }
    }
    gateway.drain().await?;
    Ok(finding(bench, conditions, &cases))
}

impl Case {
    /// Ends the gateway and starts it anew on the same project.
    async fn restart(
        &mut self,
        bench: &Bench,
        gateway: Gateway,
        (project, call): (&Path, &Call),
    ) -> Result<Gateway> {
        answer(gateway.addresses.http, call).await?;
        if self.drained {
            gateway.drain().await?;
        } else {
            // Dropping kills.
            drop(gateway);
        }
        let (data, aside) = (project.join("data"), project.join("aside"));
        if !self.registry {
            move_registry(&data, &aside)?;
        }
        let started = Instant::now();
        let gateway = Gateway::start(&Start {
            loopgate: &bench.loopgate,
            project,
            log: &project.join("gateway.log"),
            core: Bench::server_core(),
        })
        .await?;
        self.ready_ms.push(started.elapsed().as_secs_f64() * 1e3);
        answer(gateway.addresses.http, call).await?;
        self.answered_ms.push(started.elapsed().as_secs_f64() * 1e3);
        if !self.registry {
            move_registry(&aside, &data)?;
        }
        Ok(gateway)
    }
}

/// Moves the registry's database and what SQLite keeps beside it.
fn move_registry(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut moved = 0;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with("registry.db") {
            fs::rename(entry.path(), to.join(name))?;
            moved += 1;
        }
    }
    anyhow::ensure!(moved > 0, "no registry.db in {}", from.display());
    Ok(())
}

fn finding(bench: &Bench, conditions: Conditions, cases: &[Case]) -> Finding {
    let worst = |ms: &[f64]| ms.iter().copied().fold(0.0, f64::max);
    let mut table = Table::new(&[
        "before",
        "starts",
        "ready, ms",
        "slowest",
        "first answer, ms",
        "slowest",
    ]);
    let mut figures = serde_json::Map::new();
    for case in cases {
        table.push(&[
            case.name.into(),
            case.ready_ms.len().to_string(),
            short(median(&case.ready_ms)),
            short(worst(&case.ready_ms)),
            short(median(&case.answered_ms)),
            short(worst(&case.answered_ms)),
        ]);
        figures.insert(
            case.name.into(),
            json!({"ready_ms": case.ready_ms, "answered_ms": case.answered_ms}),
        );
    }
    let bars = cases
        .iter()
        .map(|case| (case.name.to_owned(), median(&case.answered_ms)));
    Finding {
        name: "restart",
        title: "Restart: until it answers again",
        method: format!(
            "{} models of 200 × 31 trees on one core. From the start of the process until \
             `/v2/health/ready` says so and until a prediction is answered with 200; {} starts of each kind, \
             in turn on one project. Killed is SIGKILL; gone means that `registry.db` and what SQLite keeps \
             beside it were moved away, so that the last good release is served.",
            MODELS.len(),
            bench.rounds
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "First answer after the start".into(),
            unit: "ms".into(),
            bars: bars.collect(),
        }],
    }
}
