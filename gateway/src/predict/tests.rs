//! The life of a prediction with a feature service, a chain and shadows, on a real store.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use featurestore::{PredictionRecord, Status};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::config::{EngineChoice, ServeArgs, ServeConfig};
use crate::metrics::Metrics;
use crate::onnx;
use crate::prepare::{Artifact, Blueprint, Verdicts, prepare};
use crate::serve::{Backstage, assemble, close};
use crate::table::{LoadedVersion, ModelParts, ModelTable, Publisher, Seats};

const FEATURES: &str = r#"
[[source]]
name = "visits"
time = "at"
id = ["id"]
fields = { id = "int", page = "string", at = "time", seconds = "float" }

[[view]]
name = "page_visits"
source = "visits"
keys = ["page"]
windows = ["1h"]
ttl = "1h"
features = [ { count = true }, { mean = "seconds" } ]

[[service]]
name = "visit"
version = 1
request = { page = "string?", length = "float" }
features = [ { request = "length" }, { view = "page_visits", default = 0.0 } ]

[[service]]
name = "strict"
version = 1
request = { page = "string?", length = "float" }
features = [ { request = "length" }, { view = "page_visits", features = ["count_1h"], missing = "refuse" } ]

[[service]]
name = "plain"
version = 1
request = { length = "float" }
features = [ { request = "length" } ]
"#;

const NOW_MS: i64 = 1_700_000_000_000;

/// A gateway without sockets.
struct Bench {
    desk: Desk,
    publisher: Publisher,
    backstage: Backstage,
    config: ServeConfig,
    _folder: TempDir,
}

/// A version to serve: its number, its service and the weights of its sum.
struct Made<'a>(u32, &'a str, &'a [f32], f32);

/// A model to publish: its name, versions and aliases.
type Model<'a> = (&'a str, &'a [Made<'a>], &'a [(&'a str, u32)]);

impl Bench {
    /// A project of one or more models, each with the text of its file.
    fn new(models: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        write("loopgate.toml", "[clock]\nmode = \"replay\"");
        write("features.toml", FEATURES);
        for (name, text) in models {
            write(&format!("models/{name}.toml"), text);
        }
        let config = ServeConfig::new(ServeArgs {
            project: Some(folder.path().to_owned()),
            ..ServeArgs::default()
        })
        .unwrap();
        let seats = Seats::new(1);
        let metrics = Arc::new(Metrics::unread());
        let (core, publisher, backstage) = assemble(&config, seats, metrics).unwrap();
        Self {
            desk: Desk::new(core, seats.serving(0)),
            publisher,
            backstage,
            config,
            _folder: folder,
        }
    }

    fn publish(&mut self, models: &[Model<'_>]) {
        let definitions = self.desk.core.store.as_ref().unwrap().definitions();
        let load = |model: &str, made: &Made<'_>| -> LoadedVersion {
            let &Made(version, service, weights, bias) = made;
            let blueprint = Blueprint {
                model: model.into(),
                version,
                file: Artifact::new(onnx::affine(weights, bias).into()),
                engine: EngineChoice::Auto,
                service: Some(Arc::clone(definitions.service(service).unwrap())),
                rows_max: None,
                golden: None,
                labels: BTreeMap::new(),
                trial: self.config.trial,
            };
            prepare(blueprint, Seats::new(1), &Verdicts::default()).unwrap()
        };
        let project = self.config.project.as_ref().unwrap();
        let parts = models.iter().map(|(name, versions, aliases)| ModelParts {
            name: (*name).into(),
            rules: Arc::clone(&project.models[&name.parse().unwrap()].rules),
            aliases: aliases
                .iter()
                .map(|&(alias, version)| (alias.into(), version))
                .collect(),
            versions: versions
                .iter()
                .map(|made| (made.0, Arc::new(load(name, made))))
                .collect(),
        });
        let table = ModelTable::new(1, parts.collect());
        self.publisher.publish(table, &self.desk.core.metrics);
    }

