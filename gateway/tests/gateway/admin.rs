//! The operator's ways in: the admin interface and the command line, on a running gateway.

use engine::proto::tensor_proto::DataLocation;
use engine::proto::{GraphProto, Message, ModelProto, StringStringEntryProto};
use serde_json::{Value, json};

use crate::onnx::{affine, whole_numbers};
use crate::operator::{Operator, Project};
use crate::process::{Gateway, Setup, refused};

const REPLAY: &str = "[clock]\nmode = \"replay\"";
const DAY_MS: i64 = 86_400_000;

fn bound_infer(gateway: &Gateway, at_ms: i64) -> crate::wire::Reply {
    let body = r#"{"inputs":[{"name":"user","shape":[1],"datatype":"BYTES","data":["u1"]},{"name":"base","shape":[1],"datatype":"FP64","data":[2.5]}]}"#;
    let at = at_ms.to_string();
    gateway.connect().request(
        "POST",
        "/v2/models/bound/infer",
        &[("loopgate-time-ms", &at)],
        body.as_bytes(),
    )
}

#[test]
fn what_a_browser_could_send_is_refused() {
    let project = Project::new("");
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    for (headers, status) in [
        (&["host: localhost"][..], 200),
        (&["host: 127.0.0.1:8003"], 200),
        (&["host: loopgate"], 200),
        (&["host: evil.example"], 403),
        (&["host: localhost", "origin: http://localhost"], 403),
        (&["host: localhost", "origin: null"], 403),
        (&["host: localhost", "host: evil.example"], 403),
    ] {
        let reply = operator.call("GET", "/v1/models", headers, "");
        assert_eq!(reply.status, status, "{headers:?}: {}", reply.text());
    }
    let foreign = operator.call(
        "POST",
        "/v1/models/bound/train",
        &["host: localhost", "origin: http://a"],
        "",
    );
    assert_eq!((foreign.status, foreign.error().is_empty()), (403, false));
}

