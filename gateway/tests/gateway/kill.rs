//! Kill -9 at any moment: an outside ledger of acknowledgements says what must be there afterwards.
//!
//! Three writers send batches of events and labels until the gateway is killed after a random number
//! of acknowledgements. What was in flight then is of unknown fate: it is sent again after the
//! restart, with some that were acknowledged long before, and everything must count exactly once.
//! `LOOPGATE_KILL_CYCLES` and `LOOPGATE_KILL_SEED` say how often and which way.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::operator::{Operator, Project};
use crate::process::Gateway;
use crate::wire::{Connection, request};

const CYCLES: usize = 100;
const WRITERS: usize = 3;
const USERS: usize = 7;

/// One batch, with its fate as the sender knows it.
#[derive(Clone)]
struct Batch {
    events: bool,
    rows: Vec<Value>,
    acknowledged: bool,
}

/// Everything that was ever sent, kept outside of the gateway.
#[derive(Default)]
struct Ledger {
    batches: Vec<Batch>,
    next_id: u64,
}

impl Ledger {
    fn new_batch(&mut self, random: &mut StdRng, now_ms: i64) -> usize {
        let (events, size) = (random.random_bool(0.6), random.random_range(1..20));
        let rows = (0..size).map(|_| {
            self.next_id += 1;
            let id = self.next_id;
            if events {
                // Whole amounts, so that their sum is exact.
                let user = format!("u{}", random.random_range(0..USERS));
                json!({"id": id, "user": user, "at": now_ms - random.random_range(0..60_000), "amount": f64::from(random.random_range(0..9_u8))})
            } else {
                let prediction = Uuid::from_u128((u128::from(id) << 80) | 0x7000_8000_0000_0000_0000_u128);
                json!({"prediction_id": prediction.to_string(), "value": 1.0, "label_time": now_ms})
            }
        });
        let rows = rows.collect();
        self.batches.push(Batch {
            events,
            rows,
            acknowledged: false,
        });
        self.batches.len() - 1
    }

    fn rows(&self, events: bool) -> impl Iterator<Item = &Value> {
        self.batches
            .iter()
            .filter(move |batch| batch.events == events)
            .flat_map(|batch| &batch.rows)
    }

    /// Count and sum of amounts of each user.
    fn by_user(&self) -> BTreeMap<String, (u64, f64)> {
        let mut users: BTreeMap<String, (u64, f64)> = BTreeMap::new();
        for event in self.rows(true) {
            let of_user = users
                .entry(event["user"].as_str().unwrap().to_owned())
                .or_default();
            of_user.0 += 1;
            of_user.1 += event["amount"].as_f64().unwrap();
        }
        users
    }
}

/// Sends a batch; its answer, or nothing when the gateway was killed meanwhile.
fn send(connection: &mut Connection, batch: &Batch) -> Option<Value> {
    let (path, key) = if batch.events {
        ("/v1/events/clicks", "events")
    } else {
        ("/v1/labels", "labels")
    };
    let body = json!({ key: batch.rows }).to_string();
    connection
        .send(&request("POST", path, &[], body.as_bytes()))
        .ok()?;
    let reply = connection.receive().ok()??;
    assert_eq!(reply.status, 200, "{}", reply.text());
    Some(reply.json())
}

/// One kill: which way its writers go, and after how many acknowledgements it comes.
struct Cycle {
    seed: u64,
    acks: usize,
    now_ms: i64,
}

/// Writers send until the gateway is killed.
fn write_until_killed(gateway: &mut Gateway, ledger: &mut Ledger, cycle: &Cycle) {
    let (shared, seen) = (Mutex::new(std::mem::take(ledger)), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (shared, seen, connection) = (&shared, &seen, gateway.connect());
                let seed = cycle.seed.wrapping_add((writer as u64) << 32);
                let random = StdRng::seed_from_u64(seed);
                scope.spawn(move || write(connection, random, shared, seen, cycle.now_ms))
            })
            .collect();
        // A writer that has ended has failed, and says so when it is joined.
        let all_write = || writers.iter().all(|writer| !writer.is_finished());
        while seen.load(Ordering::Relaxed) < cycle.acks && all_write() {
            std::thread::yield_now();
        }
        gateway.kill();
    });
    *ledger = shared.into_inner().unwrap();
}

