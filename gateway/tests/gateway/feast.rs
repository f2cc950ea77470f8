//! Feast's routes: the shapes that its clients were recorded with, and what is refused.

use std::path::Path;

use serde_json::{Value, json};

use crate::patience::eventually;
use crate::process::{Gateway, patient};
use crate::wire::{Connection, Reply};

const FEATURES: &str = r#"
[[source]]
name = "driver_stats"
time = "at"
id = ["driver_id", "at"]
fields = { driver_id = "int", at = "time", rate = "float?", trips = "int?", city = "string?", active = "bool?", since = "time?" }

[[source]]
name = "trips"
time = "ended_at"
id = ["trip"]
fields = { trip = "int", driver_id = "int", rider = "string", fare = "float", ended_at = "time" }

[[view]]
name = "drivers"
source = "driver_stats"
keys = ["driver_id"]
ttl = "1d"
features = [{ last = "rate", name = "conv_rate" }, { last = "trips", name = "trips" }, { last = "city", name = "city" }, { last = "active", name = "active" }, { last = "since", name = "since" }]

[[view]]
name = "driver_trips"
source = "trips"
keys = ["driver_id"]
windows = ["1d"]
features = [{ count = true }, { sum = "fare" }, { last = "fare", name = "trips" }]

[[view]]
name = "pairs"
source = "trips"
keys = ["driver_id", "rider"]
windows = ["1d"]
features = [{ count = true }]

[[view]]
name = "all_trips"
source = "trips"
keys = []
windows = ["1d"]
features = [{ count = true }]

[[view]]
name = "dear_trips"
source = "trips"
keys = ["driver_id"]
where = { field = "rider", equals = "r1" }
features = [{ last = "fare" }]

[[source]]
name = "shared"
time = "at"
id = ["id", "at"]
fields = { id = "int", at = "time", a = "float?", b = "float?" }

[[view]]
name = "only_a"
source = "shared"
keys = ["id"]
features = [{ last = "a", name = "a" }]

[[view]]
name = "only_b"
source = "shared"
keys = ["id"]
features = [{ last = "b", name = "b" }]

[[service]]
name = "ranking"
version = 1
request = { driver_id = "int", distance = "float", weather = "string?" }
features = [{ request = "distance" }, { request = "weather", dictionary = ["sun", "rain"] }, { view = "drivers", features = ["conv_rate"], default = -1 }, { view = "driver_trips", features = ["count_1d"] }]
"#;

/// 2024-03-01T12:00:00Z, the time of every request unless it says otherwise.
pub(crate) const NOW_MS: i64 = 1_709_294_400_000;
const HOUR_MS: i64 = 3_600_000;

/// A gateway with those features and its clock in the tests' hands.
pub(crate) fn start(folder: &Path, settings: &str) -> Gateway {
    let settings = format!("[clock]\nmode = \"replay\"\n{settings}");
    std::fs::write(folder.join("loopgate.toml"), patient(&settings)).unwrap();
    std::fs::write(folder.join("features.toml"), FEATURES).unwrap();
    std::fs::create_dir_all(folder.join("models")).unwrap();
    Gateway::with_project(folder)
}

/// Asks at a time.
pub(crate) fn ask_at(gateway: &Gateway, path: &str, body: &str, at_ms: i64) -> Reply {
    let at_ms = at_ms.to_string();
    let mut connection: Connection = gateway.connect();
    connection.request(
        "POST",
        path,
        &[("loopgate-time-ms", &at_ms)],
        body.as_bytes(),
    )
}

pub(crate) fn ask(gateway: &Gateway, path: &str, body: &Value) -> Reply {
    ask_at(gateway, path, &body.to_string(), NOW_MS)
}

