//! The sections of who may call and where: `[keys]`, `[tls]`, `[http]`, `[grpc]`, `[admin]`, `[metrics]`.

use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::PathBuf;

use serde::Deserialize;

use super::{nonzero, size};

/// `[keys]`: who may call.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct KeysFile {
    /// Ask every caller for a key. Default false, but always so where a listener is public, unless
    /// `insecure` is set.
    pub required: bool,
    /// The file that `loopgate key` writes, relative to this one. Default `keys.toml` in the data
    /// folder.
    pub file: Option<PathBuf>,
}

/// `[tls]`: PEM files, relative to this one; read again when they change. The HTTP, gRPC and admin
/// listeners take TLS only, and the metrics listener where its address is public.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct TlsFile {
    /// Our certificate, then what leads to its root.
    pub certificate: PathBuf,
    /// Our private key.
    pub key: PathBuf,
    /// Ask every client for a certificate that one of these signed.
    pub client_ca: Option<PathBuf>,
}

/// `[admin]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct AdminFile {
    /// IP address and port.
    pub address: Option<SocketAddr>,
    /// Names by which callers may address us in `Host`, besides IP addresses, `localhost` and
    /// `loopgate`.
    pub hosts: Vec<String>,
}

/// `[grpc]`, `[metrics]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct ListenerFile {
    /// IP address and port.
    pub address: Option<SocketAddr>,
}

/// `[http]`: the data plane's listener.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::config) struct HttpFile {
    /// IP address and port.
    pub address: Option<SocketAddr>,
    /// Open connections; beyond it new ones are closed. Default 4096.
    pub connections_max: NonZeroUsize,
    /// Open connections of one client address, so that no address takes every place; a load
    /// balancer in front may need more. Default 2048.
    pub connections_per_peer_max: NonZeroUsize,
    /// Bytes of a request head. Default 16 KiB.
    pub header_bytes_max: NonZeroUsize,
    /// Milliseconds for a whole request head, and of an idle keep-alive. Default 30,000.
    pub header_timeout_ms: NonZeroU64,
    /// Bytes of a body. Default 16 MiB.
    pub body_bytes_max: NonZeroUsize,
    /// Milliseconds for a whole body. Default 10,000.
    pub body_timeout_ms: NonZeroU64,
    /// Milliseconds that a client may not read its answer. Default 30,000.
    pub write_timeout_ms: NonZeroU64,
}

impl Default for HttpFile {
    fn default() -> Self {
        Self {
            address: None,
            connections_max: size(4096),
            connections_per_peer_max: size(2048),
            header_bytes_max: size(16 << 10),
            header_timeout_ms: nonzero(30_000),
            body_bytes_max: size(16 << 20),
            body_timeout_ms: nonzero(10_000),
            write_timeout_ms: nonzero(30_000),
        }
    }
}
