//! Every metric of the gateway: name, unit, help, and the closed set of its labels.
//!
//! Handles of the request path are resolved once, here; per-model ones when a table is published.
//! Histograms count seconds in fixed buckets from 50 µs; that of the phases is our own (`phases`).
//! Values that are cheap to read and dear to push (in flight, queue lengths) are sampled when the page
//! is rendered.

mod nights;
mod phases;

use std::time::Duration;

use featurestore::{Role, Status};
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

use crate::access::Denied;
use crate::cold::ColdReadMetrics;
use crate::execute::Reason;
use crate::pool::Left;
use crate::table::ModelTable;

pub(crate) use nights::NightMetrics;
use phases::BUCKETS_US;
pub(crate) use phases::{Laps, Phase, Phases};

const REQUESTS: &str = "loopgate_requests_total";
const PREDICTIONS: &str = "loopgate_predictions_total";
const FALLBACKS: &str = "loopgate_fallbacks_total";
const NONFINITE: &str = "loopgate_nonfinite_outputs_total";
const FEATURE_VALUES: &str = "loopgate_feature_values_total";
const IN_FLIGHT: &str = "loopgate_in_flight";
const CONNECTIONS: &str = "loopgate_connections";
const CONNECTIONS_REFUSED: &str = "loopgate_connections_refused_total";
const QUEUE: &str = "loopgate_queue_length";
const DROPPED: &str = "loopgate_dropped_total";
const COLD_READS: &str = "loopgate_cold_reads_total";
const RECORDED: &str = "loopgate_recorded_rows_total";
const RECORD_ERRORS: &str = "loopgate_record_errors_total";
const SHADOW_ERRORS: &str = "loopgate_shadow_errors_total";
const INGESTED: &str = "loopgate_ingested_total";
const MODEL_VERSION: &str = "loopgate_model_version";
const COST_BASE_SECONDS: &str = "loopgate_run_cost_base_seconds";
const COST_ROW_SECONDS: &str = "loopgate_run_cost_row_seconds";
const IN_PLACE_ROWS: &str = "loopgate_in_place_rows";
const BREAKER: &str = "loopgate_breaker_state";
const BREAKERS_OPENED: &str = "loopgate_breakers_opened_total";
const POOL_RUNS: &str = "loopgate_pool_runs_total";
const POOL_REQUESTS: &str = "loopgate_pool_requests_total";
const POOL_LEFT: &str = "loopgate_pool_left_total";
const POOL_WAIT_SECONDS: &str = "loopgate_pool_wait_seconds";
const SWAPS: &str = "loopgate_swaps_total";
const REGISTRY_AWAY: &str = "loopgate_registry_away";
const TABLE_GENERATION: &str = "loopgate_table_generation";
const DENIED: &str = "loopgate_denied_total";
const HANDSHAKES: &str = "loopgate_tls_handshakes_total";
const RELOADS: &str = "loopgate_reloads_total";

/// A route as metrics see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Infer,
    Events,
    Labels,
    /// Feature values by themselves, as Feast asks for them.
    Features,
    /// Health, metadata, and what is no route at all.
    Other,
}

impl Operation {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Infer, "infer"),
        (Self::Events, "events"),
        (Self::Labels, "labels"),
        (Self::Features, "features"),
        (Self::Other, "other"),
    ];
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Ok,
    /// The caller's fault.
    Refused,
    NotFound,
    /// Shed by admission or by a full queue.
    Overloaded,
    /// A deadline or a timeout passed.
    Late,
    /// Not ready, or draining.
    Unavailable,
    /// Our fault.
    Failed,
}

