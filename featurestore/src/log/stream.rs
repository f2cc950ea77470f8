//! The one stream of events: sealed files, then what the log holds beyond them, by sequence number.
//!
//! Numbers have no holes, so the stream knows at each event which one must come next: a hole at the
//! seam, in a file or in the log is an error that names the event, never a shorter history. Holds one
//! decoded batch (4,096 events) for each sealed file whose range reaches the present number: mostly one
//! a source.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use rocksdb::DBRawIterator;

use super::{Logged, Reader, Schemas};
use crate::event::Event;
use crate::offline::OfflineError;
use crate::offline::event_rows::{EventBatch, source_of};
use crate::offline::manifest::{Manifest, SealedFile};
use crate::offline::segments::{Segment, Wanted, corrupt};
use crate::offline::table::Table;
use crate::online::ReadError;
use crate::online::keys::{Column, Key};
use crate::online::tables::Tables;
use crate::value::Value;

/// All events of a store, wherever they lie.
#[derive(Clone, Copy)]
pub(crate) struct EventLog<'a> {
    /// `None` beside the process that has the database open: the stream ends with the sealed files.
    pub(crate) tables: Option<&'a Tables>,
    pub(crate) schemas: &'a Schemas,
    pub(crate) sealed: &'a Table,
}

impl<'a> EventLog<'a> {
    /// Every event from number `first` on, as of now.
    pub(crate) fn from(self, first: u64) -> Result<Stream<'a>, ReadError> {
        self.range(first, u64::MAX)
    }

    /// The events from number `first` on that the database still has: none is read from a sealed file while
    /// all of them are here, so that a start needs no place that may be away.
    pub(crate) fn kept_from(self, first: u64) -> Result<Stream<'a>, ReadError> {
        let pruned = self.tables.map(|it| it.get_number(Key::EventsPruned));
        let pruned = pruned.transpose().map_err(ReadError::database)?;
        if pruned.is_none_or(|pruned| pruned.unwrap_or(0) >= first) {
            return self.from(first);
        }
        let tail = self.tables.map(|tables| tables.raw_scan(Column::Events));
        let numbers = first..=u64::MAX;
        let walk = Walk::over(self, Part::Events, numbers, (tail, Arc::default()));
        Ok(Stream(walk))
    }

    /// The events of the numbers `first..=last`, as of now.
    pub(crate) fn range(self, first: u64, last: u64) -> Result<Stream<'a>, ReadError> {
        Ok(Stream(Walk::new(self, Part::Events, first..=last)?))
    }

    /// Number and arrival of every event, those of sources no longer defined included, by number.
    pub(crate) fn arrivals(self) -> Result<Arrivals<'a>, ReadError> {
        Ok(Arrivals(Walk::new(self, Part::Arrivals, 0..=u64::MAX)?))
    }
}

/// Events by sequence number.
pub(crate) struct Stream<'a>(Walk<'a>);

impl Iterator for Stream<'_> {
    type Item = Result<Logged, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let step = match self.0.next()? {
                Ok(step) => step,
                Err(error) => return Some(Err(error)),
            };
            if let Some(event) = step.event {
                return Some(Ok(Logged {
                    seq: step.seq,
                    arrived_ms: step.arrived_ms,
                    event,
                }));
            }
        }
    }
}

/// Number and arrival of events by sequence number.
pub(crate) struct Arrivals<'a>(Walk<'a>);

impl Iterator for Arrivals<'_> {
    type Item = Result<(u64, i64), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let step = self.0.next()?;
        Some(step.map(|step| (step.seq, step.arrived_ms)))
    }
}

/// What is read of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Events,
    Arrivals,
}

/// One number of the log.
struct Step {
    seq: u64,
    arrived_ms: i64,
    /// `None` where it is not asked for or its source is gone.
    event: Option<Event>,
}

/// Steps from number to number, first through the files.
struct Walk<'a> {
    log: EventLog<'a>,
    part: Part,
    /// The number that comes next; 0 until the first is known.
    next: u64,
    last: u64,
    /// Not yet opened, the one with the smallest first number at the end.
    files: Vec<SealedFile>,
    /// `None` where one has been read to its end.
    open: Vec<Option<OpenFile>>,
    /// The number at which each open file stands, but for `current`.
    waiting: BinaryHeap<Reverse<(u64, usize)>>,
    /// The open file that gave the last event.
    current: Option<usize>,
    /// Held, so that no file is removed meanwhile.
    manifest: Arc<Manifest>,
    tail: Option<DBRawIterator<'a>>,
    failed: bool,
}

