//! A bucket in memory that speaks as much of S3 as is asked of one: GET, list, DELETE and PUT with
//! conditions; and that fails when it is told to.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use featurestore::{Bucket, BucketFields};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ETAG, HeaderValue, IF_MATCH, IF_NONE_MATCH};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Done,
    /// Not done, and refused with that status.
    Refused(u16),
    /// Not done, and the connection closed without an answer.
    Lost,
    /// Done, and the connection closed without an answer.
    Unanswered,
    /// Not done, and the connection held without an answer.
    Silent,
}

/// Decides on the request of that number, from 1.
pub(crate) type Plan = Box<dyn FnMut(u64) -> Fate + Send>;

pub(crate) struct Double {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _runtime: Runtime,
}

struct State {
    /// By the path within the bucket.
    objects: BTreeMap<String, Bytes>,
    requests: u64,
    plan: Plan,
    keeps_conditions: bool,
}

impl Double {
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let state = Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            requests: 0,
            plan: Box::new(|_| Fate::Done),
            keeps_conditions: true,
        }));
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (handle, shared) = (runtime.handle().clone(), Arc::clone(&state));
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                let answer = service_fn(move |request| answer(Arc::clone(&state), request));
                handle.spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
            }
        });
        Self {
            address,
            state,
            _runtime: runtime,
        }
    }

    /// As a store is told to use it, with little patience.
    pub(crate) fn bucket(&self) -> Bucket {
        bucket_at(self.endpoint())
    }

    /// Where it listens.
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on; the count starts anew.
    pub(crate) fn plan(&self, plan: impl FnMut(u64) -> Fate + Send + 'static) {
        let mut state = self.state.lock().unwrap();
        state.requests = 0;
        state.plan = Box::new(plan);
    }

    /// Requests since the last plan.
    pub(crate) fn requests(&self) -> u64 {
        self.state.lock().unwrap().requests
    }

    /// Takes every write from now on, whatever its conditions.
    pub(crate) fn forget_conditions(&self) {
        self.state.lock().unwrap().keeps_conditions = false;
    }

    pub(crate) fn put(&self, path: &str, content: Vec<u8>) {
        let path = format!("offline/{path}");
        self.state
            .lock()
            .unwrap()
            .objects
            .insert(path, content.into());
    }

    /// Removes all of a table.
    pub(crate) fn empty(&self, table: &str) {
        let prefix = format!("offline/{table}/");
        let mut state = self.state.lock().unwrap();
        state.objects.retain(|path, _| !path.starts_with(&prefix));
    }

    /// The objects of a table, by their path in it.
    pub(crate) fn table(&self, table: &str) -> BTreeMap<String, Bytes> {
        let prefix = format!("offline/{table}/");
        let state = self.state.lock().unwrap();
        let within = |(path, content): (&String, &Bytes)| {
            Some((path.strip_prefix(&prefix)?.to_owned(), content.clone()))
        };
        state.objects.iter().filter_map(within).collect()
    }
}

/// The bucket of the double that listens there.
pub(crate) fn bucket_at(endpoint: String) -> Bucket {
    let fields = BucketFields {
        endpoint: Some(endpoint),
        allow_http: true,
        ..url()
    };
    let bucket = Bucket::try_from(fields).unwrap();
    bucket.with_patience(Duration::from_millis(150))
}

/// The same of whatever endpoint the environment says.
pub(crate) fn bucket_of_the_environment() -> Bucket {
    let bucket = Bucket::try_from(url()).unwrap();
    bucket.with_patience(Duration::from_millis(150))
}

fn url() -> BucketFields {
    BucketFields {
        url: "s3://flights/offline".to_owned(),
        ..BucketFields::default()
    }
}

async fn answer(
    state: Arc<Mutex<State>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    assert!(
        head.headers.contains_key("authorization"),
        "requests are signed"
    );
    let fate = {
        let mut state = state.lock().unwrap();
        state.requests += 1;
        let number = state.requests;
        (state.plan)(number)
    };
    if fate == Fate::Silent {
        std::future::pending::<()>().await;
    }
    let mut state = state.lock().unwrap();
    let refused = |status: u16| {
        let status = StatusCode::from_u16(status).unwrap();
        let code = status.canonical_reason().unwrap();
        respond(status, format!("<Error><Code>{code}</Code></Error>").into())
    };
    match fate {
        Fate::Refused(status) => return Ok(refused(status)),
        Fate::Lost => return Err(io::Error::other("lost")),
        Fate::Done | Fate::Unanswered | Fate::Silent => {}
    }
    let path = decoded(head.uri.path());
    let path = path
        .strip_prefix("/flights")
        .unwrap()
        .trim_start_matches('/')
        .to_owned();
    let done = match (&head.method, head.uri.query()) {
        (&Method::GET, Some(query)) if query.contains("list-type=2") => list(&state, query),
        (&Method::GET, _) => match state.objects.get(&path) {
            Some(content) => tagged(content, content.clone()),
            None => refused(404),
        },
        (&Method::DELETE, _) => {
            state.objects.remove(&path);
            respond(StatusCode::NO_CONTENT, Bytes::new())
        }
        (&Method::PUT, _) => {
            let found = state.objects.get(&path).map(tag);
            let wanted = head.headers.get(IF_MATCH);
            let created = head.headers.contains_key(IF_NONE_MATCH);
            let holds =
                !(created && found.is_some()) && wanted.is_none_or(|it| Some(it) == found.as_ref());
            if holds || !state.keeps_conditions {
                state.objects.insert(path, body.clone());
                tagged(&body, Bytes::new())
            } else {
                refused(412)
            }
        }
        _ => refused(405),
    };
    match fate {
        Fate::Unanswered => Err(io::Error::other("unanswered")),
        _ => Ok(done),
    }
}

fn list(state: &State, query: &str) -> Response<Full<Bytes>> {
    let mut fields = query.split('&').filter_map(|field| field.split_once('='));
    let prefix = fields.find(|(name, _)| *name == "prefix");
    let prefix = prefix.map(|(_, value)| decoded(value)).unwrap_or_default();
    let mut xml = "<ListBucketResult><IsTruncated>false</IsTruncated>".to_owned();
    for (path, content) in state
        .objects
        .iter()
        .filter(|(path, _)| path.starts_with(&prefix))
    {
        let size = content.len();
        xml += &format!(
            "<Contents><Key>{path}</Key><Size>{size}</Size>\
             <LastModified>2013-03-01T00:00:00.000Z</LastModified></Contents>"
        );
    }
    respond(StatusCode::OK, (xml + "</ListBucketResult>").into())
}

/// As S3 does it: equal for equal content.
fn tag(content: &Bytes) -> HeaderValue {
    let digest = Sha256::digest(content);
    let text: String = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    HeaderValue::from_str(&format!("\"{text}\"")).unwrap()
}

fn tagged(content: &Bytes, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = respond(StatusCode::OK, body);
    response.headers_mut().insert(ETAG, tag(content));
    let modified = HeaderValue::from_static("Fri, 01 Mar 2013 00:00:00 GMT");
    response.headers_mut().insert("last-modified", modified);
    response
}

fn respond(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    response
}

/// `%3D` and its like as the bytes that they are.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
        plain += &part[2..];
    }
    plain
}
