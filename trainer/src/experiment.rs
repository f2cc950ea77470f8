//! The experiments of a run: which learners are tried, how the best is found, and its final fit.
//!
//! Several boosted configurations are compared on the newest training rows, which none of them
//! fitted, and the winner is fitted again on all training rows; the holdout of the gates plays no
//! part in the choice. A single configuration needs no comparison. One thread per experiment;
//! equal rows and seed give equal models for any number of threads.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::learner::{Boosted, Fit, Fitted, LearnError, Learner, Logistic};
use crate::progress::{Phase, Progress};
use crate::recipe::Train;
use crate::rows::{Part, Split};
use crate::score::Scores;

/// With fewer rows to fit or to compare on, a comparison says nothing: the first configuration
/// is taken.
const COMPARE_ROWS_MIN: usize = 500;

/// One configuration that was tried.
#[derive(Debug)]
pub(crate) struct Trial {
    /// `boosted-1`, `boosted-2`, …, `logistic`.
    pub(crate) name: String,
    /// The algorithm.
    pub(crate) algorithm: &'static str,
    /// Its parameters.
    pub(crate) parameters: BTreeMap<String, String>,
    /// Scores on the selection rows, if configurations were compared.
    pub(crate) selection: Option<Scores>,
}

/// What came of the experiments.
pub(crate) struct Outcome {
    /// Every configuration tried, in the recipe's order, the logistic one last.
    pub(crate) trials: Vec<Trial>,
    /// Index of the configuration chosen.
    pub(crate) chosen: usize,
    /// The chosen one, fitted on all training rows.
    pub(crate) challenger: Box<dyn Fitted>,
    /// The logistic one, fitted on all training rows.
    pub(crate) simple: Box<dyn Fitted>,
}

/// How experiments are run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Seed of everything random.
    pub(crate) seed: u64,
    /// Threads in use at once.
    pub(crate) threads: NonZeroUsize,
}

/// Runs the experiments of a recipe on the training rows of a split.
pub(crate) fn run(
    train: &Train,
    split: &Split,
    effort: Effort,
    progress: &Progress,
) -> Result<Outcome, LearnError> {
    let boosted: Vec<Boosted> = train.boosted.iter().cloned().map(Boosted::new).collect();
    let logistic = Logistic::new(train.logistic.clone());
    let training = split.training();
    let (compare_fit, compare_on) = (split.selection_fit(), split.selection());
    let compare =
        boosted.len() > 1 && compare_fit.rows().min(compare_on.rows()) >= COMPARE_ROWS_MIN;

    // The logistic one has the first seed, the boosted ones the others.
    let seeds: Vec<u64> = (0..=boosted.len() as u64)
        .map(|index| seed(effort.seed, index))
        .collect();
    let mut jobs: Vec<Job<'_>> = Vec::new();
    let candidates = if compare { boosted.len() } else { 1 };
    for (index, learner) in boosted.iter().take(candidates).enumerate() {
        let rows = if compare { &compare_fit } else { &training };
        jobs.push(Job {
            learner,
            rows,
            seed: seeds[index + 1],
        });
    }
    jobs.push(Job {
        learner: &logistic,
        rows: &training,
        seed: seeds[0],
    });

    let steps = jobs.iter().map(|job| job.learner.steps()).sum();
    let threads_each = if compare {
        NonZeroUsize::MIN
    } else {
        effort.threads
    };
    let mut fitted = {
        let phase = progress.phase("experiments", steps);
        fit_all(&jobs, train, effort.threads, threads_each, &phase)?
    };
    let simple = fitted.pop().expect("the logistic job is the last");
    let selection = if compare {
        scores(&fitted, &compare_on)?
    } else {
        Vec::new()
    };
    let chosen = best(&selection);
    let challenger = if compare {
        let phase = progress.phase("final fit", boosted[chosen].steps());
        let job = Job {
            learner: &boosted[chosen],
            rows: &training,
            seed: seeds[chosen + 1],
        };
        job.fit(train, effort.threads, &phase)?
    } else {
        fitted.swap_remove(0)
    };
    let trials = trials(&boosted, &logistic, &selection);
    Ok(Outcome {
        trials,
        chosen,
        challenger,
        simple,
    })
}

/// Scores on the selection rows.
fn scores(fitted: &[Box<dyn Fitted>], on: &Part) -> Result<Vec<Scores>, LearnError> {
    fitted
        .iter()
        .map(|model| Ok(Scores::of(&model.predict(on.values())?, on.labels())))
        .collect()
}

/// The lowest log loss; the first of equals, and the first if none was compared.
fn best(scores: &[Scores]) -> usize {
    let losses = scores.iter().map(|scores| scores.log_loss).enumerate();
    losses
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .map_or(0, |(index, _)| index)
}

