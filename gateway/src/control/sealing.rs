//! When what was recorded is sealed: each hour, on a thread of its own, and the sealed files are looked
//! after. After an import that may take minutes, so nothing waits for it; one at a time.

use std::time::{Duration, Instant};

use featurestore::FeatureStore;
use tokio::task::JoinHandle;

/// The seal under way, and when it began.
pub(super) struct Sealing {
    began: Instant,
    work: Option<JoinHandle<()>>,
}

/// From one seal to the next, so that a crash loses no more than an open spool and trainers outside of
/// us see fresh rows.
const SEAL: Duration = Duration::from_secs(3600);

impl Sealing {
    /// The first seal comes an hour from now.
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            work: None,
        }
    }

    /// Begins a seal where one is due. At the end of serving the last seal waits for it.
    pub(super) fn look(&mut self, store: &FeatureStore, now_ms: i64) {
        let busy = self.work.as_ref().is_some_and(|work| !work.is_finished());
        if busy || self.began.elapsed() < SEAL {
            return;
        }
        self.began = Instant::now();
        let store = store.clone();
        self.work = Some(tokio::task::spawn_blocking(move || {
            match store.seal() {
                Ok(sealed) => tracing::info!(?sealed, "sealed"),
                Err(error) => tracing::error!(%error, "not sealed"),
            }
            match store.upkeep(now_ms) {
                Ok(upkept) => tracing::info!(?upkept, "sealed files looked after"),
                Err(error) => tracing::error!(%error, "sealed files not looked after"),
            }
        }));
    }
}
