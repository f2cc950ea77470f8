//! Certificate, key and client CA: from PEM files to rustls's configuration.
//!
//! TLS 1.2 and 1.3, by `ring`. An error names the file and never shows what is in it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};

/// Where `[tls]` has its files.
#[derive(Clone, Debug)]
pub(crate) struct TlsFiles {
    /// Our chain, our own certificate first.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// Where given, clients must show a certificate that one of these signed.
    pub client_ca: Option<PathBuf>,
}

impl TlsFiles {
    pub(super) fn paths(&self) -> impl Iterator<Item = PathBuf> {
        let ours = [&self.certificate, &self.key];
        ours.into_iter().chain(&self.client_ca).cloned()
    }
}

/// Why files cannot be greeted with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("{}: {problem}", path.display())]
    Io { path: PathBuf, problem: io::Error },
    #[error("{}: holds no PEM {expected}", path.display())]
    Pem {
        path: PathBuf,
        expected: &'static str,
    },
    #[error("{}: not a certificate to trust: {problem}", path.display())]
    ClientCa { path: PathBuf, problem: String },
    #[error(
        "{} with {}: {problem}", certificate.display(), key.display())]
    Pair {
        certificate: PathBuf,
        key: PathBuf,
        problem: rustls::Error,
    },
}

/// The provider of every primitive.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Reads the files into a configuration that can greet.
pub(super) fn load(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .expect("ring has suites for both versions");
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let refused = |problem: String| TlsError::ClientCa {
                path: path.clone(),
                problem,
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                let added = roots.add(certificate);
                added.map_err(|error| refused(error.to_string()))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
            let verifier = verifier
                .build()
                .map_err(|error| refused(error.to_string()))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let chain = certificates(&files.certificate)?;
    let key = private_key(&files.key)?;
    let paired = builder.with_single_cert(chain, key);
    paired.map_err(|problem| TlsError::Pair {
        certificate: files.certificate.clone(),
        key: files.key.clone(),
        problem,
    })
}

/// Every certificate of a file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(certificates) if certificates.is_empty() => {
            Err(unreadable(path, "certificate", pem::Error::NoItemsFound))
        }
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(unreadable(path, "certificate", error)),
    }
}

pub(crate) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, "private key", error))
}

/// The parser's own words may quote the file, which may be a key.
fn unreadable(path: &Path, expected: &'static str, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(problem) => TlsError::Io { path, problem },
        _ => TlsError::Pem { path, expected },
    }
}
