//! API keys: what a key is, how a caller presents one, and the table of those that are valid.
//!
//! A key is `lg_ID_SECRET`: 48 bits that name it and 256 random ones that prove it, in hex. Only the
//! SHA-256 of the secret is kept; the secret has too many bits to be guessed, so a slow hash would
//! protect nothing. A lookup costs one hash where the name is known, and no state where it is not.

mod book;

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use clap::ValueEnum;
use rand::TryRngCore;
use rand::rand_core::OsError;
use rand::rngs::OsRng;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use crate::rate::Pace;

pub(crate) use book::{KeyBook, KeyBookError, KeyRecord, NewKey};

/// What every key begins with, so that scanners for leaked secrets can find it.
const PREFIX: &str = "lg_";
const ID_BYTES: usize = 6;
const SECRET_BYTES: usize = 32;

/// What a key may be used for. None of them implies another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Scope {
    /// Predictions, and what can be read about models
    Predict,
    /// Events and labels
    Write,
    /// The admin interface, and loading models
    Admin,
}

impl Scope {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Predict => "predict",
            Self::Write => "write",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The public name of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct KeyId([u8; ID_BYTES]);

/// Not the name of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a key's id: expected 12 hexadecimal digits")]
pub(crate) struct KeyIdError(String);

impl FromStr for KeyId {
    type Err = KeyIdError;

    fn from_str(text: &str) -> Result<Self, KeyIdError> {
        let bytes = from_hex(text.as_bytes());
        bytes.map(Self).ok_or_else(|| KeyIdError(text.to_owned()))
    }
}

impl TryFrom<String> for KeyId {
    type Error = KeyIdError;

    fn try_from(text: String) -> Result<Self, KeyIdError> {
        text.parse()
    }
}

impl From<KeyId> for String {
    fn from(id: KeyId) -> Self {
        id.to_string()
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// What proves a key; it leaves the process once, on the terminal of who made it.
pub(crate) struct Secret([u8; SECRET_BYTES]);

impl Secret {
    fn draw() -> Result<Self, OsError> {
        let mut bytes = [0; SECRET_BYTES];
        OsRng.try_fill_bytes(&mut bytes)?;
        Ok(Self(bytes))
    }

    fn digest(&self) -> Digest {
        Digest(Sha256::digest(self.0).into())
    }

    /// The whole key, as its holder sends it.
    pub(crate) fn reveal(&self, id: KeyId) -> String {
        format!("{PREFIX}{id}_{}", Hex(&self.0))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// The SHA-256 of a secret.
#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest([u8; SECRET_BYTES]);

impl Digest {
    /// Takes the same time wherever they differ.
    fn is(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(…)")
    }
}

impl TryFrom<String> for Digest {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, &'static str> {
        let bytes = from_hex(text.as_bytes());
        bytes.map(Self).ok_or("a SHA-256 is 64 hexadecimal digits")
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        Hex(&digest.0).to_string()
    }
}

/// A key that is valid.
#[derive(Debug)]
pub(crate) struct Key {
    pub id: KeyId,
    scopes: Box<[Scope]>,
    digest: Digest,
    /// Lives as long as the key has this quota, whatever else of the table changes.
    pub pace: Option<Arc<Pace>>,
}

impl Key {
    pub(crate) fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope)
    }
}

/// The keys that are valid now.
#[derive(Debug, Default)]
pub(crate) struct KeyTable(HashMap<KeyId, Key>);

impl KeyTable {
    /// The valid ones of `records`. A key that was in the table before keeps what it has used of
    /// its quota, so that making another key gives nobody a fresh one.
    pub(crate) fn new(records: &[KeyRecord], before: &Self) -> Self {
        let valid = records.iter().filter(|record| record.revoked_ms.is_none());
        let key = |record: &KeyRecord| Key {
            id: record.id,
            scopes: record.scopes.clone().into(),
            digest: record.sha256,
            pace: record.quota().map(|quota| {
                let known = before.0.get(&record.id).and_then(|key| key.pace.as_ref());
                match known {
                    Some(pace) if pace.quota() == quota => Arc::clone(pace),
                    _ => Arc::new(Pace::new(quota)),
                }
            }),
        };
        Self(valid.map(|record| (record.id, key(record))).collect())
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The valid key that `text` is.
    pub(crate) fn find(&self, text: &[u8]) -> Option<&Key> {
        let rest = text.strip_prefix(PREFIX.as_bytes())?;
        let (id, rest) = rest.split_at_checked(2 * ID_BYTES)?;
        let secret = rest.strip_prefix(b"_")?;
        let key = self.0.get(&KeyId(from_hex(id)?))?;
        let secret = Secret(from_hex(secret)?);
        secret.digest().is(&key.digest).then_some(key)
    }
}

/// Reads exactly `N` bytes of hex.
fn from_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, digits) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let digit = |at: usize| char::from(*digits.get(at)?).to_digit(16);
        *byte = u8::try_from(digit(0)? * 16 + digit(1)?).ok()?;
    }
    Some(bytes)
}

