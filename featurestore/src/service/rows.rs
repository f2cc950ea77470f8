//! Rows of one request, one after another: what a row shares with the one before it is read once.
//!
//! The user of five hundred items has one state in all of their rows: its windows are found once, and
//! its features are copied from row to row.

use super::{FeatureOrigin, FeatureRow, Row, Service};
use crate::value::Value;
use crate::window::{Reading, ViewState};

/// The rows so far, and what the last one was read from.
pub(crate) struct Rows<'a> {
    service: &'a Service,
    at_ms: i64,
    as_of_seq: u64,
    /// Of each needed view.
    states: Vec<Option<&'a ViewState>>,
    readings: Vec<Option<Reading<'a>>>,
    /// Whether the row before had the same state of it.
    shared: Vec<bool>,
    rows: Vec<FeatureRow>,
}

impl<'a> Rows<'a> {
    /// About so many at a time; every state is as of `as_of_seq`.
    pub(crate) fn new(service: &'a Service, count: usize, at_ms: i64, as_of_seq: u64) -> Self {
        let views = service.views.len();
        Self {
            service,
            at_ms,
            as_of_seq,
            states: vec![None; views],
            readings: (0..views).map(|_| None).collect(),
            shared: vec![true; views],
            rows: Vec::with_capacity(count),
        }
    }

    /// Adds the row of a request; `state` gives that of a needed view by its index.
    pub(crate) fn push(
        &mut self,
        request: &[Value],
        state: impl Fn(usize) -> Option<&'a ViewState>,
    ) {
        for (index, view) in self.service.views.iter().enumerate() {
            let (state, before) = (state(index), self.states[index]);
            self.shared[index] = match (state, before) {
                (Some(state), Some(before)) => std::ptr::eq(state, before),
                (None, None) => true,
                _ => false,
            };
            if !self.shared[index] {
                self.states[index] = state;
                self.readings[index] = state.map(|state| state.reading(view, self.at_ms));
            }
        }
        let row = Row {
            request,
            readings: &self.readings,
            at_ms: self.at_ms,
        };
        let before = self.rows.last();
        let row = self.service.row(&row, self.as_of_seq, |column| {
            let before = before?;
            let of_view = match &self.service.features[column].origin {
                FeatureOrigin::View(at) | FeatureOrigin::KeptCategory { at, .. } => at.view,
                _ => return None,
            };
            self.shared[of_view].then(|| {
                let (value, status) = (before.values[column], before.statuses[column]);
                (value, status, before.event_times_ms[column])
            })
        });
        self.rows.push(row);
    }

    /// All of them.
    pub(crate) fn finish(self) -> Vec<FeatureRow> {
        self.rows
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::definition::Definitions;

    const DEFINITIONS: &str = r#"
[[source]]
name = "clicks"
time = "at"
id = ["id"]
fields = { id = "int", key = "int", at = "time", price = "float", shop = "string" }

[[view]]
name = "user"
source = "clicks"
keys = ["key"]
windows = ["1h"]
features = [{ count = true }, { mean = "price" }, { last = "shop" }]

[[view]]
name = "item"
source = "clicks"
keys = ["key"]
windows = ["1h"]
features = [{ sum = "price" }, { last = "price" }]

[[service]]
name = "ranking"
version = 1
request = { key = "int", price = "float" }
features = [
  { request = "price" },
  { view = "user", features = ["count_1h"], default = 0 },
  { view = "user", features = ["mean_price_1h"] },
  { view = "user", features = ["last_shop"], dictionary = ["a", "b"] },
  { view = "item" },
  { name = "dearer", expression = "price - user:mean_price_1h" },
]
"#;

    fn bits(row: &FeatureRow) -> (Vec<u32>, Vec<crate::window::Status>, Vec<i64>) {
        let values = row.values.iter().map(|value| value.to_bits()).collect();
        (values, row.statuses.clone(), row.event_times_ms.clone())
    }

    proptest! {
        #[test]
        fn rows_one_after_another_are_those_that_are_read_alone(
            picks in prop::collection::vec((0..4usize, 0..4usize, 0..3i32), 0..12),
        ) {
            let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
            let service = definitions.service("ranking@1").unwrap();
            let state = |view: usize, pick: usize| {
                let view = &service.views[view];
                let mut state = ViewState::default();
                for seq in 1..=pick as u64 {
                    let at_ms = 1000 * seq as i64;
                    let shop = ["a", "c"][seq as usize % 2];
                    let values = vec![Value::Int(1), Value::Int(1), Value::Int(at_ms),
                        Value::Float(seq as f64 / 3.0), Value::String(shop.into())];
                    let event = view.source.event(0, values, at_ms).unwrap();
                    state.fold(view, &event, seq);
                }
                (pick > 0).then_some(state)
            };
            let states: Vec<Vec<_>> = (0..2).map(|view| (0..4).map(|pick| state(view, pick)).collect()).collect();
            let mut rows = Rows::new(service, picks.len(), 5000, 9);
            let mut alone = Vec::new();
            for (user, item, price) in picks {
                let request = [Value::Int(1), Value::Float(price.into())];
                let state = |view: usize| states[view][[user, item][view]].as_ref();
                rows.push(&request, state);
                alone.push(service.assemble_from(&request, state, 5000, 9));
            }
            let rows = rows.finish();
            prop_assert_eq!(rows.iter().map(bits).collect::<Vec<_>>(), alone.iter().map(bits).collect::<Vec<_>>());
        }
    }
}