pub(crate) fn write_drivers(gateway: &Gateway) {
    let written = ask(
        gateway,
        "/write-to-online-store",
        &json!({"feature_view_name": "drivers", "allow_registry_cache": false, "df": {
            "driver_id": [1001, 1002, 1003],
            "conv_rate": [0.5, null, 0.25],
            "trips": [7, 9_007_199_254_740_993_i64, 3],
            "city": ["Zürich", null, "Ro\"me"],
            "active": [true, false, null],
            "since": ["2020-01-02 03:04:05.678", 1_577_934_245, null],
            "event_timestamp": ["2024-03-01T11:00:00", "2024-03-01T11:00:00.250000", "2024-02-27T12:00:00"],
            "created": [null, null, null],
        }}),
    );
    assert_eq!((written.status, written.text()), (200, "null"));
    assert_eq!(written.header("loopgate-accepted"), Some("3"));
}

pub(crate) fn pushed(gateway: &Gateway) {
    let reply = ask(
        gateway,
        "/push",
        &json!({"push_source_name": "trips", "to": "online_and_offline", "df": {
            "trip": [1, 2, 3], "driver_id": [1001, 1001, 1002], "rider": ["r1", "r2", "r1"],
            "fare": [10, 5.5, 7.0], "event_timestamp": ["2024-03-01 11:30:00", "2024-03-01 11:31:00", "2024-03-01"],
        }}),
    );
    assert_eq!((reply.status, reply.text()), (200, ""));
}

#[test]
fn what_is_written_and_pushed_is_answered_column_by_column_in_its_types() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    assert_eq!(gateway.get("/health").status, 200);
    write_drivers(&gateway);
    pushed(&gateway);
    let reply = ask(
        &gateway,
        "/get-online-features",
        &json!({
            "features": ["drivers:trips", "drivers:conv_rate", "drivers:city", "drivers:active", "drivers:since", "driver_trips:count_1d"],
            "entities": {"driver_id": [1001, 1002, 1003, 1, 1001], "unknown": [0, 0, 0, 0, 0]},
            "include_feature_view_version_metadata": true,
        }),
    );
    assert_eq!(reply.header("content-type"), Some("application/json"));
    let (ok, void, none, old) = ("PRESENT", "NULL_VALUE", "NOT_FOUND", "OUTSIDE_MAX_AGE");
    let epoch = "1970-01-01T00:00:00Z";
    let (eleven, quarter) = ("2024-03-01T11:00:00Z", "2024-03-01T11:00:00.250Z");
    let days_ago = "2024-02-27T12:00:00Z";
    let times = json!([eleven, quarter, days_ago, epoch, eleven]);
    let column = |values: Value, statuses: [&str; 5]| json!({"values": values, "statuses": statuses, "event_timestamps": times});
    let expected = json!({
        "results": [
            {"values": [1001, 1002, 1003, 1, 1001], "statuses": vec![ok; 5], "event_timestamps": vec![epoch; 5]},
            column(json!([7, 9_007_199_254_740_993_i64, null, null, 7]), [ok, ok, old, none, ok]),
            column(json!([0.5, null, null, null, 0.5]), [ok, void, old, none, ok]),
            column(json!(["Zürich", null, null, null, "Zürich"]), [ok, void, old, none, ok]),
            column(json!([true, false, null, null, true]), [ok, ok, old, none, ok]),
            column(
                json!(["2020-01-02T03:04:05.678Z", "2020-01-02T03:04:05Z", null, null, "2020-01-02T03:04:05.678Z"]),
                [ok, ok, old, none, ok],
            ),
            {
                "values": [2, 1, null, null, 2],
                "statuses": [ok, ok, none, none, ok],
                "event_timestamps": ["2024-03-01T11:31:00Z", "2024-03-01T00:00:00Z", epoch, epoch, "2024-03-01T11:31:00Z"],
            },
        ],
        "metadata": {
            "feature_names": ["driver_id", "trips", "conv_rate", "city", "active", "since", "count_1d"],
            "feature_view_metadata": [{"name": "drivers", "version": 1}, {"name": "driver_trips", "version": 1}],
        },
    });
    assert_eq!((reply.status, reply.json()), (200, expected));
}

