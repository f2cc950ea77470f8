//! The columns of label files: rows in, rows out.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, Float32Builder, RecordBatch, StringBuilder, TimestampMillisecondBuilder,
    UInt32Builder, UInt64Builder,
};
use arrow::datatypes::{
    DataType, Field, Float32Type, Schema, SchemaRef, TimeUnit, TimestampMillisecondType, UInt32Type,
};

use super::OfflineError;
use super::days::{About, DayFiles};
use super::manifest::SealedFile;
use super::segments::{FORMAT, FORMAT_KEY};
use super::table::Table;
use crate::labels::StoredLabel;
use crate::predictions::PredictionKey;
use crate::predictions::columns::{numbers, texts};

/// The columns that a join needs.
pub(crate) const JOINED: [&str; 5] = ["prediction_id", "row", "value", "label_time", "arrived"];

/// The schema of label files.
pub(crate) fn schema() -> SchemaRef {
    let utc = || DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let fields = vec![
        Field::new("prediction_id", DataType::Utf8, false),
        Field::new("row", DataType::UInt32, false),
        Field::new("value", DataType::Float32, false),
        Field::new("label_time", utc(), false),
        Field::new("arrived", utc(), false),
        Field::new("seq", DataType::UInt64, false),
    ];
    let metadata = HashMap::from([(FORMAT_KEY.to_owned(), FORMAT.to_owned())]);
    Arc::new(Schema::new_with_metadata(fields, metadata))
}

/// Writes labels into files by the day of their arrival.
pub(crate) struct LabelFiles {
    files: DayFiles,
    rows: usize,
    prediction_id: StringBuilder,
    row: UInt32Builder,
    value: Float32Builder,
    label_time: TimestampMillisecondBuilder,
    arrived: TimestampMillisecondBuilder,
    seq: UInt64Builder,
}

/// Labels that are collected before they are encoded.
const BATCH_ROWS: usize = 4096;

impl LabelFiles {
    /// Files of the labels' table; `name` is in the middle of theirs.
    pub(crate) fn new(labels: &Arc<Table>, name: String, origin: String) -> Self {
        let time = || TimestampMillisecondBuilder::new().with_timezone("UTC");
        let about = About {
            folder: String::new(),
            name,
            schema: serde_json::Value::Null,
            origin,
        };
        Self {
            files: DayFiles::new(labels, about, schema()),
            rows: 0,
            prediction_id: StringBuilder::new(),
            row: UInt32Builder::new(),
            value: Float32Builder::new(),
            label_time: time(),
            arrived: time(),
            seq: UInt64Builder::new(),
        }
    }

    /// Adds a label; `seq` is its number in the label log, 0 for a backfilled one.
    pub(crate) fn push(
        &mut self,
        prediction: PredictionKey,
        label: StoredLabel,
        seq: u64,
    ) -> Result<(), OfflineError> {
        let mut id = uuid::Uuid::encode_buffer();
        let id = prediction.id.hyphenated().encode_lower(&mut id);
        self.prediction_id.append_value(id);
        self.row.append_value(prediction.row);
        self.value.append_value(label.value);
        self.label_time.append_value(label.label_ms);
        self.arrived.append_value(label.arrived_ms);
        self.seq.append_value(seq);
        self.rows += 1;
        if self.rows == BATCH_ROWS {
            self.flush()?;
        }
        Ok(())
    }

    /// The files, whole and on disk; the table does not have them yet.
    pub(crate) fn finish(mut self) -> Result<Vec<SealedFile>, OfflineError> {
        self.flush()?;
        self.files.finish()
    }

    fn flush(&mut self) -> Result<(), OfflineError> {
        if self.rows == 0 {
            return Ok(());
        }
        self.rows = 0;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(self.prediction_id.finish()),
            Arc::new(self.row.finish()),
            Arc::new(self.value.finish()),
            Arc::new(self.label_time.finish()),
            Arc::new(self.arrived.finish()),
            Arc::new(self.seq.finish()),
        ];
        let rows = RecordBatch::try_new(schema(), columns);
        self.files
            .write(&rows.expect("the columns are the schema's"))
    }
}

/// Calls `found` with each label of a batch.
pub(crate) fn read(
    batch: &RecordBatch,
    found: &mut dyn FnMut(PredictionKey, StoredLabel),
) -> Result<(), String> {
    let id = texts(batch, "prediction_id")?;
    let row = numbers::<UInt32Type>(batch, "row")?;
    let value = numbers::<Float32Type>(batch, "value")?;
    let label_time = numbers::<TimestampMillisecondType>(batch, "label_time")?;
    let arrived = numbers::<TimestampMillisecondType>(batch, "arrived")?;
    for index in 0..batch.num_rows() {
        let id = id.value(index);
        let prediction = PredictionKey {
            id: uuid::Uuid::try_parse(id).map_err(|_| format!("prediction id `{id}`"))?,
            row: row.value(index),
        };
        let label = StoredLabel {
            value: value.value(index),
            label_ms: label_time.value(index),
            arrived_ms: arrived.value(index),
        };
        found(prediction, label);
    }
    Ok(())
}
