//! Writes rows into files by UTC day, few of them in the making at a time.
//!
//! Files are put into place as they fill up and belong to the table only once its manifest names
//! them: what is dropped or cut off before that is an orphan, which the table sweeps away. Holds at
//! most [`OPEN_MAX`] files of about [`FILE_BYTES_MAX`] in memory.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{SchemaRef, TimestampMillisecondType};

use super::OfflineError;
use super::manifest::SealedFile;
use super::segments::{Indexed, SegmentWriter, day_folder, day_of};
use super::table::{FileName, Table};
use crate::predictions::columns::numbers;

/// Files of one seal or backfill.
pub(crate) struct DayFiles {
    table: Arc<Table>,
    about: About,
    schema: SchemaRef,
    /// In the order in which they were started.
    open: Vec<(i64, SegmentWriter)>,
    parts: HashMap<i64, u32>,
    done: Vec<SealedFile>,
}

/// What the files of one seal have in common.
#[derive(Debug, Clone)]
pub(crate) struct About {
    /// The folder in the table that holds the days: `model=delay`, or nothing.
    pub(crate) folder: String,
    /// The middle of the files' names.
    pub(crate) name: String,
    /// As in [`SealedFile::schema`].
    pub(crate) schema: serde_json::Value,
    /// As in [`SealedFile::origin`].
    pub(crate) origin: String,
}

/// Files in the making at a time; rows come about in order of time, so more are rarely wanted.
const OPEN_MAX: usize = 4;
/// About the longest that a sealed file becomes: a reader holds it as a whole.
pub(crate) const FILE_BYTES_MAX: usize = 32 << 20;

impl DayFiles {
    /// Files of `table` for its next revision.
    pub(crate) fn new(table: &Arc<Table>, about: About, schema: SchemaRef) -> Self {
        Self {
            table: Arc::clone(table),
            about,
            schema,
            open: Vec::new(),
            parts: HashMap::new(),
            done: Vec::new(),
        }
    }

    /// Adds rows.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> Result<(), OfflineError> {
        let index = self.table.kind().indexed();
        let times = numbers::<TimestampMillisecondType>(rows, index.time);
        let times = times.map_err(|problem| self.failed(&problem))?;
        let mut start = 0;
        for run in times.values().chunk_by(|a, b| day_of(*a) == day_of(*b)) {
            let rows = rows.slice(start, run.len());
            self.write_day(day_of(run[0]), &rows, index)?;
            start += run.len();
        }
        Ok(())
    }

    /// The files, whole and on disk; the table does not have them yet.
    pub(crate) fn finish(mut self) -> Result<Vec<SealedFile>, OfflineError> {
        while !self.open.is_empty() {
            self.close(0)?;
        }
        Ok(self.done)
    }

    fn write_day(
        &mut self,
        day: i64,
        rows: &RecordBatch,
        index: Indexed<'_>,
    ) -> Result<(), OfflineError> {
        let place = match self.open.iter().position(|(open, _)| *open == day) {
            Some(place) => place,
            None => {
                if self.open.len() == OPEN_MAX {
                    self.close(0)?;
                }
                let writer = SegmentWriter::new(&self.schema, self.table.kind().compression());
                let writer = writer.map_err(|error| self.failed(&error))?;
                self.open.push((day, writer));
                self.open.len() - 1
            }
        };
        let writer = &mut self.open[place].1;
        let written = writer.write(rows, index);
        let bytes = writer.bytes();
        written.map_err(|error| self.failed(&error))?;
        if bytes >= FILE_BYTES_MAX {
            self.close(place)?;
        }
        Ok(())
    }

    fn close(&mut self, place: usize) -> Result<(), OfflineError> {
        let (day, writer) = self.open.remove(place);
        let closed = writer.close().map_err(|error| self.failed(&error))?;
        let part = self.parts.entry(day).or_insert(0);
        let name = FileName {
            folder: match &*self.about.folder {
                "" => day_folder(day),
                folder => format!("{folder}/{}", day_folder(day)),
            },
            name: format!("{}-{part}", self.about.name),
        };
        *part += 1;
        let file = self.table.put_file(&name, closed, &self.about)?;
        self.done.push(file);
        Ok(())
    }

    pub(crate) fn failed(&self, problem: &dyn std::fmt::Display) -> OfflineError {
        super::segments::corrupt(
            &self.table.shown(&self.about.folder),
            format!("rows of {}: {problem}", self.about.origin),
        )
    }
}
