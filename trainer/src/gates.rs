//! What a challenger must show. Each gate gives a [`Verdict`] with its numbers; only
//! [`judge`] makes a [`Passed`], and only a `Passed` can be registered.
//!
//! Must not know: how a model was trained, how verdicts are stored.

use std::collections::BTreeMap;
use std::ops::Deref;

use registry::Version;
use serde::Serialize;

use crate::candidate::{Candidate, CandidateError};
use crate::recipe::Gates;
use crate::rows::{Part, Split};
use crate::score::{Bootstrap, Bound, Scores, constant_log_loss, losses};

/// What one gate found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Verdict {
    /// The gate's name.
    pub(crate) gate: &'static str,
    /// Whether the run may go on.
    pub(crate) passed: bool,
    /// Why, in a sentence.
    pub(crate) reason: String,
    /// The figures that it rests on.
    pub(crate) numbers: BTreeMap<&'static str, f64>,
}

impl Verdict {
    fn new<const N: usize>(
        gate: &'static str,
        passed: bool,
        reason: String,
        numbers: [(&'static str, f64); N],
    ) -> Self {
        let finite = numbers.into_iter().filter(|(_, number)| number.is_finite());
        Self {
            gate,
            passed,
            reason,
            numbers: finite.collect(),
        }
    }

    /// The champion that a challenger beat is no longer the one to beat.
    pub(crate) fn champion_changed(judged: Option<Version>, now: Option<Version>) -> Self {
        let name =
            |version: Option<Version>| version.map_or("none".to_owned(), |v| format!("v{v}"));
        let reason = format!("the champion was {} and is {} now", name(judged), name(now));
        Self::new("improvement", false, reason, [])
    }
}

/// A split whose rows are fit to train on and to judge by.
#[derive(Debug)]
pub(crate) struct SoundRows {
    split: Split,
    /// What the data gate found.
    pub(crate) verdict: Verdict,
}

impl SoundRows {
    /// The data gate: enough rows, both labels, only finite or missing values, and the features
    /// that the service names. What it refuses comes back as the failed verdict.
    pub(crate) fn check(split: Split, features: &[String], gates: &Gates) -> Result<Self, Verdict> {
        let (training, holdout) = (split.training(), split.holdout());
        let numbers = [
            ("train_rows", training.rows() as f64),
            ("holdout_rows", holdout.rows() as f64),
            ("train_label_share", training.label_share()),
            ("holdout_label_share", holdout.label_share()),
            ("refused_rows", split.refused() as f64),
        ];
        let problem = (training.names() != features)
            .then(|| "the logged rows have other features than the service defines now".to_owned())
            .or_else(|| unsound("training", &training, gates.rows_min, gates.label_share_min))
            .or_else(|| {
                unsound(
                    "holdout",
                    &holdout,
                    gates.holdout_rows_min,
                    gates.label_share_min,
                )
            });
        match problem {
            Some(reason) => Err(Verdict::new("data", false, reason, numbers)),
            None => {
                let mut reason = format!(
                    "{} training and {} holdout rows, label shares {:.3} and {:.3}",
                    training.rows(),
                    holdout.rows(),
                    training.label_share(),
                    holdout.label_share()
                );
                if split.refused() > 0 {
                    let refused = split.refused();
                    reason += &format!(", {refused} rows left out that the service refuses");
                }
                Ok(Self {
                    verdict: Verdict::new("data", true, reason, numbers),
                    split,
                })
            }
        }
    }
}

impl Deref for SoundRows {
    type Target = Split;

    fn deref(&self) -> &Split {
        &self.split
    }
}

fn unsound(part: &str, rows: &Part, rows_min: usize, share_min: f64) -> Option<String> {
    if rows.rows() < rows_min {
        return Some(format!(
            "{} {part} rows, at least {rows_min} are needed",
            rows.rows()
        ));
    }
    if let Some(label) = rows
        .labels()
        .iter()
        .find(|&&label| label != 0.0 && label != 1.0)
    {
        return Some(format!(
            "a {part} row has label {label}, only 0 and 1 are known"
        ));
    }
    let rarer = rows.label_share().min(1.0 - rows.label_share());
    if rarer < share_min || rarer == 0.0 {
        return Some(format!(
            "the rarer label has a share of {rarer:.4} of the {part} rows, at least {share_min} is needed"
        ));
    }
    let infinite = rows.values().iter().position(|value| value.is_infinite())?;
    let name = &rows.names()[infinite % rows.columns()];
    Some(format!("feature `{name}` is infinite in a {part} row"))
}

/// The champion, as seen from the holdout rows.
pub(crate) enum Champion {
    /// This is the model's first training.
    None,
    /// Its answers to the requests of the holdout rows, by rows of its own service.
    Scored {
        /// The champion's version.
        version: Version,
        /// The holdout rows that it answers: all but those that its service refuses.
        rows: Vec<usize>,
        /// A probability for each of them.
        scores: Vec<f32>,
    },
    /// It cannot answer these rows.
    Unscorable {
        /// The champion's version.
        version: Version,
        /// Why not.
        reason: String,
    },
}

impl Champion {
    /// Its version, if there is one.
    pub(crate) fn version(&self) -> Option<Version> {
        match self {
            Self::None => None,
            Self::Scored { version, .. } | Self::Unscorable { version, .. } => Some(*version),
        }
    }
}

/// All that is judged.
pub(crate) struct Case<'a> {
    /// The rows behind the case.
    pub(crate) rows: &'a SoundRows,
    /// The new model, run by engines.
    pub(crate) challenger: Result<Candidate, CandidateError>,
    /// The new simple model, run by engines.
    pub(crate) simple: Result<Candidate, CandidateError>,
    /// Whether the release has no simple model yet, so that a bad one stops the run.
    pub(crate) simple_needed: bool,
    /// The one to beat.
    pub(crate) champion: Champion,
    /// Seed of the resamples.
    pub(crate) seed: u64,
}

/// A challenger that passed every gate.
pub(crate) struct Passed {
    /// The challenger and its scores on the holdout.
    pub(crate) challenger: (Candidate, Scores),
    /// The simple model, if it is fit to answer, and its scores on the holdout.
    pub(crate) simple: Option<(Candidate, Scores)>,
    /// The champion that it was judged against.
    pub(crate) against: Option<Version>,
}

/// What the gates said, whatever came of it.
pub(crate) struct Judgement {
    /// One verdict per gate.
    pub(crate) verdicts: Vec<Verdict>,
    /// Figures for the metadata store.
    pub(crate) metrics: BTreeMap<String, f64>,
    /// The right to be registered, or the first gate that refused.
    pub(crate) result: Result<Passed, Verdict>,
}

/// Puts a case before the gates.
pub(crate) fn judge(gates: &Gates, case: Case<'_>) -> Judgement {
    let holdout = case.rows.holdout();
    let labels = holdout.labels();
    let base = constant_log_loss(case.rows.training().label_share(), labels);
    let mut verdicts = vec![case.rows.verdict.clone()];
    let mut metrics = BTreeMap::from([("holdout_base_log_loss".to_owned(), base)]);

    let simple = case.simple.map(|simple| scored(simple, labels));
    let mut simple_verdicts = vec![parity(
        "simple_parity",
        simple.as_ref().map(|s| &s.0),
        gates,
    )];
    if let Ok((_, scores)) = &simple {
        note(&mut metrics, "simple", scores);
        simple_verdicts.push(sanity("simple_sanity", scores, base, gates));
    }
    let simple_fit = simple_verdicts.iter().all(|verdict| verdict.passed);

    let challenger = case.challenger.map(|challenger| scored(challenger, labels));
    verdicts.push(parity("parity", challenger.as_ref().map(|c| &c.0), gates));
    if let Ok((candidate, scores)) = &challenger {
        note(&mut metrics, "holdout", scores);
        metrics.insert("row_us".to_owned(), candidate.row_us);
        verdicts.push(sanity("sanity", scores, base, gates));
        verdicts.push(calibration(scores, gates));
        verdicts.push(improvement(
            &case.champion,
            candidate,
            &holdout,
            (gates, case.seed),
        ));
        verdicts.push(latency(candidate, gates));
    }
    if let Champion::Scored { rows, scores, .. } = &case.champion {
        let labels = pick(labels, rows);
        note(&mut metrics, "champion", &Scores::of(scores, &labels));
    }
    let blocking = verdicts
        .iter()
        .chain(simple_verdicts.iter().filter(|_| case.simple_needed));
    let refused = blocking
        .into_iter()
        .find(|verdict| !verdict.passed)
        .cloned();
    verdicts.extend(simple_verdicts);
    let result = match (refused, challenger) {
        (None, Ok(challenger)) => Ok(Passed {
            challenger,
            simple: simple.ok().filter(|_| simple_fit),
            against: case.champion.version(),
        }),
        (Some(verdict), _) => Err(verdict),
        (None, Err(_)) => unreachable!("a challenger that cannot be run fails the parity gate"),
    };
    Judgement {
        verdicts,
        metrics,
        result,
    }
}

fn scored(candidate: Candidate, labels: &[f32]) -> (Candidate, Scores) {
    let scores = Scores::of(&candidate.scores, labels);
    (candidate, scores)
}

fn note(metrics: &mut BTreeMap<String, f64>, whose: &str, scores: &Scores) {
    metrics.insert(format!("{whose}_log_loss"), scores.log_loss);
    metrics.insert(format!("{whose}_auc"), scores.auc);
    metrics.insert(format!("{whose}_ece"), scores.ece);
}

/// Loads in the engines at hand, which agree with each other and with the learner.
fn parity(
    gate: &'static str,
    candidate: Result<&Candidate, &CandidateError>,
    gates: &Gates,
) -> Verdict {
    let candidate = match candidate {
        Ok(candidate) => candidate,
        Err(error) => return Verdict::new(gate, false, error.to_string(), []),
    };
    let loaded: Vec<_> = candidate
        .report
        .trials
        .iter()
        .filter(|trial| trial.refused.is_none())
        .collect();
    let engines = loaded
        .iter()
        .filter_map(|trial| trial.difference_max)
        .fold(0.0, f64::max);
    let numbers = [
        ("engines", loaded.len() as f64),
        ("engine_difference_max", engines),
        ("learner_difference_max", candidate.learner_difference),
        ("limit", gates.parity_max),
    ];
    let names: Vec<&str> = loaded.iter().map(|trial| trial.engine.as_str()).collect();
    let names = names.join(", ");
    let agree = loaded.iter().all(|trial| trial.agrees) && engines <= gates.parity_max;
    let (passed, reason) = if !agree {
        (
            false,
            format!("the engines {names} differ by {engines:.1e}"),
        )
    } else if candidate.learner_difference > gates.parity_max {
        let difference = candidate.learner_difference;
        (
            false,
            format!("the exported model differs from the learner by {difference:.1e}"),
        )
    } else {
        (true, format!("{names} agree within {engines:.1e}"))
    };
    Verdict::new(gate, passed, reason, numbers)
}

/// Better than always giving the same answer.
fn sanity(gate: &'static str, scores: &Scores, base: f64, gates: &Gates) -> Verdict {
    let gain = base - scores.log_loss;
    let passed = gain > gates.sanity_margin;
    let comparison = if passed { "more than" } else { "not more than" };
    let reason = format!(
        "log loss {:.4}, lower than the constant answer's {base:.4} by {comparison} {}",
        scores.log_loss, gates.sanity_margin
    );
    Verdict::new(
        gate,
        passed,
        reason,
        [
            ("log_loss", scores.log_loss),
            ("base_log_loss", base),
            ("margin", gates.sanity_margin),
        ],
    )
}

/// Says 30 % where 30 % happen.
fn calibration(scores: &Scores, gates: &Gates) -> Verdict {
    let passed = scores.ece <= gates.ece_max;
    let comparison = if passed { "within" } else { "above" };
    let reason = format!(
        "calibration error {:.4} {comparison} {}",
        scores.ece, gates.ece_max
    );
    Verdict::new(
        "calibration",
        passed,
        reason,
        [("ece", scores.ece), ("limit", gates.ece_max)],
    )
}

/// Beats the champion on the same rows by more than chance would.
fn improvement(
    champion: &Champion,
    challenger: &Candidate,
    holdout: &Part,
    (gates, seed): (&Gates, u64),
) -> Verdict {
    let (version, rows, theirs) = match champion {
        Champion::None => {
            return Verdict::new("improvement", true, "no champion to beat".to_owned(), []);
        }
        Champion::Unscorable { version, reason } => {
            let reason = format!("champion v{version} cannot answer these rows: {reason}");
            return Verdict::new("improvement", false, reason, []);
        }
        Champion::Scored { rows, version, .. } if rows.len() < gates.holdout_rows_min => {
            let (answered, needed) = (rows.len(), gates.holdout_rows_min);
            let reason = format!(
                "champion v{version} answers {answered} of the {} holdout rows, at least {needed} are needed",
                holdout.rows()
            );
            return Verdict::new("improvement", false, reason, []);
        }
        Champion::Scored {
            version,
            rows,
            scores,
        } => (version, rows, losses(scores, &pick(holdout.labels(), rows))),
    };
    let ours = pick(&losses(&challenger.scores, holdout.labels()), rows);
    let gains: Vec<f64> = theirs
        .iter()
        .zip(&ours)
        .map(|(theirs, ours)| theirs - ours)
        .collect();
    let bootstrap = Bootstrap {
        resamples: gates.resamples,
        confidence: gates.confidence,
        block_ms: gates.resample_block.0,
        seed,
    };
    let Bound {
        mean,
        lower,
        blocks,
    } = bootstrap.lower_bound(&gains, &pick(holdout.times_ms(), rows));
    let passed = lower > gates.improvement_margin;
    let comparison = if passed { "above" } else { "not above" };
    let reason = format!(
        "log loss lower than champion v{version}'s by {mean:.5}, lower bound {lower:.5} {comparison} {}",
        gates.improvement_margin
    );
    Verdict::new(
        "improvement",
        passed,
        reason,
        [
            ("mean", mean),
            ("lower_bound", lower),
            ("margin", gates.improvement_margin),
            ("confidence", gates.confidence),
            ("blocks", blocks as f64),
            ("champion", f64::from(*version)),
        ],
    )
}

fn pick<T: Copy>(of: &[T], rows: &[usize]) -> Vec<T> {
    rows.iter().map(|&row| of[row]).collect()
}

/// Answers one row in time. The only gate that depends on the machine, so its limit is wide.
fn latency(candidate: &Candidate, gates: &Gates) -> Verdict {
    let passed = candidate.row_us <= gates.latency_max_us;
    let comparison = if passed { "within" } else { "above" };
    let reason = format!(
        "one row takes {:.1} us in {}, {comparison} {} us",
        candidate.row_us,
        candidate.report.chosen.as_str(),
        gates.latency_max_us
    );
    Verdict::new(
        "latency",
        passed,
        reason,
        [
            ("row_us", candidate.row_us),
            ("limit_us", gates.latency_max_us),
        ],
    )
}

#[cfg(test)]
mod tests;
