//! Streamed windows against a naive recomputation, in any order of arrival, through the codec.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "reference/naive.rs"]
mod naive;

use std::sync::Arc;

use featurestore::{
    Aggregate, Definitions, Event, Feature, FieldType, Folded, StateError, Status, Value, View,
    ViewState,
};
use naive::Numbered;
use proptest::collection::vec;
use proptest::prelude::*;

const DEFINITIONS: &str = r#"
[[source]]
name = "arrivals"
time = "at"
id = ["number"]
fields = { number = "int", at = "time", delay = "float?", seats = "int", late = "bool?" }

[[source]]
name = "registrations"
time = "at"
id = ["number"]
fields = { number = "int", at = "time", owner = "string?", weight = "float", built = "time?", leased = "bool" }

[[view]]
name = "register"
source = "registrations"
keys = []
ttl = "3d"
features = [{ last = "number" }, { last = "owner" }, { last = "weight", name = "tons" }, { last = "built" }, { last = "leased" }, { age_of_last = true }]

[[view]]
name = "all"
source = "arrivals"
keys = []
windows = ["1h", "24h", "7d", "2h tumbling"]
ttl = "3d"
features = [{ count = true }, { sum = "seats" }, { mean = "delay" }, { rate = "late" }, { last = "delay" }, { last = "late" }, { age_of_last = true }]

[[view]]
name = "spread"
source = "arrivals"
keys = []
windows = ["1h", "24h", "2h tumbling"]
features = [
  { min = "delay" }, { max = "delay" }, { min = "seats" }, { max = "seats", name = "largest" },
  { std = "delay" }, { std = "seats" }, { first = "delay" }, { first = "late" },
  { distinct = "seats" }, { distinct = "late" }, { quantile = { field = "delay", q = [0.01, 0.5, 0.999] } },
  { quantile = { field = "seats", q = [0.5] }, name = "seating" },
  { decayed_count = { half_life = "1h" } }, { decayed_mean = { field = "delay", half_life = "1h" } },
  { decayed_mean = { field = "seats", half_life = "1d" } },
]

[[view]]
name = "newest"
source = "arrivals"
keys = []
features = [{ last = "seats" }]
"#;

const HOUR_MS: i64 = 3_600_000;

fn view(name: &str) -> Arc<View> {
    let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
    Arc::clone(definitions.view(name).unwrap())
}

fn event(view: &View, at_ms: i64, rest: [Value; 3]) -> Event {
    let [delay, seats, late] = rest;
    let values = vec![Value::Int(0), Value::Int(at_ms), delay, seats, late];
    view.source.event(0, values, at_ms).unwrap()
}

fn plain(view: &View, at_ms: i64) -> Event {
    event(
        view,
        at_ms,
        [Value::Float(1.0), Value::Int(1), Value::Bool(true)],
    )
}

/// Thousand-and-twenty-fourths, so that the naive sum of floats is exact.
fn exact() -> impl Strategy<Value = f64> {
    (-1_000_000i32..1_000_000).prop_map(|number| f64::from(number) / 1024.0)
}

fn rest(float: impl Strategy<Value = f64>) -> impl Strategy<Value = [Value; 3]> {
    let late = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::Bool)];
    let delay = prop_oneof![1 => Just(Value::Null), 4 => float.prop_map(Value::Float)];
    (delay, -500i64..500, late).prop_map(|(delay, seats, late)| [delay, Value::Int(seats), late])
}

/// Times within a few windows, before 1970 too, often shared and often on the edge of a tile.
fn time() -> impl Strategy<Value = i64> {
    prop_oneof![
        -8 * HOUR_MS..8 * HOUR_MS,
        -300 * HOUR_MS..300 * HOUR_MS,
        (-60i64..60).prop_map(|tile| tile * HOUR_MS / 12),
    ]
}

fn events(
    float: impl Strategy<Value = f64>,
    counts: std::ops::Range<usize>,
) -> impl Strategy<Value = Vec<(i64, [Value; 3])>> {
    vec((time(), rest(float)), counts)
}

