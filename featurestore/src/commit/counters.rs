//! What the store has counted, as the last group on disk left it.

use crate::varint;

/// Counters that are stored with every group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) events: u64,
    pub(crate) duplicate_events: u64,
    pub(crate) late_events: u64,
    pub(crate) labels: u64,
    pub(crate) duplicate_labels: u64,
    pub(crate) replaced_labels: u64,
    pub(crate) expired_labels: u64,
    /// Last number of the label log.
    pub(crate) label_seq: u64,
}

const COUNTERS_VERSION: u8 = 1;

impl Counters {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![COUNTERS_VERSION];
        for number in self.numbers() {
            varint::put(number, &mut out);
        }
        out
    }

    pub(crate) fn decode(input: &[u8]) -> Option<Self> {
        let (&version, mut input) = input.split_first()?;
        if version != COUNTERS_VERSION {
            return None;
        }
        let mut next = || varint::take(&mut input);
        Some(Self {
            events: next()?,
            duplicate_events: next()?,
            late_events: next()?,
            labels: next()?,
            duplicate_labels: next()?,
            replaced_labels: next()?,
            expired_labels: next()?,
            label_seq: next()?,
        })
    }

    fn numbers(&self) -> [u64; 8] {
        [
            self.events,
            self.duplicate_events,
            self.late_events,
            self.labels,
            self.duplicate_labels,
            self.replaced_labels,
            self.expired_labels,
            self.label_seq,
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_come_back() {
        let counters = Counters {
            events: 1,
            duplicate_events: 2,
            late_events: 3,
            labels: 4,
            duplicate_labels: 5,
            replaced_labels: 6,
            expired_labels: 7,
            label_seq: u64::MAX,
        };
        assert_eq!(Counters::decode(&counters.encode()), Some(counters));
        assert_eq!(Counters::decode(&[1, 2]), None);
    }
}
