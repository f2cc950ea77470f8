//! What windows must give, computed the slow way: over the whole list of events, each time.

use featurestore::{Aggregate, Event, Status, Value, View, WindowKind};

/// An event with its sequence number.
pub(crate) type Numbered = (Event, u64);

/// Value and status of every feature of `view`, from the events of one key.
pub(crate) fn features(view: &View, events: &[&Numbered], at_ms: i64) -> Vec<(f32, Status)> {
    let Some(newest) = events
        .iter()
        .max_by_key(|(event, seq)| (event.event_ms, *seq))
    else {
        return vec![(f32::NAN, Status::NotFound); view.features.len()];
    };
    let age_ms = at_ms - newest.0.event_ms;
    if view.ttl_ms.is_some_and(|ttl_ms| age_ms > ttl_ms) {
        return vec![(f32::NAN, Status::OutsideMaxAge); view.features.len()];
    }
    let covered = |window: usize| {
        let window = &view.windows[window];
        let tile = |ms: i64| ms.div_euclid(window.tile_ms);
        // Tiles read, and tiles held while a newer event is there.
        let (read, held) = match window.kind {
            WindowKind::Sliding => (12, 12),
            WindowKind::Tumbling => (1, 2),
        };
        let current = tile(at_ms);
        let first = (current - read + 1).max(tile(newest.0.event_ms) - held + 1);
        events
            .iter()
            .filter(move |(event, _)| (first..=current).contains(&tile(event.event_ms)))
    };
    let numbers = |window: usize, measure: usize| -> Vec<f64> {
        let field = view.measures[measure].field;
        covered(window)
            .filter_map(|(event, _)| number(&event.values[field]))
            .collect()
    };
    let mean = |numbers: Vec<f64>| {
        (!numbers.is_empty()).then(|| numbers.iter().sum::<f64>() / numbers.len() as f64)
    };
    let value = |aggregate: &Aggregate| match *aggregate {
        Aggregate::Count { window } => Some(covered(window).count() as f64),
        Aggregate::Sum { window, measure } => Some(numbers(window, measure).iter().sum()),
        Aggregate::Mean { window, measure } | Aggregate::Rate { window, measure } => {
            mean(numbers(window, measure))
        }
        Aggregate::Last { slot } => number(&newest.0.values[view.last_fields[slot]]),
        Aggregate::AgeOfLast => Some(age_ms.max(0) as f64 / 3_600_000.0),
    };
    view.features
        .iter()
        .map(|feature| match value(&feature.aggregate) {
            // `+ 0.0`: an empty float sum is -0.0.
            Some(value) => ((value + 0.0) as f32, Status::Present),
            None => (f32::NAN, Status::NullValue),
        })
        .collect()
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Null | Value::String(_) => None,
    }
}
