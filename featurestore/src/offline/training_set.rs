//! Training rows in their order: by time, then by the request's id.
//!
//! They come part by part, each after all rows of the parts before it, and go either into a
//! [`TrainingSet`] in memory or into a dataset's file; the digest is taken on the way.

use std::collections::HashSet;

use ahash::RandomState;
use sha2::{Digest, Sha256};

use super::{OfflineError, TrainingSet};
use crate::predictions::PredictionKey;

/// A labelled row, but for its features.
#[derive(Debug, Clone)]
pub(crate) struct TrainingRow {
    pub(crate) predicted_ms: i64,
    pub(crate) request_id: String,
    pub(crate) prediction: PredictionKey,
    pub(crate) label: f32,
    /// When the label arrived.
    pub(crate) known_ms: i64,
}

/// Labelled rows of one service.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    /// Features of a row.
    pub(crate) width: usize,
    /// Row after row.
    pub(crate) values: Vec<f32>,
    pub(crate) rows: Vec<TrainingRow>,
    /// Those that the service refuses, with their times.
    pub(crate) refused: Vec<(i64, PredictionKey)>,
}

/// Where training rows go.
pub(crate) trait RowSink {
    /// Says once, before any row, what the features are called, and a number that the rows do not exceed.
    fn begin(&mut self, names: Vec<String>, rows_max: usize) -> Result<(), OfflineError>;

    /// Takes rows that are in order, each once, and after all rows taken before.
    fn take(&mut self, rows: Rows) -> Result<(), OfflineError>;
}

impl Rows {
    /// No rows yet.
    pub(crate) fn new(width: usize) -> Self {
        Self {
            width,
            ..Self::default()
        }
    }

    /// The features of a row.
    pub(crate) fn values_of(&self, row: usize) -> &[f32] {
        &self.values[row * self.width..][..self.width]
    }

    /// Adds a row with its features.
    pub(crate) fn push(&mut self, values: &[f32], row: TrainingRow) {
        self.values.extend_from_slice(values);
        self.rows.push(row);
    }

    /// The rows dated before `until_ms`; the others stay.
    pub(crate) fn take_before(&mut self, until_ms: i64) -> Self {
        let mut taken = std::mem::replace(self, Self::new(self.width));
        let late = |at_ms: i64| at_ms >= until_ms;
        let any_late = taken.rows.iter().any(|row| late(row.predicted_ms))
            || taken.refused.iter().any(|refused| late(refused.0));
        if !any_late {
            return taken;
        }
        let mut early = Self::new(taken.width);
        for (index, row) in std::mem::take(&mut taken.rows).into_iter().enumerate() {
            let part = if late(row.predicted_ms) {
                &mut *self
            } else {
                &mut early
            };
            part.push(taken.values_of(index), row);
        }
        for refused in taken.refused {
            let part = if late(refused.0) {
                &mut *self
            } else {
                &mut early
            };
            part.refused.push(refused);
        }
        early
    }

    /// All rows of the parts in order, repeated ones (two backfills may cover the same request) once.
    /// Ties of (time, request id) are broken by content: prediction ids are random.
    pub(crate) fn in_order(mut parts: Vec<Self>) -> Self {
        let width = parts.iter().map(|part| part.width).max().unwrap_or(0);
        let mut order: Vec<(usize, usize)> = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            order.extend((0..part.rows.len()).map(|row| (index, row)));
        }
        let row = |place: (usize, usize)| &parts[place.0].rows[place.1];
        let values = |place: (usize, usize)| parts[place.0].values_of(place.1);
        let bits = |place| values(place).iter().map(|value| value.to_bits());
        order.sort_unstable_by(|&a, &b| {
            let key = |place| (row(place).predicted_ms, row(place).request_id.as_str());
            let content = |place| (row(place).known_ms, row(place).label.to_bits());
            key(a)
                .cmp(&key(b))
                .then_with(|| content(a).cmp(&content(b)))
                .then_with(|| bits(a).cmp(bits(b)))
                .then_with(|| row(a).prediction.cmp(&row(b).prediction))
        });
        let mut seen = HashSet::with_capacity_and_hasher(order.len(), RandomState::new());
        order.retain(|&place| seen.insert(row(place).prediction));
        let refused = parts.iter().flat_map(|part| &part.refused).copied();
        let refused = refused.filter(|&(_, prediction)| seen.insert(prediction));
        let refused = refused.collect();
        let as_they_are =
            parts.len() == 1 && order.iter().map(|it| it.1).eq(0..parts[0].rows.len());
        if as_they_are {
            let part = parts.remove(0);
            return Self { refused, ..part };
        }
        Self {
            width,
            values: order.iter().flat_map(|&it| values(it)).copied().collect(),
            rows: order.iter().map(|&place| row(place).clone()).collect(),
            refused,
        }
    }
}