#[test]
fn full_names_keys_of_several_fields_and_views_without_keys() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    pushed(&gateway);
    let body = json!({
        "features": ["pairs:count_1d", "all_trips@v1:count_1d"], "full_feature_names": true,
        "entities": {"rider": ["r1", "r2"], "driver_id": [1001, 1002]},
    });
    let answered = ask(&gateway, "/get-online-features", &body).json();
    assert_eq!(
        answered["metadata"]["feature_names"],
        json!([
            "driver_id",
            "rider",
            "pairs__count_1d",
            "all_trips@v1__count_1d"
        ])
    );
    let values: Vec<_> = (0..4)
        .map(|k| answered["results"][k]["values"].clone())
        .collect();
    assert_eq!(
        values,
        [
            json!([1001, 1002]),
            json!(["r1", "r2"]),
            json!([1, null]),
            json!([3, 3])
        ]
    );
    let body = json!({"features": ["all_trips:count_1d"], "entities": {}});
    let answered = ask(&gateway, "/get-online-features", &body).json();
    assert_eq!(answered["results"][0]["values"], json!([3]));
}

#[test]
fn a_feature_service_is_answered_with_the_row_that_a_model_gets() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    write_drivers(&gateway);
    pushed(&gateway);
    let body = |full: bool| {
        json!({
            "feature_service": "ranking", "features": [], "full_feature_names": full,
            "include_feature_view_version_metadata": true,
            "entities": {"weather": ["rain", "snow", null], "distance": [0.1, 2, 3], "driver_id": [1001, 1002, 1]},
        })
    };
    let answered = ask(&gateway, "/get-online-features", &body(false)).json();
    assert_eq!(
        answered["metadata"]["feature_names"],
        json!(["driver_id", "distance", "weather", "conv_rate", "count_1d"])
    );
    let of = |key: &str| -> Vec<Value> {
        (0..5)
            .map(|k| answered["results"][k][key].clone())
            .collect()
    };
    assert_eq!(
        of("values"),
        [
            json!([1001, 1002, 1]),
            json!([f64::from(0.1_f32), 2.0, 3.0]),
            json!([1.0, null, null]),
            json!([0.5, -1.0, -1.0]),
            json!([2.0, 1.0, null]),
        ]
    );
    let (ok, void, none) = ("PRESENT", "NULL_VALUE", "NOT_FOUND");
    assert_eq!(
        of("statuses"),
        [
            json!([ok, ok, ok]),
            json!([ok, ok, ok]),
            json!([ok, void, void]),
            json!([ok, void, none]),
            json!([ok, ok, none])
        ]
    );
    let full = ask(&gateway, "/get-online-features", &body(true)).json();
    assert_eq!(
        full["metadata"]["feature_names"],
        json!([
            "driver_id",
            "ranking__distance",
            "ranking__weather",
            "drivers__conv_rate",
            "driver_trips__count_1d"
        ])
    );
    let views = &full["metadata"]["feature_view_metadata"];
    assert_eq!(views[1], json!({"name": "driver_trips", "version": 1}));
}

#[test]
fn statuses_and_times_are_feasts_own_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "[feast]\ncompat = true\n");
    write_drivers(&gateway);
    let body = json!({"features": ["drivers:conv_rate", "drivers:since"], "entities": {"driver_id": [1001, 1002, 1003, 1]}});
    let answered = ask(&gateway, "/get-online-features", &body).json();
    let (ok, none) = ("PRESENT", "NOT_FOUND");
    assert_eq!(
        answered["results"][1]["values"],
        json!([0.5, null, 0.25, null])
    );
    assert_eq!(
        answered["results"][1]["statuses"],
        json!([ok, ok, ok, none])
    );
    assert_eq!(
        answered["results"][2]["values"],
        json!([1_577_934_245, 1_577_934_245, null, null])
    );
}

