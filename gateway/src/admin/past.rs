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
    stop: CancellationToken,
}

impl Past {
    pub(crate) fn new(stop: CancellationToken) -> Self {
        Self {
            passes: Arc::new(Semaphore::new(1)),
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
        let (stop, deadline) = (self.stop.clone(), Instant::now() + PASS_MAX);
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
            Ok(Err(TellError::Travel(TravelError::Ended))) => Err(Refusal::long_log(PASS_MAX)),
            Ok(told) => told.map_err(|error| Refusal::failed(error.to_string())),
            Err(error) => Err(Refusal::failed(error.to_string())),
        }
    }
}
