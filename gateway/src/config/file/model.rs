//! `models/NAME.toml`: one model's whole loop, as far as it is the gateway's.

use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use engine::EngineKind;
use monitor::policy::{LabelPolicy, MonitorPolicy, RolloutPolicy, TriggerPolicy};
use registry::{AliasName, ModelName};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::admission::InFlight;
use crate::config::{ModelConfig, ServeRules, VerifyRules};

/// `models/NAME.toml`. `[train]` and `[gates]` are the trainer's and not looked into here.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ModelFile {
    /// Feature service that makes the model's input, `name` or `name@version`.
    pub service: Option<String>,
    /// `auto`, `trees`, `tract` or `onnxruntime`. Default `auto`.
    pub engine: EngineChoice,
    /// Aliases that answer, in this order, where the routed version cannot.
    pub fallback: Vec<AliasName>,
    /// Answers when nothing else could: every float output is filled with it.
    pub constant: Option<FiniteF32>,
    /// Score a copy of each answered request: an alias of this model, or `model@alias`.
    pub shadow: Vec<Alias>,
    /// Milliseconds that a prediction may take, where less than `[serving] deadline_ms`.
    pub deadline_ms: Option<NonZeroU64>,
    /// Its predictions in flight; beyond it 429. Default as many as the process takes.
    pub in_flight_max: Option<NonZeroUsize>,
    /// Bytes of their bodies; beyond it 429. Default as many as the process takes.
    pub in_flight_bytes_max: Option<NonZeroUsize>,
    /// Share of the requests that the alias `challenger` answers, 0 to 1. Default 0.
    pub canary_share: ShareOfRequests,
    pub label: LabelPolicy,
    pub monitor: MonitorPolicy,
    pub trigger: TriggerPolicy,
    pub rollout: RolloutPolicy,
    pub verify: VerifyFile,
    #[serde(rename = "train")]
    _train: Option<IgnoredAny>,
    #[serde(rename = "gates")]
    _gates: Option<IgnoredAny>,
}

/// `[verify]`: whether what is served is what the event log gives. For models with a feature service.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct VerifyFile {
    /// `nightly`: each night at 03:00 UTC a sample of the rows served since is recomputed, and one that
    /// differs is a data fault. `off`. Default `nightly`.
    pub when: VerifyWhen,
    /// Rows of one night. Default 1000.
    pub rows: NonZeroUsize,
    /// Bytes of the states kept from night to night; beyond it each night reads the whole event log.
    /// Default 1 GiB.
    pub memory_bytes_max: usize,
}

/// When served rows are verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::config) enum VerifyWhen {
    Nightly,
    Off,
}

impl Default for VerifyFile {
    fn default() -> Self {
        Self {
            when: VerifyWhen::Nightly,
            rows: super::size(1000),
            memory_bytes_max: 1 << 30,
        }
    }
}

impl VerifyFile {
    fn rules(self) -> Option<VerifyRules> {
        (self.when == VerifyWhen::Nightly).then_some(VerifyRules {
            rows: self.rows,
            memory_bytes_max: self.memory_bytes_max,
        })
    }
}

impl Default for ModelConfig {
    /// What an empty file says.
    fn default() -> Self {
        ModelFile::default().into()
    }
}

impl From<ModelFile> for ModelConfig {
    fn from(file: ModelFile) -> Self {
        let rules = ServeRules {
            fallback: file
                .fallback
                .iter()
                .map(|alias| alias.as_str().into())
                .collect(),
            constant: file.constant.map(|constant| constant.0),
            shadow: file.shadow,
            deadline: file.deadline_ms.map(|ms| Duration::from_millis(ms.get())),
            canary_share: file.canary_share.0,
            in_flight: InFlight {
                requests: file.in_flight_max.map_or(usize::MAX, NonZeroUsize::get),
                bytes: file
                    .in_flight_bytes_max
                    .map_or(usize::MAX, NonZeroUsize::get),
            },
        };
        Self {
            service: file.service,
            verify: file.verify.rules(),
            engine: file.engine,
            rules: Arc::new(rules),
            policy: monitor::Policy {
                label: file.label,
                monitor: file.monitor,
                trigger: file.trigger,
                rollout: file.rollout,
            },
        }
    }
}

/// Which engine runs a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum EngineChoice {
    /// The fastest of those that agree.
    #[default]
    Auto,
    Only(EngineKind),
}

impl EngineChoice {
    const AUTO: &str = "auto";

    /// As it is written.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => Self::AUTO,
            Self::Only(kind) => kind.as_str(),
        }
    }

    /// Reads what [`EngineChoice::as_str`] writes.
    pub(crate) fn parse(name: &str) -> Result<Self, String> {
        if name == Self::AUTO {
            return Ok(Self::Auto);
        }
        let kind: Result<EngineKind, _> = name.parse();
        kind.map(Self::Only)
            .map_err(|error| format!("{error}, or auto"))
    }
}

impl TryFrom<String> for EngineChoice {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Self::parse(&name)
    }
}

/// An alias, of the model at hand or of a named one.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Alias {
    pub model: Option<Box<str>>,
    pub alias: Box<str>,
}

impl TryFrom<String> for Alias {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let (model, alias) = match text.split_once('@') {
            Some((model, alias)) => {
                let model: ModelName = model.parse().map_err(|error| format!("{error}"))?;
                (Some(model.as_str().into()), alias)
            }
            None => (None, text.as_str()),
        };
        let alias: AliasName = alias.parse().map_err(|error| format!("{error}"))?;
        Ok(Self {
            model,
            alias: alias.as_str().into(),
        })
    }
}

/// A finite number.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(try_from = "f64")]
pub(in crate::config) struct FiniteF32(f32);

impl TryFrom<f64> for FiniteF32 {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        let narrow = value as f32;
        narrow
            .is_finite()
            .then_some(Self(narrow))
            .ok_or_else(|| format!("{value} is not a finite number"))
    }
}

/// A share, 0 to 1.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(try_from = "f64")]
pub(in crate::config) struct ShareOfRequests(f64);

impl TryFrom<f64> for ShareOfRequests {
    type Error = String;

    fn try_from(value: f64) -> Result<Self, String> {
        (0.0..=1.0)
            .contains(&value)
            .then_some(Self(value))
            .ok_or_else(|| format!("{value} is not a share from 0 to 1"))
    }
}
