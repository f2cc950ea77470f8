//! Looking after the store, with a project or without, registry or none: each hour what was recorded is
//! sealed, and sealed files, old states and old keys are looked after.
//!
//! After an import that may take minutes, so nothing waits for it. Not in a replay: its hours pass in
//! moments, while files that it would merge and remove are read by trainers whose time is the machine's; it
//! is sealed before each training and at its end.

use std::time::Duration;

use featurestore::FeatureStore;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// From one seal to the next, so that a crash loses no more than an open spool and trainers outside of
/// us see fresh rows.
pub(super) const SEAL: Duration = Duration::from_secs(3600);
/// The same while the place of the sealed files is away.
const SEAL_AGAIN: Duration = Duration::from_secs(60);

/// Seals and looks after `store` in such intervals, until told to stop. At the end of serving the last seal waits for the one
/// under way.
pub(super) async fn look_after(
    store: Option<&FeatureStore>,
    clock: &Clock,
    interval: Duration,
    stop: &CancellationToken,
) {
    let Some(store) = store.filter(|_| !clock.is_replay()) else {
        return;
    };
    loop {
        let wait = match store.stats().offline {
            Some(_) => interval.min(SEAL_AGAIN),
            None => interval,
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        let (store, now_ms) = (store.clone(), clock.now_ms());
        let work = tokio::task::spawn_blocking(move || seal(&store, now_ms));
        tokio::select! {
            () = stop.cancelled() => return,
            done = work => if done.is_err() {
                tracing::error!("a seal panicked");
            }
        }
    }
}

fn seal(store: &FeatureStore, now_ms: i64) {
    match store.seal() {
        Ok(sealed) => tracing::info!(?sealed, "sealed"),
        Err(error) => tracing::error!(%error, "not sealed"),
    }
    match store.upkeep(now_ms) {
        Ok(upkept) => tracing::info!(?upkept, "store looked after"),
        Err(error) => tracing::error!(%error, "store not looked after"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use featurestore::{Definitions, Label, PredictionKey, StoreOptions};

    use super::*;
    use crate::clock::ClockMode;

    #[tokio::test]
    async fn a_store_without_a_project_is_sealed() {
        let data = tempfile::tempdir().unwrap();
        let definitions = Definitions::parse("", "features.toml").unwrap();
        let options = StoreOptions::default();
        let store = FeatureStore::open(data.path(), Arc::new(definitions), &options).unwrap();
        let label = Label {
            prediction: "0197a000-0000-7000-8000-000000000001/0"
                .parse::<PredictionKey>()
                .unwrap(),
            value: 1.0,
            label_ms: 5,
        };
        store.ingest_labels_blocking(vec![label], 5).unwrap();
        let labels = data.path().join("offline/labels");
        let sealed = || {
            let days = std::fs::read_dir(&labels).unwrap();
            days.flatten().any(|day| day.path().is_dir())
        };
        assert!(!sealed());
        let (clock, stop) = (Clock::new(ClockMode::Live), CancellationToken::new());
        let moment = Duration::from_millis(1);
        let until_sealed = async {
            for _ in 0..60_000 {
                if sealed() {
                    break;
                }
                tokio::time::sleep(moment).await;
            }
            stop.cancel();
        };
        tokio::join!(
            look_after(Some(&store), &clock, moment, &stop),
            until_sealed
        );
        assert!(sealed(), "after a minute");
    }
}