#[test]
fn wrong_requests_are_refused_with_the_field_and_the_value() {
    let project = Project::new("");
    project.register("plain", &affine(&[1.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/plain", |model| model["ready"] == true);
    for (method, path, body, status, told) in [
        ("GET", "/", "", 404, "nothing"),
        ("GET", "/v1/models/none", "", 404, "none"),
        ("GET", "/v1/models/..", "", 400, ".."),
        ("GET", "/v1/models/%zz", "", 400, "percent"),
        ("GET", "/v1/models/plain/none", "", 404, "nothing"),
        (
            "GET",
            "/v1/models/plain/lineage/x",
            "",
            400,
            "`version`: `x`",
        ),
        ("GET", "/v1/models/plain/lineage/9", "", 404, "no version 9"),
        ("GET", "/v1/models/plain/runs/xyz", "", 400, "xyz"),
        (
            "GET",
            "/v1/models/plain/decisions?limit=-1",
            "",
            400,
            "`limit`: `-1`",
        ),
        ("POST", "/v1/loop", "", 405, "GET"),
        ("GET", "/v1/clock", "", 405, "POST"),
        ("DELETE", "/v1/models/plain", "", 405, "GET"),
        ("POST", "/v1/clock", "{\"now_ms\":1}", 409, "live"),
        ("POST", "/v1/clock", "{\"now_ms\":\"x\"}", 400, "now_ms"),
        ("POST", "/v1/clock", "{", 400, "body"),
        (
            "POST",
            "/v1/clock",
            "{\"now_ms\":1,\"now\":1}",
            400,
            "`now`",
        ),
        ("POST", "/v1/models/plain/promote", "{}", 400, "version"),
        (
            "POST",
            "/v1/models/plain/promote",
            "{\"version\":7}",
            404,
            "7",
        ),
        (
            "POST",
            "/v1/models/plain/promote",
            "{\"version\":1}",
            409,
            "no loop",
        ),
        (
            "POST",
            "/v1/models/plain/aliases/v1",
            "{\"version\":1}",
            400,
            "v1",
        ),
        (
            "POST",
            "/v1/models/plain/aliases/champion",
            "{\"version\":1}",
            409,
            "not unset",
        ),
        (
            "POST",
            "/v1/models/plain/aliases/champion",
            "{\"version\":9,\"expected\":1}",
            404,
            "9",
        ),
        ("POST", "/v1/features/none", "{\"rows\":[]}", 404, "none"),
        (
            "POST",
            "/v1/features/score",
            "{\"rows\":[{\"usr\":1}]}",
            400,
            "row 0: unknown field `usr`",
        ),
        (
            "POST",
            "/v1/features/score",
            "{\"rows\":[{\"user\":1,\"base\":1}]}",
            400,
            "field `user`",
        ),
    ] {
        let reply = operator.call(method, path, &["host: localhost"], body);
        assert_eq!(
            reply.status,
            status,
            "{method} {path} {body}: {}",
            reply.text()
        );
        assert!(
            reply.error().contains(told),
            "{method} {path} {body}: {}",
            reply.text()
        );
        assert_eq!(reply.header("allow").is_some(), status == 405);
    }
}

#[test]
fn a_model_is_served_as_soon_as_it_is_registered() {
    let project = Project::new("");
    let gateway = project.serve();
    let good = r#"{"inputs":[{"name":"features","shape":[1,1],"datatype":"FP32","data":[1]}]}"#;
    assert_eq!(gateway.get("/v2/health/live").status, 200);
    let mut operator = Operator::of(&gateway);
    // The empty release has been read: from now on the model is known, and not ready.
    operator.until("/v1/loop", |view| view["busy"] == false);
    assert_eq!(gateway.post("/v2/models/plain/infer", good).status, 503);
    assert_eq!(gateway.get("/v2/health/ready").status, 503);
    project.register("plain", &affine(&[1.0], 0.0));
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    operator.until("/v1/models", |list| {
        list["models"]
            .as_array()
            .unwrap()
            .iter()
            .all(|model| model["ready"] == true)
    });
    assert_eq!(gateway.post("/v2/models/plain/infer", good).status, 200);
    assert_eq!(gateway.get("/v2/health/ready").status, 200);
    let plain = operator.ask("/v1/models/plain");
    assert_eq!(
        (&plain["serving"], &plain["loaded"][0]["version"]),
        (&json!({"champion": 1}), &json!(1))
    );
    let bound = operator.until("/v1/models/bound", |model| {
        model["loop"]["state"] == "watching"
    });
    assert_eq!(bound["loaded"][0]["service"], "score@1");
    let history = operator.ask("/v1/models/plain/history");
    assert_eq!(history["history"][0]["to"], 1);
    assert_eq!(
        operator.ask("/v1/models/plain/versions")["versions"][0]["algorithm"],
        "external"
    );
    assert_eq!(
        operator.ask("/v1/models/plain/lineage/1")["version"]["version"],
        1
    );
    assert_eq!(operator.ask("/v1/models/plain/runs"), json!({"runs": []}));
}

#[test]
fn an_unsound_file_is_refused_with_the_reason_and_the_champion_serves_on() {
    let project = Project::new("");
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/bound", |model| model["ready"] == true);
    let sound = affine(&[1.0, 1.0, 1.0], 0.0);
    let cases = [
        (sound[..sound.len() / 2].to_vec(), "cut short"),
        (edited(&sound, unknown_operator), "`Shellac`"),
        (edited(&sound, external_data), "external file"),
        (affine(&[1.0, 1.0], 0.0), "3 columns"),
        (whole_numbers(), "score@1"),
        (b"not a model".to_vec(), "no"),
    ];
    for (onnx, told) in cases {
        let complaint = project.register_refused("bound", &onnx);
        assert!(complaint.contains(told), "{told}: {complaint}");
        assert!(complaint.contains("candidate.onnx"), "{complaint}");
    }
    assert_eq!(
        operator.ask("/v1/models/bound/versions")["versions"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(bound_infer(&gateway, 0).status, 200);
}

/// A sound file with one thing changed.
fn edited(sound: &[u8], edit: fn(&mut GraphProto)) -> Vec<u8> {
    let mut model = ModelProto::decode(sound).unwrap();
    edit(model.graph.as_mut().unwrap());
    model.encode_to_vec()
}

fn unknown_operator(graph: &mut GraphProto) {
    graph.node[1].op_type = "Shellac".into();
}

fn external_data(graph: &mut GraphProto) {
    let weights = &mut graph.initializer[0];
    weights.float_data.clear();
    weights.raw_data.clear();
    weights.data_location = Some(DataLocation::External as i32);
    weights.external_data = vec![StringStringEntryProto {
        key: "location".into(),
        value: "/etc/passwd".into(),
    }];
}

#[test]
fn aliases_are_set_by_compare_and_set_from_the_command_line() {
    let project = Project::new("");
    for bias in [1.0, 2.0, 3.0] {
        project.register("plain", &affine(&[0.0], bias));
    }
    let file = project.write("aliased.onnx", &affine(&[0.0], 4.0));
    let file = file.to_str().unwrap();
    project.done(&[
        "model", "register", file, "--name", "plain", "--alias", "trial",
    ]);
    let shown: Value = serde_json::from_str(&project.done(&["model", "show", "plain"])).unwrap();
    let aliases = &shown["release"]["aliases"];
    assert_eq!(*aliases, json!({"champion": 1, "trial": 4}));
    project.done(&["model", "alias", "plain", "trial", "none"]);
    let unknown = ["--name", "plain", "--service", "nowhere"];
    let arguments = [&["model", "register", file][..], &unknown].concat();
    assert!(project.fails(&arguments).contains("nowhere"));
    project.done(&["model", "alias", "plain", "frozen", "1", "--at-ms", "77"]);
    let conflict = project.fails(&[
        "model",
        "alias",
        "plain",
        "champion",
        "2",
        "--expected",
        "3",
    ]);
    assert!(conflict.contains("champion"), "{conflict}");
    project.done(&["model", "promote", "plain", "2"]);
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    let served =
        |view: &Value| view["serving"] == json!({"champion": 2, "fallback": 1, "frozen": 1});
    operator.until("/v1/models/plain", served);
    project.done(&["model", "rollback", "plain"]);
    operator.until("/v1/models/plain", |model| {
        model["serving"]["champion"] == 1
    });
    project.done(&["model", "alias", "plain", "frozen", "none"]);
    operator.until("/v1/models/plain", |model| {
        model["serving"]["frozen"].is_null()
    });
    let history: Value =
        serde_json::from_str(&project.done(&["model", "history", "plain"])).unwrap();
    let frozen = history
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["alias"] == "frozen")
        .unwrap();
    assert_eq!((&frozen["at_ms"], &frozen["to"]), (&json!(77), &json!(1)));
    assert!(project.done(&["model", "list"]).contains("champion=v1"));
    assert!(project.fails(&["model", "show", "none"]).contains("none"));
}

#[test]
fn a_promotion_goes_through_the_loop_and_keeps_the_old_champion_as_fallback() {
    let project = Project::new("");
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 1.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/bound", |model| model["ready"] == true);
    let reply = operator.post("/v1/models/bound/promote", &json!({"version": 2}));
    assert_eq!(
        (reply.status, &reply.json()["accepted"]),
        (200, &json!(true)),
        "{}",
        reply.text()
    );
    let served = |model: &Value| model["serving"] == json!({"champion": 2, "fallback": 1});
    operator.until("/v1/models/bound", served);
    operator.until("/v1/loop", |view| {
        view["models"]["bound"]["promotions"] == 1
    });
    let decisions = operator.ask("/v1/models/bound/decisions?kind=promotion&limit=5");
    assert_eq!(decisions["decisions"][0]["version"], 2);
    assert_eq!(
        operator.ask("/v1/models/bound/decisions?kind=none"),
        json!({"decisions": []})
    );

    let again = operator.post("/v1/models/bound/promote", &json!({"version": 2}));
    assert_eq!(again.status, 409, "{}", again.text());
    let reply = operator.post("/v1/models/bound/rollback", &json!({}));
    assert_eq!(reply.status, 200, "{}", reply.text());
    operator.until("/v1/models/bound", |model| {
        model["serving"]["champion"] == 1
    });
    gateway.drain();
    // The loop remembers what it did.
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    let view = operator.until("/v1/loop", |view| view["busy"] == false);
    let bound = &view["models"]["bound"];
    assert_eq!(
        (&bound["promotions"], &bound["rollbacks"]),
        (&json!(1), &json!(1)),
        "{bound}"
    );
}

#[test]
fn training_that_cannot_start_is_said_and_the_loop_goes_on() {
    let project = Project::new("[trainer]\nprogram = \"no-such-trainer\"");
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/bound", |model| model["ready"] == true);
    let reply = operator.post("/v1/models/bound/train", &json!({}));
    assert_eq!(reply.status, 409, "{}", reply.text());
    assert!(
        reply.error().contains("no-such-trainer"),
        "{}",
        reply.text()
    );
    let view = operator.until("/v1/loop", |view| view["busy"] == false);
    assert_eq!(view["models"]["bound"]["failed"], 1, "{view}");
    let admin = gateway.admin.to_string();
    let told = project.fails(&["trigger", "bound", "--admin", &admin]);
    assert!(told.contains("no-such-trainer"), "{told}");
    assert_eq!(bound_infer(&gateway, 0).status, 200);
}

#[test]
fn a_replay_moves_by_its_clock_alone() {
    let project = Project::new(REPLAY);
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    project.done(&[
        "model",
        "alias",
        "bound",
        "frozen",
        "1",
        "--at-ms",
        &DAY_MS.to_string(),
    ]);
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    operator.until("/v1/models/bound", |model| model["ready"] == true);
    let view = operator.settled(2);
    assert_eq!(
        view["now_ms"], DAY_MS,
        "a replay goes on where its history ends"
    );
    for day in 2..6 {
        let at_ms = day * DAY_MS;
        let click =
            json!({"events": [{"id": day, "user": "u1", "at": at_ms, "amount": 1.0}]}).to_string();
        let headers = [("loopgate-time-ms", at_ms.to_string())];
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let told =
            gateway
                .connect()
                .request("POST", "/v1/events/clicks", &headers, click.as_bytes());
        assert_eq!(told.status, 200, "{}", told.text());
        let answer = bound_infer(&gateway, at_ms).json();
        // base + count + sum: each day's click counts in the next answer.
        assert_eq!(
            answer["outputs"][0]["data"][0],
            2.5 + 2.0 * (day - 1) as f64,
            "{answer}"
        );
        let advanced = operator.post("/v1/clock", &json!({"now_ms": at_ms + 1}));
        assert_eq!(advanced.status, 200, "{}", advanced.text());
        let view = advanced.json();
        assert_eq!(
            (&view["now_ms"], &view["recorder_dropped"]),
            (&json!(at_ms + 1), &json!(0))
        );
        let view = operator.until("/v1/loop", |view| view["busy"] == false);
        assert_eq!(view["models"]["bound"]["champion"], 1);
    }
    let back = operator.post("/v1/clock", &json!({"now_ms": DAY_MS}));
    assert_eq!((back.status, back.error().contains("now_ms")), (400, true));
    // What was answered before the clock moved is in the log when it has moved.
    assert_eq!(operator.ask("/v1/features")["stats"]["predictions"], 4);
    gateway.drain();
    let report: Value = serde_json::from_str(&project.done(&[
        "feature", "verify", "--model", "bound", "--sample", "10", "--seed", "1", "--json",
    ]))
    .unwrap();
    assert_eq!(
        (&report["rows_checked"], &report["mismatches"]),
        (&json!(4), &json!(0)),
        "{report}"
    );
}

#[test]
fn history_is_imported_and_recomputed_from_the_command_line() {
    let project = Project::new(REPLAY);
    let events: String = (1..=6)
        .map(|id| {
            json!({"id": id, "user": "u1", "at": id * 1000, "amount": 2.0}).to_string() + "\n"
        })
        .collect();
    let file = project.write("clicks.jsonl", events.as_bytes());
    let argument = format!("clicks={}", file.display());
    assert!(
        project
            .done(&["feature", "import", &argument])
            .contains("6 new")
    );
    assert!(
        project
            .done(&["feature", "import", &argument])
            .contains("6 known before")
    );
    let questions: String = [2500, 4500]
        .map(|at| json!({"request_id": at.to_string(), "user": "u1", "base": 1.0, "at": at, "label": 1.0, "label_known_at": at + 9}).to_string() + "\n")
        .concat();
    let file = project.write("questions.jsonl", questions.as_bytes());
    let made = project.done(&[
        "feature",
        "backfill",
        "--model",
        "bound",
        file.to_str().unwrap(),
    ]);
    assert!(made.contains("2 rows, 2 with a label"), "{made}");
    let stats: Value = serde_json::from_str(&project.done(&["feature", "stats"])).unwrap();
    assert_eq!(
        (&stats["events"], &stats["duplicate_events"]),
        (&json!(6), &json!(6))
    );
    assert!(
        project
            .done(&["feature", "check"])
            .contains("service score@1: 3 features")
    );
    for (arguments, told) in [
        (&["feature", "import", "none=x.jsonl"][..], "none"),
        (
            &["feature", "import", "clicks=missing.jsonl"],
            "missing.jsonl",
        ),
        (
            &["feature", "backfill", "--model", "plain", "x"],
            "no feature service",
        ),
        (&["feature", "verify", "--model", "none"], "none"),
    ] {
        let complaint = project.fails(arguments);
        assert!(complaint.contains(told), "{arguments:?}: {complaint}");
    }
}

#[test]
fn one_data_folder_has_one_owner_who_is_named() {
    let project = Project::new("");
    let gateway = project.serve();
    let folder = project.path().to_str().unwrap();
    let second = refused(&["--project", folder]);
    let complaint = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success() && second.stdout.is_empty());
    let holder = format!("pid {}", gateway.pid());
    assert!(complaint.contains(&holder), "{complaint}");
    let complaint = project.fails(&["feature", "stats"]);
    assert!(complaint.contains(&holder), "{complaint}");
    // The registry may be read beside a gateway.
    project.done(&["model", "list"]);
    gateway.drain();
    project.done(&["feature", "stats"]);
}

#[test]
fn files_without_a_project_are_shown_and_cannot_be_changed() {
    let gateway = Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        ..Setup::default()
    });
    let mut operator = Operator::of(&gateway);
    let list = operator.ask("/v1/models");
    assert_eq!(
        (&list["models"][0]["model"], &list["models"][0]["ready"]),
        (&json!("m"), &json!(true))
    );
    assert_eq!(operator.get("/v1/models/none").status, 404);
    assert_eq!(operator.get("/v1/models/m/versions").status, 404);
    assert_eq!(operator.post("/v1/models/m/train", &json!({})).status, 404);
    assert_eq!(
        operator.post("/v1/clock", &json!({"now_ms": 1})).status,
        404
    );
    assert_eq!(operator.ask("/v1/loop")["models"], json!({}));
}