    fn visit(&self, id: i64, page: &str, ago_ms: i64) {
        let store = self.desk.core.store.as_ref().unwrap();
        let source = store.definitions().source("visits").unwrap();
        let event = json!({"id": id, "page": page, "at": NOW_MS - ago_ms, "seconds": 4.0});
        let event = source.parse_row(0, &event, NOW_MS).unwrap();
        store.ingest_events_blocking(vec![event], NOW_MS).unwrap();
    }

    fn predict(
        &self,
        model: &str,
        version: Option<&str>,
        body: &Value,
    ) -> Result<Value, PredictError> {
        let call = Call {
            target: Target {
                model: model.parse().unwrap(),
                version: version.map(Into::into),
            },
            place: self.desk.core.admission.enter().unwrap(),
            arrived: Instant::now(),
            at_ms: NOW_MS,
            probe: false,
        };
        let reply = block_on(predict(
            &self.desk,
            call,
            Json(body.to_string().into_bytes()),
        ))?;
        Ok(serde_json::from_slice(&reply).unwrap())
    }

    /// Everything recorded for a model, once shadows and recorder have settled.
    fn recorded(&self, model: &str) -> Vec<PredictionRecord> {
        let core = &self.desk.core;
        block_on(core.settle()).unwrap();
        core.store
            .as_ref()
            .unwrap()
            .served_rows(model, NOW_MS - 1, NOW_MS + 1)
            .unwrap()
    }

    fn end(self) {
        close(&self.desk.core, self.backstage).unwrap();
    }
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(future)
}

struct Json(Vec<u8>);

impl Wire for Json {
    type Reply = Vec<u8>;

    fn decode(&mut self) -> Result<InferRequest, DecodeError> {
        oip::decode(&self.0)
    }

    fn encode(&self, response: &Response<'_>) -> Result<Vec<u8>, EncodeError> {
        Ok(oip::encode(response)?.body)
    }
}

fn visits(pages: &[&str], lengths: &[f64]) -> Value {
    json!({"id": "call", "inputs": [
        {"name": "page", "datatype": "BYTES", "shape": [pages.len()], "data": pages},
        {"name": "length", "datatype": "FP64", "shape": [lengths.len(), 1], "data": lengths},
    ]})
}

/// Of each record: version, role and score, in order of these.
fn summary(records: &[PredictionRecord]) -> Vec<(u32, &'static str, f32)> {
    let mut summary: Vec<_> = records
        .iter()
        .map(|r| (r.version, r.role.as_str(), r.score))
        .collect();
    summary.sort_by(|a, b| a.partial_cmp(b).unwrap());
    summary
}

#[test]
fn a_row_is_assembled_scored_recorded_and_its_missing_features_reported() {
    let mut bench = Bench::new(&[("m", "service = \"visit\"")]);
    bench.publish(&[(
        "m",
        &[Made(1, "visit", &[1.0, 10.0, 100.0], 0.0)],
        &[("champion", 1)],
    )]);
    bench.visit(1, "a", 60_000);
    bench.visit(2, "a", 30_000);
    let answer = bench
        .predict("m", None, &visits(&["a", "b", ""], &[0.5, 0.25, 0.125]))
        .unwrap();
    // Two visits of four seconds on page a, none known elsewhere.
    assert_eq!(
        answer["outputs"][0]["data"],
        json!([0.5 + 20.0 + 400.0, 0.25, 0.125])
    );
    assert_eq!(answer["parameters"]["feature_status"], "NOT_FOUND=4");
    assert_eq!(
        (&answer["model_version"], &answer["id"]),
        (&json!("1"), &json!("call"))
    );

    let recorded = bench.recorded("m");
    let id = answer["parameters"]["prediction_id"].as_str().unwrap();
    assert_eq!(recorded.len(), 3);
    for (row, record) in recorded.iter().enumerate() {
        assert_eq!(record.prediction.id.to_string(), id);
        assert_eq!(
            (record.prediction.row as usize, record.role),
            (row, Role::Champion)
        );
        assert_eq!(record.service.as_deref(), Some("visit@1"));
        assert_eq!(record.request_id.as_deref(), Some("call"));
    }
    let features = recorded[0].features.as_ref().unwrap();
    assert_eq!(features.values, [0.5, 2.0, 4.0]);
    assert_eq!(features.statuses, [Status::Present; 3]);
    assert_eq!(recorded[2].request[0], featurestore::Value::Null);
    bench.end();
}

