//! What the user decides about one model's loop: the sections `[label]`,
//! `[monitor]`, `[trigger]` and `[rollout]` of `models/NAME.toml`.
//!
//! Every key has a default and a type that cannot hold a wrong value, so a
//! parsed policy needs no further check. Spans are text with a unit (`7d`).

mod span;

use std::num::{NonZeroU32, NonZeroU64};

use serde::{Deserialize, Serialize};

pub use span::{Span, SpanError};

/// The four sections of one model's loop. A file with more sections embeds the
/// section types directly, since serde cannot flatten and refuse unknown keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// `[label]`.
    pub label: LabelPolicy,
    /// `[monitor]` and `[monitor.decay]`.
    pub monitor: MonitorPolicy,
    /// `[trigger]`.
    pub trigger: TriggerPolicy,
    /// `[rollout]`.
    pub rollout: RolloutPolicy,
}

/// `[label]`: how the truth about a prediction comes back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LabelPolicy {
    /// By then nearly every label has arrived (the 95th percentile of the delay).
    /// Coverage is measured on predictions at least this old. Default `12h`.
    pub delay: Span,
    /// Least share of matured predictions that must have a label; below it the
    /// quality is unknown, never good. 0 to 1, default 0.5.
    pub coverage_min: Share,
}

impl Default for LabelPolicy {
    fn default() -> Self {
        LabelPolicy {
            delay: Span::hours(12),
            coverage_min: Share(0.5),
        }
    }
}

/// `[monitor]`: what is compared with the champion's reference, and how often.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MonitorPolicy {
    /// Time between evaluations, at whole multiples since 1970 UTC. Default `1d`.
    pub every: Span,
    /// Length of the window of features and scores. Default `1d`.
    pub window: Span,
    /// Fewest rows of the window for a test of drift or of a data fault. Default 500.
    pub rows_min: NonZeroU64,
    /// Equal-mass bins per feature, 4 to 64. Default 16.
    pub bins: Bins,
    /// Smallest population stability index that matters: drift is tested against
    /// "PSI is at most this". Default 0.1.
    pub psi_min: Positive,
    /// False-alarm rate of one evaluation over all features together. Default 0.001.
    pub alpha: Probability,
    /// Rows per independent observation: rows that repeat an entity or share a
    /// window count for less, and 1 % tests fire far more often. Default 4.
    pub design_effect: AtLeastOne,
    /// Smallest rise of a share (missing, unseen category, not found, outside
    /// maximum age) that is a data fault. 0 to 1, default 0.1.
    pub fault_rise: Share,
    /// False-alarm rate of one evaluation over all shares together. Default 1e-6.
    pub fault_alpha: Probability,
    /// `[monitor.decay]`: quality on matured labels.
    pub decay: DecayPolicy,
}

impl Default for MonitorPolicy {
    fn default() -> Self {
        MonitorPolicy {
            every: Span::days(1),
            window: Span::days(1),
            rows_min: nonzero(500),
            bins: Bins(16),
            psi_min: Positive(0.1),
            alpha: Probability(1e-3),
            design_effect: AtLeastOne(4.0),
            fault_rise: Share(0.1),
            fault_alpha: Probability(1e-6),
            decay: DecayPolicy::default(),
        }
    }
}

/// `[monitor.decay]`: how much worse than its own validation a champion may be.
/// A measure is tested when its tolerance is given; decay is any of them beyond
/// its tolerance and beyond noise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecayPolicy {
    /// Labels that became known in this last stretch are scored. Default `7d`.
    pub window: Span,
    /// Fewest labelled rows of this champion for a judgement. Default 1000.
    pub rows_min: NonZeroU64,
    /// False-alarm rate of each measure's noise test. Default 0.05: what keeps a
    /// passing alarm from training is the trigger's k of n.
    pub alpha: Probability,
    /// Labelled rows per independent one: errors that come together (a storm, one
    /// customer) are noisier than their number says. Default 1.
    pub design_effect: AtLeastOne,
    /// Relative rise of the log loss (0.05 = 5 % worse). Moves with the base rate:
    /// a season with more positives looks worse, and is then often worth learning.
    /// Default 0.05; a large number switches it off.
    pub log_loss: Option<Positive>,
    /// Relative rise of log loss divided by the entropy of the window's own base
    /// rate (1 = knows nothing), which a change of the base rate alone does not
    /// move. Off unless given; 0.03 is a good start.
    pub normalized_log_loss: Option<Positive>,
    /// Absolute fall of the area under the ROC curve. Off unless given.
    pub auc: Option<Positive>,
    /// Absolute rise of the expected calibration error. Off unless given.
    pub ece: Option<Positive>,
}

