//! The route table: which paths there are, and what each does with which method.
//!
//! A row is data: whoever adds a route adds a row and an answer to it. Rows are tried in order, the
//! prediction first, segment by segment; a path of the table costs no allocation unless it is
//! percent-encoded.

use std::borrow::Cow;

use hyper::Method;
use registry::ModelName;

use super::status::Refusal;
use crate::metrics::Operation;
use crate::route::Target;

/// What a row of the table does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
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
}

impl Endpoint {
    /// The endpoint as metrics see it.
    pub(super) fn operation(self) -> Operation {
        match self {
            Self::Infer => Operation::Infer,
            Self::Events => Operation::Events,
            Self::Labels => Operation::Labels,
            _ => Operation::Other,
        }
    }
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct Route {
    pub method: Method,
    /// The segments of the path; [`MODEL`], [`VERSION`] and [`NAME`] stand for any one segment.
    segments: &'static [&'static str],
    pub endpoint: Endpoint,
}

const MODEL: &str = "{model}";
const VERSION: &str = "{version}";
const NAME: &str = "{name}";

const fn get(segments: &'static [&'static str], endpoint: Endpoint) -> Route {
    Route {
        method: Method::GET,
        segments,
        endpoint,
    }
}

const fn post(segments: &'static [&'static str], endpoint: Endpoint) -> Route {
    Route {
        method: Method::POST,
        segments,
        endpoint,
    }
}

/// Every route of the data listener.
#[rustfmt::skip]
static ROUTES: &[Route] = &[
    post(&["v2", "models", MODEL, "infer"], Endpoint::Infer),
    post(&["v2", "models", MODEL, "versions", VERSION, "infer"], Endpoint::Infer),
    get(&["v2", "health", "live"], Endpoint::Live),
    get(&["v2", "health", "ready"], Endpoint::Ready),
    get(&["v2"], Endpoint::Server),
    get(&["v2", "models"], Endpoint::Models),
    // Before the models, one of which may be called so: its metadata is at `/versions/…`.
    get(&["v2", "models", "stats"], Endpoint::Statistics),
    get(&["v2", "models", MODEL], Endpoint::Model),
    get(&["v2", "models", MODEL, "versions", VERSION], Endpoint::Model),
    get(&["v2", "models", MODEL, "ready"], Endpoint::ModelReady),
    get(&["v2", "models", MODEL, "versions", VERSION, "ready"], Endpoint::ModelReady),
    get(&["v2", "models", MODEL, "config"], Endpoint::ModelConfig),
    get(&["v2", "models", MODEL, "versions", VERSION, "config"], Endpoint::ModelConfig),
    get(&["v2", "models", MODEL, "stats"], Endpoint::Statistics),
    get(&["v2", "models", MODEL, "versions", VERSION, "stats"], Endpoint::Statistics),
    post(&["v2", "repository", "index"], Endpoint::RepositoryIndex),
    post(&["v2", "repository", NAME, "index"], Endpoint::RepositoryIndex),
    post(&["v2", "repository", "models", MODEL, "load"], Endpoint::RepositoryLoad),
    post(&["v2", "repository", "models", MODEL, "unload"], Endpoint::RepositoryUnload),
    get(&["v2", "trace", "setting"], Endpoint::TraceSettings),
    post(&["v2", "trace", "setting"], Endpoint::TraceUpdate),
    get(&["v2", "models", MODEL, "trace", "setting"], Endpoint::TraceSettings),
    post(&["v2", "models", MODEL, "trace", "setting"], Endpoint::TraceUpdate),
    get(&["v2", "logging"], Endpoint::LogSettings),
    post(&["v2", "logging"], Endpoint::LogUpdate),
    post(&["v1", "events", NAME], Endpoint::Events),
    post(&["v1", "labels"], Endpoint::Labels),
];

/// A route and what its path names.
#[derive(Debug)]
pub(super) struct Matched<'p> {
    pub route: &'static Route,
    model: Option<Cow<'p, str>>,
    version: Option<Cow<'p, str>>,
    name: Option<Cow<'p, str>>,
}

impl Matched<'_> {
    /// The model and version that the path names; `None` where the route has none.
    pub(super) fn named(&self) -> Result<Option<Target>, Refusal> {
        let Some(model) = &self.model else {
            return Ok(None);
        };
        let model: ModelName = model.parse().map_err(|error| Refusal::name(&error))?;
        Ok(Some(Target {
            model,
            version: self.version.as_deref().map(Into::into),
        }))
    }

    /// The model and version of a route that has a model.
    pub(super) fn target(&self) -> Result<Target, Refusal> {
        self.named()?.ok_or_else(Refusal::no_such_path)
    }

    /// What stands for [`NAME`]; empty where the route has none.
    pub(super) fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }
}

/// Finds what `path` names, with or without a slash at its end. Segments are percent-decoded after
/// they are split, so that an encoded slash stays part of a name, which no name allows.
///
/// # Errors
/// When no row has the path, none of those that have it the method, or it is not percent-encoded.
pub(super) fn resolve<'p>(method: &Method, path: &'p str) -> Result<Matched<'p>, Refusal> {
    const SEGMENTS_MAX: usize = 8;
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments: [Cow<'p, str>; SEGMENTS_MAX] = Default::default();
    let mut count = 0;
    for segment in path.split('/') {
        let place = segments.get_mut(count).ok_or_else(Refusal::no_such_path)?;
        *place = percent_decoded(segment).ok_or_else(Refusal::path)?;
        count += 1;
    }
    let segments = &mut segments[..count];
    let of_path = |route: &&Route| {
        let stands_for = |(row, found): (&&str, &Cow<'_, str>)| {
            matches!(*row, MODEL | VERSION | NAME) || *row == found
        };
        route.segments.len() == count && route.segments.iter().zip(&*segments).all(stands_for)
    };
    let mut allowed = Vec::new();
    for route in ROUTES.iter().filter(of_path) {
        if route.method == *method {
            let mut take = |placeholder: &str| {
                let place = route.segments.iter().position(|row| *row == placeholder)?;
                Some(std::mem::take(&mut segments[place]))
            };
            return Ok(Matched {
                route,
                model: take(MODEL),
                version: take(VERSION),
                name: take(NAME),
            });
        }
        if !allowed.contains(&&route.method) {
            allowed.push(&route.method);
        }
    }
    match allowed[..] {
        [] => Err(Refusal::no_such_path()),
        _ => Err(Refusal::method(&allowed)),
    }
}

fn percent_decoded(segment: &str) -> Option<Cow<'_, str>> {
    match segment.contains('%') {
        false => Some(Cow::Borrowed(segment)),
        true => percent_decode(segment).map(Cow::Owned),
    }
}

/// Percent-decodes; `None` when it is cut short or not UTF-8.
pub(crate) fn percent_decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || char::from(rest.next()?).to_digit(16);
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The endpoint, model and version of a path.
    fn named(method: &Method, path: &str) -> Option<(Endpoint, String, Option<String>)> {
        let matched = resolve(method, path).ok()?;
        let target = matched.target().ok()?;
        let version = target.version.map(Into::into);
        Some((matched.route.endpoint, target.model.to_string(), version))
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
            let path = format!("/{}", row.segments.join("/"))
                .replace(MODEL, "m")
                .replace(VERSION, "1")
                .replace(NAME, "n");
            for path in [path.clone(), format!("{path}/")] {
                let found = resolve(&row.method, &path).unwrap();
                assert!(std::ptr::eq(found.route, row), "{path} is shadowed");
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