#[test]
fn requests_that_do_not_fit_the_service_are_refused() {
    let mut bench = Bench::new(&[("m", "service = \"visit\"")]);
    bench.publish(&[(
        "m",
        &[Made(1, "visit", &[1.0, 1.0, 1.0], 0.0)],
        &[("champion", 1)],
    )]);
    let page = |data: Value| json!({"name": "page", "datatype": "BYTES", "shape": [data.as_array().unwrap().len()], "data": data});
    let length = |datatype: &str, data: Value| json!({"name": "length", "datatype": datatype, "shape": [1], "data": data});
    for (inputs, part) in [
        (vec![page(json!(["a"]))], "`length` is missing"),
        (
            vec![page(json!(["a", "b"])), length("FP64", json!([1.0]))],
            "another input has 2",
        ),
        (
            vec![page(json!(["a"])), length("BYTES", json!(["1"]))],
            "does not fit a float",
        ),
        (
            vec![
                page(json!(["a"])),
                length("FP64", json!([1.0])),
                length("FP64", json!([1.0])),
            ],
            "twice",
        ),
        (
            vec![page(json!(["a"])), length("FP64", json!([1e300]))],
            "row 0",
        ),
        (
            vec![
                page(json!(["a"])),
                length("FP64", json!([1.0])),
                json!({"name": "more", "datatype": "BOOL", "shape": [1], "data": [true]}),
            ],
            "more",
        ),
    ] {
        let refused = bench
            .predict("m", None, &json!({"inputs": inputs}))
            .unwrap_err()
            .to_string();
        assert!(refused.contains(part), "{refused}");
    }
    let whole = bench.predict(
        "m",
        None,
        &json!({"inputs": [page(json!(["a"])), length("INT32", json!([3]))]}),
    );
    assert_eq!(whole.unwrap()["outputs"][0]["data"], json!([3.0]));
    let none = bench.predict("m", None, &visits(&[], &[])).unwrap();
    assert_eq!(
        none["outputs"][0],
        json!({"name": "score", "datatype": "FP32", "shape": [0, 1], "data": []})
    );
    assert_eq!(bench.recorded("m").len(), 1);
    bench.end();
}

#[test]
fn a_model_that_does_not_take_its_services_row_is_refused() {
    let bench = Bench::new(&[]);
    let definitions = bench.desk.core.store.as_ref().unwrap().definitions();
    for (bytes, part) in [
        (onnx::affine(&[1.0, 1.0], 0.0), "3 columns"),
        (onnx::whole_numbers(), "INT64"),
    ] {
        let blueprint = Blueprint {
            model: "m".into(),
            version: 1,
            file: Artifact::new(bytes.into()),
            engine: EngineChoice::Auto,
            service: Some(Arc::clone(definitions.service("visit").unwrap())),
            rows_max: None,
            golden: None,
            labels: BTreeMap::new(),
            trial: bench.config.trial,
        };
        let refused = prepare(blueprint, Seats::new(1), &Verdicts::default())
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(refused.contains(part), "{refused}");
    }
    bench.end();
}

