//! The story of `make demo`: import, first training, a year replayed, the report.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use crate::client::Lane;
use crate::flights::{read_aircraft, read_flights, read_weather};
use crate::html::{self, Drift, Mark, MarkKind};
use crate::machine::machine;
use crate::process::{Gateway, Start, first_line, run};
use crate::project::{self, Project};
use crate::replay::{Observed, Progress, Replay};
use crate::report::{Nights, Rejected, Report, Requests, Row, Seconds, Skew, by_month, by_policy};
use crate::served::{Policy, Scores, scores};
use crate::timeline::Timeline;

/// Longest wait for the verification of the last night.
const NIGHT_MAX: Duration = Duration::from_secs(120);
const MODEL: &str = "delay";
/// The model without online features, trained once and never asked to answer.
const STATIC_MODEL: &str = "delay-static";
/// The alias under which the first champion goes on as a shadow.
const FROZEN_ALIAS: &str = "frozen";
const FROZEN_VERSION: i64 = 1;
const SKEW_SAMPLE: &str = "5000";

/// What the demo needs to know.
pub(crate) struct Demo {
    pub loopgate: PathBuf,
    pub trainer: PathBuf,
    /// The folder with `loopgate.toml`, `features.toml`, `models/` and `data/*.parquet`.
    pub template: PathBuf,
    pub out: PathBuf,
    pub until_ms: i64,
    pub seed: u64,
}

/// Tells the whole story and writes `report.json` and `report.html`.
pub(crate) async fn run_demo(demo: &Demo) -> Result<Report> {
    fs::create_dir_all(&demo.out)?;
    let data = demo.template.join("data");
    let timeline = Timeline::new(
        read_flights(&data.join("flights.parquet"))?,
        read_weather(&data.join("weather.parquet"))?,
        demo.until_ms,
    );
    let aircraft = read_aircraft(&data.join("planes.parquet"))?;
    let project = project::prepare(&demo.template, &demo.out, &timeline, &aircraft)?;
    let import = demo.import(&project)?;
    let train_first = demo.train_first(&project, timeline.begin_ms)?;
    let log = demo.out.join("gateway.log");
    let gateway = demo.serve(&project, &log).await?;
    println!(
        "gateway ready on http://{}, admin http://{}; replaying {} predictions",
        gateway.addresses.http,
        gateway.addresses.admin,
        timeline.questions().len()
    );
    let started = Instant::now();
    let bar = progress_bar(timeline.questions().len());
    let observed = Replay::new(&timeline, MODEL, gateway.addresses)
        .run(&mut |progress| show(&bar, &progress))
        .await
        .with_context(|| format!("the gateway's log is {}", log.display()))?;
    let replay = started.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let story = Story::read(&gateway).await?;
    let nights = nights(&gateway).await?;
    gateway.drain().await?;
    let skew = demo.verify(&project)?;
    let rows = compare(&timeline, &observed, &project.data())?;
    let total = observed.total();
    let report = Report {
        policies: by_policy(&rows),
        months: by_month(&rows),
        trainings: story.trainings,
        promotions: story.promotions,
        rejected: story.rejected.clone(),
        swaps: story.swaps,
        requests: Requests {
            sent: total.sent,
            failed: total.failed,
            by_kind: observed.requests.clone(),
        },
        skew,
        nights,
        seconds: Seconds {
            import,
            train_first,
            replay,
            trainings: observed.held.as_secs_f64(),
        },
        seed: demo.seed,
        commit: first_line("git", &["rev-parse", "--short=12", "HEAD"], &demo.template)
            .unwrap_or_else(|| "unknown".into()),
        machine: machine(),
    };
    demo.write_report(&report, &rows, &story.marks, &drift(&observed))?;
    for failure in &observed.first_failures {
        eprintln!("failed request: {failure}");
    }
    if observed.fallbacks > 0 {
        println!("answers from a fallback: {}", observed.fallbacks);
    }
    Ok(report)
}

impl Demo {
    /// Imports January and February as history, and the past questions with their outcomes.
    fn import(&self, project: &Project) -> Result<f64> {
        println!("importing January and February");
        let started = Instant::now();
        let folder = project.folder.display().to_string();
        let mut arguments = vec!["feature", "import", "--project", &folder];
        arguments.extend(project.history.iter().map(String::as_str));
        self.loopgate(&arguments)?;
        let questions = project.questions.display().to_string();
        for model in [MODEL, STATIC_MODEL] {
            self.loopgate(&[
                "feature",
                "backfill",
                "--project",
                &folder,
                "--model",
                model,
                &questions,
            ])?;
        }
        Ok(started.elapsed().as_secs_f64())
    }

