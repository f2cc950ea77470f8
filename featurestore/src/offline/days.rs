//! Writes rows into one file per UTC day, few of them open at a time.
//!
//! Nothing is visible before [`DayFiles::finish`], and what is dropped before it leaves nothing behind.
//! File names follow from the prefix, the day and the rows that came before: writing the same rows
//! again, or the same rows and more, replaces the same files, so a crash at any point is repaired by
//! doing it again.

use std::collections::HashMap;
use std::path::PathBuf;

use arrow::array::{RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::SchemaRef;
use parquet::errors::ParquetError;

use super::segments::{Closed, Unpublished, day_folder, day_of};

/// Files of one seal or backfill.
pub(crate) struct DayFiles {
    parent: PathBuf,
    prefix: String,
    schema: SchemaRef,
    /// In the order in which they were started.
    open: Vec<(i64, Unpublished)>,
    closed: Vec<Closed>,
    parts: HashMap<i64, u32>,
}

/// Files open at a time; rows come about in order of time, so more are rarely wanted.
const OPEN_MAX: usize = 8;

impl DayFiles {
    /// Files `parent/date=…/prefix-N.parquet`.
    pub(crate) fn new(parent: PathBuf, prefix: String, schema: SchemaRef) -> Self {
        Self {
            parent,
            prefix,
            schema,
            open: Vec::new(),
            closed: Vec::new(),
            parts: HashMap::new(),
        }
    }

    /// Adds rows; `times` are theirs.
    pub(crate) fn write(
        &mut self,
        rows: &RecordBatch,
        times: &TimestampMillisecondArray,
    ) -> Result<(), ParquetError> {
        let mut start = 0;
        for run in times.values().chunk_by(|a, b| day_of(*a) == day_of(*b)) {
            let day = day_of(run[0]);
            self.file(day)?.write(&rows.slice(start, run.len()))?;
            start += run.len();
        }
        Ok(())
    }

    /// Publishes the files; how many there were.
    pub(crate) fn finish(mut self) -> Result<u64, ParquetError> {
        while let Some((_, file)) = self.open.pop() {
            self.closed.push(file.close()?);
        }
        for file in &self.closed {
            file.publish()?;
        }
        let files = self.closed.len() as u64;
        self.closed.clear();
        Ok(files)
    }

    fn file(&mut self, day: i64) -> Result<&mut Unpublished, ParquetError> {
        let index = match self.open.iter().position(|(open, _)| *open == day) {
            Some(index) => index,
            None => {
                if self.open.len() == OPEN_MAX {
                    let (_, oldest) = self.open.remove(0);
                    self.closed.push(oldest.close()?);
                }
                let part = self.parts.entry(day).or_insert(0);
                let name = format!("{}-{part}.parquet", self.prefix);
                *part += 1;
                let folder = day_folder(&self.parent, day);
                let file = Unpublished::create(&folder, &name, &self.schema)?;
                self.open.push((day, file));
                self.open.len() - 1
            }
        };
        Ok(&mut self.open[index].1)
    }
}

impl Drop for DayFiles {
    fn drop(&mut self) {
        let open = self.open.iter().map(|(_, file)| file.temporary());
        let closed = self.closed.iter().map(Closed::temporary);
        for temporary in open.chain(closed) {
            // A file that was published before another failed is no longer there under this name.
            let _ = std::fs::remove_file(temporary);
        }
    }
}
