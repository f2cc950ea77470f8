//! The breaker of one version: it opens when runs fail, and closes when probes succeed.
//!
//! Closed, runs go through. Open, they do not, for a time that doubles with each return. Then it is
//! half open: one run at a time is let through as a probe, a copy of traffic where somebody else
//! answers, the request itself where nobody does. A few probes in a row close it, one failure opens
//! it again. Only failures of the version count: not overload, not a deadline that passed in a
//! queue, not what the caller did wrong. A version without recent failures costs one relaxed load.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When a breaker opens, for how long, and what closes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BreakerRules {
    /// Failures in a row that open it.
    pub failures_in_a_row: u32,
    /// The failing share of the runs within the window that opens it, once there are enough of them.
    pub failing_share: f64,
    pub runs_min: u32,
    pub window: Duration,
    /// How long it is open at first, and at most.
    pub open_first: Duration,
    pub open_max: Duration,
    /// Successful probes in a row that close it.
    pub probes: u32,
}

impl BreakerRules {
    /// What holds where the configuration says nothing.
    pub(crate) const USUAL: Self = Self {
        failures_in_a_row: 5,
        failing_share: 0.5,
        runs_min: 20,
        window: Duration::from_secs(10),
        open_first: Duration::from_secs(1),
        open_max: Duration::from_secs(60),
        probes: 3,
    };
}

impl Default for BreakerRules {
    fn default() -> Self {
        Self::USUAL
    }
}

/// A probe that has said nothing for so long is lost; another may go.
const PROBE_LOST: Duration = Duration::from_secs(5);

/// What the breaker says to a run that would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    Closed,
    /// This run may begin, to find out whether the version works again.
    Probe,
    /// Nothing may run before this time has passed.
    Open {
        retry_after: Duration,
    },
}

/// The breaker as threads share it.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    /// Something other than closed and without failures: the lock must be taken.
    is_noisy: AtomicBool,
    circuit: Mutex<Circuit>,
}

impl Breaker {
    pub(crate) fn new(rules: BreakerRules) -> Self {
        Self {
            is_noisy: AtomicBool::new(false),
            circuit: Mutex::new(Circuit {
                rules,
                ..Circuit::default()
            }),
        }
    }

    /// Whether a run may begin. Who is told [`Gate::Probe`] owes an answer to [`Breaker::probed`].
    pub(crate) fn gate(&self, now: impl FnOnce() -> Instant) -> Gate {
        if !self.is_noisy.load(Ordering::Relaxed) {
            return Gate::Closed;
        }
        self.with(|circuit| circuit.gate(now()))
    }

    pub(crate) fn succeeded(&self, now: impl FnOnce() -> Instant) {
        if self.is_noisy.load(Ordering::Relaxed) {
            self.with(|circuit| circuit.ran(now(), Run::Succeeded));
        }
    }

    /// True where this failure opened it.
    pub(crate) fn failed(&self, now: Instant) -> bool {
        self.with(|circuit| {
            let was_closed = circuit.is_closed();
            circuit.ran(now, Run::Failed);
            was_closed && !circuit.is_closed()
        })
    }

    /// The result of a probe; `None` where it never ran.
    pub(crate) fn probed(&self, now: Instant, run: Option<Run>) {
        self.with(|circuit| circuit.probed(now, run));
    }

    /// As metrics show it: 0 closed, 1 half open, 2 open.
    pub(crate) fn level(&self) -> u8 {
        if !self.is_noisy.load(Ordering::Relaxed) {
            return 0;
        }
        self.with(|circuit| match circuit.state {
            State::Closed => 0,
            State::HalfOpen { .. } => 1,
            State::Open { .. } => 2,
        })
    }

    fn with<T>(&self, change: impl FnOnce(&mut Circuit) -> T) -> T {
        // Each step leaves the circuit whole, so a panic of another thread spoils nothing.
        let mut circuit = self.circuit.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut circuit);
        self.is_noisy.store(!circuit.is_quiet(), Ordering::Relaxed);
        result
    }
}

/// How a run ended, as far as the version is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Succeeded,
    Failed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Closed,
    Open {
        until: Instant,
    },
    HalfOpen {
        /// When the probe under way began.
        probe: Option<Instant>,
        successes: u32,
    },
}

/// The state machine; time comes in as a value.
#[derive(Debug, Default)]
struct Circuit {
    rules: BreakerRules,
    state: State,
    in_a_row: u32,
    /// Runs of the last window, oldest first, from the first failure on; at most [`Circuit::runs_max`].
    runs: VecDeque<(Instant, Run)>,
    /// Openings since it last stayed closed for a window, and when it last closed.
    openings: u32,
    closed_at: Option<Instant>,
}