#[test]
fn the_chain_answers_in_order_and_says_so() {
    let infinite = f32::INFINITY;
    let mut bench = Bench::new(&[(
        "m",
        "service = \"visit\"\nfallback = [\"fallback\", \"simple\"]\nconstant = 0.25",
    )]);
    let weights = &[1.0, 0.0, 0.0];
    let versions = [
        Made(1, "visit", weights, infinite),
        Made(2, "visit", weights, infinite),
        Made(3, "plain", &[2.0], 0.0),
    ];
    let aliases = [("champion", 1), ("fallback", 2), ("simple", 3)];
    bench.publish(&[("m", &versions, &aliases)]);
    let answer = bench.predict("m", None, &visits(&["a"], &[0.5])).unwrap();
    let parameters = &answer["parameters"];
    assert_eq!(
        (
            &answer["model_version"],
            &parameters["fallback"],
            &parameters["fallback_reason"]
        ),
        (&json!("3"), &json!(true), &json!("non_finite"))
    );
    assert_eq!(answer["outputs"][0]["data"], json!([1.0]));
    let recorded = bench.recorded("m");
    assert_eq!(summary(&recorded), [(3, "fallback", 1.0)]);
    assert_eq!(recorded[0].fallback_reason.as_deref(), Some("non_finite"));
    assert_eq!(recorded[0].service.as_deref(), Some("plain@1"));
    assert_eq!(recorded[0].features.as_ref().unwrap().values, [0.5]);

    let by_alias = bench.predict(
        "m",
        Some("simple"),
        &json!({"inputs": [{"name": "length", "datatype": "FP64", "shape": [1], "data": [4.0]}]}),
    );
    assert_eq!(by_alias.unwrap()["outputs"][0]["data"], json!([8.0]));

    bench.publish(&[("m", &versions[..2], &aliases[..2])]);
    let constant = bench
        .predict("m", None, &visits(&["a", "b"], &[0.5, 0.5]))
        .unwrap();
    assert_eq!(
        (&constant["model_version"], &constant["outputs"][0]["data"]),
        (&json!("constant"), &json!([0.25, 0.25]))
    );
    bench.end();
}

#[test]
fn a_row_without_a_feature_that_it_needs_goes_down_the_chain() {
    let mut bench = Bench::new(&[("m", "service = \"strict\"\nfallback = [\"simple\"]")]);
    let strict = Made(1, "strict", &[1.0, 1.0], 0.0);
    let lenient = Made(2, "plain", &[2.0], 0.0);
    let alone = [("champion", 1)];
    bench.publish(&[("m", &[strict], &alone)]);
    bench.visit(1, "known", 60_000);
    let answer = bench
        .predict("m", None, &visits(&["known"], &[0.5]))
        .unwrap();
    assert_eq!(answer["outputs"][0]["data"], json!([1.5]));
    let both = visits(&["known", "unknown"], &[0.5, 0.5]);
    let refused = bench.predict("m", None, &both).unwrap_err();
    assert!(matches!(
        refused,
        PredictError::Execute(ExecuteError::Missing(_))
    ));
    assert_eq!(
        refused.to_string(),
        "row 1: feature `page_visits:count_1h` is NOT_FOUND, and `strict@1` refuses a row without it"
    );
    let strict = Made(1, "strict", &[1.0, 1.0], 0.0);
    let aliases = [("champion", 1), ("simple", 2)];
    bench.publish(&[("m", &[strict, lenient], &aliases)]);
    let answer = bench.predict("m", None, &both).unwrap();
    assert_eq!(answer["outputs"][0]["data"], json!([1.0, 1.0]));
    assert_eq!(
        answer["parameters"]["fallback_reason"],
        json!("missing_feature")
    );
    // A caller who names the version gets no other.
    let refused = bench.predict("m", Some("1"), &both).unwrap_err();
    assert!(matches!(
        refused,
        PredictError::Execute(ExecuteError::Missing(_))
    ));
    bench.end();
}

