//! The data listener's route table: which paths there are, what each does with which method, and
//! what it asks of its caller.
//!
//! A row is data: whoever adds a route adds a row and an answer to it. The prediction comes first.

use hyper::http::request::Parts;
use registry::ModelName;

use super::feast::FeastRoute;
use super::status::Refusal;
use crate::access::{Access, Gate};
use crate::feast::Materialize;
use crate::keys::Scope;
use crate::metrics::Operation;
use crate::route::{Named, Target};
use crate::routing::{Found, Route, find};

/// What a row of the table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Infer,
    Server,
    Live,
    Ready,
    Models,
    Model,
    ModelReady,
    ModelConfig,
    Statistics,
    RepositoryIndex,
    RepositoryLoad,
    RepositoryUnload,
    TraceSettings,
    TraceUpdate,
    LogSettings,
    LogUpdate,
    Events,
    Labels,
    Feast(FeastRoute),
}

impl Endpoint {
    /// The endpoint as metrics see it.
    pub(super) fn operation(self) -> Operation {
        match self {
            Self::Infer => Operation::Infer,
            Self::Events => Operation::Events,
            Self::Labels => Operation::Labels,
            Self::Feast(route) => route.operation(),
            _ => Operation::Other,
        }
    }
}

const OPEN: Access = Access::Open;
const PREDICT: Access = Access::Scoped(Scope::Predict);
const WRITE: Access = Access::Scoped(Scope::Write);
const ADMIN: Access = Access::Scoped(Scope::Admin);

/// Every route of the data listener.
#[rustfmt::skip]
pub(crate) const ROUTES: &[Route<Endpoint>] = &[
    Route::post("v2/models/{model}/infer", PREDICT, Endpoint::Infer),
    Route::post("v2/models/{model}/versions/{version}/infer", PREDICT, Endpoint::Infer),
    Route::get("v2/health/live", OPEN, Endpoint::Live),
    Route::get("v2/health/ready", OPEN, Endpoint::Ready),
    Route::get("v2", PREDICT, Endpoint::Server),
    Route::get("v2/models", PREDICT, Endpoint::Models),
    // Before the models, one of which may be called so: its metadata is at `/versions/…`.
    Route::get("v2/models/stats", PREDICT, Endpoint::Statistics),
    Route::get("v2/models/{model}", PREDICT, Endpoint::Model),
    Route::get("v2/models/{model}/versions/{version}", PREDICT, Endpoint::Model),
    Route::get("v2/models/{model}/ready", PREDICT, Endpoint::ModelReady),
    Route::get("v2/models/{model}/versions/{version}/ready", PREDICT, Endpoint::ModelReady),
    Route::get("v2/models/{model}/config", PREDICT, Endpoint::ModelConfig),
    Route::get("v2/models/{model}/versions/{version}/config", PREDICT, Endpoint::ModelConfig),
    Route::get("v2/models/{model}/stats", PREDICT, Endpoint::Statistics),
    Route::get("v2/models/{model}/versions/{version}/stats", PREDICT, Endpoint::Statistics),
    Route::post("v2/repository/index", PREDICT, Endpoint::RepositoryIndex),
    Route::post("v2/repository/{name}/index", PREDICT, Endpoint::RepositoryIndex),
    Route::post("v2/repository/models/{model}/load", ADMIN, Endpoint::RepositoryLoad),
    Route::post("v2/repository/models/{model}/unload", ADMIN, Endpoint::RepositoryUnload),
    Route::get("v2/trace/setting", PREDICT, Endpoint::TraceSettings),
    Route::post("v2/trace/setting", ADMIN, Endpoint::TraceUpdate),
    Route::get("v2/models/{model}/trace/setting", PREDICT, Endpoint::TraceSettings),
    Route::post("v2/models/{model}/trace/setting", ADMIN, Endpoint::TraceUpdate),
    Route::get("v2/logging", PREDICT, Endpoint::LogSettings),
    Route::post("v2/logging", ADMIN, Endpoint::LogUpdate),
    Route::post("v1/events/{name}", WRITE, Endpoint::Events),
    Route::post("v1/labels", WRITE, Endpoint::Labels),
    Route::post("get-online-features", PREDICT, Endpoint::Feast(FeastRoute::OnlineFeatures)),
    Route::post("push", WRITE, Endpoint::Feast(FeastRoute::Push)),
    Route::post("write-to-online-store", WRITE, Endpoint::Feast(FeastRoute::Write)),
    Route::post("materialize", WRITE, Endpoint::Feast(FeastRoute::Materialize(Materialize::Range))),
    Route::post("materialize-incremental", WRITE, Endpoint::Feast(FeastRoute::Materialize(Materialize::Incremental))),
    Route::get("health", OPEN, Endpoint::Feast(FeastRoute::Health)),
];

/// A route whose caller was let in, and what its path names.
#[derive(Debug)]
pub(super) struct Matched<'p>(Found<'p, Endpoint>);

