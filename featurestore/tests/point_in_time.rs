//! Rows joined from a stream of events: nothing before its time, and the same as online.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "reference/naive.rs"]
mod naive;

use std::collections::HashMap;

use featurestore::{
    Definitions, Event, FeatureRow, PointInTime, Service, Status, Value, ViewKey, ViewState,
};
use naive::Numbered;
use proptest::collection::vec;
use proptest::prelude::*;

const DEFINITIONS: &str = r#"
[[source]]
name = "arrivals"
time = "at"
id = ["number"]
fields = { number = "int", at = "time", carrier = "string", origin = "string?", delay = "float?", late = "bool" }

[[source]]
name = "weather"
time = "at"
id = ["origin", "at"]
fields = { origin = "string", at = "time", wind = "float?" }

[[view]]
name = "all_late"
source = "arrivals"
keys = []
windows = ["1h"]
where = { field = "late", equals = true }
features = [{ count = true }]

[[view]]
name = "pair"
source = "arrivals"
keys = ["carrier", "origin"]
windows = ["1h", "3h"]
features = [{ count = true }, { mean = "delay" }, { rate = "late" }, { last = "delay" }]

[[view]]
name = "wind"
source = "weather"
keys = ["origin"]
ttl = "2h"
features = [{ last = "wind" }, { age_of_last = true }]

[[service]]
name = "delay"
version = 1
request = { carrier = "string", origin = "string?", miles = "float?" }
features = [
  { request = "miles", clip = [0, 100] },
  { request = "carrier", dictionary = ["AA", "UA"] },
  { view = "all_late" },
  { view = "pair" },
  { view = "wind", features = ["last_wind"], default = -1.0, clip = [0, 40] },
  { view = "wind", features = ["age_of_last"] },
]
"#;

const MINUTE_MS: i64 = 60_000;

/// What happens, in units of minutes.
#[derive(Clone, Debug)]
enum Happening {
    Arrival {
        at: i64,
        carrier: u8,
        origin: u8,
        delay: i64,
    },
    Weather {
        at: i64,
        origin: u8,
        wind: i64,
    },
    Request {
        carrier: u8,
        origin: u8,
    },
}

fn word(words: &[&str], index: u8) -> Value {
    match words.get(usize::from(index)) {
        Some(word) => Value::String((*word).into()),
        None => Value::Null,
    }
}

fn carrier(index: u8) -> Value {
    word(&["AA", "UA", "??"], index)
}

/// Index 2 is null.
fn origin(index: u8) -> Value {
    word(&["JFK", "EWR"], index)
}

/// Negative is null.
fn number(number: i64) -> Value {
    if number < 0 {
        Value::Null
    } else {
        Value::Float(number as f64 / 4.0)
    }
}

/// Happenings with their arrival in minutes, in order of arrival.
fn story() -> impl Strategy<Value = Vec<(i64, Happening)>> {
    let at = -300i64..5;
    let happening = prop_oneof![
        3 => (at.clone(), 0u8..2, 0u8..3, -20i64..200).prop_map(|(at, carrier, origin, delay)| {
            Happening::Arrival { at, carrier, origin, delay }
        }),
        1 => (at, 0u8..2, -10i64..200).prop_map(|(at, origin, wind)| {
            Happening::Weather { at, origin, wind }
        }),
        2 => (0u8..3, 0u8..3).prop_map(|(carrier, origin)| Happening::Request { carrier, origin }),
    ];
    vec((0i64..600, happening), 0..80).prop_map(|mut story| {
        story.sort_by_key(|(arrived, _)| *arrived);
        story
    })
}

