//! The last good release on disk: which versions served, for a start without the registry.
//!
//! Written after each publication, whole or not at all; the files that it names lie among the
//! artifacts, by content. One line holds the hash of the rest: what has rotted counts as missing.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use registry::{AliasName, Digest, ModelName, Version};
use serde::{Deserialize, Serialize};

use crate::prepare::Origin;

/// The file in the data folder.
pub(crate) const NAME: &str = "last-good.json";
const STAGED: &str = "last-good.json.new";
/// A reader refuses a format that it does not know.
const FORMAT: u32 = 1;

/// A release that served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LastGood {
    format: u32,
    /// The registry's generation that it was made from.
    pub generation: i64,
    pub models: BTreeMap<ModelName, GoodModel>,
}

/// A model of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GoodModel {
    pub aliases: BTreeMap<AliasName, Version>,
    pub versions: BTreeMap<Version, Origin>,
}

impl LastGood {
    pub(super) fn new(generation: i64, models: BTreeMap<ModelName, GoodModel>) -> Self {
        Self {
            format: FORMAT,
            generation,
            models,
        }
    }

    /// Reads it from the data folder. `None` where there is none, or none that can be trusted.
    pub(super) fn read(data: &Path) -> Option<Self> {
        let text = match std::fs::read_to_string(data.join(NAME)) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != ErrorKind::NotFound {
                    tracing::warn!(%error, "the last good release cannot be read");
                }
                return None;
            }
        };
        let parsed = Self::parse(&text);
        if parsed.is_none() {
            tracing::warn!("the last good release is corrupt, or of another format");
        }
        parsed
    }

    fn parse(text: &str) -> Option<Self> {
        let (digest, rest) = text.split_once('\n')?;
        if digest.parse::<Digest>().ok()? != Digest::of(rest.as_bytes()) {
            return None;
        }
        let read: Self = serde_json::from_str(rest).ok()?;
        (read.format == FORMAT).then_some(read)
    }

    fn text(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("a release can be written to memory");
        format!("{}\n{json}", Digest::of(json.as_bytes()))
    }

    /// Writes it into the data folder; durable when it returns.
    pub(super) fn write(&self, data: &Path) -> io::Result<()> {
        let staged = data.join(STAGED);
        let mut file = File::create(&staged)?;
        file.write_all(self.text().as_bytes())?;
        file.sync_all()?;
        std::fs::rename(staged, data.join(NAME))?;
        File::open(data)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release() -> LastGood {
        let origin = Origin {
            artifact: Digest::of(b"a model"),
            golden: Some(Digest::of(b"its rows")),
            service: Some("score@1".to_owned()),
            rows_max: Some(8),
            labels: [("p".to_owned(), vec!["no".to_owned()])].into(),
        };
        let model = GoodModel {
            aliases: [(AliasName::champion(), 3)].into(),
            versions: [(3, origin)].into(),
        };
        LastGood::new(7, [("m".parse().unwrap(), model)].into())
    }

    #[test]
    fn it_comes_back_as_it_was_and_replaces_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(LastGood::read(folder.path()), None);
        LastGood::new(1, BTreeMap::new())
            .write(folder.path())
            .unwrap();
        release().write(folder.path()).unwrap();
        assert_eq!(LastGood::read(folder.path()), Some(release()));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn no_flipped_bit_and_no_cut_is_believed() {
        let text = release().text();
        for cut in 0..text.len() {
            assert_eq!(LastGood::parse(&text[..cut]), None, "cut at {cut}");
        }
        for at in 0..text.len() {
            for bit in 0..7 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let flipped = String::from_utf8(bytes).unwrap();
                assert_eq!(LastGood::parse(&flipped), None, "bit {bit} of byte {at}");
            }
        }
    }
}
