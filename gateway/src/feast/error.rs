//! Why a Feast request gets no answer, and the class by which Feast's client knows the reason.

use featurestore::{FieldProblem, ReadError, RequestError};

use crate::cold::ColdReadError;
use crate::features::ReadFailure;
use crate::ingest::IngestRefusal;
use crate::oip::JsonError;

/// A body that is not what its route takes, as FastAPI reports it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {message}", .at.unwrap_or("body"))]
pub(crate) struct SchemaError {
    /// Pydantic's name for the problem.
    pub kind: &'static str,
    /// The key of the body.
    pub at: Option<&'static str>,
    pub message: String,
}

impl SchemaError {
    pub(super) fn of_key(kind: &'static str, at: &'static str, message: &str) -> Self {
        Self {
            kind,
            at: Some(at),
            message: message.to_owned(),
        }
    }

    pub(super) fn missing(at: &'static str) -> Self {
        Self::of_key("missing", at, "Field required")
    }
}

impl From<JsonError> for SchemaError {
    fn from(error: JsonError) -> Self {
        Self {
            kind: "json_invalid",
            at: None,
            message: error.to_string(),
        }
    }
}

/// Why a request is not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FeastError {
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error("this gateway keeps no features: start it with a project")]
    NoStore,
    #[error("Feature view {0} does not exist")]
    View(String),
    #[error("Version {version} of feature view {view} does not exist")]
    ViewVersion { view: String, version: u32 },
    #[error("feature view {view} has no feature {feature}")]
    Feature { view: String, feature: String },
    #[error("Feature service {0} does not exist")]
    Service(String),
    #[error("Unable to find push source '{0}'.")]
    PushSource(String),
    #[error("`{0}` is not a feature reference: expected view:feature or view@v2:feature")]
    Reference(String),
    #[error("no features are asked for: give `features` or a `feature_service`")]
    NoFeatures,
    #[error("{found} features, at most {max} allowed")]
    TooManyFeatures { found: usize, max: usize },
    #[error(
        "Duplicate features named {name} found: {}",
        if *.full { "ask for each once" } else { "ask with full_feature_names = true" }
    )]
    Collision { name: String, full: bool },
    #[error("entities lack the join key `{key}` of {of}")]
    JoinKey { key: String, of: String },
    #[error("entities lack `{field}`, which feature service {service} needs")]
    RequestData { field: String, service: String },
    #[error("no rows: each column is empty")]
    NoRows,
    #[error("{rows} rows, at most {rows_max} allowed")]
    TooManyRows { rows: usize, rows_max: usize },
    #[error("column `{column}` has {found} values where `{other}` has {expected}")]
    Lengths {
        column: String,
        found: usize,
        other: String,
        expected: usize,
    },
    #[error("column `{0}` comes twice")]
    DoubledColumn(String),
    #[error("column `{column}`, row {row}: {problem}")]
    Value {
        column: String,
        row: usize,
        problem: FieldProblem,
    },
    #[error("the answer takes more than {bytes_max} bytes: ask for fewer rows or features")]
    AnswerSize { bytes_max: usize },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(
        "feature view {view} computes `{feature}` from events: push them to source `{source_name}`, values cannot be written"
    )]
    Computed {
        view: String,
        feature: String,
        source_name: String,
    },
    #[error(
        "feature view {view} takes the events of source `{source_name}` that pass its filter: push them there, values cannot be written"
    )]
    Filtered { view: String, source_name: String },
    #[error("column `{column}` is missing: {why}")]
    MissingColumn { column: String, why: String },
    #[error("columns `{0}` and `{1}` are one field of the source")]
    OneField(String, String),
    #[error("unknown column `{column}`{}", .nearest.as_ref().map_or_else(String::new, |name| format!(", did you mean `{name}`?")))]
    UnknownColumn {
        column: String,
        nearest: Option<String>,
    },
    #[error("`to` is `{0}`: expected online, online_and_offline or offline")]
    To(String),
    #[error(
        "`to = \"offline\"` is not offered: what is pushed is logged for training and is in the online state at once; use online_and_offline, or `loopgate feature import` for history"
    )]
    OfflineOnly,
    #[error("{0}")]
    Times(String),
    #[error(transparent)]
    Ingest(#[from] IngestRefusal),
    #[error("features are not available")]
    Read(#[from] ReadError),
    #[error("features are not available: {0}")]
    Cold(#[from] ColdReadError),
}

impl From<ReadFailure> for FeastError {
    fn from(failure: ReadFailure) -> Self {
        match failure {
            ReadFailure::Store(error) => error.into(),
            ReadFailure::Cold(error) => error.into(),
        }
    }
}

impl FeastError {
    /// The class of `feast.errors` that its client raises.
    pub(crate) fn class(&self) -> &'static str {
        match self {
            Self::View(_) => "FeatureViewNotFoundException",
            Self::ViewVersion { .. } => "FeatureViewVersionNotFound",
            Self::Feature { .. } => "SpecifiedFeaturesNotPresentError",
            Self::Service(_) => "FeatureServiceNotFoundException",
            Self::PushSource(_) => "PushSourceNotFoundException",
            Self::Collision { .. } => "FeatureNameCollisionError",
            Self::RequestData { .. } => "RequestDataNotFoundInEntityRowsException",
            _ => "FeastError",
        }
    }
}

/// What was given, not more of it than an error may repeat.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}
