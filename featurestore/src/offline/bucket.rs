//! A bucket of S3, or of what speaks like it, as a place for sealed files.
//!
//! An object is one PUT: whole, or not there. A manifest is replaced by a PUT on the condition that it
//! is still the one that was read (`If-Match`), so a store that does not keep conditions is refused when
//! it is first used. Failures that may pass (no answer, 5xx, 429) are tried again with growing pauses
//! for [`Bucket::patience`], then they are errors. Credentials come from the environment as AWS names
//! them, or from the instance, container or pod; they are never written anywhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, S3ConditionalPut};
use object_store::path::Path as ObjectPath;
use object_store::prefix::PrefixStore;
use object_store::{
    BackoffConfig, Error, ObjectStore, ObjectStoreExt as _, PutMode, RetryConfig, UpdateVersion,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::https::Https;

/// Where in S3 the sealed files of a data folder lie; known to be written as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "BucketFields", into = "BucketFields")]
pub struct Bucket {
    name: Box<str>,
    prefix: Box<str>,
    region: Option<Box<str>>,
    endpoint: Option<Box<str>>,
    /// How long one operation is tried again.
    patience: Duration,
}

/// A bucket as it is written: in `[offline]` of loopgate.toml, and in the data folder.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BucketFields {
    /// `s3://BUCKET/PREFIX`; the prefix may be missing.
    pub url: String,
    /// Region. Default: of the environment (`AWS_REGION`), else `us-east-1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// `https://HOST` of another store than Amazon's. Default: of the environment (`AWS_ENDPOINT_URL`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Whether the endpoint may be `http://`. Default false.
    pub allow_http: bool,
}

/// A field of a bucket that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{field} = \"{value}\"`: {problem}")]
pub struct BucketError {
    field: &'static str,
    value: String,
    problem: &'static str,
}

/// How long an operation is tried again: a store that is busy has mostly caught up by then, and one
/// that is away is tried again by the next seal.
const PATIENCE: Duration = Duration::from_secs(15);

impl TryFrom<BucketFields> for Bucket {
    type Error = BucketError;

    fn try_from(fields: BucketFields) -> Result<Self, BucketError> {
        let refused = |field, value: &str, problem| BucketError {
            field,
            value: value.to_owned(),
            problem,
        };
        let url = &fields.url;
        let Some(path) = url.strip_prefix("s3://") else {
            return Err(refused("url", url, "must be s3://BUCKET/PREFIX"));
        };
        let (name, prefix) = path.split_once('/').unwrap_or((path, ""));
        let plain =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
        if !(3..=63).contains(&name.len()) || !name.bytes().all(plain) {
            let problem = "a bucket's name has 3 to 63 lower-case letters, digits, dots and dashes";
            return Err(refused("url", url, problem));
        }
        let prefix = prefix.trim_end_matches('/');
        if ObjectPath::parse(prefix).is_err() || prefix.contains(['?', '#']) {
            return Err(refused(
                "url",
                url,
                "its prefix cannot be part of an object's name",
            ));
        }
        if let Some(region) = &fields.region
            && (region.is_empty() || !region.bytes().all(plain))
        {
            return Err(refused("region", region, "is no region's name"));
        }
        if let Some(endpoint) = &fields.endpoint {
            let host = match endpoint.split_once("://") {
                Some(("https", host)) => host,
                Some(("http", host)) if fields.allow_http => host,
                Some(("http", _)) => {
                    let problem = "http:// is refused unless `allow_http = true`";
                    return Err(refused("endpoint", endpoint, problem));
                }
                _ => return Err(refused("endpoint", endpoint, "must be https://HOST")),
            };
            if host.trim_end_matches('/').contains(['/', '?', '#', '@']) || host.is_empty() {
                return Err(refused(
                    "endpoint",
                    endpoint,
                    "must be https://HOST or https://HOST:PORT",
                ));
            }
        } else if fields.allow_http {
            return Err(refused(
                "allow_http",
                "true",
                "is for an `endpoint` with http://",
            ));
        }
        Ok(Self {
            name: name.into(),
            prefix: prefix.into(),
            region: fields.region.map(Into::into),
            endpoint: fields.endpoint.map(Into::into),
            patience: PATIENCE,
        })
    }
}

impl From<Bucket> for BucketFields {
    fn from(bucket: Bucket) -> Self {
        Self {
            url: bucket.url(),
            allow_http: bucket.allow_http(),
            region: bucket.region.map(Into::into),
            endpoint: bucket.endpoint.map(Into::into),
        }
    }
}

impl Bucket {
    /// `s3://BUCKET/PREFIX`.
    pub fn url(&self) -> String {
        match &*self.prefix {
            "" => format!("s3://{}", self.name),
            prefix => format!("s3://{}/{prefix}", self.name),
        }
    }

    /// The same, with operations tried again for so long.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Whether both name the same objects.
    pub(super) fn is_same_place(&self, other: &Self) -> bool {
        let key = |it: &Self| (it.name.clone(), it.prefix.clone(), it.endpoint.clone());
        key(self) == key(other)
    }

    /// Where requests go, for messages: the environment has a say in that.
    pub(super) fn endpoint(&self) -> String {
        let environment = AmazonS3Builder::from_env();
        let set = |key| environment.get_config_value(&key);
        let own = self.endpoint.as_deref().map(str::to_owned);
        let endpoint = own
            .or_else(|| set(AmazonS3ConfigKey::S3Endpoint))
            .or_else(|| set(AmazonS3ConfigKey::Endpoint));
        endpoint.unwrap_or_else(|| "Amazon's S3".to_owned())
    }

