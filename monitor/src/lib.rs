//! The monitor: is a model still right, and what to do when it is not.
//!
//! Owns mergeable statistics of what was served, the champion's reference, the
//! tests between them, quality on matured labels, the verdict, the trigger, the
//! trainer as a child process and the rollout of a challenger. Knows nothing of
//! HTTP, of training algorithms or of how the store lays out its tables.
//!
//! Time is `now_ms`, passed in; the next step is derived from the registry, so a
//! restart and normal operation take the same path.

pub mod baseline;
pub mod counters;
pub mod cycle;
pub mod drift;
pub mod launch;
pub mod metrics;
pub mod policy;
pub mod quality;
pub mod rollout;
pub mod trigger;
pub mod verdict;

pub use baseline::Baseline;
pub use counters::Counters;
pub use cycle::{
    LoopError, LoopState, LoopStatus, ModelLoop, ModelLoopConfig, OperatorRequest, RequestAnswer,
    Tick,
};
pub use policy::Policy;
pub use verdict::{Evidence, Judgement, Skew, Verdict};
