//! Models, versions, aliases and their history; artifacts by content hash; and the metadata of
//! training: experiments, runs, parameters, metrics, datasets, decisions, lineage.
//!
//! One SQLite file (WAL, `synchronous = FULL`) and one folder of immutable blobs, shared by every
//! process on the machine that opens them. Nothing here is on the request path: a write costs an
//! fsync or two, a read some tens of microseconds on SQLite's own threads.
//!
//! What must never be wrong is enforced by the schema (`migrations/`) and not by this code alone:
//! versions, decisions and alias history are append-only, and an alias *is* its newest event, so
//! state and history cannot disagree.
//!
//! Knows nothing of ONNX, traffic or statistics. Time is passed in, in milliseconds since the Unix
//! epoch.

mod alias;
mod artifact;
mod decision;
mod lineage;
mod model;
mod names;
mod open;
mod run;

pub use alias::{AliasChange, AliasError, AliasEvent, Promotion, Release, Rollback};
pub use artifact::{ARTIFACT_BYTES_MAX, ArtifactError, ArtifactStore};
pub use decision::{Decision, DecisionError, NewDecision};
pub use lineage::Lineage;
pub use model::{
    DatasetUse, ModelSummary, ModelVersion, NewVersion, RegisterError, Registration, UnknownModel,
    UnknownVersion,
};
pub use names::{AliasName, Digest, ModelName, NameError, RunId, Version};
pub use open::{CopyError, DatabaseError, LookupError, OpenError, Registry, RegistryOptions};
pub use run::{
    Dataset, LogError, LoggedDataset, Metric, NewRun, Run, RunEnded, RunError, RunStatus,
    RunSummary, UnknownRun,
};
