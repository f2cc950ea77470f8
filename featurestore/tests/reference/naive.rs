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
    // The weights of the events that a decay covers.
    let faded = |decay: usize| -> Vec<(f64, &Event)> {
        let half_life_ms = view.decays[decay].half_life_ms;
        let tile = |ms: i64| ms.div_euclid(2 * half_life_ms);
        let current = tile(at_ms);
        let first = (current - 11).max(tile(newest.0.event_ms) - 11);
        let own = events
            .iter()
            .filter(|(event, _)| (first..=current).contains(&tile(event.event_ms)));
        own.map(|(event, _)| {
            let half_lives = (at_ms - event.event_ms) as f64 / half_life_ms as f64;
            ((-half_lives).exp2(), event)
        })
        .collect()
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
    let present = |window: usize, summary: usize| -> Vec<&Value> {
        let field = view.summaries[summary].field;
        let values = covered(window).map(|(event, _)| &event.values[field]);
        values.filter(|value| !value.is_null()).collect()
    };
    let sorted = |window: usize, summary: usize| {
        let mut numbers: Vec<f64> = present(window, summary)
            .into_iter()
            .filter_map(number)
            .collect();
        numbers.sort_by(f64::total_cmp);
        numbers
    };
    let value = |aggregate: &Aggregate| match *aggregate {
        Aggregate::Min { window, summary } => sorted(window, summary).first().copied(),
        Aggregate::Max { window, summary } => sorted(window, summary).last().copied(),
        Aggregate::Std {
            window, measure, ..
        } => std(&numbers(window, measure)),
        Aggregate::First { window, summary } => {
            let first = covered(window).min_by_key(|(event, seq)| (event.event_ms, *seq));
            first.and_then(|(event, _)| number(&event.values[view.summaries[summary].field]))
        }
        Aggregate::Distinct { window, summary } => {
            let values = present(window, summary);
            let first = |(index, value): &(usize, &&Value)| !values[..*index].contains(*value);
            Some(values.iter().enumerate().filter(first).count() as f64)
        }
        Aggregate::Quantile {
            window,
            summary,
            millionths,
        } => {
            let numbers = sorted(window, summary);
            let last = numbers.len().checked_sub(1);
            last.map(|last| numbers[last * millionths as usize / 1_000_000])
        }
        Aggregate::DecayedCount { decay } => {
            Some(faded(decay).iter().map(|(weight, _)| weight).sum())
        }
        Aggregate::DecayedMean { decay } => {
            let known: Vec<_> = faded(decay)
                .into_iter()
                .filter_map(|(weight, event)| {
                    let field = view.decays[decay].field?;
                    Some((weight, number(&event.values[field])?))
                })
                .collect();
            let weight: f64 = known.iter().map(|(weight, _)| weight).sum();
            let sum: f64 = known.iter().map(|(weight, value)| weight * value).sum();
            (!known.is_empty()).then(|| sum / weight)
        }
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

/// Of a sample. With values that are exact in 1,024ths so is all but the division and the root.
fn std(numbers: &[f64]) -> Option<f64> {
    let count = numbers.len() as f64;
    let squares: f64 = numbers.iter().map(|number| number * number).sum();
    let sum: f64 = numbers.iter().sum();
    (numbers.len() > 1).then(|| ((count * squares - sum * sum) / (count * (count - 1.0))).sqrt())
}

fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Int(number) => Some(*number as f64),
        Value::Float(number) => Some(*number),
        Value::Null | Value::String(_) => None,
    }
}
