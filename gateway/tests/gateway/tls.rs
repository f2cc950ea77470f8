//! TLS: whom we greet, with what, and what a greeting may cost the others.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};

use crate::h2;
use crate::keys::Keys;
use crate::onnx::affine;
use crate::operator::Project;
use crate::patience::{PATIENCE, StopWhenDropped, eventually, eventually_some};
use crate::process::{Gateway, Setup, refused};
use crate::wire::{Connection, request};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// Signs certificates for this machine.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
struct Pair {
    certificate: String,
    key: String,
}

#[derive(Clone, Copy)]
enum Until {
    Later,
    Past,
}

impl Authority {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    fn issue(&self, until: Until) -> Pair {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = match until {
            Until::Later => date_time_ymd(3000, 1, 1),
            Until::Past => date_time_ymd(2001, 1, 1),
        };
        Pair {
            certificate: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// Files of a gateway's certificate, replaced as an operator would.
struct Files(tempfile::TempDir);

impl Files {
    fn new(pair: &Pair) -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("c.pem", &pair.certificate);
        files.put("k.pem", &pair.key);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let temporary = self.path("temporary");
        std::fs::write(&temporary, text).unwrap();
        std::fs::rename(temporary, self.path(name)).unwrap();
    }

    fn config(&self) -> String {
        let (certificate, key) = (self.path("c.pem"), self.path("k.pem"));
        format!("[tls]\ncertificate = {certificate:?}\nkey = {key:?}\n")
    }

    fn config_with_clients(&self, authority: &Authority) -> String {
        self.put("ca.pem", &authority.pem);
        format!("{}client_ca = {:?}\n", self.config(), self.path("ca.pem"))
    }
}

fn gateway(config: &str) -> Gateway {
    Gateway::with_models(&Setup {
        models: vec![("m", affine(&[1.0], 0.0))],
        config,
        ..Setup::default()
    })
}

fn certificates(pem: &str) -> Vec<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(Result::unwrap)
        .collect()
}

/// A client that trusts these authorities and shows this certificate.
fn client(
    trusted: &[&Authority],
    shown: Option<&Pair>,
    versions: &[&'static SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for authority in trusted {
        roots.add(certificates(&authority.pem).remove(0)).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider);
    let builder = builder.with_protocol_versions(versions).unwrap();
    let builder = builder.with_root_certificates(roots);
    Arc::new(match shown {
        None => builder.with_no_client_auth(),
        Some(pair) => {
            let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
            builder
                .with_client_auth_cert(certificates(&pair.certificate), key)
                .unwrap()
        }
    })
}

/// What a question over TLS drew: the status and the certificate that was shown.
struct Told {
    status: u16,
    certificate: CertificateDer<'static>,
}

fn ask_over<S: Read + Write>(
    stream: S,
    client: &Arc<ClientConfig>,
    path: &str,
) -> io::Result<Told> {
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let session = ClientConnection::new(Arc::clone(client), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(session, stream);
    stream.write_all(&request("GET", path, &[("connection", "close")], b""))?;
    let mut text = String::new();
    let read = stream.read_to_string(&mut text);
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    let certificate = stream
        .conn
        .peer_certificates()
        .and_then(<[_]>::first)
        .cloned();
    match (status, certificate) {
        (Some(status), Some(certificate)) => Ok(Told {
            status,
            certificate: certificate.into_owned(),
        }),
        _ => Err(read.err().unwrap_or(io::ErrorKind::UnexpectedEof.into())),
    }
}

fn tcp(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn ask(address: SocketAddr, client: &Arc<ClientConfig>, path: &str) -> io::Result<Told> {
    ask_over(tcp(address), client, path)
}

/// Whether each of the listeners lets the client in; they must agree.
fn lets_in(gateway: &Gateway, client: &Arc<ClientConfig>) -> bool {
    let http = ask(gateway.http, client, "/v2/health/live").map(|told| told.status);
    // The name of the host is not the admin interface's own, which it says once it has let us in.
    let admin = ask(gateway.admin, client, "/v1/loop").map(|told| told.status);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let grpc = runtime.block_on(async {
        let mut config = (**client).clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = tokio::net::TcpStream::connect(gateway.grpc).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let stream = connector.connect(name, stream).await.ok()?;
        let path = "/inference.GRPCInferenceService/ServerLive";
        h2::try_refusal(stream, path, None).await
    });
    let let_in = http.is_ok();
    assert_eq!(
        (admin.is_ok(), grpc.is_some()),
        (let_in, let_in),
        "{http:?} {admin:?} {grpc:?}"
    );
    if let_in {
        assert_eq!(
            (http.unwrap(), admin.unwrap(), grpc.unwrap()),
            (200, 403, 0)
        );
    }
    let_in
}

#[test]
fn only_the_right_certificates_are_trusted_on_either_side() {
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let good = Files::new(&ours.issue(Until::Later));
    let expired = Files::new(&ours.issue(Until::Past));
    let open = gateway(&good.config());
    let old = gateway(&expired.config());
    let asking = gateway(&good.config_with_clients(&ours));
    let clients = [
        (None, false),
        (Some(ours.issue(Until::Later)), true),
        (Some(ours.issue(Until::Past)), false),
        (Some(other.issue(Until::Later)), false),
    ];
    for version in VERSIONS {
        let with =
            |trusted: &Authority, shown: Option<&Pair>| client(&[trusted], shown, &[version]);
        assert!(lets_in(&open, &with(&ours, None)), "{version:?}");
        assert!(!lets_in(&open, &with(&other, None)), "{version:?}");
        assert!(!lets_in(&old, &with(&ours, None)), "{version:?}");
        for (k, (shown, let_in)) in clients.iter().enumerate() {
            assert_eq!(
                lets_in(&asking, &with(&ours, shown.as_ref())),
                *let_in,
                "{version:?} {k}"
            );
        }
    }
    // Nobody is answered in the clear.
    let mut plain = Connection::open(open.http).unwrap();
    plain
        .send(&request("GET", "/v2/health/live", &[], b""))
        .unwrap();
    assert!(!matches!(plain.receive(), Ok(Some(_))));
    // Clients that left before they were greeted are seen by and by.
    eventually(|| open.metric("loopgate_tls_handshakes_total", "outcome=\"failed\"") >= 3.0);
}

#[test]
fn certificates_are_replaced_under_traffic_and_broken_ones_are_not_taken() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let pairs = [first.issue(Until::Later), second.issue(Until::Later)];
    let files = Files::new(&pairs[0]);
    let gateway = gateway(&files.config());
    let client = client(&[&first, &second], None, &VERSIONS);
    let ask = || ask(gateway.http, &client, "/v2/health/live").unwrap();
    let refused = || {
        gateway.metric(
            "loopgate_reloads_total",
            "what=\"certificate\",outcome=\"refused\"",
        )
    };
    let (stop, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(ask().status, 200);
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        let _stop = StopWhenDropped(&stop);
        for round in 1..=6 {
            let asked_before = asked.load(Ordering::Relaxed);
            let pair = &pairs[round % 2];
            files.put("k.pem", &pair.key);
            files.put("c.pem", &pair.certificate);
            let wanted = certificates(&pair.certificate).remove(0);
            eventually(|| ask().certificate == wanted);
            for (name, text) in [
                ("c.pem", "nonsense"),
                ("k.pem", ""),
                ("k.pem", &*pairs[(round + 1) % 2].key),
            ] {
                let before = refused();
                files.put(name, text);
                eventually(|| refused() > before);
                assert!(ask().certificate == wanted, "round {round}: {text}");
            }
            eventually(|| asked.load(Ordering::Relaxed) > asked_before + 10);
        }
    });
    assert_eq!(
        gateway.metric("loopgate_tls_handshakes_total", "outcome=\"failed\""),
        0.0
    );
}

/// Writes a byte at a time.
struct Drops(TcpStream);

impl Read for Drops {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.read(bytes)
    }
}

