//! From one version of a service to the next for a model that serves: each version of the model reads its
//! own row of each request, there and back.

use std::collections::BTreeMap;
use std::sync::Arc;

use featurestore::{Definitions, FeatureStore, Role, StoreOptions};
use serde_json::{Value, json};

use crate::onnx::affine;
use crate::operator::{Operator, Project};
use crate::process::Gateway;

const DAY_MS: i64 = 86_400_000;

/// Two columns where the first version has three; the second is a mean that the first does not know.
const SECOND: &str = r#"
[[service]]
name = "score"
version = 2
request = { user = "string", base = "float" }
features = [
  { request = "base" },
  { name = "mean", expression = "user_clicks:sum_amount_7d / user_clicks:count_7d", default = -1 },
]
"#;

/// A click of `amount`, then a prediction that counts it, with its label; version and score.
fn click_and_predict(gateway: &Gateway, at_ms: i64, amount: f64) -> (String, f64) {
    let time = at_ms.to_string();
    let headers = [("loopgate-time-ms", time.as_str())];
    let send = |path: &str, body: &Value| {
        let mut connection = gateway.connect();
        let reply = connection.request("POST", path, &headers, body.to_string().as_bytes());
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        reply.json()
    };
    let click = json!({"events": [{"id": at_ms, "user": "u1", "at": at_ms, "amount": amount}]});
    send("/v1/events/clicks", &click);
    let column = |name: &str, ty: &str, value: Value| json!({"name": name, "shape": [1], "datatype": ty, "data": [value]});
    let infer = json!({"id": time, "inputs": [column("user", "BYTES", json!("u1")), column("base", "FP64", json!(0.5))]});
    let answer = send("/v2/models/bound/infer", &infer);
    let id = answer["parameters"]["prediction_id"].as_str().unwrap();
    let label = json!({"prediction_id": format!("{id}/0"), "value": 1.0, "label_time": at_ms});
    send("/v1/labels", &json!({"labels": [label]}));
    let version = answer["model_version"].as_str().unwrap().to_owned();
    (version, answer["outputs"][0]["data"][0].as_f64().unwrap())
}

/// Waits until these versions are champion and fallback and answer.
fn until_served(operator: &mut Operator, champion: u64, fallback: Option<u64>) {
    operator.until("/v1/models/bound", |model| {
        let aliases = &model["serving"];
        model["ready"] == true
            && aliases["champion"].as_u64() == Some(champion)
            && aliases["fallback"].as_u64() == fallback
    });
    operator.until("/v1/loop", |view| {
        view["busy"] == false && view["generation"] == view["loaded_generation"]
    });
}

fn json_of(project: &Project, arguments: &[&str]) -> Value {
    serde_json::from_str(&project.done(arguments)).unwrap()
}

/// Labelled rows of a version of the service.
fn rows(project: &Project, service: &str, features: &str) -> Value {
    let out = project.path().join("datasets").display().to_string();
    let arguments = [
        "feature",
        "dataset",
        "--model",
        "bound",
        "--service",
        service,
        "--features",
        features,
        "--from",
        "0",
        "--to",
        "999999999999",
        "--out",
        &out,
    ];
    json_of(project, &arguments)["about"]["rows"].clone()
}

#[test]
fn a_champion_goes_from_one_version_of_its_service_to_the_next_and_back() {
    let project = Project::new("[clock]\nmode = \"replay\"");
    project.register("bound", &affine(&[1.0, 1.0, 1.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    until_served(&mut operator, 1, None);
    // base + count + sum
    assert_eq!(
        click_and_predict(&gateway, DAY_MS, 4.0),
        ("1".to_owned(), 5.5)
    );
    gateway.drain();

    // The definitions gain a version, and the model's file names it: what serves stays as it is.
    let path = project.path().join("features.toml");
    let first = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, first + SECOND).unwrap();
    let model = "service = \"score@2\"\nfallback = [\"fallback\"]\nshadow = [\"fallback\"]";
    project.write("models/bound.toml", model.as_bytes());
    assert_eq!(
        rows(&project, "score@2", "served"),
        0,
        "nothing was served with it"
    );
    assert_eq!(rows(&project, "score@2", "recomputed"), 1);
    project.register("bound", &affine(&[10.0, 100.0], 0.0));
    let gateway = project.serve();
    let mut operator = Operator::of(&gateway);
    until_served(&mut operator, 1, None);
    assert_eq!(
        click_and_predict(&gateway, 2 * DAY_MS, 2.0),
        ("1".to_owned(), 8.5)
    );

    // 10 base + 100 mean; the old champion scores a copy by its own row.
    project.done(&["model", "promote", "bound", "2"]);
    until_served(&mut operator, 2, Some(1));
    assert_eq!(
        click_and_predict(&gateway, 3 * DAY_MS, 0.0),
        ("2".to_owned(), 205.0)
    );

    project.done(&["model", "rollback", "bound"]);
    until_served(&mut operator, 1, None);
    assert_eq!(
        click_and_predict(&gateway, 4 * DAY_MS, 0.0),
        ("1".to_owned(), 10.5)
    );
    gateway.drain();

    let verified = json_of(
        &project,
        &["feature", "verify", "--model", "bound", "--json"],
    );
    assert_eq!(
        (&verified["rows_checked"], &verified["mismatches"]),
        (&json!(4), &json!(0)),
        "rows of both versions: {verified}"
    );
    assert_eq!(rows(&project, "score@2", "recomputed"), 4);
    assert_eq!(rows(&project, "score@2", "served"), 1);
    assert_eq!(rows(&project, "score@1", "served"), 3);
    assert_eq!(recorded(&project), expected());
}

/// Who scored when, by a row of which service.
type Recorded = BTreeMap<(i64, u32), (Role, String, f32)>;

fn recorded(project: &Project) -> Recorded {
    let definitions = Definitions::load(&project.path().join("features.toml")).unwrap();
    let (data, options) = (project.path().join("data"), StoreOptions::default());
    let store = FeatureStore::open(&data, Arc::new(definitions), &options).unwrap();
    let records = store.served_rows("bound", i64::MIN, i64::MAX).unwrap();
    let told = records.into_iter().map(|record| {
        let service = record.service.as_deref().unwrap_or_default().to_owned();
        let day = record.at_ms / DAY_MS;
        ((day, record.version), (record.role, service, record.score))
    });
    told.collect()
}

fn expected() -> Recorded {
    let row = |day, version, role, service: &str, score| {
        ((day, version), (role, service.to_owned(), score))
    };
    [
        row(1, 1, Role::Champion, "score@1", 5.5),
        row(2, 1, Role::Champion, "score@1", 8.5),
        row(3, 2, Role::Champion, "score@2", 205.0),
        row(3, 1, Role::Shadow, "score@1", 9.5),
        row(4, 1, Role::Champion, "score@1", 10.5),
    ]
    .into()
}
