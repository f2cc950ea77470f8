//! A project whose model looks its features up: accounts that pay. Four views of one entity, 68
//! features, and three fields of the request make the 71 columns of the models.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::client::Lane;
use crate::load::Call;
use crate::question::call;

pub(crate) const SERVICE: &str = "payment";
const ACCOUNTS: usize = 1000;
const PAYMENTS_PER_ACCOUNT: usize = 20;
const BATCH: usize = 500;
const EVENTS: &str = "/v1/events/payments";
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 1440 * MINUTE_MS;

/// The project's `features.toml`.
pub(crate) fn features_toml() -> String {
    let view = |name: &str, filter: &str, features: &str| {
        format!(
            "[[view]]\nname = \"{name}\"\nsource = \"payments\"\nkeys = [\"account\"]\n\
             windows = [\"1h\", \"6h\", \"24h\", \"7d\"]\n{filter}features = [{features}]\n\n"
        )
    };
    let mut text = "[[source]]\nname = \"payments\"\ntime = \"paid_at\"\nid = [\"payment\"]\n\
                    fields = { payment = \"int\", account = \"string\", paid_at = \"time\", amount = \"float\", fee = \"float\", declined = \"bool\", abroad = \"bool\" }\n\n\
                    [[entity]]\nname = \"account\"\nkeys = [\"account\"]\n\n"
        .to_owned();
    // 17 features each.
    let all = "{ mean = \"amount\" }, { sum = \"amount\" }, { mean = \"fee\" }, { count = true }";
    text += &view("all", "", &format!("{all}, {{ age_of_last = true }}"));
    text += &view(
        "risk",
        "",
        "{ rate = \"declined\" }, { rate = \"abroad\" }, { sum = \"fee\" }, { count = true }, { last = \"fee\" }",
    );
    for (name, field) in [("declines", "declined"), ("abroad", "abroad")] {
        let filter = format!("where = {{ field = \"{field}\", equals = true }}\n");
        text += &view(name, &filter, &format!("{all}, {{ last = \"amount\" }}"));
    }
    text += "[[service]]\nname = \"payment\"\nversion = 1\n\
             request = { account = \"string\", amount = \"float\", fee = \"float\", hour = \"float\" }\n\
             features = [\n  { request = \"amount\" },\n  { request = \"fee\" },\n  { request = \"hour\" },\n  \
             { view = \"all\" },\n  { view = \"risk\" },\n  { view = \"declines\" },\n  { view = \"abroad\" },\n]\n";
    text
}

/// Sends the payments of the last days.
pub(crate) async fn fill(address: SocketAddr, seed: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    let payments = 0..ACCOUNTS * PAYMENTS_PER_ACCOUNT;
    let payments: Vec<Value> = payments
        .map(|number| payment(number, 2 * DAY_MS, &mut random))
        .collect();
    let mut lane = Lane::new(address);
    for batch in payments.chunks(BATCH) {
        let body = serde_json::to_vec(&json!({"events": batch}))?;
        let told = lane.post(EVENTS, None, body.into()).await?;
        ensure!(
            told.json()?["accepted"] == batch.len(),
            "not every payment was accepted: {}",
            String::from_utf8_lossy(&told.body)
        );
    }
    Ok(())
}

/// Batches of payments that no other call has sent: numbers from `first` on, made in the last minute.
pub(crate) fn batches(first: usize, count: usize, size: usize) -> Vec<Call> {
    let mut random = StdRng::seed_from_u64(first as u64);
    let batch = |batch: usize| {
        let numbers = first + batch * size..first + (batch + 1) * size;
        let payments: Vec<Value> = numbers
            .map(|number| payment(number, MINUTE_MS, &mut random))
            .collect();
        Call {
            path: EVENTS.into(),
            headers: Vec::new(),
            body: json!({"events": payments}).to_string().into(),
        }
    };
    (0..count).map(batch).collect()
}

/// A payment of the last `age_ms_max`; accounts take turns.
fn payment(number: usize, age_ms_max: i64, random: &mut StdRng) -> Value {
    json!({
        "payment": number,
        "account": name(number % ACCOUNTS),
        "paid_at": Utc::now().timestamp_millis() - random.random_range(0..age_ms_max),
        "amount": f64::from(random.random_range(1i32..100_000)) / 100.0,
        "fee": f64::from(random.random_range(1i32..1000)) / 100.0,
        "declined": random.random_bool(0.2),
        "abroad": random.random_bool(0.3),
    })
}

/// Questions about accounts drawn at random, typed as the model's metadata says.
pub(crate) async fn calls(
    model: &str,
    address: SocketAddr,
    count: usize,
    seed: u64,
) -> Result<Vec<Call>> {
    let answer = Lane::new(address)
        .get(&format!("/v2/models/{model}"))
        .await?;
    let metadata = answer.json()?;
    let inputs = metadata["inputs"]
        .as_array()
        .context("the metadata lists no inputs")?;
    let mut random = StdRng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let tensors: Vec<Value> = inputs
                .iter()
                .map(|input| {
                    let value = match input["name"].as_str() {
                        Some("account") => json!(name(random.random_range(0..ACCOUNTS))),
                        Some("hour") => json!(random.random_range(0u8..24)),
                        _ => json!(f64::from(random.random_range(1i32..100_000)) / 100.0),
                    };
                    json!({"name": input["name"], "datatype": input["datatype"], "shape": [1], "data": [value]})
                })
                .collect();
            let body = serde_json::to_vec(&json!({"inputs": tensors}))?;
            Ok(call(model, body.into(), Vec::new()))
        })
        .collect()
}

fn name(account: usize) -> String {
    format!("account-{account:05}")
}
