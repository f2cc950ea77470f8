//! The demo's project: a fresh copy of the user's files, and January and February as history files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;

use crate::flights::{Aircraft, Flight, WEATHER_FIELDS};
use crate::timeline::{Fact, Timeline};

/// Where the demo keeps its files.
pub(crate) struct Project {
    /// The copied project; its data folder is `data` inside.
    pub folder: PathBuf,
    /// `SOURCE=FILE` arguments of the import.
    pub history: Vec<String>,
    /// Past questions with their outcomes, for the backfill.
    pub questions: PathBuf,
}

impl Project {
    pub(crate) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

/// Copies the project's definitions from `template` to `out/project` and writes the history beside.
pub(crate) fn prepare(
    template: &Path,
    out: &Path,
    timeline: &Timeline,
    aircraft: &[Aircraft],
) -> Result<Project> {
    let folder = out.join("project");
    if folder.exists() {
        fs::remove_dir_all(&folder)
            .with_context(|| format!("cannot clear {}", folder.display()))?;
    }
    fs::create_dir_all(folder.join("models"))?;
    for name in ["loopgate.toml", "features.toml"] {
        copy(&template.join(name), &folder.join(name))?;
    }
    for entry in fs::read_dir(template.join("models"))? {
        let entry = entry?;
        copy(
            &entry.path(),
            &folder.join("models").join(entry.file_name()),
        )?;
    }
    let history = out.join("history");
    fs::create_dir_all(&history)?;
    let file = |name: &str| history.join(format!("{name}.parquet"));
    write(&file("aircraft"), aircraft_columns(aircraft))?;
    write(&file("weather"), weather_columns(timeline))?;
    write(&file("schedules"), schedule_columns(timeline))?;
    write(&file("departures"), departure_columns(timeline))?;
    write(&file("arrivals"), arrival_columns(timeline))?;
    write(&file("questions"), question_columns(timeline))?;
    Ok(Project {
        folder,
        history: ["aircraft", "weather", "schedules", "departures", "arrivals"]
            .map(|source| format!("{source}={}", file(source).display()))
            .into(),
        questions: file("questions"),
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

type Columns = Vec<(&'static str, ArrayRef)>;

fn write(path: &Path, columns: Columns) -> Result<()> {
    let batch = RecordBatch::try_from_iter_with_nullable(
        columns
            .into_iter()
            .map(|(name, column)| (name, column, true)),
    )?;
    let file = fs::File::create(path)?;
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None)?;
    writer.write(&batch)?;
    writer.close()?;
    Ok(())
}

fn whole(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn number(values: impl Iterator<Item = Option<f64>>) -> ArrayRef {
    Arc::new(values.collect::<Float64Array>())
}

fn text<'a>(values: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    Arc::new(values.collect::<StringArray>())
}

fn flag(values: impl Iterator<Item = bool>) -> ArrayRef {
    Arc::new(BooleanArray::from_iter(values.map(Some)))
}

/// The register of 2013 as it stood when the year began.
fn aircraft_columns(aircraft: &[Aircraft]) -> Columns {
    const NEW_YEAR_2013_MS: i64 = 1_356_998_400_000;
    vec![
        (
            "tailnum",
            text(aircraft.iter().map(|a| Some(a.tailnum.as_str()))),
        ),
        (
            "registered_at",
            whole(aircraft.iter().map(|_| NEW_YEAR_2013_MS)),
        ),
        (
            "year",
            number(aircraft.iter().map(|a| a.year.map(f64::from))),
        ),
        (
            "seats",
            number(aircraft.iter().map(|a| a.seats.map(f64::from))),
        ),
        (
            "engines",
            number(aircraft.iter().map(|a| a.engines.map(f64::from))),
        ),
    ]
}

fn weather_columns(timeline: &Timeline) -> Columns {
    let seen: Vec<_> = timeline
        .history()
        .iter()
        .filter_map(|&(_, fact)| match fact {
            Fact::Weather(row) => Some(&timeline.weather[row]),
            _ => None,
        })
        .collect();
    let mut columns = vec![
        ("origin", text(seen.iter().map(|s| Some(s.origin.as_str())))),
        ("observed_at", whole(seen.iter().map(|s| s.observed_ms))),
    ];
    for (k, name) in WEATHER_FIELDS.into_iter().enumerate() {
        columns.push((
            name,
            number(seen.iter().map(|s| s.values[k].map(f64::from))),
        ));
    }
    columns
}

fn schedule_columns(timeline: &Timeline) -> Columns {
    let scheduled = timeline.past_questions();
    let mut columns = flight_columns(scheduled.iter());
    columns.push((
        "scheduled_at",
        whole(scheduled.iter().map(|f| f.scheduled_ms)),
    ));
    columns
}

fn departure_columns(timeline: &Timeline) -> Columns {
    let departed: Vec<_> = timeline
        .history()
        .iter()
        .filter_map(|&(at_ms, fact)| match fact {
            Fact::Departure(row) => Some((at_ms, &timeline.flights[row])),
            _ => None,
        })
        .collect();
    let mut columns = flight_columns(departed.iter().map(|d| d.1));
    columns.push(("departed_at", whole(departed.iter().map(|d| d.0))));
    let delays = departed
        .iter()
        .map(|d| d.1.departure_delay_minutes.map(f64::from));
    columns.push(("departure_delay_minutes", number(delays)));
    columns.push((
        "delayed",
        flag(departed.iter().map(|d| d.1.departed_late())),
    ));
    columns
}

fn arrival_columns(timeline: &Timeline) -> Columns {
    let arrived: Vec<&Flight> = timeline
        .history()
        .iter()
        .filter_map(|&(_, fact)| match fact {
            Fact::Arrival(row) => Some(&timeline.flights[row]),
            _ => None,
        })
        .collect();
    let mut columns = flight_columns(arrived.iter().copied());
    columns.push(("known_at", whole(arrived.iter().map(|f| f.outcome_ms))));
    let delays = arrived
        .iter()
        .map(|f| f.arrival_delay_minutes.map(f64::from));
    columns.push(("arrival_delay_minutes", number(delays)));
    columns.push(("cancelled", flag(arrived.iter().map(|f| f.cancelled))));
    columns.push(("diverted", flag(arrived.iter().map(|f| f.diverted))));
    columns.push(("late", flag(arrived.iter().map(|f| f.late()))));
    columns
}

fn flight_columns<'a>(flights: impl Iterator<Item = &'a Flight> + Clone) -> Columns {
    vec![
        ("flight_id", whole(flights.clone().map(|f| f.id))),
        (
            "carrier",
            text(flights.clone().map(|f| Some(f.carrier.as_str()))),
        ),
        (
            "origin",
            text(flights.clone().map(|f| Some(f.origin.as_str()))),
        ),
        ("dest", text(flights.clone().map(|f| Some(f.dest.as_str())))),
        ("tailnum", text(flights.map(|f| f.tailnum.as_deref()))),
    ]
}

/// Past departures as they would have been asked about; an outcome still unknown is null.
fn question_columns(timeline: &Timeline) -> Columns {
    let asked = timeline.past_questions();
    let known = |flight: &Flight| flight.outcome_ms < timeline.begin_ms;
    let ids: Vec<String> = asked.iter().map(|f| f.id.to_string()).collect();
    let float = |of: fn(&Flight) -> i64| number(asked.iter().map(move |f| Some(of(f) as f64)));
    vec![
        ("request_id", text(ids.iter().map(|id| Some(id.as_str())))),
        ("at", whole(asked.iter().map(|f| f.scheduled_ms))),
        (
            "carrier",
            text(asked.iter().map(|f| Some(f.carrier.as_str()))),
        ),
        (
            "origin",
            text(asked.iter().map(|f| Some(f.origin.as_str()))),
        ),
        ("dest", text(asked.iter().map(|f| Some(f.dest.as_str())))),
        ("tailnum", text(asked.iter().map(|f| f.tailnum.as_deref()))),
        ("scheduled_minutes", float(|f| f.scheduled_minutes)),
        ("distance_miles", float(|f| f.distance_miles)),
        ("local_month", float(|f| f.local_month)),
        ("local_weekday", float(|f| f.local_weekday)),
        ("local_minute_of_day", float(|f| f.local_minute_of_day)),
        (
            "label",
            number(
                asked
                    .iter()
                    .map(|f| known(f).then_some(f64::from(u8::from(f.late())))),
            ),
        ),
        (
            "label_known_at",
            Arc::new(
                asked
                    .iter()
                    .map(|f| known(f).then_some(f.outcome_ms))
                    .collect::<Int64Array>(),
            ),
        ),
    ]
}
