//! Rows of a past moment: a pass over the event log takes as long as the log is, so it runs on a thread
//! of its own, one at a time, and ends with its deadline or with the gateway.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use featurestore::{FeatureStore, TravelError};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::answer::Refusal;
use crate::lookup::{RowsAsked, RowsTold, TellError};

/// The longest pass. A caller waits for it, and callers give up after about half a minute.
const PASS_MAX: Duration = Duration::from_secs(25);

/// The one pass that may be under way; a second is shed.
pub(crate) struct Past {
    passes: Arc<Semaphore>,
    pass_max: Duration,
    stop: CancellationToken,
}

impl Past {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self {
            passes: Arc::new(Semaphore::new(1)),
            pass_max: PASS_MAX,
            stop,
        }
    }

    pub(super) async fn tell(
        &self,
        store: FeatureStore,
        asked: RowsAsked,
    ) -> Result<RowsTold, Refusal> {
        let pass = Arc::clone(&self.passes).try_acquire_owned();
        let pass = pass.map_err(|_| Refusal::past_is_busy())?;
        let (stop, deadline) = (self.stop.clone(), Instant::now() + self.pass_max);
        let told = tokio::task::spawn_blocking(move || {
            // Held until the pass has ended, though the caller may be gone.
            let _pass = pass;
            asked.tell(&store, &mut |_| {
                if stop.is_cancelled() || Instant::now() > deadline {
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            })
        });
        match told.await {
            Ok(Err(TellError::Travel(TravelError::Ended))) if self.stop.is_cancelled() => {
                Err(Refusal::stopping())
            }
            Ok(Err(TellError::Travel(TravelError::Ended))) => Err(Refusal::long_log(self.pass_max)),
            Ok(told) => told.map_err(|error| Refusal::failed(error.to_string())),
            Err(error) => Err(Refusal::failed(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use featurestore::{Definitions, StoreOptions, Value};

    use super::*;
    use crate::lookup::{Target, Times};

    const DEFINITIONS: &str = r#"
[[source]]
name = "clicks"
time = "at"
id = ["id"]
fields = { id = "int", user = "string", at = "time" }

[[view]]
name = "user"
source = "clicks"
keys = ["user"]
windows = ["7d"]
features = [{ count = true }]
"#;

    /// Enough for a pass to be asked whether it may go on.
    const EVENTS: i64 = 10_000;

    fn filled() -> (FeatureStore, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let definitions = Definitions::parse(DEFINITIONS, "features.toml").unwrap();
        let options = StoreOptions::default();
        let store = FeatureStore::open(folder.path(), Arc::new(definitions), &options).unwrap();
        let source = store.definitions().source("clicks").unwrap();
        let click = |id| {
            let user = Value::String("u".into());
            let values = vec![Value::Int(id), user, Value::Int(1000)];
            source.event(0, values, 1000).unwrap()
        };
        let clicks = (0..EVENTS).map(click).collect();
        store.ingest_events_blocking(clicks, 1000).unwrap();
        (store, folder)
    }

    fn asked(store: &FeatureStore) -> RowsAsked {
        let target = Target::find(store.definitions(), "user").unwrap();
        let row = serde_json::json!({"user": "u"})
            .as_object()
            .unwrap()
            .clone();
        let times = Times {
            at_ms: 2000,
            known_at_ms: Some(2000),
        };
        RowsAsked::new(target, &[row], times).unwrap()
    }

    async fn refused(past: &Past, store: &FeatureStore) -> String {
        let told = past.tell(store.clone(), asked(store)).await;
        format!("{:?}", told.unwrap_err())
    }

    #[tokio::test]
    async fn one_pass_at_a_time_is_made_and_ends_with_its_deadline_or_the_gateway() {
        let (store, _folder) = filled();
        let stop = CancellationToken::new();
        let mut past = Past::new(stop.clone());
        let told = past.tell(store.clone(), asked(&store)).await.unwrap();
        assert_eq!(told.rows[0].values, [EVENTS]);

        let other = Arc::clone(&past.passes).acquire_owned().await.unwrap();
        let said = refused(&past, &store).await;
        assert!(
            said.contains("429") && said.contains("retry later"),
            "{said}"
        );
        drop(other);

        past.pass_max = Duration::ZERO;
        let said = refused(&past, &store).await;
        assert!(
            said.contains("503") && said.contains("longer than 0ns"),
            "{said}"
        );

        past.pass_max = PASS_MAX;
        stop.cancel();
        let said = refused(&past, &store).await;
        assert!(said.contains("503") && said.contains("stopping"), "{said}");
        assert_eq!(
            past.passes.available_permits(),
            1,
            "each gave its place back"
        );
    }
}