#[test]
fn a_newer_row_stands_whatever_order_rows_come_in_and_one_sent_twice_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let write = |rate: f64, at: &str| {
        let frame = json!({"driver_id": [5], "conv_rate": [rate], "trips": [null], "city": [null], "active": [null], "since": [null], "at": [at]});
        let reply = ask(
            &gateway,
            "/write-to-online-store",
            &json!({"feature_view_name": "drivers", "df": frame}),
        );
        assert_eq!(reply.status, 200, "{}", reply.text());
        let count = |name: &str| reply.header(name).unwrap().parse::<u64>().unwrap();
        (count("loopgate-accepted"), count("loopgate-duplicates"))
    };
    assert_eq!(write(0.75, "2024-03-01T11:59:00Z"), (1, 0));
    assert_eq!(write(0.1, "2024-03-01T11:58:00Z"), (1, 0));
    assert_eq!(write(0.2, "2024-03-01T11:59:00Z"), (0, 1));
    let body = json!({"features": ["drivers:conv_rate"], "entities": {"driver_id": [5]}});
    let answered = ask(&gateway, "/get-online-features", &body).json();
    assert_eq!(answered["results"][1]["values"], json!([0.75]));
}

/// Status, Feast's class (or the kind of a schema error) and message of what is refused.
fn refused(gateway: &Gateway, path: &str, body: &str) -> (u16, String, String) {
    let reply = ask_at(gateway, path, body, NOW_MS);
    let said = reply.json();
    if let Some(text) = said.as_str() {
        let error: Value = serde_json::from_str(text).unwrap();
        assert_eq!(error["module"], "feast.errors");
        let text = |key: &str| error[key].as_str().unwrap().to_owned();
        return (reply.status, text("class"), text("message"));
    }
    let problem = &said["detail"][0];
    let text = |key: &str| {
        problem[key]
            .as_str()
            .unwrap_or_else(|| panic!("{said}"))
            .to_owned()
    };
    (
        reply.status,
        text("type"),
        format!("{} {}", problem["loc"], text("msg")),
    )
}

