//! What `features.toml` may say, how it is refused, and what an edge accepts as an event.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use featurestore::{
    Definitions, FeatureOrigin, FieldType, InView, Missing, RequestError, Source, Value,
    decode_values, encode_values,
};
use proptest::prelude::*;
use serde_json::json;

const DEFINITIONS: &str = r#"# Flights
[[source]]
name = "departures"
time = "departed_at"
id = ["flight_id"]
fields = { flight_id = "int", carrier = "string", tailnum = "string?", departed_at = "time", minutes = "float", late = "bool?" }

[[entity]]
name = "aircraft"
keys = ["tailnum"]

[[view]]
name = "aircraft"
source = "departures"
keys = ["tailnum"]
windows = ["1h", "7d"]
ttl = "7d"
where = { field = "carrier", equals = "AA" }
features = [{ count = true }, { mean = "minutes" }, { rate = "late" }, { sum = "minutes" }, { last = "minutes" }, { age_of_last = true }]

[[service]]
name = "delay"
version = 1
request = { tailnum = "string?", carrier = "string", miles = "float" }
features = [
  { request = "miles" },
  { request = "carrier", dictionary = ["AA", "UA"], default = -1 },
  { view = "aircraft", features = ["count_1h", "last_minutes"], clip = [0, 60] },
]
"#;

fn parse(text: &str) -> Definitions {
    Definitions::parse(text, "features.toml").unwrap()
}

/// The refusal of the definitions with one text replaced.
fn refused(from: &str, to: &str) -> String {
    assert!(DEFINITIONS.contains(from), "{from}");
    let text = DEFINITIONS.replacen(from, to, 1);
    Definitions::parse(&text, "features.toml")
        .unwrap_err()
        .to_string()
}

#[test]
fn definitions_are_resolved_in_the_order_of_the_file() {
    let definitions = parse(DEFINITIONS);
    let source = definitions.source("departures").unwrap();
    let names: Vec<_> = source.fields.iter().map(|field| &*field.name).collect();
    assert_eq!(
        names,
        [
            "flight_id",
            "carrier",
            "tailnum",
            "departed_at",
            "minutes",
            "late"
        ]
    );
    assert_eq!(
        (source.time_field, source.id_fields.as_slice()),
        (3, &[0][..])
    );
    assert_eq!((source.future_max_ms, source.lateness_ms), (300_000, None));
    assert!(source.fields[2].nullable && source.fields[2].ty == FieldType::String);

    let view = definitions.view("aircraft").unwrap();
    let names: Vec<_> = view.features.iter().map(|feature| &*feature.name).collect();
    let expected = [
        "count_1h",
        "count_7d",
        "mean_minutes_1h",
        "mean_minutes_7d",
        "rate_late_1h",
        "rate_late_7d",
        "sum_minutes_1h",
        "sum_minutes_7d",
        "last_minutes",
        "age_of_last",
    ];
    assert_eq!(names, expected);
    assert_eq!(
        (view.measures.len(), view.windows[1].length_ms()),
        (2, 604_800_000)
    );
    assert_eq!(definitions.views_of(source).count(), 1);

    let service = definitions.service("delay").unwrap();
    let names: Vec<_> = service.feature_names().collect();
    assert_eq!(
        names,
        [
            "miles",
            "carrier",
            "aircraft:count_1h",
            "aircraft:last_minutes"
        ]
    );
    let request: Vec<_> = service.request.iter().map(|field| &*field.name).collect();
    assert_eq!(request, ["tailnum", "carrier", "miles"]);
    assert_eq!(service.features[3].clip, Some((0.0, 60.0)));
    assert_eq!(service.features[1].missing, Missing::Default(-1.0));
    assert_eq!(
        service.features[3].origin,
        FeatureOrigin::View(InView {
            view: 0,
            feature: 8
        })
    );
}

