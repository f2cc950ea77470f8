//! `loopgate feature …` through the real binary, with and without a gateway beside it.

use std::sync::Arc;

use featurestore::{
    Definitions, FeatureStore, PredictionKey, PredictionRecord, Role, StoreOptions,
    Value as FieldValue,
};
use serde_json::{Value, json};

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::process::Gateway;

const DAY_MS: i64 = 86_400_000;

/// Six clicks of `u1`, a day apart from day 1 on, each of amount 2.
fn import_clicks(project: &Project) {
    let events: String = (1..=6)
        .map(|day| {
            json!({"id": day, "user": "u1", "at": day * DAY_MS, "amount": 2.0}).to_string() + "\n"
        })
        .collect();
    let file = project.write("clicks.jsonl", events.as_bytes());
    let argument = format!("clicks={}", file.display());
    project.done(&["feature", "import", &argument]);
}

fn json_of(project: &Project, arguments: &[&str]) -> Value {
    serde_json::from_str(&project.done(arguments)).unwrap()
}

/// The values of a row as `get --json` tells it.
fn values(told: &Value) -> Vec<Value> {
    let features = told["features"].as_array().unwrap();
    features.iter().map(|it| it["value"].clone()).collect()
}

#[test]
fn what_is_defined_is_listed_and_drawn() {
    let project = Project::new("");
    let listed = project.done(&["feature", "list"]);
    for line in [
        "  clicks  4 fields  time at  id id  lateness any\n",
        "  user  keys user\n",
        "  user_clicks@1  from clicks  keys user  windows 7d  ttl none  2 features\n",
        "  score@1  request user, base  views user_clicks@1  3 features\n",
    ] {
        assert!(listed.contains(line), "{line}\n{listed}");
    }
    let listed = json_of(&project, &["feature", "list", "--json"]);
    assert_eq!(
        listed["views"][0]["windows"][0]["error_ms"],
        7 * DAY_MS / 12
    );

    let drawn = project.done(&["feature", "show", "user_clicks"]);
    let expected = "\
view user_clicks@1

  source clicks
  │      at at; counts however late, while its tile is held
  ▼
  by     user string
  │
  └─ window 7d: 7d, sliding; may fall short by 14h at its older end
       count_7d       int
       sum_amount_7d  float
";
    assert_eq!(drawn, expected);
    let drawn = project.done(&["feature", "show", "score@1"]);
    let expected = "\
service score@1

  request  user string, base float
  └─ view user_clicks@1  by user, from clicks

     feature                    from     of                           where missing  clip
  0  base                       request  base                         nan
  1  user_clicks:count_7d       view     user_clicks@1:count_7d       0
  2  user_clicks:sum_amount_7d  view     user_clicks@1:sum_amount_7d  0
";
    assert_eq!(drawn, expected);
    let shown = json_of(&project, &["feature", "show", "score", "--json"]);
    assert_eq!(shown["features"][1]["default"], 0.0);
    let unknown = project.fails(&["feature", "show", "user_click"]);
    assert!(
        unknown.contains("did you mean `user_clicks@1`?"),
        "{unknown}"
    );
}

#[test]
fn a_reader_that_has_had_enough_is_no_failure() {
    let project = Project::new("");
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_loopgate"))
        .args(["feature", "list", "--project"])
        .arg(project.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaint.is_empty(),
        "{complaint}"
    );
}

