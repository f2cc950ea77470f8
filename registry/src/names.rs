//! Names as types: text from outside becomes one of these once, at the edge, or is refused. Paths
//! and keys are built from these types only, so no name can climb out of its folder.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// Number of a version within its model; the first is 1.
pub type Version = u32;

/// Text that is not a name of the asked kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{given}` is not {kind}: {rule}")]
pub struct NameError {
    kind: &'static str,
    rule: &'static str,
    given: String,
}

impl NameError {
    pub(crate) fn new(kind: &'static str, rule: &'static str, given: &str) -> Self {
        // Cut and escaped: the text comes from outside and goes into logs and answers.
        const SHOWN_CHARS_MAX: usize = 80;
        let mut shown: String = given.chars().take(SHOWN_CHARS_MAX).collect();
        if shown.len() < given.len() {
            shown.push('…');
        }
        Self {
            kind,
            rule,
            given: shown.escape_debug().to_string(),
        }
    }
}

/// The traits that every name has alike; `parse` is written out per type.
macro_rules! name_type {
    ($name:ident) => {
        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }
    };
}

/// Name of a model: 1 to 64 of `A-Z a-z 0-9 . _ : -`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(Arc<str>);

name_type!(ModelName);

impl FromStr for ModelName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let first = text
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        let rest = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b));
        if !first || !rest || text.len() > 64 {
            return Err(NameError::new(
                "a model name",
                "1 to 64 of A-Z a-z 0-9 . _ : -, the first a letter or digit",
                text,
            ));
        }
        Ok(Self(text.into()))
    }
}

/// Name of an alias: 1 to 32 of `a-z 0-9 _ -`, beginning with a letter. `latest` and `v1`, `v2`, …
/// are refused, because clients read them as versions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AliasName(Arc<str>);

name_type!(AliasName);

impl AliasName {
    /// The version that answers.
    pub fn champion() -> Self {
        Self("champion".into())
    }

    /// The version on trial against the champion.
    pub fn challenger() -> Self {
        Self("challenger".into())
    }

    /// The version that answers when the champion cannot; the champion before it.
    pub fn fallback() -> Self {
        Self("fallback".into())
    }

    /// The plain model at the end of the fallback chain.
    pub fn simple() -> Self {
        Self("simple".into())
    }
}

impl FromStr for AliasName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
        let number = text
            .strip_prefix('v')
            .is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()));
        if !first || !rest || number || text == "latest" || text.len() > 32 {
            return Err(NameError::new(
                "an alias",
                "1 to 32 of a-z 0-9 _ -, the first a letter, neither `latest` nor `v` and a number",
                text,
            ));
        }
        Ok(Self(text.into()))
    }
}

/// Name of a run: 32 lower-case hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId(Arc<str>);

name_type!(RunId);

impl RunId {
    /// The first half of a digest.
    pub(crate) fn from_digest(digest: &Digest) -> Self {
        Self(digest.to_string()[..32].into())
    }
}

impl FromStr for RunId {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() != 32 || !text.bytes().all(is_lower_hex) {
            return Err(NameError::new(
                "a run",
                "32 lower-case hexadecimal digits",
                text,
            ));
        }
        Ok(Self(text.into()))
    }
}