impl Matched<'_> {
    pub(super) fn endpoint(&self) -> Endpoint {
        self.0.route.to
    }

    /// The model and version that the path names; `None` where the route has none.
    pub(super) fn named(&self) -> Result<Option<Target>, Refusal> {
        let Some(model) = self.0.named.get("model") else {
            return Ok(None);
        };
        let model: ModelName = model.parse().map_err(|error| Refusal::name(&error))?;
        Ok(Some(Target {
            model,
            version: self.0.named.get("version").map(Into::into),
        }))
    }

    /// The model or feature service of a route that has one.
    pub(super) fn asked(&self) -> Result<Named, Refusal> {
        let name = self
            .0
            .named
            .get("model")
            .ok_or_else(Refusal::no_such_path)?;
        let named = Named::parse(name, self.0.named.get("version"));
        named.map_err(|error| Refusal::name(&error))
    }

    /// The model and version of a route that has a model.
    pub(super) fn target(&self) -> Result<Target, Refusal> {
        self.named()?.ok_or_else(Refusal::no_such_path)
    }

    /// What stands for `{name}`; empty where the route has none.
    pub(super) fn name(&self) -> &str {
        self.0.named.get("name").unwrap_or_default()
    }
}

/// The way from a request's head to what it asks for: there must be such a route, and its caller must
/// be let in, before anything else of the request is looked at. Also says as what it counts.
///
/// # Errors
/// When there is no such route, or the caller may not take it.
pub(super) fn enter<'p>(gate: &Gate, head: &'p Parts) -> (Operation, Result<Matched<'p>, Refusal>) {
    match find(ROUTES, &head.method, head.uri.path()) {
        Err(unrouted) => (Operation::Other, Err(unrouted.into())),
        Ok(found) => {
            let operation = found.route.to.operation();
            let passed = gate.pass(&head.headers, found.route.access);
            let is_feast = matches!(found.route.to, Endpoint::Feast(_));
            let entered = passed.map(|_| Matched(found)).map_err(|denied| {
                let refusal = Refusal::from(denied);
                if is_feast {
                    refusal.for_feast()
                } else {
                    refusal
                }
            });
            (operation, entered)
        }
    }
}

#[cfg(test)]
mod tests {
    use hyper::Method;

    use super::*;

    fn resolve<'p>(method: &Method, path: &'p str) -> Result<Matched<'p>, Refusal> {
        Ok(Matched(find(ROUTES, method, path)?))
    }

    /// The endpoint, model and version of a path.
    fn named(method: &Method, path: &str) -> Option<(Endpoint, String, Option<String>)> {
        let matched = resolve(method, path).ok()?;
        let target = matched.target().ok()?;
        let version = target.version.map(Into::into);
        Some((matched.endpoint(), target.model.to_string(), version))
    }

    #[test]
    fn models_and_versions_are_read_from_paths() {
        for model in ["a.b", "7", "team:a", "stats"] {
            for (path, version) in [
                (format!("/v2/models/{model}/infer"), None),
                (format!("/v2/models/{model}/infer/"), None),
                (format!("/v2/models/{model}/versions/3/infer"), Some("3")),
                (
                    format!("/v2/models/{model}/versions/champion/infer"),
                    Some("champion"),
                ),
            ] {
                let expected = (
                    Endpoint::Infer,
                    model.to_owned(),
                    version.map(str::to_owned),
                );
                assert_eq!(named(&Method::POST, &path), Some(expected), "{path}");
            }
        }
        let (_, model, _) = named(&Method::GET, "/v2/models/team%3Aa%2E1").unwrap();
        assert_eq!(model, "team:a.1");
    }

    #[test]
    fn every_row_is_reached_by_its_own_path_and_method() {
        for row in ROUTES {
            let path = format!("/{}", row.path)
                .replace("{model}", "m")
                .replace("{version}", "1")
                .replace("{name}", "n");
            for path in [path.clone(), format!("{path}/")] {
                let found = resolve(&row.method, &path).unwrap();
                assert!(
                    std::ptr::eq(found.0.route.path, row.path),
                    "{path} is shadowed"
                );
                assert!(resolve(&Method::DELETE, &path).is_err());
            }
        }
    }

    #[test]
    fn paths_that_name_nothing_are_refused() {
        for path in [
            "",
            "/",
            "/v3",
            "//v2",
            "/v2//models",
            "/v2/models/a/b",
            "/v1/events",
            "/v1/events/a/b",
            "/v2/models/a/versions",
            "/v2/models/a/versions/1/2/3",
            "/metrics",
            "/v2/health",
            "/v2/models/a/versions/1/2/3/4/5/6/7",
            "/{model}",
            "/v2/models//",
        ] {
            for method in [Method::GET, Method::POST] {
                let found = resolve(&method, path).and_then(|matched| matched.named());
                assert!(found.is_err(), "{method} {path}: {found:?}");
            }
        }
        for name in [
            "..",
            "%2e%2e",
            "%2F",
            "a%2Fb",
            "%",
            "%4",
            "%zz",
            "%ff",
            "%00",
            "a b",
            "a\\b",
            "ａ",
            &"x".repeat(65),
        ] {
            let path = format!("/v2/models/{name}/infer");
            let found = resolve(&Method::POST, &path).and_then(|matched| matched.target());
            assert!(found.is_err(), "took {name}");
        }
    }
}
