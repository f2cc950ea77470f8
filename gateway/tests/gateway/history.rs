//! History in and out through the real binary: what is exported and imported elsewhere is the same, and a
//! row of the past beside a gateway.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::operator::{Operator, Project};
use crate::patience::{StopWhenDropped, eventually};
use crate::process::Gateway;

const HOUR_MS: i64 = 3_600_000;

/// Every type, null where it may be, and texts that a file format must quote.
const FEATURES: &str = r#"
[[source]]
name = "visits"
time = "at"
id = ["id"]
fields = { id = "int", user = "string", at = "time", amount = "float?", page = "string?", paid = "bool" }

[[view]]
name = "user"
source = "visits"
keys = ["user"]
windows = ["6h", "7d"]
features = [{ count = true }, { sum = "amount" }, { rate = "paid" }, { distinct = "page" }, { last = "page" }]

[[service]]
name = "score"
version = 1
request = { user = "string", base = "float" }
features = [
  { request = "base" },
  { view = "user", features = ["count_6h", "count_7d", "sum_amount_6h", "rate_paid_7d", "distinct_page_7d"] },
  { view = "user", features = ["last_page"], dictionary = ["a,b", "\"c\"", "ä\nö"], missing = "refuse" },
]
"#;
const USERS: [&str; 3] = ["Zoë, \"Z\"", " u 2 ", "用户"];
const PAGES: [Option<&str>; 4] = [Some("a,b"), Some("\"c\""), None, Some("ä\nö")];

fn project() -> Project {
    let project = Project::new("");
    project.write("features.toml", FEATURES.as_bytes());
    project
}

/// A visit an hour, of one user after the other.
fn visits() -> String {
    let visit = |hour: i64| {
        let place = usize::try_from(hour).unwrap();
        let amount = (hour % 5 != 0).then_some(0.1 * hour as f64 - 1e9);
        json!({
            "id": hour * 1_000_000_000_007, "user": USERS[place % 3], "at": hour * HOUR_MS, "amount": amount,
            "page": PAGES[place % 4], "paid": hour % 3 == 0,
        })
    };
    (0..200)
        .map(|hour| visit(hour).to_string() + "\n")
        .collect()
}

/// A labelled question every two hours.
fn questions() -> String {
    let question = |hour: i64| {
        let at_ms = 2 * hour * HOUR_MS + 1;
        json!({
            "request_id": format!("q{hour}"), "at": at_ms, "user": USERS[usize::try_from(hour).unwrap() % 3],
            "base": hour as f64 / 3.0, "label": hour % 2, "label_known_at": at_ms + HOUR_MS,
        })
    };
    (0..100)
        .map(|hour| question(hour).to_string() + "\n")
        .collect()
}

/// Takes in a file of visits, then the questions.
fn fill(project: &Project, visits: &Path) {
    let argument = format!("visits={}", visits.display());
    let said = project.done(&["feature", "import", &argument]);
    assert!(said.contains("200 rows, 200 new, 0 known before"), "{said}");
    let asked = project.write("questions.jsonl", questions().as_bytes());
    let asked = asked.display().to_string();
    let said = project.done(&["feature", "backfill", "--model", "bound", &asked]);
    assert!(said.contains("100 rows, 100 with a label"), "{said}");
}

/// Name and row digest of a dataset.
fn dataset(project: &Project, features: &str) -> (String, String) {
    let out = project.path().join("datasets").display().to_string();
    let arguments = [
        "feature",
        "dataset",
        "--model",
        "bound",
        "--features",
        features,
        "--from",
        "0",
        "--to",
        "999999999",
        "--out",
        &out,
    ];
    let told: Value = serde_json::from_str(&project.done(&arguments)).unwrap();
    let [rows, refused] = [&told["about"]["rows"], &told["refused"]].map(|it| it.as_u64().unwrap());
    assert!(rows > 0 && refused > 0 && rows + refused == 100, "{told}");
    let file = told["file"].as_str().unwrap();
    assert!(Path::new(file).is_file(), "{file}");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&told["name"]), text(&told["about"]["digest"]))
}

fn row(project: &Project, user: &str) -> String {
    let user = format!("user={user}");
    let row = [
        "feature",
        "get",
        "score",
        &user,
        "base=1",
        "--at",
        "360000000",
        "--json",
    ];
    project.done(&row)
}

