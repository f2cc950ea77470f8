//! The route table: which paths there are, and the one method of each.

use hyper::Method;
use registry::ModelName;

use super::status::Refusal;
use crate::metrics::Operation;
use crate::route::Target;

/// What a path names.
#[derive(Clone, Debug)]
pub(super) enum Resource {
    /// `/v2`
    Server,
    /// `/v2/health/live`
    Live,
    /// `/v2/health/ready`
    Ready,
    /// `/v2/models`
    Models,
    /// `/v2/models/{model}[/versions/{version}]`
    Model(Target),
    /// `…/ready`
    ModelReady(Target),
    /// `…/infer`
    Infer(Target),
    /// `/v1/events/{source}`
    Events(String),
    /// `/v1/labels`
    Labels,
}

impl Resource {
    pub(super) fn method(&self) -> Method {
        match self {
            Self::Infer(_) | Self::Events(_) | Self::Labels => Method::POST,
            _ => Method::GET,
        }
    }

    pub(super) fn operation(&self) -> Operation {
        match self {
            Self::Infer(_) => Operation::Infer,
            Self::Events(_) => Operation::Events,
            Self::Labels => Operation::Labels,
            _ => Operation::Other,
        }
    }
}

/// Finds what `path` names, with or without a slash at its end. Segments are percent-decoded after
/// they are split, so that an encoded slash stays part of a name, which no name allows.
pub(super) fn resolve(path: &str) -> Result<Resource, Refusal> {
    const SEGMENTS_MAX: usize = 8;
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let mut segments = Vec::with_capacity(SEGMENTS_MAX);
    for segment in path.split('/').take(SEGMENTS_MAX) {
        segments.push(percent_decode(segment).ok_or_else(Refusal::path)?);
    }
    let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
    match segments[..] {
        ["v2"] => Ok(Resource::Server),
        ["v2", "health", "live"] => Ok(Resource::Live),
        ["v2", "health", "ready"] => Ok(Resource::Ready),
        ["v2", "models"] => Ok(Resource::Models),
        ["v2", "models", model] => Ok(Resource::Model(target(model, None)?)),
        ["v2", "models", model, "ready"] => Ok(Resource::ModelReady(target(model, None)?)),
        ["v2", "models", model, "infer"] => Ok(Resource::Infer(target(model, None)?)),
        ["v2", "models", model, "versions", version] => {
            Ok(Resource::Model(target(model, Some(version))?))
        }
        ["v2", "models", model, "versions", version, "ready"] => {
            Ok(Resource::ModelReady(target(model, Some(version))?))
        }
        ["v2", "models", model, "versions", version, "infer"] => {
            Ok(Resource::Infer(target(model, Some(version))?))
        }
        ["v1", "events", source] => Ok(Resource::Events(source.to_owned())),
        ["v1", "labels"] => Ok(Resource::Labels),
        _ => Err(Refusal::no_such_path()),
    }
}

fn target(model: &str, version: Option<&str>) -> Result<Target, Refusal> {
    let model: ModelName = model.parse().map_err(|error| Refusal::name(&error))?;
    Ok(Target {
        model,
        version: version.map(Into::into),
    })
}

/// Percent-decodes; `None` when it is cut short or not UTF-8.
pub(crate) fn percent_decode(segment: &str) -> Option<String> {
    if !segment.contains('%') {
        return Some(segment.to_owned());
    }
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

    fn named(path: &str) -> Option<(String, Option<String>)> {
        match resolve(path).ok()? {
            Resource::Infer(target) => {
                Some((target.model.to_string(), target.version.map(Into::into)))
            }
            _ => None,
        }
    }

    #[test]
    fn models_and_versions_are_read_from_paths() {
        let expected = |version: Option<&str>| Some(("a.b".to_owned(), version.map(str::to_owned)));
        assert_eq!(named("/v2/models/a.b/infer"), expected(None));
        assert_eq!(named("/v2/models/a%2Eb/infer/"), expected(None));
        assert_eq!(
            named("/v2/models/a.b/versions/3/infer"),
            expected(Some("3"))
        );
        assert_eq!(
            named("/v2/models/a.b/versions/champion/infer"),
            expected(Some("champion"))
        );
    }

    #[test]
    fn paths_that_name_nothing_are_refused() {
        for path in [
            "",
            "/",
            "/v3",
            "/v2/",
            "//v2",
            "/v2//models",
            "/v2/models/a/b",
            "/v1/events",
            "/v1/events/a/b",
            "/v2/models/a/versions",
            "/v2/models/a/versions/1/2/3",
            "/metrics",
            "/v2/health",
        ] {
            let found = resolve(path);
            assert!(found.is_err() || path == "/v2/", "{path}: {found:?}");
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
            assert!(
                resolve(&format!("/v2/models/{name}/infer")).is_err(),
                "took {name}"
            );
        }
    }
}
