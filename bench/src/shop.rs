//! A project that is read for its features alone: profiles of 50 numbers, which Feast's server can hold
//! too, and clicks on items, of which a user is shown 500 at a time.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, ensure};
use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, TimestampMillisecondArray};
use chrono::Utc;
use parquet::arrow::ArrowWriter;
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng, SeedableRng};
use serde_json::{Map, Value, json};

use crate::client::Lane;
use crate::load::Call;
use crate::question;

/// Features of a profile.
pub(crate) const COLUMNS: usize = 50;
const ACCOUNTS: usize = 1000;
const USERS: i64 = 200;
const ITEMS: usize = 10_000;
const CLICKS: usize = 100_000;
const BATCH: usize = 500;
const DAY_MS: i64 = 86_400_000;
const READ: &str = "/get-online-features";

/// The project's `features.toml`.
pub(crate) fn features_toml() -> String {
    let each = |text: fn(usize) -> String| (0..COLUMNS).map(text).collect::<Vec<_>>().join(", ");
    let clicks = |name: &str, key: &str| {
        format!(
            "[[view]]\nname = \"{name}\"\nsource = \"clicks\"\nkeys = [\"{key}\"]\nwindows = [\"1h\", \"24h\", \"7d\"]\n\
             features = [{{ count = true }}, {{ mean = \"price\" }}, {{ rate = \"bought\" }}, {{ last = \"price\" }}]\n\n"
        )
    };
    let mut text = format!(
        "[[source]]\nname = \"profiles\"\ntime = \"changed_at\"\nid = [\"account\", \"changed_at\"]\n\
         fields = {{ account = \"int\", changed_at = \"time\", {} }}\n\n",
        each(|k| format!("f{k} = \"float\""))
    );
    text += "[[source]]\nname = \"clicks\"\ntime = \"clicked_at\"\nid = [\"click\"]\n\
             fields = { click = \"int\", user = \"int\", item = \"int\", clicked_at = \"time\", price = \"float\", bought = \"bool\" }\n\n";
    text += &format!(
        "[[view]]\nname = \"profile\"\nsource = \"profiles\"\nkeys = [\"account\"]\nfeatures = [{}]\n\n",
        each(|k| format!("{{ last = \"f{k}\", name = \"f{k}\" }}"))
    );
    text += &clicks("user_clicks", "user");
    text += &clicks("item_clicks", "item");
    text += "[[service]]\nname = \"ranking\"\nversion = 1\nrequest = { user = \"int\", item = \"int\" }\n\
             features = [{ view = \"user_clicks\" }, { view = \"item_clicks\" }]\n";
    text
}

/// One number for each feature of each account, all told at one time.
pub(crate) struct Profiles {
    changed_ms: i64,
    /// Column after column.
    columns: Vec<Vec<f64>>,
}

impl Profiles {
    pub(crate) fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut column = || (0..ACCOUNTS).map(|_| random.random::<f64>()).collect();
        Self {
            changed_ms: Utc::now().timestamp_millis() - DAY_MS,
            columns: (0..COLUMNS).map(|_| column()).collect(),
        }
    }

    /// Writes them as Feast reads them.
    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let accounts = Int64Array::from_iter_values(0..ACCOUNTS as i64);
        let times = TimestampMillisecondArray::from_value(self.changed_ms, ACCOUNTS);
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("account".into(), Arc::new(accounts)),
            (
                "event_timestamp".into(),
                Arc::new(times.with_timezone("UTC")),
            ),
        ];
        for (k, column) in self.columns.iter().enumerate() {
            let values = Float64Array::from(column.clone());
            columns.push((format!("f{k}"), Arc::new(values)));
        }
        let batch = RecordBatch::try_from_iter(columns)?;
        let mut writer = ArrowWriter::try_new(File::create(path)?, batch.schema(), None)?;
        writer.write(&batch)?;
        writer.close()?;
        Ok(())
    }

    /// Tells a gateway of them.
    pub(crate) async fn tell(&self, address: SocketAddr) -> Result<()> {
        let event = |account: usize| {
            let mut event = Map::new();
            event.insert("account".into(), account.into());
            event.insert("changed_at".into(), self.changed_ms.into());
            for (k, column) in self.columns.iter().enumerate() {
                event.insert(format!("f{k}"), column[account].into());
            }
            Value::Object(event)
        };
        tell(address, "profiles", (0..ACCOUNTS).map(event).collect()).await
    }
}

/// Tells a gateway of clicks of the last week.
pub(crate) async fn click(address: SocketAddr, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let now_ms = Utc::now().timestamp_millis();
    let click = |click: usize| {
        json!({
            "click": click,
            "user": random.random_range(0..USERS),
            "item": random.random_range(0..ITEMS),
            "clicked_at": now_ms - random.random_range(0..7 * DAY_MS),
            "price": f64::from(random.random_range(1i32..100_000)) / 100.0,
            "bought": random.random_bool(0.1),
        })
    };
    tell(address, "clicks", (0..CLICKS).map(click).collect()).await
}

async fn tell(address: SocketAddr, source: &str, events: Vec<Value>) -> Result<()> {
    let mut lane = Lane::new(address);
    for batch in events.chunks(BATCH) {
        let body = serde_json::to_vec(&json!({"events": batch}))?;
        let path = format!("/v1/events/{source}");
        let told = lane.post(&path, None, body.into()).await?;
        ensure!(
            told.json()?["accepted"] == batch.len(),
            "not every event was accepted: {}",
            String::from_utf8_lossy(&told.body)
        );
    }
    Ok(())
}

/// Questions for all features of `rows` accounts each.
pub(crate) fn profile_calls(count: usize, rows: usize, seed: u64) -> Vec<Call> {
    let mut random = StdRng::seed_from_u64(seed);
    let names: Vec<String> = (0..COLUMNS).map(|k| format!("profile:f{k}")).collect();
    let call = |_| {
        let accounts = sample(&mut random, ACCOUNTS, rows).into_vec();
        read(&json!({"features": names, "entities": {"account": accounts}}))
    };
    (0..count).map(call).collect()
}

/// Questions for `rows` items that one user is to be shown.
pub(crate) fn ranking_calls(count: usize, rows: usize, seed: u64) -> Vec<Call> {
    let call = |(users, items): (Value, Value)| {
        read(&json!({
            "feature_service": "ranking",
            "entities": {"user": users, "item": items},
            "full_feature_names": true,
        }))
    };
    shown(count, rows, seed).map(call).collect()
}

/// The same questions as tensors: the service asked as a model, its rows in binary.
pub(crate) fn ranking_tensors(count: usize, rows: usize, seed: u64) -> Vec<Call> {
    let call = |(users, items): (Value, Value)| {
        let input = |name: &str, data: Value| json!({"name": name, "datatype": "INT64", "shape": [rows], "data": data});
        let body = json!({
            "inputs": [input("user", users), input("item", items)],
            "outputs": [{"name": "features", "parameters": {"binary_data": true}}],
        });
        question::call("ranking@1", body.to_string().into(), Vec::new())
    };
    shown(count, rows, seed).map(call).collect()
}

/// A user, `rows` times, and as many items, for each question.
fn shown(count: usize, rows: usize, seed: u64) -> impl Iterator<Item = (Value, Value)> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..count).map(move |_| {
        let users = vec![random.random_range(0..USERS); rows];
        let items = sample(&mut random, ITEMS, rows).into_vec();
        (json!(users), json!(items))
    })
}

fn read(body: &Value) -> Call {
    Call {
        path: READ.into(),
        headers: vec![("content-type", "application/json".into())],
        body: body.to_string().into(),
    }
}