impl<'a> Walk<'a> {
    fn new(
        log: EventLog<'a>,
        part: Part,
        numbers: std::ops::RangeInclusive<u64>,
    ) -> Result<Self, ReadError> {
        // The log first: what it no longer holds then is in the manifest that is read after it.
        let tail = log.tables.map(|tables| tables.raw_scan(Column::Events));
        let manifest = log.sealed.manifest().map_err(ReadError::sealed)?;
        Ok(Self::over(log, part, numbers, (tail, manifest)))
    }

    fn over(
        log: EventLog<'a>,
        part: Part,
        numbers: std::ops::RangeInclusive<u64>,
        (mut tail, manifest): (Option<DBRawIterator<'a>>, Arc<Manifest>),
    ) -> Self {
        let next = (*numbers.start()).max(1);
        let reaches =
            |file: &&SealedFile| file.last_seq >= next && file.first_seq <= *numbers.end();
        let mut files: Vec<_> = manifest.files.iter().filter(reaches).cloned().collect();
        files.sort_by_key(|file| Reverse(file.first_seq));
        if let Some(tail) = &mut tail {
            tail.seek(Key::Event(next.max(manifest.sealed_seq + 1)).to_bytes());
        }
        Self {
            log,
            part,
            next,
            last: *numbers.end(),
            files,
            open: Vec::new(),
            waiting: BinaryHeap::new(),
            current: None,
            manifest,
            tail,
            failed: false,
        }
    }

    fn step(&mut self) -> Result<Option<Step>, ReadError> {
        if self.next > self.last {
            return Ok(None);
        }
        let step = match self.next <= self.manifest.sealed_seq {
            true => Some(self.sealed_step()?),
            false => self.tail_step()?,
        };
        self.next += 1;
        Ok(step)
    }

    /// The next event, from the file that has it.
    fn sealed_step(&mut self) -> Result<Step, ReadError> {
        if let Some(current) = self.current {
            let seq = self.open[current].as_ref().and_then(OpenFile::seq);
            match seq {
                Some(seq) if seq == self.next => {}
                Some(seq) => {
                    self.waiting.push(Reverse((seq, current)));
                    self.current = None;
                }
                None => {
                    self.open[current] = None;
                    self.current = None;
                }
            }
        }
        let current = match self.current {
            Some(current) => current,
            None => self.turn_to_next()?,
        };
        self.current = Some(current);
        let file = self.open[current].as_mut().expect("it has the next event");
        file.take(self.part).map_err(ReadError::sealed)
    }

    /// The place of the file that has the next number.
    fn turn_to_next(&mut self) -> Result<usize, ReadError> {
        while let Some(file) = self.files.pop_if(|file| file.first_seq <= self.next) {
            let opened = OpenFile::new(self.log, &file, self.part, self.next);
            let opened = opened.map_err(ReadError::sealed)?;
            if let Some(seq) = opened.seq() {
                let place = self.open.iter().position(Option::is_none);
                let place = place.unwrap_or_else(|| {
                    self.open.push(None);
                    self.open.len() - 1
                });
                self.open[place] = Some(opened);
                self.waiting.push(Reverse((seq, place)));
            }
        }
        match self.waiting.pop() {
            Some(Reverse((seq, place))) if seq == self.next => Ok(place),
            _ => Err(missing(self.next, "in the sealed files")),
        }
    }

    /// The next event, from the log.
    fn tail_step(&mut self) -> Result<Option<Step>, ReadError> {
        // Sealed files are behind: their batches need not be held any longer.
        self.open.clear();
        let Some(tail) = &mut self.tail else {
            return Ok(None);
        };
        let (Some(key), Some(value)) = (tail.key(), tail.value()) else {
            tail.status().map_err(ReadError::database)?;
            return Ok(None);
        };
        let seq = Key::number(key);
        let seq = seq.ok_or_else(|| ReadError::Damaged("key of an event".to_owned()))?;
        if seq != self.next {
            return Err(missing(self.next, "in the log"));
        }
        let schemas = self.log.schemas;
        let step = Step {
            seq,
            arrived_ms: schemas.arrived_ms(seq, value)?,
            event: match self.part {
                Part::Events => schemas.event(seq, value)?,
                Part::Arrivals => None,
            },
        };
        tail.next();
        Ok(Some(step))
    }
}

fn missing(seq: u64, place: &str) -> ReadError {
    ReadError::Damaged(format!("event {seq} is missing {place}"))
}

impl Iterator for Walk<'_> {
    type Item = Result<Step, ReadError>;