/// The event, dated relative to its arrival: up to five hours before, up to five minutes after.
fn event(definitions: &Definitions, arrived: i64, happening: &Happening) -> Option<Event> {
    let time = |at: &i64| Value::Int((arrived + at) * MINUTE_MS);
    let (source, values) = match happening {
        Happening::Arrival {
            at,
            carrier: c,
            origin: o,
            delay,
        } => {
            let late = Value::Bool(*delay > 60);
            (
                "arrivals",
                vec![
                    Value::Int(0),
                    time(at),
                    carrier(*c),
                    origin(*o),
                    number(*delay),
                    late,
                ],
            )
        }
        Happening::Weather {
            at,
            origin: o,
            wind,
        } => ("weather", vec![origin(*o), time(at), number(*wind)]),
        Happening::Request { .. } => return None,
    };
    let source = definitions.source(source).unwrap();
    Some(source.event(0, values, arrived * MINUTE_MS).unwrap())
}

fn request(carrier_index: u8, origin_index: u8) -> Vec<Value> {
    vec![
        carrier(carrier_index),
        origin(origin_index),
        Value::Float(1000.0),
    ]
}

/// Every requested row with its time.
fn rows(definitions: &Definitions, story: &[(i64, Happening)]) -> Vec<(i64, FeatureRow)> {
    let mut joined = PointInTime::new(definitions.service("delay").unwrap());
    let mut rows = Vec::new();
    for (seq, (arrived, happening)) in story.iter().enumerate() {
        match (event(definitions, *arrived, happening), happening) {
            (Some(event), _) => joined.push_event(&event, seq as u64, arrived * MINUTE_MS),
            (None, Happening::Request { carrier, origin }) => {
                rows.push((
                    *arrived,
                    joined.row(&request(*carrier, *origin), arrived * MINUTE_MS),
                ));
            }
            (None, _) => unreachable!("only a request is no event"),
        }
    }
    rows
}

/// Values of the view columns by name, from all events that had arrived, the slow way.
fn expected(
    service: &Service,
    arrived: &[Numbered],
    request: &[Value],
    at_ms: i64,
) -> HashMap<String, (f32, Status)> {
    let mut values = HashMap::new();
    for (view, key) in service.needed_views().iter().zip(service.keys(request)) {
        let own = |numbered: &&Numbered| key.is_some() && view.key_of(&numbered.0) == key;
        let own: Vec<_> = arrived.iter().filter(own).collect();
        for (feature, value) in view.features.iter().zip(naive::features(view, &own, at_ms)) {
            values.insert(format!("{}:{}", view.name, feature.name), value);
        }
    }
    values
}