impl Outcome {
    const ALL: [(Self, &'static str); 7] = [
        (Self::Ok, "ok"),
        (Self::Refused, "refused"),
        (Self::NotFound, "not_found"),
        (Self::Overloaded, "overloaded"),
        (Self::Late, "late"),
        (Self::Unavailable, "unavailable"),
        (Self::Failed, "failed"),
    ];
}

/// The handles of the gateway's metrics.
pub(crate) struct Metrics {
    page: Option<PrometheusHandle>,
    requests: [[Counter; Outcome::ALL.len()]; Operation::ALL.len()],
    pub phases: Phases,
    fallbacks: [Counter; Reason::ALL.len()],
    predictions: [Counter; Role::ALL.len()],
    feature_values: [Counter; Status::ALL.len()],
    pub nonfinite: Counter,
    pub breakers_opened: Counter,
    pool_runs: Counter,
    pool_requests: Counter,
    pool_left: [Counter; Left::ALL.len()],
    pool_wait: Histogram,
    pool_queue: Gauge,
    pub connections: Gauge,
    pub connections_refused: Counter,
    pub records_dropped: Counter,
    pub shadows_dropped: Counter,
    pub cold_reads: ColdReadMetrics,
    pub recorded: Counter,
    pub record_errors: Counter,
    pub shadow_errors: Counter,
    pub events: Counter,
    pub event_duplicates: Counter,
    pub events_late: Counter,
    pub labels: Counter,
    pub label_duplicates: Counter,
    pub labels_unknown: Counter,
    in_flight: Gauge,
    recorder_queue: Gauge,
    shadow_queue: Gauge,
    pub registry_away: Gauge,
    generation: Gauge,
}

/// Values that are read when the page is rendered.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sampled {
    pub in_flight: usize,
    pub recorder_queue: usize,
    pub shadow_queue: usize,
    pub pool_queue: usize,
}