#[test]
fn reads_that_are_wrong_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "[serving]\nrows_max = 100\n");
    let many = json!({"features": ["drivers:trips"], "entities": {"driver_id": vec![1; 100_000]}})
        .to_string();
    let cases = [
        (
            many.as_str(),
            400,
            "FeastError",
            "100000 rows, at most 100 allowed",
        ),
        (
            r#"{"features":["none:x"],"entities":{"driver_id":[1]}}"#,
            404,
            "FeatureViewNotFoundException",
            "Feature view none does not exist",
        ),
        (
            r#"{"features":["drivers@v9:trips"],"entities":{"driver_id":[1]}}"#,
            404,
            "FeatureViewVersionNotFound",
            "Version 9 of feature view drivers",
        ),
        (
            r#"{"features":["drivers:x"],"entities":{"driver_id":[1]}}"#,
            404,
            "SpecifiedFeaturesNotPresentError",
            "feature view drivers has no feature x",
        ),
        (
            r#"{"feature_service":"none","entities":{"driver_id":[1]}}"#,
            404,
            "FeatureServiceNotFoundException",
            "Feature service none does not exist",
        ),
        (
            r#"{"features":["drivers:trips","driver_trips:trips"],"entities":{"driver_id":[1]}}"#,
            400,
            "FeatureNameCollisionError",
            "Duplicate features named trips",
        ),
        (
            r#"{"features":["drivers:trips"],"entities":{"driver":[1]}}"#,
            400,
            "FeastError",
            "lack the join key `driver_id` of feature view drivers",
        ),
        (
            r#"{"features":["drivers:trips"],"entities":{"driver_id":[]}}"#,
            400,
            "FeastError",
            "no rows",
        ),
        (
            r#"{"features":["drivers:trips"],"entities":{}}"#,
            400,
            "FeastError",
            "no rows",
        ),
        (
            r#"{"features":["pairs:count_1d"],"entities":{"driver_id":[1,2],"rider":["r"]}}"#,
            400,
            "FeastError",
            "column `rider` has 1 values where `driver_id` has 2",
        ),
        (
            r#"{"features":["drivers:trips"],"entities":{"driver_id":[1,"2"]}}"#,
            400,
            "FeastError",
            "column `driver_id`, row 1: expected int, found `2`",
        ),
        (
            r#"{"features":["drivers:trips"],"entities":{"driver_id":[null]}}"#,
            400,
            "FeastError",
            "column `driver_id`, row 0: may not be null",
        ),
        (
            r#"{"features":["trips"],"entities":{"driver_id":[1]}}"#,
            400,
            "FeastError",
            "`trips` is not a feature reference",
        ),
        (
            r#"{"features":[],"entities":{"driver_id":[1]}}"#,
            400,
            "FeastError",
            "no features are asked for",
        ),
        (
            r#"{"feature_service":"ranking","entities":{"driver_id":[1],"weather":["sun"]}}"#,
            404,
            "RequestDataNotFoundInEntityRowsException",
            "entities lack `distance`",
        ),
        (
            r#"{"feature_service":"ranking","entities":{"distance":[1],"weather":["sun"]}}"#,
            400,
            "FeastError",
            "lack the join key `driver_id` of feature service ranking",
        ),
        (
            r#"{"feature_service":"ranking","entities":{"driver_id":[1],"weather":[1],"distance":[1]}}"#,
            400,
            "FeastError",
            "column `weather`, row 0: expected string",
        ),
        (
            r#"{"features":["drivers:trips"]}"#,
            422,
            "missing",
            r#"["body","entities"] Field required"#,
        ),
        (
            r#"{"features":["drivers:trips"],"entities":[1]}"#,
            422,
            "dict_type",
            r#"["body","entities"]"#,
        ),
        (
            r#"{"features":["#,
            422,
            "json_invalid",
            r#"["body"] malformed request at byte 13"#,
        ),
    ];
    for (body, status, class, message) in cases {
        let shown: String = body.chars().take(90).collect();
        let found = refused(&gateway, "/get-online-features", body);
        assert_eq!(
            (found.0, found.1.as_str()),
            (status, class),
            "{shown}: {found:?}"
        );
        assert!(found.2.contains(message), "{shown}: {found:?}");
    }
    // Nothing of a row but its fields is looked at, and rows may repeat.
    let body = r#"{"features":["drivers:trips"],"entities":{"driver_id":[7,7]}}"#;
    let answered = ask_at(&gateway, "/get-online-features", body, NOW_MS).json();
    assert_eq!(
        answered["results"][1]["statuses"],
        json!(["NOT_FOUND", "NOT_FOUND"])
    );
}