impl Default for DecayPolicy {
    fn default() -> Self {
        DecayPolicy {
            window: Span::days(7),
            rows_min: nonzero(1000),
            alpha: Probability(0.05),
            design_effect: AtLeastOne(1.0),
            log_loss: Some(Positive(0.05)),
            normalized_log_loss: None,
            auc: None,
            ece: None,
        }
    }
}

impl DecayPolicy {
    /// Whether any measure is tested at all.
    pub fn tests_anything(&self) -> bool {
        [self.log_loss, self.normalized_log_loss, self.auc, self.ece]
            .iter()
            .any(Option::is_some)
    }
}

/// `[trigger]`: when a verdict becomes a training run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TriggerPolicy {
    /// `confirm = { k, n }`: k of the last n evaluations must say the same, the
    /// newest among them. Default 2 of 3.
    pub confirm: Confirm,
    /// Whether drift without decay may train. Default false: it is reported only.
    pub drift: bool,
    /// Least time from the end of one run to the start of the next; doubled for
    /// each rejected challenger in a row. Default `10d`.
    pub cooldown: Span,
    /// Cap of the doubled cooldown. Default `30d`.
    pub cooldown_max: Span,
    /// `budget = { runs, per }`: a token bucket that holds `runs` and refills
    /// within `per`. Default 4 per `1d`.
    pub budget: Budget,
    /// Train when the newest training, or without one the champion's first day, is
    /// this long ago, cooldown and budget permitting. Default `30d`; a long span
    /// switches it off.
    pub schedule: Option<Span>,
    /// Wall time after which a run's process group is killed. Default `2h`.
    pub run_deadline: Span,
    /// Most bytes of a run's output kept in its log. Default 4 MiB.
    pub run_log_bytes_max: NonZeroU64,
    /// Most bytes of data a run may allocate (`RLIMIT_DATA`). Off unless given.
    pub run_memory_bytes_max: Option<NonZeroU64>,
}

impl Default for TriggerPolicy {
    fn default() -> Self {
        TriggerPolicy {
            confirm: Confirm { k: 2, n: 3 },
            drift: false,
            cooldown: Span::days(10),
            cooldown_max: Span::days(30),
            budget: Budget {
                runs: NonZeroU32::new(4).expect("4 is not zero"),
                per: Span::days(1),
            },
            schedule: Some(Span::days(30)),
            run_deadline: Span::hours(2),
            run_log_bytes_max: nonzero(4 << 20),
            run_memory_bytes_max: None,
        }
    }
}

/// `[rollout]`: how a challenger becomes the champion and stays it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutPolicy {
    /// A challenger that the gateway has not prepared by then is given up.
    /// Default `6h`.
    pub prepare_max: Span,
    /// Time after a swap in which a much worse new champion is rolled back, and
    /// in which nothing is triggered. Default `3d`.
    pub soak: Span,
    /// Fewest labelled rows of the new champion before it may be rolled back.
    /// Default 1000.
    pub soak_rows_min: NonZeroU64,
    /// Where the old champion runs as a shadow on the same days: roll back when the
    /// new one's normalised log loss is relatively worse by more than this, and
    /// beyond noise. Default 0.1.
    pub soak_tolerance: Positive,
    /// Without such a shadow the old champion's last window is the measure. Other
    /// days are harder or easier by themselves, so only a gross failure counts.
    /// Default 0.3.
    pub soak_tolerance_before: Positive,
    /// False-alarm rate of the noise test of one evaluation. Default 0.001.
    pub soak_alpha: Probability,
}

impl Default for RolloutPolicy {
    fn default() -> Self {
        RolloutPolicy {
            prepare_max: Span::hours(6),
            soak: Span::days(3),
            soak_rows_min: nonzero(1000),
            soak_tolerance: Positive(0.1),
            soak_tolerance_before: Positive(0.3),
            soak_alpha: Probability(1e-3),
        }
    }
}

/// k of n evaluations, 1 ≤ k ≤ n ≤ 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ConfirmText")]
pub struct Confirm {
    k: usize,
    n: usize,
}

impl Confirm {
    /// k of n, or nothing where that is not 1 ≤ k ≤ n ≤ 64.
    pub fn new(k: usize, n: usize) -> Option<Confirm> {
        (1 <= k && k <= n && n <= 64).then_some(Confirm { k, n })
    }

    /// How many evaluations must agree.
    pub fn k(self) -> usize {
        self.k
    }