impl Metrics {
    /// Makes Prometheus the process's recorder and resolves the handles, for so many seats.
    pub(crate) fn install(seats: usize) -> Result<Self, BuildError> {
        let waits = BUCKETS_US.map(|end| f64::from(end) / 1e6);
        let page = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full(POOL_WAIT_SECONDS.to_owned()), &waits)?
            .install_recorder()?;
        describe();
        Ok(Self::resolve(Some(page), seats))
    }

    /// Handles that lead nowhere, for tests of parts.
    #[cfg(test)]
    pub(crate) fn unread() -> Self {
        Self::resolve(None, 0)
    }

    fn resolve(page: Option<PrometheusHandle>, seats: usize) -> Self {
        let dropped = |what: &'static str| counter!(DROPPED, "what" => what);
        let cold = |outcome: &'static str| counter!(COLD_READS, "outcome" => outcome);
        let queue = |queue: &'static str| gauge!(QUEUE, "queue" => queue);
        let ingested = |kind: &'static str, outcome: &'static str| counter!(INGESTED, "kind" => kind, "outcome" => outcome);
        Self {
            page,
            requests: Operation::ALL.map(|(_, operation)| {
                Outcome::ALL.map(|(_, outcome)| {
                    counter!(REQUESTS, "operation" => operation, "outcome" => outcome)
                })
            }),
            phases: Phases::new(seats),
            fallbacks: Reason::ALL.map(|reason| counter!(FALLBACKS, "reason" => reason.as_str())),
            predictions: Role::ALL.map(|role| counter!(PREDICTIONS, "role" => role.as_str())),
            feature_values: Status::ALL
                .map(|status| counter!(FEATURE_VALUES, "status" => status.as_str())),
            nonfinite: counter!(NONFINITE),
            breakers_opened: counter!(BREAKERS_OPENED),
            pool_runs: counter!(POOL_RUNS),
            pool_requests: counter!(POOL_REQUESTS),
            pool_left: Left::ALL.map(|left| counter!(POOL_LEFT, "why" => left.as_str())),
            pool_wait: histogram!(POOL_WAIT_SECONDS),
            pool_queue: queue("pool"),
            connections: gauge!(CONNECTIONS),
            connections_refused: counter!(CONNECTIONS_REFUSED),
            records_dropped: dropped("record"),
            shadows_dropped: dropped("shadow"),
            cold_reads: ColdReadMetrics {
                read: cold("read"),
                refused: cold("refused"),
                late: cold("late"),
            },
            recorded: counter!(RECORDED),
            record_errors: counter!(RECORD_ERRORS),
            shadow_errors: counter!(SHADOW_ERRORS),
            events: ingested("event", "accepted"),
            event_duplicates: ingested("event", "duplicate"),
            events_late: ingested("event", "late"),
            labels: ingested("label", "accepted"),
            label_duplicates: ingested("label", "duplicate"),
            labels_unknown: ingested("label", "unknown"),
            in_flight: gauge!(IN_FLIGHT),
            recorder_queue: queue("recorder"),
            shadow_queue: queue("shadow"),
            registry_away: gauge!(REGISTRY_AWAY),
            generation: gauge!(TABLE_GENERATION),
        }
    }

    pub(crate) fn request(&self, operation: Operation, outcome: Outcome) {
        self.requests[operation as usize][outcome as usize].increment(1);
    }

    pub(crate) fn fallback(&self, reason: Reason) {
        self.fallbacks[reason as usize].increment(1);
    }

    /// A run of the pool that answers so many requests.
    pub(crate) fn pool_run(&self, requests: usize) {
        self.pool_runs.increment(1);
        self.pool_requests.increment(requests as u64);
    }

    pub(crate) fn pool_wait(&self, waited: Duration) {
        self.pool_wait.record(waited.as_secs_f64());
    }

    pub(crate) fn left_pool(&self, left: Left) {
        self.pool_left[left as usize].increment(1);
    }

    pub(crate) fn predictions(&self, role: Role, rows: usize) {
        self.predictions[role as usize].increment(rows as u64);
    }

    /// Counts feature values by status; the counts are in the order of the statuses' codes.
    pub(crate) fn feature_values(&self, counts: &[u64; Status::ALL.len()]) {
        for (counter, &count) in self.feature_values.iter().zip(counts) {
            counter.increment(count);
        }
    }

    /// Notes which versions a new table serves and which champions it changes.
    pub(crate) fn published(&self, table: &ModelTable, before: Option<&ModelTable>) {
        self.generation.set(table.generation as f64);
        for model in table.models() {
            let name = model.name.to_string();
            for (alias, version) in &model.aliases {
                gauge!(MODEL_VERSION, "model" => name.clone(), "alias" => alias.to_string())
                    .set(f64::from(*version));
            }
            let swaps = counter!(SWAPS, "model" => name);
            let champion = |table: &ModelTable| {
                let model = table.model(&model.name)?;
                model.champion.as_ref().map(|version| version.version)
            };
            if let Some(before) = before
                && champion(before) != champion(table)
            {
                swaps.increment(1);
            }
        }
    }

    /// Notes what runs cost, where they happen and how the breakers stand, by the versions' aliases.
    pub(crate) fn costs(&self, table: &ModelTable) {
        for model in table.models() {
            for (alias, version) in &model.aliases {
                let Some(version) = model.versions.get(version) else {
                    continue;
                };
                let labels = [
                    ("model", model.name.to_string()),
                    ("alias", alias.to_string()),
                ];
                let cost = version.cost.cost();
                gauge!(COST_BASE_SECONDS, &labels).set(f64::from(cost.base_ns) / 1e9);
                gauge!(COST_ROW_SECONDS, &labels).set(f64::from(cost.row_ns) / 1e9);
                gauge!(IN_PLACE_ROWS, &labels).set(version.cost.in_place_rows() as f64);
                gauge!(BREAKER, &labels).set(f64::from(version.breaker.level()));
            }
        }
    }

    /// The page that Prometheus reads.
    pub(crate) fn render(&self, sampled: Sampled) -> String {
        self.in_flight.set(sampled.in_flight as f64);
        self.recorder_queue.set(sampled.recorder_queue as f64);
        self.shadow_queue.set(sampled.shadow_queue as f64);
        self.pool_queue.set(sampled.pool_queue as f64);
        let mut page = self
            .page
            .as_ref()
            .map(PrometheusHandle::render)
            .unwrap_or_default();
        self.phases.render(&mut page);
        page
    }

    /// Folds recorded samples into their buckets; without it an unread page grows for ever.
    pub(crate) fn upkeep(&self) {
        if let Some(page) = &self.page {
            page.run_upkeep();
        }
    }
}

/// What the gate counts.
pub(crate) struct AccessMetrics {
    no_key: Counter,
    unknown_key: Counter,
    scope: Counter,
    rate: Counter,
    pub keys_reloaded: Counter,
    pub keys_refused: Counter,
}

impl AccessMetrics {
    pub(crate) fn resolve() -> Self {
        let denied = |reason: &'static str| counter!(DENIED, "reason" => reason);
        let reloads = |outcome: &'static str| reloads("keys", outcome);
        Self {
            no_key: denied("no_key"),
            unknown_key: denied("unknown_key"),
            scope: denied("scope"),
            rate: denied("rate"),
            keys_reloaded: reloads("ok"),
            keys_refused: reloads("refused"),
        }
    }

    pub(crate) fn denied(&self, denied: Denied) {
        let counter = match denied {
            Denied::NoKey => &self.no_key,
            Denied::Unknown => &self.unknown_key,
            Denied::Scope(_) => &self.scope,
            Denied::Rate { .. } => &self.rate,
        };
        counter.increment(1);
    }
}

