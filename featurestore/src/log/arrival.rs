//! The log in the order of arrival, which is what was known when.
//!
//! Live events are logged about as they arrive; an import logs each source's past one after the other.
//! So the log is a few runs, each in order of arrival but for a little disorder, and reading it in order
//! is a merge of them. Costs one pass over the entries' headers first. A run is open from its first
//! arrival to its last, so memory follows the runs that overlap (an iterator each), not the history.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::{EventLog, Logged, Stream};
use crate::online::ReadError;

/// An event may stand in a run behind one that arrived so much later: handlers stamp the arrival before
/// the writer numbers the event. More begins a new run.
const DISORDER_MS_MAX: i64 = 60_000;

/// A stretch of the log that is in order of arrival, but for `disorder_ms`.
#[derive(Debug, Clone, Copy)]
struct Run {
    first_seq: u64,
    last_seq: u64,
    first_arrived_ms: i64,
    newest_arrived_ms: i64,
    /// How far an arrival lies behind one before it, at most.
    disorder_ms: i64,
}

impl Run {
    fn starting(seq: u64, arrived_ms: i64) -> Self {
        Self {
            first_seq: seq,
            last_seq: seq,
            first_arrived_ms: arrived_ms,
            newest_arrived_ms: arrived_ms,
            disorder_ms: 0,
        }
    }

    /// Whether the next event belongs to the run.
    fn take(&mut self, seq: u64, arrived_ms: i64) -> bool {
        let behind_ms = self.newest_arrived_ms.saturating_sub(arrived_ms);
        if behind_ms > DISORDER_MS_MAX {
            return false;
        }
        self.last_seq = seq;
        self.first_arrived_ms = self.first_arrived_ms.min(arrived_ms);
        self.newest_arrived_ms = self.newest_arrived_ms.max(arrived_ms);
        self.disorder_ms = self.disorder_ms.max(behind_ms);
        true
    }
}

/// The log in order of (arrival, sequence number).
pub(crate) fn by_arrival(log: EventLog<'_>) -> Result<ByArrival<'_>, ReadError> {
    let mut runs: Vec<Run> = Vec::new();
    for step in log.arrivals()? {
        let (seq, arrived_ms) = step?;
        if !runs.last_mut().is_some_and(|run| run.take(seq, arrived_ms)) {
            runs.push(Run::starting(seq, arrived_ms));
        }
    }
    runs.sort_unstable_by_key(|run| Reverse((run.first_arrived_ms, run.first_seq)));
    Ok(ByArrival {
        log,
        waiting: runs,
        open: Vec::new(),
        heads: BinaryHeap::new(),
    })
}

/// The merge of the runs.
pub(crate) struct ByArrival<'a> {
    log: EventLog<'a>,
    /// Runs not begun yet; the last begins first.
    waiting: Vec<Run>,
    open: Vec<Open<'a>>,
    /// The next event of each open run, by (arrival, sequence number).
    heads: BinaryHeap<Reverse<(i64, u64, usize)>>,
}

impl Iterator for ByArrival<'_> {
    type Item = Result<Logged, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.begin_runs() {
            return Some(Err(error));
        }
        let Reverse((_, _, index)) = self.heads.pop()?;
        let event = self.open[index].ready.pop().map(|held| held.0);
        match self.advance(index) {
            Ok(()) => event.map(Ok),
            Err(error) => Some(Err(error)),
        }
    }
}

impl ByArrival<'_> {
    /// Opens every run that may hold the next event.
    fn begin_runs(&mut self) -> Result<(), ReadError> {
        while let Some(run) = self.waiting.last() {
            let next = self.heads.peek().map(|Reverse((at, seq, _))| (*at, *seq));
            if next.is_some_and(|next| next < (run.first_arrived_ms, run.first_seq)) {
                break;
            }
            let run = *run;
            self.waiting.pop();
            self.open.push(Open {
                events: Some(self.log.range(run.first_seq, run.last_seq)?),
                run,
                newest_ms: i64::MIN,
                ready: BinaryHeap::new(),
            });
            self.advance(self.open.len() - 1)?;
        }
        Ok(())
    }

    /// Finds the next event of an open run.
    fn advance(&mut self, index: usize) -> Result<(), ReadError> {
        if let Some((arrived_ms, seq)) = self.open[index].head()? {
            self.heads.push(Reverse((arrived_ms, seq, index)));
        }
        Ok(())
    }
}