#[test]
fn a_check_says_what_applying_would_do_and_a_changed_meaning_is_refused() {
    let project = Project::new("");
    let check = |project: &Project| project.done(&["feature", "check"]);
    for line in [
        "source clicks: 4 fields\n",
        "view user_clicks@1: 2 features, new\n",
        "service score@1: 3 features, new\n",
    ] {
        assert!(check(&project).contains(line), "{line}");
    }
    assert!(check(&project).contains("new"), "a check applies nothing");
    let applied = project.done(&["feature", "apply"]);
    assert_eq!(applied, "service score@1: new\nview user_clicks@1: new\n");
    let gateway = project.serve();
    // A check reads beside the gateway.
    assert!(check(&project).contains("service score@1: 3 features, unchanged"));
    let refused = project.fails(&["feature", "apply"]);
    assert!(
        refused.contains(&format!("pid {}", gateway.pid())),
        "{refused}"
    );
    gateway.drain();

    let path = project.path().join("features.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("default = 0", "default = 1")).unwrap();
    for command in ["check", "apply"] {
        let refused = project.fails(&["feature", command]);
        assert!(
            refused.contains("service `score@1` has changed") && refused.contains("version 2"),
            "{refused}"
        );
    }
    let raised = text.replace("default = 0", "default = 1").replace(
        "name = \"score\"\nversion = 1",
        "name = \"score\"\nversion = 2",
    );
    std::fs::write(&path, raised).unwrap();
    let planned = json_of(&project, &["feature", "check", "--json"]);
    assert_eq!(
        planned,
        json!({"service score@2": "new", "view user_clicks@1": "unchanged"})
    );
}

#[test]
fn a_row_is_told_as_it_is_and_as_it_was_at_any_moment() {
    let project = Project::new("[clock]\nmode = \"replay\"");
    import_clicks(&project);
    let at = |day: i64| (day * DAY_MS + 1).to_string();
    let get = |more: &[&str]| {
        let mut arguments = vec!["feature", "get", "score", "user=u1", "base=0.5", "--json"];
        arguments.extend(more);
        json_of(&project, &arguments)
    };
    let told = get(&["--at", &at(3)]);
    assert_eq!(values(&told), [json!(0.5), json!(3.0), json!(6.0)]);
    assert_eq!(
        (&told["service"], &told["known_at_ms"], &told["as_of_seq"]),
        (&json!("score@1"), &json!(3 * DAY_MS + 1), &json!(3))
    );
    let count = &told["features"][1];
    assert_eq!(
        (&count["event_ms"], &count["age_ms"], &count["status"]),
        (&json!(3 * DAY_MS), &json!(1), &json!("PRESENT"))
    );
    // What had arrived a day before the row was asked for.
    let told = get(&["--at", &at(3), "--known-at", &at(2)]);
    assert_eq!(values(&told)[1], 2.0);
    // No event is known at all.
    let told = get(&["--at", "1970-01-01T12:00:00Z"]);
    assert_eq!(told["features"][1]["status"], "NOT_FOUND");
    assert_eq!(told["features"][1]["event_ms"], Value::Null);

    let view = ["feature", "get", "user_clicks", "user=u1", "--at", &at(2)];
    let drawn = project.done(&view);
    assert!(
        drawn.starts_with("view user_clicks@1 at 1970-01-03T00:00:00.001Z, known at"),
        "{drawn}"
    );
    assert!(
        drawn.contains("  sum_amount_7d  4.0    PRESENT  1970-01-03T00:00:00Z  1ms\n"),
        "{drawn}"
    );
    for (arguments, complaint) in [
        (
            &["feature", "get", "scor", "user=u1"][..],
            "did you mean `score",
        ),
        (
            &["feature", "get", "score", "usr=u1"],
            "did you mean `user`?",
        ),
        (
            &["feature", "get", "score", "user=u1"],
            "field `base` (float) is missing",
        ),
        (
            &["feature", "get", "score", "user=u1", "base=much"],
            "field `base`",
        ),
        (
            &["feature", "get", "score", "user=u1", "user=u2"],
            "given twice",
        ),
        (&["feature", "get", "score", "--at", "noon"], "noon"),
    ] {
        let said = project.fails(arguments);
        assert!(said.contains(complaint), "{arguments:?}: {said}");
    }
}

/// A click of `u1`, then a prediction that counts it, both at one replayed time.
fn click_and_predict(gateway: &Gateway, at_ms: i64) {
    let time = at_ms.to_string();
    let headers = [("loopgate-time-ms", time.as_str())];
    let click = json!({"events": [{"id": at_ms, "user": "u1", "at": at_ms, "amount": 1.0}]});
    let column = |name: &str, ty: &str, value: Value| json!({"name": name, "shape": [1], "datatype": ty, "data": [value]});
    let infer = json!({"inputs": [column("user", "BYTES", json!("u1")), column("base", "FP64", json!(0.5))]});
    for (path, body) in [
        ("/v1/events/clicks", click),
        ("/v2/models/bound/infer", infer),
    ] {
        let reply = gateway
            .connect()
            .request("POST", path, &headers, body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
}

#[test]
fn every_night_recomputes_what_was_served_and_tells_what_it_found() {
    const HOUR_MS: i64 = 3_600_000;
    let project = Project::new("[clock]\nmode = \"replay\"");
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/bound", |model| model["ready"] == true);
    operator.until("/v1/loop", |view| view["busy"] == false);
    for day in 2..6 {
        for hour in 0..4 {
            click_and_predict(&gateway, day * DAY_MS + hour * HOUR_MS);
        }
        let clock = json!({"now_ms": day * DAY_MS + 6 * HOUR_MS});
        let moved = operator.post("/v1/clock", &clock);
        assert_eq!(moved.status, 200, "{}", moved.text());
    }
    // The first morning makes nights due; each of the three after it ends one.
    let view = operator.until("/v1/loop", |view| {
        view["verifying"] == false && view["verification"]["bound"]["nights"] == 3
    });
    let bound = &view["verification"]["bound"];
    assert_eq!(
        (&bound["rows_checked"], &bound["mismatches"]),
        (&json!(12), &json!(0)),
        "{bound}"
    );
    assert_eq!(bound["until_ms"], 5 * DAY_MS + 6 * HOUR_MS);
    assert!(
        view["verification"].get("plain").is_none(),
        "it has no service"
    );
    let labels = "model=\"bound\"";
    assert_eq!(gateway.metric("loopgate_verified_rows_total", labels), 12.0);
    assert_eq!(
        gateway.metric("loopgate_verify_mismatches_total", labels),
        0.0
    );
    let admin = gateway.admin.to_string();
    let stats = json_of(&project, &["feature", "stats", "--admin", &admin]);
    assert_eq!(stats["verification"]["bound"]["rows_checked"], 12);
    gateway.drain();
}

/// A row that no gateway served: of 7 clicks where there is one at most.
fn plant(project: &Project, at_ms: i64) {
    let definitions = Definitions::load(&project.path().join("features.toml")).unwrap();
    let (data, options) = (project.path().join("data"), StoreOptions::default());
    let store = FeatureStore::open(&data, Arc::new(definitions), &options).unwrap();
    let service = store.definitions().service("score").unwrap();
    let request = vec![FieldValue::String("u1".into()), FieldValue::Float(0.5)];
    let rows = store.read_rows(service, std::slice::from_ref(&request), at_ms);
    let mut row = rows.unwrap().remove(0);
    row.values[1] = 7.0;
    let record = PredictionRecord {
        prediction: PredictionKey {
            id: uuid::Uuid::now_v7(),
            row: 0,
        },
        request_id: None,
        model: "bound".into(),
        version: 1,
        role: Role::Champion,
        at_ms,
        service: Some(service.id().into()),
        request: request.into(),
        features: Some(Arc::new(row)),
        score: 0.5,
        fallback_reason: None,
    };
    store.record(&[record]).unwrap();
    store.flush().unwrap();
}

#[test]
fn a_row_that_differs_stops_training_until_a_night_finds_none() {
    let project =
        Project::new("[clock]\nmode = \"replay\"\n[trainer]\nprogram = \"no-such-trainer\"");
    let model = "service = \"score\"\n[trigger]\nschedule = \"1h\"\ncooldown = \"1h\"";
    project.write("models/bound.toml", model.as_bytes());
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    plant(&project, 2 * DAY_MS);
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/bound", |model| model["ready"] == true);
    let mut morning = |day: i64| {
        operator.until("/v1/loop", |view| {
            view["busy"] == false && view["verifying"] == false
        });
        let clock = json!({"now_ms": day * DAY_MS + 6 * 3_600_000});
        let moved = operator.post("/v1/clock", &clock);
        assert_eq!(moved.status, 200, "{}", moved.text());
        operator.until("/v1/loop", |view| {
            view["busy"] == false && view["verifying"] == false
        })
    };
    // The first morning makes the nights due, the next orders one, and what it found is judged by the
    // third. Until then the schedule trains each day.
    let trainings = |view: &Value| view["models"]["bound"]["trainings"].as_u64().unwrap();
    morning(1);
    let view = morning(2);
    assert_eq!(view["verification"]["bound"]["mismatches"], 1, "{view}");
    let before = trainings(&view);
    assert!(before > 0, "{view}");
    let view = morning(3);
    let found = |view: &Value| view["models"]["bound"]["verdict"].clone();
    assert_eq!(found(&view), "data_fault", "{view}");
    let reason = view["models"]["bound"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("`user_clicks:count_7d` was served otherwise"),
        "{reason}"
    );
    assert_eq!(trainings(&view), before, "{view}");
    // The night of that morning found none.
    let view = morning(4);
    assert_ne!(found(&view), "data_fault", "{view}");
    assert_eq!(trainings(&view), before + 1, "the schedule goes on: {view}");
    let admin = gateway.admin.to_string();
    let stats = json_of(&project, &["feature", "stats", "--admin", &admin]);
    assert_eq!(stats["verification"]["bound"]["mismatches"], 1);
    gateway.drain();
}

#[test]
fn a_model_that_is_not_to_be_verified_is_not() {
    let project = Project::new("[clock]\nmode = \"replay\"");
    let model = "service = \"score\"\n[verify]\nwhen = \"off\"";
    project.write("models/bound.toml", model.as_bytes());
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    let view = operator.until("/v1/loop", |view| view["busy"] == false);
    assert!(view.get("verification").is_none(), "{view}");
}

#[test]
fn a_gateway_tells_the_rows_of_the_folder_that_it_holds() {
    let project = Project::new("[clock]\nmode = \"replay\"");
    import_clicks(&project);
    let past = [
        "feature",
        "get",
        "score",
        "user=u1",
        "base=1",
        "--json",
        "--at",
        "300000000",
    ];
    let alone = json_of(&project, &past);
    let gateway = project.serve();
    let admin = gateway.admin.to_string();
    let beside = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["--admin", &admin]);
        json_of(&project, &all)
    };
    assert_eq!(beside(&past), alone);
    let view = ["feature", "get", "view:user_clicks", "user=u1", "--json"];
    // A replay's clock stands at its beginning: six clicks are ahead of it.
    assert_eq!(beside(&view)["features"][0]["status"], "PRESENT");
    assert_eq!(beside(&["feature", "stats"])["events"], 6);

    let mut operator = Operator::of(&gateway);
    let rows = json!({"rows": [{"user": "u1"}, {"user": "none"}], "at_ms": 6 * DAY_MS});
    let read = operator.post("/v1/features/user_clicks", &rows).json();
    assert_eq!(read["rows"][0]["values"], json!([6, 12.0]), "{read}");
    assert_eq!(
        read["rows"][1]["statuses"],
        json!(["NOT_FOUND", "NOT_FOUND"])
    );
    assert_eq!(read["view"], "user_clicks@1");

    // Nobody answers there: whoever holds the folder is named.
    let nobody = ["feature", "stats", "--admin", "127.0.0.1:1"];
    let complaint = project.fails(&nobody);
    assert!(
        complaint.contains(&format!("pid {}", gateway.pid())),
        "{complaint}"
    );
    let refused = project.fails(&["feature", "verify", "--model", "bound"]);
    assert!(
        refused.contains(&format!("pid {}", gateway.pid())),
        "{refused}"
    );
}