fn read(state: &ViewState, view: &View, at_ms: i64) -> Vec<Feature> {
    let blank = Feature {
        value: f32::NAN,
        status: Status::NotFound,
        event_ms: 0,
    };
    let mut features = vec![blank; view.features.len()];
    state.read(view, at_ms, &mut features);
    features
}

/// How far a feature may be off, as a share of its value; where that is 0, not by a bit.
fn error(aggregate: Aggregate) -> f32 {
    match aggregate {
        Aggregate::Quantile { .. } => 1.0 / 128.0,
        // The reference adds floats.
        Aggregate::DecayedCount { .. } | Aggregate::DecayedMean { .. } => 1e-6,
        _ => 0.0,
    }
}

fn encoded(state: &ViewState, view: &View) -> Vec<u8> {
    let mut bytes = Vec::new();
    state.encode(view, &mut bytes);
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn streamed_windows_equal_a_naive_recomputation(
        rows in events(exact(), 0..60),
        reads in vec(time(), 4),
    ) {
      for view in [view("all"), view("spread")] {
        let mut state = ViewState::default();
        let mut seen: Vec<Numbered> = Vec::new();
        for (seq, (at_ms, rest)) in rows.iter().cloned().enumerate() {
            let event = event(&view, at_ms, rest);
            state.fold(&view, &event, seq as u64);
            seen.push((event, seq as u64));
        }
        let seen: Vec<_> = seen.iter().collect();
        for &at_ms in &reads {
            let expected = naive::features(&view, &seen, at_ms);
            let found = read(&state, &view, at_ms);
            for ((feature, found), (value, status)) in view.features.iter().zip(found).zip(expected) {
                prop_assert_eq!(found.status, status, "{}", feature.name);
                let error = error(feature.aggregate);
                if error == 0.0 || value.is_nan() {
                    prop_assert_eq!(found.value.to_bits(), value.to_bits(), "{}", feature.name);
                } else {
                    let off = (found.value - value).abs();
                    prop_assert!(off <= value.abs() * error + 1e-6, "{}: {} for {}", feature.name, found.value, value);
                }
            }
        }
      }
    }

    #[test]
    fn any_order_of_arrival_gives_the_same_state_to_the_bit(
        (rows, shuffled) in events(-1e300..1e300f64, 0..40).prop_flat_map(|mut rows| {
            for (_, [delay, ..]) in &mut rows {
                if let Value::Float(number) = delay {
                    *number = number.signum() * number.abs().powf(0.04);
                }
            }
            let numbered: Vec<_> = rows.into_iter().zip(0u64..).collect();
            (Just(numbered.clone()), Just(numbered).prop_shuffle())
        })
    ) {
        for view in [view("all"), view("spread")] {
            let fold = |rows: &[((i64, [Value; 3]), u64)]| {
                let mut state = ViewState::default();
                for ((at_ms, rest), seq) in rows {
                    state.fold(&view, &event(&view, *at_ms, rest.clone()), *seq);
                }
                encoded(&state, &view)
            };
            prop_assert_eq!(fold(&rows), fold(&shuffled));
        }
    }

    #[test]
    fn a_state_comes_back_from_its_bytes(rows in events(-1e18..1e18f64, 0..40), spread: bool) {
        let view = view(if spread { "spread" } else { "all" });
        let mut state = ViewState::default();
        for (seq, (at_ms, rest)) in rows.into_iter().enumerate() {
            let event = event(&view, at_ms, rest);
            state.fold(&view, &event, seq as u64);
            let bytes = encoded(&state, &view);
            let back = ViewState::decode(&view, &bytes).unwrap();
            prop_assert_eq!(encoded(&back, &view), bytes);
            state = back;
        }
        let bytes = encoded(&state, &view);
        for end in 0..bytes.len() {
            prop_assert!(ViewState::decode(&view, &bytes[..end]).is_err());
        }
    }

    #[test]
    fn garbage_is_refused_or_harmless(
        rows in events(exact(), 1..20),
        noise in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        tail: Vec<u8>,
        at_ms: i64,
        spread: bool,
    ) {
        let view = view(if spread { "spread" } else { "all" });
        let mut state = ViewState::default();
        for (at_ms, rest) in rows {
            state.fold(&view, &event(&view, at_ms, rest), 0);
        }
        let mut bytes = encoded(&state, &view);
        for (place, byte) in noise {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        bytes.extend(tail);
        if let Ok(mut state) = ViewState::decode(&view, &bytes) {
            read(&state, &view, at_ms);
            state.fold(&view, &plain(&view, 0), u64::MAX);
            read(&state, &view, at_ms);
            encoded(&state, &view);
        }
    }
}

#[test]
fn a_window_forgets_by_whole_tiles() {
    let view = view("all");
    let count = view.feature("count_1h").unwrap();
    let mut state = ViewState::default();
    // 12:04 lies in the tile from 12:00 to 12:05.
    let at_ms = 12 * HOUR_MS + 4 * 60_000;
    assert_eq!(state.fold(&view, &plain(&view, at_ms), 1), Folded::Applied);
    let read = |state: &ViewState, minute: i64| {
        state
            .feature(&view, count, 12 * HOUR_MS + minute * 60_000)
            .value
    };
    assert_eq!(read(&state, 4), 1.0);
    assert_eq!(read(&state, 59), 1.0);
    assert_eq!(read(&state, 60), 0.0);
}

#[test]
fn a_tumbling_window_starts_with_its_period() {
    let view = view("all");
    let tumbling = &view.windows[3];
    assert_eq!(
        (tumbling.length_ms(), tumbling.error_ms()),
        (2 * HOUR_MS, 0)
    );
    assert_eq!(view.windows[0].error_ms(), HOUR_MS / 12);
    let count = view.feature("count_2h_tumbling").unwrap();
    let mut state = ViewState::default();
    for (seq, minute) in [0, 59, 119, 120].into_iter().enumerate() {
        state.fold(
            &view,
            &plain(&view, 10 * HOUR_MS + minute * 60_000),
            seq as u64,
        );
    }
    let read = |state: &ViewState, minute: i64| {
        let at_ms = 10 * HOUR_MS + minute * 60_000;
        state.feature(&view, count, at_ms).value
    };
    assert_eq!(
        [119, 120, 239, 240].map(|minute| read(&state, minute)),
        [3.0, 1.0, 1.0, 0.0]
    );
    // One event of the period before still counts there, for whoever reads it.
    state.fold(&view, &plain(&view, 11 * HOUR_MS), 9);
    assert_eq!([119, 120].map(|minute| read(&state, minute)), [4.0, 1.0]);
}

#[test]
fn a_known_key_without_events_in_the_window_counts_zero_and_has_no_mean() {
    let view = view("all");
    let mut state = ViewState::default();
    state.fold(&view, &plain(&view, 0), 1);
    let read =
        |name: &str, hours: i64| state.feature(&view, view.feature(name).unwrap(), hours * HOUR_MS);
    assert_eq!(
        (read("count_1h", 2).value, read("count_1h", 2).status),
        (0.0, Status::Present)
    );
    assert_eq!(
        (
            read("sum_seats_1h", 2).value,
            read("sum_seats_1h", 2).status
        ),
        (0.0, Status::Present)
    );
    assert!(read("mean_delay_1h", 2).value.is_nan());
    assert_eq!(read("mean_delay_1h", 2).status, Status::NullValue);
    assert_eq!(read("rate_late_1h", 2).status, Status::NullValue);
    assert_eq!(read("age_of_last", 2).value, 2.0);
    assert_eq!(read("count_7d", 72).status, Status::Present);
    assert_eq!(read("count_7d", 73).status, Status::OutsideMaxAge);
    assert_eq!(read("count_7d", 73).event_ms, 0);
    let unknown = ViewState::default().feature(&view, 0, 0);
    assert_eq!(unknown.status, Status::NotFound);
    assert!(unknown.value.is_nan());
}

#[test]
fn a_late_event_folds_into_its_own_tile_while_one_is_held() {
    let view = view("all");
    let mut state = ViewState::default();
    state.fold(&view, &plain(&view, 200 * HOUR_MS), 1);
    assert_eq!(
        state.fold(&view, &plain(&view, 190 * HOUR_MS), 2),
        Folded::Applied
    );
    let before = encoded(&state, &view);
    assert_eq!(state.fold(&view, &plain(&view, 0), 3), Folded::TooLate);
    assert_eq!(encoded(&state, &view), before);
    let read = |name: &str| {
        state
            .feature(&view, view.feature(name).unwrap(), 200 * HOUR_MS)
            .value
    };
    assert_eq!(
        (read("count_1h"), read("count_24h"), read("count_7d")),
        (1.0, 2.0, 2.0)
    );
}

#[test]
fn the_last_value_is_that_of_the_newest_event_and_then_of_the_highest_sequence() {
    let view = view("newest");
    let mut state = ViewState::default();
    let mut fold = |at_ms, seats, seq| {
        let event = event(&view, at_ms, [Value::Null, Value::Int(seats), Value::Null]);
        let folded = state.fold(&view, &event, seq);
        (folded, state.feature(&view, 0, at_ms).value)
    };
    assert_eq!(fold(10, 1, 5), (Folded::Applied, 1.0));
    assert_eq!(fold(10, 2, 4), (Folded::TooLate, 1.0));
    assert_eq!(fold(10, 3, 6), (Folded::Applied, 3.0));
    assert_eq!(fold(9, 4, 7), (Folded::TooLate, 3.0));
}

#[test]
fn values_are_read_in_their_own_types() {
    let all = view("all");
    let mut state = ViewState::default();
    state.fold(&all, &plain(&all, 0), 1);
    let value = |name: &str| state.value(&all, all.feature(name).unwrap(), HOUR_MS / 2).0;
    assert_eq!(value("count_1h"), Value::Int(1));
    assert_eq!(value("sum_seats_24h"), Value::Float(1.0));
    assert_eq!(value("rate_late_1h"), Value::Float(1.0));
    assert_eq!(value("last_late"), Value::Bool(true));
    assert_eq!(value("age_of_last"), Value::Float(0.5));

    let register = view("register");
    // Neither survives in 32 bits.
    let (number, weight) = (9_007_199_254_740_993, 70.1);
    let values = vec![
        Value::Int(number),
        Value::Int(HOUR_MS),
        Value::String("Ōtsuka & Söhne".into()),
        Value::Float(weight),
        Value::Null,
        Value::Bool(false),
    ];
    let event = register.source.event(0, values, HOUR_MS).unwrap();
    let mut state = ViewState::default();
    state.fold(&register, &event, 1);
    let state = ViewState::decode(&register, &encoded(&state, &register)).unwrap();
    let read = |index: usize, hours: i64| state.value(&register, index, hours * HOUR_MS);
    let present = |value| (value, Status::Present, HOUR_MS);
    assert_eq!(read(0, 2), present(Value::Int(number)));
    assert_eq!(read(1, 2), present(Value::String("Ōtsuka & Söhne".into())));
    assert_eq!(&*register.features[2].name, "tons");
    assert_eq!(read(2, 2), present(Value::Float(weight)));
    assert_eq!(read(3, 2), (Value::Null, Status::NullValue, HOUR_MS));
    assert_eq!(read(4, 2), present(Value::Bool(false)));
    assert_eq!(read(1, 74), (Value::Null, Status::OutsideMaxAge, HOUR_MS));
    let types: Vec<_> = register.features.iter().map(|feature| feature.ty).collect();
    assert_eq!(
        types,
        [
            FieldType::Int,
            FieldType::String,
            FieldType::Float,
            FieldType::Time,
            FieldType::Bool,
            FieldType::Float
        ]
    );
    // As a model's input a string is no value.
    assert_eq!(
        state.feature(&register, 1, 2 * HOUR_MS).status,
        Status::NullValue
    );
    assert_eq!(state.feature(&register, 2, 2 * HOUR_MS).value, 70.1f32);
    let unknown = ViewState::default().value(&register, 0, 0);
    assert_eq!(unknown, (Value::Null, Status::NotFound, 0));
}

#[test]
fn what_lies_beside_the_cells_is_read_in_its_type() {
    let view = view("spread");
    let names: Vec<_> = view.features.iter().map(|feature| &*feature.name).collect();
    assert_eq!(names[..2], ["min_delay_1h", "min_delay_24h"]);
    for name in [
        "largest_2h_tumbling",
        "p1_delay_1h",
        "p99.9_delay_24h",
        "seating_p50_1h",
        "decayed_count_1h",
        "decayed_mean_seats_1d",
    ] {
        assert!(names.contains(&name), "{name}");
    }
    let mut state = ViewState::default();
    // Above 2^53: a float could not tell it from its neighbour.
    let large = 9_007_199_254_740_993;
    for (seq, (minute, seats, late)) in [(10, 4, true), (0, large, false), (50, 4, true)]
        .into_iter()
        .enumerate()
    {
        let rest = [Value::Null, Value::Int(seats), Value::Bool(late)];
        state.fold(&view, &event(&view, minute * 60_000, rest), seq as u64);
    }
    let read = |name: &str, hours: i64| {
        let index = view.feature(name).unwrap();
        let (value, status, _) = state.value(&view, index, hours * HOUR_MS);
        assert_eq!(value.is_null(), status != Status::Present);
        value
    };
    assert_eq!(read("largest_24h", 1), Value::Int(large));
    assert_eq!(read("min_seats_24h", 1), Value::Int(4));
    assert_eq!(read("min_delay_24h", 1), Value::Null);
    assert_eq!(read("first_late_24h", 1), Value::Bool(false));
    assert_eq!(read("first_delay_24h", 1), Value::Null);
    assert_eq!(read("distinct_seats_24h", 1), Value::Int(2));
    assert_eq!(read("p50_delay_24h", 1), Value::Null);
    assert_eq!(read("decayed_mean_delay_1h", 1), Value::Null);
    // An hour later each weighs half.
    let Value::Float(count) = read("decayed_count_1h", 1) else {
        panic!("a decayed count is a float");
    };
    let expected = 0.5f64.powf(5.0 / 6.0) + 0.5 + 0.5f64.powf(1.0 / 6.0);
    assert!((count - expected).abs() < 1e-8, "{count}");
    // All have left the hour; what fades is gone after 22 to 24 half-lives.
    assert_eq!(read("distinct_seats_1h", 2), Value::Int(0));
    assert_eq!(read("largest_1h", 2), Value::Null);
    assert_eq!(read("std_seats_1h", 2), Value::Null);
    assert_ne!(read("decayed_count_1h", 23), Value::Float(0.0));
    assert_eq!(read("decayed_count_1h", 24), Value::Float(0.0));
}

#[test]
fn a_view_pays_for_what_it_asks() {
    let view = |features: &str| {
        let start = DEFINITIONS.find("[[view]]").unwrap();
        let text = format!(
            "{}[[view]]\nname = \"v\"\nsource = \"arrivals\"\nkeys = []\nwindows = [\"1h\"]\nfeatures = [{features}]",
            &DEFINITIONS[..start]
        );
        let definitions = Definitions::parse(&text, "features.toml").unwrap();
        Arc::clone(definitions.view("v").unwrap())
    };
    // A busy hour: 12 tiles of 500 events.
    let bytes = |features: &str| {
        let view = view(features);
        let mut state = ViewState::default();
        for seq in 0..6_000 {
            let delay = Value::Float(((seq * 7_919) % 6_000) as f64 / 10.0 - 30.0);
            let rest = [
                delay,
                Value::Int(seq * 7_919 % 6_000),
                Value::Bool(seq % 4 == 0),
            ];
            state.fold(&view, &event(&view, seq * 600, rest), seq as u64);
        }
        encoded(&state, &view).len()
    };
    let count = bytes("{ count = true }");
    let mean = bytes("{ count = true }, { mean = \"seats\" }");
    let tile = |features: &str, than: usize| (bytes(features) - than) / 12;
    assert_eq!(count, 34);
    assert!(mean - count <= 12 * 6, "{mean}");
    let with = |more: &str| format!("{{ count = true }}, {{ mean = \"seats\" }}, {more}");
    assert!(tile(&with("{ min = \"delay\" }, { max = \"delay\" }"), mean) <= 18);
    assert!(tile(&with("{ std = \"seats\" }"), mean) <= 8);
    assert!(tile(&with("{ first = \"late\" }"), mean) <= 12);
    let distinct = tile(&with("{ distinct = \"seats\" }"), mean);
    assert_eq!(distinct, 1281);
    let quantile = tile(
        &with("{ quantile = { field = \"delay\", q = [0.5] } }"),
        mean,
    );
    assert!((100..1_100).contains(&quantile), "{quantile}");
    let decay = bytes(&with("{ decayed_count = { half_life = \"5m\" } }")) - mean;
    assert!(decay <= 12 * 9, "{decay}");
}

/// What the program wrote before states had format 2, and how it read it (at commit 8e021f6). A view that
/// keeps numbers of the newest event has another id since.
#[test]
fn states_of_format_1_read_as_they_did() {
    let text = include_str!("fixtures/states-1.json");
    let fixture: serde_json::Value = serde_json::from_str(text).unwrap();
    let text = fixture["definitions"].as_str().unwrap();
    let definitions = Definitions::parse(text, "features.toml").unwrap();
    let mut read = 0;
    for written in fixture["states"].as_array().unwrap() {
        let view = definitions.view(written["view"].as_str().unwrap()).unwrap();
        let hex = written["bytes"].as_str().unwrap();
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
        let decoded = ViewState::decode(view, &bytes);
        if &*view.name == "numbers" {
            assert_ne!(format!("{:016x}", view.id), written["id"]);
            assert_eq!(decoded.unwrap_err(), StateError::Version { found: 1 });
            continue;
        }
        assert_eq!(format!("{:016x}", view.id), written["id"]);
        let state = decoded.unwrap();
        let again = ViewState::decode(view, &encoded(&state, view)).unwrap();
        for at in written["reads"].as_array().unwrap() {
            let at_ms = at["at"].as_i64().unwrap();
            for (index, expected) in at["features"].as_array().unwrap().iter().enumerate() {
                for state in [&state, &again] {
                    let found = state.feature(view, index, at_ms);
                    let bits = (!found.value.is_nan()).then_some(found.value.to_bits());
                    let name = &*view.features[index].name;
                    let found =
                        serde_json::json!([name, bits, found.status.as_str(), found.event_ms]);
                    assert_eq!(&found, expected, "at {at_ms}");
                    read += 1;
                }
            }
        }
    }
    assert_eq!(read, 580);
}

#[test]
fn the_largest_values_stay_finite() {
    let view = view("all");
    let mut state = ViewState::default();
    let largest = f64::from_bits(0x43df_ffff_ffff_ffff);
    for seq in 0..1000 {
        let seats = Value::Int(i64::MIN);
        let event = event(&view, 0, [Value::Float(largest), seats, Value::Null]);
        state.fold(&view, &event, seq);
    }
    let read = |name: &str| state.feature(&view, view.feature(name).unwrap(), 0);
    assert_eq!(read("mean_delay_1h").value, largest as f32);
    assert_eq!(
        read("sum_seats_7d").value,
        (i64::MIN as f64 * 1000.0) as f32
    );
    assert_eq!(read("last_delay").value, largest as f32);
    let bytes = encoded(&state, &view);
    assert_eq!(
        encoded(&ViewState::decode(&view, &bytes).unwrap(), &view),
        bytes
    );
}

#[test]
fn a_week_of_events_takes_a_few_hundred_bytes() {
    let view = view("all");
    let mut state = ViewState::default();
    for seq in 0..2_000 {
        let delay = Value::Float(((seq * 37) % 90) as f64 - 15.0);
        let event = event(
            &view,
            seq * 300_000,
            [delay, Value::Int(150), Value::Bool(seq % 4 == 0)],
        );
        state.fold(&view, &event, seq as u64);
    }
    let bytes = encoded(&state, &view);
    assert!(bytes.len() < 460, "{} bytes", bytes.len());
}

#[test]
fn a_state_of_another_version_or_with_a_tail_is_refused() {
    let view = view("all");
    let mut state = ViewState::default();
    state.fold(&view, &plain(&view, 0), 1);
    let mut bytes = encoded(&state, &view);
    bytes.push(0);
    let decoded = ViewState::decode(&view, &bytes);
    assert_eq!(decoded.unwrap_err(), StateError::Trailing { bytes: 1 });
    bytes[0] = 9;
    let decoded = ViewState::decode(&view, &bytes);
    assert_eq!(decoded.unwrap_err(), StateError::Version { found: 9 });
}
