//! What history costs: events imported per second, rows recomputed per second, and the memory taken.
//!
//! `history FEATURES.toml DATA SERVICE QUESTIONS SOURCE=FILE…`, pinned with `taskset` where figures are
//! compared; DATA must not exist. The bench's scenario `join` measures the same through the command line.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use featurestore::{
    BackfillRequest, Definitions, FeatureStore, ImportRequest, RowsFrom, StoreOptions,
    TrainingQuery,
};

/// As the gateway has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [features, data, service, questions, sources @ ..] = arguments.as_slice() else {
        return Err("FEATURES.toml DATA SERVICE QUESTIONS SOURCE=FILE…".into());
    };
    let definitions = Arc::new(Definitions::load(Path::new(features))?);
    let options = StoreOptions::default();
    let store = FeatureStore::open(Path::new(data), definitions, &options)?;
    for pair in sources {
        let (source, file) = pair.split_once('=').ok_or("SOURCE=FILE")?;
        let request = ImportRequest {
            source: source.to_owned(),
            files: vec![file.into()],
            now_ms: i64::MAX / 2,
        };
        let (began, cpu) = (Instant::now(), cpu_s());
        let imported = store.import_events(&request, &mut |_| {})?;
        report(source, imported.rows, (began, cpu));
    }
    let request = BackfillRequest {
        model: service.as_str().into(),
        service: service.clone(),
        file: questions.into(),
    };
    let (began, cpu) = (Instant::now(), cpu_s());
    let done = store.backfill(&request, &mut |_| {})?;
    report("backfill", done.rows, (began, cpu));
    let (began, cpu) = (Instant::now(), cpu_s());
    let sealed = store.seal()?;
    report("seal", sealed.events, (began, cpu));
    let query = TrainingQuery {
        model: service.clone(),
        service: service.clone(),
        from_ms: 0,
        to_ms: i64::MAX / 2,
        known_by_ms: i64::MAX / 2,
    };
    let (began, cpu) = (Instant::now(), cpu_s());
    let rows = store.recomputed_rows(&query)?;
    report("recomputed", rows.rows() as u64, (began, cpu));
    for features in [RowsFrom::Served, RowsFrom::Recomputed] {
        let (began, cpu) = (Instant::now(), cpu_s());
        let dataset = store.dataset(&query, features, &Path::new(data).join("datasets"))?;
        report(&dataset.about.digest, dataset.about.rows, (began, cpu));
    }
    Ok(())
}

fn report(what: &str, rows: u64, (began, cpu): (Instant, f64)) {
    let (wall, cpu) = (began.elapsed().as_secs_f64(), cpu_s() - cpu);
    println!(
        "{what}: {rows} in {wall:.2} s, {cpu:.2} s of processor: {:.0} /s, {:.0} /s and core; {} MiB at most",
        rows as f64 / wall,
        rows as f64 / cpu,
        peak_mib()
    );
}

/// Processor time of this process so far.
fn cpu_s() -> f64 {
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
    (ticks(12).unwrap_or(0.0) + ticks(13).unwrap_or(0.0)) / TICKS_PER_S
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}
