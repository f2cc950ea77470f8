//! The flights of 2013: the three Parquet files of `bench/flights/data`, column by column.
//!
//! Times are milliseconds since the epoch, UTC. Rows keep the order of their files, which is by the
//! moment at which the question is asked (flights) or the fact is known (weather).

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Float32Array, Int64Array, LargeStringArray,
    RecordBatchReader,
};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float32Type, Int64Type, TimeUnit};
use arrow::record_batch::RecordBatch;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

/// A flight more than so many minutes behind its timetable counts as late.
const LATE_AFTER_MINUTES: f32 = 15.0;

/// One scheduled departure and what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Flight {
    pub id: i64,
    pub carrier: String,
    pub origin: String,
    pub dest: String,
    pub tailnum: Option<String>,
    pub scheduled_ms: i64,
    pub scheduled_minutes: i64,
    pub distance_miles: i64,
    pub local_month: i64,
    pub local_weekday: i64,
    pub local_minute_of_day: i64,
    pub departed_ms: Option<i64>,
    pub departure_delay_minutes: Option<f32>,
    pub outcome_ms: i64,
    pub arrival_delay_minutes: Option<f32>,
    pub cancelled: bool,
    pub diverted: bool,
}

impl Flight {
    /// The outcome that the model predicts: cancelled, diverted or more than 15 minutes late.
    pub(crate) fn late(&self) -> bool {
        self.cancelled
            || self.diverted
            || self
                .arrival_delay_minutes
                .is_some_and(|delay| delay > LATE_AFTER_MINUTES)
    }

    /// Whether it left the gate more than 15 minutes late.
    pub(crate) fn departed_late(&self) -> bool {
        self.departure_delay_minutes
            .is_some_and(|delay| delay > LATE_AFTER_MINUTES)
    }
}

/// The nine measurements of a weather observation, by the names that the events use.
pub(crate) const WEATHER_FIELDS: [&str; 9] = [
    "temp_f",
    "dewpoint_f",
    "humidity_pct",
    "wind_dir_deg",
    "wind_mph",
    "gust_mph",
    "precip_in",
    "pressure_mb",
    "visibility_mi",
];

/// One hourly observation at one airport, in the order of [`WEATHER_FIELDS`].
#[derive(Debug, Clone)]
pub(crate) struct Observation {
    pub origin: String,
    pub observed_ms: i64,
    pub values: [Option<f32>; 9],
}

/// One aircraft of the register.
#[derive(Debug, Clone)]
pub(crate) struct Aircraft {
    pub tailnum: String,
    pub year: Option<f32>,
    pub seats: Option<f32>,
    pub engines: Option<f32>,
}

/// Reads `flights.parquet`, in file order (by scheduled departure).
pub(crate) fn read_flights(path: &Path) -> Result<Vec<Flight>> {
    let table = Table::read(path)?;
    let (carrier, origin, dest) = (
        table.text("carrier")?,
        table.text("origin")?,
        table.text("dest")?,
    );
    let tailnum = table.text("tailnum")?;
    let id = table.whole("flight_id")?;
    let scheduled = table.moment("scheduled_at")?;
    let departed = table.moment("departed_at")?;
    let outcome = table.moment("outcome_at")?;
    let departure_delay = table.number("departure_delay_minutes")?;
    let arrival_delay = table.number("arrival_delay_minutes")?;
    let (minutes, miles) = (
        table.whole("scheduled_minutes")?,
        table.whole("distance_miles")?,
    );
    let (month, weekday, minute) = (
        table.whole("local_month")?,
        table.whole("local_weekday")?,
        table.whole("local_minute_of_day")?,
    );
    let (cancelled, diverted) = (table.flag("cancelled")?, table.flag("diverted")?);
    Ok((0..table.rows())
        .map(|row| Flight {
            id: id.value(row),
            carrier: carrier.value(row).to_owned(),
            origin: origin.value(row).to_owned(),
            dest: dest.value(row).to_owned(),
            tailnum: tailnum.is_valid(row).then(|| tailnum.value(row).to_owned()),
            scheduled_ms: scheduled.value(row),
            scheduled_minutes: minutes.value(row),
            distance_miles: miles.value(row),
            local_month: month.value(row),
            local_weekday: weekday.value(row),
            local_minute_of_day: minute.value(row),
            departed_ms: departed.is_valid(row).then(|| departed.value(row)),
            departure_delay_minutes: present(&departure_delay, row),
            outcome_ms: outcome.value(row),
            arrival_delay_minutes: present(&arrival_delay, row),
            cancelled: cancelled.value(row),
            diverted: diverted.value(row),
        })
        .collect())
}