    /// Ends after an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step().transpose();
        self.failed = matches!(step, Some(Err(_)));
        step
    }
}

/// A sealed file at one of its events.
struct OpenFile {
    segment: Segment,
    /// `None` where nothing but numbers and arrivals is read.
    reader: Option<Reader>,
    batch: Option<EventBatch>,
    row: usize,
}

impl OpenFile {
    /// At the first event of number `next` or later.
    fn new(
        log: EventLog<'_>,
        file: &SealedFile,
        part: Part,
        next: u64,
    ) -> Result<Self, OfflineError> {
        let bytes = log.sealed.bytes(file)?;
        let path = log.sealed.shown(&file.path);
        let numbers = |bytes, path| Segment::open(path, bytes, Wanted::First(2));
        let (segment, reader) = match part {
            Part::Arrivals => (numbers(bytes, path)?, None),
            Part::Events => {
                let segment = Segment::open(path.clone(), bytes.clone(), Wanted::All)?;
                let reader = log.schemas.reader_of(source_of(&segment)?);
                match reader.today {
                    Some(_) => (segment, Some(reader)),
                    None => (numbers(bytes, path)?, None),
                }
            }
        };
        let mut opened = Self {
            segment,
            reader,
            batch: None,
            row: 0,
        };
        opened.next_batch()?;
        while let Some(batch) = &opened.batch {
            opened.row = batch.seqs().partition_point(|&seq| seq < next);
            if opened.row < batch.seqs().len() {
                break;
            }
            opened.next_batch()?;
        }
        Ok(opened)
    }

    /// The number of the event that it stands at; `None` at the end.
    fn seq(&self) -> Option<u64> {
        self.batch.as_ref()?.seqs().get(self.row).copied()
    }

    /// Reads the event and moves on.
    fn take(&mut self, part: Part) -> Result<Step, OfflineError> {
        let batch = self.batch.as_ref().expect("it stands at an event");
        let row = self.row;
        let event = match (&self.reader, part) {
            (Some(reader), Part::Events) => Some(event_of(reader, batch, row)),
            _ => None,
        };
        let event = event.transpose();
        let step = Step {
            seq: batch.seqs()[row],
            arrived_ms: batch.arrivals()[row],
            event: event.map_err(|problem| corrupt(self.segment.path(), problem))?,
        };
        self.row += 1;
        if self.row == batch.seqs().len() {
            self.next_batch()?;
        }
        Ok(step)
    }

    fn next_batch(&mut self) -> Result<(), OfflineError> {
        self.row = 0;
        self.batch = match self.segment.next() {
            Some(rows) => {
                let batch = EventBatch::new(&rows?);
                Some(batch.map_err(|problem| corrupt(self.segment.path(), problem))?)
            }
            None => None,
        };
        Ok(())
    }
}

/// The event of a row in today's fields.
fn event_of(reader: &Reader, batch: &EventBatch, row: usize) -> Result<Event, String> {
    let (source, places) = reader.today.as_ref().ok_or("its source is not defined")?;
    let value = |index: usize| {
        let value = batch.value(row, index);
        value.ok_or_else(|| format!("field {index} of its source is missing"))
    };
    let mut values = Vec::with_capacity(source.fields.len());
    match reader.current {
        true => {
            for index in 0..source.fields.len() {
                values.push(value(index)?);
            }
        }
        false => {
            for place in places {
                values.push(place.map_or(Ok(Value::Null), value)?);
            }
        }
    }
    let event_ms = batch.event_times().get(row);
    Ok(Event {
        source: Arc::clone(source),
        event_ms: *event_ms.ok_or("no `_event_time`")?,
        values: values.into_boxed_slice(),
    })
}