impl Circuit {
    /// Runs that are remembered where the rules do not ask for more: enough to tell a share.
    const RUNS_MAX: usize = 256;

    fn runs_max(&self) -> usize {
        Self::RUNS_MAX.max(self.rules.runs_min as usize)
    }

    fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Closed, and nothing within the window that a next run would be judged by.
    fn is_quiet(&self) -> bool {
        self.is_closed() && self.runs.is_empty() && self.openings == 0
    }

    fn gate(&mut self, now: Instant) -> Gate {
        if let State::Open { until } = self.state {
            if now < until {
                let retry_after = until - now;
                return Gate::Open { retry_after };
            }
            self.state = State::HalfOpen {
                probe: None,
                successes: 0,
            };
        }
        let State::HalfOpen { probe, .. } = &mut self.state else {
            return Gate::Closed;
        };
        match *probe {
            Some(began) if now < began + PROBE_LOST => Gate::Open {
                retry_after: began + PROBE_LOST - now,
            },
            _ => {
                *probe = Some(now);
                Gate::Probe
            }
        }
    }

    /// A run that was let through while closed. One that ends after it opened says nothing new.
    fn ran(&mut self, now: Instant, run: Run) {
        if !self.is_closed() {
            return;
        }
        self.forget(now);
        match run {
            Run::Succeeded if self.runs.is_empty() => return,
            Run::Succeeded => self.in_a_row = 0,
            Run::Failed => self.in_a_row += 1,
        }
        if self.runs.len() == self.runs_max() {
            self.runs.pop_front();
        }
        self.runs.push_back((now, run));
        let failed = |&&(_, run): &&(Instant, Run)| run == Run::Failed;
        let failures = self.runs.iter().filter(failed).count() as f64;
        let runs = self.runs.len();
        let is_failing = runs >= self.rules.runs_min as usize
            && failures >= self.rules.failing_share * runs as f64
            && run == Run::Failed;
        if self.in_a_row >= self.rules.failures_in_a_row || is_failing {
            self.open(now);
        }
    }

    fn probed(&mut self, now: Instant, run: Option<Run>) {
        let State::HalfOpen { probe, successes } = &mut self.state else {
            return;
        };
        *probe = None;
        match run {
            None => {}
            Some(Run::Failed) => self.open(now),
            Some(Run::Succeeded) => {
                *successes += 1;
                if *successes >= self.rules.probes {
                    self.state = State::Closed;
                    self.closed_at = Some(now);
                }
            }
        }
    }

    fn open(&mut self, now: Instant) {
        let doubled = self
            .rules
            .open_first
            .saturating_mul(1 << self.openings.min(6));
        self.openings += 1;
        self.in_a_row = 0;
        self.runs.clear();
        self.state = State::Open {
            until: now + doubled.min(self.rules.open_max),
        };
    }

