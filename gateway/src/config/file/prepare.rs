//! The sections of how models come in: `[prepare]` and `[repository]`.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use serde::Deserialize;

use super::{nonzero, size};
use crate::prepare::TrialLimits;

/// `[prepare]`: the child process in which a model file is tried first.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct PrepareFile {
    /// MiB of address space that a file may take; a small file gets less: 256 MiB and twelve times
    /// its own size. Default 4,096.
    pub memory_max_mib: NonZeroU64,
    /// Milliseconds that a trial may take. Default 30,000.
    pub timeout_ms: NonZeroU64,
    /// Seconds of processor time that a trial may take. Default 10.
    pub cpu_max_s: NonZeroU64,
}

impl Default for PrepareFile {
    fn default() -> Self {
        Self {
            memory_max_mib: nonzero(4096),
            timeout_ms: nonzero(30_000),
            cpu_max_s: nonzero(10),
        }
    }
}

impl PrepareFile {
    pub(in crate::config) fn limits(&self) -> TrialLimits {
        TrialLimits {
            memory_bytes_max: self.memory_max_mib.get().saturating_mul(1 << 20),
            timeout: Duration::from_millis(self.timeout_ms.get()),
            cpu: Duration::from_secs(self.cpu_max_s.get()),
        }
    }
}

/// `[repository]`: loading and unloading of models by request.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct RepositoryFile {
    /// Whether models may be loaded without a key through data listeners that are not on loopback;
    /// where keys are required, the scope `admin` decides. Default false.
    pub load: bool,
    /// Bytes of a load request, which holds the model file in base64. Default 128 MiB.
    pub body_bytes_max: NonZeroUsize,
}

impl Default for RepositoryFile {
    fn default() -> Self {
        Self {
            load: false,
            body_bytes_max: size(128 << 20),
        }
    }
}