fn trials(boosted: &[Boosted], logistic: &Logistic, selection: &[Scores]) -> Vec<Trial> {
    let trial = |name: String, learner: &dyn Learner, selection| Trial {
        name,
        algorithm: learner.algorithm(),
        parameters: learner.parameters(),
        selection,
    };
    boosted
        .iter()
        .enumerate()
        .map(|(index, learner)| {
            trial(
                format!("boosted-{}", index + 1),
                learner,
                selection.get(index).copied(),
            )
        })
        .chain(std::iter::once(trial(
            "logistic".to_owned(),
            logistic,
            None,
        )))
        .collect()
}

/// One learner and the rows it is to fit.
struct Job<'a> {
    learner: &'a dyn Learner,
    rows: &'a Part,
    seed: u64,
}

impl Job<'_> {
    fn fit(
        &self,
        train: &Train,
        threads: NonZeroUsize,
        phase: &Phase<'_>,
    ) -> Result<Box<dyn Fitted>, LearnError> {
        let weights = self.rows.weights(train.half_life);
        self.learner.fit(&Fit {
            rows: self.rows,
            weights: weights.as_deref(),
            seed: self.seed,
            threads,
            step: &|| phase.step(),
        })
    }
}

/// Fits all jobs, at most `workers` at once, and returns them in order.
fn fit_all(
    jobs: &[Job<'_>],
    train: &Train,
    workers: NonZeroUsize,
    threads_each: NonZeroUsize,
    phase: &Phase<'_>,
) -> Result<Vec<Box<dyn Fitted>>, LearnError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else {
                return done;
            };
            done.push((index, job.fit(train, threads_each, phase)));
        }
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers.get().min(jobs.len()))
            .map(|_| scope.spawn(work))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, fitted)| fitted).collect()
}

/// A seed of its own for each configuration (SplitMix64, Steele et al., OOPSLA 2014), so that
/// adding one does not change the others.
fn seed(run_seed: u64, index: u64) -> u64 {
    let mut mixed = run_seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Stop;
    use crate::recipe::{BoostedParameters, LogisticParameters};
    use crate::synthetic;

    fn recipe() -> Train {
        let sound = BoostedParameters {
            trees: 30,
            leaves: 8,
            ..BoostedParameters::default()
        };
        // One tree with nearly no step answers the base rate.
        let idle = BoostedParameters {
            trees: 1,
            learning_rate: 1e-3,
            ..sound.clone()
        };
        Train {
            boosted: vec![idle, sound],
            logistic: LogisticParameters {
                epochs: 2,
                ..LogisticParameters::default()
            },
            ..Train::default()
        }
    }

    fn outcome(train: &Train, rows: usize, threads: usize) -> Result<Outcome, LearnError> {
        let split = synthetic::split(synthetic::set(rows, 4));
        let effort = Effort {
            seed: 3,
            threads: NonZeroUsize::new(threads).unwrap(),
        };
        run(train, &split, effort, &Progress::new(Stop::default()))
    }

    #[test]
    fn the_better_configuration_is_chosen_and_both_are_kept_on_record() {
        let outcome = outcome(&recipe(), 9_000, 2).unwrap();
        assert_eq!(outcome.chosen, 1);
        let names: Vec<_> = outcome
            .trials
            .iter()
            .map(|trial| trial.name.as_str())
            .collect();
        assert_eq!(names, ["boosted-1", "boosted-2", "logistic"]);
        let losses: Vec<_> = outcome
            .trials
            .iter()
            .map(|t| t.selection.map(|s| s.log_loss))
            .collect();
        assert!(losses[0] > losses[1] && losses[2].is_none());
    }

    #[test]
    fn any_number_of_threads_gives_the_same_bytes() {
        let files = |threads| {
            let outcome = outcome(&recipe(), 9_000, threads).unwrap();
            [outcome.challenger, outcome.simple].map(|model| model.graph().unwrap().onnx())
        };
        assert!(files(1) == files(2) && files(2) == files(5));
    }

    #[test]
    fn a_single_configuration_or_too_few_rows_are_not_compared() {
        let mut single = recipe();
        single.boosted.truncate(1);
        for (train, rows) in [(&single, 9_000), (&recipe(), 1_200)] {
            let outcome = outcome(train, rows, 2).unwrap();
            assert_eq!(outcome.chosen, 0);
            assert!(outcome.trials.iter().all(|trial| trial.selection.is_none()));
        }
    }

    #[test]
    fn a_stop_ends_all_experiments() {
        let stop = Stop::default();
        stop.ask();
        let split = synthetic::split(synthetic::set(9_000, 4));
        let effort = Effort {
            seed: 3,
            threads: NonZeroUsize::MIN,
        };
        let result = run(&recipe(), &split, effort, &Progress::new(stop));
        assert!(matches!(result, Err(LearnError::Stopped)));
    }

    #[test]
    fn seeds_of_configurations_differ() {
        let seeds: std::collections::BTreeSet<u64> = (0..100).map(|index| seed(7, index)).collect();
        assert_eq!(seeds.len(), 100);
    }
}
