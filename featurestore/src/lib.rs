//! Feature definitions, online state, the event, label and prediction logs, and training rows.
//!
//! Owns what a feature is (`definition`, `service`), how it is computed (`window`: one pure `fold`
//! and `read` for online writes, import and training rows alike) and where it is kept. Knows
//! nothing of models, statistics or HTTP. Time is always a value passed in: milliseconds since the
//! Unix epoch, UTC.

pub mod applied;
pub mod backfill;
mod commit;
pub mod definition;
pub mod event;
pub mod export;
pub mod expression;
pub mod join;
mod key_table;
pub mod labels;
mod log;
pub mod metrics;
pub mod offline;
pub mod online;
pub mod predictions;
pub mod project_file;
pub mod recomputed;
mod refold;
pub mod service;
pub mod travel;
pub mod value;
mod varint;
pub mod verify;
pub mod view_rows;
pub mod window;

pub use applied::{
    Application, Applied, ApplyError, ChangedMeaning, Planned, VersionName, Versioned, plan,
};
pub use backfill::{BackfillRequest, Backfilled, HistoryError, ImportRequest, Imported, Progress};
pub use definition::{
    Aggregate, Decay, DefinitionError, Definitions, DurationError, Entity, Filter, Meaning,
    Measure, MeasureKind, Source, Summary, SummaryKind, Test, View, ViewFeature, ViewKey,
    WINDOW_TILES, WINDOWS_MAX, Window, WindowKind, parse_duration_ms,
};
pub use event::{Event, EventError, EventProblem};
pub use export::{ExportError, ExportRequest, ExportWhat};
pub use join::PointInTime;
pub use labels::{Label, LabelsIngested, Outcome, OutcomeCursor};
pub use offline::{
    Bucket, BucketError, BucketFields, Dataset, DatasetAbout, OfflineError, ReadFile,
    RetentionOptions, RowsFrom, TableReport, TrainingQuery, TrainingSet, Upkept, check_files,
    training_rows,
};
pub use online::{
    BackedUp, BackupError, Done, FeatureStore, IngestError, Ingested, OpenError, Overloaded,
    ReadError, RecordError, SealError, StoreOptions, StoreStats, TableOptions,
};
pub use predictions::{PredictionKey, PredictionKeyError, PredictionRecord, Role, Sealed};
pub use project_file::{ProjectFileError, ProjectText, nearest, parse_toml, read_toml};
pub use recomputed::{RecomputeError, recomputed_rows, sealed_dataset};
pub use service::{
    Derived, Dictionary, FeatureOrigin, FeatureRow, InView, Missing, Refused, RequestError,
    Service, ServiceFeature,
};
pub use travel::{Moment, TravelError, Watch};
pub use value::{
    Field, FieldProblem, FieldType, Value, ValueDecodeError, decode_values, encode_values, time_ms,
};
pub use verify::{Mark, Mismatch, Verifier, VerifierOptions, VerifyError, VerifyReport};
pub use view_rows::{Readings, ViewKeys, ViewRows};
pub use window::{Feature, Folded, StateError, Status, ViewState};
