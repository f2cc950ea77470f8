//! Served rows that differ from their recomputation, as a fault of the data.

use std::collections::BTreeMap;

use super::Fault;

/// Served rows that differ from what the event log gives for them. However few, they are a fault: the
/// same computation over the same events has one answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Skew {
    /// Rows verified.
    pub rows: u64,
    /// Rows that differ, by feature.
    pub features: BTreeMap<String, u64>,
}

/// The kind of such a fault.
const KIND: &str = "skew";

impl Skew {
    /// A fault for each feature that differs, the one with most rows first.
    pub(super) fn faults(&self) -> Vec<Fault> {
        let fault = |(feature, rows): (&String, &u64)| Fault {
            feature: feature.clone(),
            kind: KIND.into(),
            reference: 0.0,
            current: *rows as f64 / self.rows.max(1) as f64,
            p_value: 0.0,
        };
        let mut faults: Vec<Fault> = self.features.iter().map(fault).collect();
        faults.sort_by(|a, b| b.current.total_cmp(&a.current));
        faults
    }
}

/// What such a fault says; `None` for another.
pub(super) fn reason(fault: &Fault) -> Option<String> {
    (fault.kind == KIND).then(|| {
        format!(
            "`{}` was served otherwise than the event log gives it in {:.2} % of the rows verified",
            fault.feature,
            100.0 * fault.current,
        )
    })
}