    fn allow_http(&self) -> bool {
        let mut endpoint = self.endpoint.iter();
        endpoint.any(|endpoint| endpoint.starts_with("http://"))
    }

    /// The objects below the prefix. Reads the environment; asks nobody.
    pub(super) fn store(&self) -> object_store::Result<Arc<dyn ObjectStore>> {
        let retry = RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(3),
                base: 2.0,
            },
            max_retries: 100,
            retry_timeout: self.patience,
        };
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(&*self.name)
            .with_retry(retry)
            // The environment must not take away what the manifests rely on.
            .with_conditional_put(S3ConditionalPut::ETagMatch)
            .with_unsigned_payload(false)
            // One request for each object: other stores than Amazon's know no other.
            .with_disable_bulk_delete(true)
            .with_http_connector(Https);
        if let Some(region) = &self.region {
            builder = builder.with_region(&**region);
        }
        if let Some(endpoint) = &self.endpoint {
            // Before those of the environment.
            builder = builder
                .with_config(AmazonS3ConfigKey::S3Endpoint, &**endpoint)
                .with_virtual_hosted_style_request(false)
                .with_allow_http(self.allow_http());
        }
        let store = builder.build()?;
        Ok(Arc::new(PrefixStore::new(store, &*self.prefix)))
    }
}

/// Tries what a gateway will need of a store: writing, reading, listing and removing an object, and that
/// a write whose condition does not hold is refused. What is missing, in words.
pub(super) async fn probe(
    store: &dyn ObjectStore,
) -> object_store::Result<Result<(), &'static str>> {
    let path = ObjectPath::from("loopgate-probe");
    let body = || Bytes::from_static(b"loopgate tries whether conditional writes are kept").into();
    store.delete(&path).await.or_else(not_there)?;
    let put = store
        .put_opts(&path, body(), PutMode::Create.into())
        .await?;
    let again = store.put_opts(&path, body(), PutMode::Create.into()).await;
    let stale = UpdateVersion {
        e_tag: Some("\"00000000000000000000000000000000\"".to_owned()),
        version: None,
    };
    let other = store
        .put_opts(&path, body(), PutMode::Update(stale).into())
        .await;
    let same = match put.e_tag.is_some() {
        true => store
            .put_opts(&path, body(), PutMode::Update(put.into()).into())
            .await
            .map(drop),
        false => Ok(()),
    };
    store.get(&path).await?.bytes().await?;
    store.list_with_delimiter(None).await?;
    store.delete(&path).await?;
    if !matches!(again, Err(Error::AlreadyExists { .. })) {
        return Ok(Err("it does not keep `If-None-Match: *` of a PUT"));
    }
    if !matches!(other, Err(Error::Precondition { .. })) {
        return Ok(Err("it does not keep `If-Match` of a PUT"));
    }
    same.map(Ok)
}

fn not_there(error: Error) -> object_store::Result<()> {
    match error {
        Error::NotFound { .. } => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(url: &str) -> BucketFields {
        BucketFields {
            url: url.to_owned(),
            ..BucketFields::default()
        }
    }

    #[test]
    fn a_bucket_comes_back_as_it_is_written() {
        for url in ["s3://flights", "s3://flights/a", "s3://a.b-c/one/two"] {
            let bucket = Bucket::try_from(fields(url)).unwrap();
            assert_eq!(bucket.url(), url);
            assert_eq!(BucketFields::from(bucket), fields(url));
        }
        let bucket = Bucket::try_from(fields("s3://flights/a/")).unwrap();
        assert_eq!(bucket.url(), "s3://flights/a");
    }

    #[test]
    fn a_field_that_cannot_be_used_is_named_with_its_value() {
        let refused = |fields: BucketFields| Bucket::try_from(fields).unwrap_err().to_string();
        for url in [
            "",
            "gs://a",
            "/srv/offline",
            "s3://",
            "s3://ab",
            "s3://Upper/x",
            "s3://abc/a//b",
            "s3://abc/../b",
        ] {
            assert!(
                refused(fields(url)).starts_with(&format!("`url = \"{url}\"`: ")),
                "{url}"
            );
        }
        let at = |endpoint: &str, allow_http| BucketFields {
            endpoint: Some(endpoint.to_owned()),
            allow_http,
            ..fields("s3://flights")
        };
        assert_eq!(
            refused(at("http://127.0.0.1:9000", false)),
            "`endpoint = \"http://127.0.0.1:9000\"`: http:// is refused unless `allow_http = true`"
        );
        for endpoint in [
            "minio:9000",
            "ftp://minio",
            "https://",
            "https://minio/path",
            "https://a:b@minio",
        ] {
            assert!(
                refused(at(endpoint, true)).starts_with(&format!("`endpoint = \"{endpoint}\""))
            );
        }
        let lonely = BucketFields {
            allow_http: true,
            ..fields("s3://flights")
        };
        assert!(refused(lonely).starts_with("`allow_http = \"true\"`"));
        let region = BucketFields {
            region: Some("Köln".to_owned()),
            ..fields("s3://flights")
        };
        assert!(refused(region).starts_with("`region = \"Köln\"`"));
    }
}
