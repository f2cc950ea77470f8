//! Drives a running gateway through the year, over HTTP alone, in the order in which it happened.
//!
//! For each moment with scheduled departures: first the facts known by then are sent and acked, then
//! the questions of that moment are asked, side by side on a few connections. Each simulated morning
//! the gateway's clock is advanced; while the loop is busy the replay holds its clock and sends
//! probes, so that a swap is seen under load.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::join_all;
use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::{Answer, Lane};
use crate::flights::Flight;
use crate::process::Addresses;
use crate::timeline::{Fact, SOURCES, Timeline, write_event_batch, write_question};

const LANES: usize = 4;
const DAY_MS: i64 = 86_400_000;
/// The simulated time of day, UTC, at which the monitor looks: night in New York.
const MORNING_MS: i64 = 6 * 3_600_000;
/// Labels wait for company until there are this many or an hour has passed.
const LABELS_BATCH: usize = 200;
const LABELS_WAIT_MS: i64 = 3_600_000;
/// Events of one request; a longer backlog is sent in several.
const EVENTS_BATCH: usize = 1_000;
/// How long the loop may be busy in one go (a training run and a swap).
const BUSY_LIMIT: Duration = Duration::from_secs(300);
/// More failures than this end the replay: something is wrong that no report would explain.
const FAILURES_MAX: u64 = 1_000;

/// What one question was answered.
#[derive(Debug, Clone)]
pub(crate) struct Scored {
    pub probability: f32,
    pub version: i64,
    prediction_id: String,
}

/// How many requests were sent of a kind, and how many of them failed.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub(crate) struct Count {
    pub sent: u64,
    pub failed: u64,
}

/// What the replay saw.
#[derive(Debug, Default)]
pub(crate) struct Observed {
    /// Answers by position in [`Timeline::questions`].
    pub scored: Vec<Option<Scored>>,
    pub requests: BTreeMap<&'static str, Count>,
    pub first_failures: Vec<String>,
    /// The loop's status of the model after each simulated morning, with its time.
    pub mornings: Vec<(i64, Value)>,
    /// Wall time during which the replay held its clock for the loop.
    pub held: Duration,
    pub fallbacks: u64,
}

impl Observed {
    fn count(&mut self, kind: &'static str, outcome: Result<Answer>) -> Option<Answer> {
        let count = self.requests.entry(kind).or_default();
        count.sent += 1;
        let problem = match outcome {
            Ok(answer) if answer.status == StatusCode::OK => return Some(answer),
            Ok(answer) => format!(
                "{}: {}",
                answer.status,
                String::from_utf8_lossy(&answer.body)
            ),
            Err(error) => format!("{error:#}"),
        };
        count.failed += 1;
        if self.first_failures.len() < 10 {
            self.first_failures.push(format!("{kind}: {problem}"));
        }
        None
    }

    /// Requests of all kinds together.
    pub(crate) fn total(&self) -> Count {
        self.requests
            .values()
            .fold(Count::default(), |all, one| Count {
                sent: all.sent + one.sent,
                failed: all.failed + one.failed,
            })
    }
}