/// What TLS counts.
pub(crate) struct TlsMetrics {
    pub handshakes: Counter,
    pub handshakes_failed: Counter,
    pub handshakes_late: Counter,
    pub handshakes_shed: Counter,
    pub certificates_reloaded: Counter,
    pub certificates_refused: Counter,
}

impl TlsMetrics {
    pub(crate) fn resolve() -> Self {
        let handshakes = |outcome: &'static str| counter!(HANDSHAKES, "outcome" => outcome);
        Self {
            handshakes: handshakes("ok"),
            handshakes_failed: handshakes("failed"),
            handshakes_late: handshakes("late"),
            handshakes_shed: handshakes("shed"),
            certificates_reloaded: reloads("certificate", "ok"),
            certificates_refused: reloads("certificate", "refused"),
        }
    }
}

fn reloads(what: &'static str, outcome: &'static str) -> Counter {
    counter!(RELOADS, "what" => what, "outcome" => outcome)
}

fn describe() {
    describe_counter!(REQUESTS, "HTTP requests by operation and outcome");
    describe_counter!(PREDICTIONS, "Predicted rows by the role of the version");
    describe_counter!(FALLBACKS, "Requests answered by a fallback, by reason");
    describe_counter!(NONFINITE, "Runs whose output held NaN or an infinity");
    describe_counter!(FEATURE_VALUES, "Served feature values by status");
    describe_gauge!(IN_FLIGHT, "Predictions in flight");
    describe_gauge!(CONNECTIONS, "Open connections of the HTTP listener");
    describe_counter!(
        CONNECTIONS_REFUSED,
        "Connections closed since too many were open"
    );
    describe_gauge!(
        REGISTRY_AWAY,
        "1 while the last good release is served since the registry is away"
    );
    describe_gauge!(QUEUE, "Entries that wait, by queue");
    describe_counter!(
        DROPPED,
        "Requests whose records or shadows were dropped since a queue was full"
    );
    describe_counter!(
        COLD_READS,
        "Feature reads that had to go to the disk, by outcome: read, refused by a full queue, late"
    );
    describe_counter!(RECORDED, "Prediction rows handed to the prediction log");
    describe_counter!(RECORD_ERRORS, "Batches that the prediction log refused");
    describe_counter!(SHADOW_ERRORS, "Shadow runs that failed");
    describe_counter!(INGESTED, "Rows of events and labels by outcome");
    describe_gauge!(MODEL_VERSION, "Version that an alias of a model names");
    describe_gauge!(
        COST_BASE_SECONDS,
        "Learnt seconds of a run, whatever its rows"
    );
    describe_gauge!(COST_ROW_SECONDS, "Learnt seconds of a run for each row");
    describe_gauge!(
        IN_PLACE_ROWS,
        "Most rows that run on the serving thread; 0 where every run goes to the pool"
    );
    describe_gauge!(
        BREAKER,
        "Breaker of a version: 0 closed, 1 half open, 2 open"
    );
    describe_counter!(BREAKERS_OPENED, "Openings of breakers");
    describe_counter!(POOL_RUNS, "Runs of the pool");
    describe_counter!(POOL_REQUESTS, "Requests that they were for");
    describe_counter!(POOL_LEFT, "Requests that left the pool's lines unrun");
    describe_histogram!(
        POOL_WAIT_SECONDS,
        "Seconds that a request waited for its run to begin"
    );
    describe_counter!(SWAPS, "Changes of a model's champion");
    describe_gauge!(
        TABLE_GENERATION,
        "Generation of the registry that is served"
    );
    describe_counter!(DENIED, "Calls that the gate did not let in, by reason");
    describe_counter!(HANDSHAKES, "TLS handshakes by outcome");
    describe_counter!(RELOADS, "Changed files of keys or certificates, by outcome");
    nights::describe();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn enums_index_their_handles() {
        for (k, (operation, _)) in Operation::ALL.into_iter().enumerate() {
            assert_eq!(operation as usize, k);
        }
        for (k, (outcome, _)) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, k);
        }
        for (k, reason) in Reason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, k);
        }
        for (k, left) in Left::ALL.into_iter().enumerate() {
            assert_eq!(left as usize, k);
        }
        for (k, role) in Role::ALL.into_iter().enumerate() {
            assert_eq!(role as usize, k);
        }
    }
}