/// Reads `weather.parquet`, in file order (by the moment of observation).
pub(crate) fn read_weather(path: &Path) -> Result<Vec<Observation>> {
    let table = Table::read(path)?;
    let origin = table.text("origin")?;
    let observed = table.moment("observed_at")?;
    let measured = WEATHER_FIELDS
        .iter()
        .map(|name| table.number(name))
        .collect::<Result<Vec<_>>>()?;
    Ok((0..table.rows())
        .map(|row| Observation {
            origin: origin.value(row).to_owned(),
            observed_ms: observed.value(row),
            values: std::array::from_fn(|k| present(&measured[k], row)),
        })
        .collect())
}

/// Reads `planes.parquet`.
pub(crate) fn read_aircraft(path: &Path) -> Result<Vec<Aircraft>> {
    let table = Table::read(path)?;
    let tailnum = table.text("tailnum")?;
    let (year, seats, engines) = (
        table.number("year")?,
        table.number("seats")?,
        table.number("engines")?,
    );
    Ok((0..table.rows())
        .map(|row| Aircraft {
            tailnum: tailnum.value(row).to_owned(),
            year: present(&year, row),
            seats: present(&seats, row),
            engines: present(&engines, row),
        })
        .collect())
}

/// A null and a NaN both mean "not measured".
fn present(column: &Float32Array, row: usize) -> Option<f32> {
    (column.is_valid(row) && column.value(row).is_finite()).then(|| column.value(row))
}

/// A Parquet file in memory, whose columns are cast to the few types used here.
pub(crate) struct Table {
    batch: RecordBatch,
    path: String,
}

impl Table {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)?
            .with_batch_size(65_536)
            .build()?;
        let schema = reader.schema();
        let batches = reader.collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            batch: concat_batches(&schema, &batches)?,
            path: path.display().to_string(),
        })
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    fn column(&self, name: &str, to: &DataType) -> Result<ArrayRef> {
        let column = self
            .batch
            .column_by_name(name)
            .with_context(|| format!("{}: no column `{name}`", self.path))?;
        cast(column, to).with_context(|| format!("{}: column `{name}` is not {to}", self.path))
    }

    pub(crate) fn text(&self, name: &str) -> Result<LargeStringArray> {
        Ok(self
            .column(name, &DataType::LargeUtf8)?
            .as_string::<i64>()
            .clone())
    }

    pub(crate) fn whole(&self, name: &str) -> Result<Int64Array> {
        Ok(self
            .column(name, &DataType::Int64)?
            .as_primitive::<Int64Type>()
            .clone())
    }

    pub(crate) fn number(&self, name: &str) -> Result<Float32Array> {
        Ok(self
            .column(name, &DataType::Float32)?
            .as_primitive::<Float32Type>()
            .clone())
    }

    fn flag(&self, name: &str) -> Result<BooleanArray> {
        Ok(self.column(name, &DataType::Boolean)?.as_boolean().clone())
    }

    /// A timestamp of any unit as milliseconds.
    fn moment(&self, name: &str) -> Result<Int64Array> {
        let utc_ms = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        let column = self.column(name, &utc_ms)?;
        Ok(cast(&column, &DataType::Int64)?
            .as_primitive::<Int64Type>()
            .clone())
    }
}
