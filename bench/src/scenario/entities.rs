//! `entities`: many entities in four views: how long their history takes to import, what they take on
//! disk, and what a row costs that nobody has read before.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use arrow::array::{
    BooleanArray, Float64Array, Int64Array, RecordBatch, TimestampMillisecondArray,
};
use chrono::Utc;
use parquet::arrow::ArrowWriter;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::{Bench, answer, measure, must_be_clean};
use crate::chart::short;
use crate::deployment::Deployment;
use crate::finding::{Finding, Table};
use crate::load::{Call, Load};
use crate::machine::Conditions;
use crate::process::run as run_command;

/// Rows of the history that are made at a time.
const CHUNK: usize = 100_000;
/// Different entities that are asked for; a run asks for each once at most.
const QUESTIONS: usize = 50_000;
const DAY_MS: i64 = 86_400_000;
/// An entity's raw values: in each of four views its key and a time of 8 bytes each, and 4 bytes for each
/// of ten features.
const RAW_BYTES: f64 = 4.0 * 16.0 + 10.0 * 4.0;

const FEATURES: &str = r#"
[[source]]
name = "seen"
time = "at"
id = ["entity", "at"]
fields = { entity = "int", at = "time", amount = "float", flag = "bool" }

[[view]]
name = "recent"
source = "seen"
keys = ["entity"]
windows = ["24h", "7d"]
features = [{ count = true }, { mean = "amount" }]

[[view]]
name = "spent"
source = "seen"
keys = ["entity"]
windows = ["7d", "30d"]
features = [{ sum = "amount" }]

[[view]]
name = "latest"
source = "seen"
keys = ["entity"]
features = [{ last = "amount" }, { age_of_last = true }]

[[view]]
name = "flagged"
source = "seen"
keys = ["entity"]
windows = ["7d", "30d"]
features = [{ rate = "flag" }]

[[service]]
name = "entity"
version = 1
request = { entity = "int" }
features = [{ view = "recent" }, { view = "spent" }, { view = "latest" }, { view = "flagged" }]
"#;

/// Runs the scenario.
pub(crate) async fn run(bench: &Bench, entities: usize) -> Result<Finding> {
    let conditions = Conditions::now(1, bench.run);
    let folder = bench.folder("entities")?;
    let project = folder.join("project");
    let deployment = Deployment {
        folder: project.clone(),
        features: Some(FEATURES.into()),
        ..Deployment::on_one_core(&bench.loopgate)
    };
    // Written by the deployment, and an empty store with it.
    deployment.start().await?.drain().await?;
    let history = folder.join("seen.parquet");
    write_history(&history, entities, bench.seed)?;
    let file = format!("seen={}", history.display());
    let place = project.display().to_string();
    let began = Instant::now();
    let arguments = ["feature", "import", &file, "--project", &place];
    let printed = run_command(&bench.loopgate, &arguments, &folder.join("import.log"))?;
    let import_s = began.elapsed().as_secs_f64();
    ensure!(
        printed.contains(&format!("{entities} new")),
        "not every event was imported: {printed}"
    );
    let at_once = stored(&project.join("data"))?;
    let gateway = deployment.restart().await?;
    let calls = questions(entities, bench.seed);
    answer(gateway.addresses.http, &calls[0]).await?;
    let dropped = fs::write("/proc/sys/vm/drop_caches", "3").is_ok();
    let load = Load {
        connections: 1,
        warm_up: std::time::Duration::ZERO,
        ..bench.closed(gateway.addresses.http, calls)
    };
    let cold = measure(load, gateway.pid()).await?.tally;
    must_be_clean("cold reads", &cold)?;
    ensure!(
        cold.answered() < QUESTIONS as u64,
        "every entity was asked for more than once"
    );
    gateway.drain().await?;
    let settled = stored(&project.join("data"))?;
    fs::remove_file(history)?;
    fs::remove_dir_all(project.join("data"))?;
    let found = Found {
        entities,
        import_s,
        bytes: (at_once, settled),
        cold_us: [0.5, 0.99].map(|quantile| cold.quantile_us(quantile)),
        reads: cold.answered(),
        dropped,
    };
    Ok(finding(conditions, &found))
}

struct Found {
    entities: usize,
    import_s: f64,
    /// Of the data folder after the import, and after the gateway that served from it.
    bytes: (u64, u64),
    /// p50 and p99.
    cold_us: [f64; 2],
    reads: u64,
    /// Whether the page cache was emptied before the reads.
    dropped: bool,
}

