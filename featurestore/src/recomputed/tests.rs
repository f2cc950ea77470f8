//! Rows computed anew, stretch by stretch, against the rows as they were served.

use std::io::Write as _;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::backfill::BackfillRequest;
use crate::labels::Label;
use crate::predictions::{PredictionKey, PredictionRecord, Role};
use crate::value::Value;
use crate::{FeatureStore, StoreOptions};

const DEFINITIONS: &str = r#"
[[source]]
name = "clicks"
time = "at"
id = ["id"]
fields = { id = "int", user = "string", at = "time", price = "float?" }

[[view]]
name = "all_clicks"
source = "clicks"
keys = []
windows = ["1h", "1d"]
features = [{ count = true }, { mean = "price" }]

[[view]]
name = "user_clicks"
source = "clicks"
keys = ["user"]
windows = ["3h", "7d"]
features = [{ count = true }, { sum = "price" }, { last = "price" }, { age_of_last = true }]

[[service]]
name = "buys"
version = 1
request = { user = "string", price = "float" }
features = [
  { request = "price" },
  { view = "all_clicks" },
  { view = "user_clicks", features = ["last_price"], missing = "refuse" },
  { view = "user_clicks", features = ["count_3h", "sum_price_7d", "age_of_last"] },
]
"#;

const START_MS: i64 = 1_700_000_000_000;
const HOUR_MS: i64 = 3_600_000;

/// What happens in an hour: an event of `user` that is so many hours old, a request dated so many hours
/// back, and hours until its label comes.
#[derive(Debug, Clone)]
struct Hour {
    user: u8,
    late: i64,
    asked_back: i64,
    label_after: Option<i64>,
}

fn hours() -> impl Strategy<Value = Vec<Hour>> {
    // Requests dated back to the day before put rows of one stretch behind events of the next.
    let back = prop_oneof![6 => Just(0i64), 2 => 1i64..4, 1 => 20i64..30];
    let label = prop_oneof![4 => (0i64..60).prop_map(Some), 1 => Just(None)];
    let hour = (0u8..3, 0i64..5, back, label);
    let hour = hour.prop_map(|(user, late, asked_back, label_after)| Hour {
        user,
        late,
        asked_back,
        label_after,
    });
    prop::collection::vec(hour, 72..150)
}

fn user(number: u8) -> Value {
    Value::String(format!("user-{number}").into())
}

/// Runs the hours in the store, and puts another file of requests about them into its history.
fn live(store: &FeatureStore, hours: &[Hour], history: &Path) {
    let definitions = Arc::clone(store.definitions());
    let (source, service) = (
        definitions.source("clicks").unwrap(),
        definitions.service("buys").unwrap(),
    );
    let mut file = std::fs::File::create(history).unwrap();
    for (step, hour) in (1..).zip(hours) {
        let now_ms = START_MS + step * HOUR_MS;
        let price = match step % 4 {
            0 => Value::Null,
            _ => Value::Float(step as f64 / 3.0),
        };
        let values = vec![
            Value::Int(step),
            user(hour.user),
            Value::Int(now_ms - hour.late * HOUR_MS),
            price,
        ];
        let event = source.event(0, values, now_ms).unwrap();
        store.ingest_events_blocking(vec![event], now_ms).unwrap();
        let request = vec![user((hour.user + 1) % 4), Value::Float(step as f64)];
        let at_ms = now_ms - hour.asked_back * HOUR_MS;
        let row = store.read_rows(service, std::slice::from_ref(&request), at_ms);
        let row = row.unwrap().remove(0);
        let prediction = PredictionKey {
            id: Uuid::from_u128(step as u128),
            row: 0,
        };
        let record = PredictionRecord {
            prediction,
            request_id: Some(format!("{}", step % 7).into()),
            model: "buys".into(),
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
        let told_ms = START_MS + step * HOUR_MS;
        if let Some(after) = hour.label_after {
            let label = Label {
                prediction,
                value: (step % 2) as f32,
                label_ms: now_ms,
            };
            let arrived_ms = now_ms + after * HOUR_MS;
            store
                .ingest_labels_blocking(vec![label], arrived_ms)
                .unwrap();
        }
        if step % 3 == 0 {
            writeln!(
                file,
                r#"{{"user": "user-{}", "price": 1.5, "request_id": "h{step}", "at": {told_ms}, "label": 1.0, "label_known_at": {}}}"#,
                hour.user,
                told_ms + HOUR_MS,
            )
            .unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]

    #[test]
    fn rows_computed_stretch_by_stretch_are_those_that_were_served(
        hours in hours(),
        known_after in 0i64..200,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let definitions = Arc::new(Definitions::parse(DEFINITIONS, "features.toml").unwrap());
        let options = StoreOptions::default();
        let store = FeatureStore::open(folder.path(), definitions, &options).unwrap();
        let history = folder.path().join("history.jsonl");
        live(&store, &hours, &history);
        let backfill = BackfillRequest {
            model: "buys".into(),
            service: "buys".to_owned(),
            file: history,
        };
        store.backfill(&backfill, &mut |_| {}).unwrap();
        store.seal().unwrap();
        let query = TrainingQuery {
            model: "buys".to_owned(),
            service: "buys@1".to_owned(),
            from_ms: START_MS,
            to_ms: i64::MAX,
            known_by_ms: START_MS + known_after * HOUR_MS,
        };
        let place = location::existing(folder.path()).unwrap().unwrap();
        let tables = OfflineTables::read_only(&place).unwrap();
        let manifest = tables.predictions.manifest().unwrap();
        prop_assert!(Stretch::of(&manifest, &query).len() > 1);
        let served = crate::training_rows(folder.path(), store.definitions(), &query).unwrap();
        let computed = recomputed_rows(folder.path(), store.definitions(), &query).unwrap();
        prop_assert_eq!(&computed.predictions, &served.predictions);
        prop_assert_eq!(computed.digest, served.digest);
        prop_assert_eq!(computed.refused, served.refused);
        let order = |row: usize| (served.predicted_ms[row], served.request_ids[row].as_str());
        prop_assert!((1..served.rows()).all(|row| order(row - 1) <= order(row)));
        let out = folder.path().join("datasets");
        for features in [RowsFrom::Served, RowsFrom::Recomputed] {
            let asked = (&query, features);
            let dataset = sealed_dataset(folder.path(), store.definitions(), asked, &out).unwrap();
            prop_assert_eq!(dataset.about.rows, served.rows() as u64);
            prop_assert_eq!(dataset.refused, served.refused);
            prop_assert_eq!(dataset.about.digest, crate::offline::segments::hex(&served.digest));
        }
        let left = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name());
        prop_assert_eq!(left.filter(|name| name.to_string_lossy().ends_with(".tmp")).count(), 0);
        let matured = hours.iter().zip(1..).filter(|(hour, step)| {
            hour.label_after.is_some_and(|after| step + after <= known_after)
        });
        let history = (1..=hours.len() as i64).filter(|step| step % 3 == 0 && *step < known_after);
        let expected = matured.filter(|(hour, step)| step - hour.asked_back >= 0).count() + history.count();
        prop_assert_eq!(served.rows() + served.refused as usize, expected);
    }
}
