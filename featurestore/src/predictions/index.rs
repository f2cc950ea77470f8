//! The prediction index: for each predicted row who scored it, when and how, so that a label finds it.

use std::sync::Arc;

use crate::predictions::{PredictionRecord, Role};
use crate::varint;

/// What the index holds of one predicted row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scored {
    /// Time of the prediction.
    pub(crate) at_ms: i64,
    /// One for each version that scored it, shadows included.
    pub(crate) scores: Vec<Score>,
}

/// The score of one version.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Score {
    pub(crate) model: Arc<str>,
    pub(crate) version: u32,
    pub(crate) role: Role,
    pub(crate) score: f32,
}

const VERSION: u8 = 1;

impl Scored {
    /// A row that nobody has scored yet.
    pub(crate) fn at(at_ms: i64) -> Self {
        Self {
            at_ms,
            scores: Vec::new(),
        }
    }

    /// Adds a record; one of the same model, version and role takes the place of the older.
    pub(crate) fn add(&mut self, record: &PredictionRecord) {
        self.put(Score {
            model: Arc::clone(&record.model),
            version: record.version,
            role: record.role,
            score: record.score,
        });
    }

    /// This row with the scores of `newer` added.
    pub(crate) fn merge(mut self, newer: &Self) -> Self {
        newer
            .scores
            .iter()
            .for_each(|score| self.put(score.clone()));
        self
    }

    fn put(&mut self, score: Score) {
        let same = |held: &&mut Score| {
            held.model == score.model && held.version == score.version && held.role == score.role
        };
        match self.scores.iter_mut().find(same) {
            Some(held) => *held = score,
            None => self.scores.push(score),
        }
    }

    /// The stored form: version, time, then role, version, score and model of each.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 24 * self.scores.len());
        put_time(self.at_ms, &mut out);
        for Score {
            model,
            version,
            role,
            score,
        } in &self.scores
        {
            put_score(model, *version, (*role, *score), &mut out);
        }
        out
    }

    /// Appends the stored form of a row that only `record` scored.
    pub(crate) fn encode_answer(record: &PredictionRecord, out: &mut Vec<u8>) {
        put_time(record.at_ms, out);
        put_score(
            &record.model,
            record.version,
            (record.role, record.score),
            out,
        );
    }

    /// Reads the stored form; `intern` gives the model's name.
    pub(crate) fn decode(
        mut input: &[u8],
        intern: &mut dyn FnMut(&str) -> Arc<str>,
    ) -> Option<Self> {
        let mut scored = Self::at(take_time(&mut input)?);
        while let Some((&role, rest)) = input.split_first() {
            input = rest;
            let version = u32::try_from(varint::take(&mut input)?).ok()?;
            let (bits, rest) = input.split_first_chunk::<4>()?;
            input = rest;
            let length = usize::try_from(varint::take(&mut input)?).ok()?;
            let model = std::str::from_utf8(varint::take_bytes(&mut input, length)?).ok()?;
            scored.scores.push(Score {
                model: intern(model),
                version,
                role: Role::from_stored(role)?,
                score: f32::from_bits(u32::from_le_bytes(*bits)),
            });
        }
        Some(scored)
    }

    /// Time of the prediction, without reading the rest.
    pub(crate) fn time_of(mut stored: &[u8]) -> Option<i64> {
        take_time(&mut stored)
    }
}

fn put_time(at_ms: i64, out: &mut Vec<u8>) {
    out.push(VERSION);
    varint::put(varint::zigzag(at_ms), out);
}

fn put_score(model: &str, version: u32, (role, score): (Role, f32), out: &mut Vec<u8>) {
    out.push(role as u8);
    varint::put(u64::from(version), out);
    out.extend_from_slice(&score.to_bits().to_le_bytes());
    varint::put(model.len() as u64, out);
    out.extend_from_slice(model.as_bytes());
}

fn take_time(input: &mut &[u8]) -> Option<i64> {
    let (&version, rest) = input.split_first()?;
    *input = rest;
    if version != VERSION {
        return None;
    }
    Some(varint::unzigzag(varint::take(input)?))
}

/// Model names seen so far, each kept once.
#[derive(Debug, Default)]
pub(crate) struct Names(Vec<Arc<str>>);

impl Names {
    /// The shared form of a name. Few models share a store, so a list is searched.
    pub(crate) fn intern(&mut self, name: &str) -> Arc<str> {
        if let Some(held) = self.0.iter().find(|held| &***held == name) {
            return Arc::clone(held);
        }
        let name: Arc<str> = name.into();
        self.0.push(Arc::clone(&name));
        name
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn score() -> impl Strategy<Value = Score> {
        ("[a-z]{0,9}", any::<u32>(), 0u8..6, -1.0f32..2.0).prop_map(
            |(model, version, role, score)| Score {
                model: model.as_str().into(),
                version,
                role: Role::from_stored(role).unwrap(),
                score,
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_scored_comes_back(at_ms: i64, scores in prop::collection::vec(score(), 0..4)) {
            let scored = Scored { at_ms, scores };
            let stored = scored.encode();
            prop_assert_eq!(Scored::time_of(&stored), Some(at_ms));
            let mut names = Names::default();
            let decoded = Scored::decode(&stored, &mut |name| names.intern(name));
            prop_assert_eq!(decoded, Some(scored));
        }

        #[test]
        fn any_bytes_are_read_without_a_panic(bytes: Vec<u8>) {
            let _ = Scored::decode(&bytes, &mut |name| name.into());
        }
    }
}