/// A replay under way.
pub(crate) struct Replay<'a> {
    timeline: &'a Timeline,
    model: &'a str,
    lanes: Vec<Lane>,
    admin: Lane,
    /// Facts not yet sent.
    news: std::slice::Iter<'a, (i64, Fact)>,
    /// Flights whose outcome is known and whose label has not been sent.
    labels: Vec<usize>,
    labels_since_ms: i64,
    observed: Observed,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(timeline: &'a Timeline, model: &'a str, addresses: Addresses) -> Self {
        Self {
            timeline,
            model,
            lanes: (0..LANES).map(|_| Lane::new(addresses.http)).collect(),
            admin: Lane::new(addresses.admin),
            news: timeline.news().iter(),
            labels: Vec::new(),
            labels_since_ms: 0,
            observed: Observed {
                scored: vec![None; timeline.questions().len()],
                ..Observed::default()
            },
        }
    }

    /// Runs to the last outcome. `watch` is told after each simulated morning.
    pub(crate) async fn run(mut self, watch: &mut dyn FnMut(Progress<'_>)) -> Result<Observed> {
        let questions = self.timeline.questions();
        let mut morning_ms = next_morning(self.timeline.begin_ms);
        let mut asked = 0;
        while asked < questions.len() {
            let at_ms = questions[asked].scheduled_ms;
            while morning_ms <= at_ms {
                self.advance(morning_ms).await?;
                watch(Progress::new(morning_ms, asked, &self.observed));
                morning_ms += DAY_MS;
            }
            let together = questions[asked..].partition_point(|q| q.scheduled_ms == at_ms);
            self.tell(at_ms).await;
            self.ask(asked, &questions[asked..asked + together], at_ms)
                .await;
            asked += together;
            self.give_up_on_failures()?;
        }
        let end_ms = self
            .news
            .as_slice()
            .last()
            .map_or(morning_ms, |last| last.0);
        while morning_ms <= next_morning(end_ms) {
            self.advance(morning_ms).await?;
            watch(Progress::new(morning_ms, asked, &self.observed));
            morning_ms += DAY_MS;
        }
        Ok(self.observed)
    }

    fn give_up_on_failures(&self) -> Result<()> {
        ensure!(
            self.observed.total().failed <= FAILURES_MAX,
            "more than {FAILURES_MAX} requests failed; the first: {}",
            self.observed.first_failures.join("; ")
        );
        Ok(())
    }

    /// Sends what became known up to `at_ms`: events at once, labels when enough have gathered.
    async fn tell(&mut self, at_ms: i64) {
        let known = self.news.as_slice().partition_point(|news| news.0 <= at_ms);
        let mut by_source: [Vec<Fact>; SOURCES.len()] = Default::default();
        for &(known_ms, fact) in self.news.by_ref().take(known) {
            by_source[fact.source()].push(fact);
            if let Fact::Arrival(row) = fact
                && self.timeline.is_question(row)
            {
                if self.labels.is_empty() {
                    self.labels_since_ms = known_ms;
                }
                self.labels.push(row);
            }
        }
        let mut jobs = Vec::new();
        for (source, facts) in by_source.iter().enumerate() {
            for batch in facts.chunks(EVENTS_BATCH) {
                let path = format!("/v1/events/{}", SOURCES[source]);
                jobs.push(("events", path, write_event_batch(self.timeline, batch)));
            }
        }
        if self.labels.len() >= LABELS_BATCH || at_ms - self.labels_since_ms >= LABELS_WAIT_MS {
            jobs.extend(
                self.take_labels()
                    .map(|body| ("labels", "/v1/labels".into(), body)),
            );
        }
        self.post_all(jobs, at_ms).await;
    }

    async fn flush_labels(&mut self, at_ms: i64) {
        let jobs = self
            .take_labels()
            .map(|body| ("labels", "/v1/labels".into(), body));
        self.post_all(jobs.into_iter().collect(), at_ms).await;
    }

    fn take_labels(&mut self) -> Option<String> {
        let first = self.timeline.first_question();
        let labels: Vec<Value> = std::mem::take(&mut self.labels)
            .into_iter()
            .filter_map(|row| {
                let flight = &self.timeline.flights[row];
                let scored = self.observed.scored[row - first].as_ref()?;
                Some(json!({
                    "prediction_id": scored.prediction_id,
                    "value": if flight.late() { 1.0 } else { 0.0 },
                    "label_time": flight.outcome_ms,
                }))
            })
            .collect();
        (!labels.is_empty()).then(|| json!({ "labels": labels }).to_string())
    }

    /// Posts the jobs side by side, each lane its share in turn.
    async fn post_all(&mut self, jobs: Vec<(&'static str, String, String)>, at_ms: i64) {
        let mut shares: Vec<Vec<_>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for (k, job) in jobs.into_iter().enumerate() {
            shares[k % LANES].push(job);
        }
        let posted = self
            .lanes
            .iter_mut()
            .zip(shares)
            .map(|(lane, share)| async move {
                let mut outcomes = Vec::with_capacity(share.len());
                for (kind, path, body) in share {
                    outcomes.push((kind, lane.post(&path, Some(at_ms), Bytes::from(body)).await));
                }
                outcomes
            });
        for (kind, outcome) in join_all(posted).await.into_iter().flatten() {
            self.observed.count(kind, outcome);
        }
    }

    /// Asks the questions of one moment, side by side.
    async fn ask(&mut self, first: usize, questions: &[Flight], at_ms: i64) {
        let path = format!("/v2/models/{}/infer", self.model);
        let asked = self.lanes.iter_mut().enumerate().map(|(lane_index, lane)| {
            let path = &path;
            async move {
                let mut outcomes = Vec::new();
                let mut body = String::with_capacity(1_024);
                for k in (lane_index..questions.len()).step_by(LANES) {
                    body.clear();
                    write_question(&questions[k], true, &mut body);
                    let sent = Bytes::copy_from_slice(body.as_bytes());
                    outcomes.push((first + k, lane.post(path, Some(at_ms), sent).await));
                }
                outcomes
            }
        });
        for (position, outcome) in join_all(asked).await.into_iter().flatten() {
            let Some(answer) = self.observed.count("infer", outcome) else {
                continue;
            };
            match Inferred::parse(&answer) {
                Ok(inferred) => {
                    self.observed.fallbacks += u64::from(inferred.fallback);
                    self.observed.scored[position] = Some(inferred.scored);
                }
                Err(error) => {
                    self.observed.requests.entry("infer").or_default().failed += 1;
                    self.observed
                        .first_failures
                        .push(format!("infer: {error:#}"));
                }
            }
        }
    }

    /// Brings the gateway to `morning_ms` and waits, under probes, until its loop has settled.
    async fn advance(&mut self, morning_ms: i64) -> Result<()> {
        self.tell(morning_ms).await;
        self.flush_labels(morning_ms).await;
        let body = Bytes::from(json!({ "now_ms": morning_ms }).to_string());
        let mut status = self.admin.post("/v1/clock", None, body).await?.json()?;
        if is_busy(&status)? {
            let held = Instant::now();
            while is_busy(&status)? {
                if held.elapsed() > BUSY_LIMIT {
                    bail!("the loop was busy for more than {BUSY_LIMIT:?}: {status}");
                }
                self.probe(morning_ms).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
                status = self.admin.get("/v1/loop").await?.json()?;
            }
            self.observed.held += held.elapsed();
        }
        let model = status
            .pointer(&format!("/models/{}", self.model))
            .cloned()
            .with_context(|| format!("the loop's status has no model `{}`", self.model))?;
        self.observed.mornings.push((morning_ms, model));
        Ok(())
    }

    /// One unrecorded prediction on each lane.
    async fn probe(&mut self, at_ms: i64) {
        let Some(flight) = self.timeline.questions().first() else {
            return;
        };
        let mut body = String::new();
        write_question(flight, false, &mut body);
        let body = Bytes::from(body);
        let path = format!("/v2/models/{}/infer", self.model);
        let probes = self
            .lanes
            .iter_mut()
            .map(|lane| lane.post(&path, Some(at_ms), body.clone()));
        for outcome in join_all(probes).await {
            self.observed.count("probe", outcome);
        }
    }
}

/// What a watcher may show after a simulated morning.
pub(crate) struct Progress<'a> {
    pub at_ms: i64,
    pub asked: usize,
    pub observed: &'a Observed,
}

