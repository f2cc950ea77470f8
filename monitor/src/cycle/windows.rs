//! What was served, window by window: the counters since the last evaluation and
//! the closed ones before it, as long as the policy's window reaches back.

use std::collections::VecDeque;

use registry::Version;

use crate::counters::Counters;
use crate::policy::{LabelPolicy, Span};

/// Closed windows kept at most: a window of statistics and a decay window that
/// reach further back than this many evaluations are shortened to it.
const CLOSED_MAX: usize = 4096;

/// Counters of the current champion.
#[derive(Debug, Default)]
pub(super) struct Windows {
    open: Option<Counters>,
    closed: VecDeque<Closed>,
    /// Rows of each period, whichever champion answered.
    periods: VecDeque<Period>,
    open_rows: u64,
}

#[derive(Debug)]
struct Closed {
    end_ms: i64,
    counters: Counters,
}

#[derive(Debug)]
struct Period {
    from_ms: i64,
    to_ms: i64,
    rows: u64,
}

impl Windows {
    /// Takes in what was served since the last tick. Returns the rows that
    /// cannot be compared: counted in another champion's bins, as happens for a
    /// moment around a swap.
    pub(super) fn absorb(&mut self, window: Counters, champion: Option<Version>) -> u64 {
        let (rows, refused) = (window.rows(), window.refused());
        self.open_rows += rows;
        if champion != Some(window.version()) {
            return rows + refused;
        }
        match &mut self.open {
            None => self.open = Some(window),
            Some(open) => {
                if open.merge(&window).is_err() {
                    return rows + refused;
                }
            }
        }
        refused
    }

    /// Another champion answers: its bins are others.
    pub(super) fn champion_changed(&mut self) {
        self.open = None;
        self.closed.clear();
    }

    /// Closes the open window at `end_ms`; what it held began at `from_ms`.
    pub(super) fn close(&mut self, from_ms: Option<i64>, end_ms: i64) {
        // Closing again after a failed step adds nothing.
        let known = self
            .periods
            .back()
            .is_some_and(|period| period.to_ms >= end_ms);
        if let Some(from_ms) = from_ms.filter(|_| !known) {
            self.periods.push_back(Period {
                from_ms,
                to_ms: end_ms,
                rows: self.open_rows,
            });
        }
        self.open_rows = 0;
        if let Some(counters) = self.open.take() {
            self.closed.push_back(Closed { end_ms, counters });
        }
        while self.closed.len() > CLOSED_MAX {
            self.closed.pop_front();
        }
        while self.periods.len() > CLOSED_MAX {
            self.periods.pop_front();
        }
    }

    /// All that ended within `length` before `end_ms`; older windows go.
    pub(super) fn merged(&mut self, end_ms: i64, length: Span) -> Option<Counters> {
        let from_ms = end_ms.saturating_sub(length.ms());
        self.closed.retain(|closed| closed.end_ms > from_ms);
        let mut windows = self.closed.iter();
        let mut merged = windows.next()?.counters.clone();
        for closed in windows {
            // Cleared at each change of champion, so they share their bins; a
            // window that does not is better left out than the rest lost.
            if merged.merge(&closed.counters).is_err() {
                tracing::warn!("a window of another baseline was left out");
            }
        }
        Some(merged)
    }

    /// The whole periods whose predictions should have labels by `now_ms`:
    /// their time range and rows.
    pub(super) fn matured(
        &self,
        now_ms: i64,
        label: &LabelPolicy,
        window: Span,
    ) -> Option<(i64, i64, u64)> {
        let to_ms = now_ms.saturating_sub(label.delay.ms());
        let from_ms = to_ms.saturating_sub(window.ms());
        let inside = |period: &&Period| period.from_ms >= from_ms && period.to_ms <= to_ms;
        let first = self.periods.iter().find(inside)?;
        let last = self.periods.iter().rfind(inside)?;
        let rows = self
            .periods
            .iter()
            .filter(inside)
            .map(|period| period.rows)
            .sum();
        Some((first.from_ms, last.to_ms, rows))
    }
}