    /// Trains the first champion with its fallback, and the model without online features.
    fn train_first(&self, project: &Project, as_of_ms: i64) -> Result<f64> {
        println!("training the first champion and its fallback");
        let started = Instant::now();
        let folder = project.folder.display().to_string();
        let (as_of, seed) = (as_of_ms.to_string(), self.seed.to_string());
        for model in [MODEL, STATIC_MODEL] {
            let arguments = [
                "run",
                "--project",
                &folder,
                "--model",
                model,
                "--as-of-ms",
                &as_of,
                "--seed",
                &seed,
            ];
            run(&self.trainer, &arguments, &self.out.join("trainer.log"))?;
        }
        let frozen = FROZEN_VERSION.to_string();
        self.loopgate(&[
            "model",
            "alias",
            "--project",
            &folder,
            MODEL,
            FROZEN_ALIAS,
            &frozen,
            "--at-ms",
            &as_of,
        ])?;
        Ok(started.elapsed().as_secs_f64())
    }

    async fn serve(&self, project: &Project, log: &Path) -> Result<Gateway> {
        Gateway::start(&Start {
            loopgate: &self.loopgate,
            project: &project.folder,
            log,
            core: None,
        })
        .await
    }

    /// Computes a sample of the served rows again from the event log.
    fn verify(&self, project: &Project) -> Result<Skew> {
        let folder = project.folder.display().to_string();
        let seed = self.seed.to_string();
        let text = self.loopgate(&[
            "feature",
            "verify",
            "--project",
            &folder,
            "--model",
            MODEL,
            "--sample",
            SKEW_SAMPLE,
            "--seed",
            &seed,
            "--json",
        ])?;
        serde_json::from_str(&text).with_context(|| format!("`feature verify` printed: {text}"))
    }

    fn loopgate(&self, arguments: &[&str]) -> Result<String> {
        run(&self.loopgate, arguments, &self.out.join("loopgate.log"))
    }

    fn write_report(
        &self,
        report: &Report,
        rows: &[Row],
        marks: &[Mark],
        drift: &[Drift],
    ) -> Result<()> {
        write_whole(
            &self.out.join("report.json"),
            &serde_json::to_vec_pretty(report)?,
        )?;
        write_whole(
            &self.out.join("report.html"),
            html::page(report, rows, marks, drift).as_bytes(),
        )
    }
}

/// A reader sees the old file or the new one, never a part.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

/// The rows on which all three policies are scored.
fn compare(timeline: &Timeline, observed: &Observed, data: &Path) -> Result<Vec<Row>> {
    let frozen = scores(
        data,
        &Policy {
            model: MODEL,
            version: Some(FROZEN_VERSION),
            role: "shadow",
        },
    )?;
    let unchanging = scores(
        data,
        &Policy {
            model: STATIC_MODEL,
            version: None,
            role: "shadow",
        },
    )?;
    let rows: Vec<Row> = timeline
        .questions()
        .iter()
        .zip(&observed.scored)
        .filter_map(|(flight, scored)| {
            let scored = scored.as_ref()?;
            let probabilities = [
                scored.probability,
                frozen_score(&frozen, flight.id, scored.version, scored.probability)?,
                *unchanging.get(&flight.id)?,
            ];
            Some(Row {
                at_ms: flight.scheduled_ms,
                local_month: flight.local_month,
                late: flight.late(),
                probabilities,
            })
        })
        .collect();
    let asked = timeline.questions().len();
    ensure!(
        rows.len() * 100 >= asked * 99,
        "only {} of {asked} predictions have the scores of all policies: the gateway dropped shadows",
        rows.len()
    );
    Ok(rows)
}

/// The first champion's score: of its shadow, or its own answer while it was still the champion.
fn frozen_score(shadows: &Scores, flight: i64, version: i64, answered: f32) -> Option<f32> {
    if version == FROZEN_VERSION {
        return Some(answered);
    }
    shadows.get(&flight).copied()
}

/// What the gateway's admin interface tells about the loop after the replay.
struct Story {
    trainings: usize,
    promotions: usize,
    swaps: usize,
    rejected: Vec<Rejected>,
    marks: Vec<Mark>,
}

impl Story {
    async fn read(gateway: &Gateway) -> Result<Self> {
        let mut admin = Lane::new(gateway.addresses.admin);
        let decisions = list(&mut admin, "decisions?limit=10000", "decisions").await?;
        let history = list(&mut admin, "history", "history").await?;
        let of_kind = |kind: &'static str| {
            decisions
                .iter()
                .filter(move |decision| decision["kind"] == kind)
        };
        let triggers: Vec<&Value> = of_kind("trigger").collect();
        let mut rejected: Vec<(i64, Rejected)> = of_kind("gate")
            .filter(|decision| decision["outcome"] == "rejected")
            .map(|decision| {
                let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let gate = Rejected {
                    run: word(&decision["run"]),
                    gate: word(&decision["evidence"]["gate"]),
                    reason: word(&decision["reason"]),
                };
                (decision["at_ms"].as_i64().unwrap_or_default(), gate)
            })
            .collect();
        rejected.sort_by_key(|entry| entry.0);
        let champions: Vec<&Value> = history
            .iter()
            .filter(|event| event["alias"] == "champion" && !event["from"].is_null())
            .collect();
        let mut marks: Vec<Mark> = triggers
            .iter()
            .map(|decision| mark(decision, MarkKind::Trigger, "trigger: "))
            .chain(champions.iter().map(|event| Mark {
                text: format!("swap: version {} → {}", event["from"], event["to"]),
                ..mark(event, MarkKind::Swap, "")
            }))
            .collect();
        marks.sort_by_key(|mark| (mark.at_ms, mark.kind == MarkKind::Swap));
        Ok(Self {
            trainings: triggers.len(),
            promotions: of_kind("promotion").count(),
            swaps: champions.len(),
            rejected: rejected.into_iter().map(|entry| entry.1).collect(),
            marks,
        })
    }
}