impl<'a> Progress<'a> {
    fn new(at_ms: i64, asked: usize, observed: &'a Observed) -> Self {
        Self {
            at_ms,
            asked,
            observed,
        }
    }
}

fn next_morning(at_ms: i64) -> i64 {
    let today_ms = at_ms - at_ms.rem_euclid(DAY_MS) + MORNING_MS;
    if today_ms > at_ms {
        today_ms
    } else {
        today_ms + DAY_MS
    }
}

fn is_busy(status: &Value) -> Result<bool> {
    status["busy"]
        .as_bool()
        .with_context(|| format!("the loop's status has no `busy`: {status}"))
}

/// The parts of an Open Inference answer that the replay needs.
struct Inferred {
    scored: Scored,
    fallback: bool,
}

impl Inferred {
    fn parse(answer: &Answer) -> Result<Self> {
        #[derive(Deserialize)]
        struct Body {
            model_version: String,
            parameters: Parameters,
            outputs: Vec<Output>,
        }
        #[derive(Deserialize)]
        struct Parameters {
            prediction_id: String,
            #[serde(default)]
            fallback: bool,
        }
        #[derive(Deserialize)]
        struct Output {
            data: Vec<f32>,
        }
        let body: Body = serde_json::from_slice(&answer.body)?;
        let probability = body
            .outputs
            .first()
            .and_then(|output| output.data.first())
            .copied()
            .context("the answer has no output")?;
        ensure!(
            (0.0..=1.0).contains(&probability),
            "the answer {probability} is no probability"
        );
        Ok(Self {
            scored: Scored {
                probability,
                version: body.model_version.parse().context("model_version")?,
                prediction_id: body.parameters.prediction_id,
            },
            fallback: body.parameters.fallback,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mornings_come_once_a_day() {
        assert_eq!(next_morning(0), MORNING_MS);
        assert_eq!(next_morning(MORNING_MS), MORNING_MS + DAY_MS);
        assert_eq!(next_morning(DAY_MS - 1), DAY_MS + MORNING_MS);
    }

    #[test]
    fn a_fallback_is_seen_and_a_non_probability_refused() {
        let answer = |data: &str| Answer {
            status: StatusCode::OK,
            body: Bytes::from(format!(
                r#"{{"model_name":"m","model_version":"3","parameters":{{"prediction_id":"p","fallback":true}},"outputs":[{{"data":[{data}]}}]}}"#
            )),
        };
        let parsed = Inferred::parse(&answer("0.25")).expect("an answer");
        assert!(parsed.fallback);
        assert_eq!(parsed.scored.version, 3);
        assert!(Inferred::parse(&answer("1.5")).is_err());
        assert!(Inferred::parse(&answer("")).is_err());
    }
}
