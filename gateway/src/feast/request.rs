//! The bodies of Feast's routes. Keys come in any order; an unknown one is ignored, as Feast does.

use std::borrow::Cow;

use super::columns::Columns;
use super::error::SchemaError;
use crate::oip::Cursor;

/// `POST /get-online-features`.
#[derive(Debug)]
pub(super) struct OnlineRequest<'a> {
    pub features: Vec<Cow<'a, str>>,
    /// Goes before `features`.
    pub service: Option<Cow<'a, str>>,
    /// Join keys and request data.
    pub entities: Columns<'a>,
    pub full_names: bool,
    pub with_versions: bool,
}

impl<'a> OnlineRequest<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, SchemaError> {
        let mut entities = None;
        let (mut features, mut service) = (Vec::new(), None);
        let (mut full_names, mut with_versions) = (false, false);
        object(body, |key, cursor| {
            match key {
                "features" => features = texts(cursor, "features")?,
                "feature_service" => service = optional_text(cursor, "feature_service")?,
                "entities" => entities = Some(Columns::read(cursor, "entities")?),
                "full_feature_names" => full_names = flag(cursor, "full_feature_names")?,
                "include_feature_view_version_metadata" => {
                    with_versions = flag(cursor, "include_feature_view_version_metadata")?;
                }
                _ => cursor.skip_value()?,
            }
            Ok(())
        })?;
        Ok(Self {
            features,
            service: service.filter(|name| !name.is_empty()),
            entities: entities.ok_or_else(|| SchemaError::missing("entities"))?,
            full_names,
            with_versions,
        })
    }
}

/// `POST /push` and `POST /write-to-online-store`.
#[derive(Debug)]
pub(super) struct FrameRequest<'a> {
    /// A push source or a feature view.
    pub name: Cow<'a, str>,
    pub frame: Columns<'a>,
    /// Where a push goes; absent is Feast's `online`.
    pub to: Option<Cow<'a, str>>,
}

impl<'a> FrameRequest<'a> {
    /// Reads a body whose key `named` names what is written to.
    pub(super) fn decode(body: &'a [u8], named: &'static str) -> Result<Self, SchemaError> {
        let (mut name, mut frame, mut to) = (None, None, None);
        object(body, |key, cursor| {
            match key {
                "df" => frame = Some(Columns::read(cursor, "df")?),
                "to" => to = Some(text(cursor, "to")?),
                // There is no registry to be late, and nothing to transform.
                "allow_registry_cache" => drop(flag(cursor, "allow_registry_cache")?),
                "transform_on_write" => drop(flag(cursor, "transform_on_write")?),
                key if key == named => name = Some(text(cursor, named)?),
                _ => cursor.skip_value()?,
            }
            Ok(())
        })?;
        Ok(Self {
            name: name.ok_or_else(|| SchemaError::missing(named))?,
            frame: frame.ok_or_else(|| SchemaError::missing("df"))?,
            to,
        })
    }
}

/// `POST /materialize` and `POST /materialize-incremental`.
#[derive(Debug, Default)]
pub(super) struct MaterializeRequest<'a> {
    pub start: Option<Cow<'a, str>>,
    pub end: Option<Cow<'a, str>>,
    /// Absent means all.
    pub views: Option<Vec<Cow<'a, str>>>,
    /// Without times.
    pub timeless: bool,
    pub version: Option<Cow<'a, str>>,
}

impl<'a> MaterializeRequest<'a> {
    pub(super) fn decode(body: &'a [u8]) -> Result<Self, SchemaError> {
        let mut request = Self::default();
        object(body, |key, cursor| {
            match key {
                "start_ts" => request.start = optional_text(cursor, "start_ts")?,
                "end_ts" => request.end = optional_text(cursor, "end_ts")?,
                "version" => request.version = optional_text(cursor, "version")?,
                "disable_event_timestamp" => {
                    request.timeless = flag(cursor, "disable_event_timestamp")?;
                }
                "feature_views" if cursor.peek() == Some(b'n') => cursor.skip_value()?,
                "feature_views" => request.views = Some(texts(cursor, "feature_views")?),
                _ => cursor.skip_value()?,
            }
            Ok(())
        })?;
        Ok(request)
    }
}