/// One event of each entity, in order of time within the last two weeks.
fn write_history(path: &Path, entities: usize, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let end_ms = Utc::now().timestamp_millis();
    let at =
        |row: usize| end_ms - 14 * DAY_MS + (14 * DAY_MS / entities.max(1) as i64) * row as i64;
    let mut writer: Option<ArrowWriter<File>> = None;
    for first in (0..entities).step_by(CHUNK) {
        let rows = first..(first + CHUNK).min(entities);
        let ids = rows.clone().map(|row| entity(row, entities));
        let times = TimestampMillisecondArray::from_iter_values(rows.clone().map(at));
        let amounts = rows
            .clone()
            .map(|_| f64::from(random.random_range(1i32..100_000)) / 100.0);
        let amounts = Float64Array::from_iter_values(amounts);
        let flags: BooleanArray = rows.map(|_| Some(random.random_bool(0.2))).collect();
        let batch = RecordBatch::try_from_iter([
            ("entity", Arc::new(Int64Array::from_iter_values(ids)) as _),
            ("at", Arc::new(times.with_timezone("UTC")) as _),
            ("amount", Arc::new(amounts) as _),
            ("flag", Arc::new(flags) as _),
        ])?;
        let writer = match &mut writer {
            Some(writer) => writer,
            None => writer.insert(ArrowWriter::try_new(
                File::create(path)?,
                batch.schema(),
                None,
            )?),
        };
        writer.write(&batch)?;
    }
    if let Some(writer) = writer {
        writer.close()?;
    }
    Ok(())
}

/// The entity of a row: all of them once, in no order.
fn entity(row: usize, entities: usize) -> i64 {
    // A prime beside which no number of entities up to a thousand million has a common divisor.
    const STEP: u128 = 2_147_483_647;
    (row as u128 * STEP % entities.max(1) as u128) as i64
}

fn questions(entities: usize, seed: u64) -> Vec<Call> {
    let mut random = StdRng::seed_from_u64(seed);
    let call = |_| Call {
        path: "/get-online-features".into(),
        headers: vec![("content-type", "application/json".into())],
        body: json!({
            "feature_service": "entity",
            "entities": {"entity": [random.random_range(0..entities)]},
        })
        .to_string()
        .into(),
    };
    (0..QUESTIONS).map(call).collect()
}

/// Bytes of a data folder, but for what it holds against a full disk: that is as large for one entity.
fn stored(data: &Path) -> Result<u64> {
    let reserve = fs::metadata(data.join("reserve")).map_or(0, |file| file.len());
    Ok(bytes_below(data)? - reserve)
}

fn bytes_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        bytes += match entry.file_type()?.is_dir() {
            true => bytes_below(&entry.path())?,
            false => entry.metadata()?.len(),
        };
    }
    Ok(bytes)
}

fn finding(conditions: Conditions, found: &Found) -> Finding {
    let count = found.entities as f64;
    let each = |bytes: u64| bytes as f64 / count;
    let mut table = Table::new(&["figure", "value", "wanted"]);
    let mut row = |what: &str, value: String, wanted: &str| {
        table.push(&[what.into(), value, wanted.into()]);
    };
    row(
        "entities × views",
        format!("{} × 4", short(count)),
        "10,000,000 × 4",
    );
    row("imported events/s", short(count / found.import_s), "");
    row(
        "bytes an entity on disk, event log and dedupe keys included",
        short(each(found.bytes.0)),
        "",
    );
    row(
        "the same after a gateway has served from it",
        short(each(found.bytes.1)),
        "",
    );
    row(
        "× its raw values",
        short(each(found.bytes.1) / RAW_BYTES),
        "≤ 2",
    );
    row(
        "a row of 4 views that nobody has read, p50 µs",
        short(found.cold_us[0]),
        "",
    );
    row("p99 µs", short(found.cold_us[1]), "");
    Finding {
        name: "entities",
        title: "Entities: size on disk and cold reads",
        method: format!(
            "One event of each entity, imported by `loopgate feature import` from Parquet into four views of \
             ten features. Raw is {RAW_BYTES} bytes an entity: in each view its key and a time of 8 bytes \
             each, and 4 bytes a feature. {} reads of one row each over HTTP by one connection, each of an \
             entity drawn at random; the page cache was {}emptied before them.",
            short(found.reads as f64),
            if found.dropped { "" } else { "not " },
        ),
        conditions,
        figures: json!({
            "entities": found.entities,
            "import_s": found.import_s,
            "bytes": [found.bytes.0, found.bytes.1],
            "raw_bytes_an_entity": RAW_BYTES,
            "cold_p50_us": found.cold_us[0],
            "cold_p99_us": found.cold_us[1],
            "cold_reads": found.reads,
            "page_cache_emptied": found.dropped,
        }),
        table,
        plots: Vec::new(),
        bars: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_entity_has_one_row() {
        for entities in [1usize, 7, 1000, 100_000] {
            let ids: BTreeSet<i64> = (0..entities).map(|row| entity(row, entities)).collect();
            assert_eq!(ids.len(), entities);
            assert!(ids.iter().all(|id| (0..entities as i64).contains(id)));
        }
    }
}