/// SHA-256 of some bytes; written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Hashes `bytes`; about a millisecond per megabyte where the CPU has no SHA instructions.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// A digest that was computed elsewhere.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes of the digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let refused =
            || NameError::new("a sha256 digest", "64 lower-case hexadecimal digits", text);
        if text.len() != 64 || !text.bytes().all(is_lower_hex) {
            return Err(refused());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| refused())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| refused())?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Digest {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Refuses a key, or another free name for people, that no list could show: empty, over 250
/// characters, or with control characters.
pub(crate) fn check_key(kind: &'static str, key: &str) -> Result<(), NameError> {
    if key.is_empty() || key.chars().count() > 250 || key.chars().any(char::is_control) {
        let rule = "1 to 250 characters, none of them a control character";
        return Err(NameError::new(kind, rule, key));
    }
    Ok(())
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What attackers and slips of the pen send in place of a name.
    const BAD: &[&str] = &[
        "",
        ".",
        "..",
        "../",
        "../x",
        "a/b",
        "a\\b",
        "/etc/passwd",
        "%2e%2e%2f",
        "a%2e",
        "a%252e",
        "a#b",
        "a?b",
        "a b",
        " a",
        "a ",
        "a\n",
        "a\0b",
        "\0",
        "．．",
        "a．b",
        "ａ",
        "a／b",
        "é",
        "a\u{200b}b",
        "\u{202e}a",
        "-a",
        "_a",
        ".a",
        ":a",
        "a*",
        "a'b",
        "a\"b",
        "a;b",
        "a$b",
        "a@b",
        "~a",
    ];

    #[test]
    fn bad_names_are_refused_by_every_type() {
        for bad in BAD {
            assert!(bad.parse::<ModelName>().is_err(), "model {bad:?}");
            assert!(bad.parse::<AliasName>().is_err(), "alias {bad:?}");
            assert!(bad.parse::<RunId>().is_err(), "run {bad:?}");
            assert!(bad.parse::<Digest>().is_err(), "digest {bad:?}");
        }
        assert!("a".repeat(65).parse::<ModelName>().is_err());
        assert!("a".repeat(33).parse::<AliasName>().is_err());
        assert!("A".repeat(32).parse::<RunId>().is_err());
        assert!("A".repeat(64).parse::<Digest>().is_err());
        assert!("a".repeat(63).parse::<Digest>().is_err());
        for bad in ["latest", "v1", "v007", "Champion", "a.b", "1a"] {
            assert!(bad.parse::<AliasName>().is_err(), "alias {bad:?}");
        }
    }

    #[test]
    fn good_names_are_taken_as_they_are() {
        for good in [
            "delay",
            "a",
            "0",
            "delay-static",
            "team:delay_v2.1",
            "A".repeat(64).as_str(),
        ] {
            assert_eq!(good.parse::<ModelName>().unwrap().as_str(), good);
        }
        for good in ["champion", "v", "v1a", "simple", "a".repeat(32).as_str()] {
            assert_eq!(good.parse::<AliasName>().unwrap().as_str(), good);
        }
        for known in [
            AliasName::champion(),
            AliasName::challenger(),
            AliasName::fallback(),
            AliasName::simple(),
        ] {
            assert_eq!(known.as_str().parse::<AliasName>().unwrap(), known);
        }
    }

    #[test]
    fn a_digest_is_that_of_the_standard() {
        assert_eq!(
            Digest::of(b"abc").to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_refusal_neither_repeats_control_characters_nor_runs_on() {
        let message = format!("a\0\n{}", "x".repeat(5000))
            .parse::<ModelName>()
            .unwrap_err()
            .to_string();
        assert!(message.starts_with("`a\\0\\nx"), "{message}");
        assert!(message.len() < 300, "{message}");
        assert!(!message.contains('\0') && !message.contains('\n'));
    }

    #[test]
    fn names_go_through_serde_by_the_same_rules() {
        let name: ModelName = serde_json::from_str("\"delay\"").unwrap();
        assert_eq!(serde_json::to_string(&name).unwrap(), "\"delay\"");
        assert!(serde_json::from_str::<ModelName>("\"../x\"").is_err());
        assert!(serde_json::from_str::<Digest>("\"abc\"").is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_as_a_model_is_one_harmless_path_segment(text in "\\PC{0,80}|[A-Za-z0-9._:/%-]{0,70}") {
            if let Ok(name) = text.parse::<ModelName>() {
                prop_assert_eq!(name.as_str(), text.as_str());
                prop_assert!(text.is_ascii() && !text.is_empty() && text.len() <= 64);
                prop_assert!(!text.contains(['/', '\\', '%', '#', '\0']));
                prop_assert!(text.as_bytes()[0].is_ascii_alphanumeric());
            } else {
                let plain = text.len() <= 64
                    && text.bytes().all(|b| b.is_ascii_alphanumeric())
                    && !text.is_empty();
                prop_assert!(!plain, "a plain name was refused: {}", text);
            }
        }

        #[test]
        fn a_digest_survives_text(bytes: [u8; 32]) {
            let digest = Digest::from_bytes(bytes);
            let text = digest.to_string();
            prop_assert_eq!(text.parse::<Digest>().unwrap(), digest);
            prop_assert!(text.to_uppercase().parse::<Digest>().is_err() || text == text.to_uppercase());
        }

        #[test]
        fn one_wrong_character_spoils_a_digest(bytes: [u8; 32], at in 0usize..64, wrong in "[^0-9a-f]") {
            let mut text: Vec<char> = Digest::from_bytes(bytes).to_string().chars().collect();
            text[at] = wrong.chars().next().unwrap();
            let text: String = text.into_iter().collect();
            prop_assert!(text.parse::<Digest>().is_err());
        }
    }
}
