//! The admin interface: JSON over HTTP/1.1 on a listener of its own, served by the control thread.
//!
//! It reads the registry and the served table directly; what changes a loop goes to the loop's
//! owner as a command. Where keys are required it takes those with the scope `admin`; and it always
//! refuses what a browser would send on behalf of a web page: requests with an `Origin`, hosts that
//! are names of others, and bodies that are not said to be JSON.

mod answer;
mod features;
mod models;
mod past;
mod routes;
mod serving;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use registry::{ModelName, Registry};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use crate::config::ModelConfig;
use crate::control::{Command, Remote};
use crate::routing::{Named, percent_decode};
use crate::serve::Core;

use answer::Refusal;
use routes::Action;

pub(crate) use past::Past;
pub(crate) use routes::ROUTES;
pub(crate) use serving::{Serving, bind};

/// What the handlers need.
pub(crate) struct Admin {
    pub core: Arc<Core>,
    /// Names by which callers may address us, besides our own.
    pub hosts: Vec<Box<str>>,
    /// Whether a project is served.
    pub project: bool,
    /// The project's registry, once it is there.
    pub registry: OnceLock<Registry>,
    /// The project's models.
    pub models: BTreeMap<ModelName, ModelConfig>,
    pub remote: Remote,
    pub past: Past,
}

/// A request, as far as a handler looks at it.
struct Asked<'r> {
    named: Named<'r>,
    query: &'r str,
    body: &'r [u8],
}

impl Admin {
    /// Answers one request with a JSON value.
    async fn answer(&self, action: Action, asked: &Asked<'_>) -> Result<Value, Refusal> {
        match action {
            Action::ShowLoop => self.loop_view(),
            Action::MoveClock => self.clock(asked.body()?).await,
            Action::ListFeatures => self.feature_overview(),
            Action::ReadFeatures => {
                let name = asked.named("service");
                self.read_features(name, asked.body()?).await
            }
            Action::BackUp => self.back_up(asked.body()?).await,
            Action::ListModels => self.model_list().await,
            Action::ShowRun => self.run(asked.named("run")).await,
            Action::Promote | Action::RollBack | Action::Train | Action::SetAlias => {
                let model: ModelName = asked.named("model").parse()?;
                self.change(&model, action, asked).await
            }
            _ => {
                let model: ModelName = asked.named("model").parse()?;
                self.show(&model, action, asked).await
            }
        }
    }

    /// The loops, busy or not, and what the data plane dropped.
    fn loop_view(&self) -> Result<Value, Refusal> {
        let view = Arc::clone(&self.remote.view.borrow());
        self.shown(&view)
    }

    fn shown(&self, view: &crate::control::View) -> Result<Value, Refusal> {
        let mut shown = serde_json::to_value(view)?;
        shown["recorder_dropped"] = json!(self.core.recorder.dropped());
        shown["shadows_dropped"] = json!(self.core.shadows.dropped());
        Ok(shown)
    }

    /// Moves a replay on. The caller may wait for as long as a window takes to judge.
    async fn clock(&self, mut body: Body) -> Result<Value, Refusal> {
        let now_ms = body.take("now_ms", "a number of milliseconds since 1970")?;
        body.end()?;
        let (done, advanced) = oneshot::channel();
        let command = Command::Advance { now_ms, done };
        self.send(command)?;
        let view = advanced.await.map_err(|_| Refusal::stopping())??;
        self.shown(&view)
    }

    /// Hands a command to the control loop, or sheds it.
    fn send(&self, command: Command) -> Result<(), Refusal> {
        self.registry()?;
        self.remote
            .commands
            .try_send(command)
            .map_err(|error| match error {
                tokio::sync::mpsc::error::TrySendError::Full(_) => Refusal::overloaded(),
                tokio::sync::mpsc::error::TrySendError::Closed(_) => Refusal::stopping(),
            })
    }

    fn registry(&self) -> Result<&Registry, Refusal> {
        self.registry.get().ok_or_else(|| match self.project {
            true => Refusal::registry_away(),
            false => Refusal::no_project(),
        })
    }
}

/// The fields of a body. Each is taken once; what is left at the end is unknown.
struct Body(Map<String, Value>);

impl Body {
    /// A field's value; one that is not there counts as null.
    fn take<T: DeserializeOwned>(&mut self, field: &str, expected: &str) -> Result<T, Refusal> {
        let value = self.0.remove(field).unwrap_or_default();
        let shown = value.to_string();
        serde_json::from_value(value).map_err(|_| Refusal::value(field, &shown, expected))
    }

    /// Refuses what no one took.
    fn end(self) -> Result<(), Refusal> {
        match self.0.into_iter().next() {
            None => Ok(()),
            Some((field, _)) => Err(Refusal::unknown_field(&field)),
        }
    }
}

impl Asked<'_> {
    /// What the path says for a name of its route.
    fn named(&self, name: &str) -> &str {
        self.named.get(name).unwrap_or_default()
    }

    /// The fields of the body; none for an empty one.
    fn body(&self) -> Result<Body, Refusal> {
        if self.body.is_empty() {
            return Ok(Body(Map::new()));
        }
        let fields = serde_json::from_slice(self.body);
        fields.map(Body).map_err(|error| Refusal::body(&error))
    }

    /// The value of a query parameter, percent-decoded.
    fn parameter(&self, name: &str) -> Result<Option<String>, Refusal> {
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if key == name {
                let value = value.replace('+', " ");
                return percent_decode(&value)
                    .map(Some)
                    .ok_or_else(Refusal::encoding);
            }
        }
        Ok(None)
    }

    /// A query parameter that is a count.
    fn limit(&self, default: u32) -> Result<u32, Refusal> {
        const LIMIT_MAX: u32 = 100_000;
        let Some(text) = self.parameter("limit")? else {
            return Ok(default);
        };
        match text.parse() {
            Ok(limit) if limit <= LIMIT_MAX => Ok(limit),
            _ => Err(Refusal::value("limit", &text, "a number from 0 to 100000")),
        }
    }
}
