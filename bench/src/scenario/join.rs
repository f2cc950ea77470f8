//! `join`: the past taken in and training rows computed from it, at three lengths of history, beside the
//! same join in pandas.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Bench;
use super::peers::Peers;
use crate::chart::{Bars, short};
use crate::finding::{Finding, Table, median};
use crate::flights::{read_aircraft, read_flights, read_weather};
use crate::machine::{Conditions, command_on};
use crate::process::{Spent, run_measured};
use crate::project::{Project, prepare};
use crate::timeline::Timeline;

const PANDAS: &str = "pandas";
const MODEL: &str = "delay";
/// Months of history, from January.
const LENGTHS: [i64; 3] = [3, 6, 12];
const SOURCES: [&str; 5] = ["aircraft", "weather", "schedules", "departures", "arrivals"];

/// One command, run in every round.
struct Case {
    name: String,
    unit: &'static str,
    count: u64,
    runs: Vec<Spent>,
}

impl Case {
    fn new(name: impl Into<String>, unit: &'static str) -> Self {
        Self {
            name: name.into(),
            unit,
            count: 0,
            runs: Vec::new(),
        }
    }

    fn take(&mut self, count: u64, spent: Spent) {
        self.count = count;
        self.runs.push(spent);
    }

    fn median(&self, figure: impl Fn(&Spent) -> f64) -> f64 {
        median(&self.runs.iter().map(figure).collect::<Vec<_>>())
    }

    fn per_second(&self) -> f64 {
        self.median(|spent| self.count as f64 / spent.wall.as_secs_f64())
    }

    fn per_core_second(&self) -> f64 {
        self.median(|spent| self.count as f64 / spent.cpu.as_secs_f64())
    }

    fn peak_mib(&self) -> f64 {
        self.median(|spent| spent.peak_bytes as f64 / f64::from(1 << 20))
    }
}

/// A length of history and what was measured over it.
struct Length {
    months: i64,
    project: Project,
    imports: Vec<Case>,
    backfill: Case,
    recompute: Case,
    pandas: Case,
    /// Features that pandas computed for each row.
    features: u64,
}

/// Runs the scenario on the project in `flights`.
pub(crate) fn run(bench: &Bench, peers: &Peers, flights: &Path) -> Result<Finding> {
    let conditions = Conditions::now(bench.rounds, std::time::Duration::ZERO);
    let folder = bench.folder("join")?;
    peers.install(PANDAS, &folder)?;
    let mut lengths = Vec::new();
    for months in LENGTHS {
        lengths.push(Length::new(
            months,
            flights,
            &folder.join(months.to_string()),
        )?);
    }
    for round in 0..bench.rounds {
        eprintln!("join: round {} of {}", round + 1, bench.rounds);
        for length in &mut lengths {
            length.measure(bench, peers)?;
        }
    }
    Ok(finding(conditions, &lengths))
}

impl Length {
    fn new(months: i64, flights: &Path, folder: &Path) -> Result<Self> {
        let data = flights.join("data");
        let timeline = Timeline::of_months(
            read_flights(&data.join("flights.parquet"))?,
            read_weather(&data.join("weather.parquet"))?,
            months,
        );
        let aircraft = read_aircraft(&data.join("planes.parquet"))?;
        let imports = SOURCES.map(|source| Case::new(format!("import of {source}"), "events"));
        Ok(Self {
            months,
            project: prepare(flights, folder, &timeline, &aircraft)?,
            imports: imports.into(),
            backfill: Case::new("backfill into the prediction log", "rows"),
            recompute: Case::new("rows computed anew, as a dataset", "rows"),
            pandas: Case::new("the same join in pandas", "rows"),
            features: 0,
        })
    }

    fn measure(&mut self, bench: &Bench, peers: &Peers) -> Result<()> {
        let data = self.project.data();
        if data.exists() {
            fs::remove_dir_all(&data)?;
        }
        let loopgate = |arguments: &[&str]| -> Result<Spent> {
            let mut command = command_on(Bench::server_core(), &bench.loopgate);
            command.args(["feature", arguments[0], "--project"]);
            command.arg(&self.project.folder).args(&arguments[1..]);
            run_measured(command, &self.project.folder.join("loopgate.log"))
        };
        for (case, file) in self.imports.iter_mut().zip(&self.project.history) {
            let spent = loopgate(&["import", file])?;
            case.take(first_number(&spent.stdout)?, spent);
        }
        let questions = self.project.questions.display().to_string();
        let spent = loopgate(&["backfill", "--model", MODEL, &questions])?;
        let rows = first_number(&spent.stdout)?;
        self.backfill.take(rows, spent);
        let out = self.project.folder.join("datasets").display().to_string();
        let dataset = |features: &str| -> Result<(Spent, Value)> {
            let range = [
                "--from",
                "2013-01-01T00:00:00Z",
                "--to",
                "2015-01-01T00:00:00Z",
            ];
            let mut arguments = vec!["dataset", "--model", MODEL, "--features", features];
            arguments.extend(range);
            arguments.extend(["--out", &out]);
            let spent = loopgate(&arguments)?;
            let told = serde_json::from_str(&spent.stdout).context("`feature dataset`")?;
            Ok((spent, told))
        };
        let (_, served) = dataset("served")?;
        let (spent, recomputed) = dataset("recomputed")?;
        ensure!(
            served["about"]["digest"] == recomputed["about"]["digest"],
            "the rows as recorded and as computed anew differ"
        );
        let rows = recomputed["about"]["rows"].as_u64().context("no rows")?;
        self.recompute.take(rows, spent);
        let file = recomputed["file"].as_str().context("no file")?.to_owned();
        self.pandas(peers, &file)
    }