#[test]
fn exported_events_imported_elsewhere_give_the_same_rows_and_the_same_dataset() {
    let first = project();
    fill(&first, &first.write("visits.jsonl", visits().as_bytes()));
    let served = dataset(&first, "served");
    let recomputed = dataset(&first, "recomputed");
    assert_eq!(recomputed.1, served.1, "both ways give the same rows");
    assert_ne!(recomputed.0, served.0, "the name says which way");
    for file in ["out.parquet", "out.csv", "out.jsonl"] {
        let file = first.path().join(file);
        let path = file.display().to_string();
        let said = first.done(&["feature", "export", "--source", "visits", &path]);
        assert!(said.ends_with("200 rows\n"), "{said}");
        let again = first.fails(&["feature", "export", "--source", "visits", &path]);
        assert!(again.contains(&path), "what is there is kept: {again}");

        let second = project();
        fill(&second, &file);
        assert_eq!(dataset(&second, "served"), served, "{path}");
        assert_eq!(dataset(&second, "recomputed"), recomputed, "{path}");
        for user in USERS {
            assert_eq!(row(&second, user), row(&first, user), "{path}");
        }
        let path = second.path().join("rows.csv").display().to_string();
        let said = second.done(&["feature", "export", "--model", "bound", &path]);
        assert!(said.ends_with(" rows\n"), "{said}");
    }
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_read_or_written() {
    let project = project();
    let file = project.write("visits.jsonl", visits().as_bytes());
    let file = file.display();
    let (known, unknown) = (format!("visits={file}"), format!("visit={file}"));
    let said = project.fails(&["feature", "import", &known, &unknown]);
    assert!(said.contains("did you mean `visits`?"), "{said}");
    let said = project.fails(&["feature", "import", &known, "visits=no-such-file"]);
    assert!(said.contains("no-such-file"), "{said}");
    assert!(
        project
            .done(&["feature", "stats"])
            .contains("\"events\": 0")
    );
    let times = ["--from", "2000", "--to", "1970-01-01T00:00:01Z"];
    let dataset = ["feature", "dataset", "--model", "bound"];
    let export = ["feature", "export", "out.csv", "--source", "visits"];
    for arguments in [&dataset[..], &export] {
        let said = project.fails(&[arguments, &times].concat());
        let reason = "`--from` 1970-01-01T00:00:02Z is not before `--to` 1970-01-01T00:00:01Z";
        assert!(said.contains(reason), "{said}");
    }
    // Nobody has visited yet.
    let row = project.done(&["feature", "get", "score", "user=u", "base=1"]);
    let reason = "no model may answer from it: feature `user:last_page` is NOT_FOUND";
    assert!(row.contains(reason), "{row}");
    // Features by themselves are a project, too.
    std::fs::remove_dir_all(project.path().join("models")).unwrap();
    assert!(project.done(&["feature", "check"]).contains("view user@1"));
}

#[test]
fn a_dataset_is_written_beside_a_gateway_of_what_is_sealed() {
    let project = project();
    fill(
        &project,
        &project.write("visits.jsonl", visits().as_bytes()),
    );
    let alone = ["served", "recomputed"].map(|features| dataset(&project, features));
    let gateway = project.serve();
    let beside = ["served", "recomputed"].map(|features| dataset(&project, features));
    assert_eq!(beside, alone);
    gateway.drain();
}

/// A question about the past.
fn past() -> Value {
    let row = json!({"user": USERS[0], "base": 1.0});
    json!({"rows": [row], "at_ms": 360_000_000, "known_at_ms": 360_000_000})
}

#[test]
fn one_row_of_the_past_at_a_time_is_told_beside_a_gateway_and_others_are_shed() {
    let project = project();
    let many: String = (0..60_000)
        .map(|id| {
            let user = USERS[id % 3];
            let visit =
                json!({"id": id, "user": user, "at": id * 1000, "page": null, "paid": true});
            visit.to_string() + "\n"
        })
        .collect();
    let file = project.write("many.jsonl", many.as_bytes());
    project.done(&["feature", "import", &format!("visits={}", file.display())]);
    let alone = row(&project, USERS[0]);
    let gateway = project.serve();
    let shed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _end = StopWhenDropped(&shed);
        for _ in 0..3 {
            scope.spawn(|| ask_until(&gateway, &shed));
        }
        eventually(|| shed.load(Ordering::Relaxed));
    });
    // Nothing is under way any more: the command has its row from the gateway.
    let admin = gateway.admin.to_string();
    let user = format!("user={}", USERS[0]);
    let asked = [
        "feature",
        "get",
        "score",
        &user,
        "base=1",
        "--at",
        "360000000",
        "--json",
        "--admin",
        &admin,
    ];
    // The pass of a caller that has its answer may still be giving its place back.
    let mut told = String::new();
    eventually(|| {
        let output = project.command(&asked);
        told = String::from_utf8(output.stdout).unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() || complaint.contains("retry later"),
            "{complaint}"
        );
        output.status.success()
    });
    assert_eq!(told, alone);
    gateway.drain();
}

/// Asks for the past over and over, until somebody is shed.
fn ask_until(gateway: &Gateway, shed: &AtomicBool) {
    let mut operator = Operator::of(gateway);
    while !shed.load(Ordering::Relaxed) {
        let reply = operator.post("/v1/features/score", &past());
        match reply.status {
            200 => assert_eq!(reply.json()["rows"][0]["statuses"][0], "PRESENT"),
            429 => {
                assert!(reply.error().contains("retry later"), "{}", reply.text());
                shed.store(true, Ordering::Relaxed);
            }
            status => panic!("{status}: {}", reply.text()),
        }
    }
}