proptest! {
    #[test]
    fn a_row_holds_what_had_arrived_and_nothing_else(story in story()) {
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let service = definitions.service("delay@1").unwrap();
        let mut rows = rows(&definitions, &story).into_iter();
        let mut arrived = Vec::new();
        for (seq, (minute, happening)) in story.iter().enumerate() {
            if let Some(event) = event(&definitions, *minute, happening) {
                arrived.push((event, seq as u64));
            }
            let Happening::Request { carrier, origin } = happening else { continue };
            let (_, row) = rows.next().unwrap();
            let request = request(*carrier, *origin);
            let expected = expected(service, &arrived, &request, minute * MINUTE_MS);
            prop_assert_eq!(row.as_of_seq, arrived.last().map_or(0, |(_, seq)| *seq));
            for (index, name) in service.feature_names().enumerate().skip(2) {
                let (value, status) = expected[name];
                let value = match (name, status) {
                    ("wind:last_wind", Status::Present) => value.clamp(0.0, 40.0),
                    ("wind:last_wind", _) => -1.0,
                    _ => value,
                };
                prop_assert_eq!(row.statuses[index], status, "{}", name);
                prop_assert_eq!(row.values[index].to_bits(), value.to_bits(), "{}", name);
            }
        }
    }

    #[test]
    fn a_feature_never_sees_the_future(story in story(), other in story(), cut in 0i64..600) {
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let before = |story: &[(i64, Happening)]| {
            story.iter().filter(|(arrived, _)| *arrived <= cut).cloned().collect::<Vec<_>>()
        };
        // The same past, another future.
        let mut changed = before(&story);
        changed.extend(other.into_iter().filter(|(arrived, _)| *arrived > cut));
        let until_cut = |story: &[(i64, Happening)]| {
            let mut rows = rows(&definitions, story);
            rows.retain(|(at, _)| *at <= cut);
            rows
        };
        prop_assert_eq!(until_cut(&story), until_cut(&changed));
    }

    #[test]
    fn what_is_released_changes_no_later_row(story in story()) {
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let mut joined = PointInTime::new(definitions.service("delay").unwrap());
        let mut released = Vec::new();
        for (seq, (minute, happening)) in story.iter().enumerate() {
            let at_ms = minute * MINUTE_MS;
            if let Some(event) = event(&definitions, *minute, happening) {
                joined.push_event(&event, seq as u64, at_ms);
            }
            joined.release(at_ms);
            if let Happening::Request { carrier, origin } = happening {
                released.push((*minute, joined.row(&request(*carrier, *origin), at_ms)));
            }
        }
        prop_assert_eq!(released, rows(&definitions, &story));
    }

    #[test]
    fn states_kept_as_bytes_give_the_same_row(story in story()) {
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let service = definitions.service("delay").unwrap();
        let mut table: HashMap<ViewKey, Vec<u8>> = HashMap::new();
        let mut last_seq = 0;
        let mut served = Vec::new();
        for (seq, (minute, happening)) in story.iter().enumerate() {
            if let Some(event) = event(&definitions, *minute, happening) {
                last_seq = seq as u64;
                for view in definitions.views_of(&event.source) {
                    let Some(key) = view.key_of(&event) else { continue };
                    let bytes = table.entry(key).or_default();
                    let mut state = match bytes.as_slice() {
                        [] => ViewState::default(),
                        bytes => ViewState::decode(view, bytes).unwrap(),
                    };
                    state.fold(view, &event, last_seq);
                    bytes.clear();
                    state.encode(view, bytes);
                }
            }
            let Happening::Request { carrier, origin } = happening else { continue };
            let request = request(*carrier, *origin);
            let states: Vec<_> = service
                .needed_views()
                .iter()
                .zip(service.keys(&request))
                .map(|(view, key)| {
                    let bytes = table.get(&key?)?;
                    Some(ViewState::decode(view, bytes).unwrap())
                })
                .collect();
            let row = service.assemble(&request, &states, minute * MINUTE_MS, last_seq);
            served.push((*minute, row));
        }
        prop_assert_eq!(served, rows(&definitions, &story));
    }
}

#[test]
fn a_row_tells_how_well_each_value_is_known() {
    let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
    let service = definitions.service("delay").unwrap();
    let mut joined = PointInTime::new(service);
    let weather = Happening::Weather {
        at: 0,
        origin: 0,
        wind: 200,
    };
    let weather = event(&definitions, 0, &weather).unwrap();
    joined.push_event(&weather, 7, 0);

    let row = joined.row(&request(1, 0), MINUTE_MS);
    assert_eq!(row.as_of_seq, 7);
    assert_eq!((row.values[0], row.values[1]), (100.0, 1.0));
    assert_eq!(
        (row.statuses[0], row.event_times_ms[0]),
        (Status::Present, MINUTE_MS)
    );
    let wind = row.values.len() - 2;
    assert_eq!(
        (row.values[wind], row.statuses[wind]),
        (40.0, Status::Present)
    );
    assert_eq!(row.event_times_ms[wind], 0);
    assert!(
        row.statuses[2..wind]
            .iter()
            .all(|status| *status == Status::NotFound)
    );

    let expired = joined.row(&request(2, 0), 121 * MINUTE_MS);
    assert_eq!(expired.statuses[1], Status::UnknownCategory);
    assert!(expired.values[1].is_nan());
    assert_eq!(
        (expired.values[wind], expired.statuses[wind]),
        (-1.0, Status::OutsideMaxAge)
    );

    let nobody = joined.row(&[Value::Null, Value::Null, Value::Null], MINUTE_MS);
    assert_eq!(nobody.statuses[..2], [Status::NullValue; 2]);
    assert_eq!(
        (nobody.values[wind], nobody.statuses[wind]),
        (-1.0, Status::NotFound)
    );
    let without = joined.row(&[], MINUTE_MS);
    assert!(nobody.same_features(&without));
}