#[test]
fn writes_that_would_lose_or_invent_a_value_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let write = |view: &str, frame: Value| {
        let body = json!({"feature_view_name": view, "df": frame}).to_string();
        refused(&gateway, "/write-to-online-store", &body)
    };
    let at = json!(["2024-03-01T11:00:00"]);
    let cases = [
        (
            "driver_trips",
            json!({"driver_id": [1]}),
            "computes `count_1d` from events: push them to source `trips`",
        ),
        (
            "dear_trips",
            json!({"driver_id": [1]}),
            "pass its filter: push them there",
        ),
        (
            "drivers",
            json!({"driver_id": [1], "conv_rate": [0.5], "event_timestamp": at}),
            "column `trips` is missing: a row of the view is written whole",
        ),
        (
            "only_a",
            json!({"id": [1], "a": [0.5], "event_timestamp": at}),
            "column `b` is missing: feature view only_b reads it of the same source `shared`",
        ),
        (
            "only_a",
            json!({"id": [1], "a": [0.5], "b": [1]}),
            "column `at` is missing: source `shared` needs it",
        ),
        (
            "only_a",
            json!({"a": [0.5], "b": [1], "at": at}),
            "column `id` is missing",
        ),
        (
            "only_a",
            json!({"id": [1], "a": [0.5], "b": [1], "at": at, "c": [1]}),
            "unknown column `c`",
        ),
        (
            "only_a",
            json!({"id": [1], "a": ["x"], "b": [1], "at": at}),
            "column `a`, row 0: expected float, found `x`",
        ),
        (
            "only_a",
            json!({"id": [1], "a": [1], "b": [1], "at": ["soon"]}),
            "column `at`, row 0: `soon` is not a time",
        ),
        (
            "only_a",
            json!({"id": [1], "a": [1], "b": [1], "at": at, "event_timestamp": at}),
            "columns `at` and `event_timestamp` are one field",
        ),
        (
            "only_a",
            json!({"id": [1], "a": [1], "b": [1], "event_timestamp": ["2024-03-01T13:00:00"]}),
            "3600000 ms ahead of now",
        ),
        ("only_a", json!({"id": []}), "no rows"),
        (
            "only_a",
            json!({"id": [1, 2], "a": [1]}),
            "column `id` has 2 values where `a` has 1",
        ),
    ];
    for (view, frame, message) in cases {
        let found = write(view, frame.clone());
        assert_eq!(
            (found.0, found.1.as_str()),
            (400, "FeastError"),
            "{frame}: {found:?}"
        );
        assert!(found.2.contains(message), "{frame}: {found:?}");
    }
    assert_eq!(
        write("none", json!({"id": [1]})).1,
        "FeatureViewNotFoundException"
    );
    let push = |body: Value| refused(&gateway, "/push", &body.to_string());
    let found = push(json!({"push_source_name": "none", "df": {"id": [1]}}));
    assert_eq!(
        (found.0, found.1.as_str()),
        (422, "PushSourceNotFoundException")
    );
    let found = push(json!({"push_source_name": "shared", "df": {"id": [1]}, "to": "offline"}));
    assert!(
        found.0 == 400 && found.2.contains("online_and_offline"),
        "{found:?}"
    );
    let found = push(json!({"push_source_name": "shared", "df": {"id": [1]}, "to": "disk"}));
    assert!(
        found.0 == 400 && found.2.contains("`to` is `disk`"),
        "{found:?}"
    );
    assert_eq!(push(json!({"df": {"id": [1]}})).1, "missing");
    // Nothing of all that was taken.
    let body = json!({"features": ["only_a:a"], "entities": {"id": [1]}});
    let answered = ask(&gateway, "/get-online-features", &body).json();
    assert_eq!(answered["results"][1]["statuses"], json!(["NOT_FOUND"]));
}

#[test]
fn materializing_is_checked_and_done_already() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = start(folder.path(), "");
    let range = json!({"start_ts": "2024-01-01", "end_ts": "2024-02-01T00:00:00+00:00", "feature_views": ["drivers"]});
    let reply = ask(&gateway, "/materialize", &range);
    assert_eq!((reply.status, reply.text()), (200, "null"));
    let reply = ask(&gateway, "/materialize?async=true&force=true", &range);
    assert_eq!(
        (reply.status, reply.json()),
        (
            202,
            json!({"status": "accepted", "feature_views": ["drivers"]})
        )
    );
    let reply = ask(
        &gateway,
        "/materialize-incremental",
        &json!({"end_ts": "2024-02-01"}),
    );
    assert_eq!((reply.status, reply.text()), (200, "null"));
    let timeless =
        json!({"disable_event_timestamp": true, "feature_views": ["drivers"], "version": "v1"});
    assert_eq!(ask(&gateway, "/materialize", &timeless).status, 200);
    for (path, body, status, class) in [
        (
            "/materialize",
            json!({"start_ts": "2024-01-01", "end_ts": "2024-02-01", "feature_views": ["none"]}),
            404,
            "FeatureViewNotFoundException",
        ),
        (
            "/materialize",
            json!({"start_ts": "2024-02-01", "end_ts": "2024-01-01"}),
            400,
            "FeastError",
        ),
        (
            "/materialize",
            json!({"end_ts": "2024-01-01"}),
            400,
            "FeastError",
        ),
        (
            "/materialize",
            json!({"start_ts": "x", "end_ts": "2024-01-01"}),
            400,
            "FeastError",
        ),
        (
            "/materialize",
            json!({"disable_event_timestamp": true, "version": "v1"}),
            400,
            "FeastError",
        ),
        ("/materialize-incremental", json!({}), 422, "missing"),
        (
            "/materialize-incremental",
            json!({"end_ts": 7}),
            422,
            "string_type",
        ),
    ] {
        let found = refused(&gateway, path, &body.to_string());
        assert_eq!(
            (found.0, found.1.as_str()),
            (status, class),
            "{path} {body}: {found:?}"
        );
    }
}