    /// Drops what is older than the window, and successes that no failure came before.
    fn forget(&mut self, now: Instant) {
        let window = self.rules.window;
        while let Some(&(at, _)) = self.runs.front()
            && now.saturating_duration_since(at) > window
        {
            self.runs.pop_front();
        }
        if self.runs.iter().all(|&(_, run)| run == Run::Succeeded) {
            self.runs.clear();
            self.in_a_row = 0;
            let closed_for = |at| now.saturating_duration_since(at);
            if self.closed_at.is_none_or(|at| closed_for(at) > window) {
                self.openings = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: BreakerRules = BreakerRules::USUAL;

    #[test]
    fn its_rules_are_what_it_is_made_with() {
        let now = Instant::now();
        let breaker = Breaker::new(BreakerRules {
            failures_in_a_row: 2,
            open_first: Duration::from_millis(40),
            probes: 1,
            ..RULES
        });
        assert!(!breaker.failed(now));
        assert!(breaker.failed(now), "the second opens it");
        let retry_after = Duration::from_millis(40);
        assert_eq!(breaker.gate(|| now), Gate::Open { retry_after });
        assert_eq!(breaker.gate(|| now + retry_after), Gate::Probe);
        breaker.probed(now + retry_after, Some(Run::Succeeded));
        assert_eq!(breaker.gate(|| now + retry_after), Gate::Closed);
    }

    fn closed_after(runs: &[Run]) -> bool {
        let breaker = Breaker::default();
        let now = Instant::now();
        for &run in runs {
            match run {
                Run::Succeeded => breaker.succeeded(|| now),
                Run::Failed => _ = breaker.failed(now),
            }
        }
        breaker.gate(|| now) == Gate::Closed
    }

    #[test]
    fn failures_in_a_row_open_it_and_single_ones_do_not() {
        use Run::{Failed, Succeeded};
        assert!(closed_after(&[Failed; 4]));
        assert!(!closed_after(&[Failed; 5]));
        let rare: Vec<Run> = (0..200)
            .map(|k| if k % 4 == 0 { Failed } else { Succeeded })
            .collect();
        assert!(closed_after(&rare));
        let often: Vec<Run> = (0..60)
            .map(|k| if k % 3 < 2 { Failed } else { Succeeded })
            .collect();
        assert!(!closed_after(&often));
    }

    #[test]
    fn probes_close_it_and_a_failed_one_opens_it_for_longer() {
        let mut circuit = Circuit::default();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        for _ in 0..RULES.failures_in_a_row {
            circuit.ran(at(0), Run::Failed);
        }
        assert_eq!(
            circuit.gate(at(400)),
            Gate::Open {
                retry_after: Duration::from_millis(600)
            }
        );
        assert_eq!(circuit.gate(at(1000)), Gate::Probe);
        assert!(
            matches!(circuit.gate(at(1001)), Gate::Open { .. }),
            "one at a time"
        );
        circuit.probed(at(1002), Some(Run::Failed));
        assert!(
            matches!(circuit.gate(at(2900)), Gate::Open { .. }),
            "twice as long"
        );
        assert_eq!(circuit.gate(at(3002)), Gate::Probe);
        circuit.probed(at(3003), None);
        for _ in 0..RULES.probes {
            assert_eq!(circuit.gate(at(3004)), Gate::Probe);
            circuit.probed(at(3005), Some(Run::Succeeded));
        }
        assert_eq!(circuit.gate(at(3006)), Gate::Closed);
        assert!(!circuit.is_quiet());
        circuit.ran(at(3006) + 2 * RULES.window, Run::Succeeded);
        assert!(circuit.is_quiet(), "{circuit:?}");
    }

    #[test]
    fn a_lost_probe_is_followed_by_another() {
        let mut circuit = Circuit::default();
        let now = Instant::now();
        circuit.open(now);
        assert_eq!(circuit.gate(now + RULES.open_first), Gate::Probe);
        assert!(matches!(
            circuit.gate(now + RULES.open_first),
            Gate::Open { .. }
        ));
        assert_eq!(
            circuit.gate(now + RULES.open_first + PROBE_LOST),
            Gate::Probe
        );
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Wait(u64),
        Ask,
        Succeed,
        Fail,
        Probed(Option<bool>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_000_u64).prop_map(Step::Wait),
            (0..90_000_u64).prop_map(Step::Wait),
            Just(Step::Ask),
            Just(Step::Succeed),
            Just(Step::Fail),
            Just(Step::Fail),
            proptest::option::of(any::<bool>()).prop_map(Step::Probed),
        ]
    }

    proptest! {
        /// Against the rules said plainly: what it remembers is bounded; closed after an opening
        /// only by probes; open no longer than the maximum; at most one probe at a time.
        #[test]
        fn whatever_happens_the_rules_hold(steps in prop::collection::vec(step(), 1..400)) {
            let mut circuit = Circuit::default();
            let mut now = Instant::now();
            let mut probing: Option<Instant> = None;
            let mut good_probes = 0;
            for step in steps {
                let was_closed = circuit.is_closed();
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Ask => match circuit.gate(now) {
                        Gate::Probe => {
                            prop_assert!(probing.is_none_or(|began| now >= began + PROBE_LOST));
                            probing = Some(now);
                        }
                        Gate::Open { retry_after } => prop_assert!(retry_after <= RULES.open_max),
                        Gate::Closed => prop_assert!(was_closed),
                    },
                    Step::Succeed => circuit.ran(now, Run::Succeeded),
                    Step::Fail => circuit.ran(now, Run::Failed),
                    Step::Probed(ok) => {
                        let run = ok.map(|ok| if ok { Run::Succeeded } else { Run::Failed });
                        circuit.probed(now, run);
                        probing = None;
                        match ok {
                            Some(true) => good_probes += 1,
                            Some(false) => good_probes = 0,
                            None => {}
                        }
                    }
                }
                if !was_closed && circuit.is_closed() {
                    prop_assert!(good_probes >= RULES.probes);
                }
                if was_closed && !circuit.is_closed() {
                    prop_assert!(matches!(step, Step::Fail));
                    (good_probes, probing) = (0, None);
                }
                prop_assert!(circuit.runs.len() <= Circuit::RUNS_MAX + 1);
            }
        }

        #[test]
        fn failures_below_the_share_and_never_five_in_a_row_leave_it_closed(
            gaps in prop::collection::vec(2_u32..8, 1..60),
        ) {
            let mut circuit = Circuit::default();
            let now = Instant::now();
            for gap in gaps {
                circuit.ran(now, Run::Failed);
                for _ in 0..gap {
                    circuit.ran(now, Run::Succeeded);
                }
                prop_assert!(circuit.is_closed());
            }
        }
    }
}