impl Write for Drops {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(&bytes[..bytes.len().min(1)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[test]
fn half_a_handshake_holds_up_nobody() {
    let ours = Authority::new("ours");
    let files = Files::new(&ours.issue(Until::Later));
    let gateway = gateway(&files.config());
    let client = client(&[&ours], None, &VERSIONS);
    let addresses = [gateway.http, gateway.admin];
    let mut stalled = Vec::new();
    for k in 0..40 {
        let mut connection = Connection::open(addresses[k % 2]).unwrap();
        // A record that says that it is a handshake, and nothing of it; every fourth says nothing.
        if k % 4 != 0 {
            connection.send(b"\x16\x03\x01\x02\x00\x01").unwrap();
        }
        stalled.push(connection);
    }
    for _ in 0..20 {
        assert_eq!(
            ask(gateway.http, &client, "/v2/health/live")
                .unwrap()
                .status,
            200
        );
        assert!(ask(gateway.admin, &client, "/v1/loop").is_ok());
    }
    let dropwise = ask_over(Drops(tcp(gateway.http)), &client, "/v2/health/live");
    assert_eq!(dropwise.unwrap().status, 200);
    for connection in &mut stalled {
        assert!(connection.is_closed());
    }
    assert_eq!(
        gateway.metric("loopgate_tls_handshakes_total", "outcome=\"late\""),
        40.0
    );
}

#[test]
fn files_that_cannot_be_greeted_with_are_named() {
    let ours = Authority::new("ours");
    let (pair, other) = (ours.issue(Until::Later), ours.issue(Until::Later));
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("m.onnx");
    std::fs::write(&model, affine(&[1.0], 0.0)).unwrap();
    let model = format!("m={}", model.display());
    let broken_key = pair.key.replace("MIG", "!!!");
    let cases: [(&str, &str, &str); 6] = [
        ("c.pem", "", "c.pem"),
        ("c.pem", &pair.key, "c.pem"),
        ("k.pem", &pair.certificate, "k.pem"),
        ("k.pem", &broken_key, "k.pem"),
        ("k.pem", &other.key, "k.pem"),
        (
            "ca.pem",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "ca.pem",
        ),
    ];
    for (name, text, told) in cases {
        let files = Files::new(&pair);
        let config = files.config_with_clients(&ours);
        files.put(name, text);
        let path = folder.path().join("c.toml");
        std::fs::write(&path, config).unwrap();
        let output = refused(&["--model", &model, "--config", path.to_str().unwrap()]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && message.contains(told),
            "{name}: {message}"
        );
        for line in pair.key.lines().filter(|line| !line.starts_with("---")) {
            assert!(!message.contains(line), "{message}");
        }
    }
}

#[test]
fn our_own_command_trusts_the_projects_certificate_only() {
    let ours = Authority::new("ours");
    let files = Files::new(&ours.issue(Until::Later));
    let keys = Keys::new();
    let settings = format!("{}{}", keys.required(), files.config_with_clients(&ours));
    let project = Project::new(&settings);
    project.register("plain", &affine(&[1.0], 0.0));
    let gateway = project.serve();
    let key = keys.create("admin", &[]);
    let trigger = |folder: &Path, key: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loopgate"));
        command.args(["trigger", "plain", "--project"]).arg(folder);
        let admin = gateway.admin.to_string();
        let output = command
            .args(["--admin", &admin])
            .env("LOOPGATE_KEY", key)
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let told = eventually_some(|| {
        let told = trigger(project.path(), &key);
        (!told.contains("not valid")).then_some(told)
    });
    assert!(told.contains("no loop"), "{told}");
    assert!(trigger(project.path(), "lg_x").contains("not valid"));
    let stranger = Files::new(&ours.issue(Until::Later));
    let imposed = format!("{}{}", keys.required(), stranger.config_with_clients(&ours));
    let elsewhere = Project::new(&imposed);
    let told = trigger(elsewhere.path(), &key);
    assert!(told.contains("certificate"), "{told}");
}