    /// Out of how many.
    pub fn n(self) -> usize {
        self.n
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfirmText {
    k: usize,
    n: usize,
}

impl TryFrom<ConfirmText> for Confirm {
    type Error = String;

    fn try_from(text: ConfirmText) -> Result<Confirm, String> {
        let ConfirmText { k, n } = text;
        Confirm::new(k, n).ok_or_else(|| format!("{k} of {n} is not 1 ≤ k ≤ n ≤ 64"))
    }
}

/// A token bucket of training runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// Tokens that the full bucket holds; a run takes one.
    pub runs: NonZeroU32,
    /// Time in which an empty bucket fills.
    pub per: Span,
}

/// Declares a number type that is checked where it is read.
macro_rules! bounded {
    ($(#[$doc:meta])* $name:ident, $ok:expr, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, PartialOrd, Serialize, Deserialize)]
        #[serde(try_from = "f64")]
        pub struct $name(f64);

        impl $name {
            /// The number, or nothing where it is out of bounds.
            pub fn new(value: f64) -> Option<$name> {
                let within: fn(f64) -> bool = $ok;
                within(value).then_some($name(value))
            }

            /// The number.
            pub fn get(self) -> f64 {
                self.0
            }
        }

        impl TryFrom<f64> for $name {
            type Error = String;

            fn try_from(value: f64) -> Result<$name, String> {
                $name::new(value).ok_or_else(|| format!(concat!("{} is not ", $what), value))
            }
        }
    };
}

bounded!(
    /// A share, 0 to 1.
    Share,
    |value| (0.0..=1.0).contains(&value),
    "a share from 0 to 1"
);
bounded!(
    /// A probability above 0 and at most 0.5.
    Probability,
    |value| value > 0.0 && value <= 0.5,
    "a probability above 0 and at most 0.5"
);
bounded!(
    /// A finite number above 0.
    Positive,
    |value| value > 0.0 && value.is_finite(),
    "a number above 0"
);
bounded!(
    /// A finite number of at least 1.
    AtLeastOne,
    |value| value >= 1.0 && value.is_finite(),
    "a number of at least 1"
);

/// Bins per feature, 4 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "usize")]
pub struct Bins(usize);

impl Bins {
    /// The number of bins, or nothing where it is not 4 to 64.
    pub fn new(bins: usize) -> Option<Bins> {
        (4..=64).contains(&bins).then_some(Bins(bins))
    }

    /// The number of bins.
    pub fn get(self) -> usize {
        self.0
    }
}

impl TryFrom<usize> for Bins {
    type Error = String;

    fn try_from(bins: usize) -> Result<Bins, String> {
        Bins::new(bins).ok_or_else(|| format!("{bins} is not from 4 to 64 bins"))
    }
}

fn nonzero(value: u64) -> NonZeroU64 {
    NonZeroU64::new(value).expect("a default above zero")
}

#[cfg(test)]
mod tests {
    use super::*;
    use featurestore::parse_toml;

    fn refused(text: &str) -> String {
        parse_toml::<Policy>(text, "delay.toml")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn nothing_written_is_the_default_and_the_default_reads_back() {
        assert_eq!(
            parse_toml::<Policy>("", "delay.toml").unwrap(),
            Policy::default()
        );
        let json = serde_json::to_string(&Policy::default()).unwrap();
        assert_eq!(
            serde_json::from_str::<Policy>(&json).unwrap(),
            Policy::default()
        );
    }

    #[test]
    fn every_section_is_read() {
        let text = r#"
            [label]
            delay = "6h"
            [monitor]
            every = "1d"
            bins = 32
            [monitor.decay]
            log_loss = 0.07
            [trigger]
            confirm = { k = 1, n = 2 }
            budget = { runs = 2, per = "7d" }
            schedule = "40d"
            [rollout]
            soak = "12h"
        "#;
        let policy: Policy = parse_toml(text, "delay.toml").unwrap();
        assert_eq!(policy.label.delay, Span::hours(6));
        assert_eq!(policy.monitor.bins.get(), 32);
        assert_eq!(policy.monitor.decay.log_loss.map(Positive::get), Some(0.07));
        assert_eq!(
            (policy.trigger.confirm.k(), policy.trigger.confirm.n()),
            (1, 2)
        );
        assert_eq!(policy.trigger.schedule, Some(Span::days(40)));
        assert_eq!(policy.rollout.soak.to_string(), "12h");
    }

    #[test]
    fn wrong_values_are_refused_with_their_line() {
        for (text, problem) in [
            ("[monitor]\nevrey = \"1d\"", "evrey"),
            ("[monitor]\nevery = \"1 week\"", "`1 week` is not a span"),
            ("[monitor]\nbins = 3", "3 is not from 4 to 64 bins"),
            ("[monitor]\nalpha = 0.0", "0 is not a probability"),
            ("[label]\ncoverage_min = 1.5", "1.5 is not a share"),
            ("[trigger]\nconfirm = { k = 3, n = 2 }", "3 of 2 is not"),
            ("[monitor.decay]\nauc = -1.0", "-1 is not a number above 0"),
        ] {
            let message = refused(text);
            assert!(message.contains("delay.toml:2"), "{message}");
            assert!(message.contains(problem), "{message}");
        }
    }
}
