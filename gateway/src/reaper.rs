//! The reaper: a thread that drops the versions that nobody serves or runs any more.
//!
//! Letting go of a session may take as long as loading it did. Neither a request nor the control
//! thread pays that: the reaper holds what is retired until it is the last to hold it.

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, RecvTimeoutError, Sender, bounded};

use crate::table::{LiveTable, LoadedVersion, ModelTable};

/// Retired things that may wait; a swap beyond them waits until the reaper has taken one.
const RETIRED_MAX: usize = 256;
/// How often the reaper looks whether it is the last holder, while it holds anything.
const LOOK: Duration = Duration::from_millis(50);

/// What is not served any more.
pub(crate) enum Retired {
    Table(Arc<ModelTable>),
    Version(Arc<LoadedVersion>),
}

/// The way to the reaper; its thread ends when this is dropped.
pub(crate) struct Reaper {
    retired: Sender<Retired>,
}

impl Reaper {
    /// Starts the thread. It is not joined: at the end of the process memory goes by itself.
    pub(crate) fn start(live: Arc<LiveTable>) -> std::io::Result<Self> {
        let (retired, taken) = bounded(RETIRED_MAX);
        std::thread::Builder::new()
            .name("loopgate-reap".to_owned())
            .spawn(move || reap(&live, &taken))?;
        Ok(Self { retired })
    }

    pub(crate) fn retire(&self, retired: Retired) {
        // Without its thread what is retired is dropped here.
        drop(self.retired.send(retired));
    }
}

fn reap(live: &LiveTable, retired: &Receiver<Retired>) {
    let mut tables: Vec<Arc<ModelTable>> = Vec::new();
    let mut versions: Vec<Arc<LoadedVersion>> = Vec::new();
    loop {
        let received = match tables.is_empty() && versions.is_empty() {
            true => retired.recv().map_err(|_| RecvTimeoutError::Disconnected),
            false => retired.recv_timeout(LOOK),
        };
        match received {
            Ok(Retired::Table(table)) => tables.push(table),
            Ok(Retired::Version(version)) => versions.push(version),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        // A table is held by requests; once none does its versions are ours to watch.
        for table in tables.extract_if(.., |table| Arc::strong_count(table) == 1) {
            let served = table.models().flat_map(|model| model.versions.values());
            versions.extend(served.cloned());
        }
        versions.sort_by_key(Arc::as_ptr);
        versions.dedup_by(|a, b| Arc::ptr_eq(a, b));
        if let Some(table) = live.held() {
            versions.retain(|version| !table.holds(version));
        }
        // Runs, shadows and the control thread's own list hold versions too.
        versions.retain(|version| Arc::strong_count(version) > 1);
    }
}