#[test]
fn shadows_score_the_same_request_and_are_recorded_beside_the_answer() {
    let mut bench = Bench::new(&[
        (
            "m",
            "service = \"visit\"\nshadow = [\"frozen\", \"other@champion\"]",
        ),
        ("other", "service = \"plain\""),
    ]);
    bench.publish(&[
        (
            "m",
            &[
                Made(1, "visit", &[1.0, 0.0, 0.0], 0.0),
                Made(2, "visit", &[2.0, 0.0, 0.0], 0.0),
            ],
            &[("champion", 2), ("frozen", 1)],
        ),
        (
            "other",
            &[Made(7, "plain", &[3.0], 0.0)],
            &[("champion", 7)],
        ),
    ]);
    for _ in 0..50 {
        bench.predict("m", None, &visits(&["a"], &[1.0])).unwrap();
    }
    let recorded = bench.recorded("m");
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for row in summary(&recorded)
        .into_iter()
        .chain(summary(&bench.recorded("other")))
    {
        *counts.entry(format!("{row:?}")).or_default() += 1;
    }
    let expected = [
        "(1, \"shadow\", 1.0)",
        "(2, \"champion\", 2.0)",
        "(7, \"shadow\", 3.0)",
    ];
    assert_eq!(counts, expected.map(|row| (row.to_owned(), 50)).into());
    assert!(
        bench
            .recorded("other")
            .iter()
            .all(|record| record.features.is_some())
    );
    bench.end();
}

#[test]
fn a_probe_and_a_late_request_leave_no_record() {
    let mut bench = Bench::new(&[("m", "service = \"visit\"")]);
    bench.publish(&[(
        "m",
        &[Made(1, "visit", &[1.0, 0.0, 0.0], 0.0)],
        &[("champion", 1)],
    )]);
    let mut probe = visits(&["a"], &[1.0]);
    probe["parameters"] = json!({"loopgate_record": false});
    let answer = bench.predict("m", None, &probe).unwrap();
    assert!(answer["parameters"].get("prediction_id").is_none());
    let late = Call {
        target: Target {
            model: "m".parse().unwrap(),
            version: None,
        },
        place: bench.desk.core.admission.enter().unwrap(),
        arrived: Instant::now().checked_sub(Duration::from_secs(60)).unwrap(),
        at_ms: NOW_MS,
        probe: false,
    };
    let body = Json(visits(&["a"], &[1.0]).to_string().into_bytes());
    assert!(matches!(
        block_on(predict(&bench.desk, late, body)),
        Err(PredictError::Deadline(_))
    ));
    assert!(bench.recorded("m").is_empty());
    assert_eq!(bench.desk.core.admission.in_flight(), 0);
    bench.end();
}

#[test]
fn a_split_is_sticky_and_its_answers_are_the_challengers() {
    let mut bench = Bench::new(&[("m", "service = \"plain\"\ncanary_share = 0.5")]);
    bench.publish(&[(
        "m",
        &[Made(1, "plain", &[1.0], 0.0), Made(2, "plain", &[2.0], 0.0)],
        &[("champion", 1), ("challenger", 2)],
    )]);
    let version_of = |id: usize| {
        let body = json!({"id": format!("user {id}"), "inputs": [{"name": "length", "datatype": "FP64", "shape": [1], "data": [1.0]}]});
        bench.predict("m", None, &body).unwrap()["model_version"].clone()
    };
    let first: Vec<_> = (0..200).map(version_of).collect();
    assert_eq!(first, (0..200).map(version_of).collect::<Vec<_>>());
    let challenger = first.iter().filter(|&version| version == "2").count();
    assert!((60..140).contains(&challenger), "{challenger}");
    let roles = summary(&bench.recorded("m"));
    assert!(
        roles
            .iter()
            .all(|row| row.1 == if row.0 == 1 { "champion" } else { "challenger" })
    );
    bench.end();
}

#[test]
fn a_version_is_let_go_once_no_table_and_no_request_holds_it() {
    let mut bench = Bench::new(&[("m", "service = \"plain\"")]);
    let one = Made(1, "plain", &[1.0], 0.0);
    bench.publish(&[("m", &[one], &[("champion", 1)])]);
    let table = bench.desk.core.table.held().unwrap();
    let version = Arc::downgrade(&table.model("m").unwrap().versions[&1]);
    bench.publish(&[("m", &[Made(2, "plain", &[2.0], 0.0)], &[("champion", 2)])]);
    assert!(
        version.upgrade().is_some(),
        "a request still holds its table"
    );
    drop(table);
    let began = Instant::now();
    while version.strong_count() > 0 {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it is never dropped"
        );
        std::thread::yield_now();
    }
    bench.end();
}