fn mark(decision: &Value, kind: MarkKind, prefix: &str) -> Mark {
    Mark {
        at_ms: decision["at_ms"].as_i64().unwrap_or_default(),
        kind,
        text: format!(
            "{prefix}{}",
            decision["reason"].as_str().unwrap_or_default()
        ),
    }
}

async fn list(admin: &mut Lane, what: &str, key: &str) -> Result<Vec<Value>> {
    let answer = admin
        .get(&format!("/v1/models/{MODEL}/{what}"))
        .await?
        .json()?;
    answer[key]
        .as_array()
        .cloned()
        .with_context(|| format!("the admin answer on {what} has no list `{key}`"))
}

/// What the nightly verification of the model found, once its last night has ended.
async fn nights(gateway: &Gateway) -> Result<Nights> {
    let mut admin = Lane::new(gateway.addresses.admin);
    let since = Instant::now();
    loop {
        let status = admin.get("/v1/loop").await?.json()?;
        if status["verifying"] == false {
            let found = status["verification"][MODEL].clone();
            return serde_json::from_value(found)
                .with_context(|| format!("the loop's status tells no nights: {status}"));
        }
        ensure!(
            since.elapsed() < NIGHT_MAX,
            "a night's verification does not end"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The index of each feature's daily windows, as the loop's status told it each morning.
fn drift(observed: &Observed) -> Vec<Drift> {
    let mut features: Vec<Drift> = Vec::new();
    for (at_ms, status) in &observed.mornings {
        for entry in status["drift"].as_array().into_iter().flatten() {
            let (Some(name), Some(psi)) = (entry["feature"].as_str(), entry["psi"].as_f64()) else {
                continue;
            };
            match features.iter_mut().find(|drift| drift.feature == name) {
                Some(drift) => drift.psi.push((*at_ms, psi)),
                None => features.push(Drift {
                    feature: name.to_owned(),
                    psi: vec![(*at_ms, psi)],
                }),
            }
        }
    }
    features
}

fn progress_bar(questions: usize) -> ProgressBar {
    let bar = ProgressBar::new(questions as u64);
    let style = ProgressStyle::with_template("{prefix} [{bar:30}] {pos}/{len} {per_sec} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Shows month, speed, versions, triggers and failures; a line a month where nobody watches.
fn show(bar: &ProgressBar, progress: &Progress<'_>) {
    let Some(day) = DateTime::from_timestamp_millis(progress.at_ms) else {
        return;
    };
    let status = progress.observed.mornings.last().map(|morning| &morning.1);
    let field = |name: &str| {
        status
            .and_then(|status| status.get(name))
            .map_or_else(|| "-".into(), Value::to_string)
    };
    let message = format!(
        "champion v{} trainings {} promotions {} failed {}",
        field("champion"),
        field("trainings"),
        field("promotions"),
        progress.observed.total().failed
    );
    bar.set_prefix(day.format("%Y-%m-%d").to_string());
    bar.set_position(progress.asked as u64);
    bar.set_message(message.clone());
    if bar.is_hidden() && day.format("%d").to_string() == "01" {
        println!(
            "{} {:>6} predictions, {:.0}/s, {message}",
            day.format("%Y-%m"),
            progress.asked,
            bar.per_sec()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn drift_is_gathered_by_feature_over_the_mornings() {
        let observed = Observed {
            mornings: vec![
                (1, json!({"drift": [{"feature": "a", "psi": 0.1}]})),
                (
                    2,
                    json!({"drift": [{"feature": "a", "psi": 0.2}, {"feature": "b", "psi": 0.3}]}),
                ),
                (3, json!({})),
            ],
            ..Observed::default()
        };
        let gathered = drift(&observed);
        assert_eq!(gathered.len(), 2);
        assert_eq!(gathered[0].psi, [(1, 0.1), (2, 0.2)]);
    }

    #[test]
    fn the_first_champion_is_scored_by_its_own_answers_until_it_is_replaced() {
        let shadows = Scores::from([(8, 0.4)]);
        assert_eq!(frozen_score(&shadows, 7, 1, 0.9), Some(0.9));
        assert_eq!(frozen_score(&shadows, 8, 2, 0.9), Some(0.4));
        assert_eq!(frozen_score(&shadows, 9, 2, 0.9), None);
    }
}