/// A run that is being read.
struct Open<'a> {
    run: Run,
    /// `None` at the run's end.
    events: Option<Stream<'a>>,
    newest_ms: i64,
    /// Read, and not handed out: an earlier one may follow.
    ready: BinaryHeap<Held>,
}

impl Open<'_> {
    /// Arrival and number of the next event, which is then on top of `ready`.
    fn head(&mut self) -> Result<Option<(i64, u64)>, ReadError> {
        loop {
            let safe_ms = self.newest_ms.saturating_sub(self.run.disorder_ms);
            match (self.ready.peek(), &mut self.events) {
                (Some(Held(first)), None) => return Ok(Some((first.arrived_ms, first.seq))),
                (Some(Held(first)), _) if first.arrived_ms <= safe_ms => {
                    return Ok(Some((first.arrived_ms, first.seq)));
                }
                (None, None) => return Ok(None),
                (_, Some(events)) => match events.next().transpose()? {
                    Some(event) => {
                        self.newest_ms = self.newest_ms.max(event.arrived_ms);
                        self.ready.push(Held(event));
                    }
                    None => self.events = None,
                },
            }
        }
    }
}

/// Ordered so that the earliest is the greatest.
struct Held(Logged);

impl Held {
    fn place(&self) -> Reverse<(i64, u64)> {
        Reverse((self.0.arrived_ms, self.0.seq))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}
impl Eq for Held {}
impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Held {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.place().cmp(&other.place())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rocksdb::WriteBatch;

    use super::*;
    use crate::definition::Definitions;
    use crate::log::{Schemas, encode_entry};
    use crate::offline::place::Place;
    use crate::offline::table::{Table, TableKind};
    use crate::online::TableOptions;
    use crate::online::keys::Key;
    use crate::online::tables::Tables;
    use crate::value::Value;

    const DEFINITIONS: &str =
        "[[source]]\nname = \"s\"\ntime = \"at\"\nid = [\"at\"]\nfields = { at = \"time\" }\n";

    /// Runs as live traffic and imports make them: each rises, with a little disorder or without.
    fn arrivals() -> impl Strategy<Value = Vec<i64>> {
        let step = prop_oneof![8 => 0i64..100_000, 1 => -50_000i64..0];
        let run = (0i64..10_000_000, proptest::collection::vec(step, 1..40));
        proptest::collection::vec(run, 0..8).prop_map(|runs| {
            let walk = |(start, steps): (i64, Vec<i64>)| {
                steps.into_iter().scan(start, |at, step| {
                    *at += step;
                    Some(*at)
                })
            };
            runs.into_iter().flat_map(walk).collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn events_come_in_the_order_in_which_they_arrived(arrivals in arrivals()) {
            let folder = tempfile::tempdir().unwrap();
            let tables = Tables::open(folder.path(), TableOptions::default()).unwrap();
            let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
            let schemas = Schemas::load(&tables, &definitions).unwrap();
            let source: &Arc<_> = definitions.source("s").unwrap();
            let mut batch = WriteBatch::default();
            for (seq, arrived_ms) in (1..).zip(&arrivals) {
                let event = source.event(0, vec![Value::Int(0)], 0).unwrap();
                let mut entry = Vec::new();
                encode_entry(schemas.id_of(source).unwrap(), &event, *arrived_ms, &mut entry);
                tables.put(&mut batch, Key::Event(seq), &entry);
            }
            tables.write_lazily(batch).unwrap();
            let place = Place::folder(folder.path().join("offline")).unwrap();
            let sealed = Table::read_only(TableKind::Events, place).unwrap();
            let log = EventLog { tables: Some(&tables), schemas: &schemas, sealed: &sealed };
            let found = by_arrival(log).unwrap().map(|event| {
                let event = event.unwrap();
                (event.arrived_ms, event.seq)
            });
            let mut expected: Vec<_> = arrivals.iter().copied().zip(1..).collect();
            expected.sort_unstable();
            prop_assert_eq!(found.collect::<Vec<_>>(), expected);
        }
    }
}
