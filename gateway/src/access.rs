//! Who may call what: each route says what it needs, the gate holds the keys and decides.
//!
//! A decision is one load of the key table and, where a key is shown, one SHA-256. Nothing is kept
//! about callers that are not known. The table is replaced as a whole when `keys.toml` changes;
//! calls that were let in before go on.

use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use hyper::header::{AUTHORIZATION, HeaderMap};

use crate::keys::{KeyBook, KeyBookError, KeyId, KeyTable, Scope};
use crate::metrics::AccessMetrics;
use crate::watched::Watched;

/// What the answer to a caller without a key says in `WWW-Authenticate`.
pub(crate) const CHALLENGE: &str = "Bearer realm=\"loopgate\"";

/// What a route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Nothing: probes of health, which carry no secret and must work without one.
    Open,
    /// A key with this scope, where keys are required.
    Scoped(Scope),
}

impl Access {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Scoped(scope) => scope.as_str(),
        }
    }
}

/// Why a caller is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    #[error("this call needs a key: send `Authorization: Bearer lg_…`")]
    NoKey,
    #[error("the key is not valid")]
    Unknown,
    #[error("the key lacks the scope `{0}`")]
    Scope(Scope),
    #[error("the key has used up its rate: retry in {retry_after_s} s")]
    Rate { retry_after_s: u64 },
}

/// A caller that was let in, and by which key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passed {
    pub key: Option<KeyId>,
}

/// The keys that are valid, and whether one is asked for.
pub(crate) struct Gate {
    required: bool,
    table: ArcSwap<KeyTable>,
    /// Rates count from here.
    epoch: Instant,
    metrics: AccessMetrics,
}

impl Gate {
    /// A gate with the keys of `book` as they are now.
    ///
    /// # Errors
    /// When there is a file and it cannot be used.
    pub(crate) fn new(
        required: bool,
        book: Option<&KeyBook>,
        metrics: AccessMetrics,
    ) -> Result<Self, KeyBookError> {
        let records = book.map(KeyBook::read).transpose()?.unwrap_or_default();
        let table = KeyTable::new(&records, &KeyTable::default());
        Ok(Self {
            required,
            table: ArcSwap::from_pointee(table),
            epoch: Instant::now(),
            metrics,
        })
    }

    pub(crate) fn keys(&self) -> usize {
        self.table.load().len()
    }

    /// Lets a caller in, or says why not.
    ///
    /// # Errors
    /// Where keys are required and this caller shows none that will do.
    pub(crate) fn pass(&self, headers: &HeaderMap, access: Access) -> Result<Passed, Denied> {
        let passed = self.decide(headers, access);
        if let Err(denied) = passed {
            self.metrics.denied(denied);
        }
        passed
    }

    fn decide(&self, headers: &HeaderMap, access: Access) -> Result<Passed, Denied> {
        let scope = match access {
            Access::Scoped(scope) if self.required => scope,
            _ => return Ok(Passed { key: None }),
        };
        let shown = bearer(headers)?;
        let table = self.table.load();
        let key = table.find(shown).ok_or(Denied::Unknown)?;
        if !key.may(scope) {
            return Err(Denied::Scope(scope));
        }
        if let Some(pace) = &key.pace {
            pace.admit(self.now_ns()).map_err(|wait| Denied::Rate {
                retry_after_s: whole_seconds(wait),
            })?;
        }
        Ok(Passed { key: Some(key.id) })
    }

    fn now_ns(&self) -> u64 {
        // 584 years fit.
        u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes the keys that are in the book now.
    fn replace(&self, book: &KeyBook) -> Result<usize, KeyBookError> {
        let records = book.read()?;
        let table = KeyTable::new(&records, &self.table.load());
        let valid = table.len();
        self.table.store(table.into());
        Ok(valid)
    }
}

/// The key in the one `Authorization` header that may be there.
fn bearer(headers: &HeaderMap) -> Result<&[u8], Denied> {
    const SCHEME: &[u8] = b"bearer ";
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Denied::NoKey)?.as_bytes();
    if values.next().is_some() {
        return Err(Denied::Unknown);
    }
    match value.split_at_checked(SCHEME.len()) {
        Some((scheme, key)) if scheme.eq_ignore_ascii_case(SCHEME) => Ok(key.trim_ascii()),
        _ => Err(Denied::Unknown),
    }
}

/// Rounded up, since a caller that comes too early has come for nothing.
fn whole_seconds(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

/// Follows the file of keys.
pub(crate) struct KeyWatch {
    book: KeyBook,
    file: Watched,
}

impl KeyWatch {
    pub(crate) fn new(book: KeyBook) -> Self {
        let file = Watched::new([book.path().to_owned()]);
        Self { book, file }
    }

    /// Hands the gate a changed file. One that cannot be used leaves the keys as they were; one that
    /// is gone leaves none.
    pub(crate) fn look(&mut self, gate: &Gate) {
        if !self.file.changed() {
            return;
        }
        match gate.replace(&self.book) {
            Ok(valid) => {
                gate.metrics.keys_reloaded.increment(1);
                tracing::info!(valid, "keys reloaded");
            }
            Err(error) => {
                gate.metrics.keys_refused.increment(1);
                tracing::error!(%error, "keys not reloaded: those from before hold");
            }
        }
    }
}