/// Puts rows together in memory.
#[derive(Debug, Default)]
pub(crate) struct SetBuilder {
    set: Option<TrainingSet>,
    digest: Option<RowsDigest>,
}

impl RowSink for SetBuilder {
    fn begin(&mut self, names: Vec<String>, rows_max: usize) -> Result<(), OfflineError> {
        self.digest = Some(RowsDigest::new(&names));
        // What is not filled is never touched.
        self.set = Some(TrainingSet {
            values: Vec::with_capacity(rows_max * names.len()),
            names,
            ..TrainingSet::default()
        });
        Ok(())
    }

    fn take(&mut self, rows: Rows) -> Result<(), OfflineError> {
        let begun = self.set.as_mut().zip(self.digest.as_mut());
        let (set, digest) = begun.expect("names come before rows");
        digest.add(&rows);
        set.refused += rows.refused.len() as u64;
        set.values.extend_from_slice(&rows.values);
        for row in rows.rows {
            set.labels.push(row.label);
            set.predicted_ms.push(row.predicted_ms);
            set.known_ms.push(row.known_ms);
            set.request_ids.push(row.request_id);
            set.predictions.push(row.prediction);
        }
        Ok(())
    }
}

impl SetBuilder {
    /// The rows, which are all.
    pub(crate) fn finish(self) -> TrainingSet {
        let digest = self.digest.unwrap_or_else(|| RowsDigest::new(&[]));
        TrainingSet {
            digest: digest.finish(),
            ..self.set.unwrap_or_default()
        }
    }
}

/// SHA-256 over names, then per row time, request id, arrival and bits of label and values. Lengths go
/// before what varies in length.
#[derive(Debug)]
pub(crate) struct RowsDigest {
    hash: Sha256,
    bytes: Vec<u8>,
}

impl RowsDigest {
    /// Of no rows yet.
    pub(crate) fn new(names: &[String]) -> Self {
        let mut bytes = Vec::new();
        bytes.extend((names.len() as u64).to_le_bytes());
        names.iter().for_each(|name| put_text(&mut bytes, name));
        Self {
            hash: Sha256::new_with_prefix(&bytes),
            bytes,
        }
    }

    /// Adds rows, in order.
    pub(crate) fn add(&mut self, rows: &Rows) {
        for (index, row) in rows.rows.iter().enumerate() {
            self.bytes.clear();
            self.bytes.extend(row.predicted_ms.to_le_bytes());
            put_text(&mut self.bytes, &row.request_id);
            self.bytes.extend(row.known_ms.to_le_bytes());
            self.bytes.extend(row.label.to_bits().to_le_bytes());
            let values = rows.values_of(index).iter();
            let bits = values.flat_map(|value| value.to_bits().to_le_bytes());
            self.bytes.extend(bits);
            self.hash.update(&self.bytes);
        }
    }

    /// The digest.
    pub(crate) fn finish(self) -> [u8; 32] {
        self.hash.finalize().into()
    }
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
}