/// Reads a body that is one object; `field` reads the value of each key.
fn object<'a>(
    body: &'a [u8],
    mut field: impl FnMut(&str, &mut Cursor<'a>) -> Result<(), SchemaError>,
) -> Result<(), SchemaError> {
    let mut cursor = Cursor::new(body);
    cursor.begin_object()?;
    let mut first = true;
    while let Some(key) = cursor.next_key(&mut first)? {
        field(&key, &mut cursor)?;
    }
    Ok(cursor.end()?)
}

fn text<'a>(cursor: &mut Cursor<'a>, at: &'static str) -> Result<Cow<'a, str>, SchemaError> {
    match cursor.peek() {
        Some(b'"') => Ok(cursor.string()?),
        _ => Err(SchemaError::of_key(
            "string_type",
            at,
            "Input should be a valid string",
        )),
    }
}

fn optional_text<'a>(
    cursor: &mut Cursor<'a>,
    at: &'static str,
) -> Result<Option<Cow<'a, str>>, SchemaError> {
    if cursor.peek() == Some(b'n') {
        cursor.skip_value()?;
        return Ok(None);
    }
    text(cursor, at).map(Some)
}

fn texts<'a>(cursor: &mut Cursor<'a>, at: &'static str) -> Result<Vec<Cow<'a, str>>, SchemaError> {
    if cursor.peek() != Some(b'[') {
        let problem = "Input should be a valid list";
        return Err(SchemaError::of_key("list_type", at, problem));
    }
    cursor.begin_array()?;
    let (mut found, mut first) = (Vec::new(), true);
    while cursor.next_item(&mut first)? {
        found.push(text(cursor, at)?);
    }
    Ok(found)
}

fn flag(cursor: &mut Cursor<'_>, at: &'static str) -> Result<bool, SchemaError> {
    match cursor.peek() {
        Some(b't' | b'f') => Ok(cursor.boolean()?),
        _ => Err(SchemaError::of_key(
            "bool_type",
            at,
            "Input should be a valid boolean",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(decoded: Result<(), SchemaError>) -> (&'static str, Option<&'static str>) {
        let error = decoded.unwrap_err();
        (error.kind, error.at)
    }

    #[test]
    fn bodies_are_read_with_their_keys_in_any_order() {
        let body = br#"{"entities":{"id":[1]},"more":{"a":[1]},"full_feature_names":true,"features":["v:a","v@v2:b"],"feature_service":null}"#;
        let request = OnlineRequest::decode(body).unwrap();
        assert_eq!(request.features, ["v:a", "v@v2:b"]);
        assert!(request.service.is_none() && request.full_names && !request.with_versions);
        let body = br#"{"to":"online","df":{"id":[1]},"push_source_name":"s","allow_registry_cache":true,"transform_on_write":false}"#;
        let request = FrameRequest::decode(body, "push_source_name").unwrap();
        assert_eq!(
            (&*request.name, request.to.as_deref()),
            ("s", Some("online"))
        );
        let request =
            MaterializeRequest::decode(br#"{"end_ts":"x","feature_views":null}"#).unwrap();
        assert!(request.views.is_none() && request.end.is_some());
    }

    #[test]
    fn a_body_of_another_shape_is_named_by_its_key() {
        let online = |body: &str| kind(OnlineRequest::decode(body.as_bytes()).map(drop));
        assert_eq!(online("{}"), ("missing", Some("entities")));
        assert_eq!(online("[]"), ("json_invalid", None));
        assert_eq!(online("{\"entities\":{}} x"), ("json_invalid", None));
        assert_eq!(online("{\"entities\":[]}"), ("dict_type", Some("entities")));
        assert_eq!(
            online("{\"entities\":{\"a\":1}}"),
            ("list_type", Some("entities"))
        );
        assert_eq!(
            online("{\"features\":\"v:a\"}"),
            ("list_type", Some("features"))
        );
        assert_eq!(
            online("{\"features\":[1]}"),
            ("string_type", Some("features"))
        );
        assert_eq!(
            online("{\"full_feature_names\":1}"),
            ("bool_type", Some("full_feature_names"))
        );
        let write =
            |body: &str| kind(FrameRequest::decode(body.as_bytes(), "feature_view_name").map(drop));
        assert_eq!(write("{\"df\":{}}"), ("missing", Some("feature_view_name")));
        assert_eq!(
            write("{\"feature_view_name\":\"v\"}"),
            ("missing", Some("df"))
        );
        let materialize = |body: &str| kind(MaterializeRequest::decode(body.as_bytes()).map(drop));
        assert_eq!(
            materialize("{\"end_ts\":1}"),
            ("string_type", Some("end_ts"))
        );
    }
}