/// Sends new batches until there is no answer any more.
fn write(
    mut connection: Connection,
    mut random: StdRng,
    shared: &Mutex<Ledger>,
    seen: &AtomicUsize,
    now_ms: i64,
) {
    loop {
        let (index, batch) = {
            let mut ledger = shared.lock().unwrap();
            let index = ledger.new_batch(&mut random, now_ms);
            (index, ledger.batches[index].clone())
        };
        let Some(answer) = send(&mut connection, &batch) else {
            return;
        };
        assert_eq!(answer["accepted"], batch.rows.len(), "{answer}");
        shared.lock().unwrap().batches[index].acknowledged = true;
        seen.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends again what is of unknown fate and some of what is not; both must count once.
fn send_again(gateway: &Gateway, ledger: &mut Ledger, random: &mut StdRng) {
    const OLD_BATCHES: usize = 5;
    let mut connection = gateway.connect();
    for batch in ledger
        .batches
        .iter_mut()
        .filter(|batch| !batch.acknowledged)
    {
        let answer = send(&mut connection, batch).expect("the gateway lives");
        let (accepted, duplicates) = (answer["accepted"].as_u64(), answer["duplicates"].as_u64());
        let rows = batch.rows.len() as u64;
        // A batch is whole or not there at all.
        assert!(
            matches!((accepted, duplicates), (Some(a), Some(d)) if a + d == rows && (a == 0 || d == 0)),
            "{answer}"
        );
        batch.acknowledged = true;
    }
    for _ in 0..OLD_BATCHES.min(ledger.batches.len()) {
        let batch = &ledger.batches[random.random_range(0..ledger.batches.len())];
        let answer = send(&mut connection, batch).expect("the gateway lives");
        assert_eq!(
            (&answer["accepted"], &answer["duplicates"]),
            (&json!(0), &json!(batch.rows.len()))
        );
    }
}

/// Everything in the ledger is there, once: in the counters and in the features.
fn check(gateway: &Gateway, ledger: &Ledger) {
    let mut operator = Operator::of(gateway);
    let stats = &operator.ask("/v1/features")["stats"];
    assert_eq!(stats["events"], ledger.rows(true).count(), "{stats}");
    assert_eq!(stats["labels"], ledger.rows(false).count(), "{stats}");
    assert_eq!(
        stats["pending_labels"],
        ledger.rows(false).count(),
        "{stats}"
    );
    let users = ledger.by_user();
    let rows: Vec<Value> = users
        .keys()
        .map(|user| json!({"user": user, "base": 0.0}))
        .collect();
    let read = operator.post("/v1/features/score", &json!({"rows": rows}));
    assert_eq!(read.status, 200, "{}", read.text());
    let read = read.json();
    for ((user, (count, sum)), row) in users.iter().zip(read["rows"].as_array().unwrap()) {
        let expected = json!([0.0, *count as f64, sum]);
        assert_eq!(row["values"], expected, "user {user}: {row}");
    }
}

#[test]
fn a_hundred_kills_lose_and_double_nothing() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let cycles =
        number("LOOPGATE_KILL_CYCLES").map_or(CYCLES, |cycles| usize::try_from(cycles).unwrap());
    let seed = number("LOOPGATE_KILL_SEED").unwrap_or_else(rand::random);
    println!("LOOPGATE_KILL_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let now_ms = i64::try_from(now.as_millis()).unwrap();
    let project = Project::new("");
    let mut ledger = Ledger::default();
    for cycle in 0..cycles {
        let mut gateway = project.serve();
        send_again(&gateway, &mut ledger, &mut random);
        check(&gateway, &ledger);
        let cycle = Cycle {
            seed: seed.wrapping_add(cycle as u64),
            acks: random.random_range(0..25),
            now_ms,
        };
        write_until_killed(&mut gateway, &mut ledger, &cycle);
    }
    let gateway = project.serve();
    send_again(&gateway, &mut ledger, &mut random);
    check(&gateway, &ledger);
    gateway.drain();
    let stats: Value = serde_json::from_str(&project.done(&["feature", "stats"])).unwrap();
    assert_eq!(stats["events"], ledger.rows(true).count());
}