#[test]
fn a_difference_is_one_column_of_two_features_of_views() {
    let text = DEFINITIONS.replace(
        "{ request = \"miles\" }",
        "{ request = \"miles\" },
        { name = \"recent\", difference = [\"aircraft:count_7d\", \"aircraft:count_1h\"] }",
    );
    let definitions = parse(&text);
    let service = definitions.service("delay").unwrap();
    assert_eq!(service.feature_names().nth(1), Some("recent"));
    assert_eq!(service.needed_views().len(), 1);
    for (from, to, message) in [
        (
            "aircraft:count_7d",
            "aircraft.count_7d",
            "is not written as `view:feature`",
        ),
        (
            "aircraft:count_7d",
            "aircraft:count_7",
            "did you mean `count_7d`?",
        ),
        (
            "aircraft:count_7d",
            "aircrft:count_7d",
            "did you mean `aircraft`?",
        ),
        ("name = \"recent\", ", "", "needs a `name` for its column"),
    ] {
        assert!(text.contains(from), "{from}");
        let error = Definitions::parse(&text.replace(from, to), "features.toml").unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
}

#[test]
fn the_newest_version_answers_to_the_bare_name() {
    let second = DEFINITIONS
        .split("[[service]]")
        .nth(1)
        .unwrap()
        .replace("version = 1", "version = 12");
    let definitions = parse(&format!("{DEFINITIONS}\n[[service]]{second}"));
    assert_eq!(definitions.service("delay").unwrap().id(), "delay@12");
    assert_eq!(definitions.service("delay@1").unwrap().version, 1);
    assert!(definitions.service("delay@2").is_none());
    assert!(definitions.service("dela").is_none());
}

#[test]
fn a_wrong_file_is_refused_with_line_key_and_nearest_name() {
    let cases = [
        (
            "windows = [",
            "windws = [",
            "features.toml:16: unknown key `windws`, did you mean `windows`?",
        ),
        (
            "{ mean =",
            "{ maen =",
            "features.toml:19: unknown key `maen`, did you mean `mean`?",
        ),
        (
            "source = \"departures\"",
            "source = \"departurs\"",
            "features.toml:14: key `source`: unknown name `departurs`, did you mean `departures`?",
        ),
        (
            "{ sum = \"minutes\"",
            "{ sum = \"minute\"",
            "features.toml:19: key `sum`: unknown name `minute`, did you mean `minutes`?",
        ),
        (
            "keys = [\"tailnum\"]\nwindows",
            "keys = [\"tail\"]\nwindows",
            "features.toml:15: key `keys`: unknown name `tail`, did you mean `tailnum`?",
        ),
        (
            "view = \"aircraft\"",
            "view = \"aircaft\"",
            "features.toml:28: key `view`: unknown name `aircaft`, did you mean `aircraft`?",
        ),
        (
            "\"count_1h\"",
            "\"count_2h\"",
            "features.toml:28: key `features`: unknown name `count_2h`, did you mean `count_1h`?",
        ),
        (
            "request = \"miles\"",
            "request = \"mile\"",
            "features.toml:26: key `request`: unknown name `mile`, did you mean `miles`?",
        ),
        (
            "departed_at = \"time\"",
            "departed_at = \"tme\"",
            "features.toml:6: key `departed_at`: unknown name `tme`, did you mean `time`?",
        ),
        (
            "field = \"carrier\"",
            "field = \"carier\"",
            "features.toml:18: key `field`: unknown name `carier`, did you mean `carrier`?",
        ),
        (
            "keys = [\"tailnum\"]",
            "keys = [\"tailnumber\"]",
            "features.toml:10: key `keys`: unknown name `tailnumber`, did you mean `tailnum`?",
        ),
        (
            "clip = [0",
            "clipp = [0",
            "features.toml:28: unknown key `clipp`, did you mean `clip`?",
        ),
        (
            "time = \"departed_at\"\n",
            "",
            "features.toml:2: missing key `time`",
        ),
        (
            "[[view]]",
            "[[views]]",
            "features.toml:12: unknown key `views`, did you mean `view`?",
        ),
    ];
    for (from, to, message) in cases {
        assert_eq!(refused(from, to), message);
    }
}

#[test]
fn what_cannot_be_computed_is_refused() {
    let cases = [
        (
            "equals = \"AA\"",
            "equals = 3",
            "features.toml:18: key `equals`: expected string, found `3`",
        ),
        (
            "\"7d\"]",
            "\"7w\"]",
            "features.toml:16: key `windows`: `7w` is not a length of time",
        ),
        (
            "\"7d\"]",
            "\"1h\"]",
            "features.toml:16: key `windows`: `1h` is listed twice",
        ),
        (
            "\"7d\"]",
            "\"59s\"]",
            "features.toml:16: key `windows`: `59s` is not from a minute to 90 days",
        ),
        (
            "\"7d\"]",
            "\"61s\"]",
            "features.toml:16: key `windows`: `61s` is not twelve tiles of whole milliseconds",
        ),
        (
            "\"7d\"]",
            "\"91d tumbling\"]",
            "features.toml:16: key `windows`: `91d` is not from a minute to 90 days",
        ),
        (
            "windows = [\"1h\", \"7d\"]\n",
            "",
            "features.toml:18: key `features`: `count` needs the view to have `windows`",
        ),
        (
            "{ count = true }",
            "{ distinct = \"minutes\" }",
            "features.toml:19: key `distinct`: `minutes` is of type float, not bool or int or string or time",
        ),
        (
            "{ count = true }",
            "{ std = \"carrier\" }",
            "features.toml:19: key `std`: `carrier` is of type string, not int or float",
        ),
        (
            "{ count = true }",
            "{ quantile = { field = \"minutes\", q = [] } }",
            "features.toml:19: key `q`: is empty",
        ),
        (
            "{ count = true }",
            "{ quantile = { field = \"minutes\", q = [0.5, 1.0] } }",
            "features.toml:19: key `q`: `1` is not above 0, below 1, in millionths",
        ),
        (
            "{ count = true }",
            "{ quantile = { field = \"minutes\", q = [0.29, 0.29] } }",
            "features.toml:19: key `features`: feature `p29_minutes_1h` is defined twice",
        ),
        (
            "{ count = true }",
            "{ decayed_count = { half_life = \"30s\" } }",
            "features.toml:19: key `half_life`: `30s` is not from a minute to 90 days",
        ),
        (
            "{ count = true }",
            "{ decayed_mean = { field = \"late\", half_life = \"1h\" } }",
            "features.toml:19: key `field`: `late` is of type bool, not int or float",
        ),
        (
            "mean = \"minutes\"",
            "mean = \"late\"",
            "features.toml:19: key `mean`: `late` is of type bool, not int or float",
        ),
        (
            "{ count = true }",
            "{ count = false }",
            "features.toml:19: key `count`: leave it out",
        ),
        (
            "{ count = true }",
            "{ count = true, sum = \"minutes\" }",
            "features.toml:19: key `features`: an entry has exactly one of",
        ),
        (
            "{ sum = \"minutes\" }",
            "{ mean = \"minutes\" }",
            "features.toml:19: key `features`: feature `mean_minutes_1h` is defined twice",
        ),
        (
            "id = [\"flight_id\"]",
            "id = [\"tailnum\"]",
            "features.toml:5: key `id`: `tailnum` may be null",
        ),
        (
            "id = [\"flight_id\"]",
            "id = []",
            "features.toml:5: key `id`: at least one field is needed",
        ),
        (
            "time = \"departed_at\"",
            "time = \"minutes\"",
            "features.toml:4: key `time`: `minutes` is not of type `time`",
        ),
        (
            "name = \"departures\"",
            "name = \"a/b\"",
            "features.toml:3: key `name`: `a/b` is not a name",
        ),
        (
            "version = 1",
            "version = 0",
            "features.toml:23: key `version`: `0` is not a version",
        ),
        (
            "tailnum = \"string?\", carrier",
            "carrier",
            "features.toml:28: key `view`: `aircraft` has the key `tailnum`, which the request does not bring",
        ),
        (
            "tailnum = \"string?\", carrier",
            "tailnum = \"int\", carrier",
            "features.toml:28: key `view`: `aircraft` has the key `tailnum` of type string, the request's is of type int",
        ),
        (
            ", dictionary = [\"AA\", \"UA\"]",
            "",
            "features.toml:27: key `request`: `carrier` is a string and needs a `dictionary`",
        ),
        (
            "\"AA\", \"UA\"",
            "\"AA\", \"AA\"",
            "features.toml:27: key `dictionary`: `AA` is listed twice",
        ),
        (
            "{ last = \"minutes\" }",
            "{ last = \"carrier\", name = \"last_minutes\" }",
            "features.toml:28: key `view`: `aircraft:last_minutes` is a string and needs a `dictionary`",
        ),
        (
            "{ last = \"minutes\" }",
            "{ last = \"minutes\", name = \"last minutes\" }",
            "features.toml:19: key `name`: `last minutes` is not a name",
        ),
        (
            "clip = [0, 60]",
            "clip = [60, 0]",
            "features.toml:28: key `clip`: `60` is above `0`",
        ),
        (
            "default = -1",
            "default = nan",
            "features.toml:27: key `default`: `NaN` is not finite",
        ),
        (
            "{ request = \"miles\" }",
            "{ request = \"miles\" }, { request = \"miles\" }",
            "features.toml:26: key `features`: feature `miles` is listed twice",
        ),
    ];
    for (from, to, message) in cases {
        let found = refused(from, to);
        assert!(found.starts_with(message), "{found}");
    }
    let twice = format!(
        "{DEFINITIONS}\n[[service]]{}",
        DEFINITIONS.split("[[service]]").nth(1).unwrap()
    );
    let error = Definitions::parse(&twice, "features.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "features.toml:33: key `version`: `delay@1` is defined twice"
    );
}

#[test]
fn a_view_whose_layout_changes_gets_another_id() {
    let id = |from: &str, to: &str| {
        parse(&DEFINITIONS.replacen(from, to, 1))
            .view("aircraft")
            .unwrap()
            .id
    };
    let as_is = id("", "");
    assert_eq!(as_is, id("ttl = \"7d\"", "ttl = \"8d\""));
    assert_eq!(as_is, id("{ sum = \"minutes\" }, ", ""));
    let with = |more: &str| id("{ sum = \"minutes\" }", more);
    let extremes = with("{ sum = \"minutes\" }, { min = \"minutes\" }");
    assert_eq!(
        extremes,
        with("{ sum = \"minutes\" }, { max = \"minutes\" }")
    );
    let others = [
        as_is,
        extremes,
        with("{ sum = \"minutes\" }, { std = \"minutes\" }"),
        with("{ sum = \"minutes\" }, { decayed_count = { half_life = \"1h\" } }"),
        with("{ sum = \"minutes\" }, { decayed_count = { half_life = \"2h\" } }"),
        with(
            "{ sum = \"minutes\" }, { decayed_mean = { field = \"minutes\", half_life = \"1h\" } }",
        ),
        id("\"7d\"]", "\"7d tumbling\"]"),
    ];
    assert_eq!(std::collections::HashSet::from(others).len(), others.len());
    assert_ne!(as_is, id("\"7d\"]", "\"8d\"]"));
    assert_ne!(as_is, id("time =", "lateness = \"2d\"\ntime ="));
    assert_ne!(as_is, id("equals = \"AA\"", "equals = \"UA\""));
    assert_ne!(as_is, id("{ rate = \"late\" }, ", ""));
    assert_ne!(
        as_is,
        id(
            "{ last = \"minutes\" }",
            "{ last = \"minutes\" }, { last = \"late\" }"
        )
    );
}

#[test]
fn a_dictionary_by_name_is_the_same_as_one_written_out() {
    let named = DEFINITIONS
        .replace("[\"AA\", \"UA\"]", "\"carriers\"")
        .replace(
            "[[service]]",
            "[[dictionary]]\nname = \"carriers\"\nwords = [\"AA\", \"UA\"]\n[[service]]",
        );
    let meaning = |text: &str| parse(text).service("delay").unwrap().meaning().clone();
    assert_eq!(meaning(&named), meaning(DEFINITIONS));
    for (from, to, message) in [
        (
            "dictionary = \"carriers\"",
            "dictionary = \"carrier\"",
            "features.toml:30: key `dictionary`: unknown name `carrier`, did you mean `carriers`?",
        ),
        (
            "dictionary = \"carriers\"",
            "dictionary = [1]",
            "features.toml:30: key `dictionary`: is neither a list of strings nor the name of a `[[dictionary]]`",
        ),
        (
            "words = [\"AA\", ",
            "words = [\"UA\", ",
            "features.toml:23: key `words`: `UA` is listed twice",
        ),
    ] {
        assert!(named.contains(from), "{from}");
        let error = Definitions::parse(&named.replace(from, to), "features.toml").unwrap_err();
        assert_eq!(error.to_string(), message);
    }
}

/// The definitions with a second version of the view, of another window.
fn two_versions() -> String {
    let view = DEFINITIONS.split("[[view]]").nth(1).unwrap();
    let view = view.split("[[service]]").next().unwrap();
    let second = view
        .replace("windows", "version = 2\nwindows")
        .replace("7d", "3d");
    DEFINITIONS.replace("[[service]]", &format!("[[view]]{second}[[service]]"))
}

#[test]
fn the_newest_version_of_a_view_answers_to_the_bare_name_and_a_pin_keeps_another() {
    let text = two_versions();
    let definitions = parse(&text);
    assert_eq!(definitions.view("aircraft").unwrap().version, 2);
    let first = definitions.view("aircraft@1").unwrap();
    assert_eq!((first.version, first.pin()), (1, "aircraft@1"));
    assert!(definitions.view("aircraft@3").is_none());
    // The first keeps the states that it had before there was a second.
    assert_eq!(first.id, parse(DEFINITIONS).view("aircraft").unwrap().id);
    assert_ne!(first.id, definitions.view("aircraft@2").unwrap().id);
    let needs = |text: &str| {
        let definitions = parse(text);
        let service = definitions.service("delay").unwrap();
        let names: Vec<_> = service.feature_names().map(str::to_owned).collect();
        (service.needed_views()[0].version, names)
    };
    let (version, names) = needs(&text);
    assert_eq!((version, names[2].as_str()), (2, "aircraft:count_1h"));
    let pinned = text.replace("view = \"aircraft\"", "view = \"aircraft@1\"");
    assert_eq!(needs(&pinned), (1, names));
    let error = text.replace("view = \"aircraft\"", "view = \"aircraft@3\"");
    let error = Definitions::parse(&error, "features.toml").unwrap_err();
    assert_eq!(
        error.to_string(),
        "features.toml:38: key `view`: unknown name `aircraft@3`, did you mean `aircraft@2`?"
    );
    let error = Definitions::parse(&text.replace("version = 2", "version = 1"), "features.toml");
    assert_eq!(
        error.unwrap_err().to_string(),
        "features.toml:22: key `name`: view `aircraft@1` is defined twice"
    );
}

#[test]
fn two_versions_of_one_layout_fold_apart() {
    let text = two_versions().replace("\"3d\"]", "\"7d\"]");
    let definitions = parse(&text);
    let id = |name: &str| definitions.view(name).unwrap().id;
    assert_ne!(id("aircraft@1"), id("aircraft@2"));
}

#[test]
fn what_alters_a_value_alters_the_meaning_and_nothing_else_does() {
    let digests = |from: &str, to: &str| {
        assert!(DEFINITIONS.contains(from), "{from}");
        let definitions = parse(&DEFINITIONS.replacen(from, to, 1));
        let view = definitions.view("aircraft").unwrap().meaning().digest();
        (
            view,
            definitions.service("delay").unwrap().meaning().digest(),
        )
    };
    let as_is = digests("", "");
    for (from, to) in [
        ("# Flights", "# Aircraft"),
        ("minutes = \"float\"", "minutes = \"float?\""),
        (
            "minutes = \"float\",",
            "minutes = \"float\", gate = \"int?\",",
        ),
        ("ttl = \"7d\"", "ttl = \"168h\""),
        (
            "time = \"departed_at\"",
            "future_max = \"1h\"\ntime = \"departed_at\"",
        ),
        ("default = -1", "default = -1, missing = \"default\""),
        ("name = \"aircraft\"\nkeys", "name = \"tail\"\nkeys"),
    ] {
        assert_eq!(digests(from, to), as_is, "{from} to {to}");
    }
    for (from, to) in [
        ("ttl = \"7d\"", "ttl = \"8d\""),
        ("equals = \"AA\"", "equals = \"UA\""),
        ("id = [\"flight_id\"]", "id = [\"flight_id\", \"carrier\"]"),
        ("minutes = \"float\"", "minutes = \"int\""),
        (
            "time = \"departed_at\"",
            "lateness = \"1h\"\ntime = \"departed_at\"",
        ),
    ] {
        let (view, service) = digests(from, to);
        assert!(view != as_is.0 && service != as_is.1, "{from} to {to}");
    }
    for (from, to) in [
        ("clip = [0, 60]", "clip = [0, 61]"),
        ("default = -1", "default = -2"),
        ("default = -1", "missing = \"refuse\""),
        ("\"AA\", \"UA\"", "\"UA\", \"AA\""),
        (
            "\"count_1h\", \"last_minutes\"",
            "\"last_minutes\", \"count_1h\"",
        ),
        ("miles = \"float\"", "miles = \"int\""),
    ] {
        let (view, service) = digests(from, to);
        assert!(view == as_is.0 && service != as_is.1, "{from} to {to}");
    }
    // A feature that the service does not read.
    let (view, service) = digests(
        "{ count = true }",
        "{ sum = \"minutes\", name = \"total\" }, { count = true }",
    );
    assert!(view != as_is.0 && service == as_is.1);
}

#[test]
fn a_filter_takes_one_value_several_or_a_range() {
    let taken = |filter: &str| {
        let text = DEFINITIONS.replacen("{ field = \"carrier\", equals = \"AA\" }", filter, 1);
        let definitions = parse(&text);
        let view = Arc::clone(definitions.view("aircraft").unwrap());
        let mut events = Vec::new();
        for (carrier, minutes, late) in [
            ("AA", -0.0, Value::Bool(true)),
            ("UA", 15.0, Value::Bool(false)),
            ("DL", 60.5, Value::Null),
        ] {
            let tail = Value::String("N1".into());
            let carrier = Value::String(carrier.into());
            let minutes = Value::Float(minutes);
            let id = Value::Int(1);
            events.push(vec![id, carrier, tail, Value::Int(0), minutes, late]);
        }
        let takes = |values| {
            view.key_of(&view.source.event(0, values, 0).unwrap())
                .is_some()
        };
        let taken: Vec<_> = events.into_iter().map(takes).collect();
        let sentence = view.filter.as_ref().unwrap().describe(&view.source);
        (taken, sentence, view.id)
    };
    for (filter, expected, sentence) in [
        (
            "{ field = \"carrier\", in = [\"DL\", \"AA\"] }",
            [true, false, true],
            "carrier in [\"DL\",\"AA\"]",
        ),
        (
            "{ field = \"late\", in = [true, false] }",
            [true, true, false],
            "late in [true,false]",
        ),
        (
            "{ field = \"minutes\", min = 15 }",
            [false, true, true],
            "15.0 <= minutes",
        ),
        (
            "{ field = \"minutes\", min = 0.0, max = 15.0 }",
            [true, true, false],
            "0.0 <= minutes <= 15.0",
        ),
        (
            "{ field = \"flight_id\", max = 0 }",
            [false; 3],
            "flight_id <= 0",
        ),
    ] {
        let (taken, found, _) = taken(filter);
        assert_eq!((&taken[..], &*found), (&expected[..], sentence));
    }
    let id = |filter| taken(filter).2;
    assert_eq!(
        id("{ field = \"carrier\", in = [\"DL\", \"AA\"] }"),
        id("{ field = \"carrier\", in = [\"AA\", \"DL\"] }")
    );
    assert_ne!(
        id("{ field = \"minutes\", min = 15 }"),
        id("{ field = \"minutes\", max = 15 }")
    );
    let equals = "equals = \"AA\"";
    for (filter, message) in [
        ("in = []", "18: key `in`: is empty"),
        (
            "in = [\"AA\", \"AA\"]",
            "18: key `in`: `\"AA\"` is listed twice",
        ),
        (
            "in = [\"AA\", 3]",
            "18: key `in`: expected string, found `3`",
        ),
        (
            "equals = \"AA\", in = [\"UA\"]",
            "18: key `where`: a filter has `equals`, or `in`, or",
        ),
        (
            "min = 3",
            "18: key `field`: `carrier` is of type string, not int or float",
        ),
    ] {
        let found = refused(equals, filter);
        assert!(
            found.starts_with(&format!("features.toml:{message}")),
            "{found}"
        );
    }
    let range = "{ field = \"minutes\", min = 2, max = 1 }";
    let found = refused("{ field = \"carrier\", equals = \"AA\" }", range);
    assert_eq!(found, "features.toml:18: key `min`: `2.0` is above `max`");
}

#[test]
fn definitions_mean_what_they_meant_when_folders_first_knew_them() {
    let definitions = parse(include_str!("fixtures/meanings.toml"));
    let mut meanings = String::new();
    for view in &definitions.views {
        meanings += &format!("{} {}\n", view.pin(), view.meaning());
    }
    for service in &definitions.services {
        meanings += &format!("{} {}\n", service.id(), service.meaning());
    }
    assert_eq!(meanings, include_str!("fixtures/meanings.txt"));
}

#[test]
fn keys_of_different_views_and_values_differ() {
    let definitions = parse(DEFINITIONS);
    let service = definitions.service("delay").unwrap();
    let key = |tailnum: Value| service.keys(&[tailnum]).remove(0);
    let one = key(Value::String("N1".into())).unwrap();
    assert_eq!(one.as_bytes()[..8], definitions.views[0].id.to_be_bytes());
    assert_ne!(Some(&one), key(Value::String("N2".into())).as_ref());
    assert_eq!(key(Value::Null), None);

    let source = definitions.source("departures").unwrap();
    let event = source.parse_row(0, &row(), NOW_MS).unwrap();
    assert_eq!(definitions.views[0].key_of(&event), Some(one));
    let mut other = row();
    other["carrier"] = json!("UA");
    let other = source.parse_row(0, &other, NOW_MS).unwrap();
    assert_eq!(definitions.views[0].key_of(&other), None);
}

const NOW_MS: i64 = 1_362_096_000_000;

fn row() -> serde_json::Value {
    json!({
        "flight_id": 7, "carrier": "AA", "tailnum": "N1",
        "departed_at": "2013-03-01T01:00:00+01:00", "minutes": 12, "late": null
    })
}

fn source() -> Arc<Source> {
    Arc::clone(parse(DEFINITIONS).source("departures").unwrap())
}

#[test]
fn a_row_becomes_an_event() {
    let source = source();
    let event = source.parse_row(0, &row(), NOW_MS).unwrap();
    assert_eq!(event.event_ms, NOW_MS);
    assert_eq!(event.values[4], Value::Float(12.0));
    let mut sparse = row();
    sparse
        .as_object_mut()
        .unwrap()
        .retain(|name, _| name != "tailnum" && name != "late");
    sparse["departed_at"] = json!(NOW_MS + 300_000);
    let other = source.parse_row(1, &sparse, NOW_MS).unwrap();
    assert_eq!(
        (&other.values[2], &other.values[5]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(event.dedupe_key(), other.dedupe_key());
    sparse["flight_id"] = json!(8);
    let other = source.parse_row(1, &sparse, NOW_MS).unwrap();
    assert_ne!(event.dedupe_key(), other.dedupe_key());
}

#[test]
fn a_wrong_row_is_refused_with_row_field_and_value() {
    let source = source();
    let cases = [
        (
            "minuts",
            json!(1),
            "row 3: unknown field `minuts`, did you mean `minutes`?",
        ),
        (
            "minutes",
            json!("12"),
            "row 3: field `minutes`: expected float, found `\"12\"`",
        ),
        (
            "minutes",
            json!(1e19),
            "row 3: field `minutes`: `10000000000000000000` is not finite or not below 2^63 in magnitude",
        ),
        (
            "flight_id",
            json!(1.5),
            "row 3: field `flight_id`: expected int, found `1.5`",
        ),
        (
            "flight_id",
            json!(u64::MAX),
            "row 3: field `flight_id`: expected int, found `18446744073709551615`",
        ),
        (
            "flight_id",
            json!(null),
            "row 3: field `flight_id`: may not be null",
        ),
        (
            "carrier",
            json!("A".repeat(5000)),
            "row 3: field `carrier`: string of 5000 bytes is longer than 4096",
        ),
        (
            "late",
            json!(1),
            "row 3: field `late`: expected bool, found `1`",
        ),
        (
            "departed_at",
            json!("yesterday"),
            "row 3: field `departed_at`: `\"yesterday\"` is not a time (RFC 3339 or integer milliseconds since 1970)",
        ),
        (
            "departed_at",
            json!(i64::MAX),
            "row 3: field `departed_at`: `9223372036854775807` is not a time (RFC 3339 or integer milliseconds since 1970)",
        ),
        (
            "departed_at",
            json!(NOW_MS + 300_001),
            "row 3: field `departed_at`: time 1362096300001 is 300001 ms ahead of now, at most 300000 allowed",
        ),
    ];
    for (field, value, message) in cases {
        let mut row = row();
        row[field] = value;
        assert_eq!(
            source.parse_row(3, &row, NOW_MS).unwrap_err().to_string(),
            message
        );
    }
    for field in ["departed_at", "flight_id"] {
        let mut row = row();
        row.as_object_mut().unwrap().remove(field);
        let error = source.parse_row(3, &row, NOW_MS).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("row 3: field `{field}`: missing")
        );
    }
    let error = source.parse_row(3, &json!([1]), NOW_MS).unwrap_err();
    assert_eq!(error.to_string(), "row 3: not a json object");
    let error = source.event(3, vec![Value::Null], NOW_MS).unwrap_err();
    assert_eq!(error.to_string(), "row 3: 1 values for 6 fields");
    let mut values = source
        .parse_row(0, &row(), NOW_MS)
        .unwrap()
        .values
        .into_vec();
    values[4] = Value::Float(f64::NAN);
    let error = source.event(3, values, NOW_MS).unwrap_err();
    assert_eq!(
        error.to_string(),
        "row 3: field `minutes`: `NaN` is not finite or not below 2^63 in magnitude"
    );
}

#[test]
fn a_request_must_fit_its_service() {
    let definitions = parse(DEFINITIONS);
    let service = definitions.service("delay").unwrap();
    let check = |values: &[Value]| service.check_request(values);
    let carrier = Value::String("AA".into());
    assert_eq!(
        check(&[Value::Null, carrier.clone(), Value::Float(1.0)]),
        Ok(())
    );
    assert!(matches!(
        check(&[]),
        Err(RequestError::Width {
            found: 0,
            expected: 3,
            ..
        })
    ));
    let error = check(&[Value::Null, carrier, Value::Int(1)]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "field `miles`: expected float, found `1`"
    );
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Int),
        (-1e300..1e300f64).prop_map(Value::Float),
        any::<String>().prop_map(|text| Value::String(text.into())),
    ]
}

proptest! {
    #[test]
    fn values_come_back_from_their_bytes(values in proptest::collection::vec(value(), 0..12)) {
        let mut bytes = Vec::new();
        encode_values(&values, &mut bytes);
        let back = decode_values(&bytes).unwrap();
        prop_assert_eq!(&*back, values.as_slice());
        for end in 0..bytes.len() {
            prop_assert!(decode_values(&bytes[..end]).is_err());
        }
    }

    #[test]
    fn any_bytes_are_values_or_refused(mut bytes: Vec<u8>) {
        let _ = decode_values(&bytes);
        bytes.insert(0, 1);
        if let Ok(values) = decode_values(&bytes) {
            let mut again = Vec::new();
            encode_values(&values, &mut again);
            let twice = decode_values(&again).unwrap();
            prop_assert_eq!(values.len(), twice.len());
        }
    }

    #[test]
    fn any_file_is_resolved_or_refused(place: prop::sample::Index, text in "[\\[\\]{}=\",a-z0-9\n ]{0,8}") {
        let starts: Vec<_> = DEFINITIONS.char_indices().map(|(start, _)| start).collect();
        let mut file = DEFINITIONS.to_owned();
        file.insert_str(starts[place.index(starts.len())], &text);
        let _ = Definitions::parse(&file, "features.toml");
    }
}
