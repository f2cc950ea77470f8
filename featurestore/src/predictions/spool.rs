//! Open prediction segments: one file per model and service, an Arrow IPC stream in frames with checksums.
//!
//! Rows wait in memory until a batch is full or the recorder flushes, then go to the kernel as one
//! record batch; nothing is fsynced. A crash tears at most the last batch, which a reader leaves out.

use std::cell::Cell;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use rocksdb::WriteBatch;

use super::PredictionRecord;
use super::columns::Columns;
use super::frames::{Flaw, FrameReader, FrameWriter};
use crate::definition::Definitions;
use crate::offline::segments::is_folder_name;
use crate::online::RecordError;
use crate::online::keys::Key;
use crate::online::tables::Tables;

/// The open segments.
pub(crate) struct Spool {
    folder: PathBuf,
    definitions: Arc<Definitions>,
    rows_max: usize,
    open: Vec<Open>,
}

struct Open {
    model: Arc<str>,
    service: Option<Arc<str>>,
    columns: Columns,
    path: PathBuf,
    writer: StreamWriter<FrameWriter>,
}

impl Spool {
    /// Writes new segments into `folder`.
    pub(crate) fn new(folder: PathBuf, definitions: Arc<Definitions>, rows_max: usize) -> Self {
        Self {
            folder,
            definitions,
            rows_max: rows_max.max(1),
            open: Vec::new(),
        }
    }

    /// Adds a record. After a failure the rows that waited with it are lost, the file keeps what it had
    /// and the next record starts another.
    pub(crate) fn push(
        &mut self,
        tables: &Tables,
        record: &PredictionRecord,
    ) -> Result<(), RecordError> {
        let same = |open: &Open| open.model == record.model && open.service == record.service;
        let index = match self.open.iter().position(same) {
            Some(index) => index,
            None => {
                self.open.push(self.start(tables, record)?);
                self.open.len() - 1
            }
        };
        let open = &mut self.open[index];
        open.columns.push(record);
        if open.columns.rows() >= self.rows_max {
            let flushed = open.flush();
            self.keep_if(index, flushed)?;
        }
        Ok(())
    }

    /// Hands every waiting row to the kernel.
    pub(crate) fn flush(&mut self) -> Result<(), RecordError> {
        for index in (0..self.open.len()).rev() {
            let flushed = self.open[index].flush();
            self.keep_if(index, flushed)?;
        }
        Ok(())
    }

    /// Ends every open segment; the next record starts another.
    pub(crate) fn close(&mut self) -> Result<(), RecordError> {
        self.flush()?;
        while let Some(mut open) = self.open.pop() {
            let ended = open.writer.finish();
            let ended = ended.and_then(|()| Ok(open.writer.get_mut().flush()?));
            ended.map_err(|error| failed(&open.path, &error))?;
        }
        Ok(())
    }

    fn keep_if(
        &mut self,
        index: usize,
        written: Result<(), ArrowError>,
    ) -> Result<(), RecordError> {
        written.map_err(|error| failed(&self.open.remove(index).path, &error))
    }

    fn start(&self, tables: &Tables, record: &PredictionRecord) -> Result<Open, RecordError> {
        if !is_folder_name(&record.model) {
            return Err(RecordError::ModelName(record.model.to_string()));
        }
        let number = next_segment(tables)?;
        let name = format!("{number:010}-{}.arrow", record.model);
        let path = self.folder.join(name);
        let service = record.service.as_deref();
        let service = service.and_then(|name| self.definitions.service(name));
        let columns = Columns::new(service.cloned());
        let file = File::create_new(&path).and_then(FrameWriter::start);
        let file = file.map_err(|error| failed(&path, &error.into()))?;
        let writer =
            StreamWriter::try_new(file, columns.schema()).map_err(|error| failed(&path, &error))?;
        Ok(Open {
            model: Arc::clone(&record.model),
            service: record.service.clone(),
            columns,
            path,
            writer,
        })
    }
}

impl Open {
    fn flush(&mut self) -> Result<(), ArrowError> {
        if self.columns.rows() > 0 {
            self.writer.write(&self.columns.finish()?)?;
            self.writer.flush()?;
        }
        Ok(())
    }
}

fn failed(path: &Path, error: &ArrowError) -> RecordError {
    RecordError::Spool {
        path: path.to_owned(),
        problem: error.to_string(),
    }
}

/// Takes the next number. It is on disk before it is used: a number used twice would replace a sealed
/// file of the first.
fn next_segment(tables: &Tables) -> Result<u64, RecordError> {
    let failed = |error: rocksdb::Error| RecordError::Database(error.to_string());
    let number = tables.get_number(Key::NextSegment).map_err(failed)?;
    let number = number.unwrap_or(0);
    let mut batch = WriteBatch::default();
    tables.put(&mut batch, Key::NextSegment, &(number + 1).to_le_bytes());
    tables.write_durably(batch).map_err(failed)?;
    Ok(number)
}

/// The rows of a spool file as far as they are whole.
pub(crate) struct SpoolReader {
    stream: Option<StreamReader<FrameReader>>,
    /// What the frames show.
    flaw: Rc<Cell<Option<Flaw>>>,
}

impl SpoolReader {
    /// Opens a file; one without a whole schema has no rows.
    pub(crate) fn open(path: &Path) -> std::io::Result<Self> {
        let (file, flaw) = FrameReader::open(path)?;
        let mut reader = Self { stream: None, flaw };
        match StreamReader::try_new(file, None) {
            Ok(stream) => reader.stream = Some(stream),
            Err(_) => reader.end(),
        }
        Ok(reader)
    }

    /// The schema of the rows.
    pub(crate) fn schema(&self) -> Option<SchemaRef> {
        self.stream.as_ref().map(StreamReader::schema)
    }

    /// Where the file was not what had been written; known when all rows have been read.
    pub(crate) fn flaw(&self) -> Option<Flaw> {
        self.flaw.get()
    }

    /// The stream ended in the middle of something: at a flaw, or between two frames.
    fn end(&mut self) {
        self.stream = None;
        self.flaw.set(self.flaw.get().or(Some(Flaw::Torn)));
    }
}

impl Iterator for SpoolReader {
    type Item = RecordBatch;

    fn next(&mut self) -> Option<RecordBatch> {
        match self.stream.as_mut()?.next()? {
            Ok(batch) => Some(batch),
            Err(_) => {
                self.end();
                None
            }
        }
    }
}