#[test]
fn acknowledged_frames_survive_kill_9() {
    let folder = tempfile::tempdir().unwrap();
    let mut gateway = start(folder.path(), "");
    write_drivers(&gateway);
    pushed(&gateway);
    gateway.kill();
    let gateway = start(folder.path(), "");
    let body = json!({"features": ["drivers:trips", "driver_trips:count_1d"], "entities": {"driver_id": [1002]}});
    let answered = ask_at(
        &gateway,
        "/get-online-features",
        &body.to_string(),
        NOW_MS + HOUR_MS,
    )
    .json();
    assert_eq!(
        answered["results"][1]["values"],
        json!([9_007_199_254_740_993_i64])
    );
    assert_eq!(answered["results"][2]["values"], json!([1]));
}

#[test]
fn without_a_project_feasts_routes_say_so() {
    let gateway = Gateway::with_models(&crate::process::Setup::default());
    assert_eq!(gateway.get("/health").status, 503);
    let body = r#"{"features":["a:b"],"entities":{"id":[1]}}"#;
    let found = refused(&gateway, "/get-online-features", body);
    assert_eq!((found.0, found.1.as_str()), (404, "FeastError"));
}

#[test]
fn what_is_not_in_memory_is_read_from_disk_and_answered_the_same() {
    const DRIVERS: usize = 300;
    let folder = tempfile::tempdir().unwrap();
    let drivers: Vec<usize> = (0..DRIVERS).collect();
    let entities = json!({"driver_id": drivers, "distance": vec![1; DRIVERS], "weather": vec!["sun"; DRIVERS]});
    let questions = [
        json!({"features": ["driver_trips:count_1d", "driver_trips:sum_fare_1d"], "entities": entities}),
        json!({"feature_service": "ranking", "entities": entities}),
    ];
    let warm = {
        let gateway = start(folder.path(), "");
        let pushed = ask(
            &gateway,
            "/push",
            &json!({"push_source_name": "trips", "df": {
                "trip": drivers, "driver_id": drivers, "rider": vec!["r1"; DRIVERS], "fare": drivers,
                "event_timestamp": vec!["2024-03-01 11:30:00"; DRIVERS],
            }}),
        );
        assert_eq!((pushed.status, pushed.text()), (200, ""));
        let warm = questions.each_ref().map(|question| {
            let answered = ask(&gateway, "/get-online-features", question);
            assert_eq!(answered.status, 200);
            answered.json()
        });
        gateway.drain();
        warm
    };
    assert_eq!(warm[0]["results"][2]["values"][299], 299.0);
    for (question, warm) in questions.iter().zip(warm) {
        // What a gateway finds in table files when it starts is in no memory but the system's.
        let gateway = start(folder.path(), "[store]\nblock_cache_mib = 1");
        let cold = ask(&gateway, "/get-online-features", question);
        assert_eq!((cold.status, cold.json()), (200, warm));
        eventually(|| gateway.metric("loopgate_cold_reads_total", "outcome=\"read\"") == 1.0);
        let again = ask(&gateway, "/get-online-features", question);
        assert_eq!(again.status, 200);
        assert_eq!(
            gateway.metric("loopgate_cold_reads_total", "outcome=\"read\""),
            1.0
        );
        gateway.drain();
    }
}