    fn pandas(&mut self, peers: &Peers, dataset: &str) -> Result<()> {
        let python = peers.cache.join(PANDAS).join("bin/python");
        let history = self.project.questions.parent().map(PathBuf::from);
        let mut command = command_on(Bench::server_core(), &python);
        command
            .arg("join.py")
            .current_dir(peers.files.join(PANDAS))
            .env("FOLDER", history.context("no folder of history")?)
            .env("DATASET", dataset)
            .env("PYTHONDONTWRITEBYTECODE", "1");
        let mut spent = run_measured(command, &self.project.folder.join("pandas.log"))?;
        let told: Value = serde_json::from_str(&spent.stdout).context("what pandas printed")?;
        ensure!(
            told["differing"] == 0,
            "pandas computes other values: {told}"
        );
        // Without its start and the comparison, in which it should not be made slower.
        let number = |name: &str| told[name].as_f64().context("no such figure");
        let seconds = |name| anyhow::Ok(std::time::Duration::from_secs_f64(number(name)?));
        spent.wall = seconds("seconds")?;
        spent.cpu = seconds("cpu_seconds")?;
        spent.peak_bytes = (number("peak_mib")? * f64::from(1 << 20)) as u64;
        self.features = number("features")? as u64;
        self.pandas.take(number("rows")? as u64, spent);
        Ok(())
    }

    fn cases(&self) -> impl Iterator<Item = &Case> {
        let joins = [&self.backfill, &self.recompute, &self.pandas];
        self.imports.iter().chain(joins)
    }
}

/// The number of rows that `import` and `backfill` print first.
fn first_number(text: &str) -> Result<u64> {
    let mut words = text.split_whitespace();
    let number = words.find_map(|word| word.parse().ok());
    number.with_context(|| format!("no number in `{text}`"))
}

fn finding(conditions: Conditions, lengths: &[Length]) -> Finding {
    let mut table = Table::new(&[
        "history",
        "what",
        "count",
        "a second",
        "s",
        "a second of processor",
        "peak, MiB",
    ]);
    let mut figures = serde_json::Map::new();
    for length in lengths {
        let history = format!("{} months", length.months);
        let mut of_length = serde_json::Map::new();
        for case in length.cases() {
            let wall_s = case.median(|spent| spent.wall.as_secs_f64());
            table.push(&[
                history.clone(),
                case.name.clone(),
                format!("{} {}", case.count, case.unit),
                short(case.per_second()),
                short(wall_s),
                short(case.per_core_second()),
                short(case.peak_mib()),
            ]);
            let runs = |figure: fn(&Spent) -> f64| case.runs.iter().map(figure).collect::<Vec<_>>();
            let of_case = json!({
                "count": case.count,
                "seconds": runs(|spent| spent.wall.as_secs_f64()),
                "cpu_seconds": runs(|spent| spent.cpu.as_secs_f64()),
                "peak_bytes": runs(|spent| spent.peak_bytes as f64),
            });
            of_length.insert(case.name.clone(), of_case);
        }
        figures.insert(history, of_length.into());
    }
    let longest = &lengths[lengths.len() - 1];
    let bars = [&longest.recompute, &longest.backfill, &longest.pandas];
    Finding {
        name: "join",
        title: "The past: import, and training rows from events",
        method: format!(
            "The flights' five sources and service `delay@1` (all windows), every command on one core, from \
             the start of its process to its end with everything on disk. A row computed anew is read from \
             the prediction log with its label, joined with the events by arrival, digested and written as a \
             Parquet dataset; its digest must equal that of the rows as the backfill recorded them. pandas \
             ({} features of the row, the request's own are left out) takes two `merge_asof` of running totals \
             for each window, timed from reading its files to the frame in memory, without the start of Python; \
             its values must agree with ours. The last figure is the highest resident memory. Medians of {} rounds.",
            longest.features, conditions.runs
        ),
        conditions,
        figures: figures.into(),
        table,
        plots: Vec::new(),
        bars: vec![Bars {
            title: "Training rows, a year of flights, by processor time".into(),
            unit: "rows/s".into(),
            bars: bars
                .iter()
                .map(|case| (case.name.clone(), case.per_core_second()))
                .collect(),
        }],
    }
}