/// Bytes shown as hex.
struct Hex<'b>(&'b [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(self.0, f)
    }
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(scopes: &[Scope]) -> (KeyRecord, String) {
        let (id, secret) = (KeyId(*b"abcdef"), Secret::draw().unwrap());
        let record = KeyRecord {
            id,
            scopes: scopes.to_vec(),
            sha256: secret.digest(),
            created_ms: 0,
            rate: None,
            burst: None,
            revoked_ms: None,
        };
        (record, secret.reveal(id))
    }

    #[test]
    fn a_key_is_found_by_its_whole_text_only() {
        let (record, text) = made(&[Scope::Predict]);
        let table = KeyTable::new(std::slice::from_ref(&record), &KeyTable::default());
        let found = table.find(text.as_bytes()).unwrap();
        assert!(found.may(Scope::Predict) && !found.may(Scope::Write) && !found.may(Scope::Admin));
        for cut in 0..text.len() {
            assert!(table.find(&text.as_bytes()[..cut]).is_none(), "{cut}");
        }
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] ^= 1;
            assert!(table.find(&wrong).is_none(), "{at}");
        }
        assert!(table.find(format!("{text}0").as_bytes()).is_none());
        let revoked = KeyRecord {
            revoked_ms: Some(1),
            ..record
        };
        assert!(
            KeyTable::new(&[revoked], &table)
                .find(text.as_bytes())
                .is_none()
        );
    }

    #[test]
    fn a_used_quota_outlives_a_new_table() {
        let (mut record, text) = made(&[Scope::Predict]);
        record.rate = Some("1/h".parse().unwrap());
        let first = KeyTable::new(std::slice::from_ref(&record), &KeyTable::default());
        let admit = |table: &KeyTable| {
            let pace = table.find(text.as_bytes()).unwrap().pace.clone().unwrap();
            pace.admit(1).is_ok()
        };
        assert!(admit(&first) && !admit(&first));
        let second = KeyTable::new(&[record.clone()], &first);
        assert!(!admit(&second));
        record.rate = Some("2/h".parse().unwrap());
        assert!(admit(&KeyTable::new(&[record], &second)));
    }

    #[test]
    fn secrets_and_digests_do_not_show_themselves() {
        let (record, text) = made(&[Scope::Admin]);
        let shown = format!("{record:?} {:?}", Secret([7; SECRET_BYTES]));
        let table = KeyTable::new(std::slice::from_ref(&record), &KeyTable::default());
        let digest = String::from(record.sha256);
        let secret = text.rsplit('_').next().unwrap();
        for shown in [shown, format!("{table:?}")] {
            assert!(
                !shown.contains(secret) && !shown.contains(&digest),
                "{shown}"
            );
            assert!(!shown.contains("7, 7"), "{shown}");
        }
    }
}
