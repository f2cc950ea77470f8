//! Every metric of this crate, with unit and help; handles are resolved when a store is opened.

mod database;

use std::sync::Arc;

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

pub(crate) use self::database::DatabaseMetrics;
use crate::definition::{Definitions, Source};
use crate::offline::place::Health;

/// Resolved handles of one store.
#[derive(Clone)]
pub(crate) struct StoreMetrics {
    pub(crate) events_accepted: Counter,
    pub(crate) events_duplicate: Counter,
    /// By the source's name.
    events_late: Vec<(Box<str>, Counter)>,
    pub(crate) labels_accepted: Counter,
    pub(crate) labels_duplicate: Counter,
    pub(crate) labels_replaced: Counter,
    pub(crate) labels_unknown: Counter,
    pub(crate) labels_expired: Counter,
    pub(crate) labels_pending: Gauge,
    pub(crate) predictions: Counter,
    pub(crate) spool_torn: Counter,
    pub(crate) quarantined: Counter,
    pub(crate) damaged: Gauge,
    pub(crate) queue_batches: Gauge,
    pub(crate) queue_bytes: Gauge,
    pub(crate) groups: Counter,
    pub(crate) stopped: Gauge,
    pub(crate) full: Gauge,
    offline_failures: Counter,
    offline_away: Gauge,
    pub(crate) states_from_memory: Counter,
    pub(crate) states_from_table: Counter,
    pub(crate) states_expired: Counter,
    pub(crate) database: DatabaseMetrics,
}

impl StoreMetrics {
    /// Resolves every handle with the recorder that is installed now.
    pub(crate) fn resolve(definitions: &Definitions) -> Self {
        let late = |source: &Arc<Source>| {
            let name = source.name.clone();
            let counter = counter!("loopgate_events_late_total", "source" => name.to_string());
            (name, counter)
        };
        Self {
            events_accepted: counter!("loopgate_events_total", "outcome" => "accepted"),
            events_duplicate: counter!("loopgate_events_total", "outcome" => "duplicate"),
            events_late: definitions.sources.iter().map(late).collect(),
            labels_accepted: counter!("loopgate_labels_total", "outcome" => "accepted"),
            labels_duplicate: counter!("loopgate_labels_total", "outcome" => "duplicate"),
            labels_replaced: counter!("loopgate_labels_replaced_total"),
            labels_unknown: counter!("loopgate_labels_unknown_total"),
            labels_expired: counter!("loopgate_labels_expired_total"),
            labels_pending: gauge!("loopgate_labels_pending"),
            predictions: counter!("loopgate_predictions_recorded_total"),
            spool_torn: counter!("loopgate_spool_torn_total"),
            quarantined: counter!("loopgate_store_quarantined_total"),
            damaged: gauge!("loopgate_store_damaged"),
            queue_batches: gauge!("loopgate_store_queue_batches"),
            queue_bytes: gauge!("loopgate_store_queue_bytes"),
            groups: counter!("loopgate_store_commits_total"),
            stopped: gauge!("loopgate_store_stopped"),
            full: gauge!("loopgate_store_full"),
            offline_failures: counter!("loopgate_offline_failures_total"),
            offline_away: gauge!("loopgate_offline_away"),
            states_from_memory: counter!("loopgate_states_read_total", "from" => "memory"),
            states_from_table: counter!("loopgate_states_read_total", "from" => "table"),
            states_expired: counter!("loopgate_states_expired_total"),
            database: DatabaseMetrics::resolve(),
        }
    }

    /// What the place of the sealed files tells about itself.
    pub(crate) fn offline(&self) -> Arc<Health> {
        Health::new(self.offline_failures.clone(), self.offline_away.clone())
    }

    /// Counts an event of that source as late.
    pub(crate) fn event_late(&self, source: &str) {
        let own = self.events_late.iter().find(|(name, _)| **name == *source);
        if let Some((_, counter)) = own {
            counter.increment(1);
        }
    }
}

/// Gives every metric its unit and help; call it once, after the recorder is installed.
pub fn describe() {
    let count = |name: &'static str, help: &'static str| {
        describe_counter!(name, Unit::Count, help);
    };
    count("loopgate_events_total", "Events acknowledged, by outcome");
    count(
        "loopgate_events_late_total",
        "Accepted events that came too late for their source or at least one window, by source",
    );
    count("loopgate_labels_total", "Labels acknowledged, by outcome");
    count(
        "loopgate_labels_replaced_total",
        "Accepted labels that replaced an older one",
    );
    count(
        "loopgate_labels_unknown_total",
        "Accepted labels whose prediction was not known",
    );
    count(
        "loopgate_labels_expired_total",
        "Labels dropped because their prediction never came",
    );
    count(
        "loopgate_predictions_recorded_total",
        "Rows added to the prediction log",
    );
    count(
        "loopgate_spool_torn_total",
        "Spool files whose end was torn by a crash",
    );
    count(
        "loopgate_store_quarantined_total",
        "Damaged files that were moved aside",
    );
    count(
        "loopgate_store_commits_total",
        "Groups of batches written with one fsync",
    );
    count(
        "loopgate_states_read_total",
        "View states read for serving, by where they were",
    );
    count(
        "loopgate_states_expired_total",
        "View states of which what no read can see any more was let go",
    );
    database::describe();
    describe_gauge!(
        "loopgate_labels_pending",
        Unit::Count,
        "Labels that wait for their prediction"
    );
    describe_gauge!(
        "loopgate_store_queue_batches",
        Unit::Count,
        "Batches of events and labels that wait for the writer"
    );
    describe_gauge!(
        "loopgate_store_queue_bytes",
        Unit::Bytes,
        "Estimated size of the batches that wait for the writer"
    );
    describe_gauge!(
        "loopgate_store_damaged",
        Unit::Count,
        "1 after a read found the online store damaged, until a restart has examined and mended it"
    );
    count(
        "loopgate_offline_failures_total",
        "Reads and writes of sealed files that failed, after all that was tried again",
    );
    describe_gauge!(
        "loopgate_offline_away",
        Unit::Count,
        "1 after the place of the sealed files did not do what it was asked, or a seal failed, until one succeeds"
    );
    describe_gauge!(
        "loopgate_store_full",
        Unit::Count,
        "1 while nothing is written for want of space on the disk"
    );
    describe_gauge!(
        "loopgate_store_stopped",
        Unit::Count,
        "1 after a failed write, when only a restart helps"
    );
}
