//! Who may call and over what, as the program uses it; and the rule about public addresses.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::Listeners;
use super::file::GatewayFile;
use crate::keys::KeyBook;
use crate::tls::TlsFiles;

/// What stands between a caller and the gateway.
#[derive(Clone, Debug)]
pub(crate) struct Security {
    /// Public addresses are owned up to.
    insecure: bool,
    /// Whether every caller is asked for a key.
    pub keys_required: bool,
    /// `None` where there is neither a data folder nor a file named.
    pub keys: Option<KeyBook>,
    pub tls: Option<TlsFiles>,
    /// Names by which the admin interface may be addressed, besides its own.
    pub admin_hosts: Vec<Box<str>>,
}

/// An address that anybody can reach and nothing guards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExposedError {
    #[error(
        "{listener} listener on {address}: a public address needs a key (`loopgate key create`), \
         or `insecure = true` in loopgate.toml"
    )]
    NoKey {
        listener: &'static str,
        address: SocketAddr,
    },
    #[error(
        "admin listener on {address}: a public address of the admin interface needs `[tls]` besides \
         keys, or `insecure = true` in loopgate.toml"
    )]
    AdminWithoutTls { address: SocketAddr },
}

impl Security {
    /// `folder` is that of the settings: relative paths in them start there.
    pub(super) fn new(
        file: &GatewayFile,
        folder: Option<&Path>,
        data: Option<&Path>,
        listeners: &Listeners,
    ) -> Self {
        let from = |path: &PathBuf| folder.unwrap_or(Path::new("")).join(path);
        let keys = match &file.keys.file {
            Some(path) => Some(KeyBook::at(from(path))),
            None => data.map(KeyBook::in_folder),
        };
        let public = listeners.each().any(|(_, at)| is_public(at));
        Self {
            insecure: file.insecure,
            keys_required: file.keys.required || (public && !file.insecure),
            keys,
            tls: file.tls.as_ref().map(|tls| TlsFiles {
                certificate: from(&tls.certificate),
                key: from(&tls.key),
                client_ca: tls.client_ca.as_ref().map(from),
            }),
            admin_hosts: file
                .admin
                .hosts
                .iter()
                .map(|host| host.as_str().into())
                .collect(),
        }
    }

    /// Refuses public addresses that nothing guards, `keys` being how many keys are valid.
    ///
    /// # Errors
    /// With the first such address.
    pub(crate) fn refuse_exposed(
        &self,
        listeners: &Listeners,
        keys: usize,
    ) -> Result<(), ExposedError> {
        if self.insecure {
            return Ok(());
        }
        for (listener, address) in listeners.each().filter(|&(_, at)| is_public(at)) {
            if keys == 0 {
                return Err(ExposedError::NoKey { listener, address });
            }
            if address == listeners.admin && self.tls.is_none() {
                return Err(ExposedError::AdminWithoutTls { address });
            }
        }
        Ok(())
    }
}

impl Listeners {
    fn each(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        [
            ("http", self.http),
            ("grpc", self.grpc),
            ("admin", self.admin),
            ("metrics", self.metrics),
        ]
        .into_iter()
    }

    /// Whether others than this machine can reach the metrics page.
    pub(crate) fn metrics_is_public(&self) -> bool {
        is_public(self.metrics)
    }
}

fn is_public(address: SocketAddr) -> bool {
    !address.ip().is_loopback()
}
